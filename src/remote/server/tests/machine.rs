//! A worker of Cuirass's kind as a state machine: it says what Guile's says, reads nothing while it builds, asks again
//! when it reads a probe, and what it does not expect ends it, but for its pings.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

pub(super) const WHO_AM_I: &str = "(worker-request-info)";

/// The two connections of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Socket {
    Asks,
    Pings,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Absent,
    Probe,
    Info,
    Asked,
    Building(String),
    Dead(String),
}

/// What comes of reading.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reaction {
    Say(String),
    /// It begins to ping.
    Ping,
    Build(String),
    /// A connection that breaks before it knows who it is costs it its life, whatever the server does.
    Die,
}

pub(super) struct Machine {
    number: usize,
    pub(super) life: u64,
    step: Step,
    /// What has arrived and was not read; `None` is a probe.
    pub(super) inbox: VecDeque<Option<String>>,
    /// What is said while there is no connection, by socket.
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
            step: Step::Absent,
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

    pub(super) fn begin(&mut self) {
        let parted = self.parted;
        *self = Self { life: self.life + 1, step: Step::Probe, parted, ..Self::new(self.number) };
    }

    pub(super) fn die(&mut self) {
        self.step = Step::Absent;
        self.connections = [None; 2];
    }

    pub(super) fn is_alive(&self) -> bool {
        self.step != Step::Absent
    }

    pub(super) fn lives(&self, life: u64) -> bool {
        self.is_alive() && self.life == life
    }

    /// What it read that it did not expect.
    pub(super) fn dead(&self) -> Option<&str> {
        match &self.step {
            Step::Dead(what) => Some(what),
            _ => None,
        }
    }

    fn record(&self) -> String {
        format!(
            r#"(worker (name "{}") (address "10.0.0.2") (machine "m{}") (systems ("x86_64-linux")) (last-seen 0))"#,
            self.name(),
            self.number / 2
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
        let named = |text: &String| {
            Some(text.split("(drv \"").nth(1)?.split('"').next().unwrap().to_owned())
        };
        let said = self.queues.iter().flatten().filter_map(named);
        let unread = self.inbox.iter().flatten().filter_map(named);
        let mut all: Vec<String> = said.chain(unread).collect();
        if let Step::Building(derivation) = &self.step {
            all.push(derivation.clone());
        }
        all
    }

    /// Reads until it builds, or there is no more.
    pub(super) fn read(&mut self, _address: IpAddr) -> Vec<Reaction> {
        let mut out = Vec::new();
        while !matches!(self.step, Step::Building(_) | Step::Dead(_) | Step::Absent)
            && let Some(text) = self.inbox.pop_front()
        {
            match (&self.step, text.as_deref()) {
                (Step::Probe, None) => {
                    out.push(Reaction::Say(WHO_AM_I.to_owned()));
                    self.step = Step::Info;
                }
                (Step::Info, Some(text)) if text.starts_with("(server-info ") => {
                    let ready = format!("(worker-ready {})", self.record());
                    out.extend([
                        Reaction::Say(ready),
                        Reaction::Ping,
                        Reaction::Say(self.request()),
                    ]);
                    self.step = Step::Asked;
                }
                (Step::Info, None) => {
                    out.push(Reaction::Die);
                    return out;
                }
                (Step::Asked, None) => out.push(Reaction::Say(self.request())),
                (Step::Asked, Some(text)) if text.starts_with("(build (drv \"") => {
                    let derivation = text.split('"').nth(1).unwrap().to_owned();
                    out.push(Reaction::Say(format!(
                        r#"(build-started (drv "{derivation}") (worker "{}"))"#,
                        self.name()
                    )));
                    out.push(Reaction::Build(derivation.clone()));
                    self.step = Step::Building(derivation);
                }
                (step, text) => self.step = Step::Dead(format!("{text:?} when {step:?}")),
            }
        }
        out
    }

    /// The build has ended: what it says then, and asks for at once.
    pub(super) fn finish(&mut self, derivation: &str, ok: bool, address: IpAddr) -> Vec<String> {
        assert_eq!(self.step, Step::Building(derivation.to_owned()));
        let word = if ok { "build-succeeded" } else { "build-failed" };
        self.step = Step::Asked;
        vec![
            format!(r#"({word} (drv "{derivation}") (url "http://{address}:5558") (log #f))"#),
            self.request(),
        ]
    }
}
