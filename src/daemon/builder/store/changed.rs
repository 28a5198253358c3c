//! Builds that are over and whose roots were not seen to yet. Pure: `now` is an argument.
//!
//! Thousands of small builds may end in a second. To read of each and to remove its link would take a good part of the
//! time that they take themselves, most of all on file systems where files that were just removed are in the way of new
//! ones. All at once, when it is quiet, they cost little. Nothing is lost meanwhile: what is let go of later is only kept
//! for longer, and what was built has its link from the build itself.

use std::time::{Duration, Instant};

use crate::model::build::BuildId;

/// They are seen to when no other has changed for so long …
const QUIET: Duration = Duration::from_secs(1);

/// … but no later than this after the first: a collector cannot free what is still kept …
const LINGER: Duration = Duration::from_secs(30);

/// … nor when there are more than this: work for a second.
const MANY: usize = 10_000;

#[derive(Default)]
pub(super) struct Changed {
    builds: Vec<BuildId>,
    /// When the first and the last of them came.
    came: Option<(Instant, Instant)>,
}

impl Changed {
    pub(super) fn add(&mut self, now: Instant, builds: &[BuildId]) {
        if builds.is_empty() {
            return;
        }
        self.builds.extend(builds);
        self.came = Some(self.came.map_or((now, now), |(first, _)| (first, now)));
    }

    pub(super) fn due(&self) -> Option<Instant> {
        let (first, last) = self.came?;
        Some(if self.builds.len() > MANY { first } else { (last + QUIET).min(first + LINGER) })
    }

    /// Each of them once.
    pub(super) fn take(&mut self) -> Vec<BuildId> {
        let Self { mut builds, .. } = std::mem::take(self);
        builds.sort_unstable();
        builds.dedup();
        builds
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock;

    #[test]
    fn they_are_due_when_it_is_quiet_or_they_waited_long_or_are_many() {
        let (t0, second) = (clock::now(), Duration::from_secs(1));
        let mut changed = Changed::default();
        changed.add(t0, &[]);
        assert_eq!(changed.due(), None);
        changed.add(t0, &[BuildId(2), BuildId(1)]);
        assert_eq!(changed.due(), Some(t0 + QUIET));
        changed.add(t0 + second / 2, &[BuildId(2)]);
        assert_eq!(changed.due(), Some(t0 + second / 2 + QUIET));
        changed.add(t0 + LINGER - second / 2, &[BuildId(3)]);
        assert_eq!(changed.due(), Some(t0 + LINGER));
        assert_eq!(changed.take(), [1, 2, 3].map(BuildId));
        assert_eq!((changed.due(), changed.take()), (None, vec![]));
        changed.add(t0 + second, &[BuildId(1); MANY + 1]);
        assert_eq!(changed.due(), Some(t0 + second));
    }
}
