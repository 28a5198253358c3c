//! How often something may happen for one address: a window that begins with the first time.
//!
//! Invariant: no more than [`ADDRESSES`] are remembered, and forgetting one errs on the side of whoever asks.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::web::network;

/// Addresses remembered at once: some 500 KiB.
const ADDRESSES: usize = 10_000;

#[derive(Debug)]
pub(in crate::web) struct Limiter {
    most: usize,
    within: Duration,
    seen: HashMap<IpAddr, Window>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    since: Instant,
    count: usize,
}

impl Limiter {
    /// At most so many within that time.
    pub(in crate::web) fn new(most: usize, within: Duration) -> Self {
        Self { most, within, seen: HashMap::new() }
    }

    /// After how many seconds it may happen again; `None` if it may now.
    pub(in crate::web) fn refusal(&self, peer: IpAddr, now: Instant) -> Option<u64> {
        let window = self.seen.get(&network::of(peer))?;
        let left = (window.since + self.within).saturating_duration_since(now);
        // A second begun is a second.
        (window.count >= self.most && !left.is_zero()).then(|| left.as_secs() + 1)
    }

    /// It has happened.
    pub(in crate::web) fn count(&mut self, peer: IpAddr, now: Instant) {
        let peer = network::of(peer);
        if self.seen.len() >= ADDRESSES && !self.seen.contains_key(&peer) {
            self.forget(now);
        }
        let window = self.seen.entry(peer).or_insert(Window { since: now, count: 0 });
        if now.saturating_duration_since(window.since) >= self.within {
            *window = Window { since: now, count: 0 };
        }
        window.count += 1;
    }

    /// Forgets the windows that are over, or the oldest if all go on.
    fn forget(&mut self, now: Instant) {
        let within = self.within;
        self.seen.retain(|_, window| now.saturating_duration_since(window.since) < within);
        if self.seen.len() >= ADDRESSES {
            let oldest = self.seen.iter().min_by_key(|(_, window)| window.since);
            if let Some(peer) = oldest.map(|(peer, _)| *peer) {
                self.seen.remove(&peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock;

    #[test]
    fn a_window_fills_and_ends() {
        let (t0, minute) = (clock::now(), Duration::from_secs(60));
        let mut limiter = Limiter::new(2, minute);
        let peer = "192.0.2.1".parse().unwrap();
        limiter.count(peer, t0);
        assert_eq!(limiter.refusal(peer, t0), None);
        limiter.count(peer, t0 + minute / 2);
        assert_eq!(limiter.refusal(peer, t0 + minute / 2), Some(31));
        assert_eq!(limiter.refusal("192.0.2.2".parse().unwrap(), t0), None);
        assert_eq!(limiter.refusal(peer, t0 + minute), None);
        limiter.count(peer, t0 + minute);
        assert_eq!(limiter.refusal(peer, t0 + minute), None);
    }

    #[test]
    fn neighbours_count_as_one_and_memory_is_bounded() {
        let (t0, minute) = (clock::now(), Duration::from_secs(60));
        let mut limiter = Limiter::new(1, minute);
        limiter.count("2001:db8::1".parse().unwrap(), t0);
        assert!(limiter.refusal("2001:db8::2".parse().unwrap(), t0).is_some());
        assert!(limiter.refusal("2001:db8:0:1::2".parse().unwrap(), t0).is_none());
        for n in 0..ADDRESSES as u32 + 10 {
            let later = t0 + Duration::from_micros(1 + u64::from(n));
            limiter.count(IpAddr::V4(n.to_be_bytes().into()), later);
        }
        assert_eq!(limiter.seen.len(), ADDRESSES);
        assert!(limiter.refusal("2001:db8::2".parse().unwrap(), t0).is_none());
    }
}
