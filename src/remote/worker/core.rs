//! The decisions of one worker loop: what to say to the server, when to ask for work, what to build.
//!
//! Invariant: nothing is sent before the server's probe, and work is asked for only when nothing is built, every report was
//! sent, and nothing here is in the way; so at most one build is under way, and a report is given up for none.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::proto::remote::{Build, Fault, FromWorker, ToWorker, Worker};

/// Between two signs of life: a server takes a worker for dead after 120 s.
const PING: Duration = Duration::from_secs(60);

/// How long the reports of the last builds are held for a server that is away, when all else has ended.
const REPORTING: Duration = Duration::from_secs(30);

/// How long a build that is given up may take to end: closing its connection is enough.
const ENDING: Duration = Duration::from_secs(8);

/// Builds that a server sends without being asked: Cuirass's does, after its restart, one or two.
const MAX_PARKED: usize = 16;

/// How a build ended here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::remote) enum Ended {
    Succeeded,
    Failed(Fault, String),
    /// It was given up because this loop said so.
    Interrupted,
}

/// What a server told of itself and of us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::remote) struct Server {
    pub(in crate::remote) log_port: u16,
    pub(in crate::remote) publish_port: Option<u16>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::remote) enum Effect {
    Say(FromWorker),
    /// See whether a build could begin here; `checked` is the answer.
    Check,
    /// `ended` is the answer.
    Build(Build, Server),
    /// Give up what is built.
    Cancel,
    /// Nothing more is to come: close the connection and end.
    Leave,
}

/// How far we are with the server.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Link {
    /// Not connected, as far as we know.
    Away,
    /// Connected: who are we?
    Greeting,
    Joined(Server),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Work {
    Nothing,
    Checking,
    /// The server may take as long as it likes.
    Asked,
    Pausing(Instant),
    Building {
        derivation: String,
        /// Why it was given up.
        given_up: Option<Fault>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stop {
    No,
    /// After what is built.
    Draining,
    Aborting,
}

/// See the module's documentation.
#[derive(Debug)]
pub(in crate::remote) struct Core {
    me: Worker,
    /// Where what was built here can be fetched.
    publish_port: u16,
    /// Between two requests, when there was nothing to build or something was in the way.
    period: Duration,
    link: Link,
    /// Whether the server understands what is only ours. One that comes back will, too; else it passes over it.
    ours: bool,
    work: Work,
    parked: VecDeque<Build>,
    ping: Option<Instant>,
    /// What was reported last, until an answer to what was said after it proves that it came.
    reports: Vec<FromWorker>,
    /// Whether it was sent over the connection that there is.
    sent: bool,
    stop: Stop,
    /// When to leave, whatever is under way.
    until: Option<Instant>,
    gone: bool,
}

impl Core {
    /// `me` has no address yet.
    pub(in crate::remote) fn new(me: Worker, publish_port: u16, period: Duration) -> Self {
        Self {
            me,
            publish_port,
            period,
            link: Link::Away,
            ours: false,
            work: Work::Nothing,
            parked: VecDeque::new(),
            ping: None,
            reports: Vec::new(),
            sent: false,
            stop: Stop::No,
            until: None,
            gone: false,
        }
    }

    /// When `on_due` is to be called.
    pub(in crate::remote) fn due(&self) -> Option<Instant> {
        let pause = match self.work {
            Work::Pausing(until) => Some(until),
            Work::Nothing | Work::Checking | Work::Asked | Work::Building { .. } => None,
        };
        [self.ping, pause, self.until].into_iter().flatten().min()
    }

    pub(in crate::remote) fn on_due(&mut self, now: Instant, out: &mut Vec<Effect>) {
        if self.ping.is_some_and(|ping| ping <= now) {
            out.push(Effect::Say(FromWorker::Ping(self.me.clone())));
            self.ping = Some(now + PING);
        }
        if matches!(self.work, Work::Pausing(until) if until <= now) {
            self.work = Work::Nothing;
            self.go_on(now, out);
        }
        if self.until.is_some_and(|until| until <= now) {
            self.leave(out);
        }
    }

    /// The first message of a connection: what was said over the one before may never have come.
    pub(in crate::remote) fn on_probe(&mut self, out: &mut Vec<Effect>) {
        self.lose();
        self.link = Link::Greeting;
        out.push(Effect::Say(FromWorker::RequestInfo));
    }

    /// Something could not be sent: the connection is gone.
    pub(in crate::remote) fn on_cut(&mut self) {
        self.lose();
    }

    fn lose(&mut self) {
        self.link = Link::Away;
        (self.sent, self.ping) = (false, None);
        if self.work == Work::Asked {
            self.work = Work::Nothing;
        }
    }

    pub(in crate::remote) fn on_message(
        &mut self,
        now: Instant,
        message: ToWorker,
        out: &mut Vec<Effect>,
    ) {
        match message {
            ToWorker::Info { address, log_port, publish_port } => {
                if self.link != Link::Greeting {
                    log::warn!(target: "worker", "{}: an answer that was not asked for", self.me.name);
                    return;
                }
                self.link = Link::Joined(Server { log_port, publish_port });
                self.me.address = address;
                out.push(Effect::Say(FromWorker::Ready(self.me.clone())));
                out.push(Effect::Say(FromWorker::Ping(self.me.clone())));
                self.ping = Some(now + PING);
                out.push(Effect::Say(FromWorker::Gorget { worker: self.me.name.clone() }));
                self.report(out);
                self.go_on(now, out);
            }
            ToWorker::Gorget => self.ours = true,
            ToWorker::NoBuild => {
                self.heard();
                if self.work == Work::Asked {
                    self.work = Work::Pausing(now + self.period);
                }
            }
            // It was lost with the connection over which it came: the server will see that.
            ToWorker::Build(build) if !matches!(self.link, Link::Joined(_)) => {
                log::info!(target: "worker", "{}: {} came too late", self.me.name, build.derivation);
            }
            ToWorker::Build(build) => {
                self.heard();
                if self.work == Work::Asked {
                    self.work = Work::Nothing;
                } else if self.parked.len() >= MAX_PARKED {
                    log::error!(target: "worker", "{}: too many builds at once: {} is left", self.me.name, build.derivation);
                    return;
                }
                self.parked.push_back(build);
                self.go_on(now, out);
            }
            ToWorker::Cancel { derivation } => self.cancel(derivation, out),
        }
    }

    fn cancel(&mut self, canceled: String, out: &mut Vec<Effect>) {
        match &mut self.work {
            Work::Building { derivation, given_up: given_up @ None } if *derivation == canceled => {
                *given_up = Some(Fault::Canceled);
                out.push(Effect::Cancel);
            }
            _ => {
                let before = self.parked.len();
                self.parked.retain(|build| build.derivation != canceled);
                if self.parked.len() < before {
                    self.ended(canceled, Ended::Failed(Fault::Canceled, "canceled".to_owned()));
                    self.report(out);
                }
            }
        }
    }

    /// Whether a build could begin, and if not, what is in the way.
    pub(in crate::remote) fn on_checked(
        &mut self,
        now: Instant,
        result: Result<(), String>,
        out: &mut Vec<Effect>,
    ) {
        if self.work != Work::Checking {
            return;
        }
        self.work = match result {
            _ if self.stop != Stop::No => Work::Nothing,
            Ok(()) => match self.link {
                Link::Joined(_) => {
                    out.push(Effect::Say(FromWorker::RequestWork(self.me.name.clone())));
                    Work::Asked
                }
                Link::Away | Link::Greeting => Work::Nothing,
            },
            Err(_) => Work::Pausing(now + self.period),
        };
        if self.stop != Stop::No {
            self.go_on(now, out);
        }
    }

    pub(in crate::remote) fn on_ended(
        &mut self,
        now: Instant,
        ended: Ended,
        out: &mut Vec<Effect>,
    ) {
        let Work::Building { derivation, given_up } =
            std::mem::replace(&mut self.work, Work::Nothing)
        else {
            return;
        };
        let ended = match (ended, given_up) {
            (Ended::Interrupted, Some(Fault::Canceled)) => {
                Ended::Failed(Fault::Canceled, "canceled".to_owned())
            }
            (Ended::Interrupted, _) => {
                Ended::Failed(Fault::Aborted, "the worker was stopped".to_owned())
            }
            // It had ended already.
            (ended, _) => ended,
        };
        self.ended(derivation, ended);
        self.report(out);
        self.go_on(now, out);
    }

    /// Writes the report of a build.
    fn ended(&mut self, derivation: String, ended: Ended) {
        let url = url(&self.me.address, self.publish_port);
        match ended {
            Ended::Succeeded => self.reports.push(FromWorker::Succeeded { derivation, url }),
            Ended::Failed(fault, why) => {
                self.reports.push(FromWorker::Fault { derivation: derivation.clone(), fault, why });
                self.reports.push(FromWorker::Failed { derivation, url });
            }
            Ended::Interrupted => {}
        }
        self.sent = false;
    }

    /// Says what has not been said over this connection.
    fn report(&mut self, out: &mut Vec<Effect>) {
        if self.sent || !matches!(self.link, Link::Joined(_)) {
            return;
        }
        // Cuirass's server would only log a fault; one of ours has answered before it sent a build.
        let said = self
            .reports
            .iter()
            .filter(|report| self.ours || !matches!(report, FromWorker::Fault { .. }));
        out.extend(said.cloned().map(Effect::Say));
        self.sent = true;
    }

    /// What a request was answered with proves that the report before it came.
    fn heard(&mut self) {
        if self.sent {
            self.reports.clear();
        }
    }

    /// The first request to stop, a TERM.
    pub(in crate::remote) fn drain(&mut self, now: Instant, out: &mut Vec<Effect>) {
        self.stop = self.stop.max(Stop::Draining);
        self.parked.clear();
        self.go_on(now, out);
    }

    /// The second.
    pub(in crate::remote) fn abort(&mut self, now: Instant, out: &mut Vec<Effect>) {
        self.stop = Stop::Aborting;
        self.parked.clear();
        self.until = Some(now + ENDING);
        if let Work::Building { given_up, .. } = &mut self.work {
            if given_up.is_none() {
                *given_up = Some(Fault::Aborted);
                out.push(Effect::Cancel);
            }
            return;
        }
        self.go_on(now, out);
    }

    /// Takes the next step, if nothing is under way.
    fn go_on(&mut self, now: Instant, out: &mut Vec<Effect>) {
        if self.stop != Stop::No {
            match self.work {
                Work::Building { .. } => {}
                _ if self.reports.is_empty() || self.sent => self.leave(out),
                _ => drop(self.until.get_or_insert(now + REPORTING)),
            }
            return;
        }
        let Link::Joined(server) = &self.link else { return };
        if self.work != Work::Nothing {
            return;
        }
        let Some(build) = self.parked.pop_front() else {
            self.work = Work::Checking;
            out.push(Effect::Check);
            return;
        };
        let derivation = build.derivation.clone();
        out.push(Effect::Say(FromWorker::Started {
            derivation: derivation.clone(),
            worker: self.me.name.clone(),
        }));
        out.push(Effect::Build(build, server.clone()));
        self.work = Work::Building { derivation, given_up: None };
    }

    fn leave(&mut self, out: &mut Vec<Effect>) {
        if !std::mem::replace(&mut self.gone, true) {
            out.push(Effect::Leave);
        }
    }
}

fn url(address: &str, port: u16) -> String {
    if address.contains(':') {
        format!("http://[{address}]:{port}")
    } else {
        format!("http://{address}:{port}")
    }
}

#[cfg(test)]
mod tests;
