//! How long a build may run, and how long it may be silent. Pure.

use std::time::{Duration, Instant};

/// Which limit was exceeded, and its seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exceeded {
    Timeout(i64),
    Silence(i64),
}

impl std::fmt::Display for Exceeded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Timeout(seconds) => write!(f, "timed out after {seconds} s"),
            Self::Silence(seconds) => write!(f, "silent for {seconds} s"),
        }
    }
}

pub(super) struct Limits {
    /// When it began.
    pub(super) began: Instant,
    /// Seconds; 0 for none.
    pub(super) timeout: i64,
    pub(super) max_silent_time: i64,
}

impl Limits {
    /// When it will have run, or have been silent since `last`, for too long.
    pub(super) fn deadline(&self, last: Instant) -> Option<Instant> {
        let ends = [after(self.began, self.timeout), after(last, self.max_silent_time)];
        ends.into_iter().flatten().min()
    }

    pub(super) fn exceeded(&self, now: Instant, last: Instant) -> Option<Exceeded> {
        let passed = |from, seconds| after(from, seconds).is_some_and(|end| end <= now);
        if passed(self.began, self.timeout) {
            Some(Exceeded::Timeout(self.timeout))
        } else if passed(last, self.max_silent_time) {
            Some(Exceeded::Silence(self.max_silent_time))
        } else {
            None
        }
    }
}

/// `None` for no limit, and for one that no clock will reach.
fn after(from: Instant, seconds: i64) -> Option<Instant> {
    let seconds = u64::try_from(seconds).ok().filter(|seconds| *seconds > 0)?;
    from.checked_add(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock;

    #[test]
    fn the_earlier_limit_counts_and_output_puts_silence_off() {
        let began = clock::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let limits = Limits { began, timeout: 100, max_silent_time: 30 };
        assert_eq!(limits.deadline(began), Some(at(30)));
        assert_eq!(limits.exceeded(at(29), began), None);
        assert_eq!(limits.exceeded(at(30), began).unwrap().to_string(), "silent for 30 s");
        assert_eq!(limits.exceeded(at(99), at(70)), None);
        assert_eq!(limits.deadline(at(90)), Some(at(100)));
        assert_eq!(limits.exceeded(at(100), at(99)).unwrap().to_string(), "timed out after 100 s");
    }

    #[test]
    fn no_limit_is_no_limit() {
        let began = clock::now();
        for none in [0, -1, i64::MAX] {
            let limits = Limits { began, timeout: none, max_silent_time: none };
            assert_eq!(limits.deadline(began), None);
            assert_eq!(limits.exceeded(began + Duration::from_secs(1 << 40), began), None);
        }
    }
}
