//! What a build needs, what needs it, and where its failure began.

use serde::Serialize;

use super::builds::shown;
use super::view::{BuildView, OrFalse};
use super::{MOST, going_on, wanted_or};
use crate::db::web::builds::{self, Shown};
use crate::db::web::relations;
use crate::db::{Error, Reader};
use crate::model::build::BuildId;
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::request::Request;
use crate::web::response::Response;
use crate::web::route::Captures;

/// Causes that are told: more help nobody to find the first.
const CAUSES: usize = 20;

fn build(context: &mut Context, captures: &Captures) -> Result<Shown, Failure> {
    let asked = captures.get("id");
    let missing = || Failure::missing(format!("Build with ID {asked} doesn't exist."));
    let id = captures.id("id").map(BuildId).ok_or_else(missing)?;
    builds::get(context.books()?, id)?.ok_or_else(missing)
}

/// Builds related to one, after another of them, so many at most.
type Find = fn(&Reader, BuildId, BuildId, usize) -> Result<Vec<BuildId>, Error>;

pub(super) fn dependencies(
    context: &mut Context,
    request: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    list(context, request, captures, |books, id, after, limit| {
        relations::dependencies(books, id, after, limit)
    })
}

pub(super) fn dependents(
    context: &mut Context,
    request: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    list(context, request, captures, |books, id, after, limit| {
        relations::dependents(books, id, after, limit)
    })
}

fn list(
    context: &mut Context,
    request: &Request,
    captures: &Captures,
    find: Find,
) -> Result<Response, Failure> {
    let limit = wanted_or(request, MOST)?;
    let id = build(context, captures)?.build.id;
    let after = BuildId(request.query.number("after").unwrap_or(0));
    let books = context.books()?;
    let found = find(books, id, after, limit)?;
    let response = shown(&builds::each(books, &found)?);
    Ok(match found.last() {
        Some(last) if found.len() == limit => {
            going_on(response, request, "after", &last.to_string())
        }
        _ => response,
    })
}

#[derive(Serialize)]
struct FirstFailure<'a> {
    build: i64,
    /// Builds that it needs and that failed by themselves.
    causes: Vec<BuildView<'a>>,
    /// The build since which the job has failed.
    since: OrFalse<BuildView<'a>>,
}

pub(super) fn first_failure(
    context: &mut Context,
    _: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    let build = build(context, captures)?.build;
    let books = context.books()?;
    let bad = build.status.number() > 0;
    let causes = relations::causes(books, build.id, if bad { CAUSES } else { 0 })?;
    let causes = builds::each(books, &causes)?;
    let since = if bad { relations::failing_since(books, &build)? } else { None };
    let since = since.map_or(Ok(None), |id| builds::get(books, id))?;
    Ok(Response::json(&FirstFailure {
        build: build.id.0,
        causes: causes.iter().map(BuildView::new).collect(),
        since: OrFalse(since.as_ref().map(BuildView::new)),
    }))
}
