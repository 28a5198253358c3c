//! Beginning and ending a session.

use std::sync::Arc;

use maud::html;

use super::session::AGE;
use super::{hash, lock, of_token};
use crate::sys::{clock, random};
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::page;
use crate::web::request::Request;
use crate::web::response::Response;
use crate::web::route::Captures;

/// Its value is random, and names a session.
pub(super) const COOKIE: &str = "gorget-session";

/// 256 bits: not to be guessed.
const SECRET: usize = 32;

/// GET `/login`.
pub(in crate::web) fn ask(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    Ok(form(context, 200, request.query.get("next").unwrap_or_default(), None))
}

/// The form, after a login that failed with why.
fn form(context: &Context, status: u16, next: &str, failed: Option<&str>) -> Response {
    let content = html! {
        h1 { "Log in" }
        @if let Some(why) = failed { p role="alert" { (why) } }
        form class="edit" method="post" action=(context.link("/login")) {
            @if is_here(next) { input type="hidden" name="next" value=(next); }
            // For those who keep passwords: without a name beside it they ask for one.
            input type="text" name="username" value="token" autocomplete="username" hidden;
            p {
                label for="token" { "Token" }
                input id="token" name="token" type="password" autocomplete="current-password" required;
            }
            button type="submit" class="main" { "Log in" }
        }
        p { "Whoever runs this installation makes tokens, with " code { "gorget token add" } "." }
    };
    let page = Response::html(status, page::frame(context, "Log in", content));
    page.with("Cache-Control", "no-store")
}

/// POST `/login`: the field `token`, and in `next` where to go then.
pub(in crate::web) fn login(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let shared = Arc::clone(&context.shared);
    let refusal = lock(&shared.guests.logins).refusal(request.peer, clock::now());
    if let Some(seconds) = refusal {
        let why = "Too many logins have failed from your address; wait a little.";
        return Err(Failure::TooMany(why.to_owned(), seconds));
    }
    let sent = request.form()?;
    let token = hash(sent.get("token").unwrap_or_default().trim());
    let Some(identity) = of_token(context, &token)? else {
        lock(&shared.guests.logins).count(request.peer, clock::now());
        context.audit("login", "no such token, or it has expired");
        let why = "There is no such token, or it has expired.";
        return Ok(form(context, 403, sent.get("next").unwrap_or_default(), Some(why)));
    };
    let no_random =
        |error: std::io::Error| Failure::Internal(format!("cannot read /dev/urandom: {error}"));
    let cookie = random::hex(&random::bytes::<SECRET>().map_err(no_random)?);
    let csrf = random::hex(&random::bytes::<SECRET>().map_err(no_random)?);
    {
        let mut sessions = lock(&shared.guests.sessions);
        if let Some(old) = request.cookie(COOKIE) {
            sessions.remove(&hash(old));
        }
        sessions.add(hash(&cookie), token, csrf, clock::now());
    }
    context.identity = Some(identity);
    context.audit("login", "ok");
    let next = sent.get("next").filter(|next| is_here(next)).unwrap_or("/");
    let cookie = set_cookie(context, request, &cookie, AGE.as_secs());
    Ok(Response::see_other(context.link(next))
        .with("Set-Cookie", cookie)
        .with("Cache-Control", "no-store"))
}

/// POST `/logout`. Whoever has the cookie of a session may end it.
pub(in crate::web) fn logout(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    if let Some(cookie) = request.cookie(COOKIE) {
        lock(&context.shared.guests.sessions).remove(&hash(cookie));
    }
    let gone = set_cookie(context, request, "", 0);
    Ok(Response::see_other(context.link("/")).with("Set-Cookie", gone))
}

fn set_cookie(context: &Context, request: &Request, value: &str, age: u64) -> String {
    let path = Some(context.prefix()).filter(|prefix| !prefix.is_empty()).unwrap_or("/");
    let base = context.shared.config.parameters.url.as_deref().unwrap_or_default();
    let secure = if request.secure || base.starts_with("https://") { "; Secure" } else { "" };
    format!("{COOKIE}={value}; Path={path}; Max-Age={age}; HttpOnly; SameSite=Lax{secure}")
}

/// Whether a link stays on this server: browsers take two slashes, or a backslash for one, for another's name.
fn is_here(next: &str) -> bool {
    let plain = |c: char| c.is_ascii_graphic() && c != '\\';
    next.starts_with('/') && !next.starts_with("//") && next.chars().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_elsewhere() {
        for next in ["/", "/eval/1?status=failed"] {
            assert!(is_here(next), "{next}");
        }
        for next in ["", "x", "//evil.example", "/\\evil.example", "https://evil.example", "/a\nb"]
        {
            assert!(!is_here(next), "{next:?}");
        }
    }
}
