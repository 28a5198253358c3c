//! What every backend needs for a build that runs on a thread of the pool: a report that cannot be forgotten, and a
//! leash.

use crossbeam_channel::Sender;

use super::Report;
pub(super) use crate::actor::leash::Leash;
use crate::model::build::{BuildId, Order, Outcome};

/// The report that is due for a build: dropped unsent, it says that the build was interrupted.
pub(super) struct Unreported {
    lane: Sender<Report>,
    id: BuildId,
    attempt: i64,
    outcome: Outcome,
}

impl Unreported {
    pub(super) fn new(lane: &Sender<Report>, order: &Order) -> Self {
        let (id, attempt) = (order.id, order.attempt);
        Self { lane: lane.clone(), id, attempt, outcome: Outcome::Interrupted }
    }

    pub(super) fn send(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Unreported {
    fn drop(&mut self) {
        let Self { id, attempt, .. } = *self;
        let outcome = std::mem::replace(&mut self.outcome, Outcome::Interrupted);
        // A builder that is gone needs no report.
        let _ = self.lane.send(Report::Ended { id, attempt, outcome });
    }
}
