//! What a CI does all day.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "tests start programs and wait under deadlines of their own"
)]

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::support::daemon::Daemon;
use crate::support::jobs::{Repository, job};

#[test]
fn jobs_are_built_in_order_and_their_products_kept() {
    let repository = Repository::with_jobs(
        &[
            job(
                "test",
                "cat \"$(sed 's/.*\"out\":\"\\([^\"]*\\)\".*/\\1/' \"$GORGET_NEEDS\")/answer\"",
                r#""needs":["compile"]"#,
            ),
            job(
                "compile",
                "mkdir $out && echo 42 > $out/answer; echo text > report.txt",
                r#""products":["*.txt"]"#,
            ),
            job("bad", "echo no >&2; exit 3", ""),
            job("after-bad", "true", r#""needs":["bad"]"#),
        ]
        .concat(),
    );
    let mut daemon = Daemon::start(&[]);
    daemon.ask(&repository.add("hello"));
    daemon.settle();

    let compile = daemon.build("compile");
    assert_eq!(compile["status"], "succeeded");
    let out = compile["outputs"]["out"].as_str().unwrap();
    assert_eq!(fs::read_to_string(format!("{out}/answer")).unwrap(), "42\n");
    let test = daemon.build("test");
    assert_eq!(test["status"], "succeeded", "{test}");
    let log = daemon.ask(&format!("log build {}", test["id"]));
    assert_eq!(log[0]["text"], "42\n");
    let bad = daemon.build("bad");
    assert_eq!((&bad["status"], &bad["error"]), (&"failed".into(), &"exit status 3".into()));
    let after = daemon.build("after-bad");
    assert_eq!(after["status"], "failed-dependency");
    assert_eq!(after["error"], format!("dependency {} failed", bad["id"]));
    let evaluation = daemon.ask("evaluations hello").remove(0);
    assert_eq!(
        evaluation["jobs"],
        serde_json::json!({"total":4,"succeeded":2,"failed":2,"pending":0,"aborted":0,"canceled":0})
    );
    assert_eq!(evaluation["checkouts"][0]["commit"], repository.git(&["rev-parse", "HEAD"]));
}

#[test]
fn a_new_commit_is_evaluated_and_known_builds_are_not_repeated() {
    let repository = Repository::with_jobs(&job("same", "true", ""));
    let mut daemon = Daemon::start(&[]);
    daemon.ask(&repository.add("hello"));
    daemon.settle();
    let first = daemon.build("same")["id"].clone();
    // The same tree again, then another one.
    repository.commit();
    daemon.ask("trigger hello");
    daemon.until("evaluations hello", |all| all.len() == 2);
    daemon.settle();
    assert_eq!(daemon.build("same")["id"], first);
    repository.write("new-file", "text");
    repository.commit();
    daemon.ask("trigger hello");
    daemon.until("evaluations hello", |all| all.len() == 3);
    daemon.settle();
    assert_ne!(daemon.build("same")["id"], first);
    // Nothing new: no evaluation, and still `ok`.
    daemon.ask("trigger hello");
    daemon.settle();
    assert_eq!(daemon.ask("evaluations hello").len(), 3);
}

#[test]
fn a_build_is_canceled_with_its_dependents_and_restarted_with_them() {
    let gate = tempfile::tempdir().unwrap();
    let file = gate.path().join("open");
    let wait = format!("setsid sleep 1000 & [ -e {0} ] || sleep 1000", file.display());
    let repository = Repository::with_jobs(
        &[job("slow", &wait, ""), job("next", "true", r#""needs":["slow"]"#)].concat(),
    );
    let mut daemon = Daemon::start(&[]);
    daemon.ask(&repository.add("hello"));
    daemon.until("builds status=started", |builds| builds.len() == 1);
    let next = daemon.build("next");
    let slow = daemon.build("slow")["id"].clone();
    assert_eq!(next["waiting"], format!("dependency {slow}"));
    daemon.ask(&format!("cancel-build {slow}"));
    daemon.settle();
    assert_eq!(daemon.build("slow")["status"], "canceled");
    assert_eq!(daemon.build("next")["status"], "canceled");
    daemon.wait_for_no_descendants();
    assert!(daemon.outcome(&format!("cancel-build {slow}")).starts_with("error conflict"));

    fs::write(&file, "").unwrap();
    daemon.ask(&format!("restart-build {}", next["id"]));
    daemon.settle();
    assert_eq!(daemon.build("slow")["status"], "succeeded");
    assert_eq!(daemon.build("next")["status"], "succeeded");
}

#[test]
fn a_rebuild_leaves_what_others_read_until_they_have_ended() {
    let directory = tempfile::tempdir().unwrap();
    let go = directory.path().join("go");
    let reads = format!(
        "until [ -e {} ]; do sleep 0.02; done
         cat \"$(sed 's/.*\"out\":\"\\([^\"]*\\)\".*/\\1/' \"$GORGET_NEEDS\")\"",
        go.display()
    );
    let repository = Repository::with_jobs(
        &[job("compile", "echo 42 >$out", ""), job("test", &reads, r#""needs":["compile"]"#)]
            .concat(),
    );
    let mut daemon = Daemon::start(&["--max-builds=2"]);
    daemon.ask(&repository.add("hello"));
    daemon.until("builds status=started", |builds| builds.iter().any(|b| b["job"] == "test"));
    let (compile, test) = (daemon.build("compile"), daemon.build("test"));
    daemon.ask(&format!("restart-build {}", compile["id"]));
    assert_eq!(daemon.build("compile")["waiting"], format!("dependency {}", test["id"]));
    assert!(std::path::Path::new(compile["outputs"]["out"].as_str().unwrap()).exists());
    fs::write(&go, "").unwrap();
    daemon.settle();
    for job in ["compile", "test"] {
        let build = daemon.build(job);
        assert_eq!(build["status"], "succeeded", "{build}");
    }
    assert_eq!(daemon.build("test")["starttime"], test["starttime"], "it ran once");
}

#[test]
fn what_is_asked_for_again_finds_its_commit_again() {
    let repository = Repository::with_jobs(&job("one", "cat content >$out", ""));
    repository.write("content", "old");
    repository.commit();
    let mut daemon = Daemon::start(&["--interval=86400"]);
    daemon.ask(&repository.add("hello"));
    daemon.settle();
    let one = daemon.build("one");
    repository.write("content", "new");
    repository.commit();
    daemon.ask("trigger hello");
    daemon.until("evaluations hello", |evaluations| evaluations.len() == 2);
    daemon.settle();
    // As the janitor does after a while.
    fs::remove_dir_all(daemon.state().join("cache/checkouts")).unwrap();
    fs::create_dir(daemon.state().join("cache/checkouts")).unwrap();
    daemon.ask(&format!("restart-build {}", one["id"]));
    daemon.settle();
    let one = daemon.ask(&format!("build {}", one["id"])).remove(0);
    assert_eq!(one["status"], "succeeded", "{one}");
    assert_eq!(fs::read_to_string(one["outputs"]["out"].as_str().unwrap()).unwrap(), "old");

    // An evaluation that waits for its turn for a long time.
    daemon.ask("pause evaluations");
    daemon.ask("trigger hello");
    repository.write("content", "newest");
    repository.commit();
    daemon.ask("trigger hello");
    daemon.until("jobset hello", |jobset| jobset[0]["status"] == "evaluating");
    fs::remove_dir_all(daemon.state().join("cache/checkouts")).unwrap();
    fs::create_dir(daemon.state().join("cache/checkouts")).unwrap();
    daemon.ask("resume evaluations");
    daemon.settle();
    let evaluation = daemon.ask("evaluations hello").remove(0);
    assert_eq!(evaluation["status"], "succeeded", "{evaluation}");
}

#[test]
fn time_limits_end_builds_as_failed() {
    let repository = Repository::with_jobs(
        &[
            job("slow", "while :; do echo on; sleep 0.1; done", r#""timeout":1"#),
            job("silent", "echo once; sleep 1000", r#""max-silent-time":1"#),
        ]
        .concat(),
    );
    let mut daemon = Daemon::start(&[]);
    daemon.ask(&repository.add("hello"));
    daemon.settle();
    let (slow, silent) = (daemon.build("slow"), daemon.build("silent"));
    assert_eq!(
        (&slow["status"], &slow["error"]),
        (&"failed".into(), &"timed out after 1 s".into())
    );
    assert_eq!((&silent["status"], &silent["error"]), (&"failed".into(), &"silent for 1 s".into()));
    daemon.wait_for_no_descendants();
}

#[test]
fn a_log_is_live_from_its_first_byte() {
    let repository = Repository::with_jobs(&job("talk", "echo first; sleep 1000", ""));
    let mut daemon = Daemon::start(&[]);
    daemon.ask(&repository.add("hello"));
    daemon.until("builds status=started", |builds| builds.len() == 1);
    let id = daemon.build("talk")["id"].clone();
    let mut session = daemon.connect();
    session.send(&format!("log build {id} follow"));
    let line = session.line().unwrap();
    assert_eq!(line, r#"{"offset":0,"text":"first\n"}"#);
    daemon.ask(&format!("cancel-build {id}"));
    let (_, end) = session.answer().unwrap();
    assert_eq!(end, "ok");
}

#[test]
fn a_log_is_followed_into_the_file_that_takes_its_place() {
    let repository = Repository::with_jobs(&job("talk", "echo first; sleep 1000", ""));
    let mut daemon = Daemon::start(&[]);
    daemon.ask(&repository.add("hello"));
    daemon.until("builds status=started", |builds| builds.len() == 1);
    let build = daemon.build("talk");
    let (id, log) = (build["id"].clone(), build["log"].as_str().unwrap());
    let mut session = daemon.connect();
    session.send(&format!("log build {id} follow"));
    assert_eq!(session.line().unwrap(), r#"{"offset":0,"text":"first\n"}"#);
    // The books tell of another try before it begins its file: this one does so when they have long been read.
    std::fs::remove_file(log).unwrap();
    let file = std::fs::File::create(log).unwrap();
    let mut second = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    std::io::Write::write_all(&mut second, b"second\n").unwrap();
    second.finish().unwrap();
    assert_eq!(session.line().unwrap(), r#"{"offset":0,"text":"second\n"}"#);
    daemon.ask(&format!("cancel-build {id}"));
    let (_, end) = session.answer().unwrap();
    assert_eq!(end, "ok");
}

#[test]
fn jobsets_are_deactivated_activated_and_deleted() {
    let repository = Repository::with_jobs(&job("one", "true", ""));
    let mut daemon = Daemon::start(&[]);
    daemon.ask(&repository.add("hello"));
    daemon.settle();
    daemon.ask("deactivate hello");
    assert!(daemon.outcome("trigger hello").starts_with("error conflict"));
    assert_eq!(daemon.ask("jobset hello")[0]["status"], "inactive");
    daemon.ask("activate hello");
    daemon.ask("trigger hello");
    daemon.ask("delete hello");
    assert!(daemon.outcome("jobset hello").starts_with("error not-found"));
    assert_eq!(daemon.ask("jobsets").len(), 0);
    assert_eq!(daemon.ask("evaluations").len(), 0);
    // Its name is free at once, and its builds are known.
    daemon.ask(&repository.add("hello"));
    daemon.settle();
    assert_eq!(daemon.ask("evaluations hello").len(), 1);
    assert_eq!(daemon.ask("builds jobset=hello").len(), 1);
    // One that the books lost is not watched any longer.
    let books = rusqlite::Connection::open(daemon.database()).unwrap();
    books
        .execute_batch("PRAGMA foreign_keys = ON; DELETE FROM jobsets WHERE name = 'hello'")
        .unwrap();
    assert_eq!(daemon.ask("status")[0]["jobsets"]["total"], 1);
    assert!(daemon.outcome("delete hello").starts_with("error not-found"));
    assert_eq!(daemon.ask("status")[0]["jobsets"]["total"], 0);
}

#[test]
fn triggers_are_limited() {
    let repository = Repository::with_jobs("true");
    let mut daemon = Daemon::start(&[]);
    daemon.ask(&repository.add("hello"));
    daemon.settle();
    for _ in 0..8 {
        daemon.ask("trigger hello");
        daemon.settle();
    }
    let answer = daemon.outcome("trigger hello");
    assert!(answer.starts_with("error rate-limited retry in "), "{answer}");
}

#[test]
fn one_shot_says_by_its_status_whether_all_succeeded() {
    let repository = Repository::with_jobs(&job("one", "true", ""));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("spec.json");
    fs::write(&file, repository.specification("hello", &["./jobs"]).to_string()).unwrap();
    let option = format!("--specifications={}", file.display());
    let mut daemon = Daemon::prepare(&["--one-shot", &option]);
    daemon.launch();
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
    repository.set_jobs(&job("one", "false", ""));
    daemon.launch();
    assert_eq!(daemon.wait().code(), Some(1), "{}", daemon.log());
    // There is nobody to ask afterwards.
    let log = daemon.log();
    let said = "(one of hello) ended failed: exit status 1; its log is ";
    assert!(log.contains(said), "{log}");
}

#[test]
fn one_shot_ends_with_status_1_when_it_is_told_to_stop_before_its_end() {
    let repository = Repository::with_jobs(&job("one", "sleep 1000", ""));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("spec.json");
    fs::write(&file, repository.specification("hello", &["./jobs"]).to_string()).unwrap();
    let option = format!("--specifications={}", file.display());
    let mut daemon = Daemon::start(&["--one-shot", &option]);
    daemon.until("builds status=started", |builds| builds.len() == 1);
    assert_eq!(daemon.stop().code(), Some(1), "{}", daemon.log());
    daemon.restart();
    daemon.until("builds status=started", |builds| builds.len() == 1);
    daemon.outcome("shutdown");
    assert_eq!(daemon.wait().code(), Some(1), "{}", daemon.log());
}

#[test]
fn one_shot_waits_for_no_pause_of_an_earlier_life_and_not_for_ever_for_space() {
    let repository = Repository::with_jobs(&job("one", "true", ""));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("spec.json");
    fs::write(&file, repository.specification("hello", &["./jobs"]).to_string()).unwrap();
    let option = format!("--specifications={}", file.display());
    let state = directory.path().join("state");
    let mut daemon = Daemon::prepare_in(&state, &[]);
    daemon.restart();
    daemon.ask("pause builds");
    daemon.ask("pause evaluations");
    assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.log());
    let mut once = Daemon::prepare_in(&state, &["--one-shot", &option]);
    once.launch();
    assert_eq!(once.wait().code(), Some(0), "{}", once.log());
    for what in ["builds", "evaluations"] {
        let said =
            format!("{what} are paused since before the start, which a one-shot run ignores");
        assert!(once.log().contains(&said), "{}", once.log());
    }
    // More than any disk has.
    let minimum = "--minimum-disk-space=1000000G";
    let mut full = Daemon::prepare_in(&state, &["--one-shot", &option, minimum]);
    full.launch();
    assert_eq!(full.wait().code(), Some(1), "{}", full.log());
    assert!(full.log().contains("no space for 1 evaluations; giving up"), "{}", full.log());
}

#[test]
fn paused_builds_wait_and_say_so() {
    let repository = Repository::with_jobs(&job("one", "true", ""));
    let mut daemon = Daemon::start(&[]);
    daemon.ask("pause builds");
    daemon.ask(&repository.add("hello"));
    daemon.until("builds", |builds| builds.len() == 1);
    daemon.until("builds", |builds| builds[0]["waiting"] == "paused");
    // A pause outlives the process.
    assert_eq!(daemon.stop().code(), Some(0));
    daemon.restart();
    daemon.until("builds", |builds| builds[0]["waiting"] == "paused");
    daemon.ask("resume builds");
    daemon.settle();
    assert_eq!(daemon.build("one")["status"], "succeeded");
}

#[test]
fn builds_without_a_backend_wait_and_say_so() {
    let line = r#"{"job":"d","system":"SYSTEM","derivation":"/gnu/store/00000000000000000000000000000000-x.drv","outputs":{"out":"/gnu/store/00000000000000000000000000000000-x"}}"#;
    let line = line.replace("SYSTEM", &crate::support::jobs::system());
    let repository = Repository::with_jobs(&format!("echo '{line}'"));
    let mut daemon = Daemon::start(&["--builder=process"]);
    daemon.ask(&repository.add("hello"));
    daemon.until("builds", |builds| {
        builds.len() == 1 && builds[0]["waiting"] == "no backend for derivation builds"
    });
}

#[test]
fn evaluators_and_builds_run_as_the_job_user_without_a_way_back() {
    if !is_root() {
        eprintln!("left out: only root can run jobs as another user");
        return;
    }
    let repository = Repository::with_jobs(&format!(
        "id -un >&2; id -Gn >&2; touch mine || exit 9\n{}",
        job(
            "who",
            "id -un; id -Gn; touch $TMPDIR/x here && mkdir $out && echo ok > $out/x; \
             cat ../../../gorget.db >/dev/null 2>&1 && echo leak; \
             echo trigger hello | timeout 5 socat - UNIX-CONNECT:$BRIDGE && echo leak; true",
            r#""products":["here"]"#,
        )
    ));
    let mut daemon = Daemon::start(&["--job-user=nobody"]);
    let socket = daemon.socket().display().to_string();
    let jobs = fs::read_to_string(repository.path().join("jobs")).unwrap();
    repository.set_jobs(&jobs.replacen("#!/bin/sh\n", "", 1).replace("$BRIDGE", &socket));
    daemon.ask(&repository.add("hello"));
    daemon.settle();
    let build = daemon.build("who");
    assert_eq!(build["status"], "succeeded", "{build}\n{}", daemon.log());
    let log = |daemon: &mut Daemon, what: &str| {
        let lines = daemon.ask(&format!("log {what}"));
        lines.iter().map(|line| line["text"].as_str().unwrap().to_owned()).collect::<String>()
    };
    let said = log(&mut daemon, &format!("build {}", build["id"]));
    assert!(said.starts_with("nobody\nnogroup\n") && !said.contains("leak"), "{said}");
    let said = log(&mut daemon, "evaluation 1");
    assert!(said.starts_with("nobody\nnogroup\n"), "{said}");
    // What the build left is the daemon's again.
    let out = build["outputs"]["out"].as_str().unwrap();
    assert_eq!(fs::metadata(out).unwrap().uid(), 0);
    let warned = daemon.log().contains("run as the daemon's own user");
    assert!(!warned, "{}", daemon.log());
}

/// Whether this process is root's.
fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

#[test]
fn the_job_user_reaches_all_channels_and_what_other_jobs_left() {
    if !is_root() {
        eprintln!("left out: only root can run jobs as another user");
        return;
    }
    let second = Repository::with_jobs("");
    second.write("shared", "from the second\n");
    second.commit();
    let first = Repository::with_jobs(
        &[
            job("make", "mkdir $out && umask && echo made > $out/x", ""),
            job("use", "cat $(grep -o '/[^\"]*/out' $GORGET_NEEDS)/x", r#""needs":["make"]"#),
            "for d in $(grep -o '\"directory\":\"[^\"]*' \"$GORGET_CHANNELS\" | cut -d'\"' -f4); do \
             cat $d/shared 2>/dev/null; done >&2\n"
                .to_owned(),
        ]
        .concat(),
    );
    let mut daemon = Daemon::start(&["--job-user=nobody"]);
    let mut specification = first.specification("hello", &["./jobs"]);
    let more = second.specification("x", &[])["channels"][0].clone();
    let channels = specification["channels"].as_array_mut().unwrap();
    channels.push(more);
    channels[1]["name"] = "second".into();
    daemon.ask(&format!("add {specification}"));
    daemon.settle();
    let log = daemon.ask("log evaluation 1");
    assert!(
        log.iter().any(|line| line["text"].as_str().unwrap().contains("from the second\n")),
        "{log:?}"
    );
    let used = daemon.build("use");
    assert_eq!(used["status"], "succeeded", "{used}\n{}", daemon.log());
}
