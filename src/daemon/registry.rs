//! Owner of the monitors: which jobsets there are, which are active, and how each stands.
//!
//! Invariant: the registry never waits for a monitor. It tells with room or not at all, and monitors push
//! their state upwards, so that it answers from memory. A monitor that ends badly comes back, and looks at
//! once, which makes good whatever was asked of the one before.

mod core;

use std::collections::HashMap;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, at, bounded, never, select_biased};

use self::core::{Core, Effect};
use super::monitor::{self, Message as MonitorMessage, News, Reply, Seed, Untold};
use super::{builder, evaluator, updater};
use crate::actor::{self, Ended, Gone, PATIENCE, Spawner, Stop, ask};
use crate::db::promises::{self, Promise};
use crate::db::{self, Database, Reader};
use crate::model::error::chain;
use crate::model::evaluation::{Evaluation, EvaluationId};
use crate::model::spec::{JobsetName, Specification};
use crate::model::status::{EvaluationStatus, JobsetStatus};
use crate::model::time::Time;
use crate::spec;
use crate::sys::clock;

/// Requests that may wait: one for each place of the bridge.
const INBOX: usize = 64;

/// News of monitors that may wait. A thousand of them report at once at start-up; those beyond this wait for
/// a moment, as nothing the registry waits for waits for a monitor.
const NEWS: usize = 1024;

/// How long a write may take before the asker is told so: less than askers' own patience.
const WRITING: Duration = Duration::from_secs(4);

/// Likewise for deleting a jobset, which cancels what waits for it: there may be 100,000 builds, on a slow machine.
const DELETING: Duration = Duration::from_secs(30);

/// Why a request could not be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There is no such jobset.
    NotFound(String),
    Conflict(String),
    /// Retry in this many seconds.
    RateLimited(u64),
    Unavailable(String),
    /// Something broke on our side.
    Internal(String),
}

impl From<db::Error> for Refusal {
    fn from(error: db::Error) -> Self {
        match error {
            db::Error::NotFound(what) => Self::NotFound(what),
            db::Error::Conflict(why) => Self::Conflict(why),
            db::Error::Unavailable(why) => Self::Unavailable(why),
            error @ (db::Error::Sqlite(_)
            | db::Error::Open(..)
            | db::Error::Io(..)
            | db::Error::Newer { .. }
            | db::Error::Interrupted
            | db::Error::Corrupt(_)) => Self::Internal(chain(&error)),
        }
    }
}

impl From<Gone> for Refusal {
    fn from(gone: Gone) -> Self {
        Self::Unavailable(gone.to_string())
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotFound(what) => write!(f, "there is no {what}"),
            Self::RateLimited(seconds) => write!(f, "retry in {seconds} s"),
            Self::Conflict(why) | Self::Unavailable(why) | Self::Internal(why) => f.write_str(why),
        }
    }
}

/// What a monitor says of itself.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) specification: Specification,
    pub(crate) active: bool,
    pub(crate) status: JobsetStatus,
    pub(crate) next_poll: Option<Time>,
    /// The effective period.
    pub(crate) period: Duration,
    pub(crate) error: Option<String>,
}

enum Message {
    Begin,
    Trigger(JobsetName, Reply),
    Put(Vec<Specification>, Reply),
    Refresh(JobsetName, Reply),
    SetActive(JobsetName, bool, Reply),
    Delete(JobsetName, Reply),
    Retry(Box<Evaluation>, Reply),
    UpdateTimes(JobsetName, Sender<Option<Vec<Time>>>),
    States(Sender<Vec<State>>),
}

impl Message {
    /// How long it may still take; `None` if it has waited behind a write until whoever asked was told that it is not
    /// done.
    fn left(&self) -> Option<Duration> {
        match self {
            Self::Trigger(_, reply)
            | Self::Put(_, reply)
            | Self::Refresh(_, reply)
            | Self::SetActive(_, _, reply)
            | Self::Delete(_, reply)
            | Self::Retry(_, reply) => reply.left(),
            Self::Begin | Self::UpdateTimes(..) | Self::States(_) => Some(WRITING),
        }
    }
}

#[derive(Clone)]
pub(crate) struct Handle {
    inbox: Sender<Message>,
}

impl Handle {
    /// Lets the monitors run: called once, when everything else does.
    pub(crate) fn begin(&self) -> Result<(), Gone> {
        Ok(self.inbox.send(Message::Begin)?)
    }

    /// Trigger of a jobset: `Ok` once it is certain that a look follows.
    pub(crate) fn trigger(&self, name: &JobsetName) -> Result<Result<(), Refusal>, Gone> {
        ask(&self.inbox, |reply| Message::Trigger(name.clone(), Reply::new(reply)))
    }

    /// Writes the specifications to the database and registers or updates their monitors: all or nothing.
    pub(crate) fn put(
        &self,
        specifications: Vec<Specification>,
    ) -> Result<Result<(), Refusal>, Gone> {
        ask(&self.inbox, |reply| Message::Put(specifications, Reply::new(reply)))
    }

    /// Reads the jobset from the database again.
    pub(crate) fn refresh(&self, name: &JobsetName) -> Result<Result<(), Refusal>, Gone> {
        ask(&self.inbox, |reply| Message::Refresh(name.clone(), Reply::new(reply)))
    }

    pub(crate) fn set_active(
        &self,
        name: &JobsetName,
        active: bool,
    ) -> Result<Result<(), Refusal>, Gone> {
        ask(&self.inbox, |reply| Message::SetActive(name.clone(), active, Reply::new(reply)))
    }

    pub(crate) fn delete(&self, name: &JobsetName) -> Result<Result<(), Refusal>, Gone> {
        let (lane, answer) = bounded(1);
        let reply = Reply::within(lane, DELETING);
        self.inbox.send_timeout(Message::Delete(name.clone(), reply), PATIENCE)?;
        Ok(answer.recv_timeout(DELETING + PATIENCE)?)
    }

    /// Evaluates the same commits again, now.
    pub(crate) fn retry(&self, evaluation: Evaluation) -> Result<Result<(), Refusal>, Gone> {
        ask(&self.inbox, |reply| Message::Retry(Box::new(evaluation), Reply::new(reply)))
    }

    /// Times of past updates, newest first; `None` for an unknown jobset.
    pub(crate) fn update_times(&self, name: &JobsetName) -> Result<Option<Vec<Time>>, Gone> {
        ask(&self.inbox, |reply| Message::UpdateTimes(name.clone(), reply))
    }

    /// All jobsets, in the order of names.
    pub(crate) fn states(&self) -> Result<Vec<State>, Gone> {
        ask(&self.inbox, Message::States)
    }
}

/// The actors below.
#[derive(Clone)]
pub(crate) struct Ports {
    pub(crate) database: Database,
    pub(crate) updater: updater::Handle,
    pub(crate) evaluator: evaluator::Handle,
    pub(crate) builder: builder::Handle,
    /// Evaluations that are to be made again for builds, as is promised.
    pub(crate) repeats: Receiver<EvaluationId>,
}

/// Why the registry did not start.
#[derive(Debug)]
pub(crate) enum Error {
    Database(db::Error),
    Thread(std::io::Error),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Database(_) => "cannot read the jobsets",
            Self::Thread(_) => "cannot start the registry",
        })
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Database(error) => Some(error),
            Self::Thread(error) => Some(error),
        }
    }
}

/// Reads the jobsets and starts the thread `registry`; monitors wait for `Handle::begin`.
pub(crate) fn spawn(threads: &Spawner, ports: Ports, interval: Duration) -> Result<Handle, Error> {
    let reader = ports.database.reader().map_err(Error::Database)?;
    let mut core = Core::new(interval);
    for jobset in db::jobsets::list(&reader).map_err(Error::Database)? {
        if let Some(specification) = read_back(&jobset.name, &jobset.specification) {
            let promised = promises::of(&reader, &jobset.name).map_err(Error::Database)?;
            core.load(specification, jobset.active, jobset.error, !promised.retries.is_empty());
        }
    }
    let (inbox, requests) = bounded(INBOX);
    let (news, news_lane) = bounded(NEWS);
    let below = monitor::Ports {
        database: ports.database.clone(),
        updater: ports.updater.clone(),
        evaluator: ports.evaluator.clone(),
        news,
    };
    let monitors = HashMap::new();
    let own = threads.clone();
    let thread = Thread { core, ports, below, reader, threads: own, interval, monitors };
    threads
        .essential("registry", move |stop| run(thread, &requests, &news_lane, &stop))
        .map_err(Error::Thread)?;
    Ok(Handle { inbox })
}

/// A specification as it was printed into the books.
fn read_back(name: &JobsetName, text: &str) -> Option<Specification> {
    let read = spec::json::parse(text).map(|specifications| specifications.into_iter().next());
    match read {
        Ok(Some(specification)) if specification.name == *name => Some(specification),
        Ok(_) => {
            log::error!(target: "registry", "jobset {name}: its specification in the database is of another");
            None
        }
        Err(error) => {
            log::error!(target: "registry", "jobset {name}: its specification in the database: {error}");
            None
        }
    }
}

struct Thread {
    core: Core,
    ports: Ports,
    /// What monitors get.
    below: monitor::Ports,
    reader: Reader,
    threads: Spawner,
    interval: Duration,
    monitors: HashMap<JobsetName, monitor::Handle>,
}

fn run(
    mut thread: Thread,
    inbox: &Receiver<Message>,
    news: &Receiver<News>,
    stop: &Stop,
) -> Result<(), Gone> {
    let mut out = Vec::new();
    loop {
        let timer = thread.core.deadline().map_or_else(never, at);
        select_biased! {
            recv(stop) -> _ => return Ok(()),
            recv(news) -> news => match news? {
                News::State(report) => thread.core.on_report(report),
                News::Ended { name, generation, ended } => {
                    thread.core.on_ended(clock::now(), &name, generation, &ended, &mut out);
                }
            },
            recv(inbox) -> message => thread.on_message(message?, &mut out),
            recv(thread.ports.repeats) -> id => thread.repeat(id?, &mut out),
            recv(timer) -> _ => thread.core.on_deadline(clock::now(), &mut out),
        }
        actor::fault("registry");
        while !out.is_empty() {
            for effect in std::mem::take(&mut out) {
                thread.perform(effect, &mut out);
            }
        }
    }
}

impl Thread {
    fn on_message(&mut self, message: Message, out: &mut Vec<Effect>) {
        let Some(within) = message.left() else { return };
        let now = clock::now();
        match message {
            Message::Begin => self.core.begin(now, out),
            Message::Trigger(name, reply) => self.core.trigger(&name, reply, out),
            Message::Put(specifications, reply) => {
                let answer = self.put(specifications, within, out);
                out.push(Effect::Answer(reply, answer));
            }
            Message::Refresh(name, reply) => {
                let answer = self.refresh(&name, out);
                out.push(Effect::Answer(reply, answer));
            }
            Message::SetActive(name, active, reply) => {
                let answer = self.set_active(&name, active, within, out);
                out.push(Effect::Answer(reply, answer));
            }
            Message::Delete(name, reply) => {
                let answer = self.delete(&name, within, out);
                out.push(Effect::Answer(reply, answer));
            }
            Message::Retry(evaluation, reply) => {
                if evaluation.status == EvaluationStatus::Started {
                    let refusal =
                        Refusal::Conflict(format!("evaluation {} is running", evaluation.id));
                    out.push(Effect::Answer(reply, Err(refusal)));
                } else {
                    self.core.retry(now, *evaluation, reply, out);
                }
            }
            // Who asked may have lost patience.
            Message::UpdateTimes(name, reply) => drop(reply.send(self.core.update_times(&name))),
            Message::States(reply) => drop(reply.send(self.core.states())),
        }
    }

    /// For a build whose derivation is gone from its store.
    fn repeat(&mut self, id: EvaluationId, out: &mut Vec<Effect>) {
        match db::evaluations::get(&self.reader, id) {
            Ok(Some(evaluation)) => {
                log::info!(target: "registry", "evaluation {id} is repeated: derivations of its builds are gone from the store");
                // Refused, it stays promised, and nobody asks.
                let (lane, _) = bounded(1);
                self.core.retry(clock::now(), evaluation, Reply::new(lane), out);
            }
            Ok(None) => {}
            Err(error) => {
                log::warn!(target: "registry", "evaluation {id} is repeated at the next start: {}", chain(&error));
            }
        }
    }

    fn put(
        &mut self,
        specifications: Vec<Specification>,
        within: Duration,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let rows: Vec<_> = specifications
            .iter()
            .map(|s| (s.name.clone(), spec::json::print(s), s.active, self.core.differs(s)))
            .collect();
        let active = self.ports.database.write_within(within, "put jobsets", move |tx| {
            let mut active = Vec::with_capacity(rows.len());
            for (name, text, wanted, differs) in &rows {
                db::jobsets::put(tx, name, text, *wanted)?;
                if *differs {
                    promises::make(tx, name, Promise::Look)?;
                }
                // Of a jobset known before, what it was stays.
                active.push(db::jobsets::get(tx.conn, name)?.is_some_and(|jobset| jobset.active));
            }
            Ok(active)
        })?;
        for (specification, active) in specifications.into_iter().zip(active) {
            if !specification.build_outputs.is_empty() {
                self.ports.builder.specified(&specification.name);
            }
            self.core.put(clock::now(), specification, active, out);
        }
        Ok(())
    }

    fn refresh(&mut self, name: &JobsetName, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        let Some(jobset) = db::jobsets::get(&self.reader, name)? else {
            self.core.remove(name, out);
            return Err(Refusal::NotFound(format!("jobset {name}")));
        };
        let specification = read_back(name, &jobset.specification).ok_or_else(|| {
            Refusal::Internal(format!("the database holds a bad specification of jobset {name}"))
        })?;
        self.core.put(clock::now(), specification, jobset.active, out);
        Ok(())
    }

    fn set_active(
        &mut self,
        name: &JobsetName,
        active: bool,
        within: Duration,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let written = name.clone();
        self.ports.database.write_within(within, "set a jobset active", move |tx| {
            db::jobsets::set_active(tx, &written, active)?;
            if active { promises::make(tx, &written, Promise::Look) } else { Ok(()) }
        })?;
        self.core.set_active(clock::now(), name, active, out)
    }

    fn delete(
        &mut self,
        name: &JobsetName,
        within: Duration,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let deleted = name.clone();
        let delete = move |tx: &mut db::Tx<'_>| db::jobsets::delete(tx, &deleted);
        let changes = match self.ports.database.write_within(within, "delete a jobset", delete) {
            Ok(changes) => Ok(changes),
            // What the books do not know must not be watched either.
            Err(db::Error::NotFound(what)) => Err(Refusal::NotFound(what)),
            Err(error) => return Err(error.into()),
        };
        self.core.remove(name, out);
        // Neither is kept from hearing of it by the other's not listening.
        let canceled = self.ports.evaluator.cancel_jobset(name);
        self.ports.builder.changed(changes?)?;
        Ok(canceled?)
    }

    fn perform(&mut self, effect: Effect, out: &mut Vec<Effect>) {
        match effect {
            Effect::Spawn { specification, active, at_once, generation } => {
                let name = specification.name.clone();
                match self.start(*specification, active, at_once, generation) {
                    Ok(handle) => drop(self.monitors.insert(name, handle)),
                    Err(why) => {
                        log::error!(target: "registry", "cannot start the monitor of jobset {name}: {why}");
                        let ended = Ended::Returned;
                        self.core.on_ended(clock::now(), &name, generation, &ended, out);
                    }
                }
            }
            Effect::Tell(name, message) => self.tell(&name, message, out),
            Effect::Drop(name) => drop(self.monitors.remove(&name)),
            Effect::Promise(name, reply) => reply.send(self.promise(&name)),
            Effect::Answer(reply, answer) => reply.send(answer),
        }
    }

    /// A look of the monitor to come.
    fn promise(&self, name: &JobsetName) -> Result<(), Refusal> {
        let name = name.clone();
        let made = self.ports.database.write_within(WRITING, "promise a look", move |tx| {
            promises::make(tx, &name, Promise::Look)
        });
        Ok(made?)
    }

    fn tell(&mut self, name: &JobsetName, message: MonitorMessage, out: &mut Vec<Effect>) {
        let told = match self.monitors.get(name) {
            Some(handle) => handle.tell(message),
            None => Err(Untold::Ended(message)),
        };
        match told {
            Ok(()) => {}
            // Its end is on the way here, and the next one of an active jobset looks at once.
            Err(Untold::Ended(MonitorMessage::Trigger(reply))) => {
                reply.send(self.promise(name));
            }
            Err(Untold::Ended(MonitorMessage::Update(_) | MonitorMessage::SetActive(_))) => {}
            Err(
                Untold::Ended(MonitorMessage::Retry(_, _, reply))
                | Untold::Full(MonitorMessage::Trigger(reply) | MonitorMessage::Retry(_, _, reply)),
            ) => {
                let refusal = Refusal::Unavailable(format!("jobset {name} is busy; try again"));
                reply.send(Err(refusal));
            }
            Err(Untold::Full(MonitorMessage::Update(_) | MonitorMessage::SetActive(_))) => {
                self.core.replace(clock::now(), name, out);
            }
        }
    }

    /// Starts a monitor with what the books know of its jobset.
    fn start(
        &mut self,
        specification: Specification,
        active: bool,
        at_once: bool,
        generation: u64,
    ) -> Result<monitor::Handle, String> {
        let name = specification.name.clone();
        let seed = self.seed(specification, active, at_once).map_err(|error| chain(&error))?;
        let unfinished = seed.last.as_ref().is_none_or(|(_, interrupted)| *interrupted);
        let looks = active && (at_once || seed.promised.look || unfinished);
        if looks || !seed.promised.retries.is_empty() {
            self.core.looks_at_once(&name);
        }
        monitor::spawn(&self.threads, seed, generation, &self.below)
            .map_err(|error| error.to_string())
    }

    fn seed(
        &self,
        specification: Specification,
        active: bool,
        at_once: bool,
    ) -> Result<Seed, db::Error> {
        let name = &specification.name;
        let last = db::evaluations::last_fingerprint(&self.reader, name)?;
        let error = db::jobsets::get(&self.reader, name)?.and_then(|jobset| jobset.error);
        let evaluation_error = db::evaluations::trouble(&self.reader, name)?;
        // The books keep one error: it is the look's unless it is the evaluation's.
        let fetch_error = error.filter(|error| evaluation_error.as_ref() != Some(error));
        let promised = promises::of(&self.reader, name)?;
        let interval = self.interval;
        Ok(Seed {
            specification,
            active,
            last,
            fetch_error,
            evaluation_error,
            at_once,
            promised,
            interval,
        })
    }
}
