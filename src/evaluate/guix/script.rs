//! One run of one of our scripts by a Guix.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;
use std::{env, fmt};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::evaluate::ask;
use crate::evaluate::line::MAX_LINE;
use crate::evaluate::nix::{Cutter, SAYS};
use crate::sys::clock;
use crate::sys::process::{Child, Exit, How, Launch, Launcher, Program, Read};

/// What every script begins with.
const COMMON: &str = include_str!("common.scm");
const PROFILE: &str = include_str!("profile.scm");
const JOBS: &str = include_str!("jobs.scm");

/// How long one that has done its part may take to end.
const GRACE: Duration = Duration::from_secs(3);

/// Which script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Script {
    /// Gets the channels and prints the profile; or, asked so, builds it.
    Profile,
    /// Prints the jobs of a system.
    Jobs,
}

impl Script {
    fn text(self) -> Vec<u8> {
        let rest = match self {
            Self::Profile => PROFILE,
            Self::Jobs => JOBS,
        };
        [COMMON, rest].concat().into_bytes()
    }
}

/// Why a run gave not what it was for.
#[derive(Debug)]
pub(super) enum Error {
    Start(io::Error),
    Read(io::Error),
    /// What the script said last.
    Guix(String),
    /// The same, of what is no fault of the channels.
    Foreign(String),
    Ended(How),
    /// It printed something else than a line of ours.
    Line(serde_json::Error),
    /// It ended as if all were well, without saying that it was through.
    Incomplete,
    Output(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(_) => f.write_str("cannot start Guix"),
            Self::Read(_) => f.write_str("cannot read from Guix"),
            Self::Guix(message) | Self::Foreign(message) => f.write_str(message),
            Self::Ended(How::Code(code)) => write!(f, "guix repl: exit status {code}"),
            Self::Ended(How::Signal(signal)) => write!(f, "guix repl: signal {signal}"),
            Self::Ended(How::NotStarted(why) | How::Prevented(why)) => {
                write!(f, "cannot start Guix, which evaluates: {why}")
            }
            Self::Ended(How::Lost) => f.write_str("the process that watches over Guix was killed"),
            Self::Line(_) => f.write_str("guix repl printed something odd"),
            Self::Incomplete => f.write_str("guix repl ended before it was through"),
            Self::Output(_) => f.write_str("cannot hand on a job"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Start(error) | Self::Read(error) | Self::Output(error) => Some(error),
            Self::Line(error) => Some(error),
            Self::Guix(_) | Self::Foreign(_) | Self::Ended(_) | Self::Incomplete => None,
        }
    }
}

impl Error {
    /// Whether the same may go well another time.
    pub(super) fn is_foreign(&self) -> bool {
        matches!(self, Self::Foreign(_) | Self::Start(_) | Self::Read(_))
    }
}

/// A line that a script printed.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Printed {
    Channel {
        channel: String,
        commit: String,
        checkout: PathBuf,
    },
    Profile {
        profile: String,
        name: String,
        system: String,
        outputs: Map<String, Value>,
    },
    Job(Box<Job>),
    /// It is through: the number of jobs.
    End {
        end: u64,
    },
}

/// A job as the channels' code says it is: of what else it says, the daemon hears nothing.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Job {
    pub(super) job: String,
    pub(super) system: String,
    /// These are for the daemon to judge; `null` is the same as none there.
    #[serde(default)]
    derivation: Value,
    #[serde(default)]
    nix_name: Value,
    #[serde(default)]
    outputs: Value,
    #[serde(default)]
    timeout: Value,
    #[serde(default)]
    max_silent_time: Value,
    #[serde(default)]
    error: Value,
}

impl Job {
    pub(super) fn derivation(&self) -> Option<&str> {
        self.derivation.as_str()
    }

    pub(super) fn line(&self) -> Vec<u8> {
        // It came as JSON: nothing that JSON could not hold.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// A running script.
pub(super) struct Run {
    child: Child,
    output: Cutter,
    errors: Cutter,
    /// What it said last of ours.
    said: Option<String>,
}

impl Run {
    /// `guix` and `arguments` are the words of the command and what the script gets.
    pub(super) fn start(
        launcher: &Launcher,
        guix: &[String],
        script: Script,
        arguments: &[&str],
    ) -> Result<Self, Error> {
        let mut words = guix.to_vec();
        words.extend(["repl", "--", "/dev/stdin"].map(str::to_owned));
        words.extend(arguments.iter().map(|&argument| argument.to_owned()));
        let mut environment: Vec<_> = env::vars_os().collect();
        // What is compiled for one evaluation serves no other.
        environment.push(("GUILE_AUTO_COMPILE".into(), "0".into()));
        let launch = Launch {
            program: Program::Command(words.into_iter().map(Into::into).collect()),
            environment,
            directory: env::current_dir().map_err(Error::Start)?,
            user: None,
            // The driver's own limit is inherited.
            memory: None,
            merge: false,
        };
        let child = launcher.start(launch, Some(script.text())).map_err(Error::Start)?;
        Ok(Self { child, output: Cutter::default(), errors: Cutter::default(), said: None })
    }

    /// Hands lines over until `line` is satisfied (true) or it has ended.
    pub(super) fn listen(
        &mut self,
        mut line: impl FnMut(Printed) -> Result<bool, Error>,
    ) -> Result<Option<Exit>, Error> {
        let mut buffer = Vec::new();
        loop {
            buffer.clear();
            match self.child.read(&mut buffer, None).map_err(Error::Read)? {
                Read::Output => {
                    let mut enough = false;
                    self.output.feed(&buffer, |text| {
                        if text.len() > MAX_LINE {
                            return Err(Error::Incomplete);
                        }
                        let printed = serde_json::from_slice(text).map_err(Error::Line)?;
                        enough |= line(printed)?;
                        Ok(())
                    })?;
                    if enough {
                        return self.hear_rest().map(|()| None);
                    }
                }
                Read::Errors => {
                    let said = &mut self.said;
                    self.errors.feed(&buffer, |text| {
                        hear(text, said);
                        Ok::<(), Error>(())
                    })?;
                }
                Read::Deadline | Read::Canceled => {}
                Read::Ended(exit) => {
                    if let Some(last) = self.errors.last() {
                        hear(&last, &mut self.said);
                    }
                    return Ok(Some(exit));
                }
            }
        }
    }

    /// What it had said for people when it printed its last line.
    fn hear_rest(&mut self) -> Result<(), Error> {
        let mut buffer = Vec::new();
        while let Read::Errors =
            self.child.read(&mut buffer, Some(clock::now())).map_err(Error::Read)?
        {
            let said = &mut self.said;
            self.errors.feed(&buffer, |text| {
                hear(text, said);
                Ok::<(), Error>(())
            })?;
            buffer.clear();
        }
        if let Some(last) = self.errors.last() {
            hear(&last, &mut self.said);
        }
        Ok(())
    }

    /// What an end that came too early, or is a failure, means.
    pub(super) fn failure(self, exit: Exit) -> Error {
        let is_foreign = ask::is_foreign(&exit);
        let error = match (exit.how, self.said) {
            (How::Code(0), _) => Error::Incomplete,
            (How::Code(_), Some(said)) => Error::Guix(said),
            (
                how @ (How::Code(_)
                | How::Signal(_)
                | How::NotStarted(_)
                | How::Prevented(_)
                | How::Lost),
                _,
            ) => Error::Ended(how),
        };
        if is_foreign { Error::Foreign(error.to_string()) } else { error }
    }

    /// Ends it.
    pub(super) fn stop(self) {
        self.child.stop(GRACE);
    }
}

/// A line for the evaluation's log.
fn hear(text: &[u8], said: &mut Option<String>) {
    if let Some(text) = String::from_utf8_lossy(text).strip_prefix(SAYS) {
        *said = Some(text.to_owned());
    }
    // There is nobody left to tell.
    let _ = io::stderr().write_all(&[text, b"\n"].concat());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_job_only_what_it_may_say_is_handed_on() {
        let said = r#"{"job":"a","system":"s","derivation":"/gnu/store/x-a.drv","nix-name":"a-1","outputs":{"out":"/o"},"timeout":5,"await":true,"command":["sh"],"needs":["b"],"hold":true}"#;
        let Ok(Printed::Job(job)) = serde_json::from_str(said) else { panic!("no job") };
        assert_eq!(job.derivation(), Some("/gnu/store/x-a.drv"));
        let line: Value = serde_json::from_slice(&job.line()).unwrap();
        let handed_on = serde_json::json!({
            "job": "a", "system": "s", "derivation": "/gnu/store/x-a.drv", "nix-name": "a-1",
            "outputs": {"out": "/o"}, "timeout": 5, "max-silent-time": null, "error": null,
        });
        assert_eq!(line, handed_on);
    }
}
