//! The server's side of the protocol of Cuirass's workers, as a test plays it: a ROUTER and a log port.
#![allow(
    clippy::disallowed_methods,
    reason = "tests start programs and wait under deadlines of their own"
)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use flate2::read::GzDecoder;
use tempfile::TempDir;

use super::nix::{Store, processes_of};
use super::{PATIENCE, pause, until};

/// A server that does what the test says.
pub(crate) struct Server {
    _context: zmq::Context,
    router: zmq::Socket,
    pub(crate) port: u16,
    logs: TcpListener,
}

/// What came, and from which connection.
pub(crate) struct Heard {
    pub(crate) from: Vec<u8>,
    pub(crate) text: String,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::listen("tcp://127.0.0.1:*", TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn listen(endpoint: &str, logs: TcpListener) -> Self {
        let context = zmq::Context::new();
        let router = context.socket(zmq::ROUTER).unwrap();
        router.set_probe_router(true).unwrap();
        router.set_router_mandatory(true).unwrap();
        router.set_linger(0).unwrap();
        router.set_rcvtimeo(i32::try_from(PATIENCE.as_millis()).unwrap()).unwrap();
        // The port of a server that went a moment ago may not be free yet.
        until("the port", || router.bind(endpoint).ok());
        let endpoint = router.get_last_endpoint().unwrap().unwrap();
        let port = endpoint.rsplit(':').next().unwrap().parse().unwrap();
        Self { _context: context, router, port, logs }
    }

    /// Another server in its place: nothing of this one is left.
    pub(crate) fn restart(self, away: impl FnOnce()) -> Self {
        let Self { _context: context, router, port, logs } = self;
        drop(router);
        drop(context);
        away();
        Self::listen(&format!("tcp://127.0.0.1:{port}"), logs)
    }

    pub(crate) fn log_port(&self) -> u16 {
        self.logs.local_addr().unwrap().port()
    }

    /// The next message that is no ping.
    pub(crate) fn hear(&self) -> Heard {
        loop {
            let frames = self.router.recv_multipart(0).expect("a message of the worker");
            let [from, empty, text] = frames.try_into().unwrap_or_else(|frames| {
                panic!("expected an identity, an empty frame and a message, got {frames:?}")
            });
            assert!(empty.is_empty());
            let text = String::from_utf8(text).unwrap();
            if !text.starts_with("(worker-ping (worker ") {
                return Heard { from, text };
            }
        }
    }

    /// Whether nothing but pings comes for a moment.
    pub(crate) fn is_quiet(&self) -> bool {
        let deadline = Instant::now() + std::time::Duration::from_millis(500);
        while self.router.poll(zmq::POLLIN, 20).unwrap() > 0 || Instant::now() < deadline {
            if let Ok(frames) = self.router.recv_multipart(zmq::DONTWAIT)
                && !frames[2].starts_with(b"(worker-ping ")
            {
                return false;
            }
        }
        true
    }

    pub(crate) fn expect(&self, text: &str) -> Heard {
        let heard = self.hear();
        assert_eq!(heard.text, text);
        heard
    }

    pub(crate) fn say(&self, to: &[u8], text: &str) {
        self.router.send_multipart([to, b"", text.as_bytes()], 0).unwrap();
    }

    /// Sends the probe's like: one empty frame.
    pub(crate) fn probe(&self, to: &[u8]) {
        self.router.send_multipart([to, b""], 0).unwrap();
    }

    /// Greets a worker, up to its request for work; its connection and its name.
    pub(crate) fn greet(&self) -> (Vec<u8>, String) {
        let from = self.expect("(worker-request-info)").from;
        self.say(
            &from,
            &format!(
                "(server-info (worker-address \"127.0.0.1\") (log-port {}) (publish-port #f))",
                self.log_port()
            ),
        );
        let ready = self.hear().text;
        let name = ready.split('"').nth(1).unwrap().to_owned();
        assert!(ready.starts_with("(worker-ready (worker (name \""), "{ready}");
        self.expect(&format!("(gorget-worker (version 1) (name \"{name}\"))"));
        (from, name)
    }

    /// Greets a worker that has nothing to report, and hears its request.
    pub(crate) fn join(&self) -> (Vec<u8>, String) {
        let (from, name) = self.greet();
        let request = self.expect(&format!("(worker-request-work \"{name}\")"));
        assert_eq!(request.from, from);
        (from, name)
    }

    /// Gives a worker that has asked something to build, and hears that it began.
    pub(crate) fn assign(&self, to: &[u8], name: &str, derivation: &str, limits: (u32, u32)) {
        let (timeout, silent) = limits;
        self.say(to, &format!(
            "(build (drv \"{derivation}\") (priority 9) (timeout {timeout}) (max-silent {silent}) (timestamp #f) (system \"x86_64-linux\"))"
        ));
        self.expect(&format!("(build-started (drv \"{derivation}\") (worker \"{name}\"))"));
    }

    /// The next log, after the greeting.
    pub(crate) fn log(&self) -> Log {
        let mut stream = self.log_connection();
        stream.write_all(b"(log-server (version 0))").unwrap();
        let mut header = Vec::new();
        while !header.ends_with(b"))") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            header.extend(byte);
        }
        let header = String::from_utf8(header).unwrap();
        Log { header, text: GzDecoder::new(stream) }
    }

    /// The next connection to the log port, to which nothing has been said.
    pub(crate) fn log_connection(&self) -> TcpStream {
        self.logs.set_nonblocking(true).unwrap();
        let (stream, _) = until("a log", || self.logs.accept().ok());
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

/// A log that is being sent.
pub(crate) struct Log {
    pub(crate) header: String,
    text: GzDecoder<TcpStream>,
}

impl Log {
    /// Reads until what has come ends with `end`.
    pub(crate) fn until(&mut self, end: &str) -> String {
        let mut text = Vec::new();
        while !text.ends_with(end.as_bytes()) {
            // Of less than there is, the decoder would wait for more before it gives the rest.
            let mut some = [0; 4096];
            let read = self.text.read(&mut some);
            let said = String::from_utf8_lossy(&text);
            assert!(matches!(read, Ok(1..)), "{read:?} after {said:?}");
            text.extend(&some[..read.unwrap()]);
        }
        String::from_utf8(text).unwrap()
    }

    /// All that is left, to the end of the stream.
    pub(crate) fn rest(mut self) -> String {
        let mut text = String::new();
        self.text.read_to_string(&mut text).unwrap();
        text
    }
}

/// `gorget remote-worker` as a process, killed when dropped.
pub(crate) struct Worker {
    pub(crate) directory: TempDir,
    child: Option<Child>,
}

impl Worker {
    /// On this store, for the server at that port of this machine; nothing is published.
    pub(crate) fn start(store: &Store, port: u16, options: &[&str]) -> Self {
        Self::publish(store, port, &[options, &["--no-publish"]].concat())
    }

    /// As `start`, but published as the options say.
    pub(crate) fn publish(store: &Store, port: u16, options: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let log = File::create(directory.path().join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_gorget"))
            .arg("remote-worker")
            .arg(format!("--server=127.0.0.1:{port}"))
            .arg(format!("--state-directory={}", directory.path().join("state").display()))
            .args(["--minimum-disk-space=0", "--substitute-urls="])
            .args(options)
            .env("GORGET_LOG", "debug")
            .env("REQUEST_PERIOD", "1")
            .envs(store.environment())
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { directory, child: Some(child) }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn gcroots(&self) -> PathBuf {
        self.directory.path().join("state/worker/gcroots")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Sends a signal by its name.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let status = Command::new("kill").arg(format!("-{name}")).arg(pid).status().unwrap();
        assert!(status.success());
    }

    /// Waits for the process to end by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let child = self.child.as_mut().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                self.child = None;
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.log());
            pause(std::time::Duration::from_millis(10));
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.directory.path().join("log"));
            eprintln!("the worker's log:\n{}", log.unwrap_or_default());
        }
        let group = processes_of(child.id());
        let _ = child.kill();
        let _ = child.wait();
        for process in group {
            let _ = Command::new("kill").args(["-9", &process]).stderr(Stdio::null()).status();
        }
    }
}

impl Store {
    /// The derivation of this builder, a shell script, in the store.
    pub(crate) fn derivation(&self, name: &str, script: &str) -> String {
        let expression = format!(
            "derivation {{ name = \"{name}\"; system = \"{}\"; builder = \"/bin/sh\"; \
             PATH = \"/usr/bin:/bin\"; args = [ \"-c\" ''{script}'' ]; }}",
            super::jobs::system()
        );
        let output = Command::new("nix-instantiate")
            .args(["--expr", &expression])
            .envs(self.environment())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}
