//! Standard output: lines, tables that fit the terminal, and text of strangers made harmless.

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

/// A column narrower than this says nothing: the last ones are cut instead.
const NARROWEST: usize = 8;

pub(super) struct Output {
    stream: BufWriter<Stdout>,
    /// Whether objects are printed as they are.
    pub(super) json: bool,
    pub(super) terminal: bool,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        Self { stream: BufWriter::new(stdout), json, terminal }
    }

    pub(super) fn line(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.stream, "{line}")
    }

    /// A piece of a log: as it is into files and pipes, without control sequences on a terminal.
    pub(super) fn log(&mut self, cleaner: &mut Cleaner, text: &str) -> io::Result<()> {
        if self.terminal {
            self.stream.write_all(cleaner.clean(text).as_bytes())
        } else {
            self.stream.write_all(text.as_bytes())
        }
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }

    /// Prints aligned columns under `head`; on a terminal no line is wider than it.
    pub(super) fn table(&mut self, head: &[&str], rows: Vec<Vec<String>>) -> io::Result<()> {
        let width = self.terminal.then(terminal_width);
        for line in layout(head, rows, width) {
            self.line(&line)?;
        }
        Ok(())
    }
}

/// As the shell says, else as the terminal says.
fn terminal_width() -> usize {
    let columns = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    let asked = || console::Term::stdout().size_checked().map(|(_, columns)| usize::from(columns));
    columns.filter(|&columns| columns > 0).or_else(asked).unwrap_or(80)
}

fn layout(head: &[&str], rows: Vec<Vec<String>>, width: Option<usize>) -> Vec<String> {
    let head = head.iter().map(|word| (*word).to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(head)
        .chain(rows.into_iter().map(|row| row.iter().map(|cell| clean(cell)).collect()))
        .collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widest =
        |n: usize| rows.iter().filter_map(|row| row.get(n)).map(|cell: &String| wide(cell)).max();
    let mut widths: Vec<usize> = (0..columns).map(|n| widest(n).unwrap_or(0)).collect();
    if let Some(width) = width {
        fit(&mut widths, width.saturating_sub(2 * columns.saturating_sub(1)));
    }
    let line = |row: &Vec<String>| {
        let mut line = String::new();
        for (cell, &width) in row.iter().zip(&widths) {
            let cell = console::truncate_str(cell, width, "…");
            line.push_str(&cell);
            line.push_str(&" ".repeat(width.saturating_sub(wide(&cell)) + 2));
        }
        line.trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

fn wide(text: &str) -> usize {
    console::measure_text_width(text)
}

/// Takes from the widest column, again and again, until all fit.
fn fit(widths: &mut [usize], room: usize) {
    let mut excess = widths.iter().sum::<usize>().saturating_sub(room);
    while excess > 0 {
        let Some(widest) = widths.iter().copied().max().filter(|&w| w > NARROWEST) else { break };
        // The last of equals: errors and reasons stand there.
        let Some(at) = widths.iter().rposition(|&w| w == widest) else { break };
        let next = widths.iter().copied().filter(|&w| w < widest).max().unwrap_or(0);
        let cut = excess.min(widest - next.max(NARROWEST)).max(1);
        widths[at] -= cut;
        excess -= cut;
    }
}

/// One line of harmless text.
pub(super) fn clean(text: &str) -> String {
    let text = Cleaner::default().clean(text);
    text.chars().map(|c| if c == '\n' || c == '\t' { ' ' } else { c }).collect()
}

/// Takes terminal control sequences out of text that comes in pieces; lines and tabs stay.
#[derive(Default)]
pub(super) struct Cleaner {
    state: State,
}

#[derive(Clone, Copy, Default)]
enum State {
    #[default]
    Text,
    /// After the escape character.
    Escape,
    /// In a sequence that ends with a letter or so.
    Control,
    /// In a string, such as a window title, that ends with a bell or with escape and backslash.
    Title,
    TitleEscape,
}

impl Cleaner {
    pub(super) fn clean(&mut self, text: &str) -> String {
        let mut clean = String::with_capacity(text.len());
        for c in text.chars() {
            self.state = match (self.state, c) {
                (State::Text | State::Escape | State::Control, '\u{1b}') => State::Escape,
                (State::Text, '\u{9b}') => State::Control,
                (State::Text, c) => {
                    if c == '\n' || c == '\t' || !c.is_control() {
                        clean.push(c);
                    }
                    State::Text
                }
                (State::Escape, '[') => State::Control,
                (State::Escape, ']' | 'P' | 'X' | '^' | '_') => State::Title,
                // A sequence never goes over the end of a line: what is cut off hides no more than that.
                (State::Escape | State::Control | State::Title | State::TitleEscape, '\n') => {
                    clean.push('\n');
                    State::Text
                }
                (State::Escape, ' '..='/') => State::Escape,
                (State::Escape, _) => State::Text,
                (State::Control, '@'..='~') => State::Text,
                (State::Control, _) => State::Control,
                (State::Title, '\u{7}') => State::Text,
                (State::Title, '\u{1b}') => State::TitleEscape,
                (State::Title, _) => State::Title,
                (State::TitleEscape, '\\') => State::Text,
                (State::TitleEscape, _) => State::Title,
            };
        }
        clean
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(cells: &[&[&str]]) -> Vec<Vec<String>> {
        cells.iter().map(|row| row.iter().map(|c| (*c).to_owned()).collect()).collect()
    }

    #[test]
    fn columns_are_aligned_and_fit_the_terminal() {
        let table = || rows(&[&["1", "short"], &["22", "a much longer cell\nof two lines"]]);
        let lines = layout(&["ID", "WHAT"], table(), None);
        assert_eq!(lines, ["ID  WHAT", "1   short", "22  a much longer cell of two lines"]);
        let lines = layout(&["ID", "WHAT"], table(), Some(20));
        assert_eq!(lines[2], "22  a much longer c…");
        assert!(lines.iter().all(|line| wide(line) <= 20));
    }

    #[test]
    fn the_widest_columns_give_first() {
        let mut widths = [4, 30, 50];
        fit(&mut widths, 60);
        assert_eq!(widths.iter().sum::<usize>(), 60);
        assert_eq!(widths[0], 4);
        let mut narrow = [8, 8];
        fit(&mut narrow, 3);
        assert_eq!(narrow, [8, 8]);
    }

    #[test]
    fn strangers_text_cannot_steer_the_terminal() {
        assert_eq!(clean("a\u{1b}[31mred\u{1b}[0m\r\n\tb\u{7}\u{85}"), "ared  b");
        assert_eq!(clean("x\u{1b}]0;title\u{7}y\u{1b}]8;;u\u{1b}\\z\u{9b}2Jw"), "xyzw");
        let mut cleaner = Cleaner::default();
        assert_eq!(cleaner.clean("a\u{1b}["), "a");
        assert_eq!(cleaner.clean("2Jb\n"), "b\n");
    }
}
