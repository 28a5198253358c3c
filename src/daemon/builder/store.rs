//! The store backend: has a daemon build derivations, over one connection for each build that runs, so that each has
//! its own log, limits and end.
//!
//! Invariant: each build that was started is reported exactly once; while its daemon does not answer, none is
//! started, and no try is spent on finding that out.

mod changed;
mod idle;
mod job;
mod keeper;
mod probe;
mod products;
mod retry;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use crossbeam_channel::{Receiver, Sender};

use self::idle::Idle;
use self::job::Tools;
use self::keeper::Keeper;
use self::probe::Reach;
use self::products::Products;
use super::queue::Reason;
use super::running::{Leash, Unreported};
use super::{Backend, Report, Settings};
use crate::actor::pool::Pool;
use crate::actor::{Spawner, fault, panic_message};
use crate::db::Database;
use crate::db::builds::Changes;
use crate::model::build::{BuildId, Kind, Order, Outcome, Store};
use crate::model::job::NewJob;
use crate::model::spec::JobsetName;
use crate::store::{self, Address, Closer, Connection, Dialect, Error, Hook, Line, Tunnel, roots};
use crate::sys::process::Launcher;

/// Where the links are that keep store items, below the state directory.
pub(crate) fn roots_directory(state_directory: &Path) -> PathBuf {
    state_directory.join("gcroots")
}

/// The item that a link in the directory of roots keeps.
pub(crate) fn kept_item(link: &Path) -> Option<String> {
    roots::item(link)
}

/// Connects, as long as it is `wanted`. What accepts may never greet: the connection is on the leash before that.
fn connect(
    (address, dialect): (&Address, Dialect),
    leash: &Leash<Closer>,
    wanted: &dyn Fn() -> bool,
) -> Result<Connection, Error> {
    let line = Line::connect(address, wanted)?;
    if !leash.take(line.closer().map_err(Error::Connect)?) {
        return Err(Error::Connect(io::ErrorKind::ConnectionAborted.into()));
    }
    let connection = Connection::greet(line, dialect);
    if connection.is_err() {
        leash.release();
    }
    connection
}

/// What looks after a store besides building: its roots, and the products of what is there already.
#[derive(Clone)]
pub(super) struct Care {
    keeper: Keeper,
    products: Products,
}

impl Care {
    /// Keeps the derivations of jobs that are about to be registered.
    pub(super) fn hold(&self, jobs: &[NewJob]) {
        self.keeper.hold(jobs);
    }

    /// Disconnects when all that was to be kept before is.
    pub(super) fn held(&self) -> Receiver<Infallible> {
        self.keeper.held()
    }

    /// Has what is to be kept looked up in the books: something was not heard of.
    pub(super) fn look(&self) {
        self.keeper.look();
    }

    /// A jobset's specification is new: it may ask for other products.
    pub(super) fn specified(&self, jobset: &JobsetName) {
        self.products.jobset(jobset);
    }
}

/// What came of taking a build's results in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// They are here, or something here keeps them from being.
    Over(Outcome),
    /// They do not come from there: why.
    Unfetched(String),
    /// The daemon went: they are taken in when it is there again.
    CutOff,
}

impl From<Outcome> for Taken {
    fn from(outcome: Outcome) -> Self {
        if outcome == Outcome::Interrupted { Self::CutOff } else { Self::Over(outcome) }
    }
}

/// Takes into a store what was built elsewhere.
#[derive(Clone)]
pub(super) struct Taker {
    tools: Arc<Tools>,
    reach: Reach,
}

impl Taker {
    /// Whether the daemon answers.
    pub(super) fn is_open(&self) -> bool {
        self.reach.is_open()
    }

    /// Has the daemon fetch a build's outputs from `url` if they are not there; blocks.
    pub(super) fn take(&self, order: &Order, url: &str, leash: &Leash<Closer>) -> Taken {
        job::take(&self.tools, order, url, leash, &self.reach)
    }
}

/// See the module's documentation.
pub(crate) struct StoreDaemon {
    store: Store,
    tools: Arc<Tools>,
    pool: Pool,
    lane: Sender<Report>,
    reach: Reach,
    care: Care,
    leashes: BTreeMap<BuildId, Weak<Leash<Closer>>>,
}

impl StoreDaemon {
    /// `lane` needs room for a report from each build that the pool runs, and one more.
    pub(super) fn new(
        threads: &Spawner,
        pool: Pool,
        (dialect, address): (Dialect, Address),
        (settings, database, launcher): (&Settings, &Database, &Launcher),
        lane: Sender<Report>,
    ) -> io::Result<Self> {
        let store = match dialect {
            Dialect::Guix => Store::Guix,
            Dialect::Nix => Store::Nix,
        };
        let (keeper, inbox) = keeper::prepare(store);
        let ears = (lane.clone(), keeper.clone());
        let far = !matches!(address, Address::Unix(_));
        let (address, tunnel) = match address {
            Address::Ssh(remote) => {
                let socket = settings.state_directory.join(match dialect {
                    Dialect::Guix => "guix-daemon.socket",
                    Dialect::Nix => "nix-daemon.socket",
                });
                let tunnel = Tunnel::new(launcher.clone(), remote, socket.clone());
                (Address::Unix(socket), Some(tunnel))
            }
            near => (near, None),
        };
        let reach = Reach::spawn(threads, dialect, (address.clone(), tunnel), ears)?;
        let means = keeper::Means {
            dialect,
            address: address.clone(),
            store: store::directory(dialect),
            far,
            directory: roots_directory(&settings.state_directory),
            database: database.clone(),
        };
        keeper::spawn(threads, (keeper.clone(), inbox), reach.clone(), means)?;
        let products = products::spawn(threads, dialect, database.clone())?;
        let hook =
            if far { Hook::Unknown } else { Hook::prepare(dialect, &settings.state_directory) };
        let idle = Idle::spawn(threads, dialect)?;
        let tools = Tools::new((dialect, address), (settings, database), hook, idle);
        let care = Care { keeper, products };
        let tools = Arc::new(tools);
        Ok(Self { store, tools, pool, lane, reach, care, leashes: BTreeMap::new() })
    }

    pub(super) fn care(&self) -> Care {
        self.care.clone()
    }

    pub(super) fn taker(&self) -> (Store, Taker) {
        (self.store, Taker { tools: Arc::clone(&self.tools), reach: self.reach.clone() })
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

    fn heed(&mut self, changes: &Changes) {
        self.care.keeper.heed(changes);
        self.care.products.reused(&changes.reused);
    }
}

impl Drop for StoreDaemon {
    fn drop(&mut self) {
        self.reach.end();
        self.care.keeper.end();
    }
}
