//! Hears events from the daemon once, and tells them to all who listen.
//!
//! Invariant: telling never waits. A listener whose lane is full is dropped; it finds its lane closed behind what it
//! was told before.
//!
//! `web/bridge` blocks on the daemon's socket and only turns lines into messages. It is woken by `web/events`, which
//! shuts the socket down when the process is to stop.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Shutdown};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};
use serde::Deserialize;

use crate::actor::{Gone, Spawner, Stop, ask};
use crate::control::Client;
use crate::db::web::downloads;
use crate::db::{Reader, events};
use crate::model::build::BuildId;
use crate::model::evaluation::EvaluationId;
use crate::model::spec::JobsetName;
use crate::proto::control::{Command, Request};
use crate::web::Config;
use crate::web::failure::Failure;
use crate::web::seats::{Seat, Seats};

/// What may wait for one listener: it writes at most every tenth of a second, in which a busy daemon tells hundreds.
const ROOM: usize = 1024;

/// The same for one who follows a log, of whom there are many: it looks four times a second, and only for whether there
/// was something.
const FOLLOWED: usize = 64;

/// Whoever listens to events or logs: each costs a thread.
const LISTENERS: usize = 1_100;
const LISTENERS_EACH: usize = 32;

/// Whoever follows a log as text: that such a client has gone shows with the next line only, so that they must not
/// take the places of others.
const FOLLOWERS: usize = 64;
const FOLLOWERS_EACH: usize = 8;

/// Lines from the daemon that wait to be told.
const INBOX: usize = 1024;

/// Between two attempts to reach the daemon: at first, and at most.
const SOON: Duration = Duration::from_millis(250);
const LATE: Duration = Duration::from_secs(10);

/// What is listened to; what is not said selects nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) jobset: Option<JobsetName>,
    pub(super) evaluation: Option<EvaluationId>,
    pub(super) build: Option<BuildId>,
}

/// An event as the bridge tells it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Heard {
    pub(super) id: i64,
    pub(super) event: String,
    pub(super) jobset: Option<String>,
    pub(super) evaluation: Option<i64>,
    pub(super) build: Option<i64>,
    /// The line it came as.
    #[serde(skip)]
    pub(super) line: String,
}

#[derive(Clone, Debug)]
pub(super) enum Told {
    Event(Arc<Heard>),
    /// Events up to this are lost.
    Overflow(i64),
    /// Whether the daemon is there.
    Daemon(bool),
}

/// A listener's end.
pub(in crate::web) struct Subscription {
    pub(super) lane: Receiver<Told>,
    /// Whether the daemon was there when it began.
    pub(super) up: bool,
}

struct Subscriber {
    filter: Filter,
    lane: Sender<Told>,
}

struct Subscribe {
    filter: Filter,
    room: usize,
    reply: Sender<Subscription>,
}

/// From the thread that listens to the daemon.
enum Message {
    Up(Arc<UnixStream>),
    Line(String),
    Down,
}

#[derive(Clone)]
pub(in crate::web) struct Handle {
    inbox: Sender<Subscribe>,
    listeners: Seats,
    followers: Seats,
    up: Arc<AtomicBool>,
}

impl Handle {
    /// Whether the daemon can be heard, as far as is known: every page says it, and asks nobody.
    pub(in crate::web) fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    pub(super) fn subscribe(&self, filter: Filter) -> Result<Subscription, Gone> {
        ask(&self.inbox, |reply| Subscribe { filter, room: ROOM, reply })
    }

    /// As [`subscribe`](Self::subscribe), for one who wants to know that something happened, not what.
    pub(super) fn watch(&self, filter: Filter) -> Result<Subscription, Gone> {
        ask(&self.inbox, |reply| Subscribe { filter, room: FOLLOWED, reply })
    }

    /// A place for one who listens.
    pub(super) fn listener(&self, address: IpAddr) -> Result<Seat, Failure> {
        self.listeners.take(address).ok_or_else(full)
    }

    /// A place for one who follows a log as text.
    pub(in crate::web) fn follower(&self, address: IpAddr) -> Result<Seat, Failure> {
        self.followers.take(address).ok_or_else(full)
    }
}

fn full() -> Failure {
    Failure::TooMany("Too many listen already; try again soon.".to_owned(), 10)
}

pub(in crate::web) fn spawn(threads: &Spawner, config: &Config) -> io::Result<Handle> {
    let (inbox, orders) = bounded(INBOX);
    let (lane, messages) = bounded(INBOX);
    let (socket, database) = (config.socket.clone(), config.database.clone());
    // Nobody is told that it is away before it was looked for.
    let up = Arc::new(AtomicBool::new(true));
    let hub_up = Arc::clone(&up);
    // What happens from now on is heard even if the daemon can only be reached later.
    let last = Reader::open(&database).and_then(|reader| events::last(&reader)).ok();
    threads.child("web/bridge", move |stop| listen(&socket, last, &lane, &stop), |_| {})?;
    threads
        .essential("web/events", move |stop| run(&orders, &messages, database, hub_up, &stop))?;
    Ok(Handle {
        inbox,
        listeners: Seats::new(LISTENERS, LISTENERS_EACH),
        followers: Seats::new(FOLLOWERS, FOLLOWERS_EACH),
        up,
    })
}

/// Turns what the daemon tells into messages, and comes back when it does.
fn listen(
    socket: &std::path::Path,
    mut last: Option<i64>,
    lane: &Sender<Message>,
    stop: &Stop,
) -> Result<(), Gone> {
    let mut wait = SOON;
    loop {
        if let Err(error) = hear(socket, &mut last, lane, &mut wait)? {
            log::debug!(target: "web/events", "the daemon cannot be heard: {error}");
        }
        lane.send(Message::Down)?;
        if stop.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
            return Ok(());
        }
        wait = (wait * 2).min(LATE);
    }
}

/// Listens on one connection to its end.
fn hear(
    socket: &std::path::Path,
    last: &mut Option<i64>,
    lane: &Sender<Message>,
    wait: &mut Duration,
) -> Result<Result<(), String>, Gone> {
    let mut client = match Client::connect(socket) {
        Ok(client) => client,
        Err(error) => return Ok(Err(error.to_string())),
    };
    lane.send(Message::Up(client.stream()))?;
    let command = Command::Subscribe { jobset: None, from: *last };
    if let Err(error) = client.send(&Request { by: None, command }, None) {
        return Ok(Err(format!("{error:?}")));
    }
    loop {
        match client.next() {
            Ok(Some(line)) => {
                *wait = SOON;
                if let Ok(heard) = serde_json::from_str::<Heard>(&line) {
                    *last = Some(heard.id);
                }
                lane.send(Message::Line(line))?;
            }
            Ok(None) => return Ok(Ok(())),
            Err(error) => return Ok(Err(format!("{error:?}"))),
        }
    }
}

fn run(
    orders: &Receiver<Subscribe>,
    messages: &Receiver<Message>,
    database: PathBuf,
    up: Arc<AtomicBool>,
    stop: &Stop,
) -> Result<(), Gone> {
    let books = Books { database, reader: None };
    let mut hub = Hub { subscribers: Vec::new(), stream: None, up, books };
    loop {
        select! {
            recv(stop) -> _ => {
                hub.hang_up();
                return Ok(());
            }
            recv(orders) -> order => {
                let Subscribe { filter, room, reply } = order?;
                let (lane, receiver) = bounded(room);
                hub.subscribers.push(Subscriber { filter, lane });
                // One that has given up is dropped with the next event.
                let _ = reply.send(Subscription { lane: receiver, up: hub.stream.is_some() });
            }
            recv(messages) -> message => hub.on_message(message?),
        }
    }
}

struct Hub {
    subscribers: Vec<Subscriber>,
    /// To the daemon, while it is there.
    stream: Option<Arc<UnixStream>>,
    /// The same for [`Handle::is_up`].
    up: Arc<AtomicBool>,
    books: Books,
}

impl Hub {
    fn hang_up(&self) {
        if let Some(stream) = &self.stream {
            // It may be closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn on_message(&mut self, message: Message) {
        match message {
            Message::Up(stream) => {
                self.stream = Some(stream);
                self.up.store(true, Ordering::Relaxed);
                self.tell(&Told::Daemon(true));
            }
            Message::Down => {
                self.up.store(false, Ordering::Relaxed);
                if self.stream.take().is_some() {
                    self.tell(&Told::Daemon(false));
                }
            }
            Message::Line(line) => match serde_json::from_str::<Heard>(&line) {
                Ok(heard) if heard.event == "overflow" => self.tell(&Told::Overflow(heard.id)),
                Ok(heard) => self.tell_event(Heard { line, ..heard }),
                Err(error) => log::warn!(target: "web/events", "not an event: {error}"),
            },
        }
    }

    fn tell(&mut self, told: &Told) {
        self.subscribers.retain(|subscriber| subscriber.lane.try_send(told.clone()).is_ok());
    }

    fn tell_event(&mut self, heard: Heard) {
        let heard = Arc::new(heard);
        let (books, mut asked) = (&mut self.books, Asked::default());
        self.subscribers.retain(|subscriber| {
            let wanted = wants(&subscriber.filter, &heard, books, &mut asked);
            !wanted || subscriber.lane.try_send(Told::Event(Arc::clone(&heard))).is_ok()
        });
    }
}

/// What the books said about one event, lest they are asked again for the next listener.
#[derive(Default)]
pub(super) struct Asked {
    jobsets: HashMap<JobsetName, bool>,
    evaluations: HashMap<EvaluationId, bool>,
}

/// A connection that is opened when it is first needed.
pub(super) struct Books {
    pub(super) database: PathBuf,
    pub(super) reader: Option<Reader>,
}

impl Books {
    fn reader(&mut self) -> Option<&Reader> {
        if self.reader.is_none() {
            self.reader = Reader::open(&self.database).ok();
        }
        self.reader.as_ref()
    }
}

/// Whether an event matters to one who listens by `filter`. A build belongs to all evaluations and jobsets that have
/// a job for it; the event names the first.
pub(super) fn wants(filter: &Filter, heard: &Heard, books: &mut Books, asked: &mut Asked) -> bool {
    let build = heard.build.map(BuildId);
    if filter.build.is_some() && filter.build != build {
        return false;
    }
    if let Some(id) = filter.evaluation
        && heard.evaluation != Some(id.0)
    {
        let Some(build) = build else { return false };
        let known = asked.evaluations.entry(id).or_insert_with(|| {
            books.reader().is_none_or(|r| downloads::is_of_evaluation(r, build, id).unwrap_or(true))
        });
        if !*known {
            return false;
        }
    }
    if let Some(jobset) = &filter.jobset
        && heard.jobset.as_deref() != Some(jobset.as_str())
    {
        let Some(build) = build else { return false };
        let known = asked.jobsets.entry(jobset.clone()).or_insert_with(|| {
            books.reader().is_none_or(|r| downloads::is_of_jobset(r, build, jobset).unwrap_or(true))
        });
        if !*known {
            return false;
        }
    }
    true
}
