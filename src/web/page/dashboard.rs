//! All jobs of an evaluation at a glance: name, letter and colour, each a link to its build.

use maud::html;

use super::part::query;
use super::{Frame, evaluation, jobset, list, part};
use crate::db::web::pages::{self, Bucket, Listed, Place, Wanted};
use crate::db::{evaluations, jobsets, records};
use crate::model::evaluation::Evaluation;
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::link::component;
use crate::web::request::Request;
use crate::web::response::Response;
use crate::web::route::Captures;

/// Jobs on a page: a screen's worth of scrolling, and some 60 KB.
const ROWS: usize = 1_000;

/// What stands for every system.
const ALL: &str = "all";

/// GET `/eval/latest/dashboard`: `spec`, `system`.
pub(super) fn latest(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let name = evaluation::of_query(context, request)?;
    let id = evaluations::last_succeeded(context.books()?, &name)?;
    let id =
        id.ok_or_else(|| Failure::missing(format!("No evaluation of {name} has succeeded.")))?;
    let system = query(&[("system", request.query.get("system").unwrap_or_default())]);
    Ok(Response::found(context.link(&format!("/eval/{id}/dashboard{system}"))))
}

/// GET `/eval/ID/dashboard`: `system`, `name`, `after` with `at`.
pub(super) fn dashboard(
    context: &mut Context,
    request: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    let evaluation = evaluation::numbered(context, captures)?;
    let part = request.query.get("name").map(str::trim).filter(|text| !text.is_empty());
    let at = request.query.get("at").unwrap_or_default();
    let place = match request.query.get("after") {
        Some(after) => Place::After((after.to_owned(), at.to_owned())),
        None => Place::First,
    };
    let books = context.books()?;
    let kept = jobsets::get(books, &evaluation.jobset)?.as_ref().and_then(jobset::specification);
    let systems = kept.map(|kept| kept.systems).unwrap_or_default();
    let asked = request.query.get("system").filter(|text| !text.is_empty());
    let word = asked.or_else(|| usual(&systems)).unwrap_or(ALL);
    let system = Some(word).filter(|word| *word != ALL);
    let wanted =
        Wanted { evaluation: evaluation.id, bucket: Bucket::All, system, name: part, before: None };
    let page = pages::jobs(books, &wanted, &place, ROWS)?;
    let next = page.rows.last().filter(|_| page.more_after).map(|last| {
        query(&[
            ("system", word),
            ("name", part.unwrap_or_default()),
            ("after", &last.job),
            ("at", &last.system),
        ])
    });
    show(context, &evaluation, "", &Choice { systems: &systems, system, part }, &page.rows, next)
}

/// The system that is shown unless another is asked for; `None` if there is nothing to choose.
fn usual(systems: &[String]) -> Option<&str> {
    if systems.len() < 2 {
        return None;
    }
    let usual = systems.iter().find(|system| *system == "x86_64-linux");
    usual.or(systems.first()).map(String::as_str)
}

/// What can be chosen, and what is.
#[derive(Default)]
struct Choice<'a> {
    systems: &'a [String],
    system: Option<&'a str>,
    part: Option<&'a str>,
}

/// GET `/eval/ID/dashboard/DASHBOARD`: of the jobs that were registered.
pub(super) fn registered(
    context: &mut Context,
    _: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    let evaluation = evaluation::numbered(context, captures)?;
    let id = captures.get("dashboard").to_owned();
    let books = context.books()?;
    let found = records::dashboard(books, &id)?;
    let (_, jobs) =
        found.ok_or_else(|| Failure::missing(format!("There is no dashboard {id}.")))?;
    let mut rows = Vec::new();
    for job in jobs.iter().take(ROWS) {
        let wanted = Wanted {
            evaluation: evaluation.id,
            bucket: Bucket::All,
            system: None,
            name: None,
            before: None,
        };
        // The systems of one job follow each other.
        let place = Place::After((job.clone(), String::new()));
        let page = pages::jobs(books, &wanted, &place, 16)?;
        rows.extend(page.rows.into_iter().take_while(|row| row.job == *job));
    }
    show(context, &evaluation, &format!("/{}", component(&id)), &Choice::default(), &rows, None)
}

fn show(
    context: &mut Context,
    evaluation: &Evaluation,
    below: &str,
    choice: &Choice<'_>,
    rows: &[Listed],
    next: Option<String>,
) -> Result<Response, Failure> {
    let (id, name) = (evaluation.id, &evaluation.jobset);
    let books = context.books()?;
    let (before, after) = pages::neighbours(books, name, id)?;
    let Choice { systems, system, part } = choice;
    let path = format!("/eval/{id}/dashboard{below}");
    let title = format!("Dashboard of evaluation {id}");
    let content = html! {
        div class="head" {
            h1 { "Dashboard of " (part::jobset(context, name)) ", evaluation "
                a href=(context.link(&format!("/eval/{id}"))) { (id) } }
            span class="actions" {
                @if let Some(before) = before {
                    a class="button" rel="prev" href=(context.link(&format!("/eval/{before}/dashboard{below}"))) { "← " (before) }
                }
                @if let Some(after) = after {
                    a class="button" rel="next" href=(context.link(&format!("/eval/{after}/dashboard{below}"))) { (after) " →" }
                }
            }
        }
        div data-live="counts" { (part::counts(evaluation.jobs)) }
        form class="filter" method="get" action=(context.link(&path)) {
            label { "Name " input type="search" name="name" value=(part.unwrap_or_default()) data-filter=".grid li"; }
            @if below.is_empty() && systems.len() > 1 {
                label {
                    "System "
                    select name="system" {
                        option value=(ALL) selected[system.is_none()] { (ALL) }
                        @for known in *systems { option value=(known) selected[*system == Some(known)] { (known) } }
                    }
                }
            }
            button type="submit" { "Filter" }
        }
        p class="small dim" {
            "s succeeded, F failed, D a dependency failed, A aborted, C canceled, r running, q waiting"
        }
        @if rows.is_empty() { p { "There are no jobs." } }
        ul class="grid" data-live="grid" {
            @for row in rows {
                @let look = part::build_look(row.status);
                li class=(look.class) {
                    a href=(list::build_link(context, row)) title={ (row.job) " on " (row.system) ": " (look.word) } {
                        b aria-hidden="true" { (look.letter) }
                        span { (label(row, *system)) span class="hidden" { ", " (row.system) ": " (look.word) } }
                    }
                }
            }
        }
        @if let Some(next) = next {
            nav class="pager" aria-label="Pages" {
                a href=(context.link(&path)) { "First" }
                a rel="next" href=(context.link(&format!("{path}{next}"))) { "Next" }
            }
        }
    };
    let mut frame = Frame::new(&title)
        .of(context, name)
        .below(format!("Evaluation {id}"), context.link(&format!("/eval/{id}")))
        .hearing(format!("?evaluation={id}"));
    frame.wide = true;
    Ok(Response::html(200, frame.show(context, &content)))
}

/// A job's name, without the system where all have the same one.
fn label<'a>(row: &'a Listed, system: Option<&str>) -> &'a str {
    let short = system.and_then(|system| row.job.strip_suffix(system)?.strip_suffix('.'));
    short.unwrap_or(&row.job)
}
