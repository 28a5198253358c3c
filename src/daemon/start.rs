//! Start-up, in order: everything is opened and recovered, then spawned from the lowest actor to the highest.
//!
//! Invariant: nothing of the state directory is touched before its lock is held, nothing is written before
//! the specification files were read, and no child but a Guile that reads one is started before those of an earlier life
//! are gone.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};

use super::registry::Refusal;
use super::{
    Config, bridge, builder, evaluator, janitor, notifier, one_shot, registry, reload, updater,
};
use crate::actor::{Gone, Spawner, Threads};
use crate::db::{self, Database};
use crate::git::Places;
use crate::model::build::Order;
use crate::model::spec::Specification;
use crate::spec;
use crate::spec::scheme::Guile;
use crate::store::AddressError;
use crate::sys::lock::Lock;
use crate::sys::process::Launcher;
use crate::sys::signal::{self, Signal};
use crate::sys::{clock, file};

/// How long keepers of an earlier life get to kill what they keep: seconds at most, but for a disk that hangs.
const KEEPERS: Duration = Duration::from_secs(30);

/// Orders of the bridge that wait for the supervisor: people reloading or stopping.
const ORDERS: usize = 8;

/// Evaluations that builds want repeated and the registry has not heard of: one for each of many jobsets at a time.
const REPEATS: usize = 64;

/// Why something that is served beside the daemon could not be.
pub(super) type Served = Box<dyn std::error::Error + Send + Sync>;

/// Why the daemon did not start.
#[derive(Debug)]
pub(super) enum Error {
    Directory(PathBuf, io::Error),
    /// Another daemon, this process, works with what the option names.
    Taken {
        what: PathBuf,
        option: &'static str,
        pid: i32,
    },
    /// The job user could use the bridge.
    JobUser {
        user: String,
        group: u32,
    },
    Lock(PathBuf, io::Error),
    Specification(spec::Error),
    Repeated(String),
    Database(db::Error),
    /// Children of an earlier life do not go away.
    Keepers(io::Error),
    /// A variable names no address of a store daemon.
    Address(AddressError),
    Thread(&'static str, io::Error),
    Registry(registry::Error),
    Refused(Refusal),
    Bridge(PathBuf, io::Error),
    /// What else is served from this process.
    Served(Served),
    /// An actor ended while the others were being started.
    Gone,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path, _) => write!(f, "cannot use the directory {}", path.display()),
            Self::Taken { what, option, pid } => write!(
                f,
                "another daemon (process {pid}) works with {}; stop it first, or choose another --{option}",
                what.display()
            ),
            Self::JobUser { user, group } => write!(
                f,
                "--job-user={user} is in group {group}, whose members may use the bridge: its jobs could command the daemon; \
                 choose a user of another group, or another --socket-group"
            ),
            Self::Lock(path, _) => write!(f, "cannot lock {}", path.display()),
            // A specification's error says everything itself.
            Self::Specification(error) => error.fmt(f),
            Self::Repeated(name) => write!(f, "the specification files name jobset {name} twice"),
            Self::Database(error) => error.fmt(f),
            Self::Keepers(_) => f.write_str("children of an earlier daemon are still running"),
            Self::Address(error) => error.fmt(f),
            Self::Thread(name, _) => write!(f, "cannot start {name}"),
            Self::Registry(error) => error.fmt(f),
            Self::Refused(refusal) => write!(f, "cannot register the specifications: {refusal}"),
            Self::Bridge(path, _) => write!(f, "cannot listen on {}", path.display()),
            Self::Served(error) => error.fmt(f),
            Self::Gone => f.write_str("a part of the daemon ended while it was starting"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Directory(_, error)
            | Self::Lock(_, error)
            | Self::Keepers(error)
            | Self::Thread(_, error)
            | Self::Bridge(_, error) => Some(error),
            Self::Database(error) => error.source(),
            Self::Registry(error) => error.source(),
            Self::Served(error) => error.source(),
            Self::Taken { .. }
            | Self::JobUser { .. }
            | Self::Address(_)
            | Self::Specification(_)
            | Self::Repeated(_)
            | Self::Refused(_)
            | Self::Gone => None,
        }
    }
}

impl From<Gone> for Error {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

/// What the supervisor holds of a running daemon.
pub(super) struct Daemon {
    pub(super) threads: Threads,
    pub(super) signals: Receiver<Signal>,
    pub(super) orders: Receiver<bridge::Order>,
    pub(super) registry: registry::Handle,
    pub(super) reader: reload::Reader,
    /// How a one-shot run ended; `None` for a daemon that stays, whose monitors have yet to begin.
    pub(super) one_shot: Option<Receiver<one_shot::Outcome>>,
    /// Released when everything has ended.
    pub(super) locks: Vec<Lock>,
}

/// `serve` starts what is served from this process besides; it comes last.
pub(super) fn start(
    config: &Config,
    serve: impl FnOnce(&Spawner) -> Result<(), Served>,
) -> Result<Daemon, Error> {
    refuse_job_user(config)?;
    create_directories(config)?;
    let locks = lock(config)?;
    let specifications =
        read_specifications(&config.specifications, &Guile::new(config.guix.clone()))?;
    let warnings = warnings(config);
    for warning in &warnings {
        log::warn!(target: "supervisor", "{warning}");
    }

    let (spawner, threads) = Spawner::new();
    let signals = signal::listen(&spawner).map_err(|e| Error::Thread("signals", e))?;
    let database = Database::open(&config.database, &spawner).map_err(Error::Database)?;
    let (launcher, abroad) = recover(config, &database)?;

    let updater = spawn_updater(config, &spawner, &launcher)?;
    let (repeats, repeated) = bounded(REPEATS);
    let ports = builder::Ports {
        database: database.clone(),
        launcher: launcher.clone(),
        updater: updater.clone(),
        settings: builder::Settings::of(config).map_err(Error::Address)?,
        repeats,
        abroad,
    };
    let builder = builder::spawn(&spawner, ports).map_err(|e| Error::Thread("builder", e))?;
    let ports = evaluator::Ports {
        database: database.clone(),
        builder: builder.clone(),
        launcher: launcher.clone(),
        updater: updater.clone(),
        settings: evaluator_settings(config, &database)?,
    };
    let evaluator = evaluator::spawn(&spawner, ports).map_err(|e| Error::Thread("evaluator", e))?;
    let ports = registry::Ports {
        database: database.clone(),
        updater: updater.clone(),
        evaluator: evaluator.clone(),
        builder: builder.clone(),
        repeats: repeated,
    };
    let registry = registry::spawn(&spawner, ports, config.interval).map_err(Error::Registry)?;
    if !specifications.is_empty() {
        registry.put(specifications.clone())?.map_err(Error::Refused)?;
    }
    if !config.one_shot {
        // Before anybody can ask for something that monitors do.
        registry.begin()?;
    }

    let (supervisor, orders) = bounded(ORDERS);
    let ports = bridge::Ports {
        database: database.clone(),
        registry: registry.clone(),
        builder: builder.clone(),
        evaluator: evaluator.clone(),
        supervisor,
        facts: facts(config, warnings),
    };
    let options = bridge::Options {
        socket: config.socket.clone(),
        group: config.socket_group,
        max_connections: config.max_connections,
    };
    if config.socket_group.is_some() && config.socket.starts_with(&config.state_directory) {
        // The group must be able to come near; what else is there has modes of its own.
        file::make_passable(&config.state_directory)
            .map_err(|error| Error::Directory(config.state_directory.clone(), error))?;
    }
    bridge::spawn(&spawner, options, ports)
        .map_err(|error| Error::Bridge(config.socket.clone(), error))?;

    let one_shot = if config.one_shot {
        let (database, registry) = (database.clone(), registry.clone());
        let ports = one_shot::Ports { database, updater, evaluator, builder, registry };
        let outcome = one_shot::spawn(&spawner, ports, specifications);
        Some(outcome.map_err(|e| Error::Thread("one-shot", e))?)
    } else {
        janitor::spawn(&spawner, janitor_settings(config), database.clone(), builder)
            .map_err(|e| Error::Thread("janitor", e))?;
        None
    };
    notifier::spawn(&spawner, database, launcher, config.parameters.clone())
        .map_err(|e| Error::Thread("notifier", e))?;
    let reader = reload::Reader::new(&spawner, config.specifications.clone(), config.guix.clone())
        .map_err(|e| Error::Thread("specifications", e))?;
    serve(&spawner).map_err(Error::Served)?;
    Ok(Daemon { threads, signals, orders, registry, reader, one_shot, locks })
}

/// Takes what daemons with different state directories could share by their options, and must not.
fn lock(config: &Config) -> Result<Vec<Lock>, Error> {
    // Beside the file that a link leads to.
    let mut database =
        config.database.canonicalize().unwrap_or_else(|_| config.database.clone()).into_os_string();
    database.push(".lock");
    let wanted = [
        (config.state_directory.join("lock"), &config.state_directory, "state-directory"),
        (config.cache_directory.join("lock"), &config.cache_directory, "cache-directory"),
        (config.log_directory.join("lock"), &config.log_directory, "log-directory"),
        (database.into(), &config.database, "database"),
    ];
    let take = |(file, what, option): (PathBuf, &PathBuf, &'static str)| {
        let taken = Lock::take(&file).map_err(|error| Error::Lock(file, error))?;
        taken.map_err(|pid| Error::Taken { what: what.clone(), option, pid })
    };
    wanted.into_iter().map(take).collect()
}

fn refuse_job_user(config: &Config) -> Result<(), Error> {
    let Some(user) = &config.job_user else { return Ok(()) };
    let group = config.socket_group.unwrap_or_else(|| nix::unistd::getegid().as_raw());
    if user.gid == group && user.uid != nix::unistd::geteuid().as_raw() {
        return Err(Error::JobUser { user: user.name.clone(), group });
    }
    Ok(())
}

fn create_directories(config: &Config) -> Result<(), Error> {
    let directories = [
        config.state_directory.clone(),
        config.state_directory.join("products"),
        config.run_directory.clone(),
        config.cache_directory.clone(),
        config.log_directory.join("builds"),
        config.log_directory.join("evaluations"),
    ];
    let database = config.database.parent().map(Path::to_owned);
    let database = database.filter(|parent| !parent.as_os_str().is_empty());
    for directory in directories.into_iter().chain(database) {
        file::create_directory(&directory)
            .map_err(|error| Error::Directory(directory.clone(), error))?;
    }
    Ok(())
}

/// All specifications of all files, each name once.
pub(super) fn read_specifications(
    files: &[PathBuf],
    guile: &Guile,
) -> Result<Vec<Specification>, Error> {
    let mut all: Vec<Specification> = Vec::new();
    for path in files {
        for specification in spec::read(path, guile).map_err(Error::Specification)? {
            if all.iter().any(|known| known.name == specification.name) {
                return Err(Error::Repeated(specification.name.to_string()));
            }
            all.push(specification);
        }
    }
    Ok(all)
}

/// Puts the books right after a death, waits for what was left of it, and clears the place.
fn recover(config: &Config, database: &Database) -> Result<(Launcher, Vec<Order>), Error> {
    let far = config.remote.is_some();
    let (evaluations, builds, abroad) = database
        .write("recover", move |tx| {
            if !far {
                db::builds::call_home(tx)?;
            }
            Ok((db::evaluations::recover(tx)?, db::builds::recover(tx)?, db::builds::abroad(tx)?))
        })
        .map_err(Error::Database)?;
    if !abroad.is_empty() {
        let count = abroad.len();
        log::info!(target: "supervisor", "{count} builds are with remote workers since before the start");
    }
    if !evaluations.is_empty() || builds > 0 {
        log::info!(
            target: "supervisor",
            "{} evaluations and {builds} builds were cut off by the end of the daemon before; they are taken up again",
            evaluations.len()
        );
    }
    let keepers = config.state_directory.join("keepers");
    let launcher = Launcher::new(keepers, clock::now() + KEEPERS).map_err(Error::Keepers)?;
    janitor::set_aside_left_overs(&config.cache_directory)
        .map_err(|error| Error::Directory(config.cache_directory.clone(), error))?;
    Ok((launcher, abroad))
}

fn evaluator_settings(config: &Config, database: &Database) -> Result<evaluator::Settings, Error> {
    let reader = database.reader().map_err(Error::Database)?;
    let paused = db::records::setting(&reader, "paused.evaluations").map_err(Error::Database)?;
    if paused.is_some() && config.one_shot {
        log::warn!(target: "evaluator", "evaluations are paused since before the start, which a one-shot run ignores");
    }
    Ok(evaluator::Settings {
        max_evaluations: config.max_evaluations,
        paused: paused.is_some() && !config.one_shot,
        database_directory: config.database_directory(),
        cache_directory: config.cache_directory.clone(),
        log_directory: config.log_directory.clone(),
        minimum_disk_space: config.minimum_disk_space,
        max_log_size: config.max_log_size,
        memory: config.evaluation_memory,
        job_user: config.job_user.clone(),
        guix: config.guix.clone(),
    })
}

fn spawn_updater(
    config: &Config,
    spawner: &Spawner,
    launcher: &Launcher,
) -> Result<updater::Handle, Error> {
    let places = Places {
        mirrors: config.cache_directory.join("git"),
        checkouts: config.cache_directory.join("checkouts"),
    };
    for directory in [&places.mirrors, &places.checkouts] {
        file::create_directory(directory)
            .map_err(|error| Error::Directory(directory.clone(), error))?;
    }
    if config.job_user.is_some() {
        // Jobs read the checkouts of further channels where they are.
        file::make_passable(&places.checkouts)
            .map_err(|error| Error::Directory(places.checkouts.clone(), error))?;
    }
    let (launcher, max, silence) = (launcher.clone(), config.max_fetches, config.fetch_timeout);
    updater::spawn(spawner, launcher, places, max, silence)
        .map_err(|error| Error::Thread("updater", error))
}

fn janitor_settings(config: &Config) -> janitor::Settings {
    janitor::Settings {
        log_directory: config.log_directory.clone(),
        cache_directory: config.cache_directory.clone(),
        roots: builder::store::roots_directory(&config.state_directory),
        products: config.state_directory.join("products"),
        ttl: config.ttl,
        log_expiry: config.log_expiry,
        build_expiry: config.build_expiry,
        history_expiry: config.history_expiry,
    }
}

fn facts(config: &Config, warnings: Vec<String>) -> bridge::Facts {
    bridge::Facts {
        started: clock::wall(),
        since: clock::now(),
        state_directory: config.state_directory.clone(),
        log_directory: config.log_directory.clone(),
        max_builds: config.max_builds,
        max_evaluations: config.max_evaluations,
        warnings,
    }
}

/// What an operator should know about how the daemon was set up.
fn warnings(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    let own = nix::unistd::geteuid().as_raw();
    if config.job_user.as_ref().is_none_or(|user| user.uid == own) {
        warnings.push(
            "evaluators and builds run as the daemon's own user, so pushed code can do whatever the daemon can; \
             --job-user=USER runs them as another"
                .to_owned(),
        );
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_two_files_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, jobsets: &[&str]| {
            let path = directory.path().join(name);
            let text: Vec<_> =
                jobsets.iter().map(|j| format!(r#"{{"name":"{j}","command":["true"]}}"#)).collect();
            std::fs::write(&path, format!("[{}]", text.join(","))).unwrap();
            path
        };
        let (one, two) = (file("1.json", &["a", "b"]), file("2.json", &["c", "b"]));
        let guile = Guile::new(vec!["guix".to_owned()]);
        let read = |files: &[PathBuf]| read_specifications(files, &guile);
        assert_eq!(read(std::slice::from_ref(&one)).unwrap().len(), 2);
        let refused = read(&[one.clone(), two]);
        assert!(matches!(refused, Err(Error::Repeated(name)) if name == "b"));
        let missing = read(&[one, directory.path().join("none.json")]);
        assert!(matches!(missing, Err(Error::Specification(_))));
    }
}
