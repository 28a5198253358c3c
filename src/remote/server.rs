//! `remote-server`: opens everything, starts its actors, and waits for the end.
//!
//! ```text
//! main                 signals, the end
//! router               workers' connections, requests and assignments      server/router.rs
//!   router/stop        wakes it at the stop
//! control/accept       the control socket                                  server/control.rs
//!   control/stop       wakes it at the stop
//!   control/N, control/N/out   read and write for one client
//! logs/accept          the port for logs                                   server/logs.rs
//!   logs/stop          wakes it at the stop
//!   logs/N             receives one log
//! expiry               removes old logs                                    server/logs/expiry.rs
//! publish              the child that serves the store                     remote/publish.rs
//! announce             tells the local network of the server               server/announce.rs
//! ```

mod announce;
mod control;
mod desk;
mod hall;
mod logs;
mod peers;
mod privileges;
mod router;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, select};
use sd_notify::NotifyState;

use super::publish::{self, Publisher};
use crate::actor::{Ended, Spawner, Threads};
use crate::model::error::chain;
use crate::sys::lock::Lock;
use crate::sys::process::{Launcher, User};
use crate::sys::signal::{self, Signal};
use crate::sys::{clock, descriptors, file};

/// For everything to end after a stop.
const GRACE: Duration = Duration::from_millis(9_500);

/// How long keepers of an earlier life get to kill what they keep: seconds at most, but for a disk that hangs.
const KEEPERS: Duration = Duration::from_secs(30);

/// A failure inside, `EX_SOFTWARE`: the service manager is to start the server again.
const BROKEN: u8 = 70;

/// Everything `remote-server` was told, with defaults filled in.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) run_directory: PathBuf,
    /// Where logs are kept.
    pub(crate) cache: PathBuf,
    pub(crate) backend_port: u16,
    pub(crate) log_port: u16,
    /// `None` to publish nothing.
    pub(crate) publish: Option<publish::Config>,
    /// Whether workers can find it on the local network.
    pub(crate) announce: bool,
    pub(crate) log_expiry: Duration,
    pub(crate) max_log_size: u64,
    pub(crate) socket_group: Option<u32>,
    pub(crate) user: Option<User>,
}

impl Config {
    fn socket(&self) -> PathBuf {
        self.run_directory.join("remote")
    }
}

/// Why the server did not start.
#[derive(Debug)]
enum Error {
    Directory(PathBuf, io::Error),
    Lock(PathBuf, io::Error),
    Taken(PathBuf, i32),
    Socket(PathBuf, io::Error),
    Port(&'static str, u16, io::Error),
    Publish(publish::Error),
    /// Children of an earlier life do not go away.
    Keepers(io::Error),
    User(String, io::Error),
    Thread(&'static str, io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path, _) => write!(f, "cannot use the directory {}", path.display()),
            Self::Lock(path, _) => write!(f, "cannot lock {}", path.display()),
            Self::Taken(path, pid) => write!(
                f,
                "another server (process {pid}) works with {}; stop it first, or choose another --run-directory",
                path.display()
            ),
            Self::Socket(path, _) => write!(f, "cannot listen on {}", path.display()),
            Self::Port(option, port, _) => write!(f, "--{option}: cannot listen on port {port}"),
            Self::Publish(error) => error.fmt(f),
            Self::Keepers(_) => f.write_str("children of an earlier server are still running"),
            Self::User(name, _) => write!(f, "--user: cannot become {name}"),
            Self::Thread(name, _) => write!(f, "cannot start {name}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Directory(_, error)
            | Self::Lock(_, error)
            | Self::Socket(_, error)
            | Self::Port(_, _, error)
            | Self::Keepers(error)
            | Self::User(_, error)
            | Self::Thread(_, error) => Some(error),
            Self::Publish(error) => error.source(),
            Self::Taken(..) => None,
        }
    }
}

/// What runs.
struct Server {
    threads: Threads,
    signals: Receiver<Signal>,
    /// Released when everything has ended.
    lock: Lock,
}

/// Runs the server to its end; the log says why it ended badly.
pub(crate) fn run(config: &Config) -> ExitCode {
    if let Err(error) = descriptors::raise() {
        log::warn!(target: "server", "cannot raise the limit on descriptors: {error}");
    }
    let server = match start(config) {
        Ok(server) => server,
        Err(error) => {
            log::error!(target: "server", "{}", chain(&error));
            return ExitCode::FAILURE;
        }
    };
    tell(NotifyState::Ready);
    let fine = watch(&server);
    tell(NotifyState::Stopping);
    let Server { threads, signals, lock } = server;
    let Threads { stop, reports: _, all_gone } = threads;
    drop((stop, signals));
    let gone = all_gone.recv_deadline(clock::now() + GRACE);
    let gone = matches!(gone, Err(RecvTimeoutError::Disconnected));
    if !gone {
        log::error!(target: "server", "still busy after {} s", GRACE.as_secs());
    }
    drop(lock);
    match (fine, gone) {
        (false, _) => ExitCode::from(BROKEN),
        (true, true) => ExitCode::SUCCESS,
        (true, false) => ExitCode::FAILURE,
    }
}

/// Waits for a reason to end; true if it is a good one.
fn watch(server: &Server) -> bool {
    loop {
        select! {
            recv(server.signals) -> signal => match signal {
                Ok(Signal::Reload) => log::info!(target: "server", "nothing to read again"),
                Ok(Signal::Stop) => {
                    log::info!(target: "server", "stopping");
                    return true;
                }
                Err(_) => return false,
            },
            recv(server.threads.reports) -> report => {
                match report.map(|report| (report.name, report.ended)) {
                    Ok((name, Ended::Panicked(why))) => {
                        log::error!(target: "server", "{name} panicked: {why}");
                    }
                    Ok((name, Ended::Returned)) => {
                        log::error!(target: "server", "{name} ended unexpectedly");
                    }
                    Err(_) => log::error!(target: "server", "all threads ended unexpectedly"),
                }
                return false;
            }
        }
    }
}

/// Opens everything with the privileges there are, drops them, and starts the actors.
fn start(config: &Config) -> Result<Server, Error> {
    for directory in [&config.run_directory, &config.cache] {
        file::create_directory(directory)
            .map_err(|error| Error::Directory(directory.clone(), error))?;
    }
    let lock = lock(config.run_directory.join("remote.lock"))?;
    let path = config.socket();
    let socket = control::bind(&path, config.socket_group)
        .map_err(|error| Error::Socket(path.clone(), error))?;
    let publisher =
        config.publish.clone().map(Publisher::prepare).transpose().map_err(Error::Publish)?;
    let deadline = clock::now() + KEEPERS;
    let launcher = Launcher::new(config.run_directory.join("remote.keepers"), deadline);
    let launcher = launcher.map_err(Error::Keepers)?;
    if let Some(user) = &config.user {
        privileges::drop(user, &path, &config.cache, config.socket_group)
            .map_err(|error| Error::User(user.name.clone(), error))?;
    } else if nix::unistd::geteuid().is_root() {
        log::warn!(target: "server", "running as root: --user=USER would run it as somebody who may do less");
    }
    let port = config.backend_port;
    let router = router::bind(port).map_err(|error| Error::Port("backend-port", port, error))?;
    let port = config.log_port;
    let logs = logs::bind(port).and_then(|logs| Ok((logs.number()?, logs)));
    let (log_port, logs) = logs.map_err(|error| Error::Port("log-port", port, error))?;
    let settings = hall::Settings {
        log_port,
        publish_port: config.publish.as_ref().map(|publish| publish.port),
        logs: config.cache.clone(),
    };

    let (spawner, threads) = Spawner::new();
    let thread = |name| move |error| Error::Thread(name, error);
    let signals = signal::listen(&spawner).map_err(thread("signals"))?;
    let (handle, port) = (router.handle(), router.port());
    let ports =
        announce::Ports { backend: port, log: settings.log_port, publish: settings.publish_port };
    router.spawn(&spawner, settings).map_err(thread("router"))?;
    logs.spawn(&spawner, handle.clone(), config.max_log_size).map_err(thread("logs/accept"))?;
    logs::spawn_expiry(&spawner, config.cache.clone(), config.log_expiry)
        .map_err(thread("expiry"))?;
    control::spawn(&spawner, socket, handle).map_err(thread("control/accept"))?;
    if let Some(publisher) = publisher {
        publisher.spawn(&spawner, launcher).map_err(Error::Publish)?;
    }
    if config.announce {
        announce::spawn(&spawner, ports).map_err(thread("announce"))?;
    }
    log::info!(
        target: "server",
        "running; workers connect to port {port}, their logs to {log_port}, the daemon to {}",
        path.display()
    );
    Ok(Server { threads, signals, lock })
}

fn lock(path: PathBuf) -> Result<Lock, Error> {
    match Lock::take(&path) {
        Ok(Ok(lock)) => Ok(lock),
        Ok(Err(pid)) => Err(Error::Taken(path, pid)),
        Err(error) => Err(Error::Lock(path, error)),
    }
}

/// Tells the service manager; fine if there is none.
fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        log::debug!(target: "server", "cannot tell the service manager: {error}");
    }
}
