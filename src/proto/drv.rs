//! Derivation files: `Derive([outputs],[inputs],[sources],"system","builder",[arguments],[environment])`.
//!
//! Invariant: what is kept is never larger than what was read, and nothing recurses.

use std::collections::BTreeMap;
use std::fmt;

/// What of a derivation is of use here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Derivation {
    /// Output name to path.
    pub(crate) outputs: BTreeMap<String, String>,
    /// The derivations that it is built from.
    pub(crate) inputs: Vec<String>,
    pub(crate) system: String,
}

/// Bytes of a derivation's file that are taken: they are kilobytes, a few of them megabytes.
pub(crate) const MAX: u64 = 64 << 20;

/// It is no derivation: at which byte, and what was expected there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Error {
    at: usize,
    expected: &'static str,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no derivation: expected {} at byte {}", self.expected, self.at)
    }
}

impl std::error::Error for Error {}

pub(crate) fn parse(text: &[u8]) -> Result<Derivation, Error> {
    let mut reader = Reader { text, at: 0 };
    reader.expect(b"Derive(", "Derive(")?;
    let mut outputs = BTreeMap::new();
    reader.list(|reader| {
        reader.expect(b"(", "(")?;
        let name = reader.string()?;
        reader.expect(b",", "a comma")?;
        let path = reader.string()?;
        for _ in 0..2 {
            reader.expect(b",", "a comma")?;
            reader.string()?; // Algorithm, hash.
        }
        reader.expect(b")", ")")?;
        outputs.insert(name, path);
        Ok(())
    })?;
    reader.expect(b",", "a comma")?;
    let mut inputs = Vec::new();
    reader.list(|reader| {
        reader.expect(b"(", "(")?;
        inputs.push(reader.string()?);
        reader.expect(b",", "a comma")?;
        reader.list(|reader| reader.string().map(drop))?;
        reader.expect(b")", ")")
    })?;
    reader.expect(b",", "a comma")?;
    reader.list(|reader| reader.string().map(drop))?;
    reader.expect(b",", "a comma")?;
    let system = reader.string()?;
    reader.expect(b",", "a comma")?;
    Ok(Derivation { outputs, inputs, system })
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn error(&self, expected: &'static str) -> Error {
        Error { at: self.at, expected }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn expect(&mut self, bytes: &[u8], expected: &'static str) -> Result<(), Error> {
        if !self.text[self.at..].starts_with(bytes) {
            return Err(self.error(expected));
        }
        self.at += bytes.len();
        Ok(())
    }

    fn list(&mut self, mut item: impl FnMut(&mut Self) -> Result<(), Error>) -> Result<(), Error> {
        self.expect(b"[", "a list")?;
        if self.peek() != Some(b']') {
            loop {
                item(self)?;
                if self.peek() != Some(b',') {
                    break;
                }
                self.at += 1;
            }
        }
        self.expect(b"]", "the end of a list")
    }

    fn string(&mut self) -> Result<String, Error> {
        self.expect(b"\"", "a string")?;
        // Up to the first character that means something: for most strings, all of it.
        let rest = &self.text[self.at..];
        let plain = rest.iter().position(|byte| matches!(byte, b'"' | b'\\')).unwrap_or(rest.len());
        let mut bytes = rest[..plain].to_vec();
        self.at += plain;
        loop {
            let byte = self.peek().ok_or_else(|| self.error("the end of a string"))?;
            self.at += 1;
            match byte {
                b'"' => break,
                b'\\' => {
                    let escaped = self.peek().ok_or_else(|| self.error("an escaped character"))?;
                    self.at += 1;
                    bytes.push(match escaped {
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        other => other,
                    });
                }
                byte => bytes.push(byte),
            }
        }
        String::from_utf8(bytes).map_err(|_| self.error("UTF-8"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"Derive([("doc","/gnu/store/b-x-doc","",""),("out","/gnu/store/a-x","","")],[("/gnu/store/i.drv",["out"]),("/gnu/store/j.drv",["a","out"])],["/gnu/store/s"],"x86_64-linux","/bin/sh",["-c","echo \"a\"\n"],[("x","y")])"#;

    #[test]
    fn outputs_inputs_and_system_are_read() {
        let derivation = parse(TEXT.as_bytes()).unwrap();
        let outputs = [("doc", "/gnu/store/b-x-doc"), ("out", "/gnu/store/a-x")];
        let outputs = outputs.map(|(name, path)| (name.to_owned(), path.to_owned()));
        assert_eq!(derivation.outputs, BTreeMap::from(outputs));
        assert_eq!(derivation.inputs, ["/gnu/store/i.drv", "/gnu/store/j.drv"]);
        assert_eq!(derivation.system, "x86_64-linux");
    }

    #[test]
    fn what_is_no_derivation_is_an_error_that_says_where() {
        let needed = TEXT.find(r#""/bin/sh""#).unwrap();
        for length in 0..needed - 1 {
            assert!(parse(&TEXT.as_bytes()[..length]).is_err(), "{length}");
        }
        let error = parse(b"Derive([(\"out\"").unwrap_err();
        assert_eq!(error.to_string(), "no derivation: expected a comma at byte 14");
    }
}
