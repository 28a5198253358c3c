//! The ZeroMQ sockets: a ROUTER for workers and the monitor of its connections.
//!
//! What was tried and is not there: a message from the ROUTER when a peer is lost (a draft option, not in this library), and
//! the descriptor in the monitor's event of a finished handshake (it is 0). To take no more connections for a while, by
//! `unbind`, ends those that there are, of which the monitor tells nothing.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use nix::sys::eventfd::EventFd;
use zmq::{Context, DONTWAIT, Message, PollEvents, PollItem, SNDMORE, Socket, SocketEvent};

use super::super::peers::{News, Peers};
use crate::proto::remote::MAX_PAYLOAD;
use crate::sys::{clock, random, socket};

/// Between two PINGs of ZMTP, which every libzmq answers by itself.
const HEARTBEAT: i32 = 5_000;

/// Without an answer, or a word of ours, a connection is closed at either end: three PINGs.
const HEARTBEAT_TIMEOUT: i32 = 15_000;

/// For greeting and handshake of a new connection: they are one exchange.
const HANDSHAKE: i32 = 10_000;

/// Messages that may wait in each direction of a connection: a worker says four at most before it waits.
const MESSAGES: i32 = 16;

/// Connections that the kernel accepts before libzmq does: all workers of a large farm come at once after a restart.
const WAITING: i32 = 1024;

/// Where the monitor tells, within this process.
const MONITOR: &str = "inproc://monitor";

/// A message of a worker's.
pub(super) struct Frames {
    pub(super) identity: Box<[u8]>,
    pub(super) descriptor: i32,
    pub(super) address: IpAddr,
    /// `None` for an empty one, else what is wrong with the frames.
    pub(super) payload: Result<Option<Message>, &'static str>,
    /// Bytes of all frames.
    pub(super) bytes: usize,
}

pub(super) struct Wire {
    router: Socket,
    monitor: Socket,
    waker: Arc<EventFd>,
    port: u16,
}

impl Wire {
    pub(super) fn bind(port: u16, waker: Arc<EventFd>) -> io::Result<Self> {
        let context = Context::new();
        // Messages and events of a connection are in order only within one thread.
        context.set_io_threads(1)?;
        // ROUTER names peers by a number that it counts up from one of C's generator, which would begin the same in each
        // process: a peer that claims the next name would end this one.
        random::seed_c()?;
        let router = context.socket(zmq::ROUTER)?;
        router.set_probe_router(true)?;
        router.set_router_mandatory(true)?;
        router.set_maxmsgsize(i64::try_from(MAX_PAYLOAD).unwrap_or(i64::MAX))?;
        router.set_heartbeat_ivl(HEARTBEAT)?;
        router.set_heartbeat_timeout(HEARTBEAT_TIMEOUT)?;
        router.set_heartbeat_ttl(HEARTBEAT_TIMEOUT)?;
        router.set_handshake_ivl(HANDSHAKE)?;
        router.set_sndhwm(MESSAGES)?;
        router.set_rcvhwm(MESSAGES)?;
        router.set_backlog(WAITING)?;
        // What was not sent at the end is sent by nobody.
        router.set_linger(0)?;
        let events = SocketEvent::ACCEPTED as i32 | SocketEvent::DISCONNECTED as i32;
        router.monitor(MONITOR, events)?;
        let monitor = context.socket(zmq::PAIR)?;
        // Without a bound: libzmq's thread would wait for us at it, and it is emptied before each message.
        monitor.set_rcvhwm(0)?;
        monitor.connect(MONITOR)?;
        router.bind(&format!("tcp://*:{port}"))?;
        let endpoint = router.get_last_endpoint()?.unwrap_or_default();
        let port = endpoint.rsplit(':').next().and_then(|port| port.parse().ok());
        let port = port.ok_or_else(|| io::Error::other(format!("bound to {endpoint:?}")))?;
        Ok(Self { router, monitor, waker, port })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Waits for a message, an event, a wake-up or the deadline.
    pub(super) fn wait(&self, deadline: Option<Instant>) -> zmq::Result<()> {
        let milliseconds = deadline.map_or(-1, |deadline| {
            let left = deadline.saturating_duration_since(clock::now());
            // Rounded up, or the last one would be spent spinning.
            i64::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i64::MAX)
        });
        let mut items = [
            self.router.as_poll_item(PollEvents::POLLIN),
            self.monitor.as_poll_item(PollEvents::POLLIN),
            PollItem::from_fd(self.waker.as_raw_fd(), PollEvents::POLLIN),
        ];
        match zmq::poll(&mut items, milliseconds) {
            Ok(_) | Err(zmq::Error::EINTR) => {}
            Err(error) => return Err(error),
        }
        // Nobody has woken us if it fails.
        let _ = self.waker.read();
        Ok(())
    }

    /// The next message, if there is one.
    pub(super) fn read(&self) -> zmq::Result<Option<Frames>> {
        let Some(identity) = receive(&self.router)? else { return Ok(None) };
        let (mut more, mut count, mut bytes, mut delimited) = (identity.get_more(), 0, 0, false);
        let mut last = Message::new();
        while more {
            // All frames of a message come together.
            match receive(&self.router)? {
                Some(frame) => last = frame,
                None => break,
            }
            (count, bytes) = (count + 1, bytes + last.len());
            delimited |= count == 1 && last.is_empty();
            more = last.get_more();
        }
        let descriptor = last.gets("__fd").and_then(|text| text.parse().ok()).unwrap_or(-1);
        let address = last.gets("Peer-Address").and_then(|text| text.parse().ok());
        let payload = match (count, delimited) {
            (1, true) => Ok(None),
            (2, true) => Ok(Some(last).filter(|payload| !payload.is_empty())),
            _ => Err("expected an empty frame and a payload"),
        };
        Ok(Some(Frames {
            identity: (*identity).into(),
            descriptor,
            address: address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            payload,
            bytes,
        }))
    }

    /// Tells `peers` of all connections that began and ended.
    pub(super) fn watch(&self, peers: &mut Peers, news: &mut Vec<News>) -> zmq::Result<()> {
        while let Some(event) = receive(&self.monitor)? {
            // The second frame names our end.
            if event.get_more() {
                receive(&self.monitor)?;
            }
            let [low, high, descriptor @ ..] = &*event else { continue };
            let Ok(descriptor) = descriptor.try_into().map(i32::from_ne_bytes) else { continue };
            let event = u16::from_ne_bytes([*low, *high]);
            if event == SocketEvent::ACCEPTED as u16 {
                // It may have ended already, which is told next.
                let address = socket::address(descriptor);
                let address = address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
                peers.accepted(descriptor, address, news);
            } else if event == SocketEvent::DISCONNECTED as u16 {
                peers.disconnected(descriptor, news);
            }
        }
        Ok(())
    }

    /// Sends a payload; false if the peer is gone or reads nothing.
    pub(super) fn send(&self, identity: &[u8], payload: &str) -> bool {
        // Whether it can be sent is known at the first frame.
        self.router
            .send(identity, SNDMORE | DONTWAIT)
            .and_then(|()| self.router.send("", SNDMORE | DONTWAIT))
            .and_then(|()| self.router.send(payload, DONTWAIT))
            .is_ok()
    }
}

/// A frame, if there is one.
fn receive(socket: &Socket) -> zmq::Result<Option<Message>> {
    let mut message = Message::new();
    loop {
        match socket.recv(&mut message, DONTWAIT) {
            Ok(()) => return Ok(Some(message)),
            Err(zmq::Error::EAGAIN) => return Ok(None),
            Err(zmq::Error::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}
