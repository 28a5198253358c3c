//! Keeps the packs of a mirror few: each fetch brings one, and every lookup asks them all.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use git2::{Oid, Repository};

use super::session::Session;

/// Packs from which on small ones are merged: as many as git itself bears before it does.
const MANY: usize = 50;

/// Merges small packs into one if there are many. `true` if something changed. What goes wrong leaves the packs as
/// they are, and shows itself where they are used.
pub(super) fn merge_small(session: &Session, mirror: &Path) -> bool {
    let directory = mirror.join("objects/pack");
    let packs = packs(&directory);
    if packs.len() < MANY {
        return false;
    }
    let small = small(&packs);
    small.len() > 1 && merge(session, mirror, &directory, small).is_some()
}

/// Sizes and index files, smallest first.
fn packs(directory: &Path) -> Vec<(u64, PathBuf)> {
    let files = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let indexes = files.filter(|path| path.extension().is_some_and(|ext| ext == "idx"));
    let sized = indexes.filter_map(|index| {
        let size = fs::metadata(index.with_extension("pack")).ok()?.len();
        Some((size, index))
    });
    let mut packs: Vec<_> = sized.collect();
    packs.sort();
    packs
}

/// Those worth merging: up to the first that is bigger than twice all smaller ones together, so that a big pack
/// is written again only when as much has come after it.
fn small(packs: &[(u64, PathBuf)]) -> &[(u64, PathBuf)] {
    let mut sum = 0;
    for (n, (size, _)) in packs.iter().enumerate() {
        if n >= MANY / 2 && *size > 2 * sum {
            return &packs[..n];
        }
        sum += size;
    }
    packs
}

fn merge(
    session: &Session,
    mirror: &Path,
    directory: &Path,
    small: &[(u64, PathBuf)],
) -> Option<()> {
    let repository = Repository::open_bare(mirror).ok()?;
    let mut pack = repository.packbuilder().ok()?;
    pack.set_progress_callback(|_, _, _| {
        session.tick();
        true
    })
    .ok()?;
    for (_, index) in small {
        for id in objects(index)? {
            pack.insert_object(id, None).ok()?;
        }
        session.tick();
    }
    pack.write(directory, 0).ok()?;
    let written = pack.name().ok()??.to_owned();
    for (_, index) in small {
        if index
            .file_stem()
            .is_some_and(|stem| *stem.to_string_lossy() != format!("pack-{written}"))
        {
            // The index first: without it nobody looks for the pack.
            fs::remove_file(index).ok()?;
            fs::remove_file(index.with_extension("pack")).ok()?;
        }
    }
    Some(())
}

/// The ids in a pack's index, version 2: a header, 256 running counts, the ids in order.
fn objects(index: &Path) -> Option<Vec<Oid>> {
    let mut file = BufReader::new(File::open(index).ok()?);
    let mut head = [0; 8];
    file.read_exact(&mut head).ok()?;
    if head != [0xff, b't', b'O', b'c', 0, 0, 0, 2] {
        return None;
    }
    let mut count = [0; 4];
    for _ in 0..256 {
        file.read_exact(&mut count).ok()?;
    }
    let mut id = [0; 20];
    let next = |_| {
        file.read_exact(&mut id).ok()?;
        Oid::from_bytes(&id).ok()
    };
    (0..u32::from_be_bytes(count)).map(next).collect()
}
