//! The audit log, for those who may do everything: who did what from where, and how it ended.

use serde::Serialize;

use crate::db::records::{self, Audited};
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::request::Request;
use crate::web::response::Response;
use crate::web::route::Captures;

/// Lines of a page.
const LINES: i64 = 100;

/// The most a program gets at once.
const MOST: i64 = 1_000;

#[derive(Serialize)]
struct Line {
    id: i64,
    time: i64,
    who: String,
    command: String,
    outcome: String,
}

/// GET `/api/audit?nr=N&before=ID`, newest first.
pub(super) fn list(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let nr = request.query.number("nr").unwrap_or(LINES);
    if !(1..=MOST).contains(&nr) {
        return Err(Failure::bad(format!("nr: expected a number from 1 to {MOST}")));
    }
    let lines = read(context, request, nr)?;
    let line = |Audited { id, time, who, command, outcome }| Line {
        id,
        time: time.0,
        who,
        command,
        outcome,
    };
    Ok(Response::json(&lines.into_iter().map(line).collect::<Vec<_>>()))
}

fn read(context: &mut Context, request: &Request, nr: i64) -> Result<Vec<Audited>, Failure> {
    let before = request.query.number("before").unwrap_or(i64::MAX);
    Ok(records::audited(context.books()?, before, nr)?)
}
