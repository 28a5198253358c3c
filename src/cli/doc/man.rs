//! The man pages: roff from the table, around bodies written by hand.

use std::fmt::Write as _;

use super::help::explained;
use crate::cli::table::{self, COMMANDS, COMMON, Command, Flag, Kind};

/// The date on the pages: of their last change in content, so that they come out the same every day.
const DATE: &str = "2026-11-24";

/// gorget(1).
pub(super) fn gorget() -> String {
    let mut page = header("gorget", '1', "continuous integration for functional package managers");
    page.push_str(
        ".SH SYNOPSIS\n.B gorget\n.I COMMAND\n[\\fIOPTION\\fR]... [\\fIARGUMENT\\fR]...\n",
    );
    page.push_str(include_str!("gorget-head.roff"));
    for (kind, title, intro) in [
        (Kind::Server, "THE DAEMON", ""),
        (
            Kind::Client,
            "TALKING TO THE DAEMON",
            "These commands ask the running daemon over its bridge, see gorget-bridge(7). All of them take the \
             options below, before or after their arguments.",
        ),
        (Kind::Tool, "TOOLS", ""),
    ] {
        line(&mut page, format_args!(".SH {}", escape(title)));
        if !intro.is_empty() {
            paragraphs(&mut page, intro);
        }
        for command in COMMANDS.iter().filter(|command| command.kind == kind) {
            section(&mut page, command);
        }
    }
    page.push_str(".SH OPTIONS OF EVERY COMMAND\n");
    COMMON.flags.iter().for_each(|flag| option(&mut page, flag));
    page.push_str(".SH OPTIONS OF COMMANDS THAT TALK TO THE DAEMON\n");
    let ways = "Without --socket and --state-directory the user's own daemon is looked for, then the system's. Tables are \
        for people, `--json` is for programs.";
    paragraphs(&mut page, ways);
    let shared = [&table::CONNECTION, &table::OUTPUT].into_iter().flat_map(|group| group.flags);
    shared.for_each(|flag| option(&mut page, flag));
    page.push_str(include_str!("gorget-tail.roff"));
    page
}

/// gorget-register(1).
pub(super) fn register() -> String {
    let mut page = header("gorget-register", '1', "watch, evaluate and build: the daemon");
    page.push_str(".SH SYNOPSIS\n.B gorget register\n[\\fIOPTION\\fR]...\n.SH DESCRIPTION\n");
    if let Some(command) = table::command("register") {
        paragraphs(&mut page, command.details);
        page.push_str(".SH OPTIONS\n");
        for group in command.groups.iter().chain([&COMMON]) {
            line(&mut page, format_args!(".SS {}", escape(group.title)));
            group.flags.iter().for_each(|flag| option(&mut page, flag));
        }
    }
    page.push_str(include_str!("register-tail.roff"));
    page
}

/// gorget-web(1).
pub(super) fn web() -> String {
    let mut page = header("gorget-web", '1', "show and control over HTTP");
    page.push_str(".SH SYNOPSIS\n.B gorget web\n[\\fIOPTION\\fR]...\n.SH DESCRIPTION\n");
    if let Some(command) = table::command("web") {
        paragraphs(&mut page, command.details);
        page.push_str(".SH OPTIONS\n");
        let flags = command.groups.iter().chain([&COMMON]).flat_map(|group| group.flags);
        flags.for_each(|flag| option(&mut page, flag));
    }
    page.push_str(include_str!("web-tail.roff"));
    page
}

/// gorget-remote-server(1).
pub(super) fn remote_server() -> String {
    let mut page = header("gorget-remote-server", '1', "serve remote workers");
    page.push_str(
        ".SH SYNOPSIS\n.B gorget remote\\-server\n[\\fIOPTION\\fR]...\n.SH DESCRIPTION\n",
    );
    if let Some(command) = table::command("remote-server") {
        paragraphs(&mut page, command.details);
        page.push_str(".SH OPTIONS\n");
        for group in command.groups.iter().chain([&COMMON]) {
            line(&mut page, format_args!(".SS {}", escape(group.title)));
            group.flags.iter().for_each(|flag| option(&mut page, flag));
        }
    }
    page.push_str(include_str!("remote-server-tail.roff"));
    page
}

/// gorget-remote-worker(1).
pub(super) fn remote_worker() -> String {
    let mut page = header("gorget-remote-worker", '1', "build for a remote server");
    page.push_str(
        ".SH SYNOPSIS\n.B gorget remote\\-worker\n[\\fIOPTION\\fR]...\n.SH DESCRIPTION\n",
    );
    if let Some(command) = table::command("remote-worker") {
        paragraphs(&mut page, command.details);
        page.push_str(".SH OPTIONS\n");
        for group in command.groups.iter().chain([&COMMON]) {
            line(&mut page, format_args!(".SS {}", escape(group.title)));
            group.flags.iter().for_each(|flag| option(&mut page, flag));
        }
    }
    page.push_str(include_str!("remote-worker-tail.roff"));
    page
}

/// gorget-specification(5).
pub(super) fn specification() -> String {
    let mut page =
        header("gorget-specification", '5', "what a jobset watches, evaluates and builds");
    page.push_str(include_str!("specification.roff"));
    page
}

/// gorget-bridge(7).
pub(super) fn bridge() -> String {
    let mut page = header("gorget-bridge", '7', "asking the daemon over its socket");
    page.push_str(include_str!("bridge.roff"));
    page
}

fn header(name: &str, section: char, what: &str) -> String {
    let mut page =
        String::from(".\\\" Rendered from the option table: change that, and run `make man`.\n");
    let title = name.to_uppercase();
    let version = env!("CARGO_PKG_VERSION");
    line(&mut page, format_args!(".TH {title} {section} {DATE} \"Gorget {version}\" \"Gorget\""));
    line(&mut page, format_args!(".SH NAME\n{} \\- {}", escape(name), escape(what)));
    page
}

/// One command of gorget(1).
fn section(page: &mut String, command: &Command) {
    line(page, format_args!(".SS {}", command.name));
    for (index, operands) in command.operands.iter().enumerate() {
        if index > 0 {
            page.push_str(".br\n");
        }
        let operands = escape(&format!("[OPTION]... {operands}"));
        line(page, format_args!("\\fBgorget {}\\fR {}", escape(command.name), operands.trim_end()));
    }
    page.push_str(".PP\n");
    paragraphs(page, command.summary);
    if let Some(other) = own_page(command) {
        line(page, format_args!("See {}(1).", escape(other)));
        return;
    }
    if !command.details.is_empty() {
        page.push_str(".PP\n");
        paragraphs(page, command.details);
    }
    let shared = |title| title == table::CONNECTION.title || title == table::OUTPUT.title;
    for group in command.groups.iter().filter(|group| !shared(group.title)) {
        group.flags.iter().for_each(|flag| option(page, flag));
    }
}

/// The page that has the command's options, if that is not gorget(1).
fn own_page(command: &Command) -> Option<&'static str> {
    match command.name {
        "register" => Some("gorget-register"),
        "web" => Some("gorget-web"),
        "remote-server" => Some("gorget-remote-server"),
        "remote-worker" => Some("gorget-remote-worker"),
        _ => None,
    }
}

fn option(page: &mut String, flag: &Flag) {
    page.push_str(".TP\n");
    let short = flag.short.map(|letter| format!("\\fB\\-{letter}\\fR, ")).unwrap_or_default();
    let value = flag.value.map(|value| format!("=\\fI{}\\fR", escape(value))).unwrap_or_default();
    line(page, format_args!("{short}\\fB\\-\\-{}\\fR{value}", escape(flag.name)));
    paragraphs(page, &explained(flag));
}

fn line(page: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = writeln!(page, "{text}");
}

/// Text with `code` in backticks, and blank lines between paragraphs.
fn paragraphs(page: &mut String, text: &str) {
    for (index, paragraph) in text.split("\n\n").enumerate() {
        if index > 0 {
            page.push_str(".PP\n");
        }
        let parts = paragraph.split('`').enumerate();
        for (index, part) in parts {
            let part = escape(part);
            if index % 2 == 1 {
                page.push_str(&format!("\\fB{part}\\fR"));
            } else {
                page.push_str(&part);
            }
        }
        page.push('\n');
    }
}

/// Text as roff shows it: no escapes, no hyphens turned into dashes, no requests.
fn escape(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq");
    if text.starts_with('.') { format!("\\&{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::event::What;
    use crate::model::status::{BuildStatus, EvaluationStatus, JobsetStatus, Weather};
    use crate::proto::control;
    use crate::proto::remote::link::HELP;

    /// The text of a page as people read it, about.
    fn read(page: &str) -> String {
        page.replace("\\-", "-").replace("\\fB", "").replace("\\fI", "").replace("\\fR", "")
    }

    #[test]
    fn the_bridge_page_tells_every_command_word_and_field() {
        let page = read(&bridge());
        for (command, _) in control::HELP {
            // As a headword, with its arguments.
            assert!(
                page.contains(&format!("\n{}", command.replace("...", "…")))
                    || page.contains(&format!("\n{command}")),
                "{command}"
            );
        }
        for kind in control::FailureKind::ALL {
            assert!(page.contains(&format!("\n{}\n", kind.word())), "{}", kind.word());
        }
        let words = What::ALL.iter().map(|what| what.word());
        let words = words
            .chain(BuildStatus::ALL.iter().map(|status| status.word()))
            .chain(EvaluationStatus::ALL.iter().map(|status| status.word()))
            .chain(JobsetStatus::ALL.iter().map(|status| status.word()))
            .chain(Weather::ALL.iter().map(|weather| weather.word()))
            .chain(control::ROLES.iter().copied());
        for word in words {
            assert!(page.contains(word), "{word}");
        }
    }

    #[test]
    fn the_server_s_page_tells_its_requests() {
        let page = read(&remote_server());
        for (request, _) in HELP {
            let name = request.split(' ').next().unwrap();
            let alone = page.contains(&format!("\n.B {name}\n"));
            assert!(alone || page.contains(&format!("\n.BI {name} \"")), "{name}");
        }
    }

    #[test]
    fn the_web_page_tells_roles_and_parameters() {
        let page = read(&web());
        for role in control::ROLES {
            assert!(page.contains(&format!("\n.B {role}\n")), "{role}");
        }
        for key in ["url", "private", "trusted-proxies", "loopback-role", "hook-secrets"] {
            assert!(page.contains(&format!(".TP\n.B {key}\n")), "{key}");
        }
    }

    #[test]
    fn every_command_and_option_is_in_a_page() {
        let (all, daemon, web) = (read(&gorget()), read(&register()), read(&web()));
        let server = read(&remote_server());
        let worker = read(&remote_worker());
        for command in COMMANDS.iter().filter(|command| command.kind != Kind::Hidden) {
            assert!(all.contains(&format!("\n.SS {}\n", command.name)), "{}", command.name);
            let page = match own_page(command) {
                None => &all,
                Some("gorget-web") => &web,
                Some("gorget-remote-server") => &server,
                Some("gorget-remote-worker") => &worker,
                Some(_) => &daemon,
            };
            for flag in command.flags() {
                assert!(
                    page.contains(&format!("--{}", flag.name)),
                    "{} --{}",
                    command.name,
                    flag.name
                );
            }
        }
    }
}
