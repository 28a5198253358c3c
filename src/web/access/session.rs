//! Sessions of browsers: each began with a token, and is as good as that token is.
//!
//! Invariant: what is kept here opens nothing by itself, only hashes of cookies and tokens are. They are bounded, and
//! gone with the process.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// After which a session is over: a working week, so that people log in on Mondays.
pub(super) const AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Sessions at once, in some 3 MiB; after that the one unused longest gives way.
const SESSIONS: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct Sessions(HashMap<String, Session>);

#[derive(Debug)]
struct Session {
    /// The hash of the token it began with.
    token: String,
    csrf: String,
    began: Instant,
    used: Instant,
}

impl Sessions {
    /// `key` is the hash of the cookie.
    pub(super) fn add(&mut self, key: String, token: String, csrf: String, now: Instant) {
        self.0.retain(|_, session| now.saturating_duration_since(session.began) < AGE);
        if self.0.len() >= SESSIONS {
            let unused = self.0.iter().min_by_key(|(_, session)| session.used);
            if let Some(key) = unused.map(|(key, _)| key.clone()) {
                self.0.remove(&key);
            }
        }
        self.0.insert(key, Session { token, csrf, began: now, used: now });
    }

    /// The hash of the session's token, and what its forms hold.
    pub(super) fn get(&mut self, key: &str, now: Instant) -> Option<(String, String)> {
        let session = self.0.get_mut(key)?;
        if now.saturating_duration_since(session.began) >= AGE {
            self.0.remove(key);
            return None;
        }
        session.used = now;
        Some((session.token.clone(), session.csrf.clone()))
    }

    pub(super) fn remove(&mut self, key: &str) {
        self.0.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock;

    fn add(sessions: &mut Sessions, key: &str, now: Instant) {
        sessions.add(key.to_owned(), format!("token of {key}"), "csrf".to_owned(), now);
    }

    #[test]
    fn sessions_end() {
        let (t0, mut sessions) = (clock::now(), Sessions::default());
        add(&mut sessions, "a", t0);
        let found = sessions.get("a", t0 + AGE / 2).unwrap();
        assert_eq!(found, ("token of a".to_owned(), "csrf".to_owned()));
        assert_eq!(sessions.get("a", t0 + AGE), None);
        add(&mut sessions, "b", t0);
        sessions.remove("b");
        assert_eq!(sessions.get("b", t0), None);
    }

    #[test]
    fn the_one_unused_longest_gives_way() {
        let (t0, mut sessions) = (clock::now(), Sessions::default());
        for n in 0..SESSIONS {
            add(&mut sessions, &n.to_string(), t0 + Duration::from_millis(n as u64));
        }
        let later = t0 + Duration::from_secs(60);
        assert!(sessions.get("0", later).is_some());
        add(&mut sessions, "one more", later);
        assert!(sessions.get("0", later).is_some());
        assert_eq!(sessions.get("1", later), None);
        assert_eq!(sessions.0.len(), SESSIONS);
    }
}
