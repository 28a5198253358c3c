//! Workers and what they do, and what was measured.

use serde::Serialize;
use serde_json::{Map, Value};

use super::view::BuildView;
use super::wanted_or;
use crate::db::web::{builds, machines};
use crate::db::workers::{self, Worker};
use crate::model::status::BuildStatus;
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::request::Request;
use crate::web::response::Response;
use crate::web::route::Captures;

/// Builds that are told of all workers: more than machines run at once.
const RUNNING: usize = 10_000;
/// Builds of a machine's history that are told unless more are asked for.
const BUILT: usize = 100;
/// Values of a metric that are told: a hundred are kept of those that go on, and one for each jobset or machine.
const VALUES: usize = 1000;

/// The metrics by their numbers.
const METRICS: [&str; 13] = [
    "average-evaluation-duration-last-10",
    "average-evaluation-duration-last-100",
    "average-evaluation-duration",
    "builds-per-day",
    "pending-builds",
    "new-derivations-per-day",
    "failed-evaluations-percentage-last-10",
    "failed-evaluations-percentage-last-100",
    "failed-evaluations-percentage",
    "average-build-start-time",
    "average-build-completion-time",
    "evaluation-completion-speed",
    "builds-per-machine-per-day",
];

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct WorkerView<'a> {
    name: &'a str,
    machine: &'a str,
    systems: &'a [String],
    last_seen: i64,
    /// Since when it is here.
    joined: i64,
    paused: bool,
    /// Builds that were aborted in a row, if it is paused for that.
    failures: u32,
    /// Those that it runs.
    builds: Vec<i64>,
}

/// Remote workers; builds of this machine have none.
pub(super) fn workers(
    context: &mut Context,
    _: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let books = context.books()?;
    let running = machines::running(books, RUNNING)?;
    let known = workers::list(books)?;
    let views = known.iter().map(|worker| view(worker, running.get(&worker.name)));
    Ok(Response::json(&views.collect::<Vec<_>>()))
}

fn view<'a>(worker: &'a Worker, running: Option<&Vec<machines::Running>>) -> WorkerView<'a> {
    WorkerView {
        name: &worker.name,
        machine: &worker.machine,
        systems: &worker.systems,
        last_seen: worker.last_seen.0,
        joined: worker.joined.0,
        paused: worker.paused,
        failures: worker.failures,
        builds: running.into_iter().flatten().map(|(id, _)| id.0).collect(),
    }
}

#[derive(Serialize)]
struct MachineView<'a> {
    name: &'a str,
    workers: Vec<WorkerView<'a>>,
    running: Vec<BuildView<'a>>,
    /// How those of the history ended.
    counts: Ended,
    /// The last that ended there, the newest end first.
    builds: Vec<BuildView<'a>>,
}

#[derive(Default, Serialize)]
struct Ended {
    total: usize,
    succeeded: usize,
    failed: usize,
    aborted: usize,
    canceled: usize,
}

/// A machine of remote workers: what it builds and what it built, `nr` of those at most.
pub(super) fn machine(
    context: &mut Context,
    request: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    let limit = wanted_or(request, BUILT)?;
    let name = captures.get("name");
    let books = context.books()?;
    let mut known = workers::list(books)?;
    known.retain(|worker| worker.machine == name);
    let ids: Vec<_> = machines::built(books, name, limit)?.iter().map(|build| build.id).collect();
    let now = machines::running_on(books, name, RUNNING)?;
    if known.is_empty() && ids.is_empty() && now.is_empty() {
        return Err(Failure::missing(format!("There is no machine {name:?}.")));
    }
    let by_worker = machines::running(books, RUNNING)?;
    let (now, built) = (builds::each(books, &now)?, builds::each(books, &ids)?);
    let mut counts = Ended { total: built.len(), ..Ended::default() };
    for shown in &built {
        match shown.build.status {
            BuildStatus::Succeeded => counts.succeeded += 1,
            BuildStatus::Failed | BuildStatus::FailedDependency => counts.failed += 1,
            BuildStatus::Aborted => counts.aborted += 1,
            BuildStatus::Canceled => counts.canceled += 1,
            BuildStatus::Submitted | BuildStatus::Scheduled | BuildStatus::Started => {}
        }
    }
    Ok(Response::json(&MachineView {
        name,
        workers: known.iter().map(|worker| view(worker, by_worker.get(&worker.name))).collect(),
        running: now.iter().map(BuildView::new).collect(),
        counts,
        builds: built.iter().map(BuildView::new).collect(),
    }))
}

#[derive(Serialize)]
struct Measured {
    field: String,
    value: f64,
}

pub(super) fn metrics(
    context: &mut Context,
    _: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let books = context.books()?;
    let mut all: Map<String, Value> = Map::new();
    for (number, name) in (0..).zip(METRICS) {
        let found = machines::metric(books, number, VALUES)?;
        let values = found.into_iter().map(|(field, value)| Measured { field, value });
        let values = values.map(|measured| serde_json::json!(measured)).collect();
        all.insert(name.to_owned(), Value::Array(values));
    }
    Ok(Response::json(&all))
}
