//! What is said on `run/remote`: between `remote-server` and the daemon's remote backend, and to whoever looks with
//! `socat`.
//!
//! A request is one line of words, its answer JSON objects, a line each, and then `ok` or `error KIND MESSAGE`, as on the
//! bridge. After `subscribe` or `attach` events come besides, lines with a JSON object that has the field `event`; first
//! those that tell how things stand, then `ready`. Answers and events are never mixed within one another.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::build::BuildId;
use crate::proto::control::{Failure, FailureKind};

/// One try of a build, by which both sides know an assignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Try {
    pub(crate) build: BuildId,
    pub(crate) attempt: i64,
}

impl fmt::Display for Try {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.build, self.attempt)
    }
}

/// Every command and its arguments, as `help` lists them.
pub(crate) const HELP: &[(&str, &str)] = &[
    ("help", "this list"),
    ("version", "the server's version"),
    ("status", "ports, how many there are of what, who is attached"),
    ("workers", "the workers that are connected"),
    ("builds", "what they have to build"),
    ("subscribe", "how things stand, and what happens from then on"),
    ("attach", "the same, as the one who assigns"),
    (
        "assign BUILD ATTEMPT WORKER DERIVATION SYSTEM [priority=N] [timeout=S] [max-silent=S]",
        "answer a worker's request",
    ),
    ("adopt BUILD ATTEMPT WORKER DERIVATION", "tell of an assignment of an earlier server"),
    ("settle BUILD ATTEMPT", "forget how it ended"),
    ("cancel BUILD ATTEMPT", "stop a build, or drop what is said of it"),
];

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Help,
    Version,
    Status,
    Workers,
    /// The assignments there are.
    Builds,
    /// Hears events.
    Subscribe,
    /// Hears events and is the one that assigns; there is one at a time.
    Attach,
    /// Answers a worker's request with a build. Only whoever is attached may say this and what follows.
    Assign(Assign),
    /// Tells of an assignment of an earlier server: the worker may be building, or may have said how it ended.
    Adopt(Adopt),
    /// How it ended is in the books: it may be forgotten.
    Settle(Try),
    /// Nobody wants it any more: a worker that can is told to stop, and what it says of it is not passed on.
    Cancel(Try),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Assign {
    pub(crate) of: Try,
    pub(crate) worker: String,
    pub(crate) derivation: String,
    pub(crate) system: String,
    pub(crate) priority: i64,
    /// Seconds; 0 for none.
    pub(crate) timeout: i64,
    /// Seconds without output; 0 for none.
    pub(crate) max_silent_time: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Adopt {
    pub(crate) of: Try,
    pub(crate) worker: String,
    pub(crate) derivation: String,
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Help => f.write_str("help"),
            Self::Version => f.write_str("version"),
            Self::Status => f.write_str("status"),
            Self::Workers => f.write_str("workers"),
            Self::Builds => f.write_str("builds"),
            Self::Subscribe => f.write_str("subscribe"),
            Self::Attach => f.write_str("attach"),
            Self::Assign(Assign {
                of,
                worker,
                derivation,
                system,
                priority,
                timeout,
                max_silent_time,
            }) => write!(
                f,
                "assign {of} {} {} {} priority={priority} timeout={timeout} max-silent={max_silent_time}",
                shell_words::quote(worker),
                shell_words::quote(derivation),
                shell_words::quote(system),
            ),
            Self::Adopt(Adopt { of, worker, derivation }) => {
                let (worker, derivation) =
                    (shell_words::quote(worker), shell_words::quote(derivation));
                write!(f, "adopt {of} {worker} {derivation}")
            }
            Self::Settle(of) => write!(f, "settle {of}"),
            Self::Cancel(of) => write!(f, "cancel {of}"),
        }
    }
}

impl Command {
    pub(crate) fn parse(line: &str) -> Result<Self, Failure> {
        let words = shell_words::split(line)
            .map_err(|_| Failure::syntax("a quotation mark is not closed"))?;
        let mut words = words.into_iter();
        let Some(name) = words.next() else {
            return Err(Failure::syntax("expected a command"));
        };
        let mut words = Words { command: name, words: words.collect() };
        let command = match words.command.as_str() {
            "help" => Self::Help,
            "version" => Self::Version,
            "status" => Self::Status,
            "workers" => Self::Workers,
            "builds" => Self::Builds,
            "subscribe" => Self::Subscribe,
            "attach" => Self::Attach,
            "assign" => Self::Assign(Assign {
                priority: words.option("priority")?,
                timeout: words.option("timeout")?,
                max_silent_time: words.option("max-silent")?,
                of: words.which()?,
                worker: words.next("a worker's name")?,
                derivation: words.next("a derivation")?,
                system: words.next("a system")?,
            }),
            "adopt" => Self::Adopt(Adopt {
                of: words.which()?,
                worker: words.next("a worker's name")?,
                derivation: words.next("a derivation")?,
            }),
            "settle" => Self::Settle(words.which()?),
            "cancel" => Self::Cancel(words.which()?),
            name => {
                let message = format!("{name}; try help");
                return Err(Failure::new(FailureKind::UnknownCommand, message));
            }
        };
        words.end()?;
        Ok(command)
    }
}

struct Words {
    command: String,
    words: Vec<String>,
}

impl Words {
    fn expected<T>(&self, expected: &str) -> Result<T, Failure> {
        Err(Failure::syntax(format!("{}: expected {expected}", self.command)))
    }

    fn next(&mut self, expected: &str) -> Result<String, Failure> {
        if self.words.is_empty() {
            return self.expected(expected);
        }
        Ok(self.words.remove(0))
    }

    fn number(&mut self, expected: &str) -> Result<i64, Failure> {
        let word = self.next(expected)?;
        match word.parse() {
            Ok(number) if number >= 0 => Ok(number),
            Ok(_) | Err(_) => self.expected(&format!("{expected}, found {word:?}")),
        }
    }

    fn which(&mut self) -> Result<Try, Failure> {
        Ok(Try {
            build: BuildId(self.number("the number of a build")?),
            attempt: self.number("the number of a try")?,
        })
    }

    /// `NAME=NUMBER`, wherever it stands; 0 if it does not.
    fn option(&mut self, name: &str) -> Result<i64, Failure> {
        let value = |word: &str| {
            word.strip_prefix(name).and_then(|rest| rest.strip_prefix('=')).map(str::to_owned)
        };
        let Some(at) = self.words.iter().position(|word| value(word).is_some()) else {
            return Ok(0);
        };
        let word = self.words.remove(at);
        match value(&word).and_then(|value| value.parse().ok()) {
            Some(number) if number >= 0 => Ok(number),
            Some(_) | None => self.expected(&format!("{name}=NUMBER, found {word:?}")),
        }
    }

    fn end(&self) -> Result<(), Failure> {
        match self.words.first() {
            None => Ok(()),
            Some(word) => self.expected(&format!("nothing more, found {word:?}")),
        }
    }
}

/// A worker, as it is told of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct WorkerView {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) machine: String,
    pub(crate) systems: Vec<String>,
    /// When it last said that it lives, in Unix seconds.
    pub(crate) last_seen: i64,
    /// Whether it waits for work.
    pub(crate) requesting: bool,
    /// What it has to build.
    pub(crate) build: Option<i64>,
}

/// How far an assignment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Phase {
    /// The worker was told and has not begun.
    Sent,
    Started,
    /// Told of by the daemon, after a restart of the server: the worker has not been heard of since.
    Adopted,
    /// Its end was reported, and is not settled.
    Reported,
}

/// An assignment, as it is told of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct AssignmentView {
    pub(crate) build: i64,
    pub(crate) attempt: i64,
    pub(crate) worker: String,
    pub(crate) derivation: String,
    pub(crate) phase: Phase,
    /// Where its log is written, once it has begun.
    pub(crate) log: Option<String>,
    /// How it ended, when that was reported.
    pub(crate) report: Option<Report>,
}

/// How a build ended, by its worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "outcome")]
pub(crate) enum Report {
    /// Its outputs can be fetched from `url`.
    Succeeded { url: String },
    Failed {
        /// One of the words of [`super::Fault`]; Guile's workers know `failed` only.
        fault: String,
        /// Why, if the worker said so.
        why: Option<String>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub(crate) enum Event {
    /// There is this worker; also, before `ready`, for each there is.
    WorkerJoined {
        worker: WorkerView,
    },
    /// It has said that it lives.
    WorkerSeen {
        worker: String,
        time: i64,
    },
    /// It is gone for good: what it had to build is told of by `lost`.
    WorkerLeft {
        worker: String,
        why: String,
    },
    /// It wants work.
    Requested {
        worker: String,
    },
    /// It wants none any more.
    Withdrawn {
        worker: String,
    },
    /// Before `ready`: there is this assignment.
    Assigned {
        assignment: AssignmentView,
    },
    Started {
        build: i64,
        attempt: i64,
        log: String,
    },
    Reported {
        build: i64,
        attempt: i64,
        report: Report,
    },
    /// Nobody builds it any more, and the server has forgotten it.
    Lost {
        build: i64,
        attempt: i64,
        /// Whether the worker had begun.
        started: bool,
        why: String,
    },
    /// All that there was has been told.
    Ready,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of() -> Try {
        Try { build: BuildId(7), attempt: 2 }
    }

    #[test]
    fn commands_are_read_as_they_are_written() {
        let assign = Assign {
            of: of(),
            worker: "AbCd1234".to_owned(),
            derivation: "/gnu/store/h-x.drv".to_owned(),
            system: "x86_64-linux".to_owned(),
            priority: 99,
            timeout: 72000,
            max_silent_time: 0,
        };
        let adopt = Adopt {
            of: of(),
            worker: "a b".to_owned(),
            derivation: "/gnu/store/h-x.drv".to_owned(),
        };
        for (line, command) in [
            ("help", Command::Help),
            ("attach", Command::Attach),
            (
                "assign 7 2 AbCd1234 /gnu/store/h-x.drv x86_64-linux priority=99 timeout=72000 max-silent=0",
                Command::Assign(assign),
            ),
            ("adopt 7 2 'a b' /gnu/store/h-x.drv", Command::Adopt(adopt)),
            ("settle 7 2", Command::Settle(of())),
            ("cancel 7 2", Command::Cancel(of())),
        ] {
            assert_eq!(command.to_string(), line);
            assert_eq!(Command::parse(line), Ok(command));
        }
    }

    #[test]
    fn what_is_no_command_is_an_error_that_says_why() {
        for (line, expected) in [
            ("", "error syntax expected a command"),
            ("frob", "error unknown-command frob; try help"),
            ("workers all", "error syntax workers: expected nothing more, found \"all\""),
            ("settle", "error syntax settle: expected the number of a build"),
            ("settle x 1", "error syntax settle: expected the number of a build, found \"x\""),
            ("settle 1 -1", "error syntax settle: expected the number of a try, found \"-1\""),
            (
                "assign 1 1 w d s timeout=soon",
                "error syntax assign: expected timeout=NUMBER, found \"timeout=soon\"",
            ),
            ("adopt 1 1 w", "error syntax adopt: expected a derivation"),
        ] {
            assert_eq!(Command::parse(line).unwrap_err().to_string(), expected, "{line}");
        }
    }

    #[test]
    fn events_are_flat_objects_with_a_name() {
        let report = Report::Failed { fault: "timed-out".to_owned(), why: None };
        let event = Event::Reported { build: 7, attempt: 2, report };
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(
            text,
            r#"{"event":"reported","build":7,"attempt":2,"report":{"outcome":"failed","fault":"timed-out","why":null}}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), event);
    }
}
