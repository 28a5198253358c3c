//! The log of a build on its way to the server.
//!
//! Invariant: building never fails, and never waits for long, because of its log: one that cannot be sent is given up.

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::proto::remote::log::{header, read_greeting};
use crate::store::follow;
use crate::sys::clock;
use crate::sys::connect::{self, Patience};

/// For the connection and the greeting: a server that accepts and never speaks must not hold a build up.
const GREETING: Duration = Duration::from_secs(10);

/// For a write. A server reads all the time.
const WRITE: Duration = Duration::from_secs(10);

/// How long what was written may stay unreadable at the server: people read along.
const FLUSH_AFTER: Duration = Duration::from_secs(1);

pub(super) struct Log {
    /// `None` once it is given up.
    stream: Option<GzEncoder<TcpStream>>,
    /// When the first byte not yet flushed was written.
    unflushed: Option<Instant>,
    /// Whether the last line has its end.
    complete: bool,
}

impl Log {
    /// Connects, as long as it is `wanted`.
    pub(super) fn open(server: SocketAddr, derivation: &str, wanted: &dyn Fn() -> bool) -> Self {
        let stream = begin(server, derivation, wanted).map_or_else(
            |error| {
                if wanted() {
                    log::warn!(target: "worker", "cannot send the log of {derivation} to {server}: {error}");
                }
                None
            },
            // As Guile's worker: the server keeps what it gets.
            |stream| Some(GzEncoder::new(stream, Compression::default())),
        );
        Self { stream, unflushed: None, complete: true }
    }

    /// A line of ours.
    pub(super) fn note(&mut self, text: &str) {
        let end = if self.complete { "" } else { "\n" };
        self.send(format!("{end}gorget: {text}\n").as_bytes());
    }

    fn send(&mut self, bytes: &[u8]) {
        let Some(last) = bytes.last() else { return };
        self.complete = *last == b'\n';
        if let Some(stream) = &mut self.stream {
            let written = stream.write_all(bytes);
            self.unflushed.get_or_insert_with(clock::now);
            self.hold(written);
        }
    }

    fn hold(&mut self, result: io::Result<()>) {
        if let Err(error) = result {
            log::warn!(target: "worker", "a log is given up: {error}");
            (self.stream, self.unflushed) = (None, None);
        }
    }

    /// Ends the stream: what was written is at the server, or on its way.
    pub(super) fn finish(mut self) {
        let Some(stream) = self.stream.take() else { return };
        let finished = stream.finish().and_then(|stream| stream.shutdown(Shutdown::Write));
        if let Err(error) = finished {
            log::warn!(target: "worker", "the end of a log was not sent: {error}");
        }
    }
}

fn begin(server: SocketAddr, derivation: &str, wanted: &dyn Fn() -> bool) -> io::Result<TcpStream> {
    let until = clock::now() + GREETING;
    let mut stream = connect::tcp(server, &Patience { until, wanted })?;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(WRITE))?;
    read_greeting(&mut Hurried { stream: &stream, until })?;
    stream.write_all(header(derivation).as_bytes())?;
    Ok(stream)
}

/// Reads until a time.
struct Hurried<'a> {
    stream: &'a TcpStream,
    until: Instant,
}

impl Read for Hurried<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(clock::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
            _ => error,
        })
    }
}

impl follow::Log for Log {
    type Error = Infallible;

    fn write(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        self.send(bytes);
        Ok(())
    }

    fn remark(&mut self, text: &str) -> Result<(), Infallible> {
        self.note(text);
        Ok(())
    }

    fn flush_due(&self) -> Option<Instant> {
        self.unflushed.map(|since| since + FLUSH_AFTER)
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        self.unflushed = None;
        if let Some(stream) = &mut self.stream {
            let flushed = stream.flush();
            self.hold(flushed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use flate2::read::GzDecoder;

    use super::follow::Log as _;
    use super::*;
    use crate::proto::remote::log::{GREETING as SERVER, read_header};

    const DRV: &str = "/gnu/store/630anh2v63k4dgs6vdr2dgrjn418nrmi-hello-2.12.drv";

    #[test]
    fn a_log_is_readable_from_flush_to_flush() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let mut log = Log::open(address, DRV, &|| true);
                let Ok(()) = log.write(b"one\ntwo");
                assert!(log.flush_due().is_some());
                let Ok(()) = log.flush();
                assert_eq!(log.flush_due(), None);
                log
            });
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(GREETING * 3)).unwrap();
            stream.write_all(SERVER.as_bytes()).unwrap();
            assert_eq!(read_header(&mut stream).unwrap(), DRV);
            let mut text = GzDecoder::new(stream);
            let mut some = [0; 7];
            text.read_exact(&mut some).unwrap();
            assert_eq!(&some, b"one\ntwo");
            let mut log = worker.join().unwrap();
            log.note("over");
            log.finish();
            let mut rest = String::new();
            text.read_to_string(&mut rest).unwrap();
            assert_eq!(rest, "\ngorget: over\n");
        });
    }

    #[test]
    fn a_server_that_hangs_up_or_is_not_there_costs_the_log_alone() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| drop(listener.accept().unwrap()));
            let mut log = Log::open(address, DRV, &|| true);
            assert!(log.stream.is_none());
            let Ok(()) = log.write(b"one\n");
            assert_eq!(log.flush_due(), None);
            log.finish();
        });
        drop(listener);
        assert!(Log::open(address, DRV, &|| true).stream.is_none());
        // One that accepts and says nothing, of a build that is given up.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let until = clock::now() + Duration::from_millis(50);
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let error = read_greeting(&mut Hurried { stream: &stream, until }).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
