//! Builds whose derivation has gone from the store.

use crate::db::promises::{self, Promise};
use crate::db::testing::{Books, job};
use crate::db::{builds, evaluations, jobsets};
use crate::model::build::Outcome;
use crate::model::evaluation::{Ending, EvaluationId};
use crate::model::job::{NewJob, Work};
use crate::model::spec::JobsetName;
use crate::model::status::BuildStatus;

const DRV: &str = "/gnu/store/x.drv";

fn derivation() -> NewJob {
    NewJob { derivation: DRV.to_owned(), work: Work::Derivation, ..job("x", &[]) }
}

/// A try that finds it gone; what is to be evaluated again for it.
fn find_gone(books: &mut Books) -> Vec<EvaluationId> {
    books.run(DRV, &Outcome::Missing("it is gone".to_owned())).repeats
}

fn promised(books: &Books, jobset: &JobsetName) -> Vec<EvaluationId> {
    let promised = promises::of(&books.conn, jobset).unwrap();
    promised.retries.into_iter().map(|(id, _)| id).collect()
}

fn wait(books: &Books) -> Option<i64> {
    let sql = "SELECT retry_at - ?2 FROM builds WHERE derivation = ?1";
    books.conn.query_row(sql, (DRV, books.now), |row| row.get(0)).unwrap()
}

#[test]
fn the_evaluation_is_repeated_once_and_the_build_waits_for_that() {
    let mut books = Books::new();
    let name = books.jobset("a");
    let first = books.evaluated(&name, &[derivation()]);
    assert_eq!(find_gone(&mut books), [first]);
    assert_eq!(promised(&books, &name), [first]);
    let build = books.build(DRV);
    assert_eq!(
        (build.status, build.error.as_deref()),
        (BuildStatus::Scheduled, Some("it is gone"))
    );
    assert_eq!(wait(&books), Some(60));
    // Found again meanwhile, it goes on waiting.
    assert!(find_gone(&mut books).is_empty());
    assert_eq!(wait(&books), Some(180));
    let second = books.evaluation(&name);
    books.write(|tx| promises::settle(tx, &name, Promise::Retry(first))).unwrap();
    assert!(find_gone(&mut books).is_empty());
    assert_eq!(wait(&books), Some(540));
    books.register(second, &[derivation()]);
    books.write(|tx| evaluations::end(tx, second, &Ending::Succeeded, false)).unwrap();
    // It is an evaluator that does not make what it names.
    assert!(find_gone(&mut books).is_empty());
    assert_eq!(books.status(DRV), BuildStatus::Aborted);
    assert!(promised(&books, &name).is_empty());
    // Registered once more, it is tried once more.
    books.evaluated(&name, &[derivation()]);
    assert_eq!(books.status(DRV), BuildStatus::Scheduled);
}

#[test]
fn no_evaluation_is_repeated_that_was_followed_by_another() {
    let mut books = Books::new();
    let (name, other) = (books.jobset("a"), books.jobset("b"));
    books.evaluated(&name, &[derivation()]);
    books.evaluated(&name, &[job("y", &[])]);
    assert!(find_gone(&mut books).is_empty());
    let build = books.build(DRV);
    assert_eq!((build.status, build.attempts), (BuildStatus::Aborted, 1), "nobody makes it again");
    assert_eq!(build.error.as_deref(), Some("it is gone"));
    // Nor one of a jobset at rest.
    let resting = books.evaluated(&other, &[derivation()]);
    books.write(|tx| jobsets::set_active(tx, &other, false)).unwrap();
    assert!(find_gone(&mut books).is_empty());
    assert_eq!(books.status(DRV), BuildStatus::Aborted);
    books.write(|tx| jobsets::set_active(tx, &other, true)).unwrap();
    let id = books.id(DRV);
    books.write(|tx| builds::restart(tx, id)).unwrap();
    assert_eq!(find_gone(&mut books), [resting]);
}

#[test]
fn one_that_was_interrupted_is_repeated_anyway() {
    let mut books = Books::new();
    let name = books.jobset("a");
    let evaluation = books.evaluation(&name);
    books.register(evaluation, &[derivation()]);
    assert!(find_gone(&mut books).is_empty(), "it is running");
    books.write(evaluations::recover).unwrap();
    assert!(find_gone(&mut books).is_empty());
    assert_eq!(wait(&books), Some(180));
}
