//! Searching builds: what is typed, read word by word, and what it finds.

use maud::html;

use super::part::{self, query};
use super::{Frame, list};
use crate::db::web::pages::{self, Listed, Place, Search, Sought};
use crate::model::build::BuildId;
use crate::model::evaluation::EvaluationId;
use crate::model::spec::JobsetName;
use crate::model::status::BuildStatus;
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::request::Request;
use crate::web::response::Response;
use crate::web::route::Captures;

const ROWS: usize = 25;

/// Further than this nobody counts.
const COUNTED: usize = 1_000;

/// Words of a query that are heeded: each is one more condition on every build.
const WORDS: usize = 20;

/// Reads a query: `None` if it asks for nothing, `Err` with the word that cannot be meant.
pub(super) fn parse(text: &str) -> Result<Option<Search>, String> {
    let mut search = Search::default();
    let mut said = false;
    for word in text.split_whitespace().take(WORDS) {
        said = true;
        match word.split_once(':') {
            Some(("spec", name)) => {
                let name = JobsetName::new(name).ok_or_else(|| word.to_owned())?;
                search.jobset = Some(name);
            }
            Some(("system", name)) => search.system = Some(name.to_owned()),
            Some(("job", name)) => search.job = Some(name.to_owned()),
            Some(("eval", id)) => {
                search.evaluation = Some(EvaluationId(id.parse().map_err(|_| word.to_owned())?));
            }
            // Another word means any status, as it always has.
            Some(("status", status)) => search.status = sought(status),
            Some(_) => {}
            None => match word.strip_prefix('-').filter(|rest| !rest.is_empty()) {
                Some(rest) => search.without.push(rest.to_lowercase()),
                // Per cent signs were wild cards once, and are taken out.
                None => search.words.push(word.replace('%', "").to_lowercase()),
            },
        }
    }
    Ok(said.then_some(search))
}

fn sought(word: &str) -> Option<Sought> {
    Some(match word {
        "success" => Sought::Status(BuildStatus::Succeeded),
        "failed" => Sought::Status(BuildStatus::Failed),
        "failed-dependency" => Sought::Status(BuildStatus::FailedDependency),
        "failed-other" | "aborted" => Sought::Status(BuildStatus::Aborted),
        "canceled" => Sought::Status(BuildStatus::Canceled),
        "running" => Sought::Status(BuildStatus::Started),
        "pending" => Sought::Pending,
        "newly-failed" => Sought::NewlyFailed,
        _ => return None,
    })
}

/// GET `/search`: `query`, `border-high-id`, `border-low-id`.
pub(super) fn search(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let text = request.query.get("query").unwrap_or_default().trim().to_owned();
    let bound = |key| request.query.number(key).map(BuildId);
    let place = match (bound("border-high-id"), bound("border-low-id")) {
        (Some(high), _) => Place::After(high),
        (None, Some(BuildId(0))) => Place::Last,
        (None, Some(low)) => Place::Before(low),
        (None, None) => Place::First,
    };
    let (found, wrong) = match parse(&text) {
        Ok(Some(wanted)) => {
            let books = context.books()?;
            let page = pages::search(books, &wanted, &place, ROWS)?;
            let count = pages::count(books, &wanted, COUNTED)?;
            (Some((page, count)), None)
        }
        Ok(None) => (None, None),
        Err(word) => (None, Some(word)),
    };
    let link = |more: &str| {
        let base = query(&[("query", &text)]);
        let more = if more.is_empty() { String::new() } else { format!("&{more}") };
        context.link(&format!("/search{base}{more}"))
    };
    let content = html! {
        h1 { "Search" }
        @if let Some(word) = wrong {
            p class="box warn" { "Nothing can be meant by " code { (word) } "." }
        }
        @if let Some((page, count)) = &found {
            p class="dim" {
                @if *count >= COUNTED as i64 { (COUNTED) " builds or more" }
                @else { (part::plural(*count, "build", "builds")) }
                " for " code { (text) } "."
            }
            @if !page.rows.is_empty() { (list::builds(context, &page.rows, true)) }
            (part::pager(
                page,
                |row: &Listed| (format!("border-low-id={}", row.id), format!("border-high-id={}", row.id)),
                ("", "border-low-id=0"),
                link,
            ))
        }
        h2 { "What can be searched for" }
        dl class="facts" {
            dt { code { "word" } } dd { "part of a job's name, or of its package's; several words must all be there" }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_word_by_word() {
        let found = parse("spec:a system:s status:success Frob% -doc eval:7 x:y").unwrap().unwrap();
        assert_eq!(found.jobset, JobsetName::new("a"));
        assert_eq!(found.status, Some(Sought::Status(BuildStatus::Succeeded)));
        assert_eq!((found.words, found.without), (vec!["frob".to_owned()], vec!["doc".to_owned()]));
        assert_eq!(found.evaluation, Some(EvaluationId(7)));
        assert_eq!(parse("  "), Ok(None));
        assert_eq!(parse("spec:a:b"), Err("spec:a:b".to_owned()));
        assert_eq!(parse("status:any").unwrap().unwrap().status, None);
    }
}
