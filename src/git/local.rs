//! Looking at and fetching from repositories on this machine.
//!
//! Done without libgit2's own local transport, which gives up on a repository with a single dangling symbolic
//! reference, and compresses everything again where copying the files would do.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use git2::{ErrorCode, ObjectType, Oid, Repository};
use sha2::{Digest, Sha256};

use super::mirror::{clear_leftovers, has};
use super::session::{Session, name};
use super::trouble::Trouble;
use crate::model::spec::Reference;

/// Where the mirror remembers what it has got; by hash, as a name would have to be valid and free.
const TIPS: &str = "refs/gorget/";

/// Chain of alternates that is followed; git itself stops at five.
const ALTERNATES: usize = 5;

/// Times that a repository's packs are listed anew when some vanish while they are copied.
const LISTINGS: usize = 5;

/// Bytes copied between two signs of life.
const CHUNK: u64 = 8 << 20;

/// Resolves `references` to objects, and sees to it that the mirror has those that exist.
pub(super) fn look(
    session: &Session,
    path: &Path,
    mirror: &Repository,
    references: &[Reference],
) -> Result<Vec<Result<Oid, Trouble>>, Trouble> {
    let source = Repository::open(path).map_err(Trouble::Connect)?;
    let resolved = references.iter().map(|reference| resolve(&source, mirror, reference));
    let tips: Vec<_> = resolved.collect();
    let missing =
        || -> Vec<Oid> { tips.iter().flatten().copied().filter(|id| !has(mirror, *id)).collect() };
    if !missing().is_empty() {
        session.fetches.set(session.fetches.get() + 1);
        clear_leftovers(mirror);
        let empty =
            mirror.references_glob("refs/gorget/*").is_ok_and(|mut all| all.next().is_none());
        if empty {
            let (from, to) = (source.commondir().join("objects"), mirror.path().join("objects"));
            copy_store(session, &from, &to, ALTERNATES)
                .map_err(|error| Trouble::File("copy", from, error))?;
        }
        let missing = missing();
        if !missing.is_empty() {
            transfer(session, &source, mirror, &missing)?;
        }
        for (reference, tip) in references.iter().zip(&tips) {
            let Ok(tip) = tip else { continue };
            let hash = Sha256::digest(name(reference).as_bytes());
            let hash: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
            mirror.reference(&format!("{TIPS}{hash}"), *tip, true, "").map_err(Trouble::Mirror)?;
        }
        bring_branches(session, &source, mirror);
    }
    Ok(tips)
}

/// The branches go along, as they do from other machines: on one are the keys that Guix tells authors by. None of them
/// was asked for, so that one which is broken is left out, and nothing more.
fn bring_branches(session: &Session, source: &Repository, mirror: &Repository) {
    let Ok(branches) = source.references_glob("refs/heads/*") else { return };
    for branch in branches.flatten() {
        let (Ok(name), Some(tip)) = (branch.name().map(str::to_owned), branch.target()) else {
            continue;
        };
        let brought = || -> Result<(), Trouble> {
            if !has(mirror, tip) {
                transfer(session, source, mirror, &[tip])?;
            }
            mirror.reference(&name, tip, true, "").map(drop).map_err(Trouble::Mirror)
        };
        if let Err(trouble) = brought() {
            log::debug!(target: "updater", "branch {name} is left out: {trouble:?}");
        }
    }
}

fn resolve(
    source: &Repository,
    mirror: &Repository,
    reference: &Reference,
) -> Result<Oid, Trouble> {
    let find = |name: String, none: Trouble| match source.find_reference(&name) {
        Ok(found) => {
            let found = found.resolve().map_err(Trouble::Connect)?;
            found.target().ok_or(none)
        }
        Err(error) if matches!(error.code(), ErrorCode::NotFound | ErrorCode::InvalidSpec) => {
            Err(none)
        }
        Err(error) => Err(Trouble::Connect(error)),
    };
    match reference {
        Reference::Head => match source.head() {
            Ok(head) => head.target().ok_or(Trouble::NoHead),
            Err(error) if matches!(error.code(), ErrorCode::UnbornBranch | ErrorCode::NotFound) => {
                Err(Trouble::NoHead)
            }
            Err(error) => Err(Trouble::Connect(error)),
        },
        Reference::Branch(name) => {
            find(format!("refs/heads/{name}"), Trouble::NoBranch(name.clone()))
        }
        Reference::Tag(name) => find(format!("refs/tags/{name}"), Trouble::NoTag(name.clone())),
        Reference::Commit(id) => Oid::from_str(id)
            .ok()
            .filter(|id| has(mirror, *id) || has(source, *id))
            .ok_or_else(|| Trouble::NoCommit(id.clone())),
    }
}

/// Packs what leads to `wanted` and is not in the mirror.
fn transfer(
    session: &Session,
    source: &Repository,
    mirror: &Repository,
    wanted: &[Oid],
) -> Result<(), Trouble> {
    let mut pack = source.packbuilder().map_err(Trouble::Fetch)?;
    pack.set_progress_callback(|_, _, _| {
        session.tick();
        true
    })
    .map_err(Trouble::Fetch)?;
    let mut walk = source.revwalk().map_err(Trouble::Fetch)?;
    let mut commits = false;
    for &id in wanted {
        let mut object = source.find_object(id, None).map_err(Trouble::Fetch)?;
        // Annotated tags, which may name one another, go along by themselves.
        while let Some(tag) = object.as_tag() {
            pack.insert_object(tag.id(), None).map_err(Trouble::Fetch)?;
            object = tag.target().map_err(Trouble::Fetch)?;
        }
        if object.kind() == Some(ObjectType::Commit) {
            walk.push(object.id()).map_err(Trouble::Fetch)?;
            commits = true;
        } else {
            pack.insert_recursive(object.id(), None).map_err(Trouble::Fetch)?;
        }
    }
    for tip in mirror.references_glob("refs/gorget/*").map_err(Trouble::Mirror)? {
        let tip = tip.and_then(|tip| tip.peel_to_commit()).map(|commit| commit.id());
        // What was force-pushed away may be gone there, and then cannot be left out of the walk.
        if let Ok(tip) = tip
            && source.find_commit(tip).is_ok()
        {
            walk.hide(tip).map_err(Trouble::Fetch)?;
        }
    }
    if commits {
        pack.insert_walk(&mut walk).map_err(Trouble::Fetch)?;
    }
    let odb = mirror.odb().map_err(Trouble::Mirror)?;
    let mut writer = odb.packwriter().map_err(Trouble::Mirror)?;
    let mut written = Ok(());
    let packed = pack.foreach(|bytes| {
        session.tick();
        written = writer.write_all(bytes);
        written.is_ok()
    });
    written.map_err(|error| Trouble::File("write to", mirror.path().to_owned(), error))?;
    packed.map_err(Trouble::Fetch)?;
    writer.commit().map_err(Trouble::Fetch)?;
    Ok(())
}

/// Copies every object file. Loose ones first: what vanishes of them meanwhile is in a pack that is listed later.
fn copy_store(session: &Session, from: &Path, to: &Path, depth: usize) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.len() == 2 && name.as_bytes().iter().all(u8::is_ascii_hexdigit) {
            copy_files(session, &entry.path(), &to.join(name), |name| name.len() == 38)?;
        }
    }
    let mut copied = HashSet::new();
    for listing in 1.. {
        match copy_packs(session, &from.join("pack"), &to.join("pack"), &mut copied) {
            // Packs were merged into a new one meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound && listing < LISTINGS => {}
            Err(error) => return Err(error),
            Ok(()) => break,
        }
    }
    if depth > 0
        && let Ok(text) = fs::read(from.join("info/alternates"))
    {
        for line in text.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"/")) {
            copy_store(session, Path::new(OsStr::from_bytes(line)), to, depth - 1)?;
        }
        for line in text.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b".")) {
            copy_store(session, &from.join(OsStr::from_bytes(line)), to, depth - 1)?;
        }
    }
    Ok(())
}

/// Copies packs, each before its index: it is the index that makes it visible.
fn copy_packs(
    session: &Session,
    from: &Path,
    to: &Path,
    copied: &mut HashSet<PathBuf>,
) -> io::Result<()> {
    fs::create_dir_all(to)?;
    let entries = match fs::read_dir(from) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let index = entry?.path();
        let Some(name) = index.file_name() else { continue };
        if index.extension() != Some(OsStr::new("idx")) || copied.contains(&index) {
            continue;
        }
        let target = to.join(name);
        copy_file(session, &index.with_extension("pack"), &target.with_extension("pack"))?;
        copy_file(session, &index, &target)?;
        copied.insert(index);
    }
    Ok(())
}

fn copy_files(
    session: &Session,
    from: &Path,
    to: &Path,
    wanted: impl Fn(&OsStr) -> bool,
) -> io::Result<()> {
    fs::create_dir_all(to)?;
    let entries = match fs::read_dir(from) {
        // Packed meanwhile: packs are copied after loose objects.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        if !wanted(&name) {
            continue;
        }
        match copy_file(session, &from.join(&name), &to.join(&name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    Ok(())
}

fn copy_file(session: &Session, from: &Path, to: &Path) -> io::Result<()> {
    let mut reader = File::open(from)?;
    let mut writer = File::create(to)?;
    loop {
        session.tick();
        if io::copy(&mut (&mut reader).take(CHUNK), &mut writer)? == 0 {
            return Ok(());
        }
    }
}
