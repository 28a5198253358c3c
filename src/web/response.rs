//! An answer, and the few ways in which handlers make one.

use std::fs::File;
use std::io::{self, Write};

use serde::Serialize;

use crate::actor::Stop;

pub(super) const JSON: &str = "application/json;charset=utf-8";
pub(super) const HTML: &str = "text/html;charset=utf-8";
pub(super) const TEXT: &str = "text/plain;charset=utf-8";
pub(super) const SVG: &str = "image/svg+xml;charset=utf-8";

#[derive(Debug)]
pub(super) struct Response {
    pub(super) status: u16,
    /// Besides those that every answer has.
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Body,
}

pub(super) enum Body {
    Bytes(Vec<u8>),
    /// `length` bytes of a file from `from`.
    File {
        file: File,
        from: u64,
        length: u64,
    },
    /// Written on a thread of its own for as long as it takes.
    Stream(Stream),
}

/// What writes a stream.
pub(super) type Stream = Box<dyn FnOnce(&mut dyn Sink) -> io::Result<()> + Send>;

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            Self::File { from, length, .. } => write!(f, "{length} bytes of a file from {from}"),
            Self::Stream(_) => f.write_str("a stream"),
        }
    }
}

/// Where a stream goes: what is written reaches the client at the next `flush`. Fails when the client is gone.
pub(super) trait Sink: Write {
    /// Disconnects when the process is to stop.
    fn stop(&self) -> &Stop;
}

impl Response {
    pub(super) fn bytes(status: u16, kind: &str, body: impl Into<Vec<u8>>) -> Self {
        let headers = vec![("Content-Type", kind.to_owned())];
        Self { status, headers, body: Body::Bytes(body.into()) }
    }

    /// Compact JSON, keys in the order of their declaration.
    pub(super) fn json(value: &impl Serialize) -> Self {
        Self::json_with(200, value)
    }

    pub(super) fn json_with(status: u16, value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self::bytes(status, JSON, body),
            // Our own views have string keys and finite numbers.
            Err(error) => {
                log::error!(target: "web", "cannot write JSON: {error}");
                Self::bytes(500, JSON, r#"{"error":"internal error"}"#)
            }
        }
    }

    /// What `write` writes, for as long as that takes.
    pub(super) fn stream(
        kind: &str,
        write: impl FnOnce(&mut dyn Sink) -> io::Result<()> + Send + 'static,
    ) -> Self {
        let headers = vec![("Content-Type", kind.to_owned())];
        Self { status: 200, headers, body: Body::Stream(Box::new(write)) }
    }

    pub(super) fn html(status: u16, page: maud::Markup) -> Self {
        Self::bytes(status, HTML, page.into_string())
    }

    pub(super) fn text(status: u16, text: impl Into<String>) -> Self {
        Self::bytes(status, TEXT, text.into())
    }

    /// To a place relative to this server, after a GET.
    pub(super) fn found(location: impl Into<String>) -> Self {
        Self::bytes(302, TEXT, "Redirected...").with("Location", location)
    }

    /// To a place relative to this server, after a POST.
    pub(super) fn see_other(location: impl Into<String>) -> Self {
        Self::bytes(303, TEXT, "Redirected...").with("Location", location)
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}
