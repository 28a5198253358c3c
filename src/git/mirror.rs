//! Bare mirrors, one per URL: opened, looked after, fetched anew when broken.
//!
//! Invariant: a mirror under its final name holds, for each object it has, everything that object needs. A new one
//! grows under another name until it is whole; later packs are complete with what was there before them.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use git2::{ErrorCode, ObjectType, Oid, Repository, RepositoryInitOptions};

use super::session::{Session, name};
use super::trouble::Trouble;
use super::url::Url;
use super::{local, pack, remote};
use crate::model::spec::Reference;
use crate::sys::{clock, poll};

/// How often a mirror that another look holds is tried again: a rare case, two repositories with the same submodule.
const RETRY: Duration = Duration::from_millis(200);

/// What a look at a mirror found.
pub(super) struct Found {
    pub(super) repository: Repository,
    /// For each reference, its commit.
    pub(super) commits: Vec<Result<Oid, Trouble>>,
    /// Whether the mirror was made just now, so that doing it again would help nothing.
    pub(super) fresh: bool,
}

/// Resolves `references`, fetching only what is missing. A broken mirror is replaced.
pub(super) fn look(
    session: &Session,
    url: &Url,
    references: &[Reference],
) -> Result<Found, Trouble> {
    let lock = lock(session, url)?;
    let path = session.request.places.mirrors.join(url.hash());
    let Ok(repository) = Repository::open_bare(&path) else {
        return replace(session, url, references, &lock);
    };
    touch(&File::open(&path).map_err(|error| Trouble::File("open", path.clone(), error))?, &path)?;
    match resolve(session, url, &repository, references) {
        Ok(commits) if commits.iter().any(is_broken) => replace(session, url, references, &lock),
        Err(trouble) if trouble.is_corruption() => replace(session, url, references, &lock),
        Err(trouble) => Err(trouble),
        Ok(commits) => {
            // Opened again if packs were merged, because this handle remembers those that are gone.
            let repository = if session.fetches.get() > 0 && pack::merge_small(session, &path) {
                Repository::open_bare(&path).map_err(Trouble::Mirror)?
            } else {
                repository
            };
            Ok(Found { repository, commits, fresh: false })
        }
    }
}

/// Throws the mirror away and fetches everything.
pub(super) fn anew(
    session: &Session,
    url: &Url,
    references: &[Reference],
) -> Result<Found, Trouble> {
    let lock = lock(session, url)?;
    replace(session, url, references, &lock)
}

fn is_broken(commit: &Result<Oid, Trouble>) -> bool {
    commit.as_ref().is_err_and(Trouble::is_corruption)
}

/// Makes a mirror aside; the old one stays until the new one is whole.
fn replace(
    session: &Session,
    url: &Url,
    references: &[Reference],
    _held: &File,
) -> Result<Found, Trouble> {
    let path = session.request.places.mirrors.join(url.hash());
    let aside = path.with_extension("new");
    remove(&aside)?;
    let mut options = RepositoryInitOptions::new();
    options.bare(true).no_reinit(true).external_template(false);
    let repository = Repository::init_opts(&aside, &options).map_err(Trouble::Mirror)?;
    let note = aside.join("url");
    fs::write(&note, url.printable() + "\n").map_err(|e| Trouble::File("write", note, e))?;
    let resolved = resolve(session, url, &repository, references);
    drop(repository);
    if resolved.is_err() {
        // The error matters more than what is left of the attempt, which the next one removes.
        let _ = remove(&aside);
    }
    let commits = resolved?;
    remove(&path)?;
    fs::rename(&aside, &path).map_err(|e| Trouble::File("rename", aside, e))?;
    let repository = Repository::open_bare(&path).map_err(Trouble::Mirror)?;
    Ok(Found { repository, commits, fresh: true })
}

fn resolve(
    session: &Session,
    url: &Url,
    mirror: &Repository,
    references: &[Reference],
) -> Result<Vec<Result<Oid, Trouble>>, Trouble> {
    let known = |reference: &Reference| match reference {
        Reference::Commit(id) => Oid::from_str(id).ok().filter(|id| has(mirror, *id)),
        Reference::Head | Reference::Branch(_) | Reference::Tag(_) => None,
    };
    let tips = match references.iter().map(known).collect::<Option<Vec<_>>>() {
        // Commits never change: there is nothing to ask the other side.
        Some(tips) => tips.into_iter().map(Ok).collect(),
        None => match url.local() {
            Some(path) => local::look(session, path, mirror, references)?,
            None => remote::look(session, url, mirror, references)?,
        },
    };
    let peeled = |(tip, reference): (Result<Oid, Trouble>, _)| peel(mirror, tip?, reference);
    Ok(tips.into_iter().zip(references).map(peeled).collect())
}

/// Whether the mirror has the object.
pub(super) fn has(mirror: &Repository, id: Oid) -> bool {
    mirror.odb().is_ok_and(|odb| odb.exists(id))
}

/// The commit that `tip`, which may be a tag, stands for.
fn peel(mirror: &Repository, tip: Oid, reference: &Reference) -> Result<Oid, Trouble> {
    let object = mirror.find_object(tip, None).map_err(Trouble::Mirror)?;
    match object.peel(ObjectType::Commit) {
        Ok(commit) => Ok(commit.id()),
        Err(error) if matches!(error.code(), ErrorCode::Peel | ErrorCode::InvalidSpec) => {
            Err(Trouble::NotCommit(name(reference)))
        }
        Err(error) => Err(Trouble::Mirror(error)),
    }
}

/// Takes the mirror's lock, which is held while it changes. Not while its trees are read: then two repositories
/// that are each other's submodules could wait for one another.
fn lock(session: &Session, url: &Url) -> Result<File, Trouble> {
    let mirrors = &session.request.places.mirrors;
    create(mirrors)?;
    let path = mirrors.join(url.hash()).with_extension("lock");
    let failed = |error| Trouble::File("lock", path.clone(), error);
    let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
    loop {
        match file.try_lock() {
            Ok(()) => {
                touch(&file, &path)?;
                return Ok(file);
            }
            Err(TryLockError::WouldBlock) => {
                session.tick();
                // Bounded by the parent, which ends a look that takes too long in all.
                let _ = poll::ready(&mut [], Some(clock::now() + RETRY));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
    }
}

/// Tells the janitor that something of ours is in use.
pub(super) fn touch(file: &File, path: &Path) -> Result<(), Trouble> {
    let seconds = u64::try_from(clock::wall().0).unwrap_or(0);
    let now = UNIX_EPOCH + Duration::from_secs(seconds);
    file.set_modified(now).map_err(|error| Trouble::File("touch", path.to_owned(), error))
}

/// Creates a directory of ours and its parents.
pub(super) fn create(path: &Path) -> Result<(), Trouble> {
    let made = DirBuilder::new().recursive(true).mode(0o750).create(path);
    made.map_err(|error| Trouble::File("create", path.to_owned(), error))
}

/// Removes a tree of ours, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), Trouble> {
    let removed = match fs::symlink_metadata(path) {
        Ok(data) if data.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Trouble::File("remove", path.to_owned(), error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes what a look that was killed left behind: locks, and packs half received. Called before a mirror
/// changes; its lock is held, so nobody else's are among them.
pub(super) fn clear_leftovers(mirror: &Repository) {
    let path = mirror.path();
    let mut places: Vec<PathBuf> = vec![path.to_owned(), path.join("objects/pack")];
    let mut todo = vec![path.join("refs")];
    while let Some(place) = todo.pop() {
        let entries = fs::read_dir(&place).into_iter().flatten().flatten();
        todo.extend(
            entries.filter(|e| e.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()),
        );
        places.push(place);
    }
    for entry in places.iter().flat_map(fs::read_dir).flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.ends_with(".lock") || name.contains("_git2_") {
            // What cannot be removed shows itself when it is in the way.
            let _ = fs::remove_file(entry.path());
        }
    }
}
