//! POSIX extended regular expressions, in the words of the `regex` crate.
//!
//! Invariant: what both languages understand differently is put into words that mean the same, or refused: what stands
//! in brackets, a backslash, a repetition of a repetition.

use regex::Regex;

/// The classes of characters that POSIX knows.
const CLASSES: &[&str] = &[
    "alnum", "alpha", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space",
    "upper", "xdigit",
];

/// Whether a text holds a match somewhere.
#[derive(Clone, Debug)]
pub(crate) struct Pattern(Regex);

impl Pattern {
    /// `None` if `text` is no extended regular expression.
    pub(crate) fn new(text: &str) -> Option<Self> {
        Regex::new(&translate(text)?).ok().map(Self)
    }

    pub(crate) fn matches(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

/// What a repetition would repeat.
#[derive(Clone, Copy)]
enum Before {
    Nothing,
    /// Something that begins at this byte of the translation.
    Atom(usize),
    /// A repetition of it.
    Repeated(usize),
}

fn translate(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len() + 8);
    let mut before = Before::Nothing;
    // Where groups that are open begin.
    let mut groups = Vec::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let start = out.len();
        match c {
            '*' | '+' | '?' | '{' => {
                before = repeated(before, &mut out)?;
                out.push(c);
                if c == '{' {
                    interval(&mut rest, &mut out)?;
                }
                continue;
            }
            '(' => {
                groups.push(start);
                out.push('(');
                before = Before::Nothing;
                continue;
            }
            ')' => match groups.pop() {
                Some(start) => {
                    out.push(')');
                    before = Before::Atom(start);
                    continue;
                }
                // Without a group it stands for itself.
                None => out.push_str(r"\)"),
            },
            '|' | '^' | '$' => {
                out.push(c);
                before = Before::Nothing;
                continue;
            }
            '.' => out.push('.'),
            '[' => brackets(&mut rest, &mut out)?,
            '\\' => escaped(rest.next()?, &mut out)?,
            c => literal(c, &mut out),
        }
        before = Before::Atom(start);
    }
    groups.is_empty().then_some(out)
}

/// Makes sure that there is something to repeat; what is repeated already becomes a group.
fn repeated(before: Before, out: &mut String) -> Option<Before> {
    match before {
        Before::Nothing => None,
        Before::Atom(start) => Some(Before::Repeated(start)),
        Before::Repeated(start) => {
            out.insert_str(start, "(?:");
            out.push(')');
            Some(Before::Repeated(start))
        }
    }
}

type Rest<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// The rest of `{N}`, `{N,}`, `{,M}` or `{N,M}`.
fn interval(rest: &mut Rest<'_>, out: &mut String) -> Option<()> {
    let inside: String = rest.by_ref().take_while(|&c| c != '}').collect();
    let (low, high) = inside.split_once(',').unwrap_or((&inside, &inside));
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !number(low) || !number(high) || inside.is_empty() {
        return None;
    }
    let low = if low.is_empty() { "0" } else { low };
    if inside.contains(',') {
        out.push_str(&format!("{low},{high}}}"));
    } else {
        out.push_str(&format!("{low}}}"));
    }
    Some(())
}

/// The rest of a bracket expression, in which a backslash stands for itself.
fn brackets(rest: &mut Rest<'_>, out: &mut String) -> Option<()> {
    out.push('[');
    if rest.next_if_eq(&'^').is_some() {
        out.push('^');
    }
    let mut first = true;
    loop {
        match rest.next()? {
            ']' if !first => break,
            '[' if rest.peek() == Some(&':') => {
                rest.next();
                let class: String = rest.by_ref().take_while(|&c| c != ':').collect();
                if rest.next()? != ']' || !CLASSES.contains(&class.as_str()) {
                    return None;
                }
                out.push_str(&format!("[:{class}:]"));
            }
            // One collating element, or a class of equivalent ones: of one character.
            '[' if matches!(rest.peek(), Some('.' | '=')) => {
                let mark = rest.next()?;
                inside(rest.next()?, out);
                if rest.next()? != mark || rest.next()? != ']' {
                    return None;
                }
            }
            '-' if !first && rest.peek().is_some_and(|&next| next != ']') => out.push('-'),
            c => inside(c, out),
        }
        first = false;
    }
    out.push(']');
    Some(())
}

/// A character of a bracket expression.
fn inside(c: char, out: &mut String) {
    if c.is_ascii_punctuation() {
        out.push('\\');
    }
    out.push(c);
}

fn escaped(c: char, out: &mut String) -> Option<()> {
    match c {
        // GNU's, which Guile's programs know.
        'w' | 'W' | 's' | 'S' | 'b' | 'B' => out.extend(['\\', c]),
        '<' => out.push_str(r"\b{start}"),
        '>' => out.push_str(r"\b{end}"),
        // What a group matched cannot be referred to.
        c if c.is_ascii_digit() => return None,
        c => literal(c, out),
    }
    Some(())
}

fn literal(c: char, out: &mut String) {
    let mut buffer = [0; 4];
    out.push_str(&regex::escape(c.encode_utf8(&mut buffer)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_posix_says() {
        for (pattern, text, matches) in [
            ("binary-tarball*", "guix-binary-tarbal.x86_64-linux", true),
            ("^hello$", "hello", true),
            ("^hello$", "hello.x86_64-linux", false),
            ("(random|entropy-)1[0-9]", "entropy-17", true),
            (r"[\d]", "d", true),
            (r"[\d]", "5", false),
            (r"[\d]", r"\", true),
            ("[]a]", "]", true),
            ("[^]a]", "]", false),
            ("[a&&b]", "&", true),
            ("[a-c]x[-z]", "bx-", true),
            ("[[:digit:]_]+$", "a_1", true),
            ("[[.-.]]", "-", true),
            ("^ba+?$", "b", true),
            ("^(ab)*{2}$", "abab", true),
            ("^a{,2}$", "aa", true),
            ("^a{2}$", "aaa", false),
            (r"\<image\>", "an-image.x", true),
            (r"\d", "d", true),
            (r"a\.b", "a.b", true),
            ("a)", "a)", true),
            ("", "anything", true),
            ("é+", "caféé", true),
        ] {
            let pattern_ = Pattern::new(pattern).unwrap_or_else(|| panic!("{pattern}"));
            assert_eq!(pattern_.matches(text), matches, "{pattern} in {text}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for bad in ["*a", "a|*", "(a", "[a", "[[:nope:]]", "a{", "a{x}", r"(a)\1", "a\\", "(?i)a"] {
            assert!(Pattern::new(bad).is_none(), "{bad}");
        }
    }
}
