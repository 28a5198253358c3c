//! Builder: owns the ready queue and runs builds on backends.
//!
//! The books decide what is scheduled; the queue follows them. The loop never waits: writes go through the thread
//! of [`books`], builds run on their backends' threads, and both answer on lanes with room for all they can say.
//!
//! Invariant: a build runs only after the books have its start, holds its slot until its backend reports, and its
//! end is told to the books exactly once.

mod books;
mod measure;
mod output;
mod placed;
pub(crate) mod process;
pub(crate) mod queue;
pub(crate) mod remote;
mod running;
mod state;
pub(crate) mod store;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, at, bounded, never, select_biased};

use self::books::{Asked, Command, Written};
use self::process::Process;
use self::queue::Reason;
use self::remote::{Heard, Remote};
use self::state::Builder;
use self::store::{Care, StoreDaemon};
use crate::actor::pool::Pool;
use crate::actor::{Gone, PATIENCE, Spawner, Stop, ask, fault};
use crate::daemon::space::Disks;
use crate::daemon::{Config, updater};
use crate::db::builds::Changes;
use crate::db::workers;
use crate::db::{Database, Error};
use crate::model::build::{BuildId, Kind, Order, Outcome};
use crate::model::error::chain;
use crate::model::evaluation::EvaluationId;
use crate::model::job::NewJob;
use crate::model::spec::JobsetName;
use crate::store::{Address, AddressError, Dialect};
use crate::sys::clock;
use crate::sys::process::{Launcher, User};

/// Questions and changes that may wait for the loop: more than there are connections and evaluations that send them,
/// as each waits for its answer.
const INBOX: usize = 256;

/// How long running builds get to end at a stop: their grace of 3 s, what a kill takes and their cleaning up, and
/// still less than the 10 s that the daemon has in all.
const STOP_PATIENCE: Duration = Duration::from_secs(7);

/// How long the books then get to take the last ends.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Runs builds of one kind.
pub(crate) trait Backend: Send {
    fn kind(&self) -> Kind;

    /// What keeps builds of this system from running here now.
    fn obstacle(&self, system: &str) -> Option<Reason>;

    /// Begins a build and returns at once. Its end is reported on the backend's lane exactly once, a panic included.
    fn start(&mut self, order: Order);

    /// Stops a build that was started, if it still runs; its end is reported as that of any other.
    fn cancel(&mut self, id: BuildId);

    /// Builds changed in the books, of whatever kind.
    fn heed(&mut self, _changes: &Changes) {}
}

/// What a backend says.
#[derive(Debug)]
pub(crate) enum Report {
    Ended {
        id: BuildId,
        attempt: i64,
        outcome: Outcome,
    },
    /// Its obstacles are others than before.
    Changed,
}

/// What others may ask of the builder.
enum Message {
    Changed(Changes),
    Obey(Asked),
    Waiting(Vec<BuildId>, Sender<Vec<Option<String>>>),
    Queue(usize, Sender<Vec<Waiting>>),
    Obstacles(Sender<Vec<Obstructed>>),
    Reconcile(Sender<usize>),
    /// To be answered when backends know of all changes that came before.
    Heeded(Sender<()>),
}

#[derive(Clone)]
pub(crate) struct Handle {
    inbox: Sender<Message>,
    stores: Arc<[Care]>,
}

/// A build in the queue, in the order it will be taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) id: BuildId,
    pub(crate) reason: String,
}

/// Builds that wait for one thing that is not there, such as a worker for their system.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Obstructed {
    pub(crate) reason: String,
    pub(crate) builds: usize,
}

impl Handle {
    /// A handle whose builder is gone.
    #[cfg(test)]
    pub(crate) fn unattended() -> Self {
        Self { inbox: bounded(1).0, stores: Arc::new([]) }
    }

    /// Tells the queue what a transaction did.
    pub(crate) fn changed(&self, changes: Changes) -> Result<(), Gone> {
        if changes.is_empty() {
            return Ok(());
        }
        self.inbox.send_timeout(Message::Changed(changes), PATIENCE).map_err(|_| {
            self.look();
            Gone
        })
    }

    /// Keeps the derivations of jobs that are about to be registered from being collected.
    pub(crate) fn hold(&self, jobs: &[NewJob]) {
        for store in self.stores.iter() {
            store.hold(jobs);
        }
    }

    /// What disconnects, for each store, when all that was to be kept before is kept, or cannot be: a daemon may let it
    /// wait for a collection's end.
    pub(crate) fn held(&self) -> Vec<Receiver<Infallible>> {
        // What was registered reaches the stores through the loop; without it, they find it in the books.
        if !self.stores.is_empty() && ask(&self.inbox, Message::Heeded).is_err() {
            self.look();
        }
        self.stores.iter().map(Care::held).collect()
    }

    fn look(&self) {
        self.stores.iter().for_each(Care::look);
    }

    /// A jobset's specification is new: it may ask for other products of builds that are over.
    pub(crate) fn specified(&self, jobset: &JobsetName) {
        for store in self.stores.iter() {
            store.specified(jobset);
        }
    }

    pub(crate) fn cancel(&self, id: BuildId) -> Result<Result<(), Error>, Gone> {
        self.obey(Command::Cancel(id))
    }

    /// Cancels an evaluation's builds (the evaluation itself is ended by the evaluator).
    pub(crate) fn cancel_evaluation(&self, id: EvaluationId) -> Result<Result<(), Error>, Gone> {
        self.obey(Command::CancelEvaluation(id))
    }

    pub(crate) fn restart(&self, id: BuildId) -> Result<Result<(), Error>, Gone> {
        self.obey(Command::Restart(id))
    }

    pub(crate) fn restart_evaluation(
        &self,
        id: EvaluationId,
        all: bool,
    ) -> Result<Result<(), Error>, Gone> {
        self.obey(Command::RestartEvaluation { id, all })
    }

    pub(crate) fn prioritize(&self, id: BuildId, priority: i64) -> Result<Result<(), Error>, Gone> {
        self.obey(Command::Prioritize(id, priority))
    }

    /// Starts no more builds, or does again; remembered across restarts of the daemon.
    pub(crate) fn pause(&self, paused: bool) -> Result<(), Gone> {
        self.obey(Command::Pause(paused))?.map_err(|error| {
            log::error!(target: "builder", "the pause was not recorded: {}", chain(&error));
            Gone
        })
    }

    /// Gives a remote worker no more builds, or does again.
    pub(crate) fn pause_worker(&self, name: &str, paused: bool) -> Result<Result<(), Error>, Gone> {
        self.obey(Command::PauseWorker(name.to_owned(), paused))
    }

    /// Why each of these builds does not run yet; `None` for those that are not waiting.
    pub(crate) fn waiting(&self, ids: Vec<BuildId>) -> Result<Vec<Option<String>>, Gone> {
        ask(&self.inbox, |reply| Message::Waiting(ids, reply))
    }

    /// The first `limit` of the queue, running ones not included.
    pub(crate) fn queue(&self, limit: usize) -> Result<Vec<Waiting>, Gone> {
        ask(&self.inbox, |reply| Message::Queue(limit, reply))
    }

    /// What keeps builds waiting that nothing else keeps, the most builds first.
    pub(crate) fn obstacles(&self) -> Result<Vec<Obstructed>, Gone> {
        ask(&self.inbox, Message::Obstacles)
    }

    /// The janitor's sweep: makes the queue agree with the books where it does not, and returns the number of builds
    /// concerned: scheduled ones it does not know, known ones that are not scheduled, and builds that are started
    /// in the books but run nowhere, which are scheduled again.
    pub(crate) fn reconcile(&self) -> Result<usize, Gone> {
        ask(&self.inbox, Message::Reconcile)
    }

    fn obey(&self, command: Command) -> Result<Result<(), Error>, Gone> {
        let deadline = clock::now() + command.patience();
        let (reply, answer) = bounded(1);
        self.inbox.send_timeout(Message::Obey(Asked { command, deadline, reply }), PATIENCE)?;
        // What is not begun by then is not done; what was begun ends well within the rest.
        Ok(answer.recv_deadline(deadline + PATIENCE)?)
    }
}

/// What the builder is told about its surroundings.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Holds `products/`.
    pub(crate) state_directory: PathBuf,
    /// Holds `builds/`.
    pub(crate) cache_directory: PathBuf,
    /// Holds `builds/`.
    pub(crate) log_directory: PathBuf,
    pub(crate) max_builds: usize,
    pub(crate) database_directory: PathBuf,
    /// How long a look at a repository may go without a byte.
    pub(crate) fetch_timeout: Duration,
    pub(crate) max_log_size: u64,
    pub(crate) minimum_disk_space: u64,
    pub(crate) job_user: Option<User>,
    pub(crate) fallback: bool,
    /// Nobody is there to end a pause of an earlier life.
    pub(crate) one_shot: bool,
    /// The store daemons whose derivations are built.
    pub(crate) daemons: Vec<(Dialect, Address)>,
    /// Where `remote-server` is to be found, if derivations are left to its workers.
    pub(crate) remote: Option<PathBuf>,
}

impl Settings {
    /// Where builds write.
    fn disks(&self) -> Disks {
        Disks::new(vec![
            self.database_directory.clone(),
            self.state_directory.clone(),
            self.cache_directory.clone(),
            self.log_directory.clone(),
        ])
    }

    /// Store daemons are where the environment says.
    pub(crate) fn of(config: &Config) -> Result<Self, AddressError> {
        let daemons = config.backends.daemons().iter();
        let daemons = daemons.map(|dialect| Ok((*dialect, Address::found(*dialect)?)));
        Ok(Self {
            state_directory: config.state_directory.clone(),
            database_directory: config.database_directory(),
            fetch_timeout: config.fetch_timeout,
            cache_directory: config.cache_directory.clone(),
            log_directory: config.log_directory.clone(),
            max_builds: config.max_builds,
            max_log_size: config.max_log_size,
            minimum_disk_space: config.minimum_disk_space,
            job_user: config.job_user.clone(),
            fallback: config.fallback,
            one_shot: config.one_shot,
            daemons: daemons.collect::<Result<_, _>>()?,
            remote: config.remote.clone(),
        })
    }
}

/// What the builder works with.
pub(crate) struct Ports {
    pub(crate) database: Database,
    pub(crate) launcher: Launcher,
    pub(crate) updater: updater::Handle,
    pub(crate) settings: Settings,
    /// Where evaluations go that are to be made again, and are promised to be: when it is full, the next life does it.
    pub(crate) repeats: Sender<EvaluationId>,
    /// What remote workers have been building since before the start.
    pub(crate) abroad: Vec<Order>,
}

/// Starts the builder. What an earlier life left in the books must have been recovered before.
pub(crate) fn spawn(threads: &Spawner, ports: Ports) -> io::Result<Handle> {
    let Ports { database, launcher, updater, settings, repeats, abroad } = ports;
    let (lane, reports) = report_lane(settings.max_builds);
    // One pool for all: the queue hands out no more than its slots, whatever backend they go to.
    let pool = Pool::new(threads, "build", settings.max_builds)?;
    let process =
        Process::new(pool.clone(), launcher.clone(), updater, settings.clone(), lane.clone())?;
    let mut backends: Vec<Box<dyn Backend>> = vec![Box::new(process)];
    let (mut stores, mut takers) = (Vec::new(), BTreeMap::new());
    for daemon in settings.daemons.iter().cloned() {
        let (pool, lane) = (pool.clone(), lane.clone());
        let store =
            StoreDaemon::new(threads, pool, daemon, (&settings, &database, &launcher), lane)?;
        stores.push(store.care());
        takers.extend([store.taker()]);
        backends.push(Box::new(store));
    }
    let (remote, heard) = match settings.remote.clone() {
        Some(socket) => {
            let paused = paused_workers(&database)?;
            let (remote, heard) = Remote::new(threads, socket, takers, abroad, paused)?;
            (Some(remote), heard)
        }
        None => (None, never()),
    };
    let team = Team { near: backends, remote };
    let handle = spawn_with(threads, database, &settings, team, (reports, heard, repeats))?;
    Ok(Handle { stores: stores.into(), ..handle })
}

/// The workers that get nothing to build.
fn paused_workers(database: &Database) -> io::Result<BTreeSet<String>> {
    let reader = database.reader().map_err(io::Error::other)?;
    let known = workers::list(&reader).map_err(io::Error::other)?;
    Ok(known.into_iter().filter(|worker| worker.paused).map(|worker| worker.name).collect())
}

/// Who builds.
struct Team {
    near: Vec<Box<dyn Backend>>,
    /// If there is one, it has all derivations.
    remote: Option<Remote>,
}

/// A lane with room for all that backends can have to say at once: an end for every slot, and that something changed.
fn report_lane(max_builds: usize) -> (Sender<Report>, Receiver<Report>) {
    bounded(max_builds + 16)
}

fn spawn_with(
    threads: &Spawner,
    database: Database,
    settings: &Settings,
    backends: Team,
    (reports, heard, repeats): (Receiver<Report>, Receiver<Heard>, Sender<EvaluationId>),
) -> io::Result<Handle> {
    let (inbox, requests) = bounded(INBOX);
    let (builder, written) = Builder::new(threads, database, settings, backends, repeats)?;
    let lanes = Lanes { inbox: requests, reports, heard, written };
    threads.essential("builder", move |stop| run(builder, lanes, stop))?;
    Ok(Handle { inbox, stores: Arc::new([]) })
}

/// Where the loop hears from others.
struct Lanes {
    inbox: Receiver<Message>,
    reports: Receiver<Report>,
    heard: Receiver<Heard>,
    written: Receiver<Written>,
}

fn run(mut builder: Builder, lanes: Lanes, stop: Stop) -> Result<(), Gone> {
    let Lanes { inbox, reports, heard, written } = lanes;
    builder.begin(clock::now())?;
    loop {
        builder.advance(clock::now())?;
        let timer = builder.deadline().map_or_else(never, at);
        select_biased! {
            recv(stop) -> _ => break,
            recv(reports) -> report => builder.on_report(report?),
            recv(written) -> written => builder.on_written(clock::now(), written?),
            recv(heard) -> heard => builder.on_heard(clock::now(), heard?),
            recv(inbox) -> message => on_message(&mut builder, message?),
            recv(timer) -> _ => builder.on_deadline(clock::now()),
        }
        fault("builder");
    }
    // A connection that was not looked at yet would stay open.
    heard.try_iter().for_each(drop);
    // Whoever asks from now on learns that we are gone.
    drop((inbox, heard));
    wind_up(builder, &reports, &written)
}

fn on_message(builder: &mut Builder, message: Message) {
    // Askers may have given up.
    match message {
        Message::Changed(changes) => builder.on_changes(clock::now(), changes),
        Message::Obey(asked) => builder.on_command(asked),
        Message::Waiting(ids, reply) => drop(reply.send(builder.waiting(&ids))),
        Message::Queue(limit, reply) => drop(reply.send(builder.first(limit))),
        Message::Obstacles(reply) => drop(reply.send(builder.obstacles())),
        Message::Reconcile(reply) => drop(reply.send(builder.reconcile(clock::now()))),
        Message::Heeded(reply) => drop(reply.send(())),
    }
}

/// Stops what runs and sees to it that the books have every end; within a bounded time.
fn wind_up(
    mut builder: Builder,
    reports: &Receiver<Report>,
    written: &Receiver<Written>,
) -> Result<(), Gone> {
    builder.leave_far();
    builder.cancel_all();
    let deadline = clock::now() + STOP_PATIENCE;
    let mut abandoned = false;
    while !builder.is_idle() {
        builder.finish_writing()?;
        let timer = at(if abandoned { deadline + LAST_WORDS } else { deadline });
        select_biased! {
            recv(reports) -> report => builder.on_report(report?),
            recv(written) -> written => builder.on_last_written(written?),
            recv(timer) -> _ => {
                if abandoned {
                    log::warn!(target: "builder", "stopped before the books had the end of every build");
                    break;
                }
                builder.abandon_all();
                abandoned = true;
            }
        }
    }
    Ok(())
}
