//! What all actors share: how they are started, asked, stopped and watched.
//!
//! Invariant: every thread of the process was started by a [`Spawner`], has a name, and says how it ended.

pub(crate) mod leash;
pub(crate) mod pool;

use std::any::Any;
use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use std::{fmt, io, thread};

use crossbeam_channel::{Receiver, RecvTimeoutError, SendError, SendTimeoutError, Sender, bounded};

/// Disconnects when the process is to stop; nothing is ever sent.
pub(crate) type Stop = Receiver<Infallible>;

/// How long an asker waits for an answer. Actors answer in microseconds; this bounds a wait for one
/// that is stuck behind a full disk.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// A quarter of what threads have otherwise: enough to read a file or a row, and little when a thousand do.
const SMALL_STACK: usize = 512 * 1024;

/// The other end has ended, or did not answer in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gone;

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the daemon is stopping or too busy to answer")
    }
}

impl std::error::Error for Gone {}

impl<T> From<SendError<T>> for Gone {
    fn from(_: SendError<T>) -> Self {
        Self
    }
}

impl<T> From<SendTimeoutError<T>> for Gone {
    fn from(_: SendTimeoutError<T>) -> Self {
        Self
    }
}

impl From<crossbeam_channel::RecvError> for Gone {
    fn from(_: crossbeam_channel::RecvError) -> Self {
        Self
    }
}

impl From<RecvTimeoutError> for Gone {
    fn from(_: RecvTimeoutError) -> Self {
        Self
    }
}

/// Sends the message that `make` builds around a one-shot reply channel and waits for the answer.
pub(crate) fn ask<M, T>(inbox: &Sender<M>, make: impl FnOnce(Sender<T>) -> M) -> Result<T, Gone> {
    let (reply, answer) = bounded(1);
    inbox.send_timeout(make(reply), PATIENCE)?;
    Ok(answer.recv_timeout(PATIENCE)?)
}

/// How a thread ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Its body returned.
    Returned,
    /// It panicked, with this message.
    Panicked(String),
}

/// A report that the thread `name` ended.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) name: String,
    pub(crate) ended: Ended,
}

/// Starts threads. Clones share the stop signal and the lane on which ends are reported.
#[derive(Clone)]
pub(crate) struct Spawner {
    stop: Stop,
    reports: Sender<Report>,
    /// Held by every thread: its channel disconnects when the last one is gone.
    alive: Sender<Infallible>,
}

/// What the supervisor keeps of a [`Spawner`].
pub(crate) struct Threads {
    /// Dropped to stop everything.
    pub(crate) stop: Sender<Infallible>,
    /// How essential threads ended.
    pub(crate) reports: Receiver<Report>,
    /// Disconnects when the last thread is gone and the last `Spawner` dropped.
    pub(crate) all_gone: Receiver<Infallible>,
}

impl Spawner {
    pub(crate) fn new() -> (Self, Threads) {
        let (stop_sender, stop) = bounded(0);
        // Room for every essential thread to report: more than there are kinds of actor.
        let (reports, reports_lane) = bounded(64);
        let (alive, all_gone) = bounded(0);
        let spawner = Self { stop, reports, alive };
        (spawner, Threads { stop: stop_sender, reports: reports_lane, all_gone })
    }

    pub(crate) fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// Starts a thread without which the daemon cannot go on: however it ends is reported to the supervisor.
    pub(crate) fn essential<E>(
        &self,
        name: &str,
        body: impl FnOnce(Stop) -> Result<(), E> + Send + 'static,
    ) -> io::Result<()> {
        let reports = self.reports.clone();
        self.child(name, body, move |report| {
            // A full lane means that enough ends were reported to stop the process.
            let _ = reports.try_send(report);
        })
    }

    /// Starts a thread whose end only its owner hears of, through `ended`.
    pub(crate) fn child<E>(
        &self,
        name: &str,
        body: impl FnOnce(Stop) -> Result<(), E> + Send + 'static,
        ended: impl FnOnce(Report) + Send + 'static,
    ) -> io::Result<()> {
        self.build(thread::Builder::new(), name, body, ended)
    }

    /// As `child`, for one of many that do little: its stack has [`SMALL_STACK`] bytes.
    pub(crate) fn small<E>(
        &self,
        name: &str,
        body: impl FnOnce(Stop) -> Result<(), E> + Send + 'static,
        ended: impl FnOnce(Report) + Send + 'static,
    ) -> io::Result<()> {
        self.build(thread::Builder::new().stack_size(SMALL_STACK), name, body, ended)
    }

    fn build<E>(
        &self,
        builder: thread::Builder,
        name: &str,
        body: impl FnOnce(Stop) -> Result<(), E> + Send + 'static,
        ended: impl FnOnce(Report) + Send + 'static,
    ) -> io::Result<()> {
        let (stop, alive) = (self.stop.clone(), self.alive.clone());
        let thread_name = name.to_owned();
        builder.name(thread_name.clone()).spawn(move || {
            // The body's state is gone with it; nobody sees it half changed.
            let result = catch_unwind(AssertUnwindSafe(|| body(stop)));
            let how = match result {
                // `Gone` only says that the process is stopping or that the owner dropped the inbox.
                Ok(_) => Ended::Returned,
                Err(payload) => Ended::Panicked(panic_message(payload.as_ref())),
            };
            ended(Report { name: thread_name, ended: how });
            drop(alive);
        })?;
        Ok(())
    }
}

/// A place where tests make an actor panic: it does so when the file that `GORGET_TEST_PANIC` names holds
/// `actor`, and removes that file first. Every actor's loop calls it once a message.
#[cfg(debug_assertions)]
pub(crate) fn fault(actor: &str) {
    use std::sync::OnceLock;
    static FILE: OnceLock<Option<std::path::PathBuf>> = OnceLock::new();
    let file = FILE.get_or_init(|| std::env::var_os("GORGET_TEST_PANIC").map(Into::into));
    let Some(file) = file else { return };
    if std::fs::read_to_string(file).is_ok_and(|text| text.trim() == actor)
        && std::fs::remove_file(file).is_ok()
    {
        panic!("{actor} was told to panic by a test");
    }
}

/// Nothing in release builds.
#[cfg(not(debug_assertions))]
pub(crate) fn fault(_actor: &str) {}

/// The text of a panic.
pub(crate) fn panic_message(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic without a message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_reported_and_the_last_thread_is_noticed() {
        let (spawner, threads) = Spawner::new();
        spawner.essential("calm", |stop| stop.recv().map(|_| ())).unwrap();
        spawner.essential("rash", |_| -> Result<(), Gone> { panic!("no") }).unwrap();
        let report = threads.reports.recv_timeout(PATIENCE).unwrap();
        assert_eq!(report.name, "rash");
        assert!(matches!(report.ended, Ended::Panicked(text) if text == "no"));
        drop((threads.stop, spawner));
        assert_eq!(threads.reports.recv_timeout(PATIENCE).unwrap().name, "calm");
        let end = threads.all_gone.recv_timeout(PATIENCE);
        assert_eq!(end.unwrap_err(), RecvTimeoutError::Disconnected);
    }
}
