//! Evaluators that go wrong, each in its way; what they registered before stays.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "tests start programs and wait under deadlines of their own"
)]

use crate::support::daemon::Daemon;
use crate::support::jobs::{Repository, job};

/// Evaluates `script` and returns the evaluation's error.
fn fails(options: &[&str], script: &str) -> String {
    let repository = Repository::with_jobs(&format!("{}{script}", job("first", "true", "")));
    let mut daemon = Daemon::start(options);
    daemon.ask(&repository.add("hello"));
    daemon.settle();
    let evaluation = daemon.ask("evaluations hello").remove(0);
    assert_eq!(evaluation["status"], "failed", "{evaluation}");
    assert_eq!(evaluation["jobs"]["total"], 1, "{evaluation}");
    assert_eq!(daemon.build("first")["status"], "succeeded");
    let error = evaluation["error"].as_str().unwrap().to_owned();
    assert_eq!(daemon.ask("jobset hello")[0]["error"], error);
    daemon.wait_for_no_descendants();
    // Another commit, and all is well again.
    repository.set_jobs(&job("first", "true", ""));
    daemon.ask("trigger hello");
    daemon.until("jobset hello", |jobset| jobset[0]["error"].is_null());
    error
}

#[test]
fn exit_status_and_signals_are_said() {
    assert_eq!(fails(&[], "exit 3"), "exit status 3");
    assert_eq!(fails(&[], "kill -9 $$"), "signal 9");
}

#[test]
fn garbage_is_a_bad_line() {
    assert!(fails(&[], "echo garbage").starts_with("line 2: "));
    assert!(fails(&[], r#"printf '{"job":"half'"#).starts_with("line 2: "));
    assert!(fails(&[], r"printf '\377\376\n'").starts_with("line 2: "));
    assert!(fails(&[], &job("first", "true", "")).contains("first"));
}

#[test]
fn a_gigabyte_without_a_newline_is_a_bad_line() {
    let error = fails(&[], "head -c 1000000000 /dev/zero | tr '\\0' x");
    assert!(error.starts_with("line 2: "), "{error}");
}

#[test]
fn one_that_never_ends_is_timed_out() {
    let repository =
        Repository::with_jobs("trap '' TERM; setsid sleep 1000 & while :; do sleep 1; done");
    let mut daemon = Daemon::start(&[]);
    let mut specification = repository.specification("hello", &["./jobs"]);
    specification["evaluation-timeout"] = 1.into();
    daemon.ask(&format!("add {specification}"));
    daemon.settle();
    let evaluation = daemon.ask("evaluations hello").remove(0);
    assert_eq!(evaluation["error"], "timed out after 1 s");
    daemon.wait_for_no_descendants();
}

#[test]
fn one_that_eats_memory_is_stopped() {
    let script = "perl -e 'my @a; while (1) { push @a, \"x\" x 1000000 }' || exit $?";
    let error = fails(&["--evaluation-memory=200M"], script);
    assert!(error.starts_with("out of memory"), "{error}");
}

#[test]
fn children_left_behind_are_killed() {
    let repository =
        Repository::with_jobs("setsid sleep 1000 & (sleep 1000 &) & echo made >&2; exit 0");
    let mut daemon = Daemon::start(&[]);
    daemon.ask(&repository.add("hello"));
    daemon.settle();
    let evaluation = daemon.ask("evaluations hello").remove(0);
    assert_eq!(evaluation["status"], "succeeded");
    let log = daemon.ask(&format!("log evaluation {}", evaluation["id"]));
    assert_eq!(log[0]["text"], "made\n");
    daemon.wait_for_no_descendants();
}

#[test]
fn needs_that_cannot_be_met_are_errors_of_their_jobs() {
    let repository = Repository::with_jobs(
        &[
            job("a", "true", r#""needs":["b"]"#),
            job("b", "true", r#""needs":["a"]"#),
            job("c", "true", r#""needs":["nowhere"]"#),
            job("d", "true", ""),
        ]
        .concat(),
    );
    let mut daemon = Daemon::start(&[]);
    daemon.ask(&repository.add("hello"));
    daemon.settle();
    assert_eq!(daemon.ask("evaluations hello")[0]["status"], "succeeded");
    for (name, word) in [("a", "cycle"), ("b", "cycle"), ("c", "nowhere")] {
        let build = daemon.build(name);
        assert_eq!(build["status"], "failed");
        assert!(build["error"].as_str().unwrap().contains(word), "{build}");
    }
    assert_eq!(daemon.build("d")["status"], "succeeded");
}
