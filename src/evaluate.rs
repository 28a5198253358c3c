//! Evaluators: the program to run for a jobset, and the jobs it prints.
//!
//! Nothing here knows the books: [`run`] hands jobs and text to a [`run::Sink`], which is the database in the
//! daemon and the terminal for the one-off command.

pub(crate) mod ask;
pub(crate) mod command;
mod cycles;
pub(crate) mod guix;
mod identity;
pub(crate) mod inputs;
mod lent;
pub(crate) mod line;
pub(crate) mod nix;
pub(crate) mod once;
pub(crate) mod place;
pub(crate) mod resolve;
pub(crate) mod run;

use std::path::PathBuf;
use std::{fmt, io};

use crate::model::error::chain;
use crate::model::evaluation::{Checkout, Ending, EvaluationId};
use crate::model::spec::{Evaluator, Specification};
use crate::sys::process::{Child, Launcher, User};
use place::Place;

/// One evaluation to make.
pub(crate) struct Evaluation<'a> {
    /// `None` for a one-off that the books do not know.
    pub(crate) id: Option<EvaluationId>,
    pub(crate) specification: &'a Specification,
    pub(crate) checkouts: &'a [Checkout],
    pub(crate) user: Option<&'a User>,
    /// Bytes of address space.
    pub(crate) memory: Option<u64>,
    /// Directories of the stores where derivations can be.
    pub(crate) stores: &'a [String],
    /// For the evaluator of that name alone.
    pub(crate) guix: &'a guix::Tools,
}

/// Why an evaluator does not run.
#[derive(Debug)]
pub(crate) enum Error {
    /// A file or directory it works in could not be made.
    Prepare(PathBuf, io::Error),
    Start(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prepare(path, _) => write!(f, "cannot prepare {}", path.display()),
            Self::Start(_) => f.write_str("cannot start a process"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Prepare(_, error) | Self::Start(error) => Some(error),
        }
    }
}

impl Error {
    /// What becomes of the evaluation.
    pub(crate) fn ending(&self) -> Ending {
        match self {
            Self::Prepare(..) | Self::Start(_) => Ending::Aborted(chain(self)),
        }
    }
}

/// Starts the evaluator of a jobset in `place`.
pub(crate) fn start(
    launcher: &Launcher,
    evaluation: &Evaluation<'_>,
    place: &Place,
) -> Result<Child, Error> {
    let launch = match &evaluation.specification.evaluator {
        Evaluator::Command(words) => command::launch(words, evaluation, place),
        Evaluator::Nix(subset) => nix::launch(subset, evaluation, place),
        Evaluator::Guix(subset) => guix::launch(subset, evaluation, place)?,
    };
    launcher.start(launch, None).map_err(Error::Start)
}
