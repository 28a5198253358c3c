//! A thousand readers of one large log, through the real server: what that takes of memory, and that each gets all of
//! it.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::daemon::{Daemon, PATIENCE};
use super::jobs::{Repository, system};
use super::web::address;
use super::{add, report, set_jobs};

const READERS: usize = 1000;
/// Of one reader; what they read slowest is all of them together.
const LOG: usize = 64 << 20;
/// Taken from one reader before it is another's turn.
const PIECE: usize = 256 * 1024;
/// Between two rounds in which nothing came.
const PAUSE: Duration = Duration::from_millis(1);

/// A reader that has come so far.
struct Reader {
    stream: TcpStream,
    /// Of the text; before that, the head is read.
    at: Option<usize>,
    head: Vec<u8>,
}

pub(super) fn readers() {
    let repository = Repository::new(1);
    // As wide as lines of a build, each different, of 58 bytes at least but for the first few.
    let noise =
        format!(r"seq -f 'gcc -O2 -g -c -o object.o src/source-%.0f.c && echo done' {}", LOG / 58);
    let job =
        format!(r#"{{"job":"large","system":"{}","command":["sh","-c","{noise}"]}}"#, system());
    set_jobs(&repository, &format!("{job}\n"));
    let mut daemon = Daemon::start(&["--web=127.0.0.1:0", "--interval=3600"]);
    daemon.environment("GORGET_LOG", "info");
    daemon.ask(&add(&repository, "readers"));
    daemon.settle();
    daemon.stop();
    daemon.restart();
    let (web, id) = (address(&daemon), daemon.build("large")["id"].clone());
    let target = format!("/build/{id}/log/raw?from=0");
    let text = {
        let (mut stream, mut bytes) = (ask(web, &target), Vec::new());
        stream.read_to_end(&mut bytes).unwrap();
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        bytes.split_off(end)
    };
    assert!(text.len() >= LOG, "{}", text.len());

    let before = daemon.memory("VmRSS:");
    let (began, processor) = (Instant::now(), daemon.processor_time());
    let mut readers: Vec<_> = (0..READERS)
        .map(|_| {
            let stream = ask(web, &target);
            stream.set_nonblocking(true).unwrap();
            Reader { stream, at: None, head: Vec::new() }
        })
        .collect();
    // All have begun, and none goes on: as much is held as can be.
    let mut piece = vec![0; PIECE];
    let until = Instant::now() + PATIENCE;
    while !readers.iter().all(|reader| reader.at.is_some()) {
        assert!(Instant::now() < until, "not all readers are served");
        for reader in readers.iter_mut().filter(|reader| reader.at.is_none()) {
            reader.take(&mut piece[..1], &text);
        }
    }
    std::thread::sleep(Duration::from_secs(1));
    let waiting = daemon.memory("VmRSS:").saturating_sub(before);
    while !readers.is_empty() {
        let mut moved = false;
        readers.retain_mut(|reader| {
            let (is_open, took) = reader.take(&mut piece, &text);
            moved |= took;
            is_open
        });
        if !moved {
            std::thread::sleep(PAUSE);
        }
    }
    let took = began.elapsed();
    let most = daemon.memory("VmHWM:").saturating_sub(before);
    report(
        &format!("memory for {READERS} readers of one log of {} MiB", text.len() >> 20),
        &format!("{} MiB, {} KiB each", most >> 20, most / READERS as u64 / 1024),
        &format!(
            "{} MiB while none goes on; {:.0} s, {:.0} MiB/s in all, {:.0} s of processor time",
            waiting >> 20,
            took.as_secs_f64(),
            ((READERS * text.len()) >> 20) as f64 / took.as_secs_f64(),
            (daemon.processor_time() - processor).as_secs_f64(),
        ),
        "bounded, each gets all of it",
    );
}

/// Asks for something whose answer is to come without chunks between.
fn ask(web: SocketAddr, target: &str) -> TcpStream {
    let mut stream = TcpStream::connect(web).unwrap();
    write!(stream, "GET {target} HTTP/1.0\r\n\r\n").unwrap();
    stream
}

impl Reader {
    /// Takes what is there, and compares it: whether more is to come, and whether anything came.
    fn take(&mut self, piece: &mut [u8], text: &[u8]) -> (bool, bool) {
        let length = match self.stream.read(piece) {
            Ok(0) => {
                assert_eq!(self.at, Some(text.len()), "the log breaks off");
                return (false, true);
            }
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return (true, false),
            Err(error) => panic!("{error}, after {:?}", self.at),
        };
        let mut came = &piece[..length];
        let begin = self.head.len();
        if self.at.is_none() {
            self.head.extend_from_slice(came);
            let Some(end) = self.head.windows(4).position(|four| four == b"\r\n\r\n") else {
                return (true, true);
            };
            assert!(
                self.head.starts_with(b"HTTP/1.1 200 "),
                "{}",
                String::from_utf8_lossy(&self.head)
            );
            came = &came[end + 4 - begin..];
            self.at = Some(0);
        }
        let at = self.at.unwrap_or(0);
        assert!(text[at..].starts_with(came), "something else comes after {at} bytes");
        self.at = Some(at + came.len());
        (true, true)
    }
}
