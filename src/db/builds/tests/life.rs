//! Registration, tries, endings, weather: one build at a time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::db::builds::{self, Changes, Filter};
use crate::db::testing::{Books, abort, failure, job, success, version};
use crate::db::{Error, evaluations, notifications};
use crate::model::build::{Kind, Need, Outcome, Product, Store};
use crate::model::evaluation::{Counts, Ending};
use crate::model::event::What;
use crate::model::job::{NewJob, Work};
use crate::model::spec::JobsetName;
use crate::model::status::{BuildStatus, Weather};
use crate::model::time::Time;

fn broken(name: &str, message: &str) -> NewJob {
    NewJob {
        derivation: format!("error:{name}:{message}"),
        work: Work::Error(message.to_owned()),
        ..job(name, &[])
    }
}

#[test]
fn what_is_registered_can_be_read_back() {
    let mut books = Books::new();
    let name = books.jobset("a");
    let evaluation = books.evaluation(&name);
    let outputs = BTreeMap::from([("out".to_owned(), "/gnu/store/x".to_owned())]);
    let derivation = NewJob {
        derivation: "/gnu/store/x.drv".to_owned(),
        outputs: outputs.clone(),
        work: Work::Derivation,
        ..job("x", &[])
    };
    let changes = books.register(evaluation, &[derivation, job("y", &["/gnu/store/x.drv"])]);
    let (x, y) = (books.id("/gnu/store/x.drv"), books.id("y"));
    assert_eq!(changes, Changes { scheduled: vec![x, y], ..Changes::default() });
    let entries = builds::entries(&books.conn, &[x, y]).unwrap();
    assert_eq!((entries[0].kind, &*entries[0].waits_for), (Kind::Derivation(Store::Guix), &[][..]));
    assert_eq!((entries[1].kind, &*entries[1].waits_for), (Kind::Process, &[x][..]));
    assert_eq!(books.build("/gnu/store/x.drv").outputs, outputs);
    assert_eq!(books.counts(evaluation), Counts { total: 2, pending: 2, ..Counts::default() });
    assert_eq!(builds::scheduled(&books.conn).unwrap(), [x, y]);
    let event = books.events.last().unwrap();
    assert_eq!((event.what, event.evaluation), (What::BuildsQueued, Some(evaluation)));
}

#[test]
fn needs_may_come_later_in_the_batch_but_must_exist() {
    let mut books = Books::new();
    let name = books.jobset("a");
    let evaluation = books.evaluation(&name);
    books.register(evaluation, &[job("y", &["x"]), job("x", &[])]);
    let entry = builds::entries(&books.conn, &[books.id("y")]).unwrap();
    assert_eq!(entry[0].waits_for, [books.id("x")]);
    let jobs = [job("z", &["nothing"])];
    let unknown = books.write(|tx| builds::register(tx, evaluation, &jobs));
    assert!(matches!(unknown, Err(Error::NotFound(_))));
    assert_eq!(books.counts(evaluation).total, 2);
}

#[test]
fn only_a_running_evaluation_registers_and_each_job_once() {
    let mut books = Books::new();
    let name = books.jobset("a");
    let evaluation = books.evaluation(&name);
    let jobs = [job("x", &[])];
    books.register(evaluation, &jobs);
    let twice = books.write(|tx| builds::register(tx, evaluation, &jobs));
    assert!(matches!(twice, Err(Error::Conflict(_))));
    books.write(|tx| evaluations::end(tx, evaluation, &Ending::Succeeded, false)).unwrap();
    let over = books.write(|tx| builds::register(tx, evaluation, &[job("y", &[])]));
    assert!(matches!(over, Err(Error::Conflict(_))));
}

#[test]
fn known_derivations_are_not_built_again() {
    let mut books = Books::new();
    let name = books.jobset("a");
    books.evaluated(&name, &[job("x", &[]), job("y", &[]), job("z", &["y"]), job("w", &[])]);
    books.run("x", &success());
    books.run("y", &failure());
    let again = books.evaluation(&name);
    let jobs = [job("x", &[]), job("y", &[]), job("z", &["y"]), job("w", &[])];
    assert_eq!(books.register(again, &jobs), Changes::default());
    let expected = Counts { total: 4, succeeded: 1, failed: 2, pending: 1, ..Counts::default() };
    assert_eq!(books.counts(again), expected);
}

#[test]
fn an_error_job_fails_at_once_and_only_once() {
    let mut books = Books::new();
    let name = books.jobset("a");
    let evaluation = books.evaluated(&name, &[broken("x", "unbound variable: foo")]);
    let derivation = "error:x:unbound variable: foo";
    assert_eq!(books.status(derivation), BuildStatus::Failed);
    assert_eq!(books.error(derivation), "unbound variable: foo");
    assert_eq!(books.counts(evaluation), Counts { total: 1, failed: 1, ..Counts::default() });
    let id = books.id(derivation);
    let restarted = books.write(|tx| builds::restart(tx, id));
    assert!(matches!(restarted, Err(Error::Conflict(_))));
    let all = books.write(|tx| builds::restart_evaluation(tx, evaluation, true)).unwrap();
    assert_eq!(all, Changes::default());
    books.evaluated(&name, &[broken("x", "unbound variable: foo")]);
    let ended = books.events.iter().filter(|event| event.what == What::BuildEnded).count();
    assert_eq!(ended, 1);
}

#[test]
fn an_order_holds_what_the_backend_needs() {
    let mut books = Books::new();
    let name = books.jobset("a");
    let evaluation = books.evaluated(&name, &[job("x", &[]), job("y", &["x"])]);
    let outputs = BTreeMap::from([("out".to_owned(), "/products/1/out".to_owned())]);
    let product = Product {
        kind: "file".into(),
        path: "/p/a.html".into(),
        size: 3,
        sha256: Some("ab".into()),
    };
    let done = Outcome::Succeeded { outputs: outputs.clone(), products: vec![product.clone()] };
    books.run("x", &done);
    assert_eq!(builds::products(&books.conn, books.id("x")).unwrap(), [product]);
    let order = books.start("y");
    assert_eq!((order.attempt, order.evaluation, &order.jobset), (1, evaluation, &name));
    assert_eq!((order.timeout, order.max_silent_time, order.priority), (600, 60, 99));
    assert_eq!(
        order.checkouts,
        evaluations::get(&books.conn, evaluation).unwrap().unwrap().checkouts
    );
    assert_eq!(order.needs, [Need { job: "x".to_owned(), outputs, expired: false }]);
    assert_eq!(order.process.unwrap().command, ["make", "y"]);
    assert_eq!(order.log, PathBuf::from(format!("/log/{}.gz", order.id)));
    let build = books.build("y");
    assert_eq!((build.status, build.log), (BuildStatus::Started, Some(order.log)));
    let twice = books.write(|tx| builds::start(tx, order.id, Path::new("/log"), None));
    assert!(matches!(twice, Err(Error::Conflict(_))));
    assert_eq!(builds::running(&books.conn).unwrap(), [(order.id, 1, Some(books.now))]);
    assert_eq!(builds::pending_counts(&books.conn).unwrap(), (0, 1));
}

#[test]
fn late_reports_change_nothing() {
    let mut books = Books::new();
    let name = books.jobset("a");
    let evaluation = books.evaluated(&name, &[job("x", &[])]);
    let first = books.start("x");
    books.write(|tx| builds::end(tx, first.id, 1, &abort())).unwrap();
    let second = books.start("x");
    assert_eq!(second.attempt, 2);
    for (attempt, outcome) in [(1, success()), (3, failure())] {
        let changes = books.write(|tx| builds::end(tx, first.id, attempt, &outcome)).unwrap();
        assert_eq!((changes, books.status("x")), (Changes::default(), BuildStatus::Started));
    }
    let changes = books.write(|tx| builds::end(tx, first.id, 2, &success())).unwrap();
    assert_eq!(changes.ended, [first.id]);
    let events = books.events.len();
    for outcome in [success(), failure(), abort(), Outcome::Interrupted] {
        let changes = books.write(|tx| builds::end(tx, first.id, 2, &outcome)).unwrap();
        assert_eq!(changes, Changes::default());
    }
    assert_eq!((books.status("x"), books.events.len()), (BuildStatus::Succeeded, events));
    assert_eq!(books.counts(evaluation), Counts { total: 1, succeeded: 1, ..Counts::default() });
}

#[test]
fn aborted_tries_back_off_until_they_are_spent() {
    let mut books = Books::new();
    let name = books.jobset("a");
    let evaluation = books.evaluated(&name, &[job("x", &[]), job("y", &["x"])]);
    for wait in [60, 180, 540, 1620] {
        let changes = books.run("x", &abort());
        assert_eq!(changes, Changes { scheduled: vec![books.id("x")], ..Changes::default() });
        let entry = &builds::entries(&books.conn, &changes.scheduled).unwrap()[0];
        assert_eq!(entry.retry_at, Some(books.now.after(Duration::from_secs(wait))));
        assert_eq!(
            (books.status("y"), books.error("x")),
            (BuildStatus::Scheduled, "no space".into())
        );
    }
    let changes = books.run("x", &abort());
    assert_eq!(
        changes,
        Changes { ended: vec![books.id("x"), books.id("y")], ..Changes::default() }
    );
    assert_eq!(books.status("x"), BuildStatus::Aborted);
    assert_eq!(books.status("y"), BuildStatus::FailedDependency);
    let expected = Counts { total: 2, aborted: 1, failed: 1, ..Counts::default() };
    assert_eq!(books.counts(evaluation), expected);
    // Met again, it is tried again, with all its tries; what failed because of it, too.
    let again = books.evaluation(&name);
    let changes = books.register(again, &[job("x", &[]), job("y", &["x"])]);
    assert_eq!(changes.scheduled, [books.id("x"), books.id("y")]);
    assert_eq!((books.build("x").attempts, books.build("x").stoptime), (0, None));
    assert_eq!(books.start("x").attempt, 6);
    assert_eq!(books.counts(evaluation).pending, 2);
}

#[test]
fn a_restart_ends_the_wait_for_the_next_try() {
    let mut books = Books::new();
    let name = books.jobset("a");
    books.evaluated(&name, &[job("x", &[])]);
    let id = books.id("x");
    let again = books.write(|tx| builds::restart(tx, id));
    assert!(matches!(again, Err(Error::Conflict(_))), "it waits for nothing: {again:?}");
    books.run("x", &abort());
    let changes = books.write(|tx| builds::restart(tx, id)).unwrap();
    assert_eq!(changes.scheduled, [id]);
    assert_eq!(builds::entries(&books.conn, &[id]).unwrap()[0].retry_at, None);
    // The try it had is spent all the same: this is no fresh start.
    assert_eq!((books.status("x"), books.build("x").attempts), (BuildStatus::Scheduled, 1));
}

#[test]
fn an_interruption_costs_no_try() {
    let mut books = Books::new();
    let name = books.jobset("a");
    books.evaluated(&name, &[job("x", &[])]);
    for _ in 0..9 {
        let changes = books.run("x", &Outcome::Interrupted);
        assert_eq!(changes.scheduled, [books.id("x")]);
        let entry = &builds::entries(&books.conn, &changes.scheduled).unwrap()[0];
        assert_eq!((entry.retry_at, books.build("x").attempts), (None, 0));
    }
}

#[test]
fn three_deaths_in_a_row_abort_what_was_running() {
    let mut books = Books::new();
    let name = books.jobset("a");
    books.evaluated(&name, &[job("x", &[]), job("y", &["x"]), job("z", &[])]);
    for died in 1..=2 {
        books.start("x");
        books.start("z");
        assert_eq!(books.write(builds::recover).unwrap(), 2, "{died}");
        assert_eq!((books.status("x"), books.build("x").attempts), (BuildStatus::Scheduled, 0));
    }
    // A try that ends otherwise begins the row anew.
    books.run("z", &Outcome::Interrupted);
    books.start("x");
    books.start("z");
    books.write(builds::recover).unwrap();
    assert_eq!(books.status("x"), BuildStatus::Aborted);
    assert_eq!(books.status("y"), BuildStatus::FailedDependency);
    assert_eq!(books.status("z"), BuildStatus::Scheduled);
    assert_eq!(books.write(builds::recover).unwrap(), 0);
}

#[test]
fn builds_on_remote_workers_are_not_recovered_at_once() {
    let mut books = Books::new();
    let name = books.jobset("a");
    books.evaluated(&name, &[NewJob { work: Work::Derivation, ..job("x", &[]) }]);
    let id = books.id("x");
    books.write(|tx| builds::start(tx, id, Path::new("/log"), Some("worker"))).unwrap();
    assert_eq!(books.write(builds::recover).unwrap(), 0);
    assert_eq!(books.build("x").worker.as_deref(), Some("worker"));
}

/// Registers and ends one version of job `x` after the other; their weathers.
fn weathers(books: &mut Books, jobset: &JobsetName, outcomes: &[Outcome]) -> Vec<Weather> {
    let mut weathers = Vec::new();
    for (n, outcome) in outcomes.iter().enumerate() {
        let derivation = format!("{jobset}-{n}");
        books.evaluated(jobset, &[version("x", &derivation)]);
        books.run(&derivation, outcome);
        weathers.push(books.build(&derivation).weather);
    }
    weathers
}

#[test]
fn weather_compares_with_the_build_before() {
    use Weather::{NewFailure, NewSuccess, StillFailing, StillSucceeding, Unknown};
    let mut books = Books::new();
    let name = books.jobset("a");
    let outcomes = [failure(), failure(), success(), success(), failure(), success()];
    let expected = [Unknown, StillFailing, NewSuccess, StillSucceeding, NewFailure, NewSuccess];
    assert_eq!(weathers(&mut books, &name, &outcomes), expected);
    // Another jobset's job of that name has a weather of its own.
    let other = books.jobset("b");
    assert_eq!(weathers(&mut books, &other, &[success()]), [Unknown]);
}

#[test]
fn a_canceled_build_neither_has_weather_nor_counts() {
    let mut books = Books::new();
    let name = books.jobset("a");
    books.evaluated(&name, &[version("x", "1")]);
    books.run("1", &success());
    books.evaluated(&name, &[version("x", "2")]);
    let id = books.id("2");
    books.write(|tx| builds::cancel(tx, id)).unwrap();
    assert_eq!(books.build("2").weather, Weather::Unknown);
    books.evaluated(&name, &[version("x", "3")]);
    books.run("3", &success());
    assert_eq!(books.build("3").weather, Weather::StillSucceeding);
    books.evaluated(&name, &[broken("x", "no")]);
    assert_eq!(books.build("error:x:no").weather, Weather::NewFailure);
}

#[test]
fn a_build_shared_with_another_jobset_counts_for_both_weathers() {
    let mut books = Books::new();
    let (a, b) = (books.jobset("a"), books.jobset("b"));
    books.evaluated(&a, &[version("x", "1")]);
    books.run("1", &success());
    books.evaluated(&b, &[version("x", "1")]);
    books.evaluated(&b, &[version("x", "2")]);
    books.run("2", &failure());
    assert_eq!(books.build("2").weather, Weather::NewFailure);
}

#[test]
fn broken_and_fixed_builds_are_told_to_each_address() {
    let mut books = Books::new();
    let specification =
        r#"{"name":"a","notifications":[{"type":"mastodon"},{"type":"webhook","url":"u"}]}"#;
    let name = books.jobset_with("a", specification);
    weathers(&mut books, &name, &[success(), failure(), failure(), success()]);
    let due = notifications::due(&books.conn, books.now, 99).unwrap();
    let told: Vec<_> = due
        .iter()
        .map(|p| (p.build.derivation.as_str(), p.word.as_str(), p.notification.as_str()))
        .collect();
    let webhook = r#"{"type":"webhook","url":"u"}"#;
    let expected = [
        ("a-1", "broken", r#"{"type":"mastodon"}"#),
        ("a-1", "broken", webhook),
        ("a-3", "fixed", r#"{"type":"mastodon"}"#),
        ("a-3", "fixed", webhook),
    ];
    assert_eq!(told, expected);
    let later = Time(books.now.0 + 60);
    books
        .write(|tx| {
            notifications::remove(tx, due[0].id)?;
            notifications::remove(tx, due[1].id)?;
            notifications::postpone(tx, due[2].id, later, "no route")
        })
        .unwrap();
    assert_eq!(notifications::due(&books.conn, books.now, 99).unwrap().len(), 1);
    assert_eq!(notifications::due(&books.conn, later, 99).unwrap()[1].attempts, 1);
    books.write(|tx| notifications::remove(tx, due[3].id)).unwrap();
    assert_eq!(notifications::next_due(&books.conn).unwrap(), Some(later));
}

#[test]
fn lists_select_by_jobs() {
    let mut books = Books::new();
    let (a, b) = (books.jobset("a"), books.jobset("b"));
    let first = books.evaluated(&a, &[job("x", &[]), job("y", &[]), job("w", &[])]);
    let second = books.evaluated(&b, &[job("y", &[]), job("z", &[])]);
    books.run("y", &success());
    books.run("x", &failure());
    let list = |jobset: Option<&JobsetName>, evaluation, status, limit| -> Vec<String> {
        let filter = Filter { jobset: jobset.cloned(), evaluation, status };
        let builds = builds::list(&books.conn, &filter, limit).unwrap();
        builds.into_iter().map(|build| build.derivation).collect()
    };
    use BuildStatus::{Aborted, Failed, Scheduled, Succeeded};
    assert_eq!(list(None, None, None, 9), ["z", "w", "y", "x"]);
    assert_eq!(list(None, None, None, 2), ["z", "w"]);
    assert_eq!(list(Some(&b), None, None, 9), ["z", "y"]);
    assert_eq!(list(Some(&a), None, None, 2), ["w", "y"]);
    assert_eq!(list(Some(&a), None, Some(Succeeded), 9), ["y"]);
    assert_eq!(list(Some(&a), None, Some(Failed), 9), ["x"]);
    assert_eq!(list(Some(&b), None, Some(Failed), 9), [""; 0]);
    assert_eq!(list(None, Some(second), None, 9), ["z", "y"]);
    assert_eq!(list(None, Some(first), Some(Scheduled), 9), ["w"]);
    assert_eq!(list(Some(&b), Some(first), None, 9), ["y"]);
    assert_eq!(list(None, None, Some(Scheduled), 9), ["z", "w"]);
    assert_eq!(list(None, None, Some(Aborted), 9), [""; 0]);
}

#[test]
fn an_evaluation_is_settled_when_its_builds_are() {
    let mut books = Books::new();
    let name = books.jobset("a");
    let id = books.evaluation(&name);
    books.register(id, &[job("x", &[])]);
    let settled = |books: &Books| builds::settled(&books.conn, id).unwrap();
    books.run("x", &success());
    assert_eq!(settled(&books), Some((false, false)));
    books.write(|tx| evaluations::end(tx, id, &Ending::Succeeded, false)).unwrap();
    assert_eq!(settled(&books), Some((true, true)));
    let build = books.id("x");
    books.write(|tx| builds::restart(tx, build)).unwrap();
    assert_eq!(settled(&books), Some((false, false)));
    books.run("x", &failure());
    assert_eq!(settled(&books), Some((true, false)));
    assert_eq!(
        builds::settled(&books.conn, crate::model::evaluation::EvaluationId(9)).unwrap(),
        None
    );
}

#[test]
fn priorities_of_pending_builds_can_change() {
    let mut books = Books::new();
    let name = books.jobset("a");
    books.evaluated(&name, &[job("x", &[])]);
    let id = books.id("x");
    let changes = books.write(|tx| builds::prioritize(tx, id, 3)).unwrap();
    assert_eq!(changes.scheduled, [id]);
    assert_eq!(builds::entries(&books.conn, &[id]).unwrap()[0].priority, 3);
    books.run("x", &success());
    assert!(matches!(books.write(|tx| builds::prioritize(tx, id, 4)), Err(Error::Conflict(_))));
}
