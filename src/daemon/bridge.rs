//! The bridge: a Unix-socket server of control requests.
//!
//! The actor `bridge` owns the places that connections hold and decides who gets one; it blocks on nothing but
//! its inbox. `bridge/accept` turns connections into messages, `bridge/N` serves one of them, `bridge/refuse`
//! answers those for whom there is no place.
//!
//! Invariant: whatever peers do, the actor is ready for the next message, and no more than `max_connections`
//! of them are served.

mod change;
mod connection;
mod follow;
mod live;
mod places;
mod refuse;
mod show;

use std::collections::BTreeMap;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, select};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::actor::{self, Ended, Gone, Spawner, Stop};
use crate::control::Control;
use crate::sys::{clock, socket};
use connection::Connection;
pub(crate) use live::{Facts, Order, Ports};
use places::{Admission, Number, Permit, Places};
use refuse::Refuser;

/// Messages that may wait: one or two of every connection, in the usual configuration.
const INBOX: usize = 128;

/// How long accepting rests when descriptors or memory are short: until then a connection may have ended.
const SHORTAGE: Duration = Duration::from_millis(100);

/// Makes what performs the requests of one connection, for a peer with this uid.
type Opener = dyn Fn(u32) -> Box<dyn Control> + Send + Sync;

enum Message {
    Accepted { stream: UnixStream, uid: u32 },
    Begin { number: Number, long: bool, reply: Sender<Permit> },
    Idle(Number),
    Closed(Number),
}

/// Where the bridge listens and for how many.
pub(crate) struct Options {
    pub(crate) socket: PathBuf,
    /// The socket's group; the daemon's own if none.
    pub(crate) group: Option<u32>,
    pub(crate) max_connections: usize,
}

/// Binds the socket (under the state lock, which the caller holds) and starts the actor and its threads.
pub(crate) fn spawn(threads: &Spawner, options: Options, ports: Ports) -> io::Result<()> {
    let stop = threads.stop();
    let ports = Arc::new(ports);
    let open = move |uid| -> Box<dyn Control> {
        Box::new(live::Live::new(Arc::clone(&ports), stop.clone(), uid))
    };
    serve(threads, options, Arc::new(open))
}

fn serve(threads: &Spawner, options: Options, open: Arc<Opener>) -> io::Result<()> {
    let listener = socket::bind(&options.socket, options.group)?;
    let group = std::fs::metadata(&options.socket)?.gid();
    let identity = socket::identity(&options.socket)?;
    listener.set_nonblocking(true)?;
    let (inbox, requests) = bounded(INBOX);
    // Its end, when the actor ends, wakes the accepting thread.
    let (waker, wakes) = UnixStream::pair()?;
    let acceptor = Acceptor { listener, wakes, group, actor: inbox.clone() };
    threads.essential("bridge/accept", move |_| acceptor.run())?;
    let bridge = Bridge {
        places: Places::new(options.max_connections),
        streams: BTreeMap::new(),
        refuser: Refuser::spawn(threads)?,
        open,
        inbox,
        threads: threads.clone(),
    };
    threads.essential("bridge", move |stop| {
        let end = bridge.run(&requests, &stop);
        drop(waker);
        // Gone already, or somebody else's: then it is as it should be.
        let _ = socket::remove(&options.socket, &identity);
        end
    })
}

struct Bridge {
    places: Places,
    /// For hanging up.
    streams: BTreeMap<Number, Arc<UnixStream>>,
    refuser: Refuser,
    open: Arc<Opener>,
    inbox: Sender<Message>,
    threads: Spawner,
}

impl Bridge {
    fn run(mut self, requests: &Receiver<Message>, stop: &Stop) -> Result<(), Gone> {
        loop {
            select! {
                recv(stop) -> _ => break,
                recv(requests) -> message => {
                    actor::fault("bridge");
                    self.on_message(message?);
                }
            }
        }
        // Those that wait for a request wake up and end; answers under way are cut off.
        for stream in self.streams.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        Ok(())
    }

    fn on_message(&mut self, message: Message) {
        match message {
            Message::Accepted { stream, uid } => match self.places.admit(clock::now()) {
                Admission::Serve(number) => self.start(number, stream, uid),
                Admission::ServeInsteadOf(number, old) => {
                    if let Some(stream) = self.streams.remove(&old) {
                        let _ = stream.shutdown(Shutdown::Both);
                    }
                    self.start(number, stream, uid);
                }
                Admission::Refuse => self.refuser.refuse(stream),
            },
            Message::Begin { number, long, reply } => {
                // The connection may have ended meanwhile.
                let _ = reply.send(self.places.begin(number, long));
            }
            Message::Idle(number) => self.places.idle(number, clock::now()),
            Message::Closed(number) => {
                self.places.closed(number);
                self.streams.remove(&number);
            }
        }
    }

    fn start(&mut self, number: Number, stream: UnixStream, uid: u32) {
        let stream = Arc::new(stream);
        let connection = Connection {
            number,
            stream: Arc::clone(&stream),
            actor: self.inbox.clone(),
            threads: self.threads.clone(),
        };
        let (open, inbox) = (Arc::clone(&self.open), self.inbox.clone());
        let ended = move |report: actor::Report| {
            if let Ended::Panicked(text) = report.ended {
                log::error!(target: "bridge", "a request panicked in {}: {text}", report.name);
            }
            // Only a stopping daemon has no bridge any more.
            let _ = inbox.send(Message::Closed(number));
        };
        let body = move |_| connection.serve(&*open, uid);
        match self.threads.child(&format!("bridge/{number}"), body, ended) {
            Ok(()) => drop(self.streams.insert(number, stream)),
            Err(error) => {
                log::warn!(target: "bridge", "no thread for a connection: {error}");
                refuse::answer(&stream, false);
                self.places.closed(number);
            }
        }
    }
}

/// Blocks in `poll` on the listener; the end of `wakes` wakes it.
struct Acceptor {
    listener: UnixListener,
    wakes: UnixStream,
    group: u32,
    actor: Sender<Message>,
}

impl Acceptor {
    fn run(self) -> Result<(), Gone> {
        let own = nix::unistd::geteuid().as_raw();
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => self.accepted(stream, own)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.wait(PollFlags::POLLIN, PollTimeout::NONE)? {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    log::warn!(target: "bridge", "cannot accept a connection: {error}");
                    let rest = PollTimeout::try_from(SHORTAGE).unwrap_or(PollTimeout::ZERO);
                    if self.wait(PollFlags::empty(), rest)? {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn accepted(&self, stream: UnixStream, own: u32) -> Result<(), Gone> {
        let peer = match socket::peer(&stream) {
            Ok(peer) => peer,
            Err(error) => {
                log::warn!(target: "bridge", "a peer without credentials: {error}");
                return Ok(());
            }
        };
        let in_group = peer.gid == self.group || peer.groups.contains(&self.group);
        if peer.uid != 0 && peer.uid != own && !in_group {
            log::warn!(target: "bridge", "uid {} may not use the bridge", peer.uid);
            return Ok(());
        }
        if stream.set_nonblocking(false).is_err() {
            return Ok(());
        }
        Ok(self.actor.send(Message::Accepted { stream, uid: peer.uid })?)
    }

    /// Waits for `flags` on the listener; true if the actor has ended.
    fn wait(&self, flags: PollFlags, timeout: PollTimeout) -> Result<bool, Gone> {
        let mut fds = [
            PollFd::new(self.listener.as_fd(), flags),
            PollFd::new(self.wakes.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return Err(Gone),
        }
        Ok(fds[1].any().unwrap_or(true))
    }
}

#[cfg(test)]
mod tests;
