//! Evaluations: one run of a jobset's evaluator on one set of commits.

use std::fmt;
use std::path::PathBuf;

use super::spec::{Channel, JobsetName, Reference};
use super::status::EvaluationStatus;
use super::time::Time;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct EvaluationId(pub(crate) i64);

impl fmt::Display for EvaluationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A channel instance: one channel at one commit, with its tree on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checkout {
    pub(crate) channel: String,
    /// May hold user info.
    pub(crate) url: String,
    pub(crate) commit: String,
    /// The commit's tree id, hexadecimal.
    pub(crate) tree: String,
    /// The shared, pristine checkout, without `.git`; it may have been removed since.
    pub(crate) directory: PathBuf,
}

impl Checkout {
    /// The channel at this very commit.
    pub(crate) fn pinned(&self) -> Channel {
        Channel {
            name: self.channel.clone(),
            url: self.url.clone(),
            reference: Reference::Commit(self.commit.clone()),
            introduction: None,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Evaluation {
    pub(crate) id: EvaluationId,
    pub(crate) jobset: JobsetName,
    pub(crate) status: EvaluationStatus,
    /// When the monitor decided to fetch.
    pub(crate) timestamp: Time,
    pub(crate) checkouttime: Option<Time>,
    pub(crate) evaltime: Option<Time>,
    pub(crate) checkouts: Vec<Checkout>,
    pub(crate) jobs: Counts,
    pub(crate) error: Option<String>,
}

/// Jobs of an evaluation by the status of their build. `failed` includes failed dependencies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) total: i64,
    pub(crate) succeeded: i64,
    pub(crate) failed: i64,
    pub(crate) pending: i64,
    pub(crate) aborted: i64,
    pub(crate) canceled: i64,
}

/// How an evaluation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Succeeded,
    /// By its own account: why.
    Failed(String),
    /// Something here broke, the disk was full say: why. Repeated, with backoff.
    Aborted(String),
    /// A person canceled it: not repeated.
    Canceled,
    /// A stop or crash of the daemon: repeated at the next start.
    Interrupted,
}
