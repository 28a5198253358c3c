//! Keeps store items from the collector: derivations from the moment a job names them until their build is over, and
//! outputs as long as an active jobset's last succeeded evaluation has them.
//!
//! An item gets a temporary root first, for which a daemon waits until a collection under way cannot harm it, and only
//! then its link, which outlives the connection. Derivations get the first when a job is read, the second when it is in
//! the books. Builds themselves keep what they built.
//!
//! What builds that changed have or need is seen to a little later, many at once.
//!
//! Invariant: nobody waits for a root but an evaluator, whose process keeps derivations until then. Whatever could not be
//! heard of or done is found in the books, at the latest when the daemon answers again.

use std::collections::HashSet;
use std::convert::Infallible;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, at, bounded, never, select};

use super::changed::Changed;
use super::probe::Reach;
use super::roots::{self, Trouble};
use crate::actor::{self, Gone, Spawner, Stop};
use crate::daemon::builder::running::Leash;
use crate::db::{Database, Reader, builds, wanted};
use crate::model::build::{BuildId, Store};
use crate::model::error::chain;
use crate::model::job::{NewJob, Work};
use crate::model::status::BuildStatus;
use crate::store::{Address, Closer, Connection, Dialect, Error};
use crate::sys::clock;

/// Messages that wait: batches of several evaluations.
const INBOX: usize = 64;

/// How long a connection that nothing was asked of is kept: what it holds and has no link yet is in the books by then.
const REST: Duration = Duration::from_secs(60);

/// Between two looks at everything.
const ROUND: Duration = Duration::from_secs(3600);

/// How long a daemon may take to answer: an old one answers when its collection is over.
const PATIENCE: Duration = Duration::from_secs(4 * 3600);

/// Outputs that are asked about at once.
const QUERY: usize = 1000;

enum Message {
    /// Derivations of jobs that are about to be registered.
    Hold(Vec<String>),
    /// Builds that changed in the books, or are wanted again.
    Changed(Vec<BuildId>),
    /// What changed is to be seen to now; the loop tells itself.
    CatchUp,
    /// To be dropped when all before it has been done, or cannot be.
    Tell(#[expect(dead_code, reason = "dropped, not read")] Sender<Infallible>),
}

/// Whom to tell. The flag is no message: it says that messages were lost.
#[derive(Clone)]
pub(crate) struct Keeper {
    store: Store,
    inbox: Sender<Message>,
    behind: Arc<AtomicBool>,
    leash: Arc<Leash<Closer>>,
}

impl Keeper {
    pub(super) fn hold(&self, jobs: &[NewJob]) {
        let ours = |job: &&NewJob| {
            job.work == Work::Derivation && Store::of(&job.derivation) == self.store
        };
        let derivations: Vec<_> =
            jobs.iter().filter(ours).map(|job| job.derivation.clone()).collect();
        if !derivations.is_empty() {
            self.send(Message::Hold(derivations));
        }
    }

    /// Disconnects when all that was asked for before has been done, or cannot be.
    pub(super) fn held(&self) -> Receiver<Infallible> {
        let (told, held) = bounded(0);
        // One that waits so long has more to do than anybody can wait for: it disconnects at once.
        let _ = self.inbox.send_timeout(Message::Tell(told), actor::PATIENCE);
        held
    }

    pub(super) fn heed(&self, builds: &[BuildId]) {
        if !builds.is_empty() {
            self.send(Message::Changed(builds.to_vec()));
        }
    }

    /// Has it look at everything.
    pub(super) fn look(&self) {
        self.behind.store(true, Ordering::Release);
        self.send(Message::Changed(Vec::new()));
    }

    /// For the stop: it may be waiting for the daemon.
    pub(super) fn end(&self) {
        self.leash.cancel();
    }

    fn send(&self, message: Message) {
        // Messages enough to look at everything after one of them.
        if self.inbox.try_send(message).is_err() {
            self.behind.store(true, Ordering::Release);
        }
    }
}

/// What it works with.
pub(super) struct Means {
    pub(super) dialect: Dialect,
    pub(super) address: Address,
    /// The store's directory.
    pub(super) store: String,
    /// Where the links are.
    pub(super) directory: PathBuf,
    pub(super) database: Database,
}

/// The inbox, before the thread.
pub(super) struct Inbox(Receiver<Message>);

pub(super) fn prepare(store: Store) -> (Keeper, Inbox) {
    let (inbox, messages) = bounded(INBOX);
    let (behind, leash) = (Arc::default(), Arc::default());
    (Keeper { store, inbox, behind, leash }, Inbox(messages))
}

/// Starts the thread `roots/guix` or `roots/nix`.
pub(super) fn spawn(
    threads: &Spawner,
    (keeper, inbox): (Keeper, Inbox),
    reach: Reach,
    means: Means,
) -> io::Result<()> {
    let name = match means.dialect {
        Dialect::Guix => "roots/guix",
        Dialect::Nix => "roots/nix",
    };
    let stop = threads.stop();
    let used = clock::now();
    let mut work = Rounds {
        keeper,
        reach,
        means,
        stop,
        reader: None,
        connection: None,
        used,
        changed: Changed::default(),
        registered: false,
    };
    threads.essential(name, move |stop| run(&mut work, &inbox.0, &stop))
}

fn run(work: &mut Rounds, messages: &Receiver<Message>, stop: &Stop) -> Result<(), Gone> {
    let mut round = clock::now() + ROUND;
    loop {
        let rest = work.connection.as_ref().map_or_else(never, |_| at(work.used + REST));
        let due = work.changed.due().map_or_else(never, at);
        select! {
            recv(stop) -> _ => return Ok(()),
            recv(messages) -> message => work.take(message?),
            recv(due) -> _ => work.take(Message::CatchUp),
            recv(rest) -> _ => work.connection = None,
            recv(at(round)) -> now => {
                round = now? + ROUND;
                work.keeper.behind.store(true, Ordering::Release);
                work.take(Message::CatchUp);
            }
        }
    }
}

/// Why something was left for later.
enum Left {
    Stopping,
    Books(crate::db::Error),
    Root(Trouble),
}

impl From<crate::db::Error> for Left {
    fn from(error: crate::db::Error) -> Self {
        Self::Books(error)
    }
}

impl From<Trouble> for Left {
    fn from(trouble: Trouble) -> Self {
        Self::Root(trouble)
    }
}

impl From<Error> for Left {
    fn from(error: Error) -> Self {
        Self::Root(Trouble::Daemon(error))
    }
}

impl From<io::Error> for Left {
    fn from(error: io::Error) -> Self {
        Self::Root(Trouble::Link(error))
    }
}

struct Rounds {
    keeper: Keeper,
    reach: Reach,
    means: Means,
    stop: Stop,
    reader: Option<Reader>,
    connection: Option<Connection>,
    /// When the connection was last used.
    used: Instant,
    changed: Changed,
    /// Whether the daemon knows the links that an earlier life made: it may have ended between the two.
    registered: bool,
}

impl Rounds {
    fn take(&mut self, message: Message) {
        if !self.reach.is_open() {
            // It is told when that changes.
            self.changed.take();
            self.keeper.behind.store(true, Ordering::Release);
            return;
        }
        let behind = self.keeper.behind.swap(false, Ordering::AcqRel);
        let done = match &message {
            Message::Hold(derivations) => self.hold(derivations),
            Message::Changed(builds) => {
                self.changed.add(clock::now(), builds);
                Ok(())
            }
            // The one who asked is told by the drop of the message, at the end of this round.
            Message::CatchUp | Message::Tell(_) => self.catch_up(),
        };
        let done = done.and_then(|()| if behind { self.everything() } else { Ok(()) });
        self.used = clock::now();
        let Err(left) = done else { return };
        self.keeper.behind.store(true, Ordering::Release);
        let store = self.means.store.as_str();
        match left {
            Left::Stopping => {}
            Left::Books(error) => {
                log::warn!(target: "builder", "roots of {store} are made later: {}", chain(&error));
            }
            Left::Root(Trouble::Link(error)) => {
                let directory = self.means.directory.display();
                log::warn!(target: "builder", "roots in {directory} are made later: {error}");
            }
            Left::Root(Trouble::Daemon(error)) => {
                self.connection = None;
                log::warn!(target: "builder", "roots of {store} are made later: {}", chain(&error));
                // A daemon that refuses something is there.
                if !matches!(error, Error::Refused(_)) {
                    self.reach.lose();
                }
            }
        }
    }

    fn hold(&mut self, derivations: &[String]) -> Result<(), Left> {
        for derivation in derivations {
            if self.is_item(derivation) {
                self.connection()?.add_temporary_root(derivation)?;
            }
        }
        Ok(())
    }

    fn catch_up(&mut self) -> Result<(), Left> {
        let ids = self.changed.take();
        if ids.is_empty() {
            return Ok(());
        }
        let builds = wanted::derivations(self.reader()?, &ids)?;
        let mut succeeded = Vec::new();
        for build in builds {
            if !self.is_item(&build.derivation) {
                continue;
            }
            if build.status.is_pending() {
                self.root(&build.derivation, false)?;
                continue;
            }
            roots::release(&self.means.directory, &build.derivation)?;
            if build.status == BuildStatus::Succeeded {
                succeeded.push(build.id);
            }
        }
        self.all_outputs(&succeeded)
    }

    /// Compares the links with the books.
    fn everything(&mut self) -> Result<(), Left> {
        let pending: HashSet<String> = wanted::pending(self.reader()?)?.into_iter().collect();
        let anew = !self.registered;
        for derivation in &pending {
            if self.is_item(derivation) {
                self.root(derivation, anew)?;
            }
        }
        self.registered = true;
        self.sweep(&pending)?;
        let builds = wanted::succeeded(self.reader()?)?;
        self.all_outputs(&builds)
    }

    /// Lets go of derivations whose builds are over. Nobody else makes their links.
    fn sweep(&self, pending: &HashSet<String>) -> Result<(), Left> {
        let entries = match fs::read_dir(&self.means.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let Some(item) = roots::item(&entry?.path()) else { continue };
            if item.ends_with(".drv") && self.is_item(&item) && !pending.contains(&item) {
                roots::release(&self.means.directory, &item)?;
            }
        }
        Ok(())
    }

    fn all_outputs(&mut self, builds: &[BuildId]) -> Result<(), Left> {
        builds.chunks(QUERY).try_for_each(|some| self.outputs(some))
    }

    /// Keeps outputs that are in the store and are not kept.
    fn outputs(&mut self, builds: &[BuildId]) -> Result<(), Left> {
        let mut bare = Vec::new();
        for &id in builds {
            for path in builds::outputs(self.reader()?, id)?.into_values() {
                let link = roots::link(&self.means.directory, &path)?;
                if self.is_item(&path) && fs::symlink_metadata(link).is_err() {
                    bare.push(path);
                }
            }
        }
        if bare.is_empty() {
            return Ok(());
        }
        for path in &bare {
            self.connection()?.add_temporary_root(path)?;
        }
        let paths: Vec<&str> = bare.iter().map(String::as_str).collect();
        for path in self.connection()?.valid(&paths)? {
            self.root(&path, false)?;
        }
        Ok(())
    }

    /// Makes a link where there is none; with `anew`, in any case.
    fn root(&mut self, item: &str, anew: bool) -> Result<(), Left> {
        let link = roots::link(&self.means.directory, item)?;
        if !anew && fs::symlink_metadata(link).is_ok() {
            return Ok(());
        }
        let directory = self.means.directory.clone();
        let connection = self.connection()?;
        connection.add_temporary_root(item)?;
        Ok(roots::keep(connection, &directory, item)?)
    }

    /// Whether `path` is one that the daemon takes for a store item; it may close the connection over another.
    fn is_item(&self, path: &str) -> bool {
        let name = path.strip_prefix(&self.means.store).and_then(|rest| rest.strip_prefix('/'));
        name.and_then(|name| name.split_once('-')).is_some_and(|(hash, name)| {
            hash.len() == 32
                && hash.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
                && !name.is_empty()
                && !name.contains('/')
        })
    }

    fn reader(&mut self) -> Result<&Reader, Left> {
        if matches!(self.stop.try_recv(), Err(TryRecvError::Disconnected)) {
            return Err(Left::Stopping);
        }
        if self.reader.is_none() {
            self.reader = Some(self.means.database.reader()?);
        }
        // Just filled.
        self.reader.as_ref().ok_or(Left::Stopping)
    }

    fn connection(&mut self) -> Result<&mut Connection, Left> {
        if matches!(self.stop.try_recv(), Err(TryRecvError::Disconnected)) {
            return Err(Left::Stopping);
        }
        if self.connection.is_none() {
            let wanted = || self.stop.try_recv() != Err(TryRecvError::Disconnected);
            let Means { address, dialect, .. } = &self.means;
            let connection = Connection::open(address, *dialect, &wanted)?;
            connection.be_patient(PATIENCE)?;
            if !self.keeper.leash.take(connection.closer()?) {
                return Err(Left::Stopping);
            }
            self.connection = Some(connection);
        }
        // Just filled.
        self.connection.as_mut().ok_or(Left::Stopping)
    }
}
