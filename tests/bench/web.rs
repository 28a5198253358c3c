//! The web interface against nginx with a file of the same size, and among clients that mean no good.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::daemon::{Daemon, PATIENCE};
use super::jobs::{Repository, system};
use super::{add, millis, percentile, report, set_jobs};

/// Clients at once, each on one connection that it keeps.
const CLIENTS: usize = 32;
/// Long enough for a steady rate.
const WINDOW: Duration = Duration::from_secs(5);
/// Clients that never come to an end.
const SLOW: usize = 2000;

const TARGET: &str = "/api/latestbuilds?nr=10";

/// Requests a second, and how a normal client fares among slow ones.
pub(super) fn requests() {
    let repository = Repository::new(1);
    let lines: Vec<_> = (0..10)
        .map(|n| format!(r#"{{"job":"job-{n}","system":"{}","command":["true"]}}"#, system()))
        .collect();
    set_jobs(&repository, &format!("{}\n", lines.join("\n")));
    let mut daemon = Daemon::start(&["--web=127.0.0.1:0", "--interval=3600"]);
    daemon.environment("GORGET_LOG", "info");
    daemon.ask(&add(&repository, "web"));
    daemon.settle();
    // The log that tests want would be what is measured.
    daemon.stop();
    daemon.restart();
    let web = address(&daemon);
    let answer = get(web, TARGET);
    let nginx = Nginx::start(answer.len());
    let (theirs, _) = rate(nginx.address, "/file");
    let (ours, mut times) = rate(web, TARGET);
    report(
        &format!("requests/s of {TARGET}, {CLIENTS} connections"),
        &format!("{ours:.0}"),
        &format!(
            "p99 {}; nginx with a file of {} bytes {theirs:.0}: {:.2} of it",
            millis(percentile(&mut times, 99)),
            answer.len(),
            ours / theirs
        ),
        "at least 5,000, a third of nginx",
    );

    let mut slow: Vec<_> = (0..SLOW).map(|_| connect(web)).collect();
    let mut times = Vec::new();
    for stream in &mut slow {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\nX-A: ").unwrap();
    }
    for _ in 0..100 {
        for stream in &mut slow {
            // Those that took too long have been hung up on.
            let _ = stream.write_all(b"b");
        }
        let began = Instant::now();
        get(web, TARGET);
        times.push(began.elapsed());
    }
    report(
        "a normal request amid 2,000 slow-loris connections",
        &format!("at most {}", millis(percentile(&mut times, 100))),
        &format!("median {}", millis(percentile(&mut times, 50))),
        "under 1 s",
    );
}

/// Where the web interface of a daemon in its second life is.
pub(super) fn address(daemon: &Daemon) -> SocketAddr {
    let mark = "listening on http://";
    let until = Instant::now() + PATIENCE;
    loop {
        let log = daemon.log();
        // Of the daemon's second life.
        let found: Vec<_> =
            log.split(mark).skip(1).filter_map(|rest| rest.split('/').next()).collect();
        if let [_, place] = found[..] {
            return place.parse().unwrap();
        }
        assert!(Instant::now() < until, "{log}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The body of an answer.
fn get(address: SocketAddr, target: &str) -> Vec<u8> {
    let mut client = Client::new(address);
    client.ask(target);
    client.body
}

/// Requests a second of all clients together, and how long each took.
fn rate(address: SocketAddr, target: &str) -> (f64, Vec<Duration>) {
    let (over, count) = (AtomicBool::new(false), AtomicUsize::new(0));
    let mut times = Vec::new();
    let began = Instant::now();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    let (mut client, mut times) = (Client::new(address), Vec::new());
                    while !over.load(Ordering::Relaxed) {
                        let began = Instant::now();
                        client.ask(target);
                        times.push(began.elapsed());
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    times
                })
            })
            .collect();
        std::thread::sleep(WINDOW);
        over.store(true, Ordering::Relaxed);
        for client in clients {
            times.extend(client.join().unwrap());
        }
    });
    (count.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64(), times)
}

/// A connection that is kept.
pub(super) struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
    body: Vec<u8>,
}

impl Client {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self { stream: connect(address), buffer: vec![0; 64 * 1024], body: Vec::new() }
    }

    pub(super) fn ask(&mut self, target: &str) {
        let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        self.stream.write_all(request.as_bytes()).unwrap();
        let mut filled = 0;
        loop {
            if filled == self.buffer.len() {
                self.buffer.resize(2 * filled, 0);
            }
            let read = self.stream.read(&mut self.buffer[filled..]).unwrap();
            assert!(read > 0, "the connection ended");
            filled += read;
            let bytes = &self.buffer[..filled];
            let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
            let head = std::str::from_utf8(&bytes[..end]).unwrap();
            assert!(!head.starts_with("HTTP/1.1 5"), "{target}: {head}");
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(": ")?;
                name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().unwrap())
            });
            // Without a length it comes in chunks, the last of which is empty.
            let whole = match length {
                Some(length) => filled == end + 4 + length,
                None => bytes.ends_with(b"\r\n0\r\n\r\n"),
            };
            if whole {
                self.body = bytes[end + 4..].to_vec();
                return;
            }
        }
    }
}

/// nginx with one file, in a directory of its own.
struct Nginx {
    child: Child,
    address: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Nginx {
    fn start(size: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        fs::write(path.join("file"), vec![b'a'; size]).unwrap();
        // Nobody else takes it in the moment between.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let place = path.display();
        let user = if nix::unistd::geteuid().is_root() { "user root;" } else { "" };
        let configuration = format!(
            "{user} daemon off; worker_processes 2; pid {place}/pid; error_log {place}/error;
             events {{ worker_connections 1024; }}
             http {{ access_log off; sendfile on; tcp_nodelay on; keepalive_requests 100000000;
               client_body_temp_path {place}/b; proxy_temp_path {place}/p; fastcgi_temp_path {place}/f;
               uwsgi_temp_path {place}/u; scgi_temp_path {place}/s; default_type application/json;
               server {{ listen {address}; root {place}; }} }}"
        );
        fs::write(path.join("conf"), configuration).unwrap();
        let child = Command::new("nginx")
            .arg("-p")
            .arg(path)
            .arg("-c")
            .arg(path.join("conf"))
            .stderr(Stdio::null())
            .spawn()
            .expect("nginx: apt install nginx-light");
        let until = Instant::now() + PATIENCE;
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < until, "nginx does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { child, address, _directory: directory }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its workers end with it when it is told to.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}
