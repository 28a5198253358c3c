//! What differs between evaluations, and how far one has come.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::view::OrFalse;
use super::{MOST, wanted_or};
use crate::db;
use crate::db::web::differences::{self, Change};
use crate::db::web::pages;
use crate::model::build::BuildId;
use crate::model::evaluation::{Counts, Evaluation, EvaluationId};
use crate::model::status::BuildStatus;
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::request::Request;
use crate::web::response::Response;
use crate::web::route::Captures;

#[derive(Serialize)]
pub(super) struct CountsView {
    total: i64,
    succeeded: i64,
    failed: i64,
    pending: i64,
    aborted: i64,
    canceled: i64,
}

impl CountsView {
    pub(super) fn new(counts: &Counts) -> Self {
        let Counts { total, succeeded, failed, pending, aborted, canceled } = *counts;
        Self { total, succeeded, failed, pending, aborted, canceled }
    }
}

fn evaluation(context: &mut Context, captures: &Captures) -> Result<Evaluation, Failure> {
    let asked = captures.get("id");
    let missing = || Failure::missing(format!("Evaluation with ID {asked} doesn't exist."));
    let id = captures.id("id").map(EvaluationId).ok_or_else(missing)?;
    db::evaluations::get(context.books()?, id)?.ok_or_else(missing)
}

#[derive(Serialize)]
struct Summary<'a> {
    id: i64,
    specification: &'a str,
    status: i64,
    jobs: CountsView,
    /// Of the jobs' builds, how many of a hundred have ended.
    progress: i64,
    error: OrFalse<&'a str>,
}

pub(super) fn summary(
    context: &mut Context,
    _: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    let evaluation = evaluation(context, captures)?;
    let jobs = &evaluation.jobs;
    Ok(Response::json(&Summary {
        id: evaluation.id.0,
        specification: evaluation.jobset.as_str(),
        status: evaluation.status.number(),
        jobs: CountsView::new(jobs),
        progress: ((jobs.total - jobs.pending) * 100).checked_div(jobs.total).unwrap_or(0),
        error: OrFalse(evaluation.error.as_deref()),
    }))
}

fn state(state: Option<(BuildId, BuildStatus)>) -> OrFalse<Value> {
    OrFalse(state.map(|(build, status)| json!({ "build": build.0, "status": status.number() })))
}

/// `from` is an evaluation, or `previous`, the one before it that succeeded, which it is without it; `nr` bounds what is listed of each kind.
pub(super) fn diff(
    context: &mut Context,
    request: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    let limit = wanted_or(request, MOST)?;
    let to = evaluation(context, captures)?;
    let books = context.books()?;
    let from = match request.query.get("from") {
        None | Some("previous") => pages::neighbours(books, &to.jobset, to.id)?.0,
        Some(id) => match id.parse() {
            Ok(id) => Some(EvaluationId(id)),
            Err(_) => {
                return Err(Failure::bad("from must be an evaluation's number or \"previous\""));
            }
        },
    };
    let missing = || Failure::missing(format!("There is nothing to compare {} with.", to.id));
    let from = match from {
        Some(id) => db::evaluations::get(books, id)?.ok_or_else(missing)?,
        None => return Err(missing()),
    };
    let mut counts: BTreeMap<Change, usize> = BTreeMap::new();
    let mut listed: BTreeMap<Change, Vec<Value>> = BTreeMap::new();
    differences::each(books, from.id, to.id, |seen| {
        let Some(change) = seen.change() else { return true };
        *counts.entry(change).or_default() += 1;
        let jobs = listed.entry(change).or_default();
        if jobs.len() < limit {
            jobs.push(json!({
                "name": seen.job,
                "system": seen.system,
                "from": state(seen.from),
                "to": state(seen.to),
            }));
        }
        true
    })?;
    let named = |value: &dyn Fn(Change) -> Value| -> Map<String, Value> {
        Change::ALL.iter().map(|(change, name)| ((*name).to_owned(), value(*change))).collect()
    };
    Ok(Response::json(&json!({
        "evaluation": to.id.0,
        "from": from.id.0,
        "counts": named(&|change| json!(counts.get(&change).unwrap_or(&0))),
        "jobs": named(&|change| json!(listed.get(&change).map_or(&[][..], Vec::as_slice))),
        "channels": channels(&from, &to),
    })))
}

/// Channels whose commits differ.
fn channels(from: &Evaluation, to: &Evaluation) -> Vec<Value> {
    let commit = |evaluation: &Evaluation, channel: &str| {
        let found = evaluation.checkouts.iter().find(|checkout| checkout.channel == channel);
        OrFalse(found.map(|checkout| checkout.commit.clone()))
    };
    let mut names: Vec<&str> = to.checkouts.iter().map(|c| c.channel.as_str()).collect();
    names.extend(from.checkouts.iter().map(|c| c.channel.as_str()));
    names.sort_unstable();
    names.dedup();
    let pairs = names.into_iter().map(|name| (name, commit(from, name), commit(to, name)));
    pairs
        .filter(|(_, old, new)| old.0 != new.0)
        .map(|(name, old, new)| json!({ "channel": name, "from": old, "to": new }))
        .collect()
}
