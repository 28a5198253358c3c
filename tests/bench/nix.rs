//! Nix: builds through a real nix-daemon against nix-build, and an evaluation of many attributes.
//!
//! The store and its daemon are in a temporary directory; nothing is fetched.

use std::process::{Command, Stdio};
use std::time::Instant;

use crate::jobs::{Repository, system};
use crate::nix_daemon::Store;
use crate::{report, subscribe};

/// Derivations of the comparison with nix-build.
const BUILDS: usize = 300;

/// Attributes of the large evaluation.
const ATTRIBUTES: usize = 10_000;

/// An expression of trivial derivations that no other `salt` shares.
fn expression(number: usize, salt: &str) -> String {
    format!(
        r#"builtins.listToAttrs (builtins.genList (n: let name = "{salt}-${{toString n}}"; in {{
  inherit name;
  value = derivation {{ inherit name; system = "{}"; builder = "/bin/sh"; args = [ "-c" "echo > $out" ]; }};
}}) {number})"#,
        system()
    )
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

/// From the commit to the last build in the books, against nix-build of the same expression.
pub(crate) fn builds() {
    let store = Store::start();
    let repository = Repository::new(0);
    repository.write("release.nix", "{ }");
    repository.commit();
    let mut daemon = store.gorget(&["--max-builds=2", "--interval=3600"]);
    daemon.ask(&add(&repository));
    daemon.settle();
    let mut events = subscribe(&mut daemon);
    repository.write("release.nix", &expression(BUILDS, "ours"));
    let began = Instant::now();
    repository.commit();
    daemon.ask("trigger nix");
    let mut last = began;
    for _ in 0..BUILDS {
        let (event, at) = events.wait_for("build-ended");
        assert_eq!(event["status"], "succeeded", "{event}");
        last = at;
    }
    let ours = last - began;
    drop(daemon);

    let file = store.directory.path().join("theirs.nix");
    std::fs::write(&file, expression(BUILDS, "theirs")).unwrap();
    let began = Instant::now();
    let status = Command::new("nix-build")
        .args(["-j2", "--no-out-link"])
        .arg(&file)
        .envs(store.environment())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let theirs = began.elapsed();
    report(
        "300 trivial derivations through nix-daemon, 2 slots",
        &format!("{:.2} s from commit to last build", ours.as_secs_f64()),
        &format!(
            "{:.2} x nix-build -j2 ({:.2} s)",
            ours.as_secs_f64() / theirs.as_secs_f64(),
            theirs.as_secs_f64()
        ),
        "at most 1.25 x",
    );
}

/// How soon the first build starts, and what the daemon's memory comes to.
pub(crate) fn evaluation() {
    let store = Store::start();
    let repository = Repository::new(0);
    repository.write("release.nix", &expression(ATTRIBUTES, "many"));
    repository.commit();
    let mut daemon = store.gorget(&["--max-builds=1", "--interval=3600"]);
    let mut events = subscribe(&mut daemon);
    daemon.ask(&add(&repository));
    let (_, began) = events.wait_for("evaluation-started");
    let mut first = None;
    let ended = loop {
        let (event, at) = events.event();
        match event["event"].as_str().unwrap_or_default() {
            "build-started" if first.is_none() => first = Some(at - began),
            "evaluation-ended" => break at - began,
            _ => {}
        }
    };
    let evaluation = daemon.ask("evaluations nix limit=1").remove(0);
    assert_eq!(evaluation["jobs"]["total"], ATTRIBUTES, "{evaluation}");
    let first = first.map_or("none".to_owned(), |first| {
        format!(
            "{:.1} % of the evaluation's time",
            first.as_secs_f64() / ended.as_secs_f64() * 100.0
        )
    });
    report(
        "10,000 Nix attributes: first build started after",
        &first,
        &format!("the evaluation takes {:.2} s", ended.as_secs_f64()),
        "under 10 %",
    );
    report(
        "peak memory meanwhile",
        &format!("{} MiB", daemon.memory("VmHWM:") >> 20),
        "VmHWM of the daemon",
        "under 100 MiB",
    );
}

/// From the request to cancel a build to the end of its builder.
pub(crate) fn cancel() {
    const ROUNDS: usize = 10;
    let store = Store::start();
    let marker = store.directory.path().join("runs");
    let repository = Repository::new(0);
    let attribute = |n: usize| {
        format!(
            r#"j{n} = derivation {{ name = "j{n}"; system = "{}"; builder = "/bin/sh"; args = [ "-c" "echo $$ > {}-{n}; while :; do :; done" ]; }};"#,
            system(),
            marker.display()
        )
    };
    let all: Vec<_> = (0..ROUNDS).map(attribute).collect();
    repository.write("release.nix", &format!("{{ {} }}", all.concat()));
    repository.commit();
    let mut daemon = store.gorget(&["--max-builds=1", "--interval=3600"]);
    let mut events = subscribe(&mut daemon);
    daemon.ask(&add(&repository));
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let (event, _) = events.wait_for("build-started");
        let id = event["build"].as_i64().unwrap();
        let job = daemon.ask(&format!("build {id}"))[0]["nix-name"].as_str().unwrap().to_owned();
        let file = std::path::PathBuf::from(format!("{}-{}", marker.display(), &job[1..]));
        let process = loop {
            match std::fs::read_to_string(&file) {
                Ok(text) if text.ends_with('\n') => break text.trim().to_owned(),
                _ => std::thread::sleep(std::time::Duration::from_millis(2)),
            }
        };
        let began = Instant::now();
        daemon.ask(&format!("cancel-build {id}"));
        while std::path::Path::new("/proc").join(&process).exists() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        times.push(began.elapsed());
    }
    times.sort_unstable();
    report(
        "cancel of a running build, to the builder process gone",
        &format!("{:.0} ms at most", times[ROUNDS - 1].as_secs_f64() * 1000.0),
        &format!("median {:.0} ms of {ROUNDS}", times[ROUNDS / 2].as_secs_f64() * 1000.0),
        "under 1 s",
    );
}
