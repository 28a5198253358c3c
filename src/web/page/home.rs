//! All jobsets, and how each is doing.

use maud::{Markup, html};

use super::part::{self, query};
use super::queue::obstacles;
use super::{Frame, HOME, list};
use crate::db::web::pages;
use crate::db::{builds, jobsets};
use crate::model::evaluation::Evaluation;
use crate::model::jobset::Jobset;
use crate::model::spec::Specification;
use crate::spec;
use crate::web::access::Access;
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::link::component;
use crate::web::request::Request;
use crate::web::response::Response;
use crate::web::route::Captures;

/// Jobsets on a page: each costs a look at its evaluations.
const ROWS: usize = 100;

/// Evaluations whose weather is shown.
const STRIP: usize = 10;

/// What a row shows.
struct Row {
    jobset: Jobset,
    /// `None` if what is in the books cannot be read.
    specification: Option<Specification>,
    recent: Vec<Evaluation>,
    running: i64,
}

/// GET `/`: `filter`, `show` (`active`, `inactive`, `all`), `after`.
pub(super) fn home(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let part = request.query.get("filter").unwrap_or_default().trim().to_owned();
    let show = request.query.get("show").unwrap_or("active").to_owned();
    let after = request.query.get("after").unwrap_or_default();
    let books = context.books()?;
    let all = jobsets::list(books)?;
    let inactive = all.iter().filter(|jobset| !jobset.active).count();
    let total = all.len();
    let lower = part.to_lowercase();
    let mut chosen = all.into_iter().filter(|jobset| {
        let shown = match show.as_str() {
            "inactive" => !jobset.active,
            "all" => true,
            _ => jobset.active,
        };
        let name = jobset.name.as_str();
        shown && name > after && name.to_lowercase().contains(&lower)
    });
    let running = pages::running_by_jobset(books)?;
    let mut rows = Vec::new();
    for jobset in chosen.by_ref().take(ROWS) {
        let specification = spec::json::parse(&jobset.specification).ok();
        rows.push(Row {
            specification: specification.and_then(|all| all.into_iter().next()),
            recent: pages::recent(books, &jobset.name, STRIP)?,
            running: running.get(jobset.name.as_str()).copied().unwrap_or(0),
            jobset,
        });
    }
    let more = chosen.next().is_some();
    let (waiting, running) = builds::pending_counts(books)?;
    // Nobody needs to ask what keeps nothing waiting.
    let obstacles = (waiting > 0).then(|| obstacles(context));
    let content = html! {
        div class="head" {
            h1 { (HOME) }
            span class="actions" {
                @if context.may(Access::Edit, None) {
                    a class="button" href=(context.link("/specification/add")) { "Add a jobset" }
                }
                a class="button" href=(context.link("/events/rss")) { "RSS" }
            }
        }
        p class="dim" data-live="load" {
            a href=(context.link("/status")) { (part::plural(running, "build runs", "builds run")) } ", "
            a href=(context.link("/queue")) { (part::plural(waiting, "waits", "wait")) } "."
        }
        div data-live="obstacles" { @if let Some(obstacles) = &obstacles { (obstacles) } }
        form class="filter" method="get" action=(context.link("/")) {
            label { "Filter " input type="search" name="filter" value=(part) data-filter="#jobsets tbody tr"; }
            label {
                "Show "
                select name="show" {
                    @for (value, label) in [("active", "active"), ("inactive", "inactive"), ("all", "all")] {
                        option value=(value) selected[show == value] { (label) }
                    }
                }
            }
            button type="submit" { "Apply" }
            @if inactive > 0 && show == "active" {
                a href=(context.link("/?show=inactive")) { (inactive) " inactive" }
            }
        }
        @if rows.is_empty() {
            div data-live="jobsets" { (nothing(context, total)) }
        } @else {
            div class="scroll" data-live="jobsets" {
                (table(context, &rows))
            }
        }
        @if let Some(last) = rows.last().filter(|_| more) {
            nav class="pager" aria-label="Pages" {
                a rel="next" href=(context.link(&format!("/{}",
                    query(&[("filter", &part), ("show", &show), ("after", last.jobset.name.as_str())])))) { "Next" }
            }
        }
    };
    let frame = Frame::new(HOME).hearing("");
    Ok(Response::html(200, frame.show(context, &content)))
}

fn table(context: &Context, rows: &[Row]) -> Markup {
    html! {
        table id="jobsets" class="rows" {
            thead {
                tr {
                    th scope="col" class="name" { "Name" }
                    th scope="col" { "Jobs" }
                    th scope="col" { "Succeeded" }
                    th scope="col" class="num" { "Running" }
                    th scope="col" { "Evaluated" }
                    th scope="col" { "Last ten" }
                    th scope="col" class="num" { "Priority" }
                }
            }
            tbody {
                @for row in rows { (line(context, row)) }
            }
        }
    }
}

fn line(context: &Context, row: &Row) -> Markup {
    let newest = row.recent.first();
    let good = newest.filter(|evaluation| evaluation.jobs.total > 0);
    let name = &row.jobset.name;
    html! {
        tr class=[(!row.jobset.active).then_some("off")] {
            td class="name" {
                (part::jobset(context, name))
                @if !row.jobset.active { " " span class="n idle" { "inactive" } }
                @if row.jobset.error.is_some() {
                    " " a class="n bad" href=(part::jobset_link(context, name)) { "error" }
                }
                div class="small dim far" {
                    @match &row.specification {
                        Some(specification) => (made_from(specification)),
                        None => "Its specification cannot be read: see the log.",
                    }
                }
            }
            td { @if let Some(evaluation) = newest { (part::counts(evaluation.jobs)) } }
            td {
                @if let Some(evaluation) = good {
                    a href=(context.link(&format!("/eval/{}/dashboard", evaluation.id)))
                        title="Dashboard of the newest evaluation" {
                        (part::share(evaluation.jobs))
                    }
                }
            }
            td class="num" data-th="Running" { @if row.running > 0 { (row.running) } }
            td data-th="Evaluated" {
                @if let Some(evaluation) = newest {
                    a href=(context.link(&format!("/eval/{}", evaluation.id))) {
                        (part::time(context.now, evaluation.timestamp))
                    }
                } @else { "never" }
            }
            td { (list::strip(context, &row.recent)) }
            td class="num far" {
                @match &row.specification { Some(specification) => (specification.priority), None => "–" }
            }
        }
    }
}

/// What to do where there is no jobset to show.
fn nothing(context: &Context, total: usize) -> Markup {
    html! {
        @if total > 0 {
            p { "No jobset matches. " a href=(context.link("/?show=all")) { "Show all " (total) } }
        } @else if context.may(Access::Edit, None) {
            p { "There are no jobsets yet: " a href=(context.link("/specification/add")) { "add the first" } "." }
        } @else {
            p { "There are no jobsets yet: the daemon is given them by " code { "gorget add FILE" } "." }
        }
    }
}

/// What it is made from: the evaluator, the channels, the systems.
fn made_from(specification: &Specification) -> Markup {
    html! {
        (specification.evaluator.word()) " · " (list::channels(specification)) " · " (list::systems(specification))
    }
}

/// The link to edit a jobset.
pub(super) fn edit_link(context: &Context, name: &str) -> String {
    context.link(&format!("/specification/edit/{}", component(name)))
}
