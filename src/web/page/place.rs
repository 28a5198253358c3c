//! Pages about the installation and who uses it: logging in, and what was done.

use maud::html;

use super::{Frame, part};
use crate::db::web::pages;
use crate::web::access::Access;
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::request::Request;
use crate::web::response::Response;
use crate::web::route::Captures;

/// Lines of the audit log on a page.
const ROWS: usize = 100;

/// GET `/login`: `next`, where to go then.
pub(super) fn login(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let next = request.query.get("next").unwrap_or("/");
    let content = html! {
        h1 { "Log in" }
        p { "With a token, which " code { "gorget token add" } " makes." }
        form class="edit" method="post" action=(context.link("/login")) {
            input type="hidden" name="next" value=(next);
            p {
                label for="token" { "Token" }
                input type="password" id="token" name="token" required autocomplete="current-password";
            }
            button type="submit" class="main" { "Log in" }
        }
    };
    Ok(Response::html(200, Frame::new("Log in").show(context, &content)))
}

/// GET `/audit`: `below`.
pub(super) fn audit(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    context.must(Access::Administer, None)?;
    let below = request.query.number("below");
    let rows = pages::audit(context.books()?, below, ROWS)?;
    let content = html! {
        h1 { "Audit log" }
        @if rows.is_empty() { p { "Nothing was changed yet." } }
        @else {
            div class="scroll" {
                table {
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
            @if below.is_some() { a href=(context.link("/audit")) { "Newest" } }
            @if let Some(last) = rows.last().filter(|_| rows.len() == ROWS) {
                a rel="next" href=(context.link(&format!("/audit?below={}", last.id))) { "Older" }
            }
        }
    };
    Ok(Response::html(200, Frame::new("Audit log").show(context, &content)))
}
