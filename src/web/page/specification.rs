//! The forms of specifications: each field of one, and what is wrong with it beside it.

use std::collections::BTreeSet;

use maud::{Markup, html};

use super::{Frame, jobset, part};
use crate::model::spec::{Evaluator, GuixSubset, NixSubset, Specification};
use crate::spec::host_system;
use crate::web::access::Access;
use crate::web::change::specification::{Problem, SEEN, json, values};
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::request::{Form, Request};
use crate::web::response::Response;
use crate::web::route::Captures;

/// Systems that are offered; those that a specification has besides are kept.
const SYSTEMS: [&str; 10] = [
    "x86_64-linux",
    "aarch64-linux",
    "powerpc64le-linux",
    "riscv64-linux",
    "i686-linux",
    "armhf-linux",
    "i586-gnu",
    "x86_64-gnu",
    "x86_64-darwin",
    "aarch64-darwin",
];

/// What Guix's evaluator can be told to build.
const BUILDS: [&str; 11] = [
    "all",
    "core",
    "guix",
    "hello",
    "images",
    "system-tests",
    "tarball",
    "custom",
    "channels",
    "packages",
    "manifests",
];

const NOTIFICATIONS: [&str; 3] = ["email", "mastodon", "webhook"];

/// Rows that are left empty for more, as there may be no script to add any.
const SPARE: usize = 2;

/// What is evaluated, in a few words.
pub(super) fn subject(specification: &Specification) -> String {
    match &specification.evaluator {
        Evaluator::Command(words) => shell_words::join(words),
        Evaluator::Nix(NixSubset::Flake(flake)) => flake.clone(),
        Evaluator::Nix(NixSubset::File { file, attribute: None }) => file.clone(),
        Evaluator::Nix(NixSubset::File { file, attribute: Some(attribute) }) => {
            format!("{file} {attribute}")
        }
        Evaluator::Guix(subset) => match subset {
            GuixSubset::All => "all".to_owned(),
            GuixSubset::Core => "core".to_owned(),
            GuixSubset::Guix => "guix".to_owned(),
            GuixSubset::Hello => "hello".to_owned(),
            GuixSubset::Images => "images".to_owned(),
            GuixSubset::SystemTests => "system-tests".to_owned(),
            GuixSubset::Tarball => "tarball".to_owned(),
            GuixSubset::Packages(list) => format!("packages {}", list.join(" ")),
            GuixSubset::Channels(list) => format!("channels {}", list.join(" ")),
            GuixSubset::Manifests(list) => format!("manifests {}", list.join(" ")),
            GuixSubset::Custom(list) => format!("custom {}", list.join(" ")),
        },
    }
}

/// GET `/specification/add`.
pub(super) fn add(context: &mut Context, _: &Request, _: &Captures) -> Result<Response, Failure> {
    context.must(Access::Edit, None)?;
    Ok(Response::html(200, form(context, &blank(), "", &[], true)))
}

/// What the form of a new jobset begins with.
pub(in crate::web) fn blank() -> Form {
    let pairs = [
        ("evaluator", "guix"),
        ("build", "all"),
        ("channel-name", "guix"),
        ("channel-url", "https://git.guix.gnu.org/guix.git"),
        ("channel-branch", "master"),
        (&host_system(), "on"),
        ("period", "0"),
        ("priority", "9"),
        ("active", "yes"),
    ];
    let pairs = pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned()));
    Form::new(pairs.collect())
}

/// GET `/specification/edit/NAME`.
pub(super) fn edit(
    context: &mut Context,
    _: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    let jobset = jobset::named(context, captures.get("name"))?;
    context.must(Access::Edit, Some(&jobset.name))?;
    let damaged =
        || Failure::Internal(format!("jobset {}: its specification cannot be read", jobset.name));
    let specification = jobset::specification(&jobset).ok_or_else(damaged)?;
    let (fields, text) =
        (values(&specification, jobset.active), json(&specification, jobset.active));
    Ok(Response::html(200, form(context, &fields, &text, &[], false)))
}

/// The whole page: for a new jobset, or one that there is; by fields and as JSON, with what is wrong with what was sent.
pub(in crate::web) fn form(
    context: &Context,
    form: &Form,
    text: &str,
    problems: &[Problem],
    new: bool,
) -> Markup {
    let name = form.get("name").unwrap_or_default();
    let title = if new { "Add a jobset".to_owned() } else { format!("Edit {name}") };
    let fields = Fields { form, problems };
    let action = if new { "/admin/specification/add" } else { "/admin/specification/edit" };
    let seen = html! {
        @if let Some(seen) = form.get(SEEN) { input type="hidden" name=(SEEN) value=(seen); }
    };
    let content = html! {
        h1 { (title) }
        @if !problems.is_empty() {
            div class="box bad" role="alert" {
                h2 { "This is not valid yet; nothing was changed." }
                @for problem in problems {
                    p { strong { (problem.field) } @if let Some(row) = problem.row { " in row " (row + 1) } ": " (problem.message) }
                }
            }
        }
        @if !new {
            p class="dim" {
                "Where a file given to the daemon describes this jobset, that may replace what is changed here. \
                 User names and passwords of URLs, and secrets, are not shown; what is left alone stays."
            }
        }
        form class="edit" method="post" action=(context.link(action)) {
            (part::csrf(context))
            (seen)
            fieldset {
                legend { "Jobset" }
                div class="fields" {
                    label {
                        "Name"
                        input type="text" name="name" value=(name) required readonly[!new] maxlength="64"
                            pattern="[A-Za-z0-9_+][A-Za-z0-9._+\\-]*";
                        (fields.wrong("name", None))
                    }
                    (fields.number("period", "Period in seconds (0: the daemon's)", "0", "315360000"))
                    (fields.number("priority", "Priority (0 first, 9 last)", "0", "9"))
                    (fields.number("evaluation-timeout", "Evaluation timeout in seconds", "1", "2592000"))
                    (fields.choice("active", "Watched", &["yes", "no"]))
                    (fields.choice("supersede", "Newer evaluations cancel older builds", &["no", "yes"]))
                }
            }
            fieldset {
                legend { "What is evaluated" }
                div class="fields" {
                    (fields.choice("evaluator", "Evaluator", &["guix", "nix", "command"]))
                    (fields.choice("build", "Guix: what", &BUILDS))
                    (fields.text("nix-file", "Nix: file"))
                    (fields.text("nix-attribute", "Nix: attribute of the file"))
                    (fields.text("nix-flake", "Nix: output of the flake"))
                    (fields.text("command", "Command and arguments, as for a shell"))
                }
                label {
                    "Guix: packages or manifests by comma, custom expressions by line"
                    textarea name="param-input" rows="3" { (form.get("param-input").unwrap_or_default()) }
                    (fields.wrong("param-input", None))
                }
                label {
                    "Guix: channels, by name"
                    @for value in form.all("param-select").chain(["", ""]) {
                        input type="text" name="param-select" value=(value);
                    }
                    (fields.wrong("param-select", None))
                }
            }
            (fields.systems())
            (fields.rows("Channels", &[
                ("channel-name", "Name"), ("channel-url", "URL"), ("channel-branch", "Branch"),
                ("channel-tag", "or tag"), ("channel-commit", "or commit"),
                ("channel-introduction-commit", "Introduction: commit"),
                ("channel-introduction-signer", "Introduction: fingerprint"),
            ]))
            (fields.rows("Build outputs", &[
                ("output-job", "Jobs (regular expression)"), ("output-type", "Type"),
                ("output-output", "Output"), ("output-path", "Path in it"),
            ]))
            (fields.rows("Notifications", &[
                ("notification-type", "Type"), ("notification-from", "E-mail: from"),
                ("notification-to", "E-mail: to"), ("notification-server", "E-mail: server"),
                ("notification-url", "Webhook: URL"), ("notification-secret", "Webhook: new secret"),
            ]))
            p class="actions" {
                button type="submit" class="main" { @if new { "Add" } @else { "Save" } }
                a href=(context.link("/")) { "Cancel" }
            }
        }
        h2 id="json" { "As JSON" }
        p class="dim" {
            "The whole specification, as files have it; a field that is left out has its default. This form does not send the one above."
        }
        form class="edit" method="post" action=(context.link(action)) {
            (part::csrf(context))
            (seen)
            @if !new { input type="hidden" name="name" value=(name); }
            label {
                "Specification"
                textarea name="json" rows="20" spellcheck="false" required { (text) }
                (fields.wrong("json", None))
            }
            p class="actions" { button type="submit" { @if new { "Add what the JSON says" } @else { "Save what the JSON says" } } }
        }
    };
    Frame::new(&title).show(context, &content)
}

/// A choice that may be left open, and keeps what it does not know.
fn one_of(name: &str, value: &str, choices: &[&str]) -> Markup {
    html! {
        select name=(name) {
            option value="" selected[value.is_empty()] { "none" }
            @for choice in choices { option value=(choice) selected[*choice == value] { (choice) } }
            @if !value.is_empty() && !choices.contains(&value) { option value=(value) selected { (value) } }
        }
    }
}

struct Fields<'a> {
    form: &'a Form,
    problems: &'a [Problem],
}

impl<'a> Fields<'a> {
    fn wrong(&self, field: &str, row: Option<usize>) -> Markup {
        html! {
            @for problem in self.problems.iter().filter(|p| p.field == field && p.row == row) {
                span class="wrong" { (problem.message) }
            }
        }
    }

    fn text(&self, name: &str, label: &str) -> Markup {
        html! {
            label {
                (label) input type="text" name=(name) value=(self.form.get(name).unwrap_or_default());
                (self.wrong(name, None))
            }
        }
    }

    fn number(&self, name: &str, label: &str, least: &str, most: &str) -> Markup {
        html! {
            label {
                (label)
                input type="number" name=(name) min=(least) max=(most) value=(self.form.get(name).unwrap_or_default());
                (self.wrong(name, None))
            }
        }
    }

    fn choice(&self, name: &str, label: &str, choices: &[&str]) -> Markup {
        let chosen = self.form.get(name).unwrap_or_default();
        html! {
            label {
                (label)
                select name=(name) {
                    @for choice in choices { option value=(choice) selected[*choice == chosen] { (choice) } }
                }
                (self.wrong(name, None))
            }
        }
    }

    /// A box for each system that is known here, and for those that the form has besides.
    fn systems(&self) -> Markup {
        let mut all: BTreeSet<&str> = SYSTEMS.into_iter().collect();
        let on = |name: &&str| self.form.get(name) == Some("on");
        let named = self.form.iter().filter(|(_, value)| *value == "on").map(|(name, _)| name);
        all.extend(named.filter(|name| name.contains('-')));
        html! {
            fieldset {
                legend { "Systems" }
                div class="fields" {
                    @for name in all {
                        label class="tick" { input type="checkbox" name=(name) value="on" checked[on(&name)]; (name) }
                    }
                }
                (self.wrong("systems", None))
            }
        }
    }

    /// Rows of columns that belong together, and empty ones for more.
    fn rows(&self, legend: &str, columns: &[(&'a str, &str)]) -> Markup {
        let filled = |row: usize| {
            columns
                .iter()
                .any(|(name, _)| self.value(name, row).is_some_and(|value| !value.is_empty()))
        };
        let list = columns[0].0.split('-').next().unwrap_or_default();
        let count = columns.iter().map(|(name, _)| self.form.all(name).count()).max().unwrap_or(0);
        let count = (0..count).rev().find(|&row| filled(row)).map_or(0, |last| last + 1);
        html! {
            fieldset {
                legend { (legend) }
                @for row in 0..count + SPARE {
                    div class="row fields" {
                        @for (name, label) in columns {
                            label class=[name.ends_with("-url").then_some("long")] {
                                (label)
                                @let value = self.value(name, row).unwrap_or_default();
                                @if *name == "notification-type" { (one_of(name, value, &NOTIFICATIONS)) }
                                @else { input type="text" name=(name) value=(value); }
                                (self.wrong(name, Some(row)))
                            }
                        }
                        @if filled(row) {
                            (self.tick(&format!("{list}-remove"), row, "Remove"))
                            @if self.value("notification-type", row) == Some("webhook") && list == "notification" {
                                (self.tick("notification-forget", row, "Forget its secret"))
                            }
                        }
                    }
                }
            }
        }
    }

    /// A box that stands for a row, by its number.
    fn tick(&self, name: &str, row: usize, label: &str) -> Markup {
        let on = self.form.all(name).any(|value| value.parse() == Ok(row));
        html! {
            label class="tick" { input type="checkbox" name=(name) value=(row) checked[on]; (label) }
        }
    }

    fn value(&self, name: &'a str, row: usize) -> Option<&'a str> {
        self.form.all(name).nth(row)
    }
}
