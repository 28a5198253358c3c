//! The log server: takes the logs of builds from workers and writes them to files as they come.
//!
//! `logs/accept` gives each connection a thread `logs/N`, which blocks on its socket; `logs/stop` wakes the former, which
//! shuts all connections down. A worker's socket does not block: it must be read without ever pausing, so that what is not
//! wanted, not allowed or too long is read and dropped, and an error of the disk costs bytes of the log alone.
//!
//! Invariant: a file is written to by one connection at a time, which came from the address of the worker that the derivation
//! was assigned to.

mod expiry;
mod file;

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{setsockopt, sockopt};

use super::router::{Answer, Handle, Message};
use crate::actor::{Gone, Spawner, Stop};
use crate::proto::remote::log::{GREETING, read_header};
use crate::sys::{clock, poll};
pub(super) use expiry::spawn as spawn_expiry;
use file::Log;
pub(super) use file::create;

/// Logs that are received at once: half of what workers can be here.
const MAX_CONNECTIONS: usize = 1024;

/// Logs of one machine at once: one for each build that it runs.
const MAX_OF_ONE: usize = 256;

/// For the header: workers send it at once, in small pieces.
const HEADER: Duration = Duration::from_secs(10);

/// How long accepting rests when descriptors or memory are short.
const SHORTAGE: Duration = Duration::from_millis(100);

/// Bytes read at once: four times what workers write at once, and small enough for a thread's stack.
const CHUNK: usize = 32 * 1024;

/// Seconds without a byte after which the kernel asks whether the peer is still there, between two questions, and how many.
/// A build may say nothing for hours.
const KEEP_ALIVE: (u32, u32, u32) = (60, 15, 4);

/// The port, bound and not served yet.
pub(super) struct Port(TcpListener);

/// Binds the port for logs; any free one if it is 0.
pub(super) fn bind(port: u16) -> io::Result<Port> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    listener.set_nonblocking(true)?;
    Ok(Port(listener))
}

impl Port {
    pub(super) fn number(&self) -> io::Result<u16> {
        Ok(self.0.local_addr()?.port())
    }

    /// Serves it. A log may have `max_size` bytes, as it comes.
    pub(super) fn spawn(self, threads: &Spawner, router: Handle, max_size: u64) -> io::Result<()> {
        // Its end, when the process stops, wakes the accepting thread.
        let (waker, wakes) = UnixStream::pair()?;
        let (ended, ends) = bounded(MAX_CONNECTIONS);
        let acceptor = Acceptor {
            listener: self.0,
            wakes,
            router,
            max_size,
            threads: threads.clone(),
            streams: HashMap::new(),
            ended,
            ends,
            next: 0,
        };
        threads.essential("logs/accept", move |_| acceptor.run())?;
        let wait = move |stop: Stop| {
            // Nothing is ever sent: this is the disconnection.
            let _ = stop.recv();
            drop(waker);
            Ok::<_, Gone>(())
        };
        threads.child("logs/stop", wait, |report| log::debug!(target: "logs", "{report:?}"))
    }
}

struct Acceptor {
    listener: TcpListener,
    wakes: UnixStream,
    router: Handle,
    max_size: u64,
    threads: Spawner,
    /// For hanging up at the stop; also those that have ended since the last one came.
    streams: HashMap<u64, (Arc<TcpStream>, IpAddr)>,
    ended: Sender<u64>,
    ends: Receiver<u64>,
    next: u64,
}

impl Acceptor {
    fn run(mut self) -> Result<(), Gone> {
        loop {
            match self.listener.accept() {
                Ok((stream, peer)) => self.accepted(stream, peer.ip()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.rest(PollFlags::POLLIN, None)? {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    log::warn!(target: "logs", "cannot accept a connection: {error}");
                    if self.rest(PollFlags::empty(), Some(SHORTAGE))? {
                        break;
                    }
                }
            }
        }
        for (stream, _) in self.streams.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        Ok(())
    }

    /// Waits for `flags` on the listener; true at the stop.
    fn rest(&self, flags: PollFlags, time: Option<Duration>) -> Result<bool, Gone> {
        let mut fds = [
            PollFd::new(self.listener.as_fd(), flags),
            PollFd::new(self.wakes.as_fd(), PollFlags::POLLIN),
        ];
        let deadline = time.map(|time| clock::now() + time);
        poll::ready(&mut fds, deadline).map_err(|_| Gone)?;
        Ok(poll::is_ready(&fds[1]))
    }

    /// Beyond the bound a connection is closed: its worker builds on without a log.
    fn accepted(&mut self, stream: TcpStream, address: IpAddr) {
        for number in self.ends.try_iter() {
            self.streams.remove(&number);
        }
        if self.streams.len() >= MAX_CONNECTIONS {
            log::warn!(target: "logs", "{MAX_CONNECTIONS} logs are being received: one more is not");
            return;
        }
        if self.streams.values().filter(|(_, from)| *from == address).count() >= MAX_OF_ONE {
            log::warn!(target: "logs", "{MAX_OF_ONE} logs come from {address}: one more is not received");
            return;
        }
        let number = self.next;
        self.next += 1;
        let stream = Arc::new(stream);
        let connection = Connection {
            stream: Arc::clone(&stream),
            router: self.router.clone(),
            max_size: self.max_size,
        };
        let (ended, served) = (self.ended.clone(), Arc::clone(&stream));
        let end = move |report| {
            log::debug!(target: "logs", "{report:?}");
            // The other reference keeps it open until the next one comes.
            let _ = served.shutdown(Shutdown::Both);
            // There is room for all that there may be.
            let _ = ended.try_send(number);
        };
        match self.threads.small(&format!("logs/{number}"), move |_| connection.serve(), end) {
            Ok(()) => drop(self.streams.insert(number, (stream, address))),
            Err(error) => log::warn!(target: "logs", "no thread for a log: {error}"),
        }
    }
}

struct Connection {
    stream: Arc<TcpStream>,
    router: Handle,
    max_size: u64,
}

impl Connection {
    fn serve(self) -> Result<(), Gone> {
        let header = self.greet();
        let (derivation, address) = match header {
            Ok(header) => header,
            Err(error) => {
                log::debug!(target: "logs", "no header: {error}");
                return Ok(());
            }
        };
        let permit = match self.router.log(derivation.clone(), address)? {
            Answer::Write(permit) => permit,
            Answer::Drain => {
                log::debug!(target: "logs", "a log from {address} that nobody waits for: {derivation:.300}");
                self.receive(None);
                return Ok(());
            }
            Answer::Close => {
                log::debug!(target: "logs", "a log from {address}, where no worker is: {derivation:.300}");
                return Ok(());
            }
        };
        let log = Log::open(&permit.path, self.max_size);
        let log = log.map_err(|error| {
            log::error!(target: "logs", "cannot write to {}: {error}", permit.path.display());
        });
        self.receive(log.ok());
        self.router.send(Message::LogEnded(permit.of))
    }

    fn greet(&self) -> io::Result<(String, std::net::IpAddr)> {
        self.stream.set_nonblocking(false)?;
        setsockopt(&self.stream, sockopt::KeepAlive, &true)?;
        let (idle, interval, count) = KEEP_ALIVE;
        setsockopt(&self.stream, sockopt::TcpKeepIdle, &idle)?;
        setsockopt(&self.stream, sockopt::TcpKeepInterval, &interval)?;
        setsockopt(&self.stream, sockopt::TcpKeepCount, &count)?;
        let address = self.stream.peer_addr()?.ip();
        // So few bytes fit any socket's buffer.
        (&*self.stream).write_all(GREETING.as_bytes())?;
        let mut reader = Timed { stream: &self.stream, deadline: clock::now() + HEADER };
        let derivation = read_header(&mut reader)?;
        self.stream.set_read_timeout(None)?;
        Ok((derivation, address))
    }

    /// Reads to the end, which also the loss of the connection is.
    fn receive(&self, mut log: Option<Log>) {
        let mut buffer = [0; CHUNK];
        loop {
            match (&*self.stream).read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => {
                    if let Some(log) = &mut log {
                        log.write(&buffer[..length]);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}

/// Reads under a deadline, which a peer that drips bytes cannot push back.
struct Timed<'a> {
    stream: &'a TcpStream,
    deadline: Instant,
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(clock::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        (&mut self.stream).read(buffer)
    }
}
