//! Becoming another user, before any thread is there.

use std::io;
use std::os::unix::fs::chown;
use std::path::Path;

use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};

use crate::sys::process::User;

/// Becomes `user`, who gets `owned`; their groups stay. Whoever is that user already stays as they are.
pub(super) fn drop(user: &User, owned: &[&Path]) -> io::Result<()> {
    if nix::unistd::geteuid().as_raw() == user.uid {
        return Ok(());
    }
    for path in owned {
        chown(path, Some(user.uid), None)?;
    }
    setgroups(&[])?;
    setgid(Gid::from_raw(user.gid))?;
    Ok(setuid(Uid::from_raw(user.uid))?)
}
