//! A build that a backend has, and what the log says of its end.

use std::path::PathBuf;

use crate::model::build::{BuildId, Order, Outcome};

/// Who has it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// One of the backends of this machine.
    Backend(usize),
    /// A remote worker.
    Far,
}

pub(super) struct Placed {
    pub(super) place: Place,
    /// For people: the job and its jobset.
    job: String,
    log: PathBuf,
}

impl Placed {
    pub(super) fn new(place: Place, order: &Order) -> Self {
        let placed = Self::known(place, order);
        let (job, attempt) = (&placed.job, order.attempt);
        log::debug!(target: "builder", "build {} ({job}) starts, try {attempt}", order.id);
        placed
    }

    /// A remote worker has had it since before the start.
    pub(super) fn resumed(order: &Order) -> Self {
        Self::known(Place::Far, order)
    }

    fn known(place: Place, order: &Order) -> Self {
        let job = format!("{} of {}", order.job, order.jobset);
        Self { place, job, log: order.log.clone() }
    }

    /// A line for an end that somebody may want to know of. What goes well is only of interest in detail: there may be
    /// 100,000 of them.
    pub(super) fn tell_end(&self, id: BuildId, outcome: &Outcome) {
        let (job, log) = (&self.job, self.log.display());
        match outcome {
            Outcome::Succeeded { .. } => {
                log::debug!(target: "builder", "build {id} ({job}) succeeded");
            }
            Outcome::Failed(why) => {
                log::info!(target: "builder", "build {id} ({job}) failed: {why}; its log is {log}");
            }
            Outcome::DependencyFailed(why) => {
                log::info!(target: "builder", "build {id} ({job}): {why}; its log is {log}");
            }
            Outcome::Aborted(why) | Outcome::Missing(why) | Outcome::Lost(why) => {
                log::warn!(target: "builder", "a try of build {id} ({job}) was aborted: {why}; its log is {log}");
            }
            Outcome::NoSpace(why) | Outcome::Postponed(why) => {
                log::warn!(target: "builder", "build {id} ({job}) is put off: {why}");
            }
            Outcome::Interrupted => {
                log::debug!(target: "builder", "build {id} ({job}) was cut off");
            }
        }
    }
}
