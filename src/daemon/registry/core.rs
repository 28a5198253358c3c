//! The registry's decisions: which monitors there are, and what they are told.
//!
//! Invariant: an active jobset has a monitor, or a time at which it gets one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::{Refusal, State};
use crate::actor::Ended;
use crate::daemon::monitor::{Message, Reply, Report, decides_jobs, effective_period};
use crate::model::evaluation::Evaluation;
use crate::model::spec::{JobsetName, Specification};
use crate::model::status::JobsetStatus;
use crate::model::time::Time;

/// Wait before a monitor that ended twice in a row comes back; doubled each time.
const BACKOFF: Duration = Duration::from_secs(1);

/// Longest such wait: a poll's usual period.
const LONGEST_BACKOFF: Duration = Duration::from_secs(300);

/// A monitor that lived this long is trusted anew.
const TRUSTED: Duration = Duration::from_secs(600);

/// What the registry's thread is to do.
#[derive(Debug)]
pub(super) enum Effect {
    Spawn {
        specification: Box<Specification>,
        active: bool,
        at_once: bool,
        generation: u64,
    },
    Tell(JobsetName, Message),
    /// Forget the monitor's handle, which ends it.
    Drop(JobsetName),
    /// Record that the jobset's channels are to be looked at, and say so.
    Promise(JobsetName, Reply),
    Answer(Reply, Result<(), Refusal>),
}

#[derive(Debug, PartialEq, Eq)]
enum Life {
    /// None is needed.
    Off,
    Running {
        generation: u64,
        since: Instant,
    },
    /// None until then: it ended badly, or the daemon has not begun yet, or evaluates once.
    Waiting(Option<Instant>),
}

struct Entry {
    specification: Specification,
    active: bool,
    life: Life,
    /// Bad ends in a row.
    failures: u32,
    /// The next monitor looks at once: something was asked for that it must make good.
    at_once: bool,
    status: JobsetStatus,
    next_poll: Option<Time>,
    error: Option<String>,
    updates: Vec<Time>,
}

pub(super) struct Core {
    entries: BTreeMap<JobsetName, Entry>,
    interval: Duration,
    /// Whether monitors may run: not before start-up is over, and never in a one-shot daemon.
    begun: bool,
    generations: u64,
}

impl Core {
    pub(super) fn new(interval: Duration) -> Self {
        Self { entries: BTreeMap::new(), interval, begun: false, generations: 0 }
    }

    /// A jobset as the database has it at start-up; `retries`: evaluations of it are to be repeated.
    pub(super) fn load(
        &mut self,
        specification: Specification,
        active: bool,
        error: Option<String>,
        retries: bool,
    ) {
        let life = if active || retries { Life::Waiting(None) } else { Life::Off };
        let entry = Entry {
            active,
            life,
            failures: 0,
            at_once: false,
            status: if active { JobsetStatus::Idle } else { JobsetStatus::Inactive },
            next_poll: None,
            error,
            updates: Vec::new(),
            specification,
        };
        self.entries.insert(entry.specification.name.clone(), entry);
    }

    /// Lets the monitors run.
    pub(super) fn begin(&mut self, now: Instant, out: &mut Vec<Effect>) {
        self.begun = true;
        for entry in self.entries.values_mut() {
            if entry.life == Life::Waiting(None) {
                entry.spawn(now, &mut self.generations, out);
            }
        }
    }

    /// Whether `specification` leads to other jobs than the one it replaces, of a jobset that is watched.
    pub(super) fn differs(&self, specification: &Specification) -> bool {
        self.entries
            .get(&specification.name)
            .is_some_and(|entry| entry.active && decides_jobs(&entry.specification, specification))
    }

    /// A specification was registered or replaced.
    pub(super) fn put(
        &mut self,
        now: Instant,
        specification: Specification,
        active: bool,
        out: &mut Vec<Effect>,
    ) {
        let Some(entry) = self.entries.get_mut(&specification.name) else {
            let name = specification.name.clone();
            self.load(specification, active, None, false);
            if let Some(entry) = self.entries.get_mut(&name)
                && active
                && self.begun
            {
                entry.spawn(now, &mut self.generations, out);
            }
            return;
        };
        let differs = decides_jobs(&entry.specification, &specification);
        let changed = entry.specification != specification;
        entry.specification = specification.clone();
        match entry.life {
            Life::Running { .. } if changed => {
                if differs && entry.active && entry.status == JobsetStatus::Idle {
                    entry.status = JobsetStatus::Fetching; // It is about to.
                }
                let name = specification.name.clone();
                out.push(Effect::Tell(name, Message::Update(Box::new(specification.clone()))));
            }
            Life::Waiting(_) => entry.at_once |= differs,
            Life::Running { .. } | Life::Off => {}
        }
        // `Ok`: the jobset exists.
        let _ = self.set_active(now, &specification.name, active, out);
    }

    pub(super) fn set_active(
        &mut self,
        now: Instant,
        name: &JobsetName,
        active: bool,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let entry = find(&mut self.entries, name)?;
        if entry.active == active {
            return Ok(());
        }
        entry.active = active;
        match entry.life {
            Life::Running { .. } => {
                if active {
                    entry.status = JobsetStatus::Fetching;
                } else if entry.status == JobsetStatus::Idle {
                    entry.status = JobsetStatus::Inactive;
                }
                out.push(Effect::Tell(name.clone(), Message::SetActive(active)));
            }
            Life::Off | Life::Waiting(_) if active => {
                entry.at_once = true;
                entry.status = JobsetStatus::Idle;
                if self.begun {
                    entry.spawn(now, &mut self.generations, out);
                } else {
                    entry.life = Life::Waiting(None);
                }
            }
            Life::Off | Life::Waiting(_) => {
                (entry.life, entry.status) = (Life::Off, JobsetStatus::Inactive);
                entry.next_poll = None;
            }
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, name: &JobsetName, out: &mut Vec<Effect>) {
        if self.entries.remove(name).is_some() {
            out.push(Effect::Drop(name.clone()));
        }
    }

    pub(super) fn trigger(&mut self, name: &JobsetName, reply: Reply, out: &mut Vec<Effect>) {
        let answer = match find(&mut self.entries, name) {
            Err(refusal) => Err(refusal),
            Ok(entry) => match entry.life {
                _ if !entry.active => Err(Refusal::Conflict(format!("jobset {name} is inactive"))),
                Life::Running { .. } => {
                    out.push(Effect::Tell(name.clone(), Message::Trigger(reply)));
                    return;
                }
                // The monitor to come looks at once.
                Life::Waiting(Some(_)) | Life::Off => {
                    entry.at_once = true;
                    out.push(Effect::Promise(name.clone(), reply));
                    return;
                }
                Life::Waiting(None) => {
                    Err(Refusal::Unavailable("the daemon evaluates once".to_owned()))
                }
            },
        };
        out.push(Effect::Answer(reply, answer));
    }

    pub(super) fn retry(
        &mut self,
        now: Instant,
        evaluation: Evaluation,
        reply: Reply,
        out: &mut Vec<Effect>,
    ) {
        let Evaluation { id, jobset, checkouts, .. } = evaluation;
        let name = &jobset;
        match find(&mut self.entries, name) {
            Err(refusal) => out.push(Effect::Answer(reply, Err(refusal))),
            Ok(_) if !self.begun => {
                let refusal = Refusal::Unavailable("the daemon evaluates once".to_owned());
                out.push(Effect::Answer(reply, Err(refusal)));
            }
            Ok(entry) => {
                if !matches!(entry.life, Life::Running { .. }) {
                    // Of an inactive jobset it lives for this retry only.
                    entry.spawn(now, &mut self.generations, out);
                }
                out.push(Effect::Tell(name.clone(), Message::Retry(id, checkouts, reply)));
            }
        }
    }

    pub(super) fn on_report(&mut self, report: Report) {
        let Some(entry) = self.entries.get_mut(&report.name) else { return };
        if matches!(entry.life, Life::Running { generation, .. } if generation == report.generation)
        {
            entry.status = report.status;
            entry.next_poll = report.next_poll;
            entry.error = report.error;
            entry.updates = report.updates;
        }
    }

    /// A monitor ended, or could not be started.
    pub(super) fn on_ended(
        &mut self,
        now: Instant,
        name: &JobsetName,
        ended_generation: u64,
        ended: &Ended,
        out: &mut Vec<Effect>,
    ) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        let Life::Running { generation, since } = entry.life else { return };
        if generation != ended_generation {
            return;
        }
        out.push(Effect::Drop(name.clone()));
        if !entry.active {
            (entry.life, entry.status) = (Life::Off, JobsetStatus::Inactive);
            entry.next_poll = None;
            return;
        }
        // Whatever it was told last and did not do is made good by a look.
        entry.at_once = true;
        entry.status = JobsetStatus::Fetching;
        if now.saturating_duration_since(since) >= TRUSTED {
            entry.failures = 0;
        }
        let doublings = entry.failures.saturating_sub(1).min(16);
        let wait = match entry.failures {
            0 => Duration::ZERO,
            _ => (BACKOFF * 2_u32.pow(doublings)).min(LONGEST_BACKOFF),
        };
        entry.failures += 1;
        entry.life = Life::Waiting(Some(now + wait));
        match ended {
            Ended::Panicked(why) => {
                log::error!(target: "registry", "monitor {name} panicked: {why}; back in {} s", wait.as_secs());
            }
            // Reactivated just as it went, or cut off from an actor below.
            Ended::Returned => {
                log::debug!(target: "registry", "monitor {name} ended; back in {} s", wait.as_secs())
            }
        }
    }

    /// The monitor did not take a message because it is stuck: another takes its place.
    pub(super) fn replace(&mut self, now: Instant, name: &JobsetName, out: &mut Vec<Effect>) {
        match self.entries.get_mut(name) {
            Some(entry) if entry.active => {
                entry.at_once = true;
                entry.spawn(now, &mut self.generations, out);
            }
            Some(_) => out.push(Effect::Drop(name.clone())),
            None => {}
        }
    }

    /// The monitor just started looks at once: nobody must take it for idle until it says so itself.
    pub(super) fn looks_at_once(&mut self, name: &JobsetName) {
        if let Some(entry) = self.entries.get_mut(name) {
            entry.status = JobsetStatus::Fetching;
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let waiting = |entry: &Entry| match entry.life {
            Life::Waiting(until) => until,
            Life::Off | Life::Running { .. } => None,
        };
        self.entries.values().filter_map(waiting).min()
    }

    pub(super) fn on_deadline(&mut self, now: Instant, out: &mut Vec<Effect>) {
        for entry in self.entries.values_mut() {
            if matches!(entry.life, Life::Waiting(Some(until)) if until <= now) {
                entry.spawn(now, &mut self.generations, out);
            }
        }
    }

    pub(super) fn update_times(&self, name: &JobsetName) -> Option<Vec<Time>> {
        self.entries.get(name).map(|entry| entry.updates.clone())
    }

    pub(super) fn states(&self) -> Vec<State> {
        let state = |entry: &Entry| State {
            specification: entry.specification.clone(),
            active: entry.active,
            status: entry.status,
            next_poll: entry.next_poll,
            period: effective_period(&entry.specification, self.interval),
            error: entry.error.clone(),
        };
        self.entries.values().map(state).collect()
    }
}

impl Entry {
    fn spawn(&mut self, now: Instant, generations: &mut u64, out: &mut Vec<Effect>) {
        *generations += 1;
        let generation = *generations;
        self.life = Life::Running { generation, since: now };
        out.push(Effect::Spawn {
            specification: Box::new(self.specification.clone()),
            active: self.active,
            at_once: std::mem::take(&mut self.at_once),
            generation,
        });
    }
}

fn find<'a>(
    entries: &'a mut BTreeMap<JobsetName, Entry>,
    name: &JobsetName,
) -> Result<&'a mut Entry, Refusal> {
    entries.get_mut(name).ok_or_else(|| Refusal::NotFound(format!("jobset {name}")))
}

#[cfg(test)]
mod tests;
