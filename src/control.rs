//! Control of a daemon: one vocabulary for whoever gives orders, and one trait for whoever takes them.
//!
//! The live daemon, the socket client below and the tests' double implement [`Control`]; who gives an order
//! does not know which it talks to.

pub(crate) mod timed;

use std::convert::Infallible;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use crate::proto::control::{Failure, Request};
use crate::proto::line::{Line, Lines, MAX_ANSWER, MAX_REQUEST};
use crate::sys::clock;
use timed::Timed;

/// Where the objects of an answer go.
pub(crate) trait Answer {
    /// Takes one object, on one line without its newline.
    fn object(&mut self, json: &str) -> io::Result<()>;

    /// Passes on what was taken so far: called before a wait.
    fn flush(&mut self) -> io::Result<()>;

    /// Disconnects when whoever asked is gone. Called once an answer at most, before a long wait.
    fn gone(&mut self) -> io::Result<Receiver<Infallible>>;
}

/// Why an order has no complete answer.
#[derive(Debug)]
pub(crate) enum Error {
    /// It was refused or failed.
    Failure(Failure),
    /// The answer could not be passed on: whoever asked is gone.
    Asker(io::Error),
    /// The daemon could not be reached any more.
    Daemon(io::Error),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

/// Somebody who takes orders.
pub(crate) trait Control {
    /// Does what is asked; the objects of the answer go to `answer` as they are known.
    fn perform(&mut self, request: &Request, answer: &mut dyn Answer) -> Result<(), Error>;

    /// The end of the answer has been passed on.
    fn answered(&mut self, request: &Request);
}

/// A daemon at the other end of a socket.
pub(crate) struct Client {
    lines: Lines<Timed>,
    stream: Arc<UnixStream>,
}

impl Client {
    /// How long the daemon may take for each piece of an answer that it can give at once: a backup or check of a
    /// large database is the slowest.
    const PATIENCE: Duration = Duration::from_secs(600);

    pub(crate) fn connect(socket: &Path) -> io::Result<Self> {
        let stream = Arc::new(UnixStream::connect(socket)?);
        stream.set_write_timeout(Some(Self::PATIENCE))?;
        let lines = Lines::new(Timed::new(Arc::clone(&stream)), MAX_ANSWER);
        Ok(Self { lines, stream })
    }

    /// Sends a request; `next` then gives its answer. A request that goes on as long as one likes has no
    /// deadline unless `within` sets one.
    pub(crate) fn send(
        &mut self,
        request: &Request,
        within: Option<Duration>,
    ) -> Result<(), Error> {
        let line = format!("{request}\n");
        if line.len() > MAX_REQUEST {
            let message = format!("the request is longer than {MAX_REQUEST} bytes");
            return Err(Failure::syntax(message).into());
        }
        let patience = (!request.command.is_long()).then_some(Self::PATIENCE);
        let deadline = within.or(patience).map(|time| clock::now() + time);
        self.lines.get_mut().set_deadline(deadline);
        (&*self.stream).write_all(line.as_bytes()).map_err(Error::Daemon)
    }

    /// What another thread may shut down, to wake one that waits in `next`.
    pub(crate) fn stream(&self) -> Arc<UnixStream> {
        Arc::clone(&self.stream)
    }

    /// Until when `next` waits.
    pub(crate) fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.lines.get_mut().set_deadline(deadline);
    }

    /// The next object of the answer, `None` at its end.
    pub(crate) fn next(&mut self) -> Result<Option<String>, Error> {
        let broken = |text| Error::Daemon(io::Error::new(io::ErrorKind::InvalidData, text));
        match self.lines.read().map_err(Error::Daemon)? {
            Line::Text(line) if line == "ok" => Ok(None),
            Line::Text(line) if line.starts_with('{') => Ok(Some(line)),
            Line::Text(line) => Err(Failure::from_line(&line)
                .map_or_else(|| broken("what came is no answer"), Error::Failure)),
            Line::TooLong | Line::NotUtf8 => Err(broken("what came is no answer")),
            Line::End => Err(Error::Daemon(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

impl Control for Client {
    fn perform(&mut self, request: &Request, answer: &mut dyn Answer) -> Result<(), Error> {
        self.send(request, None)?;
        while let Some(object) = self.next()? {
            answer.object(&object).map_err(Error::Asker)?;
            if !self.lines.has_line() {
                answer.flush().map_err(Error::Asker)?;
            }
        }
        answer.flush().map_err(Error::Asker)
    }

    fn answered(&mut self, _request: &Request) {}
}
