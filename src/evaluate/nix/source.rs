//! What is evaluated: the arguments and environment of the driver, and the request to the embedded expression.

use std::path::{Path, PathBuf};
use std::{env, fmt, io};

use serde::Serialize;

use crate::evaluate::lent::{self, Channel, Lent};

/// What the whole evaluation is about.
#[derive(Clone, Debug)]
pub(super) struct Source {
    pub(super) what: What,
    pub(super) systems: Vec<String>,
    pub(super) channels: Vec<Channel>,
    /// For files of ours; removed by whoever started us.
    pub(super) temporary: PathBuf,
}

#[derive(Clone, Debug)]
pub(super) enum What {
    /// An absolute file name, and the attribute path in it.
    File { file: String, attribute: Vec<String> },
    /// A reference to the flake, and the attribute path in it.
    Flake { reference: String, attribute: Vec<String> },
}

/// Why the driver does not know what to do.
#[derive(Debug)]
pub(super) enum Error {
    /// It was not started by the evaluator.
    Arguments,
    Lent(lent::Error),
    Directory(io::Error),
    /// A file name that JSON cannot tell.
    NotText(PathBuf),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arguments => f.write_str("this mode is for evaluations"),
            Self::Lent(error) => error.fmt(f),
            Self::Directory(_) => f.write_str("cannot tell the working directory"),
            Self::NotText(path) => write!(f, "{} is not UTF-8", path.display()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Lent(error) => error.source(),
            Self::Directory(error) => Some(error),
            Self::Arguments | Self::NotText(_) => None,
        }
    }
}

impl Source {
    /// From the driver's arguments and its environment.
    pub(super) fn here(arguments: &[String]) -> Result<Self, Error> {
        let Lent { systems, channels, temporary } = Lent::here().map_err(Error::Lent)?;
        let here = env::current_dir().map_err(Error::Directory)?;
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let what = match words[..] {
            ["file", file] => What::File { file: text(&here.join(file))?, attribute: Vec::new() },
            ["file", file, attribute] => {
                What::File { file: text(&here.join(file))?, attribute: path(attribute) }
            }
            ["flake", attribute] => What::Flake {
                reference: reference(&text(&here)?, channels.first()),
                attribute: path(attribute),
            },
            _ => return Err(Error::Arguments),
        };
        Ok(Self { what, systems, channels, temporary })
    }

    /// The pipe that a process of Nix reads at its end.
    pub(super) fn gate(&self) -> PathBuf {
        self.temporary.join("gate")
    }

    /// Options that all Nix programs take: where `<NAME>` is found, and what flakes need.
    pub(super) fn options(&self) -> Vec<String> {
        let mut options = Vec::new();
        for channel in &self.channels {
            options.extend(["-I".to_owned(), format!("{}={}", channel.name, channel.directory)]);
        }
        // Where only what is on the search path may be read.
        options.extend(["-I".to_owned(), format!("gorget-gate={}", self.gate().display())]);
        if let What::Flake { .. } = self.what {
            options.extend([
                "--extra-experimental-features".to_owned(),
                "nix-command flakes".to_owned(),
            ]);
        }
        options
    }

    /// The channels' directories, as messages should name them: the first one's files are what is evaluated.
    pub(super) fn places(&self) -> Vec<(String, String)> {
        let name = |n: usize, channel: &Channel| match n {
            0 => String::new(),
            _ => format!("{}/", channel.name),
        };
        let channels = self.channels.iter().enumerate();
        channels.map(|(n, c)| (format!("{}/", c.directory), name(n, c))).collect()
    }

    /// The request to the expression.
    pub(super) fn request(&self, walk: &Walk<'_>) -> String {
        let (file, reference, attribute) = match &self.what {
            What::File { file, attribute } => (Some(file), None, attribute),
            What::Flake { reference, attribute } => (None, Some(reference), attribute),
        };
        let request = Request {
            file,
            flake: reference.map(|_| true),
            reference,
            attribute,
            systems: &self.systems,
            channels: &self.channels,
            walk,
        };
        // Strings and lists of strings: nothing that JSON could not hold.
        serde_json::to_string(&request).unwrap_or_default()
    }
}

/// How one process goes through the attributes.
#[derive(Serialize)]
pub(super) struct Walk<'a> {
    /// Whether steps are told; else the tree of jobs is the expression's value.
    pub(super) walk: bool,
    /// What each step's line begins with.
    pub(super) mark: &'a str,
    /// Where to begin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) resume: Option<&'a [String]>,
    /// Whether `resume` itself is still to be looked at.
    pub(super) inclusive: bool,
    /// Whether nothing is caught.
    pub(super) strict: bool,
    /// The one attribute to look at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) only: Option<&'a [String]>,
    /// The pipe that is read at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) gate: Option<&'a Path>,
}

#[derive(Serialize)]
struct Request<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flake: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<&'a String>,
    attribute: &'a [String],
    systems: &'a [String],
    channels: &'a [Channel],
    #[serde(flatten)]
    walk: &'a Walk<'a>,
}

fn text(path: &Path) -> Result<String, Error> {
    path.to_str().map(str::to_owned).ok_or_else(|| Error::NotText(path.to_owned()))
}

/// The flake in the working directory, with the commit it was taken from, for `self.rev`.
fn reference(here: &str, channel: Option<&Channel>) -> String {
    let mut reference = "path:".to_owned();
    for byte in here.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            reference.push(char::from(byte));
        } else {
            reference.push_str(&format!("%{byte:02X}"));
        }
    }
    if let Some(channel) = channel {
        reference.push_str(&format!("?rev={}", channel.commit));
    }
    reference
}

/// The names of an attribute path, which are separated by dots and may stand in quotation marks.
pub(super) fn path(text: &str) -> Vec<String> {
    let (mut names, mut name, mut quoted) = (Vec::new(), String::new(), false);
    for character in text.chars() {
        match character {
            '"' => quoted = !quoted,
            '.' if !quoted => names.push(std::mem::take(&mut name)),
            other => name.push(other),
        }
    }
    names.push(name);
    names.retain(|name| !name.is_empty());
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attribute_paths_are_split_at_dots_outside_quotation_marks() {
        assert_eq!(path("hydraJobs"), ["hydraJobs"]);
        assert_eq!(path(r#"a."b.c".d"#), ["a", "b.c", "d"]);
        assert!(path("").is_empty());
    }

    #[test]
    fn references_hold_the_commit_and_no_odd_characters() {
        let channel = Channel {
            name: "x".to_owned(),
            url: "u".to_owned(),
            commit: "c0ffee".to_owned(),
            directory: "/w".to_owned(),
        };
        assert_eq!(reference("/a b?", Some(&channel)), "path:/a%20b%3F?rev=c0ffee");
        assert_eq!(reference("/a", None), "path:/a");
    }
}
