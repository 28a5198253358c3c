//! Jobs as Nix programs tell them, turned into job lines.
//!
//! Invariant: every line can be registered, whatever the attributes are called, and no (job, system) comes twice.

use std::collections::{BTreeMap, HashSet};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::evaluate::line::{self, shortened};

/// The priority of a Hydra job that says nothing; greater ones come first.
const HYDRA_PRIORITY: i64 = 100;

/// Bytes of a job's name that are kept of one that is too long or odd: it is only to be recognised.
const SHORT_NAME: usize = 300;

/// A job as nix-eval-jobs prints it, and as our own expression does.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Found {
    /// The attribute path as text.
    pub(super) attr: String,
    pub(super) attr_path: Option<Vec<String>>,
    drv_path: Option<String>,
    name: Option<String>,
    outputs: BTreeMap<String, Option<String>>,
    system: Option<String>,
    meta: Option<Map<String, Value>>,
    pub(super) error: Option<String>,
}

/// Remembers which jobs there were.
pub(super) struct Translator {
    systems: Vec<String>,
    /// Directories of this one evaluation, with what messages call them: an attribute that stays broken in the same
    /// way is the same job, wherever it was evaluated.
    places: Vec<(String, String)>,
    seen: HashSet<(String, String)>,
}

impl Translator {
    /// For a jobset of these systems, of which there is at least one.
    pub(super) fn new(systems: Vec<String>, places: Vec<(String, String)>) -> Self {
        Self { systems, places, seen: HashSet::new() }
    }

    /// The line of a job, whose path begins with the root it was found in.
    pub(super) fn job(&mut self, path: &[String], found: Found) -> String {
        let (Some(derivation), Some(system)) = (found.drv_path, found.system) else {
            return self.error(path, found.error.as_deref().unwrap_or("no derivation"));
        };
        let system = if system == "builtin" { self.system(path) } else { system };
        let name = self.name(path, &system);
        let mut line = json!({ "job": name, "system": system, "derivation": derivation });
        if let Some(name) = found.name {
            line["nix-name"] = name.into();
        }
        let outputs: Map<_, _> = found
            .outputs
            .into_iter()
            .filter_map(|(name, path)| Some((name, path?.into())))
            .collect();
        if !outputs.is_empty() {
            line["outputs"] = outputs.into();
        }
        let number = |name: &str| found.meta.as_ref()?.get(name)?.as_i64();
        for (name, field) in [("timeout", "timeout"), ("maxSilent", "max-silent-time")] {
            if let Some(seconds) = number(name).filter(|&seconds| seconds >= 0) {
                line[field] = seconds.into();
            }
        }
        if let Some(priority) = number("schedulingPriority") {
            line["priority"] = priority_of(priority).into();
        }
        self.checked(path, &name, &system, line)
    }

    /// The line of a broken attribute.
    pub(super) fn error(&mut self, path: &[String], message: &str) -> String {
        let system = self.system(path);
        let name = self.name(path, &system);
        let mut message = if message.is_empty() { "evaluation error" } else { message }.to_owned();
        for (directory, name) in &self.places {
            message = message.replace(directory, name);
        }
        let line = json!({ "job": name, "system": system, "error": message });
        self.checked(path, &name, &system, line)
    }

    /// A line that cannot be registered costs its job, not the evaluation.
    fn checked(&mut self, path: &[String], name: &str, system: &str, line: Value) -> String {
        let text = line.to_string();
        let Err(problem) = line::parse(text.as_bytes()) else { return text };
        let plain: String =
            name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        let mut name = shortened(&plain, SHORT_NAME).into_owned();
        while !self.seen.insert((name.clone(), system.to_owned())) {
            name.push('\'');
        }
        let known = line.get("error").and_then(Value::as_str).map(str::to_owned);
        let message = known.unwrap_or_else(|| format!("{}: {problem}", print(path)));
        json!({ "job": name, "system": system, "error": message }).to_string()
    }

    /// The system of a job that does not tell its own: a name on its path, else the jobset's first.
    fn system(&self, path: &[String]) -> String {
        let named = path.iter().rev().find(|name| self.systems.contains(name));
        named.or(self.systems.first()).cloned().unwrap_or_default()
    }

    /// The path with the system at its end, where it is not there already.
    fn name(&mut self, path: &[String], system: &str) -> String {
        let attributes = path.get(1..).unwrap_or_default();
        let mut name = print(path);
        if attributes.is_empty() {
            // The expression itself is a job.
            "default".clone_into(&mut name);
        }
        if attributes.last().is_none_or(|last| last != system) {
            name = format!("{name}.{system}");
        }
        while !self.seen.insert((name.clone(), system.to_owned())) {
            name = format!("{name}.{system}");
        }
        name
    }
}

/// A path as people write it, without the root.
pub(super) fn print(path: &[String]) -> String {
    let attributes = path.get(1..).unwrap_or_default();
    let quoted: Vec<_> = attributes
        .iter()
        .map(|name| if name.contains('.') { format!("\"{name}\"") } else { name.clone() })
        .collect();
    quoted.join(".")
}

/// Hydra's priorities have no bound and grow with urgency; ours are 9 (last) to 0, a step for each hundred.
fn priority_of(hydra: i64) -> i64 {
    let above = hydra.saturating_sub(HYDRA_PRIORITY).max(0);
    9 - above.saturating_add(HYDRA_PRIORITY - 1).div_euclid(HYDRA_PRIORITY).min(9)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn translator() -> Translator {
        let places = [("/tmp/1/work/".to_owned(), String::new())];
        Translator::new(path(&["x86_64-linux", "aarch64-linux"]), places.into())
    }

    fn found(system: &str) -> Found {
        let text = format!(
            r#"{{"attr":"a","attrPath":["any","a"],"drvPath":"/nix/store/x-a.drv","name":"a-1","system":"{system}","outputs":{{"out":"/nix/store/y-a","dev":null}},"meta":{{"timeout":5,"maxSilent":7,"schedulingPriority":200,"description":"d"}},"more":[1]}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn a_job_keeps_what_its_derivation_says() {
        let line = translator().job(&path(&["any", "a"]), found("x86_64-linux"));
        let line: Value = serde_json::from_str(&line).unwrap();
        let expected = json!({
            "job": "a.x86_64-linux", "system": "x86_64-linux", "derivation": "/nix/store/x-a.drv",
            "nix-name": "a-1", "outputs": {"out": "/nix/store/y-a"}, "timeout": 5,
            "max-silent-time": 7, "priority": 8,
        });
        assert_eq!(line, expected);
    }

    #[test]
    fn names_end_in_the_system_and_are_never_repeated() {
        let mut translator = translator();
        let system = "x86_64-linux";
        assert_eq!(translator.name(&path(&["any", "a", system]), system), "a.x86_64-linux");
        assert_eq!(translator.name(&path(&["any", "a"]), system), "a.x86_64-linux.x86_64-linux");
        assert_eq!(translator.name(&path(&["any"]), system), "default.x86_64-linux");
        assert_eq!(translator.name(&path(&["any", "b.c"]), system), "\"b.c\".x86_64-linux");
    }

    #[test]
    fn errors_belong_to_the_system_their_path_names() {
        let line = translator()
            .error(&path(&["any", "a", "aarch64-linux"]), "unbound at /tmp/1/work/a.nix:1");
        assert_eq!(
            line,
            r#"{"job":"a.aarch64-linux","system":"aarch64-linux","error":"unbound at a.nix:1"}"#
        );
        let line = translator().error(&path(&["any", "a"]), "");
        assert!(line.contains(r#""system":"x86_64-linux","error":"evaluation error""#), "{line}");
    }

    #[test]
    fn names_that_no_job_may_have_become_errors() {
        let mut translator = translator();
        for name in ["a\nb".to_owned(), "x".repeat(600)] {
            for _ in 0..2 {
                let line = translator.job(&path(&["any", &name]), found("x86_64-linux"));
                let line = line::parse(line.as_bytes()).unwrap();
                assert!(matches!(line.what, line::What::Error(_)), "{line:?}");
            }
        }
    }

    #[test]
    fn priorities_are_turned_round() {
        for (hydra, ours) in [
            (i64::MIN, 9),
            (0, 9),
            (100, 9),
            (101, 8),
            (200, 8),
            (201, 7),
            (1000, 0),
            (i64::MAX, 0),
        ] {
            assert_eq!(priority_of(hydra), ours, "{hydra}");
        }
    }
}
