//! The answers of tiny_http: where each ends is checked, and what is sent on tells it to the client.

use super::LENGTH;
use super::chunks::Chunks;
use super::client::{Order, Output};

/// Heads of answers are ours: a few hundred bytes, and a policy.
const MAX_HEAD: usize = 32 * 1024;

/// An answer that is none: nothing after it can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// How much of an answer is there.
#[derive(Debug)]
pub(super) enum Answer {
    /// Its head is not yet.
    Head(Vec<u8>),
    Body(Source, Coding),
    Whole,
}

/// Where the body comes from.
#[derive(Debug)]
pub(super) enum Source {
    /// So many bytes more.
    Length(u64),
    /// And of how many, if that was announced.
    Chunked(Chunks, Option<u64>),
}

/// How the client gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    /// As it is: it was told the length, or learns the end by that of the connection.
    Plain,
    Chunked,
}

impl Answer {
    pub(super) fn new() -> Self {
        Self::Head(Vec::new())
    }

    /// Whether its head was sent on.
    pub(super) fn has_begun(&self) -> bool {
        !matches!(self, Self::Head(_))
    }

    /// Whether it is known not to come in one piece.
    pub(super) fn is_stream(&self) -> bool {
        !matches!(self, Self::Body(Source::Length(_), _) | Self::Whole)
    }

    /// Whether nobody knows how much is still to come.
    pub(super) fn is_endless(&self) -> bool {
        matches!(self, Self::Body(Source::Chunked(_, None), _))
    }

    /// Takes what came, and appends to `out` what the client that gave `order` is to get of it. `keep` is whether the
    /// connection to it may go on; it is taken away when the end of the answer cannot be told otherwise.
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        order: &Order,
        keep: &mut bool,
        out: &mut Output,
    ) -> Result<(), Broken> {
        if let Self::Head(begin) = self {
            let scanned = begin.len().saturating_sub(3);
            let before = begin.len();
            begin.extend_from_slice(bytes);
            let found = begin[scanned..].windows(4).position(|four| four == b"\r\n\r\n");
            let Some(end) = found.map(|at| scanned + at + 4) else {
                return if begin.len() < MAX_HEAD { Ok(()) } else { Err(Broken) };
            };
            bytes = &bytes[end - before..];
            *self = Self::begin(&begin[..end], order, keep, out)?;
        }
        if let Self::Body(source, coding) = self {
            let is_whole = match source {
                Source::Length(left) => {
                    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    out.push(&bytes[..taken]);
                    *left -= taken as u64;
                    bytes = &bytes[taken..];
                    *left == 0
                }
                Source::Chunked(chunks, announced) => {
                    let mut data = Vec::with_capacity(bytes.len());
                    let taken = chunks.feed(bytes, &mut data);
                    if let Some(announced) = announced {
                        *announced = announced.checked_sub(data.len() as u64).ok_or(Broken)?;
                    }
                    // What came before it broke off may be of use.
                    coding.push(&data, out);
                    bytes = &bytes[taken.map_err(|_| Broken)?..];
                    if chunks.is_done() {
                        if announced.is_some_and(|left| left > 0) {
                            return Err(Broken);
                        }
                        coding.end(out);
                    }
                    chunks.is_done()
                }
            };
            if is_whole {
                *self = Self::Whole;
            }
        }
        // It answers what it was asked, and no more.
        if bytes.is_empty() || !matches!(self, Self::Whole) { Ok(()) } else { Err(Broken) }
    }

    /// Sends a whole head on.
    fn begin(
        head: &[u8],
        order: &Order,
        keep: &mut bool,
        out: &mut Output,
    ) -> Result<Self, Broken> {
        let text = std::str::from_utf8(head).map_err(|_| Broken)?;
        let text = text.strip_suffix("\r\n\r\n").ok_or(Broken)?;
        let mut lines = text.split("\r\n");
        let first = lines.next().unwrap_or_default();
        let status =
            first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse::<u16>().ok());
        let status = status.filter(|status| *status >= 200).ok_or(Broken)?;
        let (mut length, mut chunked, mut announced) = (None, false, None);
        let mut sent = Vec::with_capacity(head.len() + 64);
        sent.extend_from_slice(first.as_bytes());
        sent.extend_from_slice(b"\r\n");
        for line in lines {
            let (name, value) = line.split_once(": ").ok_or(Broken)?;
            if name.eq_ignore_ascii_case("content-length") {
                length = Some(value.parse::<u64>().map_err(|_| Broken)?);
            } else if name.eq_ignore_ascii_case("transfer-encoding") {
                chunked = true;
            } else if name.eq_ignore_ascii_case(LENGTH) {
                announced = Some(value.parse::<u64>().map_err(|_| Broken)?);
            } else if !name.eq_ignore_ascii_case("connection") {
                sent.extend_from_slice(line.as_bytes());
                sent.extend_from_slice(b"\r\n");
            }
        }
        if let Some(length) = length.or(announced) {
            sent.extend_from_slice(format!("Content-Length: {length}\r\n").as_bytes());
        }
        let none = order.is_head || status == 204 || status == 304;
        let (answer, is_told) = match (length, chunked) {
            _ if none => (Self::Whole, true),
            (Some(0), false) => (Self::Whole, true),
            (Some(length), false) => (Self::Body(Source::Length(length), Coding::Plain), true),
            (None, true) => {
                let coding = if announced.is_some() || order.is_1_0 {
                    Coding::Plain
                } else {
                    Coding::Chunked
                };
                if coding == Coding::Chunked {
                    sent.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
                }
                let told = announced.is_some() || !order.is_1_0;
                (Self::Body(Source::Chunked(Chunks::new(u64::MAX), announced), coding), told)
            }
            _ => return Err(Broken),
        };
        *keep &= is_told;
        if !*keep {
            sent.extend_from_slice(b"Connection: close\r\n");
        } else if order.is_1_0 {
            sent.extend_from_slice(b"Connection: keep-alive\r\n");
        }
        sent.extend_from_slice(b"\r\n");
        out.push(&sent);
        Ok(answer)
    }
}

impl Coding {
    fn push(self, data: &[u8], out: &mut Output) {
        match self {
            // A chunk of nothing would be the end.
            _ if data.is_empty() => {}
            Self::Plain => out.push(data),
            Self::Chunked => {
                out.push(format!("{:x}\r\n", data.len()).as_bytes());
                out.push(data);
                out.push(b"\r\n");
            }
        }
    }

    fn end(self, out: &mut Output) {
        if self == Self::Chunked {
            out.push(b"0\r\n\r\n");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client gets of an answer that comes in pieces of so many bytes, and whether it may go on.
    fn relay(answer: &str, order: &Order, piece: usize) -> Result<(String, bool, bool), Broken> {
        let (mut state, mut keep, mut out) = (Answer::new(), order.keep, Output::default());
        for piece in answer.as_bytes().chunks(piece) {
            state.feed(piece, order, &mut keep, &mut out)?;
        }
        let text = String::from_utf8(out.bytes().to_vec()).unwrap();
        Ok((text, keep, matches!(state, Answer::Whole)))
    }

    fn order(is_1_0: bool, is_head: bool) -> Order {
        Order {
            bytes: Vec::new(),
            is_head,
            is_1_0,
            keep: true,
            is_safe: true,
            is_again: false,
            peer: std::net::Ipv4Addr::LOCALHOST.into(),
        }
    }

    #[test]
    fn answers_end_where_they_say() {
        let (new, old) = (order(false, false), order(true, false));
        let plain = "HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 3\r\n\r\nabc";
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        let announced = chunked.replace("\r\n\r\n3", "\r\nX-Gorget-Gate-Length: 3\r\n\r\n3");
        for piece in [1, 1000] {
            let whole = |answer: &str, order| {
                let (text, keep, whole) = relay(answer, order, piece).unwrap();
                assert!(whole, "{text}");
                (text, keep)
            };
            assert_eq!(whole(plain, &new), (plain.to_owned(), true));
            let (text, keep) = whole(plain, &old);
            assert!(keep && text.contains("\r\nConnection: keep-alive\r\n"), "{text}");
            let (text, keep) = whole(&announced, &new);
            assert_eq!(text, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc");
            assert!(keep);
            assert_eq!(
                whole(chunked, &old),
                ("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc".to_owned(), false)
            );
            let (text, _) =
                whole("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", &order(false, true));
            assert!(text.contains("Content-Length: 3\r\n"), "{text}");
        }
        assert_eq!(relay(chunked, &new, 1000).unwrap().0, chunked);
    }

    #[test]
    fn what_is_no_answer_is_not_sent_on_as_one() {
        for bad in [
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcd",
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nbroken\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Gorget-Gate-Length: 4\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "SMTP\r\n\r\n",
        ] {
            assert_eq!(relay(bad, &order(false, false), 1000), Err(Broken), "{bad}");
        }
        let endless = format!("HTTP/1.1 200 OK\r\nA: {}", "a".repeat(MAX_HEAD));
        assert_eq!(relay(&endless, &order(false, false), 1000), Err(Broken));
    }
}
