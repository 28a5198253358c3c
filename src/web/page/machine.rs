//! Machines: what their workers do, and what was built on them.

use maud::{Markup, html};

use super::queue::{HERE, RUNNING, progress, running, with_last};
use super::{Frame, list, part};
use crate::db::web::machines;
use crate::db::web::pages::{self, Listed};
use crate::db::workers;
use crate::model::status::BuildStatus;
use crate::web::access::Access;
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::link::component;
use crate::web::request::Request;
use crate::web::response::Response;
use crate::web::route::Captures;

/// Builds of a machine's history.
const BUILT: usize = 100;

/// A machine, and those of its workers that are known.
struct Machine {
    name: String,
    workers: Vec<workers::Worker>,
}

fn known(context: &mut Context) -> Result<Vec<Machine>, Failure> {
    let mut machines = vec![Machine { name: HERE.to_owned(), workers: Vec::new() }];
    for worker in workers::list(context.books()?)? {
        match machines.iter_mut().find(|machine| machine.name == worker.machine) {
            Some(machine) => machine.workers.push(worker),
            None => {
                machines.push(Machine { name: worker.machine.clone(), workers: vec![worker] });
            }
        }
    }
    Ok(machines)
}

/// GET `/workers`.
pub(super) fn workers(
    context: &mut Context,
    _: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let machines = known(context)?;
    let workers = machines.iter().flat_map(|machine| &machine.workers);
    let paused = workers.filter(|worker| worker.paused).count() as i64;
    let rows = pages::running(context.books()?, RUNNING)?;
    let rows = with_last(context, rows)?;
    let content = html! {
        h1 { "Workers" }
        div data-live="workers" {
            @if paused > 0 {
                p class="box warn" {
                    (part::plural(paused, "worker is paused and gets", "workers are paused and get"))
                    " nothing to build until resumed: "
                    code { "gorget resume worker NAME" } "."
                }
            }
            @for machine in &machines {
                h2 { a href=(context.link(&format!("/machine/{}", component(&machine.name)))) { (machine.name) } }
                (tasks(context, machine, &rows))
            }
        }
    };
    let frame = Frame::new("Workers").hearing("");
    Ok(Response::html(200, frame.show(context, &content)))
}

/// GET `/machine/NAME`.
pub(super) fn machine(
    context: &mut Context,
    _: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    let name = captures.get("name");
    let named = |machine: &Machine| {
        machine.name == name || machine.workers.iter().any(|worker| worker.name == name)
    };
    let machine = known(context)?.into_iter().find(named);
    // One that has no worker now.
    let machine = machine.unwrap_or(Machine { name: name.to_owned(), workers: Vec::new() });
    let built = machines::built(context.books()?, &machine.name, BUILT)?;
    if machine.name != HERE && machine.workers.is_empty() && built.is_empty() {
        return Err(Failure::missing(format!("There is no machine {name:?}.")));
    }
    let rows = pages::running(context.books()?, RUNNING)?;
    let rows = with_last(context, rows)?;
    let content = html! {
        h1 { (machine.name) }
        @if machine.name == HERE { p { "The machine on which the daemon runs, and its store daemons." } }
        div data-live="machine" {
            @if machine.name == HERE || !machine.workers.is_empty() { (tasks(context, &machine, &rows)) }
            @else { p class="dim" { "No worker of it is here." } }
        }
        @if machine.name != HERE { div data-live="built" { (history(context, &built)) } }
    };
    let frame = Frame::new(&machine.name).below("Workers", context.link("/workers")).hearing("");
    Ok(Response::html(200, frame.show(context, &content)))
}

/// What was built on a machine.
fn history(context: &Context, built: &[Listed]) -> Markup {
    let count = |word, statuses: &[BuildStatus]| {
        (built.iter().filter(|build| statuses.contains(&build.status)).count(), word)
    };
    let all = [
        count("succeeded", &[BuildStatus::Succeeded]),
        count("failed", &[BuildStatus::Failed, BuildStatus::FailedDependency]),
        count("aborted", &[BuildStatus::Aborted]),
        count("canceled", &[BuildStatus::Canceled]),
    ];
    html! {
        h2 { "Built here" }
        @if built.is_empty() { p class="dim" { "Nothing yet." } } @else {
            p class="dim" {
                "Of the last " (built.len()) ": "
                @for (n, (builds, word)) in all.iter().filter(|(builds, _)| *builds > 0).enumerate() {
                    @if n > 0 { ", " } (builds) " " (word)
                }
                "."
            }
            (list::builds(context, built, true))
        }
    }
}

fn tasks(context: &Context, machine: &Machine, rows: &[(Listed, Option<i64>)]) -> Markup {
    let of = |name: Option<&str>| -> Vec<(Listed, Option<i64>)> {
        let own = rows.iter().filter(|(build, _)| build.worker.as_deref() == name);
        own.cloned().collect()
    };
    let may = context.may(Access::Operate, None);
    html! {
        @if machine.name == HERE {
            @let own = of(None);
            @if own.is_empty() { p class="dim" { "idle" } } @else { (running(context, &own)) }
        } @else {
            div class="scroll" {
                table class="rows" {
                    thead {
                        tr {
                            th scope="col" { "Worker" } th scope="col" { "Systems" }
                            th scope="col" class="name" { "Building" }
                            th scope="col" { "Here since" } th scope="col" { "Last seen" }
                            @if may { th scope="col" { span class="hidden" { "Actions" } } }
                        }
                    }
                    tbody {
                        @for worker in &machine.workers {
                            @let own = of(Some(&worker.name));
                            tr {
                                td {
                                    (worker.name)
                                    @if worker.paused { " " span class="n warn" { "paused" } }
                                    @if worker.is_away(context.now) { " " span class="n bad" { "away" } }
                                    @if worker.paused { div class="small dim" { (why_paused(worker)) } }
                                }
                                td { (worker.systems.join(", ")) }
                                td class="name more" {
                                    @if own.is_empty() { span class="dim" { "idle" } }
                                    @for (build, last) in &own {
                                        div {
                                            a href=(list::build_link(context, build)) { (build.job) } " for "
                                            (part::lasted(context.now, build.starttime, Some(context.now))) " "
                                            (progress(context, build, *last))
                                        }
                                    }
                                }
                                td data-th="Here since" { (part::time(context.now, worker.joined)) }
                                td data-th="Last seen" { (part::time(context.now, worker.last_seen)) }
                                @if may {
                                    @let word = if worker.paused { "resume" } else { "pause" };
                                    @let label = if worker.paused { "Resume" } else { "Pause" };
                                    td { (part::order(context, &format!("/admin/worker/{}/{word}", component(&worker.name)), label)) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn why_paused(worker: &workers::Worker) -> String {
    match worker.failures {
        0 => "by an operator".to_owned(),
        builds => format!("{builds} builds were aborted there in a row"),
    }
}
