//! Derivations of a Nix repository, built by a real nix-daemon.
#![allow(
    clippy::disallowed_methods,
    reason = "tests start programs and wait under deadlines of their own"
)]

mod keep;
mod ssh;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::daemon::{Daemon, PATIENCE};
use crate::support::jobs::{Repository, system};
use crate::support::nix::Store;

/// An attribute whose builder is a shell script.
fn attribute(name: &str, script: &str, more: &str) -> String {
    let (script, system) = (script.replace("''", "'''"), system());
    format!(
        "{name} = derivation {{ name = \"{name}\"; system = \"{system}\"; builder = \"/bin/sh\"; \
         PATH = \"/usr/bin:/bin\"; args = [ \"-c\" ''{script}'' ]; }} // {{ meta = {{ {more} }}; }};\n"
    )
}

/// A repository whose `release.nix` has these attributes.
fn repository(attributes: &[String]) -> Repository {
    let repository = Repository::new(0);
    repository.write("release.nix", &format!("rec {{\n{}}}\n", attributes.concat()));
    repository.commit();
    repository
}

fn add(repository: &Repository) -> String {
    let specification = serde_json::json!({
        "name": "nix",
        "channels": [{"name": "main", "url": repository.url(), "branch": "main"}],
        "evaluator": "nix",
        "build": {"file": "release.nix"},
    });
    format!("add {specification}")
}

fn build(daemon: &mut Daemon, name: &str) -> serde_json::Value {
    daemon.build(&format!("{name}.{}", system()))
}

fn log(daemon: &mut Daemon, build: &serde_json::Value) -> String {
    let lines = daemon.ask(&format!("log build {}", build["id"]));
    lines.iter().map(|line| line["text"].as_str().unwrap()).collect()
}

/// Waits until `good`; `what` is said if it never is.
fn until(mut good: impl FnMut() -> bool, what: impl Fn() -> String) {
    let until = Instant::now() + PATIENCE;
    while !good() {
        assert!(Instant::now() < until, "{}", what());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The first line of a file that a builder writes.
fn first_line(file: &Path) -> String {
    let until = Instant::now() + PATIENCE;
    loop {
        match fs::read_to_string(file) {
            Ok(text) if text.ends_with('\n') => return text.trim().to_owned(),
            _ => assert!(Instant::now() < until, "it does not start"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn endings_are_told_apart() {
    let store = Store::start();
    let mut daemon = store.gorget(&["--max-builds=2"]);
    let repository = repository(&[
        attribute("good", "echo hello; echo hello > $out", ""),
        attribute("bad", "echo about to fail; exit 7", ""),
        attribute("silent", "echo x; sleep 100", "maxSilent = 1;"),
        attribute("late", "while echo x; do sleep 0.2; done", "timeout = 1;"),
        attribute("no-output", "true", ""),
        format!(
            "hidden = let dep = derivation {{ name = \"dep\"; system = \"{}\"; builder = \"/bin/sh\"; \
             args = [ \"-c\" \"echo dep says no; exit 3\" ]; }}; in derivation {{ name = \"hidden\"; \
             system = \"{}\"; builder = \"/bin/sh\"; args = [ \"-c\" \"cat ${{dep}} > $out\" ]; }};\n",
            system(),
            system()
        ),
    ]);
    daemon.ask(&add(&repository));
    daemon.settle();
    let good = build(&mut daemon, "good");
    assert_eq!(good["status"], "succeeded", "{good}\n{}", daemon.log());
    let out = good["outputs"]["out"].as_str().unwrap();
    assert_eq!(fs::read_to_string(out).unwrap(), "hello\n");
    assert!(log(&mut daemon, &good).contains("hello\n"));
    let bad = build(&mut daemon, "bad");
    assert_eq!((&bad["status"], &bad["error"]), (&"failed".into(), &"exit status 7".into()));
    assert!(log(&mut daemon, &bad).starts_with("about to fail\n"));
    let late = build(&mut daemon, "late");
    assert_eq!(
        (&late["status"], &late["error"]),
        (&"failed".into(), &"timed out after 1 s".into())
    );
    let silent = build(&mut daemon, "silent");
    assert_eq!((&silent["status"], &silent["error"]), (&"failed".into(), &"silent for 1 s".into()));
    let none = build(&mut daemon, "no-output");
    assert_eq!(none["status"], "failed", "{none}");
    let hidden = build(&mut daemon, "hidden");
    assert_eq!(hidden["status"], "failed-dependency", "{hidden}");
    let error = hidden["error"].as_str().unwrap();
    assert!(error.contains("-dep.drv failed: exit status 3"), "{error}");
    assert!(log(&mut daemon, &hidden).contains("dep> dep says no\n"));
    // What was built has its root.
    let name = Path::new(out).file_name().unwrap();
    let root = daemon.state().join("gcroots").join(name);
    assert_eq!(fs::read_link(root).unwrap(), Path::new(out));
    let collected =
        Command::new("nix-store").arg("--gc").envs(store.environment()).output().unwrap();
    assert!(collected.status.success(), "{}", String::from_utf8_lossy(&collected.stderr));
    assert!(Path::new(out).exists());
}

#[test]
fn what_is_in_the_store_succeeds_at_once() {
    let store = Store::start();
    let mut daemon = store.gorget(&[]);
    let repository = repository(&[attribute("good", "echo hello > $out", "")]);
    daemon.ask(&add(&repository));
    daemon.settle();
    let id = build(&mut daemon, "good")["id"].clone();
    daemon.ask(&format!("restart-build {id}"));
    daemon.settle();
    let good = build(&mut daemon, "good");
    assert_eq!(good["status"], "succeeded");
    assert_eq!(log(&mut daemon, &good), "gorget: already in the store\n");
}

#[test]
fn a_canceled_build_is_gone_at_once() {
    let store = Store::start();
    let mut daemon = store.gorget(&[]);
    let marker = store.directory.path().join("runs");
    let script = format!("echo $$ > {}; sleep 1000", marker.display());
    let repository = repository(&[attribute("long", &script, "")]);
    daemon.ask(&add(&repository));
    let builder = first_line(&marker);
    let id = build(&mut daemon, "long")["id"].clone();
    daemon.ask(&format!("cancel-build {id}"));
    daemon.settle();
    assert_eq!(build(&mut daemon, "long")["status"], "canceled");
    let until = Instant::now() + PATIENCE;
    while Path::new("/proc").join(&builder).exists() {
        assert!(Instant::now() < until, "the builder goes on");
    }
}

#[test]
fn builds_wait_for_a_daemon_that_is_away() {
    let mut store = Store::start();
    let mut daemon = store.gorget(&[]);
    let gate = store.directory.path().join("gate");
    let marker = store.directory.path().join("runs");
    let (runs, goes_on) = (marker.display(), gate.display());
    let script =
        format!("echo yes > {runs}; until [ -e {goes_on} ]; do sleep 0.1; done; echo > $out");
    let repository = repository(&[attribute("gated", &script, "")]);
    daemon.ask(&add(&repository));
    first_line(&marker);
    store.kill();
    let waiting = daemon.until("builds status=scheduled", |builds| builds.len() == 1).remove(0);
    assert_eq!(waiting["attempts"], 1);
    fs::write(&gate, "").unwrap();
    store.serve();
    // Its first try broke, so that it waits for its second; a person need not.
    let id = waiting["id"].clone();
    daemon.ask(&format!("cancel-build {id}"));
    daemon.ask(&format!("restart-build {id}"));
    daemon.settle();
    assert_eq!(build(&mut daemon, "gated")["status"], "succeeded", "{}", daemon.log());

    // And one that comes while it is away costs no try.
    store.kill();
    daemon.ask(&format!("restart-build {id}"));
    daemon.until("builds", |builds| builds[0]["waiting"] == "store unreachable");
    store.serve();
    daemon.settle();
    let build = build(&mut daemon, "gated");
    assert_eq!((&build["status"], &build["attempts"]), (&"succeeded".into(), &1.into()), "{build}");
}

#[test]
fn an_evaluation_that_finds_no_daemon_says_nothing_of_the_commit() {
    let mut store = Store::start();
    let mut daemon = store.gorget(&[]);
    store.kill();
    let repository = repository(&[attribute("late", "echo > $out", "")]);
    daemon.ask(&add(&repository));
    let ended = |all: &[serde_json::Value]| {
        all.first().is_some_and(|evaluation| evaluation["status"] != "started")
    };
    let evaluation = daemon.until("evaluations nix", ended).remove(0);
    let error = evaluation["error"].as_str().unwrap();
    assert_eq!(evaluation["status"], "aborted", "{evaluation}");
    assert!(error.contains("cannot connect to"), "{error}");
    // It is repeated by itself, in a while; a person need not wait.
    assert_eq!(evaluation["jobs"]["total"], 0);
    store.serve();
    daemon.ask(&format!("retry-evaluation {}", evaluation["id"]));
    daemon.until("builds", |builds| builds.len() == 1);
    daemon.settle();
    assert_eq!(build(&mut daemon, "late")["status"], "succeeded", "{}", daemon.log());
}
