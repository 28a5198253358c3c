//! Finding builds, and links to the newest of those found.

use super::builds::shown;
use super::{MOST, UNDEFINED, going_on, wanted};
use crate::db::web::builds::show;
use crate::db::web::search::{self, Search, Sought};
use crate::model::status::BuildStatus;
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::request::Request;
use crate::web::response::Response;
use crate::web::route::Captures;
use crate::web::search::{parse, position};

const NONE: &str = "No build found.";

/// What is sought: `None` if the query is there and says nothing.
fn sought(request: &Request) -> Result<Option<Search>, Failure> {
    let text = request.query.get("query");
    let text = text.ok_or_else(|| Failure::bad("Query parameter not provided."))?;
    parse(text).map_err(|word| Failure::bad(format!("Nothing can be meant by {word:?}.")))
}

pub(super) fn list(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let limit = wanted(request, MOST, UNDEFINED)?;
    let Some(search) = sought(request)? else {
        return Ok(Response::json(&[(); 0]));
    };
    let before = request.query.get("before").map(position).transpose()?;
    let books = context.books()?;
    let found = show(books, search::find(books, &search, before, limit)?)?;
    let response = shown(&found);
    Ok(match found.last() {
        Some(last) if found.len() == limit => {
            let last = format!("{}-{}", last.build.evaluation, last.build.id);
            going_on(response, request, "before", &last)
        }
        _ => response,
    })
}

/// To the newest build.
pub(super) fn latest(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let missing = || Failure::missing(NONE);
    let search = sought(request)?.ok_or_else(missing)?;
    let found = search::find(context.books()?, &search, None, 1)?;
    let id = found.first().ok_or_else(missing)?.id;
    Ok(Response::found(context.link(&format!("/build/{id}/details"))))
}

/// To the newest product of a type, of builds that succeeded unless the query says otherwise.
pub(super) fn latest_product(
    context: &mut Context,
    request: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    let mut search = sought(request)?.ok_or_else(|| Failure::missing(NONE))?;
    search.status.get_or_insert(Sought::Status(BuildStatus::Succeeded));
    let found = search::latest_product(context.books()?, &search, captures.get("type"))?;
    let missing = || Failure::missing("Could not find the requested build product.");
    Ok(Response::found(context.link(&format!("/download/{}", found.ok_or_else(missing)?))))
}
