//! Logs as plain text: whole, from an offset, their last lines, a range, or as they grow.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::accept;
use super::range::{self, Range};
use crate::db::web::downloads;
use crate::db::{self, Reader, evaluations};
use crate::logs::Tail;
use crate::model::build::BuildId;
use crate::model::evaluation::EvaluationId;
use crate::model::status::EvaluationStatus;
use crate::web::context::{Context, Shared};
use crate::web::failure::Failure;
use crate::web::live::follow::{self, Listener};
use crate::web::request::Request;
use crate::web::response::{Body, Response, Sink, TEXT};
use crate::web::route::Captures;

const STORES: [&str; 2] = ["/gnu/store", "/nix/store"];

/// The most lines that `tail=` gives: where each begins is held in memory.
const MAX_TAIL: u64 = 10_000;

/// A larger file is sent whole where a range is asked for: its text has to be counted first, which takes a worker
/// some tenths of a second for this much.
const MAX_COUNTED: u64 = 8 * 1024 * 1024;

/// What `/api/build/ID/log` gives at once.
const PIECE: usize = 256 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::web) enum Of {
    Build(BuildId),
    Evaluation(EvaluationId),
}

impl Of {
    /// What the component `id` of a build's path names.
    pub(in crate::web) fn build(request: &Request, captures: &Captures) -> Result<Self, Failure> {
        captures.id("id").map(|id| Self::Build(BuildId(id))).ok_or_else(|| missing(request))
    }

    /// As `build`, of an evaluation's path.
    pub(in crate::web) fn evaluation(
        request: &Request,
        captures: &Captures,
    ) -> Result<Self, Failure> {
        captures
            .id("id")
            .map(|id| Self::Evaluation(EvaluationId(id)))
            .ok_or_else(|| missing(request))
    }
}

/// A log, and how its writer is doing.
pub(in crate::web) struct Source {
    pub(in crate::web) of: Of,
    pub(in crate::web) shared: Arc<Shared>,
}

/// What the books say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::web) struct Look {
    pub(in crate::web) status: &'static str,
    /// Nothing more will be written.
    pub(in crate::web) over: bool,
    /// Each writes a log anew.
    pub(in crate::web) attempt: i64,
    path: Option<PathBuf>,
}

impl Source {
    fn of(context: &Context, of: Of) -> Self {
        Self { of, shared: Arc::clone(&context.shared) }
    }

    /// Looks without a connection that is kept: whoever follows a log looks seldom, and there are many of them.
    pub(in crate::web) fn look(&self) -> Result<Option<Look>, db::Error> {
        self.look_in(&Reader::open(&self.shared.config.database)?)
    }

    pub(in crate::web) fn look_in(&self, reader: &Reader) -> Result<Option<Look>, db::Error> {
        match self.of {
            Of::Build(id) => Ok(downloads::log(reader, id)?.map(|found| Look {
                status: found.status.word(),
                over: !found.status.is_pending(),
                attempt: found.attempt,
                path: found.path,
            })),
            Of::Evaluation(id) => Ok(evaluations::get(reader, id)?.map(|found| Look {
                status: found.status.word(),
                over: found.status != EvaluationStatus::Started,
                attempt: 1,
                path: Some(self.shared.config.log_directory.join(format!("evaluations/{id}.gz"))),
            })),
        }
    }
}

impl Look {
    /// `None` if there is no file yet, or no more.
    pub(in crate::web) fn open(&self, from: u64) -> io::Result<Option<Tail>> {
        let Some(path) = &self.path else { return Ok(None) };
        match Tail::open(path, from) {
            Ok(tail) => Ok(Some(tail)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

pub(super) fn of_build(
    context: &mut Context,
    request: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    raw(context, request, Of::build(request, captures)?)
}

pub(super) fn of_evaluation(
    context: &mut Context,
    request: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    raw(context, request, Of::evaluation(request, captures)?)
}

/// Of the build that made an output, by its name in either store.
pub(super) fn of_output(
    context: &mut Context,
    request: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    let (name, books) = (captures.get("name"), context.books()?);
    for store in STORES {
        if let Some(id) = downloads::build_of_output(books, &format!("{store}/{name}"))? {
            return raw(context, request, Of::Build(id));
        }
    }
    Err(missing(request))
}

pub(in crate::web) fn missing(request: &Request) -> Failure {
    Failure::missing(format!("Resource not found: {}", request.target))
}

fn raw(context: &mut Context, request: &Request, of: Of) -> Result<Response, Failure> {
    let source = Source::of(context, of);
    let look = source.look_in(context.books()?)?.ok_or_else(|| missing(request))?;
    let from = match range::offset(request, "offset")? {
        Some(from) => Some(from),
        None => range::offset(request, "from")?,
    };
    if request.query.get("follow").is_some_and(|follow| follow != "0") {
        let seat = context.shared.live.follower(request.peer)?;
        return Ok(text(Body::Stream(Box::new(move |out| {
            let _seat = seat;
            follow::run(&source, &look, from.unwrap_or(0), &mut Text { out })
        }))));
    }
    let path = look.path.clone().ok_or_else(|| missing(request))?;
    let file = File::open(&path).map_err(|error| gone(&error, request))?;
    if let Some(lines) = range::offset(request, "tail")? {
        let lines = lines.min(MAX_TAIL);
        return Ok(text(Body::Stream(Box::new(move |out| {
            let from = last_lines(&path, lines)?;
            copy(&path, from, u64::MAX, out)
        }))));
    }
    if let Some(from) = from {
        return Ok(text(Body::Stream(Box::new(move |out| copy(&path, from, u64::MAX, out)))));
    }
    let metadata = file.metadata().map_err(|error| gone(&error, request))?;
    if !look.over {
        return Ok(text(Body::Stream(Box::new(move |out| copy(&path, 0, u64::MAX, out)))));
    }
    let tag = |coding: &str| {
        let (inode, length, time) = (metadata.ino(), metadata.len(), metadata.mtime());
        format!("\"{inode:x}-{length:x}-{time:x}{coding}\"")
    };
    let gzip = accept::gzip(request.header("accept-encoding")) && request.header("range").is_none();
    let tag = tag(if gzip { "-gzip" } else { "" });
    let finish = |response: Response| {
        response
            .with("ETag", tag.clone())
            .with("Accept-Ranges", "bytes")
            .with("Vary", "Accept-Encoding")
    };
    if range::is_known(request, &tag) {
        return Ok(finish(Response::bytes(304, TEXT, "")));
    }
    if gzip {
        let body = Body::File { file, from: 0, length: metadata.len() };
        return Ok(finish(text(body)).with("Content-Encoding", "gzip"));
    }
    if request.header("range").is_some() && metadata.len() <= MAX_COUNTED {
        let total = count(&path).map_err(|error| gone(&error, request))?;
        match range::wanted(request, total, &tag) {
            Range::All => {}
            Range::Beyond => return Ok(range::beyond(total)),
            Range::Part { from, length } => {
                let body = Body::Stream(Box::new(move |out| copy(&path, from, length, out)));
                return Ok(range::partial(finish(text(body)), from, length, total));
            }
        }
    }
    Ok(finish(text(Body::Stream(Box::new(move |out| copy(&path, 0, u64::MAX, out))))))
}

fn text(body: Body) -> Response {
    Response { status: 200, headers: vec![("Content-Type", TEXT.to_owned())], body }
        .with("Content-Disposition", "inline")
        .with("X-Content-Type-Options", "nosniff")
        .with("X-Accel-Buffering", "no")
}

fn gone(error: &io::Error, request: &Request) -> Failure {
    if error.kind() != io::ErrorKind::NotFound {
        log::warn!(target: "web", "cannot read a log for {}: {error}", request.target);
    }
    missing(request)
}

/// At most `length` bytes of the text from `from`.
fn copy(path: &Path, from: u64, length: u64, out: &mut dyn Sink) -> io::Result<()> {
    let (mut tail, mut left, mut piece) = (Tail::open(path, from)?, length, Vec::new());
    while left > 0 && tail.read(&mut piece)?.is_some() {
        piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        out.write_all(&piece)?;
        left -= piece.len() as u64;
        piece.clear();
    }
    out.flush()
}

/// The length of the text.
fn count(path: &Path) -> io::Result<u64> {
    let (mut tail, mut piece, mut total) = (Tail::open(path, 0)?, Vec::new(), 0);
    while tail.read(&mut piece)?.is_some() {
        total += piece.len() as u64;
        piece.clear();
    }
    Ok(total)
}

/// Where the last lines begin.
fn last_lines(path: &Path, lines: u64) -> io::Result<u64> {
    let (mut tail, mut piece) = (Tail::open(path, 0)?, Vec::new());
    let lines = usize::try_from(lines).unwrap_or(usize::MAX);
    // One more than lines: where the text ends may be where a line begins that has nothing in it.
    let (mut starts, mut position) = (VecDeque::from([0_u64]), 0);
    while tail.read(&mut piece)?.is_some() {
        for (at, _) in piece.iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
            starts.push_back(position + at as u64 + 1);
            if starts.len() > lines + 1 {
                starts.pop_front();
            }
        }
        position += piece.len() as u64;
        piece.clear();
    }
    if starts.back() == Some(&position) {
        starts.pop_back();
    }
    let first = starts.len().saturating_sub(lines);
    Ok(starts.get(first).copied().unwrap_or(position))
}

/// Follows as text: what another try writes comes after what the one before wrote.
struct Text<'a> {
    out: &'a mut dyn Sink,
}

impl Listener for Text<'_> {
    fn sink(&mut self) -> &mut dyn Sink {
        self.out
    }

    fn status(&mut self, _look: &Look) -> io::Result<()> {
        Ok(())
    }

    fn begin(&mut self, _attempt: i64) -> io::Result<()> {
        Ok(())
    }

    fn text(&mut self, _offset: u64, bytes: &mut Vec<u8>, _end: bool) -> io::Result<()> {
        self.out.write_all(bytes)?;
        bytes.clear();
        Ok(())
    }
}

#[derive(Serialize)]
struct PieceView<'a> {
    offset: u64,
    /// Where to go on.
    next: u64,
    /// Nothing comes after it.
    end: bool,
    text: &'a str,
}

/// A piece of a build's log as JSON; invalid UTF-8 is replaced.
pub(super) fn piece(
    context: &mut Context,
    request: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    let given = captures.get("id");
    let none = || Failure::missing(format!("Build with ID {given} doesn't exist."));
    let id = captures.id("id").ok_or_else(none)?;
    let source = Source::of(context, Of::Build(BuildId(id)));
    let look = source.look_in(context.books()?)?.ok_or_else(none)?;
    let from = range::offset(request, "offset")?.unwrap_or(0);
    let unreadable =
        |error| Failure::Internal(format!("cannot read the log of build {id}: {error}"));
    let without = || Failure::missing(format!("Build {id} has no log."));
    let mut tail = look.open(from).map_err(unreadable)?.ok_or_else(without)?;
    let (mut bytes, mut end) = (Vec::new(), false);
    while bytes.len() < PIECE && !end {
        end = tail.read(&mut bytes).map_err(unreadable)?.is_none();
    }
    // A character that may go on is left for the next piece.
    let length = if end && look.over { bytes.len() } else { follow::whole_characters(&bytes) };
    let text = String::from_utf8_lossy(&bytes[..length]);
    let next = from + length as u64;
    Ok(Response::json(&PieceView { offset: from, next, end: end && look.over, text: &text }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::Writer;

    #[test]
    fn last_lines_are_found() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.gz");
        for (text, lines, expected) in [
            ("", 3, ""),
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\nb\nc\n", 3, "a\nb\nc\n"),
            ("a\nb\nc\n", 30, "a\nb\nc\n"),
            ("a\nb\nc\n", 0, ""),
            ("\n\n\n", 2, "\n\n"),
        ] {
            let mut writer = Writer::create(&path).unwrap();
            writer.write(text.as_bytes()).unwrap();
            drop(writer);
            let from = usize::try_from(last_lines(&path, lines).unwrap()).unwrap();
            assert_eq!(&text[from..], expected, "{lines} of {text:?}");
            assert_eq!(count(&path).unwrap(), text.len() as u64);
        }
    }
}
