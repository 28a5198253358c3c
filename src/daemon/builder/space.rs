//! Whether there is room on the disk for another build. Pure: what was measured is an argument.
//!
//! Invariant: what an operator reads is one line when room gets scarce and one when there is enough again.

use std::time::{Duration, Instant};

/// While there is room it is measured at most this often: a build takes longer than that to fill what is left.
const FRESH: Duration = Duration::from_secs(1);

/// While there is none it is measured this often, as nobody tells when a disk gets emptier.
const RECHECK: Duration = Duration::from_secs(5);

pub(super) struct Space {
    minimum: u64,
    short: bool,
    measured: Option<Instant>,
}

impl Space {
    pub(super) fn new(minimum: u64) -> Self {
        Self { minimum, short: false, measured: None }
    }

    pub(super) fn is_short(&self) -> bool {
        self.short
    }

    /// When to measure next.
    pub(super) fn due(&self) -> Option<Instant> {
        self.measured.map(|at| at + if self.short { RECHECK } else { FRESH })
    }

    /// Whether a measurement is due before another build starts.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due().is_none_or(|due| due <= now)
    }

    /// It could not be measured: what was known stays so.
    pub(super) fn on_unknown(&mut self, now: Instant) {
        self.measured = Some(now);
    }

    /// `free` bytes were measured.
    pub(super) fn on_measured(&mut self, now: Instant, free: u64) {
        self.measured = Some(now);
        let short = free < self.minimum;
        if short && !self.short {
            log::warn!(
                target: "builder",
                "builds wait: {free} bytes free on the disk, less than the {} to keep free", self.minimum
            );
        } else if !short && self.short {
            log::info!(target: "builder", "builds go on: {free} bytes free on the disk");
        }
        self.short = short;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock;

    #[test]
    fn room_is_measured_now_and_then() {
        let (t0, mut space) = (clock::now(), Space::new(100));
        assert!(space.is_due(t0));
        space.on_measured(t0, 100);
        assert!(!space.is_short() && !space.is_due(t0));
        assert!(space.is_due(t0 + FRESH));
        space.on_measured(t0 + FRESH, 99);
        assert!(space.is_short() && !space.is_due(t0 + FRESH + FRESH));
        assert_eq!(space.due(), Some(t0 + FRESH + RECHECK));
        space.on_measured(t0 + FRESH + RECHECK, 100);
        assert!(!space.is_short());
    }
}
