//! The actor `worker/N`: one worker loop, with the name that the server knows it by and a ZeroMQ socket of its own.
//!
//! It blocks in `zmq_poll` and is woken by what comes from the server, or by a count on an eventfd that goes with each
//! message to its inbox. The socket never leaves its thread. What takes time, building and looking whether a build could
//! begin, is done by a thread of the pool. It ends when its core says so, which a drain or an abort leads to.

use std::os::fd::AsRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fmt, io};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::build::{self, Tools};
use super::core::{Core, Effect, Ended};
use super::room;
use crate::actor::leash::Leash;
use crate::actor::pool::Pool;
use crate::actor::{fault, panic_message};
use crate::proto::remote::{Fault, FromWorker, MAX_PAYLOAD, ToWorker};
use crate::store::Closer;
use crate::sys::clock;

/// One answer of the pool, a drain and an abort.
const INBOX: usize = 4;

/// Between two tries to connect, doubled each time: a server that was away for a moment holds what runs for 10 s.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How long one try may take.
const CONNECT: Duration = Duration::from_secs(5);

/// Of a connection over which nothing else comes, and what must come back: a network that vanished is noticed.
const HEARTBEAT: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(15));

/// How long reports may be on their way when all else has ended.
const LINGER: Duration = Duration::from_secs(30);

/// Messages that are taken before time is looked at again.
const TURN: usize = 16;

/// What a loop hears from its own process.
enum News {
    Checked(Result<(), String>),
    Ended(Ended),
    Drain,
    Abort,
}

/// Tells a loop to stop.
#[derive(Clone)]
pub(super) struct Handle {
    inbox: Sender<News>,
    bell: Arc<EventFd>,
}

impl Handle {
    pub(super) fn drain(&self) {
        self.tell(News::Drain);
    }

    pub(super) fn abort(&self) {
        self.tell(News::Abort);
    }

    fn tell(&self, news: News) {
        // There is room for all that can come; a loop that has ended need not know.
        let _ = self.inbox.try_send(news);
        // Full only after 2^64 calls: then it is awake.
        let _ = self.bell.write(1);
    }
}

/// What all loops share.
#[derive(Clone)]
pub(super) struct Means {
    pub(super) context: zmq::Context,
    /// `tcp://ADDRESS:PORT`.
    pub(super) endpoint: String,
    pub(super) tools: Arc<Tools>,
    /// A thread for each loop.
    pub(super) pool: Pool,
}

/// What broke.
#[derive(Debug)]
pub(super) enum Error {
    Wake(io::Error),
    Socket(zmq::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wake(_) => "cannot be woken",
            Self::Socket(_) => "cannot use a ZeroMQ socket",
        })
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Wake(error) => Some(error),
            Self::Socket(error) => Some(error),
        }
    }
}

impl From<zmq::Error> for Error {
    fn from(error: zmq::Error) -> Self {
        Self::Socket(error)
    }
}

/// A loop that has not begun.
pub(super) struct Dealer {
    core: Core,
    means: Means,
    inbox: Receiver<News>,
    handle: Handle,
}

impl Dealer {
    pub(super) fn new(core: Core, means: Means) -> Result<(Self, Handle), Error> {
        let (sender, inbox) = bounded(INBOX);
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let bell = Arc::new(bell.map_err(|error| Error::Wake(error.into()))?);
        let handle = Handle { inbox: sender, bell };
        Ok((Self { core, means, inbox, handle: handle.clone() }, handle))
    }

    /// Runs to its end, on a thread of its own.
    pub(super) fn run(mut self, name: &str) -> Result<(), Error> {
        let socket = connect(&self.means)?;
        let mut leash = Arc::new(Leash::default());
        let mut obstacle = None;
        let mut out = Vec::new();
        loop {
            fault("worker");
            for effect in std::mem::take(&mut out) {
                match effect {
                    Effect::Say(message) => self.say(&socket, name, &message)?,
                    Effect::Check => self.check(),
                    Effect::Build(build, server) => {
                        log::info!(target: "worker", "{name}: building {} for {}", build.derivation, build.system);
                        leash = Arc::new(Leash::default());
                        self.build(build, server, &leash);
                    }
                    Effect::Cancel => leash.cancel(),
                    Effect::Leave => {
                        leash.cancel();
                        return Ok(());
                    }
                }
            }
            self.wait(&socket)?;
            self.hear(&socket, name, &mut out)?;
            self.take_news(name, &mut obstacle, &mut out);
            let now = clock::now();
            if self.core.due().is_some_and(|due| due <= now) {
                self.core.on_due(now, &mut out);
            }
        }
    }

    fn wait(&self, socket: &zmq::Socket) -> Result<(), Error> {
        let timeout = self.core.due().map_or(-1, |due| milliseconds(clock::now(), due));
        let mut items = [
            socket.as_poll_item(zmq::POLLIN),
            zmq::PollItem::from_fd(self.handle.bell.as_raw_fd(), zmq::POLLIN),
        ];
        match zmq::poll(&mut items, timeout) {
            Ok(_) | Err(zmq::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        // Emptied before the inbox is: what is rung for later rings again.
        let _ = self.handle.bell.read();
        Ok(())
    }

    fn hear(
        &mut self,
        socket: &zmq::Socket,
        name: &str,
        out: &mut Vec<Effect>,
    ) -> Result<(), Error> {
        for _ in 0..TURN {
            let Some(frames) = receive(socket)? else { return Ok(()) };
            match frames {
                Frames::Probe => {
                    log::debug!(target: "worker", "{name}: connected");
                    self.core.on_probe(out);
                }
                Frames::Payload(payload) => match ToWorker::parse(&payload) {
                    Ok(message) => {
                        log::debug!(target: "worker", "{name}: heard {message}");
                        self.core.on_message(clock::now(), message, out);
                    }
                    Err(error) => {
                        log::warn!(target: "worker", "{name}: what the server says is not understood: {error}");
                    }
                },
                Frames::Other => {
                    log::warn!(target: "worker", "{name}: what the server says is not understood: expected an empty frame and a message");
                }
            }
        }
        // There may be more.
        self.handle.bell.write(1).map_or_else(|error| Err(Error::Wake(error.into())), |_| Ok(()))
    }

    fn take_news(&mut self, name: &str, obstacle: &mut Option<String>, out: &mut Vec<Effect>) {
        loop {
            let now = clock::now();
            match self.inbox.try_recv() {
                Ok(News::Checked(result)) => {
                    let found = result.as_ref().err().cloned();
                    if found != *obstacle {
                        match &found {
                            Some(why) => {
                                log::warn!(target: "worker", "{name}: asks for no work: {why}")
                            }
                            None => log::info!(target: "worker", "{name}: asks for work again"),
                        }
                        *obstacle = found;
                    }
                    self.core.on_checked(now, result, out);
                }
                Ok(News::Ended(ended)) => {
                    match &ended {
                        Ended::Succeeded => log::info!(target: "worker", "{name}: built"),
                        Ended::Failed(fault, why) => {
                            log::info!(target: "worker", "{name}: {}: {why}", fault.word());
                        }
                        Ended::Interrupted => log::info!(target: "worker", "{name}: given up"),
                    }
                    self.core.on_ended(now, ended, out);
                }
                Ok(News::Drain) => self.core.drain(now, out),
                Ok(News::Abort) => self.core.abort(now, out),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return,
            }
        }
    }

    /// Sends a message, if there is a connection.
    fn say(&mut self, socket: &zmq::Socket, name: &str, message: &FromWorker) -> Result<(), Error> {
        let text = message.to_string();
        match socket.send_multipart([&b""[..], text.as_bytes()], zmq::DONTWAIT) {
            Ok(()) => log::debug!(target: "worker", "{name}: said {text}"),
            Err(zmq::Error::EAGAIN) => {
                log::debug!(target: "worker", "{name}: the server is away");
                self.core.on_cut();
            }
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn check(&self) {
        let (tools, handle) = (Arc::clone(&self.means.tools), self.handle.clone());
        // Refused, the process is stopping.
        let _ = self.means.pool.run(move || {
            let check = AssertUnwindSafe(|| room::check(&tools));
            let result = catch_unwind(check).unwrap_or_else(|payload| {
                Err(format!("internal error: {}", panic_message(payload.as_ref())))
            });
            handle.tell(News::Checked(result));
        });
    }

    fn build(
        &self,
        build: crate::proto::remote::Build,
        server: super::core::Server,
        leash: &Arc<Leash<Closer>>,
    ) {
        let (tools, handle) = (Arc::clone(&self.means.tools), self.handle.clone());
        let leash = Arc::clone(leash);
        let _ = self.means.pool.run(move || {
            let run = AssertUnwindSafe(|| {
                fault("build");
                build::run(&tools, &build, &server, &leash)
            });
            let ended = catch_unwind(run).unwrap_or_else(|payload| {
                let text = panic_message(payload.as_ref());
                log::error!(target: "worker", "the build of {} panicked: {text}", build.derivation);
                Ended::Failed(Fault::Aborted, format!("internal error: {text}"))
            });
            handle.tell(News::Ended(ended));
        });
    }
}

/// Milliseconds from `now` to `due`, rounded up lest the last one is spent spinning.
fn milliseconds(now: Instant, due: Instant) -> i64 {
    let left = due.saturating_duration_since(now).as_micros().div_ceil(1000);
    i64::try_from(left).unwrap_or(i64::MAX)
}

fn connect(means: &Means) -> Result<zmq::Socket, Error> {
    let in_milliseconds = |time: Duration| i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
    let socket = means.context.socket(zmq::DEALER)?;
    socket.set_ipv6(true)?;
    // Nothing waits for a connection that is not there: what a new one has to say first depends on what was said before.
    socket.set_immediate(true)?;
    socket.set_maxmsgsize(i64::try_from(MAX_PAYLOAD).unwrap_or(i64::MAX))?;
    socket.set_reconnect_ivl(in_milliseconds(RECONNECT.0))?;
    socket.set_reconnect_ivl_max(in_milliseconds(RECONNECT.1))?;
    socket.set_connect_timeout(in_milliseconds(CONNECT))?;
    socket.set_heartbeat_ivl(in_milliseconds(HEARTBEAT.0))?;
    socket.set_heartbeat_timeout(in_milliseconds(HEARTBEAT.1))?;
    socket.set_linger(in_milliseconds(LINGER))?;
    socket.connect(&means.endpoint)?;
    Ok(socket)
}

/// A message, as far as a worker looks at it.
enum Frames {
    /// One frame, and that empty.
    Probe,
    /// An empty frame, and this one.
    Payload(Vec<u8>),
    Other,
}

fn receive(socket: &zmq::Socket) -> Result<Option<Frames>, Error> {
    let (mut frames, mut count) = ([Vec::new(), Vec::new()], 0);
    loop {
        let frame = match socket.recv_bytes(zmq::DONTWAIT) {
            Ok(frame) => frame,
            Err(zmq::Error::EAGAIN) => return Ok(None),
            Err(zmq::Error::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        // What is more than expected is not kept.
        if let Some(place) = frames.get_mut(count) {
            *place = frame;
        }
        count += 1;
        if !socket.get_rcvmore()? {
            break;
        }
    }
    let [first, second] = frames;
    Ok(Some(match count {
        1 if first.is_empty() => Frames::Probe,
        2 if first.is_empty() => Frames::Payload(second),
        _ => Frames::Other,
    }))
}
