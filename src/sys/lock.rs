//! Lock files, held for a process's life and never removed.
//!
//! Invariant: a lock is its process's own. A child that has not come to its exec yet holds none, as it would with
//! `flock`: a daemon that is started right after another was killed must not take such a child for a daemon.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// An exclusive lock, released when dropped or when the process dies. Nothing else in this process may open the
/// file: closing it anywhere releases the lock.
#[derive(Debug)]
pub(crate) struct Lock(#[expect(dead_code, reason = "held, not read")] File);

impl Lock {
    /// Takes the lock at once; the inner error is the process that holds it.
    pub(crate) fn take(path: &Path) -> io::Result<Result<Self, i32>> {
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).mode(0o640).open(path)?;
        match fcntl(&file, FcntlArg::F_SETLK(&whole_file())) {
            Ok(_) => Ok(Ok(Self(file))),
            Err(Errno::EACCES | Errno::EAGAIN) => {
                let mut holder = whole_file();
                fcntl(&file, FcntlArg::F_GETLK(&mut holder))?;
                Ok(Err(holder.l_pid))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// A write lock from the first byte to the end, however far that is.
#[expect(clippy::cast_possible_truncation, reason = "the constants are small")]
fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Locks of open files exclude those of processes, also of the same.
    fn another(path: &Path) -> Option<File> {
        let file = File::options().create(true).truncate(false).write(true).open(path).unwrap();
        fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file())).is_ok().then_some(file)
    }

    #[test]
    fn a_lock_excludes_until_it_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let other = another(&path).unwrap();
        assert!(Lock::take(&path).unwrap().is_err());
        drop(other);
        let lock = Lock::take(&path).unwrap().unwrap();
        drop(lock);
        assert!(another(&path).is_some() && path.exists());
        assert!(Lock::take(&directory.path().join("no/lock")).is_err());
    }

    #[test]
    fn a_held_lock_is_in_others_way() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let other = File::options().create(true).truncate(false).write(true).open(&path).unwrap();
        let _lock = Lock::take(&path).unwrap().unwrap();
        assert!(fcntl(&other, FcntlArg::F_OFD_SETLK(&whole_file())).is_err());
    }
}
