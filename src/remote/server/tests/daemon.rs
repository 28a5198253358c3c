//! What the daemon's side keeps to, in its simplest form: books that survive, and what it knows while it is attached.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Told, derivation, of};
use crate::proto::remote::link::{Adopt, Assign, Command, Report, Try};

/// How long running builds are kept for a server that is away.
pub(super) const PATIENCE: Duration = Duration::from_secs(180);

/// What comes over the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Event(Told),
    /// An assignment that the server does not take.
    Refused(i64, i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Status {
    Scheduled,
    /// By this worker.
    Started(String),
    Over,
}

#[derive(Debug)]
struct Build {
    status: Status,
    attempt: i64,
}

#[derive(Default)]
pub(super) struct Daemon {
    // The books.
    builds: BTreeMap<i64, Build>,
    lives: u64,
    // What dies with it.
    pub(super) life: Option<u64>,
    /// How often the server was away in this life.
    pub(super) absences: u64,
    attached: bool,
    ready: bool,
    requested: BTreeSet<String>,
    /// What the server told of before `ready`.
    assigned: BTreeSet<(i64, i64)>,
    /// Results that are being fetched.
    fetching: BTreeSet<(i64, i64)>,
    fetches: Vec<(i64, i64)>,
}

impl Daemon {
    pub(super) fn add(&mut self) {
        let id = i64::try_from(self.builds.len()).unwrap() + 1;
        self.builds.insert(id, Build { status: Status::Scheduled, attempt: 0 });
    }

    /// Builds that have not ended.
    pub(super) fn open(&self) -> Vec<i64> {
        let open = self.builds.iter().filter(|(_, build)| build.status != Status::Over);
        open.map(|(id, _)| *id).collect()
    }

    pub(super) fn has_ended(&self, of: &str) -> bool {
        let ended =
            |(id, build): (&i64, &Build)| build.status == Status::Over && derivation(*id) == of;
        self.builds.iter().any(ended)
    }

    pub(super) fn be_born(&mut self) -> u64 {
        self.lives += 1;
        self.life = Some(self.lives);
        self.lives
    }

    pub(super) fn die(&mut self) {
        let Self { builds, lives, .. } = std::mem::take(self);
        (self.builds, self.lives) = (builds, lives);
    }

    pub(super) fn attached(&mut self) {
        self.attached = true;
    }

    /// The server is away: what it told of its workers no longer holds.
    pub(super) fn detached(&mut self) {
        (self.attached, self.ready) = (false, false);
        self.absences += 1;
        self.requested.clear();
        self.assigned.clear();
    }

    /// The server has been away for too long: what ran there is scheduled again.
    pub(super) fn lose_patience(&mut self, since: u64) {
        if self.absences != since || self.attached {
            return;
        }
        for build in self.builds.values_mut() {
            if matches!(build.status, Status::Started(_)) {
                build.status = Status::Scheduled;
            }
        }
    }

    fn runs(&self, build: i64, attempt: i64) -> bool {
        self.builds
            .get(&build)
            .is_some_and(|b| b.attempt == attempt && matches!(b.status, Status::Started(_)))
    }

    pub(super) fn hear(&mut self, heard: Heard) -> Vec<Command> {
        let mut out = Vec::new();
        match heard {
            Heard::Refused(build, attempt) => self.reschedule(build, attempt),
            Heard::Event(event) => match event {
                Told::WorkerJoined { .. } | Told::WorkerSeen { .. } | Told::Started { .. } => {}
                Told::Requested { worker } => drop(self.requested.insert(worker)),
                Told::Withdrawn { worker } | Told::WorkerLeft { worker, .. } => {
                    self.requested.remove(&worker);
                }
                Told::Assigned { assignment } => {
                    let (build, attempt) = (assignment.build, assignment.attempt);
                    self.assigned.insert((build, attempt));
                    if !self.runs(build, attempt) {
                        out.push(Command::Cancel(of(build, attempt)));
                    } else if let Some(report) = assignment.report {
                        self.report(build, attempt, &report, &mut out);
                    }
                }
                Told::Reported { build, attempt, report } => {
                    self.report(build, attempt, &report, &mut out);
                }
                Told::Lost { build, attempt, .. } => self.reschedule(build, attempt),
                Told::Ready => {
                    self.ready = true;
                    for (id, build) in &self.builds {
                        if let Status::Started(worker) = &build.status
                            && !self.assigned.contains(&(*id, build.attempt))
                            && !self.fetching.contains(&(*id, build.attempt))
                        {
                            out.push(Command::Adopt(Adopt {
                                of: of(*id, build.attempt),
                                worker: worker.clone(),
                                derivation: derivation(*id),
                            }));
                        }
                    }
                }
            },
        }
        out
    }

    fn report(&mut self, build: i64, attempt: i64, report: &Report, out: &mut Vec<Command>) {
        if !self.runs(build, attempt) {
            return out.push(Command::Settle(of(build, attempt)));
        }
        match report {
            Report::Succeeded { .. } => {
                if self.fetching.insert((build, attempt)) {
                    self.fetches.push((build, attempt));
                }
            }
            Report::Failed { .. } => self.end(of(build, attempt), out),
        }
    }

    /// Results to be fetched.
    pub(super) fn take_fetches(&mut self) -> Vec<(i64, i64)> {
        std::mem::take(&mut self.fetches)
    }

    pub(super) fn fetched(&mut self, build: i64, attempt: i64) -> Vec<Command> {
        let mut out = Vec::new();
        self.fetching.remove(&(build, attempt));
        if self.runs(build, attempt) {
            self.end(of(build, attempt), &mut out);
        }
        out
    }

    fn end(&mut self, of: Try, out: &mut Vec<Command>) {
        let build = self.builds.get_mut(&of.build.0).unwrap();
        assert!(build.status != Status::Over, "build {of} ends twice");
        build.status = Status::Over;
        out.push(Command::Settle(of));
    }

    fn reschedule(&mut self, build: i64, attempt: i64) {
        if self.runs(build, attempt) && !self.fetching.contains(&(build, attempt)) {
            self.builds.get_mut(&build).unwrap().status = Status::Scheduled;
        }
    }

    /// Assigns what is scheduled to who asks; the books have it first.
    pub(super) fn hand_out(&mut self) -> Vec<Command> {
        let mut out = Vec::new();
        if !self.ready {
            return out;
        }
        for (id, build) in &mut self.builds {
            if build.status != Status::Scheduled {
                continue;
            }
            let Some(worker) = self.requested.pop_first() else { break };
            build.attempt += 1;
            build.status = Status::Started(worker.clone());
            out.push(Command::Assign(Assign {
                of: of(*id, build.attempt),
                worker,
                derivation: derivation(*id),
                system: "x86_64-linux".to_owned(),
                priority: 99,
                timeout: 0,
                max_silent_time: 0,
            }));
        }
        out
    }
}
