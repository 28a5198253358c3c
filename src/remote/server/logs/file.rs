//! The files of logs, as they come: gzip, one member or several.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The daemon links a log into its own directory, for which it must own it or be able to write to it.
const MODE: u32 = 0o660;

/// What every gzip stream begins with.
const MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Makes an empty log. An older one of that name keeps its other names.
pub(in crate::remote::server) fn create(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(MODE).open(path)?;
    // Whatever the mask.
    fs::set_permissions(path, Permissions::from_mode(MODE))
}

/// A log that is being written.
pub(super) struct Log {
    /// `None` once nothing more is to be written.
    file: Option<File>,
    path: PathBuf,
    /// Bytes it may still get.
    left: u64,
    /// How much of `MAGIC` has come.
    known: usize,
}

impl Log {
    /// Opens it at its end: what a worker sends after a break is another member.
    pub(super) fn open(path: &Path, max_size: u64) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.append(true).create(true).mode(MODE).custom_flags(libc::O_NOFOLLOW);
        let file = file.open(path)?;
        let left = max_size.saturating_sub(file.metadata()?.len());
        Ok(Self { file: Some(file), path: path.to_owned(), left, known: 0 })
    }

    /// Writes what came; drops it when it is too much, no gzip, or cannot be written.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        let Some(file) = &mut self.file else { return };
        for byte in bytes.iter().take(MAGIC.len() - self.known) {
            if MAGIC[self.known] != *byte {
                log::warn!(target: "logs", "{}: what comes is no gzip, and is dropped", self.path.display());
                self.file = None;
                return;
            }
            self.known += 1;
        }
        let fits = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        if let Err(error) = file.write_all(&bytes[..fits]) {
            log::error!(target: "logs", "cannot write to {}: {error}", self.path.display());
            self.file = None;
            return;
        }
        self.left -= fits as u64;
        if fits < bytes.len() {
            log::warn!(target: "logs", "{} is as long as it may be: the rest is dropped", self.path.display());
            self.file = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_grow_to_their_bound_and_no_further() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("7-1.gz");
        create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let mut log = Log::open(&path, 6).unwrap();
        for byte in b"\x1f\x8babcdef" {
            log.write(&[*byte]);
        }
        assert_eq!(fs::read(&path).unwrap(), b"\x1f\x8babcd");
        // Another member, when all is full.
        Log::open(&path, 6).unwrap().write(b"\x1f\x8b");
        assert_eq!(fs::read(&path).unwrap(), b"\x1f\x8babcd");
        Log::open(&path, 9).unwrap().write(b"\x1f\x8bx");
        assert_eq!(fs::read(&path).unwrap(), b"\x1f\x8babcd\x1f\x8bx");
    }

    #[test]
    fn what_is_no_gzip_is_dropped_and_older_logs_stay() {
        let directory = tempfile::tempdir().unwrap();
        let (path, link) = (directory.path().join("7-1.gz"), directory.path().join("link"));
        create(&path).unwrap();
        let mut log = Log::open(&path, 100).unwrap();
        log.write(b"\x1f");
        log.write(b"hello");
        log.write(b"\x1f\x8b");
        assert_eq!(fs::read(&path).unwrap(), b"\x1f");
        fs::hard_link(&path, &link).unwrap();
        create(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        assert_eq!(fs::read(&link).unwrap(), b"\x1f");
    }
}
