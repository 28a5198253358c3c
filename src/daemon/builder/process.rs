//! The process backend: runs a build's command in a fresh checkout, on a thread of the builders' pool.
//!
//! Invariant: each build that was started is reported exactly once, whether its job ran, panicked or was never
//! taken up by a thread.

mod job;
mod limits;
mod products;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};

use crossbeam_channel::Sender;

use self::job::Tools;
use super::queue::Reason;
use super::running::{Leash, Unreported};
use super::{Backend, Report, Settings};
use crate::actor::pool::Pool;
use crate::actor::{fault, panic_message};
use crate::daemon::updater;
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
    leashes: BTreeMap<BuildId, Weak<Leash<Killer>>>,
}

impl Process {
    /// `lane` needs room for a report from each of `settings.max_builds` builds.
    pub(super) fn new(
        pool: Pool,
        launcher: Launcher,
        updater: updater::Handle,
        settings: Settings,
        lane: Sender<Report>,
    ) -> io::Result<Self> {
        let tools = Arc::new(Tools::new(launcher, updater, settings)?);
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
        let report = Unreported::new(&self.lane, &order);
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
