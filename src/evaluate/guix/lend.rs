//! What Guix sees of the mirrors: a repository for each channel that is its mirror's at one moment, with the commit that
//! is evaluated on a branch of its own.
//!
//! Guix clones from there, as the user who evaluates. Git takes a repository only from its owner, and mirrors are not
//! for that user: so a new one is laid out each time, with the mirror's object files linked into it. The mirror is never
//! written, and what the user may have done to the one before goes with it.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::Tools;
use crate::evaluate::{Error, Evaluation};
use crate::sys::file;
use crate::sys::process::User;

/// The branch of the commit that is evaluated: what a mirror has may be on none.
const BRANCH: &str = "refs/heads/gorget-evaluates";

/// A bare repository of the oldest format, which all understand.
const CONFIG: &str = "[core]\n\trepositoryformatversion = 0\n\tbare = true\n";

/// Times that object files are listed anew when some are merged into others meanwhile.
const LISTINGS: usize = 5;

/// Where a channel is lent.
pub(super) fn place(lent: &Path, channel: &str) -> PathBuf {
    lent.join(format!("{channel}.git"))
}

/// Lends all channels of an evaluation.
pub(super) fn all(tools: &Tools, evaluation: &Evaluation<'_>) -> Result<(), Error> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error| Error::Prepare(path, error)
    };
    if let Some(parent) = tools.lent.parent() {
        file::make_passable(parent).map_err(at(parent))?;
    }
    file::make_passable(&tools.lent).map_err(at(&tools.lent))?;
    for (checkout, mirror) in evaluation.checkouts.iter().zip(&tools.mirrors) {
        let to = place(&tools.lent, &checkout.channel);
        let aside = to.with_extension("new");
        file::remove_tree(&aside).map_err(at(&aside))?;
        one(mirror, &aside, &checkout.commit, evaluation.user).map_err(at(&aside))?;
        file::remove_tree(&to).map_err(at(&to))?;
        fs::rename(&aside, &to).map_err(at(&to))?;
    }
    Ok(())
}

fn one(mirror: &Path, to: &Path, commit: &str, user: Option<&User>) -> io::Result<()> {
    directory(to)?;
    write(&to.join("config"), CONFIG.as_bytes())?;
    write(&to.join("HEAD"), format!("ref: {BRANCH}\n").as_bytes())?;
    // References first: what they lead to is there before they are.
    match fs::read(mirror.join("packed-refs")) {
        Ok(packed) => write(&to.join("packed-refs"), &packed)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    tree(&mirror.join("refs"), &to.join("refs"), &|from, to| write(to, &fs::read(from)?))?;
    write(&to.join(BRANCH), format!("{commit}\n").as_bytes())?;
    let mut listing = 1;
    loop {
        match tree(&mirror.join("objects"), &to.join("objects"), &link) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && listing < LISTINGS => {
                listing += 1;
            }
            result => break result?,
        }
    }
    match user {
        Some(user) => std::os::unix::fs::chown(to, Some(user.uid), Some(user.gid)),
        None => Ok(()),
    }
}

/// Lays the files of a tree out elsewhere, each by `lay`.
fn tree(from: &Path, to: &Path, lay: &dyn Fn(&Path, &Path) -> io::Result<()>) -> io::Result<()> {
    directory(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (name, kind) = (entry.file_name(), entry.file_type()?);
        let is_unfinished = {
            let name = name.to_string_lossy();
            name.ends_with(".lock") || name.contains("_git2_")
        };
        if kind.is_dir() {
            tree(&entry.path(), &to.join(name), lay)?;
        } else if kind.is_file() && !is_unfinished {
            lay(&entry.path(), &to.join(name))?;
        }
    }
    Ok(())
}

/// A file that never changes: the same one, where that can be. All may read it, as nobody else gets at the mirror.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            fs::copy(from, to)?;
        }
        result => result?,
    }
    fs::set_permissions(to, Permissions::from_mode(0o444))
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        directory(parent)?;
    }
    fs::write(path, bytes)?;
    fs::set_permissions(path, Permissions::from_mode(0o644))
}

fn directory(path: &Path) -> io::Result<()> {
    file::create_directory(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o755))
}
