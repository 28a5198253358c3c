//! The janitor's hands on the disk: bounded walks, ages, things set aside and removed later.

use std::collections::HashSet;
use std::fs::{self, ReadDir};
use std::io;
use std::path::{Path, PathBuf};

use super::{Error, system_time};
use crate::model::time::Time;
use crate::sys::{clock, file};

/// A walk over a directory, some entries a round.
pub(super) struct Walk {
    entries: ReadDir,
}

/// The next entries of the walk in `slot`, which is begun if there is none; `None` at the end.
pub(super) fn some_of(
    slot: &mut Option<Walk>,
    directory: &Path,
    limit: usize,
) -> Result<Option<Vec<PathBuf>>, Error> {
    let fail = |error| Error::Files(directory.to_owned(), error);
    let walk = match slot {
        Some(walk) => walk,
        None => match fs::read_dir(directory) {
            Ok(entries) => slot.insert(Walk { entries }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail(error)),
        },
    };
    let mut paths = Vec::new();
    for entry in walk.entries.by_ref().take(limit) {
        match entry {
            Ok(entry) => paths.push(entry.path()),
            Err(error) => {
                *slot = None;
                return Err(fail(error));
            }
        }
    }
    if paths.is_empty() {
        *slot = None;
        return Ok(None);
    }
    Ok(Some(paths))
}

/// The build or evaluation a log belongs to, from its name `ID.gz`.
pub(super) fn log_id(path: &Path) -> Option<i64> {
    path.file_name()?.to_str()?.strip_suffix(".gz")?.parse().ok()
}

/// Whether the file or directory itself was last changed before `before`.
pub(super) fn is_older(path: &Path, before: Time) -> bool {
    let modified = fs::symlink_metadata(path).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|modified| modified < system_time(before))
}

/// Moves `path` into `stale` under a new name; fine if there is none.
pub(super) fn set_aside(path: &Path, stale: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path).is_err() {
        return Ok(());
    }
    file::create_directory(stale)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let now = clock::wall();
    // A name taken by an earlier one of the same second is rare, and the next number is free.
    for n in 0..1000 {
        let target = stale.join(format!("{now}-{n}-{name}"));
        if fs::symlink_metadata(&target).is_ok() {
            continue;
        }
        return match fs::rename(path, &target) {
            // Products and cache may be on different file systems: then it goes at once.
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => file::remove_tree(path),
            result => result,
        };
    }
    Err(io::Error::from(io::ErrorKind::AlreadyExists))
}

/// Removes at most `limit` of what is in `directory`; true if there may be more. What cannot be removed is told, and not
/// tried again while it is in `given_up`.
pub(super) fn remove_some(
    directory: &Path,
    limit: usize,
    given_up: &mut HashSet<PathBuf>,
    mut tell: impl FnMut(&Path, io::Error),
) -> io::Result<bool> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut tried = 0;
    for entry in entries {
        let path = entry?.path();
        if given_up.contains(&path) {
            continue;
        }
        if tried == limit {
            return Ok(true);
        }
        tried += 1;
        if let Err(error) = file::remove_tree(&path) {
            tell(&path, error);
            given_up.insert(path);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn walks_go_on_where_they_stopped_and_begin_anew_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        for n in 0..5 {
            fs::write(directory.path().join(format!("{n}.gz")), "").unwrap();
        }
        let mut slot = None;
        for _ in 0..2 {
            let mut seen = vec![];
            while let Some(paths) = some_of(&mut slot, directory.path(), 2).unwrap() {
                assert!(paths.len() <= 2);
                seen.extend(paths.iter().map(|path| log_id(path).unwrap()));
            }
            seen.sort_unstable();
            assert_eq!(seen, [0, 1, 2, 3, 4]);
        }
        assert!(some_of(&mut slot, &directory.path().join("none"), 2).unwrap().is_none());
    }

    #[test]
    fn only_logs_have_ids() {
        assert_eq!(log_id(Path::new("/x/12.gz")), Some(12));
        for other in ["/x/12", "/x/a.gz", "/x/12.gz.part", "/"] {
            assert_eq!(log_id(Path::new(other)), None, "{other}");
        }
    }

    #[test]
    fn age_is_that_of_the_file_itself() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("1.gz");
        let old = system_time(Time(1_000_000));
        fs::File::create(&path).unwrap().set_modified(old).unwrap();
        assert!(is_older(&path, Time(1_000_001)));
        assert!(!is_older(&path, Time(1_000_000)));
        assert!(!is_older(&directory.path().join("none"), Time(i64::MAX / 2)));
        assert!(!is_older(directory.path(), clock::wall().before(Duration::from_secs(60))));
    }

    #[test]
    fn what_is_set_aside_goes_little_by_little() {
        let directory = tempfile::tempdir().unwrap();
        let stale = directory.path().join("stale");
        for _ in 0..3 {
            let tree = directory.path().join("builds");
            fs::create_dir_all(tree.join("1/2")).unwrap();
            fs::write(tree.join("1/2/file"), "x").unwrap();
            set_aside(&tree, &stale).unwrap();
            assert!(!tree.exists());
        }
        set_aside(&directory.path().join("builds"), &stale).unwrap();
        assert_eq!(fs::read_dir(&stale).unwrap().count(), 3);
        let mut given_up = HashSet::new();
        let mut some = || {
            remove_some(&stale, 2, &mut given_up, |path, error| panic!("{path:?}: {error}"))
                .unwrap()
        };
        assert!(some());
        assert!(!some());
        assert_eq!(fs::read_dir(&stale).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_removed_is_told_once_and_keeps_nothing_else() {
        if !nix::unistd::geteuid().is_root() {
            return; // Only root can mount.
        }
        let directory = tempfile::tempdir().unwrap();
        let names = ["a", "b", "c"].map(|name| directory.path().join(name));
        let mounted = names[1].join("mounted");
        names.iter().for_each(|path| fs::create_dir(path).unwrap());
        fs::create_dir(&mounted).unwrap();
        let (none, flags) = (None::<&str>, nix::mount::MsFlags::empty());
        nix::mount::mount(none, &mounted, Some("tmpfs"), flags, none).unwrap();
        let (mut given_up, mut told) = (HashSet::new(), vec![]);
        for _ in 0..2 {
            let mut tell = |path: &Path, _| told.push(path.to_owned());
            while remove_some(directory.path(), 1, &mut given_up, &mut tell).unwrap() {}
        }
        nix::mount::umount(&mounted).unwrap();
        assert_eq!(told, [names[1].clone()]);
        assert!(!names[0].exists() && names[1].exists() && !names[2].exists());
    }
}
