//! One build, lists of builds, and whose output a store item is.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::view::{BuildView, OrFalse, seconds};
use super::{MOST, UNDEFINED, going_on, going_on_with, wanted};
use crate::db::web::builds::{self, Filter, Shown, Sorting};
use crate::model::build::BuildId;
use crate::model::status::BuildStatus;
use crate::proto::control::Command;
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::request::Request;
use crate::web::response::Response;
use crate::web::route::Captures;
use crate::web::search::position;

/// Where derivations and outputs may be.
const STORES: [&str; 2] = ["/gnu/store/", "/nix/store/"];

pub(super) fn one(
    context: &mut Context,
    _: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    let asked = captures.get("id");
    let missing = || Failure::missing(format!("Build with ID {asked} doesn't exist."));
    let books = context.books()?;
    let mut found = None;
    if let Some(id) = captures.id("id") {
        found = builds::get(books, BuildId(id))?;
    } else if asked.ends_with(".drv") && !asked.contains('/') {
        for store in STORES {
            found = found.or(builds::of_derivation(books, &format!("{store}{asked}"))?);
        }
    }
    Ok(Response::json(&BuildView::new(&found.ok_or_else(missing)?)))
}

#[derive(Serialize)]
struct OutputView<'a> {
    name: String,
    derivation: OrFalse<&'a str>,
    build: OrFalse<BuildView<'a>>,
}

pub(super) fn output(
    context: &mut Context,
    _: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    let asked = captures.get("name");
    let books = context.books()?;
    for store in STORES.iter().filter(|_| !asked.contains('/')) {
        if let Some((name, id)) = builds::of_output(books, &format!("{store}{asked}"))? {
            let found = builds::get(books, id)?;
            return Ok(Response::json(&OutputView {
                name,
                derivation: OrFalse(found.as_ref().map(|shown| shown.build.derivation.as_str())),
                build: OrFalse(found.as_ref().map(BuildView::new)),
            }));
        }
    }
    Err(Failure::missing(format!("Output with ID {asked} doesn't exist.")))
}

pub(super) fn latest(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let limit = wanted(request, MOST, UNDEFINED)?;
    let filter = filter(request);
    if filter.status.is_some_and(|status| status < 0) {
        return Ok(Response::json(&[(); 0]));
    }
    let before = request.query.get("before").map(position).transpose()?;
    let found = builds::latest(context.books()?, &filter, before, limit)?;
    let response = shown(&found);
    Ok(match found.last() {
        Some(last) if found.len() == limit => match filter.sorting() {
            Sorting::Evaluation => {
                let last = format!("{}-{}", last.build.evaluation, last.build.id);
                going_on(response, request, "before", &last)
            }
            Sorting::End => {
                let time = seconds(last.build.stoptime).to_string();
                let id = last.build.id.to_string();
                let borders = [("border-high-time", &*time), ("border-high-id", &*id)];
                going_on_with(response, request, &borders)
            }
        },
        _ => response,
    })
}

pub(super) fn queue(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let limit = wanted(request, MOST, UNDEFINED)?;
    let found = builds::queue(context.books()?, &filter(request), limit)?;
    let reasons = reasons(context, &found);
    let views = found.iter().map(|shown| WaitingView {
        waiting: OrFalse(reasons.get(&shown.build.id.0).map(String::as_str)),
        build: BuildView::new(shown),
    });
    Ok(Response::json(&views.collect::<Vec<_>>()))
}

/// A build that has yet to end, and why it waits.
#[derive(Serialize)]
struct WaitingView<'a> {
    #[serde(flatten)]
    build: BuildView<'a>,
    waiting: OrFalse<&'a str>,
}

/// What of the daemon's answer counts here.
#[derive(Deserialize)]
struct Reason {
    id: i64,
    waiting: Option<String>,
}

/// Why builds wait, as the daemon says of the first that it would begin; nothing if it is away.
fn reasons(context: &Context, found: &[Shown]) -> HashMap<i64, String> {
    if found.iter().all(|shown| shown.build.status == BuildStatus::Started) {
        return HashMap::new();
    }
    let answer = context.hint(Command::Queue { limit: MOST }).unwrap_or_default();
    let reasons = answer.iter().filter_map(|object| serde_json::from_str::<Reason>(object).ok());
    reasons.filter_map(|reason| Some((reason.id, reason.waiting?))).collect()
}

pub(super) fn shown(found: &[Shown]) -> Response {
    Response::json(&found.iter().map(BuildView::new).collect::<Vec<_>>())
}

/// The filters of a request; numbers that are none count as absent.
fn filter(request: &Request) -> Filter {
    let query = &request.query;
    let text = |key| query.get(key).map(str::to_owned);
    let border = |time, id| query.number(time).zip(query.number(id));
    Filter {
        jobset: text("jobset"),
        job: text("job"),
        system: text("system"),
        evaluation: query.number("evaluation"),
        id: query.number("id"),
        derivation: text("derivation"),
        worker: text("worker"),
        status: query.number("status"),
        older: query.number("oldevaluation"),
        high: border("border-high-time", "border-high-id"),
        low: border("border-low-time", "border-low-id"),
    }
}
