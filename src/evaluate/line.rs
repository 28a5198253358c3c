//! One job line: parsed, checked, with errors that name the field.
//!
//! Invariant: whatever is in a [`Line`] can be registered, stored and run: no empty or over-long name, no
//! NUL, no glob that leads out of the working directory. What one line means for another is not known here.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use globset::GlobBuilder;
use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, Visitor};

/// Bytes of a line without its newline, as the interface of evaluators has it.
pub(crate) const MAX_LINE: usize = 1 << 20;

/// Bytes of a job's name: several times what Guix's system tests come to, and short enough for a heading.
const MAX_NAME: usize = 512;

/// Bytes of a system's name: `powerpc64le-unknown-linux-gnu` has 29.
const MAX_SYSTEM: usize = 64;

/// Bytes of a file name: what Linux allows for a path.
const MAX_PATH: usize = 4096;

/// Bytes of a glob: the process backend compiles them, and the compiled form grows with the length.
const MAX_GLOB: usize = 1024;

/// Globs of a job: they are tried on every file of the working directory.
const MAX_GLOBS: usize = 256;

/// Bytes of an `error` job's message that are kept: a long backtrace; the evaluation's log has the rest.
const MAX_MESSAGE: usize = 16 << 10;

/// Seconds of a time-out, as for durations on the command line: sums with a Unix time cannot overflow.
const MAX_TIMEOUT: i64 = 1 << 40;

/// Seconds a build may take when its job says nothing: Cuirass's and Guix's default.
const TIMEOUT: i64 = 72_000;

/// Seconds a build may be silent when its job says nothing.
const MAX_SILENT_TIME: i64 = 3600;

/// The job's priority when it says nothing: last.
const PRIORITY: u8 = 9;

/// The field with which an evaluator of ours asks to be told how a build ended; others have none of that name.
pub(crate) const AWAIT: &str = "await";

/// A job as an evaluator printed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) job: String,
    pub(crate) system: String,
    pub(crate) nix_name: String,
    pub(crate) outputs: BTreeMap<String, String>,
    /// 0 (first) to 9 (last).
    pub(crate) priority: u8,
    /// Seconds; 0 for none.
    pub(crate) timeout: i64,
    pub(crate) max_silent_time: i64,
    /// Names of jobs of the same system, each once.
    pub(crate) needs: Vec<String>,
    pub(crate) what: What,
    /// Whether the evaluator waits for the end of its build.
    pub(crate) awaited: bool,
    /// Remarks for the evaluation's log.
    pub(crate) notes: Vec<String>,
}

/// What there is to do for a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// A store file name.
    Derivation(String),
    Process {
        command: Vec<String>,
        environment: BTreeMap<String, String>,
        products: Vec<String>,
    },
    /// It could not be evaluated, for this reason.
    Error(String),
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Error {
    /// No JSON object, or a value of the wrong type: what the parser says, at this byte.
    Json {
        message: String,
        column: usize,
    },
    Missing(&'static str),
    /// Not exactly one of `derivation`, `command` and `error`.
    Work,
    Field {
        field: &'static str,
        problem: &'static str,
    },
    Glob {
        glob: String,
        problem: String,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json { message, column } => write!(f, "{message} (byte {column})"),
            Self::Missing(field) => write!(f, "`{field}` is missing"),
            Self::Work => {
                f.write_str("a job has exactly one of `derivation`, `command` and `error`")
            }
            Self::Field { field, problem } => write!(f, "`{field}` {problem}"),
            Self::Glob { glob, problem } => write!(f, "`products`: {glob:?} {problem}"),
        }
    }
}

impl std::error::Error for Error {}

/// Parses one line, without its newline.
pub(crate) fn parse(line: &[u8]) -> Result<Line, Error> {
    let raw: Raw = serde_json::from_slice(line).map_err(|error| {
        let text = error.to_string();
        // The position is told apart from the text; an offending value may be as long as the line.
        let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
        Error::Json { message: shortened(text, 300).into_owned(), column: error.column() }
    })?;
    check(raw)
}

/// The fields as they came.
#[derive(Default)]
struct Raw {
    job: Option<String>,
    system: Option<String>,
    derivation: Option<String>,
    command: Option<Vec<String>>,
    error: Option<String>,
    nix_name: Option<String>,
    outputs: Option<BTreeMap<String, String>>,
    environment: Option<BTreeMap<String, String>>,
    needs: Option<Vec<String>>,
    products: Option<Vec<String>>,
    priority: Option<i64>,
    timeout: Option<i64>,
    max_silent_time: Option<i64>,
    awaited: Option<bool>,
    unknown: Vec<String>,
}

#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
                let mut raw = Raw::default();
                while let Some(Key(key)) = map.next_key()? {
                    match key.as_ref() {
                        "job" => read(&mut map, &mut raw.job, "job")?,
                        "system" => read(&mut map, &mut raw.system, "system")?,
                        "derivation" => read(&mut map, &mut raw.derivation, "derivation")?,
                        "command" => read(&mut map, &mut raw.command, "command")?,
                        "error" => read(&mut map, &mut raw.error, "error")?,
                        "nix-name" => read(&mut map, &mut raw.nix_name, "nix-name")?,
                        "outputs" => read(&mut map, &mut raw.outputs, "outputs")?,
                        "environment" => read(&mut map, &mut raw.environment, "environment")?,
                        "needs" => read(&mut map, &mut raw.needs, "needs")?,
                        "products" => read(&mut map, &mut raw.products, "products")?,
                        "priority" => read(&mut map, &mut raw.priority, "priority")?,
                        "timeout" => read(&mut map, &mut raw.timeout, "timeout")?,
                        "max-silent-time" => {
                            read(&mut map, &mut raw.max_silent_time, "max-silent-time")?;
                        }
                        AWAIT => read(&mut map, &mut raw.awaited, AWAIT)?,
                        unknown => {
                            raw.unknown.push(shortened(unknown, 64).into_owned());
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(raw)
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// Reads a field's value; `null` is the same as none.
fn read<'de, A: MapAccess<'de>, T: Deserialize<'de>>(
    map: &mut A,
    slot: &mut Option<T>,
    field: &str,
) -> Result<(), A::Error> {
    if slot.is_some() {
        return Err(de::Error::custom(format_args!("`{field}` is given twice")));
    }
    *slot =
        map.next_value().map_err(|error| de::Error::custom(format_args!("`{field}`: {error}")))?;
    Ok(())
}

fn check(raw: Raw) -> Result<Line, Error> {
    let job = raw.job.ok_or(Error::Missing("job"))?;
    name("job", &job)?;
    let system = raw.system.ok_or(Error::Missing("system"))?;
    if system.is_empty() || system.len() > MAX_SYSTEM {
        return problem("system", "must have 1 to 64 bytes");
    }
    if system.contains(|c: char| c.is_control() || c.is_whitespace()) {
        return problem("system", "must not hold blanks or control characters");
    }
    let mut notes: Vec<_> = raw.unknown.iter().map(|f| format!("unknown field {f:?}")).collect();
    let mut useless = |given: bool, field: &str, kind: &str| {
        if given {
            notes.push(format!("`{field}` means nothing for a job with `{kind}`"));
        }
    };
    let what = match (raw.derivation, raw.command, raw.error) {
        (Some(derivation), None, None) => {
            store_file(&derivation)?;
            useless(raw.environment.is_some(), "environment", "derivation");
            useless(raw.products.is_some(), "products", "derivation");
            What::Derivation(derivation)
        }
        (None, Some(command), None) => {
            useless(raw.outputs.is_some(), "outputs", "command");
            process(command, raw.environment, raw.products)?
        }
        (None, None, Some(message)) => {
            useless(raw.needs.is_some(), "needs", "error");
            What::Error(printable(&message))
        }
        (None | Some(_), None | Some(_), None | Some(_)) => return Err(Error::Work),
    };
    let outputs = match &what {
        What::Derivation(_) => raw.outputs.unwrap_or_default(),
        What::Process { .. } | What::Error(_) => BTreeMap::new(),
    };
    for (output, path) in &outputs {
        let plain = |c: u8| c.is_ascii_alphanumeric() || b"+-._?=".contains(&c);
        if output.is_empty() || output.len() > MAX_NAME || !output.bytes().all(plain) {
            return problem("outputs", "has a name that no output can have");
        }
        let whole = path.starts_with('/') && path.len() <= MAX_PATH;
        if !whole || path.contains(char::is_control) {
            return problem("outputs", "has a value that is no absolute file name");
        }
    }
    let needs = match what {
        What::Derivation(_) | What::Process { .. } => needs(raw.needs.unwrap_or_default())?,
        What::Error(_) => Vec::new(),
    };
    let nix_name = match raw.nix_name {
        Some(nix_name) => {
            name("nix-name", &nix_name)?;
            nix_name
        }
        None => match &what {
            What::Derivation(derivation) => derivation_name(derivation).to_owned(),
            What::Process { .. } | What::Error(_) => job.clone(),
        },
    };
    let priority = match raw.priority.map(u8::try_from) {
        None => PRIORITY,
        Some(Ok(priority @ 0..=9)) => priority,
        Some(Ok(10..) | Err(_)) => return problem("priority", "must be 0 to 9"),
    };
    Ok(Line {
        nix_name,
        outputs,
        priority,
        timeout: seconds("timeout", raw.timeout, TIMEOUT)?,
        max_silent_time: seconds("max-silent-time", raw.max_silent_time, MAX_SILENT_TIME)?,
        needs,
        what,
        awaited: raw.awaited.unwrap_or(false),
        notes,
        job,
        system,
    })
}

fn problem<T>(field: &'static str, problem: &'static str) -> Result<T, Error> {
    Err(Error::Field { field, problem })
}

fn name(field: &'static str, text: &str) -> Result<(), Error> {
    if text.is_empty() || text.len() > MAX_NAME {
        return problem(field, "must have 1 to 512 bytes");
    }
    if text.contains(char::is_control) {
        return problem(field, "must not hold control characters");
    }
    // They turn what follows around, so that one name is read as another.
    if text.contains(|c| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')) {
        return problem(field, "must not hold characters that turn others around");
    }
    Ok(())
}

fn seconds(field: &'static str, given: Option<i64>, default: i64) -> Result<i64, Error> {
    match given {
        None => Ok(default),
        Some(seconds @ 0..=MAX_TIMEOUT) => Ok(seconds),
        Some(_) => problem(field, "must be a number of seconds, 0 for none"),
    }
}

/// Whether `path` can be a derivation's file name: absolute, without `..`, of characters a store allows.
fn store_file(path: &str) -> Result<(), Error> {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"+-._?=".contains(&c);
    let part = |part: &str| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part.len() < 256
            && part.bytes().all(plain)
    };
    let good = path.len() <= MAX_PATH
        && path.strip_prefix('/').is_some_and(|rest| rest.split('/').all(part))
        && path.rsplit_once('/').is_some_and(|(directory, file)| {
            !directory.is_empty() && file.strip_suffix(".drv").is_some_and(|name| !name.is_empty())
        });
    if good { Ok(()) } else { problem("derivation", "must be the file name of a .drv in a store") }
}

/// `hello-2.12` of `/gnu/store/HASH-hello-2.12.drv`.
fn derivation_name(path: &str) -> &str {
    /// Characters of the hash in a store file name.
    const HASH: usize = 32;
    let file = path.rsplit('/').next().unwrap_or(path);
    let file = file.strip_suffix(".drv").unwrap_or(file);
    match file.split_once('-') {
        Some((hash, name)) if hash.len() == HASH && !name.is_empty() => name,
        Some(_) | None => file,
    }
}

fn process(
    command: Vec<String>,
    environment: Option<BTreeMap<String, String>>,
    products: Option<Vec<String>>,
) -> Result<What, Error> {
    let (environment, products) = (environment.unwrap_or_default(), products.unwrap_or_default());
    if command.first().is_none_or(String::is_empty) {
        return problem("command", "must begin with a program");
    }
    if command.iter().any(|word| word.contains('\0')) {
        return problem("command", "must not hold NUL characters");
    }
    for (name, value) in &environment {
        if name.is_empty() || name.contains(|c: char| c == '=' || c.is_control()) {
            return problem("environment", "has a name that no variable can have");
        }
        if value.contains('\0') {
            return problem("environment", "must not hold NUL characters");
        }
    }
    if products.len() > MAX_GLOBS {
        return problem("products", "must not have more than 256 globs");
    }
    products.iter().try_for_each(|text| glob(text))?;
    Ok(What::Process { command, environment, products })
}

fn glob(text: &str) -> Result<(), Error> {
    let wrong =
        |problem: String| Err(Error::Glob { glob: shortened(text, 80).into_owned(), problem });
    if text.is_empty() || text.len() > MAX_GLOB {
        return wrong("must have 1 to 1024 bytes".to_owned());
    }
    if text.starts_with('/') || text.split('/').any(|part| part == "..") {
        return wrong("must be relative to the working directory, without `..`".to_owned());
    }
    if text.contains('\0') {
        return wrong("must not hold NUL characters".to_owned());
    }
    match GlobBuilder::new(text).literal_separator(true).build() {
        Ok(_) => Ok(()),
        Err(error) => wrong(format!("is no glob: {}", error.kind())),
    }
}

/// Each need once, in the order given.
fn needs(mut given: Vec<String>) -> Result<Vec<String>, Error> {
    given.iter().try_for_each(|need| name("needs", need))?;
    if given.len() > 1 {
        let mut seen = std::collections::HashSet::with_capacity(given.len());
        let fresh: Vec<bool> = given.iter().map(|need| seen.insert(need.as_str())).collect();
        let mut fresh = fresh.into_iter();
        given.retain(|_| fresh.next().unwrap_or(true));
    }
    Ok(given)
}

/// A message as the books keep it: no control characters but newlines and tabs, of bounded length.
fn printable(message: &str) -> String {
    let odd = |c: char| c.is_control() && c != '\n' && c != '\t';
    let message = shortened(message, MAX_MESSAGE);
    if message.is_empty() {
        return "evaluation error".to_owned();
    }
    if message.contains(odd) { message.replace(odd, "\u{fffd}") } else { message.into_owned() }
}

/// The first `limit` bytes of `text`, with an ellipsis if something is left out.
pub(crate) fn shortened(text: &str, limit: usize) -> Cow<'_, str> {
    if text.len() <= limit {
        return Cow::Borrowed(text);
    }
    // The start of a text is a boundary.
    let end = (0..=limit).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    Cow::Owned(format!("{}…", &text[..end]))
}

#[cfg(test)]
mod tests;
