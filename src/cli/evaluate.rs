//! `evaluate`: one specification, evaluated now, its jobs printed; of the books it knows nothing.
//!
//! It works in a temporary directory of its own, so that it disturbs no daemon, and removes it at the end, also when
//! it is interrupted.

mod interrupt;
mod temporary;

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use super::given::Given;
use super::print;
use super::usage::Usage;
use crate::evaluate::{Evaluation, guix, once};
use crate::git::{self, Look, Places};
use crate::model::error::chain;
use crate::model::evaluation::{Checkout, Ending};
use crate::model::spec::{Channel, JobsetName, Specification};
use crate::spec;
use crate::spec::scheme::Guile;
use crate::store;
use crate::sys::clock;
use crate::sys::process::Launcher;
use interrupt::Interrupt;
use temporary::Temporary;

/// How long the lock on an empty directory of our own may take: no time at all.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// Which jobset of which file.
#[derive(Debug)]
pub(super) struct Options {
    file: PathBuf,
    name: Option<JobsetName>,
    fetch_timeout: Duration,
    /// The words of the command that runs Guix.
    guix: Vec<String>,
}

impl Options {
    pub(super) fn read(given: &mut Given) -> Result<Self, Usage> {
        let file = given.path("specifications")?.ok_or(Usage::MissingOption("--specifications"))?;
        let name = if given.more() { Some(given.jobset_operand()?) } else { None };
        let fetch_timeout =
            given.seconds("fetch-timeout")?.unwrap_or(super::register::FETCH_TIMEOUT);
        let guix = given.command("guix")?.unwrap_or_else(super::guix);
        Ok(Self { file, name, fetch_timeout, guix })
    }
}

/// Why there are no jobs, or not all.
#[derive(Debug)]
enum Error {
    Specification(spec::Error),
    /// The file does not tell which of its jobsets is meant: how many there are.
    Which(usize),
    NoSuchJobset(JobsetName),
    /// The temporary directory.
    Prepare(PathBuf, io::Error),
    Fetch {
        channel: String,
        reason: String,
    },
    Evaluation(String),
    /// Cannot wait for signals.
    Signals(io::Error),
    Interrupted,
    Output(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Specification(error) => error.fmt(f),
            Self::Which(number) => {
                write!(f, "the file has {number} jobsets: the argument NAME must tell which one")
            }
            Self::NoSuchJobset(name) => write!(f, "the file has no jobset {name}"),
            Self::Prepare(path, _) => write!(f, "cannot prepare {}", path.display()),
            Self::Fetch { channel, reason } => {
                write!(f, "cannot fetch channel {channel:?}: {reason}")
            }
            Self::Evaluation(reason) => write!(f, "the evaluation failed: {reason}"),
            Self::Signals(_) => f.write_str("cannot wait for signals"),
            Self::Interrupted => f.write_str("interrupted"),
            Self::Output(_) => f.write_str("cannot write to standard output"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Prepare(_, error) | Self::Signals(error) | Self::Output(error) => Some(error),
            Self::Specification(_)
            | Self::Which(_)
            | Self::NoSuchJobset(_)
            | Self::Fetch { .. }
            | Self::Evaluation(_)
            | Self::Interrupted => None,
        }
    }
}

pub(super) fn run(options: &Options) -> ExitCode {
    match try_run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            print::err(&chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn try_run(options: &Options) -> Result<(), Error> {
    let guile = Guile::new(options.guix.clone());
    let all = spec::read(&options.file, &guile).map_err(Error::Specification)?;
    let specification = choose(all, options.name.as_ref())?;
    let interrupt = Interrupt::listen().map_err(Error::Signals)?;
    let directory = Temporary::create().map_err(|(path, error)| Error::Prepare(path, error))?;
    let prepare = |error| Error::Prepare(directory.path().to_owned(), error);
    let launcher =
        Launcher::new(directory.keepers(), clock::now() + LOCK_PATIENCE).map_err(prepare)?;
    let work = Work { launcher, directory: directory.path(), interrupt };
    let checkouts = specification
        .channels
        .iter()
        .map(|channel| work.fetch(channel, options.fetch_timeout))
        .collect::<Result<Vec<_>, _>>();
    let mirror =
        |channel: &Channel| work.directory.join("cache/git").join(git::mirror_name(&channel.url));
    let guix = guix::Tools {
        command: options.guix.clone(),
        mirrors: specification.channels.iter().map(mirror).collect(),
        lent: guix::lent_directory(&work.directory.join("cache")).join(specification.name.as_str()),
    };
    let done = checkouts.and_then(|checkouts| work.evaluate(&specification, &checkouts, &guix));
    match done {
        // How what was cut short failed is of no interest.
        Err(_) if work.interrupt.has_come() => Err(Error::Interrupted),
        done => done,
    }
}

fn choose(all: Vec<Specification>, name: Option<&JobsetName>) -> Result<Specification, Error> {
    let number = all.len();
    let mut all = all.into_iter();
    match name {
        Some(name) => {
            all.find(|s| s.name == *name).ok_or_else(|| Error::NoSuchJobset(name.clone()))
        }
        None => match (all.next(), all.next()) {
            (Some(only), None) => Ok(only),
            _ => Err(Error::Which(number)),
        },
    }
}

/// What the work needs throughout.
struct Work<'a> {
    launcher: Launcher,
    directory: &'a Path,
    interrupt: Interrupt,
}

impl Work<'_> {
    fn fetch(&self, channel: &Channel, silence: Duration) -> Result<Checkout, Error> {
        let places = Places {
            mirrors: self.directory.join("cache/git"),
            checkouts: self.directory.join("cache/checkouts"),
        };
        let look = Look { url: channel.url.clone(), references: vec![channel.reference.clone()] };
        let failed = |git::Error(reason)| Error::Fetch { channel: channel.name.clone(), reason };
        let started = |child| self.interrupt.ends(child);
        let mut found =
            git::look(&self.launcher, &places, &look, silence, started).map_err(failed)?;
        let resolved = found.pop().unwrap_or_else(|| Err(git::Error("no answer".to_owned())));
        let resolved = resolved.map_err(failed)?;
        Ok(Checkout {
            channel: channel.name.clone(),
            url: channel.url.clone(),
            commit: resolved.commit,
            tree: resolved.tree,
            directory: resolved.directory,
        })
    }

    fn evaluate(
        &self,
        specification: &Specification,
        checkouts: &[Checkout],
        guix: &guix::Tools,
    ) -> Result<(), Error> {
        let evaluation = Evaluation {
            id: None,
            specification,
            checkouts,
            user: None,
            memory: None,
            stores: &store::directories(),
            guix,
        };
        let mut written = Ok(());
        let mut line = |bytes: &[u8]| {
            if written.is_ok() {
                let mut stdout = io::stdout().lock();
                written = stdout
                    .write_all(bytes)
                    .and_then(|()| stdout.write_all(b"\n"))
                    .and_then(|()| stdout.flush());
            }
        };
        let mut text = |bytes: &[u8]| {
            // There is nobody left to tell.
            let _ = io::stderr().write_all(bytes);
        };
        let started = |child| self.interrupt.ends(child);
        let (root, cache_home) =
            (self.directory.join("evaluation"), self.directory.join("cache/home"));
        let mut terminal = once::Terminal { line: &mut line, text: &mut text, started: &started };
        let ending = once::once(&self.launcher, &evaluation, &root, &cache_home, &mut terminal);
        match ending {
            Ending::Succeeded => match written {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                    Err(Error::Output(error))
                }
                _ => Ok(()),
            },
            Ending::Failed(reason) | Ending::Aborted(reason) => Err(Error::Evaluation(reason)),
            Ending::Canceled | Ending::Interrupted => Err(Error::Interrupted),
        }
    }
}
