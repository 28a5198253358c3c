//! A monitor through polls, triggers and failures, its hours added up.

use crossbeam_channel::bounded;

use super::faults::BACKOFF;
use super::*;
use crate::db::promises::Promised;
use crate::model::spec::Reference;
use crate::model::spec::{Evaluator, JobsetName};

const PERIOD: Duration = Duration::from_secs(600);

/// A core with its clocks.
struct Bench {
    core: Core,
    now: Moment,
    out: Vec<Effect>,
    /// What `did` read of promises.
    promises: Vec<String>,
}

fn specification() -> Specification {
    Specification {
        name: JobsetName::new("hello").unwrap(),
        channels: vec![Channel {
            name: "hello".to_owned(),
            url: "/srv/hello".to_owned(),
            reference: Reference::Head,
            introduction: None,
        }],
        evaluator: Evaluator::Command(vec!["./jobs".to_owned()]),
        systems: vec!["x86_64-linux".to_owned()],
        build_outputs: vec![],
        notifications: vec![],
        period: PERIOD,
        priority: 9,
        active: true,
        supersede: false,
        evaluation_timeout: Duration::from_secs(60),
    }
}

fn checkout(commit: &str) -> Checkout {
    Checkout {
        channel: "hello".to_owned(),
        url: "/srv/hello".to_owned(),
        commit: commit.to_owned(),
        tree: "t".to_owned(),
        directory: "/cache/checkouts/x".into(),
    }
}

#[expect(clippy::disallowed_methods, reason = "an instant to count from; nothing waits for it")]
fn start() -> Moment {
    Moment { instant: Instant::now(), wall: Time(1_000_000) }
}

impl Bench {
    fn new(last: Option<(String, bool)>, active: bool) -> Self {
        Self::with(last, active, Promised::default())
    }

    fn with(last: Option<(String, bool)>, active: bool, promised: Promised) -> Self {
        let now = start();
        let seed = Seed {
            specification: specification(),
            active,
            last,
            fetch_error: None,
            evaluation_error: None,
            at_once: false,
            promised,
            interval: Duration::from_secs(300),
        };
        Self { core: Core::new(now, seed), now, out: vec![], promises: vec![] }
    }

    fn promises(&mut self) -> Vec<String> {
        self.did();
        std::mem::take(&mut self.promises)
    }

    /// A jobset whose commit `a` was evaluated already and whose first poll is over.
    fn settled() -> Self {
        let mut bench = Self::new(None, true);
        bench.run_deadline();
        bench.fetched(Ok("a"));
        bench.evaluated(Ending::Succeeded);
        bench.out.clear();
        bench
    }

    fn pass(&mut self, seconds: u64) {
        self.now.instant += Duration::from_secs(seconds);
        self.now.wall = self.now.wall.after(Duration::from_secs(seconds));
    }

    fn run_deadline(&mut self) {
        let due = self.core.deadline().unwrap();
        let passed = due.saturating_duration_since(self.now.instant);
        self.now.instant += passed;
        self.now.wall = self.now.wall.after(passed);
        self.core.on_deadline(self.now, &mut self.out);
    }

    fn fetched(&mut self, commit: Result<&str, &str>) {
        let result = commit.map(|c| vec![checkout(c)]).map_err(ToOwned::to_owned);
        self.core.on_fetched(self.now, result, &mut self.out);
    }

    fn evaluated(&mut self, ending: Ending) {
        self.answered(Some(EvaluationId(1)), ending);
    }

    fn answered(&mut self, evaluation: Option<EvaluationId>, ending: Ending) {
        let jobset = self.core.specification.name.clone();
        let answer = Answer::Ended(Evaluated { jobset, evaluation, ending });
        self.core.on_answer(self.now, answer, &mut self.out);
    }

    fn tell(&mut self, message: impl FnOnce(Reply) -> Message) -> Result<(), Refusal> {
        let (reply, _answer) = bounded(1);
        self.core.on_message(self.now, message(Reply::new(reply)), &mut self.out);
        let answer = self.out.iter().position(|e| matches!(e, Effect::Answer(..))).unwrap();
        let Effect::Answer(_, answer) = self.out.remove(answer) else { unreachable!() };
        answer
    }

    fn trigger(&mut self) -> Result<(), Refusal> {
        self.tell(Message::Trigger)
    }

    /// Of evaluation 1, which was of commit `a`.
    fn retry(&mut self) -> Result<(), Refusal> {
        self.tell(|reply| Message::Retry(EvaluationId(1), vec![checkout("a")], reply))
    }

    fn update(&mut self, change: impl FnOnce(&mut Specification)) {
        let mut specification = self.core.specification.clone();
        change(&mut specification);
        self.core.on_message(self.now, Message::Update(Box::new(specification)), &mut self.out);
    }

    /// What was asked for since the last call, in short.
    fn did(&mut self) -> Vec<String> {
        let promises = &mut self.promises;
        let say = |effect: Effect| match effect {
            Effect::Promise(promise) => {
                promises.push(format!("make {promise:?}"));
                None
            }
            Effect::Settle(promise) => {
                promises.push(format!("settle {promise:?}"));
                None
            }
            Effect::Fetch(channels) => Some(format!("fetch {:?}", channels[0].reference)),
            Effect::Evaluate(request) => Some(format!("evaluate {}", request.checkouts[0].commit)),
            Effect::Checked(None) => Some("checked".to_owned()),
            Effect::Checked(Some(error)) => Some(format!("error {error}")),
            Effect::Cleared => Some("cleared".to_owned()),
            Effect::Withdraw => Some("withdraw".to_owned()),
            Effect::Answer(..) => unreachable!(),
        };
        self.out.drain(..).filter_map(say).collect()
    }
}

#[test]
fn polls_on_its_period_and_evaluates_what_is_new() {
    let mut bench = Bench::new(None, true);
    assert_eq!(bench.core.status(), JobsetStatus::Fetching, "a look follows at once");
    bench.run_deadline();
    bench.fetched(Ok("a"));
    assert_eq!(bench.did(), ["fetch Head", "evaluate a", "checked"]);
    assert_eq!(bench.core.status(), JobsetStatus::Evaluating);
    bench.pass(30);
    bench.evaluated(Ending::Succeeded);
    assert_eq!(bench.core.status(), JobsetStatus::Idle);
    let began = bench.now;
    bench.run_deadline();
    assert_eq!(bench.now.instant - began.instant, PERIOD - Duration::from_secs(30));
    bench.fetched(Ok("a"));
    assert_eq!(bench.did(), ["fetch Head", "checked"], "nothing new, no evaluation");
    bench.run_deadline();
    bench.fetched(Ok("b"));
    assert_eq!(bench.did(), ["fetch Head", "evaluate b", "checked"]);
}

#[test]
fn the_first_poll_is_spread_unless_something_is_to_be_made_good() {
    let known = |interrupted| Some(("f".to_owned(), interrupted));
    let mut calm = Bench::new(known(false), true);
    let wait = calm.core.deadline().unwrap() - calm.now.instant;
    assert!(wait > Duration::ZERO && wait <= PERIOD);
    assert_eq!(calm.core.status(), JobsetStatus::Idle);
    calm.run_deadline();
    assert_eq!(calm.did(), ["fetch Head"]);
    for last in [None, known(true)] {
        let bench = Bench::new(last, true);
        assert_eq!(bench.core.deadline(), Some(bench.now.instant));
    }
    assert_eq!(Bench::new(None, false).core.deadline(), None);
    let spreads: Vec<_> = (0..100).map(|n| spread(&format!("jobset-{n}"))).collect();
    assert!(spreads.iter().filter(|s| **s < 0.5).count().abs_diff(50) < 20);
}

#[test]
fn messages_do_not_postpone_polls() {
    let mut bench = Bench::settled();
    let due = bench.core.deadline();
    for _ in 0..10 {
        bench.pass(10);
        bench.update(|s| s.priority = 3);
        assert_eq!(bench.core.deadline(), due);
    }
}

#[test]
fn triggers_meanwhile_coalesce_into_one_more_look() {
    let mut bench = Bench::settled();
    assert_eq!(bench.trigger(), Ok(()));
    for _ in 0..20 {
        assert_eq!(bench.trigger(), Ok(()));
    }
    bench.fetched(Ok("b"));
    assert_eq!(bench.trigger(), Ok(()));
    assert_eq!(bench.did(), ["fetch Head", "evaluate b", "checked"]);
    bench.evaluated(Ending::Succeeded);
    bench.fetched(Ok("c"));
    assert_eq!(bench.did(), ["fetch Head", "evaluate c", "checked"]);
    bench.evaluated(Ending::Succeeded);
    assert_eq!(bench.core.status(), JobsetStatus::Idle);
}

#[test]
fn triggered_updates_are_limited_and_polls_and_coalesced_triggers_are_not() {
    let mut bench = Bench::settled();
    for n in 1..=8 {
        assert_eq!(bench.trigger(), Ok(()));
        if n < 8 {
            assert_eq!(bench.trigger(), Ok(()), "coalesced");
            bench.fetched(Ok("a"));
        }
        bench.fetched(Ok("a"));
        bench.pass(10);
    }
    assert_eq!(bench.trigger(), Err(Refusal::RateLimited(220)));
    bench.pass(219);
    assert_eq!(bench.trigger(), Err(Refusal::RateLimited(1)));
    bench.pass(1);
    assert_eq!(bench.trigger(), Ok(()));
    bench.fetched(Ok("a"));
    assert_eq!(bench.trigger(), Err(Refusal::RateLimited(10)));
}

#[test]
fn an_interrupted_evaluation_is_repeated_and_a_canceled_one_is_not() {
    let mut bench = Bench::settled();
    for (ending, again) in [
        (Ending::Interrupted, true),
        (Ending::Canceled, false),
        (Ending::Failed("exit status 1".to_owned()), false),
    ] {
        bench.run_deadline();
        bench.fetched(Ok("b"));
        bench.update(|s| s.channels[0].reference = Reference::Tag(format!("{ending:?}")));
        bench.evaluated(ending.clone());
        bench.fetched(Ok("c"));
        bench.evaluated(ending);
        bench.did();
        bench.run_deadline();
        bench.fetched(Ok("c"));
        let evaluated = bench.did().contains(&"evaluate c".to_owned());
        assert_eq!(evaluated, again);
        if again {
            bench.evaluated(Ending::Succeeded);
        }
    }
    assert_eq!(bench.core.error(), Some("exit status 1"));
}

fn full() -> Ending {
    Ending::Aborted("disk full".to_owned())
}

#[test]
fn what_a_fault_here_ended_is_repeated_with_backoff_until_the_tries_are_spent() {
    let mut bench = Bench::settled();
    assert_eq!(bench.trigger(), Ok(()));
    bench.fetched(Ok("b"));
    bench.evaluated(full());
    bench.did();
    for wait in [60, 180, 540, 1620] {
        assert_eq!(bench.core.error(), Some("disk full"));
        assert_eq!(bench.core.status(), JobsetStatus::Idle);
        let since = bench.now.instant;
        loop {
            bench.run_deadline();
            assert_eq!(bench.did(), ["fetch Head"]);
            bench.fetched(Ok("b"));
            if bench.did() == ["evaluate b", "checked"] {
                break;
            }
        }
        assert_eq!(bench.now.instant - since, Duration::from_secs(wait), "polls do not hasten it");
        bench.evaluated(full());
    }
    for _ in 0..10 {
        bench.run_deadline();
        bench.fetched(Ok("b"));
        assert_eq!(bench.did(), ["fetch Head", "checked"], "it stays so");
    }
    assert_eq!(bench.core.error(), Some("disk full"));
    // Until somebody asks …
    assert_eq!(bench.trigger(), Ok(()));
    bench.fetched(Ok("b"));
    assert_eq!(bench.did(), ["fetch Head", "evaluate b", "checked"]);
    bench.evaluated(full());
    assert_eq!(bench.core.deadline(), Some(bench.now.instant + BACKOFF), "all tries again");
    // … or there is something else to evaluate.
    bench.run_deadline();
    bench.fetched(Ok("c"));
    assert_eq!(bench.did(), ["fetch Head", "evaluate c", "checked"]);
    bench.evaluated(Ending::Succeeded);
    assert_eq!(bench.core.error(), None);
    bench.run_deadline();
    bench.fetched(Ok("c"));
    assert_eq!(bench.did(), ["fetch Head", "checked"]);
}

#[test]
fn a_repetition_that_finds_no_channels_is_tried_again_later() {
    let mut bench = Bench::settled();
    bench.run_deadline();
    bench.fetched(Ok("b"));
    bench.evaluated(full());
    bench.run_deadline();
    bench.did();
    bench.fetched(Err("unreachable"));
    assert_eq!(bench.did(), ["error unreachable"]);
    assert_eq!(bench.core.deadline(), Some(bench.now.instant + BACKOFF));
    // A retry of others does not stand in for it.
    assert_eq!(bench.retry(), Ok(()));
    bench.fetched(Ok("a"));
    bench.evaluated(Ending::Succeeded);
    bench.did();
    assert_eq!(bench.core.deadline(), Some(bench.now.instant + BACKOFF));
    bench.run_deadline();
    bench.fetched(Ok("b"));
    assert_eq!(bench.did(), ["fetch Head", "evaluate b", "checked"]);
    // Nor is it repeated when it is no longer the newest.
    bench.evaluated(full());
    assert_eq!(bench.retry(), Ok(()));
    bench.fetched(Ok("a"));
    bench.evaluated(Ending::Succeeded);
    bench.run_deadline();
    bench.did();
    bench.fetched(Ok("a"));
    assert_eq!(bench.did(), ["checked"]);
    assert_eq!(bench.core.deadline(), Some(bench.now.instant + PERIOD));
}

#[test]
fn a_retry_that_a_fault_here_ended_is_repeated_beside_the_polls() {
    let mut bench = Bench::settled();
    assert_eq!(bench.retry(), Ok(()));
    bench.fetched(Ok("a"));
    bench.evaluated(full());
    bench.did();
    assert!(!bench.promises().contains(&"settle Retry(EvaluationId(1))".to_owned()));
    assert_eq!(bench.core.deadline(), Some(bench.now.instant + BACKOFF));
    // The newest commit is as good as any meanwhile.
    assert_eq!(bench.trigger(), Ok(()));
    bench.fetched(Ok("b"));
    bench.evaluated(Ending::Succeeded);
    bench.did();
    for wait in [60, 180, 540, 1620] {
        bench.core.due = None;
        let since = bench.now.instant;
        bench.run_deadline();
        assert_eq!(bench.now.instant - since, Duration::from_secs(wait));
        bench.fetched(Ok("a"));
        bench.evaluated(full());
        assert_eq!(bench.did(), ["fetch Commit(\"a\")", "evaluate a", "checked"]);
    }
    assert_eq!(bench.promises().last().unwrap(), "settle Retry(EvaluationId(1))");
    assert_eq!(bench.core.deadline(), None);
    // Asked for once more, it is made at once.
    assert_eq!(bench.retry(), Ok(()));
    bench.fetched(Ok("a"));
    bench.evaluated(full());
    assert_eq!(bench.retry(), Ok(()));
    bench.did();
    assert_eq!(bench.core.status(), JobsetStatus::Fetching);
}

#[test]
fn an_evaluation_that_waits_for_room_says_so_until_it_begins() {
    let mut bench = Bench::settled();
    bench.run_deadline();
    bench.fetched(Ok("b"));
    bench.did();
    let waits = || Answer::Waits(JobsetName::new("hello").unwrap(), "3 bytes free".to_owned());
    bench.core.on_answer(bench.now, waits(), &mut bench.out);
    let error = "no space for an evaluation: 3 bytes free";
    assert_eq!(bench.core.error(), Some(error));
    assert_eq!(bench.did(), [format!("error {error}")]);
    let room = Answer::Room(bench.core.specification.name.clone());
    bench.core.on_answer(bench.now, room, &mut bench.out);
    assert_eq!(bench.core.error(), None);
    assert_eq!(bench.did(), ["cleared"]);
    bench.core.on_answer(bench.now, waits(), &mut bench.out);
    bench.answered(None, Ending::Canceled);
    assert_eq!(bench.core.error(), None);
    assert_eq!(bench.did(), [format!("error {error}"), "cleared".to_owned()]);
}

#[test]
fn a_refused_evaluation_is_tried_at_the_next_period() {
    let mut bench = Bench::settled();
    bench.run_deadline();
    bench.fetched(Ok("b"));
    bench.answered(None, Ending::Interrupted);
    bench.did();
    assert!(bench.core.deadline().unwrap() > bench.now.instant);
    bench.run_deadline();
    bench.fetched(Ok("b"));
    assert_eq!(bench.did(), ["fetch Head", "evaluate b", "checked"]);
}

#[test]
fn an_evaluation_that_cannot_begin_is_said_and_tried_again() {
    let mut bench = Bench::settled();
    let said = "error an evaluation could not begin: disk full";
    assert_eq!(bench.trigger(), Ok(()));
    assert_eq!(bench.retry(), Ok(()));
    bench.fetched(Ok("b"));
    bench.did();
    bench.answered(None, full());
    assert_eq!(bench.did(), [said]);
    assert_eq!(bench.core.error(), Some("an evaluation could not begin: disk full"));
    assert_eq!(bench.core.status(), JobsetStatus::Fetching, "it is not over");
    let held = bench.now.instant;
    bench.run_deadline();
    assert_eq!(bench.now.instant - held, HOLD);
    bench.fetched(Ok("a"));
    assert_eq!(bench.did(), ["fetch Commit(\"a\")", "evaluate a", "checked"]);
    bench.answered(None, full());
    bench.run_deadline();
    bench.fetched(Ok("a"));
    assert_eq!(bench.did(), [said, "fetch Commit(\"a\")", "evaluate a", "checked"]);
    bench.evaluated(Ending::Succeeded);
    bench.fetched(Ok("b"));
    assert_eq!(bench.did(), ["fetch Head", "evaluate b", "checked"]);
    bench.evaluated(Ending::Succeeded);
    assert_eq!((bench.core.error(), bench.core.status()), (None, JobsetStatus::Idle));
}

#[test]
fn what_is_accepted_is_promised_until_it_is_done() {
    let mut bench = Bench::settled();
    assert_eq!(bench.trigger(), Ok(()));
    assert_eq!(bench.promises(), ["make Look"]);
    bench.fetched(Ok("b"));
    assert_eq!(bench.trigger(), Ok(()));
    bench.evaluated(Ending::Succeeded);
    assert!(bench.promises().is_empty(), "the second trigger is still to be heeded");
    bench.fetched(Err("no such branch"));
    assert_eq!(bench.promises(), ["settle Look"]);

    assert_eq!(bench.retry(), Ok(()));
    bench.fetched(Ok("a"));
    assert_eq!(bench.retry(), Ok(()));
    assert_eq!(bench.retry(), Ok(()));
    let make = "make Retry(EvaluationId(1))";
    assert_eq!(bench.promises(), [make, make], "one is under way, one waits");
    bench.evaluated(Ending::Succeeded);
    assert!(bench.promises().is_empty());
    bench.fetched(Err("no such commit"));
    assert_eq!(bench.promises(), ["settle Retry(EvaluationId(1))"]);
    for (evaluation, ending, settled) in [
        (None, Ending::Canceled, 1),
        (Some(EvaluationId(2)), Ending::Succeeded, 1),
        (Some(EvaluationId(2)), Ending::Interrupted, 0),
    ] {
        assert_eq!(bench.retry(), Ok(()));
        bench.fetched(Ok("a"));
        bench.promises();
        bench.answered(evaluation, ending);
        assert_eq!(bench.promises().len(), settled);
    }
    assert_eq!(
        bench.core.deadline(),
        Some(bench.now.instant + HOLD),
        "what was cut off is made good"
    );
}

#[test]
fn what_was_promised_in_an_earlier_life_is_done_at_once() {
    let known = Some(("f".to_owned(), false));
    let promised = Promised { look: true, retries: vec![(EvaluationId(1), vec![checkout("a")])] };
    let mut bench = Bench::with(known, true, promised);
    assert_eq!(bench.core.deadline(), Some(bench.now.instant));
    bench.run_deadline();
    bench.fetched(Ok("a"));
    bench.evaluated(Ending::Succeeded);
    bench.fetched(Err("unreachable"));
    let all = ["fetch Commit(\"a\")", "evaluate a", "checked", "fetch Head", "error unreachable"];
    assert_eq!(bench.did(), all);
    assert_eq!(bench.promises(), ["settle Retry(EvaluationId(1))", "settle Look"]);
}

#[test]
fn errors_are_shown_until_the_next_success() {
    let mut bench = Bench::settled();
    bench.run_deadline();
    bench.fetched(Err("no such branch"));
    assert_eq!(bench.did(), ["fetch Head", "error no such branch"]);
    assert_eq!(bench.core.error(), Some("no such branch"));
    assert_eq!(bench.core.status(), JobsetStatus::Idle);
    bench.run_deadline();
    bench.fetched(Ok("a"));
    assert_eq!(bench.core.error(), None);
}

#[test]
fn a_changed_specification_leads_to_a_look_and_makes_old_answers_stale() {
    let mut bench = Bench::settled();
    bench.update(|s| s.systems = vec!["aarch64-linux".to_owned()]);
    assert_eq!(bench.did(), ["fetch Head"]);
    bench.update(|s| s.channels[0].reference = Reference::Branch("next".to_owned()));
    bench.fetched(Ok("a"));
    assert_eq!(bench.did(), ["fetch Branch(\"next\")"], "the answer was about another branch");
    bench.fetched(Ok("a"));
    assert_eq!(bench.did(), ["evaluate a", "checked"], "same commit, other specification");
    bench.update(|s| s.evaluator = Evaluator::Command(vec!["./other".to_owned()]));
    assert!(bench.did().is_empty(), "not while one is under way");
    bench.evaluated(Ending::Succeeded);
    assert_eq!(bench.did(), ["fetch Branch(\"next\")"]);
}

#[test]
fn a_new_period_counts_from_the_last_look() {
    let mut bench = Bench::settled();
    bench.pass(100);
    bench.update(|s| s.period = Duration::from_secs(150));
    assert_eq!(bench.core.deadline(), Some(bench.now.instant + Duration::from_secs(50)));
    bench.update(|s| s.period = Duration::ZERO);
    assert_eq!(bench.core.deadline(), Some(bench.now.instant + Duration::from_secs(200)));
}

#[test]
fn retries_evaluate_the_same_commits_after_what_is_under_way() {
    let mut bench = Bench::settled();
    assert_eq!(bench.trigger(), Ok(()));
    assert_eq!(bench.retry(), Ok(()));
    bench.fetched(Ok("a"));
    assert_eq!(bench.did(), ["fetch Head", "checked", "fetch Commit(\"a\")"]);
    bench.fetched(Ok("a"));
    assert_eq!(bench.did(), ["evaluate a", "checked"]);
    bench.evaluated(Ending::Succeeded);
    assert_eq!(bench.core.status(), JobsetStatus::Idle);
}

#[test]
fn deactivating_lets_what_runs_finish() {
    let mut bench = Bench::settled();
    assert_eq!(bench.trigger(), Ok(()));
    bench.fetched(Ok("b"));
    bench.did();
    bench.core.on_message(bench.now, Message::SetActive(false), &mut bench.out);
    assert_eq!(bench.core.status(), JobsetStatus::Evaluating);
    assert!(!bench.core.is_over());
    assert!(matches!(bench.trigger(), Err(Refusal::Conflict(_))));
    assert_eq!(bench.did(), ["withdraw"], "unless it has begun");
    bench.evaluated(Ending::Succeeded);
    assert!(bench.did().is_empty());
    assert!(bench.core.is_over());
    bench.core.on_message(bench.now, Message::SetActive(true), &mut bench.out);
    assert_eq!(bench.did(), ["fetch Head"]);
    bench.core.on_message(bench.now, Message::SetActive(false), &mut bench.out);
    bench.fetched(Ok("c"));
    assert!(bench.did().is_empty(), "an inactive jobset begins no evaluation");
}

#[test]
fn update_times_are_newest_first_and_forgotten_after_the_window() {
    let mut bench = Bench::settled();
    let first = bench.core.updates()[0];
    bench.pass(100);
    assert_eq!(bench.trigger(), Ok(()));
    let second = Time(first.0 + 100);
    assert_eq!(bench.core.updates(), [second, first]);
    bench.fetched(Ok("a"));
    bench.pass(250);
    assert_eq!(bench.trigger(), Ok(()));
    assert_eq!(bench.core.updates(), [Time(first.0 + 350), second]);
}

#[test]
fn a_promise_that_was_not_recorded_is_made_anew() {
    let mut bench = Bench::settled();
    let made = |bench: &mut Bench, promise| {
        let count = bench.out.iter().filter(|e| matches!(e, Effect::Promise(p) if *p == promise));
        let count = count.count();
        bench.out.clear();
        count
    };
    bench.trigger().unwrap();
    assert_eq!(made(&mut bench, Promise::Look), 1);
    bench.trigger().unwrap();
    assert_eq!(made(&mut bench, Promise::Look), 0, "the books have it");
    bench.core.on_unpromised(Promise::Look);
    bench.trigger().unwrap();
    assert_eq!(made(&mut bench, Promise::Look), 1);
    // The look under way goes on; the retry waits for it.
    let retry = Promise::Retry(EvaluationId(1));
    let ask = |reply| Message::Retry(EvaluationId(1), vec![checkout("a")], reply);
    bench.tell(ask).unwrap();
    assert_eq!(made(&mut bench, retry), 1);
    assert!(!bench.core.on_unpromised(retry), "it had not begun");
    bench.tell(ask).unwrap();
    assert_eq!(made(&mut bench, retry), 1);
    // One that begins at once does not, when whoever asked is told that it does not.
    let mut idle = Bench::settled();
    idle.tell(ask).unwrap();
    assert!(idle.core.on_unpromised(retry));
    assert_eq!(idle.core.status(), JobsetStatus::Idle);
    idle.fetched(Ok("a"));
    assert!(!idle.did().iter().any(|effect| effect.starts_with("evaluate")));
}
