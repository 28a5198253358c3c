//! The line on which a value of a JSON text begins: `serde_json::Value` keeps no positions, so that the text is
//! walked again, once, when something is wrong with it.

/// One step from a JSON value to one inside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

/// The line, from 1, of the value at `path`: of its key, where it has one. `None` if there is no such value.
/// `text` must be a JSON text that `serde_json` has read, which bounds its depth as well.
pub(super) fn of(text: &str, path: &[Step]) -> Option<usize> {
    let mut walk = Walk { bytes: text.as_bytes(), at: 0 };
    walk.find(path).map(|at| 1 + walk.bytes[..at].iter().filter(|&&byte| byte == b'\n').count())
}

struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Walk<'_> {
    /// The offset of the value at `path` within the value that begins here.
    fn find(&mut self, path: &[Step]) -> Option<usize> {
        self.blanks();
        let Some((step, rest)) = path.split_first() else { return Some(self.at) };
        let in_object = self.peek()? == b'{';
        if !in_object && self.peek()? != b'[' {
            return None;
        }
        self.at += 1;
        let mut found = None;
        for index in 0.. {
            self.blanks();
            if matches!(self.peek()?, b'}' | b']') {
                break;
            }
            let member = self.at;
            let key = if in_object { Some(self.key()?) } else { None };
            let here = match step {
                Step::Key(wanted) => key.as_ref() == Some(wanted),
                Step::Index(wanted) => !in_object && index == *wanted,
            };
            if here && rest.is_empty() {
                // The last of equal keys is the one that counts.
                found = Some(member);
            } else if here {
                let begin = self.at;
                found = self.find(rest);
                self.at = begin;
            }
            self.skip()?;
            self.blanks();
            if self.peek()? == b',' {
                self.at += 1;
            }
        }
        found
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn blanks(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    /// Reads a key and the colon after it.
    fn key(&mut self) -> Option<String> {
        let begin = self.at;
        self.string()?;
        let key = serde_json::from_slice(&self.bytes[begin..self.at]).ok()?;
        self.blanks();
        self.at += 1;
        Some(key)
    }

    fn string(&mut self) -> Option<()> {
        self.at += 1;
        loop {
            match self.peek()? {
                b'"' => break,
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
        self.at += 1;
        Some(())
    }

    /// Passes over one value.
    fn skip(&mut self) -> Option<()> {
        self.blanks();
        let mut depth = 0_usize;
        loop {
            match self.peek()? {
                b'"' => self.string()?,
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' => {
                    depth = depth.checked_sub(1)?;
                    self.at += 1;
                }
                b',' | b':' => self.at += 1,
                byte if byte.is_ascii_whitespace() => self.at += 1,
                // A number or a word.
                _ => {
                    while self
                        .peek()
                        .is_some_and(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
                    {
                        self.at += 1;
                    }
                }
            }
            if depth == 0 {
                return Some(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_on_their_lines() {
        let text = "\n[\n {\"a\": \"}\\\"\",\n\n \"b\": [1e+5, {\"c\":\n null}, true]},\n {\"a\":\n 2}\n]\n";
        let key = |key: &str| Step::Key(key.to_owned());
        assert_eq!(of(text, &[]), Some(2));
        assert_eq!(of(text, &[Step::Index(0)]), Some(3));
        assert_eq!(of(text, &[Step::Index(0), key("a")]), Some(3));
        assert_eq!(of(text, &[Step::Index(0), key("b")]), Some(5));
        assert_eq!(of(text, &[Step::Index(0), key("b"), Step::Index(1), key("c")]), Some(5));
        assert_eq!(of(text, &[Step::Index(0), key("b"), Step::Index(2)]), Some(6));
        assert_eq!(of(text, &[Step::Index(1), key("a")]), Some(7));
        assert_eq!(of(text, &[Step::Index(1), key("b")]), None);
        assert_eq!(of(text, &[Step::Index(2)]), None);
        assert_eq!(of(text, &[key("a")]), None);
    }
}
