//! Searching builds: what is typed, read word by word, and what it finds.

use maud::html;

use super::part::query;
use super::{Frame, list};
use crate::db::web::pages::Listed;
use crate::db::web::search::find;
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::request::Request;
use crate::web::response::Response;
use crate::web::route::Captures;
use crate::web::search::{parse, position};

const ROWS: usize = 25;

/// GET `/search`: `query`; `before`, the evaluation and the build that the page before this one ended with.
pub(super) fn search(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let text = request.query.get("query").unwrap_or_default().trim().to_owned();
    let before = request.query.get("before").map(position).transpose()?;
    let (found, wrong) = match parse(&text) {
        Ok(Some(wanted)) => {
            let found = find(context.books()?, &wanted, before, ROWS + 1)?;
            (Some(found.into_iter().map(Listed::from).collect::<Vec<_>>()), None)
        }
        Ok(None) => (None, None),
        Err(word) => (None, Some(word)),
    };
    let more = found.as_ref().is_some_and(|found| found.len() > ROWS);
    let shown = found.as_ref().map(|found| &found[..found.len().min(ROWS)]);
    let link = |before: &str| {
        context.link(&format!("/search{}", query(&[("query", &text), ("before", before)])))
    };
    let content = html! {
        h1 { "Search" }
        @if let Some(word) = wrong {
            p class="box warn" { "Nothing can be meant by " code { (word) } "." }
        }
        @if let Some(rows) = shown {
            p class="dim" {
                @if rows.is_empty() { "No build" } @else { "Builds of the newest evaluations first," }
                " for " code { (text) } "."
            }
            @if !rows.is_empty() { (list::builds(context, rows, true)) }
            @if more || before.is_some() {
                nav class="pager" aria-label="Pages" {
                    @if before.is_some() { a href=(link("")) { "First" } } @else { span { "First" } }
                    @match rows.last().filter(|_| more) {
                        Some(last) => a href=(link(&format!("{}-{}", last.evaluation, last.id))) rel="next" { "Next" },
                        None => span { "Next" },
                    }
                }
            }
        }
        h2 { "What can be searched for" }
        dl class="facts" {
            dt { code { "word" } } dd { "how a job's name begins, or its package's; what further words are parts of the names" }
            dt { code { "-word" } } dd { "not in the names" }
            dt { code { "spec:NAME" } } dd { "of this jobset" }
            dt { code { "system:NAME" } } dd { "for this system, such as x86_64-linux" }
            dt { code { "job:NAME" } } dd { "of exactly this job" }
            dt { code { "eval:NUMBER" } } dd { "of a job of this evaluation" }
            dt { code { "status:WORD" } }
            dd { "success, failed, failed-dependency, aborted, canceled, running, pending or newly-failed" }
        }
    };
    let frame = Frame { query: &text, ..Frame::new("Search") };
    Ok(Response::html(200, frame.show(context, &content)))
}
