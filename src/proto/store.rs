//! The worker protocol of guix-daemon and nix-daemon, over anything that reads and writes.
//!
//! Invariant: nothing is sent while the daemon works; what builders print cannot pass for what the daemon says.

mod guix;
mod nix;
mod session;
mod wire;

use std::{fmt, io};

pub(crate) use session::{Session, Step};

/// Whose daemon it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Guix,
    Nix,
}

impl Dialect {
    /// Where its store is.
    pub(crate) fn store(self) -> &'static str {
        match self {
            Self::Guix => "/gnu/store",
            Self::Nix => "/nix/store",
        }
    }

    /// What it takes for a daemon to fetch something from another machine: for those who set it up.
    pub(crate) fn trust(self) -> &'static str {
        match self {
            Self::Guix => {
                "it must be served there, signed with a key that 'guix archive --authorize' was told of, and guix-daemon run without --no-substitutes"
            }
            Self::Nix => {
                "it must be served there, signed with a key of nix-daemon's trusted-public-keys, and our user be one of its trusted-users"
            }
        }
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Guix => "guix-daemon",
            Self::Nix => "nix-daemon",
        })
    }
}

/// What a connection's builds may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Build what a substitute fails for.
    pub(crate) fallback: bool,
    /// Seconds; 0 for none.
    pub(crate) timeout: u64,
    pub(crate) max_silent_time: u64,
    /// Build what else is needed when one thing failed.
    pub(crate) keep_going: bool,
    /// Processors that a builder is told to use; 0 for what the daemon was started with.
    pub(crate) cores: u64,
    /// Where substitutes come from instead of where the daemon was told to look. A nix-daemon takes any from those whom
    /// it trusts, and from others the ones it knows; a connection that was given some keeps them.
    pub(crate) substitute_urls: Option<Vec<String>>,
}

/// What a daemon knows of a valid item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Info {
    pub(crate) deriver: Option<String>,
    /// SHA-256 of the archive, as the daemon writes it.
    pub(crate) hash: String,
    pub(crate) references: Vec<String>,
    /// Seconds since the epoch.
    pub(crate) registered: u64,
    /// Bytes of the archive.
    pub(crate) size: u64,
}

/// What a daemon says while it builds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Output<'a> {
    /// What the builder of a derivation printed: any bytes, cut anywhere.
    Log { derivation: &'a str, text: &'a [u8] },
    /// What the daemon itself says, for people.
    Prose(&'a [u8]),
    /// A builder began.
    Started(&'a str),
    /// A substitute is fetched for an item.
    Fetching(&'a str),
}

/// How a build ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is said to be there: to be verified.
    Done,
    /// The build itself failed: why.
    Failed(String),
    /// Something that it needs failed: which derivation, and why, as far as that was said.
    DependencyFailed(Option<String>, String),
    TimedOut,
    Silent,
    /// No fault of the build's.
    Broken(String),
}

/// Why a connection is of no use any more, or a request was refused.
#[derive(Debug)]
pub(crate) enum Error {
    Connect(io::Error),
    Send(io::Error),
    Receive(io::Error),
    /// More than is taken: what, and how many.
    TooLarge(&'static str, u64),
    /// Something else came than this.
    Garbled(&'static str),
    /// The other end is no daemon of this kind, or too old: its version.
    Version(Dialect, u64),
    /// The daemon says no.
    Refused(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(_) => f.write_str("cannot connect to the daemon"),
            Self::Send(_) => f.write_str("cannot send to the daemon"),
            Self::Receive(_) => f.write_str("the daemon does not answer"),
            Self::TooLarge(what, count) => write!(f, "the daemon sent {what} of length {count}"),
            Self::Garbled(expected) => write!(f, "the daemon sent something else than {expected}"),
            Self::Version(dialect, version) => write!(
                f,
                "protocol version {}.{} is none of a {dialect} that Gorget can talk to",
                version >> 8,
                version & 0xff
            ),
            Self::Refused(message) => write!(f, "the daemon refused: {message}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Connect(error) | Self::Send(error) | Self::Receive(error) => Some(error),
            Self::TooLarge(..) | Self::Garbled(_) | Self::Version(..) | Self::Refused(_) => None,
        }
    }
}

/// How builders end, from a daemon's sentence on it: both daemons use the same words.
fn reason(message: &str) -> String {
    let number = |rest: &str| {
        rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default().to_owned()
    };
    if let Some((_, rest)) = message.split_once("failed with exit code ") {
        return format!("exit status {}", number(rest));
    }
    if let Some((_, rest)) = message.split_once("failed due to signal ") {
        return format!("signal {}", number(rest));
    }
    message.lines().next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests;
