//! S-expressions as Guile writes them: what Cuirass's programs say on the bridge.

use std::fmt;

/// No message of Cuirass's nests deeper than four; the parser recurses once a level.
const MAX_DEPTH: usize = 32;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sexp {
    Symbol(String),
    String(String),
    Integer(i64),
    Bool(bool),
    List(Vec<Sexp>),
}

/// What was expected, and at which byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Error {
    pub(crate) at: usize,
    pub(crate) expected: &'static str,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {} at byte {}", self.expected, self.at)
    }
}

impl std::error::Error for Error {}

/// Reads one datum; also returns the text after it, blanks removed.
pub(crate) fn parse(text: &str) -> Result<(Sexp, &str), Error> {
    let mut parser = Parser { text, at: 0 };
    let datum = parser.datum(0)?;
    parser.blanks();
    Ok((datum, &text[parser.at..]))
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn eat(&mut self, prefix: &str) -> bool {
        let found = self.rest().starts_with(prefix);
        if found {
            self.at += prefix.len();
        }
        found
    }

    fn expected<T>(&self, expected: &'static str) -> Result<T, Error> {
        Err(Error { at: self.at, expected })
    }

    fn blanks(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.next();
        }
    }

    fn datum(&mut self, depth: usize) -> Result<Sexp, Error> {
        if depth > MAX_DEPTH {
            return self.expected("less nesting");
        }
        self.blanks();
        match self.peek() {
            None => self.expected("a datum"),
            Some('(' | '[') => self.list(depth),
            Some(')' | ']') => self.expected("a datum before the closing parenthesis"),
            Some('"') => {
                self.next();
                self.string()
            }
            Some('#') => self.hash(),
            Some('\'') => {
                self.next();
                let quoted = self.datum(depth + 1)?;
                Ok(Sexp::List(vec![Sexp::Symbol("quote".to_owned()), quoted]))
            }
            Some(_) => self.atom(),
        }
    }

    fn list(&mut self, depth: usize) -> Result<Sexp, Error> {
        let close = if self.next() == Some('(') { ')' } else { ']' };
        let mut elements = Vec::new();
        loop {
            self.blanks();
            match self.peek() {
                None => return self.expected("a closing parenthesis"),
                Some(c) if c == close => {
                    self.next();
                    return Ok(Sexp::List(elements));
                }
                Some(_) => elements.push(self.datum(depth + 1)?),
            }
        }
    }

    fn hash(&mut self) -> Result<Sexp, Error> {
        if self.eat("#{") {
            return self.extended_symbol();
        }
        for (word, value) in [("#true", true), ("#false", false), ("#t", true), ("#f", false)] {
            if self.eat(word) {
                return if self.peek().is_none_or(is_delimiter) {
                    Ok(Sexp::Bool(value))
                } else {
                    self.expected("#t or #f")
                };
            }
        }
        self.expected("#t, #f or #{…}#")
    }

    fn extended_symbol(&mut self) -> Result<Sexp, Error> {
        let mut name = String::new();
        while !self.eat("}#") {
            match self.next() {
                None => return self.expected("}#"),
                Some('\\') if self.eat("x") => name.push(self.hex_escape()?),
                Some('\\') => match self.next() {
                    Some(c) => name.push(c),
                    None => return self.expected("a character after the backslash"),
                },
                Some(c) => name.push(c),
            }
        }
        Ok(Sexp::Symbol(name))
    }

    fn string(&mut self) -> Result<Sexp, Error> {
        let mut text = String::new();
        loop {
            match self.next() {
                None => return self.expected("a closing quotation mark"),
                Some('"') => return Ok(Sexp::String(text)),
                Some('\\') => text.push(self.escape()?),
                Some(c) => text.push(c),
            }
        }
    }

    fn escape(&mut self) -> Result<char, Error> {
        Ok(match self.next() {
            Some('n') => '\n',
            Some('t') => '\t',
            Some('r') => '\r',
            Some('a') => '\x07',
            Some('b') => '\x08',
            Some('f') => '\x0c',
            Some('v') => '\x0b',
            Some('0') => '\0',
            Some('x') => self.hex_escape()?,
            Some('u') => self.fixed_hex(4)?,
            Some('U') => self.fixed_hex(6)?,
            Some(c @ ('"' | '\\' | '|')) => c,
            Some(_) | None => return self.expected("a known escape after the backslash"),
        })
    }

    /// After `\x`: `HEX;`, or in Guile's older way two digits.
    fn hex_escape(&mut self) -> Result<char, Error> {
        let digits = self.rest().bytes().take_while(u8::is_ascii_hexdigit).count();
        if self.rest()[digits..].starts_with(';') && (1..=6).contains(&digits) {
            let c = self.fixed_hex(digits)?;
            self.next();
            return Ok(c);
        }
        self.fixed_hex(2)
    }

    fn fixed_hex(&mut self, digits: usize) -> Result<char, Error> {
        let code = self.rest().get(..digits).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        let Some(c) = code.and_then(char::from_u32) else {
            return self.expected("the hexadecimal number of a character");
        };
        self.at += digits;
        Ok(c)
    }

    fn atom(&mut self) -> Result<Sexp, Error> {
        let length = self.rest().find(is_delimiter).unwrap_or(self.rest().len());
        let token = &self.rest()[..length];
        let atom = match token.parse::<i64>() {
            Ok(number) => Sexp::Integer(number),
            Err(_) if token == "." || looks_like_number(token) => {
                return self.expected("a symbol, a string or an integer of 64 bits");
            }
            Err(_) => Sexp::Symbol(token.to_owned()),
        };
        self.at += length;
        Ok(atom)
    }
}

fn is_delimiter(c: char) -> bool {
    c.is_whitespace() || "()[]\";".contains(c)
}

/// Whether Guile would read (part of) this as a number: such a symbol needs `#{…}#`.
fn looks_like_number(token: &str) -> bool {
    let unsigned = token.trim_start_matches(['+', '-', '.']);
    unsigned.starts_with(|c: char| c.is_ascii_digit()) && token.parse::<f64>().is_ok()
}

/// Whether a symbol can be written as it stands.
fn is_plain(name: &str) -> bool {
    let good = |c: char| !is_delimiter(c) && !c.is_control() && !"#'`,{}|\\".contains(c);
    !name.is_empty() && name != "." && name.chars().all(good) && !looks_like_number(name)
}

impl fmt::Display for Sexp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Symbol(name) if is_plain(name) => f.write_str(name),
            Self::Symbol(name) => {
                f.write_str("#{")?;
                for c in name.chars() {
                    if c == ' ' || c.is_alphanumeric() || "._+-*/<>=!?:$%&^~@".contains(c) {
                        write!(f, "{c}")?;
                    } else {
                        write!(f, "\\x{:x};", u32::from(c))?;
                    }
                }
                f.write_str("}#")
            }
            Self::String(text) => {
                f.write_str("\"")?;
                for c in text.chars() {
                    match c {
                        '"' => f.write_str("\\\"")?,
                        '\\' => f.write_str("\\\\")?,
                        '\n' => f.write_str("\\n")?,
                        '\t' => f.write_str("\\t")?,
                        c if c.is_control() => write!(f, "\\x{:x};", u32::from(c))?,
                        c => write!(f, "{c}")?,
                    }
                }
                f.write_str("\"")
            }
            Self::Integer(number) => number.fmt(f),
            Self::Bool(true) => f.write_str("#t"),
            Self::Bool(false) => f.write_str("#f"),
            Self::List(elements) => {
                f.write_str("(")?;
                for (n, element) in elements.iter().enumerate() {
                    let blank = if n == 0 { "" } else { " " };
                    write!(f, "{blank}{element}")?;
                }
                f.write_str(")")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbol(name: &str) -> Sexp {
        Sexp::Symbol(name.to_owned())
    }

    fn whole(text: &str) -> Result<Sexp, Error> {
        parse(text).map(|(datum, _)| datum)
    }

    #[test]
    fn reads_what_guile_writes() {
        let trigger = |name| Sexp::List(vec![symbol("trigger-jobset"), symbol(name)]);
        for (text, name) in [
            ("hello", "hello"),
            ("Guix-Master", "Guix-Master"),
            ("a'b", "a'b"),
            ("a:b", "a:b"),
            ("é", "é"),
            ("#{my jobset}#", "my jobset"),
            ("#{1.2}#", "1.2"),
            ("#{12}#", "12"),
            (r"#{a\x28;b}#", "a(b"),
            ("1+", "1+"),
            ("...", "..."),
        ] {
            assert_eq!(whole(&format!("(trigger-jobset {text})")), Ok(trigger(name)), "{text}");
        }
        assert_eq!(whole(r#""a\"\\\n\x41;\x42""#), Ok(Sexp::String("a\"\\\nAB".to_owned())));
        assert_eq!(
            whole(" (a #t #f -5 () ) "),
            Ok(Sexp::List(vec![
                symbol("a"),
                Sexp::Bool(true),
                Sexp::Bool(false),
                Sexp::Integer(-5),
                Sexp::List(vec![])
            ]))
        );
        assert_eq!(parse("(a) (b)").map(|(_, rest)| rest), Ok("(b)"));
    }

    #[test]
    fn what_is_written_can_be_read() {
        for datum in [
            symbol("hello"),
            symbol("my jobset"),
            symbol("12"),
            symbol(""),
            symbol("a}#b\\"),
            Sexp::String("tab\t quote\" back\\ bell\u{7} é".to_owned()),
            Sexp::List(vec![symbol("reply"), Sexp::List(vec![Sexp::Integer(i64::MIN)])]),
            Sexp::Bool(false),
        ] {
            assert_eq!(whole(&datum.to_string()), Ok(datum.clone()), "{datum}");
        }
        assert_eq!(symbol("1.2").to_string(), "#{1.2}#");
        assert_eq!(symbol("a(b").to_string(), r"#{a\x28;b}#");
    }

    #[test]
    fn truncated_oversized_and_garbage_are_errors() {
        let whole_text = r#"(add "x\x41;" #{y z}# #t 12)"#;
        for cut in (1..whole_text.len()).filter(|&n| whole_text.is_char_boundary(n)) {
            assert!(parse(&whole_text[..cut]).is_err(), "{}", &whole_text[..cut]);
        }
        for bad in ["", ")", "(]", "#", "#q", "#tt", "\"\\q\"", "1.5", "99999999999999999999", "."]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse(r#""\xd800;""#).is_err());
        assert!(parse(&"(".repeat(60_000)).is_err());
        assert!(parse(&format!("{}{}", "(".repeat(20), ")".repeat(20))).is_ok());
    }
}
