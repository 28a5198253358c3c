//! One client: its socket, what it has sent and not yet been read, what it is to get and has not yet taken.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant};

use super::chunks::{Bad, Chunks};
use super::head::{self, Framing, Head, MAX_BODY, MAX_HEAD, Refusal, Sender, TOO_LARGE};
use super::places::Group;
use super::slab::Key;

/// Between requests.
const IDLE: Duration = Duration::from_secs(75);
/// From the first byte of a head to its last.
const HEAD: Duration = Duration::from_secs(10);
/// From the end of the head to that of the body.
const BODY: Duration = Duration::from_secs(30);
/// From the whole request to the answer's head: twice what the books and the daemon may take together, and a queue.
const ANSWER: Duration = Duration::from_secs(60);
/// Without taking [`LEAST`] of what there is for it, or all of it.
const STALL: Duration = Duration::from_secs(30);
/// Some 500 bytes a second: a telephone line gives more, and whoever takes a byte now and then wants something else.
const LEAST: usize = 16 * 1024;
/// For a client to read an answer after which it is hung up on, while it still sends.
const LINGER: Duration = Duration::from_secs(2);
/// What it may send meanwhile.
const LINGERED: usize = 256 * 1024;

/// What is read at once, and not read beyond: a head, and what came with it.
const INPUT: usize = MAX_HEAD;

/// A buffer that a connection without anything to send keeps.
const KEPT: usize = 8 * 1024;

/// Bytes on their way to a socket.
#[derive(Debug, Default)]
pub(super) struct Output {
    bytes: Vec<u8>,
    sent: usize,
}

impl Output {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// Sends what the socket takes; how much that was.
    pub(super) fn flush(&mut self, to: &mut impl Write) -> io::Result<usize> {
        let before = self.sent;
        while !self.is_empty() {
            match to.write(&self.bytes[self.sent..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(taken) => self.sent += taken,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let moved = self.sent - before;
        if self.is_empty() {
            self.sent = 0;
            self.bytes.clear();
            self.bytes.shrink_to(KEPT);
        } else if self.sent > self.bytes.len() / 2 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        Ok(moved)
    }
}

/// A whole request, as tiny_http gets it.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) bytes: Vec<u8>,
    pub(super) is_head: bool,
    pub(super) is_1_0: bool,
    pub(super) keep: bool,
    /// Whether it may be sent again when its answer is lost.
    pub(super) is_safe: bool,
    pub(super) is_again: bool,
    /// Who asks; behind a trusted proxy, whom it acts for.
    pub(super) peer: IpAddr,
}

#[derive(Debug)]
pub(super) enum State {
    /// Before the end of a head, of which so much was looked at.
    Head(usize),
    Body(Box<Partial>),
    /// For its turn.
    Waiting(Order),
    /// By that connection to tiny_http; `begun` once the answer's head was sent on.
    Answering {
        order: Order,
        upstream: Key,
        begun: bool,
    },
    /// So much was thrown away since it was told to go.
    Closing(usize),
}

/// A request whose body is on its way.
#[derive(Debug)]
pub(super) struct Partial {
    head: Head,
    body: Vec<u8>,
    chunks: Option<Chunks>,
}

/// What came of reading.
pub(super) enum Step {
    /// More has to come first.
    More,
    /// The client waits to be told to go on.
    Continue,
    Request(Order),
    Refuse(Refusal),
    /// It has hung up.
    Gone,
}

pub(super) struct Client {
    pub(super) stream: TcpStream,
    pub(super) address: IpAddr,
    pub(super) group: Option<Group>,
    pub(super) state: State,
    pub(super) output: Output,
    /// Whether there may be more to read than was read.
    pub(super) readable: bool,
    /// Whether it has sent its last byte.
    pub(super) ended: bool,
    /// When the state began; of a head, when its first byte came.
    pub(super) since: Instant,
    /// When it last had taken enough, or was given something after having taken all.
    pub(super) moved: Instant,
    /// What it has taken since.
    taken: usize,
    /// What its body counts for among all bodies.
    pub(super) charged: usize,
    input: Vec<u8>,
}

impl Client {
    pub(super) fn new(
        stream: TcpStream,
        address: IpAddr,
        group: Option<Group>,
        now: Instant,
    ) -> Self {
        Self {
            stream,
            address,
            group,
            state: State::Head(0),
            output: Output::default(),
            readable: true,
            ended: false,
            since: now,
            moved: now,
            taken: 0,
            charged: 0,
            input: Vec::new(),
        }
    }

    /// Whether it is between two requests, and nothing of the last one is left.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, State::Head(_)) && self.input.is_empty() && self.output.is_empty()
    }

    /// Whether nothing is lost to anybody who behaves when it is hung up on: it has asked nothing yet.
    pub(super) fn is_dispensable(&self) -> bool {
        matches!(self.state, State::Head(_) | State::Body(_)) && self.output.is_empty()
    }

    /// When something has to have happened; `None` while it is a stream's to say.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let stall = self.moved + STALL;
        let own = match &self.state {
            State::Closing(_) if self.output.is_empty() => self.since + LINGER,
            _ if !self.output.is_empty() => stall,
            State::Head(_) if self.input.is_empty() => self.since + IDLE,
            State::Head(_) => self.since + HEAD,
            State::Body(_) => self.since + BODY,
            State::Waiting(_) | State::Answering { begun: false, .. } => self.since + ANSWER,
            State::Answering { begun: true, .. } => return None,
            State::Closing(_) => stall,
        };
        Some(own)
    }

    /// Why it is hung up on when that has passed, if there is still a sense in telling.
    pub(super) fn late(&self) -> Option<Refusal> {
        if !self.output.is_empty() {
            return None;
        }
        match &self.state {
            State::Head(_) if self.input.is_empty() => None,
            State::Head(_) => {
                Some(Refusal { status: 408, why: "the head of the request took longer than 10 s" })
            }
            State::Body(_) => {
                Some(Refusal { status: 408, why: "the body of the request took longer than 30 s" })
            }
            State::Waiting(_) | State::Answering { begun: false, .. } => {
                Some(Refusal { status: 504, why: "the answer took longer than 60 s" })
            }
            State::Answering { begun: true, .. } | State::Closing(_) => None,
        }
    }

    pub(super) fn enter(&mut self, state: State, now: Instant) {
        self.state = state;
        self.since = now;
    }

    /// Sends what it takes.
    pub(super) fn flush(&mut self, now: Instant) -> io::Result<()> {
        let taken = self.output.flush(&mut self.stream)?;
        self.took(taken, now);
        Ok(())
    }

    /// It took so many bytes.
    fn took(&mut self, bytes: usize, now: Instant) {
        self.taken += bytes;
        if self.taken >= LEAST || self.output.is_empty() {
            (self.moved, self.taken) = (now, 0);
        }
    }

    /// Reads until a request is whole or nothing more is there.
    pub(super) fn read(&mut self, scratch: &mut [u8], proxies: &[IpAddr], now: Instant) -> Step {
        loop {
            match self.parse(proxies, now) {
                Step::More => {}
                step => return step,
            }
            if !self.readable || self.input.len() >= INPUT {
                return if self.ended { Step::Gone } else { Step::More };
            }
            if self.input.is_empty() {
                self.input.shrink_to(KEPT);
            }
            let scratch = &mut scratch[..INPUT];
            match self.stream.read(scratch) {
                Ok(0) => (self.readable, self.ended) = (false, true),
                Ok(length) => {
                    // A short read has emptied the socket, unless its end, which came with it, is still to be read.
                    self.readable = length == scratch.len() || self.ended;
                    if self.input.is_empty() && matches!(self.state, State::Head(_)) {
                        self.since = now;
                    }
                    self.input.extend_from_slice(&scratch[..length]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Step::Gone,
            }
        }
    }

    fn parse(&mut self, proxies: &[IpAddr], now: Instant) -> Step {
        match &mut self.state {
            State::Head(scanned) => {
                // Some clients send a line break too many after a body.
                while *scanned == 0 && self.input.starts_with(b"\r\n") {
                    self.input.drain(..2);
                }
                if self.input.is_empty() || self.input == b"\r" {
                    return Step::More;
                }
                let end = match head::end(&self.input, scanned) {
                    Ok(None) => return Step::More,
                    Ok(Some(end)) => end,
                    Err(refusal) => return Step::Refuse(refusal),
                };
                let head =
                    head::parse(&self.input[..end], Sender { address: self.address, proxies });
                self.input.drain(..end);
                let head = match head {
                    Ok(head) => head,
                    Err(refusal) => return Step::Refuse(refusal),
                };
                let chunks = match head.framing {
                    Framing::Length(0) => return Step::Request(order(head, &[])),
                    Framing::Length(_) => None,
                    Framing::Chunked => Some(Chunks::new(MAX_BODY as u64)),
                };
                let expects = head.expects && self.input.is_empty();
                self.enter(State::Body(Box::new(Partial { head, body: Vec::new(), chunks })), now);
                if expects { Step::Continue } else { self.body() }
            }
            State::Body(_) => self.body(),
            State::Waiting(_) | State::Answering { .. } => Step::More,
            State::Closing(thrown) => {
                *thrown += self.input.len();
                self.input.clear();
                if *thrown > LINGERED { Step::Gone } else { Step::More }
            }
        }
    }

    fn body(&mut self) -> Step {
        let State::Body(partial) = &mut self.state else { return Step::More };
        let is_whole = match (&mut partial.chunks, partial.head.framing) {
            (Some(chunks), _) => match chunks.feed(&self.input, &mut partial.body) {
                Ok(taken) => {
                    self.input.drain(..taken);
                    chunks.is_done()
                }
                Err(Bad::TooLarge) => return Step::Refuse(TOO_LARGE),
                Err(Bad::Syntax) => {
                    return Step::Refuse(Refusal {
                        status: 400,
                        why: "the body is not chunked as it should be",
                    });
                }
            },
            (None, Framing::Length(length)) => {
                let taken = (length - partial.body.len()).min(self.input.len());
                partial.body.extend_from_slice(&self.input[..taken]);
                self.input.drain(..taken);
                partial.body.len() == length
            }
            (None, Framing::Chunked) => false,
        };
        if !is_whole {
            return Step::More;
        }
        match std::mem::replace(&mut self.state, State::Head(0)) {
            State::Body(partial) => Step::Request(order(partial.head, &partial.body)),
            state => {
                self.state = state;
                Step::More
            }
        }
    }

    /// How many bytes of a body it has sent.
    pub(super) fn body_length(&self) -> usize {
        match &self.state {
            State::Body(partial) => partial.body.len(),
            State::Head(_) | State::Waiting(_) | State::Answering { .. } | State::Closing(_) => 0,
        }
    }
}

fn order(head: Head, body: &[u8]) -> Order {
    let mut bytes = head.lines;
    if !body.is_empty() {
        bytes.extend_from_slice(format!("content-length: {}\r\n", body.len()).as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    let (is_head, is_1_0, keep, is_safe) = (head.is_head, head.is_1_0, head.keep, head.is_safe);
    Order { bytes, is_head, is_1_0, keep, is_safe, is_again: false, peer: head.peer }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::sys::clock;

    /// A client that was accepted at a time, and its own end.
    fn accepted(now: Instant) -> (Client, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, address) = listener.accept().unwrap();
        (Client::new(stream, address.ip(), None, now), own)
    }

    /// Reads what it sends at a time.
    fn hear(client: &mut Client, own: &mut TcpStream, text: &str, now: Instant) -> Step {
        own.write_all(text.as_bytes()).unwrap();
        client.readable = true;
        client.read(&mut vec![0; INPUT], &[], now)
    }

    fn status(client: &Client) -> Option<u16> {
        client.late().map(|refusal| refusal.status)
    }

    #[test]
    fn every_wait_for_a_client_ends() {
        let t0 = clock::now();
        let (mut client, mut own) = accepted(t0);
        assert_eq!((client.deadline(), status(&client)), (Some(t0 + IDLE), None));
        let later = t0 + IDLE / 2;
        assert!(matches!(hear(&mut client, &mut own, "POST / HTTP/1.1\r\n", later), Step::More));
        assert_eq!((client.deadline(), status(&client)), (Some(later + HEAD), Some(408)));
        // What comes of a head later does not put it off.
        hear(&mut client, &mut own, "Host: h\r\n", later + HEAD / 2);
        assert_eq!(client.deadline(), Some(later + HEAD));
        let body = later + HEAD;
        hear(&mut client, &mut own, "Content-Length: 2\r\n\r\na", body);
        assert_eq!((client.deadline(), status(&client)), (Some(body + BODY), Some(408)));
        let Step::Request(order) = hear(&mut client, &mut own, "b", body + BODY / 2) else {
            panic!("the request is whole");
        };
        client.enter(State::Waiting(order), body);
        assert_eq!((client.deadline(), status(&client)), (Some(body + ANSWER), Some(504)));
        client.enter(State::Closing(0), body);
        assert_eq!((client.deadline(), status(&client)), (Some(body + LINGER), None));
    }

    #[test]
    fn whoever_takes_too_little_is_hung_up_on() {
        let t0 = clock::now();
        let (mut client, _own) = accepted(t0);
        client.output.push(&[b'a'; 10 * LEAST]);
        let soon = t0 + STALL / 2;
        client.took(1, soon);
        client.took(LEAST - 2, soon);
        assert_eq!((client.deadline(), status(&client)), (Some(t0 + STALL), None));
        client.took(1, soon);
        assert_eq!(client.deadline(), Some(soon + STALL));
        // Whoever has taken all there is does as it should, however little that was.
        client.output = Output::default();
        client.took(1, soon + STALL / 2);
        client.output.push(b"an event");
        assert_eq!(client.deadline(), Some(soon + STALL / 2 + STALL));
    }
}
