//! Builds, jobs and dependencies: every change of a build's status happens here.
//!
//! Invariant: a change of status, the counters of every evaluation it shows in, the effects on dependents,
//! weather, notifications and the event are one transaction.

mod cancel;
mod change;
mod list;
mod missing;
mod queue;
mod register;
mod restart;
mod run;
#[cfg(test)]
mod tests;
mod weather;

pub(crate) use cancel::{cancel, cancel_evaluation, cancel_jobset, expire, supersede};
#[cfg(test)]
pub(crate) use list::products;
pub(crate) use list::{Filter, get, is_only_of, list, of_job, outputs, settled};
pub(crate) use queue::{entries, pending_counts, running, running_among, scheduled};
pub(crate) use register::{depend, register};
pub(crate) use restart::{prioritize, restart, restart_evaluation};
pub(crate) use run::{abroad, call_home, end, recover, start};

pub(super) use change::{adopt, hand_over, slot};
#[cfg(test)]
pub(super) use list::query;
pub(super) use list::{COLUMNS, read};
pub(super) use run::insert_products;

use crate::model::build::BuildId;
use crate::model::evaluation::EvaluationId;

/// What a transaction did to builds, for the ready queue to follow.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Scheduled now (new, restarted, revived, or with another priority): (re)load their entries.
    pub(crate) scheduled: Vec<BuildId>,
    /// Were pending and are no more: forget them, and stop those that run.
    pub(crate) ended: Vec<BuildId>,
    /// Succeeded before, and a job of a new evaluation points to them.
    pub(crate) reused: Vec<BuildId>,
    /// Are to be made again, which the books have promised.
    pub(crate) repeats: Vec<EvaluationId>,
}

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        let Self { scheduled, ended, reused, repeats } = self;
        scheduled.is_empty() && ended.is_empty() && reused.is_empty() && repeats.is_empty()
    }
}
