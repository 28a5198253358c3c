//! Places for those whose answers go on: a number in all, and a number for each who asks.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use super::network;

#[derive(Clone, Debug)]
pub(super) struct Seats {
    all: usize,
    each: usize,
    taken: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// Given back when dropped.
#[derive(Debug)]
pub(super) struct Seat(Seats, IpAddr);

impl Seats {
    pub(super) fn new(all: usize, each: usize) -> Self {
        Self { all, each, taken: Arc::default() }
    }

    /// `None` if there is none left, or none for this address. Behind a proxy of this machine that nobody said to
    /// trust, everybody comes from here: that address may have all.
    pub(super) fn take(&self, address: IpAddr) -> Option<Seat> {
        let address = network::of(address);
        // Counts are right between any two changes of them.
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.get(&address).copied().unwrap_or(0);
        if taken.values().sum::<usize>() >= self.all || (own >= self.each && !address.is_loopback())
        {
            return None;
        }
        taken.insert(address, own + 1);
        Some(Seat(self.clone(), address))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_them_all() {
        let seats = Seats::new(4, 2);
        let address = |last| IpAddr::from([192, 0, 2, last]);
        let mine = [seats.take(address(1)).unwrap(), seats.take(address(1)).unwrap()];
        assert!(seats.take(address(1)).is_none());
        let here = IpAddr::from([127, 0, 0, 1]);
        let others = [seats.take(address(2)).unwrap(), seats.take(here).unwrap()];
        assert!(seats.take(address(3)).is_none());
        drop(mine);
        // Other addresses of one customer are no other customer.
        let network = |last| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]);
        let theirs = [seats.take(network(1)).unwrap(), seats.take(network(2)).unwrap()];
        assert!(seats.take(network(3)).is_none());
        drop(theirs);
        let local = [seats.take(here).unwrap(), seats.take(here).unwrap()];
        assert!(seats.take(address(3)).is_none());
        drop((others, local));
        assert!(seats.taken.lock().unwrap().is_empty());
    }
}
