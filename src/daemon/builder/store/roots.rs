//! Links that keep store items from the collector: one for each item, named as the item, registered with the daemon
//! as an indirect root. A link's own age is what its expiry goes by.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::SystemTime;

use crate::store::{Connection, Error};
use crate::sys::file;

/// Why an item is not kept.
#[derive(Debug)]
pub(super) enum Trouble {
    Link(io::Error),
    Daemon(Error),
}

/// Keeps `item`, which must be valid and be held by the connection or by nothing that may let it go meanwhile.
pub(super) fn keep(
    connection: &mut Connection,
    directory: &Path,
    item: &str,
) -> Result<(), Trouble> {
    let link = make(directory, item).map_err(Trouble::Link)?;
    connection.add_indirect_root(link.as_os_str().as_bytes()).map_err(Trouble::Daemon)
}

fn make(directory: &Path, item: &str) -> io::Result<std::path::PathBuf> {
    file::create_directory(directory)?;
    let name = Path::new(item).file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let link = directory.join(name);
    // Made anew, so that its age begins anew; renamed into place, so that the item is kept all the time.
    let aside = directory.join(format!(".{}", name.to_string_lossy()));
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(item, &aside)?;
    fs::rename(&aside, &link)?;
    Ok(link)
}

/// Removes links made before `before`, at most `limit`; how many.
pub(crate) fn expire(directory: &Path, before: SystemTime, limit: usize) -> io::Result<usize> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut removed = 0;
    for entry in entries {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_symlink() && metadata.modified()? < before {
            fs::remove_file(&path)?;
            removed += 1;
        }
        if removed == limit {
            break;
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn links_are_made_anew_and_expire() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("gcroots");
        assert_eq!(expire(&directory, SystemTime::UNIX_EPOCH, 9).unwrap(), 0);
        for item in ["/gnu/store/a-x", "/gnu/store/b-y", "/gnu/store/a-x"] {
            let link = make(&directory, item).unwrap();
            assert_eq!(fs::read_link(link).unwrap(), Path::new(item));
        }
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 2);
        let born = fs::symlink_metadata(directory.join("a-x")).unwrap().modified().unwrap();
        assert_eq!(expire(&directory, born - Duration::from_secs(1), 9).unwrap(), 0);
        assert_eq!(expire(&directory, born + Duration::from_secs(9), 1).unwrap(), 1);
        assert_eq!(expire(&directory, born + Duration::from_secs(9), 9).unwrap(), 1);
    }
}
