//! A socket's reading side with an absolute deadline: a peer that drips bytes cannot push it back.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use crate::sys::clock;

pub(crate) struct Timed {
    stream: Arc<UnixStream>,
    deadline: Option<Instant>,
    /// Whether the socket has a time-out of its own now.
    limited: bool,
}

impl Timed {
    pub(crate) fn new(stream: Arc<UnixStream>) -> Self {
        Self { stream, deadline: None, limited: false }
    }

    /// Reads fail with `TimedOut` from then on; never with `None`.
    pub(crate) fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(clock::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            self.limited = true;
        } else if self.limited {
            self.stream.set_read_timeout(None)?;
            self.limited = false;
        }
        (&*self.stream).read(buffer).map_err(|error| match error.kind() {
            // What an expired time-out of a socket looks like.
            io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
            _ => error,
        })
    }
}
