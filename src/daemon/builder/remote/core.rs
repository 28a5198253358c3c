//! What the remote backend decides: who builds what, and what became of it. Pure: `now` is an argument.
//!
//! Invariant: each build that was given to it is reported exactly once, unless it is left to the next life of the daemon;
//! the server hears that an end is settled only after the books have it, so that no death on either side loses one.

mod intake;
#[cfg(test)]
mod tests;
mod workers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use self::intake::Intake;
use self::workers::{PAUSED, Worker};
use crate::daemon::builder::store::Taken;
use crate::db::workers::Note;
use crate::model::build::{BuildId, Order, Outcome, Store};
use crate::model::time::Time;
use crate::proto::control::{Failure, FailureKind};
use crate::proto::remote::Fault;
use crate::proto::remote::link::{Adopt, Assign, AssignmentView, Command, Event, Report, Try};

/// How long builds stay with their workers while no server says what became of them.
pub(super) const AWAY: Duration = Duration::from_secs(180);

/// Results that are taken into the store at once: each is a connection to the daemon, and its downloads.
pub(super) const TAKERS: usize = 16;

/// Aborted builds in a row after which a worker is held to be broken.
const BROKEN: u32 = 10;

/// How often the daemon of a store may go while it fetches one build's results: whatever it is that ends it there, others
/// want to build.
const CUTS: u32 = 5;

/// How often the books are told when workers were last seen.
const SEEN: Duration = Duration::from_secs(30);

/// What is asked of the world.
#[derive(Debug, PartialEq)]
pub(super) enum Effect {
    Say(Command),
    /// Makes a build's log the file that the server writes.
    Link {
        from: String,
        order: Box<Order>,
    },
    /// Takes what was built into the store, from there.
    Take {
        url: String,
        order: Box<Order>,
    },
    /// Whoever takes its results in is to stop.
    Drop(BuildId),
    End {
        id: BuildId,
        attempt: i64,
        outcome: Outcome,
    },
    /// For the books.
    Note(Note),
    /// Other systems are served, or other workers want work.
    Changed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The server was told, or has had it since before the start.
    Out,
    /// Its log is here.
    Begun,
    /// It was built, and its outputs are being fetched, or wait for that.
    Taking,
    /// Its end was reported and is on its way to the books.
    Over,
}

struct Job {
    order: Order,
    worker: String,
    phase: Phase,
    /// The server told of it since it was last connected.
    told: bool,
    /// How often the store's daemon went while it took the results in.
    cuts: u32,
}

impl Job {
    fn new(order: Order, worker: String, told: bool) -> Self {
        Self { order, worker, phase: Phase::Out, told, cuts: 0 }
    }

    fn of(&self) -> Try {
        Try { build: self.order.id, attempt: self.order.attempt }
    }
}

enum Server {
    /// Since when.
    Away(Instant),
    /// It tells how things stand: assignments of which nothing is known here.
    Telling(Vec<Try>),
    There,
}

pub(super) struct Core {
    server: Server,
    workers: BTreeMap<String, Worker>,
    jobs: BTreeMap<BuildId, Job>,
    /// Workers that get nothing; and until when that is remembered, of those that are not here.
    paused: BTreeMap<String, Option<Instant>>,
    /// What was built and is not in the store yet.
    intake: Intake,
    /// What was said and has no answer yet: the try it was to have built.
    asked: VecDeque<Option<Try>>,
    seen: BTreeMap<String, Time>,
    seen_due: Option<Instant>,
}

type Out = Vec<Effect>;

impl Core {
    /// `abroad` is what workers have been building since an earlier life, `paused` the workers that get nothing.
    pub(super) fn new(now: Instant, abroad: Vec<Order>, paused: BTreeSet<String>) -> Self {
        let resume = |order: Order| {
            let worker = order.worker.clone().unwrap_or_default();
            (order.id, Job::new(order, worker, false))
        };
        Self {
            server: Server::Away(now),
            workers: BTreeMap::new(),
            jobs: abroad.into_iter().map(resume).collect(),
            paused: paused.into_iter().map(|name| (name, Some(now + PAUSED))).collect(),
            intake: Intake::default(),
            asked: VecDeque::new(),
            seen: BTreeMap::new(),
            seen_due: None,
        }
    }

    /// All that workers have, or had and was not told to the books.
    pub(super) fn orders(&self) -> impl Iterator<Item = &Order> {
        self.jobs.values().map(|job| &job.order)
    }

    /// The books have its start with the worker's name.
    pub(super) fn start(&mut self, order: Order, out: &mut Out) {
        let (id, attempt) = (order.id, order.attempt);
        let name = order.worker.clone().unwrap_or_default();
        let ready = self
            .workers
            .get_mut(&name)
            .filter(|worker| worker.reserved == Some(id) && worker.wants && !worker.paused);
        let Some(worker) = ready else {
            // It is gone, or wants none any more.
            self.release(id);
            out.push(Effect::End { id, attempt, outcome: Outcome::Interrupted });
            return;
        };
        (worker.wants, worker.reserved) = (false, None);
        let assign = Assign {
            of: Try { build: id, attempt },
            worker: name.clone(),
            derivation: order.derivation.clone(),
            system: order.system.clone(),
            priority: order.priority,
            timeout: order.timeout,
            max_silent_time: order.max_silent_time,
        };
        self.say(Command::Assign(assign), out);
        self.jobs.insert(id, Job::new(order, name, true));
    }

    /// Nobody wants it any more.
    pub(super) fn cancel(&mut self, id: BuildId, out: &mut Out) {
        let Some(job) = self.jobs.get(&id).filter(|job| job.phase != Phase::Over) else { return };
        let (of, attempt) = (job.of(), job.order.attempt);
        if job.phase == Phase::Taking {
            out.push(Effect::Drop(id));
        }
        self.jobs.remove(&id);
        self.say(Command::Cancel(of), out);
        out.push(Effect::End { id, attempt, outcome: Outcome::Interrupted });
    }

    /// The books have the end of these, whoever told them.
    pub(super) fn settle(&mut self, ids: &[BuildId], out: &mut Out) {
        for id in ids {
            if let Some(job) = self.jobs.get(id).filter(|job| job.phase == Phase::Over) {
                let of = job.of();
                self.jobs.remove(id);
                self.say(Command::Settle(of), out);
            }
        }
    }

    /// A server that is away learns it when it is back: what it has then and nobody runs is canceled.
    fn say(&mut self, command: Command, out: &mut Out) {
        if matches!(self.server, Server::Away(_)) {
            return;
        }
        self.asked.push_back(match &command {
            Command::Assign(Assign { of, .. }) | Command::Adopt(Adopt { of, .. }) => Some(*of),
            Command::Help
            | Command::Version
            | Command::Status
            | Command::Workers
            | Command::Builds
            | Command::Subscribe
            | Command::Attach
            | Command::Settle(_)
            | Command::Cancel(_) => None,
        });
        out.push(Effect::Say(command));
    }

    /// The server did what it was told, or did not; answers come in the order of what was said. One that was not assigned is
    /// told of by nothing else.
    pub(super) fn on_answer(&mut self, answer: Result<(), Failure>, out: &mut Out) {
        let asked = self.asked.pop_front().flatten();
        let (Some(of), Err(failure)) = (asked, answer) else { return };
        let Some(job) = self.current(of.build.0, of.attempt) else { return };
        let name = job.worker.clone();
        let refused = Outcome::Aborted(format!("remote-server refused: {}", failure.message));
        let outcome = match failure.kind {
            // Its worker went, or wants none any more, which is on its way to us.
            FailureKind::NotFound | FailureKind::Conflict => Outcome::Interrupted,
            // It would be refused again. Its worker still waits, which nobody else tells.
            FailureKind::Syntax => {
                self.on_wants(&name, true, out);
                refused
            }
            FailureKind::UnknownCommand
            | FailureKind::RateLimited
            | FailureKind::Unavailable
            | FailureKind::Internal => refused,
        };
        self.close(of.build, outcome, out);
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let away = match self.server {
            Server::Away(since) => {
                let out = |job: &Job| matches!(job.phase, Phase::Out | Phase::Begun);
                self.jobs.values().any(out).then(|| since + AWAY)
            }
            Server::Telling(_) | Server::There => None,
        };
        away.into_iter().chain(self.seen_due).min()
    }

    pub(super) fn on_deadline(&mut self, now: Instant, out: &mut Out) {
        if self.seen_due.is_some_and(|due| due <= now) {
            self.seen_due = None;
            out.push(Effect::Note(Note::Seen(std::mem::take(&mut self.seen))));
        }
        if let Server::Away(since) = self.server
            && since + AWAY <= now
        {
            let out_there = |job: &&Job| matches!(job.phase, Phase::Out | Phase::Begun);
            let gone: Vec<Try> = self.jobs.values().filter(out_there).map(Job::of).collect();
            for of in gone {
                self.jobs.remove(&of.build);
                let Try { build: id, attempt } = of;
                out.push(Effect::End { id, attempt, outcome: Outcome::Interrupted });
            }
        }
    }

    /// The server is there and begins to tell how things stand.
    pub(super) fn on_connected(&mut self) {
        self.server = Server::Telling(Vec::new());
        self.asked.clear();
        self.workers.clear();
        self.jobs.values_mut().for_each(|job| job.told = false);
    }

    pub(super) fn on_disconnected(&mut self, now: Instant, out: &mut Out) {
        self.server = Server::Away(now);
        self.workers.clear();
        out.push(Effect::Changed);
    }

    pub(super) fn on_event(&mut self, now: Instant, event: Event, out: &mut Out) {
        match event {
            Event::WorkerJoined { worker } => self.on_joined(worker, out),
            Event::WorkerSeen { worker, time } => {
                self.seen.insert(worker, Time(time));
                self.seen_due.get_or_insert(now + SEEN);
            }
            Event::WorkerLeft { worker, why: _ } => {
                self.workers.remove(&worker);
                self.remember_pauses(now);
                self.seen.remove(&worker);
                out.extend([Effect::Note(Note::Left(worker)), Effect::Changed]);
            }
            Event::Requested { worker } => self.on_wants(&worker, true, out),
            Event::Withdrawn { worker } => self.on_wants(&worker, false, out),
            Event::Assigned { assignment } => self.on_assigned(assignment, out),
            Event::Started { build, attempt, log } => self.on_started(build, attempt, log, out),
            Event::Reported { build, attempt, report } => {
                self.on_reported(build, attempt, report, out);
            }
            Event::Lost { build, attempt, started, why } => {
                if self.current(build, attempt).is_some() {
                    let outcome = if started { Outcome::Lost(why) } else { Outcome::Interrupted };
                    self.end(BuildId(build), outcome, out);
                    // The server has forgotten it: there is nothing to settle.
                    self.jobs.remove(&BuildId(build));
                }
            }
            Event::Ready => self.on_ready(now, out),
        }
    }

    /// How things stand with one assignment.
    fn on_assigned(&mut self, view: AssignmentView, out: &mut Out) {
        let AssignmentView { build, attempt, worker: _, derivation: _, phase: _, log, report } =
            view;
        let of = Try { build: BuildId(build), attempt };
        match self.jobs.get_mut(&of.build).filter(|job| job.order.attempt == attempt) {
            Some(job) => job.told = true,
            None => {
                if let Server::Telling(unknown) = &mut self.server {
                    unknown.push(of);
                }
                return;
            }
        }
        if let Some(log) = log {
            self.on_started(build, attempt, log, out);
        }
        if let Some(report) = report {
            self.on_reported(build, attempt, report, out);
        }
    }

    /// All is told: what the server does not know is to be adopted, what is not ours is no longer wanted.
    fn on_ready(&mut self, now: Instant, out: &mut Out) {
        let Server::Telling(unknown) = std::mem::replace(&mut self.server, Server::There) else {
            return;
        };
        for of in unknown {
            self.say(Command::Cancel(of), out);
        }
        let untold = |job: &&Job| !job.told && matches!(job.phase, Phase::Out | Phase::Begun);
        let adopt = |job: &Job| {
            let (worker, derivation) = (job.worker.clone(), job.order.derivation.clone());
            Adopt { of: job.of(), worker, derivation }
        };
        let adopted: Vec<Adopt> = self.jobs.values().filter(untold).map(adopt).collect();
        for adopt in adopted {
            self.say(Command::Adopt(adopt), out);
        }
        self.remember_pauses(now);
        out.push(Effect::Note(Note::Only(self.workers.keys().cloned().collect())));
        out.push(Effect::Changed);
    }

    /// The build of a try whose end is not known yet.
    fn current(&mut self, build: i64, attempt: i64) -> Option<&mut Job> {
        let out = |job: &&mut Job| matches!(job.phase, Phase::Out | Phase::Begun);
        let job = self.jobs.get_mut(&BuildId(build)).filter(|job| job.order.attempt == attempt);
        job.filter(out)
    }

    fn on_started(&mut self, build: i64, attempt: i64, log: String, out: &mut Out) {
        if let Some(job) = self.current(build, attempt)
            && job.phase == Phase::Out
        {
            job.phase = Phase::Begun;
            out.push(Effect::Link { from: log, order: Box::new(job.order.clone()) });
        }
    }

    fn on_reported(&mut self, build: i64, attempt: i64, report: Report, out: &mut Out) {
        let Some(job) = self.current(build, attempt) else { return };
        let id = job.order.id;
        match report {
            Report::Succeeded { url } => {
                job.phase = Phase::Taking;
                let (of, store) = (job.of(), Store::of(&job.order.derivation));
                self.intake.add(of, url, store);
            }
            Report::Failed { fault, why } => {
                let order = &job.order;
                let outcome = judge(&fault, why, order, &job.worker);
                self.end(id, outcome, out);
            }
        }
    }

    /// Hands out what was built while there is somebody to fetch it, for stores that are open.
    pub(super) fn take(&mut self, is_open: &dyn Fn(Store) -> bool, out: &mut Out) {
        while let Some((of, url)) = self.intake.next(is_open) {
            let current = |job: &&Job| job.of() == of && job.phase == Phase::Taking;
            match self.jobs.get(&of.build).filter(current) {
                Some(job) => out.push(Effect::Take { url, order: Box::new(job.order.clone()) }),
                // It was canceled.
                None => self.intake.done(&url),
            }
        }
    }

    /// Outputs were fetched, or could not be.
    pub(super) fn on_taken(&mut self, of: Try, url: String, taken: Taken, out: &mut Out) {
        self.intake.done(&url);
        let current = |job: &&mut Job| job.of() == of && job.phase == Phase::Taking;
        let Some(job) = self.jobs.get_mut(&of.build).filter(current) else { return };
        match taken {
            Taken::Over(outcome @ Outcome::Succeeded { .. }) => self.end(of.build, outcome, out),
            // What is in the way here is no fault of the worker's.
            Taken::Over(outcome) => self.close(of.build, outcome, out),
            Taken::Unfetched(why) => self.end(of.build, Outcome::Aborted(why), out),
            Taken::CutOff if job.cuts + 1 >= CUTS => {
                let why = format!(
                    "its results cannot be fetched from {url}: the store daemon went {CUTS} times over it"
                );
                self.close(of.build, Outcome::Aborted(why), out);
            }
            Taken::CutOff => {
                job.cuts += 1;
                let store = Store::of(&job.order.derivation);
                self.intake.add(of, url, store);
            }
        }
    }

    /// Its worker had a part in how it ended.
    fn end(&mut self, id: BuildId, outcome: Outcome, out: &mut Out) {
        let Some(job) = self.jobs.get(&id) else { return };
        let name = job.worker.clone();
        if let Some(worker) = self.workers.get_mut(&name) {
            match &outcome {
                Outcome::Aborted(_) | Outcome::Lost(_) => worker.aborted += 1,
                Outcome::Succeeded { .. } | Outcome::Failed(_) | Outcome::DependencyFailed(_) => {
                    worker.aborted = 0;
                }
                Outcome::Missing(_)
                | Outcome::NoSpace(_)
                | Outcome::Postponed(_)
                | Outcome::Interrupted => {}
            }
            if worker.aborted >= BROKEN && !worker.paused {
                log::warn!(
                    target: "builder",
                    "worker {name} on {}: {BROKEN} builds were aborted in a row; it gets no more until it restarts, or 'resume worker {name}'",
                    worker.machine
                );
                worker.paused = true;
                self.paused.insert(name.clone(), None);
                out.extend([Effect::Note(Note::Broken(name, BROKEN)), Effect::Changed]);
            }
        }
        self.close(id, outcome, out);
    }

    fn close(&mut self, id: BuildId, outcome: Outcome, out: &mut Out) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.phase = Phase::Over;
        let attempt = job.order.attempt;
        out.push(Effect::End { id, attempt, outcome });
    }
}

/// What a worker's report comes to.
fn judge(fault: &str, why: Option<String>, order: &Order, worker: &str) -> Outcome {
    use crate::store::follow;
    let reason = || why.clone().unwrap_or_else(|| format!("failed on worker {worker}"));
    match Fault::parse(fault).unwrap_or(Fault::Failed) {
        Fault::Failed => Outcome::Failed(reason()),
        Fault::Dependency => Outcome::DependencyFailed(reason()),
        Fault::TimedOut => Outcome::Failed(follow::timed_out(order.timeout)),
        Fault::Silent => Outcome::Failed(follow::silent(order.max_silent_time)),
        Fault::Aborted => Outcome::Aborted(format!("worker {worker}: {}", reason())),
        // By nobody here. It costs a try, or a worker that always says so would be asked for ever.
        Fault::Canceled => Outcome::Lost(format!("worker {worker} stopped it")),
    }
}
