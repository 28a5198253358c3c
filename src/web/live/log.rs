//! A log that grows, as server-sent events: whole lines as HTML, each with the place behind it to resume from.
//!
//! Events: `status` (the build's or evaluation's is another), `log` ({"html"}), `begin` (another try writes the log
//! anew: what was told before is no longer part of it), `end`.

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use maud::Markup;
use serde::Serialize;

use super::follow::{self, Listener};
use crate::proto::control::view::json;
use crate::sys::clock;
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::file::{Look, Of, Source, missing};
use crate::web::log_view::Painter;
use crate::web::request::Request;
use crate::web::response::{Response, Sink};
use crate::web::route::Captures;

/// Proxies and browsers take a connection for dead when nothing comes.
pub(super) const ALIVE: Duration = Duration::from_secs(15);

/// What is told in one event: browsers hold an event whole.
const PIECE: usize = 64 * 1024;

/// A line that does not end is told in parts.
const MAX_LINE: usize = 256 * 1024;

/// Lines of one event: as HTML the shortest weighs sixty times as much.
const LINES: usize = 1_000;

pub(super) fn of_build(
    context: &mut Context,
    request: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    answer(context, request, Of::build(request, captures)?)
}

pub(super) fn of_evaluation(
    context: &mut Context,
    request: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    answer(context, request, Of::evaluation(request, captures)?)
}

fn answer(context: &mut Context, request: &Request, of: Of) -> Result<Response, Failure> {
    let source = Source { of, shared: std::sync::Arc::clone(&context.shared) };
    let look = source.look_in(context.books()?)?.ok_or_else(|| missing(request))?;
    // What a browser says when it comes back is newer than the address.
    let from = request.header("last-event-id").or_else(|| request.query.get("from"));
    let from = match from {
        None | Some("") => Place::default(),
        Some(text) => Place::parse(text).ok_or_else(|| {
            Failure::bad(format!("{text:?} is no place in a log: expected an offset in bytes"))
        })?,
    };
    let seat = context.shared.live.listener(request.peer)?;
    Ok(super::events::stream(move |out| {
        let _seat = seat;
        let told = follow_log(&source, &look, from, out);
        super::events::ended(told)
    }))
}

fn follow_log(source: &Source, look: &Look, from: Place, out: &mut dyn Sink) -> io::Result<()> {
    let current = look.attempt.max(1);
    let attempt = from.attempt.unwrap_or(current);
    // It comes back for the log of a try that is over.
    let stale = attempt != current;
    let offset = if stale { 0 } else { from.offset };
    let line = from.line.unwrap_or(1);
    let mut teller =
        Teller { out, attempt: current, line, painter: Painter::default(), last: clock::now() };
    if stale {
        teller.begin(current)?;
    }
    follow::run(source, look, offset, &mut teller)?;
    teller.event("end", None, "{}")?;
    teller.out.flush()
}

/// An id: the offset behind what was told and, each after a dot, the try whose log it is, and the number of the line
/// that comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::web) struct Place {
    offset: u64,
    attempt: Option<i64>,
    line: Option<usize>,
}

impl Place {
    pub(in crate::web) fn of(offset: u64, attempt: i64, line: usize) -> Self {
        // One that is yet to begin writes what the first does.
        Self { offset, attempt: Some(attempt.max(1)), line: Some(line) }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let offset = parts.next()?.parse().ok()?;
        let attempt = parts.next().map(str::parse).transpose().ok()?;
        // Far from the end of what lines can be counted with.
        let line = parts.next().map(str::parse::<u32>).transpose().ok()?;
        let line = line.map(usize::try_from).transpose().ok()?;
        parts.next().is_none().then_some(Self { offset, attempt, line })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.offset)?;
        if let Some(attempt) = self.attempt {
            write!(f, ".{attempt}")?;
        }
        self.line.map_or(Ok(()), |line| write!(f, ".{line}"))
    }
}

struct Teller<'a> {
    out: &'a mut dyn Sink,
    attempt: i64,
    /// The number of the next line.
    line: usize,
    painter: Painter,
    last: Instant,
}

#[derive(Serialize)]
struct LinesView<'a> {
    html: &'a str,
}

#[derive(Serialize)]
struct StateView<'a> {
    status: &'a str,
    over: bool,
}

#[derive(Serialize)]
struct AttemptView {
    attempt: i64,
}

impl Teller<'_> {
    /// `offset` if whoever heard this may come back for what is behind it.
    fn event(&mut self, name: &str, offset: Option<u64>, data: &str) -> io::Result<()> {
        writeln!(self.out, "event: {name}")?;
        if let Some(offset) = offset {
            writeln!(self.out, "id: {}", Place::of(offset, self.attempt, self.line))?;
        }
        self.last = clock::now();
        write!(self.out, "data: {data}\n\n")
    }
}

impl Listener for Teller<'_> {
    fn sink(&mut self) -> &mut dyn Sink {
        self.out
    }

    fn status(&mut self, look: &Look) -> io::Result<()> {
        let data = json(&StateView { status: look.status, over: look.over });
        self.event("status", None, &data)
    }

    fn begin(&mut self, attempt: i64) -> io::Result<()> {
        (self.attempt, self.line, self.painter) = (attempt, 1, Painter::default());
        self.event("begin", Some(0), &json(&AttemptView { attempt }))
    }

    fn text(&mut self, offset: u64, bytes: &mut Vec<u8>, end: bool) -> io::Result<()> {
        let mut told = 0;
        while told < bytes.len() {
            let rest = &bytes[told..];
            let window = &rest[..rest.len().min(PIECE)];
            let ends = window.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
            let whole = ends.take(LINES).last().map(|(at, _)| at + 1);
            let length = match whole {
                Some(length) => length,
                None => match rest.iter().position(|&byte| byte == b'\n') {
                    Some(at) => at + 1,
                    None if end => rest.len(),
                    None if rest.len() >= MAX_LINE => follow::whole_characters(rest),
                    None => break,
                },
            };
            let text = String::from_utf8_lossy(&rest[..length]);
            let html: Markup = self.painter.lines(&text, self.line);
            self.line += text.lines().count();
            told += length;
            let data = json(&LinesView { html: &html.into_string() });
            self.event("log", Some(offset + told as u64), &data)?;
        }
        bytes.drain(..told);
        Ok(())
    }

    fn idle(&mut self) -> io::Result<()> {
        if clock::now() >= self.last + ALIVE {
            self.last = clock::now();
            self.out.write_all(b":\n\n")?;
            self.out.flush()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_offsets_with_or_without_a_try_and_a_line() {
        for (text, attempt, line) in
            [("12", None, None), ("12.3", Some(3), None), ("12.3.4", Some(3), Some(4))]
        {
            let place = Place { offset: 12, attempt, line };
            assert_eq!(Place::parse(text), Some(place));
            assert_eq!(place.to_string(), text);
        }
        for text in ["", ".", "12.", "x", "-1", "1.2.x", "1.2.4294967296", "1.2.3.4"] {
            assert_eq!(Place::parse(text), None, "{text:?}");
        }
    }
}
