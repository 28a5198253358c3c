//! Jobs as an evaluation registers them.

use std::collections::BTreeMap;

/// A job ready to be registered: its identity is known, and so are the jobs it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewJob {
    pub(crate) name: String,
    pub(crate) system: String,
    /// The build's identity: a `.drv` file name, `process:SHA-256` or `error:SHA-256`.
    pub(crate) derivation: String,
    pub(crate) nix_name: String,
    /// Output name to path; empty for process builds, whose output is known with their build number.
    pub(crate) outputs: BTreeMap<String, String>,
    /// 10 × the jobset's + the job's.
    pub(crate) priority: i64,
    /// Seconds; 0 for none.
    pub(crate) timeout: i64,
    /// Seconds without output; 0 for none.
    pub(crate) max_silent_time: i64,
    pub(crate) work: Work,
    /// Identities of the builds this one needs.
    pub(crate) needs: Vec<String>,
}

/// What there is to do for a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Process(ProcessWork),
    /// Build the derivation with a store daemon.
    Derivation,
    /// Nothing: the job could not be evaluated, for this reason.
    Error(String),
}

/// What a process build runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProcessWork {
    /// Program and arguments; never empty.
    pub(crate) command: Vec<String>,
    pub(crate) environment: BTreeMap<String, String>,
    /// Globs, relative to the working directory, of files to keep.
    pub(crate) products: Vec<String>,
    /// Names of the needed jobs, in the order of `NewJob::needs`.
    pub(crate) needs: Vec<String>,
}
