//! The part of something that a client asks for by `Range`.

use crate::web::failure::Failure;
use crate::web::request::Request;
use crate::web::response::Response;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Range {
    /// Everything: no range was asked for, or one that may be ignored.
    All,
    Part {
        from: u64,
        length: u64,
    },
    /// Nothing of what there is.
    Beyond,
}

/// What a request wants of `total` bytes that are now known as `tag`.
pub(super) fn wanted(request: &Request, total: u64, tag: &str) -> Range {
    // One that has a part of an older state needs all of this one.
    let current = request.header("if-range").is_none_or(|known| known == tag);
    match request.header("range") {
        Some(text) if current => parse(text, total),
        Some(_) | None => Range::All,
    }
}

/// Several ranges at once are ignored, as is what is not understood.
fn parse(text: &str, total: u64) -> Range {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|rest| rest.split_once('-'))
    else {
        return Range::All;
    };
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // A number beyond all numbers is beyond every end.
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    let (from, end) = match (number(first), number(last)) {
        (Some(from), Some(last)) if from <= last => (from, last.saturating_add(1).min(total)),
        (Some(from), None) if last.is_empty() => (from, total),
        (None, Some(length)) if first.is_empty() => (total - length.min(total), total),
        _ => return Range::All,
    };
    if from < end { Range::Part { from, length: end - from } } else { Range::Beyond }
}

/// Says which part it is.
pub(super) fn partial(mut response: Response, from: u64, length: u64, total: u64) -> Response {
    response.status = 206;
    response.with("Content-Range", format!("bytes {from}-{}/{total}", from + length - 1))
}

/// 416.
pub(super) fn beyond(total: u64) -> Response {
    Response::text(416, format!("There are {total} bytes.\n"))
        .with("Content-Range", format!("bytes */{total}"))
}

/// Whether the client has the state that `tag` names.
pub(super) fn is_known(request: &Request, tag: &str) -> bool {
    let known = request.header("if-none-match").unwrap_or_default();
    known
        .split(',')
        .map(str::trim)
        .any(|known| known == "*" || known.trim_start_matches("W/") == tag)
}

/// An offset in a query: `None` if it is not there.
pub(super) fn offset(request: &Request, key: &str) -> Result<Option<u64>, Failure> {
    let Some(text) = request.query.get(key) else { return Ok(None) };
    let number = text.parse().map_err(|_| {
        Failure::bad(format!("{key} is {text:?}, and must be a whole number from 0"))
    })?;
    Ok(Some(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_http_says() {
        let part = |from, length| Range::Part { from, length };
        for (text, expected) in [
            ("bytes=0-0", part(0, 1)),
            ("bytes=0-", part(0, 100)),
            ("bytes=10-19", part(10, 10)),
            ("bytes=90-1000", part(90, 10)),
            ("bytes=99-99999999999999999999999", part(99, 1)),
            ("bytes=-1", part(99, 1)),
            ("bytes=-1000", part(0, 100)),
            ("bytes=-0", Range::Beyond),
            ("bytes=100-", Range::Beyond),
            ("bytes=99999999999999999999999-", Range::Beyond),
            ("bytes=5-4", Range::All),
            ("bytes=-", Range::All),
            ("bytes=0-1,3-4", Range::All),
            ("bytes=+1-2", Range::All),
            ("lines=0-1", Range::All),
            ("", Range::All),
        ] {
            assert_eq!(parse(text, 100), expected, "{text:?}");
        }
        assert_eq!(parse("bytes=0-", 0), Range::Beyond);
    }
}
