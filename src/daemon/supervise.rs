//! The supervisor: waits for what ends the daemon, and ends it in order.
//!
//! Invariant: after the first word to stop, the process ends within [`GRACE`], whatever its threads do.

use std::process::ExitCode;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, at, never, select};
use sd_notify::NotifyState;

use super::bridge::Order;
use super::one_shot::Outcome;
use super::registry::{self, Refusal};
use super::reload::Found;
use super::start::Daemon;
use crate::actor::{Ended, Gone, Report};
use crate::sys::clock;
use crate::sys::signal::Signal;

/// For everything to end after a stop: the promise is less than ten seconds.
const GRACE: Duration = Duration::from_millis(9_500);

/// For the rest to end when a part has failed: a restart that puts things right should not wait for long.
const FAILURE_GRACE: Duration = Duration::from_secs(5);

/// A failure inside, `EX_SOFTWARE`: the service manager is to start the daemon again.
const BROKEN: u8 = 70;

/// Why the daemon ends.
enum Reason {
    Asked,
    /// The one-shot run is over, or was to stop before it was.
    OneShot(Outcome),
    /// An essential thread ended.
    Broken,
}

pub(super) fn run(mut daemon: Daemon) -> ExitCode {
    tell(&[NotifyState::Ready, NotifyState::Status("running")]);
    let reason = watch(&mut daemon);
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
    stop(daemon, reason)
}

/// Tells the service manager; fine if there is none.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        log::debug!(target: "supervisor", "cannot tell the service manager: {error}");
    }
}

/// Serves signals and orders until there is a reason to end.
fn watch(daemon: &mut Daemon) -> Reason {
    // Half of what the service manager grants, so that one late ping does no harm.
    let watchdog = sd_notify::watchdog_enabled().map(|limit| limit / 2);
    let (nothing, unread) = (never(), never());
    let one_shot = daemon.one_shot.clone();
    let outcome = one_shot.as_ref().unwrap_or(&nothing);
    let mut ping = watchdog.map(|half| clock::now() + half);
    loop {
        let timer = ping.map_or_else(never, at);
        let found = daemon.reader.lane().unwrap_or(&unread).clone();
        select! {
            recv(daemon.signals) -> signal => match signal {
                Ok(Signal::Stop) => {
                    log::info!(target: "supervisor", "stopping");
                    return asked(one_shot);
                }
                Ok(Signal::Reload) => {
                    reloading();
                    daemon.reader.ask(None);
                }
                Err(_) => return broken(&daemon.threads.reports),
            },
            recv(daemon.orders) -> order => match order {
                Ok(Order::Shutdown) => {
                    log::info!(target: "supervisor", "stopping, as the bridge was told");
                    return asked(one_shot);
                }
                Ok(Order::Reload(reply)) => {
                    reloading();
                    daemon.reader.ask(Some(reply));
                }
                Err(_) => return broken(&daemon.threads.reports),
            },
            recv(found) -> found => {
                let gone = || Err(Refusal::Internal("the reading of specifications broke off".to_owned()));
                let result = reload(&daemon.registry, found.unwrap_or_else(|_| gone()));
                for reply in daemon.reader.done().into_iter().flatten() {
                    // Who asked may have gone.
                    let _ = reply.send(result.clone());
                }
            }
            recv(daemon.threads.reports) -> report => return Reason::from(report),
            recv(outcome) -> outcome => match outcome {
                Ok(outcome) => return Reason::OneShot(outcome),
                Err(_) => return broken(&daemon.threads.reports),
            },
            recv(timer) -> _ => {
                tell(&[NotifyState::Watchdog]);
                ping = watchdog.map(|half| clock::now() + half);
            }
        }
    }
}

/// Why to end when somebody asks for it: a one-shot run that has no outcome yet is not a success.
fn asked(one_shot: Option<Receiver<Outcome>>) -> Reason {
    match one_shot {
        None => Reason::Asked,
        Some(outcome) => Reason::OneShot(outcome.try_recv().unwrap_or_else(|_| {
            log::error!(target: "supervisor", "stopped before all was evaluated and built");
            Outcome::Failed
        })),
    }
}

impl From<Result<Report, crossbeam_channel::RecvError>> for Reason {
    fn from(report: Result<Report, crossbeam_channel::RecvError>) -> Self {
        match report {
            Ok(Report { name, ended: Ended::Panicked(why) }) => {
                log::error!(target: "supervisor", "{name} panicked: {why}");
            }
            Ok(Report { name, ended: Ended::Returned }) => {
                log::error!(target: "supervisor", "{name} ended unexpectedly");
            }
            Err(_) => log::error!(target: "supervisor", "all threads ended unexpectedly"),
        }
        Self::Broken
    }
}

/// An actor hung up: its report says why, and comes a moment later.
fn broken(reports: &Receiver<Report>) -> Reason {
    match reports.recv_timeout(Duration::from_secs(1)) {
        Ok(report) => Reason::from(Ok(report)),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => Reason::Broken,
    }
}

fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        tell(&[NotifyState::Reloading, now]);
    }
}

/// Registers what was found in the specification files; a bad one changes nothing.
fn reload(registry: &registry::Handle, found: Found) -> Result<(), Refusal> {
    let result = found.and_then(|specifications| {
        if specifications.is_empty() {
            return Ok(());
        }
        registry.put(specifications).unwrap_or_else(|gone: Gone| Err(Refusal::from(gone)))
    });
    match &result {
        Ok(()) => log::info!(target: "supervisor", "specification files read again"),
        Err(refusal) => {
            log::error!(target: "supervisor", "specifications stay as they were: {refusal}")
        }
    }
    tell(&[NotifyState::Ready]);
    result
}

/// Ends everything: no new work, children killed, books closed, socket removed.
fn stop(daemon: Daemon, reason: Reason) -> ExitCode {
    let Daemon { threads, signals, orders, registry, reader, one_shot, locks } = daemon;
    let grace = match reason {
        Reason::Asked | Reason::OneShot(_) => GRACE,
        Reason::Broken => FAILURE_GRACE,
    };
    let deadline = clock::now() + grace;
    // Of a second signal nothing is heard here: it ends the process at once, and children with it, as their
    // keepers see our end of their sockets close.
    reader.stop();
    drop((threads.stop, registry, one_shot, orders, signals));
    let all_gone =
        matches!(threads.all_gone.recv_deadline(deadline), Err(RecvTimeoutError::Disconnected));
    if !all_gone {
        log::error!(target: "supervisor", "still busy after {} s: {}", grace.as_secs(), running().join(", "));
    }
    drop(locks);
    match reason {
        Reason::Broken => ExitCode::from(BROKEN),
        Reason::Asked | Reason::OneShot(Outcome::Succeeded) if all_gone => ExitCode::SUCCESS,
        Reason::Asked | Reason::OneShot(Outcome::Succeeded | Outcome::Failed) => ExitCode::FAILURE,
    }
}

/// Names of the threads that still run, as far as the kernel keeps them (15 bytes).
fn running() -> Vec<String> {
    let own = std::process::id().to_string();
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return Vec::new() };
    tasks
        .flatten()
        .filter(|task| task.file_name().to_str() != Some(own.as_str()))
        .filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.starts_with("courier"))
        .collect()
}
