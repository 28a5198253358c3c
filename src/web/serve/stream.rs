//! Writes answers to where the gate takes them from: short ones at once, the others on threads of their own.
//!
//! What a thread `stream/N` writes is chunked on its way to the gate, whatever the client gets of it, so that the end of
//! an answer that broke off is told from a whole one. It is woken by the gate, which closes its end when the client is
//! gone or the process is to stop.

use std::fs::File;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::finish::has_body;
use crate::actor::{Spawner, Stop};
use crate::sys::clock;
use crate::web::date;
use crate::web::gate::{LENGTH, TAKEN};
use crate::web::request::Request;
use crate::web::response::{Body, Response, Sink};
use crate::web::seats::{Seat, Seats};

/// Bodies in memory that threads write, all together: what many slow readers of large answers may hold.
const HELD: usize = 64 * 1024 * 1024;

/// Of all threads one who asks may have one in so many: a company behind one address has enough of them, and nobody
/// takes them all.
const SHARE: usize = 4;

/// Pieces of files, and chunks of streams that nobody flushes: each of a thousand threads keeps one.
const PIECE: usize = 16 * 1024;

/// The end of a chunk.
const CRLF: &[u8] = b"\r\n";

/// An end that no chunk can have: the gate then ends the connection.
const BROKEN: &[u8] = b"broken\r\n";

type Writer = Box<dyn Write + Send>;

/// Threads for answers that take their time, a number of them; cloned to every worker.
#[derive(Clone)]
pub(in crate::web) struct Streams {
    threads: Spawner,
    seats: Seats,
    free: Receiver<usize>,
    back: Sender<usize>,
    held: Arc<AtomicUsize>,
}

impl Streams {
    /// At most `limit` at once.
    pub(in crate::web) fn new(threads: Spawner, limit: usize) -> Self {
        let (back, free) = bounded(limit);
        for number in 0..limit {
            // There is room for each.
            let _ = back.try_send(number);
        }
        let seats = Seats::new(limit, (limit / SHARE).max(1));
        Self { threads, seats, free, back, held: Arc::default() }
    }

    /// A thread's number, if there is one left for whoever asks.
    fn place(&self, peer: IpAddr) -> Option<Place> {
        let seat = self.seats.take(peer)?;
        let number = self.free.try_recv().ok()?;
        Some(Place { number, back: self.back.clone(), _seat: seat })
    }

    /// Writes an answer, or has it written.
    pub(super) fn send(
        &self,
        mut writer: Writer,
        request: &Request,
        response: Response,
    ) -> io::Result<()> {
        let (body, peer) = (has_body(request.method, response.status), request.peer);
        let mut head = head(&response);
        match response.body {
            Body::Bytes(bytes) if !body => {
                // The length is that of the answer to GET.
                if response.status != 304 && response.status != 204 {
                    length(&mut head, bytes.len());
                }
                whole(&mut *writer, head, b"")
            }
            Body::Bytes(bytes) if bytes.len() <= TAKEN => {
                length(&mut head, bytes.len());
                whole(&mut *writer, head, &bytes)
            }
            Body::Bytes(bytes) => {
                let Some(held) = Held::take(&self.held, bytes.len()) else { return busy(writer) };
                let announced = Some(bytes.len() as u64);
                self.start(peer, writer, head, announced, move |out| {
                    let _held = held;
                    out.write_all(&bytes)
                })
            }
            Body::File { length: size, .. } if !body => {
                head.extend_from_slice(format!("Content-Length: {size}\r\n").as_bytes());
                whole(&mut *writer, head, b"")
            }
            Body::File { file, from, length } => {
                let announced = Some(length);
                self.start(peer, writer, head, announced, move |out| copy(&file, from, length, out))
            }
            Body::Stream(_) if !body => whole(&mut *writer, head, b""),
            Body::Stream(write) => self.start(peer, writer, head, None, write),
        }
    }

    /// Starts a thread that writes a body of `announced` bytes, if that is known.
    fn start(
        &self,
        peer: IpAddr,
        writer: Writer,
        mut head: Vec<u8>,
        announced: Option<u64>,
        write: impl FnOnce(&mut dyn Sink) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let Some(place) = self.place(peer) else { return busy(writer) };
        if let Some(announced) = announced {
            head.extend_from_slice(format!("{LENGTH}: {announced}\r\n").as_bytes());
        }
        head.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
        let name = format!("stream/{}", place.number);
        let body = move |stop| -> io::Result<()> {
            // With room for its end, lest it grows to twice as much.
            let chunk = Vec::with_capacity(PIECE + CRLF.len());
            let mut out = Out { writer, chunk, stop };
            out.writer.write_all(&head)?;
            match write(&mut out) {
                Ok(()) => out.end(),
                Err(error) => {
                    log::debug!(target: "web", "an answer broke off: {error}");
                    out.emit()?;
                    out.writer.write_all(BROKEN)?;
                    out.writer.flush()
                }
            }
        };
        // A thread that cannot be started drops the request, which tiny_http answers with 500, and gives up the place.
        self.threads.small(&name, body, move |_| drop(place))
    }
}

/// A thread's number, given back when dropped.
struct Place {
    number: usize,
    back: Sender<usize>,
    _seat: Seat,
}

impl Drop for Place {
    fn drop(&mut self) {
        // There is room for each.
        let _ = self.back.try_send(self.number);
    }
}

/// A share of [`HELD`].
struct Held(Arc<AtomicUsize>, usize);

impl Held {
    fn take(all: &Arc<AtomicUsize>, bytes: usize) -> Option<Self> {
        let more = |held: usize| held.checked_add(bytes).filter(|held| *held <= HELD);
        let taken = all.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.ok().map(|_| Self(Arc::clone(all), bytes))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

/// The status line and headers, without those that tell where the body ends.
fn head(response: &Response) -> Vec<u8> {
    let mut head = Vec::with_capacity(1024);
    let reason = tiny_http::StatusCode(response.status);
    let reason = reason.default_reason_phrase();
    head.extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", response.status).as_bytes());
    header(&mut head, "Date", &date::http(clock::wall()));
    for (name, value) in &response.headers {
        header(&mut head, name, value);
    }
    head
}

/// Appends a header; what no header may hold, a name from a repository with a line break say, becomes a blank.
fn header(head: &mut Vec<u8>, name: &str, value: &str) {
    head.extend_from_slice(name.as_bytes());
    head.extend_from_slice(b": ");
    head.extend(value.bytes().map(|byte| if byte.is_ascii_control() { b' ' } else { byte }));
    head.extend_from_slice(b"\r\n");
}

fn length(head: &mut Vec<u8>, length: usize) {
    head.extend_from_slice(format!("Content-Length: {length}\r\n").as_bytes());
}

fn whole(writer: &mut dyn Write, mut head: Vec<u8>, body: &[u8]) -> io::Result<()> {
    head.extend_from_slice(b"\r\n");
    head.extend_from_slice(body);
    writer.write_all(&head)?;
    writer.flush()
}

/// An answer that says nothing.
pub(super) fn nothing(writer: &mut dyn Write) -> io::Result<()> {
    whole(writer, b"HTTP/1.1 204 No Content\r\n".to_vec(), b"")
}

/// What is said when too many take their time.
fn busy(mut writer: Writer) -> io::Result<()> {
    let text = "Too many long answers are being read; try again soon.\n";
    let response =
        Response::text(503, text).with("Retry-After", "10").with("Cache-Control", "no-store");
    let mut head = head(&response);
    length(&mut head, text.len());
    whole(&mut *writer, head, text.as_bytes())
}

fn copy(file: &File, from: u64, length: u64, out: &mut dyn Sink) -> io::Result<()> {
    let (mut at, end) = (from, from.saturating_add(length));
    let mut piece = vec![0; PIECE];
    while at < end {
        let wanted = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
        let read = file.read_at(&mut piece[..wanted], at)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        out.write_all(&piece[..read])?;
        at += read as u64;
    }
    Ok(())
}

/// The sink of a stream: chunks towards the gate.
struct Out {
    writer: Writer,
    chunk: Vec<u8>,
    stop: Stop,
}

impl Out {
    fn emit(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        self.writer.write_all(format!("{:x}\r\n", self.chunk.len()).as_bytes())?;
        self.chunk.extend_from_slice(CRLF);
        self.writer.write_all(&self.chunk)?;
        self.chunk.clear();
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        self.emit()?;
        self.writer.write_all(b"0\r\n\r\n")?;
        self.writer.flush()
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PIECE - self.chunk.len());
        self.chunk.extend_from_slice(&bytes[..taken]);
        if self.chunk.len() == PIECE {
            self.emit()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.emit()?;
        self.writer.flush()
    }
}

impl Sink for Out {
    fn stop(&self) -> &Stop {
        &self.stop
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_hold_no_line_breaks() {
        let mut head = Vec::new();
        header(&mut head, "Location", "/a\r\nSet-Cookie: b=c");
        assert_eq!(head, b"Location: /a  Set-Cookie: b=c\r\n");
    }

    #[test]
    fn nobody_has_all_threads_and_each_comes_back() {
        let (threads, _) = Spawner::new();
        let streams = Streams::new(threads, 2 * SHARE);
        let (one, other) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let mut taken = vec![streams.place(one).unwrap(), streams.place(one).unwrap()];
        assert!(streams.place(one).is_none());
        taken.push(streams.place(other).unwrap());
        drop(taken);
        let here = "127.0.0.1".parse().unwrap();
        let all: Vec<_> = (0..2 * SHARE).filter_map(|_| streams.place(here)).collect();
        assert_eq!(all.len(), 2 * SHARE);
    }

    #[test]
    fn what_is_held_is_given_back() {
        let all = Arc::default();
        let half = Held::take(&all, HELD / 2).unwrap();
        assert!(Held::take(&all, HELD).is_none());
        drop(half);
        assert!(Held::take(&all, HELD).is_some());
    }
}
