//! The fields of a specification's form, in both directions.
//!
//! | fields | hold |
//! | --- | --- |
//! | `name` `period` `priority` `evaluation-timeout` | the same of the specification |
//! | `supersede` `active` | `yes` or `no` |
//! | `evaluator` | `guix`, `nix` or `command` |
//! | `build` `param-select` `param-input` | for Guix: what, channels, or the other lists separated by commas or lines |
//! | `nix-file` `nix-attribute` `nix-flake` | for Nix: a file, or a flake's output |
//! | `command` | words, quoted as for a shell |
//! | `SYSTEM=on` | one for each system |
//! | `channel-*`: `name url branch tag commit introduction-commit introduction-signer` | a row for each channel |
//! | `output-*`: `job type output path` | a row for each build output |
//! | `notification-*`: `type from to server url secret` | a row for each notification |
//! | `notification-forget` | the number of a row whose secret is to be forgotten, from 0 |
//! | `channel-remove` `output-remove` `notification-remove` | the numbers of rows that are to go, from 0 |
//!
//! A row in which nothing is filled in does not count; of columns that a form does not have, the old values stay.

use serde_json::{Value, json};

use super::{Problem, keep, one};
use crate::model::spec::{
    Channel, Evaluator, GuixSubset, NixSubset, Notification, Reference, Specification,
    printable_url,
};
use crate::web::request::Form;

/// Fields that no system is named like.
const CHANNEL: &[&str] = &[
    "channel-name",
    "channel-url",
    "channel-branch",
    "channel-tag",
    "channel-commit",
    "channel-introduction-commit",
    "channel-introduction-signer",
];
const OUTPUT: &[&str] = &["output-job", "output-type", "output-output", "output-path"];
const NOTIFICATION: &[&str] = &[
    "notification-type",
    "notification-from",
    "notification-to",
    "notification-server",
    "notification-url",
    "notification-secret",
];

/// Whether a field's value is not to be shown again.
pub(super) fn is_secret(field: &str) -> bool {
    matches!(field, "csrf" | "notification-secret" | "notification-url" | "notification-server")
        || field == "channel-url"
}

/// The specification that a form describes, in place of `old`.
pub(super) fn read(
    form: &Form,
    old: Option<&Specification>,
) -> Result<Specification, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut object = json!({ "name": form.get("name").unwrap_or_default() });
    let mut rows = Rows::default();
    object["channels"] = channels(form, old, &mut rows.channels);
    object["systems"] = systems(form);
    outputs(form, old, &mut object, &mut rows.outputs);
    notifications(form, old, &mut object, &mut rows.notifications);
    evaluator(form, old, &mut object, &mut problems);
    for (field, kept) in [
        ("period", old.map(|old| old.period.as_secs())),
        ("priority", old.map(|old| u64::from(old.priority))),
        ("evaluation-timeout", old.map(|old| old.evaluation_timeout.as_secs())),
    ] {
        match form.get(field).map(str::trim) {
            None | Some("") => object[field] = json!(kept),
            Some(text) => match text.parse::<u64>() {
                Ok(number) => object[field] = json!(number),
                Err(_) => problems.push(Problem::new(field, "expected a whole number")),
            },
        }
    }
    for (field, kept) in
        [("supersede", old.map(|old| old.supersede)), ("active", old.map(|old| old.active))]
    {
        // A box that is not ticked is not sent: one that is follows the field that says no.
        object[field] = match form.all(field).last() {
            None => json!(kept),
            Some("yes" | "on" | "true" | "1") => json!(true),
            Some(_) => json!(false),
        };
    }
    keep::secrets(&mut object, old);
    match one(&object) {
        Ok(specification) if problems.is_empty() => Ok(specification),
        Ok(_) => Err(problems),
        Err(error) => {
            problems.push(rows.problem(error.field.as_deref().unwrap_or("name"), error.message));
            Err(problems)
        }
    }
}

/// Which row of the form each element of a list stands in.
#[derive(Default)]
struct Rows {
    channels: Vec<usize>,
    outputs: Vec<usize>,
    notifications: Vec<usize>,
}

impl Rows {
    /// What is wrong with a field of the JSON, such as `channels[0].url`, as one of the form's.
    fn problem(&self, path: &str, message: String) -> Problem {
        let (list, rest) = path.split_once('[').unwrap_or((path, ""));
        let (index, rest) = rest.split_once(']').unwrap_or((rest, ""));
        let inner = rest.trim_start_matches('.').replace('.', "-");
        let (prefix, rows, all, first) = match list {
            "channels" => ("channel", &self.channels, CHANNEL, "channel-name"),
            "build-outputs" => ("output", &self.outputs, OUTPUT, "output-job"),
            "notifications" => {
                ("notification", &self.notifications, NOTIFICATION, "notification-type")
            }
            other => {
                let field = other.split(['.', '[']).next().unwrap_or(other);
                return Problem::new(field, message);
            }
        };
        let field = format!("{prefix}-{inner}");
        let field = if all.contains(&field.as_str()) { field } else { first.to_owned() };
        let row = index.parse().ok().and_then(|index: usize| rows.get(index).copied());
        Problem { field, row, message }
    }
}

/// The rows of columns that belong together: those in which something is filled in, with their numbers.
fn rows<'a>(
    form: &'a Form,
    columns: &'static [&'static str],
) -> Vec<(usize, Vec<Option<&'a str>>)> {
    let all: Vec<Vec<&str>> =
        columns.iter().map(|column| form.all(column).map(str::trim).collect()).collect();
    let count = all.iter().map(Vec::len).max().unwrap_or_default();
    let list = columns[0].split('-').next().unwrap_or_default();
    let removed = |row: &usize| form.all(&format!("{list}-remove")).any(|n| n.parse() == Ok(*row));
    (0..count)
        .filter(|row| !removed(row))
        .map(|row| (row, all.iter().map(|column| column.get(row).copied()).collect::<Vec<_>>()))
        .filter(|(_, row)| row.iter().flatten().any(|value| !value.is_empty()))
        .collect()
}

fn has(form: &Form, column: &str) -> bool {
    form.get(column).is_some()
}

fn filled(value: Option<&str>) -> Option<&str> {
    value.filter(|value| !value.is_empty())
}

fn channels(form: &Form, old: Option<&Specification>, numbers: &mut Vec<usize>) -> Value {
    let pins = has(form, "channel-commit") || has(form, "channel-tag");
    let introductions = has(form, "channel-introduction-commit");
    let mut channels = Vec::new();
    for (number, row) in rows(form, CHANNEL) {
        let [name, url, branch, tag, commit, introduced, signer] = row.as_slice() else { continue };
        numbers.push(number);
        let known = old.into_iter().flat_map(|old| &old.channels);
        let known = known.into_iter().find(|old| Some(old.name.as_str()) == *name);
        let mut channel = json!({ "name": name, "url": url });
        match known.map(|old| &old.reference) {
            Some(Reference::Commit(id)) if !pins => channel["commit"] = json!(id),
            Some(Reference::Tag(id)) if !pins && filled(*branch).is_none() => {
                channel["tag"] = json!(id);
            }
            Some(_) | None => {
                channel["branch"] = json!(filled(*branch));
                channel["tag"] = json!(filled(*tag));
                channel["commit"] = json!(filled(*commit));
            }
        }
        channel["introduction"] = match known.and_then(|old| old.introduction.as_ref()) {
            Some(old) if !introductions => json!({ "commit": old.commit, "signer": old.signer }),
            Some(_) | None if filled(*introduced).or(filled(*signer)).is_some() => {
                json!({ "commit": filled(*introduced), "signer": filled(*signer) })
            }
            Some(_) | None => Value::Null,
        };
        channels.push(channel);
    }
    Value::from(channels)
}

/// Boxes that are ticked and are not one of the form's own fields.
fn systems(form: &Form) -> Value {
    let own = |name: &str| matches!(name, "active" | "supersede");
    let ticked = form.iter().filter(|(name, value)| *value == "on" && !own(name));
    let mut systems: Vec<&str> = ticked.map(|(name, _)| name).collect();
    systems.dedup();
    Value::from(systems)
}

fn outputs(form: &Form, old: Option<&Specification>, object: &mut Value, numbers: &mut Vec<usize>) {
    if !has(form, "output-job") {
        let kept = old.into_iter().flat_map(|old| &old.build_outputs);
        object["build-outputs"] = kept
            .map(|old| json!({ "job": old.job, "type": old.kind, "output": old.output, "path": old.path }))
            .collect();
        return;
    }
    let mut outputs = Vec::new();
    for (number, row) in rows(form, OUTPUT) {
        let [job, kind, output, path] = row.as_slice() else { continue };
        numbers.push(number);
        outputs.push(json!({
            "job": filled(*job), "type": filled(*kind), "output": filled(*output), "path": filled(*path),
        }));
    }
    object["build-outputs"] = Value::from(outputs);
}

fn notifications(
    form: &Form,
    old: Option<&Specification>,
    object: &mut Value,
    numbers: &mut Vec<usize>,
) {
    if !has(form, "notification-type") {
        let kept = old.into_iter().flat_map(|old| &old.notifications);
        object["notifications"] = kept.map(whole).collect();
        return;
    }
    let mut notifications = Vec::new();
    for (number, row) in rows(form, NOTIFICATION) {
        let [kind, from, to, server, url, secret] = row.as_slice() else { continue };
        numbers.push(number);
        let forget = form.all("notification-forget").any(|row| row.parse() == Ok(number));
        let secret = if forget { Some("") } else { filled(*secret) };
        notifications.push(json!({
            "type": kind, "from": filled(*from), "to": filled(*to), "server": filled(*server),
            "url": filled(*url), "secret": secret,
        }));
    }
    object["notifications"] = Value::from(notifications);
}

fn whole(notification: &Notification) -> Value {
    match notification {
        Notification::Email { from, to, server } => {
            json!({ "type": "email", "from": from, "to": to, "server": server })
        }
        Notification::Mastodon => json!({ "type": "mastodon" }),
        Notification::Webhook { url, secret } => {
            json!({ "type": "webhook", "url": url, "secret": secret })
        }
    }
}

fn evaluator(
    form: &Form,
    old: Option<&Specification>,
    object: &mut Value,
    problems: &mut Vec<Problem>,
) {
    let old = old.map(|old| &old.evaluator);
    let kept = old.map_or("guix", Evaluator::word);
    let word = form.get("evaluator").map(str::trim).filter(|word| !word.is_empty()).unwrap_or(kept);
    object["evaluator"] = json!(word);
    match (word, old) {
        ("command", _) if has(form, "command") => {
            match shell_words::split(form.get("command").unwrap_or_default()) {
                Ok(words) => object["command"] = json!(words),
                Err(_) => problems.push(Problem::new("command", "a quotation mark is not closed")),
            }
        }
        ("command", Some(Evaluator::Command(words))) => object["command"] = json!(words),
        ("nix", Some(Evaluator::Nix(subset)))
            if !has(form, "nix-file") && !has(form, "nix-flake") =>
        {
            object["build"] = nix(subset);
        }
        ("nix", _) => {
            let field = |name| filled(form.get(name).map(str::trim));
            object["build"] = json!({
                "file": field("nix-file"), "attribute": field("nix-attribute"), "flake": field("nix-flake"),
            });
        }
        ("guix", Some(Evaluator::Guix(subset))) if !has(form, "build") => {
            let (build, list) = guix(subset);
            object["build"] = list.map_or(json!(build), |list| json!({ build: list }));
        }
        ("guix", _) => match form.get("build").unwrap_or_default() {
            "" => problems.push(Problem::new("build", "expected what to build")),
            "channels" => {
                let names: Vec<&str> = form.all("param-select").collect();
                object["build"] = json!({ "channels": names });
            }
            build @ ("packages" | "manifests" | "custom") => {
                let list = items(form.get("param-input").unwrap_or_default());
                object["build"] = json!({ build: list });
            }
            build => object["build"] = json!(build),
        },
        _ => {}
    }
}

/// What commas and lines separate outside of parentheses and strings, so that a Scheme expression stays whole.
fn items(text: &str) -> Vec<String> {
    let (mut items, mut item) = (Vec::new(), String::new());
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    for c in text.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            _ if quoted => {}
            '(' | '[' => depth += 1,
            ')' | ']' => depth = depth.saturating_sub(1),
            ',' | '\n' if depth == 0 => {
                items.push(std::mem::take(&mut item));
                continue;
            }
            _ => {}
        }
        item.push(c);
    }
    items.push(item);
    let items = items.iter().map(|item| item.trim().to_owned());
    items.filter(|item| !item.is_empty()).collect()
}

fn nix(subset: &NixSubset) -> Value {
    match subset {
        NixSubset::File { file, attribute } => json!({ "file": file, "attribute": attribute }),
        NixSubset::Flake(flake) => json!({ "flake": flake }),
    }
}

/// The word of `build`, and the list that belongs to it.
fn guix(subset: &GuixSubset) -> (&'static str, Option<&[String]>) {
    match subset {
        GuixSubset::All => ("all", None),
        GuixSubset::Core => ("core", None),
        GuixSubset::Guix => ("guix", None),
        GuixSubset::Hello => ("hello", None),
        GuixSubset::Images => ("images", None),
        GuixSubset::SystemTests => ("system-tests", None),
        GuixSubset::Tarball => ("tarball", None),
        GuixSubset::Packages(list) => ("packages", Some(list)),
        GuixSubset::Channels(list) => ("channels", Some(list)),
        GuixSubset::Manifests(list) => ("manifests", Some(list)),
        GuixSubset::Custom(list) => ("custom", Some(list)),
    }
}

/// What `read` makes the specification of again, given that.
pub(super) fn write(specification: &Specification, active: bool) -> Form {
    let mut fields = Vec::new();
    let mut put = |name: &str, value: &str| fields.push((name.to_owned(), value.to_owned()));
    let yes = |flag| if flag { "yes" } else { "no" };
    put("name", specification.name.as_str());
    put("evaluator", specification.evaluator.word());
    match &specification.evaluator {
        Evaluator::Command(words) => put("command", &shell_words::join(words)),
        Evaluator::Guix(subset) => {
            let (build, list) = guix(subset);
            put("build", build);
            match subset {
                GuixSubset::Channels(names) => names.iter().for_each(|n| put("param-select", n)),
                GuixSubset::Custom(list) => put("param-input", &list.join("\n")),
                _ => put("param-input", &list.unwrap_or_default().join(", ")),
            }
        }
        Evaluator::Nix(NixSubset::File { file, attribute }) => {
            put("nix-file", file);
            put("nix-attribute", attribute.as_deref().unwrap_or_default());
        }
        Evaluator::Nix(NixSubset::Flake(flake)) => put("nix-flake", flake),
    }
    for system in &specification.systems {
        put(system, "on");
    }
    put("period", &specification.period.as_secs().to_string());
    put("priority", &specification.priority.to_string());
    put("evaluation-timeout", &specification.evaluation_timeout.as_secs().to_string());
    put("supersede", yes(specification.supersede));
    put("active", yes(active));
    for Channel { name, url, reference, introduction } in &specification.channels {
        let (branch, tag, commit) = match reference {
            Reference::Head => ("", "", ""),
            Reference::Branch(branch) => (branch.as_str(), "", ""),
            Reference::Tag(tag) => ("", tag.as_str(), ""),
            Reference::Commit(commit) => ("", "", commit.as_str()),
        };
        let introduction = introduction.as_ref().map(|i| (i.commit.as_str(), i.signer.as_str()));
        let (introduced, signer) = introduction.unwrap_or_default();
        let url = printable_url(url);
        let row = [name.as_str(), &url, branch, tag, commit, introduced, signer];
        CHANNEL.iter().zip(row).for_each(|(field, value)| put(field, value));
    }
    for output in &specification.build_outputs {
        let row = [&output.job, &output.kind, &output.output, &output.path];
        OUTPUT.iter().zip(row).for_each(|(field, value)| put(field, value));
    }
    for notification in &specification.notifications {
        let row = match notification {
            Notification::Email { from, to, server } => {
                let from = from.clone().unwrap_or_default();
                ["email".to_owned(), from, to.clone(), printable_url(server), String::new()]
            }
            Notification::Mastodon => ["mastodon", "", "", "", ""].map(str::to_owned),
            Notification::Webhook { url, secret: _ } => {
                let none = String::new;
                ["webhook".to_owned(), none(), none(), none(), printable_url(url)]
            }
        };
        NOTIFICATION.iter().zip(row).for_each(|(field, value)| put(field, &value));
        put("notification-secret", "");
    }
    // So that the rows are known to be there when all of them are gone.
    put("output-job", "");
    put("notification-type", "");
    Form::new(fields)
}

#[cfg(test)]
mod tests;
