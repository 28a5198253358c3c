//! What travels along dependencies: failure, cancellation, revival, restarts.

use crate::db::Error;
use crate::db::builds::{self, Changes};
use crate::db::testing::{Books, abort, failure, job, success};
use crate::model::build::Outcome;
use crate::model::evaluation::Counts;
use crate::model::job::{NewJob, Work};
use crate::model::status::BuildStatus::{
    self, Canceled, Failed, FailedDependency, Scheduled, Succeeded,
};

/// a ← b ← d, a ← c ← d, d ← e; f stands alone.
fn diamond() -> Books {
    let mut books = Books::new();
    let name = books.jobset("j");
    let jobs = [
        job("a", &[]),
        job("b", &["a"]),
        job("c", &["a"]),
        job("d", &["b", "c"]),
        job("e", &["d"]),
        job("f", &[]),
    ];
    books.evaluated(&name, &jobs);
    books
}

fn statuses(books: &Books, derivations: &str) -> Vec<BuildStatus> {
    derivations.chars().map(|c| books.status(&c.to_string())).collect()
}

#[test]
fn a_rebuild_waits_for_those_that_read_what_it_replaces() {
    let mut books = diamond();
    books.run("a", &success());
    let reader = books.start("b");
    let (a, b) = (books.id("a"), books.id("b"));
    books.write(|tx| builds::restart(tx, a)).unwrap();
    let waits = |books: &Books, id| {
        builds::entries(&books.conn, &[id]).unwrap().remove(0).waits_for.clone()
    };
    assert_eq!(waits(&books, a), [b]);
    // The reader's end lets it go, also one after which the reader itself waits for it.
    let interrupted = Outcome::Interrupted;
    let changes = books.write(|tx| builds::end(tx, b, reader.attempt, &interrupted)).unwrap();
    assert_eq!(changes.scheduled, [a, b]);
    assert_eq!((waits(&books, a), waits(&books, b)), (vec![], vec![a]));
    books.run("a", &success());
    books.run("b", &success());
    assert_eq!(statuses(&books, "ab"), [Succeeded; 2]);
}

#[test]
fn failure_reaches_all_dependents_and_only_them() {
    let mut books = diamond();
    let changes = books.run("a", &failure());
    assert_eq!(statuses(&books, "af"), [Failed, Scheduled]);
    assert_eq!(statuses(&books, "bcde"), [FailedDependency; 4]);
    assert_eq!(changes.ended.len(), 5);
    let (a, b) = (books.id("a"), books.id("b"));
    assert_eq!(books.error("b"), format!("dependency {a} failed"));
    assert_eq!(books.error("d"), format!("dependency {b} failed"));
    let ended = books.events.iter().filter(|event| event.build == Some(books.id("e"))).count();
    assert_eq!(ended, 1);
}

#[test]
fn success_after_a_failure_revives_what_it_had_stopped() {
    let mut books = diamond();
    books.run("a", &failure());
    let a = books.id("a");
    let changes = books.write(|tx| builds::restart(tx, a)).unwrap();
    assert_eq!(changes.scheduled.len(), 5);
    assert_eq!(statuses(&books, "abcde"), [Scheduled; 5]);
    let changes = books.run("a", &success());
    assert_eq!(changes, Changes { ended: vec![a], ..Changes::default() });
    books.run("b", &failure());
    books.run("c", &success());
    assert_eq!(
        statuses(&books, "abcde"),
        [Succeeded, Failed, Succeeded, FailedDependency, FailedDependency]
    );
}

#[test]
fn nothing_is_revived_that_another_failure_still_stops() {
    let mut books = diamond();
    books.run("a", &success());
    books.run("b", &failure());
    books.run("c", &failure());
    let (b, c) = (books.id("b"), books.id("c"));
    let changes = books.write(|tx| builds::restart(tx, b)).unwrap();
    assert_eq!(changes.scheduled, [b]);
    books.run("b", &success());
    assert_eq!(statuses(&books, "de"), [FailedDependency; 2]);
    let changes = books.write(|tx| builds::restart(tx, c)).unwrap();
    assert_eq!(changes.scheduled, [c, books.id("d"), books.id("e")]);
}

#[test]
fn a_restart_takes_unfinished_dependencies_along() {
    let mut books = diamond();
    books.run("a", &failure());
    let e = books.id("e");
    let changes = books.write(|tx| builds::restart(tx, e)).unwrap();
    assert_eq!(changes.scheduled.len(), 5);
    let entries = builds::entries(&books.conn, &changes.scheduled).unwrap();
    let ready: Vec<_> = entries.iter().filter(|entry| entry.waits_for.is_empty()).collect();
    assert_eq!(ready.len(), 1);
    assert_eq!(ready[0].id, books.id("a"));
    let pending = books.write(|tx| builds::restart(tx, e));
    assert!(matches!(pending, Err(Error::Conflict(_))));
}

#[test]
fn a_restart_after_success_holds_waiting_dependents_back() {
    let mut books = diamond();
    books.run("a", &success());
    let (a, b, c) = (books.id("a"), books.id("b"), books.id("c"));
    let changes = books.write(|tx| builds::restart(tx, a)).unwrap();
    assert_eq!(changes.scheduled, [a, b, c]);
    assert_eq!(builds::entries(&books.conn, &[b]).unwrap()[0].waits_for, [a]);
}

#[test]
fn a_new_build_knows_of_a_failed_dependency_at_once() {
    let mut books = diamond();
    books.run("a", &failure());
    let name = books.jobset("j");
    let evaluation = books.evaluation(&name);
    // The first needs a later one of its batch, which needs what has failed.
    let changes =
        books.register(evaluation, &[job("h", &["g"]), job("g", &["a"]), job("i", &["f"])]);
    assert_eq!(changes.scheduled, [books.id("i")]);
    assert_eq!(statuses(&books, "ghi"), [FailedDependency, FailedDependency, Scheduled]);
    let expected = Counts { total: 3, failed: 2, pending: 1, ..Counts::default() };
    assert_eq!(books.counts(evaluation), expected);
}

#[test]
fn what_needs_a_job_that_cannot_be_evaluated_never_runs() {
    let mut books = diamond();
    let name = books.jobset("j");
    let evaluation = books.evaluation(&name);
    let broken = NewJob { work: Work::Error("no".to_owned()), ..job("x", &[]) };
    books.register(evaluation, &[broken, job("y", &["x"]), job("z", &["y"])]);
    assert_eq!(statuses(&books, "xyz"), [Failed, FailedDependency, FailedDependency]);
    let z = books.id("z");
    assert!(matches!(books.write(|tx| builds::restart(tx, z)), Err(Error::Conflict(_))));
    let all = books.write(|tx| builds::restart_evaluation(tx, evaluation, true)).unwrap();
    assert_eq!(all, Changes::default());
}

#[test]
fn cancelling_by_name_takes_dependents_along_and_lasts() {
    let mut books = diamond();
    let running = books.start("a");
    let changes = books.write(|tx| builds::cancel(tx, running.id)).unwrap();
    assert_eq!(changes.ended.len(), 5);
    assert_eq!(statuses(&books, "abcde"), [Canceled; 5]);
    assert_eq!(books.error("b"), format!("dependency {} canceled", running.id));
    let late = books.write(|tx| builds::end(tx, running.id, 1, &success())).unwrap();
    assert_eq!((late, books.status("a")), (Changes::default(), Canceled));
    let twice = books.write(|tx| builds::cancel(tx, running.id));
    assert!(matches!(twice, Err(Error::Conflict(_))));
    // A later evaluation leaves it so, and what needs it is canceled, too.
    let name = books.jobset("j");
    let evaluation = books.evaluation(&name);
    let changes = books.register(evaluation, &[job("a", &[]), job("b", &["a"]), job("g", &["a"])]);
    assert_eq!(changes, Changes::default());
    assert_eq!(statuses(&books, "abg"), [Canceled; 3]);
    let expected = Counts { total: 3, canceled: 3, ..Counts::default() };
    assert_eq!(books.counts(evaluation), expected);
    books.write(|tx| builds::restart(tx, running.id)).unwrap();
    assert_eq!(books.status("a"), Scheduled);
}

#[test]
fn restarting_an_evaluation_spares_what_succeeded_unless_told() {
    let mut books = diamond();
    books.run("a", &success());
    books.run("b", &failure());
    books.run("f", &success());
    let c = books.id("c");
    books.write(|tx| builds::cancel(tx, c)).unwrap();
    let evaluation = books.build("a").evaluation;
    let changes = books.write(|tx| builds::restart_evaluation(tx, evaluation, false)).unwrap();
    assert_eq!(changes.scheduled.len(), 4);
    assert_eq!(
        statuses(&books, "abcdef"),
        [Succeeded, Scheduled, Scheduled, Scheduled, Scheduled, Succeeded]
    );
    let changes = books.write(|tx| builds::restart_evaluation(tx, evaluation, true)).unwrap();
    assert_eq!(statuses(&books, "abcdef"), [Scheduled; 6]);
    assert!(changes.scheduled.contains(&books.id("f")));
    assert_eq!(books.counts(evaluation), Counts { total: 6, pending: 6, ..Counts::default() });
    let nobody = crate::model::evaluation::EvaluationId(99);
    let unknown = books.write(|tx| builds::restart_evaluation(tx, nobody, false));
    assert!(matches!(unknown, Err(Error::NotFound(_))));
}

#[test]
fn several_jobs_of_one_evaluation_may_share_a_build() {
    let mut books = Books::new();
    let name = books.jobset("j");
    let twin = NewJob { name: "twin".to_owned(), ..job("a", &[]) };
    let other = NewJob { system: "aarch64-linux".to_owned(), ..job("a", &[]) };
    let evaluation = books.evaluated(&name, &[job("a", &[]), twin, other, job("b", &["a"])]);
    assert_eq!(books.counts(evaluation), Counts { total: 4, pending: 4, ..Counts::default() });
    books.run("a", &failure());
    assert_eq!(books.counts(evaluation), Counts { total: 4, failed: 4, ..Counts::default() });
}

#[test]
fn a_try_that_ends_early_meets_a_need_that_failed_meanwhile() {
    for outcome in [abort(), Outcome::Interrupted] {
        let mut books = Books::new();
        let name = books.jobset("a");
        let jobs = [job("x", &[]), job("y", &["x"]), job("z", &["y"])];
        let evaluation = books.evaluated(&name, &jobs);
        books.run("x", &success());
        let order = books.start("y");
        let x = books.id("x");
        books.write(|tx| builds::restart(tx, x)).unwrap();
        books.run("x", &failure());
        assert_eq!(books.status("y"), BuildStatus::Started);
        let changes = books.write(|tx| builds::end(tx, order.id, order.attempt, &outcome)).unwrap();
        assert!(changes.scheduled.is_empty());
        assert_eq!(books.status("y"), BuildStatus::FailedDependency);
        assert_eq!(books.status("z"), BuildStatus::FailedDependency);
        assert_eq!(books.counts(evaluation), Counts { total: 3, failed: 3, ..Counts::default() });
    }
}

#[test]
fn recovery_meets_a_need_that_failed_meanwhile() {
    let mut books = Books::new();
    let name = books.jobset("a");
    books.evaluated(&name, &[job("x", &[]), job("y", &["x"])]);
    books.run("x", &success());
    books.start("y");
    let x = books.id("x");
    books.write(|tx| builds::restart(tx, x)).unwrap();
    books.run("x", &failure());
    books.write(builds::recover).unwrap();
    assert_eq!(books.status("y"), BuildStatus::FailedDependency);
}
