//! Specifications that come from forms or as JSON: read, checked, and handed to the daemon.
//!
//! The fields of forms are Cuirass's, and more beside them. What a form leaves out that the jobset has, it keeps: a
//! script written for Cuirass loses no introduction.

mod fields;
mod whole;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::keep;
use crate::db::jobsets;
use crate::model::jobset::Jobset;
use crate::model::spec::{JobsetName, Specification, printable_url};
use crate::proto::control::Command;
use crate::spec;
use crate::sys::random;
use crate::web::access::Access;
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::page;
use crate::web::request::{Form, Request};
use crate::web::response::Response;
use crate::web::route::Captures;

/// What is wrong with a field of a form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::web) struct Problem {
    /// Its name in the form.
    pub(in crate::web) field: String,
    /// Which of those of that name, where they repeat.
    pub(in crate::web) row: Option<usize>,
    pub(in crate::web) message: String,
}

impl Problem {
    fn new(field: &str, message: impl Into<String>) -> Self {
        Self { field: field.to_owned(), row: None, message: message.into() }
    }
}

/// What a form for editing a jobset is filled with: all of its specification but what is secret.
pub(in crate::web) fn values(specification: &Specification, active: bool) -> Form {
    let fields = fields::write(specification, active);
    let fields = fields.iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
    let seen = (SEEN.to_owned(), digest(specification, active));
    Form::new(fields.chain([seen]).collect())
}

/// The field of a form that tells what it was filled with, so that it undoes nothing that was changed since. Programs
/// that send forms know nothing of it.
pub(in crate::web) const SEEN: &str = "seen";

/// What tells one state of a jobset from another, and nothing of its secrets.
fn digest(specification: &Specification, active: bool) -> String {
    random::hex(&Sha256::digest(json(specification, active)))
}

/// The same as JSON.
pub(in crate::web) fn json(specification: &Specification, active: bool) -> String {
    whole::write(specification, active)
}

/// POST `/admin/specification/add`.
pub(super) fn add(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let form = request.form()?;
    let described = match described(&form, None) {
        Ok(described) => described,
        Err(problems) => return Ok(again(context, &form, &problems, None)),
    };
    let name = &described.0.name;
    context.must(Access::Edit, Some(name))?;
    if jobsets::get(context.books()?, name)?.is_some() {
        let field = if form.get(whole::FIELD).is_some() { whole::FIELD } else { "name" };
        let taken = Problem::new(field, "There is a jobset of that name already.");
        return Ok(again(context, &form, &[taken], None));
    }
    put_form(context, &form, &described, None)
}

/// The specification that a form describes, by fields or whole, and whether it says if the jobset is active.
fn described(
    form: &Form,
    old: Option<&Specification>,
) -> Result<(Specification, bool), Vec<Problem>> {
    match form.get(whole::FIELD) {
        Some(text) => whole::read(text, old).map_err(|problem| vec![problem]),
        None => Ok((fields::read(form, old)?, form.get("active").is_some())),
    }
}

/// POST `/admin/specification/edit`.
pub(super) fn edit(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let form = request.form()?;
    let name = form.get("name").unwrap_or_default();
    let missing = || Failure::missing(format!("There is no jobset {name:?}."));
    let name = JobsetName::new(name).ok_or_else(missing)?;
    let jobset = jobsets::get(context.books()?, &name)?.ok_or_else(missing)?;
    context.must(Access::Edit, Some(&name))?;
    let old = kept(&jobset)?;
    let mut found = described(&form, Some(&old));
    if form.get(SEEN).is_some_and(|seen| seen != digest(&old, jobset.active)) {
        let changed = "Somebody has changed this jobset since this form was opened: open it anew to see how, or save it \
                       again to put this in place of that.";
        let mut problems = found.err().unwrap_or_default();
        problems.push(Problem::new("name", changed));
        found = Err(problems);
    }
    match found {
        Ok(described) => put_form(context, &form, &described, Some(&jobset)),
        Err(problems) => Ok(again(context, &form, &problems, Some(&jobset))),
    }
}

/// Has the daemon register it, and watch it or not.
fn put_form(
    context: &mut Context,
    form: &Form,
    (specification, says_active): &(Specification, bool),
    old: Option<&Jobset>,
) -> Result<Response, Failure> {
    let name = &specification.name;
    match context.ask(Command::Add(spec::json::print(specification))) {
        Ok(_) => {}
        Err(Failure::Invalid(why)) => {
            let field = if form.get(whole::FIELD).is_some() { whole::FIELD } else { "name" };
            return Ok(again(context, form, &[Problem::new(field, why)], old));
        }
        Err(failure) => return Err(failure),
    }
    if *says_active {
        set_active(context, specification, old)?;
    }
    let page = format!("/jobset/{}", crate::web::link::component(name.as_str()));
    Ok(Response::see_other(context.link(&page)))
}

/// What was registered before keeps its state when it is registered again: it is told apart.
fn set_active(
    context: &Context,
    specification: &Specification,
    old: Option<&Jobset>,
) -> Result<(), Failure> {
    let Specification { name, active, .. } = specification;
    if old.is_none_or(|old| old.active == *active) {
        return Ok(());
    }
    let command = if *active { Command::Activate } else { Command::Deactivate };
    context.ask(command(name.clone())).map(|_| ())
}

/// The form again, with what is wrong and what was typed; of what is secret it says that it must be typed once more.
fn again(context: &Context, form: &Form, problems: &[Problem], old: Option<&Jobset>) -> Response {
    let kept = old.and_then(|jobset| Some((kept(jobset).ok()?, jobset.active)));
    if let Some(typed) = whole::again(form) {
        let fields = match &kept {
            Some((specification, active)) => values(specification, *active),
            None => page::specification::blank(),
        };
        let page = page::specification::form(context, &fields, &typed, problems, old.is_none());
        return Response::html(422, page);
    }
    let mut problems = problems.to_vec();
    let mut shown: Vec<(String, String)> = Vec::new();
    // Whoever sends it again knows by then what has changed.
    if let Some((specification, active)) = &kept {
        shown.push((SEEN.to_owned(), digest(specification, *active)));
    }
    for (name, value) in form.iter().filter(|(name, _)| !matches!(*name, "csrf" | SEEN)) {
        let value = match name {
            "notification-secret" => String::new(),
            _ if fields::is_secret(name) => printable_url(value),
            _ => value.to_owned(),
        };
        shown.push((name.to_owned(), value));
    }
    let shown = Form::new(shown);
    for field in ["channel-url", "notification-server", "notification-url", "notification-secret"] {
        for (row, (typed, shown)) in form.all(field).zip(shown.all(field)).enumerate() {
            if typed != shown {
                let message =
                    "What is secret in it is not shown again: type it once more.".to_owned();
                problems.push(Problem { field: field.to_owned(), row: Some(row), message });
            }
        }
    }
    let text = kept.map(|(specification, active)| json(&specification, active)).unwrap_or_default();
    let page = page::specification::form(context, &shown, &text, &problems, old.is_none());
    Response::html(422, page)
}

/// POST `/api/jobsets`: a new one, whole.
pub(super) fn post(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let specification = read_json(body(request)?, None)?;
    let name = &specification.name;
    context.must(Access::Edit, Some(name))?;
    if jobsets::get(context.books()?, name)?.is_some() {
        return Err(Failure::Conflict(format!("There is a jobset {name} already.")));
    }
    context.ask(Command::Add(spec::json::print(&specification)))?;
    Ok(Response::json_with(201, &json!({ "jobset": name.as_str() })))
}

/// PUT `/api/jobsets/NAME`: a new one, or in place of the one there is.
pub(super) fn put(
    context: &mut Context,
    request: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    let name = captures.get("name");
    let invalid = || Failure::Invalid(format!("{name:?} cannot be the name of a jobset."));
    let name = JobsetName::new(name).ok_or_else(invalid)?;
    context.must(Access::Edit, Some(&name))?;
    let mut value = body(request)?;
    let own = value
        .as_object_mut()
        .map(|object| object.entry("name").or_insert_with(|| Value::from(name.as_str())).clone());
    if own.is_some_and(|own| own != name.as_str()) {
        let why = format!("name: expected {name}, as in the path; jobsets are not renamed.");
        return Err(Failure::Invalid(why));
    }
    let jobset = jobsets::get(context.books()?, &name)?;
    let old = jobset.as_ref().map(kept).transpose()?;
    let told = value.get("active").is_some_and(Value::is_boolean);
    let specification = read_json(value, old.as_ref())?;
    context.ask(Command::Add(spec::json::print(&specification)))?;
    if told {
        set_active(context, &specification, jobset.as_ref())?;
    }
    let status = if old.is_some() { 200 } else { 201 };
    Ok(Response::json_with(status, &json!({ "jobset": name.as_str() })))
}

fn body(request: &Request) -> Result<Value, Failure> {
    let value: Value = serde_json::from_slice(&request.body)
        .map_err(|error| Failure::bad(format!("expected a specification in JSON: {error}")))?;
    if value.is_object() {
        Ok(value)
    } else {
        Err(Failure::bad("expected a specification in JSON, an object"))
    }
}

fn read_json(mut value: Value, old: Option<&Specification>) -> Result<Specification, Failure> {
    keep::secrets(&mut value, old);
    one(&value).map_err(|error| Failure::Invalid(error.to_string()))
}

/// The specification that an object describes.
fn one(value: &Value) -> Result<Specification, spec::Error> {
    let all = spec::json::parse(&value.to_string())?;
    // An object is one.
    all.into_iter().next().ok_or_else(|| spec::Error {
        file: None,
        line: None,
        jobset: None,
        field: None,
        message: "expected a specification".to_owned(),
    })
}

/// What stands in the books.
fn kept(jobset: &Jobset) -> Result<Specification, Failure> {
    let damaged = |why: String| Failure::Internal(format!("jobset {}: {why}", jobset.name));
    let all = spec::json::parse(&jobset.specification);
    let first = all.map_err(|error| damaged(error.to_string()))?.into_iter().next();
    first.ok_or_else(|| damaged("there is no specification".to_owned()))
}
