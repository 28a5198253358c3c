//! The builder with real books and a backend that does what the test says.

use std::collections::BTreeMap;

use tempfile::TempDir;

use super::*;
use crate::actor::Threads;
use crate::db::testing::{failure, job, success};
use crate::db::{Events, Subscription, builds, evaluations, jobsets};
use crate::model::build::Build;
use crate::model::event::What;
use crate::model::job::{NewJob, Work};
use crate::model::spec::JobsetName;
use crate::model::status::BuildStatus;

/// Generous: what it bounds takes milliseconds on an idle machine.
const LONG: Duration = Duration::from_secs(60);

/// Hands everything to the test.
struct Scripted {
    orders: Sender<Order>,
    cancels: Sender<BuildId>,
}

impl Backend for Scripted {
    fn kind(&self) -> Kind {
        Kind::Process
    }

    fn obstacle(&self, system: &str) -> Option<Reason> {
        (system != "x86_64-linux").then(|| Reason::NoWorker(system.into()))
    }

    fn start(&mut self, order: Order) {
        self.orders.try_send(order).unwrap();
    }

    fn cancel(&mut self, id: BuildId) {
        self.cancels.try_send(id).unwrap();
    }
}

/// One life of a builder and its database.
struct Life {
    threads: Threads,
    database: Database,
    builder: Handle,
    events: Events,
    orders: Receiver<Order>,
    cancels: Receiver<BuildId>,
    lane: Sender<Report>,
    evaluation: EvaluationId,
}

fn settings(place: &TempDir) -> Settings {
    Settings {
        state_directory: place.path().into(),
        database_directory: place.path().into(),
        fetch_timeout: Duration::from_secs(60),
        cache_directory: place.path().join("cache"),
        log_directory: place.path().join("log"),
        max_builds: 2,
        max_log_size: 1 << 20,
        minimum_disk_space: 0,
        job_user: None,
        fallback: false,
        one_shot: false,
        daemons: Vec::new(),
        remote: None,
    }
}

impl Life {
    fn begin(place: &TempDir) -> Self {
        Self::begin_with(place, &settings(place))
    }

    fn begin_with(place: &TempDir, settings: &Settings) -> Self {
        let (spawner, threads) = Spawner::new();
        let database = Database::open(&place.path().join("gorget.db"), &spawner).unwrap();
        let events = database.subscribe(1000).unwrap();
        let evaluation = database
            .write("an evaluation", |tx| {
                builds::recover(tx)?;
                let name = JobsetName::new("tests").unwrap();
                jobsets::put(tx, &name, "{}", true)?;
                let now = tx.now;
                evaluations::start(tx, &name, "print", now, &[])
            })
            .unwrap();
        let (remote, heard) = match settings.remote.clone() {
            Some(socket) => {
                let abroad = database.write("what is abroad", builds::abroad).unwrap();
                let none = (BTreeMap::new(), BTreeSet::new());
                let (remote, heard) =
                    Remote::new(&spawner, socket, none.0, abroad, none.1).unwrap();
                (Some(remote), heard)
            }
            None => (None, never()),
        };
        let ((orders, ordered), (cancels, canceled)) = (bounded(100), bounded(100));
        let (lane, reports) = report_lane(settings.max_builds);
        let backend = Box::new(Scripted { orders, cancels });
        let builder = spawn_with(
            &spawner,
            database.clone(),
            settings,
            Team { near: vec![backend], remote },
            (reports, heard, bounded(1).0),
        )
        .unwrap();
        Self {
            threads,
            database,
            builder,
            events,
            orders: ordered,
            cancels: canceled,
            lane,
            evaluation,
        }
    }

    /// Stops everything and waits until it has; reports meanwhile that canceled builds were interrupted.
    fn end(self, running: &[Order]) {
        let Self { threads, database, builder, lane, cancels, .. } = self;
        drop((threads.stop, database));
        for _ in running {
            let id = cancels.recv_timeout(LONG).unwrap();
            let order = running.iter().find(|order| order.id == id).unwrap();
            lane.send(ended(order, Outcome::Interrupted)).unwrap();
        }
        drop(builder);
        assert!(threads.all_gone.recv_timeout(LONG).unwrap_err().is_disconnected());
    }

    fn write<T: Send + 'static>(
        &self,
        apply: impl FnMut(&mut crate::db::Tx<'_>) -> Result<T, Error> + Send + 'static,
    ) -> T {
        self.database.write("a test", apply).unwrap()
    }

    /// Registers jobs and tells nobody.
    fn register_silently(&self, jobs: Vec<NewJob>) -> Changes {
        let evaluation = self.evaluation;
        self.write(move |tx| builds::register(tx, evaluation, &jobs))
    }

    fn register(&self, jobs: Vec<NewJob>) {
        self.builder.changed(self.register_silently(jobs)).unwrap();
    }

    fn build(&self, derivation: &str) -> Build {
        let id = self.id(derivation);
        builds::get(&self.database.reader().unwrap(), id).unwrap().unwrap()
    }

    fn id(&self, derivation: &str) -> BuildId {
        let reader = self.database.reader().unwrap();
        let sql = "SELECT id FROM builds WHERE derivation = ?1";
        BuildId(reader.query_row(sql, [derivation], |row| row.get(0)).unwrap())
    }

    fn next(&self) -> Order {
        self.orders.recv_timeout(LONG).unwrap()
    }

    fn report(&self, order: &Order, outcome: Outcome) {
        self.lane.send(ended(order, outcome)).unwrap();
    }

    /// Waits until the books have an end of this build.
    fn wait_for_end(&self, derivation: &str) -> Build {
        let id = self.id(derivation);
        loop {
            match self.events.recv_timeout(LONG).unwrap() {
                Subscription::Event(event) => {
                    if event.what == What::BuildEnded && event.build == Some(id) {
                        return self.build(derivation);
                    }
                }
                Subscription::Overflow => panic!("too many events"),
            }
        }
    }

    fn waiting(&self, derivation: &str) -> Option<String> {
        self.builder.waiting(vec![self.id(derivation)]).unwrap().remove(0)
    }

    /// Asks until a build waits for this, or for nothing if that is empty; each question is a turn of the builder's loop.
    fn wait_for_reason(&self, derivation: &str, begin: &str) -> String {
        let deadline = clock::now() + LONG;
        loop {
            let reason = self.waiting(derivation).unwrap_or_default();
            if reason.starts_with(begin) && reason.is_empty() == begin.is_empty() {
                return reason;
            }
            assert!(clock::now() < deadline, "waits for {reason}, not {begin}");
        }
    }
}

fn ended(order: &Order, outcome: Outcome) -> Report {
    Report::Ended { id: order.id, attempt: order.attempt, outcome }
}

fn place() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn builds_run_on_the_slots_there_are_and_dependents_after_them() {
    let place = place();
    let life = Life::begin(&place);
    life.register(vec![job("a", &[]), job("b", &[]), job("c", &[]), job("d", &["a"])]);
    let (a, b) = (life.next(), life.next());
    assert_eq!((a.job.as_str(), b.job.as_str()), ("a", "b"));
    assert_eq!(life.wait_for_reason("c", "s"), "slots");
    assert_eq!(life.waiting("d").unwrap(), format!("dependency {}", a.id));
    assert_eq!(life.waiting("a"), None);
    let queue = life.builder.queue(10).unwrap();
    assert_eq!(queue.iter().map(|w| w.id).collect::<Vec<_>>(), [life.id("c"), life.id("d")]);
    life.report(&a, success());
    let third = life.next();
    assert_eq!(third.job, "c", "nothing runs beyond the slots");
    assert_eq!(life.build("a").status, BuildStatus::Succeeded);
    life.report(&third, success());
    let fourth = life.next();
    assert_eq!(fourth.job, "d");
    assert!(fourth.log.ends_with(format!("log/builds/{}.gz", fourth.id)));
    life.report(&b, failure());
    assert_eq!(life.wait_for_end("b").status, BuildStatus::Failed);
    life.report(&fourth, success());
    assert_eq!(life.wait_for_end("d").status, BuildStatus::Succeeded);
    assert_eq!(life.builder.queue(10).unwrap(), []);
    life.end(&[]);
}

#[test]
fn a_failure_takes_its_dependents_along() {
    let place = place();
    let life = Life::begin(&place);
    life.register(vec![job("a", &[]), job("b", &["a"])]);
    let a = life.next();
    life.report(&a, failure());
    assert_eq!(life.wait_for_end("b").status, BuildStatus::FailedDependency);
    life.wait_for_reason("b", "");
    assert!(life.orders.is_empty());
    life.end(&[]);
}

#[test]
fn an_aborted_build_waits_for_its_next_try() {
    let place = place();
    let life = Life::begin(&place);
    life.register(vec![job("a", &[]), job("b", &["a"])]);
    life.report(&life.next(), Outcome::Aborted("the disk is gone".to_owned()));
    life.wait_for_reason("a", "retry at ");
    assert!(life.waiting("b").unwrap().starts_with("dependency "));
    life.end(&[]);
}

#[test]
fn what_waits_for_a_backend_says_so() {
    let place = place();
    let life = Life::begin(&place);
    let foreign = NewJob { system: "riscv64-linux".to_owned(), ..job("foreign", &[]) };
    let derivation = NewJob { work: Work::Derivation, ..job("/gnu/store/x.drv", &[]) };
    life.register(vec![foreign, derivation]);
    assert_eq!(life.waiting("foreign").unwrap(), "no worker for riscv64-linux");
    assert_eq!(life.waiting("/gnu/store/x.drv").unwrap(), "no backend for derivation builds");
    life.end(&[]);
}

#[test]
fn a_canceled_build_is_stopped_and_its_late_report_changes_nothing() {
    let place = place();
    let life = Life::begin_with(&place, &Settings { max_builds: 1, ..settings(&place) });
    life.register(vec![job("a", &[]), job("b", &[])]);
    let a = life.next();
    life.builder.cancel(a.id).unwrap().unwrap();
    assert_eq!(life.cancels.recv_timeout(LONG).unwrap(), a.id);
    assert_eq!(life.build("a").status, BuildStatus::Canceled);
    assert_eq!(life.waiting("b").unwrap(), "slots", "its slot is taken until it has ended");
    assert!(matches!(life.builder.cancel(a.id).unwrap(), Err(Error::Conflict(_))));
    life.report(&a, success());
    let b = life.next();
    assert_eq!(b.job, "b");
    assert_eq!(life.build("a").status, BuildStatus::Canceled);
    life.end(&[b]);
}

#[test]
fn a_build_restarted_while_its_old_try_ends_runs_once() {
    let place = place();
    let life = Life::begin(&place);
    life.register(vec![job("a", &[])]);
    let first = life.next();
    life.builder.cancel(first.id).unwrap().unwrap();
    assert_eq!(life.wait_for_end("a").status, BuildStatus::Canceled);
    life.builder.restart(first.id).unwrap().unwrap();
    assert_eq!(life.waiting("a").unwrap(), "queued");
    assert!(life.orders.is_empty());
    life.report(&first, Outcome::Interrupted);
    let second = life.next();
    assert_eq!((second.id, second.attempt), (first.id, first.attempt + 1));
    life.report(&second, success());
    assert_eq!(life.wait_for_end("a").status, BuildStatus::Succeeded);
    life.end(&[]);
}

#[test]
fn what_a_worker_has_had_since_an_earlier_life_can_be_canceled() {
    const DERIVATION: &str = "/gnu/store/x.drv";
    let place = place();
    let life = Life::begin(&place);
    life.register(vec![NewJob { work: Work::Derivation, ..job(DERIVATION, &[]) }]);
    let (id, logs) = (life.id(DERIVATION), place.path().to_owned());
    life.write(move |tx| builds::start(tx, id, &logs, Some("AbCd1234")));
    life.end(&[]);
    let remote = Some(place.path().join("no-server"));
    let life = Life::begin_with(&place, &Settings { remote, ..settings(&place) });
    assert_eq!(life.waiting(DERIVATION), None, "it runs");
    life.builder.cancel(id).unwrap().unwrap();
    // Nobody has it any more: it waits for nothing but a place where it can run.
    life.builder.restart(id).unwrap().unwrap();
    life.wait_for_reason(DERIVATION, "no backend");
    life.end(&[]);
}

#[test]
fn a_pause_outlives_the_daemon() {
    let place = place();
    let life = Life::begin(&place);
    life.builder.pause(true).unwrap();
    life.register(vec![job("a", &[])]);
    assert_eq!(life.waiting("a").unwrap(), "paused");
    life.end(&[]);
    let life = Life::begin(&place);
    assert_eq!(life.waiting("a").unwrap(), "paused");
    life.builder.pause(false).unwrap();
    let a = life.next();
    life.end(&[a]);
    let life = Life::begin(&place);
    assert_eq!(life.next().job, "a");
}

#[test]
fn a_stop_interrupts_what_runs_and_costs_no_try() {
    let place = place();
    let life = Life::begin(&place);
    life.register(vec![job("a", &[]), job("b", &["a"])]);
    let a = life.next();
    life.end(std::slice::from_ref(&a));
    let life = Life::begin(&place);
    let again = life.next();
    assert_eq!((again.id, again.attempt), (a.id, a.attempt + 1));
    assert_eq!(life.build("a").attempts, 1);
    assert_eq!(life.waiting("b").unwrap(), format!("dependency {}", a.id));
    life.report(&again, success());
    assert_eq!(life.next().job, "b");
}

#[test]
fn nothing_starts_without_space_on_the_disk() {
    let place = place();
    let life =
        Life::begin_with(&place, &Settings { minimum_disk_space: u64::MAX, ..settings(&place) });
    life.register(vec![job("a", &[])]);
    life.wait_for_reason("a", "no space");
    assert!(life.orders.is_empty());
    life.end(&[]);
}

#[test]
fn a_build_that_found_no_space_waits_for_it_and_one_that_is_postponed_for_its_time() {
    let place = place();
    let life = Life::begin(&place);
    life.register(vec![job("a", &[]), job("b", &[])]);
    let (a, b) = (life.next(), life.next());
    life.report(&a, Outcome::Postponed("the checkout is not there".to_owned()));
    life.wait_for_reason("a", "retry at ");
    // Also where a measurement says that there is room.
    life.report(&b, Outcome::NoSpace("no space left".to_owned()));
    life.wait_for_reason("b", "no space");
    for (name, error) in [("a", "the checkout is not there"), ("b", "no space left")] {
        let build = life.build(name);
        assert_eq!((build.status, build.attempts), (BuildStatus::Scheduled, 0));
        assert_eq!(build.error.as_deref(), Some(error));
    }
    assert!(life.orders.is_empty());
    life.end(&[]);
}

#[test]
fn a_sweep_finds_what_nobody_told() {
    let place = place();
    let life = Life::begin(&place);
    assert_eq!(life.builder.reconcile().unwrap(), 0);
    life.register_silently(vec![job("a", &[])]);
    life.register_silently(vec![job("b", &[])]);
    let b = life.id("b");
    life.write(move |tx| builds::start(tx, b, std::path::Path::new("/log"), None));
    assert_eq!(life.builder.reconcile().unwrap(), 2);
    let found = [life.next(), life.next()];
    assert_eq!(found.each_ref().map(|order| order.job.as_str()), ["a", "b"]);
    assert_eq!(life.builder.reconcile().unwrap(), 0, "what runs is no news");
    life.write(move |tx| builds::cancel(tx, b));
    life.builder.reconcile().unwrap();
    assert_eq!(life.cancels.recv_timeout(LONG).unwrap(), b);
    life.report(&found[1], Outcome::Interrupted);
    life.end(&found[..1]);
}

#[test]
fn a_dependency_nobody_told_of_is_found_with_its_dependent() {
    let place = place();
    let life = Life::begin(&place);
    life.register_silently(vec![job("a", &[])]);
    life.register(vec![job("b", &["a"])]);
    let a = life.next();
    assert_eq!(a.job, "a");
    life.report(&a, success());
    let b = life.next();
    assert_eq!(b.job, "b");
    life.end(&[b]);
}

#[test]
fn another_priority_changes_the_order() {
    let place = place();
    let life = Life::begin(&place);
    life.builder.pause(true).unwrap();
    life.register(vec![job("a", &[]), job("b", &[])]);
    life.builder.prioritize(life.id("b"), 0).unwrap().unwrap();
    let ids: Vec<BuildId> = life.builder.queue(1).unwrap().iter().map(|w| w.id).collect();
    assert_eq!(ids, [life.id("b")]);
    let evaluation = life.evaluation;
    life.builder.cancel_evaluation(evaluation).unwrap().unwrap();
    life.end(&[]);
}

#[test]
fn hundreds_of_builds_end_exactly_once() {
    let place = place();
    let life = Life::begin(&place);
    let names: Vec<String> = (0..300).map(|n| format!("job{n:03}")).collect();
    let needs =
        |n: usize| if n.is_multiple_of(3) { vec![] } else { vec![names[n / 3 * 3].as_str()] };
    for part in (0..300).collect::<Vec<_>>().chunks(50) {
        life.register(part.iter().map(|&n| job(&names[n], &needs(n))).collect());
    }
    let mut ran: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..300 {
        let order = life.next();
        *ran.entry(order.job.clone()).or_default() += 1;
        life.report(&order, success());
    }
    assert_eq!(ran.len(), 300);
    let mut ends = 0;
    while ends < 300 {
        match life.events.recv_timeout(LONG).unwrap() {
            Subscription::Event(event) => ends += usize::from(event.what == What::BuildEnded),
            Subscription::Overflow => panic!("too many events"),
        }
    }
    let reader = life.database.reader().unwrap();
    let counts = evaluations::get(&reader, life.evaluation).unwrap().unwrap().jobs;
    assert_eq!((counts.succeeded, counts.pending), (300, 0));
    drop(reader);
    life.end(&[]);
}
