//! What can go wrong with a mirror or a checkout, told apart by what to do about it.
//!
//! The texts are completed, and freed of secrets, by `Url::scrub`; nothing here may be shown without it.

use std::path::PathBuf;
use std::{fmt, io};

use git2::{ErrorClass, ErrorCode};

use crate::git::Error;
use crate::git::url::Url;

#[derive(Debug)]
pub(super) enum Trouble {
    /// Not a URL of a kind that is fetched.
    Url,
    /// A repository of others tried to make us fetch from this machine.
    LocalSubmodule,
    /// The other side could not be reached, or asked.
    Connect(git2::Error),
    /// The other side could not give us what it has.
    Fetch(git2::Error),
    /// Our own mirror is broken: it is worth fetching anew.
    Mirror(git2::Error),
    NoHead,
    NoBranch(String),
    NoTag(String),
    NoCommit(String),
    /// The reference names a blob or a tree.
    NotCommit(String),
    /// A tree that no checkout can be made of: which part, and why.
    Tree(PathBuf, &'static str),
    /// Doing this to the file.
    File(&'static str, PathBuf, io::Error),
    /// At this path.
    Submodule(PathBuf, Error),
}

impl Trouble {
    /// Sorts an error of a fetch: of the other side, or of our mirror.
    pub(super) fn of_fetch(error: git2::Error) -> Self {
        let ours = match error.class() {
            ErrorClass::Odb
            | ErrorClass::Zlib
            | ErrorClass::Object
            | ErrorClass::Reference
            | ErrorClass::Repository
            | ErrorClass::Config
            | ErrorClass::Tree
            // A thin pack whose base is lost looks like a bad pack of the other side; so it costs one more fetch.
            | ErrorClass::Indexer => error.code() != ErrorCode::User,
            // Foreign enum: networks, TLS, our callbacks, a full disk.
            _ => false,
        };
        if ours { Self::Mirror(error) } else { Self::Fetch(error) }
    }

    /// Whether a mirror fetched anew may help.
    pub(super) fn is_corruption(&self) -> bool {
        matches!(self, Self::Mirror(_))
    }

    /// For people.
    pub(super) fn about(&self, url: &Url) -> Error {
        Error(format!("{}: {}", url.printable(), url.scrub(&self.to_string())))
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url => f.write_str(
                "not an absolute path, file://, git://, http(s)://, ssh:// or user@host:path",
            ),
            Self::LocalSubmodule => {
                f.write_str("a submodule of a remote repository must not be on this machine")
            }
            // Over TLS the message names the reason by itself.
            Self::Connect(error)
                if error.code() == ErrorCode::Certificate && error.class() == ErrorClass::Ssh =>
            {
                f.write_str(
                    "cannot look at it: its SSH host key is not the one in ~/.ssh/known_hosts of the daemon's \
                     user, or not there (ssh-keyscan shows it; compare it with what its owner says)",
                )
            }
            Self::Connect(error) => write!(f, "cannot look at it: {}", error.message()),
            Self::Fetch(error) => write!(f, "cannot fetch: {}", error.message()),
            Self::Mirror(error) => write!(f, "broken mirror: {}", error.message()),
            Self::NoHead => f.write_str("it has no HEAD commit"),
            Self::NoBranch(name) => write!(f, "no branch {name}"),
            Self::NoTag(name) => write!(f, "no tag {name}"),
            Self::NoCommit(id) => write!(f, "no commit {id}"),
            Self::NotCommit(name) => write!(f, "{name} is not a commit"),
            Self::Tree(path, why) => write!(f, "cannot check out {}: {why}", path.display()),
            Self::File(what, path, error) => write!(f, "cannot {what} {}: {error}", path.display()),
            Self::Submodule(path, error) => {
                write!(f, "submodule {}: {}", path.display(), error.0)
            }
        }
    }
}
