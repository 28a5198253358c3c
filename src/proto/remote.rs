//! The messages between `remote-server` and workers: Cuirass's, as Guile writes them, and a few of our own that no
//! worker or server of Cuirass's ever gets to misread.
//!
//! A worker of ours says `gorget-worker` once it knows its address. Cuirass's server logs what it does not know and goes
//! on; ours answers `gorget-server`, and from then on both may say what only they understand.

pub(crate) mod link;
pub(crate) mod log;

use std::fmt;

use super::sexp::{self, Sexp};

/// The longest payload that a server takes: a worker with a hundred systems fits many times over.
pub(crate) const MAX_PAYLOAD: usize = 16 * 1024;

/// Guile's worker reads each frame into a buffer of this size and cuts what is longer.
pub(crate) const MAX_REPLY: usize = 4096;

/// The version of what is only ours.
const VERSION: i64 = 1;

/// A worker, as it describes itself. Its last field, `last-seen`, is always 0: whoever reads it has a clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Worker {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) machine: String,
    pub(crate) systems: Vec<String>,
}

/// Why a build did not succeed, as our workers say it besides `build-failed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Failed,
    Dependency,
    TimedOut,
    Silent,
    /// The worker's machine or daemon broke.
    Aborted,
    Canceled,
}

const FAULTS: [(Fault, &str); 6] = [
    (Fault::Failed, "failed"),
    (Fault::Dependency, "dependency"),
    (Fault::TimedOut, "timed-out"),
    (Fault::Silent, "silent"),
    (Fault::Aborted, "aborted"),
    (Fault::Canceled, "canceled"),
];

impl Fault {
    pub(crate) fn word(self) -> &'static str {
        FAULTS.iter().find(|(fault, _)| *fault == self).map_or("failed", |(_, word)| word)
    }

    pub(crate) fn parse(word: &str) -> Option<Self> {
        FAULTS.iter().find(|(_, known)| *known == word).map(|(fault, _)| *fault)
    }
}

/// What a worker says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FromWorker {
    RequestInfo,
    Ready(Worker),
    Ping(Worker),
    RequestWork(String),
    Started {
        derivation: String,
        worker: String,
    },
    Succeeded {
        derivation: String,
        url: String,
    },
    Failed {
        derivation: String,
        url: String,
    },
    /// It understands what is only ours.
    Gorget {
        worker: String,
    },
    /// Precedes `Failed`.
    Fault {
        derivation: String,
        fault: Fault,
        why: String,
    },
}

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ToWorker {
    Info {
        address: String,
        log_port: u16,
        /// `None` when the server publishes nothing.
        publish_port: Option<u16>,
    },
    Build(Build),
    NoBuild,
    /// It understands what is only ours.
    Gorget,
    /// The build is no longer wanted; `Failed` is the answer.
    Cancel {
        derivation: String,
    },
}

/// What a worker is to build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Build {
    pub(crate) derivation: String,
    pub(crate) priority: i64,
    /// Seconds; 0 for none.
    pub(crate) timeout: i64,
    /// Seconds without output; 0 for none.
    pub(crate) max_silent_time: i64,
    pub(crate) system: String,
}

/// What is wrong with a payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Error {
    NotUtf8,
    Syntax(sexp::Error),
    /// Not a list that begins with a symbol.
    NoMessage,
    /// A message that we do not know.
    Unknown(String),
    /// One that we know, of another shape.
    Shape {
        message: &'static str,
        expected: &'static str,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotUtf8 => f.write_str("expected UTF-8"),
            Self::Syntax(error) => error.fmt(f),
            Self::NoMessage => f.write_str("expected a list that begins with a symbol"),
            Self::Unknown(name) => write!(f, "unknown message {name:.40}"),
            Self::Shape { message, expected } => write!(f, "{message}: expected {expected}"),
        }
    }
}

impl std::error::Error for Error {}

impl FromWorker {
    pub(crate) fn parse(payload: &[u8]) -> Result<Self, Error> {
        let (name, fields) = message(payload)?;
        Ok(match name.as_str() {
            "worker-request-info" => Self::RequestInfo,
            "worker-ready" => Self::Ready(worker("worker-ready", &fields)?),
            "worker-ping" => Self::Ping(worker("worker-ping", &fields)?),
            "worker-request-work" => match fields.as_slice() {
                [Sexp::String(name), ..] => Self::RequestWork(name.clone()),
                _ => return shape("worker-request-work", "a worker's name"),
            },
            "build-started" => {
                let fields = Fields { message: "build-started", fields: &fields };
                Self::Started {
                    derivation: fields.text(0, "drv", "(drv STRING)")?,
                    worker: fields.text(1, "worker", "(worker STRING)")?,
                }
            }
            "build-succeeded" => {
                let (derivation, url) = end("build-succeeded", &fields)?;
                Self::Succeeded { derivation, url }
            }
            "build-failed" => {
                let (derivation, url) = end("build-failed", &fields)?;
                Self::Failed { derivation, url }
            }
            "gorget-worker" => {
                let fields = Fields { message: "gorget-worker", fields: &fields };
                Self::Gorget { worker: fields.text(1, "name", "(name STRING)")? }
            }
            "build-fault" => {
                let fields = Fields { message: "build-fault", fields: &fields };
                let word = fields.text(1, "fault", "(fault STRING)")?;
                Self::Fault {
                    derivation: fields.text(0, "drv", "(drv STRING)")?,
                    fault: Fault::parse(&word).unwrap_or(Fault::Failed),
                    why: fields.text(2, "why", "(why STRING)")?,
                }
            }
            _ => return Err(Error::Unknown(name)),
        })
    }
}

impl fmt::Display for FromWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ended = |name, derivation: &str, url: &str| {
            list([
                symbol(name),
                field("drv", string(derivation)),
                field("url", string(url)),
                field("log", Sexp::Bool(false)),
            ])
        };
        match self {
            Self::RequestInfo => list([symbol("worker-request-info")]),
            Self::Ready(worker) => list([symbol("worker-ready"), record(worker)]),
            Self::Ping(worker) => list([symbol("worker-ping"), record(worker)]),
            Self::RequestWork(name) => list([symbol("worker-request-work"), string(name)]),
            Self::Started { derivation, worker } => list([
                symbol("build-started"),
                field("drv", string(derivation)),
                field("worker", string(worker)),
            ]),
            Self::Succeeded { derivation, url } => ended("build-succeeded", derivation, url),
            Self::Failed { derivation, url } => ended("build-failed", derivation, url),
            Self::Gorget { worker } => list([
                symbol("gorget-worker"),
                field("version", Sexp::Integer(VERSION)),
                field("name", string(worker)),
            ]),
            Self::Fault { derivation, fault, why } => list([
                symbol("build-fault"),
                field("drv", string(derivation)),
                field("fault", string(fault.word())),
                field("why", string(why)),
            ]),
        }
        .fmt(f)
    }
}

impl ToWorker {
    pub(crate) fn parse(payload: &[u8]) -> Result<Self, Error> {
        let (name, fields) = message(payload)?;
        Ok(match name.as_str() {
            "server-info" => {
                let fields = Fields { message: "server-info", fields: &fields };
                let port = |at, name, expected| -> Result<Option<u16>, Error> {
                    match fields.value(at, name, expected)? {
                        Sexp::Integer(port) => {
                            u16::try_from(*port).map(Some).or(fields.wrong(expected))
                        }
                        Sexp::Bool(false) => Ok(None),
                        _ => fields.wrong(expected),
                    }
                };
                Self::Info {
                    address: fields.text(0, "worker-address", "(worker-address STRING)")?,
                    log_port: match port(1, "log-port", "(log-port PORT)")? {
                        Some(port) => port,
                        None => return fields.wrong("(log-port PORT)"),
                    },
                    publish_port: port(
                        2,
                        "publish-port",
                        "(publish-port PORT) or (publish-port #f)",
                    )?,
                }
            }
            "build" => {
                let fields = Fields { message: "build", fields: &fields };
                Self::Build(Build {
                    derivation: fields.text(0, "drv", "(drv STRING)")?,
                    priority: fields.number(1, "priority", "(priority INTEGER)")?,
                    timeout: fields.number(2, "timeout", "(timeout SECONDS)")?,
                    max_silent_time: fields.number(3, "max-silent", "(max-silent SECONDS)")?,
                    system: fields.text(5, "system", "(system STRING)")?,
                })
            }
            "no-build" => Self::NoBuild,
            "gorget-server" => Self::Gorget,
            "cancel-build" => {
                let fields = Fields { message: "cancel-build", fields: &fields };
                Self::Cancel { derivation: fields.text(0, "drv", "(drv STRING)")? }
            }
            _ => return Err(Error::Unknown(name)),
        })
    }
}

impl fmt::Display for ToWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Info { address, log_port, publish_port } => list([
                symbol("server-info"),
                field("worker-address", string(address)),
                field("log-port", Sexp::Integer((*log_port).into())),
                field(
                    "publish-port",
                    publish_port.map_or(Sexp::Bool(false), |port| Sexp::Integer(port.into())),
                ),
            ]),
            Self::Build(build) => list([
                symbol("build"),
                field("drv", string(&build.derivation)),
                field("priority", Sexp::Integer(build.priority)),
                field("timeout", Sexp::Integer(build.timeout)),
                field("max-silent", Sexp::Integer(build.max_silent_time)),
                field("timestamp", Sexp::Bool(false)),
                field("system", string(&build.system)),
            ]),
            Self::NoBuild => list([symbol("no-build")]),
            Self::Gorget => {
                list([symbol("gorget-server"), field("version", Sexp::Integer(VERSION))])
            }
            Self::Cancel { derivation } => {
                list([symbol("cancel-build"), field("drv", string(derivation))])
            }
        }
        .fmt(f)
    }
}

/// The name of a message and its fields. What comes after the first datum is not looked at, as Guile does not.
fn message(payload: &[u8]) -> Result<(String, Vec<Sexp>), Error> {
    let text = std::str::from_utf8(payload).map_err(|_| Error::NotUtf8)?;
    let (datum, _) = sexp::parse(text).map_err(Error::Syntax)?;
    let Sexp::List(mut fields) = datum else { return Err(Error::NoMessage) };
    match fields.first_mut() {
        Some(Sexp::Symbol(name)) => {
            let name = std::mem::take(name);
            fields.remove(0);
            Ok((name, fields))
        }
        _ => Err(Error::NoMessage),
    }
}

fn shape<T>(message: &'static str, expected: &'static str) -> Result<T, Error> {
    Err(Error::Shape { message, expected })
}

/// Fields `(NAME VALUE)`, each at its place; there may be more of them than we know.
struct Fields<'a> {
    message: &'static str,
    fields: &'a [Sexp],
}

impl Fields<'_> {
    fn wrong<T>(&self, expected: &'static str) -> Result<T, Error> {
        shape(self.message, expected)
    }

    fn value(&self, at: usize, name: &str, expected: &'static str) -> Result<&Sexp, Error> {
        match self.fields.get(at) {
            Some(Sexp::List(pair)) => match pair.as_slice() {
                [Sexp::Symbol(found), value] if found == name => Ok(value),
                _ => self.wrong(expected),
            },
            _ => self.wrong(expected),
        }
    }

    fn text(&self, at: usize, name: &str, expected: &'static str) -> Result<String, Error> {
        match self.value(at, name, expected)? {
            Sexp::String(text) => Ok(text.clone()),
            _ => self.wrong(expected),
        }
    }

    /// `#f` is 0.
    fn number(&self, at: usize, name: &str, expected: &'static str) -> Result<i64, Error> {
        match self.value(at, name, expected)? {
            Sexp::Integer(number) if *number >= 0 => Ok(*number),
            Sexp::Bool(false) => Ok(0),
            _ => self.wrong(expected),
        }
    }
}

fn worker(message: &'static str, fields: &[Sexp]) -> Result<Worker, Error> {
    const EXPECTED: &str = "(worker (name STRING) (address STRING) (machine STRING) (systems (STRING …)) (last-seen INTEGER))";
    let Some(Sexp::List(record)) = fields.first() else { return shape(message, EXPECTED) };
    let [Sexp::Symbol(tag), record @ ..] = record.as_slice() else {
        return shape(message, EXPECTED);
    };
    if tag != "worker" {
        return shape(message, EXPECTED);
    }
    let fields = Fields { message, fields: record };
    let Sexp::List(systems) = fields.value(3, "systems", EXPECTED)? else {
        return shape(message, EXPECTED);
    };
    let system = |system: &Sexp| match system {
        Sexp::String(system) => Ok(system.clone()),
        _ => shape(message, EXPECTED),
    };
    fields.value(4, "last-seen", EXPECTED)?;
    Ok(Worker {
        name: fields.text(0, "name", EXPECTED)?,
        address: fields.text(1, "address", EXPECTED)?,
        machine: fields.text(2, "machine", EXPECTED)?,
        systems: systems.iter().map(system).collect::<Result<_, _>>()?,
    })
}

fn end(message: &'static str, fields: &[Sexp]) -> Result<(String, String), Error> {
    let fields = Fields { message, fields };
    Ok((fields.text(0, "drv", "(drv STRING)")?, fields.text(1, "url", "(url STRING)")?))
}

fn record(worker: &Worker) -> Sexp {
    list([
        symbol("worker"),
        field("name", string(&worker.name)),
        field("address", string(&worker.address)),
        field("machine", string(&worker.machine)),
        field("systems", Sexp::List(worker.systems.iter().map(|system| string(system)).collect())),
        field("last-seen", Sexp::Integer(0)),
    ])
}

fn list<const N: usize>(elements: [Sexp; N]) -> Sexp {
    Sexp::List(elements.into())
}

fn symbol(name: &str) -> Sexp {
    Sexp::Symbol(name.to_owned())
}

fn string(text: &str) -> Sexp {
    Sexp::String(text.to_owned())
}

fn field(name: &str, value: Sexp) -> Sexp {
    list([symbol(name), value])
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRV: &str = "/gnu/store/630anh2v63k4dgs6vdr2dgrjn418nrmi-hello-2.12.drv";

    fn some_worker() -> Worker {
        Worker {
            name: "AbCd1234".to_owned(),
            address: "10.0.0.2".to_owned(),
            machine: "ruche".to_owned(),
            systems: vec!["x86_64-linux".to_owned(), "i686-linux".to_owned()],
        }
    }

    fn from_workers() -> Vec<(String, FromWorker)> {
        let derivation = || DRV.to_owned();
        let record = r#"(worker (name "AbCd1234") (address "10.0.0.2") (machine "ruche") (systems ("x86_64-linux" "i686-linux")) (last-seen 0))"#;
        let url = || "http://10.0.0.2:5558".to_owned();
        vec![
            ("(worker-request-info)".to_owned(), FromWorker::RequestInfo),
            (format!("(worker-ready {record})"), FromWorker::Ready(some_worker())),
            (format!("(worker-ping {record})"), FromWorker::Ping(some_worker())),
            (
                r#"(worker-request-work "AbCd1234")"#.to_owned(),
                FromWorker::RequestWork("AbCd1234".to_owned()),
            ),
            (
                format!(r#"(build-started (drv "{DRV}") (worker "AbCd1234"))"#),
                FromWorker::Started { derivation: derivation(), worker: "AbCd1234".to_owned() },
            ),
            (
                format!(r#"(build-succeeded (drv "{DRV}") (url "http://10.0.0.2:5558") (log #f))"#),
                FromWorker::Succeeded { derivation: derivation(), url: url() },
            ),
            (
                format!(r#"(build-failed (drv "{DRV}") (url "http://10.0.0.2:5558") (log #f))"#),
                FromWorker::Failed { derivation: derivation(), url: url() },
            ),
            (
                r#"(gorget-worker (version 1) (name "AbCd1234"))"#.to_owned(),
                FromWorker::Gorget { worker: "AbCd1234".to_owned() },
            ),
            (
                format!(r#"(build-fault (drv "{DRV}") (fault "timed-out") (why "a \"b\""))"#),
                FromWorker::Fault {
                    derivation: derivation(),
                    fault: Fault::TimedOut,
                    why: "a \"b\"".to_owned(),
                },
            ),
        ]
    }

    fn to_workers() -> Vec<(String, ToWorker)> {
        let info = |publish_port| ToWorker::Info {
            address: "127.0.0.1".to_owned(),
            log_port: 5556,
            publish_port,
        };
        vec![
            // Captured from Cuirass.
            (
                r#"(server-info (worker-address "127.0.0.1") (log-port 5556) (publish-port #f))"#
                    .to_owned(),
                info(None),
            ),
            (
                r#"(server-info (worker-address "127.0.0.1") (log-port 5556) (publish-port 5557))"#
                    .to_owned(),
                info(Some(5557)),
            ),
            (
                format!(
                    r#"(build (drv "{DRV}") (priority 9) (timeout 72000) (max-silent 3600) (timestamp #f) (system "x86_64-linux"))"#
                ),
                ToWorker::Build(Build {
                    derivation: DRV.to_owned(),
                    priority: 9,
                    timeout: 72000,
                    max_silent_time: 3600,
                    system: "x86_64-linux".to_owned(),
                }),
            ),
            ("(no-build)".to_owned(), ToWorker::NoBuild),
            ("(gorget-server (version 1))".to_owned(), ToWorker::Gorget),
            (
                format!(r#"(cancel-build (drv "{DRV}"))"#),
                ToWorker::Cancel { derivation: DRV.to_owned() },
            ),
        ]
    }

    #[test]
    fn messages_are_written_as_guile_writes_them_and_read_again() {
        for (text, message) in from_workers() {
            assert_eq!(message.to_string(), text);
            assert_eq!(FromWorker::parse(text.as_bytes()), Ok(message), "{text}");
        }
        for (text, message) in to_workers() {
            assert_eq!(message.to_string(), text);
            assert_eq!(ToWorker::parse(text.as_bytes()), Ok(message), "{text}");
            assert!(text.len() <= MAX_REPLY);
        }
    }

    #[test]
    fn a_server_takes_more_fields_than_it_knows_and_what_follows() {
        let record = r#"(worker (name "n") (address "a") (machine "m") (systems ()) (last-seen 7) (cores 8))"#;
        let message = FromWorker::parse(format!("(worker-ping {record} more) (x").as_bytes());
        assert!(matches!(message, Ok(FromWorker::Ping(worker)) if worker.systems.is_empty()));
        let none = r#"(build (drv "d") (priority 9) (timeout #f) (max-silent #f) (timestamp #f) (system "s"))"#;
        let Ok(ToWorker::Build(build)) = ToWorker::parse(none.as_bytes()) else { panic!("{none}") };
        assert_eq!((build.timeout, build.max_silent_time), (0, 0));
    }

    #[test]
    fn what_is_no_message_is_an_error_that_says_why() {
        let nested = "(".repeat(5000);
        for (payload, expected) in [
            ("(", "expected a closing parenthesis at byte 1"),
            ("", "expected a datum at byte 0"),
            ("#<x>", "expected #t, #f or #{…}# at byte 0"),
            (nested.as_str(), "expected less nesting at byte 33"),
            ("\"x\"", "expected a list that begins with a symbol"),
            ("()", "expected a list that begins with a symbol"),
            ("(worker-reddy)", "unknown message worker-reddy"),
            ("(worker-request-work 7)", "worker-request-work: expected a worker's name"),
            (
                r#"(worker-ready (worker (name "n") (address "a") (systems ()) (last-seen 0)))"#,
                "worker-ready: expected (worker (name STRING) (address STRING) (machine STRING) (systems (STRING …)) (last-seen INTEGER))",
            ),
            (r#"(build-started (worker "x"))"#, "build-started: expected (drv STRING)"),
        ] {
            let error = FromWorker::parse(payload.as_bytes()).unwrap_err();
            assert_eq!(error.to_string(), expected, "{payload:.60}");
        }
        assert_eq!(FromWorker::parse(b"(\xff)"), Err(Error::NotUtf8));
    }
}
