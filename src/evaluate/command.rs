//! The `command` evaluator: the program of the specification, run in a fresh copy of the first checkout.
//!
//! Invariant: of the daemon's environment a child sees only what [`inherited`] lets through.

use std::ffi::OsString;

use super::Evaluation;
use super::place::Place;
use crate::sys::process::{Launch, Program, User};

/// Where programs are looked for when the daemon itself was not told.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// What of the daemon's environment evaluators and builds get: where programs are, the language, and how to
/// reach the network. `HOME` and `TMPDIR` are told apart from these.
const INHERITED: &[&str] = &[
    "PATH",
    "LANG",
    "http_proxy",
    "https_proxy",
    "ftp_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "FTP_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "GIT_SSL_CAPATH",
];

/// The part of the daemon's environment that evaluators and builds get; `HOME` is the job user's, if there is one.
pub(crate) fn inherited(user: Option<&User>) -> Vec<(OsString, OsString)> {
    let mut environment: Vec<(OsString, OsString)> =
        INHERITED.iter().filter_map(|&name| Some((name.into(), std::env::var_os(name)?))).collect();
    if std::env::var_os("PATH").is_none() {
        environment.push(("PATH".into(), DEFAULT_PATH.into()));
    }
    let home = user.map(|user| user.home.clone().into_os_string());
    if let Some(home) = home.or_else(|| std::env::var_os("HOME")) {
        environment.push(("HOME".into(), home));
    }
    environment
}

/// What to run for an evaluation in `place`: `words` are the program and its arguments.
pub(super) fn launch(words: &[String], evaluation: &Evaluation<'_>, place: &Place) -> Launch {
    let specification = evaluation.specification;
    let mut environment = inherited(evaluation.user);
    let id = evaluation.id.map(|id| id.to_string()).unwrap_or_default();
    environment.extend([
        ("TMPDIR".into(), place.temporary().into()),
        ("XDG_CACHE_HOME".into(), place.cache_home().into()),
        ("GORGET_JOBSET".into(), specification.name.as_str().into()),
        ("GORGET_EVALUATION".into(), id.into()),
        ("GORGET_SYSTEMS".into(), specification.systems.join(" ").into()),
        ("GORGET_CHANNELS".into(), place.channels().into()),
    ]);
    Launch {
        program: Program::Command(words.iter().map(OsString::from).collect()),
        environment,
        directory: place.work(),
        user: evaluation.user.cloned(),
        memory: evaluation.memory,
        merge: false,
    }
}
