//! Whom the server has told of: what they serve, who gets the next build, who gets none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Core, Effect, Out};
use crate::db::workers::{Note, Worker as Record};
use crate::model::build::BuildId;
use crate::model::time::Time;
use crate::proto::remote::link::WorkerView;

/// How long a pause of a worker that went is remembered: its network broke, or its server restarts. One that restarts itself
/// has another name.
pub(super) const PAUSED: Duration = Duration::from_secs(3600);

pub(super) struct Worker {
    pub(super) machine: String,
    pub(super) systems: Vec<Arc<str>>,
    /// It waits for work, as the server says.
    pub(super) wants: bool,
    /// What it will have once the books know.
    pub(super) reserved: Option<BuildId>,
    /// Tries that were aborted in a row.
    pub(super) aborted: u32,
    pub(super) paused: bool,
}

impl Worker {
    fn is_free(&self) -> bool {
        self.wants && self.reserved.is_none() && !self.paused
    }
}

impl Core {
    /// Whether some worker builds for this system, busy or not.
    pub(in crate::daemon::builder::remote) fn serves(&self, system: &str) -> bool {
        let serves = |worker: &Worker| worker.systems.iter().any(|served| &**served == system);
        self.workers.values().any(|worker| !worker.paused && serves(worker))
    }

    /// The systems for which workers want work.
    pub(in crate::daemon::builder::remote) fn open(&self) -> BTreeSet<Arc<str>> {
        let free = self.workers.values().filter(|worker| worker.is_free());
        free.flat_map(|worker| worker.systems.iter().cloned()).collect()
    }

    /// Chooses a worker for a build of this system: one whose machine has the least to do.
    pub(in crate::daemon::builder::remote) fn reserve(
        &mut self,
        id: BuildId,
        system: &str,
    ) -> Option<String> {
        let mut busy: BTreeMap<&str, usize> = BTreeMap::new();
        for worker in self.workers.values().filter(|worker| !worker.is_free()) {
            *busy.entry(&worker.machine).or_default() += 1;
        }
        let able = self.workers.iter().filter(|(_, worker)| {
            worker.is_free() && worker.systems.iter().any(|served| &**served == system)
        });
        let least = able.min_by_key(|(name, worker)| {
            // One that serves few systems leaves others to those that can take them.
            let load = busy.get(worker.machine.as_str()).copied().unwrap_or(0);
            (load, worker.systems.len(), (*name).clone())
        });
        let name = least?.0.clone();
        self.workers.get_mut(&name)?.reserved = Some(id);
        Some(name)
    }

    /// The books did not let it start.
    pub(in crate::daemon::builder::remote) fn release(&mut self, id: BuildId) {
        for worker in self.workers.values_mut().filter(|worker| worker.reserved == Some(id)) {
            worker.reserved = None;
        }
    }

    pub(in crate::daemon::builder::remote) fn pause(
        &mut self,
        now: Instant,
        name: &str,
        paused: bool,
        out: &mut Out,
    ) {
        if !paused {
            self.paused.remove(name);
        } else if self.workers.contains_key(name) {
            self.paused.insert(name.to_owned(), None);
        } else {
            self.paused.insert(name.to_owned(), Some(now + PAUSED));
        }
        if let Some(worker) = self.workers.get_mut(name) {
            (worker.paused, worker.aborted) = (paused, 0);
            out.push(Effect::Changed);
        }
    }

    /// Workers come back, but not for ever.
    pub(super) fn remember_pauses(&mut self, now: Instant) {
        self.paused.retain(|name, until| {
            if !self.workers.contains_key(name) {
                until.get_or_insert(now + PAUSED);
            }
            until.is_none_or(|until| until > now)
        });
    }

    pub(super) fn on_joined(&mut self, view: WorkerView, out: &mut Out) {
        let WorkerView { name, address, machine, systems, last_seen, requesting, build: _ } = view;
        let paused = self.paused.get_mut(&name).map(|until| *until = None).is_some();
        let worker = Worker {
            machine: machine.clone(),
            systems: systems.iter().map(|system| Arc::from(system.as_str())).collect(),
            wants: requesting,
            reserved: None,
            aborted: 0,
            paused,
        };
        self.workers.insert(name.clone(), worker);
        let last_seen = Time(last_seen);
        let record = Record {
            name: name.clone(),
            address,
            machine,
            systems,
            last_seen,
            // The books know better of one that they know.
            joined: last_seen,
            paused,
            failures: 0,
        };
        out.push(Effect::Note(Note::Joined(record)));
        if paused {
            // The books forgot it when it went.
            out.push(Effect::Note(Note::Paused(name, true)));
        }
        out.push(Effect::Changed);
    }

    pub(super) fn on_wants(&mut self, name: &str, wants: bool, out: &mut Out) {
        if let Some(worker) = self.workers.get_mut(name) {
            worker.wants = wants;
            out.push(Effect::Changed);
        }
    }
}
