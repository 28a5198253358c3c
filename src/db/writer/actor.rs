//! The writer's loop: groups requests into transactions, retries what the disk refuses, tells subscribers.
//!
//! It does not heed `stop` but drains until the last handle is gone; `stop` only puts an end to retries that
//! would keep the process from ending.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError, at, never, select_biased};
use rusqlite::Connection;

use super::{Applied, Message, Request, Subscriber, Subscription, Tally, Tx, late, stopping};
use crate::actor::{self, Gone, Stop};
use crate::db::Error;
use crate::model::error::chain;
use crate::model::event::Event;
use crate::sys::clock;

/// Requests in one transaction at most: bounds what a failure takes back.
const GROUP: usize = 128;

/// A transaction that has been open this long takes no further request: whoever was first waits no longer
/// than this for others, and gains what a commit costs.
const SPAN: Duration = Duration::from_millis(20);

/// The first and the longest wait between tries of a group that the disk refused.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// How long a failing group is still tried once the daemon stops: half of what the whole stop may take.
const LAST_TRIES: Duration = Duration::from_secs(5);

struct Writer {
    conn: Connection,
    stop: Stop,
    /// When the stop was first noticed.
    stopped: Option<Instant>,
    subscribers: Vec<Subscriber>,
    /// Requests taken from the inbox and not answered yet.
    group: Vec<Box<dyn Request>>,
    /// How long to wait after the next failure; `None` while writing works.
    backoff: Option<Duration>,
    tally: Tally,
}

pub(super) fn run(conn: Connection, inbox: &Receiver<Message>, stop: Stop) -> Result<(), Gone> {
    let mut writer = Writer {
        conn,
        stop,
        stopped: None,
        subscribers: Vec::new(),
        group: Vec::new(),
        backoff: None,
        tally: Tally::default(),
    };
    while let Ok(message) = inbox.recv() {
        actor::fault("database");
        writer.take(message);
        while !writer.group.is_empty() {
            writer.attempt(inbox);
        }
    }
    Ok(())
}

impl Writer {
    fn take(&mut self, message: Message) {
        match message {
            Message::Write(request) => self.group.push(request),
            Message::Subscribe(subscriber, reply) => {
                self.subscribers.retain(|s| s.alive.strong_count() > 0);
                self.subscribers.push(subscriber);
                let _ = reply.try_send(()); // The asker may be gone.
            }
            Message::Tally(reply) => drop(reply.try_send(self.tally)), // As above.
        }
    }

    /// Tries the group once: afterwards it is answered, or the backoff is over, or some of it is late.
    fn attempt(&mut self, inbox: &Receiver<Message>) {
        self.drop_late();
        if self.group.is_empty() {
            return;
        }
        let begun = clock::now();
        match self.commit(begun, inbox) {
            Ok(None) => self.roll_back(),
            Ok(Some(events)) => {
                if self.backoff.take().is_some() {
                    log::info!(target: "database", "writing works again");
                }
                self.tally.transactions += 1;
                self.tally.requests += self.group.len() as u64;
                self.tally.busy += clock::now().duration_since(begun);
                for request in self.group.drain(..) {
                    request.answer();
                }
                self.publish(&events);
            }
            Err(error) => {
                self.roll_back();
                if error.is_transient() {
                    self.after_failure(&error, inbox);
                } else {
                    log::error!(target: "database", "cannot write: {}", chain(&error));
                    self.refuse_all(|| {
                        Error::Unavailable(format!(
                            "the database cannot be written: {}",
                            chain(&error)
                        ))
                    });
                }
            }
        }
    }

    /// Applies the group, and what else arrives within [`SPAN`], in one transaction. `None`: it took longer than some
    /// of the askers wait, and is not to be committed with what those asked for.
    fn commit(
        &mut self,
        begun: Instant,
        inbox: &Receiver<Message>,
    ) -> Result<Option<Vec<Event>>, Error> {
        let mut events = Vec::new();
        execute(&self.conn, "BEGIN IMMEDIATE")?;
        let mut next = 0;
        while next < self.group.len() {
            let kept = events.len();
            execute(&self.conn, "SAVEPOINT request")?;
            let mut tx = Tx::new(&self.conn, clock::wall(), &mut events);
            let applied = self.group[next].apply(&mut tx);
            if self.conn.is_autocommit() {
                // SQLite has rolled everything back on its own, as it may when the disk is full.
                return Err(applied.err().unwrap_or(Error::Sqlite(rolled_back())));
            }
            match applied? {
                Applied::Keep => {}
                Applied::Undo => {
                    execute(&self.conn, "ROLLBACK TO request")?;
                    events.truncate(kept);
                }
            }
            execute(&self.conn, "RELEASE request")?;
            next += 1;
            while next == self.group.len()
                && next < GROUP
                && clock::now().duration_since(begun) < SPAN
            {
                match inbox.try_recv() {
                    Ok(message) => self.take(message),
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                }
            }
        }
        if self.group.iter().any(|request| is_late(request.as_ref(), clock::now())) {
            return Ok(None);
        }
        execute(&self.conn, "COMMIT")?;
        Ok(Some(events))
    }

    fn roll_back(&self) {
        if !self.conn.is_autocommit()
            && let Err(error) = execute(&self.conn, "ROLLBACK")
        {
            // The next BEGIN will say so again, if it matters.
            log::debug!(target: "database", "cannot roll back: {}", chain(&error));
        }
    }

    /// Waits before the group is tried again, or gives it up when the daemon is stopping.
    fn after_failure(&mut self, error: &Error, inbox: &Receiver<Message>) {
        if self.backoff.is_none() {
            let what = self.group.first().map_or("", |request| request.what());
            log::warn!(target: "database", "cannot write ({what}), trying again: {}", chain(error));
        }
        let wait = self.backoff.unwrap_or(BACKOFF.0);
        self.backoff = Some((wait * 2).min(BACKOFF.1));
        self.wait(clock::now() + wait, inbox);
        if self.stopped.is_some_and(|since| clock::now() >= since + LAST_TRIES) {
            log::error!(
                target: "database",
                "giving up {} writes on the way out: {}", self.group.len(), chain(error)
            );
            self.refuse_all(stopping);
        }
    }

    /// Takes messages until `end`, so that those who wait for a limited time are answered in time.
    fn wait(&mut self, end: Instant, inbox: &Receiver<Message>) {
        loop {
            let now = clock::now();
            let until =
                self.group.iter().filter_map(|r| r.deadline()).min().map_or(end, |d| d.min(end));
            // A disconnected channel is always ready: each is asked only until that is known.
            let stop = if self.stopped.is_some() { never() } else { self.stop.clone() };
            let full = self.group.len() >= GROUP;
            let inbox = if full { &never() } else { inbox };
            select_biased! {
                recv(stop) -> _ => self.stopped = Some(now),
                recv(inbox) -> message => match message {
                    Ok(message) => self.take(message),
                    Err(_) => return self.wait_alone(until),
                },
                recv(at(until)) -> _ => {
                    self.drop_late();
                    if self.group.is_empty() || clock::now() >= end {
                        return;
                    }
                }
            }
        }
    }

    /// The rest of a wait when no handle is left; the requests in the group are still to be written.
    fn wait_alone(&mut self, until: Instant) {
        if self.stopped.is_none() {
            match self.stop.recv_deadline(until) {
                Ok(never) => match never {},
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => self.stopped = Some(clock::now()),
            }
        }
        let timer: Receiver<Instant> = at(until);
        let _ = timer.recv(); // A timer only ever fires.
    }

    fn drop_late(&mut self) {
        let now = clock::now();
        for request in self.group.extract_if(.., |request| is_late(request.as_ref(), now)) {
            request.refuse(late());
        }
    }

    fn refuse_all(&mut self, error: impl Fn() -> Error) {
        for request in self.group.drain(..) {
            request.refuse(error());
        }
    }

    fn publish(&mut self, events: &[Event]) {
        if events.is_empty() {
            return;
        }
        self.subscribers.retain(|subscriber| {
            events.iter().all(|event| {
                // The last slot is kept for `Overflow`. Only this thread sends, so it stays free.
                let full = subscriber.lane.len() >= subscriber.room;
                let message =
                    if full { Subscription::Overflow } else { Subscription::Event(event.clone()) };
                subscriber.lane.try_send(message).is_ok() && !full
            })
        });
    }
}

fn is_late(request: &dyn Request, now: Instant) -> bool {
    request.deadline().is_some_and(|deadline| deadline <= now)
}

fn execute(conn: &Connection, sql: &str) -> Result<(), Error> {
    conn.prepare_cached(sql)?.execute([])?;
    Ok(())
}

fn rolled_back() -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR);
    rusqlite::Error::SqliteFailure(code, Some("the transaction was rolled back".to_owned()))
}
