//! What stands between clients and tiny_http, which bounds nothing: not connections, for each of which it starts a
//! thread, not heads, not waits, and which accepts no more after one error.
//!
//! One thread, `gate`, owns the sockets that the world sees, and never blocks but for all of them at once. It reads
//! each request whole, checks it, writes it anew and passes it on over one of few connections to a private Unix socket;
//! the answer it takes as fast as it comes, within a bound, and gives as slowly as the client will have it.
//!
//! Invariants: a client that sends or takes slowly holds nothing but its own buffers; what tiny_http reads has one
//! meaning; whoever has asked nothing yet gives way when places run out. Memory is bounded: a head and [`ROOM`] of
//! answer each, and [`BODIES`] for all bodies together.
//!
//! It is woken by descriptors alone: `gate/stop` waits for the stop and writes to one.

mod answer;
mod chunks;
mod client;
mod head;
mod places;
mod private;
mod relay;
mod slab;

use std::collections::{BinaryHeap, VecDeque};
use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{cmp::Reverse, mem};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::context::Shared;
use super::date;
use crate::actor::{Gone, Spawner};
use crate::sys::clock;
use client::{Client, State};
use head::Refusal;
pub(super) use places::Limits;
use places::{Full, PER_ADDRESS, Places};
pub(super) use private::Directory;
use private::Private;
use relay::Upstream;
use slab::{Key, Slab};

/// Headers between the gate and the workers; nobody else's come through.
pub(super) const PREFIX: &[u8] = b"x-gorget-gate-";
/// Who is at the other end.
pub(super) const PEER: &str = "x-gorget-gate-peer";
/// That it came by HTTPS.
pub(super) const SECURE: &str = "x-gorget-gate-secure";
/// That nothing tells of a proxy on the way here.
pub(super) const DIRECT: &str = "x-gorget-gate-direct";
/// How long a body is that comes in chunks.
pub(super) const LENGTH: &str = "x-gorget-gate-length";

/// The longest body that the gate takes in whole, whether the client reads or not.
pub(super) const TAKEN: usize = 64 * 1024;

/// What is kept for a client before it takes some: such a body and its head, then as much again in one read at most.
const ROOM: usize = TAKEN + 16 * 1024;

/// As `ROOM`, of an answer that a thread of its own writes, which may wait: a thousand readers hold as much each.
const STREAM_ROOM: usize = 16 * 1024;

/// All bodies of requests together, while they are read or wait: sixty-four of the longest.
const BODIES: usize = 64 * 1024 * 1024;

/// Once a stop is asked for, what is being answered has this long.
const GRACE: Duration = Duration::from_secs(4);

/// For descriptors to become free when there were none.
const PAUSE: Duration = Duration::from_millis(100);

/// Every connection's deadline is looked at at least this often; none is shorter when it is set, but for those of
/// connections that are closing, which are put down at once.
const LOOK: Duration = Duration::from_secs(10);

/// Handled between two looks at the clock.
const EVENTS: usize = 256;

/// Heard before one of them is hung up on.
const HEARD: usize = 16;

/// Accepted at once, before others get their turn.
const ACCEPTED: usize = 64;

/// What is read from a socket at once.
const SCRATCH: usize = 64 * 1024;

/// What an event is about is in a key's two highest bits.
const KIND: u32 = 62;
const CLIENT: u64 = 0;
const UPSTREAM: u64 = 1;
const LISTENER: u64 = 2;
const WAKE: u64 = 3;

/// Both directions and the other's end, told once each time something changes.
const EDGES: EpollFlags = EpollFlags::EPOLLIN
    .union(EpollFlags::EPOLLOUT)
    .union(EpollFlags::EPOLLRDHUP)
    .union(EpollFlags::EPOLLET);

/// Starts to serve what `listeners` accept.
pub(super) fn spawn(
    threads: &Spawner,
    listeners: Vec<TcpListener>,
    shared: &Arc<Shared>,
    limits: Limits,
) -> io::Result<()> {
    let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
    let private = Private::start(threads, shared, limits.streams)?;
    let gate = Gate::new(listeners, Arc::clone(&wake), shared, private, limits)?;
    threads.child(
        "gate/stop",
        move |stop| -> Result<(), Gone> {
            // Nothing is ever sent: this is the stop.
            let _ = stop.recv();
            if let Err(error) = wake.write(1) {
                log::error!(target: "web", "cannot wake the gate: {error}");
            }
            Ok(())
        },
        |_| {},
    )?;
    threads.essential("gate", move |_| gate.run())
}

struct Gate {
    epoll: Epoll,
    listeners: Vec<TcpListener>,
    wake: Arc<EventFd>,
    shared: Arc<Shared>,
    private: Private,
    clients: Slab<Client>,
    upstreams: Slab<Upstream>,
    /// Connections to tiny_http that answer nobody, the one used last at the end.
    idle: Vec<Key>,
    /// The connection that is being opened.
    opening: Option<Key>,
    /// Of answers that are waited for.
    ahead: Places,
    /// Whose requests wait for one of those to come.
    waiting: VecDeque<Key>,
    /// Clients that could go on at once, had others not to get their turn.
    again: Vec<Key>,
    /// When to look at which client; one entry each, and another one for those that are closing.
    looks: BinaryHeap<Reverse<(Instant, Key)>>,
    places: Places,
    /// Bytes of bodies.
    bodies: usize,
    /// Until then nothing is accepted, as there are no descriptors.
    paused: Option<Instant>,
    /// When it was last told that there were none.
    told: Option<Instant>,
    /// Until then no connection to tiny_http is tried, as one failed.
    retry: Option<Instant>,
    /// When the grace ends.
    stopping: Option<Instant>,
    now: Instant,
    scratch: Vec<u8>,
}

impl Gate {
    fn new(
        listeners: Vec<TcpListener>,
        wake: Arc<EventFd>,
        shared: &Arc<Shared>,
        private: Private,
        limits: Limits,
    ) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&*wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE << KIND))?;
        for listener in &listeners {
            listener.set_nonblocking(true)?;
        }
        let gate = Self {
            epoll,
            listeners,
            wake,
            shared: Arc::clone(shared),
            private,
            clients: Slab::new(),
            upstreams: Slab::new(),
            idle: Vec::new(),
            opening: None,
            ahead: Places::new(relay::AHEAD, relay::EACH),
            waiting: VecDeque::new(),
            again: Vec::new(),
            looks: BinaryHeap::new(),
            places: Places::new(limits.connections, PER_ADDRESS),
            bodies: 0,
            paused: None,
            told: None,
            retry: None,
            stopping: None,
            now: clock::now(),
            scratch: vec![0; SCRATCH],
        };
        gate.listen()?;
        Ok(gate)
    }

    fn listen(&self) -> io::Result<()> {
        for (number, listener) in self.listeners.iter().enumerate() {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, LISTENER << KIND | number as u64);
            self.epoll.add(listener, event)?;
        }
        Ok(())
    }

    fn run(mut self) -> io::Result<()> {
        self.dispatch();
        let mut events = vec![EpollEvent::empty(); EVENTS];
        loop {
            let count = match self.epoll.wait(&mut events, self.timeout()) {
                Ok(count) => count,
                Err(Errno::EINTR) => 0,
                Err(error) => {
                    log::error!(target: "web", "cannot wait for connections: {error}");
                    return Err(error.into());
                }
            };
            crate::actor::fault("gate");
            self.now = clock::now();
            for event in &events[..count] {
                let (kind, key, flags) =
                    (event.data() >> KIND, event.data() & !(3 << KIND), event.events());
                match kind {
                    CLIENT => self.on_client(key, flags),
                    UPSTREAM => self.on_upstream(key, flags),
                    LISTENER => self.accept(usize::try_from(key).unwrap_or(usize::MAX)),
                    _ => self.stop(),
                }
            }
            for key in mem::take(&mut self.again) {
                self.advance(key);
            }
            self.look();
            self.dispatch();
            if let Some(end) = self.stopping
                && (self.clients.len() == 0 || self.now >= end)
            {
                if self.clients.len() > 0 {
                    log::info!(target: "web", "{} connections are cut off", self.clients.len());
                }
                return Ok(());
            }
        }
    }

    /// Until something has to be done whatever happens.
    fn timeout(&self) -> EpollTimeout {
        if !self.again.is_empty() {
            return EpollTimeout::ZERO;
        }
        let look = self.looks.peek().map(|Reverse((at, _))| *at);
        let Some(next) = [look, self.paused, self.retry, self.stopping].into_iter().flatten().min()
        else {
            return EpollTimeout::NONE;
        };
        // Rounded up, lest the last millisecond is spent spinning.
        let millis = next.saturating_duration_since(self.now).as_micros().div_ceil(1000);
        i32::try_from(millis)
            .ok()
            .and_then(|m| EpollTimeout::try_from(m).ok())
            .unwrap_or(EpollTimeout::MAX)
    }

    fn stop(&mut self) {
        if self.stopping.is_some() {
            return;
        }
        self.stopping = Some(self.now + GRACE);
        // The descriptor stays readable.
        if let Err(error) = self.epoll.delete(&*self.wake) {
            log::debug!(target: "web", "cannot forget what woke the gate: {error}");
        }
        self.listeners.clear();
        let idle: Vec<_> =
            self.clients.iter().filter(|(_, c)| c.is_idle()).map(|(key, _)| key).collect();
        for key in idle {
            self.drop_client(key);
        }
    }

    fn accept(&mut self, number: usize) {
        if self.paused.is_some() {
            return;
        }
        for _ in 0..ACCEPTED {
            let Some(listener) = self.listeners.get(number) else { return };
            match listener.accept() {
                Ok((stream, address)) => self.admit(stream, address.ip().to_canonical()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if is_exhausted(&error) => {
                    self.tell(&error);
                    // Whoever has asked nothing yet gives way; otherwise the newcomer waits in the kernel's queue.
                    if !self.evict(None) && !self.shed() {
                        return self.pause();
                    }
                }
                // Whoever it was has gone.
                Err(error) => log::debug!(target: "web", "cannot accept: {error}"),
            }
        }
    }

    /// Accepts nothing for a moment.
    fn pause(&mut self) {
        for listener in &self.listeners {
            if let Err(error) = self.epoll.delete(listener) {
                log::debug!(target: "web", "cannot pause: {error}");
            }
        }
        self.paused = Some(self.now + PAUSE);
    }

    /// Says that descriptors are missing, once in a while.
    fn tell(&mut self, error: &io::Error) {
        if self.told.is_none_or(|told| told + LOOK <= self.now) {
            self.told = Some(self.now);
            log::warn!(target: "web", "{error}: connections that have asked nothing give way");
        }
    }

    fn admit(&mut self, stream: TcpStream, address: IpAddr) {
        let group = Places::group(address, &self.shared.config.parameters.trusted_proxies);
        if let Err(full) = self.places.take(group) {
            let among = match full {
                Full::All => None,
                Full::Group(group) => Some(group),
            };
            if !self.evict(among) || self.places.take(group).is_err() {
                log::debug!(target: "web", "no place for {address}");
                let busy =
                    Refusal { status: 503, why: "there are too many connections; try again soon" };
                // It is new: its socket takes this at once, or it is not worth waiting for.
                let _ = stream
                    .set_nonblocking(true)
                    .and_then(|()| (&stream).write_all(&answer_of(busy, false)));
                return;
            }
        }
        let ready = stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true));
        let key = self.clients.insert(Client::new(stream, address, group, self.now));
        let added = self.clients.get(key).map(|client| {
            self.epoll.add(&client.stream, EpollEvent::new(EDGES, CLIENT << KIND | key))
        });
        if let Err(error) = ready.and(added.unwrap_or(Ok(())).map_err(Into::into)) {
            log::debug!(target: "web", "cannot serve {address}: {error}");
            self.drop_client(key);
            return;
        }
        self.looks.push(Reverse((self.now + LOOK, key)));
        // Under load, what it asks is there already.
        self.advance(key);
    }

    /// Hangs up on the one that has asked nothing for longest; whether there was one.
    fn evict(&mut self, group: Option<IpAddr>) -> bool {
        // Some may have asked a moment ago, and not been heard yet.
        for _ in 0..HEARD {
            let eligible = self.clients.iter().filter(|(_, client)| {
                client.is_dispensable() && (group.is_none() || client.group == group)
            });
            let oldest = eligible.min_by_key(|(_, client)| client.since).map(|(key, _)| key);
            let Some(oldest) = oldest else { return false };
            if let Some(client) = self.clients.get_mut(oldest) {
                client.readable = true;
            }
            self.advance(oldest);
            match self.clients.get(oldest) {
                Some(client) if client.is_dispensable() => {
                    self.drop_client(oldest);
                    return true;
                }
                Some(_) => {}
                None => return true,
            }
        }
        false
    }

    /// Does what is due by the clock.
    fn look(&mut self) {
        if self.paused.is_some_and(|until| until <= self.now) {
            self.paused = None;
            if let Err(error) = self.listen() {
                log::error!(target: "web", "cannot listen again: {error}");
            }
        }
        self.retry = self.retry.filter(|until| *until > self.now);
        while let Some(&Reverse((at, key))) = self.looks.peek() {
            if at > self.now {
                return;
            }
            self.looks.pop();
            let Some(client) = self.clients.get(key) else { continue };
            let deadline = client.deadline();
            match deadline {
                Some(deadline) if deadline <= self.now => match client.late() {
                    Some(refusal) => {
                        self.refuse(key, refusal);
                        self.advance(key);
                    }
                    None => self.drop_client(key),
                },
                _ => {
                    let next = self.now + LOOK;
                    self.looks
                        .push(Reverse((deadline.map_or(next, |deadline| deadline.min(next)), key)));
                }
            }
        }
    }

    /// Answers by ourselves, and hangs up after that.
    fn refuse(&mut self, key: Key, refusal: Refusal) {
        let Some(client) = self.clients.get_mut(key) else { return };
        log::debug!(target: "web", "refused {}: {}", client.address, refusal.why);
        let is_head = matches!(&client.state,
            State::Waiting(order) | State::Answering { order, .. } if order.is_head);
        let left = match mem::replace(&mut client.state, State::Closing(0)) {
            State::Answering { upstream, .. } => Some(upstream),
            State::Waiting(_) => {
                self.waiting.retain(|waiting| *waiting != key);
                None
            }
            State::Head(_) | State::Body(_) | State::Closing(_) => None,
        };
        (client.since, client.moved) = (self.now, self.now);
        client.output.push(&answer_of(refusal, is_head));
        self.release(key);
        self.close_soon(key);
        if let Some(upstream) = left {
            self.abandon(upstream);
        }
    }

    /// Looks after a client that is to go.
    fn close_soon(&mut self, key: Key) {
        if let Some(deadline) = self.clients.get(key).and_then(Client::deadline) {
            self.looks.push(Reverse((deadline, key)));
        }
    }

    fn drop_client(&mut self, key: Key) {
        self.release(key);
        let Some(client) = self.clients.remove(key) else { return };
        self.places.give_back(client.group);
        match client.state {
            State::Answering { upstream, .. } => self.abandon(upstream),
            State::Waiting(_) => self.waiting.retain(|waiting| *waiting != key),
            State::Head(_) | State::Body(_) | State::Closing(_) => {}
        }
    }

    /// Gives back what a body counted for.
    fn release(&mut self, key: Key) {
        if let Some(client) = self.clients.get_mut(key) {
            self.bodies -= mem::take(&mut client.charged);
        }
    }
}

/// Whether descriptors or memory are what is missing.
fn is_exhausted(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS)
    )
}

/// A whole answer of the gate itself, after which the connection ends.
fn answer_of(refusal: Refusal, is_head: bool) -> Vec<u8> {
    let Refusal { status, why } = refusal;
    let reason = tiny_http::StatusCode(status);
    let retry = if status == 503 { "Retry-After: 10\r\n" } else { "" };
    let head = format!(
        "HTTP/1.1 {status} {}\r\nDate: {}\r\nContent-Type: text/plain;charset=utf-8\r\nContent-Length: {}\r\n{retry}\
         Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n\
         Content-Security-Policy: default-src 'none'; frame-ancestors 'none'\r\nConnection: close\r\n\r\n",
        reason.default_reason_phrase(),
        date::http(clock::wall()),
        why.len() + 1,
    );
    if is_head { head.into_bytes() } else { format!("{head}{why}\n").into_bytes() }
}
