//! What the builder's loop does with each message: between the queue, the books and the backends.
//!
//! Invariant: after every step each build that can be handed out has been, and each that the queue hands out is
//! in a batch for the books, with them, or with a backend.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::books::{self, Asked, Batch, Books, End, Start, Written};
use super::placed::{Place, Placed};
use super::queue::{Facts, Queue, Reason, Taken};
use super::remote::{Heard, News};
use super::{Backend, Obstructed, Report, Settings, Team, Waiting};
use crate::actor::{Gone, Spawner};
use crate::daemon::space::{Disks, Space};
use crate::db::builds::{self, Changes};
use crate::db::{Database, Error, Reader, records};
use crate::model::build::{BuildId, Entry, Kind, Order, Outcome, Store};
use crate::model::error::chain;
use crate::model::evaluation::EvaluationId;
use crate::sys::clock;

/// Entries that one query loads: enough to make its cost per entry that of a row.
const QUERY: usize = 10_000;

/// How long a build is held back that the books did not let start though they show it as ready.
const HOLD: Duration = Duration::from_secs(60);

/// When the books are read again that could not be: soon when the disk was full or the file locked …
const REREAD: Duration = Duration::from_secs(1);

/// … and rarely when it takes a person to mend them.
const REREAD_BROKEN: Duration = Duration::from_secs(60);

/// Obstacles that are told of: evaluated code may name any system.
const OBSTACLES: usize = 20;

/// Commands that may wait for the books: as many as a bridge has connections.
const MAX_COMMANDS: usize = 64;

pub(super) struct Builder {
    queue: Queue,
    backends: Team,
    /// Which backend has which build.
    placed: BTreeMap<BuildId, Placed>,
    reader: Reader,
    books: Books,
    /// What the books are told next.
    batch: Batch,
    space: Space,
    disks: Disks,
    /// Builds that changed in the books and could not be read since.
    unread: BTreeSet<BuildId>,
    reread: Option<Instant>,
    /// Whether a pause of an earlier life is ignored.
    one_shot: bool,
    /// Where evaluations go that are to be made again.
    repeats: Sender<EvaluationId>,
}

/// What keeps builds of a kind and system from running on any of `backends`.
fn obstacle(backends: &Team, kind: Kind, system: &str) -> Option<Reason> {
    if let (Some(remote), Kind::Derivation(store)) = (&backends.remote, kind) {
        return remote.obstacle(store, system);
    }
    let mut reason = Some(Reason::NoBackend(kind));
    for backend in backends.near.iter().filter(|backend| backend.kind() == kind) {
        reason = Some(backend.obstacle(system)?);
    }
    reason
}

impl Builder {
    /// Also returns the lane on which the books answer.
    pub(super) fn new(
        threads: &Spawner,
        database: Database,
        settings: &Settings,
        backends: Team,
        repeats: Sender<EvaluationId>,
    ) -> io::Result<(Self, Receiver<Written>)> {
        let reader = database.reader().map_err(io::Error::other)?;
        let (books, written) =
            Books::spawn(threads, database, settings.log_directory.join("builds"))?;
        let builder = Self {
            queue: Queue::new(settings.max_builds),
            backends,
            placed: BTreeMap::new(),
            reader,
            books,
            batch: Batch::default(),
            space: Space::new("builder", "builds", settings.minimum_disk_space),
            disks: settings.disks(),
            unread: BTreeSet::new(),
            reread: None,
            one_shot: settings.one_shot,
            repeats,
        };
        Ok((builder, written))
    }

    /// Loads what the books hold.
    pub(super) fn begin(&mut self, now: Instant) -> Result<(), Gone> {
        let loaded = records::setting(&self.reader, books::PAUSED)
            .and_then(|paused| Ok((paused, builds::scheduled(&self.reader)?)));
        let (paused, ids) = loaded.map_err(|error| {
            log::error!(target: "builder", "the queue was not loaded: {}", chain(&error));
            Gone
        })?;
        match paused {
            Some(_) if self.one_shot => {
                log::warn!(target: "builder", "builds are paused since before the start, which a one-shot run ignores");
            }
            Some(_) => {
                log::warn!(target: "builder", "builds are paused since before the start");
                self.queue.set_paused(true);
            }
            None => {}
        }
        if let Some(remote) = &self.backends.remote {
            self.queue.set_open(remote.open());
            for order in remote.orders() {
                self.queue.resume(order.id, order.attempt);
                self.placed.insert(order.id, Placed::resumed(order));
            }
        }
        self.follow(now, ids);
        log::info!(target: "builder", "{} builds are scheduled", self.queue.pending().count());
        Ok(())
    }

    /// Hands out what can be, and gives the books what there is for them.
    pub(super) fn advance(&mut self, now: Instant) -> Result<(), Gone> {
        if self.queue.is_hungry() && self.space.is_due(now) {
            self.measure(now);
        }
        while let Some(Taken { id, far }) = self.queue.take() {
            let worker = match (far, &mut self.backends.remote) {
                (Some(system), Some(remote)) => {
                    let worker = remote.reserve(id, &system);
                    self.queue.set_open(remote.open());
                    worker
                }
                (Some(_) | None, _) => None,
            };
            self.batch.starts.push(Start { id, worker });
        }
        self.finish_writing()
    }

    /// Gives the books what there is for them if they are free.
    pub(super) fn finish_writing(&mut self) -> Result<(), Gone> {
        if self.books.is_busy() || self.batch.is_empty() {
            return Ok(());
        }
        self.books.write(std::mem::take(&mut self.batch))
    }

    /// When `on_deadline` is to be called.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let starved = self.space.is_short() && self.queue.is_hungry();
        let space = self.space.due().filter(|_| starved);
        let remote = self.backends.remote.as_ref().and_then(|remote| remote.deadline());
        self.queue.deadline().into_iter().chain(space).chain(self.reread).chain(remote).min()
    }

    pub(super) fn on_deadline(&mut self, now: Instant) {
        self.queue.on_deadline(now);
        if self.reread.is_some_and(|due| due <= now) {
            self.follow(now, vec![]);
        }
        if let Some(remote) = &mut self.backends.remote
            && remote.deadline().is_some_and(|due| due <= now)
        {
            let news = remote.on_deadline(now);
            self.on_news(news);
        }
    }

    /// Something came from the side of remote workers.
    pub(super) fn on_heard(&mut self, now: Instant, heard: Heard) {
        if let Some(remote) = &mut self.backends.remote {
            let news = remote.on_heard(now, heard);
            self.on_news(news);
        }
    }

    fn on_news(&mut self, news: News) {
        self.batch.notes.extend(news.notes);
        for report in news.reports {
            self.on_report(report);
        }
    }

    pub(super) fn on_report(&mut self, report: Report) {
        match report {
            Report::Ended { id, attempt, outcome } => {
                if self.queue.over(id, attempt) {
                    if let Outcome::NoSpace(why) = &outcome {
                        self.on_no_space(why);
                    }
                    if let Some(placed) = self.placed.remove(&id) {
                        placed.tell_end(id, &outcome);
                    }
                    self.batch.ends.push(End { id, attempt, outcome });
                } else {
                    log::debug!(target: "builder", "an old report of build {id}, try {attempt}");
                }
            }
            Report::Changed => {
                let backends = &self.backends;
                if let Some(remote) = &backends.remote {
                    self.queue.set_open(remote.open());
                }
                self.queue.reconsider(&|kind, system| obstacle(backends, kind, system));
                if let Some(remote) = &mut self.backends.remote {
                    let news = remote.on_changed();
                    self.on_news(news);
                }
            }
        }
    }

    pub(super) fn on_changes(&mut self, now: Instant, changes: Changes) {
        self.heed(&changes);
        let Changes { scheduled, ended, reused: _, repeats: _ } = changes;
        self.follow(now, scheduled.into_iter().chain(ended).collect());
    }

    pub(super) fn on_command(&mut self, asked: Asked) {
        if self.batch.commands.len() >= MAX_COMMANDS {
            let full = Error::Unavailable("too many requests wait for the database".to_owned());
            drop(asked.reply.send(Err(full)));
            return;
        }
        self.batch.commands.push(asked);
    }

    /// The books answered.
    pub(super) fn on_written(&mut self, now: Instant, written: Written) {
        self.books.answered();
        let mut ids: Vec<BuildId> = Vec::new();
        let mut refused: Vec<BuildId> = Vec::new();
        let mut heeded = Changes::default();
        for (id, order) in written.started {
            match order {
                Ok(order) => {
                    if self.queue.started(id, order.attempt) {
                        ids.push(id);
                    }
                    self.start(order);
                }
                Err(error) => {
                    match error {
                        Error::NotFound(_) | Error::Conflict(_) => {
                            log::debug!(target: "builder", "build {id} does not start: {error}");
                        }
                        Error::Sqlite(_)
                        | Error::Open(..)
                        | Error::Io(..)
                        | Error::Newer { .. }
                        | Error::Corrupt(_)
                        | Error::Interrupted
                        | Error::Unavailable(_) => {
                            log::error!(target: "builder", "build {id} cannot start: {}", chain(&error));
                        }
                    }
                    self.not_started(id);
                    refused.push(id);
                }
            }
        }
        for id in written.ended {
            self.queue.settled(id);
            heeded.ended.push(id);
        }
        for changes in written.changes {
            heeded.scheduled.extend(changes.scheduled);
            heeded.ended.extend(changes.ended);
            for id in changes.repeats {
                let _ = self.repeats.try_send(id); // It is promised all the same.
            }
        }
        heeded.ended.extend(&refused);
        self.heed(&heeded);
        ids.extend(heeded.scheduled.into_iter().chain(heeded.ended));
        ids.sort_unstable();
        ids.dedup();
        if !ids.is_empty() {
            self.follow(now, ids);
        }
        for id in refused {
            if self.queue.is_ready(id) {
                self.queue.hold(id, now + HOLD, clock::wall().after(HOLD));
            }
        }
        if let Some(paused) = written.paused {
            self.queue.set_paused(paused);
            log::info!(target: "builder", "builds are {}", if paused { "paused" } else { "resumed" });
        }
        for (name, paused) in written.workers {
            log::info!(target: "builder", "worker {name} is {}", if paused { "paused" } else { "resumed" });
            if let Some(remote) = &mut self.backends.remote {
                let news = remote.pause(&name, paused);
                self.on_news(news);
            }
        }
        for (reply, result) in written.replies {
            drop(reply.send(result)); // The asker may have given up.
        }
    }

    fn heed(&mut self, changes: &Changes) {
        for backend in &mut self.backends.near {
            backend.heed(changes);
        }
        if let Some(remote) = &mut self.backends.remote {
            let news = remote.settle(&changes.ended);
            self.on_news(news);
        }
    }

    /// The books refused to start it, or it will not be asked of them.
    fn not_started(&mut self, id: BuildId) {
        self.queue.not_started(id);
        if let Some(remote) = &mut self.backends.remote {
            remote.release(id);
            self.queue.set_open(remote.open());
        }
    }

    fn cancel(&mut self, id: BuildId) {
        match self.placed.get(&id).map(|placed| placed.place) {
            Some(Place::Backend(backend)) => self.backends.near[backend].cancel(id),
            Some(Place::Far) => {
                if let Some(remote) = &mut self.backends.remote {
                    let news = remote.cancel(id);
                    self.on_news(news);
                }
            }
            None => {}
        }
    }

    pub(super) fn waiting(&self, ids: &[BuildId]) -> Vec<Option<String>> {
        ids.iter().map(|id| self.queue.reason(*id).map(|reason| reason.to_string())).collect()
    }

    pub(super) fn first(&self, limit: usize) -> Vec<Waiting> {
        let first = self.queue.first(limit).into_iter();
        first.map(|(id, reason)| Waiting { id, reason: reason.to_string() }).collect()
    }

    pub(super) fn obstacles(&self) -> Vec<Obstructed> {
        let all = self.queue.obstacles().into_iter().take(OBSTACLES);
        all.map(|(reason, builds)| Obstructed { reason: reason.to_string(), builds }).collect()
    }

    /// Compares everything with the books and repairs what differs; returns how many builds did.
    pub(super) fn reconcile(&mut self, now: Instant) -> usize {
        let read = self
            .reader
            .unchecked_transaction()
            .map_err(Error::from)
            .and_then(|tx| Ok((builds::scheduled(&tx)?, builds::running(&tx)?)));
        let (scheduled, running) = match read {
            Ok(read) => read,
            Err(error) => {
                log::error!(target: "builder", "the queue was not compared with the books: {}", chain(&error));
                return 0;
            }
        };
        let scheduled: BTreeSet<BuildId> = scheduled.into_iter().collect();
        let mut differ: Vec<BuildId> =
            scheduled.iter().copied().filter(|id| !self.queue.knows(*id)).collect();
        differ.extend(self.queue.pending().filter(|id| !scheduled.contains(id)));
        differ.extend(self.queue.missing());
        let mut repaired = differ.len();
        for (id, attempt, _) in running {
            // One that is being ended or started is on its way through the batches.
            if !self.queue.active().any(|active| active == id) {
                log::warn!(target: "builder", "build {id} was started and runs nowhere: it is scheduled again");
                self.batch.ends.push(End { id, attempt, outcome: Outcome::Interrupted });
                repaired += 1;
            }
        }
        // Those that run may have ended in the books without our hearing of it.
        differ.extend(self.queue.active());
        self.follow(now, differ);
        repaired
    }

    /// For the stop: nothing starts any more, and what runs is told to end.
    pub(super) fn cancel_all(&mut self) {
        for start in std::mem::take(&mut self.batch.starts) {
            self.not_started(start.id);
        }
        let running: Vec<BuildId> = self.placed.keys().copied().collect();
        running.into_iter().for_each(|id| self.cancel(id));
    }

    /// For the stop: what remote workers have they keep, and the next life finds it with them.
    pub(super) fn leave_far(&mut self) {
        let Some(remote) = &mut self.backends.remote else { return };
        remote.leave();
        for order in remote.orders() {
            self.placed.remove(&order.id);
            self.queue.leave(order.id);
        }
    }

    /// For the stop: those that still run are interrupted as far as the books are concerned; they will not outlive us.
    pub(super) fn abandon_all(&mut self) {
        let running: Vec<(BuildId, i64)> = self.queue.running().collect();
        for (id, attempt) in running {
            log::warn!(target: "builder", "build {id} did not end in time at the stop");
            self.on_report(Report::Ended { id, attempt, outcome: Outcome::Interrupted });
        }
    }

    /// For the stop: what the books only now said was started does not start.
    pub(super) fn on_last_written(&mut self, written: Written) {
        self.books.answered();
        for (id, order) in written.started {
            match order {
                Ok(Order { attempt, .. }) => {
                    self.queue.started(id, attempt);
                    self.on_report(Report::Ended { id, attempt, outcome: Outcome::Interrupted });
                }
                Err(_) => self.not_started(id),
            }
        }
        for id in written.ended {
            self.queue.settled(id);
        }
        for (reply, result) in written.replies {
            drop(reply.send(result)); // The asker may have given up.
        }
    }

    /// Whether nothing is under way, neither with a backend nor with the books.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.active().next().is_none() && self.batch.is_empty() && !self.books.is_busy()
    }

    /// Gives a build that the books say is started to its backend.
    fn start(&mut self, order: Order) {
        let kind = if order.process.is_some() {
            Kind::Process
        } else {
            Kind::Derivation(Store::of(&order.derivation))
        };
        if let (Some(remote), Kind::Derivation(_)) = (&mut self.backends.remote, kind) {
            self.placed.insert(order.id, Placed::new(Place::Far, &order));
            let news = remote.start(order);
            self.on_news(news);
            return;
        }
        let able = |backend: &dyn Backend| {
            backend.kind() == kind && backend.obstacle(&order.system).is_none()
        };
        let near = &self.backends.near;
        let Some(backend) = near.iter().position(|backend| able(backend.as_ref())) else {
            // An obstacle came up since the queue took it.
            let Order { id, attempt, .. } = order;
            self.on_report(Report::Changed);
            self.on_report(Report::Ended { id, attempt, outcome: Outcome::Interrupted });
            return;
        };
        self.placed.insert(order.id, Placed::new(Place::Backend(backend), &order));
        self.backends.near[backend].start(order);
    }

    /// Makes the queue agree with the books about these builds.
    fn follow(&mut self, now: Instant, ids: Vec<BuildId>) {
        self.unread.extend(&ids);
        self.reread = None;
        let ids: Vec<BuildId> = self.unread.iter().copied().collect();
        let (entries, running) = match self.read(&ids) {
            Ok(read) => read,
            Err(error) => {
                log::error!(target: "builder", "builds were not loaded: {}", chain(&error));
                let wait = if error.is_transient() { REREAD } else { REREAD_BROKEN };
                self.reread = Some(now + wait);
                return;
            }
        };
        self.unread.clear();
        let facts = Facts { now, wall: clock::wall(), ids: &ids, entries, running: &running };
        let backends = &self.backends;
        let stop = self.queue.follow(facts, &|kind, system| obstacle(backends, kind, system));
        for id in stop {
            log::debug!(target: "builder", "build {id} ended in the books and is stopped");
            self.cancel(id);
        }
    }

    /// Reads builds from the books, and with them those they wait for that the queue has not heard of.
    #[expect(clippy::type_complexity, reason = "the two lists that Facts is made of")]
    fn read(&self, ids: &[BuildId]) -> Result<(Vec<Entry>, Vec<(BuildId, i64)>), Error> {
        let tx = self.reader.unchecked_transaction()?;
        let mut entries: Vec<Entry> = Vec::with_capacity(ids.len());
        let mut asked: BTreeSet<BuildId> = ids.iter().copied().collect();
        let mut wanted = ids.to_vec();
        while !wanted.is_empty() {
            let known = entries.len();
            for part in wanted.chunks(QUERY) {
                entries.extend(builds::entries(&tx, part)?);
            }
            let needed = entries[known..].iter().flat_map(|entry| &entry.waits_for).copied();
            wanted = needed.filter(|id| !self.queue.knows(*id) && asked.insert(*id)).collect();
        }
        let running = builds::running_among(&tx, ids)?;
        Ok((entries, running))
    }

    /// There was none for a build, whatever was measured last.
    fn on_no_space(&mut self, why: &str) {
        let now = clock::now();
        self.measure(now);
        if !self.space.is_short() {
            self.space.on_refused(now, why);
            self.queue.set_short_of_space(true);
        }
    }

    fn measure(&mut self, now: Instant) {
        self.space.on_measured(now, self.disks.measure());
        self.queue.set_short_of_space(self.space.is_short());
    }
}
