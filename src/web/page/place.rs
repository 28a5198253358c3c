//! What was done on this installation, and by whom.

use maud::html;

use super::{Frame, part};
use crate::db::records;
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::request::Request;
use crate::web::response::Response;
use crate::web::route::Captures;

/// Lines of the audit log on a page.
const ROWS: i64 = 100;

/// GET `/admin/audit`: `before`, an id.
pub(super) fn audit(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let before = request.query.number("before");
    let rows = records::audited(context.books()?, before.unwrap_or(i64::MAX), ROWS)?;
    let content = html! {
        h1 { "Audit log" }
        @if rows.is_empty() { p { "Nothing was changed yet." } }
        @else {
            div class="scroll" {
                table class="rows" {
                    thead {
                        tr {
                            th scope="col" { "When" } th scope="col" { "Who" }
                            th scope="col" class="name" { "What" } th scope="col" { "Outcome" }
                        }
                    }
                    tbody {
                        @for row in &rows {
                            tr {
                                td { (part::time(context.now, row.time)) } td { (row.who) }
                                td class="name" { code { (row.command) } } td { (row.outcome) }
                            }
                        }
                    }
                }
            }
        }
        nav class="pager" aria-label="Pages" {
            @if before.is_some() { a href=(context.link("/admin/audit")) { "Newest" } }
            @if let Some(last) = rows.last().filter(|_| rows.len() as i64 == ROWS) {
                a rel="next" href=(context.link(&format!("/admin/audit?before={}", last.id))) { "Older" }
            }
        }
    };
    let page = Response::html(200, Frame::new("Audit log").show(context, &content));
    Ok(page.with("Cache-Control", "no-store"))
}
