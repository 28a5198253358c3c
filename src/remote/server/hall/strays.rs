//! What workers said of derivations that nobody had assigned: after a restart of the server it may be what became of an
//! assignment of the earlier one, which the daemon is about to tell of.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::proto::remote::link::Report;

/// How long it is kept: what the daemon waits for the server, and some.
const KEPT: Duration = Duration::from_secs(180);

/// How many are kept: workers of a large farm, each several times over.
const MAX: usize = 4096;

#[derive(Debug)]
struct Stray {
    at: Instant,
    derivation: String,
    /// Who said it, if its connection has said whose it is.
    worker: Option<String>,
    address: IpAddr,
    said: Said,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Started,
    Ended(Report),
}

#[derive(Default)]
pub(super) struct Strays(VecDeque<Stray>);

impl Strays {
    pub(super) fn keep(
        &mut self,
        at: Instant,
        derivation: String,
        (worker, address): (Option<String>, IpAddr),
        said: Said,
    ) {
        self.expire(at);
        if self.0.len() == MAX {
            self.0.pop_front();
        }
        self.0.push_back(Stray { at, derivation, worker, address, said });
    }

    /// What was said last of a derivation by this worker, at this address if it is known; and with that all is forgotten.
    pub(super) fn take(
        &mut self,
        now: Instant,
        derivation: &str,
        worker: &str,
        address: Option<IpAddr>,
    ) -> Option<Said> {
        self.expire(now);
        let fits = |stray: &Stray| {
            stray.derivation == derivation
                && stray.worker.as_deref().is_none_or(|name| name == worker)
                && address.is_none_or(|address| address == stray.address)
        };
        let said = self.0.iter().rev().find(|stray| fits(stray)).map(|stray| stray.said.clone());
        self.0.retain(|stray| !fits(stray));
        said
    }

    fn expire(&mut self, now: Instant) {
        while self.0.front().is_some_and(|stray| stray.at + KEPT <= now) {
            self.0.pop_front();
        }
    }
}
