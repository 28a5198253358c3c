//! Logs as pages: numbered lines that can be linked to, the end first where a log is large.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::Arc;

use maud::{Markup, html};

use super::{Frame, build, evaluation, part, phases};
use crate::logs::Tail;
use crate::model::status::{BuildStatus, EvaluationStatus};
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::file::{Look, Of, Source};
use crate::web::live::Place;
use crate::web::log_view;
use crate::web::request::Request;
use crate::web::response::Response;
use crate::web::route::Captures;

/// Bytes of a log that a page shows: more is slow to read for people, and for browsers.
const SHOWN: usize = 512 * 1024;

/// Lines of it at most: each is an element, however little is in it, and weighs some sixty bytes.
const SHOWN_LINES: usize = 10_000;

/// Bytes that are looked through for a page: past it the raw log is the better way.
const READ: u64 = 256 * 1024 * 1024;

/// For the last lines of all failures on a page.
const BUDGET: u64 = 16 * 1024 * 1024;

/// Lines told of each, and the bytes they may have.
const LINES: usize = 12;
const LAST: usize = 4 * 1024;

/// What a page shows of a log.
struct Part {
    text: String,
    /// The number of its first line, from 1.
    first: usize,
    /// Bytes before it.
    before: u64,
    /// Where reading ended.
    end: u64,
    /// Where the line begins that is yet to be ended.
    open: u64,
    /// Whether there is more after it.
    more: bool,
}

/// Reads the last `limit` bytes of what a log holds now, or those from `from` on.
fn read(path: &Path, from: Option<u64>, limit: usize, most: u64) -> io::Result<Part> {
    let mut tail = Tail::open(path, 0)?;
    let (mut buffer, mut kept) = (Vec::new(), VecDeque::new());
    let (mut lines, mut before, mut end, mut more) = (0_usize, 0_u64, 0_u64, false);
    while tail.read(&mut buffer)?.is_some() {
        end += buffer.len() as u64;
        kept.extend(buffer.drain(..));
        let skip = match from {
            None => kept.len().saturating_sub(limit),
            Some(from) => {
                usize::try_from(from.saturating_sub(before)).unwrap_or(usize::MAX).min(kept.len())
            }
        };
        lines += kept.drain(..skip).filter(|byte| *byte == b'\n').count();
        before += skip as u64;
        if (from.is_some() && kept.len() > limit) || end >= most {
            more = true;
            break;
        }
    }
    if from.is_some() {
        end -= kept.len().saturating_sub(limit) as u64;
        kept.truncate(limit);
    }
    let mut bytes = Vec::from(kept);
    // Not from the middle of a line, if it can be helped.
    if before > 0
        && from.is_none()
        && let Some(newline) = bytes.iter().position(|byte| *byte == b'\n')
    {
        bytes.drain(..=newline);
        before += newline as u64 + 1;
        lines += 1;
    }
    let found: Vec<usize> = ends(&bytes).collect();
    if from.is_some() {
        // Not into the middle of one either.
        let last = if more { found.len() } else { SHOWN_LINES };
        let cut = last.min(SHOWN_LINES).checked_sub(1).and_then(|at| found.get(at)).copied();
        if let Some(cut) = cut.filter(|cut| *cut < bytes.len()) {
            end -= (bytes.len() - cut) as u64;
            bytes.truncate(cut);
            more = true;
        }
    } else {
        // What comes after the last end is a line, too, if there is something.
        let begun = usize::from(found.last().is_some_and(|last| *last < bytes.len()));
        let excess = (found.len() + begun).saturating_sub(SHOWN_LINES);
        if excess > 0 {
            let cut = found[excess - 1];
            bytes.drain(..cut);
            before += cut as u64;
            lines += excess;
        }
    }
    let open = end - (bytes.len() - ends(&bytes).next_back().unwrap_or(0)) as u64;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(Part { text, first: lines + 1, before, end, open, more })
}

/// Where each line of a text ends.
fn ends(bytes: &[u8]) -> impl DoubleEndedIterator<Item = usize> {
    bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1)
}

/// What a page that tells of several failures may read of their logs.
pub(super) struct Budget(u64);

impl Budget {
    pub(super) fn new() -> Self {
        Self(BUDGET)
    }

    /// The last lines of a log, if that can be had without reading more than is left.
    pub(super) fn last_lines(&mut self, path: &Path) -> Option<String> {
        let part = read(path, None, LAST, self.0).ok()?;
        self.0 = self.0.saturating_sub(part.end);
        if part.more {
            return None;
        }
        let lines: Vec<&str> = part.text.lines().collect();
        let last = lines[lines.len().saturating_sub(LINES)..].join("\n");
        Some(last).filter(|text| !text.trim().is_empty())
    }
}

/// GET `/build/ID/log`: `from`, a byte.
pub(super) fn build(
    context: &mut Context,
    request: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    let build = build::numbered(context, captures)?;
    let path = format!("/build/{}/log", build.id);
    let details = context.link(&format!("/build/{}/details", build.id));
    let runs = matches!(build.status, BuildStatus::Started | BuildStatus::Submitted);
    let missing = || Failure::missing(format!("Build {} has no log.", build.id));
    let look = look(context, Of::Build(build.id))?.ok_or_else(missing)?;
    let part = match build.log.as_deref() {
        Some(file) => open(file, request, runs, missing)?,
        None => return Err(missing()),
    };
    let title = format!("Log of {}", build.job);
    let content = html! {
        div class="head" {
            h1 { "Log of " a href=(details) { (build.job) } }
            span data-live="status" { (part::status(build.status)) }
        }
        (show(context, &path, &part, runs.then_some(&look)))
    };
    let frame = Frame::new(&title)
        .of(context, &build.jobset)
        .below(
            format!("Evaluation {}", build.evaluation),
            context.link(&format!("/eval/{}", build.evaluation)),
        )
        .below(format!("Build {}", build.id), details.clone());
    let frame = hearing(frame, &part, runs, format!("?build={}", build.id));
    Ok(Response::html(200, frame.show(context, &content)))
}

/// GET `/eval/ID/log`: `from`, a byte.
pub(super) fn evaluation(
    context: &mut Context,
    request: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    let evaluation = evaluation::numbered(context, captures)?;
    let id = evaluation.id;
    let file = context.shared.config.log_directory.join("evaluations").join(format!("{id}.gz"));
    let missing = || Failure::missing(format!("Evaluation {id} has no log."));
    let runs = evaluation.status == EvaluationStatus::Started;
    let look = look(context, Of::Evaluation(id))?.ok_or_else(missing)?;
    let part = open(&file, request, runs, missing)?;
    let title = format!("Log of evaluation {id}");
    let link = context.link(&format!("/eval/{id}"));
    let content = html! {
        div class="head" {
            h1 { "Log of " a href=(link) { "evaluation " (id) } }
            span data-live="status" { (part::state(part::evaluation_look(&evaluation))) }
        }
        (show(context, &format!("/eval/{id}/log"), &part, runs.then_some(&look)))
    };
    let frame = Frame::new(&title)
        .of(context, &evaluation.jobset)
        .below(format!("Evaluation {id}"), link.clone());
    let frame = hearing(frame, &part, runs, format!("?evaluation={id}"));
    Ok(Response::html(200, frame.show(context, &content)))
}

/// What the books say of a log, which is asked before it is read: a try that begins meanwhile is then told as one.
fn look(context: &mut Context, of: Of) -> Result<Option<Look>, Failure> {
    let shared = Arc::clone(&context.shared);
    Ok(Source { of, shared }.look_in(context.books()?)?)
}

/// Browsers have few connections for one host: a log that is followed tells of its writer, too.
fn hearing<'a>(frame: Frame<'a>, part: &Part, runs: bool, query: String) -> Frame<'a> {
    if runs && !part.more { frame } else { frame.hearing(query) }
}

fn open(
    file: &Path,
    request: &Request,
    runs: bool,
    missing: impl Fn() -> Failure,
) -> Result<Part, Failure> {
    let from = request.query.number("from").and_then(|from| u64::try_from(from).ok());
    match read(file, from, SHOWN, READ) {
        Ok(part) => Ok(part),
        // The file comes a moment after the start.
        Err(error) if error.kind() == io::ErrorKind::NotFound && runs => {
            Ok(Part { text: String::new(), first: 1, before: 0, end: 0, open: 0, more: false })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing()),
        Err(error) => Err(Failure::Internal(format!("cannot read {}: {error}", file.display()))),
    }
}

/// `look` if it grows; it is followed where its end is shown.
fn show(context: &Context, path: &str, part: &Part, look: Option<&Look>) -> Markup {
    let link = |query: String| context.link(&format!("{path}{query}"));
    let (runs, followed) = (look.is_some(), look.filter(|_| !part.more));
    // From the line that is yet to be ended, which comes again as a whole.
    let line = part.first + part.text.matches('\n').count();
    let place = |look: &Look| Place::of(part.open, look.attempt, line).to_string();
    html! {
        p class="actions small" {
            a class="button" href=(link("/raw".to_owned())) { "Raw log" }
            @if part.before > 0 {
                a class="button" href=(link("?from=0".to_owned())) { "From the beginning" }
            }
            @if part.more {
                a class="button" href=(link(format!("?from={}", part.end))) { "Go on" }
                a class="button" href=(link(String::new())) { "The end" }
            }
            a class="button" href="#end" { "Last line" }
        }
        @if part.before > 0 {
            p class="box warn" {
                (part::size(part.before)) " before line " (part.first) " are left out; the raw log has all."
            }
        }
        (phases::show(&part.text, part.first))
        @if part.text.is_empty() && !runs { p { "It is empty." } }
        pre class="log" data-log=[followed.map(|_| link("/events".to_owned()))] data-from=[followed.map(place)]
            data-status=[followed.map(|look| look.status)] {
            @if !part.text.is_empty() { (log_view::lines(&part.text, part.first)) }
        }
        @if part.more { p class="box warn" { "There is more: go on, or read the raw log." } }
        div class="dim" data-live="runs" { @if runs { "It is still growing." } }
        span id="end" {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::Writer;

    fn written(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("1.gz");
        let mut writer = Writer::create(&path).unwrap();
        writer.write(text.as_bytes()).unwrap();
        writer.flush().unwrap();
        (directory, path)
    }

    #[test]
    fn the_end_comes_first_and_begins_with_a_line() {
        let (_directory, path) = written(&"line\n".repeat(100));
        let part = read(&path, None, 12, READ).unwrap();
        assert_eq!((part.text.as_str(), part.first), ("line\nline\n", 99));
        assert_eq!((part.before, part.end, part.more), (490, 500, false));
    }

    #[test]
    fn a_part_begins_and_ends_where_it_is_told() {
        let (_directory, path) = written("one\ntwo\nthree\n");
        let part = read(&path, Some(4), 4, READ).unwrap();
        assert_eq!((part.text.as_str(), part.first), ("two\n", 2));
        assert_eq!((part.before, part.end, part.more), (4, 8, true));
        let part = read(&path, Some(8), 100, READ).unwrap();
        assert_eq!((part.text.as_str(), part.first, part.more), ("three\n", 3, false));
        let part = read(&path, Some(1_000), 100, READ).unwrap();
        assert_eq!((part.text.as_str(), part.more), ("", false));
    }

    #[test]
    fn a_line_that_goes_on_is_told_apart() {
        for (text, limit, open) in
            [("one\ntw", 100, 4), ("one\n", 100, 4), ("on", 100, 0), ("", 100, 0)]
        {
            let (_directory, path) = written(text);
            let part = read(&path, None, limit, READ).unwrap();
            assert_eq!((part.text.as_str(), part.open, part.end), (text, open, text.len() as u64));
        }
        // Also where only the end of it is shown.
        let (_directory, path) = written(&format!("{}\nend", "x".repeat(50)));
        let part = read(&path, None, 12, READ).unwrap();
        assert_eq!((part.text.as_str(), part.first, part.open), ("end", 2, 51));
    }

    #[test]
    fn a_log_of_nothing_but_lines_is_no_page_of_them_all() {
        let many = SHOWN_LINES + 5;
        for (text, end) in [("\n".repeat(many), ""), ("\n".repeat(many - 1), "x")] {
            let (_directory, path) = written(&format!("{text}{end}"));
            let part = read(&path, None, SHOWN, READ).unwrap();
            assert_eq!((part.text.lines().count(), part.first), (SHOWN_LINES, 6));
            assert_eq!((part.before, part.end, part.more), (5, many as u64, false));
            let part = read(&path, Some(2), SHOWN, READ).unwrap();
            assert_eq!((part.text.lines().count(), part.first), (SHOWN_LINES, 3));
            assert_eq!((part.end, part.more), (SHOWN_LINES as u64 + 2, true));
            let part = read(&path, Some(5), SHOWN, READ).unwrap();
            assert_eq!((part.text.lines().count(), part.more), (SHOWN_LINES, false));
        }
    }

    #[test]
    fn last_lines_stop_when_the_budget_is_spent() {
        let (_directory, path) = written(&"line\n".repeat(100));
        let mut budget = Budget(700);
        assert_eq!(budget.last_lines(&path).unwrap().lines().count(), LINES);
        assert_eq!(budget.last_lines(&path), None);
    }
}
