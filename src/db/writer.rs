//! The database actor: a thread that applies closures over the open transaction, in group commits.
//!
//! Invariant: a request is answered only when what it wrote is committed, or has left no trace. A request
//! that fails for a reason of its own takes only its savepoint along; one that fails because the file cannot
//! be written now (disk full, locked) takes the whole group back, which is then tried again.

mod actor;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, bounded};
use rusqlite::Connection;

use super::{Error, events, migrate};
use crate::actor::{Spawner, ask};
use crate::model::build::BuildId;
use crate::model::evaluation::EvaluationId;
use crate::model::event::{Event, What};
use crate::model::spec::JobsetName;
use crate::model::time::Time;
use crate::sys::clock;

/// Requests that wait for the writer. Every asker waits for its own answer, so this many threads can ask at
/// once before one is held up at the door.
const INBOX: usize = 256;

/// How much longer than its deadline an asker waits for the writer's word that the request was dropped: an
/// attempt that is under way may take SQLite's busy time-out at each of its steps, and a commit what the disk takes.
const VERDICT: Duration = Duration::from_secs(1);

/// How often a query looks at the clock: every few microseconds.
const STEPS: std::ffi::c_int = 10_000;

/// A handle on the database actor. The actor ends when the last clone is dropped.
#[derive(Clone)]
pub(crate) struct Database {
    inbox: Sender<Message>,
    path: Arc<Path>,
}

enum Message {
    Write(Box<dyn Request>),
    /// The sender has a slot more than the subscriber asked for; the reply says that it is in place.
    Subscribe(Subscriber, Sender<()>),
    Tally(Sender<Tally>),
}

/// What the writer has done since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) transactions: u64,
    pub(crate) requests: u64,
    /// From the beginnings of the transactions to their commits, all together.
    pub(crate) busy: Duration,
}

/// A write request, whatever it answers with.
trait Request: Send {
    /// Its name, for the log.
    fn what(&self) -> &'static str;
    /// After this time nobody waits for it any more.
    fn deadline(&self) -> Option<Instant>;
    /// Runs the closure and keeps what it returned. The error is of the transient kind.
    fn apply(&mut self, tx: &mut Tx<'_>) -> Result<Applied, Error>;
    /// Hands over what was kept: the group has been committed.
    fn answer(self: Box<Self>);
    fn refuse(self: Box<Self>, error: Error);
}

enum Applied {
    Keep,
    /// The request failed for a reason of its own.
    Undo,
}

struct Typed<T, F> {
    what: &'static str,
    deadline: Option<Instant>,
    closure: F,
    result: Option<Result<T, Error>>,
    reply: Sender<Result<T, Error>>,
}

impl<T, F> Request for Typed<T, F>
where
    T: Send,
    F: FnMut(&mut Tx<'_>) -> Result<T, Error> + Send,
{
    fn what(&self) -> &'static str {
        self.what
    }

    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    fn apply(&mut self, tx: &mut Tx<'_>) -> Result<Applied, Error> {
        match (self.closure)(tx) {
            Err(error) if error.is_transient() => Err(error),
            result => {
                let applied = if result.is_ok() { Applied::Keep } else { Applied::Undo };
                self.result = Some(result);
                Ok(applied)
            }
        }
    }

    fn answer(self: Box<Self>) {
        if let Some(result) = self.result {
            // One slot, one answer: never full. The asker may be gone.
            let _ = self.reply.try_send(result);
        }
    }

    fn refuse(self: Box<Self>, error: Error) {
        let _ = self.reply.try_send(Err(error)); // As above.
    }
}

/// One request's view of the open transaction.
pub(crate) struct Tx<'a> {
    pub(crate) conn: &'a Connection,
    pub(crate) now: Time,
    events: &'a mut Vec<Event>,
}

impl<'a> Tx<'a> {
    /// For tests and the writer.
    pub(crate) fn new(conn: &'a Connection, now: Time, events: &'a mut Vec<Event>) -> Self {
        Self { conn, now, events }
    }

    /// Records an event; subscribers hear of it after the commit.
    pub(crate) fn emit(
        &mut self,
        what: What,
        jobset: Option<&JobsetName>,
        evaluation: Option<EvaluationId>,
        build: Option<BuildId>,
        status: Option<&str>,
    ) -> Result<(), Error> {
        let mut event = Event {
            id: 0,
            time: self.now,
            what,
            jobset: jobset.cloned(),
            evaluation,
            build,
            status: status.map(str::to_owned),
        };
        event.id = events::insert(self.conn, &event)?;
        self.events.push(event);
        Ok(())
    }
}

/// A read-only connection of one thread; derefs to `Connection`.
pub(crate) struct Reader(Connection);

impl Reader {
    /// Opens the file of a daemon that may run in another process, or not at all.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        migrate::open_reader(path).map(Self)
    }

    /// Queries that are not done by `deadline` fail with `Interrupted`.
    pub(crate) fn limit(&mut self, deadline: Instant) -> Result<(), Error> {
        let late = move || clock::now() >= deadline;
        Ok(self.0.progress_handler(STEPS, Some(late))?)
    }
}

impl std::ops::Deref for Reader {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        &self.0
    }
}

/// What a subscriber receives.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Subscription {
    Event(Event),
    /// It was too slow and has been dropped: read the state again.
    Overflow,
}

/// The writer's end of a subscription.
struct Subscriber {
    lane: Sender<Subscription>,
    /// How many events may pile up; the lane has a slot more.
    room: usize,
    /// Whether the other end still exists: a channel tells only whom it cannot send to.
    alive: std::sync::Weak<()>,
}

/// The events a subscriber receives; derefs to the channel. Dropping it ends the subscription.
pub(crate) struct Events {
    lane: Receiver<Subscription>,
    _alive: Arc<()>,
}

impl std::ops::Deref for Events {
    type Target = Receiver<Subscription>;
    fn deref(&self) -> &Receiver<Subscription> {
        &self.lane
    }
}

impl Database {
    /// Opens or creates the file, migrates it and starts the writer thread `database`.
    pub(crate) fn open(path: &Path, threads: &Spawner) -> Result<Self, Error> {
        let conn = migrate::open(path)?;
        let (inbox, requests) = bounded(INBOX);
        threads
            .essential("database", move |stop| actor::run(conn, &requests, stop))
            .map_err(|error| Error::Io(PathBuf::from(path), error))?;
        Ok(Self { inbox, path: path.into() })
    }

    /// Applies bookkeeping that must not be lost: while the disk is full or the file locked it is tried
    /// again, without limit; the caller waits. Fails for good reasons only (`NotFound`, `Conflict`, …).
    /// The closure may run more than once; a run that was rolled back left nothing.
    pub(crate) fn write<T: Send + 'static>(
        &self,
        what: &'static str,
        apply: impl FnMut(&mut Tx<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = bounded(1);
        let request = Typed { what, deadline: None, closure: apply, result: None, reply };
        self.inbox.send(Message::Write(Box::new(request))).map_err(|_| stopping())?;
        answer.recv().map_err(|_| stopping())?
    }

    /// As `write` for people who wait: `Unavailable` after `within`.
    pub(crate) fn write_within<T: Send + 'static>(
        &self,
        within: Duration,
        what: &'static str,
        apply: impl FnMut(&mut Tx<'_>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let deadline = clock::now() + within;
        let (reply, answer) = bounded(1);
        let request = Typed { what, deadline: Some(deadline), closure: apply, result: None, reply };
        let message = Message::Write(Box::new(request));
        self.inbox.send_deadline(message, deadline).map_err(|error| match error {
            SendTimeoutError::Timeout(_) => late(),
            SendTimeoutError::Disconnected(_) => stopping(),
        })?;
        // The writer itself drops what is late, so that nothing is done that was answered with an error.
        match answer.recv_deadline(deadline + VERDICT) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(late()),
            Err(RecvTimeoutError::Disconnected) => Err(stopping()),
        }
    }

    /// A read-only connection of the caller's own.
    pub(crate) fn reader(&self) -> Result<Reader, Error> {
        Reader::open(&self.path)
    }

    /// What was done so far; `None` if the writer is too busy to say so within that time.
    pub(crate) fn tally(&self, within: Duration) -> Option<Tally> {
        let deadline = clock::now() + within;
        let (reply, answer) = bounded(1);
        self.inbox.send_deadline(Message::Tally(reply), deadline).ok()?;
        answer.recv_deadline(deadline).ok()
    }

    /// Events of commits from now on; a subscriber that lets `room` of them pile up gets `Overflow` as its
    /// last.
    pub(crate) fn subscribe(&self, room: usize) -> Result<Events, Error> {
        let (sender, lane) = bounded(room.saturating_add(1));
        let alive = Arc::new(());
        let subscriber = Subscriber { lane: sender, room, alive: Arc::downgrade(&alive) };
        ask(&self.inbox, |reply| Message::Subscribe(subscriber, reply)).map_err(|_| late())?;
        Ok(Events { lane, _alive: alive })
    }
}

fn stopping() -> Error {
    Error::Unavailable("the daemon is stopping".to_owned())
}

fn late() -> Error {
    Error::Unavailable("the database cannot be written for now".to_owned())
}

#[cfg(test)]
mod tests;
