//! Standard output: lines, tables that fit the terminal, and text of strangers made harmless.

use std::io::{self, BufWriter, IsTerminal, Write};

pub(super) struct Output {
    stream: BufWriter<Box<dyn Write>>,
    /// Whether objects are printed as they are.
    pub(super) json: bool,
    pub(super) terminal: bool,
    /// Columns of a terminal.
    width: Option<usize>,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        let width = terminal.then(terminal_width);
        Self { stream: BufWriter::new(Box::new(stdout)), json, terminal, width }
    }

    /// One that takes `stream` for a terminal of this width.
    #[cfg(test)]
    pub(super) fn terminal(stream: impl Write + 'static, width: usize) -> Self {
        let stream = BufWriter::new(Box::new(stream) as Box<dyn Write>);
        Self { stream, json: false, terminal: true, width: Some(width) }
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

    /// Prints aligned columns under their heads; on a terminal no line is wider than it.
    pub(super) fn table(&mut self, columns: &[Column], rows: Vec<Vec<String>>) -> io::Result<()> {
        for line in layout(columns, rows, self.width) {
            self.line(&line)?;
        }
        Ok(())
    }
}

/// A column of a table, and what becomes of it where there is not room for all.
pub(super) struct Column {
    head: &'static str,
    /// The highest goes first; 0 stays to the last.
    rank: u8,
    /// How narrow it may be cut; `None` if it says nothing unless it is whole.
    least: Option<usize>,
}

impl Column {
    /// A column of numbers, times and words: whole, or not there.
    pub(super) const fn whole(head: &'static str, rank: u8) -> Self {
        Self { head, rank, least: None }
    }

    /// A column of text, of which the beginning will do.
    pub(super) const fn text(head: &'static str, rank: u8, least: usize) -> Self {
        Self { head, rank, least: Some(least) }
    }
}

/// As the shell says, else as the terminal says.
fn terminal_width() -> usize {
    let columns = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
    let asked = || console::Term::stdout().size_checked().map(|(_, columns)| usize::from(columns));
    columns.filter(|&columns| columns > 0).or_else(asked).unwrap_or(80)
}

fn layout(columns: &[Column], rows: Vec<Vec<String>>, width: Option<usize>) -> Vec<String> {
    let head = columns.iter().map(|column| column.head.to_owned()).collect();
    let rows: Vec<Vec<String>> = std::iter::once(head)
        .chain(rows.into_iter().map(|row| row.iter().map(|cell| clean(cell)).collect()))
        .collect();
    let widest =
        |n: usize| rows.iter().filter_map(|row| row.get(n)).map(|cell: &String| wide(cell)).max();
    let mut shown: Vec<Shown> = columns
        .iter()
        .enumerate()
        .map(|(at, column)| {
            let width = widest(at).unwrap_or(0);
            let least = column.least.map_or(width, |least| least.min(width));
            Shown { at, width, least }
        })
        .collect();
    if let Some(width) = width {
        choose(&mut shown, columns, &rows, width);
        fit(&mut shown, width);
    }
    let line = |row: &Vec<String>| {
        let mut line = String::new();
        for Shown { at, width, .. } in &shown {
            let cell = row.get(*at).map_or("", String::as_str);
            let cell = console::truncate_str(cell, *width, "…");
            line.push_str(&cell);
            line.push_str(&" ".repeat(width.saturating_sub(wide(&cell)) + GAP));
        }
        let line = line.trim_end();
        // What is left when even one column is too wide.
        width.map_or_else(
            || line.to_owned(),
            |width| console::truncate_str(line, width, "…").into_owned(),
        )
    };
    rows.iter().map(line).collect()
}

/// A column that is printed.
struct Shown {
    /// Its place in rows.
    at: usize,
    width: usize,
    least: usize,
}

/// Blanks between columns.
const GAP: usize = 2;

/// What cells hold that say nothing.
const SILENT: [&str; 3] = ["", "-", "0"];

/// Leaves columns out until the rest fits: first those that say nothing in any row, then by rank.
fn choose(shown: &mut Vec<Shown>, columns: &[Column], rows: &[Vec<String>], room: usize) {
    let says = |at: usize| {
        let mut cells = rows.iter().skip(1).filter_map(|row| row.get(at));
        rows.len() == 1 || cells.any(|cell| !SILENT.contains(&cell.as_str()))
    };
    while total(shown.iter().map(|column| column.least)) > room {
        let rank = |column: &Shown| (!says(column.at), columns[column.at].rank);
        let may_go = shown.iter().enumerate().filter(|(_, c)| columns[c.at].rank > 0);
        let Some((first, _)) = may_go.max_by_key(|(_, column)| rank(column)) else { return };
        shown.remove(first);
    }
}

fn total(widths: impl Iterator<Item = usize>) -> usize {
    widths.map(|width| width + GAP).sum::<usize>().saturating_sub(GAP)
}

/// Takes from the widest column that has something to give, again and again, until all fit.
fn fit(shown: &mut [Shown], room: usize) {
    let excess = total(shown.iter().map(|column| column.width)).saturating_sub(room);
    for _ in 0..excess {
        // The last of equals: errors and reasons stand there.
        let wide = shown.iter_mut().filter(|column| column.width > column.least);
        let Some(widest) = wide.max_by_key(|column| column.width) else { return };
        widest.width -= 1;
    }
}

fn wide(text: &str) -> usize {
    console::measure_text_width(text)
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

    const WHAT: [Column; 2] = [Column::whole("ID", 0), Column::text("WHAT", 1, 8)];

    #[test]
    fn columns_are_aligned_and_fit_the_terminal() {
        let table = || rows(&[&["1", "short"], &["22", "a much longer cell\nof two lines"]]);
        let lines = layout(&WHAT, table(), None);
        assert_eq!(lines, ["ID  WHAT", "1   short", "22  a much longer cell of two lines"]);
        let lines = layout(&WHAT, table(), Some(20));
        assert_eq!(lines[2], "22  a much longer c…");
        assert!(lines.iter().all(|line| wide(line) <= 20));
        // Where not even its beginning fits, a column goes.
        assert_eq!(layout(&WHAT, table(), Some(11)), ["ID", "1", "22"]);
        assert_eq!(layout(&WHAT, table(), Some(1)), ["…", "1", "…"]);
    }

    #[test]
    fn the_widest_columns_give_first() {
        let column = |(at, width, least)| Shown { at, width, least };
        let mut shown = [(0, 4, 4), (1, 30, 8), (2, 50, 8)].map(column);
        fit(&mut shown, 60 + 2 * GAP);
        assert_eq!(shown.each_ref().map(|column| column.width), [4, 28, 28]);
        let mut narrow = [(0, 8, 8), (1, 8, 8)].map(column);
        fit(&mut narrow, 3);
        assert_eq!(narrow.each_ref().map(|column| column.width), [8, 8]);
    }

    #[test]
    fn what_says_nothing_goes_before_what_is_worth_least() {
        let columns = [
            Column::whole("ID", 0),
            Column::whole("LOST", 1),
            Column::whole("GOOD", 2),
            Column::whole("AGE", 3),
        ];
        let table = || rows(&[&["1", "0", "7", "5min"], &["2", "-", "8", "6min"]]);
        assert_eq!(layout(&columns, table(), Some(80))[0], "ID  LOST  GOOD  AGE");
        assert_eq!(layout(&columns, table(), Some(15))[0], "ID  GOOD  AGE");
        assert_eq!(layout(&columns, table(), Some(12))[0], "ID  GOOD");
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
