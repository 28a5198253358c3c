//! The order in which builds are taken.
//!
//! Invariant: it is total, so that two looks at the same queue agree.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::sync::Arc;

use crate::model::build::{BuildId, Kind};
use crate::model::time::Time;

/// A build's place: lower priorities first, then older ones, then lower ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) priority: i64,
    pub(super) timestamp: Time,
    pub(super) id: BuildId,
}

/// Builds that the same backends take: their kind and system.
pub(super) type ClassKey = (Kind, Arc<str>);

/// The keys of several sets, in order.
pub(super) fn merge<'a>(
    sets: impl Iterator<Item = &'a BTreeSet<Key>>,
) -> impl Iterator<Item = Key> + 'a {
    let mut rest: Vec<_> = sets.map(|set| set.iter().copied()).collect();
    let mut next: BinaryHeap<Reverse<(Key, usize)>> = rest
        .iter_mut()
        .enumerate()
        .filter_map(|(set, keys)| keys.next().map(|key| Reverse((key, set))))
        .collect();
    std::iter::from_fn(move || {
        let Reverse((key, set)) = next.pop()?;
        if let Some(following) = rest.get_mut(set).and_then(Iterator::next) {
            next.push(Reverse((following, set)));
        }
        Some(key)
    })
}
