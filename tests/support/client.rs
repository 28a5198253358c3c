//! A client of the bridge: writes lines, reads answers, always under a deadline.

use std::io::{self, BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use super::PATIENCE;

/// One answer: its objects, and its last line.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) objects: Vec<Value>,
    pub(crate) last: String,
}

impl Answer {
    /// The objects of an answer that must be `ok`.
    #[track_caller]
    pub(crate) fn ok(self) -> Vec<Value> {
        assert_eq!(self.last, "ok", "after {:?}", self.objects);
        self.objects
    }

    /// The one object of an answer that must be `ok`.
    #[track_caller]
    pub(crate) fn one(self) -> Value {
        let mut objects = self.ok();
        assert_eq!(objects.len(), 1, "{objects:?}");
        objects.remove(0)
    }

    /// The kind of the error, `None` if it is none.
    pub(crate) fn error(&self) -> Option<&str> {
        self.last.strip_prefix("error ")?.split(' ').next()
    }
}

/// A connection to a bridge.
pub(crate) struct Client {
    reader: BufReader<UnixStream>,
}

impl Client {
    pub(crate) fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// The connection itself, to do with it what no good client would.
    pub(crate) fn stream(&self) -> &UnixStream {
        self.reader.get_ref()
    }

    /// Sends bytes as they are.
    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.reader.get_mut().write_all(bytes)
    }

    /// Sends a line.
    pub(crate) fn send(&mut self, request: &str) -> io::Result<()> {
        self.send_bytes(format!("{request}\n").as_bytes())
    }

    /// Says that no more requests will come.
    pub(crate) fn finish(&mut self) {
        // The other side may have hung up already.
        let _ = self.stream().shutdown(Shutdown::Write);
    }

    /// The next line without its end; `None` when the other side has hung up.
    pub(crate) fn line(&mut self) -> io::Result<Option<String>> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        Ok(Some(line.trim_end_matches('\n').to_owned()))
    }

    /// The next event or object; `None` when the other side has hung up.
    pub(crate) fn object(&mut self) -> io::Result<Option<Value>> {
        let Some(line) = self.line()? else { return Ok(None) };
        Ok(Some(serde_json::from_str(&line).map_err(io::Error::other)?))
    }

    /// The next whole answer; an end before its last line is `UnexpectedEof`.
    pub(crate) fn answer(&mut self) -> io::Result<Answer> {
        let mut objects = Vec::new();
        loop {
            let line = self.line()?.ok_or(io::ErrorKind::UnexpectedEof)?;
            if line == "ok" || line.starts_with("error ") {
                return Ok(Answer { objects, last: line });
            }
            objects.push(serde_json::from_str(&line).map_err(io::Error::other)?);
        }
    }

    /// Sends a request and reads its answer; fails if the daemon goes away meanwhile.
    pub(crate) fn try_ask(&mut self, request: &str) -> io::Result<Answer> {
        self.send(request)?;
        self.answer()
    }

    /// Sends a request and reads its answer.
    #[track_caller]
    pub(crate) fn ask(&mut self, request: &str) -> Answer {
        self.try_ask(request).unwrap_or_else(|error| panic!("no answer to {request:?}: {error}"))
    }
}
