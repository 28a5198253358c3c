//! The commands that talk to the running daemon: each asks over the bridge and prints what comes back.
//!
//! They decide nothing: what is printed is what the daemon answered, as a table for people or, with `--json`,
//! as the bridge's own objects. Text that may come from repositories is stripped of control characters on a
//! terminal.

mod output;
mod show;
mod watch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use std::{fmt, io};

use serde_json::Value;

use crate::control::{self as control_trait, Client};
use crate::model::build::BuildId;
use crate::model::evaluation::EvaluationId;
use crate::model::spec::JobsetName;
use crate::model::status::BuildStatus;
use crate::proto::control::{self, Failure, FailureKind, Request};
use crate::proto::line::MAX_REQUEST;
use crate::spec;
use crate::spec::scheme::Guile;
use output::{Cleaner, Output};

/// What to ask the daemon, complete and valid in form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Status,
    Jobsets,
    Builds(Builds),
    Evaluations {
        jobset: Option<JobsetName>,
        /// 1–10000; the daemon's default otherwise.
        limit: Option<u32>,
    },
    Queue {
        limit: Option<u32>,
    },
    Workers,
    Trigger(JobsetName),
    /// A specification file, read here and sent as JSON.
    Add {
        file: PathBuf,
        /// The words of the command that runs Guix.
        guix: Vec<String>,
    },
    Activate(JobsetName),
    Deactivate(JobsetName),
    Delete(JobsetName),
    RestartBuild(BuildId),
    RestartEvaluation {
        id: EvaluationId,
        all: bool,
    },
    CancelBuild(BuildId),
    CancelEvaluation(EvaluationId),
    Retry(EvaluationId),
    Prioritize {
        build: BuildId,
        /// 0–99, lower first.
        priority: u8,
    },
    Pause(Option<Activity>),
    Resume(Option<Activity>),
    PauseWorker {
        name: String,
        paused: bool,
    },
    Log {
        of: Target,
        follow: bool,
    },
    Watch {
        jobset: Option<JobsetName>,
    },
    Wait {
        on: Target,
        timeout: Option<Duration>,
    },
    Reload,
    /// May be relative: to this process's directory.
    Backup(PathBuf),
    CheckDatabase,
    Token(Token),
}

/// What `builds` selects by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Builds {
    pub(crate) jobset: Option<JobsetName>,
    pub(crate) evaluation: Option<EvaluationId>,
    pub(crate) status: Option<BuildStatus>,
    /// 1–10000; the daemon's default otherwise.
    pub(crate) limit: Option<u32>,
}

/// What can be paused; both when not said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    Builds,
    Evaluations,
}

/// What has a log and an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Build(BuildId),
    Evaluation(EvaluationId),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    Add { name: String, role: String, jobset: Option<JobsetName>, expires: Option<Duration> },
    List,
    Revoke(String),
}

/// Asks the daemon at `socket` and prints its answer: tables, or with `json` its objects, one a line.
/// 0 on success (a closed standard output included), 1 on failure with the reason on standard error, 2 when the
/// daemon found an argument wrong.
pub(crate) fn run(socket: &Path, json: bool, command: Command) -> ExitCode {
    match perform(socket, json, command) {
        Ok(code) => code,
        Err(Problem::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(problem) => {
            complain(&problem.to_string());
            match problem {
                Problem::Refused(failure) if failure.kind == FailureKind::Syntax => {
                    ExitCode::from(2)
                }
                Problem::Connect(..)
                | Problem::Refused(_)
                | Problem::Limited(..)
                | Problem::Lost(_)
                | Problem::Output(_)
                | Problem::File(_)
                | Problem::Late(_) => ExitCode::FAILURE,
            }
        }
    }
}

fn perform(socket: &Path, json: bool, command: Command) -> Result<ExitCode, Problem> {
    let mut session = Session { client: connect(socket)?, output: Output::new(json) };
    let request = match command {
        Command::Add { file, guix } => return session.add(&file, guix),
        Command::Log { of, follow } => return session.log(of.into(), follow),
        Command::Wait { on, timeout } => return session.wait(on.into(), timeout),
        Command::Watch { jobset } => {
            return watch::run(socket, session.client, &mut session.output, jobset);
        }
        Command::Status => return session.list(control::Command::Status, show::status),
        Command::Jobsets => return session.list(control::Command::Jobsets, show::jobsets),
        Command::Builds(builds) => {
            let limit = limit(builds.limit);
            let Builds { jobset, evaluation, status, limit: _ } = builds;
            let wanted = control::Builds { jobset, evaluation, status, limit };
            return session.list(control::Command::Builds(wanted), show::builds);
        }
        Command::Evaluations { jobset, limit: wanted } => {
            let request = control::Command::Evaluations { jobset, limit: limit(wanted) };
            return session.list(request, show::evaluations);
        }
        Command::Queue { limit: wanted } => {
            let request = control::Command::Queue { limit: limit(wanted) };
            return session.list(request, show::queue);
        }
        Command::Workers => return session.list(control::Command::Workers, show::workers),
        Command::CheckDatabase => {
            return session.list(control::Command::CheckDatabase, show::problems);
        }
        Command::Token(Token::List) => {
            return session.list(control::Command::TokenList, show::tokens);
        }
        Command::Token(Token::Add { name, role, jobset, expires }) => {
            let token = control::TokenAdd { name, role, jobset, expires };
            return session.list(control::Command::TokenAdd(token), show::secret);
        }
        Command::Token(Token::Revoke(name)) => control::Command::TokenRevoke(name),
        Command::Trigger(name) => {
            let request = control::Command::Trigger(name.clone());
            return session.list(request, |_, _| Ok(())).map_err(|problem| match problem {
                Problem::Refused(failure) if failure.kind == FailureKind::RateLimited => {
                    Problem::Limited(name, failure.message)
                }
                other => other,
            });
        }
        Command::Activate(name) => control::Command::Activate(name),
        Command::Deactivate(name) => control::Command::Deactivate(name),
        Command::Delete(name) => control::Command::Delete(name),
        Command::RestartBuild(id) => control::Command::RestartBuild(id),
        Command::RestartEvaluation { id, all } => control::Command::RestartEvaluation { id, all },
        Command::CancelBuild(id) => control::Command::CancelBuild(id),
        Command::CancelEvaluation(id) => control::Command::CancelEvaluation(id),
        Command::Retry(id) => control::Command::RetryEvaluation(id),
        Command::Prioritize { build, priority } => {
            control::Command::PrioritizeBuild { id: build, priority: i64::from(priority) }
        }
        Command::Pause(activity) => control::Command::Pause(both(activity)),
        Command::Resume(activity) => control::Command::Resume(both(activity)),
        Command::PauseWorker { name, paused } => control::Command::PauseWorker { name, paused },
        Command::Reload => control::Command::Reload,
        Command::Backup(file) => return session.backup(&file),
    };
    session.list(request, |_, _| Ok(()))
}

fn limit(limit: Option<u32>) -> usize {
    limit.and_then(|n| usize::try_from(n).ok()).unwrap_or(control::DEFAULT_LIMIT)
}

fn both(activity: Option<Activity>) -> control::Activity {
    match activity {
        Some(Activity::Builds) => control::Activity::Builds,
        Some(Activity::Evaluations) => control::Activity::Evaluations,
        None => control::Activity::Both,
    }
}

impl From<Target> for control::Target {
    fn from(target: Target) -> Self {
        match target {
            Target::Build(id) => Self::Build(id),
            Target::Evaluation(id) => Self::Evaluation(id),
        }
    }
}

fn connect(socket: &Path) -> Result<Client, Problem> {
    Client::connect(socket).map_err(|error| Problem::Connect(socket.to_owned(), error))
}

#[expect(clippy::print_stderr, reason = "the command line's own messages")]
fn complain(message: &str) {
    eprintln!("gorget: {}", output::clean(message));
}

/// Why a command did not do all it should.
#[derive(Debug)]
enum Problem {
    Connect(PathBuf, io::Error),
    Refused(Failure),
    /// Too many triggers of this jobset, and when to come again.
    Limited(JobsetName, String),
    Lost(io::Error),
    Output(io::Error),
    /// A file named on the command line, and what is wrong with it.
    File(String),
    /// The time given with `--timeout` is over.
    Late(Duration),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(socket, error) => {
                let socket = socket.display();
                match error.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => write!(
                        f,
                        "the daemon is not running: nobody listens on {socket}; start it with `gorget register` \
                         or its service (`systemctl start gorget`), or say where it listens with --socket or \
                         --state-directory"
                    ),
                    io::ErrorKind::PermissionDenied => {
                        write!(
                            f,
                            "you may not use {socket}: its owner and the members of its group may, if they may pass \
                             through the directories above it"
                        )
                    }
                    _ => write!(f, "cannot connect to {socket}: {error}"),
                }
            }
            Self::Refused(failure) => f.write_str(&failure.message),
            Self::Limited(jobset, when) => {
                write!(f, "jobset {jobset} has been triggered too often (rate-limited): {when}")
            }
            Self::Lost(error) if error.kind() == io::ErrorKind::TimedOut => {
                f.write_str("the daemon does not answer")
            }
            Self::Lost(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                f.write_str("the daemon has hung up; is it stopping?")
            }
            Self::Lost(error) => write!(f, "the connection to the daemon broke: {error}"),
            Self::Output(error) => write!(f, "cannot write to standard output: {error}"),
            Self::File(what) => f.write_str(what),
            Self::Late(time) => write!(f, "it had not ended after {} s", time.as_secs()),
        }
    }
}

impl From<control_trait::Error> for Problem {
    fn from(error: control_trait::Error) -> Self {
        match error {
            control_trait::Error::Failure(failure) => Self::Refused(failure),
            control_trait::Error::Asker(error) => Self::Output(error),
            control_trait::Error::Daemon(error) => Self::Lost(error),
        }
    }
}

/// A connection and where its answers are printed.
struct Session {
    client: Client,
    output: Output,
}

impl Session {
    fn backup(self, file: &Path) -> Result<ExitCode, Problem> {
        let wrong = |error| Problem::File(format!("{}: {error}", file.display()));
        let file = std::path::absolute(file).map_err(wrong)?;
        let code = self.list(control::Command::Backup(file.clone()), |_, _| Ok(()))?;
        // A service may have a /tmp or /home of its own.
        match std::fs::symlink_metadata(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Problem::File(format!(
                "the daemon has written {}, but where only it can see that file: its service sees another file \
                 system; name a file below its state directory",
                file.display()
            ))),
            _ => Ok(code),
        }
    }

    /// Prints the objects of an answer: as they come with `--json`, else as `show` does once all are there, also
    /// when the answer ends badly.
    fn list(
        mut self,
        command: control::Command,
        show: fn(&mut Output, &[Value]) -> io::Result<()>,
    ) -> Result<ExitCode, Problem> {
        let mut objects = Vec::new();
        self.client.send(&Request { by: None, command }, None)?;
        let end = loop {
            match self.client.next() {
                Ok(Some(line)) if self.output.json => {
                    self.output.line(&line).map_err(Problem::Output)?;
                }
                Ok(Some(line)) => objects.push(object(&line)?),
                Ok(None) => break Ok(ExitCode::SUCCESS),
                Err(error) => break Err(error.into()),
            }
        };
        if !self.output.json && (end.is_ok() || !objects.is_empty()) {
            show(&mut self.output, &objects).map_err(Problem::Output)?;
        }
        self.output.flush().map_err(Problem::Output)?;
        end
    }

    /// Reads the file here and sends its specifications together: a request is done whole or not at all, several
    /// requests are not.
    fn add(mut self, file: &Path, guix: Vec<String>) -> Result<ExitCode, Problem> {
        let specifications = spec::read(file, &Guile::new(guix))
            .map_err(|error| Problem::File(error.to_string()))?;
        let texts: Vec<_> = specifications.iter().map(spec::json::print).collect();
        let command = control::Command::Add(format!("[{}]", texts.join(",")));
        let request = Request { by: None, command };
        let length = request.to_string().len();
        if length > MAX_REQUEST {
            return Err(Problem::File(format!(
                "{}: its jobsets are too long to be added together: {length} bytes, of at most {MAX_REQUEST}; nothing \
                 is registered. Name the file to the daemon with --specifications and `gorget reload`, which have \
                 no such bound, or add it in parts",
                file.display()
            )));
        }
        self.client.send(&request, None)?;
        while self.client.next()?.is_some() {}
        Ok(ExitCode::SUCCESS)
    }

    fn log(mut self, of: control::Target, follow: bool) -> Result<ExitCode, Problem> {
        let command = control::Command::Log { of, from: 0, follow };
        self.client.send(&Request { by: None, command }, None)?;
        let mut cleaner = Cleaner::default();
        while let Some(line) = self.client.next()? {
            let written = if self.output.json {
                self.output.line(&line)
            } else {
                let object = object(&line)?;
                self.output.log(&mut cleaner, show::text(&object, "text"))
            };
            written.and_then(|()| self.output.flush()).map_err(Problem::Output)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Success only if all of it succeeded.
    fn wait(mut self, on: control::Target, timeout: Option<Duration>) -> Result<ExitCode, Problem> {
        // However short the time is, what has ended has: it begins once that is known.
        if timeout.is_some() {
            let line = self.state(on)?;
            let object = object(&line)?;
            if show::has_ended(&object) {
                return self.told_end(&line, &object);
            }
        }
        let request = Request { by: None, command: control::Command::Wait(on) };
        self.client.send(&request, timeout)?;
        let late = |error| match (error, timeout) {
            (control_trait::Error::Daemon(error), Some(time))
                if error.kind() == io::ErrorKind::TimedOut =>
            {
                Problem::Late(time)
            }
            (error, _) => error.into(),
        };
        let mut code = ExitCode::FAILURE;
        while let Some(line) = self.client.next().map_err(late)? {
            let object = object(&line)?;
            code = self.told_end(&line, &object)?;
        }
        Ok(code)
    }

    /// The object of a build or an evaluation, as it is now.
    fn state(&mut self, of: control::Target) -> Result<String, Problem> {
        let command = match of {
            control::Target::Build(id) => control::Command::Build(id),
            control::Target::Evaluation(id) => control::Command::Evaluation(id),
        };
        self.client.send(&Request { by: None, command }, None)?;
        let mut last = None;
        while let Some(line) = self.client.next()? {
            last = Some(line);
        }
        last.ok_or_else(|| Problem::Lost(io::ErrorKind::InvalidData.into()))
    }

    /// Prints what has ended; success only if all of it succeeded.
    fn told_end(&mut self, line: &str, object: &Value) -> Result<ExitCode, Problem> {
        let written = if self.output.json {
            self.output.line(line)
        } else {
            show::ended(&mut self.output, object)
        };
        written.and_then(|()| self.output.flush()).map_err(Problem::Output)?;
        Ok(if show::succeeded(object) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn object(line: &str) -> Result<Value, Problem> {
    serde_json::from_str(line).map_err(|error| Problem::Lost(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_triggers_too_often_is_told_what_and_when() {
        let name = JobsetName::new("hello").unwrap();
        let problem = Problem::Limited(name, "retry in 300 s".to_owned());
        let expected = "jobset hello has been triggered too often (rate-limited): retry in 300 s";
        assert_eq!(problem.to_string(), expected);
    }
}
