//! One build: what it is, why it is where it is, what it needs and who needs it.

use maud::{Markup, html};
use serde_json::Value;

use super::{Frame, forge, list, log, part};
use crate::db::web::builds::{Left, products as left};
use crate::db::web::pages::{self, Details, Listed};
use crate::db::web::relations;
use crate::db::{builds, evaluations};
use crate::model::build::{Build, BuildId};
use crate::model::evaluation::{Checkout, EvaluationId};
use crate::model::spec::JobsetName;
use crate::model::status::{BuildStatus, Weather};
use crate::proto::control::Command;
use crate::web::access::Access;
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::link::component;
use crate::web::log_view;
use crate::web::request::Request;
use crate::web::response::Response;
use crate::web::route::Captures;

/// Neighbours shown of each kind; more of them than that are for the API.
const NEIGHBOURS: usize = 50;
const HISTORY: usize = 10;
const PRODUCTS: usize = 200;

/// The build that a path names.
pub(super) fn numbered(context: &mut Context, captures: &Captures) -> Result<Build, Failure> {
    let missing = || Failure::missing(format!("There is no build {}.", captures.get("id")));
    let id = captures.id("id").map(BuildId).ok_or_else(missing)?;
    builds::get(context.books()?, id)?.ok_or_else(missing)
}

/// What the books know besides the build.
struct Around {
    details: Option<Details>,
    dependencies: Vec<Listed>,
    dependents: Vec<Listed>,
    causes: Vec<Listed>,
    products: Vec<Left>,
    history: Vec<(EvaluationId, Listed)>,
    evaluations: Vec<(EvaluationId, JobsetName)>,
    /// The end of the log of one that failed.
    lines: Option<String>,
    /// For weather: the checkouts of its evaluation, and of the one that it is compared with.
    checkouts: Vec<Checkout>,
    before: Vec<Checkout>,
}

/// GET `/build/ID/details`.
pub(super) fn build(
    context: &mut Context,
    _: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    let build = numbered(context, captures)?;
    let around = around(context, &build)?;
    let waiting = if build.status.is_pending() { waiting(context, build.id) } else { None };
    let title = format!("Build {} of {}", build.id, build.job);
    let content = html! {
        div class="head" {
            h1 { (build.job) (list::system_of(&build.job, &build.system)) }
            (actions(context, &build))
        }
        div data-live="build" {
            (trouble(context, &build, &around))
            (facts(context, &build, &around, waiting.as_deref()))
        }
        div data-live="products" { (products(context, &around)) }
        div data-live="needs" {
            (neighbours(context, "Dependencies", &around.dependencies))
            (neighbours(context, "Dependents", &around.dependents))
        }
        (history(context, &build, &around))
    };
    let frame = Frame::new(&title)
        .of(context, &build.jobset)
        .below(
            format!("Evaluation {}", build.evaluation),
            context.link(&format!("/eval/{}", build.evaluation)),
        )
        .hearing(format!("?build={}", build.id));
    Ok(Response::html(200, frame.show(context, &content)))
}

fn around(context: &mut Context, build: &Build) -> Result<Around, Failure> {
    let books = context.books()?;
    let job = (build.job.as_str(), build.system.as_str());
    let history = pages::history(books, &build.jobset, job, Some(build.evaluation), HISTORY)?;
    let good = history.iter().find(|(_, old)| old.status == BuildStatus::Succeeded);
    let before = match (build.weather, good) {
        (Weather::NewFailure, Some((evaluation, _))) => {
            evaluations::get(books, *evaluation)?.map(|old| old.checkouts).unwrap_or_default()
        }
        _ => Vec::new(),
    };
    let checkouts = evaluations::get(books, build.evaluation)?;
    Ok(Around {
        details: pages::details(books, build.id)?,
        dependencies: pages::each(
            books,
            &relations::dependencies(books, build.id, BuildId(0), NEIGHBOURS)?,
        )?,
        dependents: pages::each(
            books,
            &relations::dependents(books, build.id, BuildId(0), NEIGHBOURS)?,
        )?,
        causes: match build.status {
            BuildStatus::FailedDependency => {
                pages::each(books, &relations::causes(books, build.id, NEIGHBOURS)?)?
            }
            _ => Vec::new(),
        },
        products: left(books, build.id)?,
        evaluations: pages::evaluations_with(books, build.id, HISTORY)?,
        lines: match (build.status, &build.log) {
            (BuildStatus::Failed, Some(file)) => log::Budget::new().last_lines(file.as_ref()),
            _ => None,
        },
        checkouts: checkouts.map(|own| own.checkouts).unwrap_or_default(),
        history,
        before,
    })
}

/// Why it does not run, as the daemon knows; `None` if that does not answer.
fn waiting(context: &Context, id: BuildId) -> Option<String> {
    let object = context.hint(Command::Build(id))?.into_iter().next()?;
    let object: Value = serde_json::from_str(&object).ok()?;
    object.get("waiting")?.as_str().map(str::to_owned)
}

fn actions(context: &Context, build: &Build) -> Markup {
    let path = |word: &str| format!("/admin/build/{}/{word}", build.id);
    html! {
        div class="actions" data-live="actions" {
            @if build.log.is_some() {
                a class="button" href=(context.link(&format!("/build/{}/log", build.id))) { "Log" }
            }
            @if part::may(context, Access::Operate, &build.jobset) {
                @if build.status.is_pending() {
                    (part::order(context, &path("cancel"), "Cancel"))
                    form method="post" action=(context.link(&path("prioritize"))) {
                        (part::csrf(context))
                        label class="hidden" for="priority" { "Priority, 0 is first" }
                        input type="number" id="priority" name="priority" min="0" max="99" value=(build.priority);
                        button type="submit" { "Prioritize" }
                    }
                } @else {
                    (part::order(context, &path("restart"), "Restart"))
                }
            }
        }
    }
}

fn trouble(context: &Context, build: &Build, around: &Around) -> Markup {
    let look = part::build_look(build.status);
    html! {
        @if build.error.is_some() || !around.causes.is_empty() {
            div class={ "box " (look.class) } {
                h2 { (look.word) }
                @if let Some(error) = &build.error { pre { (error) } }
                @if !around.causes.is_empty() { p { "Because of:" } (list::brief(context, &around.causes)) }
                @if let Some(lines) = &around.lines { pre { (log_view::plain(lines)) } }
                @if build.status == BuildStatus::Failed && build.log.is_some() {
                    p class="small" {
                        a href=(context.link(&format!("/build/{}/log#end", build.id))) { "The whole log, from its end" }
                    }
                }
            }
        }
    }
}

fn facts(context: &Context, build: &Build, around: &Around, waiting: Option<&str>) -> Markup {
    let now = context.now;
    html! {
        dl class="facts" {
            dt { "Status" }
            dd {
                (part::status(build.status))
                @if let Some(by) = around.details.as_ref().and_then(|d| d.canceled_by.as_deref()) {
                    @if build.status == BuildStatus::Canceled { " " span class="dim" { "by " (canceled(by)) } }
                }
            }
            @if let Some(waiting) = waiting { dt { "Waits" } dd { (part::reason(context, waiting)) } }
            @if let Some(retry) = around.details.as_ref().and_then(|d| d.retry_at) {
                @if build.status.is_pending() { dt { "Tried again" } dd { (part::time(now, retry)) } }
            }
            @if build.weather != Weather::Unknown {
                dt { "Trend" } dd { (part::weather(build.weather)) (trend(context, build, around)) }
            }
            dt { "Job" }
            dd {
                a href=(part::job_link(context, &build.jobset, &build.job, &build.system)) { (build.job) }
                " of " (part::jobset(context, &build.jobset))
            }
            dt { "Build" } dd { (build.id) ", " code { (build.nix_name) } }
            dt { "System" } dd { (build.system) }
            dt { "Created" } dd { (part::time(now, build.timestamp)) }
            @if let Some(queued) = around.details.as_ref().map(|d| d.queued).filter(|q| *q != build.timestamp) {
                dt { "Asked for again" } dd { (part::time(now, queued)) }
            }
            @if let Some(start) = build.starttime { dt { "Started" } dd { (part::time(now, start)) } }
            @if let Some(stop) = build.stoptime { dt { "Ended" } dd { (part::time(now, stop)) } }
            @if build.starttime.is_some() {
                dt { "Took" } dd { (part::lasted(now, build.starttime, build.stoptime)) }
            }
            dt { "Priority" } dd { (build.priority) }
            @if let Some(details) = &around.details {
                @if details.tries > 0 {
                    dt { "Tries" }
                    dd {
                        (details.tries)
                        @if build.attempts != details.tries { " (" (build.attempts) " since it was last asked for)" }
                    }
                }
                @if details.timeout > 0 { dt { "Timeout" } dd { (part::duration(details.timeout)) } }
                @if details.max_silent > 0 { dt { "Longest silence" } dd { (part::duration(details.max_silent)) } }
                @if let Some(command) = command(details) { dt { "Command" } dd { code { (command) } } }
            }
            @if build.starttime.is_some() {
                dt { "Built on" }
                dd {
                    @match &build.worker {
                        Some(worker) => {
                            @let machine = around.details.as_ref().and_then(|details| details.machine.as_deref());
                            @if let Some(machine) = machine {
                                a href=(context.link(&format!("/machine/{}", component(machine)))) { (machine) }
                                " (worker " (worker) ")"
                            } @else { "worker " (worker) }
                        }
                        None => "this machine",
                    }
                }
            }
            dt { "Derivation" } dd { code { (build.derivation) } }
            @if !build.outputs.is_empty() {
                dt { "Outputs" }
                dd {
                    @for (name, path) in &build.outputs { div { (name) " " code { (path) } } }
                    @if around.details.as_ref().is_some_and(|d| d.expired) {
                        span class="dim" { "It has been removed since." }
                    }
                }
            }
            @if build.log.is_some() {
                dt { "Log" }
                dd {
                    a href=(context.link(&format!("/build/{}/log", build.id))) { "pretty" } " · "
                    a href=(context.link(&format!("/build/{}/log/raw", build.id))) { "raw" }
                }
            }
            dt { "Evaluations" }
            dd {
                @for (n, (evaluation, jobset)) in around.evaluations.iter().enumerate() {
                    @if n > 0 { ", " }
                    a href=(context.link(&format!("/eval/{evaluation}"))) { (evaluation) }
                    @if *jobset != build.jobset { " of " (jobset) }
                }
            }
        }
    }
}

/// Who or what canceled a build, from the word in the books.
fn canceled(by: &str) -> &'static str {
    match by {
        "name" => "a person",
        "dependency" => "the canceling of a dependency",
        "evaluation" => "the canceling of its evaluation",
        "superseded" => "a newer evaluation",
        "expired" => "waiting too long",
        "jobset" => "the deletion of its jobset",
        _ => "something else",
    }
}

/// What a process build runs.
fn command(details: &Details) -> Option<String> {
    let work: Value = serde_json::from_str(details.work.as_deref()?).ok()?;
    let words = work.get("command")?.as_array()?.iter().filter_map(Value::as_str);
    Some(shell_words::join(words))
}

/// Since when it is so, and what changed then.
fn trend(context: &Context, build: &Build, around: &Around) -> Markup {
    let good = around.history.iter().find(|(_, old)| old.status == BuildStatus::Succeeded);
    // Of the failures in a row before this one, the first.
    let mut bad =
        around.history.iter().take_while(|(_, old)| old.id != build.id && old.status.number() > 0);
    html! {
        @match build.weather {
            Weather::NewFailure => {
                @if let Some((evaluation, old)) = good {
                    "; the last that succeeded is " a href=(list::build_link(context, old)) { "build " (old.id) } "."
                    @for new in &around.checkouts {
                        @if let Some(old) = around.before.iter().find(|old| old.channel == new.channel && old.commit != new.commit) {
                            div { (new.channel) " " (forge::change(&new.url, &old.commit, &new.commit)) }
                        }
                    }
                    div class="small" {
                        a href=(context.link(&format!("/eval/{}/compare?from={evaluation}", build.evaluation))) {
                            "All that changed between the evaluations"
                        }
                    }
                }
            }
            Weather::StillFailing => {
                @if let Some((_, first)) = bad.by_ref().last() {
                    "; it failed already as " a href=(list::build_link(context, first)) { "build " (first.id) } "."
                }
            }
            Weather::Unknown | Weather::NewSuccess | Weather::StillSucceeding => {}
        }
    }
}

fn products(context: &Context, around: &Around) -> Markup {
    html! {
        @if !around.products.is_empty() {
            h2 { "Products" }
            div class="scroll" {
                table {
                    thead {
                        tr {
                            th scope="col" class="name" { "File" } th scope="col" { "Type" }
                            th scope="col" class="num" { "Size" } th scope="col" class="far" { "SHA-256" }
                        }
                    }
                    tbody {
                        @for product in around.products.iter().take(PRODUCTS) {
                            tr {
                                td class="name" {
                                    a href=(context.link(&format!("/download/{}", product.id))) { (file_name(product)) }
                                }
                                td { (product.kind) }
                                td class="num" { (part::size(u64::try_from(product.size).unwrap_or(0))) }
                                td class="far" { @if let Some(sum) = &product.sha256 { code { (sum) } } @else { "a directory" } }
                            }
                        }
                    }
                }
            }
            @if around.products.len() > PRODUCTS { p class="dim" { (around.products.len() - PRODUCTS) " more are not shown." } }
        }
    }
}

fn file_name(product: &Left) -> String {
    let name = product.path.rsplit('/').next();
    name.unwrap_or(&product.path).to_owned()
}

fn neighbours(context: &Context, title: &str, builds: &[Listed]) -> Markup {
    html! {
        @if !builds.is_empty() {
            h2 { (title) " " span class="dim" { (builds.len()) @if builds.len() == NEIGHBOURS { " or more" } } }
            (list::brief(context, &builds[..builds.len().min(10)]))
            @if builds.len() > 10 {
                details { summary { "More" } (list::brief(context, &builds[10..])) }
            }
        }
    }
}

fn history(context: &Context, build: &Build, around: &Around) -> Markup {
    let mut older: Vec<Listed> = Vec::new();
    for (_, old) in &around.history {
        if old.id != build.id && older.last().is_none_or(|last| last.id != old.id) {
            older.push(old.clone());
        }
    }
    html! {
        @if !older.is_empty() {
            h2 { "Before" }
            (list::builds(context, &older, false))
            p { a href=(part::job_link(context, &build.jobset, &build.job, &build.system)) { "The whole history of the job" } }
        }
    }
}
