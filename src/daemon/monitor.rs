//! Watches one jobset: decides *when* its channels are looked at and whether that leads to an evaluation.
//!
//! Invariant: at most one look or evaluation of a jobset is under way; what is asked for meanwhile coalesces
//! into one more look afterwards, so that the newest commit is always evaluated. It never fetches nor
//! evaluates itself, and lives only while its jobset is active or something of it is under way.

pub(super) mod core;

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, at, bounded, never, select_biased};

use self::core::{Core, Effect};
pub(super) use self::core::{Moment, decides_jobs, effective_period, fingerprint};
use super::evaluator::Answer;
use super::registry::Refusal;
use super::updater::Fetched;
use super::{evaluator, updater};
use crate::actor::{self, Ended, Gone, Spawner, Stop};
use crate::db::promises::{self, Promise, Promised};
use crate::db::{self, Database, Tx};
use crate::model::error::chain;
use crate::model::evaluation::{Checkout, EvaluationId};
use crate::model::spec::{JobsetName, Specification};
use crate::model::status::JobsetStatus;
use crate::model::time::Time;
use crate::sys::clock;

/// Requests that may wait: as many as the bridge has places, so that every client can have one here.
const INBOX: usize = 64;

/// Answers of the updater or evaluator under way: there is never more than one of the former, and three of the latter,
/// that an evaluation waits, begins and ended; the others are for those that a respawned sibling might still send.
const LANE: usize = 6;

/// How long what was asked for may take to be begun and promised: with the writer's verdict on top it is less than
/// the asker waits, who is then told that it was not done.
const ASKED: Duration = Duration::from_millis(3500);

/// Where an answer goes, and until when somebody waits for it.
#[derive(Debug)]
pub(super) struct Reply {
    lane: Sender<Result<(), Refusal>>,
    deadline: Instant,
}

impl Reply {
    pub(super) fn new(lane: Sender<Result<(), Refusal>>) -> Self {
        Self::within(lane, ASKED)
    }

    /// For what may take longer, and is waited for as long.
    pub(super) fn within(lane: Sender<Result<(), Refusal>>, time: Duration) -> Self {
        Self { lane, deadline: clock::now() + time }
    }

    /// How long what was asked for may still take; `None` when it is not to be done any more.
    pub(super) fn left(&self) -> Option<Duration> {
        let left = self.deadline.saturating_duration_since(clock::now());
        (!left.is_zero()).then_some(left)
    }

    /// The asker may have lost patience.
    pub(super) fn send(&self, answer: Result<(), Refusal>) {
        let _ = self.lane.try_send(answer);
    }
}

/// What the registry may ask of a monitor.
#[derive(Debug)]
pub(super) enum Message {
    Trigger(Reply),
    /// Evaluate these commits again.
    Retry(EvaluationId, Vec<Checkout>, Reply),
    Update(Box<Specification>),
    SetActive(bool),
}

impl Message {
    /// Whether whoever asked was told that it is not done: it has waited here behind a write.
    fn is_late(&self) -> bool {
        match self {
            Self::Trigger(reply) | Self::Retry(_, _, reply) => reply.left().is_none(),
            Self::Update(_) | Self::SetActive(_) => false,
        }
    }
}

/// What a monitor begins its life with.
pub(super) struct Seed {
    pub(super) specification: Specification,
    pub(super) active: bool,
    /// Fingerprint of the jobset's last evaluation, and whether it was interrupted.
    pub(super) last: Option<(String, bool)>,
    pub(super) fetch_error: Option<String>,
    pub(super) evaluation_error: Option<String>,
    /// Look at once, whatever the last evaluation was.
    pub(super) at_once: bool,
    pub(super) promised: Promised,
    /// The daemon's own period, for specifications that name none.
    pub(super) interval: Duration,
}

/// What a monitor tells the registry.
#[derive(Debug)]
pub(super) enum News {
    State(Report),
    Ended { name: JobsetName, generation: u64, ended: Ended },
}

/// How a monitor stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) name: JobsetName,
    /// Which monitor of that name: one that was replaced may still report.
    pub(super) generation: u64,
    pub(super) status: JobsetStatus,
    pub(super) next_poll: Option<Time>,
    pub(super) error: Option<String>,
    /// Newest first.
    pub(super) updates: Vec<Time>,
}

/// The actors below a monitor, and the lane to the one above.
#[derive(Clone)]
pub(super) struct Ports {
    pub(super) database: Database,
    pub(super) updater: updater::Handle,
    pub(super) evaluator: evaluator::Handle,
    pub(super) news: Sender<News>,
}

/// The registry's end. Dropping it ends the monitor, and leaves what is under way to itself.
pub(super) struct Handle {
    inbox: Sender<Message>,
}

/// Why a message was not taken.
pub(super) enum Untold {
    /// The monitor has ended; its registry will hear of it.
    Ended(Message),
    /// It is stuck behind a database that cannot be written.
    Full(Message),
}

impl Handle {
    /// Never blocks.
    pub(super) fn tell(&self, message: Message) -> Result<(), Untold> {
        self.inbox.try_send(message).map_err(|error| match error {
            TrySendError::Full(message) => Untold::Full(message),
            TrySendError::Disconnected(message) => Untold::Ended(message),
        })
    }
}

/// Starts the thread `monitor/NAME`.
pub(super) fn spawn(
    threads: &Spawner,
    seed: Seed,
    generation: u64,
    ports: &Ports,
) -> std::io::Result<Handle> {
    let (inbox, requests) = bounded(INBOX);
    let name = seed.specification.name.clone();
    let (news, ports) = (ports.news.clone(), ports.clone());
    let body_name = name.clone();
    threads.child(
        &format!("monitor/{name}"),
        move |stop| {
            let core = Core::new(moment(), seed);
            let (fetched, fetched_lane) = bounded(LANE);
            let (evaluated, evaluated_lane) = bounded(LANE);
            let lanes = Lanes { fetched, evaluated };
            let thread = Thread { name: body_name, generation, ports, lanes, told: None };
            run(thread, core, &requests, &fetched_lane, &evaluated_lane, &stop)
        },
        move |report| {
            // When the registry is gone the process is stopping, and nobody needs to know.
            let _ = news.send(News::Ended { name, generation, ended: report.ended });
        },
    )?;
    Ok(Handle { inbox })
}

fn moment() -> Moment {
    Moment { instant: clock::now(), wall: clock::wall() }
}

/// The senders handed out with requests.
struct Lanes {
    fetched: Sender<Fetched>,
    evaluated: Sender<Answer>,
}

/// What the loop needs beside its core.
struct Thread {
    name: JobsetName,
    generation: u64,
    ports: Ports,
    lanes: Lanes,
    /// What the registry was told last, with the next poll as the core has it.
    told: Option<(Report, Option<Instant>)>,
}

fn run(
    mut thread: Thread,
    mut core: Core,
    inbox: &Receiver<Message>,
    fetched: &Receiver<Fetched>,
    evaluated: &Receiver<Answer>,
    stop: &Stop,
) -> Result<(), Gone> {
    let mut out = Vec::new();
    thread.report(&core)?;
    loop {
        let timer = core.deadline().map_or_else(never, at);
        select_biased! {
            recv(stop) -> _ => return Ok(()),
            recv(evaluated) -> answer => core.on_answer(moment(), answer?, &mut out),
            recv(fetched) -> answer => core.on_fetched(moment(), answer?.result, &mut out),
            recv(inbox) -> message => {
                let message = message?;
                if !message.is_late() {
                    core.on_message(moment(), message, &mut out);
                }
            }
            recv(timer) -> _ => core.on_deadline(moment(), &mut out),
        }
        actor::fault("monitor");
        // The registry hears of it after the books and before whoever waits for an answer: nobody must see
        // an older state than the one that was answered.
        let (answers, work): (Vec<_>, Vec<_>) =
            out.drain(..).partition(|effect| matches!(effect, Effect::Answer(..)));
        // Promises first: what they are about is not begun when they cannot be made.
        let (promises, work): (Vec<_>, Vec<_>) =
            work.into_iter().partition(|effect| matches!(effect, Effect::Promise(_)));
        let (mut refusal, mut fetches) = (None, true);
        let left = answers.iter().filter_map(|effect| {
            let Effect::Answer(reply, _) = effect else { return None };
            Some(reply.left().unwrap_or_default())
        });
        let within = left.min().unwrap_or(ASKED);
        for effect in promises.into_iter().chain(work) {
            if matches!(effect, Effect::Fetch(_)) && !fetches {
                continue;
            }
            if let Err((promise, broken)) = thread.perform(effect, within)? {
                fetches &= !core.on_unpromised(promise);
                refusal = Some(broken);
            }
        }
        thread.report(&core)?;
        for effect in answers {
            if let Effect::Answer(reply, answer) = effect {
                let answer = answer.and_then(|()| refusal.clone().map_or(Ok(()), Err));
                reply.send(answer);
            }
        }
        if core.is_over() {
            return Ok(());
        }
    }
}

impl Thread {
    /// Tells the registry how things stand, if that is news.
    fn report(&mut self, core: &Core) -> Result<(), Gone> {
        let due = core.next_poll();
        let now = moment();
        let report = Report {
            name: self.name.clone(),
            generation: self.generation,
            status: core.status(),
            next_poll: due.map(|due| now.wall.after(due.saturating_duration_since(now.instant))),
            error: core.error().map(ToOwned::to_owned),
            updates: core.updates(),
        };
        let known = self.told.as_ref().is_some_and(|(told, told_due)| {
            let next_poll = told.next_poll; // Converting the same deadline twice may differ by a second.
            *told_due == due && *told == Report { next_poll, ..report.clone() }
        });
        if !known {
            self.told = Some((report.clone(), due));
            // The registry never waits for a monitor, so this is held up for a moment at most.
            self.ports.news.send(News::State(report))?;
        }
        Ok(())
    }

    /// The inner error: a promise that could not be recorded, and must not be made.
    fn perform(
        &self,
        effect: Effect,
        within: Duration,
    ) -> Result<Result<(), (Promise, Refusal)>, Gone> {
        match effect {
            Effect::Fetch(channels) => {
                self.ports.updater.fetch(&self.name, channels, self.lanes.fetched.clone())?;
            }
            Effect::Evaluate(request) => {
                self.ports.evaluator.evaluate(*request, self.lanes.evaluated.clone())?;
            }
            Effect::Withdraw => self.ports.evaluator.withdraw(&self.name)?,
            Effect::Checked(error) => self.checked(error),
            Effect::Cleared => self.record("clear an error", db::jobsets::clear_error),
            Effect::Promise(promise) => {
                return Ok(self.promise(promise, within).map_err(|refusal| (promise, refusal)));
            }
            Effect::Settle(promise) => {
                let name = self.name.clone();
                let settled = self
                    .ports
                    .database
                    .write("settle a promise", move |tx| promises::settle(tx, &name, promise));
                if let Err(error) = settled {
                    // It is kept once more by the next life.
                    log::debug!(target: "monitor", "jobset {}: {}", self.name, chain(&error));
                }
            }
            Effect::Answer(..) => {}
        }
        Ok(Ok(()))
    }

    fn promise(&self, promise: Promise, within: Duration) -> Result<(), Refusal> {
        let name = self.name.clone();
        let made = self
            .ports
            .database
            .write_within(within, "promise", move |tx| promises::make(tx, &name, promise));
        Ok(made?)
    }

    /// Records a look in the books.
    fn checked(&self, error: Option<String>) {
        if let Some(error) = &error {
            log::warn!(target: "monitor", "jobset {}: {error}", self.name);
        }
        self.record("look at channels", move |tx, name| {
            db::jobsets::checked(tx, name, error.as_deref())
        });
    }

    fn record(
        &self,
        what: &'static str,
        apply: impl Fn(&mut Tx<'_>, &JobsetName) -> Result<(), db::Error> + Send + 'static,
    ) {
        let name = self.name.clone();
        let written = self.ports.database.write(what, move |tx| apply(tx, &name));
        if let Err(error) = written {
            // A jobset deleted meanwhile, or a daemon about to end.
            log::debug!(target: "monitor", "jobset {}: cannot {what}: {error}", self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_waited_longer_than_its_asker_is_not_done() {
        let (lane, _answer) = bounded(1);
        let reply = Reply::new(lane);
        assert!(reply.left().is_some_and(|left| left <= ASKED && left < actor::PATIENCE));
        let late = Reply { deadline: clock::now(), ..reply };
        assert_eq!(late.left(), None);
        assert!(Message::Trigger(late).is_late());
        assert!(!Message::SetActive(true).is_late());
    }
}
