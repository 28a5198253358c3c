//! How a job of a pool is canceled by its owner, whatever it is doing.

use std::sync::{Mutex, PoisonError};

use crate::sys::process::Killer;

/// Cancels one job from its owner's thread, whether anything of it runs yet or not.
pub(crate) struct Leash<T>(Mutex<Hold<T>>);

enum Hold<T> {
    Loose,
    Held(T),
    Canceled,
}

/// What ends a build that runs.
pub(crate) trait End {
    fn end(&self);
}

impl End for Killer {
    fn end(&self) {
        self.cancel();
    }
}

impl<T> Default for Leash<T> {
    fn default() -> Self {
        Self(Mutex::new(Hold::Loose))
    }
}

impl<T: End> Leash<T> {
    pub(crate) fn cancel(&self) {
        let mut hold = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Hold::Held(end) = &*hold {
            end.end();
        }
        *hold = Hold::Canceled;
    }

    /// Puts a build's child or connection on the leash; false if it was canceled before.
    pub(crate) fn take(&self, end: T) -> bool {
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
    pub(crate) fn release(&self) -> bool {
        let mut hold = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *hold {
            Hold::Loose | Hold::Held(_) => {
                *hold = Hold::Loose;
                true
            }
            Hold::Canceled => false,
        }
    }

    pub(crate) fn is_canceled(&self) -> bool {
        matches!(*self.0.lock().unwrap_or_else(PoisonError::into_inner), Hold::Canceled)
    }
}
