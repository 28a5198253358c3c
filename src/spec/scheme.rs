//! Files in Scheme, the very ones that Cuirass reads: Guile runs them, and an embedded script prints what they say as
//! JSON, which is then looked at like any other.
//!
//! Such a file is a program, and it is run with the rights of whoever reads it. So nobody else may be able to write it:
//! a daemon that is root does not run what another user could have put there. It is never run as the job user: what
//! runs as that user could watch it, and change what it says.
//!
//! Invariant: whatever the file does, reading it ends within [`PATIENCE`], leaves nothing running, and keeps no more of
//! its output than [`MAX_FILE`] bytes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;

use super::json::{self, Bad};
use super::lines::Step;
use super::parameters::{self, Parameters};
use super::{Error, MAX_FILE};
use crate::model::spec::Specification;
use crate::sys::clock;
use crate::sys::process::{Child, Exit, How, Killer, Launch, Launcher, Program, Read};

/// What Guile runs.
const SCRIPT: &str = include_str!("scheme/read.scm");

/// How long a file may take: a second or two, but on a very busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long Guile may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(3);

/// Bytes at the end of what Guile prints for people that are kept for a message.
const TAIL: usize = 4 << 10;

/// Characters of its last line that a message shows.
const SHOWN: usize = 200;

/// What it takes to have Guile read files.
pub(crate) struct Guile {
    /// The words of the command that runs Guix.
    guix: Vec<String>,
    /// Gets what ends the Guile that has begun; false if it is not wanted any more.
    begun: Box<dyn Fn(Killer) -> bool + Send>,
}

impl Guile {
    pub(crate) fn new(guix: Vec<String>) -> Self {
        Self { guix, begun: Box::new(|_| true) }
    }

    /// Has whoever may want to end a running Guile told of each.
    pub(crate) fn watched(self, begun: impl Fn(Killer) -> bool + Send + 'static) -> Self {
        Self { begun: Box::new(begun), ..self }
    }

    /// The specifications that a file evaluates to.
    pub(super) fn specifications(&self, path: &Path) -> Result<Vec<Specification>, Error> {
        let answer = self.ask("specifications", path, clock::now() + PATIENCE)?;
        let value = Value::Array(answer.specifications);
        json::all(&value).map_err(|bad| placed(bad, &answer.places))
    }

    /// What a parameters file sets.
    pub(super) fn parameters(&self, path: &Path) -> Result<Parameters, Error> {
        let answer = self.ask("parameters", path, clock::now() + PATIENCE)?;
        parameters::of(&answer.parameters).map_err(|wrong| wrong.into_error(0, None, None))
    }

    /// By Guix's Guile, or by another where there is no Guix.
    fn ask(&self, kind: &str, path: &Path, deadline: Instant) -> Result<Answer, Error> {
        let path = std::path::absolute(path).map_err(|error| Error::plain(error.to_string()))?;
        writers(&path, nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw())?;
        let name = path.to_str().ok_or_else(|| Error::plain("its name is not UTF-8"))?;
        let mut guix = self.guix.clone();
        guix.extend(["repl", "--", "/dev/stdin", "guix", kind, name].map(str::to_owned));
        let guile = ["guile", "--no-auto-compile", "-s", "/dev/stdin", "guile", kind, name];
        match self.run(guix, deadline)? {
            Ran::Ended(heard) => answer(&heard),
            Ran::Missing(guix) => match self.run(guile.map(str::to_owned).into(), deadline)? {
                Ran::Ended(heard) => answer(&heard),
                Ran::Missing(guile) => Err(Error::plain(format!(
                    "reading Scheme needs Guix or Guile 3 (apt install guile-3.0), and neither is here: {guix}; {guile}"
                ))),
            },
        }
    }

    fn run(&self, words: Vec<String>, deadline: Instant) -> Result<Ran, Error> {
        let cannot = |error: std::io::Error| Error::plain(format!("cannot run Guile: {error}"));
        let mut environment: Vec<_> = std::env::vars_os().collect();
        // Of the script nothing is to be kept, and of the files neither: they are read once.
        environment.push(("GUILE_AUTO_COMPILE".into(), "0".into()));
        let launch = Launch {
            program: Program::Command(words.into_iter().map(Into::into).collect()),
            environment,
            directory: std::env::current_dir().map_err(cannot)?,
            user: None,
            memory: None,
            merge: false,
        };
        let script = Some(SCRIPT.as_bytes().to_vec());
        let launcher = Launcher::alone().map_err(cannot)?;
        let mut child = launcher.start(launch, script).map_err(cannot)?;
        if !(self.begun)(child.killer()) {
            return Err(Error::plain("the daemon is stopping"));
        }
        let heard = listen(&mut child, deadline);
        if heard.is_err() {
            child.stop(GRACE);
        }
        let heard = heard?;
        Ok(match heard.exit.how {
            How::NotStarted(why) => Ran::Missing(why),
            How::Code(_) | How::Signal(_) | How::Prevented(_) | How::Lost => Ran::Ended(heard),
        })
    }
}

/// What came of a program.
enum Ran {
    Ended(Heard),
    /// It is not installed: what its keeper says.
    Missing(String),
}

/// What the script prints.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Answer {
    specifications: Vec<Value>,
    /// Of each specification, file and line of its fields, and under an empty name its own.
    places: Vec<BTreeMap<String, (PathBuf, usize)>>,
    parameters: Value,
    error: Option<Failure>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Failure {
    file: PathBuf,
    line: Option<usize>,
    jobset: Option<String>,
    field: Option<String>,
    message: String,
}

/// Only its reader, or root, may be able to write a program that is to be run; of groups, only theirs.
fn writers(path: &Path, reader: u32, readers: u32) -> Result<(), Error> {
    const GROUP: u32 = 0o020;
    const OTHERS: u32 = 0o002;
    let file = fs::metadata(path).map_err(|error| Error::plain(error.to_string()))?;
    let owner = file.uid();
    if owner != 0 && owner != reader && reader == 0 {
        return Err(Error::plain(format!(
            "it belongs to user {owner}, and root would run it: it must belong to root, or be JSON"
        )));
    }
    let group = file.gid();
    if file.mode() & GROUP != 0 && group != 0 && group != readers {
        return Err(Error::plain(format!(
            "group {group} can write it, and it would be run: chmod g-w it"
        )));
    }
    if file.mode() & OTHERS != 0 {
        return Err(Error::plain("every user can write it, and it would be run: chmod o-w it"));
    }
    Ok(())
}

struct Heard {
    output: Vec<u8>,
    /// The end of what was for people.
    errors: Vec<u8>,
    exit: Exit,
}

fn listen(child: &mut Child, deadline: Instant) -> Result<Heard, Error> {
    let (mut output, mut errors, mut buffer) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        buffer.clear();
        let read = child.read(&mut buffer, Some(deadline));
        match read.map_err(|error| Error::plain(format!("cannot read from Guile: {error}")))? {
            Read::Output => {
                output.extend_from_slice(&buffer);
                if output.len() as u64 > MAX_FILE {
                    let message = format!("it makes more than {} MiB of it", MAX_FILE >> 20);
                    return Err(Error::plain(message));
                }
            }
            Read::Errors => {
                errors.extend_from_slice(&buffer);
                errors.drain(..errors.len().saturating_sub(TAIL));
            }
            Read::Deadline => return Err(Error::plain("Guile takes too long over it")),
            Read::Canceled => return Err(Error::plain("the daemon is stopping")),
            Read::Ended(exit) => return Ok(Heard { output, errors, exit }),
        }
    }
}

fn answer(heard: &Heard) -> Result<Answer, Error> {
    let answer: Answer = match serde_json::from_slice(&heard.output) {
        Ok(answer) => answer,
        Err(_) => return Err(Error::plain(no_answer(&heard.exit.how, &heard.errors))),
    };
    match answer.error {
        None => Ok(answer),
        Some(Failure { file, line, jobset, field, message }) => {
            Err(Error { file: Some(file), line, jobset, field, message })
        }
    }
}

/// Guile ended otherwise than by its script.
fn no_answer(how: &How, errors: &[u8]) -> String {
    let how = match how {
        How::Code(code) => format!("exit status {code}"),
        How::Signal(signal) => format!("signal {signal}"),
        How::NotStarted(why) | How::Prevented(why) => why.clone(),
        How::Lost => "the process that watches over it was killed".to_owned(),
    };
    let errors = String::from_utf8_lossy(errors);
    match errors.lines().rev().find(|line| !line.trim().is_empty()) {
        Some(last) => {
            let last: String = last.trim().chars().take(SHOWN).collect();
            format!("Guile ended without an answer ({how}): {last}")
        }
        None => format!("Guile ended without an answer ({how})"),
    }
}

/// An error about a specification, with the place in its file of what is wrong.
fn placed(bad: Bad, places: &[BTreeMap<String, (PathBuf, usize)>]) -> Error {
    let place = match bad.path() {
        [Step::Index(index), rest @ ..] => places.get(*index).and_then(|places| {
            let field = match rest.first() {
                Some(Step::Key(field)) => places.get(field),
                Some(Step::Index(_)) | None => None,
            };
            field.or_else(|| places.get(""))
        }),
        [Step::Key(_), ..] | [] => None,
    };
    let (file, line) = place.cloned().unzip();
    Error { file, ..bad.into_error(line) }
}

#[cfg(test)]
mod tests;
