//! Between clients and tiny_http: requests in their order, as many at once as make sense; answers as they come.

use std::io::{ErrorKind, Read};
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Shutdown};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::answer::{Answer, Broken};
use super::client::{Order, Output, State, Step};
use super::head::{MAX_HEAD, Refusal};
use super::places::{Full, Group, Places};
use super::private::SPARE;
use super::slab::Key;
use super::{BODIES, EDGES, Gate, KIND, PAUSE, ROOM, STREAM_ROOM, UPSTREAM, is_exhausted};
use crate::web::serve::Server;

/// Answers waited for at once: enough that no worker looks for something to do.
pub(super) const AHEAD: usize = 32;

/// And by one who asks, on however many connections: half of the workers stay for others, whatever this one asks.
pub(super) const EACH: usize = 4;

/// Connections opened at the start, so that the common case needs no descriptor later.
const READY: usize = 8;

/// What a new connection is asked; see `web/serve.rs`.
const PROBE: &[u8] = b"OPTIONS * HTTP/1.1\r\nx-gorget-gate-peer: 0.0.0.0\r\n\r\n";

/// Pieces of one answer, before others get their turn.
const PIECES: usize = 16;

/// A connection to tiny_http.
pub(super) struct Upstream {
    stream: UnixStream,
    server: Arc<Server>,
    output: Output,
    /// Whether there may be more to read than was read.
    readable: bool,
    /// Whether the other end has hung up.
    ended: bool,
    task: Task,
    /// Whose share of the answers ahead it took last.
    asker: Option<Group>,
}

/// What it is doing.
enum Task {
    Nothing,
    /// It is new, and is asked whether it is there: tiny_http leaves connections that come in quick succession lie until
    /// older ones end. So the next one is opened when this one has answered.
    Probe(Answer),
    /// It answers that client.
    Answer(Key, Answer),
    /// A worker is about to answer a client that is gone.
    Orphan(Answer),
}

/// What came of taking a piece of an answer.
enum Piece {
    /// Nothing, for now.
    None,
    Some,
    Whole,
    /// The connection is of no more use.
    Broken,
}

impl Gate {
    /// Opens another connection, unless one is being opened, or could not be a moment ago.
    fn open(&mut self) {
        if self.opening.is_some() || self.retry.is_some() {
            return;
        }
        let mut result = self.connect();
        if let Err(error) = &result
            && is_exhausted(error)
        {
            self.tell(error);
            // A connection kept for later is worth nobody's.
            if !self.waiting.is_empty()
                && self.idle.is_empty()
                && (0..SPARE).all(|_| self.evict(None))
            {
                result = self.connect();
            }
        }
        match result {
            Ok(key) => self.opening = Some(key),
            Err(error) => {
                log::debug!(target: "web", "cannot connect to the server: {error}");
                self.retry = Some(self.now + PAUSE);
            }
        }
    }

    /// Closes a connection that is not needed now, unless it is the last; whether there was one.
    pub(super) fn shed(&mut self) -> bool {
        if self.upstreams.len() < 2 {
            return false;
        }
        let spare = self.idle.pop();
        spare.is_some_and(|key| self.upstreams.remove(key).is_some())
    }

    pub(super) fn on_client(&mut self, key: Key, flags: EpollFlags) {
        let Some(client) = self.clients.get_mut(key) else { return };
        if flags.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP) {
            return self.drop_client(key);
        }
        client.readable |= flags.contains(EpollFlags::EPOLLIN);
        if flags.contains(EpollFlags::EPOLLRDHUP) {
            client.readable = true;
            client.ended = true;
            // A stream goes on until somebody hangs up; that is how browsers do it.
            if let State::Answering { begun: true, upstream, .. } = client.state
                && self.upstreams.get(upstream).is_some_and(Upstream::is_endless)
            {
                return self.drop_client(key);
            }
        }
        self.advance(key);
    }

    pub(super) fn on_upstream(&mut self, key: Key, flags: EpollFlags) {
        let Some(upstream) = self.upstreams.get_mut(key) else { return };
        // Whatever else happens shows when it is read.
        upstream.readable |= !(flags & !EpollFlags::EPOLLOUT).is_empty();
        upstream.ended |=
            flags.intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
        if !upstream.output.is_empty() {
            // What comes of an error shows when it is read.
            upstream.readable |= upstream.output.flush(&mut upstream.stream).is_err();
        }
        match upstream.task {
            Task::Answer(client, _) => self.advance(client),
            Task::Nothing | Task::Probe(_) | Task::Orphan(_) => self.drain(key),
        }
    }

    /// Does for a client all that can be done now.
    pub(super) fn advance(&mut self, key: Key) {
        for _ in 0..PIECES {
            let now = self.now;
            let Some(client) = self.clients.get_mut(key) else { return };
            if !client.output.is_empty() && client.flush(now).is_err() {
                return self.drop_client(key);
            }
            let left = client.output.len();
            match &client.state {
                State::Waiting(_) => return,
                State::Answering { upstream, .. } => {
                    let upstream = *upstream;
                    let is_stream = self.upstreams.get(upstream).is_some_and(Upstream::is_stream);
                    let room = if is_stream { STREAM_ROOM } else { ROOM };
                    if left >= room || !self.take_piece(key, upstream) {
                        return;
                    }
                }
                State::Head(_) | State::Body(_) | State::Closing(_) if left > 0 => return,
                State::Closing(thrown) => {
                    // It is told that nothing more comes, and has a moment to read what came.
                    if *thrown == 0 {
                        let _ = client.stream.shutdown(Shutdown::Write);
                    }
                    let step = client.read(&mut self.scratch, &[], now);
                    if matches!(step, Step::Gone) {
                        self.drop_client(key);
                    }
                    return;
                }
                State::Head(_) if self.stopping.is_some() && client.is_idle() => {
                    return self.drop_client(key);
                }
                State::Head(_) | State::Body(_) => {
                    if !self.read(key) {
                        return;
                    }
                }
            }
        }
        self.again.push(key);
    }

    /// Reads from a client; whether that changed what is to be done.
    fn read(&mut self, key: Key) -> bool {
        let Some(client) = self.clients.get_mut(key) else { return false };
        let step = client.read(
            &mut self.scratch,
            &self.shared.config.parameters.trusted_proxies,
            self.now,
        );
        let length = match &step {
            Step::Request(order) if order.bytes.len() > MAX_HEAD => order.bytes.len(),
            _ => client.body_length(),
        };
        if length > client.charged {
            self.bodies += length - client.charged;
            client.charged = length;
            if self.bodies > BODIES && !matches!(step, Step::Gone) {
                let greedy = self.greediest().unwrap_or(key);
                let why = "too much is being sent; try again soon";
                self.refuse(greedy, Refusal { status: 503, why });
                if greedy == key {
                    return true;
                }
                self.again.push(greedy);
            }
        }
        let Some(client) = self.clients.get_mut(key) else { return false };
        match step {
            Step::More => false,
            Step::Gone => {
                self.drop_client(key);
                false
            }
            Step::Continue => {
                client.output.push(b"HTTP/1.1 100 Continue\r\n\r\n");
                client.moved = self.now;
                true
            }
            Step::Refuse(refusal) => {
                self.refuse(key, refusal);
                true
            }
            Step::Request(order) => {
                client.enter(State::Waiting(order), self.now);
                self.waiting.push_back(key);
                true
            }
        }
    }

    /// Who has sent most of a body that is not whole yet: those who send little are not to suffer.
    fn greediest(&self) -> Option<Key> {
        let sending =
            self.clients.iter().filter(|(_, client)| matches!(client.state, State::Body(_)));
        sending.max_by_key(|(_, client)| client.charged).map(|(key, _)| key)
    }

    /// Passes on whose turn it is.
    pub(super) fn dispatch(&mut self) {
        if self.upstreams.len() < READY {
            self.open();
        }
        let mut next = 0;
        while let Some(&key) = self.waiting.get(next) {
            let Some(State::Waiting(order)) = self.clients.get(key).map(|client| &client.state)
            else {
                self.waiting.remove(next);
                continue;
            };
            let asker = Places::group(order.peer, &self.shared.config.parameters.trusted_proxies);
            match self.ahead.take(asker) {
                Ok(()) => {}
                Err(Full::All) => return,
                // Others are not to wait behind them.
                Err(Full::Group(_)) => {
                    next += 1;
                    continue;
                }
            }
            let Some(upstream) = self.idle.pop() else {
                self.ahead.give_back(asker);
                return self.open();
            };
            self.waiting.remove(next);
            self.assign(key, upstream, asker);
        }
    }

    fn connect(&mut self) -> std::io::Result<Key> {
        let (stream, server) = self.private.connect(self.now)?;
        let mut upstream = Upstream {
            stream,
            server,
            output: Output::default(),
            readable: false,
            ended: false,
            task: Task::Probe(Answer::new()),
            asker: None,
        };
        upstream.output.push(PROBE);
        upstream.output.flush(&mut upstream.stream)?;
        let key = self.upstreams.insert(upstream);
        let added = self.upstreams.get(key).map_or(Ok(()), |upstream| {
            self.epoll.add(&upstream.stream, EpollEvent::new(EDGES, UPSTREAM << KIND | key))
        });
        if let Err(error) = added {
            self.upstreams.remove(key);
            return Err(error.into());
        }
        Ok(key)
    }

    /// Sends the request of a client that waits.
    fn assign(&mut self, key: Key, upstream_key: Key, asker: Option<Group>) {
        let (Some(client), Some(upstream)) =
            (self.clients.get_mut(key), self.upstreams.get_mut(upstream_key))
        else {
            return self.ahead.give_back(asker);
        };
        let State::Waiting(mut order) = mem::replace(&mut client.state, State::Head(0)) else {
            return self.ahead.give_back(asker);
        };
        upstream.output.push(&order.bytes);
        if !order.is_safe || order.is_again {
            order.bytes = Vec::new();
        }
        client.state = State::Answering { order, upstream: upstream_key, begun: false };
        upstream.task = Task::Answer(key, Answer::new());
        upstream.asker = asker;
        // What comes of an error shows when it is read.
        upstream.readable |= upstream.output.flush(&mut upstream.stream).is_err();
        if upstream.readable {
            self.again.push(key);
        }
    }

    /// Takes a piece of an answer for a client; whether there is anything new for it.
    fn take_piece(&mut self, key: Key, upstream_key: Key) -> bool {
        let (Some(client), Some(upstream)) =
            (self.clients.get_mut(key), self.upstreams.get_mut(upstream_key))
        else {
            return false;
        };
        let State::Answering { order, begun, .. } = &mut client.state else { return false };
        let mut keep = order.keep && self.stopping.is_none();
        let was_empty = client.output.is_empty();
        let piece = upstream.take(&mut self.scratch, |answer, bytes| {
            answer.feed(bytes, order, &mut keep, &mut client.output)
        });
        let begins = !*begun && upstream.has_begun();
        if begins {
            *begun = true;
            // What was decided with the head holds to the end.
            order.keep = keep;
            self.ahead.give_back(upstream.asker);
        }
        let (keep, has_begun) = (order.keep, *begun);
        if was_empty {
            client.moved = self.now;
        }
        match piece {
            Piece::None => false,
            Piece::Some => true,
            Piece::Whole => {
                self.release(key);
                self.rest(upstream_key);
                let Some(client) = self.clients.get_mut(key) else { return false };
                client.enter(if keep { State::Head(0) } else { State::Closing(0) }, self.now);
                if !keep {
                    self.close_soon(key);
                }
                true
            }
            Piece::Broken => {
                self.lose(key, upstream_key, has_begun);
                true
            }
        }
    }

    /// An answer broke off.
    fn lose(&mut self, key: Key, upstream: Key, has_begun: bool) {
        let asker = self.upstreams.remove(upstream).and_then(|upstream| upstream.asker);
        if has_begun {
            // What came is sent as far as it goes; that it is not whole is seen by the end alone.
            if let Some(client) = self.clients.get_mut(key) {
                let _ = client.flush(self.now);
            }
            return self.drop_client(key);
        }
        self.ahead.give_back(asker);
        let Some(client) = self.clients.get_mut(key) else { return };
        match mem::replace(&mut client.state, State::Closing(0)) {
            State::Answering { order, .. } if order.is_safe && !order.is_again => {
                client.state = State::Waiting(Order { is_again: true, ..order });
                self.waiting.push_front(key);
            }
            _ => self.refuse(key, Refusal { status: 502, why: "the answer was lost" }),
        }
    }

    /// A connection has answered.
    fn rest(&mut self, key: Key) {
        let Some(upstream) = self.upstreams.get_mut(key) else { return };
        upstream.task = Task::Nothing;
        if self.private.is_current(&upstream.server) && self.idle.len() < AHEAD {
            self.idle.push(key);
        } else {
            self.upstreams.remove(key);
        }
    }

    /// A client is gone, or no more to be answered: an answer that has begun ends, one that a worker is about to give
    /// is awaited, since until then the worker is not free.
    pub(super) fn abandon(&mut self, key: Key) {
        let Some(upstream) = self.upstreams.get_mut(key) else { return };
        match mem::replace(&mut upstream.task, Task::Nothing) {
            Task::Answer(_, answer) if !answer.has_begun() => {
                upstream.task = Task::Orphan(answer);
                self.drain(key);
            }
            Task::Answer(..) | Task::Probe(_) | Task::Orphan(_) | Task::Nothing => {
                drop(self.upstreams.remove(key));
            }
        }
    }

    /// Reads what nobody waits for: of an answer the head, which is enough to know that a worker is free again.
    fn drain(&mut self, key: Key) {
        let Some(upstream) = self.upstreams.get_mut(key) else { return };
        while upstream.readable {
            let is_orphan = matches!(upstream.task, Task::Orphan(_));
            let is_probe = matches!(upstream.task, Task::Probe(_));
            let piece = upstream.take(&mut self.scratch, |answer, bytes| {
                answer.feed(bytes, &ORPHAN, &mut true, &mut Output::default())
            });
            match piece {
                Piece::None => return,
                Piece::Some if is_orphan && !upstream.has_begun() => {}
                Piece::Whole if is_probe => {
                    self.opening = None;
                    return self.rest(key);
                }
                // It says something unasked, has said enough, or has ended.
                Piece::Some | Piece::Whole | Piece::Broken => {
                    let asker = upstream.asker;
                    self.upstreams.remove(key);
                    if is_orphan {
                        self.ahead.give_back(asker);
                    }
                    if is_probe {
                        self.opening = None;
                        self.retry = Some(self.now + PAUSE);
                    }
                    return self.idle.retain(|idle| *idle != key);
                }
            }
        }
    }
}

/// What answers are read by that nobody gets.
const ORPHAN: Order = Order {
    bytes: Vec::new(),
    is_head: true,
    is_1_0: false,
    keep: true,
    is_safe: false,
    is_again: true,
    peer: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
};

impl Upstream {
    /// Whether it gives an answer whose length nobody knows.
    fn is_endless(&self) -> bool {
        matches!(&self.task, Task::Answer(_, answer) if answer.is_endless())
    }

    /// Whether its answer is written by a thread that may wait, or may turn out to be.
    fn is_stream(&self) -> bool {
        match &self.task {
            Task::Answer(_, answer) | Task::Orphan(answer) => answer.is_stream(),
            Task::Nothing | Task::Probe(_) => true,
        }
    }

    /// Whether the head of its answer has come.
    fn has_begun(&self) -> bool {
        match &self.task {
            Task::Answer(_, answer) | Task::Probe(answer) | Task::Orphan(answer) => {
                answer.has_begun()
            }
            Task::Nothing => false,
        }
    }

    /// Reads once and has what came fed to the answer.
    fn take(
        &mut self,
        scratch: &mut [u8],
        feed: impl FnOnce(&mut Answer, &[u8]) -> Result<(), Broken>,
    ) -> Piece {
        if !self.readable {
            return Piece::None;
        }
        let most = if self.is_stream() { STREAM_ROOM } else { scratch.len() };
        let scratch = &mut scratch[..most];
        let length = match self.stream.read(scratch) {
            Ok(0) => return Piece::Broken,
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                return Piece::None;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => return Piece::Some,
            Err(_) => return Piece::Broken,
        };
        // A short read has emptied the socket, unless its end, which came with it, is still to be read.
        self.readable = length == scratch.len() || self.ended;
        match &mut self.task {
            Task::Nothing => Piece::Broken,
            Task::Answer(_, answer) | Task::Probe(answer) | Task::Orphan(answer) => {
                match feed(answer, &scratch[..length]) {
                    Ok(()) if matches!(answer, Answer::Whole) => Piece::Whole,
                    Ok(()) => Piece::Some,
                    Err(Broken) => Piece::Broken,
                }
            }
        }
    }
}
