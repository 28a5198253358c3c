//! Bounded line framing: never more than one line and one read in memory, whatever the peer sends.
//!
//! Deadlines are the reader's: an error of it (a time-out, say) loses nothing, and reading can go on after it.

use std::io::{self, Read};

/// The longest request, without its newline: room for any specification, too little to hurt.
pub(crate) const MAX_REQUEST: usize = 64 * 1024;

/// The longest line of an answer that a client accepts: an evaluation of thousands of channels, or 64 KiB of
/// log in which each byte is escaped, fit many times over.
pub(crate) const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// Bytes asked for at once: a whole request in nearly all cases.
const CHUNK: usize = 8 * 1024;

/// What came in.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// A line without its newline; also the last one when it has none.
    Text(String),
    /// A line longer than allowed: the rest of it is skipped by the reads that follow.
    TooLong,
    NotUtf8,
    /// The peer has closed its side.
    End,
}

/// Splits a byte stream into lines.
pub(crate) struct Lines<R> {
    inner: R,
    max: usize,
    buffer: Vec<u8>,
    /// How much of `buffer` is known to hold no newline.
    searched: usize,
    skipping: bool,
    ended: bool,
}

impl<R: Read> Lines<R> {
    pub(crate) fn new(inner: R, max: usize) -> Self {
        Self { inner, max, buffer: Vec::new(), searched: 0, skipping: false, ended: false }
    }

    pub(crate) fn get_ref(&self) -> &R {
        &self.inner
    }

    pub(crate) fn get_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    /// Whether the end of an over-long line has not been seen yet.
    pub(crate) fn is_skipping(&self) -> bool {
        self.skipping
    }

    /// Whether a line can be had without reading.
    pub(crate) fn has_line(&self) -> bool {
        self.buffer[self.searched..].contains(&b'\n')
    }

    /// The next line; blocks as the reader does.
    pub(crate) fn read(&mut self) -> io::Result<Line> {
        loop {
            let newline = self.buffer[self.searched..].iter().position(|&b| b == b'\n');
            if let Some(at) = newline.map(|n| n + self.searched) {
                let rest = self.buffer.split_off(at + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                self.searched = 0;
                if std::mem::take(&mut self.skipping) {
                    continue;
                }
                line.pop();
                return Ok(self.line(line));
            }
            self.searched = self.buffer.len();
            if self.skipping {
                self.buffer.clear();
                self.searched = 0;
            } else if self.buffer.len() > self.max {
                self.buffer = Vec::new();
                self.searched = 0;
                self.skipping = true;
                return Ok(Line::TooLong);
            }
            if self.ended {
                let last = std::mem::take(&mut self.buffer);
                self.searched = 0;
                self.skipping = false;
                return Ok(if last.is_empty() { Line::End } else { self.line(last) });
            }
            self.fill()?;
        }
    }

    fn line(&self, line: Vec<u8>) -> Line {
        if line.len() > self.max {
            return Line::TooLong;
        }
        String::from_utf8(line).map_or(Line::NotUtf8, Line::Text)
    }

    fn fill(&mut self) -> io::Result<()> {
        let length = self.buffer.len();
        self.buffer.resize(length + CHUNK, 0);
        let result = loop {
            match self.inner.read(&mut self.buffer[length..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.buffer.truncate(length + result.as_ref().copied().unwrap_or(0));
        self.ended = result? == 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one piece a read, and an error between pieces.
    struct Pieces(Vec<io::Result<Vec<u8>>>);

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Ok(0);
            }
            let piece = self.0.remove(0)?;
            buffer[..piece.len()].copy_from_slice(&piece);
            Ok(piece.len())
        }
    }

    fn text(line: &str) -> Line {
        Line::Text(line.to_owned())
    }

    #[test]
    fn lines_come_whole_however_they_are_cut() {
        let mut lines = Lines::new(&b"one\n\ntwo"[..], 16);
        for expected in [text("one"), text(""), text("two"), Line::End, Line::End] {
            assert_eq!(lines.read().unwrap(), expected);
        }
        let late = || Err(io::ErrorKind::TimedOut.into());
        let mut lines =
            Lines::new(Pieces(vec![Ok(b"on".to_vec()), late(), Ok(b"e\ntw".to_vec())]), 16);
        assert_eq!(lines.read().unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(lines.read().unwrap(), text("one"));
        assert!(!lines.has_line());
        assert_eq!(lines.read().unwrap(), text("tw"));
    }

    #[test]
    fn a_long_line_is_told_once_and_skipped() {
        let input = [vec![b'x'; 100_000], b"\nnext\n".to_vec()].concat();
        let mut lines = Lines::new(&input[..], 10);
        assert_eq!(lines.read().unwrap(), Line::TooLong);
        assert!(lines.is_skipping());
        assert_eq!(lines.read().unwrap(), text("next"));
        assert_eq!(lines.read().unwrap(), Line::End);
        let mut lines = Lines::new(&b"0123456789\n01234567890\n0123456789a"[..], 10);
        assert_eq!(lines.read().unwrap(), text("0123456789"));
        assert_eq!(lines.read().unwrap(), Line::TooLong);
        assert_eq!(lines.read().unwrap(), Line::TooLong);
        assert_eq!(lines.read().unwrap(), Line::End);
    }

    #[test]
    fn memory_is_bounded_by_the_limit() {
        let mut lines = Lines::new(io::repeat(b'x').take(64 << 20), 64 * 1024);
        assert_eq!(lines.read().unwrap(), Line::TooLong);
        assert_eq!(lines.read().unwrap(), Line::End);
        assert!(lines.buffer.capacity() < 256 * 1024);
    }

    #[test]
    fn bad_utf_8_is_told() {
        let mut lines = Lines::new(&b"\xff\xfe\nok\n"[..], 10);
        assert_eq!(lines.read().unwrap(), Line::NotUtf8);
        assert_eq!(lines.read().unwrap(), text("ok"));
    }
}
