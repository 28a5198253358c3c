//! The actor `router`: owns the ZeroMQ sockets and the hall, and is asked by the control socket and the log server.
//!
//! It blocks in `zmq_poll`. A message to its inbox comes with a count on an eventfd, which wakes it; the thread
//! `router/stop` wakes it at the stop. ZeroMQ sockets never leave its thread.
//!
//! libzmq cannot be told to close one peer's connection. Its descriptor is known, though: shut down, it is closed by libzmq
//! as any that breaks. Until then nothing that comes over it is listened to.

mod wire;

use std::io;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, SendError, Sender, TrySendError, bounded};
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::Serialize;

use super::desk::{Desk, Number};
use super::hall::{Effect, From, Hall, Now, Permit, Settings};
use super::logs;
use super::peers::{Link, News, Peers};
use crate::actor::{self, Gone, PATIENCE, Spawner, Stop};
use crate::proto::control::view::{HelpView, VersionView, json};
use crate::proto::control::{Failure, FailureKind};
use crate::proto::remote::link::{Command, Event, HELP, Try, WorkerView};
use crate::sys::{clock, socket};
use wire::{Frames, Wire};

/// Messages that may wait: some for each client, and those of log connections that begin.
const INBOX: usize = 1024;

/// Messages of a kind that are taken in a turn, so that none waits long behind another kind.
const TURN: usize = 16;

/// Connections at once: two for each worker there may be, and some that are on their way out.
const MAX_CONNECTIONS: usize = 4608;

/// Connections from one address: many workers may be behind it, and not all that there is room for.
const MAX_OF_ONE: usize = MAX_CONNECTIONS / 2;

/// How often it is looked whether a peer fills our memory with a message that does not end.
const SURVEY: Duration = Duration::from_secs(5);

/// Between two lines of the log about peers that say nonsense.
const COMPLAINT: Duration = Duration::from_secs(10);

/// What others may ask of the router.
pub(super) enum Message {
    Opened { number: Number, stream: Arc<UnixStream>, lines: Sender<String>, pid: i32 },
    Said { number: Number, command: Result<Command, Failure> },
    Closed(Number),
    Log { derivation: String, address: IpAddr, reply: Sender<Answer> },
    LogEnded(Try),
}

/// What becomes of a log that begins.
pub(super) enum Answer {
    Write(Permit),
    /// Nobody wants it, and its worker must not be stopped by that.
    Drain,
    /// No worker is at that address.
    Close,
}

#[derive(Clone)]
pub(super) struct Handle {
    inbox: Sender<Message>,
    waker: Arc<EventFd>,
}

impl Handle {
    pub(super) fn send(&self, message: Message) -> Result<(), Gone> {
        self.inbox.send(message)?;
        self.wake();
        Ok(())
    }

    /// As `send`, without waking the router, unless there is no room: `wake` is to follow soon.
    pub(super) fn send_unheard(&self, message: Message) -> Result<(), Gone> {
        match self.inbox.try_send(message) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(message)) => {
                self.wake();
                Ok(self.inbox.send(message)?)
            }
            Err(TrySendError::Disconnected(_)) => Err(Gone),
        }
    }

    /// Whether a log may come from there, and where it goes.
    pub(super) fn log(&self, derivation: String, address: IpAddr) -> Result<Answer, Gone> {
        let (reply, answer) = bounded(1);
        self.send(Message::Log { derivation, address, reply })?;
        Ok(answer.recv_timeout(PATIENCE)?)
    }

    pub(super) fn wake(&self) {
        // Full only after 2^64 calls: then it is awake.
        let _ = self.waker.write(1);
    }
}

/// What is said in `status`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) backend: u16,
    pub(super) log: u16,
    pub(super) publish: Option<u16>,
}

/// How things stand, in figures.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct StatusView {
    version: &'static str,
    backend_port: u16,
    log_port: u16,
    publish_port: Option<u16>,
    connections: usize,
    workers: usize,
    /// Workers that wait for work.
    requesting: usize,
    builds: usize,
    /// The process that is attached.
    attached: Option<i32>,
}

/// A router that is bound and not started: the ports are known.
pub(super) struct Bound {
    wire: Wire,
    handle: Handle,
    inbox: Receiver<Message>,
}

/// Binds the port for workers; any free one if it is 0.
pub(super) fn bind(port: u16) -> io::Result<Bound> {
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let waker = Arc::new(EventFd::from_flags(flags)?);
    let (sender, inbox) = bounded(INBOX);
    let wire = Wire::bind(port, Arc::clone(&waker))?;
    Ok(Bound { wire, handle: Handle { inbox: sender, waker }, inbox })
}

impl Bound {
    pub(super) fn port(&self) -> u16 {
        self.wire.port()
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Starts the actor and `router/stop`.
    pub(super) fn spawn(self, threads: &Spawner, settings: Settings) -> io::Result<()> {
        let Self { wire, handle, inbox } = self;
        let ports =
            Ports { backend: wire.port(), log: settings.log_port, publish: settings.publish_port };
        let router = Router {
            wire,
            peers: Peers::default(),
            hall: Hall::new(settings),
            desk: Desk::default(),
            ports,
            complained: None,
            unsaid: 0,
            survey: clock::now() + SURVEY,
        };
        threads.essential("router", move |stop| router.run(&inbox, &stop))?;
        let wake = move |stop: Stop| {
            // Nothing is ever sent: this is the disconnection.
            let _ = stop.recv();
            handle.wake();
            Ok::<_, Gone>(())
        };
        threads.child("router/stop", wake, |report| log::debug!(target: "router", "{report:?}"))
    }
}

struct Router {
    wire: Wire,
    peers: Peers,
    hall: Hall,
    desk: Desk,
    ports: Ports,
    /// When the last complaint about a peer was logged, and how many were not.
    complained: Option<Instant>,
    unsaid: usize,
    /// When unread bytes are next looked at.
    survey: Instant,
}

impl Router {
    fn run(mut self, inbox: &Receiver<Message>, stop: &Stop) -> Result<(), Gone> {
        let mut more = false;
        loop {
            let deadline = match more {
                true => Some(clock::now()),
                false => self.deadline(),
            };
            if let Err(error) = self.wire.wait(deadline) {
                log::error!(target: "router", "cannot wait for workers: {error}");
                return Err(Gone);
            }
            if stop.try_recv().is_err_and(|error| error.is_disconnected()) {
                self.desk.end();
                return Ok(());
            }
            actor::fault("router");
            let heard = self.hear(inbox);
            let read = self.read()?;
            more = heard || read;
            self.on_time();
            self.desk.flush();
        }
    }

    /// Takes messages of the inbox; true if there may be more.
    fn hear(&mut self, inbox: &Receiver<Message>) -> bool {
        for _ in 0..TURN {
            match inbox.try_recv() {
                Ok(message) => self.on_message(message),
                // The actor itself holds no sender, the threads that serve do; without them there is nobody to hear.
                Err(_) => return false,
            }
        }
        true
    }

    fn on_message(&mut self, message: Message) {
        match message {
            Message::Opened { number, stream, lines, pid } => {
                self.desk.open(number, stream, lines, pid);
            }
            Message::Said { number, command } => {
                let mut out = Vec::new();
                let mut objects = Vec::new();
                let result = command.and_then(|c| self.obey(number, c, &mut objects, &mut out));
                for object in objects {
                    self.desk.line(number, &object);
                }
                match result {
                    Ok(After::Nothing) => self.desk.line(number, "ok"),
                    Ok(After::Listen) => {
                        self.desk.line(number, "ok");
                        for event in self.hall.standing() {
                            self.desk.line(number, &json(&event));
                        }
                        self.desk.listen(number);
                    }
                    Err(failure) => self.desk.line(number, &failure.to_string()),
                }
                self.perform(out);
            }
            Message::Closed(number) => self.desk.close(number),
            Message::Log { derivation, address, reply } => {
                let mut out = Vec::new();
                let permit = self.hall.on_log(clock::now(), &derivation, address, &mut out);
                self.perform(out);
                let answer = match permit {
                    Some(permit) => Answer::Write(permit),
                    None if self.hall.is_home(address) => Answer::Drain,
                    None => Answer::Close,
                };
                // Whoever asked may have waited for too long: another log may come.
                if let Err(SendError(Answer::Write(permit))) = reply.send(answer) {
                    self.hall.on_log_end(permit.of);
                }
            }
            Message::LogEnded(of) => self.hall.on_log_end(of),
        }
    }

    fn obey(
        &mut self,
        number: Number,
        command: Command,
        objects: &mut Vec<String>,
        out: &mut Vec<Effect>,
    ) -> Result<After, Failure> {
        let change = matches!(
            command,
            Command::Assign(_) | Command::Adopt(_) | Command::Settle(_) | Command::Cancel(_)
        );
        if change && !self.desk.is_attached(number) {
            let message = "only who is attached may say this; say attach first";
            return Err(Failure::new(FailureKind::Conflict, message));
        }
        let now = clock::now();
        match command {
            Command::Help => {
                let line = |(command, what): &(&'static str, &'static str)| {
                    json(&HelpView { command, what })
                };
                objects.extend(HELP.iter().map(line));
            }
            Command::Version => {
                objects.push(json(&VersionView { version: env!("CARGO_PKG_VERSION") }));
            }
            Command::Status => objects.push(json(&self.status())),
            Command::Workers => objects.extend(self.hall.workers().map(|view| json(&view))),
            Command::Builds => objects.extend(self.hall.assignments().map(|view| json(&view))),
            Command::Subscribe => return Ok(After::Listen),
            Command::Attach => {
                self.desk.attach(number)?;
                return Ok(After::Listen);
            }
            Command::Assign(assign) => self.hall.assign(now, assign, out)?,
            Command::Adopt(adopt) => self.hall.adopt(now, adopt, out)?,
            Command::Settle(of) => self.hall.settle(of)?,
            Command::Cancel(of) => self.hall.cancel(of, out),
        }
        Ok(After::Nothing)
    }

    fn status(&self) -> StatusView {
        StatusView {
            version: env!("CARGO_PKG_VERSION"),
            backend_port: self.ports.backend,
            log_port: self.ports.log,
            publish_port: self.ports.publish,
            connections: self.peers.len(),
            workers: self.hall.workers().count(),
            requesting: self.hall.workers().filter(|worker| worker.requesting).count(),
            builds: self.hall.assignments().count(),
            attached: self.desk.pid(),
        }
    }

    /// Reads what workers say; true if there may be more.
    fn read(&mut self) -> Result<bool, Gone> {
        for _ in 0..TURN {
            let frames = self.wire.read().map_err(|error| {
                log::error!(target: "router", "cannot read from workers: {error}");
                Gone
            })?;
            // After the message and before it is judged: what the monitor told before it was sent is known then.
            self.watch()?;
            match frames {
                Some(frames) => self.on_frames(&frames),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Takes what the monitor tells.
    fn watch(&mut self) -> Result<(), Gone> {
        let mut news = Vec::new();
        let watched = self.wire.watch(&mut self.peers, &mut news);
        watched.map_err(|error| {
            log::error!(target: "router", "cannot watch connections: {error}");
            Gone
        })?;
        self.on_news(news);
        Ok(())
    }

    fn on_news(&mut self, news: Vec<News>) {
        let now = clock::now();
        for news in news {
            match news {
                // libzmq takes all that come, and does not begin with one that has ended.
                News::Opened(link, _) if self.peers.len() > MAX_CONNECTIONS => {
                    self.complain(link, "too many connections");
                    self.hang_up(link);
                }
                News::Opened(link, address) if self.peers.of(address) > MAX_OF_ONE => {
                    self.complain(link, "too many connections from there");
                    self.hang_up(link);
                }
                News::Opened(link, address) => self.hall.on_open(now, link, address),
                News::Closed(link) => {
                    let mut out = Vec::new();
                    self.hall.on_close(now, link, &mut out);
                    self.perform(out);
                }
            }
        }
    }

    fn on_frames(&mut self, frames: &Frames) {
        let mut news = Vec::new();
        let link = self.peers.sender(&frames.identity, frames.descriptor, &mut news);
        self.on_news(news);
        let now = Now { instant: clock::now(), wall: clock::wall() };
        if let Some(link) = link {
            self.peers.count(link, frames.bytes);
        }
        let from = From { link, address: frames.address };
        let mut out = Vec::new();
        match &frames.payload {
            Ok(Some(payload)) => self.hall.on_message(now, from, payload, &mut out),
            // A probe of the peer's own.
            Ok(None) => {}
            Err(why) => self.hall.refuse(now.instant, from, why, &mut out),
        }
        self.perform(out);
    }

    fn deadline(&self) -> Option<Instant> {
        let survey = (self.peers.len() > 0).then_some(self.survey);
        self.hall.deadline().into_iter().chain(survey).min()
    }

    /// Hangs up on those whose messages do not end.
    fn survey(&mut self) {
        let endless: Vec<Link> = self
            .peers
            .survey()
            // It may have ended already.
            .filter(|(_, descriptor, most)| socket::received(*descriptor).is_ok_and(|n| n > *most))
            .map(|(link, _, _)| link)
            .collect();
        for link in endless {
            self.complain(link, "a message that does not end");
            self.hang_up(link);
        }
    }

    fn on_time(&mut self) {
        let now = clock::now();
        if self.survey <= now {
            self.survey = now + SURVEY;
            self.survey();
        }
        if self.hall.deadline().is_some_and(|deadline| deadline <= now) {
            let mut out = Vec::new();
            self.hall.on_deadline(now, &mut out);
            self.perform(out);
        }
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Say(link, message) => {
                    let sent = self.peers.identity(link).is_some_and(|identity| {
                        log::debug!(target: "router", "to {}: {message}", link.0);
                        self.wire.send(identity, &message.to_string())
                    });
                    if !sent {
                        // It is gone, or reads nothing: as if its end had been told.
                        let mut more = Vec::new();
                        self.hall.on_close(clock::now(), link, &mut more);
                        self.hang_up(link);
                        self.perform(more);
                    }
                }
                Effect::HangUp(link, why) => {
                    self.complain(link, &why);
                    self.hang_up(link);
                }
                Effect::Tell(event) => {
                    note(&event);
                    self.desk.tell(&event);
                }
                Effect::Create(path) => {
                    if let Err(error) = logs::create(&path) {
                        log::error!(target: "router", "cannot create the log {}: {error}", path.display());
                    }
                }
                Effect::Note(text) => log::debug!(target: "router", "{text}"),
            }
        }
    }

    fn hang_up(&mut self, link: Link) {
        if let Some((descriptor, address)) = self.peers.descriptor(link)
            && let Err(error) = socket::hang_up(descriptor, self.ports.backend, address)
        {
            log::debug!(target: "router", "cannot hang up on {address}: {error}");
        }
    }

    /// Logs what a peer did wrong, but not a line for each of thousands.
    fn complain(&mut self, link: Link, why: &str) {
        let now = clock::now();
        if self.complained.is_some_and(|last| now < last + COMPLAINT) {
            self.unsaid += 1;
            return;
        }
        self.complained = Some(now);
        let unsaid = match std::mem::take(&mut self.unsaid) {
            0 => String::new(),
            unsaid => format!(" (and {unsaid} more before)"),
        };
        let place = self.peers.descriptor(link).map(|(_, address)| address.to_string());
        let place = place.unwrap_or_default();
        log::warn!(target: "router", "hung up on a peer at {place}: {why}{unsaid}");
    }
}

/// Logs what operators want to know of; the rest for those who look closely.
fn note(event: &Event) {
    match event {
        Event::WorkerJoined { worker: WorkerView { name, address, machine, systems, .. } } => {
            let systems = systems.join(", ");
            log::info!(target: "router", "worker {name} of {machine} ({address}) is here, for {systems}");
        }
        Event::WorkerLeft { worker, why } => {
            log::info!(target: "router", "worker {worker} is gone: {why}");
        }
        Event::Lost { build, attempt, why, .. } => {
            log::warn!(target: "router", "try {attempt} of build {build} is lost: {why}");
        }
        Event::WorkerSeen { .. }
        | Event::Requested { .. }
        | Event::Withdrawn { .. }
        | Event::Assigned { .. }
        | Event::Started { .. }
        | Event::Reported { .. }
        | Event::Ready => log::debug!(target: "router", "{event:?}"),
    }
}

/// What follows an answer.
enum After {
    Nothing,
    /// How things stand, and what happens.
    Listen,
}
