//! The phases that a log tells of, as links into it: those of Guix's build systems, and of Nixpkgs'.

use maud::{Markup, html};

use super::part;
use crate::model::status::BuildStatus;

/// Phases of one log: a build that has more of them is none of those.
const MOST: usize = 100;

#[derive(Debug, PartialEq, Eq)]
struct Phase<'a> {
    name: &'a str,
    /// The number of the line with which it begins.
    line: usize,
    end: Option<End<'a>>,
}

#[derive(Debug, PartialEq, Eq)]
struct End<'a> {
    succeeded: bool,
    /// As the log says it.
    took: &'a str,
}

/// Those that begin in a piece of a log whose first line has the number `first`.
fn find(text: &str, first: usize) -> Vec<Phase<'_>> {
    let mut found: Vec<Phase<'_>> = Vec::new();
    for (line, number) in text.lines().zip(first..) {
        let begun = line
            .strip_prefix("starting phase `")
            .and_then(|rest| rest.strip_suffix('\''))
            .or_else(|| line.strip_prefix("Running phase: "));
        if let Some(name) = begun {
            if found.len() == MOST {
                break;
            }
            found.push(Phase { name, line: number, end: None });
        } else if let Some((name, rest)) =
            line.strip_prefix("phase `").and_then(|rest| rest.split_once("' "))
            && let Some(last) = found.last_mut().filter(|last| last.name == name)
        {
            let end = |succeeded, took| End { succeeded, took };
            last.end = rest
                .strip_prefix("succeeded after ")
                .map(|took| end(true, took))
                .or_else(|| rest.strip_prefix("failed after ").map(|took| end(false, took)));
        }
    }
    found
}

/// Nothing for a log without phases.
pub(super) fn show(text: &str, first: usize) -> Markup {
    let found = find(text, first);
    let look = |succeeded| {
        part::build_look(if succeeded { BuildStatus::Succeeded } else { BuildStatus::Failed })
    };
    html! {
        @if !found.is_empty() {
            nav class="phases small" aria-label="Phases" {
                @for phase in &found {
                    a href={ "#L" (phase.line) } {
                        @if let Some(end) = &phase.end {
                            @let look = look(end.succeeded);
                            span class={ "s " (look.class) } {
                                (part::icon(look.icon)) span class="hidden" { (look.word) ": " }
                            }
                        }
                        (phase.name)
                        @if let Some(end) = &phase.end { " " span class="dim" { (end.took) } }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_are_found_with_their_ends() {
        let text = "x\nstarting phase `unpack'\nphase `unpack' succeeded after 0.1 seconds\n\
                    starting phase `build'\nphase `other' failed after 1 seconds\n\
                    phase `build' failed after 3.2 seconds\nRunning phase: fixupPhase\n";
        let end = |succeeded, took| Some(End { succeeded, took });
        assert_eq!(
            find(text, 10),
            [
                Phase { name: "unpack", line: 11, end: end(true, "0.1 seconds") },
                Phase { name: "build", line: 13, end: end(false, "3.2 seconds") },
                Phase { name: "fixupPhase", line: 16, end: None },
            ]
        );
        let html = show(text, 10).into_string();
        assert!(html.contains("href=\"#L13\"") && html.contains("Failed: "), "{html}");
        assert_eq!(show("nothing\n", 1).into_string(), "");
    }
}
