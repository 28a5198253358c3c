//! What runs, and what waits and why.

use maud::{Markup, html};
use serde_json::Value;
use std::collections::HashMap;

use super::{Frame, list, part};
use crate::db::web::pages::{self, Listed};
use crate::db::{builds, records};
use crate::model::build::BuildId;
use crate::proto::control::Command;
use crate::web::access::Access;
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::link::component;
use crate::web::request::Request;
use crate::web::response::Response;
use crate::web::route::Captures;

/// Builds on a page.
const ROWS: usize = 100;

/// Builds that run at once and are shown: more than one machine can take.
pub(super) const RUNNING: usize = 500;

/// What builds without a worker's name run on, as a machine's.
pub(super) const HERE: &str = "local";

/// GET `/queue`.
pub(super) fn queue(context: &mut Context, _: &Request, _: &Captures) -> Result<Response, Failure> {
    let books = context.books()?;
    let rows = pages::waiting(books, ROWS)?;
    let (waiting, running) = builds::pending_counts(books)?;
    let reasons = reasons(context);
    let obstacles = obstacles(context);
    let paused = records::setting(context.books()?, "paused.builds")?.is_some();
    let content = html! {
        div class="head" {
            h1 { "Queue" }
            span class="actions" data-live="actions" {
                @if context.may(Access::Operate, None) {
                    @if paused { (part::order(context, "/admin/resume", "Resume")) }
                    @else { (part::order(context, "/admin/pause", "Pause")) }
                }
            }
        }
        div data-live="queue" {
            p class="dim" {
                (part::plural(waiting, "build waits", "builds wait")) ", "
                a href=(context.link("/status")) { (part::plural(running, "runs", "run")) } "."
                @if waiting > ROWS as i64 { " The first " (ROWS) " are shown." }
            }
            (obstacles)
            @if paused { p class="box warn" { "Builds are paused: none is started." } }
            @if reasons.is_none() && waiting > 0 {
                p class="box warn" { "The daemon does not answer: why they wait is not known." }
            }
            @if !rows.is_empty() {
                div class="scroll" {
                    table class="rows" {
                        thead {
                            tr {
                                th scope="col" class="name" { "Job" } th scope="col" { "Jobset" } th scope="col" { "System" }
                                th scope="col" { "Why it waits" } th scope="col" { "Since" }
                                th scope="col" class="num" { "Priority" } th scope="col" { "Build" }
                            }
                        }
                        tbody {
                            @for build in &rows {
                                tr {
                                    td class="name" { a href=(list::build_link(context, build)) { (build.job) } }
                                    td { (part::jobset(context, &build.jobset)) }
                                    (list::system_cell(&build.job, &build.system))
                                    td data-th="Why it waits" {
                                        @match &reasons {
                                            Some(all) => (part::reason(context, all.get(&build.id).map_or("its turn", String::as_str))),
                                            None => "–",
                                        }
                                    }
                                    td data-th="Since" { (part::time(context.now, build.timestamp)) }
                                    td class="num" data-th="Priority" { (build.priority) }
                                    td data-th="Build" { a href=(list::build_link(context, build)) { (build.id) } }
                                }
                            }
                        }
                    }
                }
            }
        }
    };
    let frame = Frame::new("Queue").hearing("");
    Ok(Response::html(200, frame.show(context, &content)))
}

/// Why builds wait, as the daemon says; `None` if it does not answer.
fn reasons(context: &Context) -> Option<HashMap<BuildId, String>> {
    let objects = context.hint(Command::Queue { limit: ROWS })?;
    let reason = |object: &String| {
        let object: Value = serde_json::from_str(object).ok()?;
        let id = object.get("id")?.as_i64()?;
        Some((BuildId(id), object.get("waiting")?.as_str()?.to_owned()))
    };
    Some(objects.iter().filter_map(reason).collect())
}

/// What keeps builds waiting that wait for nothing else; nothing if the daemon does not say so in time.
pub(super) fn obstacles(context: &Context) -> Markup {
    let status = context.hint(Command::Status).unwrap_or_default();
    let status = status.first().and_then(|object| serde_json::from_str::<Value>(object).ok());
    let all = status.as_ref().and_then(|status| status["obstacles"].as_array());
    html! { @for held in all.into_iter().flatten() { (obstacle(context, held)) } }
}

fn obstacle(context: &Context, held: &Value) -> Markup {
    let waiting = held["waiting"].as_str().unwrap_or_default();
    let builds = held["builds"].as_i64().unwrap_or(0);
    let builds = part::plural(builds, "build waits", "builds wait");
    html! {
        p class="box warn" {
            @match waiting.strip_prefix("no worker for ") {
                Some(system) => {
                    (builds) " for a worker: nobody builds for " (system) ". "
                    a href=(context.link("/workers")) { "Workers" }
                }
                None => { (builds) ": " (waiting) "." }
            }
        }
    }
}

/// GET `/status`.
pub(super) fn status(
    context: &mut Context,
    _: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let books = context.books()?;
    let rows = pages::running(books, RUNNING)?;
    let (waiting, _) = builds::pending_counts(books)?;
    let rows = with_last(context, rows)?;
    let content = html! {
        h1 { "Running builds" }
        div data-live="running" {
            p class="dim" {
                (part::plural(rows.len() as i64, "build runs", "builds run")) ", "
                a href=(context.link("/queue")) { (part::plural(waiting, "waits", "wait")) } "."
            }
            @if !rows.is_empty() { (running(context, &rows)) }
        }
    };
    let frame = Frame::new("Running builds").hearing("");
    Ok(Response::html(200, frame.show(context, &content)))
}

/// Builds with how long the one before took.
pub(super) fn with_last(
    context: &mut Context,
    rows: Vec<Listed>,
) -> Result<Vec<(Listed, Option<i64>)>, Failure> {
    let books = context.books()?;
    let mut found = Vec::with_capacity(rows.len());
    for row in rows {
        let last = pages::last_duration(books, &row)?;
        found.push((row, last));
    }
    Ok(found)
}

pub(super) fn running(context: &Context, rows: &[(Listed, Option<i64>)]) -> Markup {
    html! {
        div class="scroll" {
            table class="rows" {
                thead {
                    tr {
                        th scope="col" class="name" { "Job" } th scope="col" { "Jobset" } th scope="col" { "System" }
                        th scope="col" { "For" } th scope="col" { "Progress" }
                        th scope="col" class="far" { "On" } th scope="col" { "Build" } th scope="col" { "Log" }
                    }
                }
                tbody {
                    @for (build, last) in rows {
                        tr {
                            td class="name" { a href=(list::build_link(context, build)) { (build.job) } }
                            td { (part::jobset(context, &build.jobset)) }
                            (list::system_cell(&build.job, &build.system))
                            td class="nowrap" { (part::lasted(context.now, build.starttime, Some(context.now))) }
                            td { (progress(context, build, *last)) }
                            td class="far" {
                                @let machine = build.worker.as_deref().unwrap_or(HERE);
                                a href=(context.link(&format!("/machine/{}", component(machine)))) { (machine) }
                            }
                            td data-th="Build" { a href=(list::build_link(context, build)) { (build.id) } }
                            td { (list::log_link(context, build)) }
                        }
                    }
                }
            }
        }
    }
}

/// How far a build is if it takes as long as the last did.
pub(super) fn progress(context: &Context, build: &Listed, last: Option<i64>) -> Markup {
    let (Some(start), Some(last)) = (build.starttime, last.filter(|last| *last > 0)) else {
        return html! { span class="dim" { "not built before" } };
    };
    let elapsed = (context.now.0 - start.0).max(0);
    let percent = elapsed.saturating_mul(100) / last;
    html! {
        span class="share" {
        svg class="meter" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true" {
            rect class="f-run" x="0" y="0" width=(percent.min(100)) height="6" {}
        }
        span class="small" {
            @if percent <= 100 { (percent) " % of " (part::duration(last)) }
            @else { (part::duration(elapsed - last)) " longer than the last" }
        }
        }
    }
}
