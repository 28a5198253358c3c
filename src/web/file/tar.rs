//! A directory as a tar archive, written as it is read: POSIX headers, with GNU's entries for names that do not fit.
//!
//! Invariant: links are told, never followed; a file that shrinks meanwhile ends the archive with an error.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::web::response::Sink;

const BLOCK: usize = 512;

/// Read at once.
const PIECE: usize = 32 * 1024;

/// Directories within each other: each has its names in memory while it is written.
const DEPTH: usize = 64;

/// Names of one directory, for the same reason.
const ENTRIES: usize = 100_000;

/// The archive of `directory`, whose entries begin with `name`.
pub(super) fn write(directory: &Path, name: &Path, out: &mut dyn Sink) -> io::Result<()> {
    let mut open = vec![(directory.to_owned(), name.to_owned(), names(directory)?)];
    entry(out, name, &fs::symlink_metadata(directory)?, b'5', 0, Path::new(""))?;
    while let Some((directory, name, rest)) = open.last_mut() {
        let Some(next) = rest.pop() else {
            open.pop();
            continue;
        };
        let (path, name) = (directory.join(&next), name.join(&next));
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_dir() {
            if open.len() == DEPTH {
                return Err(io::Error::other("there are too many directories within each other"));
            }
            entry(out, &name, &metadata, b'5', 0, Path::new(""))?;
            let names = names(&path)?;
            open.push((path, name, names));
        } else if metadata.is_symlink() {
            entry(out, &name, &metadata, b'2', 0, &fs::read_link(&path)?)?;
        } else if metadata.is_file() {
            // Whatever has come in its place since is no file of this archive.
            let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
            let file = OpenOptions::new().read(true).custom_flags(flags).open(&path)?;
            let metadata = file.metadata()?;
            if metadata.is_file() {
                entry(out, &name, &metadata, b'0', metadata.len(), Path::new(""))?;
                contents(out, &file, metadata.len())?;
            }
        }
    }
    out.write_all(&[0; 2 * BLOCK])?;
    out.flush()
}

/// What is in a directory, last first.
fn names(directory: &Path) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        if names.len() == ENTRIES {
            return Err(io::Error::other("there are too many files in one directory"));
        }
        names.push(entry?.file_name());
    }
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(names)
}

fn contents(out: &mut dyn Sink, file: &File, length: u64) -> io::Result<()> {
    let (mut left, mut piece) = (length, vec![0; PIECE]);
    let mut file = file.take(length);
    while left > 0 {
        let read = file.read(&mut piece)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        out.write_all(&piece[..read])?;
        left -= read as u64;
    }
    pad(out, length)
}

/// Fills the last block.
fn pad(out: &mut dyn Sink, length: u64) -> io::Result<()> {
    let used = usize::try_from(length % BLOCK as u64).unwrap_or(0);
    if used > 0 { out.write_all(&[0; BLOCK][used..]) } else { Ok(()) }
}

fn entry(
    out: &mut dyn Sink,
    name: &Path,
    metadata: &fs::Metadata,
    kind: u8,
    size: u64,
    target: &Path,
) -> io::Result<()> {
    let mut name: PathBuf = name.to_owned();
    if kind == b'5' {
        name.push("");
    }
    for (kind, text) in [(b'K', target), (b'L', name.as_path())] {
        let bytes = text.as_os_str().as_bytes();
        if bytes.len() >= 100 {
            let size = bytes.len() as u64 + 1;
            out.write_all(&header(b"././@LongLink", 0, 0, kind, size, b""))?;
            out.write_all(bytes)?;
            out.write_all(b"\0")?;
            pad(out, size)?;
        }
    }
    let (name, target) = (name.as_os_str().as_bytes(), target.as_os_str().as_bytes());
    out.write_all(&header(name, metadata.mode() & 0o777, metadata.mtime(), kind, size, target))
}

/// As GNU tar makes it; who owned the files here is nobody's business.
fn header(name: &[u8], mode: u32, time: i64, kind: u8, size: u64, target: &[u8]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8], most: usize| {
        let length = bytes.len().min(most);
        block[at..at + length].copy_from_slice(&bytes[..length]);
    };
    put(0, name, 100);
    put(100, format!("{mode:07o}").as_bytes(), 7);
    put(108, b"0000000", 7);
    put(116, b"0000000", 7);
    // Eleven octal digits end at 8 GiB; GNU's and everybody's reading of more is the number itself, marked.
    if size < 1 << 33 {
        put(124, format!("{size:011o}").as_bytes(), 11);
    } else {
        put(124, &[&[0x80, 0, 0, 0][..], &size.to_be_bytes()].concat(), 12);
    }
    put(136, format!("{:011o}", time.clamp(0, (1 << 33) - 1)).as_bytes(), 11);
    put(148, b"        ", 8);
    put(156, &[kind], 1);
    put(157, target, 100);
    put(257, b"ustar  \0", 8);
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;
    use crate::actor::Stop;

    struct Archive(Vec<u8>);

    impl Write for Archive {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Sink for Archive {
        fn stop(&self) -> &Stop {
            unreachable!("nothing waits here")
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the reader that all must agree with")]
    fn tar_reads_it_back() {
        let directory = tempfile::tempdir().unwrap();
        let from = directory.path().join("from");
        let long = "long".repeat(40);
        fs::create_dir_all(from.join("empty")).unwrap();
        fs::create_dir_all(from.join(&long)).unwrap();
        for (file, text) in [
            ("a", "x".repeat(70_000)),
            ("b☂", String::new()),
            (&format!("{long}/c"), "y".repeat(512)),
        ] {
            fs::write(from.join(file), text).unwrap();
        }
        symlink("/etc/passwd", from.join("link")).unwrap();
        symlink(&long, from.join("far")).unwrap();
        let mut archive = Archive(Vec::new());
        write(&from, Path::new("product"), &mut archive).unwrap();
        let (file, to) = (directory.path().join("x.tar"), directory.path().join("to"));
        fs::write(&file, &archive.0).unwrap();
        fs::create_dir(&to).unwrap();
        let status = Command::new("tar").arg("-xf").arg(&file).arg("-C").arg(&to).status().unwrap();
        assert!(status.success());
        let mut diff = Command::new("diff");
        let same = diff.args(["-r", "--no-dereference"]).arg(&from).arg(to.join("product"));
        let same = same.output().unwrap();
        assert!(same.status.success(), "{}", String::from_utf8_lossy(&same.stdout));
    }
}
