//! Channel updater: keeps mirrors current, answers with the commit of each channel.
//!
//! Invariant: at most one look per URL is under way. Requests that come meanwhile share the next one, so that what a
//! request is told was looked at after it was made. Looks at different URLs run side by side, as many as
//! the pool has threads, in the order in which their URLs were first wanted.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select_biased};

use crate::actor::pool::Pool;
use crate::actor::{Gone, Spawner, Stop, fault, panic_message};
use crate::git::{self, Look, Places, Resolved};
use crate::model::evaluation::Checkout;
use crate::model::spec::{Channel, JobsetName, Reference};
use crate::sys::clock;
use crate::sys::process::{Killer, Launcher};

/// Requests that wait to be taken in: the loop does no long work, so a burst of triggers fits.
const INBOX: usize = 64;

/// How long a stop waits for looks to end after they were killed: their processes take milliseconds to die.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long whoever waits for that goes without looking whether to stop: a rare wait.
const GLANCE: Duration = Duration::from_millis(200);

/// Answer to a fetch: the checkouts in the order of the channels, or the first error for people.
pub(crate) struct Fetched {
    pub(crate) jobset: JobsetName,
    pub(crate) result: Result<Vec<Checkout>, String>,
}

/// What others may ask of the updater.
enum Message {
    Fetch { jobset: JobsetName, channels: Vec<Channel>, lane: Sender<Fetched> },
}

/// What comes back from the pool.
enum Report {
    /// A look's process runs, and can be ended.
    Started {
        url: String,
        killer: Killer,
    },
    Ended {
        url: String,
        answer: Answer,
    },
}

/// What a look answers: one result per reference, or the URL's error.
pub(super) type Answer = Result<Vec<Result<Resolved, git::Error>>, git::Error>;

/// Names a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ticket(pub(super) u64);

/// What the core wants done.
#[derive(Debug, PartialEq)]
pub(super) enum Effect {
    Look(Look),
    Answer(Ticket, Result<Vec<Checkout>, String>),
}

/// The decisions: no thread, no clock, no I/O. As large as the requests under way, of which each jobset has one.
pub(super) struct Core {
    /// Looks that may still be started.
    idle: usize,
    urls: HashMap<String, Url>,
    /// URLs with requests, but no look under way, in the order of their first request.
    queue: VecDeque<String>,
    requests: HashMap<Ticket, Request>,
}

/// A URL that somebody wants to know of.
#[derive(Default)]
struct Url {
    /// For the next look.
    waiting: Vec<Ticket>,
    /// The look under way.
    look: Option<(Vec<Ticket>, Vec<Reference>)>,
}

struct Request {
    channels: Vec<Channel>,
    /// For each channel, what came of it; a request is done when all have their result.
    results: Vec<Option<Result<Resolved, git::Error>>>,
}

impl Core {
    pub(super) fn new(idle: usize) -> Self {
        Self { idle, urls: HashMap::new(), queue: VecDeque::new(), requests: HashMap::new() }
    }

    pub(super) fn on_request(
        &mut self,
        ticket: Ticket,
        channels: Vec<Channel>,
        out: &mut Vec<Effect>,
    ) {
        for channel in &channels {
            let url = self.urls.entry(channel.url.clone()).or_default();
            if url.waiting.is_empty() && url.look.is_none() {
                self.queue.push_back(channel.url.clone());
            }
            if !url.waiting.contains(&ticket) {
                url.waiting.push(ticket);
            }
        }
        let results = vec![None; channels.len()];
        self.requests.insert(ticket, Request { channels, results });
        self.answer_if_done(ticket, out);
        self.start(out);
    }

    pub(super) fn on_ended(&mut self, address: &str, answer: &Answer, out: &mut Vec<Effect>) {
        let Some(url) = self.urls.get_mut(address) else { return };
        let Some((tickets, references)) = url.look.take() else { return };
        self.idle += 1;
        if url.waiting.is_empty() {
            self.urls.remove(address);
        } else {
            self.queue.push_back(address.to_owned());
        }
        for ticket in tickets {
            let Some(request) = self.requests.get_mut(&ticket) else { continue };
            let channels = request.channels.iter().zip(&mut request.results);
            for (channel, result) in channels.filter(|(channel, _)| channel.url == address) {
                *result = Some(find(answer, &references, &channel.reference));
            }
            self.answer_if_done(ticket, out);
        }
        self.start(out);
    }

    /// Starts looks as long as threads are idle.
    fn start(&mut self, out: &mut Vec<Effect>) {
        while self.idle > 0
            && let Some(address) = self.queue.pop_front()
        {
            let Some(url) = self.urls.get_mut(&address) else { continue };
            let tickets = std::mem::take(&mut url.waiting);
            let requests = tickets.iter().filter_map(|ticket| self.requests.get(ticket));
            let channels = requests.flat_map(|request| &request.channels);
            let mut references = Vec::new();
            for channel in channels.filter(|channel| channel.url == address) {
                if !references.contains(&channel.reference) {
                    references.push(channel.reference.clone());
                }
            }
            self.idle -= 1;
            url.look = Some((tickets, references.clone()));
            out.push(Effect::Look(Look { url: address, references }));
        }
    }

    fn answer_if_done(&mut self, ticket: Ticket, out: &mut Vec<Effect>) {
        let done = |request: &Request| request.results.iter().all(Option::is_some);
        if !self.requests.get(&ticket).is_some_and(done) {
            return;
        }
        let Some(Request { channels, results }) = self.requests.remove(&ticket) else { return };
        let checkout = |(channel, result): (Channel, Result<Resolved, git::Error>)| match result {
            Ok(Resolved { commit, tree, directory }) => {
                let Channel { name, url, .. } = channel;
                Ok(Checkout { channel: name, url, commit, tree, directory })
            }
            Err(git::Error(text)) => Err(format!("channel {}: {text}", channel.name)),
        };
        // Both are in the order of the channels, so the first error wins.
        let result =
            channels.into_iter().zip(results.into_iter().flatten()).map(checkout).collect();
        out.push(Effect::Answer(ticket, result));
    }
}

/// What `answer` says of `reference`, given what was asked.
fn find(
    answer: &Answer,
    references: &[Reference],
    reference: &Reference,
) -> Result<Resolved, git::Error> {
    let results = answer.as_ref().map_err(git::Error::clone)?;
    let found = references.iter().zip(results).find(|(asked, _)| *asked == reference);
    found.map_or_else(
        || Err(git::Error("the look did not answer for it".to_owned())),
        |(_, result)| result.clone(),
    )
}

#[derive(Clone)]
pub(crate) struct Handle {
    inbox: Sender<Message>,
}

impl Handle {
    /// Asks for the channels' newest commits as of a look that begins after this call. The answer comes on `lane`,
    /// which must have room for it.
    pub(crate) fn fetch(
        &self,
        jobset: &JobsetName,
        channels: Vec<Channel>,
        lane: Sender<Fetched>,
    ) -> Result<(), Gone> {
        Ok(self.inbox.send(Message::Fetch { jobset: jobset.clone(), channels, lane })?)
    }

    /// The checkouts themselves if they are all there; or else the same commits, checked out again. For whoever had to
    /// wait for longer than unused checkouts are kept, and can go on waiting for `patience`; the fetch goes on after that.
    pub(crate) fn present<'a>(
        &self,
        jobset: &JobsetName,
        checkouts: &'a [Checkout],
        patience: Duration,
        canceled: &dyn Fn() -> bool,
    ) -> Result<Cow<'a, [Checkout]>, Absent> {
        if checkouts.iter().all(|checkout| checkout.directory.is_dir()) {
            return Ok(Cow::Borrowed(checkouts));
        }
        let (lane, answer) = bounded(1);
        let channels = checkouts.iter().map(Checkout::pinned).collect();
        self.fetch(jobset, channels, lane).map_err(|_| Absent::Canceled)?;
        let deadline = clock::now() + patience;
        loop {
            match answer.recv_timeout(GLANCE) {
                Ok(fetched) => return fetched.result.map(Cow::Owned).map_err(Absent::Failed),
                Err(RecvTimeoutError::Timeout) if canceled() => return Err(Absent::Canceled),
                Err(RecvTimeoutError::Timeout) if clock::now() < deadline => {}
                Err(RecvTimeoutError::Timeout) => return Err(Absent::Late),
                Err(RecvTimeoutError::Disconnected) => return Err(Absent::Canceled),
            }
        }
    }
}

/// Why checkouts that were removed are not there again.
#[derive(Debug)]
pub(crate) enum Absent {
    Failed(String),
    /// They may come yet.
    Late,
    /// Whoever asked is to stop, or the daemon is.
    Canceled,
}

/// Starts the updater and the pool `fetch/N`. `silence` is how long a look may go without a byte.
pub(crate) fn spawn(
    threads: &Spawner,
    launcher: Launcher,
    places: Places,
    max_fetches: usize,
    silence: Duration,
) -> io::Result<Handle> {
    let looker = move |look: &Look, started: &dyn Fn(Killer)| {
        git::look(&launcher, &places, look, silence, started)
    };
    spawn_with(threads, max_fetches, looker)
}

/// How a look is made: in tests, not by a process.
trait Looker: Fn(&Look, &dyn Fn(Killer)) -> Answer + Clone + Send + 'static {}

impl<F: Fn(&Look, &dyn Fn(Killer)) -> Answer + Clone + Send + 'static> Looker for F {}

fn spawn_with(threads: &Spawner, max_fetches: usize, looker: impl Looker) -> io::Result<Handle> {
    let (inbox, requests) = bounded(INBOX);
    let pool = Pool::new(threads, "fetch", max_fetches)?;
    // Each look sends two reports, and there are no more looks than threads.
    let (reports, lane) = bounded(2 * max_fetches);
    let core = Core::new(max_fetches);
    let actor = Actor {
        core,
        pool,
        looker,
        reports,
        lanes: HashMap::new(),
        killers: HashMap::new(),
        next: 0,
    };
    threads.essential("updater", move |stop| actor.run(&requests, &lane, &stop))?;
    Ok(Handle { inbox })
}

/// The core with what its effects need.
struct Actor<L> {
    core: Core,
    pool: Pool,
    looker: L,
    reports: Sender<Report>,
    lanes: HashMap<Ticket, (JobsetName, Sender<Fetched>)>,
    /// Of the looks under way.
    killers: HashMap<String, Killer>,
    next: u64,
}

impl<L: Looker> Actor<L> {
    fn run(
        mut self,
        inbox: &Receiver<Message>,
        lane: &Receiver<Report>,
        stop: &Stop,
    ) -> Result<(), Gone> {
        let mut out = Vec::new();
        loop {
            select_biased! {
                recv(stop) -> _ => {
                    self.stop(lane);
                    return Ok(());
                }
                recv(lane) -> report => self.on_report(report?, &mut out),
                recv(inbox) -> message => match message? {
                    Message::Fetch { jobset, channels, lane } => {
                        let ticket = Ticket(self.next);
                        self.next += 1;
                        self.lanes.insert(ticket, (jobset, lane));
                        self.core.on_request(ticket, channels, &mut out);
                    }
                },
            }
            fault("updater");
            for effect in out.drain(..) {
                self.perform(effect)?;
            }
        }
    }

    fn on_report(&mut self, report: Report, out: &mut Vec<Effect>) {
        match report {
            Report::Started { url, killer } => drop(self.killers.insert(url, killer)),
            Report::Ended { url, answer } => {
                self.killers.remove(&url);
                self.core.on_ended(&url, &answer, out);
            }
        }
    }

    fn perform(&mut self, effect: Effect) -> Result<(), Gone> {
        match effect {
            Effect::Look(look) => {
                let guard =
                    Guard { url: look.url.clone(), reports: self.reports.clone(), open: true };
                let looker = self.looker.clone();
                self.pool.run(move || work(&look, guard, &looker))
            }
            Effect::Answer(ticket, result) => {
                if let Some((jobset, lane)) = self.lanes.remove(&ticket)
                    && lane.try_send(Fetched { jobset, result }).is_err()
                {
                    // A monitor that was deleted meanwhile.
                    log::debug!(target: "updater", "nobody waits for a fetch any more");
                }
                Ok(())
            }
        }
    }

    /// Kills the looks under way, those included that are just starting, and waits for them.
    fn stop(mut self, lane: &Receiver<Report>) {
        let deadline = clock::now() + FAREWELL;
        let mut left: usize = self.core.urls.values().filter(|url| url.look.is_some()).count();
        self.killers.values().for_each(Killer::cancel);
        while left > 0 {
            match lane.recv_deadline(deadline) {
                Ok(Report::Started { killer, .. }) => killer.cancel(),
                Ok(Report::Ended { url, .. }) => {
                    self.killers.remove(&url);
                    left -= 1;
                }
                Err(_) => {
                    log::warn!(target: "updater", "{left} looks have not ended in time");
                    return;
                }
            }
        }
    }
}

/// One look, on a thread of the pool.
fn work(look: &Look, mut guard: Guard, looker: &impl Looker) {
    let reports = guard.reports.clone();
    let started = |killer| {
        let report = Report::Started { url: look.url.clone(), killer };
        // There is room; and without an updater there is nobody to tell.
        let _ = reports.try_send(report);
    };
    let answer = catch_unwind(AssertUnwindSafe(|| {
        fault("fetch");
        looker(look, &started)
    }));
    guard.end(answer.unwrap_or_else(|payload| {
        let text = panic_message(payload.as_ref());
        log::error!(target: "updater", "a look panicked: {text}");
        Err(git::Error(format!("the look panicked: {text}")))
    }));
}

/// Reports the end of a look even if it was never begun, because the pool has stopped.
struct Guard {
    url: String,
    reports: Sender<Report>,
    open: bool,
}

impl Guard {
    fn end(&mut self, answer: Answer) {
        self.open = false;
        let report = Report::Ended { url: std::mem::take(&mut self.url), answer };
        // There is room; and without an updater there is nobody to tell.
        let _ = self.reports.try_send(report);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.open {
            self.end(Err(git::Error("the daemon is stopping".to_owned())));
        }
    }
}

#[cfg(test)]
mod tests;
