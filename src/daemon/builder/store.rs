//! The store backend: has a daemon build derivations, over one connection for each build that runs, so that each has
//! its own log, limits and end.
//!
//! Invariant: each build that was started is reported exactly once; while its daemon does not answer, none is
//! started, and no try is spent on finding that out.

mod job;
mod probe;
mod roots;

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use crossbeam_channel::Sender;

use self::job::Tools;
use self::probe::Reach;
use super::queue::Reason;
use super::running::{Leash, Unreported};
use super::{Backend, Report, Settings};
use crate::actor::pool::Pool;
use crate::actor::{Spawner, fault, panic_message};
use crate::model::build::{BuildId, Kind, Order, Outcome, Store};
use crate::store::{Address, Closer, Dialect};

pub(crate) use self::roots::expire as expire_roots;

/// Where the links are that keep store items, below the state directory.
pub(crate) fn roots_directory(state_directory: &std::path::Path) -> PathBuf {
    state_directory.join("gcroots")
}

/// See the module's documentation.
pub(crate) struct StoreDaemon {
    store: Store,
    tools: Arc<Tools>,
    pool: Pool,
    lane: Sender<Report>,
    reach: Reach,
    leashes: BTreeMap<BuildId, Weak<Leash<Closer>>>,
}

impl StoreDaemon {
    /// `lane` needs room for a report from each build that the pool runs, and one more.
    pub(super) fn new(
        threads: &Spawner,
        pool: Pool,
        dialect: Dialect,
        address: Address,
        settings: &Settings,
        lane: Sender<Report>,
    ) -> io::Result<Self> {
        let store = match dialect {
            Dialect::Guix => Store::Guix,
            Dialect::Nix => Store::Nix,
        };
        let reach = Reach::spawn(threads, dialect, address.clone(), lane.clone())?;
        let tools = Arc::new(Tools::new(dialect, address, settings));
        Ok(Self { store, tools, pool, lane, reach, leashes: BTreeMap::new() })
    }
}

impl Backend for StoreDaemon {
    fn kind(&self) -> Kind {
        Kind::Derivation(self.store)
    }

    /// Systems are the daemon's business: it may offload, or emulate.
    fn obstacle(&self, _system: &str) -> Option<Reason> {
        (!self.reach.is_open()).then_some(Reason::StoreUnreachable)
    }

    fn start(&mut self, order: Order) {
        self.leashes.retain(|_, leash| leash.strong_count() > 0);
        let leash = Arc::new(Leash::default());
        self.leashes.insert(order.id, Arc::downgrade(&leash));
        let report = Unreported::new(&self.lane, &order);
        let (tools, reach) = (Arc::clone(&self.tools), self.reach.clone());
        // A refusal says that the threads are stopping; dropping the job reports it.
        let _ = self.pool.run(move || {
            let run = AssertUnwindSafe(|| {
                fault("build");
                job::run(&tools, &order, &leash, &reach)
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
