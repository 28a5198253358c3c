//! The daemon's end of one child: its output, its end, and the means to end it.

use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags};
use nix::sys::eventfd::EventFd;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::message::{self, Report};
use super::{Exit, How, KILL_PATIENCE, Read};
use crate::sys::{clock, poll};

/// The most read at once: what a pipe holds.
pub(super) const CHUNK: usize = 64 << 10;

const LOST: Exit = Exit { how: How::Lost, max_resident: 0, oom: false };

/// A running child and its keeper.
pub(crate) struct Child {
    pub(super) keeper: process::Child,
    pub(super) control: UnixStream,
    /// `None` once all was read.
    output: Option<OwnedFd>,
    errors: Option<OwnedFd>,
    cancel: Arc<EventFd>,
    /// What came of the keeper's report.
    report: Vec<u8>,
    /// How it ended, once known.
    exit: Option<Exit>,
    pub(super) reaped: bool,
    /// How much may still be read once it has ended: whoever got hold of a pipe from elsewhere could write for ever.
    left: usize,
    /// When it was to be killed.
    killed: Option<Instant>,
    /// Whether output was returned after the deadline: the next read returns the deadline first.
    overdue: bool,
    /// Which pipe is read first when both are ready: by turns.
    errors_first: bool,
}

/// Cancels a child from another thread: wakes its reader, which then decides how to end it.
#[derive(Clone)]
pub(crate) struct Killer {
    cancel: Arc<EventFd>,
}

impl Killer {
    pub(crate) fn cancel(&self) {
        // Fails only if it was called 2^64 times before: then the reader is awake.
        let _ = self.cancel.write(1);
    }
}

impl Child {
    pub(super) fn new(
        keeper: process::Child,
        control: UnixStream,
        output: OwnedFd,
        errors: Option<OwnedFd>,
        cancel: EventFd,
    ) -> Self {
        Self {
            keeper,
            control,
            output: Some(output),
            errors,
            cancel: Arc::new(cancel),
            report: Vec::new(),
            exit: None,
            reaped: false,
            left: 0,
            killed: None,
            overdue: false,
            errors_first: false,
        }
    }

    pub(crate) fn killer(&self) -> Killer {
        Killer { cancel: self.cancel.clone() }
    }

    /// Waits for output (appended to `buffer`, at most 64 KiB), the end, a cancel, or `deadline`. Output that is there
    /// already when the deadline has passed is returned once, but a child that never stops writing does
    /// not hide the deadline.
    pub(crate) fn read(
        &mut self,
        buffer: &mut Vec<u8>,
        deadline: Option<Instant>,
    ) -> io::Result<Read> {
        loop {
            if self.exit.is_some() {
                return self.read_rest(buffer);
            }
            let now = clock::now();
            let passed = deadline.is_some_and(|deadline| deadline <= now);
            if passed && self.overdue {
                self.overdue = false;
                return Ok(Read::Deadline);
            }
            let bound = self.killed.map(|killed| killed + KILL_PATIENCE);
            let until = deadline.into_iter().chain(bound).min();
            let ready = self.wait(until)?;
            if ready.cancel && self.cancel.read().is_ok() {
                return Ok(Read::Canceled);
            }
            if ready.control {
                self.read_report();
                // What was written before the end comes first, but all of it is found later as well.
                continue;
            }
            let first = self.errors_first;
            for errors in [first, !first] {
                if (if errors { ready.errors } else { ready.output })
                    && let Some(read) = self.read_pipe(errors, buffer)?
                {
                    self.errors_first = !errors;
                    self.overdue = passed;
                    return Ok(read);
                }
            }
            let now = clock::now();
            if bound.is_some_and(|bound| bound <= now) {
                log::error!(target: "process", "a killed process does not end (keeper {})", self.keeper.id());
                self.ended(LOST);
            } else if deadline.is_some_and(|deadline| deadline <= now) {
                self.overdue = false;
                return Ok(Read::Deadline);
            }
        }
    }

    /// SIGTERM to its process group.
    pub(crate) fn terminate(&mut self) {
        self.tell(message::TERMINATE);
    }

    /// SIGKILL to all descendants.
    pub(crate) fn kill(&mut self) {
        if self.killed.is_none() {
            self.killed = Some(clock::now());
            self.tell(message::KILL);
        }
    }

    /// SIGTERM, `grace` for it to go, SIGKILL; reads and drops output; returns how it ended.
    pub(crate) fn stop(mut self, grace: Duration) -> Exit {
        self.terminate();
        if let Some(exit) = self.wait_for_end(Some(clock::now() + grace)) {
            return exit;
        }
        self.kill();
        // `read` itself ends some time after a kill.
        self.wait_for_end(None).unwrap_or(LOST)
    }

    fn wait_for_end(&mut self, deadline: Option<Instant>) -> Option<Exit> {
        let mut buffer = Vec::new();
        loop {
            buffer.clear();
            match self.read(&mut buffer, deadline) {
                Ok(Read::Ended(exit)) => return Some(exit),
                Ok(Read::Deadline) | Err(_) => return None,
                Ok(Read::Output | Read::Errors | Read::Canceled) => {}
            }
        }
    }

    pub(super) fn send_order(&mut self, order: &[u8], fds: &[RawFd]) -> io::Result<()> {
        // The length was checked.
        let length = u32::try_from(order.len()).unwrap_or(u32::MAX).to_le_bytes();
        let rights = [ControlMessage::ScmRights(fds)];
        let (fd, flags) = (self.control.as_raw_fd(), MsgFlags::MSG_NOSIGNAL);
        let sent = loop {
            match sendmsg::<()>(fd, &[IoSlice::new(&length)], &rights, flags, None) {
                Err(Errno::EINTR) => {}
                result => break result?,
            }
        };
        if sent < length.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.control.write_all(order)
    }

    /// One byte to the keeper, which may be gone: then that is what the reader finds.
    fn tell(&mut self, what: u8) {
        let _ = self.control.write_all(&[what]);
    }

    fn wait(&self, until: Option<Instant>) -> io::Result<Ready> {
        let mut fds = vec![
            PollFd::new(self.cancel.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.control.as_fd(), PollFlags::POLLIN),
        ];
        let pipes = [&self.output, &self.errors];
        fds.extend(
            pipes.iter().copied().flatten().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)),
        );
        poll::ready(&mut fds, until)?;
        let mut ready = fds.iter().map(poll::is_ready);
        let mut next = |there: bool| there && ready.next().unwrap_or(false);
        Ok(Ready {
            cancel: next(true),
            control: next(true),
            output: next(self.output.is_some()),
            errors: next(self.errors.is_some()),
        })
    }

    /// Reads what the keeper has to say; its silent end is one, too.
    fn read_report(&mut self) {
        let mut buffer = [0; Report::MAX];
        let lost = match (&self.control).read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            Ok(0) | Err(_) => true,
            Ok(n) => {
                self.report.extend_from_slice(&buffer[..n]);
                match Report::decode(&self.report) {
                    Ok(report) => {
                        if report.lingers {
                            log::error!(target: "process", "descendants of a child do not end (keeper {})", self.keeper.id());
                        } else {
                            self.reap();
                        }
                        return self.ended(report.exit);
                    }
                    Err(error) => error.kind() != io::ErrorKind::UnexpectedEof,
                }
            }
        };
        if lost {
            self.reap();
            self.ended(LOST);
        }
    }

    fn ended(&mut self, exit: Exit) {
        let size = |fd: &OwnedFd| fcntl(fd, FcntlArg::F_GETPIPE_SZ).unwrap_or(0);
        let pipes = [&self.output, &self.errors];
        let sizes = pipes.iter().copied().flatten().map(size);
        self.left = sizes.map(|size| usize::try_from(size).unwrap_or(0)).sum();
        self.exit = Some(exit);
    }

    /// After the end, all there is to read is in the pipes.
    fn read_rest(&mut self, buffer: &mut Vec<u8>) -> io::Result<Read> {
        for errors in [false, true] {
            if self.left > 0
                && let Some(read) = self.read_pipe(errors, buffer)?
            {
                return Ok(read);
            }
        }
        Ok(Read::Ended(self.exit.clone().unwrap_or(LOST)))
    }

    /// Reads one pipe without waiting; `None` if it is empty or at its end.
    fn read_pipe(&mut self, errors: bool, buffer: &mut Vec<u8>) -> io::Result<Option<Read>> {
        let pipe = if errors { &mut self.errors } else { &mut self.output };
        let Some(fd) = pipe else { return Ok(None) };
        let before = buffer.len();
        buffer.resize(before + CHUNK, 0);
        let result = loop {
            match nix::unistd::read(&*fd, &mut buffer[before..]) {
                Err(Errno::EINTR) => {}
                result => break result,
            }
        };
        buffer.truncate(before + result.unwrap_or(0));
        match result {
            Ok(0) => {
                *pipe = None;
                Ok(None)
            }
            Ok(n) => {
                self.left = self.left.saturating_sub(n);
                Ok(Some(if errors { Read::Errors } else { Read::Output }))
            }
            Err(Errno::EAGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for the keeper, which ends at once after its report. One that does not is left behind, and its zombie
    /// with us: that takes a kernel in trouble.
    fn reap(&mut self) {
        if self.reaped {
            return;
        }
        let deadline = clock::now() + KILL_PATIENCE;
        let mut buffer = [0; 64];
        loop {
            let mut fds = [PollFd::new(self.control.as_fd(), PollFlags::POLLIN)];
            match poll::ready(&mut fds, Some(deadline)) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            match (&self.control).read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
        // Its descriptors are closed: only microseconds are missing.
        let _ = self.keeper.wait();
        self.reaped = true;
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.exit.is_none() {
            self.kill();
            self.reap();
        } else if !self.reaped {
            // Collects a keeper that lingered, if it is gone by now.
            let _ = self.keeper.try_wait();
        }
    }
}

/// What `Child::wait` found something on.
struct Ready {
    cancel: bool,
    control: bool,
    output: bool,
    errors: bool,
}
