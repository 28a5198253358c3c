//! The log of one evaluation: what its evaluator wrote, our remarks, and a bound for both.
//!
//! Invariant: a log that cannot be written costs the log, never the evaluation.

use std::path::Path;
use std::time::Instant;

use crate::logs::Writer;
use crate::model::evaluation::EvaluationId;
use crate::sys::{clock, file};

/// Bytes of remarks that are written beyond the limit: the last ones say why an evaluation failed.
const REMARKS: u64 = 64 << 10;

pub(super) struct LogFile {
    id: EvaluationId,
    /// `None` when it cannot be written.
    writer: Option<Writer>,
    limit: u64,
    /// Whether something was left out.
    over: bool,
    at_line_start: bool,
}

impl LogFile {
    pub(super) fn create(path: &Path, id: EvaluationId, limit: u64) -> Self {
        let directory = path.parent().map_or(Ok(()), file::create_directory);
        let mut log = Self { id, writer: None, limit, over: false, at_line_start: true };
        match directory.and_then(|()| Writer::create(path)) {
            Ok(writer) => log.writer = Some(writer),
            Err(error) => log.broken(&error),
        }
        log
    }

    /// Appends what the evaluator wrote, up to the limit.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        let left = self.limit.saturating_sub(self.len());
        let fitting = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
        if self.over {
            return;
        }
        self.append(&bytes[..fitting]);
        if fitting < bytes.len() {
            self.over = true;
            self.note(&format!(
                "the log is longer than {} bytes; the rest is left out",
                self.limit
            ));
        }
    }

    /// Appends a remark of ours.
    pub(super) fn note(&mut self, text: &str) {
        if self.len() > self.limit.saturating_add(REMARKS) {
            return;
        }
        let start = if self.at_line_start { "" } else { "\n" };
        self.append(format!("{start}gorget: {text}\n").as_bytes());
    }

    pub(super) fn flush_due(&self) -> Option<Instant> {
        self.writer.as_ref().and_then(Writer::flush_due)
    }

    /// Makes readable what is due.
    pub(super) fn tick(&mut self) {
        if self.flush_due().is_some_and(|due| due <= clock::now())
            && let Some(Err(error)) = self.writer.as_mut().map(Writer::flush)
        {
            self.broken(&error);
        }
    }

    fn len(&self) -> u64 {
        self.writer.as_ref().map_or(0, Writer::len)
    }

    fn append(&mut self, bytes: &[u8]) {
        let Some(&last) = bytes.last() else { return };
        self.at_line_start = last == b'\n';
        if let Some(Err(error)) = self.writer.as_mut().map(|writer| writer.write(bytes)) {
            self.broken(&error);
        }
    }

    fn broken(&mut self, error: &std::io::Error) {
        log::warn!(target: "evaluator", "cannot write the log of evaluation {}: {error}", self.id);
        self.writer = None;
    }
}
