//! The core by itself, then real evaluations of shell scripts.

mod whole;

use super::*;
use crate::model::spec::Evaluator;

fn name(name: &str) -> JobsetName {
    JobsetName::new(name).unwrap()
}

fn specification(jobset: &str, command: &[&str]) -> Specification {
    Specification {
        name: name(jobset),
        channels: Vec::new(),
        evaluator: Evaluator::Command(command.iter().map(|&word| word.to_owned()).collect()),
        systems: vec!["x86_64-linux".to_owned(), "aarch64-linux".to_owned()],
        build_outputs: Vec::new(),
        notifications: Vec::new(),
        period: Duration::ZERO,
        priority: 4,
        active: true,
        supersede: false,
        evaluation_timeout: Duration::from_secs(300),
    }
}

fn request(specification: Specification) -> Request {
    let fingerprint = "f".to_owned();
    Request { specification, fingerprint, checkouts: Vec::new(), decided: Time(1000) }
}

/// A core, the lane its answers come on, and what it asked for, in words.
struct Bench {
    core: Core,
    lane: Sender<Answer>,
}

impl Bench {
    fn new(max: usize) -> Self {
        Self { core: Core::new(max, false), lane: bounded(64).0 }
    }

    fn words(out: Vec<Effect>) -> Vec<String> {
        let word = |effect| match effect {
            Effect::Start(slot, request) => format!("start {slot} {}", request.specification.name),
            Effect::Cut(slot, cut) => format!("cut {slot} {cut:?}"),
            Effect::Answer(_, Answer::Waits(jobset, why)) => format!("{jobset} waits: {why}"),
            Effect::Answer(_, Answer::Room(jobset)) => format!("room {jobset}"),
            Effect::Answer(_, Answer::Ended(evaluated)) => {
                format!("answer {} {:?}", evaluated.jobset, evaluated.ending)
            }
        };
        let mut words: Vec<_> = out.into_iter().map(word).collect();
        // The running ones are in no order.
        words.sort();
        words
    }

    fn message(&mut self, message: Message) -> Vec<String> {
        let mut out = Vec::new();
        self.core.on_message(message, &mut out);
        Self::words(out)
    }

    fn evaluate(&mut self, jobset: &str) -> Vec<String> {
        let request = Box::new(request(specification(jobset, &["x"])));
        let lane = self.lane.clone();
        self.message(Message::Evaluate(request, lane))
    }

    fn cancel(&mut self, id: i64) -> (bool, Vec<String>) {
        let (reply, answer) = bounded(1);
        let words = self.message(Message::Cancel(EvaluationId(id), reply));
        (answer.try_recv().unwrap(), words)
    }

    fn counts(&mut self) -> Counts {
        let (reply, answer) = bounded(1);
        assert_eq!(self.message(Message::Counts(reply)), [""; 0]);
        answer.try_recv().unwrap()
    }

    fn ended(&mut self, slot: Slot, jobset: &str) -> Vec<String> {
        let mut out = Vec::new();
        let ending = Ending::Succeeded;
        let evaluated = Evaluated { jobset: name(jobset), evaluation: None, ending };
        self.core.on_ended(slot, evaluated, &mut out);
        Self::words(out)
    }
}

#[test]
fn requests_run_in_order_up_to_the_bound_and_one_of_a_jobset() {
    let mut bench = Bench::new(2);
    assert_eq!(bench.evaluate("a"), ["start 0 a"]);
    assert_eq!(bench.evaluate("a"), [""; 0]);
    assert_eq!(bench.evaluate("b"), ["start 1 b"]);
    assert_eq!(bench.evaluate("c"), [""; 0]);
    assert_eq!(bench.counts(), Counts { running: 2, waiting: 2 });
    assert_eq!(bench.ended(1, "b"), ["answer b Succeeded", "start 2 c"]);
    assert_eq!(bench.ended(0, "a"), ["answer a Succeeded", "start 3 a"]);
    assert_eq!(bench.counts(), Counts { running: 2, waiting: 0 });
    assert_eq!(bench.ended(2, "c"), ["answer c Succeeded"]);
    assert_eq!(bench.ended(2, "c"), [""; 0], "an end counts once");
    assert_eq!(bench.counts(), Counts { running: 1, waiting: 0 });
}

#[test]
fn a_running_evaluation_is_canceled_by_number() {
    let mut bench = Bench::new(2);
    bench.evaluate("a");
    assert_eq!(bench.cancel(7), (false, vec![]));
    bench.core.on_begun(0, EvaluationId(7));
    assert_eq!(bench.cancel(7), (true, vec!["cut 0 Canceled".to_owned()]));
    bench.ended(0, "a");
    assert_eq!(bench.cancel(7), (false, vec![]));
}

#[test]
fn canceling_a_jobset_also_answers_what_waits() {
    let mut bench = Bench::new(1);
    for jobset in ["a", "a", "b"] {
        bench.evaluate(jobset);
    }
    let words = bench.message(Message::CancelJobset(name("a")));
    assert_eq!(words, ["answer a Canceled", "cut 0 Canceled"]);
    assert_eq!(bench.ended(0, "a"), ["answer a Succeeded", "start 1 b"]);
}

#[test]
fn what_waits_of_a_jobset_is_taken_back_and_what_runs_goes_on() {
    let mut bench = Bench::new(1);
    for jobset in ["a", "a", "b"] {
        bench.evaluate(jobset);
    }
    assert_eq!(bench.message(Message::Withdraw(name("a"))), ["answer a Canceled"]);
    assert_eq!(bench.ended(0, "a"), ["answer a Succeeded", "start 1 b"]);
}

#[test]
fn none_starts_while_paused() {
    let mut bench = Bench::new(2);
    bench.evaluate("a");
    assert_eq!(bench.message(Message::Pause(true)), [""; 0]);
    assert_eq!(bench.evaluate("b"), [""; 0]);
    assert_eq!(bench.ended(0, "a"), ["answer a Succeeded"]);
    assert_eq!(bench.message(Message::Pause(false)), ["start 1 b"]);
}

#[test]
fn none_starts_without_room_and_whoever_asked_hears_of_it_once() {
    let mut bench = Bench::new(2);
    bench.evaluate("a");
    let space = |bench: &mut Bench, short| {
        let mut out = Vec::new();
        bench.core.on_space(short, &mut out);
        Bench::words(out)
    };
    assert_eq!(space(&mut bench, Some("full")), [""; 0], "what runs goes on");
    assert_eq!(bench.evaluate("b"), ["b waits: full"]);
    assert_eq!(space(&mut bench, Some("fuller")), [""; 0]);
    assert_eq!(bench.ended(0, "a"), ["answer a Succeeded"]);
    assert_eq!(space(&mut bench, None), ["room b", "start 1 b"]);
    assert_eq!(bench.evaluate("c"), ["start 2 c"]);
    // Whoever only waits for a slot does not wait for room; and when there is none again, hears of that again.
    assert_eq!(bench.evaluate("d"), [""; 0]);
    assert_eq!(space(&mut bench, Some("full")), ["d waits: full"]);
    assert_eq!(space(&mut bench, None), ["room d"]);
    assert_eq!(space(&mut bench, Some("full")), ["d waits: full"]);
}

#[test]
fn a_stop_interrupts_all() {
    let mut bench = Bench::new(2);
    for jobset in ["a", "b", "c"] {
        bench.evaluate(jobset);
    }
    let mut out = Vec::new();
    bench.core.on_stop(&mut out);
    let expected = ["answer c Interrupted", "cut 0 Interrupted", "cut 1 Interrupted"];
    assert_eq!(Bench::words(out), expected);
    assert_eq!(bench.ended(0, "a"), ["answer a Succeeded"]);
    assert_eq!(bench.evaluate("d"), [""; 0]);
}
