//! The text of `--help`.

use std::fmt::Write as _;

use crate::cli::table::{COMMANDS, COMMON, Command, Flag, Kind};

/// Columns of a text: those of the narrowest terminal that people use.
const WIDTH: usize = 80;
/// Where the explanation of an option begins.
const COLUMN: usize = 30;

/// Help on a command, or on all.
pub(in crate::cli) fn text(command: Option<&Command>) -> String {
    let mut text = String::new();
    match command {
        Some(command) => one(command, &mut text),
        None => all(&mut text),
    }
    text
}

fn all(out: &mut String) {
    out.push_str("Usage: gorget COMMAND [OPTION]... [ARGUMENT]...\n\n");
    paragraphs("Continuous integration for functional package managers.", out);
    for (kind, title) in
        [(Kind::Server, "Services"), (Kind::Client, "Talking to the daemon"), (Kind::Tool, "Tools")]
    {
        line(out, format_args!("\n{title}:"));
        for command in COMMANDS.iter().filter(|command| command.kind == kind) {
            columns(&format!("  {}", command.name), command.summary, 18, out);
        }
    }
    out.push('\n');
    paragraphs(
        "`gorget COMMAND --help` explains a command. The man pages are gorget(1), \
         gorget-register(1), gorget-web(1), gorget-remote-server(1), gorget-specification(5) and gorget-bridge(7).",
        out,
    );
}

fn one(command: &Command, out: &mut String) {
    for (index, operands) in command.operands.iter().enumerate() {
        let lead = if index == 0 { "Usage:" } else { "      " };
        let usage = format!("{lead} gorget {} [OPTION]... {operands}", command.name);
        line(out, format_args!("{}", usage.trim_end()));
    }
    out.push('\n');
    paragraphs(command.summary, out);
    if !command.details.is_empty() {
        out.push('\n');
        paragraphs(command.details, out);
    }
    for group in command.groups.iter().chain([&COMMON]) {
        line(out, format_args!("\n{}:", group.title));
        for flag in group.flags {
            columns(&names(flag), &explained(flag), COLUMN, out);
        }
    }
}

fn names(flag: &Flag) -> String {
    let short = flag.short.map_or("    ".to_owned(), |letter| format!("-{letter}, "));
    let value = flag.value.map(|value| format!("={value}")).unwrap_or_default();
    format!("  {short}--{}{value}", flag.name)
}

/// What an option does, with its default.
pub(super) fn explained(flag: &Flag) -> String {
    let mut text = flag.help.to_owned();
    if flag.repeatable {
        text.push_str(" May be given several times.");
    }
    if let Some(default) = flag.default {
        // Writing to a string does not fail.
        let _ = write!(text, " Default: {default}.");
    }
    text
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "{text}");
}

/// `left`, and `right` wrapped beside it.
fn columns(left: &str, right: &str, column: usize, out: &mut String) {
    out.push_str(left);
    let mut at = left.chars().count();
    if at + 2 > column {
        out.push('\n');
        at = 0;
    }
    for (index, part) in wrapped(right, WIDTH - column).into_iter().enumerate() {
        let pad = if index == 0 { column - at } else { column };
        line(out, format_args!("{:pad$}{part}", ""));
    }
}

fn paragraphs(text: &str, out: &mut String) {
    for (index, paragraph) in text.split("\n\n").enumerate() {
        if index > 0 {
            out.push('\n');
        }
        for part in wrapped(paragraph, WIDTH) {
            line(out, format_args!("{part}"));
        }
    }
}

/// Lines of at most `width` columns, where words allow; without backticks.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.replace('`', "").split_whitespace() {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > width {
            lines.push(String::new());
            used = 0;
        }
        if let Some(last) = lines.last_mut() {
            if used > 0 {
                last.push(' ');
                used += 1;
            }
            last.push_str(word);
            used += length;
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_fits_a_terminal_and_names_everything() {
        let all = text(None);
        for command in COMMANDS {
            assert_eq!(
                all.contains(&format!("\n  {}", command.name)),
                command.kind != Kind::Hidden
            );
            let one = text(Some(command));
            assert!(one.starts_with(&format!("Usage: gorget {}", command.name)));
            for flag in command.flags() {
                assert!(
                    one.contains(&format!("--{}", flag.name)),
                    "{} --{}",
                    command.name,
                    flag.name
                );
            }
            for line in one.lines().chain(all.lines()) {
                assert!(line.chars().count() <= WIDTH && line.trim_end() == line, "{line:?}");
            }
        }
    }
}
