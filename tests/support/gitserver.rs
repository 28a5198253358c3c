//! Git servers for tests, on the loopback interface: git's own daemon, HTTP through `git http-backend`, and
//! hostile ones that refuse, hang, drip, talk nonsense, or vanish in the middle of a pack.
//!
//! It depends on nothing of ours, so that unit tests and the suite can both use it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Longest wait for anything: what it bounds takes milliseconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a server does to who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Serves the repositories.
    Honest,
    /// Takes the request, and never answers.
    Hang,
    /// Answers truly, but a byte a second.
    Drip,
    /// Answers with bytes that mean nothing.
    Garbage,
    /// Answers truly up to this many bytes of all its answers together, then hangs up on everybody.
    Vanish(usize),
    /// Wants a user name and a password, which are `me` and `secret`.
    Password,
}

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Git,
    Http,
}

/// A server for the repositories below a directory. Ends when dropped.
pub struct Server {
    address: SocketAddr,
    protocol: Protocol,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
    _daemon: Option<Daemon>,
}

struct Shared {
    root: PathBuf,
    protocol: Protocol,
    upstream: Option<SocketAddr>,
    manner: Mutex<Manner>,
    /// Bytes answered so far.
    answered: Mutex<usize>,
    connections: Mutex<Vec<TcpStream>>,
    requests: Mutex<usize>,
    ended: AtomicBool,
    bell: Condvar,
}

impl Server {
    pub fn start(root: &Path, protocol: Protocol, manner: Manner) -> Self {
        let daemon = (protocol == Protocol::Git).then(|| Daemon::start(root));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            root: root.to_owned(),
            protocol,
            upstream: daemon.as_ref().map(|daemon| daemon.address),
            manner: Mutex::new(manner),
            answered: Mutex::new(0),
            connections: Mutex::default(),
            requests: Mutex::default(),
            ended: AtomicBool::new(false),
            bell: Condvar::new(),
        });
        let served = shared.clone();
        let acceptor = spawn(move || served.accept(&listener));
        Self { address, protocol, shared, acceptor: Some(acceptor), _daemon: daemon }
    }

    /// The URL of the repository `name` below the root.
    pub fn url(&self, name: &str) -> String {
        match self.protocol {
            Protocol::Git => format!("git://{}/{name}", self.address),
            Protocol::Http => format!("http://{}/{name}", self.address),
        }
    }

    /// The same with user info.
    pub fn url_with(&self, user: &str, name: &str) -> String {
        self.url(name).replacen("://", &format!("://{user}@"), 1)
    }

    /// Changes what happens to the next connections.
    pub fn set(&self, manner: Manner) {
        *lock(&self.shared.manner) = manner;
        *lock(&self.shared.answered) = 0;
    }

    /// Connections and, over HTTP, requests seen so far.
    pub fn requests(&self) -> usize {
        *lock(&self.shared.requests)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.shared.hang_up();
        self.shared.bell.notify_all();
        // Wakes `accept`.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// A port on which nobody listens.
pub fn refusing_url(name: &str) -> String {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    format!("git://127.0.0.1:{port}/{name}")
}

impl Shared {
    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for stream in listener.incoming() {
            if self.ended.load(Ordering::SeqCst) {
                return;
            }
            let Ok(stream) = stream else { return };
            let shared = self.clone();
            if let Ok(copy) = stream.try_clone() {
                lock(&self.connections).push(copy);
            }
            spawn(move || {
                // A client that hangs up is none of the test's business.
                let _ = shared.serve(&stream);
                let _ = stream.shutdown(Shutdown::Both);
            });
        }
    }

    fn hang_up(&self) {
        for stream in lock(&self.connections).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        match self.protocol {
            Protocol::Git => {
                *lock(&self.requests) += 1;
                self.proxy(stream)
            }
            Protocol::Http => {
                let mut reader = BufReader::new(stream.try_clone()?);
                while let Some(request) = Request::read(&mut reader)? {
                    *lock(&self.requests) += 1;
                    self.answer(stream, &request)?;
                }
                Ok(())
            }
        }
    }

    /// Passes bytes to and from the real daemon.
    fn proxy(&self, client: &TcpStream) -> io::Result<()> {
        let manner = *lock(&self.manner);
        if matches!(manner, Manner::Hang | Manner::Garbage) {
            let mut first = [0; 512];
            let _ = (&*client).read(&mut first)?;
            return self.give(client, b"");
        }
        let upstream = TcpStream::connect(self.upstream.ok_or(io::ErrorKind::NotFound)?)?;
        let (mut from, mut to) = (client.try_clone()?, upstream.try_clone()?);
        let feeder = spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
        let mut buffer = [0; 4096];
        let result = loop {
            match (&upstream).read(&mut buffer) {
                Ok(0) => break Ok(()),
                Ok(n) => match self.give(client, &buffer[..n]) {
                    Ok(()) => {}
                    Err(error) => break Err(error),
                },
                Err(error) => break Err(error),
            }
        };
        let _ = client.shutdown(Shutdown::Both);
        let _ = upstream.shutdown(Shutdown::Both);
        let _ = feeder.join();
        result
    }

    fn answer(&self, client: &TcpStream, request: &Request) -> io::Result<()> {
        let manner = *lock(&self.manner);
        if matches!(manner, Manner::Hang | Manner::Garbage) {
            return self.give(client, b"");
        }
        // `me:secret` in base 64.
        let known = request.header("authorization") == Some("Basic bWU6c2VjcmV0");
        if manner == Manner::Password && !known {
            let refusal = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\n\
                           Content-Length: 0\r\n\r\n";
            return self.give(client, refusal.as_bytes());
        }
        let output = self.backend(request)?;
        let end = find(&output, b"\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
        let (head, body) = (String::from_utf8_lossy(&output[..end]), &output[end + 4..]);
        let status =
            head.lines().find_map(|line| line.strip_prefix("Status: ")).unwrap_or("200 OK");
        let mut answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n", body.len());
        for line in head.lines().filter(|line| !line.starts_with("Status: ")) {
            answer += &format!("{line}\r\n");
        }
        self.give(client, &[answer.as_bytes(), b"\r\n", body].concat())
    }

    /// Runs `git http-backend` for one request.
    fn backend(&self, request: &Request) -> io::Result<Vec<u8>> {
        let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
        let mut command = git();
        command
            .arg("http-backend")
            .env("GIT_PROJECT_ROOT", &self.root)
            .env("GIT_HTTP_EXPORT_ALL", "1")
            .env("REQUEST_METHOD", &request.method)
            .env("PATH_INFO", path)
            .env("QUERY_STRING", query)
            .env("CONTENT_LENGTH", request.body.len().to_string())
            .env("CONTENT_TYPE", request.header("content-type").unwrap_or_default())
            .env("HTTP_CONTENT_ENCODING", request.header("content-encoding").unwrap_or_default())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let mut input = child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let body = request.body.clone();
        let feeder = spawn(move || {
            let _ = input.write_all(&body);
        });
        let output = child.wait_with_output()?;
        let _ = feeder.join();
        Ok(output.stdout)
    }

    /// Gives `bytes` to the client in the server's manner.
    fn give(&self, mut client: &TcpStream, bytes: &[u8]) -> io::Result<()> {
        let manner = *lock(&self.manner);
        match manner {
            Manner::Honest | Manner::Password => client.write_all(bytes),
            Manner::Hang => self.pause(PATIENCE * 10),
            Manner::Garbage => {
                client.write_all(b"\xff\xfe0000zzzz garbage \0\r\n")?;
                client.write_all(&[b'z'; 4096])?;
                client.shutdown(Shutdown::Both)
            }
            Manner::Drip => bytes.iter().try_for_each(|byte| {
                client.write_all(&[*byte])?;
                self.pause(Duration::from_secs(1))
            }),
            Manner::Vanish(limit) => {
                let room = {
                    let mut answered = lock(&self.answered);
                    let room = limit.saturating_sub(*answered).min(bytes.len());
                    *answered += bytes.len();
                    room
                };
                client.write_all(&bytes[..room])?;
                if room < bytes.len() {
                    self.hang_up();
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
                Ok(())
            }
        }
    }

    /// Waits, but not beyond the server's end.
    fn pause(&self, time: Duration) -> io::Result<()> {
        let guard = lock(&self.requests);
        let ended = |_: &mut usize| !self.ended.load(Ordering::SeqCst);
        let _ = self.bell.wait_timeout_while(guard, time, ended);
        if self.ended.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }
}

/// An HTTP request.
struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    fn read(reader: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut request = Self { method, target, headers: Vec::new(), body: Vec::new() };
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            request.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        if request.header("transfer-encoding") == Some("chunked") {
            loop {
                line.clear();
                reader.read_line(&mut line)?;
                let size = usize::from_str_radix(line.trim(), 16).unwrap_or(0);
                let mut chunk = vec![0; size + 2];
                reader.read_exact(&mut chunk)?;
                if size == 0 {
                    break;
                }
                request.body.extend(&chunk[..size]);
            }
        } else {
            let size = request.header("content-length").and_then(|size| size.parse().ok());
            request.body.resize(size.unwrap_or(0), 0);
            reader.read_exact(&mut request.body)?;
        }
        Ok(Some(request))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Git's own daemon for the repositories below a directory, one process a connection, so that none is left when
/// the tests are killed. Ends when dropped.
pub struct Daemon {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl Daemon {
    pub fn start(root: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (ended, root) = (Arc::new(AtomicBool::new(false)), root.to_owned());
        let end = ended.clone();
        let acceptor = spawn(move || {
            for stream in listener.incoming() {
                if end.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { return };
                let root = root.clone();
                spawn(move || {
                    // A client that hangs up is none of the test's business.
                    let _ = Self::serve(&root, stream);
                });
            }
        });
        Self { address, ended, acceptor: Some(acceptor) }
    }

    fn serve(root: &Path, stream: TcpStream) -> io::Result<()> {
        let output = OwnedFd::from(stream.try_clone()?);
        let mut child = {
            let mut command = git();
            command
                .args(["daemon", "--inetd", "--export-all", "--log-destination=none"])
                .arg(format!("--base-path={}", root.display()))
                .stdin(Stdio::from(OwnedFd::from(stream)))
                .stdout(Stdio::from(output))
                .stderr(Stdio::null());
            // With the command our ends of the connection are closed.
            command.spawn()?
        };
        child.wait().map(drop)
    }

    pub fn url(&self, name: &str) -> String {
        format!("git://{}/{name}", self.address)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Wakes `accept`.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// The real git, without the settings of whoever runs the tests.
#[expect(clippy::disallowed_methods, reason = "a peer in a test, not a child of the daemon's")]
fn git() -> Command {
    let mut command = Command::new("git");
    command
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*");
    command
}

#[expect(clippy::disallowed_methods, reason = "a peer in a test, not an actor")]
fn spawn(body: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    std::thread::spawn(body)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
