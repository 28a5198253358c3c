//! The first words of a build log on its way from a worker: the server's, then the worker's; a gzip stream follows the
//! closing parenthesis at once.

use std::io::{self, Read};

use super::{Fields, list, message, string, symbol};
use crate::proto::sexp::Sexp;

/// What the server says first. Workers do not look at the version.
pub(crate) const GREETING: &str = "(log-server (version 0))";

/// Bytes of a header: a store name of 211 characters in a long store directory, several times over.
const MAX_HEADER: usize = 1024;

/// What a worker says before its gzip stream.
pub(crate) fn header(derivation: &str) -> String {
    let version = list([symbol("version"), Sexp::Integer(0)]);
    list([symbol("log"), version, list([symbol("derivation"), string(derivation)])]).to_string()
}

/// Reads a header up to its closing parenthesis and not one byte further, and returns the derivation. Anything else is
/// `InvalidData`.
pub(crate) fn read_header(reader: &mut impl Read) -> io::Result<String> {
    let text = read_list(reader)?;
    let wrong = || invalid("expected (log (version 0) (derivation STRING))");
    let (name, fields) = message(&text).map_err(|error| invalid(&error.to_string()))?;
    let fields = Fields { message: "log", fields: &fields };
    if name != "log" {
        return Err(wrong());
    }
    fields.text(1, "derivation", "(derivation STRING)").map_err(|_| wrong())
}

/// Reads the server's greeting, which is not looked at beyond its shape.
pub(crate) fn read_greeting(reader: &mut impl Read) -> io::Result<()> {
    let text = read_list(reader)?;
    match message(&text) {
        Ok((name, _)) if name == "log-server" => Ok(()),
        Ok(_) | Err(_) => Err(invalid("expected (log-server (version 0))")),
    }
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// The bytes of one list, read one by one: what follows is not ours.
fn read_list(reader: &mut impl Read) -> io::Result<Vec<u8>> {
    let (mut text, mut depth, mut quoted, mut escaped) = (Vec::new(), 0_usize, false, false);
    loop {
        let mut byte = [0];
        reader.read_exact(&mut byte)?;
        let [byte] = byte;
        text.push(byte);
        if text.len() > MAX_HEADER {
            return Err(invalid("expected a header of at most 1024 bytes"));
        }
        match byte {
            _ if std::mem::take(&mut escaped) => {}
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'(' => depth += 1,
            b')' if depth <= 1 => return Ok(text),
            b')' => depth -= 1,
            _ if depth == 0 && !byte.is_ascii_whitespace() => {
                return Err(invalid("expected an opening parenthesis"));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRV: &str = "/gnu/store/630anh2v63k4dgs6vdr2dgrjn418nrmi-hello-2.12.drv";

    #[test]
    fn a_header_ends_where_the_stream_begins() {
        let mut bytes = header(DRV).into_bytes();
        assert_eq!(bytes, format!(r#"(log (version 0) (derivation "{DRV}"))"#).into_bytes());
        bytes.extend_from_slice(b"\x1f\x8b");
        let mut reader = bytes.as_slice();
        assert_eq!(read_header(&mut reader).unwrap(), DRV);
        assert_eq!(reader, b"\x1f\x8b");
    }

    #[test]
    fn greetings_are_read() {
        let mut reader = b"(log-server (version 0))rest".as_slice();
        read_greeting(&mut reader).unwrap();
        assert_eq!(reader, b"rest");
        read_greeting(&mut b"(log (version 0))".as_slice()).unwrap_err();
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let long = format!("(log (version 0) (derivation \"{}\"))", "x".repeat(2000));
        for (bytes, kind) in [
            (b"\x1f\x8b\x08".as_slice(), io::ErrorKind::InvalidData),
            (b"(log (version 0) (derivation \"/gnu", io::ErrorKind::UnexpectedEof),
            (b"(log)", io::ErrorKind::InvalidData),
            (b"(log (version 0) (derivation 7))", io::ErrorKind::InvalidData),
            (b")", io::ErrorKind::InvalidData),
            (long.as_bytes(), io::ErrorKind::InvalidData),
        ] {
            let mut reader = bytes;
            assert_eq!(read_header(&mut reader).unwrap_err().kind(), kind);
        }
    }
}
