//! What every backend needs for a build that runs on a thread of the pool: a report that cannot be forgotten, and a
//! leash.

use std::sync::{Mutex, PoisonError};

use crossbeam_channel::Sender;

use super::Report;
use crate::model::build::{BuildId, Order, Outcome};
use crate::store::Closer;
use crate::sys::process::Killer;

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

/// Cancels one job from the builder's thread, whether anything of it runs yet or not.
pub(super) struct Leash<T>(Mutex<Hold<T>>);

enum Hold<T> {
    Loose,
    Held(T),
    Canceled,
}

/// What ends a build that runs.
pub(super) trait End {
    fn end(&self);
}

impl End for Killer {
    fn end(&self) {
        self.cancel();
    }
}

impl End for Closer {
    fn end(&self) {
        self.close();
    }
}

impl<T> Default for Leash<T> {
    fn default() -> Self {
        Self(Mutex::new(Hold::Loose))
    }
}

impl<T: End> Leash<T> {
    pub(super) fn cancel(&self) {
        let mut hold = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Hold::Held(end) = &*hold {
            end.end();
        }
        *hold = Hold::Canceled;
    }

    /// Puts a build's child or connection on the leash; false if it was canceled before.
    pub(super) fn take(&self, end: T) -> bool {
        let mut hold = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *hold {
            Hold::Loose | Hold::Held(_) => {
                *hold = Hold::Held(end);
                true
            }
            Hold::Canceled => false,
        }
    }

    /// Takes it off the leash again, so that a late cancel does not end what others do with it; false if it was canceled
    /// before.
    pub(super) fn release(&self) -> bool {
        let mut hold = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *hold {
            Hold::Loose | Hold::Held(_) => {
                *hold = Hold::Loose;
                true
            }
            Hold::Canceled => false,
        }
    }

    pub(super) fn is_canceled(&self) -> bool {
        matches!(*self.0.lock().unwrap_or_else(PoisonError::into_inner), Hold::Canceled)
    }
}
