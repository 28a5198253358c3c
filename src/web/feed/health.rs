//! Whether all is well, for whoever watches this machine; and what crawlers should leave alone.

use std::time::Duration;

use serde::Serialize;

use crate::db::jobsets;
use crate::proto::control::Command;
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::request::Request;
use crate::web::response::Response;
use crate::web::route::Captures;

/// How long the daemon may take to say that it is there: watchers give up after some seconds themselves.
pub(super) const DAEMON: Duration = Duration::from_secs(2);

#[derive(Serialize)]
struct Health {
    status: &'static str,
    /// Whether it can be read.
    database: bool,
    /// Whether it answers.
    daemon: bool,
}

/// GET `/healthz`: 200 when all is well, else 503.
pub(super) fn health(
    context: &mut Context,
    _: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let database = context.books().and_then(|books| Ok(jobsets::list(books).map(drop)?)).is_ok();
    let daemon = context.ask_within(DAEMON, Command::Version).is_ok();
    let (code, status) = if database && daemon { (200, "ok") } else { (503, "unavailable") };
    let health = Health { status, database, daemon };
    Ok(Response::json_with(code, &health).with("Cache-Control", "no-store"))
}

/// What costs much, or leads on without end. A query stands for a filter, a comparison or the next page of a list.
const NOT_FOR_CRAWLERS: &[&str] = &[
    "/*?",
    "/search",
    "/build/*/log",
    "/eval/*/log",
    "/log/",
    "/eval/*/compare",
    "/download/",
    "/events/",
    "/jobset/*/rss",
    "/jobset/*/atom",
    "/api/",
    "/admin/",
    "/login",
    "/healthz",
    "/prometheus",
];

/// GET `/robots.txt`.
pub(super) fn robots(
    context: &mut Context,
    _: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let mut text = String::from("User-agent: *\n");
    if context.shared.config.parameters.private {
        text.push_str("Disallow: /\n");
        return Ok(Response::text(200, text));
    }
    for path in NOT_FOR_CRAWLERS {
        text.push_str(&format!("Disallow: {}\n", context.link(path)));
    }
    Ok(Response::text(200, text))
}
