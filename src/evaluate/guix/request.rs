//! What the driver is asked, and what it asks its scripts.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::model::spec::GuixSubset;

/// The driver's argument, as JSON.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Asked {
    /// The words of the command that runs Guix.
    pub(super) command: Vec<String>,
    /// A word, or a list of a word and arguments.
    pub(super) subset: Value,
    /// Whether the driver has the profile built itself.
    pub(super) builds: bool,
    /// Whether there is a channel that is Guix.
    pub(super) profile: bool,
    pub(super) channels: Vec<Given>,
}

/// A channel as the specification has it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Given {
    pub(super) name: String,
    pub(super) branch: Option<String>,
    /// Commit and signer.
    pub(super) introduction: Option<[String; 2]>,
    /// What of its mirror Guix may see.
    pub(super) repository: PathBuf,
}

impl Asked {
    pub(super) fn print(&self) -> String {
        // File names that are not UTF-8 end in an error of the driver.
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// A channel at the commit that is evaluated.
pub(super) struct Pinned {
    pub(super) given: Given,
    pub(super) commit: String,
    pub(super) directory: PathBuf,
}

pub(super) fn subset(subset: &GuixSubset) -> Value {
    let (word, arguments) = match subset {
        GuixSubset::All => return json!("all"),
        GuixSubset::Core => return json!("core"),
        GuixSubset::Guix => return json!("guix"),
        GuixSubset::Hello => return json!("hello"),
        GuixSubset::Images => return json!("images"),
        GuixSubset::SystemTests => return json!("system-tests"),
        GuixSubset::Tarball => return json!("tarball"),
        GuixSubset::Packages(list) => ("packages", list),
        GuixSubset::Channels(list) => ("channels", list),
        GuixSubset::Manifests(list) => ("manifests", list),
        GuixSubset::Custom(list) => ("custom", list),
    };
    let words = std::iter::once(word).chain(arguments.iter().map(String::as_str));
    words.collect()
}

/// What a script gets: an association list, as Scheme text.
pub(super) fn datum(asked: &Asked, channels: &[Pinned]) -> String {
    let mut text = format!("((profile . {})", if asked.profile { "#t" } else { "#f" });
    match &asked.subset {
        Value::Array(words) => {
            let mut words = words.iter().filter_map(Value::as_str);
            // The first is a word of ours.
            let _ = write!(text, "(subset . ({}", words.next().unwrap_or_default());
            for word in words {
                let _ = write!(text, " {}", quoted(word));
            }
            text.push_str("))");
        }
        word => {
            let _ = write!(text, "(subset . {})", word.as_str().unwrap_or_default());
        }
    }
    text.push_str("(channels");
    for Pinned { given, commit, directory } in channels {
        let _ = write!(
            text,
            "((name . {})(branch . {})(commit . {})(directory . {})(repository . {})(introduction . {}))",
            symbol(&given.name),
            given.branch.as_deref().map_or("#f".to_owned(), quoted),
            quoted(commit),
            path(directory),
            path(&given.repository),
            match &given.introduction {
                Some([commit, signer]) => format!("({} {})", quoted(commit), quoted(signer)),
                None => "#f".to_owned(),
            }
        );
    }
    text.push_str("))");
    text
}

fn path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

/// As Guile reads a string.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

/// As Guile reads a symbol of whatever characters.
fn symbol(text: &str) -> String {
    format!("#{{{}}}#", text.replace('\\', "\\x5c;").replace('}', "\\x7d;"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_scheme() {
        let given = Given {
            name: "my".to_owned(),
            branch: Some("ma\"in\\".to_owned()),
            introduction: Some(["c0".to_owned(), "AB 12".to_owned()]),
            repository: "/lent/my.git".into(),
        };
        let asked = Asked {
            command: vec!["guix".to_owned()],
            subset: subset(&GuixSubset::Packages(vec!["a".to_owned(), "b@1".to_owned()])),
            builds: false,
            profile: true,
            channels: vec![given.clone()],
        };
        let pinned = Pinned { given, commit: "c0ffee".to_owned(), directory: "/checkout".into() };
        assert_eq!(
            datum(&asked, &[pinned]),
            "((profile . #t)(subset . (packages \"a\" \"b@1\"))(channels((name . #{my}#)\
             (branch . \"ma\\\"in\\\\\")(commit . \"c0ffee\")(directory . \"/checkout\")\
             (repository . \"/lent/my.git\")(introduction . (\"c0\" \"AB 12\")))))"
        );
        let all = Asked { subset: subset(&GuixSubset::All), profile: false, ..asked };
        assert_eq!(datum(&all, &[]), "((profile . #f)(subset . all)(channels))");
        let again: Asked = serde_json::from_str(&all.print()).unwrap();
        assert_eq!((again.subset, again.channels.len()), (all.subset, 1));
    }
}
