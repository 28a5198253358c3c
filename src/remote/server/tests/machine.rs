//! A worker as a state machine, of one of two kinds.
//!
//! One of Cuirass's says what Guile's says, reads nothing while it builds, asks again when it reads a probe, and what it
//! does not expect ends it, but for its pings. One of ours is the real core, around which there is nothing but this.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::proto::remote::{Fault, FromWorker, ToWorker, Worker};
use crate::remote::worker::core::{Core, Effect, Ended};

pub(super) const WHO_AM_I: &str = "(worker-request-info)";

pub(super) const SYSTEM: &str = "x86_64-linux";

/// How soon a worker of ours asks again that was told that there is nothing, or found something in its way.
const PERIOD: Duration = Duration::from_secs(20);

/// The connections of a worker; one of ours has the first alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Socket {
    Asks,
    Pings,
}

/// Where one of Cuirass's is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Probe,
    Info,
    Asked,
    Building(String),
    Dead(String),
}

enum Kind {
    Absent,
    Guile(Step),
    Ours(Box<Ours>),
}

struct Ours {
    core: Core,
    building: Option<String>,
    /// What it reported last.
    ended: Option<String>,
}

/// What comes of hearing something.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reaction {
    Say(String),
    /// It begins to ping.
    Ping,
    /// It looks whether it could build.
    Check,
    Build(String),
    /// What it builds is to end soon.
    GiveUp,
    /// A connection that breaks before it knows who it is costs it its life, whatever the server does.
    Die,
}

pub(super) struct Machine {
    number: usize,
    pub(super) life: u64,
    kind: Kind,
    /// The builds that it has begun.
    pub(super) begun: u64,
    /// What is built is no longer wanted.
    given_up: bool,
    /// What has arrived and was not read; `None` is a probe.
    inbox: VecDeque<Option<String>>,
    /// What one of Cuirass's says while there is no connection, by socket.
    pub(super) queues: [Vec<String>; 2],
    pub(super) connections: [Option<usize>; 2],
    /// Until when there is no network.
    pub(super) parted: Option<Duration>,
}

impl Machine {
    pub(super) fn new(number: usize) -> Self {
        Self {
            number,
            life: 0,
            kind: Kind::Absent,
            begun: 0,
            given_up: false,
            inbox: VecDeque::new(),
            queues: [Vec::new(), Vec::new()],
            connections: [None; 2],
            parted: None,
        }
    }

    /// Each life has a name of its own.
    pub(super) fn name(&self) -> String {
        format!("w{}l{}", self.number, self.life)
    }

    /// Every other one is of ours.
    pub(super) fn is_ours(&self) -> bool {
        self.number % 2 == 1
    }

    pub(super) fn sockets(&self) -> &'static [Socket] {
        if self.is_ours() { &[Socket::Asks] } else { &[Socket::Asks, Socket::Pings] }
    }

    pub(super) fn begin(&mut self) {
        let (life, begun, parted) = (self.life + 1, self.begun, self.parted);
        *self = Self { life, begun, parted, ..Self::new(self.number) };
        self.kind = if self.is_ours() {
            let me = Worker {
                name: self.name(),
                address: String::new(),
                machine: self.machine(),
                systems: vec![SYSTEM.to_owned()],
            };
            let core = Core::new(me, 5558, PERIOD);
            Kind::Ours(Box::new(Ours { core, building: None, ended: None }))
        } else {
            Kind::Guile(Step::Probe)
        };
    }

    pub(super) fn die(&mut self) {
        self.kind = Kind::Absent;
        self.connections = [None; 2];
    }

    pub(super) fn is_alive(&self) -> bool {
        !matches!(self.kind, Kind::Absent)
    }

    pub(super) fn lives(&self, life: u64) -> bool {
        self.is_alive() && self.life == life
    }

    /// What it read that it did not expect.
    pub(super) fn dead(&self) -> Option<&str> {
        match &self.kind {
            Kind::Guile(Step::Dead(what)) => Some(what),
            Kind::Absent | Kind::Guile(_) | Kind::Ours(_) => None,
        }
    }

    fn machine(&self) -> String {
        format!("m{}", self.number / 2)
    }

    fn record(&self) -> String {
        format!(
            r#"(worker (name "{}") (address "10.0.0.2") (machine "{}") (systems ("{SYSTEM}")) (last-seen 0))"#,
            self.name(),
            self.machine()
        )
    }

    pub(super) fn ping(&self) -> String {
        format!("(worker-ping {})", self.record())
    }

    fn request(&self) -> String {
        format!(r#"(worker-request-work "{}")"#, self.name())
    }

    /// The derivations that it has, or has something to say of.
    pub(super) fn concern(&self) -> Vec<String> {
        let named = |text: &String| derivation(text).map(str::to_owned);
        let said = self.queues.iter().flatten().filter_map(named);
        let unread = self.inbox.iter().flatten().filter_map(named);
        let mut all: Vec<String> = said.chain(unread).collect();
        match &self.kind {
            Kind::Guile(Step::Building(derivation)) => all.push(derivation.clone()),
            Kind::Ours(ours) => all.extend(ours.building.iter().chain(&ours.ended).cloned()),
            Kind::Absent | Kind::Guile(_) => {}
        }
        all
    }

    /// A message has arrived; `None` is a probe.
    pub(super) fn hear(&mut self, now: Instant, text: Option<String>) -> Vec<Reaction> {
        match &mut self.kind {
            Kind::Absent => Vec::new(),
            Kind::Guile(_) => {
                self.inbox.push_back(text);
                self.read()
            }
            Kind::Ours(_) => self.decide(|core, out| match text {
                None => core.on_probe(out),
                Some(text) => {
                    core.on_message(now, ToWorker::parse(text.as_bytes()).unwrap(), out);
                }
            }),
        }
    }

    /// One of Cuirass's reads until it builds, or there is no more.
    fn read(&mut self) -> Vec<Reaction> {
        let (ready, request) = (format!("(worker-ready {})", self.record()), self.request());
        let name = self.name();
        let Kind::Guile(step) = &mut self.kind else { return Vec::new() };
        let mut out = Vec::new();
        while !matches!(step, Step::Building(_) | Step::Dead(_))
            && let Some(text) = self.inbox.pop_front()
        {
            match (&*step, text.as_deref()) {
                (Step::Probe, None) => {
                    out.push(Reaction::Say(WHO_AM_I.to_owned()));
                    *step = Step::Info;
                }
                (Step::Info, Some(text)) if text.starts_with("(server-info ") => {
                    out.extend([
                        Reaction::Say(ready.clone()),
                        Reaction::Ping,
                        Reaction::Say(request.clone()),
                    ]);
                    *step = Step::Asked;
                }
                (Step::Info, None) => {
                    out.push(Reaction::Die);
                    return out;
                }
                (Step::Asked, None) => out.push(Reaction::Say(request.clone())),
                (Step::Asked, Some(text)) if text.starts_with("(build (drv \"") => {
                    let derivation = text.split('"').nth(1).unwrap().to_owned();
                    out.push(Reaction::Say(format!(
                        r#"(build-started (drv "{derivation}") (worker "{name}"))"#
                    )));
                    out.push(Reaction::Build(derivation.clone()));
                    self.begun += 1;
                    *step = Step::Building(derivation);
                }
                (step_now, text) => {
                    let what = format!("{text:?} when {step_now:?}");
                    *step = Step::Dead(what);
                }
            }
        }
        out
    }

    /// The core of one of ours decides something.
    fn decide(&mut self, decide: impl FnOnce(&mut Core, &mut Vec<Effect>)) -> Vec<Reaction> {
        let Kind::Ours(ours) = &mut self.kind else { return Vec::new() };
        let mut effects = Vec::new();
        decide(&mut ours.core, &mut effects);
        let reaction = |effect| match effect {
            Effect::Say(message) => Reaction::Say(FromWorker::to_string(&message)),
            Effect::Check => Reaction::Check,
            Effect::Build(build, _) => {
                self.begun += 1;
                self.given_up = false;
                assert_eq!(ours.building, None, "two builds at once");
                ours.building = Some(build.derivation.clone());
                ours.ended = None;
                Reaction::Build(build.derivation)
            }
            Effect::Cancel => {
                self.given_up = true;
                Reaction::GiveUp
            }
            Effect::Leave => panic!("nobody told it to"),
        };
        effects.into_iter().map(reaction).collect()
    }

    /// Nothing can be sent, or could not be.
    pub(super) fn cut(&mut self) {
        if let Kind::Ours(ours) = &mut self.kind {
            ours.core.on_cut();
        }
    }

    pub(super) fn checked(&mut self, now: Instant, is_fine: bool) -> Vec<Reaction> {
        let result = if is_fine { Ok(()) } else { Err("no space".to_owned()) };
        self.decide(|core, out| core.on_checked(now, result, out))
    }

    pub(super) fn due(&self) -> Option<Instant> {
        match &self.kind {
            Kind::Ours(ours) => ours.core.due(),
            Kind::Absent | Kind::Guile(_) => None,
        }
    }

    pub(super) fn on_due(&mut self, now: Instant) -> Vec<Reaction> {
        self.decide(|core, out| core.on_due(now, out))
    }

    /// What it builds, if that is the build of this number.
    pub(super) fn building(&self, begun: u64) -> Option<&str> {
        match &self.kind {
            Kind::Guile(Step::Building(derivation)) if self.begun == begun => Some(derivation),
            Kind::Ours(ours) if self.begun == begun => ours.building.as_deref(),
            Kind::Absent | Kind::Guile(_) | Kind::Ours(_) => None,
        }
    }

    /// The build has ended: what it says then, and asks for at once.
    pub(super) fn finish(&mut self, now: Instant, is_good: bool, address: IpAddr) -> Vec<Reaction> {
        let request = self.request();
        match &mut self.kind {
            Kind::Guile(step) => {
                let Step::Building(derivation) = std::mem::replace(step, Step::Asked) else {
                    panic!("it builds nothing");
                };
                let word = if is_good { "build-succeeded" } else { "build-failed" };
                let report = format!(
                    r#"({word} (drv "{derivation}") (url "http://{address}:5558") (log #f))"#
                );
                let mut out = vec![Reaction::Say(report), Reaction::Say(request)];
                out.extend(self.read());
                out
            }
            Kind::Ours(ours) => {
                ours.ended = ours.building.take();
                let ended = if self.given_up {
                    Ended::Interrupted
                } else if is_good {
                    Ended::Succeeded
                } else {
                    Ended::Failed(Fault::Failed, "exit status 1".to_owned())
                };
                self.decide(|core, out| core.on_ended(now, ended, out))
            }
            Kind::Absent => Vec::new(),
        }
    }
}

/// The derivation that a message is about.
pub(super) fn derivation(text: &str) -> Option<&str> {
    text.split("(drv \"").nth(1)?.split('"').next()
}
