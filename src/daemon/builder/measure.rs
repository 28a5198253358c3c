//! The size and SHA-256 of what builds leave.
//!
//! Invariant: a build that is canceled, or whose time is over, does not have to wait for a large file's end.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

/// Bytes copied at a time: enough to make a system call's cost vanish.
const CHUNK: usize = 256 << 10;

/// Asked again and again whether to go on.
pub(super) type GoOn<'a> = &'a dyn Fn() -> io::Result<()>;

/// Bytes and SHA-256 of `from`, which is copied to `to` meanwhile: holes stay holes.
pub(super) fn hash(
    from: &mut File,
    mut to: Option<&mut File>,
    go_on: GoOn<'_>,
) -> io::Result<(u64, String)> {
    let (mut hash, mut size, mut buffer) = (Sha256::new(), 0, vec![0; CHUNK]);
    loop {
        go_on()?;
        let length = match from.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result?,
        };
        if length == 0 {
            break;
        }
        let chunk = &buffer[..length];
        hash.update(chunk);
        size += length as u64;
        match &mut to {
            Some(to) if chunk.iter().all(|byte| *byte == 0) => {
                to.seek(SeekFrom::Start(size))?;
            }
            Some(to) => to.write_all(chunk)?,
            None => {}
        }
    }
    if let Some(to) = to {
        to.set_len(size)?; // A hole at the end was only sought over.
    }
    Ok((size, hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}

/// Bytes of all files below `directory`.
pub(super) fn tree_size(directory: &Path, go_on: GoOn<'_>) -> io::Result<u64> {
    let (mut size, mut directories) = (0, vec![directory.to_owned()]);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory)? {
            go_on()?;
            let entry = entry?;
            let metadata = entry.metadata()?; // Of a link itself.
            if metadata.is_dir() {
                directories.push(entry.path());
            } else if metadata.is_file() {
                size += metadata.len();
            }
        }
    }
    Ok(size)
}
