//! Becoming another user, before any thread is there.

use std::fs::{Permissions, set_permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};

use crate::sys::process::User;

/// What is made in the cache has the cache's group, that of the daemon, although the user is no member.
const CACHE_MODE: u32 = 0o2750;

/// Becomes `user`, who gets the socket and the cache; their groups stay. Whoever is that user already stays as they are.
pub(super) fn drop(user: &User, socket: &Path, cache: &Path) -> io::Result<()> {
    if nix::unistd::geteuid().as_raw() == user.uid {
        return Ok(());
    }
    for path in [socket, cache] {
        chown(path, Some(user.uid), None)?;
    }
    set_permissions(cache, Permissions::from_mode(CACHE_MODE))?;
    setgroups(&[])?;
    setgid(Gid::from_raw(user.gid))?;
    Ok(setuid(Uid::from_raw(user.uid))?)
}
