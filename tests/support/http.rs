//! A client of the web interface: one request a connection, every byte under our control.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use super::daemon::{Daemon, PATIENCE};
use super::until;

/// Where the web interface of a daemon is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Web(pub(crate) SocketAddr);

/// An answer, its body whole and without transfer coding.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Web {
    /// Of a daemon that was started with `--web=127.0.0.1:0`.
    pub(crate) fn of(daemon: &Daemon) -> Self {
        let mark = "listening on http://";
        until("the address of the web interface", || {
            let log = daemon.log();
            let (_, rest) = log.rsplit_once(mark)?;
            rest.split('/').next()?.parse().ok().map(Self)
        })
    }

    pub(crate) fn connect(self) -> TcpStream {
        let stream = TcpStream::connect(self.0).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    pub(crate) fn get(self, target: &str) -> Reply {
        self.send("GET", target, &[], b"")
    }

    /// The JSON of an answer that must be good.
    #[track_caller]
    pub(crate) fn json(self, target: &str) -> Value {
        let reply = self.get(target);
        assert_eq!(reply.status, 200, "{target}: {}", reply.text());
        serde_json::from_slice(&reply.body).unwrap()
    }

    pub(crate) fn post(self, target: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        self.send("POST", target, headers, body.as_bytes())
    }

    pub(crate) fn send(
        self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Reply {
        let mut head =
            format!("{method} {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.0);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if method != "GET" && method != "HEAD" {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        let mut stream = self.connect();
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(b"\r\n").unwrap();
        stream.write_all(body).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        Reply::parse(&bytes)
    }
}

impl Reply {
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no head in {:?}", String::from_utf8_lossy(bytes)));
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.map(|line| line.split_once(": ").unwrap());
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let mut reply = Self { status, headers, body: bytes[end + 4..].to_vec() };
        // The answer to HEAD has the coding, and no body.
        let empty = reply.body.is_empty();
        if !empty && reply.header("transfer-encoding").is_some_and(|coding| coding == "chunked") {
            reply.body = dechunk(&reply.body);
        }
        reply
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

fn dechunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    loop {
        let line = bytes.windows(2).position(|two| two == b"\r\n").expect("a chunk's size");
        let size = std::str::from_utf8(&bytes[..line]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        bytes = &bytes[line + 2..];
        if size == 0 {
            return whole;
        }
        whole.extend_from_slice(&bytes[..size]);
        bytes = &bytes[size + 2..];
    }
}
