//! Mirrors and checkouts. The work itself runs in a child of its own (this binary), because libgit2 cannot be
//! interrupted while it blocks.
//!
//! Invariant: whatever a server does, a look ends in bounded time, and harms nothing but itself.

mod checkout;
mod child;
mod credentials;
#[cfg(test)]
#[path = "../tests/support/gitserver.rs"]
#[expect(unreachable_pub, reason = "the suite uses it, too")]
mod gitserver;
mod local;
mod mirror;
mod modules;
mod netrc;
mod pack;
mod remote;
mod session;
#[cfg(test)]
mod tests;
mod trouble;
mod url;
mod wire;

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use crate::model::spec::Reference;
use crate::sys::clock;
use crate::sys::process::{Child, Exit, How, Killer, Launch, Launcher, Program, Read};

pub(crate) use child::child_main;
pub(crate) use url::hash as mirror_name;

/// A look may take this many times the silence it is allowed, however busy it seems.
const TOTAL: u32 = 20;

/// Bytes of what a child says on standard error that are kept, to be logged when it crashed.
const ERRORS: usize = 4096;

/// What a child gets of our environment, besides git's own variables.
const ENVIRONMENT: [&str; 18] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "TMPDIR",
    "XDG_CONFIG_HOME",
    "SSH_AUTH_SOCK",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
];

/// Git's variables that say which repository to work on: not what our own starter was at.
const REPOSITORY: [&str; 6] = [
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_COMMON_DIR",
    "GIT_NAMESPACE",
];

/// Where mirrors and checkouts are.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// `cache/git`
    pub(crate) mirrors: PathBuf,
    /// `cache/checkouts`
    pub(crate) checkouts: PathBuf,
}

/// A look at one URL: which references to resolve, fetching only what is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) url: String,
    pub(crate) references: Vec<Reference>,
}

/// A reference resolved, with its tree checked out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resolved {
    pub(crate) commit: String,
    pub(crate) tree: String,
    pub(crate) directory: PathBuf,
}

/// Why a look did not work, for people; never holds user info.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Error(pub(crate) String);

/// Runs one look in a child. `silence` without a byte, or 20 times that in all, and the child is killed.
/// One result per reference, in order; the outer error is the URL's. `started` gets the means to cancel it.
pub(crate) fn look(
    launcher: &Launcher,
    places: &Places,
    look: &Look,
    silence: Duration,
    started: impl FnOnce(Killer),
) -> Result<Vec<Result<Resolved, Error>>, Error> {
    let url = url::printable(&look.url);
    let failed = |what: String| Error(format!("{url}: {what}"));
    let request = wire::Request { places: places.clone(), look: look.clone(), silence };
    let input = wire::encode_request(&request).map_err(|error| failed(error.to_string()))?;
    let launch = Launch {
        program: Program::Git(vec![OsString::from(&url)]),
        environment: environment(env::vars_os()),
        directory: PathBuf::from("/"),
        user: None,
        memory: None,
        merge: false,
    };
    let child = launcher
        .start(launch, Some(input))
        .map_err(|error| failed(format!("cannot start a look: {error}")))?;
    started(child.killer());
    let said = listen(child, silence).map_err(failed)?;
    let answer = wire::decode_answer(&said).map_err(|error| {
        log::debug!(target: "updater", "{url}: no answer in {} bytes: {error}", said.len());
        failed("the look gave no answer".to_owned())
    })??;
    if answer.len() != look.references.len() {
        return Err(failed("the look gave half an answer".to_owned()));
    }
    Ok(answer)
}

/// What the child says without the progress, or why it does not.
fn listen(mut child: Child, silence: Duration) -> Result<Vec<u8>, String> {
    let end = clock::now() + silence.saturating_mul(TOTAL);
    let mut last = clock::now();
    let (mut said, mut errors, mut read) = (Vec::new(), Vec::new(), Vec::new());
    let exit = loop {
        read.clear();
        let quiet = last + silence;
        match child.read(&mut read, Some(quiet.min(end))) {
            Ok(Read::Output) => {
                last = clock::now();
                let progress = if said.is_empty() {
                    read.iter().take_while(|&&byte| byte == wire::PROGRESS).count()
                } else {
                    0
                };
                said.extend_from_slice(&read[progress..]);
                if said.len() > wire::ANSWER {
                    return Err("the look says too much".to_owned());
                }
            }
            Ok(Read::Errors) => {
                let room = ERRORS.saturating_sub(errors.len());
                errors.extend_from_slice(&read[..read.len().min(room)]);
            }
            // Dropping the child, here and in all that follows, kills it.
            Ok(Read::Deadline) if clock::now() >= end => {
                return Err(format!("not done after {} s", (silence * TOTAL).as_secs()));
            }
            Ok(Read::Deadline) => {
                return Err(format!("no sign of life for {} s", silence.as_secs()));
            }
            Ok(Read::Canceled) => return Err("canceled".to_owned()),
            Ok(Read::Ended(exit)) => break exit,
            Err(error) => return Err(format!("lost touch with the look: {error}")),
        }
    };
    match ending(&exit) {
        None => Ok(said),
        Some(how) => {
            log::warn!(target: "updater", "a look {how}: {}", String::from_utf8_lossy(&errors).trim());
            Err(format!("the look {how}"))
        }
    }
}

/// How a child ended that gave no answer.
fn ending(exit: &Exit) -> Option<String> {
    match &exit.how {
        How::Code(0) => None,
        _ if exit.oom => Some("ran out of memory".to_owned()),
        How::Code(code) => Some(format!("ended with status {code}")),
        How::Signal(signal) => Some(format!("was killed by signal {signal}")),
        How::NotStarted(why) | How::Prevented(why) => Some(format!("could not start: {why}")),
        How::Lost => Some("was lost".to_owned()),
    }
}

/// What of `ours` a child gets, and that git's helpers must not ask anybody.
fn environment(ours: impl Iterator<Item = (OsString, OsString)>) -> Vec<(OsString, OsString)> {
    let passed = |name: &OsStr| {
        ENVIRONMENT.iter().any(|known| name == *known)
            || (name.as_bytes().starts_with(b"GIT_") && !REPOSITORY.iter().any(|no| name == *no))
    };
    let quiet = [("GIT_TERMINAL_PROMPT", "0"), ("GIT_ASKPASS", "false"), ("SSH_ASKPASS", "false")];
    let mut all: Vec<_> = ours
        .filter(|(name, _)| passed(name) && !quiet.iter().any(|(quiet, _)| name == quiet))
        .collect();
    all.extend(quiet.map(|(name, value)| (name.into(), value.into())));
    all
}
