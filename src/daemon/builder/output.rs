//! A build's output on its way to the log.
//!
//! Invariant: the log holds what the build wrote, up to the limit, and after it only lines of ours.

use std::io;
use std::path::Path;
use std::time::Instant;

use crate::logs::Writer;
use crate::store::follow::Log;
use crate::sys::file;

pub(super) struct Output {
    writer: Writer,
    limit: u64,
    /// Whether the last line has its end.
    complete: bool,
}

/// Why output was not written.
#[derive(Debug)]
pub(super) enum Refused {
    /// It reached the limit; what was below has been written.
    TooLarge,
    Io(io::Error),
}

impl Output {
    /// Creates the log at `path`.
    pub(super) fn create(path: &Path, limit: u64) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            file::create_directory(parent)?;
        }
        Ok(Self { writer: Writer::create(path)?, limit, complete: true })
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        let room = usize::try_from(self.limit.saturating_sub(self.writer.len()));
        let part = &bytes[..bytes.len().min(room.unwrap_or(usize::MAX))];
        if let Some(last) = part.last() {
            self.writer.write(part).map_err(Refused::Io)?;
            self.complete = *last == b'\n';
        }
        if part.len() < bytes.len() { Err(Refused::TooLarge) } else { Ok(()) }
    }

    /// A line of ours, whatever the limit.
    pub(super) fn note(&mut self, text: &str) -> io::Result<()> {
        let end = if self.complete { "" } else { "\n" };
        self.complete = true;
        self.writer.write(format!("{end}gorget: {text}\n").as_bytes())
    }

    pub(super) fn flush_due(&self) -> Option<Instant> {
        self.writer.flush_due()
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl Log for Output {
    type Error = Refused;

    fn write(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        self.write(bytes)
    }

    /// Counts as what the build wrote: a builder may be behind it.
    fn remark(&mut self, text: &str) -> Result<(), Refused> {
        let end = if self.complete { "" } else { "\n" };
        self.write(format!("{end}gorget: {text}\n").as_bytes())
    }

    fn flush_due(&self) -> Option<Instant> {
        self.flush_due()
    }

    fn flush(&mut self) -> Result<(), Refused> {
        self.flush().map_err(Refused::Io)
    }
}
