//! A full disk, a locked database, a clock that jumps.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "tests start programs and wait under deadlines of their own"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::daemon::{Daemon, PATIENCE, Session};
use crate::support::jobs::{Repository, job};

/// A small file system in memory, unmounted at the end.
struct Small(tempfile::TempDir);

impl Small {
    fn new(size: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(directory.path())
            .status()
            .unwrap();
        assert!(status.success(), "this test mounts a tmpfs, as root");
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

/// Writes until there is no room, leaving `spare` bytes.
fn fill(directory: &Path, spare: usize) {
    let file = directory.join("ballast");
    let mut size = 0;
    let block = vec![1; 1 << 16];
    let mut out = fs::File::create(&file).unwrap();
    while std::io::Write::write_all(&mut out, &block).is_ok() {
        size += block.len();
    }
    drop(out);
    let file = fs::File::options().write(true).open(&file).unwrap();
    file.set_len((size - spare) as u64).unwrap();
}

const DAY: i64 = 86400;

/// A directory whose file `clock` moves a daemon's clock by so many seconds, and what writes it.
fn clock() -> (tempfile::TempDir, impl Fn(i64)) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    let set = move |seconds: i64| {
        // Renamed into place, so that no half of it is ever read.
        let aside = path.join("new");
        fs::write(&aside, seconds.to_string()).unwrap();
        fs::rename(aside, path.join("clock")).unwrap();
    };
    (directory, set)
}

#[test]
fn builds_wait_while_the_disk_is_full() {
    let small = Small::new("64m");
    let repository = Repository::with_jobs(&job("one", "true", ""));
    let mut daemon = Daemon::prepare_in(
        &small.path().join("state"),
        &["--minimum-disk-space=16M", "--interval=3600"],
    );
    // Where it is after a minute's backoff.
    let (directory, set) = clock();
    daemon.environment("GORGET_TEST_CLOCK", directory.path().join("clock").to_str().unwrap());
    set(DAY);
    daemon.restart();
    daemon.ask("pause builds");
    daemon.ask(&repository.add("hello"));
    daemon.until("evaluations hello", |all| all.len() == 1 && all[0]["status"] == "succeeded");
    fill(small.path(), 8 << 20);
    daemon.ask("resume builds");
    daemon.until("builds", |builds| builds[0]["waiting"] == "no space");
    fs::remove_file(small.path().join("ballast")).unwrap();
    daemon.settle();
    assert_eq!(daemon.build("one")["status"], "succeeded");
    // Full to the last byte while a build runs: it is no failure of the build, and the books stay right.
    repository.set_jobs(&job("two", "head -c 30000000 /dev/zero > $out", ""));
    fill(small.path(), 20 << 20);
    daemon.ask("trigger hello");
    daemon.until("builds status=scheduled", |builds| {
        let error = builds.first().and_then(|build| build["error"].as_str());
        error.is_some_and(|error| error.starts_with("no space left on the disk"))
    });
    let two = daemon.build("two");
    assert!(two["waiting"].as_str().unwrap().starts_with("retry at "), "{two}");
    assert_eq!(two["attempts"], 1);
    fs::remove_file(small.path().join("ballast")).unwrap();
    assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.log());
    set(DAY + 120);
    daemon.restart();
    daemon.until("builds status=succeeded", |builds| builds.len() == 2);
    assert_eq!(daemon.outcome("check-database"), "ok");
    assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.log());
}

#[test]
fn evaluations_wait_while_the_cache_is_full_and_are_repeated_when_it_was() {
    let small = Small::new("64m");
    let repository = Repository::with_jobs(&job("one", "true", ""));
    // More than the small disk has left, and less than the others have.
    let cache = format!("--cache-directory={}", small.path().join("cache").display());
    let mut daemon = Daemon::prepare(&[&cache, "--minimum-disk-space=16M", "--interval=3600"]);
    daemon.restart();
    fill(small.path(), 8 << 20);
    daemon.ask(&repository.add("hello"));
    let said = |jobsets: &[Value], text: &str| {
        jobsets[0]["error"].as_str().is_some_and(|error| error.contains(text))
    };
    daemon.until("jobset hello", |jobsets| said(jobsets, "no space for an evaluation"));
    assert_eq!(daemon.ask("evaluations hello"), [] as [Value; 0]);
    fs::remove_file(small.path().join("ballast")).unwrap();
    daemon.settle();
    assert_eq!(daemon.build("one")["status"], "succeeded");
    assert!(daemon.ask("jobset hello")[0]["error"].is_null());
    assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.log());

    // Full in the middle of one: there is room enough when it begins.
    let mut daemon = Daemon::prepare_in(
        &small.path().join("state"),
        &["--minimum-disk-space=0", "--interval=3600"],
    );
    daemon.restart();
    repository.write("large", &"x".repeat(12 << 20));
    repository.commit();
    daemon.ask(&repository.add("hello"));
    daemon.settle();
    repository.set_jobs(&job("two", "true", ""));
    // For the new checkout and no copy of it.
    fill(small.path(), 20 << 20);
    daemon.ask("trigger hello");
    daemon.until("jobset hello", |jobsets| said(jobsets, "No space left on device"));
    let evaluation = daemon.ask("evaluations hello limit=1").remove(0);
    assert_eq!(evaluation["status"], "aborted", "{evaluation}");
    fs::remove_file(small.path().join("ballast")).unwrap();
    daemon.ask("trigger hello");
    daemon.until("evaluations hello", |all| all.len() == 3 && all[0]["status"] == "succeeded");
    daemon.settle();
    assert_eq!(daemon.build("two")["status"], "succeeded");
    assert!(daemon.ask("jobset hello")[0]["error"].is_null());
    assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.log());
}

#[test]
fn a_locked_database_delays_and_loses_nothing() {
    let repository = Repository::with_jobs(&job("one", "sleep 0.2", ""));
    let mut daemon = Daemon::start(&[]);
    daemon.ask(&repository.add("hello"));
    daemon.until("builds status=started", |builds| builds.len() == 1);
    let other = rusqlite::Connection::open(daemon.database()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    // The build ends meanwhile; reads go on, and the daemon says what it waits for.
    wait_for_log(&daemon, "locked");
    assert_eq!(daemon.build("one")["status"], "started");
    other.execute_batch("ROLLBACK").unwrap();
    daemon.settle();
    assert_eq!(daemon.build("one")["status"], "succeeded");
}

#[test]
fn an_evaluation_canceled_while_its_end_is_written_is_canceled() {
    let gate = tempfile::tempdir().unwrap();
    let open = gate.path().join("open");
    let wait = format!("until [ -e {} ]; do sleep 0.05; done", open.display());
    let repository = Repository::with_jobs(&format!("{}{wait}", job("one", "true", "")));
    let mut daemon = Daemon::start(&["--interval=86400"]);
    daemon.ask("pause builds");
    daemon.ask(&repository.add("hello"));
    daemon.until("builds", |builds| builds.len() == 1);
    let other = rusqlite::Connection::open(daemon.database()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    fs::write(&open, "").unwrap();
    wait_for_log(&daemon, "evaluation 1 of hello succeeded");
    daemon.ask("cancel-evaluation 1");
    other.execute_batch("ROLLBACK").unwrap();
    daemon.until("builds", |builds| builds[0]["status"] == "canceled");
}

#[test]
fn a_command_answered_with_an_error_is_not_carried_out_later() {
    let gate = tempfile::tempdir().unwrap();
    let open = gate.path().join("open");
    let wait = format!("until [ -e {} ]; do sleep 0.05; done", open.display());
    let repository =
        Repository::with_jobs(&[job("gated", &wait, ""), job("long", "sleep 1000", "")].concat());
    let mut daemon = Daemon::start(&["--interval=86400", "--max-builds=2"]);
    daemon.ask(&repository.add("hello"));
    daemon.until("builds status=started", |builds| builds.len() == 2);
    let long = daemon.build("long")["id"].clone();
    let other = rusqlite::Connection::open(daemon.database()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    // Its end keeps the builder's pen busy.
    fs::write(&open, "").unwrap();
    wait_for_log(&daemon, "cannot write (builds start and end)");
    let answer = daemon.outcome(&format!("cancel-build {long}"));
    assert!(answer.starts_with("error unavailable"), "{answer}");
    other.execute_batch("ROLLBACK").unwrap();
    daemon.until("builds status=succeeded", |builds| builds.len() == 1);
    // Answered after all that was asked before.
    daemon.ask(&format!("prioritize-build {long} 7"));
    assert_eq!(daemon.build("long")["status"], "started");
    daemon.ask(&format!("cancel-build {long}"));
}

fn wait_for_log(daemon: &Daemon, text: &str) {
    let until = std::time::Instant::now() + PATIENCE;
    while !daemon.log().contains(text) {
        assert!(std::time::Instant::now() < until, "{}", daemon.log());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn a_clock_that_jumps_stops_nothing() {
    let (directory, set) = clock();
    let file = directory.path().join("clock");
    let repository = Repository::with_jobs(&job("job-0", "true", ""));
    let mut daemon = Daemon::prepare(&["--interval=1"]);
    daemon.environment("GORGET_TEST_CLOCK", file.to_str().unwrap());
    daemon.restart();
    daemon.ask(&repository.add("hello"));
    daemon.settle();
    for (n, days) in [(1, 3), (2, -3), (3, 4000), (4, 0)] {
        let gate = directory.path().join(format!("gate-{n}"));
        let command = format!("until [ -e {} ]; do sleep 0.05; done", gate.display());
        repository.set_jobs(&job(&format!("job-{n}"), &command, ""));
        // Found by a poll, which no jump may put off.
        daemon.until("builds status=started", |builds| builds.len() == 1);
        set(days * DAY);
        fs::write(&gate, "").unwrap();
        daemon.settle();
        let build = daemon.build(&format!("job-{n}"));
        assert_eq!(build["status"], "succeeded");
        assert!(build["stoptime"].as_i64() >= build["starttime"].as_i64(), "{build}");
    }
    assert_eq!(daemon.outcome("check-database"), "ok");
    let evaluations = daemon.ask("evaluations hello");
    assert_eq!(evaluations.len(), 5);
    for evaluation in evaluations {
        assert!(evaluation["evaltime"].as_i64() >= evaluation["timestamp"].as_i64());
    }
}

#[test]
fn a_want_of_descriptors_is_said_and_passes() {
    let repository = Repository::with_jobs(&job("one", "true", ""));
    let mut daemon = Daemon::start(&["--interval=86400"]);
    daemon.ask(&repository.add("hello"));
    daemon.settle();
    let limit = |count: usize| {
        let status = Command::new("prlimit")
            .args([&format!("--pid={}", daemon.pid()), &format!("--nofile={count}:4096")])
            .status()
            .unwrap();
        assert!(status.success());
    };
    let open = || fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    // Room for one more connection and what its request needs, but for no look at a repository.
    limit(open() + 2);
    let mut session = Session::new(UnixStream::connect(daemon.socket()).unwrap());
    repository.set_jobs(&job("two", "true", ""));
    session.send("trigger hello");
    assert_eq!(session.answer().unwrap().1, "ok");
    let until = std::time::Instant::now() + PATIENCE;
    while !daemon.log().contains("Too many open files") {
        assert!(std::time::Instant::now() < until, "{}", daemon.log());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    // Newcomers wait, and nobody goes.
    let waiting: Vec<_> = (0..8).map(|_| UnixStream::connect(daemon.socket()).unwrap()).collect();
    limit(1024);
    for stream in waiting {
        let mut session = Session::new(stream);
        session.send("version");
        assert_eq!(session.answer().unwrap().1, "ok");
    }
    daemon.ask("trigger hello");
    daemon.until("evaluations hello", |all| all.len() == 2 && all[0]["status"] == "succeeded");
    daemon.settle();
    assert_eq!(daemon.build("two")["status"], "succeeded");
}

/// The user that jobs run as may have no more processes: no fault of a job, nor of an evaluator.
#[test]
fn a_want_of_processes_is_no_failure_of_what_is_started() {
    let gate = tempfile::tempdir().unwrap();
    let open = gate.path().join("open");
    fs::set_permissions(gate.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let wait = format!("until [ -e {} ]; do sleep 0.05; done", open.display());
    let repository = Repository::with_jobs(
        &[
            job("long", "echo running; sleep 1000", ""),
            job("gated", &format!("echo running; {wait}"), ""),
            job("one", "true", r#""needs":["gated"]"#),
        ]
        .concat(),
    );
    let mut daemon = Daemon::start(&["--job-user=nobody", "--max-builds=2", "--interval=86400"]);
    daemon.ask(&repository.add("hello"));
    // The books say so before their processes exist.
    for build in daemon.until("builds status=started", |builds| builds.len() == 2) {
        let log = format!("log build {}", build["id"]);
        daemon.until(&log, |pieces| !pieces.is_empty());
    }
    daemon.until("evaluations hello", |all| all[0]["status"] == "succeeded");
    let pid = format!("--pid={}", daemon.pid());
    let limit = |processes: &str| {
        let argument = format!("--nproc={processes}:");
        assert!(Command::new("prlimit").args([&pid, &argument]).status().unwrap().success());
    };
    limit("0");
    fs::write(&open, "").unwrap();
    let why = "Try again";
    daemon.until("builds status=scheduled", |builds| {
        builds.len() == 1 && builds[0]["error"] == format!("cannot run sh: {why}")
    });
    repository.set_jobs(&job("two", "true", ""));
    daemon.ask("trigger hello");
    let why = format!("cannot start ./jobs: {why}");
    daemon.until("jobset hello", |jobsets| jobsets[0]["error"] == why.as_str());
    let evaluation = daemon.ask("evaluations hello limit=1").remove(0);
    assert_eq!((&evaluation["status"], &evaluation["error"]), (&"aborted".into(), &why.into()));
    limit("10000");
    daemon.ask("trigger hello");
    daemon.until("evaluations hello limit=1", |all| all[0]["status"] == "succeeded");
    // The monitor hears of it after the books.
    daemon.until("jobset hello", |jobsets| jobsets[0]["error"].is_null());
}
