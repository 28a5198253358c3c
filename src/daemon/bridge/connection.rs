//! One connection: reads requests, has them performed, writes the answers.
//!
//! Its thread `bridge/N` blocks on the socket; it is woken by `shutdown(2)` on the stream, from the bridge's
//! actor. Memory: one request line and one buffer of answer.

use std::convert::Infallible;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::places::{Number, Permit};
use super::{Message, Opener};
use crate::actor::{Gone, Spawner, ask};
use crate::control::timed::Timed;
use crate::control::{Answer, Control, Error};
use crate::proto::control::{
    Command, Failure, FailureKind, Request, is_scheme, parse, parse_scheme,
};
use crate::proto::line::{Line, Lines, MAX_REQUEST};
use crate::proto::sexp::Sexp;
use crate::sys::clock;

/// From connecting to the first whole line, and from an over-long line's error to its end.
const FIRST_LINE: Duration = Duration::from_secs(10);

/// A peer that takes no byte of an answer for this long is dropped.
const WRITE_STALL: Duration = Duration::from_secs(10);

/// Answers leave in pieces of this size, so that a long one costs few system calls and little memory.
const BUFFER: usize = 16 * 1024;

pub(super) struct Connection {
    pub(super) number: Number,
    pub(super) stream: Arc<UnixStream>,
    pub(super) actor: Sender<Message>,
    pub(super) threads: Spawner,
}

impl Connection {
    /// Serves the peer to the end.
    pub(super) fn serve(self, open: &Opener, uid: u32) -> io::Result<()> {
        self.stream.set_write_timeout(Some(WRITE_STALL))?;
        let mut lines = Lines::new(Timed::new(Arc::clone(&self.stream)), MAX_REQUEST);
        lines.get_mut().set_deadline(Some(clock::now() + FIRST_LINE));
        let mut control = open(uid);
        loop {
            let line = lines.read();
            // From here on the peer is a served one, which may take its time.
            let limit = lines.is_skipping().then(|| clock::now() + FIRST_LINE);
            lines.get_mut().set_deadline(limit);
            match line? {
                Line::Text(line) if line.trim().is_empty() => {}
                Line::Text(line) if is_scheme(&line) => self.scheme(&line, control.as_mut())?,
                Line::Text(line) => match parse(&line) {
                    Ok(request) => self.answer(&request, control.as_mut())?,
                    Err(failure) => self.fail(&failure)?,
                },
                Line::TooLong => {
                    self.fail(&Failure::syntax(format!(
                        "expected at most {MAX_REQUEST} bytes a line"
                    )))?;
                }
                Line::NotUtf8 => self.fail(&Failure::syntax("expected UTF-8"))?,
                Line::End => return Ok(()),
            }
        }
    }

    fn fail(&self, failure: &Failure) -> io::Result<()> {
        (&*self.stream).write_all(format!("{failure}\n").as_bytes())
    }

    /// Performs a request and writes its whole answer. Fails when the connection is of no more use.
    fn answer(&self, request: &Request, control: &mut dyn Control) -> io::Result<()> {
        let mut out = Out::new(self);
        let end = match self.perform(request, control, &mut out)? {
            Ok(()) => "ok\n".to_owned(),
            Err(failure) => format!("{failure}\n"),
        };
        out.buffer.extend_from_slice(end.as_bytes());
        out.flush()?;
        drop(out);
        self.rest();
        control.answered(request);
        Ok(())
    }

    /// The whole answer has been taken: until the next request, the place may be given to a newcomer.
    fn rest(&self) {
        // Gone only when the daemon stops: then nobody comes any more.
        let _ = self.actor.send(Message::Idle(self.number));
    }

    /// What Cuirass's bridge gives: a reply to the one question it knows, else nothing, not even to nonsense.
    fn scheme(&self, line: &str, control: &mut dyn Control) -> io::Result<()> {
        let requests = match parse_scheme(line) {
            Ok(requests) => requests,
            Err(failure) => {
                log::debug!(target: "bridge", "ignored an S-expression: {failure}");
                return Ok(());
            }
        };
        for request in requests {
            let question = matches!(request.command, Command::LastUpdateTimes(_));
            if !question && !request.command.is_change() {
                continue;
            }
            let mut times = Times(None);
            let result = self.perform(&request, control, &mut times)?;
            // Of changes the audit tells.
            if let Err(failure) = &result
                && question
            {
                log::info!(target: "bridge", "{}: {failure}", request.command);
            }
            if question {
                let times = times.0.filter(|_| result.is_ok());
                let answer = times.map_or(Sexp::Bool(false), |times| {
                    Sexp::List(times.into_iter().map(Sexp::Integer).collect())
                });
                let reply = Sexp::List(vec![Sexp::Symbol("reply".to_owned()), answer]);
                (&*self.stream).write_all(format!("{reply}\n").as_bytes())?;
            }
            self.rest();
            control.answered(&request);
        }
        Ok(())
    }

    /// Performs a request when the bridge permits it; the outer error means that the connection is over. It counts
    /// as busy until `rest`.
    fn perform(
        &self,
        request: &Request,
        control: &mut dyn Control,
        answer: &mut dyn Answer,
    ) -> io::Result<Result<(), Failure>> {
        let long = request.command.is_long();
        let begin = |reply| Message::Begin { number: self.number, long, reply };
        let permit = ask(&self.actor, begin).map_err(|Gone| broken("the bridge has ended"))?;
        match permit {
            Permit::Granted => {}
            Permit::Displaced => return Err(broken("a newcomer has its place")),
            Permit::TooManyLong => {
                let message = "half of the connections already wait or subscribe";
                return Ok(Err(Failure::new(FailureKind::Unavailable, message)));
            }
        }
        Ok(match control.perform(request, answer) {
            Ok(()) => Ok(()),
            Err(Error::Failure(failure)) => Err(failure),
            Err(Error::Asker(error)) => return Err(error),
            Err(Error::Daemon(error)) => {
                Err(Failure::new(FailureKind::Unavailable, error.to_string()))
            }
        })
    }
}

fn broken(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, why)
}

/// An answer on its way to the peer.
struct Out<'a> {
    connection: &'a Connection,
    buffer: Vec<u8>,
    /// Its end ends the thread that watches for the peer's.
    watched: Option<UnixStream>,
}

impl<'a> Out<'a> {
    fn new(connection: &'a Connection) -> Self {
        Self { connection, buffer: Vec::new(), watched: None }
    }
}

impl Answer for Out<'_> {
    fn object(&mut self, json: &str) -> io::Result<()> {
        self.buffer.extend_from_slice(json.as_bytes());
        self.buffer.push(b'\n');
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        (&*self.connection.stream).write_all(&self.buffer)?;
        self.buffer.clear();
        self.buffer.shrink_to(BUFFER * 2);
        Ok(())
    }

    /// Starts the thread `bridge/N/gone`, which blocks in `poll` until both ways of the stream are closed (by the
    /// peer, or by `shutdown(2)` from the actor) or until this answer is dropped.
    fn gone(&mut self) -> io::Result<Receiver<Infallible>> {
        let (ours, theirs) = UnixStream::pair()?;
        let (sender, receiver) = bounded(0);
        let stream = Arc::clone(&self.connection.stream);
        let name = format!("bridge/{}/gone", self.connection.number);
        let watch = move |_| {
            // No events asked for: only hang-ups and errors end the wait.
            let mut both = [&*stream, &theirs].map(|s| PollFd::new(s.as_fd(), PollFlags::empty()));
            while poll(&mut both, PollTimeout::NONE) == Err(nix::errno::Errno::EINTR) {}
            drop::<Sender<Infallible>>(sender);
            Ok::<(), Gone>(())
        };
        let quiet = |_| ();
        self.connection.threads.child(&name, watch, quiet)?;
        self.watched = Some(ours);
        Ok(receiver)
    }
}

/// Catches the answer to `jobset-last-update-times`.
struct Times(Option<Vec<i64>>);

impl Answer for Times {
    fn object(&mut self, json: &str) -> io::Result<()> {
        let object: serde_json::Value = serde_json::from_str(json)?;
        let times = object.get("times").and_then(|times| times.as_array());
        self.0 = times.map(|times| times.iter().filter_map(serde_json::Value::as_i64).collect());
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn gone(&mut self) -> io::Result<Receiver<Infallible>> {
        Err(broken("a question of Scheme's has no long answer"))
    }
}
