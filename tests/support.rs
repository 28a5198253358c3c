//! What the tests share: a sandbox to run the program in, repositories to point it at, a client to ask it.
//!
//! Nothing here waits without a deadline, and nothing outlives the test that started it.
#![allow(dead_code, reason = "each test file uses what it needs")]

pub(crate) mod browser;
pub(crate) mod client;
pub(crate) mod cuirass;
pub(crate) mod daemon;
pub(crate) mod farm;
pub(crate) mod fleet;
pub(crate) mod http;
pub(crate) mod jobs;
pub(crate) mod nix;
pub(crate) mod repository;
pub(crate) mod sandbox;
pub(crate) mod server;
pub(crate) mod sshd;
pub(crate) mod worker;

use std::time::{Duration, Instant};

/// How long anything may take that ought to take a moment: generous, since a failing test is the only one to
/// wait this long, and the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at a condition that nothing announces.
const LOOK: Duration = Duration::from_millis(10);

/// The current time, for deadlines.
#[expect(clippy::disallowed_methods, reason = "the tests' one source of time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Waits a moment, between two looks at something that cannot be waited for otherwise.
#[expect(
    clippy::disallowed_methods,
    reason = "the tests' one place that sleeps, always under a deadline"
)]
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Looks until `condition` gives something, and panics after `patience` naming `what` was waited for.
pub(crate) fn within<T>(
    patience: Duration,
    what: &str,
    mut condition: impl FnMut() -> Option<T>,
) -> T {
    let deadline = now() + patience;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(now() < deadline, "waited {patience:?} in vain for {what}");
        pause(LOOK);
    }
}

/// [`within`] the usual patience.
pub(crate) fn until<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    within(PATIENCE, what, condition)
}

/// Whether a test may do `what`, which only root can.
#[track_caller]
pub(crate) fn is_root(what: &str) -> bool {
    let root = ::nix::unistd::geteuid().is_root();
    if !root {
        browser::missing(&format!("only root can {what}"));
    }
    root
}
