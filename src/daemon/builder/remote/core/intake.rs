//! Which results are taken into the store next: the first that was reported, of a machine that has few on their way.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use super::TAKERS;
use crate::model::build::Store;
use crate::proto::remote::link::Try;

/// Results that come from one machine at once: one that hangs holds up no other.
const FROM_ONE: usize = 4;

#[derive(Default)]
pub(super) struct Intake {
    /// From where, into which store; each with its turn.
    waiting: BTreeMap<(String, Store), VecDeque<(u64, Try)>>,
    /// How many are on their way from each machine.
    coming: BTreeMap<Option<IpAddr>, usize>,
    turn: u64,
}

impl Intake {
    pub(super) fn add(&mut self, of: Try, url: String, store: Store) {
        self.turn += 1;
        self.waiting.entry((url, store)).or_default().push_back((self.turn, of));
    }

    /// The next one, which is on its way from now on, if there is somebody to take it.
    pub(super) fn next(&mut self, is_open: &dyn Fn(Store) -> bool) -> Option<(Try, String)> {
        if self.coming.values().sum::<usize>() >= TAKERS {
            return None;
        }
        let few =
            |url: &str| self.coming.get(&machine(url)).is_none_or(|coming| *coming < FROM_ONE);
        let able = self.waiting.iter().filter(|((url, store), _)| is_open(*store) && few(url));
        let first = able.min_by_key(|(_, waiting)| waiting.front().map(|(turn, _)| *turn));
        let key = first?.0.clone();
        let waiting = self.waiting.get_mut(&key)?;
        let (_, of) = waiting.pop_front()?;
        if waiting.is_empty() {
            self.waiting.remove(&key);
        }
        *self.coming.entry(machine(&key.0)).or_default() += 1;
        Some((of, key.0))
    }

    /// One that was on its way from there is not any more.
    pub(super) fn done(&mut self, url: &str) {
        let machine = machine(url);
        let Some(coming) = self.coming.get_mut(&machine) else { return };
        *coming -= 1;
        if *coming == 0 {
            self.coming.remove(&machine);
        }
    }
}

/// The machine of a place, which may choose its ports as it likes.
fn machine(url: &str) -> Option<IpAddr> {
    let (host, _port) = url.strip_prefix("http://")?.rsplit_once(':')?;
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}
