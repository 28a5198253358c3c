//! `remote-worker`: builds for a server, as many builds at once as it was told.
//!
//! It behaves as Cuirass's worker: to a server each of its loops is a worker of its own, with a random name.
//!
//! ```text
//! main            signals, the end
//! find            finds the server, and ends                          worker/find.rs
//! worker/N        one loop: a ZeroMQ socket around a pure core        worker/dealer.rs, worker/core.rs
//! build/N         builds, or looks whether a build could begin        worker/build.rs, worker/room.rs
//! roots           lets go of what was built a while ago               worker/sweep.rs
//! publish         the child that serves what was built                remote/publish.rs
//! ```
//!
//! Invariant: what was begun is reported, however long the server is away, unless this process is told twice to stop.

mod build;
pub(super) mod core;
mod dealer;
mod find;
mod log_stream;
mod room;
mod sweep;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use std::{env, fmt, fs, io};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded, select};
use sd_notify::NotifyState;

pub(crate) use find::Place;
pub(crate) use room::Limits;

use self::build::{Store, Tools};
use self::core::Core;
use self::dealer::{Dealer, Handle, Means};
use super::publish::{self, Publisher};
use crate::actor::pool::Pool;
use crate::actor::{Ended, Report, Spawner, Threads};
use crate::model::error::chain;
use crate::proto::remote::Worker;
use crate::store::{self, Address, AddressError, Dialect};
use crate::sys::process::{self, Launcher, User};
use crate::sys::signal::{self, End};
use crate::sys::{clock, descriptors, file, random};

/// For threads to end when nothing is built any more.
const GRACE: Duration = Duration::from_millis(9_500);

/// A failure inside, `EX_SOFTWARE`: the service manager is to start the worker again.
const BROKEN: u8 = 70;

/// Characters of a loop's name, as Cuirass's.
const NAME: usize = 8;

/// What the worker must know.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Builds at once.
    pub(crate) workers: usize,
    pub(crate) server: Place,
    pub(crate) systems: Vec<String>,
    /// Where what was built here can be fetched.
    pub(crate) publish_port: u16,
    /// `None` where others publish, or nobody.
    pub(crate) publish: Option<publish::Config>,
    pub(crate) limits: Limits,
    /// `None` for those that Guix has by default, which are nothing to a store of Nix.
    pub(crate) substitute_urls: Option<Vec<String>>,
    pub(crate) user: Option<User>,
    pub(crate) state_directory: PathBuf,
    pub(crate) cpus: usize,
}

/// Why it did not start.
#[derive(Debug)]
enum Error {
    Address(AddressError),
    /// A daemon that is reached over OpenSSH.
    Far(String),
    Publish(publish::Error),
    Directory(PathBuf, io::Error),
    User(String, io::Error),
    Start(&'static str, io::Error),
    Loop(dealer::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(error) => error.fmt(f),
            Self::Far(address) => {
                write!(f, "cannot build at {address}: expected a store daemon of this machine")
            }
            Self::Publish(error) => error.fmt(f),
            Self::Directory(path, _) => write!(f, "cannot make the directory {}", path.display()),
            Self::User(name, _) => write!(f, "cannot run as {name}"),
            Self::Start(what, _) => write!(f, "cannot start {what}"),
            Self::Loop(error) => write!(f, "a worker {error}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Address(_) | Self::Far(_) => None,
            Self::Publish(error) => std::error::Error::source(error),
            Self::Loop(error) => std::error::Error::source(error),
            Self::Directory(_, error) | Self::User(_, error) | Self::Start(_, error) => Some(error),
        }
    }
}

/// Why the worker ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    Asked,
    /// A part of it ended.
    Broken,
}

/// Runs the worker to its end; the log says why it ended badly.
pub(crate) fn run(config: &Config) -> ExitCode {
    if let Err(error) = descriptors::raise() {
        log::warn!(target: "worker", "cannot raise the limit on descriptors: {error}");
    }
    let running = match Running::start(config) {
        Ok(running) => running,
        Err(error) => {
            log::error!(target: "worker", "{}", chain(&error));
            return ExitCode::FAILURE;
        }
    };
    tell(NotifyState::Ready);
    let over = running.work(config);
    let over = over.unwrap_or_else(|error| {
        log::error!(target: "worker", "{}", chain(&error));
        Over::Broken
    });
    running.stop(over)
}

/// Tells the service manager; fine if there is none.
fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        log::debug!(target: "worker", "cannot tell the service manager: {error}");
    }
}

/// What needs no server.
struct Running {
    spawner: Spawner,
    threads: Threads,
    signals: Receiver<End>,
    address: Receiver<SocketAddr>,
    stores: Vec<Store>,
    directory: PathBuf,
}

impl Running {
    /// What needs privileges comes first.
    fn start(config: &Config) -> Result<Self, Error> {
        let stores = stores()?;
        let publisher = config.publish.clone().map(Publisher::prepare).transpose();
        let publisher = publisher.map_err(Error::Publish)?;
        let directory = prepare(&config.state_directory, config.user.as_ref())?;
        if let Some(user) = &config.user {
            process::become_user(user).map_err(|error| Error::User(user.name.clone(), error))?;
        }
        let (spawner, threads) = Spawner::new();
        let of = |what| move |error| Error::Start(what, error);
        let signals = signal::listen_patiently(&spawner).map_err(of("the thread signals"))?;
        if let Some(publisher) = publisher {
            let launcher = Launcher::alone().map_err(of("children"))?;
            publisher.spawn(&spawner, launcher).map_err(Error::Publish)?;
        }
        let roots = build::roots_directory(&directory);
        let swept = spawner.essential("roots", move |stop| sweep::run(&roots, &stop));
        swept.map_err(of("the thread roots"))?;
        let address =
            find::spawn(&spawner, config.server.clone()).map_err(of("the thread find"))?;
        Ok(Self { spawner, threads, signals, address, stores, directory })
    }

    /// Finds the server, and works for it until told to stop.
    fn work(&self, config: &Config) -> Result<Over, Error> {
        let server = select! {
            recv(self.address) -> address => match address {
                Ok(address) => address,
                Err(_) => return Ok(Over::Broken),
            },
            recv(self.signals) -> signal => return Ok(signal.map_or(Over::Broken, |_| Over::Asked)),
            recv(self.threads.reports) -> report => return Ok(broken(report.ok())),
        };
        let cores = config.cpus.div_ceil(config.workers.max(1));
        let tools = Tools::prepare(self.stores.clone(), config.limits, self.directory.clone())
            .sharing(
                u64::try_from(cores).unwrap_or(1),
                config.substitute_urls.clone(),
                server.ip(),
            );
        let pool = Pool::new(&self.spawner, "build", config.workers);
        let means = Means {
            context: zmq::Context::new(),
            endpoint: format!("tcp://{server}"),
            tools: Arc::new(tools),
            pool: pool.map_err(|error| Error::Start("the threads build", error))?,
        };
        let (ends, ended) = bounded(config.workers);
        let mut loops = Vec::new();
        for _ in 0..config.workers {
            let of = |error| Error::Start("a worker", error);
            let name = name().map_err(of)?;
            let me = Worker {
                name: name.clone(),
                address: String::new(),
                machine: machine().map_err(of)?,
                systems: config.systems.clone(),
            };
            let core = Core::new(me, config.publish_port, period().map_err(of)?);
            let (dealer, handle) = Dealer::new(core, means.clone()).map_err(Error::Loop)?;
            let ends = ends.clone();
            let body = move |_| {
                dealer.run(&name).inspect_err(|error| {
                    log::error!(target: "worker", "{name}: {}", chain(error));
                })
            };
            let thread = format!("worker/{}", loops.len());
            // There is room for each.
            let spawned = self.spawner.child(&thread, body, move |report| drop(ends.send(report)));
            spawned.map_err(of)?;
            loops.push(handle);
        }
        drop(ends);
        let over = self.watch(&loops, &ended);
        // Waits for reports that are on their way, as long as a socket lingers.
        drop(means);
        Ok(over)
    }

    /// Until the last loop has ended.
    fn watch(&self, loops: &[Handle], ended: &Receiver<Report>) -> Over {
        let mut over = None;
        let mut left = loops.len();
        while left > 0 {
            select! {
                recv(ended) -> report => {
                    left = if report.is_ok() { left - 1 } else { 0 };
                    if over.is_none() {
                        over = Some(broken(report.ok()));
                        loops.iter().for_each(Handle::abort);
                    }
                }
                recv(self.signals) -> signal => match signal {
                    Ok(End::Drain) => {
                        log::info!(target: "worker", "stopping after what is built; another signal gives it up");
                        tell(NotifyState::Stopping);
                        loops.iter().for_each(Handle::drain);
                        over.get_or_insert(Over::Asked);
                    }
                    Ok(End::Abort) => {
                        log::info!(target: "worker", "stopping at once");
                        tell(NotifyState::Stopping);
                        loops.iter().for_each(Handle::abort);
                        over.get_or_insert(Over::Asked);
                    }
                    Err(_) => return Over::Broken,
                },
                recv(self.threads.reports) -> report => {
                    over = Some(broken(report.ok()));
                    loops.iter().for_each(Handle::abort);
                }
            }
        }
        over.unwrap_or(Over::Broken)
    }

    fn stop(self, over: Over) -> ExitCode {
        let Threads { stop, reports: _, all_gone } = self.threads;
        drop((stop, self.spawner, self.signals));
        let gone = all_gone.recv_deadline(clock::now() + GRACE);
        let gone = matches!(gone, Err(RecvTimeoutError::Disconnected));
        if !gone {
            log::error!(target: "worker", "still busy after {} s", GRACE.as_secs());
        }
        match over {
            Over::Asked if gone => ExitCode::SUCCESS,
            Over::Asked => ExitCode::FAILURE,
            Over::Broken => ExitCode::from(BROKEN),
        }
    }
}

/// A part ended that should not have.
fn broken(report: Option<Report>) -> Over {
    match report {
        Some(Report { name, ended: Ended::Panicked(why) }) => {
            log::error!(target: "worker", "{name} panicked: {why}");
        }
        Some(Report { name, ended: Ended::Returned }) => {
            log::error!(target: "worker", "{name} ended unexpectedly");
        }
        None => log::error!(target: "worker", "all threads ended unexpectedly"),
    }
    Over::Broken
}

/// The stores that there may be, and where their daemons are.
fn stores() -> Result<Vec<Store>, Error> {
    let store = |dialect| match Address::found(dialect).map_err(Error::Address)? {
        Address::Ssh(remote) => Err(Error::Far(remote.to_string())),
        address => Ok(Store { dialect, address, directory: store::directory(dialect) }),
    };
    [Dialect::Guix, Dialect::Nix].into_iter().map(store).collect()
}

/// Our directory, which is the user's.
fn prepare(state: &Path, user: Option<&User>) -> Result<PathBuf, Error> {
    let directory = state.join("worker");
    let made = file::create_directory(&directory).and_then(|()| {
        let Some(user) = user else { return Ok(()) };
        file::make_passable(state)?;
        file::chown_tree(&directory, user)
    });
    made.map_err(|error| Error::Directory(directory.clone(), error))?;
    // A daemon follows links in it by their whole name.
    std::path::absolute(&directory).map_err(|error| Error::Directory(directory, error))
}

/// A name that no other loop anywhere has.
fn name() -> io::Result<String> {
    const LETTERS: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut name = String::new();
    while name.len() < NAME {
        // What lies above the last multiple is left out, lest some letters are likelier.
        let even = usize::from(u8::MAX) / LETTERS.len() * LETTERS.len();
        let fresh = random::bytes::<{ NAME * 2 }>()?.map(usize::from);
        let fresh = fresh.into_iter().filter(|byte| *byte < even);
        name.extend(
            fresh.take(NAME - name.len()).map(|byte| char::from(LETTERS[byte % LETTERS.len()])),
        );
    }
    Ok(name)
}

/// Between two requests: 15 s to 44 s, lest all workers ask at once, or what Cuirass's variable says.
fn period() -> io::Result<Duration> {
    let told = env::var("REQUEST_PERIOD").ok().and_then(|text| text.parse().ok());
    if let Some(seconds) = told.filter(|seconds| *seconds > 0) {
        return Ok(Duration::from_secs(seconds));
    }
    let [byte] = random::bytes::<1>()?;
    Ok(Duration::from_secs(15 + u64::from(byte) % 30))
}

fn machine() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_random_and_of_letters_and_digits() {
        let (one, other) = (name().unwrap(), name().unwrap());
        assert_ne!(one, other);
        for name in [one, other] {
            assert!(
                name.len() == NAME && name.chars().all(|c| c.is_ascii_alphanumeric()),
                "{name}"
            );
        }
    }
}
