//! Links that keep store items from the collector: one for each item, named as the item, registered with the daemon
//! as an indirect root.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::{Connection, Error};
use crate::sys::file;

/// Held while a link is made anew.
static RENEWING: Mutex<()> = Mutex::new(());

/// Why an item is not kept.
#[derive(Debug)]
pub(crate) enum Trouble {
    Link(io::Error),
    Daemon(Error),
}

/// Keeps `item`, which must be held by the connection or by nothing that may let it go meanwhile.
pub(crate) fn keep(
    connection: &mut Connection,
    directory: &Path,
    item: &str,
) -> Result<(), Trouble> {
    let link = make(directory, item).map_err(Trouble::Link)?;
    connection.add_indirect_root(link.as_os_str().as_bytes()).map_err(Trouble::Daemon)
}

/// Where the link of an item is.
pub(crate) fn link(directory: &Path, item: &str) -> io::Result<PathBuf> {
    let name = Path::new(item).file_name().ok_or(io::ErrorKind::InvalidInput)?;
    Ok(directory.join(name))
}

fn make(directory: &Path, item: &str) -> io::Result<PathBuf> {
    let link = link(directory, item)?;
    let made = match symlink(item, &link) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            file::create_directory(directory)?;
            symlink(item, &link)
        }
        result => result,
    };
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        result => return result.map(|()| link),
    }
    // Made anew, so that its age begins anew; renamed into place, so that the item is kept all the time.
    let name = link.file_name().unwrap_or_default().to_string_lossy();
    // Several builds may have one output, and the name beside it is one.
    let _one = RENEWING.lock().unwrap_or_else(PoisonError::into_inner);
    let aside = directory.join(format!(".{name}"));
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    symlink(item, &aside)?;
    fs::rename(&aside, &link)?;
    Ok(link)
}

/// Lets go of an item; fine if it was not kept.
pub(crate) fn release(directory: &Path, item: &str) -> io::Result<()> {
    match fs::remove_file(link(directory, item)?) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The item that a link keeps, if it is one of ours.
pub(crate) fn item(link: &Path) -> Option<String> {
    let item = fs::read_link(link).ok()?;
    (item.file_name() == link.file_name()).then(|| item.to_str().map(str::to_owned))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_may_keep_one_item_at_once() {
        let place = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        make(place.path(), "/gnu/store/a-x").unwrap();
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_item_has_one_link_that_is_made_anew() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("gcroots");
        for path in ["/gnu/store/a-x", "/gnu/store/b-y", "/gnu/store/a-x"] {
            let link = make(&directory, path).unwrap();
            assert_eq!(item(&link).unwrap(), path);
        }
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 2);
        for _ in 0..2 {
            release(&directory, "/gnu/store/a-x").unwrap();
        }
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        symlink("/gnu/store/c-z", directory.join("other")).unwrap();
        assert_eq!(item(&directory.join("other")), None);
    }
}
