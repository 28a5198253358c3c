//! Builds: as they are shown, as the queue sees them, and as a backend gets them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use super::evaluation::{Checkout, EvaluationId};
use super::job::ProcessWork;
use super::spec::JobsetName;
use super::status::{BuildStatus, Weather};
use super::time::Time;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct BuildId(pub(crate) i64);

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A build as it stands in the books.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Build {
    pub(crate) id: BuildId,
    /// Jobset, evaluation and job that introduced it.
    pub(crate) jobset: JobsetName,
    pub(crate) evaluation: EvaluationId,
    pub(crate) job: String,
    pub(crate) system: String,
    pub(crate) derivation: String,
    pub(crate) nix_name: String,
    pub(crate) outputs: BTreeMap<String, String>,
    pub(crate) status: BuildStatus,
    pub(crate) weather: Weather,
    pub(crate) priority: i64,
    pub(crate) worker: Option<String>,
    /// Tries begun so far.
    pub(crate) attempts: i64,
    pub(crate) timestamp: Time,
    pub(crate) starttime: Option<Time>,
    pub(crate) stoptime: Option<Time>,
    pub(crate) log: Option<PathBuf>,
    pub(crate) error: Option<String>,
}

/// What the ready queue must know of a scheduled build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: BuildId,
    /// Lower first.
    pub(crate) priority: i64,
    /// When it was registered: older first among equals.
    pub(crate) timestamp: Time,
    pub(crate) system: String,
    pub(crate) kind: Kind,
    /// Builds that must succeed before this one may start and have not yet, and those that run with what an earlier
    /// try of this one left.
    pub(crate) waits_for: Vec<BuildId>,
    /// Not before this time: the backoff after an abort.
    pub(crate) retry_at: Option<Time>,
}

/// Which family of backends a build needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Process,
    Derivation(Store),
}

/// Whose store a derivation is in. Guix's is where it always is; Nix's can be anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Store {
    Guix,
    Nix,
}

impl Store {
    /// The store of a derivation's file, or of the beginning of its name.
    pub(crate) fn of(derivation: &str) -> Self {
        if derivation.starts_with("/gnu/store/") { Self::Guix } else { Self::Nix }
    }
}

/// All that a backend needs to run one build.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Order {
    pub(crate) id: BuildId,
    /// Which try this is, from 1: a late report of an older one is ignored.
    pub(crate) attempt: i64,
    pub(crate) jobset: JobsetName,
    pub(crate) evaluation: EvaluationId,
    pub(crate) job: String,
    pub(crate) system: String,
    pub(crate) derivation: String,
    pub(crate) priority: i64,
    /// Seconds; 0 for none.
    pub(crate) timeout: i64,
    pub(crate) max_silent_time: i64,
    /// For process builds: what to run, in which checkouts, with what of others.
    pub(crate) process: Option<ProcessWork>,
    pub(crate) checkouts: Vec<Checkout>,
    pub(crate) needs: Vec<Need>,
    /// Where the log goes.
    pub(crate) log: PathBuf,
    /// The remote worker that is to build it, if one is.
    pub(crate) worker: Option<String>,
}

/// What a process build gets of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Need {
    pub(crate) job: String,
    pub(crate) outputs: BTreeMap<String, String>,
    /// What there was has been removed.
    pub(crate) expired: bool,
}

/// How a try ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Succeeded {
        outputs: BTreeMap<String, String>,
        products: Vec<Product>,
    },
    /// The build itself said so: why.
    Failed(String),
    /// Something that it needs, and that is no job, failed: what, and why.
    DependencyFailed(String),
    /// The infrastructure broke: why. The build is tried again, with backoff.
    Aborted(String),
    /// The worker that built it is gone: why. It is tried again at once, elsewhere.
    Lost(String),
    /// There was no room for it on a disk: why. It waits for room, and no try is spent.
    NoSpace(String),
    /// Something has to come first that takes its time: what. Scheduled again for later, and no try is spent.
    Postponed(String),
    /// What was to be built is no longer in the store: which, and what to do. An evaluation makes it again.
    Missing(String),
    /// Our own stop ended it: scheduled again at once, and no try is spent.
    Interrupted,
}

/// A file or directory that a build left for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Product {
    pub(crate) kind: String,
    pub(crate) path: PathBuf,
    /// Bytes, all files below a directory taken together.
    pub(crate) size: u64,
    /// Of a single file, hexadecimal; `None` for a directory.
    pub(crate) sha256: Option<String>,
}
