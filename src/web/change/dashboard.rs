//! Dashboards: some jobs of a jobset under a name of their own.

use serde_json::Value;

use crate::db::{evaluations, records};
use crate::model::spec::JobsetName;
use crate::proto::control::Command;
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::request::Request;
use crate::web::response::Response;
use crate::web::route::Captures;

/// GET `/api/dashboard/register?spec=NAME&names=JOB,…`: the one GET that adds a row, as clients of Cuirass expect it
/// to. All it makes is a name for what can be seen anyway; each address makes so many and no more.
pub(super) fn register(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let undefined = || Failure::bad("Parameter not defined");
    let name = request.query.get("spec").ok_or_else(undefined)?;
    let jobs: Vec<String> = request
        .query
        .get("names")
        .ok_or_else(undefined)?
        .split(',')
        .filter(|job| !job.is_empty())
        .map(str::to_owned)
        .collect();
    if jobs.is_empty() {
        return Err(undefined());
    }
    let missing = || Failure::missing(format!("There is no jobset {name:?}."));
    let jobset = JobsetName::new(name).ok_or_else(missing)?;
    if let Some(seconds) = context.shared.guests.one_more_dashboard(request.peer) {
        let why = "Too many dashboards from your address; wait a little.";
        return Err(Failure::TooMany(why.to_owned(), seconds));
    }
    let objects = match context.ask(Command::RegisterDashboard { jobset, jobs }) {
        Err(Failure::Missing(_)) => return Err(missing()),
        other => other?,
    };
    let made = objects.first().and_then(|object| serde_json::from_str::<Value>(object).ok());
    let id = made.as_ref().and_then(|made| made["id"].as_str());
    let id = id.ok_or_else(|| Failure::Internal("the daemon names no dashboard".to_owned()))?;
    Ok(Response::json(&serde_json::json!({ "id": id })))
}

/// GET `/dashboard/ID`: to its page for the latest evaluation that succeeded.
pub(super) fn open(
    context: &mut Context,
    _: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    let id = captures.get("id");
    let missing = || Failure::missing(format!("Dashboard with ID {id} doesn't exist."));
    let (jobset, _) = records::dashboard(context.books()?, id)?.ok_or_else(missing)?;
    let latest = evaluations::last_succeeded(context.books()?, &jobset)?
        .ok_or_else(|| Failure::missing(format!("No evaluation of {jobset} has succeeded yet.")))?;
    Ok(Response::found(context.link(&format!("/eval/{latest}/dashboard/{id}"))))
}
