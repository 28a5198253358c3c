//! Watches a running evaluator: lines become jobs, errors the log, its end an ending.
//!
//! Invariant: what is kept of its output is bounded by the longest line and by what the resolver may hold,
//! whatever it prints; and nothing waits without the sink's and the evaluation's deadlines.

use std::collections::HashSet;
use std::fmt;
use std::time::{Duration, Instant};

use super::ask::{FOREIGN, HOLD, PROFILE};
use super::line::{self, AWAIT, MAX_LINE, What};
use super::resolve::{self, Resolver};
use super::{inputs, nix};
use crate::model::evaluation::Ending;
use crate::model::job::{NewJob, Work};
use crate::model::spec::Evaluator;
use crate::sys::clock;
use crate::sys::process::{Child, Exit, How, Read};

/// How long a child may take to end after SIGTERM; the whole daemon stops in three times that.
const GRACE: Duration = Duration::from_secs(3);

/// Different remarks on unknown fields that are logged: further ones tell nobody anything.
const MAX_NOTES: usize = 64;

/// Jobs wrong for their needs that the log lists; all have their message in the books.
const MAX_LISTED: usize = 100;

/// Bytes at the end of standard error that are searched for a word about memory.
const TAIL: usize = 8 << 10;

/// Characters of a bad line that the log shows.
const EXCERPT: usize = 200;

/// Where an evaluation's jobs and text go.
pub(crate) trait Sink {
    /// A valid line as it was printed, with all jobs that can now be registered; takes them. May wait.
    fn jobs(&mut self, line: &[u8], jobs: &mut Vec<NewJob>) -> Result<(), Cut>;
    /// The evaluator waits for the end of the build of this job, which came before.
    fn awaits(&mut self, job: &str, system: &str) -> Result<(), Cut>;
    /// The evaluator waits until the derivations of the jobs so far are kept.
    fn holds(&mut self) -> Result<(), Cut>;
    /// What the evaluator wrote for people.
    fn errors(&mut self, bytes: &[u8]);
    /// A remark of ours for people: one line.
    fn note(&mut self, text: &str);
    /// Why the evaluation failed, for people.
    fn failed(&mut self, reason: &str) {
        self.note(&format!("the evaluation failed: {reason}"));
    }
    /// How long the evaluator has waited for answers: that is not its own time. While one is due, a little more.
    fn waited(&mut self) -> Duration {
        Duration::ZERO
    }
    /// When `tick` is next needed.
    fn due(&self) -> Option<Instant>;
    /// Called after every read.
    fn tick(&mut self) -> Result<(), Cut>;
    /// Why the child was canceled.
    fn why(&mut self) -> Cut;
}

/// Why an evaluation is ended before its evaluator ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    Canceled,
    Interrupted,
    TimedOut,
    /// Its jobs cannot be registered: why.
    Broken(String),
}

/// What bounds an evaluation.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Zero for none.
    pub(crate) timeout: Duration,
    pub(crate) started: Instant,
    /// Bytes of address space that it was given.
    pub(crate) memory: Option<u64>,
    /// The program, for people.
    pub(crate) program: String,
    /// Directories of the stores where derivations can be.
    pub(crate) stores: Vec<String>,
    /// Whether it is one of ours, which says in a last line [`nix::SAYS`] why it failed.
    pub(crate) explains: bool,
}

impl Limits {
    pub(crate) fn new(evaluation: &super::Evaluation<'_>, started: Instant) -> Self {
        let specification = evaluation.specification;
        let program = match &specification.evaluator {
            Evaluator::Command(words) => words.first().cloned().unwrap_or_default(),
            evaluator @ (Evaluator::Guix(_) | Evaluator::Nix(_)) => evaluator.word().to_owned(),
        };
        let timeout = specification.evaluation_timeout;
        let explains = matches!(specification.evaluator, Evaluator::Guix(_) | Evaluator::Nix(_));
        let (memory, stores) = (evaluation.memory, evaluation.stores.to_vec());
        Self { timeout, started, memory, program, stores, explains }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        if self.timeout.is_zero() { None } else { self.started.checked_add(self.timeout) }
    }
}

/// Reads the child to its end, or to the first reason to end it.
pub(crate) fn run(
    mut child: Child,
    resolver: Resolver,
    limits: &Limits,
    sink: &mut impl Sink,
) -> Ending {
    let mut lines = Lines {
        resolver,
        partial: Vec::new(),
        number: 0,
        noted: HashSet::new(),
        ready: Vec::new(),
        stores: limits.stores.clone(),
        explains: limits.explains,
        has_awaited: false,
    };
    let mut tail = Vec::new();
    let ending = match watch(&mut child, &mut lines, &mut tail, limits, sink) {
        Ok(exit) => ended(&exit, &mut lines, &tail, limits, sink),
        Err(Stop::Cut(cut)) => {
            child.stop(GRACE);
            cut.ending(limits)
        }
        Err(Stop::Line(bad)) => {
            child.stop(Duration::ZERO);
            bad_line(&bad, sink)
        }
        Err(Stop::Read(error)) => {
            child.stop(Duration::ZERO);
            unreadable(&error)
        }
    };
    match &ending {
        Ending::Failed(reason) => {
            let held = lines.resolver.held();
            if held > 0 {
                sink.note(&format!(
                    "{held} jobs needed others that were never printed and are left out"
                ));
            }
            sink.failed(reason);
        }
        Ending::Aborted(reason) => sink.note(&format!("the evaluation was aborted: {reason}")),
        Ending::Succeeded | Ending::Canceled | Ending::Interrupted => {}
    }
    ending
}

impl Cut {
    pub(crate) fn ending(self, limits: &Limits) -> Ending {
        match self {
            Self::Canceled => Ending::Canceled,
            Self::Interrupted => Ending::Interrupted,
            Self::TimedOut => {
                Ending::Failed(format!("timed out after {} s", limits.timeout.as_secs()))
            }
            Self::Broken(reason) => Ending::Aborted(reason),
        }
    }
}

fn unreadable(error: &std::io::Error) -> Ending {
    Ending::Aborted(format!("cannot read from its process: {error}"))
}

/// Why reading stopped before the child's end.
enum Stop {
    Cut(Cut),
    Line(BadLine),
    Read(std::io::Error),
}

impl From<Cut> for Stop {
    fn from(cut: Cut) -> Self {
        Self::Cut(cut)
    }
}

fn watch(
    child: &mut Child,
    lines: &mut Lines,
    tail: &mut Vec<u8>,
    limits: &Limits,
    sink: &mut impl Sink,
) -> Result<Exit, Stop> {
    let mut deadline = limits.deadline();
    // One read of a child is at most 64 KiB.
    let mut buffer = Vec::with_capacity(64 << 10);
    loop {
        buffer.clear();
        let due = deadline.into_iter().chain(sink.due()).min();
        match child.read(&mut buffer, due).map_err(Stop::Read)? {
            Read::Output => lines.feed(&buffer, sink)?,
            Read::Errors => {
                sink.errors(&buffer);
                tail.extend_from_slice(&buffer);
                tail.drain(..tail.len().saturating_sub(TAIL));
            }
            Read::Deadline => {}
            Read::Canceled => return Err(sink.why().into()),
            Read::Ended(exit) => return Ok(exit),
        }
        deadline = limits.deadline().and_then(|deadline| deadline.checked_add(sink.waited()));
        if deadline.is_some_and(|deadline| deadline <= clock::now()) {
            return Err(Cut::TimedOut.into());
        }
        sink.tick()?;
    }
}

/// The ending of an evaluator that ended by itself.
fn ended(
    exit: &Exit,
    lines: &mut Lines,
    tail: &[u8],
    limits: &Limits,
    sink: &mut impl Sink,
) -> Ending {
    let complete = exit.how == How::Code(0);
    let last = lines.last(sink).and_then(|()| if complete { lines.finish(sink) } else { Ok(()) });
    match last {
        Ok(()) => {}
        Err(Stop::Cut(cut)) => return cut.ending(limits),
        // Of an evaluator that broke, half a line is no surprise: why it broke is the reason.
        Err(Stop::Line(bad)) if complete => return bad_line(&bad, sink),
        Err(Stop::Line(bad)) => sink.note(&bad.to_string()),
        Err(Stop::Read(error)) => return unreadable(&error),
    }
    let reason = match &exit.how {
        How::Code(0) => return Ending::Succeeded,
        How::Code(code) => limits
            .explains
            .then(|| explanation(tail))
            .flatten()
            .unwrap_or_else(|| format!("exit status {code}")),
        How::Signal(signal) => format!("signal {signal}"),
        How::NotStarted(why) => return Ending::Failed(not_started(why, limits)),
        How::Prevented(why) => return Ending::Aborted(not_started(why, limits)),
        How::Lost => {
            return Ending::Aborted("the process that watches over it was killed".to_owned());
        }
    };
    // At its limit a program is refused memory; what it makes of that is its own affair.
    let foreign = limits.explains && exit.how == How::Code(FOREIGN.into());
    let limit = limits.memory.filter(|&limit| match foreign {
        true => speaks_of_memory(reason.as_bytes()),
        false => exit.max_resident >= limit / 4 * 3 || speaks_of_memory(tail),
    });
    if foreign && limit.is_none() {
        return Ending::Aborted(reason);
    }
    Ending::Failed(match limit {
        Some(limit) => format!("out of memory (limit {limit} bytes): {reason}"),
        None if exit.oom => format!("out of memory: {reason}"),
        None => reason,
    })
}

/// The keeper says what it did not find; which program it was is said once.
fn not_started(why: &str, limits: &Limits) -> String {
    let why = why.strip_prefix(&format!("cannot run {}: ", limits.program)).unwrap_or(why);
    format!("cannot start {}: {why}", limits.program)
}

/// What a program of ours said last: the first line of it.
fn explanation(tail: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(tail);
    let last = text.lines().rev().find_map(|line| line.strip_prefix(nix::SAYS))?;
    Some(last.to_owned()).filter(|last| !last.is_empty())
}

/// Whether the last words were about memory: as the C library, Guile, Nix, Python, C++, Rust and
/// Debian's shell put it.
fn speaks_of_memory(tail: &[u8]) -> bool {
    let text = String::from_utf8_lossy(tail).to_ascii_lowercase();
    [
        "cannot allocate",
        "out of memory",
        "memory exhausted",
        "memoryerror",
        "bad_alloc",
        "memory allocation",
        "out of space",
    ]
    .iter()
    .any(|words| text.contains(words))
}

fn bad_line(bad: &BadLine, sink: &mut impl Sink) -> Ending {
    if !bad.excerpt.is_empty() {
        sink.note(&format!("line {} begins: {}", bad.number, bad.excerpt));
    }
    Ending::Failed(bad.to_string())
}

/// A line that ends the evaluation.
struct BadLine {
    /// From 1.
    number: u64,
    problem: Problem,
    /// How it begins, for the log.
    excerpt: String,
}

enum Problem {
    TooLong,
    Line(line::Error),
    Job(resolve::Error),
}

impl fmt::Display for BadLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: ", self.number)?;
        match &self.problem {
            Problem::TooLong => f.write_str("is longer than 1 MiB"),
            Problem::Line(error) => error.fmt(f),
            Problem::Job(error) => error.fmt(f),
        }
    }
}

/// Standard output, cut into lines.
struct Lines {
    resolver: Resolver,
    /// The beginning of a line whose end has not been read.
    partial: Vec<u8>,
    /// Lines begun so far.
    number: u64,
    noted: HashSet<String>,
    ready: Vec<NewJob>,
    /// Directories of the stores where derivations can be.
    stores: Vec<String>,
    /// Whether they are of an evaluator of ours.
    explains: bool,
    /// Whether a build is, or was, waited for: that takes a thread, and one is enough.
    has_awaited: bool,
}

impl Lines {
    fn feed(&mut self, bytes: &[u8], sink: &mut impl Sink) -> Result<(), Stop> {
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            let (line, after) = rest.split_at(end);
            rest = &after[1..];
            if self.partial.is_empty() {
                self.line(line, sink)?;
            } else {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(line);
                self.line(&whole, sink)?;
            }
        }
        self.partial.extend_from_slice(rest);
        // Before its end is read: a line that never ends must not be kept.
        if self.partial.len() > MAX_LINE {
            self.number += 1;
            return Err(self.bad(&self.partial, Problem::TooLong));
        }
        Ok(())
    }

    /// What is left at the end counts as a line.
    fn last(&mut self, sink: &mut impl Sink) -> Result<(), Stop> {
        let partial = std::mem::take(&mut self.partial);
        if partial.is_empty() { Ok(()) } else { self.line(&partial, sink) }
    }

    /// No more lines will come.
    fn finish(&mut self, sink: &mut impl Sink) -> Result<(), Stop> {
        self.resolver.finish(&mut self.ready);
        let wrong = self.ready.iter().filter_map(|job| match &job.work {
            Work::Error(message) => Some((job, message)),
            Work::Process(_) | Work::Derivation => None,
        });
        for (job, message) in wrong.take(MAX_LISTED) {
            sink.note(&format!("job {:?} of {} {message}", job.name, job.system));
        }
        if !self.ready.is_empty() {
            sink.jobs(b"", &mut self.ready)?;
        }
        Ok(())
    }

    fn line(&mut self, line: &[u8], sink: &mut impl Sink) -> Result<(), Stop> {
        self.number += 1;
        if line.len() > MAX_LINE {
            return Err(self.bad(line, Problem::TooLong));
        }
        if line.trim_ascii().is_empty() {
            return Ok(());
        }
        if self.explains && line == HOLD {
            return Ok(sink.holds()?);
        }
        let mut parsed = line::parse(line).map_err(|error| self.bad(line, Problem::Line(error)))?;
        // What is evaluated may have found a way to print, too.
        let may_await = self.explains && parsed.job == PROFILE && !self.has_awaited;
        let awaited = parsed.awaited && may_await;
        self.has_awaited |= awaited;
        if parsed.awaited && !awaited {
            parsed.notes.push(format!("unknown field {AWAIT:?}"));
        }
        for note in std::mem::take(&mut parsed.notes) {
            if self.noted.len() < MAX_NOTES && !self.noted.contains(&note) {
                sink.note(&format!("line {}: {note} (said once)", self.number));
                self.noted.insert(note);
            }
        }
        if let What::Derivation(path) = &parsed.what
            && !inputs::is_in(&self.stores, path)
        {
            // It would be read with the daemon's rights.
            let stores = self.stores.join(" or ");
            parsed.what = What::Error(format!("its derivation, {path}, is not in {stores}"));
            (parsed.needs, parsed.outputs) = Default::default();
        }
        let awaited = awaited.then(|| (parsed.job.clone(), parsed.system.clone()));
        self.resolver
            .feed(parsed, &mut self.ready)
            .map_err(|error| self.bad(line, Problem::Job(error)))?;
        sink.jobs(line, &mut self.ready)?;
        self.ready.clear();
        if let Some((job, system)) = awaited {
            sink.awaits(&job, &system)?;
        }
        Ok(())
    }

    fn bad(&self, line: &[u8], problem: Problem) -> Stop {
        let beginning = &line[..line.len().min(4 * EXCERPT)];
        let text = String::from_utf8_lossy(beginning);
        let excerpt = text.chars().take(EXCERPT).flat_map(char::escape_debug).collect();
        Stop::Line(BadLine { number: self.number, problem, excerpt })
    }
}

#[cfg(test)]
mod tests;
