//! The gate, tiny_http and the workers together, with answers of every kind.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crossbeam_channel::RecvTimeoutError;
use tempfile::TempDir;

use super::*;
use crate::actor::Threads;
use crate::spec::parameters::Parameters;
use crate::web::Config;
use crate::web::access::Access;
use crate::web::gate::{self, Limits};
use crate::web::live;
use crate::web::response::Body;
use crate::web::route::{Answer, Captures, Route};

const PATIENCE: Duration = Duration::from_secs(30);
/// More than all buffers on the way hold.
const LARGE: usize = 16 * 1024 * 1024;
const STREAMS: usize = 4;
/// More than enough for anything else to be answered.
const SLOW: Duration = Duration::from_secs(2);

const fn route(path: &'static str, answer: Answer) -> Route {
    Route { method: Method::Get, path, access: Access::Open, kind: Kind::Text, answer }
}

pub(in crate::web) const ROUTES: &[Route] = &[
    route("/test/small", |_, _, _| Ok(Response::text(200, "small ".repeat(1000)))),
    route("/test/large", |_, _, _| Ok(Response::bytes(200, "image/png", vec![b'a'; LARGE]))),
    route("/test/file", file),
    route("/test/ticks", |_, _, _| {
        Ok(stream(Box::new(|out| {
            (0..3).try_for_each(|n| write!(out, "{n}").and_then(|()| out.flush()))
        })))
    }),
    route("/test/broken", |_, _, _| {
        Ok(stream(Box::new(|out| write!(out, "half").and(Err(io::Error::other("broken"))))))
    }),
    route("/test/forever", |_, _, _| Ok(stream(Box::new(forever)))),
    route("/test/slow", |_, _, _| {
        // What is asked of the books may take as long.
        let _ = crossbeam_channel::after(SLOW).recv();
        Ok(Response::text(200, "slow"))
    }),
    route("/test/panic", |_, _, _| panic!("as the test wants it")),
];

fn stream(write: super::super::response::Stream) -> Response {
    Response {
        status: 200,
        headers: vec![("Content-Type", "text/plain".to_owned())],
        body: Body::Stream(write),
    }
}

fn file(_: &mut Context, _: &Request, _: &Captures) -> Result<Response, Failure> {
    let file = File::open("Cargo.toml").unwrap();
    let length = file.metadata().unwrap().len() - 1;
    Ok(Response { status: 206, headers: Vec::new(), body: Body::File { file, from: 1, length } })
}

fn forever(out: &mut dyn crate::web::response::Sink) -> io::Result<()> {
    write!(out, "begun")?;
    out.flush()?;
    let _ = out.stop().recv();
    write!(out, "ended")
}

struct Site {
    threads: Threads,
    address: SocketAddr,
    directory: TempDir,
}

fn start() -> Site {
    start_with(Parameters::default())
}

fn start_with(parameters: Parameters) -> Site {
    let directory = tempfile::tempdir().unwrap();
    let (spawner, threads) = Spawner::new();
    let config = Config {
        listen: String::new(),
        database: directory.path().join("none.db"),
        socket: directory.path().join("bridge"),
        log_directory: directory.path().join("log"),
        products_directory: directory.path().join("products"),
        parameters,
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let limits = Limits { connections: 64, streams: STREAMS };
    let live = live::spawn(&spawner, &config).unwrap();
    let shared = Arc::new(Shared::new(config, live));
    gate::spawn(&spawner, vec![listener], &shared, limits).unwrap();
    Site { threads, address, directory }
}

impl Site {
    fn ask(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "{request}\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
        stream
    }

    /// A head and a body.
    fn whole(&self, request: &str) -> (String, Vec<u8>) {
        split(&rest(self.ask(request)))
    }

    /// Everything ends, and nothing is left.
    fn stop(self) {
        drop(self.threads.stop);
        let end = self.threads.all_gone.recv_timeout(PATIENCE);
        assert_eq!(end.unwrap_err(), RecvTimeoutError::Disconnected);
        assert_eq!(std::fs::read_dir(self.directory.path()).unwrap().count(), 0);
    }
}

fn rest(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

fn split(bytes: &[u8]) -> (String, Vec<u8>) {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
    (String::from_utf8(bytes[..end].to_vec()).unwrap(), bytes[end..].to_vec())
}

#[test]
fn bodies_of_every_kind_are_whole() {
    let site = start();
    let (head, body) = site.whole("GET /test/large HTTP/1.1");
    assert!(head.contains(&format!("\r\nContent-Length: {LARGE}\r\n")), "{head}");
    assert_eq!(body.len(), LARGE);
    let text = std::fs::read("Cargo.toml").unwrap();
    let (head, body) = site.whole("GET /test/file HTTP/1.1");
    assert!(head.starts_with("HTTP/1.1 206 Partial Content\r\n"), "{head}");
    assert_eq!(body, &text[1..]);
    let (head, body) = site.whole("HEAD /test/file HTTP/1.1");
    assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", text.len() - 1)), "{head}");
    assert!(body.is_empty());
    let (head, body) = site.whole("GET /test/ticks HTTP/1.1");
    assert!(head.contains("\r\nTransfer-Encoding: chunked\r\n"), "{head}");
    // However many chunks that were.
    let text = String::from_utf8(body).unwrap();
    assert!(text.ends_with("\r\n0\r\n\r\n"), "{text}");
    let data: String = text.split("\r\n").skip(1).step_by(2).collect();
    assert_eq!(data, "012");
    let (head, body) = site.whole("GET /test/ticks HTTP/1.0");
    assert!(!head.contains("Transfer-Encoding"), "{head}");
    assert_eq!(body, b"012");
    site.stop();
}

#[test]
fn what_breaks_off_is_told_from_what_is_whole() {
    let site = start();
    let (_, body) = site.whole("GET /test/broken HTTP/1.1");
    assert_eq!(body, b"4\r\nhalf\r\n", "no last chunk");
    let (head, _) = site.whole("GET /test/panic HTTP/1.1");
    assert!(head.starts_with("HTTP/1.1 500 "), "{head}");
    site.stop();
}

#[test]
fn slow_readers_hold_no_worker() {
    let site = start();
    let slow: Vec<_> = (0..STREAMS).map(|_| site.ask("GET /test/large HTTP/1.1")).collect();
    for mut stream in &slow {
        stream.read_exact(&mut [0; 100]).unwrap();
    }
    // As many as there are workers, and more, of answers that the gate takes in whole.
    let more: Vec<_> = (0..3 * WORKERS).map(|_| site.ask("GET /test/small HTTP/1.1")).collect();
    let (head, _) = site.whole("GET /test/large HTTP/1.1");
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("\r\nRetry-After: "), "{head}");
    let (head, _) = site.whole("GET /test/small HTTP/1.1");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    for stream in more {
        assert_eq!(split(&rest(stream)).1.len(), 6000);
    }
    // Their places are free when they are gone; that a thread has noticed is seen by nothing else.
    drop(slow);
    let until = clock::now() + PATIENCE;
    while !site.whole("GET /test/file HTTP/1.1").0.starts_with("HTTP/1.1 206 ") {
        assert!(clock::now() < until, "no place becomes free");
    }
    site.stop();
}

#[test]
fn one_who_asks_much_leaves_workers_to_others() {
    let proxies = vec!["127.0.0.1".parse().unwrap()];
    let site = start_with(Parameters { trusted_proxies: proxies, ..Parameters::default() });
    let of = |target: &str, peer: &str| {
        site.ask(&format!("GET /test/{target} HTTP/1.1\r\nX-Forwarded-For: {peer}"))
    };
    let slow: Vec<_> = (0..2 * WORKERS).map(|_| of("slow", "192.0.2.1")).collect();
    let began = clock::now();
    // Connections are read in their order: those that were there before are with the workers, or wait.
    for _ in 0..WORKERS {
        assert!(rest(of("small", "192.0.2.2")).starts_with(b"HTTP/1.1 200 "));
    }
    assert!(began.elapsed() < SLOW, "{:?}", began.elapsed());
    // Whoever gives up does not get more by that.
    drop(slow);
    let slow: Vec<_> = (0..2 * WORKERS).map(|_| of("slow", "192.0.2.1")).collect();
    let began = clock::now();
    assert!(rest(of("small", "192.0.2.2")).starts_with(b"HTTP/1.1 200 "));
    assert!(began.elapsed() < SLOW, "{:?}", began.elapsed());
    drop(slow);
    site.stop();
}

#[test]
fn a_server_that_accepts_no_more_is_replaced() {
    let site = start();
    let entries = std::fs::read_dir(site.directory.path()).unwrap();
    let directory = entries.map(|entry| entry.unwrap().path()).find(|path| path.is_dir()).unwrap();
    // Nobody listens there any longer, as when tiny_http has met an error.
    std::fs::remove_file(directory.join("0")).unwrap();
    drop(UnixListener::bind(directory.join("0")).unwrap());
    // More than the connections that are there can take.
    let many: Vec<_> = (0..3 * WORKERS).map(|_| site.ask("GET /test/slow HTTP/1.1")).collect();
    for stream in many {
        assert!(rest(stream).starts_with(b"HTTP/1.1 200 "));
    }
    assert!(directory.join("1").exists());
    site.stop();
}

#[test]
fn streams_are_told_of_the_stop() {
    let site = start();
    let mut stream = site.ask("GET /test/forever HTTP/1.1");
    let mut begin = Vec::new();
    while !begin.ends_with(b"begun\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        begin.push(byte[0]);
    }
    site.stop();
    assert_eq!(rest(stream), b"5\r\nended\r\n0\r\n\r\n");
}

#[test]
fn what_the_asker_has_is_not_sent_again() {
    let site = start();
    let (head, body) = site.whole("GET /test/small HTTP/1.1");
    let header = |head: &str, name: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.map(str::to_owned)
    };
    let tag = header(&head, "ETag").unwrap();
    assert_eq!(header(&head, "Vary").as_deref(), Some("Accept-Encoding"));
    assert!(header(&head, "Content-Security-Policy").unwrap().contains("default-src 'none'"));
    let (head, packed) = site.whole("GET /test/small HTTP/1.1\r\nAccept-Encoding: br, gzip");
    assert_eq!(header(&head, "Content-Encoding").as_deref(), Some("gzip"));
    assert_eq!(header(&head, "ETag").unwrap(), tag);
    assert!(packed.len() < body.len() / 10);
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&*packed).read_to_end(&mut plain).unwrap();
    assert_eq!(plain, body);
    let (head, body) = site.whole(&format!("GET /test/small HTTP/1.1\r\nIf-None-Match: {tag}"));
    assert!(head.starts_with("HTTP/1.1 304 ") && body.is_empty(), "{head}");
    assert_eq!(header(&head, "ETag").unwrap(), tag);
    site.stop();
}
