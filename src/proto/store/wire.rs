//! The primitives of the worker protocol: little-endian words, padded strings, lists.
//!
//! Invariant: a request leaves in one write, and nothing a peer claims is allocated before it is checked.

use std::io::{self, Read, Write};

use super::Error;

/// The longest string taken: far above a message or a path, far below what would hurt.
const MAX_STRING: u64 = 16 << 20;

/// The longest list taken: a store has some hundred thousand items.
const MAX_LIST: u64 = 1 << 20;

/// Bytes read at once: sixteen of the daemon's pieces of log.
const BUFFER: usize = 64 << 10;

/// A stream with what was read ahead of it, and the request that is being put together.
pub(super) struct Wire<S> {
    stream: S,
    request: Vec<u8>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl<S: Read + Write> Wire<S> {
    pub(super) fn new(stream: S) -> Self {
        let buffer = vec![0; BUFFER].into_boxed_slice();
        Self { stream, request: Vec::new(), buffer, start: 0, end: 0 }
    }

    pub(super) fn stream(&self) -> &S {
        &self.stream
    }

    /// Whether something has been read and not been taken yet.
    pub(super) fn has_more(&self) -> bool {
        self.start < self.end
    }

    pub(super) fn put(&mut self, word: u64) {
        self.request.extend_from_slice(&word.to_le_bytes());
    }

    pub(super) fn put_bytes(&mut self, bytes: &[u8]) {
        self.put(bytes.len() as u64);
        self.request.extend_from_slice(bytes);
        self.request.resize(self.request.len().next_multiple_of(8), 0);
    }

    /// Data in one frame, and its end.
    pub(super) fn put_frame(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.put(bytes.len() as u64);
            self.request.extend_from_slice(bytes);
        }
        self.put(0);
    }

    /// How much has been read from the stream and not been taken.
    #[cfg(test)]
    pub(super) fn ahead(&self) -> usize {
        self.end - self.start
    }

    #[cfg(test)]
    pub(super) fn put_raw(&mut self, bytes: &[u8]) {
        self.request.extend_from_slice(bytes);
    }

    pub(super) fn put_list<T: AsRef<[u8]>>(&mut self, list: &[T]) {
        self.put(list.len() as u64);
        for item in list {
            self.put_bytes(item.as_ref());
        }
    }

    /// Sends what was put.
    pub(super) fn flush(&mut self) -> Result<(), Error> {
        let sent = self.stream.write_all(&self.request).and_then(|()| self.stream.flush());
        self.request.clear();
        sent.map_err(Error::Send)
    }

    fn fill(&mut self) -> Result<(), Error> {
        let length = loop {
            match self.stream.read(&mut self.buffer) {
                Ok(0) => return Err(Error::Receive(io::ErrorKind::UnexpectedEof.into())),
                Ok(length) => break length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Receive(error)),
            }
        };
        (self.start, self.end) = (0, length);
        Ok(())
    }

    fn take(&mut self, mut into: &mut [u8]) -> Result<(), Error> {
        while !into.is_empty() {
            if self.start == self.end {
                self.fill()?;
            }
            let length = into.len().min(self.end - self.start);
            let (now, later) = into.split_at_mut(length);
            now.copy_from_slice(&self.buffer[self.start..self.start + length]);
            self.start += length;
            into = later;
        }
        Ok(())
    }

    pub(super) fn word(&mut self) -> Result<u64, Error> {
        let mut bytes = [0; 8];
        self.take(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// A word that counts something of which at most `most` are taken.
    fn count(&mut self, what: &'static str, most: u64) -> Result<usize, Error> {
        let count = self.word()?;
        if count > most {
            return Err(Error::TooLarge(what, count));
        }
        // At most 16 Mi.
        usize::try_from(count).map_err(|_| Error::TooLarge(what, count))
    }

    /// A string into `into`, which is emptied first.
    pub(super) fn bytes(&mut self, into: &mut Vec<u8>) -> Result<(), Error> {
        let length = self.count("a string", MAX_STRING)?;
        into.clear();
        into.resize(length.next_multiple_of(8), 0);
        self.take(into)?;
        if into[length..].iter().any(|&byte| byte != 0) {
            return Err(Error::Garbled("padding of zeros"));
        }
        into.truncate(length);
        Ok(())
    }

    pub(super) fn string(&mut self) -> Result<String, Error> {
        let mut bytes = Vec::new();
        self.bytes(&mut bytes)?;
        Ok(String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    /// The length of a list, whose items are to be taken next.
    pub(super) fn length(&mut self) -> Result<usize, Error> {
        self.count("a list", MAX_LIST)
    }

    pub(super) fn strings(&mut self) -> Result<Vec<String>, Error> {
        // Not reserved: the peer may claim more than it sends.
        let mut strings = Vec::new();
        for _ in 0..self.length()? {
            strings.push(self.string()?);
        }
        Ok(strings)
    }
}
