//! The registry's decisions: which monitor runs, and what becomes of one that ends.

use crossbeam_channel::{Receiver, bounded};

use super::*;
use crate::model::evaluation::{Counts, EvaluationId};
use crate::model::spec::Evaluator;
use crate::model::status::EvaluationStatus;

#[expect(clippy::disallowed_methods, reason = "an instant to count from; nothing waits for it")]
fn start() -> Instant {
    Instant::now()
}

fn name(text: &str) -> JobsetName {
    JobsetName::new(text).unwrap()
}

fn specification(text: &str) -> Specification {
    Specification {
        name: name(text),
        channels: vec![],
        evaluator: Evaluator::Command(vec!["./jobs".to_owned()]),
        systems: vec![],
        build_outputs: vec![],
        notifications: vec![],
        period: Duration::ZERO,
        priority: 9,
        active: true,
        supersede: false,
        evaluation_timeout: Duration::from_secs(60),
    }
}

fn evaluation(jobset: &str) -> Evaluation {
    Evaluation {
        id: EvaluationId(1),
        jobset: name(jobset),
        status: EvaluationStatus::Succeeded,
        timestamp: Time(1),
        checkouttime: None,
        evaltime: None,
        checkouts: vec![],
        jobs: Counts::default(),
        error: None,
    }
}

/// Effects in short.
fn did(out: &mut Vec<Effect>) -> Vec<String> {
    let say = |effect: Effect| match effect {
        Effect::Spawn { specification, active, at_once, generation } => {
            let name = specification.name;
            format!("spawn {name} {generation} active={active} at_once={at_once}")
        }
        Effect::Tell(name, message) => {
            let message = format!("{message:?}");
            let end = message.find(|c: char| !c.is_alphanumeric()).unwrap_or(message.len());
            format!("tell {name} {}", &message[..end])
        }
        Effect::Drop(name) => format!("drop {name}"),
        Effect::Promise(name, reply) => {
            reply.send(Ok(()));
            format!("promise {name}")
        }
        Effect::Answer(reply, answer) => {
            reply.send(answer.clone());
            format!("answer {answer:?}")
        }
    };
    out.drain(..).map(say).collect()
}

fn begun() -> (Core, Instant, Vec<Effect>) {
    let (mut core, now, mut out) = (Core::new(Duration::from_secs(300)), start(), vec![]);
    core.load(specification("a"), true, None, false);
    core.load(specification("z"), false, Some("old".to_owned()), false);
    core.begin(now, &mut out);
    assert_eq!(did(&mut out), ["spawn a 1 active=true at_once=false"]);
    (core, now, out)
}

fn reply() -> (Reply, Receiver<Result<(), Refusal>>) {
    let (lane, answers) = bounded(1);
    (Reply::new(lane), answers)
}

#[test]
fn only_active_jobsets_have_monitors() {
    let (mut core, now, mut out) = begun();
    assert_eq!(core.set_active(now, &name("z"), true, &mut out), Ok(()));
    assert_eq!(did(&mut out), ["spawn z 2 active=true at_once=true"]);
    assert_eq!(core.set_active(now, &name("z"), false, &mut out), Ok(()));
    assert_eq!(did(&mut out), ["tell z SetActive"]);
    core.on_ended(now, &name("z"), 2, &Ended::Returned, &mut out);
    assert_eq!(did(&mut out), ["drop z"]);
    assert_eq!(core.states()[1].status, JobsetStatus::Inactive);
    let missing = core.set_active(now, &name("q"), true, &mut out);
    assert_eq!(missing, Err(Refusal::NotFound("jobset q".to_owned())));
}

#[test]
fn before_the_beginning_nothing_runs_and_a_change_is_remembered() {
    let (mut core, now, mut out) = (Core::new(Duration::from_secs(300)), start(), vec![]);
    core.load(specification("a"), true, None, false);
    core.load(specification("b"), true, None, false);
    let mut changed = specification("a");
    changed.systems = vec!["x86_64-linux".to_owned()];
    core.put(now, changed, true, &mut out);
    core.put(now, specification("b"), true, &mut out);
    core.put(now, specification("c"), true, &mut out);
    core.trigger(&name("a"), reply().0, &mut out);
    assert_eq!(out.len(), 1, "only the refusal of the trigger");
    out.clear();
    core.begin(now, &mut out);
    assert_eq!(
        did(&mut out),
        [
            "spawn a 1 active=true at_once=true",
            "spawn b 2 active=true at_once=false",
            "spawn c 3 active=true at_once=false",
        ]
    );
}

#[test]
fn triggers_go_to_the_monitor_or_are_made_good() {
    let (mut core, now, mut out) = begun();
    let (sender, _answer) = reply();
    core.trigger(&name("a"), sender, &mut out);
    assert_eq!(did(&mut out), ["tell a Trigger"]);
    for (jobset, refused) in [("z", "Conflict"), ("q", "NotFound")] {
        let (sender, answer) = reply();
        core.trigger(&name(jobset), sender, &mut out);
        did(&mut out);
        assert!(format!("{:?}", answer.try_recv().unwrap()).contains(refused));
    }
    core.on_ended(now, &name("a"), 1, &Ended::Panicked("x".to_owned()), &mut out);
    let (sender, answer) = reply();
    core.trigger(&name("a"), sender, &mut out);
    did(&mut out);
    assert_eq!(answer.try_recv(), Ok(Ok(())));
    core.on_deadline(now, &mut out);
    assert_eq!(did(&mut out), ["spawn a 2 active=true at_once=true"]);
}

#[test]
fn a_monitor_that_panics_again_and_again_comes_back_later_and_later() {
    let (mut core, mut now, mut out) = begun();
    let mut waits = vec![];
    for generation in 1..=12 {
        core.on_ended(now, &name("a"), generation, &Ended::Panicked("x".to_owned()), &mut out);
        let due = core.deadline().unwrap();
        waits.push((due - now).as_secs());
        now = due;
        core.on_deadline(now, &mut out);
    }
    assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
    now += TRUSTED;
    core.on_ended(now, &name("a"), 13, &Ended::Panicked("x".to_owned()), &mut out);
    assert_eq!(core.deadline(), Some(now), "it had lived long");
}

#[test]
fn late_reports_of_replaced_monitors_are_ignored() {
    let (mut core, now, mut out) = begun();
    let report = |generation, status| Report {
        name: name("a"),
        generation,
        status,
        next_poll: None,
        error: None,
        updates: vec![Time(1)],
    };
    core.on_report(report(1, JobsetStatus::Evaluating));
    assert_eq!(core.states()[0].status, JobsetStatus::Evaluating);
    assert_eq!(core.update_times(&name("a")), Some(vec![Time(1)]));
    core.remove(&name("a"), &mut out);
    core.put(now, specification("a"), true, &mut out);
    assert_eq!(did(&mut out), ["drop a", "spawn a 2 active=true at_once=false"]);
    core.on_report(report(1, JobsetStatus::Evaluating));
    assert_eq!(core.states()[0].status, JobsetStatus::Idle);
    core.on_ended(now, &name("a"), 1, &Ended::Returned, &mut out);
    assert!(did(&mut out).is_empty());
}

#[test]
fn a_retry_of_an_inactive_jobset_gets_a_monitor_of_its_own() {
    let (mut core, now, mut out) = begun();
    let (sender, _answer) = reply();
    core.retry(now, evaluation("z"), sender, &mut out);
    assert_eq!(did(&mut out), ["spawn z 2 active=false at_once=false", "tell z Retry"]);
}

#[test]
fn an_unchanged_specification_is_no_news_to_the_monitor() {
    let (mut core, now, mut out) = begun();
    core.put(now, specification("a"), true, &mut out);
    assert!(did(&mut out).is_empty());
    let mut changed = specification("a");
    changed.priority = 1;
    core.put(now, changed, true, &mut out);
    assert_eq!(did(&mut out), ["tell a Update"]);
    assert_eq!(core.states()[0].status, JobsetStatus::Idle, "the jobs are the same");
}
