//! The hall without sockets: time passes by addition, and what workers say are the bytes that Guile's say.
#![expect(clippy::disallowed_methods, reason = "any instant will do to count from")]

mod adoption;

use super::*;
use crate::model::build::BuildId;
use crate::proto::control::Failure;
use crate::proto::remote::link::{Adopt, Assign};

const DRV: &str = "/gnu/store/630anh2v63k4dgs6vdr2dgrjn418nrmi-hello-2.12.drv";
const OTHER: &str = "/gnu/store/730anh2v63k4dgs6vdr2dgrjn418nrmi-hello-2.13.drv";
const URL: &str = "http://10.0.0.2:5558";

/// A hall, its clock, and the two connections of a worker.
struct Stage {
    hall: Hall,
    start: Instant,
    seconds: u64,
}

const A: Link = Link(1);
const B: Link = Link(2);

fn address() -> IpAddr {
    "10.0.0.2".parse().unwrap()
}

fn of(build: i64) -> Try {
    Try { build: BuildId(build), attempt: 1 }
}

fn record(name: &str) -> String {
    format!(
        r#"(worker (name "{name}") (address "10.0.0.2") (machine "ruche") (systems ("x86_64-linux" "i686-linux")) (last-seen 0))"#
    )
}

impl Stage {
    fn new() -> Self {
        let settings =
            Settings { log_port: 5556, publish_port: Some(5557), logs: "/c/remote".into() };
        Self { hall: Hall::new(settings), start: Instant::now(), seconds: 0 }
    }

    /// One with worker `w` on connections A and B.
    fn with_worker() -> Self {
        let mut stage = Self::new();
        stage.open(A);
        stage.open(B);
        stage.say(A, &format!("(worker-ready {})", record("w")));
        stage.say(B, &format!("(worker-ping {})", record("w")));
        stage
    }

    /// One whose worker has begun build 7.
    fn building() -> Self {
        let mut stage = Self::with_worker();
        stage.say(A, r#"(worker-request-work "w")"#);
        stage.assign(7, DRV).unwrap();
        stage.say(A, &started(DRV));
        stage
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_secs(self.seconds)
    }

    fn open(&mut self, link: Link) {
        self.hall.on_open(self.now(), link, address());
    }

    fn close(&mut self, link: Link) -> Vec<Effect> {
        let mut out = Vec::new();
        self.hall.on_close(self.now(), link, &mut out);
        out
    }

    fn say(&mut self, link: Link, text: &str) -> Vec<Effect> {
        self.say_from(From { link: Some(link), address: address() }, text)
    }

    fn say_from(&mut self, from: From, text: &str) -> Vec<Effect> {
        let seconds = i64::try_from(self.seconds).unwrap();
        let now = Now { instant: self.now(), wall: Time(1_000_000 + seconds) };
        let mut out = Vec::new();
        self.hall.on_message(now, from, text.as_bytes(), &mut out);
        out
    }

    /// Lets time pass, with what becomes due at the second when it does.
    fn pass(&mut self, seconds: u64) -> Vec<Effect> {
        let mut out = Vec::new();
        for _ in 0..seconds {
            self.seconds += 1;
            let now = self.now();
            if self.hall.deadline().is_some_and(|deadline| deadline <= now) {
                self.hall.on_deadline(now, &mut out);
            }
        }
        out
    }

    fn assign(&mut self, build: i64, derivation: &str) -> Result<Vec<Effect>, Failure> {
        let assign = Assign {
            of: of(build),
            worker: "w".to_owned(),
            derivation: derivation.to_owned(),
            system: "x86_64-linux".to_owned(),
            priority: 9,
            timeout: 72000,
            max_silent_time: 3600,
        };
        let (now, mut out) = (self.now(), Vec::new());
        self.hall.assign(now, assign, &mut out)?;
        Ok(out)
    }

    fn adopt(&mut self, build: i64) -> Vec<Effect> {
        let adopt = Adopt { of: of(build), worker: "w".to_owned(), derivation: DRV.to_owned() };
        let (now, mut out) = (self.now(), Vec::new());
        self.hall.adopt(now, adopt, &mut out).unwrap();
        out
    }

    fn cancel(&mut self, build: i64) -> Vec<Effect> {
        let mut out = Vec::new();
        self.hall.cancel(of(build), &mut out);
        out
    }

    fn phase(&self, build: i64) -> Option<Phase> {
        let mut all = self.hall.assignments();
        all.find(|assignment| assignment.build == build).map(|assignment| assignment.phase)
    }
}

fn started(derivation: &str) -> String {
    format!(r#"(build-started (drv "{derivation}") (worker "w"))"#)
}

fn succeeded(derivation: &str) -> String {
    format!(r#"(build-succeeded (drv "{derivation}") (url "{URL}") (log #f))"#)
}

fn failed(derivation: &str) -> String {
    format!(r#"(build-failed (drv "{derivation}") (url "{URL}") (log #f))"#)
}

fn requested() -> Effect {
    Effect::Tell(Event::Requested { worker: "w".to_owned() })
}

fn withdrawn() -> Effect {
    Effect::Tell(Event::Withdrawn { worker: "w".to_owned() })
}

fn reported(build: i64, report: Report) -> Effect {
    Effect::Tell(Event::Reported { build, attempt: 1, report })
}

fn success() -> Report {
    Report::Succeeded { url: URL.to_owned() }
}

/// Builds that were lost, and whether each had begun.
fn lost(effects: &[Effect]) -> Vec<(i64, bool)> {
    let lost = |effect: &Effect| match effect {
        Effect::Tell(Event::Lost { build, started, .. }) => Some((*build, *started)),
        _ => None,
    };
    effects.iter().filter_map(lost).collect()
}

fn has_left(effects: &[Effect]) -> bool {
    effects
        .iter()
        .any(|e| matches!(e, Effect::Tell(Event::WorkerLeft { worker, .. }) if worker == "w"))
}

fn hung_up(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| matches!(effect, Effect::HangUp(..)))
}

#[test]
fn a_build_from_the_first_word_to_the_last() {
    let mut stage = Stage::new();
    stage.open(A);
    let info =
        ToWorker::Info { address: "10.0.0.2".to_owned(), log_port: 5556, publish_port: Some(5557) };
    assert_eq!(stage.say(A, "(worker-request-info)"), [Effect::Say(A, info)]);
    let worker = WorkerView {
        name: "w".to_owned(),
        address: "10.0.0.2".to_owned(),
        machine: "ruche".to_owned(),
        systems: vec!["x86_64-linux".to_owned(), "i686-linux".to_owned()],
        last_seen: 1_000_000,
        requesting: false,
        build: None,
    };
    let joined = Effect::Tell(Event::WorkerJoined { worker });
    assert_eq!(stage.say(A, &format!("(worker-ready {})", record("w"))), [joined]);
    stage.open(B);
    stage.pass(10);
    let seen = Effect::Tell(Event::WorkerSeen { worker: "w".to_owned(), time: 1_000_010 });
    assert_eq!(stage.say(B, &format!("(worker-ping {})", record("w"))), [seen]);
    assert_eq!(stage.say(B, &format!("(worker-ping {})", record("w"))), [], "it was told just now");
    assert_eq!(stage.say(A, r#"(worker-request-work "w")"#), [requested()]);
    let build = remote::Build {
        derivation: DRV.to_owned(),
        priority: 9,
        timeout: 72000,
        max_silent_time: 3600,
        system: "x86_64-linux".to_owned(),
    };
    assert_eq!(stage.assign(7, DRV).unwrap(), [Effect::Say(A, ToWorker::Build(build))]);
    let log = "/c/remote/7-1.gz";
    assert_eq!(
        stage.say(A, &started(DRV)),
        [
            Effect::Create(log.into()),
            Effect::Tell(Event::Started { build: 7, attempt: 1, log: log.to_owned() })
        ]
    );
    assert_eq!(stage.say(A, &succeeded(DRV)), [reported(7, success())]);
    // It is kept until that is in the books; the worker goes on.
    assert_eq!(stage.phase(7), Some(Phase::Reported));
    assert_eq!(stage.say(A, r#"(worker-request-work "w")"#), [requested()]);
    stage.hall.settle(of(7)).unwrap();
    assert_eq!(stage.phase(7), None);
    assert_eq!(stage.hall.derivations.len(), 0);
}

#[test]
fn a_request_is_held_once_however_often_it_is_repeated() {
    let mut stage = Stage::with_worker();
    assert_eq!(stage.say(A, r#"(worker-request-work "w")"#), [requested()]);
    assert_eq!(stage.say(A, r#"(worker-request-work "w")"#), []);
    stage.assign(7, DRV).unwrap();
    // Sent before the build arrived, say as an answer to the probe.
    assert_eq!(stage.say(A, r#"(worker-request-work "w")"#), []);
    stage.say(A, &started(DRV));
    assert_eq!(stage.say(A, r#"(worker-request-work "w")"#), []);
    let wants_none = stage.assign(8, OTHER).unwrap_err();
    assert_eq!(wants_none.to_string(), "error conflict worker w wants no work");
}

#[test]
fn a_request_of_an_unknown_name_is_held_until_it_pings() {
    let mut stage = Stage::new();
    stage.open(A);
    assert_eq!(stage.say(A, r#"(worker-request-work "w")"#), []);
    stage.open(B);
    let told = stage.say(B, &format!("(worker-ping {})", record("w")));
    assert!(matches!(told[0], Effect::Tell(Event::WorkerJoined { .. })));
    assert_eq!(told[1..], [requested()]);
    assert!(matches!(stage.assign(7, DRV).unwrap()[..], [Effect::Say(A, _)]));
    // A connection that ends before that wants nothing any more.
    let mut stage = Stage::new();
    stage.open(A);
    stage.say(A, r#"(worker-request-work "w")"#);
    stage.close(A);
    stage.open(B);
    assert_eq!(stage.say(B, &format!("(worker-ping {})", record("w"))).len(), 1);
}

#[test]
fn what_has_not_begun_is_lost_with_its_connection_or_after_a_minute() {
    let mut stage = Stage::with_worker();
    stage.say(A, r#"(worker-request-work "w")"#);
    stage.assign(7, DRV).unwrap();
    assert_eq!(lost(&stage.close(A)), [(7, false)]);
    let mut stage = Stage::with_worker();
    stage.say(A, r#"(worker-request-work "w")"#);
    stage.assign(7, DRV).unwrap();
    assert_eq!(lost(&stage.pass(59)), []);
    assert_eq!(lost(&stage.pass(1)), [(7, false)]);
    assert_eq!(stage.say(A, &started(DRV)), [], "it is nobody's any more");
    assert_eq!(stage.say(A, &succeeded(DRV)), []);
    assert_eq!(stage.say(A, r#"(worker-request-work "w")"#), [requested()]);
    // The request of a connection that ends is withdrawn.
    assert_eq!(stage.close(A), [withdrawn()]);
}

#[test]
fn a_worker_without_connections_is_gone_after_ten_seconds() {
    let mut stage = Stage::building();
    assert_eq!(stage.close(A), []);
    assert_eq!(stage.pass(60), [], "the other one lives");
    stage.say(B, &format!("(worker-ping {})", record("w")));
    assert_eq!(stage.close(B), []);
    assert_eq!(stage.pass(9), []);
    let told = stage.pass(1);
    assert!(has_left(&told[..1]), "{told:?}");
    assert_eq!(lost(&told[1..]), [(7, true)]);
    // Its name comes back: as any worker.
    stage.open(Link(3));
    assert_eq!(stage.say(Link(3), &succeeded(DRV)), []);
    assert_eq!(stage.say(Link(3), r#"(worker-request-work "w")"#), []);
    let told = stage.say(Link(3), &format!("(worker-ping {})", record("w")));
    assert_eq!(told[1..], [requested()]);
}

#[test]
fn a_worker_that_reconnects_in_time_keeps_its_build() {
    let mut stage = Stage::building();
    stage.close(A);
    stage.close(B);
    stage.pass(5);
    stage.open(Link(3));
    stage.say(Link(3), &format!("(worker-ping {})", record("w")));
    assert_eq!(lost(&stage.pass(100)), []);
    // The report comes over a connection that has not said whose it is.
    stage.open(Link(4));
    assert_eq!(stage.say(Link(4), &succeeded(DRV)), [reported(7, success())]);
    assert_eq!(stage.say(Link(4), r#"(worker-request-work "w")"#), [requested()]);
}

#[test]
fn a_worker_of_ours_says_whose_a_connection_is() {
    let mut stage = Stage::building();
    stage.say(A, r#"(gorget-worker (version 1) (name "w"))"#);
    stage.close(A);
    stage.close(B);
    stage.open(Link(3));
    let hello = stage.say(Link(3), r#"(gorget-worker (version 1) (name "w"))"#);
    assert_eq!(hello, [Effect::Say(Link(3), ToWorker::Gorget)]);
    assert_eq!(stage.pass(100), [], "it is here, though it does not ping");
    let cancel = ToWorker::Cancel { derivation: DRV.to_owned() };
    assert_eq!(stage.cancel(7), [Effect::Say(Link(3), cancel)]);
}

#[test]
fn nameless_connections_from_its_address_are_waited_for() {
    let mut stage = Stage::building();
    stage.close(A);
    stage.open(Link(3));
    stage.pass(5);
    stage.close(B);
    stage.open(Link(4));
    // It builds and says nothing; its next ping is up to a minute away.
    assert_eq!(stage.pass(60), []);
    stage.say(Link(4), &format!("(worker-ping {})", record("w")));
    assert_eq!(stage.pass(60), []);
    let mut stage = Stage::building();
    stage.close(A);
    stage.close(B);
    stage.open(Link(3));
    assert_eq!(stage.pass(74), []);
    assert_eq!(lost(&stage.pass(1)), [(7, true)]);
}

#[test]
fn a_report_that_was_lost_in_a_break_shows_at_the_next_request() {
    let mut stage = Stage::building();
    stage.close(A);
    stage.open(Link(3));
    let told = stage.say(Link(3), r#"(worker-request-work "w")"#);
    assert_eq!(lost(&told), [(7, true)]);
    assert_eq!(told[1..], [requested()]);
}

#[test]
fn silence_is_the_end_of_a_worker() {
    let mut stage = Stage::building();
    assert_eq!(stage.pass(100), []);
    stage.say(B, &format!("(worker-ping {})", record("w")));
    assert_eq!(stage.pass(119), []);
    let told = stage.pass(1);
    assert!(has_left(&told));
    assert_eq!(lost(&told), [(7, true)]);
    assert_eq!(stage.hall.timers.len(), 0);
    // It was hanging: its connections are there, and its report is late.
    assert_eq!(stage.say(A, &succeeded(DRV)), []);
    assert_eq!(stage.say(A, r#"(worker-request-work "w")"#), []);
    assert_eq!(stage.say(B, &format!("(worker-ping {})", record("w")))[1..], [requested()]);
}

#[test]
fn a_worker_that_was_silent_and_waits_is_not_forgotten() {
    let mut stage = Stage::with_worker();
    stage.say(A, r#"(worker-request-work "w")"#);
    assert!(has_left(&stage.pass(120)));
    assert_eq!(stage.assign(7, DRV).unwrap_err().to_string(), "error not-found no worker w");
    // Its request was read long ago, and it waits for the answer.
    assert_eq!(stage.say(B, &format!("(worker-ping {})", record("w")))[1..], [requested()]);
    assert!(matches!(stage.assign(7, DRV).unwrap()[..], [Effect::Say(A, _)]));
}

#[test]
fn workers_are_bounded() {
    let mut stage = Stage::new();
    for n in 0..2048 {
        stage.open(Link(n));
        stage.say(Link(n), &format!("(worker-ready {})", record(&format!("w{n}"))));
    }
    stage.open(Link(5000));
    assert!(hung_up(&stage.say(Link(5000), &format!("(worker-ready {})", record("v")))));
    assert_eq!(stage.hall.workers().count(), 2048);
}

#[test]
fn failures_say_what_our_workers_know() {
    let mut stage = Stage::building();
    let report = Report::Failed { fault: "failed".to_owned(), why: None };
    assert_eq!(stage.say(A, &failed(DRV)), [reported(7, report)]);
    let mut stage = Stage::building();
    stage.say(A, &format!(r#"(build-fault (drv "{DRV}") (fault "timed-out") (why "after 5 s"))"#));
    let why = Some("after 5 s".to_owned());
    let report = Report::Failed { fault: "timed-out".to_owned(), why };
    assert_eq!(stage.say(A, &failed(DRV)), [reported(7, report)]);
    // A fault of another build says nothing of this one.
    let mut stage = Stage::building();
    stage.say(A, &format!(r#"(build-fault (drv "{OTHER}") (fault "timed-out") (why ""))"#));
    let report = Report::Failed { fault: "failed".to_owned(), why: None };
    assert_eq!(stage.say(A, &failed(DRV)), [reported(7, report)]);
}

#[test]
fn a_fault_outlives_its_connection() {
    let mut stage = Stage::building();
    stage.say(A, &format!(r#"(build-fault (drv "{DRV}") (fault "aborted") (why "no space"))"#));
    stage.close(A);
    let why = Some("no space".to_owned());
    let report = Report::Failed { fault: "aborted".to_owned(), why };
    let from = From { link: None, address: address() };
    assert_eq!(stage.say_from(from, &failed(DRV)), [reported(7, report)]);
}

#[test]
fn a_worker_that_only_pings_loses_its_build_a_day_after_its_time_limit() {
    let mut stage = Stage::building();
    let mut told = Vec::new();
    while lost(&told).is_empty() {
        stage.say(B, &format!("(worker-ping {})", record("w")));
        told = stage.pass(100);
    }
    assert_eq!(lost(&told), [(7, true)]);
    assert_eq!(stage.seconds, 72_000 + 24 * 3600);
}

#[test]
fn a_success_elsewhere_is_not_believed() {
    let mut stage = Stage::building();
    let text = succeeded(DRV).replace("10.0.0.2", "10.0.0.9");
    let told = stage.say(A, &text);
    let [Effect::Tell(Event::Reported { report: Report::Failed { fault, why }, .. })] = &told[..]
    else {
        panic!("{told:?}");
    };
    assert_eq!(fault, "aborted");
    assert!(why.as_ref().unwrap().contains("10.0.0.9"));
    // Nor is anything of this length one.
    let mut stage = Stage::building();
    let told = stage.say(A, &succeeded(DRV).replace(URL, &format!("{URL}/{}", "x".repeat(10_000))));
    let [Effect::Tell(Event::Reported { report: Report::Failed { why: Some(why), .. }, .. })] =
        &told[..]
    else {
        panic!("{told:?}");
    };
    assert!(why.len() < 400, "{why}");
}

#[test]
fn reports_are_those_of_the_worker_that_builds() {
    let mut stage = Stage::building();
    stage.open(Link(3));
    stage.say(Link(3), &format!("(worker-ready {})", record("other")));
    assert_eq!(stage.say(Link(3), &succeeded(DRV)), []);
    // Nor is another machine's word taken.
    let from = From { link: None, address: "10.0.0.3".parse().unwrap() };
    assert_eq!(stage.say_from(from, &failed(DRV)), []);
    assert_eq!(stage.phase(7), Some(Phase::Started));
    assert_eq!(stage.say(A, &succeeded(DRV)), [reported(7, success())]);
    assert_eq!(stage.say(A, &succeeded(DRV)), [], "once");
}

#[test]
fn a_report_of_a_connection_that_has_ended_counts() {
    let mut stage = Stage::building();
    stage.close(A);
    let from = From { link: None, address: address() };
    assert_eq!(stage.say_from(from, &succeeded(DRV)), [reported(7, success())]);
    assert_eq!(stage.say_from(from, r#"(worker-request-work "w")"#), []);
}

#[test]
fn a_canceled_build_is_stopped_where_that_can_be() {
    // Guile's goes on, and what it says is dropped.
    let mut stage = Stage::building();
    assert_eq!(stage.cancel(7), []);
    assert_eq!(stage.hall.standing().len(), 2, "the worker, and that is all");
    assert_eq!(stage.say(A, &succeeded(DRV)), []);
    assert_eq!(stage.hall.assignments.len(), 0);
    assert_eq!(stage.say(A, r#"(worker-request-work "w")"#), [requested()]);
    // Ours stops.
    let mut stage = Stage::building();
    let hello = stage.say(A, r#"(gorget-worker (version 1) (name "w"))"#);
    assert_eq!(hello, [Effect::Say(A, ToWorker::Gorget)]);
    let cancel = ToWorker::Cancel { derivation: DRV.to_owned() };
    assert_eq!(stage.cancel(7), [Effect::Say(A, cancel)]);
    assert_eq!(stage.cancel(7), [], "once");
    // The word may have been lost with the connection.
    stage.close(A);
    stage.open(Link(3));
    let said = stage.say(Link(3), r#"(gorget-worker (version 1) (name "w"))"#);
    let cancel = ToWorker::Cancel { derivation: DRV.to_owned() };
    assert_eq!(said, [Effect::Say(Link(3), ToWorker::Gorget), Effect::Say(Link(3), cancel)]);
    assert_eq!(stage.say(Link(3), &failed(DRV)), []);
    assert_eq!(stage.cancel(8), [], "none of that number");
    // A worker that is lost with it is told of alone.
    let mut stage = Stage::building();
    stage.cancel(7);
    stage.close(A);
    stage.close(B);
    let told = stage.pass(10);
    assert!(has_left(&told) && told.len() == 1);
    // What has ended is forgotten.
    let mut stage = Stage::building();
    stage.say(A, &succeeded(DRV));
    stage.cancel(7);
    assert_eq!(stage.hall.assignments.len(), 0);
}

#[test]
fn a_canceled_build_may_be_built_elsewhere_at_the_same_time() {
    let mut stage = Stage::building();
    stage.cancel(7);
    stage.open(Link(3));
    stage.say(Link(3), &format!("(worker-ready {})", record("v")));
    stage.say(Link(3), r#"(worker-request-work "v")"#);
    let again = Assign {
        of: of(8),
        worker: "v".to_owned(),
        derivation: DRV.to_owned(),
        system: "x86_64-linux".to_owned(),
        priority: 9,
        timeout: 0,
        max_silent_time: 0,
    };
    let now = stage.now();
    stage.hall.assign(now, again, &mut Vec::new()).unwrap();
    assert_eq!(stage.say(A, &succeeded(DRV)), [], "of the canceled one");
    stage.say(Link(3), &started(DRV).replace("\"w\"", "\"v\""));
    assert_eq!(stage.say(Link(3), &succeeded(DRV)), [reported(8, success())]);
}

#[test]
fn only_what_wants_work_is_assigned_and_only_what_ended_is_settled() {
    let mut stage = Stage::with_worker();
    let mut refused =
        |build, derivation: &str| stage.assign(build, derivation).unwrap_err().to_string();
    assert_eq!(refused(7, DRV), "error conflict worker w wants no work");
    assert!(refused(7, "/gnu/store/../x.drv").starts_with("error syntax assign: expected"));
    stage.say(A, r#"(worker-request-work "w")"#);
    stage.assign(7, DRV).unwrap();
    let again = stage.assign(7, DRV).unwrap_err().to_string();
    assert_eq!(again, "error conflict try 7 1 is assigned already");
    let early = stage.hall.settle(of(7)).unwrap_err().to_string();
    assert_eq!(early, "error conflict try 7 1 has not ended");
    assert_eq!(stage.hall.settle(of(9)), Ok(()));
    stage.close(A);
    stage.close(B);
    stage.pass(10);
    assert_eq!(stage.assign(8, DRV).unwrap_err().to_string(), "error not-found no worker w");
}

#[test]
fn nonsense_costs_its_sender_the_connection_and_nobody_else() {
    for text in [
        "(",
        "#<x>",
        &"(".repeat(10_000),
        "(worker-ready (worker (name \"w\") (address \"x\") (machine \"m\")))",
        "(worker-request-work)",
        "(worker-request-work \"../w\")",
        "(build-started (drv \"/gnu/store/../../x-y.drv\") (worker \"w\"))",
        "(build-succeeded (drv \"\") (url \"\"))",
    ] {
        let mut stage = Stage::building();
        stage.open(Link(3));
        assert!(hung_up(&stage.say(Link(3), text)), "{text:.40}");
        assert_eq!(stage.say(Link(3), "(worker-request-info)"), [], "nothing is listened to");
        assert_eq!(stage.close(Link(3)), []);
        assert_eq!(stage.say(A, &succeeded(DRV)), [reported(7, success())]);
    }
    // What is not known yet is no nonsense.
    let mut stage = Stage::with_worker();
    assert!(!hung_up(&stage.say(A, "(worker-dance 1)")));
    assert_eq!(stage.say(A, r#"(worker-request-work "w")"#), [requested()]);
    // Nor is a name taken twice.
    stage.hall.on_open(stage.now(), Link(3), "10.0.0.3".parse().unwrap());
    let from = From { link: Some(Link(3)), address: "10.0.0.3".parse().unwrap() };
    assert!(hung_up(&stage.say_from(from, &format!("(worker-ready {})", record("w")))));
    assert!(hung_up(&stage.say(A, r#"(worker-request-work "v")"#)));
}

#[test]
fn logs_come_from_the_worker_that_builds() {
    let mut stage = Stage::with_worker();
    stage.say(A, r#"(worker-request-work "w")"#);
    let mut out = Vec::new();
    assert_eq!(stage.hall.on_log(stage.now(), DRV, address(), &mut out), None);
    stage.assign(7, DRV).unwrap();
    assert_eq!(stage.hall.on_log(stage.now(), DRV, "10.0.0.3".parse().unwrap(), &mut out), None);
    assert_eq!(out, []);
    // It overtook the word that the build has begun.
    let permit = Permit { of: of(7), path: "/c/remote/7-1.gz".into() };
    assert_eq!(stage.hall.on_log(stage.now(), DRV, address(), &mut out), Some(permit));
    assert!(matches!(out[..], [Effect::Create(_), Effect::Tell(Event::Started { .. })]));
    assert_eq!(stage.say(A, &started(DRV)), []);
    assert_eq!(stage.hall.on_log(stage.now(), DRV, address(), &mut out), None, "one at a time");
    stage.hall.on_log_end(of(7));
    assert!(stage.hall.on_log(stage.now(), DRV, address(), &mut out).is_some());
    stage.hall.on_log_end(of(7));
    stage.say(A, &succeeded(DRV));
    assert_eq!(stage.hall.on_log(stage.now(), DRV, address(), &mut out), None);
}

#[test]
fn how_things_stand_is_told_in_order() {
    let mut stage = Stage::building();
    stage.open(Link(3));
    stage.say(Link(3), &format!("(worker-ready {})", record("v")));
    stage.say(Link(3), r#"(worker-request-work "v")"#);
    let standing = stage.hall.standing();
    let [
        Event::WorkerJoined { worker: v },
        Event::WorkerJoined { worker: w },
        Event::Requested { .. },
        Event::Assigned { assignment },
        Event::Ready,
    ] = &standing[..]
    else {
        panic!("{standing:?}");
    };
    assert_eq!((v.requesting, v.build), (true, None));
    assert_eq!((w.requesting, w.build), (false, Some(7)));
    assert_eq!((assignment.phase, assignment.worker.as_str()), (Phase::Started, "w"));
    assert_eq!(assignment.log.as_deref(), Some("/c/remote/7-1.gz"));
}
