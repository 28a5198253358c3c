//! Workers and what they do, and what was measured.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::db::web::machines;
use crate::db::workers;
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::request::Request;
use crate::web::response::Response;
use crate::web::route::Captures;

/// Builds that are told of all workers: more than machines run at once.
const RUNNING: usize = 10_000;
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
    paused: bool,
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
    let views = known.iter().map(|worker| WorkerView {
        name: &worker.name,
        machine: &worker.machine,
        systems: &worker.systems,
        last_seen: worker.last_seen.0,
        paused: worker.paused,
        builds: running.get(&worker.name).into_iter().flatten().map(|id| id.0).collect(),
    });
    Ok(Response::json(&views.collect::<Vec<_>>()))
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
