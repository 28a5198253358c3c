//! The chunked transfer coding, read strictly, wherever the bytes are cut.

/// A chunk's size with its extensions, and all trailers: nobody sends any.
const MAX_LINE: usize = 256;
const MAX_TRAILERS: usize = 4096;

/// Digits of a size: 2^60 bytes are more than anybody has.
const DIGITS: usize = 15;

/// What is sent is not chunked as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bad {
    Syntax,
    /// More than may come in all.
    TooLarge,
}

#[derive(Debug)]
enum State {
    /// In the line of a size, whose digits are followed by extensions.
    Size {
        digits: usize,
        length: usize,
        extension: bool,
    },
    /// After that line's CR, which `\n` has to follow.
    SizeEnd,
    Data,
    /// After the data, which CR and LF have to follow.
    DataEnd,
    DataEndLf,
    /// In the trailers: how many bytes of the current line, and in all; whether a CR came last.
    Trailers {
        line: usize,
        all: usize,
        cr: bool,
    },
    Done,
}

/// Reads one body.
#[derive(Debug)]
pub(super) struct Chunks {
    state: State,
    size: u64,
    /// How many bytes may still come.
    left: u64,
}

const SIZE: State = State::Size { digits: 0, length: 0, extension: false };

impl Chunks {
    /// Of a body of at most `limit` bytes.
    pub(super) fn new(limit: u64) -> Self {
        Self { state: SIZE, size: 0, left: limit }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Reads from `input` to the end of it or of the body, and returns how much that was; the data goes to `out`.
    pub(super) fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, Bad> {
        let mut at = 0;
        while at < input.len() && !self.is_done() {
            if matches!(self.state, State::Data) {
                let rest = &input[at..];
                let taken = usize::try_from(self.size).unwrap_or(usize::MAX).min(rest.len());
                out.extend_from_slice(&rest[..taken]);
                at += taken;
                self.size -= taken as u64;
                if self.size == 0 {
                    self.state = State::DataEnd;
                }
            } else {
                self.step(input[at])?;
                at += 1;
            }
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8) -> Result<(), Bad> {
        self.state = match (&self.state, byte) {
            (State::Size { digits: 1.., .. }, b'\r') => State::SizeEnd,
            (State::Size { length, .. }, _) if *length >= MAX_LINE => return Err(Bad::Syntax),
            (&State::Size { digits, length, extension: false }, _)
                if byte.is_ascii_hexdigit() && digits < DIGITS =>
            {
                let digit = char::from(byte).to_digit(16).unwrap_or(0);
                self.size = self.size * 16 + u64::from(digit);
                State::Size { digits: digits + 1, length: length + 1, extension: false }
            }
            (&State::Size { digits: digits @ 1.., length, extension: false }, b';') => {
                State::Size { digits, length: length + 1, extension: true }
            }
            (&State::Size { digits, length, extension: true }, _)
                if byte == b'\t' || !byte.is_ascii_control() =>
            {
                State::Size { digits, length: length + 1, extension: true }
            }
            (State::SizeEnd, b'\n') if self.size == 0 => {
                State::Trailers { line: 0, all: 0, cr: false }
            }
            (State::SizeEnd, b'\n') => {
                self.left = self.left.checked_sub(self.size).ok_or(Bad::TooLarge)?;
                State::Data
            }
            (State::DataEnd, b'\r') => State::DataEndLf,
            (State::DataEndLf, b'\n') => {
                self.size = 0;
                SIZE
            }
            (State::Trailers { line: 0, cr: true, .. }, b'\n') => State::Done,
            (&State::Trailers { all, cr: true, .. }, b'\n') => {
                State::Trailers { line: 0, all, cr: false }
            }
            (&State::Trailers { line, all, cr: false }, b'\r') => {
                State::Trailers { line, all, cr: true }
            }
            (&State::Trailers { line, all, cr: false }, _)
                if all < MAX_TRAILERS && (byte == b'\t' || !byte.is_ascii_control()) =>
            {
                State::Trailers { line: line + 1, all: all + 1, cr: false }
            }
            (
                State::Size { .. }
                | State::SizeEnd
                | State::Data
                | State::DataEnd
                | State::DataEndLf
                | State::Trailers { .. }
                | State::Done,
                _,
            ) => return Err(Bad::Syntax),
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything at once, and byte by byte: what is read, how much is left, and whether it ended.
    fn read(text: &str) -> Result<(String, usize, bool), Bad> {
        let whole = {
            let (mut chunks, mut out) = (Chunks::new(20), Vec::new());
            let taken = chunks.feed(text.as_bytes(), &mut out);
            taken.map(|taken| {
                (String::from_utf8(out).unwrap(), text.len() - taken, chunks.is_done())
            })
        };
        let (mut chunks, mut out, mut taken) = (Chunks::new(20), Vec::new(), 0);
        for byte in text.as_bytes() {
            match chunks.feed(std::slice::from_ref(byte), &mut out) {
                Ok(count) => taken += count,
                Err(bad) => {
                    assert_eq!(whole, Err(bad));
                    return Err(bad);
                }
            }
        }
        assert_eq!(
            whole,
            Ok((String::from_utf8(out).unwrap(), text.len() - taken, chunks.is_done()))
        );
        whole
    }

    #[test]
    fn bodies_are_put_together() {
        let read_whole = |text| read(text).unwrap();
        assert_eq!(
            read_whole("3\r\nabc\r\n0A;x=\"y\"\r\n0123456789\r\n0\r\n\r\nGET"),
            ("abc0123456789".into(), 3, true)
        );
        assert_eq!(read_whole("0\r\nTrailer: x\r\nb: c\r\n\r\n"), (String::new(), 0, true));
        assert_eq!(read_whole("3\r\nab"), ("ab".into(), 0, false));
    }

    #[test]
    fn what_is_ambiguous_is_refused() {
        for bad in [
            "\r\n",
            "x\r\n",
            " 3\r\nabc",
            "3 \r\nabc",
            "3\nabc",
            "3\r\nabcd",
            "3\r\nabc\n",
            "-1\r\n",
            "0x3\r\nabc",
            ";a\r\n",
            "3;a\nb\r\nabc",
            "0\r\n\n",
            "0\r\na\nb\r\n\r\n",
            "1000000000000000\r\n",
            "broken\r\n",
        ] {
            assert_eq!(read(bad), Err(Bad::Syntax), "{bad:?}");
        }
        assert_eq!(read(&format!("3;{}\r\n", "a".repeat(MAX_LINE))), Err(Bad::Syntax));
        assert_eq!(read(&format!("0\r\n{}", "a: b\r\n".repeat(2000))), Err(Bad::Syntax));
        assert_eq!(read("15\r\n"), Err(Bad::TooLarge));
        assert_eq!(read("a\r\n0123456789\r\nb\r\n"), Err(Bad::TooLarge));
    }
}
