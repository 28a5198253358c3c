//! Hooks: others say that something was pushed, and jobsets are looked at.
//!
//! What is at stake is little, a look at channels that would be made sooner or later, and looks of a jobset are rated
//! by its monitor; all the same nobody is believed who shows no secret, where there is one. A forge's delivery is
//! never believed without.

mod forge;
mod repository;
mod seen;
mod signature;

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use super::access::Access;
use super::context::Context;
use super::failure::Failure;
use super::request::Request;
use super::response::Response;
use super::route::Captures;
use crate::db::jobsets;
use crate::model::jobset::Jobset;
use crate::model::spec::{JobsetName, Specification};
use crate::proto::control::Command;
use crate::spec;
use crate::sys::clock;
use forge::Forge;
use repository::normal;
use seen::{Keys, Seen};

/// Deliveries of forges that were heard.
#[derive(Debug, Default)]
pub(super) struct Deliveries(Mutex<Seen>);

/// Cuirass's reply, and what it lacks: whether anything follows.
#[derive(Serialize)]
struct Evaluate<'a> {
    jobset: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    accepted: Option<bool>,
}

/// What was made to look; what would have been, but had looked too often.
#[derive(Serialize, Default)]
struct Triggered {
    #[serde(rename = "jobsetsTriggered")]
    triggered: Vec<String>,
    #[serde(rename = "jobsetsRefused", skip_serializing_if = "Vec::is_empty")]
    refused: Vec<String>,
}

/// POST `/jobset/NAME/hook/evaluate`. Hooks take any status but 200 for a fault of theirs: that a look is refused is
/// told by one only when they ask for it with `strict=1`.
pub(super) fn evaluate(
    context: &mut Context,
    request: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    let missing = || Failure::missing("Jobset not found.");
    let name = JobsetName::new(captures.get("name"));
    // Also of a jobset that is none, so that nobody learns which there are.
    knows_secret(context, request, name.as_ref())?;
    let name = name.ok_or_else(missing)?;
    let strict = request.query.get("strict").is_some_and(|value| value == "1");
    let reply = |accepted| Evaluate { jobset: name.as_str(), accepted };
    match context.ask(Command::Trigger(name.clone())) {
        Ok(_) => Ok(Response::json_with(if strict { 202 } else { 200 }, &reply(None))),
        Err(Failure::Missing(_)) => Err(missing()),
        Err(Failure::TooMany(_, seconds)) => {
            let response = Response::json_with(if strict { 429 } else { 200 }, &reply(Some(false)));
            Ok(response.with("Retry-After", seconds.to_string()))
        }
        Err(failure) => Err(failure),
    }
}

/// Whether whoever calls a jobset's hook may: by a token, by a secret of that jobset, or because there is none and
/// the installation is not private.
fn knows_secret(
    context: &Context,
    request: &Request,
    name: Option<&JobsetName>,
) -> Result<(), Failure> {
    let parameters = &context.shared.config.parameters;
    let secrets = name.and_then(|name| parameters.hook_secrets.get(name));
    let secrets = secrets.map(Vec::as_slice).unwrap_or_default();
    let may = context.identity.is_some() && context.may(Access::Trigger, name);
    let open = secrets.is_empty() && !parameters.private;
    if may || open || secrets.iter().any(|secret| signature::is_signed(request, secret)) {
        return Ok(());
    }
    Err(Failure::Unknown)
}

/// POST `/hooks/FORGE`, and the paths that Cuirass has for two of them.
pub(super) fn github(c: &mut Context, r: &Request, _: &Captures) -> Result<Response, Failure> {
    deliver(c, r, Forge::GitHub)
}

pub(super) fn gitea(c: &mut Context, r: &Request, _: &Captures) -> Result<Response, Failure> {
    deliver(c, r, Forge::Gitea)
}

pub(super) fn forgejo(c: &mut Context, r: &Request, _: &Captures) -> Result<Response, Failure> {
    deliver(c, r, Forge::Forgejo)
}

pub(super) fn gitlab(c: &mut Context, r: &Request, _: &Captures) -> Result<Response, Failure> {
    deliver(c, r, Forge::GitLab)
}

fn deliver(context: &mut Context, request: &Request, forge: Forge) -> Result<Response, Failure> {
    let parameters = context.shared.config.parameters.clone();
    let all: BTreeSet<&String> = parameters.hook_secrets.values().flatten().collect();
    let good: BTreeSet<&String> =
        all.into_iter().filter(|secret| forge.is_signed(request, secret)).collect();
    if good.is_empty() {
        if context.shared.guests.is_news(request.peer) {
            context.audit(&format!("hook of {}", forge.word()), "refused: no secret that is known");
        }
        return Err(Failure::Unknown);
    }
    if request.body.is_empty() {
        return Err(Failure::bad("expected a delivery in JSON, found an empty body"));
    }
    let delivery = forge.delivery(request)?;
    let (keys, now) = (Keys::of(request, forge, &good), clock::now());
    let shared = std::sync::Arc::clone(&context.shared);
    let seen = || shared.deliveries.0.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(delivery) = delivery.filter(|_| !seen().contains(&keys, now)) else {
        return Ok(Response::json(&Triggered::default()));
    };
    let mut wanted = Vec::new();
    for (name, secrets) in &parameters.hook_secrets {
        if secrets.iter().any(|secret| good.contains(secret))
            && let Some(jobset) = jobsets::get(context.books()?, name)?
            && jobset.active
            && specification(&jobset).is_some_and(|specification| delivery.is_for(&specification))
        {
            wanted.push(name.clone());
        }
    }
    let reply = trigger_all(context, &wanted)?;
    // One that was not heard out may come again.
    seen().add(keys, now);
    Ok(Response::json(&reply))
}

/// POST `/api/push?jobsets=NAME,…&repos=URL,…&force=1`: with `force`, what was evaluated last is evaluated again.
pub(super) fn push(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let form = request.form()?;
    let field = |key: &str| request.query.get(key).or(form.get(key)).unwrap_or_default().to_owned();
    let (names, repositories, force) = (field("jobsets"), field("repos"), field("force"));
    let force = !matches!(force.as_str(), "" | "0");
    let parts = |text: &str| -> Vec<String> {
        text.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect()
    };
    if names.is_empty() && repositories.is_empty() {
        return Err(Failure::bad("expected jobsets=NAME,… or repos=URL,…"));
    }
    let access = if force { Access::Operate } else { Access::Trigger };
    let mut wanted: Vec<Jobset> = Vec::new();
    for part in parts(&names) {
        // Hydra's clients put a project before it.
        let name = part.rsplit(':').next().unwrap_or_default();
        let missing = || Failure::missing(format!("There is no jobset {part:?}."));
        let name = JobsetName::new(name).ok_or_else(missing)?;
        let jobset = jobsets::get(context.books()?, &name)?.ok_or_else(missing)?;
        context.must(access, Some(&name))?;
        wanted.push(jobset);
    }
    let repositories: Vec<String> = parts(&repositories).iter().map(|url| normal(url)).collect();
    if !repositories.is_empty() {
        for jobset in jobsets::list(context.books()?)? {
            let watches = |specification: Specification| {
                specification.channels.iter().any(|c| repositories.contains(&normal(&c.url)))
            };
            if jobset.active
                && context.may(access, Some(&jobset.name))
                && specification(&jobset).is_some_and(watches)
                && !wanted.iter().any(|other| other.name == jobset.name)
            {
                wanted.push(jobset);
            }
        }
    }
    if !force {
        let names: Vec<_> = wanted.into_iter().map(|jobset| jobset.name).collect();
        return Ok(Response::json(&trigger_all(context, &names)?));
    }
    let mut reply = Triggered::default();
    for jobset in wanted {
        context.ask(match jobset.last_evaluation {
            Some(id) => Command::RetryEvaluation(id),
            None => Command::Trigger(jobset.name.clone()),
        })?;
        reply.triggered.push(jobset.name.to_string());
    }
    Ok(Response::json(&reply))
}

/// Has each look; an inactive one, or one deleted a moment ago, is passed over.
fn trigger_all(context: &Context, names: &[JobsetName]) -> Result<Triggered, Failure> {
    let mut reply = Triggered::default();
    for name in names {
        match context.ask(Command::Trigger(name.clone())) {
            Ok(_) => reply.triggered.push(name.to_string()),
            Err(Failure::TooMany(..)) => reply.refused.push(name.to_string()),
            Err(Failure::Conflict(_) | Failure::Missing(_)) => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(reply)
}

fn specification(jobset: &Jobset) -> Option<Specification> {
    let all = spec::json::parse(&jobset.specification);
    // What stands in the books was read before.
    all.ok().and_then(|specifications| specifications.into_iter().next())
}
