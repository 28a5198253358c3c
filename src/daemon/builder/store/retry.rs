//! When to try again what could not be done: soon, and less and less often. Pure: `now` is an argument.

use std::time::{Duration, Instant};

/// A disk that was full for a moment is found at once, one that stays full costs nothing to speak of.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

#[derive(Default)]
pub(super) struct Retry {
    pause: Duration,
    due: Option<Instant>,
}

impl Retry {
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Something was left. What fails while a try is due does not put it off.
    pub(super) fn failed(&mut self, now: Instant) {
        if self.due.is_none_or(|due| due <= now) {
            self.pause = (self.pause * 2).clamp(PAUSES.0, PAUSES.1);
            self.due = Some(now + self.pause);
        }
    }

    /// Nothing is left, or somebody else will tell when to try.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock;

    #[test]
    fn tries_become_rare_until_one_succeeds() {
        let (t0, second) = (clock::now(), Duration::from_secs(1));
        let mut retry = Retry::default();
        assert_eq!(retry.due(), None);
        retry.failed(t0);
        assert_eq!(retry.due(), Some(t0 + second));
        retry.failed(t0 + second / 2);
        assert_eq!(retry.due(), Some(t0 + second), "it is not put off");
        retry.failed(t0 + second);
        assert_eq!(retry.due(), Some(t0 + second * 3));
        for _ in 0..9 {
            retry.failed(retry.due().unwrap());
        }
        let last = retry.due().unwrap();
        retry.failed(last);
        assert_eq!(retry.due(), Some(last + PAUSES.1));
        retry.clear();
        assert_eq!(retry.due(), None);
        retry.failed(t0);
        assert_eq!(retry.due(), Some(t0 + second));
    }
}
