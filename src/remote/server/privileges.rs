//! Becoming another user, before any thread is there.

use std::fs::{Permissions, set_permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};

use crate::sys::process::User;

/// What is made in the cache has the cache's group, that of the daemon, although the user is no member.
const CACHE_MODE: u32 = 0o2750;

/// Becomes `user`, who gets the socket and the cache, which gets `group` if given. Whoever is that user already stays as
/// they are.
pub(super) fn drop(user: &User, socket: &Path, cache: &Path, group: Option<u32>) -> io::Result<()> {
    if nix::unistd::geteuid().as_raw() == user.uid {
        return Ok(());
    }
    chown(socket, Some(user.uid), None)?;
    chown(cache, Some(user.uid), group)?;
    set_permissions(cache, Permissions::from_mode(CACHE_MODE))?;
    setgroups(&[])?;
    setgid(Gid::from_raw(user.gid))?;
    Ok(setuid(Uid::from_raw(user.uid))?)
}
