//! Clients of the bridge that misbehave, and the others meanwhile.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "tests start programs and wait under deadlines of their own"
)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use crate::support::daemon::{Daemon, PATIENCE, Session};
use crate::support::jobs::{Repository, job};

#[test]
fn both_spellings_are_understood() {
    let repository = Repository::with_jobs(&job("one", "true", ""));
    let mut daemon = Daemon::start(&[]);
    daemon.ask(&repository.add("hello"));
    daemon.settle();
    let mut session = daemon.connect();
    session.send("(trigger-jobset hello)");
    session.send("(jobset-last-update-times hello)");
    let line = session.line().unwrap();
    assert!(line.starts_with("(reply (") && line.ends_with("))"), "{line}");
    session.send("(jobset-last-update-times nobody)");
    assert_eq!(session.line().unwrap(), "(reply #f)");
    session.send("'jobset' \"hello\"");
    assert_eq!(session.answer().unwrap().1, "ok");
    session.finish();
    assert_eq!(session.line(), None);
}

#[test]
fn bad_requests_are_answered_with_the_reason() {
    let mut daemon = Daemon::start(&[]);
    for (request, kind) in [
        ("nonsense", "unknown-command"),
        ("jobset", "syntax"),
        ("jobset a b", "syntax"),
        ("build x", "syntax"),
        ("build 999", "not-found"),
        ("trigger nobody", "not-found"),
        ("builds limit=0", "syntax"),
        ("add {", "syntax"),
        ("jobset 'unfinished", "syntax"),
    ] {
        let answer = daemon.outcome(request);
        assert!(answer.starts_with(&format!("error {kind} ")), "{request}: {answer}");
    }
}

#[test]
fn hostile_clients_stall_nobody() {
    let mut daemon = Daemon::start(&[]);
    daemon.ask("version");
    let before = daemon.memory("VmRSS:");
    // Bad UTF-8 and an endless line get an error.
    for bytes in [vec![0xff, 0xfe, b'\n'], vec![b'x'; 64 << 20]] {
        let stream = UnixStream::connect(daemon.socket()).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        // The daemon may hang up on the endless line before it has all of it.
        let _ = (&stream).write_all(&bytes);
        let answer = Session::new(stream).line().unwrap();
        assert!(answer.starts_with("error syntax "), "{answer}");
    }
    // Hundreds that never ask, or ask and never read.
    let mut served = daemon.connect();
    served.send("version");
    assert_eq!(served.answer().unwrap().1, "ok");
    let mut silent = Vec::new();
    for n in 0..500 {
        let Ok(mut stream) = UnixStream::connect(daemon.socket()) else { continue };
        stream.set_nonblocking(true).unwrap();
        if n % 2 == 0 {
            let _ = stream.write(&b"help\n".repeat(4096));
        }
        silent.push(stream);
        served.send("status");
        assert_eq!(served.answer().unwrap().1, "ok");
    }
    assert!(daemon.memory("VmRSS:") < before + (64 << 20));
    drop(silent);
    let until = Instant::now() + PATIENCE;
    while daemon.outcome("version") != "ok" {
        assert!(Instant::now() < until, "the places of clients that left stay taken");
    }
}

#[test]
fn subscribers_hear_what_happens_and_can_come_back() {
    let repository = Repository::with_jobs(&job("one", "true", ""));
    let mut daemon = Daemon::start(&[]);
    let mut live = daemon.events();
    daemon.ask(&repository.add("hello"));
    let (ended, _) = live.wait_for("build-ended");
    assert_eq!(ended["status"], "succeeded");
    let mut session = daemon.connect();
    session.send(&format!("subscribe jobset=hello from={}", ended["id"].as_i64().unwrap() - 1));
    assert_eq!(session.event().0["event"], "build-ended");
}

#[test]
fn askers_are_told_their_mistakes() {
    let mut daemon = Daemon::start(&[]);
    for (request, expected) in [
        ("subscribe jobset=nosuch", "error not-found there is no jobset nosuch"),
        ("token add x viewer jobset=nosuch", "error not-found there is no jobset nosuch"),
        ("token add x viewer expires=0", "error syntax token: expected expires="),
        ("backup /nonexistent/x", "error conflict cannot write /nonexistent/x: No such file"),
        ("backup /proc/x", "error conflict cannot write /proc/x"),
        ("# a comment", "error syntax expected a command, found a comment"),
    ] {
        let outcome = daemon.outcome(request);
        assert!(outcome.starts_with(expected), "{request}: {outcome}");
    }
    let secret =
        r#"{"name":"x","notifications":[{"type":"webhook","url":"https://h","secret":735522018}]}"#;
    let outcome = daemon.outcome(&format!("add {secret}"));
    assert!(outcome.ends_with("secret: expected a string, found a number"), "{outcome}");
    let status = daemon.ask("status").remove(0);
    assert_eq!(status["evaluations"]["waiting"], 0, "{status}");

    let mut session = daemon.connect();
    session.send("(trigger-jobset nosuch)");
    session.finish();
    assert_eq!(session.line(), None, "no answer, and the end");
    daemon.stop();
    let log = daemon.log();
    assert_eq!(log.matches("trigger nosuch").count(), 1, "{log}");
    assert!(!log.contains("735522018"), "{log}");
}

#[test]
fn wait_answers_when_all_is_over() {
    let repository = Repository::with_jobs(&job("one", "sleep 0.3", ""));
    let mut daemon = Daemon::start(&[]);
    daemon.ask(&repository.add("hello"));
    daemon.until("evaluations", |all| all.len() == 1);
    let evaluation = daemon.ask("wait evaluation 1").remove(0);
    assert_eq!(evaluation["jobs"]["succeeded"], 1);
    assert_eq!(daemon.build("one")["status"], "succeeded");
}

/// What `socat` gets for a request of a user who is in no group but these.
fn ask_as(uid: &str, groups: &str, socket: &Path, request: &str) -> String {
    let output = Command::new("setpriv")
        .args([&format!("--reuid={uid}"), &format!("--regid={uid}"), &format!("--groups={groups}")])
        .args([
            "sh",
            "-c",
            r#"printf '%s\n' "$1" | socat -t 60 - "UNIX-CONNECT:$2""#,
            "sh",
            request,
        ])
        .arg(socket)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_socket_is_for_its_group_who_chooses_no_files_outside_the_state_directory() {
    // Users that no account has; Debian's group `daemon`.
    let (stranger, other, group) = ("64321", "64322", "1");
    let place = tempfile::tempdir().unwrap();
    let open = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    open(place.path(), 0o755);
    let mut daemon = Daemon::prepare_in(&place.path().join("state"), &["--socket-group=daemon"]);
    daemon.restart();
    let socket = daemon.socket();
    assert!(ask_as(stranger, group, &socket, "version").ends_with("ok\n"), "{}", daemon.log());
    assert_eq!(ask_as(stranger, other, &socket, "version"), "");
    // Whoever comes near all the same is looked at.
    open(socket.parent().unwrap(), 0o755);
    open(&socket, 0o666);
    assert_eq!(ask_as(stranger, other, &socket, "version"), "");
    assert!(daemon.log().contains("uid 64321 may not use the bridge"), "{}", daemon.log());

    let outside = place.path().join("outside.db");
    let refused = ask_as(stranger, group, &socket, &format!("backup {}", outside.display()));
    assert!(refused.starts_with("error conflict "), "{refused}");
    assert!(!outside.exists());
    let inside = daemon.state().join("inside.db");
    for file in [&inside, &outside] {
        let uid = if file == &inside { stranger } else { "0" };
        let answer = ask_as(uid, group, &socket, &format!("backup {}", file.display()));
        assert_eq!(answer, "ok\n");
        let copy = rusqlite::Connection::open(file).unwrap();
        let sound: String = copy.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(sound, "ok");
    }
}
