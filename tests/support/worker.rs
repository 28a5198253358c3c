//! A worker that plays Guile's: it says what that says, byte for byte and in that order, and what it is told to say.
//!
//! Its sockets are libzmq's, as Guile's are. What no libzmq would send goes over plain connections.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::PATIENCE;

/// A store name of this name, as good as any.
pub(crate) fn derivation(name: &str) -> String {
    format!("/gnu/store/630anh2v63k4dgs6vdr2dgrjn418nrmi-{name}.drv")
}

/// One loop of a worker: a connection that asks for work, and one that says that it lives.
pub(crate) struct Worker {
    pub(crate) name: String,
    context: zmq::Context,
    endpoint: String,
    pub(crate) requests: zmq::Socket,
    pings: zmq::Socket,
    log_port: u16,
}

impl Worker {
    /// Joins the server on this port, as 3.13 of the reference has it.
    #[track_caller]
    pub(crate) fn join(port: u16, name: &str) -> Self {
        Self::join_in(&zmq::Context::new(), port, name)
    }

    /// As `join`, with the threads of this context, which has room for some five hundred workers.
    #[track_caller]
    pub(crate) fn join_in(context: &zmq::Context, port: u16, name: &str) -> Self {
        let mut worker = Self::connect_in(context, port, name);
        worker.wait_for_probe();
        worker.say("(worker-request-info)");
        let info = worker.hear();
        let port = info.split("(log-port ").nth(1).and_then(|rest| rest.split(')').next());
        worker.log_port =
            port.and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("{info}"));
        let record = worker.record();
        worker.say(&format!("(worker-ready {record})"));
        worker.ping();
        worker
    }

    /// Two connections on which nothing was said yet.
    pub(crate) fn connect(port: u16, name: &str) -> Self {
        Self::connect_in(&zmq::Context::new(), port, name)
    }

    fn connect_in(context: &zmq::Context, port: u16, name: &str) -> Self {
        let endpoint = format!("tcp://127.0.0.1:{port}");
        let (requests, pings) = (dealer(context, &endpoint), dealer(context, &endpoint));
        let context = context.clone();
        Self { name: name.to_owned(), context, endpoint, requests, pings, log_port: 0 }
    }

    pub(crate) fn record(&self) -> String {
        format!(
            r#"(worker (name "{}") (address "127.0.0.1") (machine "testmachine") (systems ("x86_64-linux" "i686-linux")) (last-seen 0))"#,
            self.name
        )
    }

    /// The first message of every connection is one empty frame.
    #[track_caller]
    pub(crate) fn wait_for_probe(&self) {
        assert_eq!(self.frames(), [b"".to_vec()]);
    }

    /// The frames of the next message.
    #[track_caller]
    pub(crate) fn frames(&self) -> Vec<Vec<u8>> {
        self.requests.recv_multipart(0).unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    /// The next message that is no probe.
    #[track_caller]
    pub(crate) fn hear(&self) -> String {
        loop {
            let frames = self.frames();
            match frames.as_slice() {
                [probe] if probe.is_empty() => {}
                [empty, payload] if empty.is_empty() => {
                    return String::from_utf8(payload.clone()).unwrap();
                }
                _ => panic!("{}: {frames:?}", self.name),
            }
        }
    }

    /// Whether there is a message now.
    pub(crate) fn has_message(&self) -> bool {
        self.requests.poll(zmq::POLLIN, 0).unwrap() > 0
    }

    pub(crate) fn say(&self, payload: &str) {
        self.requests.send_multipart(["", payload], 0).unwrap();
    }

    pub(crate) fn ping(&self) {
        let payload = format!("(worker-ping {})", self.record());
        self.pings.send_multipart(["", payload.as_str()], 0).unwrap();
    }

    pub(crate) fn request_work(&self) {
        self.say(&format!(r#"(worker-request-work "{}")"#, self.name));
    }

    /// The derivation of the build that comes next.
    #[track_caller]
    pub(crate) fn build(&self) -> String {
        let message = self.hear();
        let rest = message.strip_prefix("(build (drv \"").unwrap_or_else(|| panic!("{message}"));
        rest.split('"').next().unwrap().to_owned()
    }

    pub(crate) fn begin(&self, derivation: &str) {
        self.say(&format!(r#"(build-started (drv "{derivation}") (worker "{}"))"#, self.name));
    }

    pub(crate) fn succeed(&self, derivation: &str) {
        self.say(&format!(
            r#"(build-succeeded (drv "{derivation}") (url "http://127.0.0.1:5558") (log #f))"#
        ));
    }

    pub(crate) fn fail(&self, derivation: &str) {
        self.say(&format!(
            r#"(build-failed (drv "{derivation}") (url "http://127.0.0.1:5558") (log #f))"#
        ));
    }

    /// Sends a whole log.
    pub(crate) fn log(&self, derivation: &str, text: &str) {
        let mut stream = log_connection(self.log_port, derivation);
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text.as_bytes()).unwrap();
        stream.write_all(&encoder.finish().unwrap()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        // Until the server has read all of it.
        stream.read_to_end(&mut Vec::new()).unwrap();
    }

    /// Breaks both connections, as a network does, and connects again.
    pub(crate) fn reconnect(&mut self) {
        self.requests = dealer(&self.context, &self.endpoint);
        self.pings = dealer(&self.context, &self.endpoint);
    }
}

fn dealer(context: &zmq::Context, endpoint: &str) -> zmq::Socket {
    let socket = context.socket(zmq::DEALER).unwrap();
    let patience = i32::try_from(PATIENCE.as_millis()).unwrap();
    socket.set_rcvtimeo(patience).unwrap();
    socket.set_sndtimeo(patience).unwrap();
    socket.set_linger(0).unwrap();
    socket.connect(endpoint).unwrap();
    socket
}

/// A connection to the port for logs, with its header sent in small pieces, as Guile's worker sends it.
pub(crate) fn log_connection(port: u16, derivation: &str) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut greeting = [0; 24];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"(log-server (version 0))");
    stream.set_nodelay(true).unwrap();
    for byte in format!(r#"(log (version 0) (derivation "{derivation}"))"#).bytes() {
        stream.write_all(&[byte]).unwrap();
    }
    stream
}
