//! The decisions of a monitor: no thread, no clock, no I/O.
//!
//! Invariant: a trigger that was answered `Ok` is followed by a look that begins after it.

mod faults;
mod instances;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use self::faults::{Faults, backoff};
use self::instances::pinned;
pub(in crate::daemon) use self::instances::{decides_jobs, fingerprint};
use super::{Message, Reply, Seed};
use crate::daemon::evaluator::{Answer, Evaluated, Request};
use crate::daemon::registry::Refusal;
use crate::db::promises::Promise;
use crate::model::evaluation::{Checkout, Ending, EvaluationId};
use crate::model::spec::{Channel, Specification};
use crate::model::status::JobsetStatus;
use crate::model::time::Time;

/// How far back triggered updates count, and update times are remembered: Cuirass's window.
const WINDOW: Duration = Duration::from_secs(300);

/// Triggered updates allowed in a window: Cuirass's rate of 3 in 120 s.
const ALLOWED: usize = 8;

/// Update times remembered at most: looks of coalesced triggers have no rate of their own.
const REMEMBERED: usize = 64;

/// How long after an evaluation could not begin, because of a database that cannot be written say.
const HOLD: Duration = Duration::from_secs(30);

/// Retries that may wait: a person clicking; beyond this something is wrong.
const RETRIES: usize = 16;

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug)]
pub(in crate::daemon) struct Moment {
    pub(in crate::daemon) instant: Instant,
    pub(in crate::daemon) wall: Time,
}

/// What a monitor asks of others.
#[derive(Debug)]
pub(in crate::daemon) enum Effect {
    Fetch(Vec<Channel>),
    Evaluate(Box<Request>),
    /// Take back what was asked for of the evaluator, unless it has begun.
    Withdraw,
    /// Record a look: the error, if it did not work.
    Checked(Option<String>),
    /// Record that what kept an evaluation waiting is over.
    Cleared,
    /// Record what is to be answered `Ok`.
    Promise(Promise),
    /// It is done, or cannot be.
    Settle(Promise),
    Answer(Reply, Result<(), Refusal>),
}

/// An evaluation that a person wants repeated.
#[derive(Debug, PartialEq, Eq)]
struct Retry {
    id: EvaluationId,
    checkouts: Vec<Checkout>,
    /// Tries that faults here ended.
    tries: u32,
    due: Instant,
}

/// What is under way.
#[derive(Debug, PartialEq, Eq)]
enum Activity {
    Idle,
    /// A look at the channels; `stale` when the specification changed since, `asked` when it is more than a poll.
    Looking {
        stale: bool,
        asked: bool,
    },
    /// A fetch of the commits of an earlier evaluation.
    Retrying(Retry),
    Evaluating {
        fingerprint: String,
        retry: Option<Retry>,
    },
}

pub(in crate::daemon) struct Core {
    specification: Specification,
    interval: Duration,
    active: bool,
    activity: Activity,
    /// A trigger or a change of the specification came while something was under way.
    again: bool,
    /// Whether the books say that a look is wanted.
    promised: bool,
    retries: VecDeque<Retry>,
    /// Nothing begins before.
    held: Instant,
    /// The next poll; heeded only while nothing is under way, `None` while inactive.
    due: Option<Instant>,
    /// When the last look began.
    began: Option<Instant>,
    /// Wall-clock time of the decision that led to what is under way.
    decided: Time,
    /// When triggered updates began, oldest first, within the window.
    triggered: VecDeque<Instant>,
    /// When updates of any kind began, newest first.
    updates: VecDeque<Time>,
    last: Option<(String, bool)>,
    faults: Option<Faults>,
    /// Why the evaluation that was asked for does not begin.
    waiting: Option<String>,
    fetch_error: Option<String>,
    evaluation_error: Option<String>,
}

impl Core {
    pub(in crate::daemon) fn new(now: Moment, seed: Seed) -> Self {
        let mut core = Self {
            specification: seed.specification,
            interval: seed.interval,
            active: seed.active,
            activity: Activity::Idle,
            again: false,
            promised: seed.promised.look,
            retries: seed
                .promised
                .retries
                .into_iter()
                .map(|(id, checkouts)| Retry { id, checkouts, tries: 0, due: now.instant })
                .collect(),
            held: now.instant,
            due: None,
            began: None,
            decided: now.wall,
            triggered: VecDeque::new(),
            updates: VecDeque::new(),
            last: seed.last,
            faults: None,
            waiting: None,
            fetch_error: seed.fetch_error,
            evaluation_error: seed.evaluation_error,
        };
        let unfinished = core.last.as_ref().is_none_or(|(_, interrupted)| *interrupted);
        if core.active {
            core.again = seed.at_once || core.promised || unfinished;
            let delay = core.period().mul_f64(spread(core.specification.name.as_str()));
            core.due = Some(if core.again { now.instant } else { now.instant + delay });
        }
        core
    }

    /// When `on_deadline` is to be called.
    pub(in crate::daemon) fn deadline(&self) -> Option<Instant> {
        if self.activity != Activity::Idle {
            return None;
        }
        let retries = self.retries.iter().map(|retry| retry.due);
        let due = self.due.into_iter().chain(self.repetition()).chain(retries).min();
        due.map(|due| due.max(self.held))
    }

    pub(in crate::daemon) fn next_poll(&self) -> Option<Instant> {
        self.due
    }

    pub(in crate::daemon) fn status(&self) -> JobsetStatus {
        match self.activity {
            Activity::Looking { .. } | Activity::Retrying(_) => JobsetStatus::Fetching,
            Activity::Evaluating { .. } => JobsetStatus::Evaluating,
            // About to look: whoever waits for the outcome must not take this for rest.
            Activity::Idle if self.again => JobsetStatus::Fetching,
            Activity::Idle if self.retries.iter().any(|retry| retry.tries == 0) => {
                JobsetStatus::Fetching
            }
            Activity::Idle if self.active => JobsetStatus::Idle,
            Activity::Idle => JobsetStatus::Inactive,
        }
    }

    /// Why the last look or evaluation did not work.
    pub(in crate::daemon) fn error(&self) -> Option<&str> {
        let errors = [&self.fetch_error, &self.waiting, &self.evaluation_error];
        errors.into_iter().flatten().next().map(String::as_str)
    }

    pub(in crate::daemon) fn updates(&self) -> Vec<Time> {
        self.updates.iter().copied().collect()
    }

    /// Whether there is nothing left to live for.
    pub(in crate::daemon) fn is_over(&self) -> bool {
        !self.active && self.activity == Activity::Idle && self.retries.is_empty()
    }

    pub(in crate::daemon) fn on_message(
        &mut self,
        now: Moment,
        message: Message,
        out: &mut Vec<Effect>,
    ) {
        match message {
            Message::Trigger(reply) => {
                let answer = self.on_trigger(now, out);
                out.push(Effect::Answer(reply, answer));
            }
            Message::Retry(id, checkouts, reply) => {
                let retry = Retry { id, checkouts, tries: 0, due: now.instant };
                let answer = self.on_retry(now, retry, out);
                out.push(Effect::Answer(reply, answer));
            }
            Message::Update(specification) => self.on_update(now, *specification, out),
            Message::SetActive(active) => self.on_set_active(now, active, out),
        }
    }

    pub(in crate::daemon) fn on_deadline(&mut self, now: Moment, out: &mut Vec<Effect>) {
        self.settle(now, out);
    }

    /// A promise could not be recorded, and whoever asked is told so: asked again, it is to be made anew. True if the
    /// fetch that was asked for at the same time is not to be made.
    pub(in crate::daemon) fn on_unpromised(&mut self, promise: Promise) -> bool {
        let id = match promise {
            // A look more does no harm.
            Promise::Look => {
                self.promised = false;
                return false;
            }
            Promise::Retry(id) => id,
        };
        self.retries.retain(|waiting| waiting.id != id);
        let begun = matches!(&self.activity, Activity::Retrying(retry) if retry.id == id);
        if begun {
            self.activity = Activity::Idle;
        }
        begun
    }

    pub(in crate::daemon) fn on_fetched(
        &mut self,
        now: Moment,
        result: Result<Vec<Checkout>, String>,
        out: &mut Vec<Effect>,
    ) {
        let (retry, asked) = match std::mem::replace(&mut self.activity, Activity::Idle) {
            Activity::Retrying(retry) => (Some(retry), true),
            Activity::Looking { stale: false, asked } if self.active => (None, asked),
            // Answers about channels that are no longer watched, or of a jobset put to rest.
            Activity::Looking { .. } => return self.settle(now, out),
            other @ (Activity::Idle | Activity::Evaluating { .. }) => {
                self.activity = other;
                return;
            }
        };
        match result {
            Ok(checkouts) => {
                self.fetch_error = None;
                let fingerprint = fingerprint(&self.specification, &checkouts);
                if retry.is_some() || self.is_wanted(now, &fingerprint, asked) {
                    self.heed_faults(&fingerprint, retry.is_some(), asked);
                    out.push(Effect::Evaluate(Box::new(Request {
                        specification: self.specification.clone(),
                        fingerprint: fingerprint.clone(),
                        checkouts,
                        decided: self.decided,
                    })));
                    self.activity = Activity::Evaluating { fingerprint, retry };
                } else {
                    // What was to be repeated is no longer there.
                    self.faults.take_if(|faults| {
                        faults.fingerprint != fingerprint
                            || faults.due.is_some_and(|due| due <= now.instant)
                    });
                    self.keep_promise(out);
                }
                out.push(Effect::Checked(None));
            }
            Err(error) => {
                self.fetch_error = Some(error.clone());
                out.push(Effect::Checked(Some(error)));
                if let Some(Faults { due: Some(due), tries, .. }) = &mut self.faults {
                    // The look may have been for a repetition.
                    *due = (*due).max(now.instant + backoff(*tries));
                }
                match retry {
                    Some(retry) => self.keep_retry(&retry, out),
                    None => self.keep_promise(out),
                }
            }
        }
        self.settle(now, out);
    }

    pub(in crate::daemon) fn on_answer(
        &mut self,
        now: Moment,
        answer: Answer,
        out: &mut Vec<Effect>,
    ) {
        match answer {
            Answer::Waits(_, why) => {
                let error = format!("no space for an evaluation: {why}");
                self.waiting = Some(error.clone());
                out.push(Effect::Checked(Some(error)));
            }
            Answer::Room(_) => {
                self.waiting = None;
                out.push(Effect::Cleared);
            }
            Answer::Ended(evaluated) => self.on_evaluated(now, evaluated, out),
        }
    }

    fn on_evaluated(&mut self, now: Moment, answer: Evaluated, out: &mut Vec<Effect>) {
        if self.waiting.take().is_some() {
            out.push(Effect::Cleared);
        }
        let Activity::Evaluating { fingerprint, retry } = &mut self.activity else { return };
        let (fingerprint, retry) = (std::mem::take(fingerprint), retry.take());
        self.activity = Activity::Idle;
        if answer.evaluation.is_none() && retry.is_none() {
            self.faults = None;
        }
        match (answer.evaluation, answer.ending) {
            (Some(_), Ending::Aborted(why)) => {
                self.last = Some((fingerprint.clone(), true));
                self.evaluation_error = Some(why);
                self.on_fault(now, fingerprint, retry, out);
            }
            (Some(_), ending) => {
                let interrupted = ending == Ending::Interrupted;
                self.heed_faults(&fingerprint, retry.is_some(), true);
                self.last = Some((fingerprint, interrupted));
                match ending {
                    Ending::Succeeded => self.evaluation_error = None,
                    Ending::Failed(why) | Ending::Aborted(why) => self.evaluation_error = Some(why),
                    Ending::Canceled | Ending::Interrupted => {}
                }
                match retry {
                    Some(retry) if interrupted => self.put_off(now, retry),
                    Some(retry) => self.keep_retry(&retry, out),
                    None => self.keep_promise(out),
                }
            }
            (None, Ending::Failed(why) | Ending::Aborted(why)) => {
                let error = format!("an evaluation could not begin: {why}");
                self.evaluation_error = Some(error.clone());
                out.push(Effect::Checked(Some(error)));
                match retry {
                    Some(retry) => self.put_off(now, retry),
                    None if self.active => {
                        self.held = now.instant + HOLD;
                        (self.again, self.due) = (true, Some(now.instant));
                    }
                    None => {}
                }
            }
            // Put off, by a stop most likely: a later look finds the same difference again.
            (None, Ending::Interrupted) => {
                if let Some(retry) = retry {
                    self.put_off(now, retry);
                }
            }
            (None, Ending::Succeeded | Ending::Canceled) => {
                if let Some(retry) = retry {
                    self.keep_retry(&retry, out);
                }
            }
        }
        self.settle(now, out);
    }

    /// A look that was asked for has been made, unless another one was asked for since.
    fn keep_promise(&mut self, out: &mut Vec<Effect>) {
        if self.promised && !self.again {
            self.promised = false;
            out.push(Effect::Settle(Promise::Look));
        }
    }

    fn put_off(&mut self, now: Moment, retry: Retry) {
        self.held = now.instant + HOLD;
        self.retries.push_front(retry);
    }

    /// A retry has been made, or cannot be; unless the same was asked for once more.
    fn keep_retry(&self, retry: &Retry, out: &mut Vec<Effect>) {
        if self.retries.iter().all(|waiting| waiting.id != retry.id) {
            out.push(Effect::Settle(Promise::Retry(retry.id)));
        }
    }

    fn on_trigger(&mut self, now: Moment, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        if !self.active {
            let name = &self.specification.name;
            return Err(Refusal::Conflict(format!("jobset {name} is inactive")));
        }
        let age = |then: &Instant| now.instant.saturating_duration_since(*then);
        while self.triggered.front().is_some_and(|then| age(then) >= WINDOW) {
            self.triggered.pop_front();
        }
        if self.triggered.len() >= ALLOWED
            && let Some(oldest) = self.triggered.front()
        {
            let wait = WINDOW.saturating_sub(age(oldest));
            return Err(Refusal::RateLimited(wait.as_secs() + u64::from(wait.subsec_nanos() > 0)));
        }
        let coalesced = self.activity != Activity::Idle || self.again;
        if !coalesced {
            self.triggered.push_back(now.instant);
        }
        self.look_soon(now, out);
        if !self.promised {
            self.promised = true;
            out.push(Effect::Promise(Promise::Look));
        }
        Ok(())
    }

    fn on_retry(
        &mut self,
        now: Moment,
        retry: Retry,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        if let Some(waiting) = self.retries.iter_mut().find(|waiting| waiting.id == retry.id) {
            // Now, and not when a backoff is over.
            *waiting = retry;
        } else {
            if self.retries.len() >= RETRIES {
                return Err(Refusal::Conflict("too many retries wait already".to_owned()));
            }
            out.push(Effect::Promise(Promise::Retry(retry.id)));
            self.retries.push_back(retry);
        }
        if self.activity == Activity::Idle {
            self.settle(now, out);
        }
        Ok(())
    }

    fn on_update(&mut self, now: Moment, specification: Specification, out: &mut Vec<Effect>) {
        let differs = decides_jobs(&self.specification, &specification);
        self.specification = specification;
        if !self.active {
            return;
        }
        let latest = self.began.unwrap_or(now.instant) + self.period();
        // A first poll that was spread over the period stays where it is, if the new period allows it.
        let due =
            if self.began.is_some() { latest } else { self.due.unwrap_or(latest).min(latest) };
        self.due = Some(due);
        if differs {
            if let Activity::Looking { stale, .. } = &mut self.activity {
                *stale = true;
            }
            self.promised = true; // By the registry, with the specification.
            self.look_soon(now, out);
        }
    }

    fn on_set_active(&mut self, now: Moment, active: bool, out: &mut Vec<Effect>) {
        if active == self.active {
            return;
        }
        self.active = active;
        if active {
            self.due = Some(now.instant);
            self.promised = true; // By the registry, with the change.
            self.look_soon(now, out);
        } else {
            (self.due, self.again, self.faults) = (None, false, None);
            // Of what a person wants repeated nobody said that it is not to be.
            if matches!(self.activity, Activity::Evaluating { retry: None, .. }) {
                out.push(Effect::Withdraw);
            }
        }
    }

    /// A look now, or right after what is under way.
    fn look_soon(&mut self, now: Moment, out: &mut Vec<Effect>) {
        self.again = true;
        if self.activity == Activity::Idle {
            self.settle(now, out);
        }
    }

    /// Begins what is due, if nothing is under way.
    fn settle(&mut self, now: Moment, out: &mut Vec<Effect>) {
        if self.activity != Activity::Idle || now.instant < self.held {
            return;
        }
        let retry = self.retries.iter().position(|retry| retry.due <= now.instant);
        let mut looks = self.due.into_iter().chain(self.repetition());
        if let Some(retry) = retry.and_then(|first| self.retries.remove(first)) {
            out.push(Effect::Fetch(pinned(&self.specification, &retry.checkouts)));
            self.activity = Activity::Retrying(retry);
            self.decided = now.wall;
        } else if self.active && (self.again || looks.any(|due| due <= now.instant)) {
            self.activity = Activity::Looking { stale: false, asked: self.again };
            self.again = false;
            self.decided = now.wall;
            self.began = Some(now.instant);
            self.due = Some(now.instant + self.period());
            self.updates.retain(|then| then.until(now.wall) < WINDOW);
            self.updates.push_front(now.wall);
            self.updates.truncate(REMEMBERED);
            out.push(Effect::Fetch(self.specification.channels.clone()));
        }
    }

    fn period(&self) -> Duration {
        effective_period(&self.specification, self.interval)
    }
}

/// The period of a specification, or the daemon's own if it names none.
pub(in crate::daemon) fn effective_period(
    specification: &Specification,
    interval: Duration,
) -> Duration {
    if specification.period.is_zero() { interval } else { specification.period }
}

/// Where in the first period a jobset's first poll falls, 0 to 1: the same at every start, and as good as
/// random over many names.
fn spread(name: &str) -> f64 {
    let digest = Sha256::digest(name.as_bytes());
    let word = u16::from_be_bytes([digest[0], digest[1]]);
    f64::from(word) / f64::from(u16::MAX)
}

#[cfg(test)]
mod tests;
