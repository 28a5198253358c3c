//! Cancelling in bulk: who wants a build spares it.

use std::time::Duration;

use crate::db::builds::{self, Changes};
use crate::db::testing::{Books, job, success};
use crate::db::{Error, evaluations, jobsets};
use crate::model::evaluation::{Counts, Ending};
use crate::model::status::BuildStatus::{Canceled, Scheduled, Started, Succeeded};

#[test]
fn cancelling_an_evaluation_spares_what_another_live_one_wants() {
    let mut books = Books::new();
    let (a, b) = (books.jobset("a"), books.jobset("b"));
    let first = books.evaluated(&a, &[job("own", &[]), job("shared", &["deep"]), job("deep", &[])]);
    // The other wants `shared` alone, and with it what that needs.
    books.evaluated(&b, &[job("shared", &["deep"])]);
    books.start("own");
    let changes = books.write(|tx| builds::cancel_evaluation(tx, first)).unwrap();
    assert_eq!(changes, Changes { ended: vec![books.id("own")], ..Changes::default() });
    assert_eq!(books.status("deep"), Scheduled);
    // An inactive jobset's evaluation is not live.
    books.write(|tx| jobsets::set_active(tx, &b, false)).unwrap();
    books.write(|tx| builds::cancel_evaluation(tx, first)).unwrap();
    assert_eq!(books.counts(first), Counts { total: 3, canceled: 3, ..Counts::default() });
}

#[test]
fn what_was_canceled_with_its_evaluation_is_scheduled_when_met_again() {
    let mut books = Books::new();
    let name = books.jobset("a");
    let first = books.evaluation(&name);
    books.register(first, &[job("x", &[]), job("y", &["x"])]);
    let changes = books.write(|tx| evaluations::end(tx, first, &Ending::Canceled, false)).unwrap();
    assert_eq!(changes.ended, [books.id("x"), books.id("y")]);
    let evaluation = evaluations::get(&books.conn, first).unwrap().unwrap();
    assert_eq!(evaluation.error.as_deref(), Some("canceled"));
    let second = books.evaluation(&name);
    // Only the dependent is a job now: what it needs comes along.
    let changes = books.register(second, &[job("y", &["x"])]);
    assert_eq!(changes.scheduled, [books.id("x"), books.id("y")]);
    assert_eq!(books.counts(first), Counts { total: 2, pending: 2, ..Counts::default() });
    assert_eq!(books.counts(second), Counts { total: 1, pending: 1, ..Counts::default() });
}

#[test]
fn a_newer_evaluation_supersedes_what_older_ones_wait_for() {
    let mut books = Books::new();
    let name = books.jobset("a");
    books
        .evaluated(&name, &[job("old", &[]), job("runs", &[]), job("kept", &[]), job("done", &[])]);
    books.run("done", &success());
    books.start("runs");
    let newest = books.evaluation(&name);
    books.register(newest, &[job("kept", &[]), job("new", &[])]);
    let changes = books.write(|tx| evaluations::end(tx, newest, &Ending::Succeeded, true)).unwrap();
    assert_eq!(changes.ended, [books.id("old")]);
    assert_eq!(books.error("old"), "superseded by a newer evaluation");
    assert_eq!((books.status("runs"), books.status("kept")), (Started, Scheduled));
    // One that did not succeed supersedes nothing.
    let partial = books.evaluation(&name);
    let failed = Ending::Failed("bad line".to_owned());
    let changes = books.write(|tx| evaluations::end(tx, partial, &failed, true)).unwrap();
    assert_eq!(changes, Changes::default());
}

#[test]
fn builds_expire_that_waited_long_and_nobody_wants() {
    let mut books = Books::new();
    let name = books.jobset("a");
    books.evaluated(&name, &[job("old", &[]), job("wanted", &[])]);
    books.now = books.now.after(Duration::from_secs(1000));
    books.evaluated(&name, &[job("young", &[])]);
    books.evaluated(&name, &[job("wanted", &[])]);
    let expire = |books: &mut Books, seconds| {
        books.write(|tx| builds::expire(tx, Duration::from_secs(seconds))).unwrap()
    };
    assert_eq!(expire(&mut books, 1000), Changes::default());
    assert_eq!(expire(&mut books, 999).ended, [books.id("old")]);
    // Asked for again, it waits from then on.
    books.evaluated(&name, &[job("old", &[])]);
    books.evaluated(&name, &[]);
    assert_eq!(books.status("old"), Scheduled);
    assert!(!expire(&mut books, 999).ended.contains(&books.id("old")));
}

#[test]
fn deleting_a_jobset_hands_over_what_others_use() {
    let mut books = Books::new();
    let (a, b) = (books.jobset("a"), books.jobset("b"));
    books.evaluated(&a, &[job("own", &[]), job("shared", &["deep"]), job("deep", &[])]);
    books.evaluated(&a, &[job("done", &[]), job("shared", &["deep"])]);
    let other = books.evaluated(&b, &[job("shared", &["deep"]), job("mine", &[])]);
    books.run("done", &success());
    let changes = books.write(|tx| jobsets::delete(tx, &a)).unwrap();
    assert_eq!(changes, Changes { ended: vec![books.id("own")], ..Changes::default() });
    let shared = books.build("shared");
    assert_eq!((&shared.jobset, shared.evaluation, shared.status), (&b, other, Scheduled));
    assert_eq!((books.status("deep"), books.status("own")), (Scheduled, Canceled));
    assert_eq!(books.counts(other), Counts { total: 2, pending: 2, ..Counts::default() });
    assert!(jobsets::get(&books.conn, &a).unwrap().is_none());
    assert!(evaluations::list(&books.conn, Some(&a), 9).unwrap().is_empty());
    assert!(matches!(books.write(|tx| jobsets::delete(tx, &a)), Err(Error::NotFound(_))));
    // The name is free at once, and what comes is none of the old.
    let again = books.jobset("a");
    assert_eq!(evaluations::last_fingerprint(&books.conn, &again).unwrap(), None);
    books.remove_withdrawn();
    assert_eq!(books.build("shared").jobset, b);
    // The janitor takes what ended and nobody has a job for; `deep` stays as long as `shared` needs it.
    let orphans = [books.id("done"), books.id("own")];
    assert_eq!(books.remove_orphans(), orphans);
    books.run("deep", &success());
    books.run("shared", &success());
    assert!(books.remove_orphans().is_empty());
    assert_eq!(books.status("shared"), Succeeded);
}

#[test]
fn a_build_left_by_a_deleted_jobset_finds_a_new_home() {
    let mut books = Books::new();
    let (a, b) = (books.jobset("a"), books.jobset("b"));
    books.evaluated(&a, &[job("x", &[])]);
    books.write(|tx| jobsets::delete(tx, &a)).unwrap();
    let evaluation = books.evaluated(&b, &[job("x", &[])]);
    let build = books.build("x");
    assert_eq!((build.jobset, build.evaluation, build.status), (b, evaluation, Scheduled));
    assert!(books.remove_orphans().is_empty());
    assert_eq!(books.start("x").checkouts.len(), 1);
}
