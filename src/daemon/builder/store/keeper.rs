//! Keeps store items from the collector: derivations from the moment a job names them until their build is over, and
//! outputs as long as an active jobset's last succeeded evaluation has them.
//!
//! An item gets a temporary root first, for which a daemon waits until a collection under way cannot harm it, and only
//! then its link, which outlives the connection. Derivations get the first when a job is read, the second when it is in
//! the books. Builds themselves keep what they built.
//!
//! This is whom to tell; what is done about it is in [`rounds`].
//!
//! Derivations of builds that are scheduled get their links at once. What builds that are over have or needed is seen to a
//! little later, many at once.
//!
//! Links of ours mean nothing to a daemon of another machine. There the connection is kept instead, as long as there are
//! builds that wait or run, and holds their derivations and what was built for them.
//!
//! Invariant: nobody waits for a root but an evaluator, whose process keeps derivations until then. Whatever could not be
//! heard of or done is found in the books, at the latest when the daemon answers again.

mod rounds;

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, at, bounded, never, select};

use self::rounds::Rounds;
use super::probe::Reach;
use crate::actor::{self, Gone, Spawner, Stop};
use crate::daemon::builder::running::Leash;
use crate::db::Database;
use crate::db::builds::Changes;
use crate::model::build::{BuildId, Store};
use crate::model::job::{NewJob, Work};
use crate::store::{Address, Closer, Dialect};
use crate::sys::clock;

/// Messages that wait: batches of several evaluations.
const INBOX: usize = 64;

/// How long a stop waits for links that are not made yet: the daemon has 10 s in all, builds take up to 8 of them, and
/// there may be two stores.
const LAST_LINKS: Duration = Duration::from_millis(500);

/// Between two looks at everything.
const ROUND: Duration = Duration::from_secs(3600);

enum Message {
    /// Derivations of jobs that are about to be registered.
    Hold(Vec<String>),
    /// Builds that are to be run, whose derivations need their links now.
    Scheduled(Vec<BuildId>),
    /// Builds that are over, or wanted again.
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
    /// Disconnects when the thread has ended.
    ended: Receiver<Infallible>,
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

    pub(super) fn heed(&self, changes: &Changes) {
        let Changes { scheduled, ended, reused, repeats: _ } = changes;
        if !scheduled.is_empty() {
            self.send(Message::Scheduled(scheduled.clone()));
        }
        if !(ended.is_empty() && reused.is_empty()) {
            self.send(Message::Changed(ended.iter().chain(reused).copied().collect()));
        }
    }

    /// Has it look at everything.
    pub(super) fn look(&self) {
        self.behind.store(true, Ordering::Release);
        self.send(Message::Changed(Vec::new()));
    }

    /// For the stop: it may be waiting for the daemon, but gets the time for a few links.
    pub(super) fn end(&self) {
        let _ = self.ended.recv_timeout(LAST_LINKS);
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
    /// Whether the daemon may be another machine's, which sees no links of ours.
    pub(super) far: bool,
    /// Where the links are.
    pub(super) directory: PathBuf,
    pub(super) database: Database,
}

/// The inbox, before the thread.
pub(super) struct Inbox {
    messages: Receiver<Message>,
    /// Dropped with the thread.
    alive: Sender<Infallible>,
}

pub(super) fn prepare(store: Store) -> (Keeper, Inbox) {
    let (inbox, messages) = bounded(INBOX);
    let (alive, ended) = bounded(0);
    let (behind, leash) = (Arc::default(), Arc::default());
    (Keeper { store, inbox, behind, leash, ended }, Inbox { messages, alive })
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
    let mut work = Rounds::new(threads.stop(), keeper, reach, means);
    threads.essential(name, move |stop| {
        let Inbox { messages, alive } = inbox;
        let result = run(&mut work, &messages, &stop);
        drop(alive);
        result
    })
}

fn run(work: &mut Rounds, messages: &Receiver<Message>, stop: &Stop) -> Result<(), Gone> {
    let mut round = clock::now() + ROUND;
    loop {
        let retire = work.retires().map_or_else(never, at);
        let due = work.changed.due().map_or_else(never, at);
        let retry = work.retry.due().map_or_else(never, at);
        select! {
            recv(stop) -> _ => {
                work.last_links();
                return Ok(());
            }
            recv(messages) -> message => work.take(message?),
            recv(due) -> _ => work.take(Message::CatchUp),
            recv(retry) -> _ => work.take(Message::CatchUp),
            recv(retire) -> _ => work.retire(),
            recv(at(round)) -> now => {
                round = now? + ROUND;
                work.keeper.behind.store(true, Ordering::Release);
                work.take(Message::CatchUp);
            }
        }
    }
}
