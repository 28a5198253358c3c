//! What handlers have at hand: the books, the daemon, and what this installation was told about itself.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Config;
use super::access::{Guests, Identity};
use super::failure::Failure;
use super::hook::Deliveries;
use super::live;
use crate::control::{self, Client};
use crate::db::{Reader, events};
use crate::model::time::Time;
use crate::proto::control::{Command, Request};
use crate::sys::clock;

/// A page that takes longer to find than this helps nobody, and holds a worker.
pub(super) const QUERY: Duration = Duration::from_secs(5);

/// How long the daemon may take for an answer that it can give at once.
const DAEMON: Duration = Duration::from_secs(5);

/// How long a page may wait for what the daemon adds to it.
const HINT: Duration = Duration::from_secs(1);

/// How long a daemon that has kept a page waiting is not asked for such: every worker may wait for it, and nobody who
/// only reads is to wait for them.
const SILENCE: Duration = Duration::from_secs(10);

/// What all workers share.
pub(super) struct Shared {
    pub(super) config: Config,
    /// When this process began, for `/prometheus` and to tell clients that it is another one.
    pub(super) started: Time,
    pub(super) guests: Guests,
    pub(super) deliveries: Deliveries,
    /// Where events are heard.
    pub(super) live: live::Handle,
    /// Until when the daemon is taken to be at a loss for words; locked for a look.
    silent: Mutex<Option<Instant>>,
}

impl Shared {
    pub(super) fn new(config: Config, live: live::Handle) -> Self {
        Self {
            config,
            started: clock::wall(),
            guests: Guests::new(),
            deliveries: Deliveries::default(),
            live,
            silent: Mutex::new(None),
        }
    }

    fn silent(&self) -> MutexGuard<'_, Option<Instant>> {
        // Whole in itself, also after a panic.
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One worker's, for one request at a time.
pub(super) struct Context {
    pub(super) shared: Arc<Shared>,
    reader: Option<Reader>,
    /// The newest event before the first look into the books.
    since: Option<i64>,
    pub(super) now: Time,
    /// Who asks, if that is known.
    pub(super) identity: Option<Identity>,
    /// Whose request it is.
    pub(super) peer: Option<IpAddr>,
    /// What forms of the session must hold; empty without one.
    pub(super) csrf: String,
}

impl Context {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            reader: None,
            since: None,
            now: clock::wall(),
            identity: None,
            peer: None,
            csrf: String::new(),
        }
    }

    /// Begins another request.
    pub(super) fn begin(&mut self) {
        self.now = clock::wall();
        self.since = None;
        self.identity = None;
        self.peer = None;
        self.csrf.clear();
        if let Some(reader) = &mut self.reader
            && reader.limit(clock::now() + QUERY).is_err()
        {
            // It is opened again.
            self.reader = None;
        }
    }

    /// The books, for queries of this request; together they may take [`QUERY`].
    pub(super) fn books(&mut self) -> Result<&Reader, Failure> {
        let reader = match self.reader.take() {
            Some(reader) => reader,
            None => {
                let mut reader = Reader::open(&self.shared.config.database)?;
                reader.limit(clock::now() + QUERY)?;
                reader
            }
        };
        if self.since.is_none() {
            self.since = Some(events::last(&reader)?);
        }
        Ok(self.reader.insert(reader))
    }

    /// The event after which whoever was answered must listen to miss nothing; 0 if it was told nothing.
    pub(super) fn since(&self) -> i64 {
        self.since.unwrap_or(0)
    }

    /// Has the daemon do something for whoever asks, and returns the objects of its answer.
    pub(super) fn ask(&self, command: Command) -> Result<Vec<String>, Failure> {
        self.ask_within(DAEMON, command)
    }

    /// As [`ask`](Self::ask), of a daemon that may take so long for each piece of its answer.
    pub(super) fn ask_within(
        &self,
        within: Duration,
        command: Command,
    ) -> Result<Vec<String>, Failure> {
        ask(&self.shared.config.socket, &Request { by: self.by(), command }, within)
    }

    /// What the daemon adds to an answer that is whole without it: soon, or `None`.
    pub(super) fn hint(&self, command: Command) -> Option<Vec<String>> {
        let asked = clock::now();
        if self.shared.silent().is_some_and(|until| asked < until) {
            return None;
        }
        let answer = self.ask_within(HINT, command).ok();
        let now = clock::now();
        if answer.is_none() && now >= asked + HINT {
            *self.shared.silent() = Some(now + SILENCE);
        }
        answer
    }

    /// A link below the public base, for `href` and `Location`.
    pub(super) fn link(&self, path: &str) -> String {
        format!("{}{path}", self.prefix())
    }

    /// The path of the public base URL, without a last slash.
    pub(super) fn prefix(&self) -> &str {
        let Some(url) = &self.shared.config.parameters.url else { return "" };
        let after = url.split_once("://").map_or("", |(_, rest)| rest);
        after.find('/').map_or("", |slash| after[slash..].trim_end_matches('/'))
    }
}

fn ask(socket: &Path, request: &Request, within: Duration) -> Result<Vec<String>, Failure> {
    let away = |error: &std::io::Error| {
        log::debug!(target: "web", "the daemon does not answer: {error}");
        Failure::Unavailable("The daemon is not running, or does not answer.".to_owned())
    };
    let failure = |error| match error {
        control::Error::Failure(failure) => Failure::from(failure),
        control::Error::Asker(error) | control::Error::Daemon(error) => away(&error),
    };
    let mut client = Client::connect(socket).map_err(|error| away(&error))?;
    client.send(request, Some(within)).map_err(failure)?;
    let mut objects = Vec::new();
    while let Some(object) = client.next().map_err(failure)? {
        objects.push(object);
    }
    Ok(objects)
}
