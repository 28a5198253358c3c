//! A specification: what a jobset watches, how it is evaluated and built.

use std::fmt;
use std::time::Duration;

/// A jobset's name: 1–64 of `[A-Za-z0-9._+-]`, not starting with `.` or `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct JobsetName(String);

impl JobsetName {
    /// `None` if `text` is no jobset name.
    pub(crate) fn new(text: &str) -> Option<Self> {
        let plain = |c: u8| c.is_ascii_alphanumeric() || b"._+-".contains(&c);
        let good = (1..=64).contains(&text.len())
            && text.bytes().all(plain)
            && !text.starts_with(['.', '-']);
        good.then(|| Self(text.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for JobsetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Specification {
    pub(crate) name: JobsetName,
    pub(crate) channels: Vec<Channel>,
    pub(crate) evaluator: Evaluator,
    pub(crate) systems: Vec<String>,
    pub(crate) build_outputs: Vec<BuildOutput>,
    pub(crate) notifications: Vec<Notification>,
    /// Time between polls; zero means the daemon's own interval.
    pub(crate) period: Duration,
    /// 0 (first) to 9 (last).
    pub(crate) priority: u8,
    /// Counts only when the jobset is registered for the first time.
    pub(crate) active: bool,
    /// Whether a newer evaluation cancels what older ones still wait for.
    pub(crate) supersede: bool,
    pub(crate) evaluation_timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Channel {
    pub(crate) name: String,
    /// May hold user info: never print it, print [`printable_url`].
    pub(crate) url: String,
    pub(crate) reference: Reference,
    pub(crate) introduction: Option<Introduction>,
}

/// What of a repository is watched.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Reference {
    /// The remote's HEAD.
    Head,
    Branch(String),
    Tag(String),
    /// A full commit id, hexadecimal, in lower case.
    Commit(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Introduction {
    pub(crate) commit: String,
    pub(crate) signer: String,
}

/// Which program turns checkouts into jobs, with what it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Evaluator {
    /// A program of the checkout (or of `PATH`) and its arguments; never empty.
    Command(Vec<String>),
    Guix(GuixSubset),
    Nix(NixSubset),
}

impl Evaluator {
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Command(_) => "command",
            Self::Guix(_) => "guix",
            Self::Nix(_) => "nix",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum GuixSubset {
    All,
    Core,
    Guix,
    Hello,
    Images,
    SystemTests,
    Tarball,
    Packages(Vec<String>),
    Channels(Vec<String>),
    Manifests(Vec<String>),
    /// Each entry as its Scheme text.
    Custom(Vec<String>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NixSubset {
    File { file: String, attribute: Option<String> },
    Flake(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BuildOutput {
    /// An unanchored POSIX extended regular expression on job names.
    pub(crate) job: String,
    pub(crate) kind: String,
    pub(crate) output: String,
    pub(crate) path: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Notification {
    /// Without `from`, the sender is the installation's.
    Email {
        from: Option<String>,
        to: String,
        server: String,
    },
    Mastodon,
    Webhook {
        url: String,
        secret: Option<String>,
    },
}

/// `url` without user name, password, query and fragment, for people to read.
pub(crate) fn printable_url(url: &str) -> String {
    let (scheme, rest) = match url.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => return url.to_owned(),
    };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (authority, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    let host = authority.rsplit('@').next().unwrap_or_default();
    format!("{scheme}{host}{path}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "guix-master", "a.b_c+d", "9"] {
            assert!(JobsetName::new(good).is_some(), "{good}");
        }
        let long = "a".repeat(65);
        for bad in ["", ".a", "-a", "a b", "a/b", "é", &long] {
            assert!(JobsetName::new(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn user_info_is_not_printed() {
        assert_eq!(printable_url("https://u:p@h.org:1/x.git?t=s#f"), "https://h.org:1/x.git");
        assert_eq!(printable_url("git@h.org:x.git"), "git@h.org:x.git");
        assert_eq!(printable_url("/srv/a@b"), "/srv/a@b");
        assert_eq!(printable_url("https://u:p@h.org"), "https://h.org");
    }
}
