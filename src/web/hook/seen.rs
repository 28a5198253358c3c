//! Deliveries that were heard already: one that is sent again, by a forge that is in doubt or by somebody who
//! recorded it, does nothing.

use std::collections::{HashSet, VecDeque};

/// Deliveries remembered: a day of a busy forge, in some 300 KiB.
const DELIVERIES: usize = 4_096;

#[derive(Debug, Default)]
pub(super) struct Seen {
    keys: HashSet<[u8; 32]>,
    /// Oldest first.
    order: VecDeque<[u8; 32]>,
}

impl Seen {
    pub(super) fn contains(&self, key: &[u8; 32]) -> bool {
        self.keys.contains(key)
    }

    pub(super) fn add(&mut self, key: [u8; 32]) {
        if !self.keys.insert(key) {
            return;
        }
        self.order.push_back(key);
        if self.order.len() > DELIVERIES
            && let Some(oldest) = self.order.pop_front()
        {
            self.keys.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten() {
        let mut seen = Seen::default();
        let key = |n: usize| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_be_bytes());
            key
        };
        for n in 0..=DELIVERIES {
            seen.add(key(n));
            seen.add(key(n));
        }
        assert!(!seen.contains(&key(0)) && seen.contains(&key(1)));
        assert_eq!((seen.keys.len(), seen.order.len()), (DELIVERIES, DELIVERIES));
    }
}
