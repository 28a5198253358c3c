//! How many connections there may be, and answers waited for: in all, and of one address.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::web::network;

/// From one address: a browser has six, a company behind one address some dozens.
pub(super) const PER_ADDRESS: usize = 256;

/// In all, where descriptors allow it; each costs a few kilobytes while it is idle.
const MOST: usize = 4096;

/// Streams at once, where descriptors allow it: each costs two threads and four descriptors.
const MOST_STREAMS: usize = 1024;

/// Who shares a number.
pub(super) type Group = IpAddr;

/// What the limit on descriptors allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::web) struct Limits {
    pub(in crate::web) connections: usize,
    pub(in crate::web) streams: usize,
}

impl Limits {
    /// A quarter for clients, and as much at most for streams, so that half is left for everything else.
    pub(in crate::web) fn of(descriptors: u64) -> Self {
        let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
        Self {
            connections: (descriptors / 4).clamp(16, MOST),
            streams: (descriptors / 16).clamp(4, MOST_STREAMS),
        }
    }
}

/// Why somebody does not get a place at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    All,
    Group(Group),
}

pub(super) struct Places {
    most: usize,
    each: usize,
    taken: usize,
    groups: HashMap<Group, usize>,
}

impl Places {
    /// So many in all, and of one group.
    pub(super) fn new(most: usize, each: usize) -> Self {
        Self { most, each, taken: 0, groups: HashMap::new() }
    }

    /// Whose share something counts for; nobody's for this machine itself and for trusted proxies, which speak for
    /// many.
    pub(super) fn group(address: IpAddr, proxies: &[IpAddr]) -> Option<Group> {
        if address.is_loopback() || proxies.contains(&address) {
            return None;
        }
        Some(network::of(address))
    }

    pub(super) fn take(&mut self, group: Option<Group>) -> Result<(), Full> {
        if let Some(group) = group
            && self.groups.get(&group).is_some_and(|taken| *taken >= self.each)
        {
            return Err(Full::Group(group));
        }
        if self.taken >= self.most {
            return Err(Full::All);
        }
        self.taken += 1;
        if let Some(group) = group {
            *self.groups.entry(group).or_default() += 1;
        }
        Ok(())
    }

    pub(super) fn give_back(&mut self, group: Option<Group>) {
        self.taken -= 1;
        if let Some(group) = group
            && let Some(taken) = self.groups.get_mut(&group)
        {
            *taken -= 1;
            if *taken == 0 {
                self.groups.remove(&group);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_all_places() {
        let mut places = Places::new(PER_ADDRESS + 1, PER_ADDRESS);
        let group =
            |text: &str| Places::group(text.parse().unwrap(), &["9.9.9.9".parse().unwrap()]);
        assert_eq!((group("127.0.0.1"), group("::1"), group("9.9.9.9")), (None, None, None));
        assert_eq!(group("2001:db8:1:2:3::4"), group("2001:db8:1:2:ffff::"));
        let (one, other) = (group("1.1.1.1"), group("2.2.2.2"));
        for _ in 0..PER_ADDRESS {
            places.take(one).unwrap();
        }
        assert_eq!(places.take(one), Err(Full::Group(one.unwrap())));
        places.take(other).unwrap();
        assert_eq!(places.take(other), Err(Full::All));
        assert_eq!(places.take(None), Err(Full::All));
        places.give_back(one);
        places.take(one).unwrap();
    }

    #[test]
    fn descriptors_are_shared() {
        assert_eq!(Limits::of(1024), Limits { connections: 256, streams: 64 });
        assert_eq!(Limits::of(1 << 20), Limits { connections: MOST, streams: MOST_STREAMS });
    }
}
