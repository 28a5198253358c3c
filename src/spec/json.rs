//! The JSON schema of specifications, in both directions.

use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::lines::{self, Step};
use super::value::{At, Fields, Wrong, shown};
use super::{Error, host_system, unique};
use crate::model::spec::{
    BuildOutput, Channel, Evaluator, GuixSubset, Introduction, JobsetName, NixSubset, Notification,
    Reference, Specification,
};
use crate::proto::pattern::Pattern;

/// Longest `period`, in seconds: ten years, as good as never; beyond it sums of times would need care.
const MAX_PERIOD: u64 = 315_360_000;
/// Longest `evaluation-timeout`, in seconds: 30 days.
const MAX_EVALUATION_TIMEOUT: u64 = 2_592_000;
/// `evaluation-timeout` when the specification has none: the longest that Guix's own evaluations take, four hours.
const EVALUATION_TIMEOUT: u64 = 14_400;
/// `priority` when the specification has none: the last, as in Cuirass.
const PRIORITY: u64 = 9;

/// The fields of a specification.
const FIELDS: &[&str] = &[
    "name",
    "channels",
    "evaluator",
    "build",
    "systems",
    "build-outputs",
    "notifications",
    "period",
    "priority",
    "active",
    "supersede",
    "command",
    "evaluation-timeout",
];

/// An object or an array of objects.
pub(crate) fn parse(text: &str) -> Result<Vec<Specification>, Error> {
    let value = unique::parse(text)?;
    all(&value).map_err(|bad| {
        let line = lines::of(text, bad.path());
        bad.into_error(line)
    })
}

/// What is wrong with one of several specifications.
pub(super) struct Bad {
    wrong: Wrong,
    /// The steps of its path that lead to the specification.
    skip: usize,
    name: Option<String>,
}

impl Bad {
    pub(super) fn path(&self) -> &[Step] {
        &self.wrong.path
    }

    pub(super) fn into_error(self, line: Option<usize>) -> Error {
        // Without a name, its place in the file tells which it is.
        let skip = if self.name.is_some() { self.skip } else { 0 };
        self.wrong.into_error(skip, line, self.name)
    }
}

/// The specifications of an object or an array of objects.
pub(super) fn all(value: &Value) -> Result<Vec<Specification>, Bad> {
    let mut specifications: Vec<Specification> = Vec::new();
    let several = value.is_array();
    let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    for (index, value) in values.iter().enumerate() {
        let path = if several { vec![Step::Index(index)] } else { Vec::new() };
        let skip = path.len();
        let at = At::new(value, path);
        let read = specification(&at).and_then(|new| {
            let taken = specifications.iter().any(|old| old.name == new.name);
            if taken {
                Err(at.wrong("a jobset of that name is in the file already"))
            } else {
                Ok(new)
            }
        });
        let name = || value.get("name").and_then(Value::as_str).map(shown);
        specifications.push(read.map_err(|wrong| Bad { wrong, skip, name: name() })?);
    }
    Ok(specifications)
}

fn specification(at: &At<'_>) -> Result<Specification, Wrong> {
    let fields = at.object(FIELDS)?;
    let name = fields.need("name")?;
    let what = "1 to 64 of A-Z a-z 0-9 . _ + -, not beginning with . or -";
    let name = JobsetName::new(name.checked(what, |text| JobsetName::new(text).is_some())?)
        .ok_or_else(|| name.wrong(format!("expected {what}")))?;
    Ok(Specification {
        name,
        channels: fields.or("channels", Vec::new(), channels)?,
        evaluator: evaluator(&fields)?,
        systems: fields.or("systems", vec![host_system()], systems)?,
        build_outputs: fields
            .or("build-outputs", Vec::new(), |at| at.list()?.iter().map(build_output).collect())?,
        notifications: fields
            .or("notifications", Vec::new(), |at| at.list()?.iter().map(notification).collect())?,
        period: Duration::from_secs(fields.or("period", 0, |at| at.integer(0..=MAX_PERIOD))?),
        // The range makes it fit.
        priority: fields.or("priority", PRIORITY, |at| at.integer(0..=9))? as u8,
        active: fields.or("active", true, |at| at.flag())?,
        supersede: fields.or("supersede", false, |at| at.flag())?,
        evaluation_timeout: Duration::from_secs(fields.or(
            "evaluation-timeout",
            EVALUATION_TIMEOUT,
            |at| at.integer(1..=MAX_EVALUATION_TIMEOUT),
        )?),
    })
}

fn channels(at: At<'_>) -> Result<Vec<Channel>, Wrong> {
    let mut channels: Vec<Channel> = Vec::new();
    for at in at.list()? {
        let new = channel(&at)?;
        if channels.iter().any(|old| old.name == new.name) {
            return Err(at.wrong(format!("a second channel {:?}", shown(&new.name))));
        }
        channels.push(new);
    }
    Ok(channels)
}

fn channel(at: &At<'_>) -> Result<Channel, Wrong> {
    let fields = at.object(&["name", "url", "branch", "tag", "commit", "introduction"])?;
    let name = fields.need("name")?.checked("a word without blanks and slashes", |name| {
        name.len() <= 100 && !name.contains(|c: char| c.is_whitespace() || c == '/')
    })?;
    let url = fields.need("url")?.checked_silently(
        "an absolute path, or a URL of file, git, http, https or ssh, or user@host:path",
        is_repository,
    )?;
    let mut references = Vec::new();
    for (field, make) in
        [("branch", Reference::Branch as fn(String) -> Reference), ("tag", Reference::Tag)]
    {
        if let Some(at) = fields.get(field) {
            references.push(make(at.checked("a name that Git allows", is_reference)?.to_owned()));
        }
    }
    if let Some(at) = fields.get("commit") {
        references.push(Reference::Commit(commit(&at)?));
    }
    if references.len() > 1 {
        return Err(fields.wrong("at most one of branch, tag and commit can be given"));
    }
    let introduction = fields.get("introduction").map(|at| introduction(&at)).transpose()?;
    Ok(Channel {
        name: name.to_owned(),
        url: url.to_owned(),
        reference: references.pop().unwrap_or(Reference::Head),
        introduction,
    })
}

fn introduction(at: &At<'_>) -> Result<Introduction, Wrong> {
    let fields = at.object(&["commit", "signer"])?;
    let signer = fields.need("signer")?.checked("an OpenPGP fingerprint", |text| {
        let digits = text.chars().filter(|c| *c != ' ');
        digits.clone().all(|c| c.is_ascii_hexdigit()) && matches!(digits.count(), 40 | 64)
    })?;
    Ok(Introduction { commit: commit(&fields.need("commit")?)?, signer: signer.to_owned() })
}

fn commit(at: &At<'_>) -> Result<String, Wrong> {
    let text = at.checked("a full commit id of 40 (or 64) hexadecimal digits", |text| {
        matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    })?;
    Ok(text.to_ascii_lowercase())
}

fn is_repository(url: &str) -> bool {
    if let Some((scheme, rest)) = url.split_once("://") {
        let host = rest.split('/').next().unwrap_or_default();
        return match scheme {
            "file" => rest.starts_with('/'),
            "git" | "http" | "https" | "ssh" => !host.is_empty(),
            _ => false,
        };
    }
    // `user@host:path`; a leading dash would be taken for an option by programs that are handed it.
    let remote = url.split_once(':').is_some_and(|(host, path)| {
        let (user, host) = host.split_once('@').unwrap_or_default();
        !user.is_empty() && !host.is_empty() && !host.contains('/') && !path.is_empty()
    });
    url.starts_with('/') || (remote && !url.starts_with('-'))
}

/// Git's rules for the names of references, as git-check-ref-format(1) has them.
fn is_reference(name: &str) -> bool {
    let bad = |c: char| c.is_control() || " ~^:?*[\\".contains(c);
    !name.contains(bad)
        && !name.contains("..")
        && !name.contains("@{")
        && name != "@"
        && !name.starts_with('-')
        && !name.ends_with('.')
        && name
            .split('/')
            .all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock"))
}

/// `build` means something to `guix` and `nix`, `command` to `command`; what another evaluator would use is
/// checked all the same.
fn evaluator(fields: &Fields<'_>) -> Result<Evaluator, Wrong> {
    let command = fields.get("command").map(|at| command(&at)).transpose()?;
    let default = if command.is_some() { "command" } else { "guix" };
    let word = fields.or("evaluator", default, |at| {
        at.checked("\"guix\", \"nix\" or \"command\"", |word| {
            ["guix", "nix", "command"].contains(&word)
        })
    })?;
    match (word, command) {
        ("command", Some(command)) => {
            fields.or("build", GuixSubset::All, guix)?;
            Ok(Evaluator::Command(command))
        }
        ("command", None) => {
            Err(fields.wrong("the evaluator \"command\" needs the field \"command\""))
        }
        ("nix", _) => nix(&fields.need("build")?).map(Evaluator::Nix),
        // `checked` let nothing else pass.
        _ => fields.or("build", GuixSubset::All, guix).map(Evaluator::Guix),
    }
}

fn command(at: &At<'_>) -> Result<Vec<String>, Wrong> {
    let words = at.list()?;
    let Some(program) = words.first() else {
        return Err(at.wrong("expected a program and its arguments, found an empty list"));
    };
    program.text()?;
    words.iter().map(|word| word.any_text().map(str::to_owned)).collect()
}

const GUIX: &str = "\"all\", \"core\", \"guix\", \"hello\", \"images\", \"system-tests\", \"tarball\", \
    or an object of one of packages, channels, manifests, custom";

fn guix(at: At<'_>) -> Result<GuixSubset, Wrong> {
    if !at.is_object() {
        return match at.text()? {
            "all" => Ok(GuixSubset::All),
            "core" => Ok(GuixSubset::Core),
            "guix" => Ok(GuixSubset::Guix),
            "hello" => Ok(GuixSubset::Hello),
            "images" => Ok(GuixSubset::Images),
            "system-tests" => Ok(GuixSubset::SystemTests),
            "tarball" => Ok(GuixSubset::Tarball),
            other => Err(at.wrong(format!("expected {GUIX}, found {:?}", shown(other)))),
        };
    }
    let fields = at.object(&["packages", "channels", "manifests", "custom"])?;
    let Some((key, list)) = fields.only() else { return Err(at.wrong(format!("expected {GUIX}"))) };
    let texts = |read: fn(&At<'_>) -> Result<String, Wrong>| -> Result<Vec<String>, Wrong> {
        let texts = list.list()?.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        if texts.is_empty() { Err(list.wrong("must not be empty")) } else { Ok(texts) }
    };
    let word: fn(&At<'_>) -> Result<String, Wrong> = |at| at.text().map(str::to_owned);
    let scheme: fn(&At<'_>) -> Result<String, Wrong> = |at| at.any_text().map(str::to_owned);
    match key {
        "packages" => texts(word).map(GuixSubset::Packages),
        "channels" => texts(word).map(GuixSubset::Channels),
        "manifests" => texts(word).map(GuixSubset::Manifests),
        // `object` let nothing else pass.
        _ => texts(scheme).map(GuixSubset::Custom),
    }
}

fn nix(at: &At<'_>) -> Result<NixSubset, Wrong> {
    let fields = at.object(&["file", "attribute", "flake"])?;
    let attribute = fields.get("attribute").map(|at| at.text().map(str::to_owned)).transpose()?;
    match (fields.get("file"), fields.get("flake"), attribute) {
        (Some(file), None, attribute) => {
            let file = file.checked("a path inside the checkout", is_inside)?.to_owned();
            Ok(NixSubset::File { file, attribute })
        }
        (None, Some(flake), None) => Ok(NixSubset::Flake(flake.text()?.to_owned())),
        _ => Err(at.wrong(
            "expected {\"file\": PATH} with or without \"attribute\", or {\"flake\": ATTRIBUTE}",
        )),
    }
}

/// Whether a path stays below where it is joined to.
fn is_inside(path: &str) -> bool {
    !path.starts_with('/') && path.split('/').all(|part| part != "..")
}

fn systems(at: At<'_>) -> Result<Vec<String>, Wrong> {
    let mut systems: Vec<String> = Vec::new();
    for at in at.list()? {
        let system = at.checked("a system such as x86_64-linux", |text| {
            let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
            text.len() <= 64
                && text.chars().all(plain)
                && text.split('-').all(|part| !part.is_empty())
                && text.contains('-')
        })?;
        if systems.iter().any(|old| old == system) {
            return Err(at.wrong(format!("{system:?} a second time")));
        }
        systems.push(system.to_owned());
    }
    if systems.is_empty() { Err(at.wrong("must not be empty")) } else { Ok(systems) }
}

fn build_output(at: &At<'_>) -> Result<BuildOutput, Wrong> {
    let fields = at.object(&["job", "type", "output", "path"])?;
    let job = fields.need("job")?;
    let pattern = job.checked("a regular expression", |text| Pattern::new(text).is_some())?;
    let output = fields.or("output", "out", |at| at.text())?;
    let path = fields.or("path", "", |at| match at.any_text()? {
        "" => Ok(""),
        _ => at.checked("a path inside the output", is_inside),
    })?;
    Ok(BuildOutput {
        job: pattern.to_owned(),
        kind: fields.need("type")?.text()?.to_owned(),
        output: output.to_owned(),
        path: path.to_owned(),
    })
}

/// The only programs that a specification can have the daemon run as its own user: whoever may add a jobset must not
/// gain more than the job user has.
const SENDMAIL: [&str; 5] = [
    "/usr/sbin/sendmail",
    "/usr/lib/sendmail",
    "/usr/bin/sendmail",
    "/run/wrappers/bin/sendmail",
    "/run/setuid-programs/sendmail",
];

fn notification(at: &At<'_>) -> Result<Notification, Wrong> {
    let fields = at.object(&["type", "from", "to", "server", "url", "secret"])?;
    let kind = fields.need("type")?;
    let (new, used): (_, &[&str]) = match kind.text()? {
        "email" => {
            let server = fields.need("server")?;
            let what = "a URL of smtp or smtps, or sendmail:// and where a system has its sendmail";
            let server =
                server.checked_silently(what, |url| match url.strip_prefix("sendmail://") {
                    Some(program) => SENDMAIL.contains(&program),
                    None => {
                        url.split_once(':').is_some_and(|(s, _)| ["smtp", "smtps"].contains(&s))
                    }
                })?;
            let from = fields.get("from").map(|at| at.text().map(str::to_owned)).transpose()?;
            let to = fields.need("to")?.text()?.to_owned();
            let new = Notification::Email { from, to, server: server.to_owned() };
            (new, &["from", "to", "server"])
        }
        "mastodon" => (Notification::Mastodon, &[]),
        "webhook" => {
            let url = fields.need("url")?;
            let url = url.checked_silently("a URL of http or https", super::parameters::is_web)?;
            let secret = fields.get("secret").map(|at| at.text().map(str::to_owned)).transpose()?;
            (Notification::Webhook { url: url.to_owned(), secret }, &["url", "secret"])
        }
        other => {
            let what = "\"email\", \"mastodon\" or \"webhook\"";
            return Err(kind.wrong(format!("expected {what}, found {:?}", shown(other))));
        }
    };
    let stray = ["from", "to", "server", "url", "secret"]
        .into_iter()
        .find(|f| !used.contains(f) && fields.get(f).is_some());
    match stray.and_then(|name| fields.get(name)) {
        Some(at) => Err(at.wrong("not a field of a notification of this type")),
        None => Ok(new),
    }
}

/// One specification, complete (secrets included), as it is kept in the database; `parse` reads it back.
pub(crate) fn print(specification: &Specification) -> String {
    let Specification {
        name,
        channels,
        evaluator,
        systems,
        build_outputs,
        notifications,
        period,
        priority,
        active,
        supersede,
        evaluation_timeout,
    } = specification;
    let mut object = json!({
        "name": name.as_str(),
        "channels": channels.iter().map(channel_value).collect::<Vec<_>>(),
        "evaluator": evaluator.word(),
        "systems": systems,
        "build-outputs": build_outputs.iter().map(build_output_value).collect::<Vec<_>>(),
        "notifications": notifications.iter().map(notification_value).collect::<Vec<_>>(),
        "period": period.as_secs(),
        "priority": priority,
        "active": active,
        "supersede": supersede,
        "evaluation-timeout": evaluation_timeout.as_secs(),
    });
    let (field, value) = what_to_evaluate(evaluator);
    object[field] = value;
    object.to_string()
}

/// SHA-256 over what decides jobs: channels (name, url, reference, introduction), evaluator, systems.
pub(crate) fn job_fingerprint(specification: &Specification) -> String {
    let (field, value) = what_to_evaluate(&specification.evaluator);
    let text = json!([
        specification.channels.iter().map(channel_value).collect::<Vec<_>>(),
        specification.evaluator.word(),
        field,
        value,
        specification.systems,
    ])
    .to_string();
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn channel_value(channel: &Channel) -> Value {
    let mut value = json!({ "name": channel.name, "url": channel.url });
    match &channel.reference {
        Reference::Head => {}
        Reference::Branch(name) => value["branch"] = json!(name),
        Reference::Tag(name) => value["tag"] = json!(name),
        Reference::Commit(id) => value["commit"] = json!(id),
    }
    if let Some(Introduction { commit, signer }) = &channel.introduction {
        value["introduction"] = json!({ "commit": commit, "signer": signer });
    }
    value
}

/// The field that tells the evaluator what to do, with its value.
fn what_to_evaluate(evaluator: &Evaluator) -> (&'static str, Value) {
    match evaluator {
        Evaluator::Command(words) => ("command", json!(words)),
        Evaluator::Guix(subset) => ("build", self::subset(subset)),
        Evaluator::Nix(NixSubset::File { file, attribute: None }) => {
            ("build", json!({ "file": file }))
        }
        Evaluator::Nix(NixSubset::File { file, attribute: Some(attribute) }) => {
            ("build", json!({ "file": file, "attribute": attribute }))
        }
        Evaluator::Nix(NixSubset::Flake(flake)) => ("build", json!({ "flake": flake })),
    }
}

/// The value of a `build` field.
pub(crate) fn subset(subset: &GuixSubset) -> Value {
    match subset {
        GuixSubset::All => json!("all"),
        GuixSubset::Core => json!("core"),
        GuixSubset::Guix => json!("guix"),
        GuixSubset::Hello => json!("hello"),
        GuixSubset::Images => json!("images"),
        GuixSubset::SystemTests => json!("system-tests"),
        GuixSubset::Tarball => json!("tarball"),
        GuixSubset::Packages(names) => json!({ "packages": names }),
        GuixSubset::Channels(names) => json!({ "channels": names }),
        GuixSubset::Manifests(files) => json!({ "manifests": files }),
        GuixSubset::Custom(expressions) => json!({ "custom": expressions }),
    }
}

fn build_output_value(output: &BuildOutput) -> Value {
    let BuildOutput { job, kind, output, path } = output;
    json!({ "job": job, "type": kind, "output": output, "path": path })
}

fn notification_value(notification: &Notification) -> Value {
    match notification {
        Notification::Email { from: None, to, server } => {
            json!({ "type": "email", "to": to, "server": server })
        }
        Notification::Email { from: Some(from), to, server } => {
            json!({ "type": "email", "from": from, "to": to, "server": server })
        }
        Notification::Mastodon => json!({ "type": "mastodon" }),
        Notification::Webhook { url, secret: None } => json!({ "type": "webhook", "url": url }),
        Notification::Webhook { url, secret: Some(secret) } => {
            json!({ "type": "webhook", "url": url, "secret": secret })
        }
    }
}

#[cfg(test)]
mod tests;
