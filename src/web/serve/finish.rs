//! What every answer gets: compression, a tag to ask by whether it has changed, and headers that browsers heed.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::life::mortal;
use crate::web::context::Context;
use crate::web::request::{Method, Request};
use crate::web::response::{Body, Response};

/// Below this an answer fits into one packet either way.
const WORTH: usize = 1024;

/// Pages of 100 KB in some two milliseconds, a percent longer than the best.
const LEVEL: Compression = Compression::new(5);

/// Nothing but what this server itself sends, no script or style within a page, nobody else's frame.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
                      form-action 'self'; base-uri 'none'";

/// Completes what a handler answered, and leaves out what the asker has.
pub(super) fn finish(context: &Context, request: &Request, mut response: Response) -> Response {
    let fine = response.status == 200 && !request.method.is_unsafe();
    let badge = response.header("content-type").is_some_and(|kind| kind.starts_with("image/"));
    let add = |response: &mut Response, name, value: &str| {
        if response.header(name).is_none() {
            response.headers.push((name, value.to_owned()));
        }
    };
    let policy =
        if badge { POLICY.to_owned() } else { format!("{POLICY}; frame-ancestors 'none'") };
    add(&mut response, "Content-Security-Policy", &policy);
    add(&mut response, "X-Content-Type-Options", "nosniff");
    add(&mut response, "Referrer-Policy", "same-origin");
    response.headers.push(("X-Request-Id", request.id.clone()));
    // What is kept must be asked for again; what somebody was told as who they are is for nobody else.
    let cache = match (fine, context.identity.is_some()) {
        (true, false) => "no-cache",
        (true, true) => "private, no-cache",
        (false, _) => "no-store",
    };
    add(&mut response, "Cache-Control", cache);
    if let Body::Stream(write) = response.body {
        let private = context.shared.config.parameters.private;
        response.body = Body::Stream(if private { mortal(write) } else { write });
        return response;
    }
    if !matches!(response.body, Body::Bytes(_)) {
        return response;
    }
    let compressible = response.header("content-type").is_some_and(is_compressible)
        && response.header("content-encoding").is_none();
    if compressible {
        let vary = match response.header("vary") {
            Some(other) => format!("{other}, Accept-Encoding"),
            None => "Accept-Encoding".to_owned(),
        };
        response.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("vary"));
        response.headers.push(("Vary", vary));
    }
    if fine {
        if response.header("etag").is_none()
            && let Body::Bytes(bytes) = &response.body
        {
            response.headers.push(("ETag", tag(bytes)));
        }
        let known = request.header("if-none-match");
        if known.zip(response.header("etag")).is_some_and(|(known, tag)| is_known(known, tag)) {
            response.status = 304;
            response.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("content-type"));
            response.body = Body::Bytes(Vec::new());
            return response;
        }
    }
    let wanted = request.header("accept-encoding").is_some_and(accepts_gzip)
        && (context.csrf.is_empty() || !is_from_elsewhere(request));
    if let Body::Bytes(bytes) = &mut response.body
        && compressible
        && wanted
        && bytes.len() > WORTH
        && let Ok(packed) = gzip(bytes)
        && packed.len() < bytes.len()
    {
        *bytes = packed;
        response.headers.push(("Content-Encoding", "gzip".to_owned()));
    }
    response
}

/// Whether a page of another site had the browser ask. Such a page can have it ask often, each time with another guess
/// in the address; where the answer holds a secret of the session and is compressed, whoever sees the sizes pass learns
/// how good the guess is.
fn is_from_elsewhere(request: &Request) -> bool {
    request.header("sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none"))
}

fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len() / 4), LEVEL);
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// Weak, since the same answer may be sent compressed or not. It only has to tell what one address once said from what
/// it says now.
fn tag(bytes: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("W/\"{:016x}\"", hasher.finish())
}

/// Whether one of the tags of `If-None-Match` is this one, compared weakly.
fn is_known(list: &str, tag: &str) -> bool {
    let plain = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    list.trim() == "*" || list.split(',').any(|known| plain(known) == plain(tag))
}

fn is_compressible(kind: &str) -> bool {
    let kind = kind.split(';').next().unwrap_or_default().trim();
    kind.starts_with("text/")
        || kind.ends_with("+xml")
        || ["application/json", "application/javascript", "application/xml"].contains(&kind)
}

fn accepts_gzip(list: &str) -> bool {
    let mut any = false;
    for item in list.split(',') {
        let (coding, quality) = item.split_once(';').unwrap_or((item, "q=1"));
        let quality = quality.trim().strip_prefix("q=").and_then(|q| q.parse::<f32>().ok());
        let accepted = quality.unwrap_or(1.0) > 0.0;
        match coding.trim() {
            coding if coding.eq_ignore_ascii_case("gzip") || coding == "x-gzip" => return accepted,
            "*" => any = accepted,
            _ => {}
        }
    }
    any
}

/// Whether the answer to this method has a body.
pub(super) fn has_body(method: Method, status: u16) -> bool {
    method != Method::Head && status != 304 && status != 204
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_sent_to_whom_takes_it() {
        for yes in ["gzip", "deflate, gzip;q=0.5", "*", "br, GZIP", "gzip;q=1.0, *;q=0"] {
            assert!(accepts_gzip(yes), "{yes}");
        }
        for no in ["", "br", "gzip;q=0", "identity", "*;q=0", "gzip; q=0.000, *"] {
            assert!(!accepts_gzip(no), "{no}");
        }
        assert!(
            is_compressible("application/json;charset=utf-8") && is_compressible("image/svg+xml")
        );
        assert!(!is_compressible("image/png") && !is_compressible("application/octet-stream"));
    }

    #[test]
    fn tags_are_compared_weakly() {
        let one = tag(b"one");
        assert_ne!(one, tag(b"other"));
        assert!(is_known(&format!("\"x\", {}", &one[2..]), &one));
        assert!(is_known("*", &one) && is_known(&one, &one));
        assert!(!is_known("\"x\"", &one));
    }
}
