//! Orders about one jobset, evaluation, build or worker: read from the path, shown as a question, done over the bridge.

use maud::{Markup, html};
use serde_json::{Value, json};

use crate::db::{builds, evaluations, jobsets, workers};
use crate::model::build::BuildId;
use crate::model::evaluation::EvaluationId;
use crate::model::spec::JobsetName;
use crate::proto::control::{Activity, Command};
use crate::web::access::Access;
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::link::component;
use crate::web::page;
use crate::web::request::{Method, Request};
use crate::web::response::Response;
use crate::web::route::Captures;

/// What is to be done to what.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Trigger(JobsetName),
    Activate(JobsetName),
    Deactivate(JobsetName),
    Delete(JobsetName),
    CancelEvaluation(EvaluationId),
    /// Everything, or what did not succeed.
    Restart {
        evaluation: EvaluationId,
        all: bool,
    },
    Retry(EvaluationId),
    RestartBuild(BuildId),
    CancelBuild(BuildId),
    PrioritizeBuild(BuildId),
    Pause,
    Resume,
    PauseWorker {
        name: String,
        paused: bool,
    },
}

/// A button's word, and what follows from pressing it.
struct Question {
    title: String,
    button: &'static str,
    consequence: &'static str,
}

impl Action {
    /// What a path of the table asks for. `None` if it names nothing that can be there.
    fn of(request: &Request) -> Option<Self> {
        let path: Vec<&str> = request.path.iter().map(String::as_str).collect();
        let (kind, name, word) = match path.as_slice() {
            ["admin", "specifications", word, name] => ("jobset", *name, *word),
            ["admin", kind, name, word] => (*kind, *name, *word),
            ["api", "jobsets", name, word] => ("jobset", *name, *word),
            ["api", "jobsets", name] if request.method == Method::Delete => {
                ("jobset", *name, "delete")
            }
            ["api", "evaluations", name, word] => ("evaluation", *name, *word),
            ["api", "builds", name, word] => ("build", *name, *word),
            ["api", "workers", name, word] => ("worker", *name, *word),
            ["admin", "pause"] => return Some(Self::Pause),
            ["admin", "resume"] => return Some(Self::Resume),
            _ => return None,
        };
        let id: Option<i64> = name.parse().ok().filter(|id| *id > 0);
        match (kind, word) {
            ("jobset", "trigger") => JobsetName::new(name).map(Self::Trigger),
            ("jobset", "activate") => JobsetName::new(name).map(Self::Activate),
            ("jobset", "deactivate") => JobsetName::new(name).map(Self::Deactivate),
            ("jobset", "delete") => JobsetName::new(name).map(Self::Delete),
            ("evaluation", "cancel") => Some(Self::CancelEvaluation(EvaluationId(id?))),
            ("evaluation", "restart") => {
                Some(Self::Restart { evaluation: EvaluationId(id?), all: true })
            }
            ("evaluation", "restart-failed") => {
                Some(Self::Restart { evaluation: EvaluationId(id?), all: false })
            }
            ("evaluation", "retry") => Some(Self::Retry(EvaluationId(id?))),
            ("build", "restart") => Some(Self::RestartBuild(BuildId(id?))),
            ("build", "cancel") => Some(Self::CancelBuild(BuildId(id?))),
            ("build", "prioritize") => Some(Self::PrioritizeBuild(BuildId(id?))),
            ("worker", "pause" | "resume") => {
                Some(Self::PauseWorker { name: name.to_owned(), paused: word == "pause" })
            }
            _ => None,
        }
    }

    fn access(&self) -> Access {
        match self {
            Self::Trigger(_) => Access::Trigger,
            Self::Activate(_) | Self::Deactivate(_) | Self::Delete(_) => Access::Edit,
            Self::CancelEvaluation(_)
            | Self::Restart { .. }
            | Self::Retry(_)
            | Self::RestartBuild(_)
            | Self::CancelBuild(_)
            | Self::PrioritizeBuild(_)
            | Self::Pause
            | Self::Resume
            | Self::PauseWorker { .. } => Access::Operate,
        }
    }

    /// The jobset that it changes, `None` if it changes more than one; or that it is not there.
    fn scope(&self, context: &mut Context) -> Result<Option<JobsetName>, Failure> {
        match self {
            Self::Trigger(name)
            | Self::Activate(name)
            | Self::Deactivate(name)
            | Self::Delete(name) => {
                let found = jobsets::get(context.books()?, name)?;
                let missing = || Failure::missing(format!("There is no jobset {name}."));
                found.map(|jobset| Some(jobset.name)).ok_or_else(missing)
            }
            Self::CancelEvaluation(id) | Self::Restart { evaluation: id, .. } | Self::Retry(id) => {
                let found = evaluations::get(context.books()?, *id)?;
                let missing = || Failure::missing(format!("There is no evaluation {id}."));
                found.map(|evaluation| Some(evaluation.jobset)).ok_or_else(missing)
            }
            Self::RestartBuild(id) | Self::CancelBuild(id) | Self::PrioritizeBuild(id) => {
                if builds::get(context.books()?, *id)?.is_none() {
                    return Err(Failure::missing(format!("There is no build {id}.")));
                }
                let own = context.identity.as_ref().and_then(|identity| identity.jobset.clone());
                let Some(own) = own else { return Ok(None) };
                // Of a build that others want as well, they are changed, too.
                Ok(builds::is_only_of(context.books()?, *id, &own)?.then_some(own))
            }
            Self::Pause | Self::Resume => Ok(None),
            Self::PauseWorker { name, .. } => {
                if !workers::is_known(context.books()?, name)? {
                    return Err(Failure::missing(format!("There is no worker {name:?}.")));
                }
                Ok(None)
            }
        }
    }

    fn question(&self) -> Question {
        let (title, button, consequence) = match self {
            Self::Trigger(name) => (
                format!("Look at the channels of {name} now?"),
                "Look now",
                "An evaluation follows if anything changed.",
            ),
            Self::Activate(name) => (
                format!("Activate {name}?"),
                "Activate",
                "Its channels are watched again, at once and then in each period.",
            ),
            Self::Deactivate(name) => (
                format!("Deactivate {name}?"),
                "Deactivate",
                "Its channels are watched no more. What it has stays, and builds go on.",
            ),
            Self::Delete(name) => (
                format!("Delete {name}?"),
                "Delete",
                "Its evaluations and its dashboards are deleted, and so are its builds that no other jobset wants; \
                 those still pending are canceled. This cannot be undone.",
            ),
            Self::CancelEvaluation(id) => (
                format!("Cancel evaluation {id}?"),
                "Cancel it",
                "It is stopped if it runs, and its pending builds that nothing else wants are canceled.",
            ),
            Self::Restart { evaluation, all: true } => (
                format!("Rebuild all of evaluation {evaluation}?"),
                "Rebuild all",
                "All its jobs are built again, those that succeeded, too.",
            ),
            Self::Restart { evaluation, all: false } => (
                format!("Rebuild what failed of evaluation {evaluation}?"),
                "Rebuild failed",
                "What failed, was aborted or was canceled is built again.",
            ),
            Self::Retry(id) => (
                format!("Evaluate the commits of evaluation {id} again?"),
                "Evaluate again",
                "A new evaluation of the same commits begins at once.",
            ),
            Self::RestartBuild(id) => (
                format!("Build {id} again?"),
                "Restart",
                "It is scheduled with those of its dependencies that have not succeeded; what failed for its sake \
                 is revived.",
            ),
            Self::CancelBuild(id) => (
                format!("Cancel build {id}?"),
                "Cancel it",
                "It is stopped if it runs, and what depends on it is canceled with it.",
            ),
            Self::PrioritizeBuild(id) => (
                format!("Change the priority of build {id}?"),
                "Prioritize",
                "0 is built first, 99 last.",
            ),
            Self::Pause => (
                "Start nothing more?".to_owned(),
                "Pause",
                "What runs goes on. It lasts until it is resumed, also when the daemon is started again.",
            ),
            Self::Resume => ("Go on?".to_owned(), "Resume", "What waits is started again."),
            Self::PauseWorker { name, paused: true } => (
                format!("Give worker {name} nothing more?"),
                "Pause it",
                "What it builds goes on. It lasts until it is resumed or started again, when it has another name.",
            ),
            Self::PauseWorker { name, paused: false } => {
                (format!("Let worker {name} go on?"), "Resume it", "It gets builds again.")
            }
        };
        Question { title, button, consequence }
    }

    /// The order, with what the request adds to the path.
    fn command(&self, request: &Request) -> Result<Command, Failure> {
        Ok(match self {
            Self::Trigger(name) => Command::Trigger(name.clone()),
            Self::Activate(name) => Command::Activate(name.clone()),
            Self::Deactivate(name) => Command::Deactivate(name.clone()),
            Self::Delete(name) => Command::Delete(name.clone()),
            Self::CancelEvaluation(id) => Command::CancelEvaluation(*id),
            Self::Restart { evaluation, all } => {
                Command::RestartEvaluation { id: *evaluation, all: *all }
            }
            Self::Retry(id) => Command::RetryEvaluation(*id),
            Self::RestartBuild(id) => Command::RestartBuild(*id),
            Self::CancelBuild(id) => Command::CancelBuild(*id),
            Self::PrioritizeBuild(id) => {
                let priority = parameter(request, "priority")?;
                let number = priority.as_deref().and_then(|text| text.trim().parse().ok());
                let number =
                    number.filter(|number| (0..=99).contains(number)).ok_or_else(|| {
                        Failure::Invalid(
                            "priority: expected a number from 0 (first) to 99.".to_owned(),
                        )
                    })?;
                Command::PrioritizeBuild { id: *id, priority: number }
            }
            Self::Pause => Command::Pause(activity(request)?),
            Self::Resume => Command::Resume(activity(request)?),
            Self::PauseWorker { name, paused } => {
                Command::PauseWorker { name: name.clone(), paused: *paused }
            }
        })
    }

    /// Where what was done can be seen.
    fn result(&self, scope: Option<&JobsetName>) -> String {
        match self {
            Self::Trigger(name) | Self::Activate(name) => {
                format!("/jobset/{}", component(name.as_str()))
            }
            Self::Retry(id) => scope.map_or(format!("/eval/{id}"), |name| {
                format!("/jobset/{}", component(name.as_str()))
            }),
            Self::Deactivate(_) | Self::Delete(_) => "/".to_owned(),
            Self::CancelEvaluation(id) | Self::Restart { evaluation: id, .. } => {
                format!("/eval/{id}")
            }
            Self::RestartBuild(id) | Self::CancelBuild(id) | Self::PrioritizeBuild(id) => {
                format!("/build/{id}/details")
            }
            Self::Pause | Self::Resume => "/status".to_owned(),
            Self::PauseWorker { .. } => "/workers".to_owned(),
        }
    }

    /// For programs: what it was done to.
    fn reply(&self) -> Value {
        match self {
            Self::Trigger(name)
            | Self::Activate(name)
            | Self::Deactivate(name)
            | Self::Delete(name) => json!({ "jobset": name.as_str() }),
            Self::CancelEvaluation(id) | Self::Restart { evaluation: id, .. } | Self::Retry(id) => {
                json!({ "evaluation": id.0 })
            }
            Self::RestartBuild(id) | Self::CancelBuild(id) | Self::PrioritizeBuild(id) => {
                json!({ "build": id.0 })
            }
            Self::Pause | Self::Resume => json!({}),
            Self::PauseWorker { name, .. } => json!({ "worker": name }),
        }
    }
}

fn activity(request: &Request) -> Result<Activity, Failure> {
    match parameter(request, "what")?.as_deref() {
        None | Some("") => Ok(Activity::Both),
        Some("builds") => Ok(Activity::Builds),
        Some("evaluations") => Ok(Activity::Evaluations),
        Some(_) => Err(Failure::Invalid("what: expected builds or evaluations.".to_owned())),
    }
}

/// A field of the query, of a form, or of an object in JSON.
fn parameter(request: &Request, name: &str) -> Result<Option<String>, Failure> {
    if let Some(value) = request.query.get(name) {
        return Ok(Some(value.to_owned()));
    }
    if request.body.first() == Some(&b'{') {
        let body: Value = serde_json::from_slice(&request.body)
            .map_err(|error| Failure::bad(format!("expected an object in JSON: {error}")))?;
        return Ok(match &body[name] {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        });
    }
    Ok(request.form()?.get(name).map(str::to_owned))
}

/// Does it, if whoever asks may.
fn perform(
    context: &mut Context,
    request: &Request,
) -> Result<(Action, Option<JobsetName>), Failure> {
    let action = found(request)?;
    let scope = action.scope(context)?;
    context.must(action.access(), scope.as_ref())?;
    context.ask(action.command(request)?)?;
    Ok((action, scope))
}

fn found(request: &Request) -> Result<Action, Failure> {
    let missing = || Failure::missing(format!("Resource not found: {}", request.target));
    Action::of(request).ok_or_else(missing)
}

/// POST by a form.
pub(super) fn act(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let (action, scope) = perform(context, request)?;
    Ok(Response::see_other(context.link(&action.result(scope.as_ref()))))
}

/// POST or DELETE by a program.
pub(super) fn act_api(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let (action, _) = perform(context, request)?;
    Ok(Response::json(&action.reply()))
}

/// GET: asks whether to, and changes nothing.
pub(super) fn ask(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let action = found(request)?;
    let scope = action.scope(context)?;
    let question = action.question();
    let may = context.may(action.access(), scope.as_ref());
    let here: Vec<String> = request.path.iter().map(|part| component(part)).collect();
    let here = format!("/{}", here.join("/"));
    let content = html! {
        h1 { (question.title) }
        p { (question.consequence) }
        @if may {
            form method="post" action=(context.link(&here)) {
                (csrf(context))
                (fields(&action))
                button type="submit" { (question.button) }
                " "
                a href=(context.link(&action.result(scope.as_ref()))) { "Leave it" }
            }
        } @else if !context.csrf().is_empty() {
            p { "Your token is not for that." }
        } @else {
            p {
                "This needs a token that is for it: "
                a href=(context.link(&format!("/login?next={}", component(&here)))) { "log in" }
                " first."
            }
        }
    };
    let page = Response::html(200, page::frame(context, &question.title, content));
    Ok(page.with("Cache-Control", "no-store"))
}

/// The field that shows that a form is of this session.
fn csrf(context: &Context) -> Markup {
    let csrf = context.csrf();
    html! { @if !csrf.is_empty() { input type="hidden" name="csrf" value=(csrf); } }
}

/// What only the request can say.
fn fields(action: &Action) -> Markup {
    html! {
        @match action {
            Action::PrioritizeBuild(_) => {
                p {
                    label for="priority" { "Priority" } " "
                    input id="priority" name="priority" type="number" min="0" max="99" required;
                }
            }
            Action::Pause | Action::Resume => {
                p {
                    label for="what" { "What" } " "
                    select id="what" name="what" {
                        option value="" { "builds and evaluations" }
                        option value="builds" { "builds" }
                        option value="evaluations" { "evaluations" }
                    }
                }
            }
            Action::Trigger(_)
            | Action::Activate(_)
            | Action::Deactivate(_)
            | Action::Delete(_)
            | Action::CancelEvaluation(_)
            | Action::Restart { .. }
            | Action::Retry(_)
            | Action::RestartBuild(_)
            | Action::CancelBuild(_)
            | Action::PauseWorker { .. } => {}
        }
    }
}
