//! Newcomers for whom there is no place: each one's first line is read, a second at most, and answered
//! `error unavailable`, so that the peer reads an answer and not a broken pipe.
//!
//! The thread `bridge/refuse` blocks in `poll`; a byte on, or the end of, its waking socket wakes it.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::actor::{Gone, Spawner, Stop};
use crate::proto::control::{Failure, FailureKind, is_scheme};
use crate::proto::line::{Line, Lines, MAX_REQUEST};
use crate::sys::clock;

/// How long a newcomer's first line is waited for.
const FIRST_LINE: Duration = Duration::from_secs(1);

/// Newcomers read from at once: more than a burst of scripts, few enough descriptors. Those beyond are answered unread.
const MAX_WAITING: usize = 128;

/// Hands newcomers to the thread.
pub(super) struct Refuser {
    newcomers: Sender<UnixStream>,
    waker: UnixStream,
}

impl Refuser {
    pub(super) fn spawn(threads: &Spawner) -> io::Result<Self> {
        let (newcomers, inbox) = bounded(MAX_WAITING);
        let (waker, wakes) = UnixStream::pair()?;
        waker.set_nonblocking(true)?;
        wakes.set_nonblocking(true)?;
        let body = move |stop| run(&inbox, &wakes, &stop);
        threads.essential("bridge/refuse", body)?;
        Ok(Self { newcomers, waker })
    }

    pub(super) fn refuse(&self, stream: UnixStream) {
        if let Err(TrySendError::Full(stream) | TrySendError::Disconnected(stream)) =
            self.newcomers.try_send(stream)
        {
            answer(&stream, false);
            return;
        }
        // A full socket means that the thread has enough to wake up for.
        let _ = (&self.waker).write(&[0]);
    }
}

/// Says that there is no place, and hangs up.
pub(super) fn answer(stream: &UnixStream, scheme: bool) {
    if scheme {
        return;
    }
    let message = "all connections are taken; try again";
    let line = format!("{}\n", Failure::new(FailureKind::Unavailable, message));
    // So short a line fits any socket's buffer; a peer that has gone does not matter.
    let _ = stream.set_nonblocking(true);
    let _ = (&mut &*stream).write_all(line.as_bytes());
}

struct Newcomer {
    lines: Lines<UnixStream>,
    until: Instant,
}

fn run(inbox: &Receiver<UnixStream>, wakes: &UnixStream, stop: &Stop) -> Result<(), Gone> {
    let mut waiting: Vec<Newcomer> = Vec::new();
    loop {
        if stop.try_recv().is_err_and(|error| error.is_disconnected()) {
            return Ok(());
        }
        let now = clock::now();
        for stream in inbox.try_iter() {
            if waiting.len() == MAX_WAITING {
                let mut oldest = waiting.remove(0);
                answer(oldest.lines.get_mut(), false);
            }
            if stream.set_nonblocking(true).is_ok() {
                waiting.push(Newcomer {
                    lines: Lines::new(stream, MAX_REQUEST),
                    until: now + FIRST_LINE,
                });
            }
        }
        waiting.retain_mut(|newcomer| newcomer.still_waits(now));
        wait(wakes, &mut waiting)?;
    }
}

impl Newcomer {
    /// Reads what there is; answers when the line is whole or the time is over.
    fn still_waits(&mut self, now: Instant) -> bool {
        let line = match self.lines.read() {
            Ok(line) => Some(line),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if now < self.until {
                    return true;
                }
                None
            }
            Err(_) => return false,
        };
        match line {
            Some(Line::End) => {}
            Some(Line::Text(text)) => answer(self.lines.get_mut(), is_scheme(&text)),
            Some(Line::TooLong | Line::NotUtf8) | None => answer(self.lines.get_mut(), false),
        }
        false
    }
}

/// Until a newcomer says something or its time is over, another comes, or the daemon stops.
fn wait(mut wakes: &UnixStream, waiting: &mut [Newcomer]) -> Result<(), Gone> {
    let now = clock::now();
    let next = waiting.iter().map(|n| n.until.saturating_duration_since(now)).min();
    let timeout = next.map_or(PollTimeout::NONE, |left| {
        // Rounded up, or the last millisecond would be spent spinning.
        PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX)
    });
    let mut fds = vec![PollFd::new(wakes.as_fd(), PollFlags::POLLIN)];
    for newcomer in waiting.iter() {
        fds.push(PollFd::new(newcomer.lines.get_ref().as_fd(), PollFlags::POLLIN));
    }
    match poll(&mut fds, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        // Out of memory for the kernel's part of it: nothing that ends in a better way than a restart.
        Err(_) => return Err(Gone),
    }
    let mut bytes = [0; MAX_WAITING];
    match wakes.read(&mut bytes) {
        // The actor has ended.
        Ok(0) => Err(Gone),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Err(_) => Err(Gone),
    }
}
