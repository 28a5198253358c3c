//! The directories of one evaluation: a fresh checkout to work in, a directory for temporary files, the list of
//! channels.
//!
//! Invariant: they are gone when the [`Place`] is. Shared checkouts are never worked in.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;
use serde::Serialize;

use super::Error;
use crate::model::evaluation::Checkout;
use crate::model::spec::printable_url;
use crate::sys::file;
use crate::sys::process::User;

/// Modes of a directory that a job user must pass through, but need not list.
const PASSABLE: u32 = 0o711;

/// Where one evaluation works.
pub(crate) struct Place {
    root: PathBuf,
    cache_home: PathBuf,
}

impl Place {
    /// Makes `root` anew, with a copy of the first checkout, and `cache_home` where it is missing.
    pub(crate) fn prepare(
        root: &Path,
        cache_home: &Path,
        checkouts: &[Checkout],
        user: Option<&User>,
    ) -> Result<Self, Error> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error| Error::Prepare(path, error)
        };
        file::remove_tree(root).map_err(at(root))?;
        passable(root, user).map_err(at(root))?;
        // From here on what was made is removed when something fails.
        let place = Self { root: root.to_owned(), cache_home: cache_home.to_owned() };
        let work = place.work();
        match checkouts.first() {
            Some(first) => file::copy_tree(&first.directory, &work, user).map_err(at(&work))?,
            None => own(&work, user).map_err(at(&work))?,
        }
        own(&place.temporary(), user).map_err(at(&place.temporary()))?;
        let answers = place.answers();
        fifo(&answers, user).map_err(at(&answers))?;
        let channels = place.channels();
        fs::write(&channels, channels_json(checkouts, &work))
            .and_then(|()| fs::set_permissions(&channels, Permissions::from_mode(0o644)))
            .map_err(at(&channels))?;
        if let Some(parent) = cache_home.parent() {
            passable(parent, user).map_err(at(parent))?;
        }
        own(cache_home, user).map_err(at(cache_home))?;
        Ok(place)
    }

    /// The working directory.
    pub(crate) fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    pub(crate) fn temporary(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// The file that `GORGET_CHANNELS` names.
    pub(crate) fn channels(&self) -> PathBuf {
        self.root.join("channels.json")
    }

    /// A pipe with a name, through which an evaluator hears of builds that it waits for.
    pub(crate) fn answers(&self) -> PathBuf {
        self.root.join("answers")
    }

    pub(crate) fn cache_home(&self) -> &Path {
        &self.cache_home
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = file::remove_tree(&self.root) {
            log::warn!(target: "evaluator", "cannot remove {}: {error}", self.root.display());
        }
    }
}

/// Creates a directory that belongs to the daemon and that a job user may pass through.
fn passable(path: &Path, user: Option<&User>) -> io::Result<()> {
    file::create_directory(path)?;
    if user.is_some() {
        let parents = path.parent().into_iter().chain([path]);
        for path in parents {
            let mode = fs::metadata(path)?.permissions().mode();
            if mode & 0o001 == 0 {
                fs::set_permissions(
                    path,
                    Permissions::from_mode(mode & 0o7777 | PASSABLE & 0o001),
                )?;
            }
        }
    }
    Ok(())
}

/// Creates a directory that belongs to the job user, if there is one.
fn own(path: &Path, user: Option<&User>) -> io::Result<()> {
    file::create_directory(path)?;
    match user {
        // One that was used before is taken over whole when the option has changed since.
        Some(user) if fs::metadata(path)?.uid() != user.uid => file::chown_tree(path, user),
        Some(_) | None => Ok(()),
    }
}

/// Makes a pipe that the job user, if there is one, reads, and opens for writing as well.
fn fifo(path: &Path, user: Option<&User>) -> io::Result<()> {
    nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)?;
    match user {
        Some(user) => std::os::unix::fs::lchown(path, Some(user.uid), Some(user.gid)),
        None => Ok(()),
    }
}

#[derive(Serialize)]
struct Channel<'a> {
    name: &'a str,
    url: String,
    commit: &'a str,
    directory: &'a Path,
}

/// What `GORGET_CHANNELS` names, for evaluators and builds: of the first channel `work` is told, of the others
/// the shared checkouts. User info in URLs is not for what runs there.
pub(crate) fn channels_json(checkouts: &[Checkout], work: &Path) -> Vec<u8> {
    let channels: Vec<_> = checkouts
        .iter()
        .enumerate()
        .map(|(n, checkout)| Channel {
            name: &checkout.channel,
            url: printable_url(&checkout.url),
            commit: &checkout.commit,
            directory: if n == 0 { work } else { &checkout.directory },
        })
        .collect();
    // A path that is not UTF-8 cannot be told in JSON; then the list is empty rather than wrong.
    serde_json::to_vec(&channels).unwrap_or_else(|error| {
        log::error!(target: "evaluator", "cannot list the channels: {error}");
        b"[]".to_vec()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_listed_without_secrets() {
        let checkout = |channel: &str, directory: &str| Checkout {
            channel: channel.to_owned(),
            url: "https://user:secret@example.org/x.git".to_owned(),
            commit: "c0ffee".to_owned(),
            tree: "7ee".to_owned(),
            directory: directory.into(),
        };
        let json = channels_json(&[checkout("a", "/s/a"), checkout("b", "/s/b")], Path::new("/w"));
        assert_eq!(
            String::from_utf8(json).unwrap(),
            r#"[{"name":"a","url":"https://example.org/x.git","commit":"c0ffee","directory":"/w"},{"name":"b","url":"https://example.org/x.git","commit":"c0ffee","directory":"/s/b"}]"#
        );
    }
}
