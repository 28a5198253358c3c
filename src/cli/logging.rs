//! The log: to standard error, filtered by `GORGET_LOG` or Cuirass's `CUIRASS_LOGGING_LEVEL`.
//!
//! Under systemd lines carry its `<N>` priorities and no time, which the journal adds. Control characters are
//! escaped: a message may repeat what a repository or a peer said, and must stay one line.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::linux::fs::MetadataExt as _;

use log::Level;

/// Starts logging; `default` is the filter when the environment has none.
pub(super) fn start(default: &str) {
    let variable = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
    let filter = variable("GORGET_LOG")
        .or_else(|| variable("CUIRASS_LOGGING_LEVEL").map(|level| cuirass(&level).to_owned()))
        .unwrap_or_else(|| default.to_owned());
    let journal = variable("JOURNAL_STREAM").is_some_and(|stream| is_stderr(&stream));
    let mut builder = env_logger::Builder::new();
    builder.parse_filters(&filter).format(move |out, record| {
        let message = plain(&record.args().to_string());
        let target = record.target();
        if journal {
            writeln!(out, "<{}>{target}: {message}", priority(record.level()))
        } else {
            let time = out.timestamp_millis();
            writeln!(out, "{time} {:<5} {target}: {message}", record.level())
        }
    });
    // It fails when there is a logger already, as in a test.
    let _ = builder.try_init();
}

/// Cuirass's levels are those of env_logger, but for `warning`; of any other it says the default.
fn cuirass(level: &str) -> &str {
    match level {
        "debug" | "info" | "error" => level,
        "warning" => "warn",
        _ => "info",
    }
}

/// Whether `JOURNAL_STREAM`, the journal's `DEVICE:INODE`, is our standard error: it is inherited by programs whose
/// standard error goes elsewhere.
fn is_stderr(stream: &str) -> bool {
    std::fs::metadata("/dev/stderr")
        .is_ok_and(|file| stream == format!("{}:{}", file.st_dev(), file.st_ino()))
}

/// syslog's priorities.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

fn plain(message: &str) -> String {
    let mut text = String::with_capacity(message.len());
    for c in message.chars() {
        if c.is_control() {
            // Writing to a string does not fail.
            let _ = write!(text, "{}", c.escape_default());
        } else {
            text.push(c);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_stay_one_line() {
        assert_eq!(plain("a\nb\u{1b}[31m\té"), "a\\nb\\u{1b}[31m\\té");
    }

    #[test]
    fn levels_of_cuirass_are_understood() {
        assert_eq!(cuirass("warning"), "warn");
        assert_eq!(cuirass("debug"), "debug");
        assert_eq!(cuirass("loud"), "info");
    }
}
