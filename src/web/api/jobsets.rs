//! Jobsets' specifications, without their secrets.

use serde::Serialize;
use serde_json::{Value, json};

use super::differences::CountsView;
use super::view::{EvaluationView, OrFalse, seconds};
use crate::db::{evaluations, jobsets};
use crate::model::spec::{
    Evaluator, GuixSubset, JobsetName, Notification, Reference, Specification, printable_url,
};
use crate::spec::{self, json::parse};
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::request::Request;
use crate::web::response::Response;
use crate::web::route::Captures;

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct SpecificationView<'a> {
    name: &'a str,
    build: Value,
    channels: Vec<ChannelView<'a>>,
    build_outputs: Vec<BuildOutputView<'a>>,
    notifications: Vec<Value>,
    period: u64,
    priority: u8,
    systems: &'a [String],
    active: bool,
}

#[derive(Serialize)]
struct ChannelView<'a> {
    name: &'a str,
    url: String,
    branch: OrFalse<&'a str>,
    commit: OrFalse<&'a str>,
}

#[derive(Serialize)]
struct BuildOutputView<'a> {
    job: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    output: &'a str,
    path: &'a str,
}

/// Active ones in the order of names; all with `active=all`.
pub(super) fn list(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let all = request.query.get("active") == Some("all");
    let mut views = Vec::new();
    for jobset in jobsets::list(context.books()?)? {
        if !(jobset.active || all) {
            continue;
        }
        let parsed = parse(&jobset.specification)
            .map_err(|error| Failure::Internal(format!("jobset {}: {error}", jobset.name)))?;
        for specification in &parsed {
            views.push(json!(view(specification, jobset.active)));
        }
    }
    Ok(Response::json(&views))
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct JobsetView<'a> {
    #[serde(flatten)]
    specification: SpecificationView<'a>,
    last_checked: i64,
    error: OrFalse<&'a str>,
    last_evaluation: OrFalse<LastView<'a>>,
}

#[derive(Serialize)]
struct LastView<'a> {
    #[serde(flatten)]
    evaluation: EvaluationView<'a>,
    jobs: CountsView,
}

/// One, with its last evaluation.
pub(super) fn one(
    context: &mut Context,
    _: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    let asked = captures.get("name");
    let missing = || Failure::missing(format!("There is no jobset {asked}."));
    let name = JobsetName::new(asked).ok_or_else(missing)?;
    let books = context.books()?;
    let jobset = jobsets::get(books, &name)?.ok_or_else(missing)?;
    let last = match jobset.last_evaluation {
        Some(id) => evaluations::get(books, id)?,
        None => None,
    };
    let wrong = |why: String| Failure::Internal(format!("jobset {name}: {why}"));
    let parsed = parse(&jobset.specification).map_err(|error| wrong(error.to_string()))?;
    let specification = parsed.first().ok_or_else(|| wrong("no specification".to_owned()))?;
    Ok(Response::json(&JobsetView {
        specification: view(specification, jobset.active),
        last_checked: seconds(jobset.last_checked),
        error: OrFalse(jobset.error.as_deref()),
        last_evaluation: OrFalse(last.as_ref().map(|last| LastView {
            evaluation: EvaluationView::new(last),
            jobs: CountsView::new(&last.jobs),
        })),
    }))
}

fn view(specification: &Specification, active: bool) -> SpecificationView<'_> {
    SpecificationView {
        name: specification.name.as_str(),
        build: build(&specification.evaluator),
        channels: specification
            .channels
            .iter()
            .map(|channel| {
                let (branch, commit) = match &channel.reference {
                    Reference::Branch(name) => (Some(name.as_str()), None),
                    Reference::Commit(id) => (None, Some(id.as_str())),
                    Reference::Head | Reference::Tag(_) => (None, None),
                };
                ChannelView {
                    name: &channel.name,
                    url: printable_url(&channel.url),
                    branch: OrFalse(branch),
                    commit: OrFalse(commit),
                }
            })
            .collect(),
        build_outputs: specification
            .build_outputs
            .iter()
            .map(|output| BuildOutputView {
                job: &output.job,
                kind: &output.kind,
                output: &output.output,
                path: &output.path,
            })
            .collect(),
        notifications: specification.notifications.iter().map(notification).collect(),
        period: specification.period.as_secs(),
        priority: specification.priority,
        systems: &specification.systems,
        active,
    }
}

/// In Cuirass's words, which has only some of ours.
fn build(evaluator: &Evaluator) -> Value {
    match evaluator {
        Evaluator::Guix(GuixSubset::Custom(_)) | Evaluator::Command(_) | Evaluator::Nix(_) => {
            json!("custom")
        }
        Evaluator::Guix(subset) => spec::json::subset(subset),
    }
}

/// Anybody may read this: no user info of servers, and of webhooks no more than that there is one.
fn notification(notification: &Notification) -> Value {
    match notification {
        Notification::Email { from, to, server } => json!({
            "type": "email",
            "from": OrFalse(from.as_deref()),
            "to": to,
            "server": printable_url(server),
        }),
        Notification::Mastodon => json!({ "type": "mastodon" }),
        Notification::Webhook { .. } => json!({ "type": "webhook" }),
    }
}
