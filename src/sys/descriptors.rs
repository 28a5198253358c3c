//! How many descriptors a process may have: as many as the system lets the daemon have, and for what it starts as many as
//! usual, since programs close or wait for all that they could have.

use std::io;
use std::sync::OnceLock;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// The soft limit before it was raised.
static USUAL: OnceLock<u64> = OnceLock::new();

/// Raises the limit of this process. Connections, builds with their logs, and walks through deep trees need more than the
/// usual 1024.
pub(crate) fn raise() -> io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    USUAL.get_or_init(|| soft);
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// How many this process may have now.
pub(crate) fn limit() -> io::Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE)?.0)
}

/// What children are to have; `None` when nothing was raised.
pub(super) fn usual() -> Option<u64> {
    USUAL.get().copied()
}

/// Sets the soft limit of this process, a child's keeper.
pub(super) fn restore(usual: u64) -> io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, usual.min(hard), hard)?)
}
