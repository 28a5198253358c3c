//! Bridge requests and answers: the vocabulary, and how each is written on the wire.
//!
//! `parse` reads a request line, `view` holds the JSON objects of answers.

mod parse;
pub(crate) mod view;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::model::build::BuildId;
use crate::model::evaluation::EvaluationId;
use crate::model::spec::JobsetName;
use crate::model::status::BuildStatus;

pub(crate) use parse::{is_scheme, parse, parse_scheme};

/// Objects in an answer when the request does not say how many.
pub(crate) const DEFAULT_LIMIT: usize = 100;

/// The most objects one answer may be asked for.
pub(crate) const MAX_LIMIT: usize = 10_000;

/// What a token may do, least first: start evaluations, read, run the place, edit jobsets, everything.
pub(crate) const ROLES: &[&str] = &["trigger", "viewer", "operator", "editor", "admin"];

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// Whom the peer acts for.
    pub(crate) by: Option<String>,
    pub(crate) command: Command,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Help,
    Version,
    Status,
    Jobsets,
    Jobset(JobsetName),
    Trigger(JobsetName),
    /// The JSON text of a specification.
    Add(String),
    RegisterJobset(JobsetName),
    UpdateJobset(JobsetName),
    Delete(JobsetName),
    Activate(JobsetName),
    Deactivate(JobsetName),
    LastUpdateTimes(JobsetName),
    Evaluations {
        jobset: Option<JobsetName>,
        limit: usize,
    },
    Evaluation(EvaluationId),
    CancelEvaluation(EvaluationId),
    RetryEvaluation(EvaluationId),
    RestartEvaluation {
        id: EvaluationId,
        all: bool,
    },
    Builds(Builds),
    Build(BuildId),
    RestartBuild(BuildId),
    CancelBuild(BuildId),
    PrioritizeBuild {
        id: BuildId,
        priority: i64,
    },
    Wait(Target),
    Log {
        of: Target,
        from: u64,
        follow: bool,
    },
    Queue {
        limit: usize,
    },
    Workers,
    Pause(Activity),
    Resume(Activity),
    /// Gives a remote worker no more builds, or some again.
    PauseWorker {
        name: String,
        paused: bool,
    },
    RegisterDashboard {
        jobset: JobsetName,
        jobs: Vec<String>,
    },
    TokenAdd(TokenAdd),
    TokenList,
    TokenRevoke(String),
    /// Somebody has shown the token of this name.
    TokenUsed(String),
    /// A line of the audit log that no other command leaves: what was tried, and how it ended.
    Audit {
        command: String,
        outcome: String,
    },
    /// Always absolute.
    Backup(PathBuf),
    CheckDatabase,
    Subscribe {
        jobset: Option<JobsetName>,
        from: Option<i64>,
    },
    Reload,
    Shutdown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Builds {
    pub(crate) jobset: Option<JobsetName>,
    pub(crate) evaluation: Option<EvaluationId>,
    pub(crate) status: Option<BuildStatus>,
    pub(crate) limit: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TokenAdd {
    pub(crate) name: String,
    /// One of [`ROLES`].
    pub(crate) role: String,
    pub(crate) jobset: Option<JobsetName>,
    pub(crate) expires: Option<Duration>,
}

/// What has a log and an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Build(BuildId),
    Evaluation(EvaluationId),
}

/// What can be paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    Builds,
    Evaluations,
    Both,
}

impl Activity {
    pub(crate) fn builds(self) -> bool {
        matches!(self, Self::Builds | Self::Both)
    }

    pub(crate) fn evaluations(self) -> bool {
        matches!(self, Self::Evaluations | Self::Both)
    }
}

/// Every command and its arguments, as `help` lists them.
pub(crate) const HELP: &[(&str, &str)] = &[
    ("help", "this list"),
    ("version", "the daemon's version"),
    ("status", "what the daemon is doing"),
    ("jobsets", "all jobsets"),
    ("jobset NAME", "one jobset"),
    ("trigger NAME", "look at the jobset's channels now (also trigger-jobset)"),
    ("add JSON", "register or replace a specification"),
    ("register-jobset NAME", "read the jobset from the database again"),
    ("update-jobset NAME", "the same"),
    ("delete NAME", "delete the jobset and cancel what only it wants"),
    ("activate NAME", "watch the jobset's channels"),
    ("deactivate NAME", "stop watching them"),
    ("jobset-last-update-times NAME", "times of its last updates, newest first"),
    ("evaluations [NAME] [limit=N]", "evaluations, newest first"),
    ("evaluation ID", "one evaluation"),
    ("cancel-evaluation ID", "cancel it and the builds that only it wants"),
    ("retry-evaluation ID", "evaluate the same commits again, now"),
    ("restart-evaluation ID [all]", "build again what did not succeed, or everything"),
    ("builds [jobset=NAME] [evaluation=ID] [status=WORD] [limit=N]", "builds, newest first"),
    ("build ID", "one build"),
    ("restart-build ID", "build again"),
    ("cancel-build ID", "cancel the build and its dependents"),
    ("prioritize-build ID PRIORITY", "give a pending build priority 0 (first) to 99"),
    ("wait build ID", "answer when the build has ended"),
    ("wait evaluation ID", "answer when it and all its builds have ended"),
    ("log build ID [from=BYTE] [follow]", "the build's log"),
    ("log evaluation ID [from=BYTE] [follow]", "the evaluation's log"),
    ("queue [limit=N]", "waiting builds in the order they will start"),
    ("workers", "remote workers"),
    ("pause [builds|evaluations]", "start no more of them"),
    ("resume [builds|evaluations]", "start them again"),
    ("pause worker NAME", "give a remote worker no more builds"),
    ("resume worker NAME", "give it builds again"),
    ("register-dashboard JOBSET JOB...", "make a dashboard of these jobs"),
    ("token add NAME ROLE [jobset=NAME] [expires=DURATION]", "make a token, shown once"),
    ("token list", "all tokens, without their secrets"),
    ("token revoke NAME", "make a token worthless"),
    ("token used NAME", "note that the token was shown"),
    ("audit COMMAND OUTCOME", "write a line of the audit log, for whom by= names"),
    ("backup FILE", "copy the database into a new file"),
    ("check-database", "look for damage in the database"),
    ("subscribe [jobset=NAME] [from=ID]", "events as they happen"),
    ("reload", "read the specification files again"),
    ("shutdown", "stop the daemon"),
];

impl Command {
    /// Whether it changes anything, so that the audit log must know of it.
    pub(crate) fn is_change(&self) -> bool {
        match self {
            Self::Trigger(_)
            | Self::Add(_)
            | Self::RegisterJobset(_)
            | Self::UpdateJobset(_)
            | Self::Delete(_)
            | Self::Activate(_)
            | Self::Deactivate(_)
            | Self::CancelEvaluation(_)
            | Self::RetryEvaluation(_)
            | Self::RestartEvaluation { .. }
            | Self::RestartBuild(_)
            | Self::CancelBuild(_)
            | Self::PrioritizeBuild { .. }
            | Self::Pause(_)
            | Self::Resume(_)
            | Self::PauseWorker { .. }
            | Self::RegisterDashboard { .. }
            | Self::TokenAdd(_)
            | Self::TokenRevoke(_)
            | Self::Backup(_)
            | Self::Reload
            | Self::Shutdown => true,
            Self::Help
            | Self::Version
            | Self::Status
            | Self::Jobsets
            | Self::Jobset(_)
            | Self::LastUpdateTimes(_)
            | Self::Evaluations { .. }
            | Self::Evaluation(_)
            | Self::Builds(_)
            | Self::Build(_)
            | Self::Wait(_)
            | Self::Log { .. }
            | Self::Queue { .. }
            | Self::Workers
            | Self::TokenList
            | Self::TokenUsed(_)
            | Self::Audit { .. }
            | Self::CheckDatabase
            | Self::Subscribe { .. } => false,
        }
    }

    /// Whether it goes on for as long as the peer likes: such requests hold only half of the places.
    pub(crate) fn is_long(&self) -> bool {
        matches!(self, Self::Wait(_) | Self::Subscribe { .. } | Self::Log { follow: true, .. })
    }
}

fn word(text: &str) -> std::borrow::Cow<'_, str> {
    shell_words::quote(text)
}

/// As it is sent, which `parse` reads back.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(by) = &self.by {
            write!(f, "by={} ", word(by))?;
        }
        self.command.fmt(f)
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Help => f.write_str("help"),
            Self::Version => f.write_str("version"),
            Self::Status => f.write_str("status"),
            Self::Jobsets => f.write_str("jobsets"),
            Self::Jobset(name) => write!(f, "jobset {name}"),
            Self::Trigger(name) => write!(f, "trigger {name}"),
            Self::Add(json) => write!(f, "add {json}"),
            Self::RegisterJobset(name) => write!(f, "register-jobset {name}"),
            Self::UpdateJobset(name) => write!(f, "update-jobset {name}"),
            Self::Delete(name) => write!(f, "delete {name}"),
            Self::Activate(name) => write!(f, "activate {name}"),
            Self::Deactivate(name) => write!(f, "deactivate {name}"),
            Self::LastUpdateTimes(name) => write!(f, "jobset-last-update-times {name}"),
            Self::Evaluations { jobset, limit } => {
                f.write_str("evaluations")?;
                if let Some(name) = jobset {
                    write!(f, " {name}")?;
                }
                write!(f, " limit={limit}")
            }
            Self::Evaluation(id) => write!(f, "evaluation {id}"),
            Self::CancelEvaluation(id) => write!(f, "cancel-evaluation {id}"),
            Self::RetryEvaluation(id) => write!(f, "retry-evaluation {id}"),
            Self::RestartEvaluation { id, all } => {
                write!(f, "restart-evaluation {id}{}", if *all { " all" } else { "" })
            }
            Self::Builds(builds) => {
                f.write_str("builds")?;
                if let Some(name) = &builds.jobset {
                    write!(f, " jobset={name}")?;
                }
                if let Some(id) = builds.evaluation {
                    write!(f, " evaluation={id}")?;
                }
                if let Some(status) = builds.status {
                    write!(f, " status={}", status.word())?;
                }
                write!(f, " limit={}", builds.limit)
            }
            Self::Build(id) => write!(f, "build {id}"),
            Self::RestartBuild(id) => write!(f, "restart-build {id}"),
            Self::CancelBuild(id) => write!(f, "cancel-build {id}"),
            Self::PrioritizeBuild { id, priority } => write!(f, "prioritize-build {id} {priority}"),
            Self::Wait(target) => write!(f, "wait {target}"),
            Self::Log { of, from, follow } => {
                write!(f, "log {of} from={from}{}", if *follow { " follow" } else { "" })
            }
            Self::Queue { limit } => write!(f, "queue limit={limit}"),
            Self::Workers => f.write_str("workers"),
            Self::Pause(activity) => write!(f, "pause{activity}"),
            Self::Resume(activity) => write!(f, "resume{activity}"),
            Self::PauseWorker { name, paused } => {
                write!(f, "{} worker {}", if *paused { "pause" } else { "resume" }, word(name))
            }
            Self::RegisterDashboard { jobset, jobs } => {
                write!(f, "register-dashboard {jobset}")?;
                jobs.iter().try_for_each(|job| write!(f, " {}", word(job)))
            }
            Self::TokenAdd(token) => {
                write!(f, "token add {} {}", word(&token.name), word(&token.role))?;
                if let Some(name) = &token.jobset {
                    write!(f, " jobset={name}")?;
                }
                token.expires.map_or(Ok(()), |time| write!(f, " expires={}", time.as_secs()))
            }
            Self::TokenList => f.write_str("token list"),
            Self::TokenRevoke(name) => write!(f, "token revoke {}", word(name)),
            Self::TokenUsed(name) => write!(f, "token used {}", word(name)),
            Self::Audit { command, outcome } => {
                write!(f, "audit {} {}", word(command), word(outcome))
            }
            Self::Backup(file) => write!(f, "backup {}", word(&file.to_string_lossy())),
            Self::CheckDatabase => f.write_str("check-database"),
            Self::Subscribe { jobset, from } => {
                f.write_str("subscribe")?;
                if let Some(name) = jobset {
                    write!(f, " jobset={name}")?;
                }
                from.map_or(Ok(()), |id| write!(f, " from={id}"))
            }
            Self::Reload => f.write_str("reload"),
            Self::Shutdown => f.write_str("shutdown"),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Build(id) => write!(f, "build {id}"),
            Self::Evaluation(id) => write!(f, "evaluation {id}"),
        }
    }
}

/// As an argument, with the blank before it.
impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Builds => " builds",
            Self::Evaluations => " evaluations",
            Self::Both => "",
        })
    }
}

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    Syntax,
    UnknownCommand,
    NotFound,
    Conflict,
    RateLimited,
    Unavailable,
    Internal,
}

impl FailureKind {
    pub(crate) const ALL: &[Self] = &[
        Self::Syntax,
        Self::UnknownCommand,
        Self::NotFound,
        Self::Conflict,
        Self::RateLimited,
        Self::Unavailable,
        Self::Internal,
    ];

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Syntax => "syntax",
            Self::UnknownCommand => "unknown-command",
            Self::NotFound => "not-found",
            Self::Conflict => "conflict",
            Self::RateLimited => "rate-limited",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }
}

impl Failure {
    pub(crate) fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub(crate) fn syntax(message: impl Into<String>) -> Self {
        Self::new(FailureKind::Syntax, message)
    }

    /// After how many seconds what was refused may be asked again, as `rate-limited` says it on the wire.
    pub(crate) fn retry_after(&self) -> Option<u64> {
        let seconds = self.message.strip_prefix("retry in ")?.strip_suffix(" s")?;
        seconds.parse().ok().filter(|_| self.kind == FailureKind::RateLimited)
    }

    /// The failure of an answer's last line, if it is one.
    pub(crate) fn from_line(line: &str) -> Option<Self> {
        let (kind, message) = line.strip_prefix("error ")?.split_once(' ')?;
        let kind = FailureKind::ALL.iter().copied().find(|k| k.word() == kind)?;
        Some(Self::new(kind, message))
    }
}

/// The answer's last line.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error {} ", self.kind.word())?;
        // A message of several lines must not look like more than one answer.
        let one_line = |c: char| if c.is_control() { ' ' } else { c };
        self.message.chars().map(one_line).try_for_each(|c| write!(f, "{c}"))
    }
}
