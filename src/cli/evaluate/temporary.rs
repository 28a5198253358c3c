//! A directory of our own in the directory for temporary files: nobody else can use it, and it is removed at the end,
//! or by the next of us if this one is killed.
//!
//! The lock on its file `keepers`, which this process holds and the keepers of its children, tells whether it is in use.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::print;
use crate::model::time::Time;
use crate::sys::{clock, file};

/// How its name begins.
const NAME: &str = "gorget-evaluate-";

/// A directory without a lock may be one that was made a moment ago: taking the lock is the next thing that is done.
const SETTLED: Duration = Duration::from_secs(60);

pub(super) struct Temporary(PathBuf);

impl Temporary {
    /// Makes one, and removes those that earlier ones left.
    pub(super) fn create() -> Result<Self, (PathBuf, io::Error)> {
        let parent = std::env::temp_dir();
        sweep(&parent);
        let template = parent.join(format!("{NAME}XXXXXX"));
        // Of a name that nobody can guess, and mode 0700.
        let made = nix::unistd::mkdtemp(&template);
        made.map(Self).map_err(|error| (template, error.into()))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Locked by the launcher of its children.
    pub(super) fn keepers(&self) -> PathBuf {
        self.0.join("keepers")
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = file::remove_tree(&self.0) {
            print::err(&format!("cannot remove {}: {error}", self.0.display()));
        }
    }
}

/// Removes what the killed left. What cannot be removed is the next one's to remove.
fn sweep(parent: &Path) {
    let now = clock::wall();
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(NAME));
        if ours && is_left(&entry.path(), now) {
            log::debug!(target: "evaluate", "removing {}", entry.path().display());
            // Another of us may be at it.
            let _ = file::remove_tree(&entry.path());
        }
    }
}

/// Whether it is a directory of this user's that nobody works in any more.
fn is_left(path: &Path, now: Time) -> bool {
    let Ok(metadata) = fs::symlink_metadata(path) else { return false };
    let own = metadata.is_dir() && metadata.uid() == nix::unistd::geteuid().as_raw();
    let settled = Time(metadata.mtime()).until(now) >= SETTLED;
    own && settled
        && match File::open(path.join("keepers")) {
            // Released again at once: what is left is locked by nobody later.
            Ok(keepers) => keepers.try_lock().is_ok(),
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_the_killed_left_is_removed_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let directory = |name: &str, age: u64| {
            let path = parent.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("keepers"), "").unwrap();
            let time = std::time::UNIX_EPOCH + Time(0).until(clock::wall());
            let opened = File::open(&path).unwrap();
            opened.set_modified(time - Duration::from_secs(age)).unwrap();
            path
        };
        let left = directory("gorget-evaluate-left", 3600);
        let new = directory("gorget-evaluate-new", 1);
        let other = directory("other", 3600);
        let busy = directory("gorget-evaluate-busy", 3600);
        let lock = File::open(busy.join("keepers")).unwrap();
        lock.lock().unwrap();
        let link = parent.path().join("gorget-evaluate-link");
        symlink(&other, &link).unwrap();
        sweep(parent.path());
        assert!(!left.exists());
        assert!(new.exists() && busy.exists());
        assert!(other.join("keepers").exists() && link.is_symlink());
        drop(lock);
        sweep(parent.path());
        assert!(!busy.exists());
    }
}
