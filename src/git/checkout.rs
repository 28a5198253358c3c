//! Trees of commits as files: shared checkouts, without `.git`, submodules included.
//!
//! Invariant: a checkout under its final name is whole. Nothing is ever written through what a tree holds: every
//! directory and file is created by us, where there was none, so a link in a tree leads nowhere of ours.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use git2::{Oid, Repository, Tree};

use super::mirror::{self, create, remove};
use super::modules::{self, Module};
use super::session::Session;
use super::trouble::Trouble;
use super::url::{self, Url};
use super::{Error, Resolved};
use crate::model::spec::Reference;

/// Submodules in submodules: more are a loop that new commits keep alive, or an attack.
const SUBMODULES: usize = 8;

/// Directories in directories; a path of that many does not fit the kernel's limit with names of usual length.
const DIRECTORIES: usize = 512;

/// Files and directories of a checkout. The largest real trees have a tenth of it; a tree that names itself often
/// enough has as many as its author likes.
const ENTRIES: usize = 2_000_000;

/// Largest `.gitmodules` that is read.
const MODULES: usize = 4 << 20;

/// The shared checkout of `commit`, made if there is none.
pub(super) fn shared(
    session: &Session,
    url: &Url,
    repository: &Repository,
    commit: Oid,
) -> Result<Resolved, Trouble> {
    let tree = tree(repository, commit)?.id();
    let checkouts = &session.request.places.checkouts;
    let directory = checkouts.join(format!("{}-{commit}", &url.hash()[..16]));
    let done = Resolved {
        commit: commit.to_string(),
        tree: tree.to_string(),
        directory: directory.clone(),
    };
    if directory.is_dir() {
        let opened = File::open(&directory);
        let opened = opened.map_err(|error| Trouble::File("open", directory.clone(), error))?;
        mirror::touch(&opened, &directory)?;
        return Ok(done);
    }
    create(checkouts)?;
    // Nobody else uses this name: one look at a time per URL.
    let aside = directory.with_extension("new");
    remove(&aside)?;
    let mut export = Export { session, entries: 0 };
    let whole = export.commit(url, repository, commit, &aside, 0);
    if let Err(trouble) = whole {
        // The trouble matters more than what is left of the attempt, which the next one removes.
        let _ = remove(&aside);
        return Err(trouble);
    }
    fs::rename(&aside, &directory).map_err(|error| Trouble::File("rename", aside, error))?;
    Ok(done)
}

fn tree(repository: &Repository, commit: Oid) -> Result<Tree<'_>, Trouble> {
    let commit = repository.find_commit(commit).map_err(Trouble::Mirror)?;
    commit.tree().map_err(Trouble::Mirror)
}

struct Export<'a> {
    session: &'a Session,
    /// Made so far, submodules included.
    entries: usize,
}

/// One repository that is being checked out.
struct Root<'a> {
    url: &'a Url,
    repository: &'a Repository,
    directory: &'a Path,
    modules: HashMap<String, Module>,
    /// Submodules above this one.
    depth: usize,
}

impl Export<'_> {
    /// Writes the commit's tree to `directory`, which must not exist.
    fn commit(
        &mut self,
        url: &Url,
        repository: &Repository,
        commit: Oid,
        directory: &Path,
        depth: usize,
    ) -> Result<(), Trouble> {
        let tree = tree(repository, commit)?;
        let modules = read_modules(repository, &tree)?;
        let root = Root { url, repository, directory, modules, depth };
        self.tree(&root, &tree, Path::new(""), 0)
    }

    fn tree(
        &mut self,
        root: &Root<'_>,
        tree: &Tree<'_>,
        path: &Path,
        level: usize,
    ) -> Result<(), Trouble> {
        if level > DIRECTORIES {
            return Err(Trouble::Tree(path.to_owned(), "too many directories in one another"));
        }
        make_directory(&root.directory.join(path))?;
        for entry in tree {
            self.session.tick();
            self.entries += 1;
            if self.entries > ENTRIES {
                return Err(Trouble::Tree(path.to_owned(), "too many files"));
            }
            let name = entry.name_bytes();
            let path = path.join(OsStr::from_bytes(name));
            if !is_plain(name) {
                return Err(Trouble::Tree(path, "this name is not allowed"));
            }
            let target = root.directory.join(&path);
            match entry.filemode() & 0o170_000 {
                0o040_000 => {
                    let tree = root.repository.find_tree(entry.id()).map_err(Trouble::Mirror)?;
                    self.tree(root, &tree, &path, level + 1)?;
                }
                0o120_000 => {
                    let blob = root.repository.find_blob(entry.id()).map_err(Trouble::Mirror)?;
                    symlink(OsStr::from_bytes(blob.content()), &target)
                        .map_err(|error| Trouble::File("link", target, error))?;
                }
                0o160_000 => self.submodule(root, entry.id(), &path)?,
                0o100_000 => {
                    let blob = root.repository.find_blob(entry.id()).map_err(Trouble::Mirror)?;
                    let mode = if entry.filemode() & 0o100 == 0 { 0o644 } else { 0o755 };
                    OpenOptions::new()
                        .write(true)
                        .create_new(true)
                        .mode(mode)
                        .open(&target)
                        .and_then(|mut file| file.write_all(blob.content()))
                        .map_err(|error| Trouble::File("write", target, error))?;
                }
                _ => {
                    return Err(Trouble::Tree(path, "neither file, link, directory nor submodule"));
                }
            }
        }
        Ok(())
    }

    /// Checks a submodule out, or makes the empty directory that git leaves where there is nothing to check out.
    fn submodule(&mut self, root: &Root<'_>, commit: Oid, path: &Path) -> Result<(), Trouble> {
        let module = path.to_str().and_then(|path| root.modules.get(path));
        let text = match module {
            // A link without an entry is a leftover: plain clones work with it.
            None => return make_directory(&root.directory.join(path)),
            Some(module) if module.skipped => return make_directory(&root.directory.join(path)),
            Some(module) => module.url.as_deref().unwrap_or_default(),
        };
        let failed = |error| Trouble::Submodule(path.to_owned(), error);
        if root.depth >= SUBMODULES {
            return Err(failed(Error("too many submodules in one another".to_owned())));
        }
        let url = root
            .url
            .submodule(text)
            .map_err(|trouble| failed(Error(format!("{}: {trouble}", url::printable(text)))))?;
        let directory = root.directory.join(path);
        self.fetched(&url, commit, &directory, root.depth + 1)
            .map_err(|trouble| failed(trouble.about(&url)))
    }

    fn fetched(
        &mut self,
        url: &Url,
        commit: Oid,
        directory: &Path,
        depth: usize,
    ) -> Result<(), Trouble> {
        let references = [Reference::Commit(commit.to_string())];
        let mut found = mirror::look(self.session, url, &references)?;
        loop {
            let commits = found.commits.drain(..).collect::<Result<Vec<_>, _>>()?;
            let id = commits.first().copied().unwrap_or(commit);
            match self.commit(url, &found.repository, id, directory, depth) {
                Err(trouble) if trouble.is_corruption() && !found.fresh => {
                    remove(directory)?;
                    found = mirror::anew(self.session, url, &references)?;
                }
                done => return done,
            }
        }
    }
}

/// Whether an entry of a tree may become a file. Git itself makes no others, but a server can send any.
fn is_plain(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..")
        && !name.eq_ignore_ascii_case(b".git")
        && !name.contains(&b'/')
        && !name.contains(&0)
}

fn make_directory(path: &PathBuf) -> Result<(), Trouble> {
    DirBuilder::new()
        .mode(0o755)
        .create(path)
        .map_err(|error| Trouble::File("create", path.clone(), error))
}

fn read_modules(
    repository: &Repository,
    tree: &Tree<'_>,
) -> Result<HashMap<String, Module>, Trouble> {
    let entry = match tree.get_name(".gitmodules") {
        // A link could lead anywhere; git ignores it too.
        Some(entry) if entry.filemode() & 0o170_000 == 0o100_000 => entry,
        Some(_) | None => return Ok(HashMap::new()),
    };
    match repository.find_blob(entry.id()) {
        Ok(blob) if blob.size() <= MODULES => {
            Ok(modules::parse(&String::from_utf8_lossy(blob.content())))
        }
        Ok(_) => Err(Trouble::Tree(PathBuf::from(".gitmodules"), "too large")),
        Err(error) => Err(Trouble::Mirror(error)),
    }
}
