//! Who is here and what each has to build: the decisions of the server, without sockets and clocks.
//!
//! A worker is known by its name, which it says over one connection that asks for work and another that says that it
//! lives. Its request is held until somebody assigns a build; an assignment is sent, started, reported and settled. What
//! is told of it depends on what is known: a worker is gone when none of its connections is left for a while, or when it
//! was silent for long.
//!
//! Invariant: a worker has at most one assignment that is not reported, and one that has any is not told to want work.

mod assignments;
mod check;
mod strays;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::peers::Link;
use crate::model::time::Time;
use crate::proto::remote::link::{Event, Phase, Report, Try, WorkerView};
use crate::proto::remote::{self, Fault, FromWorker, ToWorker};
pub(super) use assignments::Permit;
use strays::Strays;

/// Workers at once: a farm of hundreds of machines. Each costs a kilobyte.
const MAX_WORKERS: usize = 2048;

/// From `build` to `build-started`: workers say it at once, before they download anything.
const BEGIN: Duration = Duration::from_secs(60);

/// From the end of a worker's last connection to its being gone: libzmq connects again several times a second.
const GRACE: Duration = Duration::from_secs(10);

/// As `GRACE`, when connections came from its address that have not said yet whose they are: a worker that builds says
/// nothing on one, and pings once a minute on the other.
const REUNION: Duration = Duration::from_secs(75);

/// Without a word from a worker, whose pings come once a minute.
const SILENCE: Duration = Duration::from_secs(120);

/// Between two news that a worker lives: pings come once a minute.
const SEEN: Duration = Duration::from_secs(10);

/// Beyond a build's time limit, for what has to be fetched, or built, before it: a worker's loop that died may leave its
/// pings behind.
const LATE: Duration = Duration::from_secs(24 * 3600);

/// For the worker of an adopted assignment to be heard of: a ping and some.
const ADOPTION: Duration = Duration::from_secs(90);

/// What is asked of the world.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Say(Link, ToWorker),
    /// It has said what nobody says.
    HangUp(Link, String),
    /// For all who listen.
    Tell(Event),
    /// Makes an empty log there, in the place of any older one.
    Create(PathBuf),
    /// An effect of a message that is worth a line of the log.
    Note(String),
}

/// What a server says of itself to workers, and where it keeps logs.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) log_port: u16,
    pub(super) publish_port: Option<u16>,
    pub(super) logs: PathBuf,
}

/// Where a message came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct From {
    /// `None` when the connection has ended since.
    pub(super) link: Option<Link>,
    pub(super) address: IpAddr,
}

/// A moment, as both clocks show it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) instant: Instant,
    pub(super) wall: Time,
}

/// A connection.
#[derive(Debug)]
struct Connection {
    address: IpAddr,
    opened: Instant,
    /// Whose it is, once it has said so.
    worker: Option<String>,
    /// A request for work of a name that is not known yet.
    wants: Option<String>,
    /// It understands what is only ours.
    ours: bool,
    /// Precedes the report of this derivation.
    fault: Option<(String, Fault, String)>,
    /// Nothing it says is listened to any more.
    refused: bool,
}

#[derive(Debug)]
struct Worker {
    address: IpAddr,
    machine: String,
    systems: Vec<String>,
    seen: Time,
    heard: Instant,
    links: BTreeSet<Link>,
    /// When the last of its connections ended.
    gone: Option<Instant>,
    /// The connection on which it waits for work.
    request: Option<Link>,
    /// What it has to build; or, of what an earlier server gave it, all of which nobody knows the end.
    tasks: Vec<Try>,
    /// When it is next looked at.
    look: Instant,
    /// When those who listen were last told that it lives.
    told: Instant,
}

#[derive(Debug)]
struct Assignment {
    worker: String,
    derivation: String,
    phase: Phase,
    /// The connection on which it was sent, while that is open.
    link: Option<Link>,
    report: Option<Report>,
    /// Why it is about to be reported as failed.
    fault: Option<(Fault, String)>,
    /// When it must have ended, counted from its begin; `None` for no limit.
    limit: Option<Duration>,
    /// Nobody wants it any more: nothing is told of it.
    canceled: bool,
    /// A log is being received.
    logging: bool,
    /// It was assigned by an earlier server, whose end may have cost its report: that is nobody's fault.
    adopted: bool,
    /// When what it waits for must have come.
    due: Option<Instant>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Worker(String),
    Assignment(Try),
}

pub(super) struct Hall {
    settings: Settings,
    links: HashMap<Link, Connection>,
    workers: BTreeMap<String, Worker>,
    assignments: BTreeMap<Try, Assignment>,
    /// The assignments of each derivation.
    derivations: HashMap<String, Vec<Try>>,
    strays: Strays,
    timers: BTreeSet<(Instant, Timer)>,
}

type Out = Vec<Effect>;

impl Hall {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            links: HashMap::new(),
            workers: BTreeMap::new(),
            assignments: BTreeMap::new(),
            derivations: HashMap::new(),
            strays: Strays::default(),
            timers: BTreeSet::new(),
        }
    }

    /// When there is something to do without a message.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    pub(super) fn on_open(&mut self, now: Instant, link: Link, address: IpAddr) {
        let connection = Connection {
            address,
            opened: now,
            worker: None,
            wants: None,
            ours: false,
            fault: None,
            refused: false,
        };
        self.links.insert(link, connection);
    }

    /// The connection has ended, or nothing can be sent over it.
    pub(super) fn on_close(&mut self, now: Instant, link: Link, out: &mut Out) {
        let Some(connection) = self.links.remove(&link) else { return };
        let Some(name) = connection.worker else { return };
        let Some(worker) = self.workers.get_mut(&name) else { return };
        worker.links.remove(&link);
        if worker.request == Some(link) {
            worker.request = None;
            out.push(Effect::Tell(Event::Withdrawn { worker: name.clone() }));
        }
        let tasks = worker.tasks.clone();
        if worker.links.is_empty() {
            worker.gone = Some(now);
            self.look(&name, now + GRACE);
        }
        for of in tasks {
            if let Some(assignment) = self.assignments.get_mut(&of)
                && assignment.link == Some(link)
            {
                assignment.link = None;
                if assignment.phase == Phase::Sent {
                    self.lose(of, false, "its connection broke before it had begun", out);
                }
            }
        }
    }

    pub(super) fn on_message(&mut self, now: Now, from: From, payload: &[u8], out: &mut Out) {
        if let Some(link) = from.link {
            match self.links.get(&link) {
                Some(connection) if connection.refused => return,
                Some(_) => {}
                // Its end is known already, as nothing could be sent to it.
                None => return self.on_message(now, From { link: None, ..from }, payload, out),
            }
        }
        match FromWorker::parse(payload) {
            Ok(message) => self.on_word(now, from, message, out),
            // What other versions may say.
            Err(error @ remote::Error::Unknown(_)) => {
                out.push(Effect::Note(format!("ignored from {}: {error}", from.address)));
            }
            Err(error) => self.refuse(now.instant, from, &error.to_string(), out),
        }
    }

    /// A message that no worker sends costs its sender the connection.
    pub(super) fn refuse(&mut self, now: Instant, from: From, why: &str, out: &mut Out) {
        let Some(link) = from.link.filter(|link| self.links.contains_key(link)) else { return };
        self.on_close(now, link, out);
        // Until its end is told.
        self.on_open(now, link, from.address);
        if let Some(connection) = self.links.get_mut(&link) {
            connection.refused = true;
        }
        out.push(Effect::HangUp(link, why.to_owned()));
    }

    fn on_word(&mut self, now: Now, from: From, message: FromWorker, out: &mut Out) {
        if let Some(name) = from.link.and_then(|link| self.links.get(&link)?.worker.clone()) {
            self.hear(&name, now);
        }
        match message {
            FromWorker::RequestInfo => {
                if let Some(link) = from.link {
                    let info = ToWorker::Info {
                        address: from.address.to_string(),
                        log_port: self.settings.log_port,
                        publish_port: self.settings.publish_port,
                    };
                    out.push(Effect::Say(link, info));
                }
            }
            FromWorker::Ready(record) | FromWorker::Ping(record) => {
                self.on_worker(now, from, record, out);
            }
            FromWorker::RequestWork(name) => self.on_request(now, from, name, out),
            FromWorker::Started { derivation, worker } => {
                self.on_started(now, from, derivation, worker, out);
            }
            FromWorker::Succeeded { derivation, url } => {
                let report = check::success(url, from.address);
                self.on_ended(now, from, derivation, report, out);
            }
            FromWorker::Failed { derivation, url: _ } => {
                let said = self.fault(from, &derivation);
                let report = match said {
                    Some((fault, why)) => {
                        Report::Failed { fault: fault.word().to_owned(), why: Some(why) }
                    }
                    None => Report::Failed { fault: Fault::Failed.word().to_owned(), why: None },
                };
                self.on_ended(now, from, derivation, report, out);
            }
            FromWorker::Gorget { worker } => {
                let Some(link) = from.link else { return };
                // After a break it says whose the connection is before it has anything else to say.
                let known = self.workers.contains_key(&worker);
                if known && !self.bind(now, link, from, &worker, out) {
                    return;
                }
                if let Some(connection) = self.links.get_mut(&link) {
                    connection.ours = true;
                    out.push(Effect::Say(link, ToWorker::Gorget));
                    self.cancel_again(link, out);
                }
            }
            FromWorker::Fault { derivation, fault, why } => {
                if !check::is_derivation(&derivation) {
                    return self.refuse(now.instant, from, "expected a derivation", out);
                }
                self.on_fault(from, derivation, fault, check::cut(why));
            }
        }
    }

    /// A worker says that it lives.
    fn on_worker(&mut self, now: Now, from: From, record: remote::Worker, out: &mut Out) {
        let Some(link) = from.link else { return };
        let remote::Worker { name, address: _, machine, systems } = record;
        if let Err(why) = check::worker(&name, &machine, &systems) {
            return self.refuse(now.instant, from, why, out);
        }
        if self.workers.contains_key(&name) {
            if !self.bind(now, link, from, &name, out) {
                return;
            }
            self.hear(&name, now);
            self.tell_seen(&name, now, out);
        } else if self.workers.len() >= MAX_WORKERS {
            let why = format!("{MAX_WORKERS} workers are here, and {name} is one too many");
            return self.refuse(now.instant, from, &why, out);
        } else {
            if self.belongs_to_another(link, &name) {
                return self.refuse(now.instant, from, "expected one worker's name", out);
            }
            let worker = Worker {
                address: from.address,
                machine,
                systems,
                seen: now.wall,
                heard: now.instant,
                links: BTreeSet::new(),
                gone: None,
                request: None,
                tasks: self.adopted(&name),
                look: now.instant,
                told: now.instant,
            };
            self.workers.insert(name.clone(), worker);
            self.bind(now, link, from, &name, out);
            self.look(&name, now.instant + SILENCE);
            if let Some(view) = self.view(&name) {
                out.push(Effect::Tell(Event::WorkerJoined { worker: view }));
            }
        }
        // Requests that came before anything was known of the name.
        let early = |connection: &Connection| {
            connection.wants.as_deref() == Some(name.as_str()) && connection.address == from.address
        };
        let waiting: Vec<Link> =
            self.links.iter().filter(|(_, c)| early(c)).map(|(link, _)| *link).collect();
        for link in waiting {
            let from = From { link: Some(link), address: from.address };
            self.on_request(now, from, name.clone(), out);
        }
    }

    fn on_request(&mut self, now: Now, from: From, name: String, out: &mut Out) {
        // An answer could not reach it.
        let Some(link) = from.link else { return };
        if !check::is_name(&name) {
            return self.refuse(now.instant, from, "expected a worker's name", out);
        }
        if !self.workers.contains_key(&name) {
            if self.belongs_to_another(link, &name) {
                return self.refuse(now.instant, from, "expected one worker's name", out);
            }
            if let Some(connection) = self.links.get_mut(&link) {
                connection.wants = Some(name);
            }
            return;
        }
        if !self.bind(now, link, from, &name, out) {
            return;
        }
        if let Some(connection) = self.links.get_mut(&link) {
            connection.wants = None;
        }
        self.hear(&name, now);
        let Some(worker) = self.workers.get(&name) else { return };
        for of in worker.tasks.clone() {
            let Some(assignment) = self.assignments.get(&of) else { continue };
            if assignment.link == Some(link) {
                // A worker reports a build before it asks again: this is a repetition of its earlier request.
                return;
            }
            let started = assignment.phase == Phase::Started && !assignment.adopted;
            self.lose(of, started, "its worker wants work and has not said how it ended", out);
        }
        let Some(worker) = self.workers.get_mut(&name) else { return };
        if worker.request.replace(link).is_none() {
            out.push(Effect::Tell(Event::Requested { worker: name }));
        }
    }

    /// Takes a connection for one of the worker's. False if it cannot be.
    fn bind(&mut self, now: Now, link: Link, from: From, name: &str, out: &mut Out) -> bool {
        if self.belongs_to_another(link, name) {
            self.refuse(now.instant, from, "expected one worker's name", out);
            return false;
        }
        let Some(worker) = self.workers.get_mut(name) else { return false };
        if worker.address != from.address {
            if !worker.links.is_empty() {
                let why = format!("expected another name: {name} is at {}", worker.address);
                self.refuse(now.instant, from, &why, out);
                return false;
            }
            worker.address = from.address;
        }
        let Some(connection) = self.links.get_mut(&link) else { return false };
        if connection.worker.is_none() {
            connection.worker = Some(name.to_owned());
        }
        worker.links.insert(link);
        worker.gone = None;
        true
    }

    fn belongs_to_another(&self, link: Link, name: &str) -> bool {
        let connection = self.links.get(&link);
        connection.and_then(|c| c.worker.as_deref()).is_some_and(|worker| worker != name)
    }

    fn hear(&mut self, name: &str, now: Now) {
        if let Some(worker) = self.workers.get_mut(name) {
            (worker.heard, worker.seen) = (now.instant, now.wall);
        }
    }

    /// Tells that a worker lives, though it may say so as often as it likes.
    fn tell_seen(&mut self, name: &str, now: Now, out: &mut Out) {
        if let Some(worker) = self.workers.get_mut(name)
            && worker.told + SEEN <= now.instant
        {
            worker.told = now.instant;
            let (worker, time) = (name.to_owned(), now.wall.0);
            out.push(Effect::Tell(Event::WorkerSeen { worker, time }));
        }
    }

    /// Looks at a worker at `at`, if not before.
    fn look(&mut self, name: &str, at: Instant) {
        let Some(worker) = self.workers.get_mut(name) else { return };
        self.timers.remove(&(worker.look, Timer::Worker(name.to_owned())));
        worker.look = at;
        self.timers.insert((at, Timer::Worker(name.to_owned())));
    }

    pub(super) fn on_deadline(&mut self, now: Instant, out: &mut Out) {
        while let Some((at, _)) = self.timers.first()
            && *at <= now
        {
            match self.timers.pop_first() {
                Some((_, Timer::Worker(name))) => self.on_look(now, &name, out),
                Some((_, Timer::Assignment(of))) => self.on_due(of, out),
                None => {}
            }
        }
    }

    fn on_look(&mut self, now: Instant, name: &str, out: &mut Out) {
        let Some(worker) = self.workers.get(name) else { return };
        if let Some(gone) = worker.gone {
            let nameless = |c: &&Connection| {
                // One of its connections may be back before the other has broken.
                let late = c.opened + GRACE >= gone;
                late && c.worker.is_none() && !c.refused && c.address == worker.address
            };
            if now < gone + GRACE {
                self.look(name, gone + GRACE);
            } else if now < gone + REUNION && self.links.values().find(nameless).is_some() {
                self.look(name, gone + REUNION);
            } else {
                self.leave(name, "its connections have ended", out);
            }
        } else if now >= worker.heard + SILENCE {
            self.leave(name, "nothing was heard of it for 120 s", out);
        } else {
            self.look(name, worker.heard + SILENCE);
        }
    }

    /// The worker is gone. What it had to build is told of after that.
    fn leave(&mut self, name: &str, why: &str, out: &mut Out) {
        let Some(worker) = self.workers.remove(name) else { return };
        self.timers.remove(&(worker.look, Timer::Worker(name.to_owned())));
        // Those that are still open may be a worker's again.
        for link in &worker.links {
            if let Some(connection) = self.links.get_mut(link) {
                connection.worker = None;
                // It still waits on it, should its name come back.
                connection.wants = (worker.request == Some(*link)).then(|| name.to_owned());
            }
        }
        let (worker_name, why_gone) = (name.to_owned(), why.to_owned());
        out.push(Effect::Tell(Event::WorkerLeft { worker: worker_name, why: why_gone }));
        for of in worker.tasks {
            let phase = self.assignments.get(&of).map(|assignment| assignment.phase);
            let why = format!("worker {name} is gone: {why}");
            self.lose(of, phase != Some(Phase::Sent), &why, out);
        }
    }

    /// Whether a worker is at this address.
    pub(super) fn is_home(&self, address: IpAddr) -> bool {
        self.workers.values().any(|worker| worker.address == address)
    }

    fn view(&self, name: &str) -> Option<WorkerView> {
        let worker = self.workers.get(name)?;
        Some(WorkerView {
            name: name.to_owned(),
            address: worker.address.to_string(),
            machine: worker.machine.clone(),
            systems: worker.systems.clone(),
            last_seen: worker.seen.0,
            requesting: worker.request.is_some(),
            build: worker.tasks.last().map(|of| of.build.0),
        })
    }

    /// The workers, by their names.
    pub(super) fn workers(&self) -> impl Iterator<Item = WorkerView> {
        self.workers.keys().filter_map(|name| self.view(name))
    }

    /// How things stand, for whoever begins to listen.
    pub(super) fn standing(&self) -> Vec<Event> {
        let joined = self.workers().map(|worker| Event::WorkerJoined { worker });
        let wanting = self.workers.iter().filter(|(_, worker)| worker.request.is_some());
        let requested = wanting.map(|(name, _)| Event::Requested { worker: name.clone() });
        let assigned = self.assignments().map(|assignment| Event::Assigned { assignment });
        joined.chain(requested).chain(assigned).chain([Event::Ready]).collect()
    }
}
