//! When each chore is due: no thread, no clock, no I/O.

use std::time::{Duration, Instant};

/// Something to do again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chore {
    /// Broken invariants between books, queue and counters.
    Sweep,
    /// Directories that were set aside.
    Stale,
    Logs,
    Checkouts,
    /// Mirrors and caches of jobsets that are gone.
    Caches,
    Products,
    /// Links that keep store items.
    Roots,
    /// Builds that have waited too long.
    Builds,
    /// Old evaluations.
    History,
    /// Evaluations that nobody sees any more.
    Withdrawn,
    /// Builds that no job points to.
    Orphans,
    /// Products without a build.
    Strays,
    Metrics,
}

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Between two rounds of one chore with more to do: leaves most of the disk and the writer to others.
const BREATH: Duration = Duration::from_millis(200);

impl Chore {
    /// Every chore, with the delay of its first round (staggered, and none right at the start) and its
    /// period.
    const ALL: &[(Self, Duration, Duration)] = &[
        (Self::Sweep, MINUTE, MINUTE),
        (Self::Stale, Duration::from_secs(5), MINUTE),
        (Self::Metrics, Duration::from_secs(30), HOUR),
        (Self::Builds, Duration::from_secs(45), MINUTE),
        (Self::Withdrawn, Duration::from_secs(50), MINUTE),
        (Self::Checkouts, Duration::from_secs(120), HOUR),
        (Self::Caches, Duration::from_secs(270), DAY),
        (Self::Orphans, Duration::from_secs(150), HOUR),
        (Self::History, Duration::from_secs(180), HOUR),
        (Self::Products, Duration::from_secs(210), HOUR),
        (Self::Roots, Duration::from_secs(225), HOUR),
        (Self::Logs, Duration::from_secs(240), DAY),
        (Self::Strays, Duration::from_secs(300), DAY),
    ];

    /// For the log.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Sweep => "sweep",
            Self::Stale => "removal of left-overs",
            Self::Logs => "expiry of logs",
            Self::Checkouts => "removal of unused checkouts",
            Self::Caches => "removal of unused caches",
            Self::Products => "expiry of products",
            Self::Roots => "expiry of roots",
            Self::Builds => "expiry of waiting builds",
            Self::History => "expiry of evaluations",
            Self::Withdrawn => "removal of evaluations",
            Self::Orphans => "removal of unwanted builds",
            Self::Strays => "removal of stray products",
            Self::Metrics => "metrics",
        }
    }

    fn period(self) -> Duration {
        let own = Self::ALL.iter().find(|(chore, ..)| *chore == self);
        own.map_or(DAY, |(_, _, period)| *period)
    }
}

/// The plan: which chore is due when.
pub(super) struct Chores {
    due: Vec<(Instant, Chore)>,
}

impl Chores {
    /// Chores whose expiry is off are never due.
    pub(super) fn new(
        now: Instant,
        build_expiry: Option<Duration>,
        history_expiry: Option<Duration>,
    ) -> Self {
        let wanted = |chore: Chore| match chore {
            Chore::Builds => build_expiry.is_some(),
            Chore::History => history_expiry.is_some(),
            Chore::Sweep
            | Chore::Stale
            | Chore::Logs
            | Chore::Checkouts
            | Chore::Caches
            | Chore::Products
            | Chore::Roots
            | Chore::Withdrawn
            | Chore::Orphans
            | Chore::Strays
            | Chore::Metrics => true,
        };
        let due = Chore::ALL
            .iter()
            .filter(|(chore, ..)| wanted(*chore))
            .map(|(chore, first, _)| (now + *first, *chore))
            .collect();
        Self { due }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.due.iter().map(|(due, _)| *due).min()
    }

    /// The chore longest due, which is then not due until `done`.
    pub(super) fn take(&mut self, now: Instant) -> Option<Chore> {
        let first = (0..self.due.len()).min_by_key(|n| self.due[*n].0)?;
        (self.due[first].0 <= now).then(|| self.due.swap_remove(first).1)
    }

    pub(super) fn done(&mut self, now: Instant, chore: Chore, more: bool) {
        let wait = if more { BREATH } else { chore.period() };
        self.due.push((now + wait, chore));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an instant to count from; nothing waits for it")]
    fn start() -> Instant {
        Instant::now()
    }

    /// What is done within `span`, with everything done in one round.
    fn day(chores: &mut Chores, mut now: Instant, span: Duration) -> Vec<Chore> {
        let (end, mut did) = (now + span, vec![]);
        while let Some(due) = chores.deadline().filter(|due| *due < end) {
            now = now.max(due);
            let chore = chores.take(now).unwrap();
            chores.done(now, chore, false);
            did.push(chore);
        }
        did
    }

    #[test]
    fn chores_come_at_their_periods() {
        let now = start();
        let mut chores = Chores::new(now, None, Some(DAY));
        assert_eq!(chores.take(now), None, "nothing right at the start");
        let did = day(&mut chores, now, 2 * DAY);
        let count = |chore| did.iter().filter(|c| **c == chore).count();
        assert_eq!(count(Chore::Sweep), 2 * 24 * 60 - 1);
        assert_eq!(count(Chore::Metrics), 48);
        assert_eq!(count(Chore::Logs), 2);
        assert_eq!(count(Chore::History), 48);
        assert_eq!(count(Chore::Builds), 0, "switched off");
    }

    #[test]
    fn a_chore_with_more_to_do_leaves_others_their_turn() {
        let mut now = start();
        let mut chores = Chores::new(now, None, None);
        now += DAY;
        let mut did = vec![];
        for _ in 0..20 {
            now += BREATH;
            let chore = chores.take(now).unwrap_or(Chore::Stale);
            if chore == Chore::Stale {
                chores.due.retain(|(_, c)| *c != chore);
            }
            chores.done(now, chore, chore == Chore::Stale);
            did.push(chore);
        }
        for (chore, ..) in Chore::ALL {
            let off = matches!(chore, Chore::Builds | Chore::History);
            assert_eq!(did.contains(chore), !off, "{chore:?}");
        }
        assert!(did.iter().filter(|c| **c == Chore::Stale).count() > 2);
    }
}
