//! The server, the queue and the books as the test plays them.

use std::path::PathBuf;

use super::*;
use crate::model::evaluation::EvaluationId;
use crate::model::spec::JobsetName;
use crate::proto::remote::link::{Phase as Told, WorkerView};
use crate::sys::clock;

const SYSTEM: &str = "x86_64-linux";
const URL: &str = "http://127.0.0.1:5558";

struct Bench {
    core: Core,
    now: Instant,
    out: Vec<Effect>,
}

impl Bench {
    fn new() -> Self {
        let now = clock::now();
        Self { core: Core::new(now, Vec::new(), BTreeSet::new()), now, out: Vec::new() }
    }

    /// Workers have had these since an earlier life.
    fn resumed(builds: &[(i64, &str)]) -> Self {
        let now = clock::now();
        let order = |(id, worker): &(i64, &str)| Order {
            worker: Some((*worker).to_owned()),
            ..order(*id, 1)
        };
        let abroad = builds.iter().map(order).collect();
        Self { core: Core::new(now, abroad, BTreeSet::new()), now, out: Vec::new() }
    }

    /// Connected, with these workers, which want work.
    fn with(workers: &[(&str, &str)]) -> Self {
        let mut bench = Self::new();
        bench.connect(workers, &[]);
        bench.take();
        bench
    }

    fn connect(&mut self, workers: &[(&str, &str)], told: &[AssignmentView]) {
        self.core.on_connected();
        for (name, machine) in workers {
            let busy = told.iter().any(|told| told.worker == *name);
            let worker = worker(name, machine, !busy);
            self.event(Event::WorkerJoined { worker });
        }
        for assignment in told {
            self.event(Event::Assigned { assignment: assignment.clone() });
        }
        self.event(Event::Ready);
    }

    fn event(&mut self, event: Event) {
        self.core.on_event(self.now, event, &mut self.out);
    }

    /// Reserved, written into the books, assigned; the worker's name.
    fn start(&mut self, id: i64) -> String {
        self.start_try(id, 1)
    }

    fn start_try(&mut self, id: i64, attempt: i64) -> String {
        let worker = self.core.reserve(BuildId(id), SYSTEM).unwrap();
        self.begin(id, attempt, &worker);
        worker
    }

    fn begin(&mut self, id: i64, attempt: i64, worker: &str) {
        let order = Order { worker: Some(worker.to_owned()), ..order(id, attempt) };
        self.core.start(order, &mut self.out);
    }

    fn taken(&mut self, id: i64, taken: impl Into<Taken>) {
        self.core.on_taken(of(id, 1), URL.to_owned(), taken.into(), &mut self.out);
    }

    fn settled(&mut self, id: i64) {
        self.core.settle(&[BuildId(id)], &mut self.out);
    }

    fn report(&mut self, id: i64, attempt: i64, report: Report) {
        self.event(Event::Reported { build: id, attempt, report });
    }

    fn fetch(&mut self) {
        self.core.take(&|_| true, &mut self.out);
    }

    /// What is asked of the world besides the books of workers.
    fn take(&mut self) -> Vec<Effect> {
        let mut out = std::mem::take(&mut self.out);
        out.retain(|effect| !matches!(effect, Effect::Note(_) | Effect::Changed));
        out
    }
}

fn worker(name: &str, machine: &str, requesting: bool) -> WorkerView {
    WorkerView {
        name: name.to_owned(),
        address: "127.0.0.1".to_owned(),
        machine: machine.to_owned(),
        systems: vec![SYSTEM.to_owned()],
        last_seen: 0,
        requesting,
        build: None,
    }
}

fn derivation(id: i64) -> String {
    format!("/gnu/store/{id}.drv")
}

fn order(id: i64, attempt: i64) -> Order {
    Order {
        id: BuildId(id),
        attempt,
        jobset: JobsetName::new("guix").unwrap(),
        evaluation: EvaluationId(1),
        job: "x".to_owned(),
        system: SYSTEM.to_owned(),
        derivation: derivation(id),
        priority: 9,
        timeout: 60,
        max_silent_time: 30,
        process: None,
        checkouts: Vec::new(),
        needs: Vec::new(),
        log: PathBuf::from(format!("/log/{id}.gz")),
        worker: None,
    }
}

fn told(id: i64, attempt: i64, worker: &str, report: Option<Report>) -> AssignmentView {
    AssignmentView {
        build: id,
        attempt,
        worker: worker.to_owned(),
        derivation: derivation(id),
        phase: if report.is_some() { Told::Reported } else { Told::Started },
        log: None,
        report,
    }
}

fn of(id: i64, attempt: i64) -> Try {
    Try { build: BuildId(id), attempt }
}

fn ended(id: i64, attempt: i64, outcome: Outcome) -> Effect {
    Effect::End { id: BuildId(id), attempt, outcome }
}

fn success() -> Report {
    Report::Succeeded { url: URL.to_owned() }
}

fn failure(fault: &str) -> Report {
    Report::Failed { fault: fault.to_owned(), why: None }
}

fn done() -> Outcome {
    Outcome::Succeeded { outputs: BTreeMap::new(), products: Vec::new() }
}

#[test]
fn a_build_is_assigned_fetched_and_settled_when_the_books_have_its_end() {
    let mut bench = Bench::with(&[("a", "m")]);
    assert_eq!(bench.start(1), "a");
    assert!(matches!(&bench.take()[..], [Effect::Say(Command::Assign(assign))]
        if assign.of == of(1, 1) && assign.worker == "a" && assign.timeout == 60));
    assert!(bench.core.serves(SYSTEM) && bench.core.open().is_empty());
    bench.core.on_answer(Ok(()), &mut bench.out);
    bench.event(Event::Started { build: 1, attempt: 1, log: "/r/1-1.gz".to_owned() });
    assert!(matches!(&bench.take()[..], [Effect::Link { from, order }]
        if from == "/r/1-1.gz" && order.id == BuildId(1)));
    bench.report(1, 1, success());
    bench.report(1, 1, success());
    bench.fetch();
    assert!(matches!(&bench.take()[..], [Effect::Take { order, .. }] if order.id == BuildId(1)));
    // A worker that is lost afterwards has done its work.
    bench.event(Event::Lost { build: 1, attempt: 1, started: true, why: String::new() });
    bench.taken(1, done());
    assert!(matches!(&bench.take()[..], [Effect::End { outcome: Outcome::Succeeded { .. }, .. }]));
    bench.settled(1);
    bench.settled(1);
    assert_eq!(bench.take(), [Effect::Say(Command::Settle(of(1, 1)))]);
}

#[test]
fn failures_mean_what_they_would_mean_here() {
    for (fault, expected) in [
        ("failed", Outcome::Failed("failed on worker a".to_owned())),
        ("unheard-of", Outcome::Failed("failed on worker a".to_owned())),
        ("dependency", Outcome::DependencyFailed("failed on worker a".to_owned())),
        ("timed-out", Outcome::Failed("timed out after 60 s".to_owned())),
        ("silent", Outcome::Failed("silent for 30 s".to_owned())),
        ("aborted", Outcome::Aborted("worker a: failed on worker a".to_owned())),
        ("canceled", Outcome::Lost("worker a stopped it".to_owned())),
    ] {
        let mut bench = Bench::with(&[("a", "m")]);
        bench.start(1);
        bench.take();
        bench.report(1, 1, failure(fault));
        assert_eq!(bench.take(), [ended(1, 1, expected)], "{fault}");
    }
}

#[test]
fn the_machine_with_the_least_to_do_is_taken() {
    let mut bench = Bench::with(&[("a", "m"), ("b", "m"), ("c", "n"), ("d", "n")]);
    let order: Vec<String> = (1..=4).map(|id| bench.start(id)).collect();
    assert_eq!(order, ["a", "c", "b", "d"]);
    assert!(bench.core.reserve(BuildId(5), SYSTEM).is_none());
}

#[test]
fn systems_are_served_and_open_as_workers_say() {
    let mut bench = Bench::new();
    let stands = |bench: &Bench| (bench.core.serves(SYSTEM), !bench.core.open().is_empty());
    assert_eq!(stands(&bench), (false, false));
    bench.connect(&[("a", "m")], &[]);
    assert_eq!(stands(&bench), (true, true));
    assert!(!bench.core.serves("riscv64-linux"));
    bench.event(Event::Withdrawn { worker: "a".to_owned() });
    assert_eq!(stands(&bench), (true, false));
    bench.event(Event::Requested { worker: "a".to_owned() });
    assert_eq!(stands(&bench), (true, true));
    bench.core.on_disconnected(bench.now, &mut bench.out);
    assert_eq!(stands(&bench), (false, false));
}

#[test]
fn a_worker_that_went_while_the_books_were_told_gets_nothing() {
    let mut bench = Bench::with(&[("a", "m")]);
    bench.core.reserve(BuildId(1), SYSTEM).unwrap();
    bench.event(Event::WorkerLeft { worker: "a".to_owned(), why: String::new() });
    bench.begin(1, 1, "a");
    assert_eq!(bench.take(), [ended(1, 1, Outcome::Interrupted)]);
    // The books refused another.
    bench.event(Event::WorkerJoined { worker: worker("b", "m", true) });
    bench.core.reserve(BuildId(2), SYSTEM).unwrap();
    bench.core.release(BuildId(2));
    assert_eq!(bench.start(3), "b");
}

#[test]
fn a_refused_assignment_costs_a_try_only_when_it_would_be_refused_again() {
    for (kind, expected) in [
        (FailureKind::Conflict, Outcome::Interrupted),
        (FailureKind::NotFound, Outcome::Interrupted),
        (FailureKind::Syntax, Outcome::Aborted("remote-server refused: no".to_owned())),
    ] {
        let mut bench = Bench::with(&[("a", "m")]);
        bench.start(1);
        bench.take();
        bench.core.on_answer(Err(Failure::new(kind, "no")), &mut bench.out);
        assert_eq!(bench.take(), [ended(1, 1, expected)]);
    }
}

#[test]
fn a_refused_assignment_costs_its_worker_nothing() {
    let mut bench = Bench::with(&[("a", "m")]);
    let refuse = |bench: &mut Bench, id, kind| {
        assert_eq!(bench.start(id), "a");
        bench.core.on_answer(Err(Failure::new(kind, "no")), &mut bench.out);
    };
    for id in 1..=2 * i64::from(BROKEN) {
        // The server still holds the request.
        refuse(&mut bench, id, FailureKind::Syntax);
        assert!(bench.core.serves(SYSTEM) && !bench.core.open().is_empty());
    }
    // Here it holds none.
    refuse(&mut bench, 100, FailureKind::Conflict);
    assert!(bench.core.open().is_empty());
}

#[test]
fn a_lost_build_costs_a_try_if_it_had_begun() {
    for started in [false, true] {
        let mut bench = Bench::with(&[("a", "m")]);
        bench.start(1);
        bench.take();
        bench.event(Event::Lost { build: 1, attempt: 1, started, why: "gone".to_owned() });
        let outcome = if started { Outcome::Lost("gone".to_owned()) } else { Outcome::Interrupted };
        assert_eq!(bench.take(), [ended(1, 1, outcome)]);
        bench.settled(1);
        // Late, and of an older try.
        bench.report(1, 1, success());
        assert_eq!(bench.take(), []);
    }
}

#[test]
fn late_reports_do_not_end_a_later_try() {
    let mut bench = Bench::with(&[("a", "m"), ("b", "m")]);
    bench.start(1);
    bench.event(Event::Lost { build: 1, attempt: 1, started: true, why: String::new() });
    bench.start_try(1, 2);
    bench.take();
    bench.report(1, 1, failure("failed"));
    bench.event(Event::Lost { build: 1, attempt: 1, started: true, why: String::new() });
    assert_eq!(bench.take(), []);
    bench.report(1, 2, failure("failed"));
    assert_eq!(bench.take().len(), 1);
}

#[test]
fn what_is_canceled_ends_at_once_wherever_it_is() {
    let mut bench = Bench::with(&[("a", "m"), ("b", "m")]);
    bench.start(1);
    bench.start(2);
    bench.report(2, 1, success());
    bench.fetch();
    bench.take();
    bench.core.cancel(BuildId(1), &mut bench.out);
    let cancel = |id| Effect::Say(Command::Cancel(of(id, 1)));
    assert_eq!(bench.take(), [cancel(1), ended(1, 1, Outcome::Interrupted)]);
    bench.core.cancel(BuildId(2), &mut bench.out);
    let release = Effect::Drop(BuildId(2));
    assert_eq!(bench.take(), [release, cancel(2), ended(2, 1, Outcome::Interrupted)]);
    bench.taken(2, done());
    bench.report(1, 1, success());
    bench.settled(1);
    assert_eq!(bench.take(), []);
}

#[test]
fn a_server_that_restarted_is_told_what_runs() {
    let mut bench = Bench::with(&[("a", "m"), ("b", "m"), ("c", "m")]);
    for id in 1..=3 {
        bench.start(id);
    }
    bench.report(3, 1, success());
    bench.take();
    bench.core.on_disconnected(bench.now, &mut bench.out);
    bench.connect(&[("a", "m")], &[]);
    // What only has to be fetched need not be known there.
    let adopt = |id, worker: &str| {
        let (worker, derivation) = (worker.to_owned(), derivation(id));
        Effect::Say(Command::Adopt(Adopt { of: of(id, 1), worker, derivation }))
    };
    assert_eq!(bench.take(), [adopt(1, "a"), adopt(2, "b")]);
    bench.report(1, 1, failure("failed"));
    bench.event(Event::Lost { build: 2, attempt: 1, started: false, why: String::new() });
    assert_eq!(bench.take().len(), 2);
}

#[test]
fn a_daemon_that_restarted_takes_up_what_runs_and_cancels_what_it_does_not_know() {
    let mut bench = Bench::resumed(&[(1, "a"), (2, "b"), (3, "c")]);
    let running = [
        told(1, 1, "a", None),
        told(2, 1, "b", Some(success())),
        told(3, 2, "c", None),
        told(4, 1, "d", None),
    ];
    bench.connect(&[("a", "m"), ("b", "m"), ("c", "m"), ("d", "m")], &running);
    bench.fetch();
    let effects = bench.take();
    assert!(
        matches!(&effects[..], [
        Effect::Say(Command::Cancel(three)),
        Effect::Say(Command::Cancel(four)),
        Effect::Say(Command::Adopt(adopt)),
        Effect::Take { order, url },
    ] if *three == of(3, 2) && *four == of(4, 1) && adopt.of == of(3, 1)
        && order.id == BuildId(2) && url == URL),
        "{effects:?}"
    );
    bench.report(1, 1, failure("failed"));
    assert_eq!(bench.take().len(), 1);
}

#[test]
fn what_nobody_can_say_anything_of_is_given_up_after_a_while() {
    assert_eq!(Bench::new().core.deadline(), None);
    let mut bench = Bench::resumed(&[(1, "a")]);
    let due = bench.core.deadline().unwrap();
    assert_eq!(due, bench.now + AWAY);
    bench.core.on_deadline(due - Duration::from_secs(1), &mut bench.out);
    assert_eq!(bench.take(), []);
    bench.core.on_deadline(due, &mut bench.out);
    assert_eq!(bench.take(), [ended(1, 1, Outcome::Interrupted)]);
    assert_eq!(bench.core.deadline(), None);
    // Said when the server is back.
    bench.settled(1);
    bench.connect(&[("a", "m")], &[told(1, 1, "a", Some(success()))]);
    assert_eq!(bench.take(), [Effect::Say(Command::Cancel(of(1, 1)))]);
    // While the server is there, it knows.
    bench.event(Event::WorkerJoined { worker: worker("b", "m", true) });
    bench.start(2);
    assert_eq!(bench.core.deadline(), None);
    bench.core.on_disconnected(due, &mut bench.out);
    assert_eq!(bench.core.deadline(), Some(due + AWAY));
}

#[test]
fn a_worker_on_which_everything_is_aborted_is_paused() {
    let mut bench = Bench::with(&[("a", "m")]);
    let again = |bench: &mut Bench, id, fault| {
        bench.start(id);
        bench.report(id, 1, failure(fault));
        bench.event(Event::Requested { worker: "a".to_owned() });
    };
    for id in 1..=i64::from(BROKEN) {
        assert!(bench.core.serves(SYSTEM));
        again(&mut bench, id, "aborted");
    }
    assert!(!bench.core.serves(SYSTEM) && bench.core.open().is_empty());
    assert!(bench.out.contains(&Effect::Note(Note::Broken("a".to_owned(), BROKEN))));
    // Also when the server restarts.
    bench.core.on_disconnected(bench.now, &mut bench.out);
    bench.connect(&[("a", "m")], &[]);
    assert!(!bench.core.serves(SYSTEM));
    bench.core.pause(bench.now, "a", false, &mut bench.out);
    // What fails by itself is no fault of the worker's.
    for id in 100..100 + 2 * i64::from(BROKEN) {
        again(&mut bench, id, "failed");
    }
    assert!(bench.core.serves(SYSTEM));
    // Nor what is in the way here.
    let fetch = |bench: &mut Bench, id, taken| {
        bench.start(id);
        bench.report(id, 1, success());
        bench.taken(id, taken);
        bench.event(Event::Requested { worker: "a".to_owned() });
    };
    for id in 200..200 + 2 * i64::from(BROKEN) {
        fetch(&mut bench, id, Taken::Over(Outcome::Aborted("no space".to_owned())));
    }
    assert!(bench.core.serves(SYSTEM));
    // But that nothing can be fetched from it.
    for id in 300..300 + i64::from(BROKEN) {
        fetch(&mut bench, id, Taken::Unfetched("no answer".to_owned()));
    }
    assert!(!bench.core.serves(SYSTEM));
}

#[test]
fn results_over_which_a_store_daemon_goes_again_and_again_are_given_up() {
    let mut bench = Bench::with(&[("a", "m")]);
    bench.start(1);
    bench.report(1, 1, success());
    bench.take();
    for _ in 1..CUTS {
        bench.fetch();
        assert_eq!(fetched(&bench.take()), [1]);
        bench.taken(1, Taken::CutOff);
    }
    bench.fetch();
    bench.taken(1, Taken::CutOff);
    let effects = bench.take();
    assert!(
        matches!(
            &effects[..],
            [Effect::Take { .. }, Effect::End { outcome: Outcome::Aborted(_), .. }]
        ),
        "{effects:?}"
    );
}

#[test]
fn a_pause_outlives_restarts_of_the_server_and_breaks_of_the_network() {
    let mut bench = Bench::with(&[("a", "m")]);
    let join = |bench: &mut Bench| {
        bench.out.clear();
        bench.event(Event::WorkerJoined { worker: worker("a", "m", true) });
        let note = Effect::Note(Note::Paused("a".to_owned(), true));
        (bench.core.serves(SYSTEM), bench.out.contains(&note))
    };
    bench.core.pause(bench.now, "a", true, &mut bench.out);
    // When the daemon is attached, nobody is back yet.
    bench.core.on_disconnected(bench.now, &mut bench.out);
    bench.connect(&[], &[]);
    bench.now += PAUSED / 2;
    assert_eq!(join(&mut bench), (false, true));
    let leave = |bench: &mut Bench| {
        bench.event(Event::WorkerLeft { worker: "a".to_owned(), why: String::new() });
    };
    bench.now += PAUSED;
    leave(&mut bench);
    assert_eq!(join(&mut bench), (false, true));
    // One that does not come back is forgotten.
    leave(&mut bench);
    bench.now += PAUSED;
    bench.event(Event::WorkerLeft { worker: "b".to_owned(), why: String::new() });
    assert_eq!(join(&mut bench), (true, false));
}

/// The builds that are to be fetched.
fn fetched(effects: &[Effect]) -> Vec<i64> {
    let one = |effect: &Effect| match effect {
        Effect::Take { order, .. } => Some(order.id.0),
        _ => None,
    };
    effects.iter().filter_map(one).collect()
}

#[test]
fn results_wait_for_their_store_and_few_are_fetched_at_once() {
    let names: Vec<String> = (0..20).map(|n| format!("w{n}")).collect();
    let workers: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "m")).collect();
    let mut bench = Bench::with(&workers);
    // Of one place the first ten, each of the others of one of its own.
    for id in 1..=20 {
        bench.start(id);
        let url = if id <= 10 { URL.to_owned() } else { format!("http://10.0.0.{id}:5558") };
        bench.report(id, 1, Report::Succeeded { url });
    }
    bench.take();
    bench.core.take(&|_| false, &mut bench.out);
    assert_eq!(bench.take(), []);
    bench.fetch();
    // What hangs there keeps nobody else from coming.
    let others = 11..=20;
    assert_eq!(fetched(&bench.take()), (1..=4).chain(others).collect::<Vec<_>>());
    // Its daemon went: it comes last.
    bench.taken(1, Taken::CutOff);
    bench.fetch();
    assert_eq!(fetched(&bench.take()), [5]);
    for (id, next) in [(2, vec![6]), (3, vec![7]), (4, vec![8]), (5, vec![9]), (6, vec![10])] {
        bench.taken(id, done());
        bench.fetch();
        assert_eq!(fetched(&bench.take()), next);
    }
    bench.taken(7, done());
    bench.fetch();
    assert_eq!(fetched(&bench.take()), [1]);
}

#[test]
fn a_machine_is_one_whatever_ports_it_names() {
    let names: Vec<String> = (0..8).map(|n| format!("w{n}")).collect();
    let workers: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "m")).collect();
    let mut bench = Bench::with(&workers);
    let url = |id: i64| match id % 2 {
        0 => format!("http://[fe80::1]:{id}"),
        _ => format!("http://[fe80:0::1]:{id}/"),
    };
    for id in 1..=8 {
        bench.start(id);
        bench.report(id, 1, Report::Succeeded { url: url(id) });
    }
    bench.take();
    bench.fetch();
    assert_eq!(fetched(&bench.take()), [1, 2, 3, 4]);
    bench.core.on_taken(of(1, 1), url(1), done().into(), &mut bench.out);
    bench.fetch();
    assert_eq!(fetched(&bench.take()), [5]);
}

#[test]
fn what_an_earlier_try_left_is_not_fetched_for_a_later_one() {
    let mut bench = Bench::with(&[("a", "m"), ("b", "m")]);
    bench.start(1);
    bench.report(1, 1, Report::Succeeded { url: "http://10.0.0.9:1".to_owned() });
    // Its store was away, somebody canceled it, and wanted it after all.
    bench.core.cancel(BuildId(1), &mut bench.out);
    bench.start_try(1, 2);
    bench.report(1, 2, success());
    bench.take();
    bench.fetch();
    let effects = bench.take();
    assert!(
        matches!(&effects[..], [Effect::Take { url, order }] if url == URL && order.attempt == 2),
        "{effects:?}"
    );
}

#[test]
fn no_more_are_fetched_at_once_than_there_are_threads() {
    let names: Vec<String> = (0..20).map(|n| format!("w{n}")).collect();
    let workers: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "m")).collect();
    let mut bench = Bench::with(&workers);
    for id in 1..=20 {
        bench.start(id);
        bench.report(id, 1, Report::Succeeded { url: format!("http://10.0.0.{id}:5558") });
    }
    bench.take();
    bench.fetch();
    assert_eq!(fetched(&bench.take()).len(), TAKERS);
}
