//! The process backend: runs a build's command in a fresh checkout, on a thread of a pool of its own.
//!
//! Invariant: each build that was started is reported exactly once, whether its job ran, panicked or was never
//! taken up by a thread.

mod job;
mod limits;
mod output;
mod products;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crossbeam_channel::Sender;

use self::job::Tools;
use super::queue::Reason;
use super::{Backend, Report, Settings};
use crate::actor::pool::Pool;
use crate::actor::{Spawner, fault, panic_message};
use crate::model::build::{BuildId, Kind, Order, Outcome};
use crate::sys::process::{Killer, Launcher};

/// This host's system, as package managers spell it.
pub(crate) fn host_system() -> String {
    let machine = match std::env::consts::ARCH {
        "x86" => "i686",
        "arm" => "armhf",
        "powerpc64" if cfg!(target_endian = "little") => "powerpc64le",
        other => other,
    };
    format!("{machine}-{}", std::env::consts::OS)
}

/// See the module's documentation.
pub(crate) struct Process {
    tools: Arc<Tools>,
    pool: Pool,
    lane: Sender<Report>,
    host: String,
    /// Of the builds that run, and perhaps a few that did.
    leashes: BTreeMap<BuildId, Weak<Leash>>,
}

impl Process {
    /// `lane` needs room for a report from each of `settings.max_builds` builds.
    pub(super) fn new(
        threads: &Spawner,
        launcher: Launcher,
        settings: Settings,
        lane: Sender<Report>,
    ) -> io::Result<Self> {
        let pool = Pool::new(threads, "build", settings.max_builds)?;
        let tools = Arc::new(Tools::new(launcher, settings)?);
        Ok(Self { tools, pool, lane, host: host_system(), leashes: BTreeMap::new() })
    }
}

impl Backend for Process {
    fn kind(&self) -> Kind {
        Kind::Process
    }

    fn obstacle(&self, system: &str) -> Option<Reason> {
        (system != self.host).then(|| Reason::NoWorker(system.into()))
    }

    fn start(&mut self, order: Order) {
        self.leashes.retain(|_, leash| leash.strong_count() > 0);
        let leash = Arc::new(Leash::default());
        self.leashes.insert(order.id, Arc::downgrade(&leash));
        let report = Unreported {
            lane: self.lane.clone(),
            id: order.id,
            attempt: order.attempt,
            outcome: Outcome::Interrupted,
        };
        let tools = Arc::clone(&self.tools);
        // The builder hands out no more than there are threads; a refusal says that they are stopping, and then
        // dropping the job reports it.
        let _ = self.pool.run(move || {
            let run = AssertUnwindSafe(|| {
                fault("build");
                job::run(&tools, &order, &leash)
            });
            report.send(catch_unwind(run).unwrap_or_else(|payload| {
                let text = panic_message(payload.as_ref());
                log::error!(target: "builder", "the job of build {} panicked: {text}", order.id);
                Outcome::Aborted(format!("internal error: {text}"))
            }));
        });
    }

    fn cancel(&mut self, id: BuildId) {
        if let Some(leash) = self.leashes.get(&id).and_then(Weak::upgrade) {
            leash.cancel();
        }
    }
}

/// The report that is due for a build: dropped unsent, it says that the build was interrupted.
struct Unreported {
    lane: Sender<Report>,
    id: BuildId,
    attempt: i64,
    outcome: Outcome,
}

impl Unreported {
    fn send(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Unreported {
    fn drop(&mut self) {
        let Self { id, attempt, .. } = *self;
        let outcome = std::mem::replace(&mut self.outcome, Outcome::Interrupted);
        // A builder that is gone needs no report.
        let _ = self.lane.send(Report::Ended { id, attempt, outcome });
    }
}

/// Cancels one job from the builder's thread, whether its child runs yet or not.
#[derive(Default)]
pub(super) struct Leash(Mutex<Hold>);

#[derive(Default)]
enum Hold {
    #[default]
    Loose,
    Child(Killer),
    Canceled,
}

impl Leash {
    fn cancel(&self) {
        let mut hold = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Hold::Child(killer) = &*hold {
            killer.cancel();
        }
        *hold = Hold::Canceled;
    }

    /// Puts a child on the leash; false if it was canceled before.
    fn take(&self, killer: Killer) -> bool {
        let mut hold = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *hold {
            Hold::Loose | Hold::Child(_) => {
                *hold = Hold::Child(killer);
                true
            }
            Hold::Canceled => false,
        }
    }

    fn is_canceled(&self) -> bool {
        matches!(*self.0.lock().unwrap_or_else(PoisonError::into_inner), Hold::Canceled)
    }
}
