//! `register`: opens everything, wires the actors, supervises them. The only place where actors meet.

pub(crate) mod bridge;
pub(crate) mod builder;
pub(crate) mod evaluator;
pub(crate) mod janitor;
pub(crate) mod monitor;
pub(crate) mod notifier;
mod one_shot;
pub(crate) mod registry;
mod reload;
#[cfg(test)]
mod simulation;
mod space;
mod start;
mod supervise;
pub(crate) mod updater;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::actor::{self, Spawner};
use crate::model::error::chain;
use crate::store::Dialect;
use crate::sys::descriptors;
use crate::sys::process::User;
use crate::web;

/// Which backends are opened, besides that for processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backends {
    Auto,
    Process,
    Guix,
    Nix,
}

impl Backends {
    fn daemons(self) -> &'static [Dialect] {
        match self {
            Self::Auto => &[Dialect::Guix, Dialect::Nix],
            Self::Process => &[],
            Self::Guix => &[Dialect::Guix],
            Self::Nix => &[Dialect::Nix],
        }
    }
}

/// Everything `register` was told, with defaults filled in.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) specifications: Vec<PathBuf>,
    pub(crate) database: PathBuf,
    pub(crate) state_directory: PathBuf,
    pub(crate) run_directory: PathBuf,
    pub(crate) cache_directory: PathBuf,
    pub(crate) log_directory: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) interval: Duration,
    pub(crate) one_shot: bool,
    pub(crate) max_fetches: usize,
    pub(crate) fetch_timeout: Duration,
    pub(crate) max_evaluations: usize,
    /// Bytes of address space of an evaluator.
    pub(crate) evaluation_memory: Option<u64>,
    pub(crate) max_builds: usize,
    pub(crate) max_connections: usize,
    pub(crate) max_log_size: u64,
    pub(crate) minimum_disk_space: u64,
    pub(crate) job_user: Option<User>,
    pub(crate) socket_group: Option<u32>,
    pub(crate) backends: Backends,
    /// Where `remote-server` is to be found, if derivations are left to its workers.
    pub(crate) remote: Option<PathBuf>,
    /// The words of the command that runs Guix.
    pub(crate) guix: Vec<String>,
    pub(crate) fallback: bool,
    pub(crate) ttl: Duration,
    pub(crate) log_expiry: Duration,
    pub(crate) build_expiry: Option<Duration>,
    pub(crate) history_expiry: Option<Duration>,
    pub(crate) parameters: Parameters,
    /// Also serve the web interface.
    pub(crate) web: Option<web::Config>,
}

impl Config {
    /// Where the database grows.
    fn database_directory(&self) -> PathBuf {
        match self.database.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            Some(_) | None => PathBuf::from("."),
        }
    }
}

/// What `-P` says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parameters {
    pub(crate) url: Option<String>,
    pub(crate) mail_from: Option<String>,
    pub(crate) mastodon: Option<Mastodon>,
}

#[derive(Clone, Debug)]
pub(crate) struct Mastodon {
    pub(crate) url: String,
    pub(crate) token: String,
}

/// Runs the daemon to its end; the log says why it ended badly.
pub(crate) fn run(config: &Config) -> ExitCode {
    log_panics();
    if let Err(error) = descriptors::raise() {
        log::warn!(target: "supervisor", "cannot raise the limit on descriptors: {error}");
    }
    let serve = |spawner: &Spawner| match config.web.clone() {
        Some(web) => web::spawn(spawner, web).map_err(Into::into),
        None => Ok(()),
    };
    match start::start(config, serve) {
        Ok(daemon) => {
            log::info!(target: "supervisor", "running; the bridge is at {}", config.socket.display());
            supervise::run(daemon)
        }
        Err(error) => {
            log::error!(target: "supervisor", "{}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// Panics go to the log, as everything else does, with the whole name of their thread.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let text = actor::panic_message(panic.payload());
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("a thread without a name");
        let place = panic.location().map(|l| format!(" at {l}")).unwrap_or_default();
        log::error!(target: "panic", "{name} panicked{place}: {text}");
    }));
}
