//! The control socket: accepts, reads requests, writes what the router has for each client.
//!
//! `control/accept` gives each connection two threads: `control/N` reads and blocks on the socket, `control/N/out` writes
//! and blocks on what the router hands over. Both are woken by `shutdown(2)` on the stream. The accepting thread blocks in
//! `poll`; `control/stop` wakes it.
//!
//! Invariant: whatever a client does, it costs its own place. Who neither listens nor is attached has a time for each
//! request, so that places do not stay taken.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use nix::poll::{PollFd, PollFlags};

use super::desk::{BACKLOG, Number};
use super::router::{Handle, Message};
use crate::actor::{Gone, Spawner, Stop};
use crate::control::timed::Timed;
use crate::proto::control::{Failure, FailureKind};
use crate::proto::line::{Line, Lines, MAX_REQUEST};
use crate::proto::remote::link::Command;
use crate::sys::socket::Identity;
use crate::sys::{clock, poll, socket};

/// Clients at once: the daemon, and people and scripts that look.
const MAX_CLIENTS: usize = 64;

/// For each request of a client that does not listen.
const REQUEST: Duration = Duration::from_secs(10);

/// A client that takes no byte for this long is hung up on.
const WRITE_STALL: Duration = Duration::from_secs(10);

/// How long accepting rests when descriptors or memory are short.
const SHORTAGE: Duration = Duration::from_millis(100);

/// Bytes that are written at once, if there are so many.
const BUFFER: usize = 64 * 1024;

/// The socket, bound and not served yet.
pub(super) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    identity: Identity,
    /// Whose members may use it.
    group: u32,
}

/// Binds the socket under the lock, which the caller holds.
pub(super) fn bind(path: &Path, group: Option<u32>) -> io::Result<Socket> {
    let listener = socket::bind(path, group)?;
    listener.set_nonblocking(true)?;
    let group = std::fs::metadata(path)?.gid();
    Ok(Socket { listener, path: path.to_owned(), identity: socket::identity(path)?, group })
}

/// Serves the socket, and removes it at the end.
pub(super) fn spawn(threads: &Spawner, socket: Socket, router: Handle) -> io::Result<()> {
    // Its end, when the process stops, wakes the accepting thread.
    let (waker, wakes) = UnixStream::pair()?;
    let acceptor = Acceptor {
        socket,
        wakes,
        router,
        threads: threads.clone(),
        places: Arc::new(AtomicUsize::new(0)),
        next: 0,
    };
    threads.essential("control/accept", move |_| acceptor.run())?;
    let wait = move |stop: Stop| {
        // Nothing is ever sent: this is the disconnection.
        let _ = stop.recv();
        drop(waker);
        Ok::<_, Gone>(())
    };
    threads.child("control/stop", wait, |report| log::debug!(target: "control", "{report:?}"))
}

struct Acceptor {
    socket: Socket,
    wakes: UnixStream,
    router: Handle,
    threads: Spawner,
    /// Places taken.
    places: Arc<AtomicUsize>,
    next: Number,
}

impl Acceptor {
    fn run(mut self) -> Result<(), Gone> {
        let own = nix::unistd::geteuid().as_raw();
        loop {
            match self.socket.listener.accept() {
                Ok((stream, _)) => self.accepted(stream, own),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.rest(PollFlags::POLLIN, None)? {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    log::warn!(target: "control", "cannot accept a connection: {error}");
                    if self.rest(PollFlags::empty(), Some(SHORTAGE))? {
                        break;
                    }
                }
            }
        }
        // Gone already, somebody else's, or in a directory that is not ours: then it is as it should be.
        let _ = socket::remove(&self.socket.path, &self.socket.identity);
        Ok(())
    }

    /// Waits for `flags` on the listener; true at the stop.
    fn rest(&self, flags: PollFlags, time: Option<Duration>) -> Result<bool, Gone> {
        let mut fds = [
            PollFd::new(self.socket.listener.as_fd(), flags),
            PollFd::new(self.wakes.as_fd(), PollFlags::POLLIN),
        ];
        let deadline = time.map(|time| clock::now() + time);
        poll::ready(&mut fds, deadline).map_err(|_| Gone)?;
        Ok(poll::is_ready(&fds[1]))
    }

    fn accepted(&mut self, stream: UnixStream, own: u32) {
        let peer = match socket::peer(&stream) {
            Ok(peer) => peer,
            Err(error) => {
                log::warn!(target: "control", "a peer without credentials: {error}");
                return;
            }
        };
        let in_group = peer.gid == self.socket.group || peer.groups.contains(&self.socket.group);
        if peer.uid != 0 && peer.uid != own && !in_group {
            log::warn!(target: "control", "uid {} may not use the socket", peer.uid);
            return;
        }
        let refused = if self.places.fetch_add(1, Ordering::AcqRel) >= MAX_CLIENTS {
            Err(io::Error::other("all connections are taken"))
        } else {
            self.start(&stream, peer.pid)
        };
        if let Err(error) = refused {
            log::warn!(target: "control", "process {} is not served: {error}", peer.pid);
            self.places.fetch_sub(1, Ordering::AcqRel);
            let failure =
                Failure::new(FailureKind::Unavailable, "all connections are taken; try again");
            // So short a line fits any socket's buffer; a peer that has gone does not matter.
            let _ = stream.set_nonblocking(true);
            let _ = (&stream).write_all(format!("{failure}\n").as_bytes());
        }
    }

    fn start(&mut self, stream: &UnixStream, pid: i32) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(WRITE_STALL))?;
        let stream = Arc::new(stream.try_clone()?);
        let number = self.next;
        self.next += 1;
        let (lines, unwritten) = bounded(BACKLOG);
        let writer = Arc::clone(&stream);
        let quiet = |report| log::debug!(target: "control", "{report:?}");
        let write = move |_| write(&writer, &unwritten);
        self.threads.small(&format!("control/{number}/out"), write, quiet)?;
        let (router, places) = (self.router.clone(), Arc::clone(&self.places));
        let reader = Reader { number, stream, router: router.clone() };
        let ended = move |report| {
            log::debug!(target: "control", "{report:?}");
            places.fetch_sub(1, Ordering::AcqRel);
            // Only a stopping process has no router any more.
            let _ = router.send(Message::Closed(number));
        };
        self.threads.small(&format!("control/{number}"), move |_| reader.run(lines, pid), ended)
    }
}

/// Writes what the router hands over, until it has nothing for this client any more; then nobody hears it, either.
fn write(stream: &UnixStream, unwritten: &Receiver<String>) -> io::Result<()> {
    let mut result = Ok(());
    while let Ok(mut text) = unwritten.recv() {
        while text.len() < BUFFER
            && let Ok(next) = unwritten.try_recv()
        {
            text.push_str(&next);
        }
        result = (&*stream).write_all(text.as_bytes());
        if result.is_err() {
            break;
        }
    }
    let _ = stream.shutdown(std::net::Shutdown::Both);
    result
}

struct Reader {
    number: Number,
    stream: Arc<UnixStream>,
    router: Handle,
}

impl Reader {
    fn run(self, lines: Sender<String>, pid: i32) -> io::Result<()> {
        let gone = |Gone| io::Error::other("the router has ended");
        let stream = Arc::clone(&self.stream);
        self.router
            .send(Message::Opened { number: self.number, stream, lines, pid })
            .map_err(gone)?;
        let mut requests = Lines::new(Timed::new(Arc::clone(&self.stream)), MAX_REQUEST);
        let (mut listens, mut attached, mut unheard) = (false, false, false);
        loop {
            // One wake-up does for all requests that came together.
            if unheard && !requests.has_line() {
                self.router.wake();
                unheard = false;
            }
            let limit = (!listens).then(|| clock::now() + REQUEST);
            requests.get_mut().set_deadline(limit);
            let command = match requests.read()? {
                Line::Text(line) if line.trim().is_empty() => continue,
                Line::Text(line) => Command::parse(&line),
                Line::TooLong => {
                    Err(Failure::syntax(format!("expected at most {MAX_REQUEST} bytes a line")))
                }
                Line::NotUtf8 => Err(Failure::syntax("expected UTF-8")),
                Line::End if listens && !attached => return self.wait(),
                Line::End => return Ok(()),
            };
            attached |= command == Ok(Command::Attach);
            listens |= attached || command == Ok(Command::Subscribe);
            let said = Message::Said { number: self.number, command };
            self.router.send_unheard(said).map_err(gone)?;
            unheard = true;
        }
    }

    /// A listener that has nothing more to say goes on until it has closed both ways.
    fn wait(&self) -> io::Result<()> {
        // No events asked for: only hang-ups and errors end the wait.
        poll::ready(&mut [PollFd::new(self.stream.as_fd(), PollFlags::empty())], None)?;
        Ok(())
    }
}
