//! The HTTP API: shapes that Cuirass's clients know, and some more.
//!
//! Invariant: keys come in the order that is documented, what is absent is `false`, a time that is not yet is 0.

mod builds;
pub(super) mod channels;
mod differences;
mod evaluations;
mod jobsets;
mod machines;
mod relations;
mod search;
mod view;

use super::access::Access;
use super::failure::Failure;
use super::request::{Method, Request};
use super::response::Response;
use super::route::{Answer, Kind, Route};

/// A route that reads.
const fn get(path: &'static str, answer: Answer) -> Route {
    Route { method: Method::Get, path, access: Access::Read, kind: Kind::Api, answer }
}

/// One that reads text.
const fn text(path: &'static str, answer: Answer) -> Route {
    Route { kind: Kind::Text, ..get(path, answer) }
}

pub(super) const ROUTES: &[Route] = &[
    get("/build/:id", builds::one),
    get("/output/:name", builds::output),
    get("/jobsets/*", jobsets::list),
    get("/specifications/*", jobsets::list),
    get("/api/evaluation", evaluations::one),
    get("/api/evaluations", evaluations::list),
    get("/api/jobs", evaluations::jobs),
    get("/api/jobs/history", evaluations::history),
    get("/api/latestbuilds", builds::latest),
    get("/api/queue", builds::queue),
    get("/api/evaluation/:id/diff", differences::diff),
    get("/api/evaluation/:id/summary", differences::summary),
    get("/api/build/:id/dependencies", relations::dependencies),
    get("/api/build/:id/dependents", relations::dependents),
    get("/api/build/:id/first-failure", relations::first_failure),
    get("/api/jobsets/:name", jobsets::one),
    get("/api/workers", machines::workers),
    get("/api/machines/:name", machines::machine),
    get("/api/metrics", machines::metrics),
    get("/api/search", search::list),
    get("/search/latest", search::latest),
    get("/search/latest/:type", search::latest_product),
    text("/eval/latest/channels.scm", channels::latest),
    text("/eval/:id/channels.scm", channels::of_evaluation),
];

/// The most objects in an answer: what Guix asks for.
const MOST: usize = 1000;

const UNDEFINED: &str = "Parameter not defined";

/// How many objects are wanted: `nr`, which must be there.
fn wanted(request: &Request, most: usize, missing: &str) -> Result<usize, Failure> {
    match request.query.number("nr").map(usize::try_from) {
        Some(Ok(number)) if number > most => Err(Failure::bad("Maximum limit exceeded")),
        Some(Ok(number)) if number > 0 => Ok(number),
        Some(_) => Err(Failure::bad("nr must be at least 1")),
        None => Err(Failure::bad(missing)),
    }
}

/// The same where `nr` may be left out.
fn wanted_or(request: &Request, otherwise: usize) -> Result<usize, Failure> {
    match request.query.get("nr") {
        Some(_) => wanted(request, MOST, UNDEFINED),
        None => Ok(otherwise),
    }
}

/// Adds where the list goes on: the same request with `key` set to `value`.
fn going_on(response: Response, request: &Request, key: &str, value: &str) -> Response {
    going_on_with(response, request, &[(key, value)])
}

/// As [`going_on`], with several keys set.
fn going_on_with(response: Response, request: &Request, set: &[(&str, &str)]) -> Response {
    let path: Vec<String> = request.path.iter().map(|part| super::link::component(part)).collect();
    let kept = request.query.iter().filter(|(known, _)| set.iter().all(|(key, _)| known != key));
    let pairs = kept.chain(set.iter().copied()).map(|(key, value)| {
        format!("{}={}", super::link::component(key), super::link::component(value))
    });
    let target = format!("/{}?{}", path.join("/"), pairs.collect::<Vec<_>>().join("&"));
    response.with("Link", format!("<{target}>; rel=\"next\""))
}
