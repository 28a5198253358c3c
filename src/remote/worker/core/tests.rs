//! The worker's side of every sequence, without a socket: time is added, not waited for.

use super::*;
use crate::sys::clock;

const NAME: &str = "AbCd1234";
const PERIOD: Duration = Duration::from_secs(20);

fn derivation(name: &str) -> String {
    format!("/gnu/store/h-{name}.drv")
}

fn build(name: &str) -> Build {
    Build {
        derivation: derivation(name),
        priority: 9,
        timeout: 0,
        max_silent_time: 0,
        system: "x86_64-linux".to_owned(),
    }
}

struct Bench {
    core: Core,
    now: Instant,
    out: Vec<Effect>,
}

impl Bench {
    fn new() -> Self {
        let me = Worker {
            name: NAME.to_owned(),
            address: String::new(),
            machine: "m".to_owned(),
            systems: vec!["x86_64-linux".to_owned()],
        };
        Self { core: Core::new(me, 5558, PERIOD), now: clock::now(), out: Vec::new() }
    }

    /// Connected, greeted and asked to check.
    fn joined() -> Self {
        let mut bench = Self::new();
        bench.join();
        assert_eq!(bench.rest(), ["(check)"]);
        bench
    }

    fn join(&mut self) {
        self.core.on_probe(&mut self.out);
        assert_eq!(self.rest(), ["(worker-request-info)"]);
        self.hear(ToWorker::Info {
            address: "10.0.0.2".to_owned(),
            log_port: 5556,
            publish_port: None,
        });
        let me = "(worker (name \"AbCd1234\") (address \"10.0.0.2\") (machine \"m\") (systems (\"x86_64-linux\")) (last-seen 0))";
        let said: Vec<_> = self.out.drain(..3).map(|effect| shown(&effect)).collect();
        assert_eq!(
            said,
            [
                format!("(worker-ready {me})"),
                format!("(worker-ping {me})"),
                format!("(gorget-worker (version 1) (name \"{NAME}\"))")
            ]
        );
    }

    /// Joined, and waiting for the server's answer.
    fn asked() -> Self {
        let mut bench = Self::joined();
        bench.check(Ok(()));
        assert_eq!(bench.rest(), ["(worker-request-work \"AbCd1234\")"]);
        bench
    }

    fn building() -> Self {
        let mut bench = Self::asked();
        bench.hear(ToWorker::Build(build("a")));
        assert_eq!(
            bench.rest(),
            [
                "(build-started (drv \"/gnu/store/h-a.drv\") (worker \"AbCd1234\"))",
                "(build /gnu/store/h-a.drv)"
            ]
        );
        bench
    }

    fn hear(&mut self, message: ToWorker) {
        self.core.on_message(self.now, message, &mut self.out);
    }

    fn check(&mut self, result: Result<(), &str>) {
        self.core.on_checked(self.now, result.map_err(str::to_owned), &mut self.out);
    }

    fn end(&mut self, ended: Ended) {
        self.core.on_ended(self.now, ended, &mut self.out);
    }

    fn fail(&mut self, fault: Fault) {
        self.end(Ended::Failed(fault, "why".to_owned()));
    }

    /// Lets time pass, to what is due at most.
    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.core.on_due(self.now, &mut self.out);
    }

    fn rest(&mut self) -> Vec<String> {
        self.out.drain(..).map(|effect| shown(&effect)).collect()
    }
}

fn shown(effect: &Effect) -> String {
    match effect {
        Effect::Say(message) => message.to_string(),
        Effect::Check => "(check)".to_owned(),
        Effect::Build(build, _) => format!("(build {})", build.derivation),
        Effect::Cancel => "(cancel)".to_owned(),
        Effect::Leave => "(leave)".to_owned(),
    }
}

const SUCCEEDED: &str =
    "(build-succeeded (drv \"/gnu/store/h-a.drv\") (url \"http://10.0.0.2:5558\") (log #f))";
const FAILED: &str =
    "(build-failed (drv \"/gnu/store/h-a.drv\") (url \"http://10.0.0.2:5558\") (log #f))";
const REQUEST: &str = "(worker-request-work \"AbCd1234\")";

fn fault(word: &str, why: &str) -> String {
    format!("(build-fault (drv \"/gnu/store/h-a.drv\") (fault \"{word}\") (why \"{why}\"))")
}

#[test]
fn nothing_is_said_before_the_probe_and_a_build_follows_the_other() {
    let mut bench = Bench::new();
    assert_eq!((bench.core.due(), bench.out.len()), (None, 0));
    bench = Bench::building();
    bench.end(Ended::Succeeded);
    assert_eq!(bench.rest(), [SUCCEEDED, "(check)"]);
    bench.check(Ok(()));
    assert_eq!(bench.rest(), [REQUEST]);
    // It waits for the answer as long as it takes, and says that it lives.
    let mut pings = 0;
    for _ in 0..240 {
        bench.pass(Duration::from_secs(60));
        pings += bench.rest().iter().filter(|said| said.starts_with("(worker-ping")).count();
    }
    assert_eq!(pings, 240);
}

#[test]
fn without_work_or_with_something_in_the_way_it_asks_again_later() {
    let mut bench = Bench::asked();
    bench.hear(ToWorker::NoBuild);
    assert_eq!(bench.core.due(), Some(bench.now + PERIOD));
    bench.pass(PERIOD / 2);
    assert!(bench.out.is_empty());
    bench.pass(PERIOD / 2);
    assert_eq!(bench.rest(), ["(check)"]);
    bench.check(Err("full"));
    assert!(bench.out.is_empty(), "nothing is sent");
    bench.pass(PERIOD);
    assert_eq!(bench.rest(), ["(check)"]);
}

#[test]
fn only_servers_of_ours_hear_of_faults_and_may_cancel() {
    let mut bench = Bench::building();
    bench.fail(Fault::TimedOut);
    assert_eq!(bench.rest(), [FAILED, "(check)"]);
    let mut bench = Bench::building();
    bench.hear(ToWorker::Gorget);
    bench.fail(Fault::TimedOut);
    assert_eq!(bench.rest(), [fault("timed-out", "why"), FAILED.to_owned(), "(check)".to_owned()]);
    let mut bench = Bench::building();
    bench.hear(ToWorker::Gorget);
    bench.hear(ToWorker::Cancel { derivation: derivation("other") });
    assert!(bench.out.is_empty());
    for _ in 0..2 {
        bench.hear(ToWorker::Cancel { derivation: derivation("a") });
    }
    assert_eq!(bench.rest(), ["(cancel)"]);
    bench.end(Ended::Interrupted);
    let canceled = fault("canceled", "canceled");
    assert_eq!(bench.rest(), [canceled, FAILED.to_owned(), "(check)".to_owned()]);
}

#[test]
fn a_server_that_comes_back_is_greeted_and_asked_again_once() {
    // While it waits for work: what it asked was lost.
    let mut bench = Bench::asked();
    bench.join();
    assert_eq!(bench.rest(), ["(check)"]);
    bench.check(Ok(()));
    assert_eq!(bench.rest(), [REQUEST]);
    // While it builds: it goes on.
    let mut bench = Bench::building();
    bench.join();
    assert!(bench.out.is_empty());
    bench.end(Ended::Succeeded);
    assert_eq!(bench.rest(), [SUCCEEDED, "(check)"]);
    // While it looks: it does not ask a server that it has not greeted.
    let mut bench = Bench::joined();
    bench.core.on_probe(&mut bench.out);
    bench.check(Ok(()));
    assert_eq!(bench.rest(), ["(worker-request-info)"]);
    bench.hear(ToWorker::Info { address: "10.0.0.2".to_owned(), log_port: 1, publish_port: None });
    assert_eq!(bench.rest().last().unwrap(), "(check)");
}

#[test]
fn what_was_built_while_the_server_was_away_is_reported_when_it_is_back() {
    let mut bench = Bench::building();
    bench.core.on_cut();
    bench.end(Ended::Succeeded);
    assert!(bench.out.is_empty());
    bench.pass(Duration::from_secs(24 * 3600));
    assert!(bench.out.is_empty());
    bench.join();
    assert_eq!(bench.rest(), [SUCCEEDED, "(check)"]);
}

#[test]
fn a_report_is_repeated_until_an_answer_proves_that_it_came() {
    let mut bench = Bench::building();
    bench.hear(ToWorker::Gorget);
    bench.fail(Fault::Aborted);
    bench.rest();
    bench.check(Ok(()));
    bench.rest();
    let reports = [fault("aborted", "why"), FAILED.to_owned(), "(check)".to_owned()];
    bench.join();
    assert_eq!(bench.rest(), reports);
    bench.check(Ok(()));
    bench.hear(ToWorker::NoBuild);
    bench.rest();
    bench.join();
    bench.pass(PERIOD);
    assert_eq!(bench.rest(), ["(check)"]);
}

#[test]
fn builds_beyond_the_one_asked_for_wait_for_their_turn() {
    let mut bench = Bench::building();
    bench.hear(ToWorker::Build(build("b")));
    assert!(bench.out.is_empty());
    bench.end(Ended::Succeeded);
    let rest = bench.rest();
    assert_eq!(rest[0], SUCCEEDED);
    assert_eq!(rest[2], "(build /gnu/store/h-b.drv)");
    // One that came over a connection that is gone is its server's to give to others.
    let mut bench = Bench::asked();
    bench.core.on_cut();
    bench.hear(ToWorker::Build(build("a")));
    assert!(bench.out.is_empty());
}

#[test]
fn it_drains_and_leaves() {
    let mut bench = Bench::asked();
    bench.core.drain(bench.now, &mut bench.out);
    assert_eq!(bench.rest(), ["(leave)"]);
    let mut bench = Bench::building();
    bench.core.drain(bench.now, &mut bench.out);
    assert!(bench.out.is_empty());
    bench.end(Ended::Succeeded);
    assert_eq!(bench.rest(), [SUCCEEDED, "(leave)"]);
    // The server is away: it has a while to come back.
    let mut bench = Bench::building();
    bench.core.on_cut();
    bench.core.drain(bench.now, &mut bench.out);
    bench.end(Ended::Succeeded);
    assert_eq!(bench.core.due(), Some(bench.now + REPORTING));
    let mut other = Bench::building();
    other.core.on_cut();
    other.core.drain(other.now, &mut other.out);
    other.end(Ended::Succeeded);
    other.join();
    assert_eq!(other.rest(), [SUCCEEDED, "(leave)"]);
    bench.pass(REPORTING);
    assert_eq!(bench.rest(), ["(leave)"]);
}

#[test]
fn it_aborts_and_says_so() {
    let mut bench = Bench::building();
    bench.hear(ToWorker::Gorget);
    bench.core.drain(bench.now, &mut bench.out);
    bench.core.abort(bench.now, &mut bench.out);
    assert_eq!(bench.rest(), ["(cancel)"]);
    bench.end(Ended::Interrupted);
    let aborted = fault("aborted", "the worker was stopped");
    assert_eq!(bench.rest(), [aborted, FAILED.to_owned(), "(leave)".to_owned()]);
    // A build that does not end is not waited for.
    let mut bench = Bench::building();
    bench.core.abort(bench.now, &mut bench.out);
    bench.rest();
    bench.pass(ENDING);
    assert_eq!(bench.rest(), ["(leave)"]);
}
