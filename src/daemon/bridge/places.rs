//! Who may hold one of the bridge's places: pure.
//!
//! Invariant: at most `max` places are held, and at most half of them (but one at least) by requests that go on
//! as long as the peer likes.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A client may think for this long before a newcomer may take its place.
const IDLE: Duration = Duration::from_secs(5);

/// The number of a connection; never used twice.
pub(super) type Number = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing asked for since then.
    Idle(Instant),
    /// A request is being answered.
    Busy,
    /// One that goes on as long as the peer likes.
    Long,
}

/// What becomes of a newcomer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Serve(Number),
    /// The other one is to be hung up on.
    ServeInsteadOf(Number, Number),
    Refuse,
}

/// Whether a request may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permit {
    Granted,
    /// Too many long ones are under way.
    TooManyLong,
    /// The connection has given way to a newcomer.
    Displaced,
}

pub(super) struct Places {
    max: usize,
    held: BTreeMap<Number, State>,
    next: Number,
}

impl Places {
    pub(super) fn new(max: usize) -> Self {
        Self { max: max.max(1), held: BTreeMap::new(), next: 0 }
    }

    pub(super) fn admit(&mut self, now: Instant) -> Admission {
        let number = self.next;
        if self.held.len() < self.max {
            self.take(number, now);
            return Admission::Serve(number);
        }
        let idle = self.held.iter().filter_map(|(&n, state)| match state {
            State::Idle(since) => Some((*since, n)),
            State::Busy | State::Long => None,
        });
        match idle.min() {
            Some((since, old)) if now.saturating_duration_since(since) >= IDLE => {
                self.held.remove(&old);
                self.take(number, now);
                Admission::ServeInsteadOf(number, old)
            }
            Some(_) | None => Admission::Refuse,
        }
    }

    fn take(&mut self, number: Number, now: Instant) {
        self.held.insert(number, State::Idle(now));
        self.next += 1;
    }

    /// A request of `number` is about to be performed.
    pub(super) fn begin(&mut self, number: Number, long: bool) -> Permit {
        let longs = self.held.values().filter(|state| **state == State::Long).count();
        let Some(state) = self.held.get_mut(&number) else { return Permit::Displaced };
        if long && longs >= (self.max / 2).max(1) {
            return Permit::TooManyLong;
        }
        *state = if long { State::Long } else { State::Busy };
        Permit::Granted
    }

    /// Its answer has been given.
    pub(super) fn idle(&mut self, number: Number, now: Instant) {
        if let Some(state) = self.held.get_mut(&number) {
            *state = State::Idle(now);
        }
    }

    /// The connection has ended.
    pub(super) fn closed(&mut self, number: Number) {
        self.held.remove(&number);
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do to count from")]
mod tests {
    use super::*;

    #[test]
    fn the_one_idle_longest_gives_way_after_five_seconds() {
        let t0 = Instant::now();
        let at = |seconds| t0 + Duration::from_secs(seconds);
        let mut places = Places::new(2);
        assert_eq!(places.admit(at(0)), Admission::Serve(0));
        assert_eq!(places.admit(at(1)), Admission::Serve(1));
        assert_eq!(places.admit(at(4)), Admission::Refuse);
        assert_eq!(places.begin(0, false), Permit::Granted);
        assert_eq!(places.admit(at(5)), Admission::Refuse, "0 is busy, 1 idle for 4 s");
        places.idle(0, at(5));
        assert_eq!(places.admit(at(6)), Admission::ServeInsteadOf(2, 1));
        assert_eq!(places.begin(1, false), Permit::Displaced);
        assert_eq!(places.admit(at(9)), Admission::Refuse);
        assert_eq!(places.admit(at(10)), Admission::ServeInsteadOf(3, 0));
        places.closed(0);
        assert_eq!(places.admit(at(10)), Admission::Refuse, "0 was gone already");
        places.closed(2);
        assert_eq!(places.admit(at(10)), Admission::Serve(4));
    }

    #[test]
    fn long_requests_hold_at_most_half() {
        let t0 = Instant::now();
        let mut places = Places::new(4);
        for _ in 0..4 {
            places.admit(t0);
        }
        assert_eq!(places.begin(0, true), Permit::Granted);
        assert_eq!(places.begin(1, true), Permit::Granted);
        assert_eq!(places.begin(2, true), Permit::TooManyLong);
        assert_eq!(places.begin(2, false), Permit::Granted);
        places.idle(0, t0);
        assert_eq!(places.begin(3, true), Permit::Granted);
        let mut one = Places::new(1);
        one.admit(t0);
        assert_eq!(one.begin(0, true), Permit::Granted);
    }
}
