//! The head of a request: read strictly, since two readers that understand one differently let requests be smuggled,
//! and written anew for tiny_http.
//!
//! What is not wholly valid is refused, not mended: bare line feeds, folded lines, blanks before a colon, two lengths.

use std::net::IpAddr;

use super::{DIRECT, PEER, PREFIX, SECURE};

/// A head, the blank line included: what browsers and proxies limit themselves to, twice over.
pub(super) const MAX_HEAD: usize = 16 * 1024;

/// A request line, as other servers have it; also what is left for other headers then.
const MAX_LINE: usize = 8 * 1024;

/// Headers; browsers send about twenty.
const MAX_HEADERS: usize = 100;

/// A body; the largest that anything here takes is a forge's webhook.
pub(super) const MAX_BODY: usize = 1024 * 1024;

/// Methods are words.
const MAX_METHOD: usize = 32;

/// With these, proxies say whom they act for.
const FORWARDED: &[&[u8]] = &[
    b"forwarded",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"x-forwarded-server",
    b"x-real-ip",
    b"via",
];

/// Why a request is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) why: &'static str,
}

const fn refuse<T>(status: u16, why: &'static str) -> Result<T, Refusal> {
    Err(Refusal { status, why })
}

/// How a request's body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// After so many bytes; none for a request without a body.
    Length(usize),
    Chunked,
}

/// What matters to the gate; all else is in `lines`, for tiny_http.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// The request line and headers for tiny_http, without those that the gate decides.
    pub(super) lines: Vec<u8>,
    pub(super) framing: Framing,
    /// Whether its answer has no body.
    pub(super) is_head: bool,
    /// Whether it may be sent again when its answer is lost.
    pub(super) is_safe: bool,
    pub(super) is_1_0: bool,
    /// Whether the client goes on with the connection.
    pub(super) keep: bool,
    /// Whether the client waits to be told to send the body.
    pub(super) expects: bool,
    /// Who asks; behind a trusted proxy, whom it acts for.
    pub(super) peer: IpAddr,
}

/// Who sends it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sender<'a> {
    pub(super) address: IpAddr,
    /// Whose word on whom they act for is taken.
    pub(super) proxies: &'a [IpAddr],
}

/// Where the head in `bytes` ends, if it does; `from` is how far was looked already.
pub(super) fn end(bytes: &[u8], from: &mut usize) -> Result<Option<usize>, Refusal> {
    let begin = from.saturating_sub(3);
    // A line that ends with a line feed alone would never end for us.
    let fed = bytes[*from..].iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    if fed.map(|(at, _)| *from + at).any(|at| at == 0 || bytes[at - 1] != b'\r') {
        return refuse(400, "a line ends without a carriage return");
    }
    let found = bytes[begin..].windows(4).position(|four| four == b"\r\n\r\n");
    *from = bytes.len();
    match found.map(|at| begin + at + 4) {
        Some(end) if end <= MAX_HEAD => Ok(Some(end)),
        None if bytes.len() < MAX_HEAD => Ok(None),
        _ => refuse(431, "the head of the request is longer than 16 KiB"),
    }
}

/// Reads a whole head, its last blank line included.
pub(super) fn parse(bytes: &[u8], sender: Sender<'_>) -> Result<Head, Refusal> {
    let text = bytes.strip_suffix(b"\r\n\r\n").unwrap_or(bytes);
    let mut lines = Lines(Some(text));
    let first = lines.next().unwrap_or_default();
    let (method, target, is_1_0) = request_line(first)?;
    let mut head = Head {
        lines: Vec::with_capacity(bytes.len() + 64),
        framing: Framing::Length(0),
        is_head: method == b"HEAD",
        is_safe: method == b"HEAD" || method == b"GET",
        is_1_0,
        keep: !is_1_0,
        expects: false,
        peer: sender.address,
    };
    head.lines.extend_from_slice(method);
    head.lines.push(b' ');
    head.lines.extend_from_slice(&target);
    head.lines.extend_from_slice(b" HTTP/1.1\r\n");
    let trusted = sender.proxies.contains(&sender.address);
    let (mut peer, mut secure) = (sender.address, false);
    // HTTP/1.0 is what proxies speak that were told nothing else; whoever is known to be one never speaks for itself.
    let mut direct = !trusted && !is_1_0;
    let (mut host, mut length, mut chunked, mut count) = (false, None, false, 0);
    for line in lines {
        count += 1;
        if count > MAX_HEADERS {
            return refuse(431, "there are more than 100 headers");
        }
        let (name, value) = header(line)?;
        direct &= !FORWARDED.contains(&name.as_slice());
        match name.as_slice() {
            b"host" if host => return refuse(400, "there are two Host headers"),
            b"host" => host = true,
            b"content-length" => {
                if length.is_some() {
                    return refuse(400, "there are two Content-Length headers");
                }
                length = Some(number(value)?);
                continue;
            }
            b"transfer-encoding" => {
                if chunked {
                    return refuse(400, "there are two Transfer-Encoding headers");
                }
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return refuse(501, "the one transfer coding known is chunked");
                }
                chunked = true;
                continue;
            }
            b"connection" => {
                for word in value.split(|&byte| byte == b',') {
                    match word.trim_ascii() {
                        word if word.eq_ignore_ascii_case(b"close") => head.keep = false,
                        // For HTTP/1.1 it says nothing new.
                        word if word.eq_ignore_ascii_case(b"keep-alive") && is_1_0 => {
                            head.keep = true
                        }
                        _ => {}
                    }
                }
                continue;
            }
            b"expect" => {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return refuse(417, "the one expectation known is 100-continue");
                }
                head.expects = !is_1_0;
                continue;
            }
            // Of this connection only.
            b"keep-alive"
            | b"proxy-connection"
            | b"proxy-authenticate"
            | b"proxy-authorization"
            | b"te"
            | b"trailer"
            | b"upgrade" => continue,
            // Of others they are no more than a sign that the request comes by way of somebody.
            b"x-forwarded-for" if trusted => peer = acted_for(value, sender, peer),
            b"x-forwarded-proto" if trusted => {
                // What came last on the way to us is last.
                let last = value.rsplit(|&byte| byte == b',').next().unwrap_or_default();
                secure = last.trim_ascii().eq_ignore_ascii_case(b"https");
            }
            // Ours: nobody else says who sends something.
            name if name.starts_with(PREFIX) => continue,
            _ => {}
        }
        head.lines.extend_from_slice(&name);
        head.lines.extend_from_slice(b": ");
        // tiny_http knows ASCII only.
        head.lines.extend(value.iter().map(|&byte| if byte.is_ascii() { byte } else { b'?' }));
        head.lines.extend_from_slice(b"\r\n");
    }
    if !host && !is_1_0 {
        return refuse(400, "there is no Host header");
    }
    head.framing = match (length, chunked) {
        (Some(_), true) => {
            return refuse(400, "both Content-Length and Transfer-Encoding are there");
        }
        (None, true) if is_1_0 => return refuse(400, "HTTP/1.0 has no Transfer-Encoding"),
        (None, true) => Framing::Chunked,
        (length, false) => Framing::Length(length.unwrap_or(0)),
    };
    head.peer = peer;
    head.lines.extend_from_slice(format!("{PEER}: {peer}\r\n").as_bytes());
    for (is, name) in [(secure, SECURE), (direct, DIRECT)] {
        if is {
            head.lines.extend_from_slice(format!("{name}: 1\r\n").as_bytes());
        }
    }
    Ok(head)
}

/// Whom a chain of proxies acts for: the last that is none of those that are trusted.
fn acted_for(value: &[u8], sender: Sender<'_>, peer: IpAddr) -> IpAddr {
    let mut peer = peer;
    for hop in value.rsplit(|&byte| byte == b',') {
        let Some(hop) =
            std::str::from_utf8(hop).ok().and_then(|hop| hop.trim().parse::<IpAddr>().ok())
        else {
            return peer;
        };
        peer = hop.to_canonical();
        if !sender.proxies.contains(&peer) {
            return peer;
        }
    }
    peer
}

/// Lines that end with CR LF, without that; nothing else ends one.
struct Lines<'a>(Option<&'a [u8]>);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.0?;
        match rest.windows(2).position(|two| two == b"\r\n") {
            Some(end) => {
                self.0 = Some(&rest[end + 2..]);
                Some(&rest[..end])
            }
            None => {
                self.0 = None;
                Some(rest)
            }
        }
    }
}

/// Its method, its target in origin form, and whether it is of HTTP/1.0.
fn request_line(line: &[u8]) -> Result<(&[u8], Vec<u8>, bool), Refusal> {
    if line.len() > MAX_LINE {
        return refuse(414, "the request line is longer than 8 KiB");
    }
    let mut parts = line.split(|&byte| byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return refuse(400, "the request line is not METHOD TARGET VERSION");
    };
    if method.is_empty() || method.len() > MAX_METHOD || !method.iter().all(|&byte| is_token(byte))
    {
        return refuse(400, "the method is no word");
    }
    let is_1_0 = match version {
        b"HTTP/1.1" => false,
        b"HTTP/1.0" => true,
        _ if version.starts_with(b"HTTP/") => {
            return refuse(505, "HTTP/1.1 is spoken here, and HTTP/1.0");
        }
        _ => return refuse(400, "the request line is not METHOD TARGET VERSION"),
    };
    Ok((method, origin_form(target)?, is_1_0))
}

/// A target as `/PATH?QUERY`, bytes that are no ASCII percent-encoded.
fn origin_form(target: &[u8]) -> Result<Vec<u8>, Refusal> {
    let scheme = [b"http://".as_slice(), b"https://"].into_iter().find(|scheme| {
        target.get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme))
    });
    let mut form = Vec::with_capacity(target.len());
    let rest = match scheme {
        Some(scheme) => {
            let rest = &target[scheme.len()..];
            let host =
                rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
            if rest.get(host) != Some(&b'/') {
                form.push(b'/');
            }
            &rest[host..]
        }
        None if target == b"*" || target.first() == Some(&b'/') => target,
        None => return refuse(400, "the target does not begin with a slash"),
    };
    for &byte in rest {
        match byte {
            0x21..=0x7e => form.push(byte),
            0x80..=0xff => form.extend_from_slice(format!("%{byte:02X}").as_bytes()),
            _ => return refuse(400, "the target holds a control character"),
        }
    }
    Ok(form)
}

/// Its name in lower case, its value without blanks around.
fn header(line: &[u8]) -> Result<(Vec<u8>, &[u8]), Refusal> {
    let Some(colon) = line.iter().position(|&byte| byte == b':') else {
        return refuse(400, "a header has no colon");
    };
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    // A folded line begins with a blank, which no name holds.
    if name.is_empty() || !name.iter().all(|&byte| is_token(byte)) {
        return refuse(400, "a header's name is no word");
    }
    let is_value =
        |byte: u8| byte == b'\t' || byte == b' ' || byte.is_ascii_graphic() || !byte.is_ascii();
    if !value.iter().all(|&byte| is_value(byte)) {
        return refuse(400, "a header holds a control character");
    }
    Ok((name.to_ascii_lowercase(), value.trim_ascii()))
}

fn number(value: &[u8]) -> Result<usize, Refusal> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(value).ok().filter(|_| digits);
    let Some(text) = text else { return refuse(400, "the Content-Length is no number") };
    match text.parse() {
        Ok(length) if length <= MAX_BODY => Ok(length),
        _ => Err(TOO_LARGE),
    }
}

pub(super) const TOO_LARGE: Refusal =
    Refusal { status: 413, why: "the body of the request is longer than 1 MiB" };

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests;
