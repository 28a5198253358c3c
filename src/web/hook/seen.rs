//! Deliveries that were heard already: one that is sent again, by a forge that is in doubt or by somebody who
//! recorded it, does nothing.
//!
//! A forge gives each delivery a name, and the same name to one that it repeats; but what it signs is the body alone, so
//! that whoever recorded a delivery can call it otherwise. Two deliveries may also say the very same, such as those that
//! people send to try a hook. Hence a name counts once, and what is said under another name only after a while.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::forge::Forge;
use crate::web::request::Request;

/// Keys remembered, two of most deliveries: a day of a busy forge, in some 800 KiB.
const KEYS: usize = 8_192;

/// When the same may be said under another name. Whoever repeats a record as often as that leaves pushes three of the
/// eight looks that a jobset makes in five minutes.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

type Key = [u8; 32];

/// What a delivery is known by again, and for how long; without an end as long as it is remembered.
#[derive(Debug)]
pub(super) struct Keys(Vec<(Key, Option<Duration>)>);

impl Keys {
    /// Of what was sent with these secrets: a repository may tell the same to several jobsets, each with its own.
    pub(super) fn of(request: &Request, forge: Forge, secrets: &BTreeSet<&String>) -> Self {
        let mut hash = Sha256::new().chain_update(forge.word()).chain_update([0]);
        for secret in secrets {
            hash.update(Sha256::digest(secret));
        }
        let name = |name: &str| hash.clone().chain_update([1]).chain_update(name).finalize().into();
        let body = || hash.clone().chain_update([0]).chain_update(&request.body).finalize().into();
        Self(match forge.delivery_id(request) {
            // Whoever recorded it has the secret, too.
            Some(id) if !forge.signs() => vec![(name(id), None)],
            Some(id) => vec![(name(id), None), (body(), Some(AGAIN_AFTER))],
            None => vec![(body(), None)],
        })
    }
}

#[derive(Debug, Default)]
pub(super) struct Seen {
    /// When each was heard last.
    keys: HashMap<Key, Instant>,
    /// Oldest first.
    order: VecDeque<Key>,
}

impl Seen {
    pub(super) fn contains(&self, keys: &Keys, now: Instant) -> bool {
        keys.0.iter().any(|(key, within)| {
            let heard = self.keys.get(key).map(|heard| now.saturating_duration_since(*heard));
            heard.is_some_and(|ago| within.is_none_or(|within| ago < within))
        })
    }

    pub(super) fn add(&mut self, keys: Keys, now: Instant) {
        for (key, _) in keys.0 {
            if self.keys.insert(key, now).is_some() {
                continue;
            }
            self.order.push_back(key);
            if self.order.len() > KEYS
                && let Some(oldest) = self.order.pop_front()
            {
                self.keys.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock;
    use crate::web::hook::forge::tests::request;

    fn keys(forge: Forge, headers: &[(&str, &str)], body: &str) -> Keys {
        Keys::of(&request(headers, body), forge, &BTreeSet::from([&"secret".to_owned()]))
    }

    #[test]
    fn the_same_may_be_said_again_under_another_name_after_a_while() {
        let now = clock::now();
        let later = now + 2 * AGAIN_AFTER;
        for (forge, header) in [
            (Forge::GitHub, "X-GitHub-Delivery"),
            (Forge::Gitea, "X-Gitea-Delivery"),
            (Forge::Forgejo, "X-Forgejo-Delivery"),
            (Forge::Forgejo, "X-Gitea-Delivery"),
        ] {
            let mut seen = Seen::default();
            let named = |name, body| keys(forge, &[(header, name)], body);
            assert!(!seen.contains(&named("1", "{}"), now));
            seen.add(named("1", "{}"), now);
            assert!(!seen.contains(&named("2", "[]"), now));
            // Somebody who recorded it, or a forge that repeats it.
            assert!(seen.contains(&named("2", "{}"), now));
            assert!(seen.contains(&named("1", "{}"), later));
            // Another that says the same.
            assert!(!seen.contains(&named("2", "{}"), later));
            seen.add(named("2", "{}"), later);
            assert!(seen.contains(&named("3", "{}"), later));
            assert_eq!((seen.keys.len(), seen.order.len()), (3, 3));
        }
    }

    #[test]
    fn what_has_no_name_is_known_by_what_it_says() {
        let now = clock::now();
        let later = now + 2 * AGAIN_AFTER;
        let mut seen = Seen::default();
        seen.add(keys(Forge::GitHub, &[], "{}"), now);
        assert!(seen.contains(&keys(Forge::GitHub, &[], "{}"), later));
        assert!(!seen.contains(&keys(Forge::Gitea, &[], "{}"), later));
    }

    /// There whoever recorded a delivery has the secret and can say what he likes.
    #[test]
    fn what_shows_the_secret_is_known_by_its_name() {
        let now = clock::now();
        let mut seen = Seen::default();
        for header in ["Idempotency-Key", "X-Gitlab-Event-UUID"] {
            seen.add(keys(Forge::GitLab, &[(header, "1")], "{}"), now);
            assert!(seen.contains(&keys(Forge::GitLab, &[(header, "1")], "{}"), now));
            assert!(!seen.contains(&keys(Forge::GitLab, &[(header, "2")], "{}"), now));
        }
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let mut seen = Seen::default();
        let now = clock::now();
        let key = |n: usize| keys(Forge::GitHub, &[], &n.to_string());
        for n in 0..=KEYS {
            seen.add(key(n), now);
            seen.add(key(n), now);
        }
        assert!(!seen.contains(&key(0), now) && seen.contains(&key(1), now));
        assert_eq!((seen.keys.len(), seen.order.len()), (KEYS, KEYS));
    }
}
