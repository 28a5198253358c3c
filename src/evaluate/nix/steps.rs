//! What a Nix program says, cut into lines: the steps of our expression, and text for people.
//!
//! Invariant: what is kept of it is bounded, however long its lines are.

use serde::Deserialize;

use super::translate::Found;

/// Bytes of a line: nix-eval-jobs prints all of `meta`, which a package's own text may fill; then it is cut.
const MAX_LINE: usize = 4 << 20;

/// Bytes of text that are searched for an error: its message comes last, and a job keeps as much.
const MAX_TEXT: usize = 16 << 10;

/// A step of the walk through the attributes, as the expression tells it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Step {
    /// An attribute is about to be looked at.
    Begin(Vec<String>),
    /// It is a set whose attributes come next.
    Enter,
    Job(Box<Found>),
    /// It throws or fails an assertion.
    Failed(Vec<String>),
    /// It is a job of a system that is not wanted.
    Other(String),
    /// It is a set that is nested too deep.
    Deep(Vec<String>),
    /// It is no job.
    None,
    /// All is done; the process waits at the gate.
    End,
}

/// Takes the step out of a line, if it has one.
pub(super) fn step(line: &[u8], mark: &str) -> Option<Step> {
    let text = String::from_utf8_lossy(line);
    // Nix writes its own word before it.
    let (_, json) = text.split_once(mark)?;
    serde_json::from_str(json).ok()
}

/// Cuts bytes into lines.
#[derive(Default)]
pub(in crate::evaluate) struct Cutter {
    partial: Vec<u8>,
}

impl Cutter {
    /// Hands over the lines that are complete now; one that is too long comes in pieces.
    pub(in crate::evaluate) fn feed<E>(
        &mut self,
        bytes: &[u8],
        mut line: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.partial.len() > MAX_LINE {
                let whole = std::mem::take(&mut self.partial);
                line(whole.strip_suffix(b"\n").unwrap_or(&whole))?;
            }
        }
        Ok(())
    }

    /// What is left at the end, if anything.
    pub(in crate::evaluate) fn last(&mut self) -> Option<Vec<u8>> {
        let last = std::mem::take(&mut self.partial);
        (!last.is_empty()).then_some(last)
    }
}

/// The end of a text.
#[derive(Default)]
pub(super) struct Said(Vec<u8>);

impl Said {
    pub(super) fn line(&mut self, line: &[u8]) {
        self.0.extend_from_slice(line);
        self.0.push(b'\n');
        self.0.drain(..self.0.len().saturating_sub(MAX_TEXT));
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The message of the error it ends with; empty if there is none.
    pub(super) fn message(&self) -> String {
        message(&String::from_utf8_lossy(&self.0))
    }
}

/// The message in what a Nix program wrote before it ended: from its word `error:` on, without colours.
pub(super) fn message(text: &str) -> String {
    /// What every error without a trace ends with: of no use to who cannot run the program.
    const ADVICE: &str = "(use '--show-trace'";
    let plain = without_colours(text);
    let lines: Vec<_> =
        plain.lines().skip_while(|line| !line.trim_start().starts_with("error:")).collect();
    let kept: Vec<_> =
        lines.iter().filter(|line| !line.trim_start().starts_with(ADVICE)).copied().collect();
    let text = kept.join("\n");
    let text = text.trim();
    text.strip_prefix("error:").unwrap_or(text).trim().to_owned()
}

fn without_colours(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        plain.push_str(before);
        let end = after.find(|c: char| c.is_ascii_alphabetic()).map_or(after.len(), |at| at + 1);
        rest = &after[end..];
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_from_text() {
        let line = br#"trace: @1 {"begin":["any","a"]}"#;
        assert!(matches!(step(line, "@1 "), Some(Step::Begin(path)) if path == ["any", "a"]));
        assert!(step(line, "@2 ").is_none());
        assert!(step(b"trace: @1 {\"nonsense\":1}", "@1 ").is_none());
        assert!(step(b"trace: @1 \xff", "@1 ").is_none());
    }

    #[test]
    fn lines_are_cut_wherever_reads_end() {
        let (mut cutter, mut lines) = (Cutter::default(), Vec::new());
        for bytes in [&b"a"[..], b"b\nc\n\nd", b"e"] {
            let kept: Result<(), ()> = cutter.feed(bytes, |line| {
                lines.push(line.to_vec());
                Ok(())
            });
            kept.unwrap();
        }
        assert_eq!(lines, [&b"ab"[..], b"c", b""]);
        assert_eq!(cutter.last().unwrap(), b"de");
        assert!(cutter.last().is_none());
    }

    #[test]
    fn a_line_without_end_is_not_kept() {
        let (mut cutter, mut longest) = (Cutter::default(), 0);
        for _ in 0..10 {
            let kept: Result<(), ()> = cutter.feed(&vec![b'x'; 1 << 20], |line| {
                longest = longest.max(line.len());
                Ok(())
            });
            kept.unwrap();
        }
        assert!((MAX_LINE..=MAX_LINE + (1 << 20)).contains(&longest));
        assert!(cutter.partial.len() <= MAX_LINE);
    }

    #[test]
    fn messages_are_what_follows_the_word_error() {
        let text = "warning: x\n\u{1b}[31;1merror:\u{1b}[0m attribute 'nope' missing\n\n       at f:1\n(use '--show-trace' to show detailed location information)\n";
        assert_eq!(message(text), "attribute 'nope' missing\n\n       at f:1");
        assert_eq!(message("all is well"), "");
    }
}
