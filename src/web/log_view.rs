//! Logs as people read them: lines with numbers to link to, colours from terminal codes, nothing that acts.
//!
//! Invariant: all that a log holds ends up as text; what it says about colours chooses among classes of ours, and a line
//! takes a bounded part of the page, however long it is.

use std::fmt::Write as _;

use maud::{Markup, PreEscaped, html};

/// What is shown of one line: more is data, not text, and slows browsers down.
const MAX_LINE: usize = 8 * 1024;

/// The lines of a piece of a log that begins with a line, the first of them number `first`.
pub(super) fn lines(text: &str, first: usize) -> Markup {
    Painter::default().lines(text, first)
}

/// The same without numbers, for where a few lines are told of.
pub(super) fn plain(text: &str) -> Markup {
    let mut painter = Painter::default();
    html! {
        @for (n, line) in text.lines().enumerate() { @if n > 0 { "\n" } (painter.line(line)) }
    }
}

/// Colours and the like, as they stand between two pieces of a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Painter {
    foreground: Option<u8>,
    background: Option<u8>,
    /// Bits in the order of [`ATTRIBUTES`].
    attributes: u8,
}

/// Classes, with the codes that switch each on and off.
const ATTRIBUTES: [(&str, u16, u16); 5] = [
    ("ansi-bold", 1, 22),
    ("ansi-dim", 2, 22),
    ("ansi-italic", 3, 23),
    ("ansi-underline", 4, 24),
    ("ansi-inverse", 7, 27),
];

impl Painter {
    /// The next lines; those of one log are to come in order.
    pub(super) fn lines(&mut self, text: &str, first: usize) -> Markup {
        let text = text.strip_suffix('\n').unwrap_or(text);
        html! {
            @for (line, number) in text.split('\n').zip(first..) {
                span id={ "L" (number) } { a href={ "#L" (number) } { (number) } " " (self.line(line)) }
                "\n"
            }
        }
    }

    fn line(&mut self, line: &str) -> Markup {
        // What a carriage return sends back to the beginning is written over: progress bars keep their last state.
        let line = line.trim_end_matches('\r');
        let hidden = line.rfind('\r').map_or(0, |at| at + 1);
        for part in pieces(&line[..hidden]) {
            self.apply(&part);
        }
        let (mut out, mut taken) = (String::new(), 0);
        let line = &line[hidden..];
        let mut rest = pieces(line);
        while let Some(part) = rest.next() {
            self.apply(&part);
            let Piece::Text(text) = part else { continue };
            let shown = &text[..floor(text, MAX_LINE - taken)];
            taken += shown.len();
            self.paint(shown, &mut out);
            if shown.len() < text.len() {
                // The colours of the rest count for the lines that follow.
                rest.by_ref().for_each(|part| self.apply(&part));
                let more = line.len().saturating_sub(taken);
                let _ = write!(out, "<em>… ({more} more bytes)</em>");
                break;
            }
        }
        PreEscaped(out)
    }

    fn paint(&self, text: &str, out: &mut String) {
        let classes = self.classes();
        if !classes.is_empty() && !text.is_empty() {
            let _ = write!(out, "<span class=\"{classes}\">");
        }
        for c in text.chars() {
            match c {
                '&' => out.push_str("&amp;"),
                '<' => out.push_str("&lt;"),
                '>' => out.push_str("&gt;"),
                '"' => out.push_str("&quot;"),
                '\t' => out.push(c),
                // Unicode has a picture of each.
                '\0'..='\x1f' => out.extend(char::from_u32(0x2400 + u32::from(c))),
                '\x7f' => out.push('␡'),
                // They reorder what is around them, so that it reads as something else.
                '\u{80}'..='\u{9f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                    out.push(char::REPLACEMENT_CHARACTER);
                }
                c => out.push(c),
            }
        }
        if !classes.is_empty() && !text.is_empty() {
            out.push_str("</span>");
        }
    }

    fn classes(&self) -> String {
        let mut classes = Vec::new();
        for (bit, (class, _, _)) in ATTRIBUTES.iter().enumerate() {
            if self.attributes & (1 << bit) != 0 {
                classes.push((*class).to_owned());
            }
        }
        classes.extend(self.foreground.map(|colour| format!("ansi-fg-{colour}")));
        classes.extend(self.background.map(|colour| format!("ansi-bg-{colour}")));
        classes.join(" ")
    }

    fn apply(&mut self, piece: &Piece<'_>) {
        let Piece::Style(parameters) = piece else { return };
        let mut codes = parameters.split(';').map(|code| match code {
            "" => 0,
            // Colours in the spelling with colons, and nonsense.
            code => code.parse::<u16>().unwrap_or(u16::MAX),
        });
        while let Some(code) = codes.next() {
            match code {
                0 => *self = Self::default(),
                30..=37 => self.foreground = colour(code - 30),
                90..=97 => self.foreground = colour(code - 90 + 8),
                40..=47 => self.background = colour(code - 40),
                100..=107 => self.background = colour(code - 100 + 8),
                38 => self.foreground = palette(&mut codes),
                48 => self.background = palette(&mut codes),
                39 => self.foreground = None,
                49 => self.background = None,
                code => {
                    for (bit, (_, on, off)) in ATTRIBUTES.iter().enumerate() {
                        if code == *on {
                            self.attributes |= 1 << bit;
                        } else if code == *off {
                            self.attributes &= !(1 << bit);
                        }
                    }
                }
            }
        }
    }
}

/// The last end of a character up to `most` bytes.
fn floor(text: &str, most: usize) -> usize {
    (0..=most.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

fn colour(code: u16) -> Option<u8> {
    u8::try_from(code).ok()
}

/// A colour out of 256, or by its parts: those beyond the sixteen that have a class are left as they are.
fn palette(codes: &mut impl Iterator<Item = u16>) -> Option<u8> {
    match codes.next()? {
        5 => colour(codes.next()?).filter(|colour| *colour < 16),
        2 => {
            codes.by_ref().take(3).for_each(drop);
            None
        }
        _ => None,
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Piece<'a> {
    Text(&'a str),
    /// The parameters of a code that chooses colours.
    Style(&'a str),
    /// A code that does something else to a terminal.
    Other,
}

fn pieces(line: &str) -> impl Iterator<Item = Piece<'_>> {
    let mut rest = line;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (piece, length) = match rest.find('\x1b') {
            Some(0) => escape(rest),
            Some(at) => (Piece::Text(&rest[..at]), at),
            None => (Piece::Text(rest), rest.len()),
        };
        rest = &rest[length..];
        Some(piece)
    })
}

/// The code at the beginning of `text`, and its length; one that is cut off goes to the end.
fn escape(text: &str) -> (Piece<'_>, usize) {
    let bytes = text.as_bytes();
    match bytes.get(1) {
        Some(b'[') => {
            let body = &bytes[2..];
            let end = body.iter().position(|byte| !(0x20..=0x3f).contains(byte));
            match end {
                Some(end) if body[end] == b'm' => (Piece::Style(&text[2..2 + end]), end + 3),
                Some(end) if (0x40..=0x7e).contains(&body[end]) => (Piece::Other, end + 3),
                // Not a code after all: only its beginning goes.
                Some(end) => (Piece::Other, end + 2),
                None => (Piece::Other, bytes.len()),
            }
        }
        // Titles, links and the like, up to BEL or ESC \.
        Some(b']' | b'P' | b'X' | b'^' | b'_') => {
            let end = text.find('\x07').map(|at| at + 1);
            let other = text[2..].find("\x1b\\").map(|at| at + 4);
            let end = end.into_iter().chain(other).min().unwrap_or(text.len());
            (Piece::Other, end)
        }
        Some(0x20..=0x7e) => (Piece::Other, 2),
        Some(_) | None => (Piece::Other, 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a line becomes, without its number.
    fn shown(line: &str) -> String {
        let all = lines(line, 1).into_string();
        let (_, rest) = all.split_once("</a> ").unwrap();
        rest.strip_suffix("</span>\n").unwrap().to_owned()
    }

    #[test]
    fn lines_have_numbers_and_anchors() {
        let text = lines("one\ntwo\n", 7).into_string();
        assert_eq!(
            text,
            "<span id=\"L7\"><a href=\"#L7\">7</a> one</span>\n<span id=\"L8\"><a href=\"#L8\">8</a> two</span>\n"
        );
    }

    #[test]
    fn a_few_lines_have_colours_and_no_numbers() {
        let text = plain("\x1b[31mred\n10%\r<b>\x1b[m\nend\n").into_string();
        let red = "<span class=\"ansi-fg-1\">";
        assert_eq!(text, format!("{red}red</span>\n{red}&lt;b&gt;</span>\nend"));
    }

    #[test]
    fn whatever_a_log_holds_is_text() {
        for (line, expected) in [
            ("<script>alert('&')</script>", "&lt;script&gt;alert('&amp;')&lt;/script&gt;"),
            ("a \"b\"", "a &quot;b&quot;"),
            ("bell\x07 null\0 tab\t", "bell␇ null␀ tab\t"),
            ("user\u{202e}txt", "user\u{fffd}txt"),
            ("windows\r", "windows"),
            ("10%\r50%\r100%", "100%"),
            ("\x1b[<b>m", "&gt;m"),
        ] {
            assert_eq!(shown(line), expected, "{line:?}");
        }
    }

    #[test]
    fn codes_become_classes_or_nothing() {
        for (line, expected) in [
            ("\x1b[31mred\x1b[0m.", "<span class=\"ansi-fg-1\">red</span>."),
            (
                "\x1b[1;92;44mx\x1b[22;39my",
                "<span class=\"ansi-bold ansi-fg-10 ansi-bg-4\">x</span><span class=\"ansi-bg-4\">y</span>",
            ),
            (
                "\x1b[38;5;9ma\x1b[38;2;1;2;3mb\x1b[38;5;200mc",
                "<span class=\"ansi-fg-9\">a</span>bc",
            ),
            ("\x1b[2K\x1b[1Gdone", "done"),
            ("\x1b]8;;javascript:alert(1)\x07link\x1b]8;;\x1b\\!", "link!"),
            ("\x1b[38:5:1mx\x1b[m", "x"),
            ("cut\x1b[3", "cut"),
            ("cut\x1b", "cut"),
            ("\x1b]0;title", ""),
            ("\x1bcx\x1b☂", "x☂"),
        ] {
            assert_eq!(shown(line), expected, "{line:?}");
        }
    }

    #[test]
    fn colours_go_on_in_the_next_piece() {
        let mut painter = Painter::default();
        let _ = painter.lines("\x1b[32mgreen\n", 1);
        let text = painter.lines("still\x1b[0m\n", 2).into_string();
        assert!(text.contains("<span class=\"ansi-fg-2\">still</span>"), "{text}");
        assert_eq!(painter, Painter::default());
    }

    #[test]
    fn long_lines_are_cut_and_say_so() {
        let line = format!("{}\x1b[31m{}", "é".repeat(4000), "x".repeat(1000));
        let text = shown(&line);
        assert!(text.ends_with("<em>… (813 more bytes)</em>"), "{}", &text[text.len() - 60..]);
        assert!(text.len() < MAX_LINE + 100);
        let codes = "\x1b[31m\x1b[0m".repeat(100_000);
        assert_eq!(shown(&codes), "");
    }
}
