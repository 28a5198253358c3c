//! Evaluator: a bounded pool of evaluation subprocesses.
//!
//! Invariant: at most one evaluation of a jobset runs at a time, and every request is answered exactly once.
//! What one evaluation does is in `job`; how its output becomes jobs is in `evaluate`.

mod answers;
mod books;
mod job;
mod log_file;

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, io};

use crossbeam_channel::{Receiver, Sender, after, at, bounded, never, select_biased};

use super::space::{Disks, Space};
use super::{builder, updater};
use crate::actor::pool::Pool;
use crate::actor::{Gone, PATIENCE, Spawner, Stop, ask, fault};
use crate::db::Database;
use crate::db::builds::Changes;
use crate::evaluate::run::Cut;
use crate::model::evaluation::{Checkout, Ending, EvaluationId};
use crate::model::job::NewJob;
use crate::model::spec::{JobsetName, Specification};
use crate::model::time::Time;
use crate::sys::process::{Killer, Launcher, User};
use crate::sys::{clock, file};

/// Messages that wait for the loop, which takes microseconds for each: a burst of monitors.
const INBOX: usize = 64;

/// Reports of one evaluation: that it is in the books, that its child runs, that it ended.
const REPORTS: usize = 3;

/// Reasons to end one evaluation: canceled, the daemon stops, its jobs cannot be registered; and one to spare.
const REASONS: usize = 4;

/// How long running evaluations may take to end when the daemon stops: the grace of their children twice, and
/// less than the 10 s of the whole.
const STOP_PATIENCE: Duration = Duration::from_secs(8);

/// One evaluation to make.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) specification: Specification,
    pub(crate) fingerprint: String,
    pub(crate) checkouts: Vec<Checkout>,
    /// When the monitor decided to fetch.
    pub(crate) decided: Time,
}

#[derive(Debug)]
pub(crate) struct Evaluated {
    pub(crate) jobset: JobsetName,
    /// `None` if it did not even start (the jobset is gone, or the daemon stops).
    pub(crate) evaluation: Option<EvaluationId>,
    pub(crate) ending: Ending,
}

/// How much there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) running: usize,
    /// Requests that have no slot yet.
    pub(crate) waiting: usize,
}

/// What whoever asked for an evaluation hears: perhaps that it waits, and once how it ended.
#[derive(Debug)]
pub(crate) enum Answer {
    /// There is no room on the disk: why.
    Waits(JobsetName, String),
    /// It waits no longer for room.
    Room(JobsetName),
    Ended(Evaluated),
}

/// What others may ask of the evaluator.
pub(super) enum Message {
    Evaluate(Box<Request>, Sender<Answer>),
    Cancel(EvaluationId, Sender<bool>),
    CancelJobset(JobsetName),
    Withdraw(JobsetName),
    Pause(bool),
    Counts(Sender<Counts>),
}

/// What evaluations report.
enum Report {
    /// It is in the books under this number.
    Begun(Slot, EvaluationId),
    /// Its child can be ended by this.
    Running(Slot, Killer),
    Ended(Slot, Evaluated),
}

/// One evaluation under way, until it has ended.
pub(super) type Slot = u64;

/// What the core asks for.
pub(super) enum Effect {
    Start(Slot, Box<Request>),
    Cut(Slot, Cut),
    Answer(Sender<Answer>, Answer),
}

struct Waiting {
    request: Box<Request>,
    lane: Sender<Answer>,
    /// Whether whoever asked knows that it waits.
    told: bool,
}

struct Running {
    jobset: JobsetName,
    evaluation: Option<EvaluationId>,
    lane: Sender<Answer>,
}

/// The decisions: what runs, what waits.
pub(super) struct Core {
    max: usize,
    paused: bool,
    /// Why there is no room on the disk for another one.
    short: Option<String>,
    stopping: bool,
    /// In the order of requests.
    waiting: VecDeque<Waiting>,
    running: HashMap<Slot, Running>,
    next: Slot,
}

impl Core {
    pub(super) fn new(max: usize, paused: bool) -> Self {
        Self {
            max,
            paused,
            short: None,
            stopping: false,
            waiting: VecDeque::new(),
            running: HashMap::new(),
            next: 0,
        }
    }

    pub(super) fn on_message(&mut self, message: Message, out: &mut Vec<Effect>) {
        match message {
            Message::Evaluate(request, lane) => {
                self.waiting.push_back(Waiting { request, lane, told: false });
                self.fill(out);
            }
            Message::Cancel(id, reply) => {
                let slot = self.running.iter().find(|(_, running)| running.evaluation == Some(id));
                let slot = slot.map(|(&slot, _)| slot);
                out.extend(slot.map(|slot| Effect::Cut(slot, Cut::Canceled)));
                // The asker may be gone.
                let _ = reply.try_send(slot.is_some());
            }
            Message::CancelJobset(name) => {
                let of_it = self.running.iter().filter(|(_, running)| running.jobset == name);
                out.extend(of_it.map(|(&slot, _)| Effect::Cut(slot, Cut::Canceled)));
                self.dismiss(Ending::Canceled, out, |jobset| *jobset == name);
            }
            Message::Withdraw(name) => {
                self.dismiss(Ending::Canceled, out, |jobset| *jobset == name);
            }
            Message::Pause(paused) => {
                self.paused = paused;
                self.fill(out);
            }
            Message::Counts(reply) => {
                let counts = Counts { running: self.running.len(), waiting: self.waiting.len() };
                // The asker may be gone.
                let _ = reply.try_send(counts);
            }
        }
    }

    pub(super) fn on_begun(&mut self, slot: Slot, id: EvaluationId) {
        if let Some(running) = self.running.get_mut(&slot) {
            running.evaluation = Some(id);
        }
    }

    pub(super) fn on_ended(&mut self, slot: Slot, evaluated: Evaluated, out: &mut Vec<Effect>) {
        if let Some(running) = self.running.remove(&slot) {
            out.push(Effect::Answer(running.lane, Answer::Ended(evaluated)));
        }
        self.fill(out);
    }

    /// The disk was measured.
    pub(super) fn on_space(&mut self, short: Option<&str>, out: &mut Vec<Effect>) {
        self.short = short.map(ToOwned::to_owned);
        if self.short.is_none() {
            for waiting in self.waiting.iter_mut().filter(|waiting| waiting.told) {
                waiting.told = false;
                let jobset = waiting.request.specification.name.clone();
                out.push(Effect::Answer(waiting.lane.clone(), Answer::Room(jobset)));
            }
        }
        self.fill(out);
    }

    fn on_stop(&mut self, out: &mut Vec<Effect>) {
        self.stopping = true;
        self.dismiss(Ending::Interrupted, out, |_| true);
        out.extend(self.running.keys().map(|&slot| Effect::Cut(slot, Cut::Interrupted)));
    }

    /// Answers those that wait and are of a jobset that `which` selects.
    fn dismiss(
        &mut self,
        ending: Ending,
        out: &mut Vec<Effect>,
        which: impl Fn(&JobsetName) -> bool,
    ) {
        let (gone, left) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|waiting| which(&waiting.request.specification.name));
        self.waiting = left;
        for Waiting { request, lane, .. } in gone {
            let jobset = request.specification.name;
            let evaluated = Evaluated { jobset, evaluation: None, ending: ending.clone() };
            out.push(Effect::Answer(lane, Answer::Ended(evaluated)));
        }
    }

    /// Starts what may run.
    fn fill(&mut self, out: &mut Vec<Effect>) {
        if let Some(why) = self.short.as_ref().filter(|_| !self.paused) {
            for waiting in self.waiting.iter_mut().filter(|waiting| !waiting.told) {
                waiting.told = true;
                let jobset = waiting.request.specification.name.clone();
                out.push(Effect::Answer(waiting.lane.clone(), Answer::Waits(jobset, why.clone())));
            }
            return;
        }
        while !self.paused && !self.stopping && self.running.len() < self.max {
            let idle = |waiting: &Waiting| {
                let jobset = &waiting.request.specification.name;
                self.running.values().all(|running| running.jobset != *jobset)
            };
            let Some(first) = self.waiting.iter().position(idle) else { return };
            let Some(Waiting { request, lane, .. }) = self.waiting.remove(first) else { return };
            let slot = self.next;
            self.next += 1;
            let jobset = request.specification.name.clone();
            self.running.insert(slot, Running { jobset, evaluation: None, lane });
            out.push(Effect::Start(slot, request));
        }
    }
}

#[derive(Clone)]
pub(crate) struct Handle {
    inbox: Sender<Message>,
}

impl Handle {
    /// The answers come on `lane`, which must have room for them.
    pub(crate) fn evaluate(&self, request: Request, lane: Sender<Answer>) -> Result<(), Gone> {
        Ok(self.inbox.send_timeout(Message::Evaluate(Box::new(request), lane), PATIENCE)?)
    }

    /// Cancels a running evaluation; false if it is not running.
    pub(crate) fn cancel(&self, id: EvaluationId) -> Result<bool, Gone> {
        ask(&self.inbox, |reply| Message::Cancel(id, reply))
    }

    /// Cancels what runs or waits of a jobset, which is going to be deleted.
    pub(crate) fn cancel_jobset(&self, name: &JobsetName) -> Result<(), Gone> {
        Ok(self.inbox.send_timeout(Message::CancelJobset(name.clone()), PATIENCE)?)
    }

    /// How many evaluations run and wait.
    pub(crate) fn counts(&self) -> Result<Counts, Gone> {
        ask(&self.inbox, Message::Counts)
    }

    /// Takes back what waits of a jobset, which was deactivated.
    pub(crate) fn withdraw(&self, name: &JobsetName) -> Result<(), Gone> {
        Ok(self.inbox.send_timeout(Message::Withdraw(name.clone()), PATIENCE)?)
    }

    /// While paused none starts; those that run go on. The books are not told.
    pub(crate) fn pause(&self, paused: bool) -> Result<(), Gone> {
        Ok(self.inbox.send_timeout(Message::Pause(paused), PATIENCE)?)
    }
}

/// What the evaluator works with.
#[derive(Clone)]
pub(crate) struct Ports {
    pub(crate) database: Database,
    pub(crate) builder: builder::Handle,
    pub(crate) launcher: Launcher,
    pub(crate) updater: updater::Handle,
    pub(crate) settings: Settings,
}

#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) max_evaluations: usize,
    /// The setting `paused.evaluations` when the daemon starts.
    pub(crate) paused: bool,
    /// Holds the database.
    pub(crate) database_directory: PathBuf,
    pub(crate) cache_directory: PathBuf,
    pub(crate) log_directory: PathBuf,
    /// None begins while less is free.
    pub(crate) minimum_disk_space: u64,
    /// Bytes of an evaluation's log, uncompressed.
    pub(crate) max_log_size: u64,
    /// Bytes of address space of an evaluator.
    pub(crate) memory: Option<u64>,
    pub(crate) job_user: Option<User>,
    /// The words of the command that runs Guix.
    pub(crate) guix: Vec<String>,
}

/// Tells the builder what registering did.
type Tell = Arc<dyn Fn(Changes) -> Result<(), Gone> + Send + Sync>;

/// Keeps the derivations of jobs that are about to be registered from being collected.
type Hold = Arc<dyn Fn(&[NewJob]) + Send + Sync>;

/// What disconnects, for each store, when all that was to be kept before is kept, or cannot be.
type Held = Arc<dyn Fn() -> Vec<Receiver<Infallible>> + Send + Sync>;

pub(crate) fn spawn(threads: &Spawner, ports: Ports) -> io::Result<Handle> {
    let [builder, holder, asked] = std::array::from_fn(|_| ports.builder.clone());
    let tell: Tell = Arc::new(move |changes| builder.changed(changes));
    let hold: Hold = Arc::new(move |jobs| holder.hold(jobs));
    let held: Held = Arc::new(move || asked.held());
    let tools = (ports.database, ports.launcher, ports.updater);
    spawn_telling(threads, tools, ports.settings, (tell, hold, held))
}

fn spawn_telling(
    threads: &Spawner,
    (database, launcher, updater): (Database, Launcher, updater::Handle),
    settings: Settings,
    (tell, hold, held): (Tell, Hold, Held),
) -> io::Result<Handle> {
    let max = settings.max_evaluations.max(1);
    let (inbox, requests) = bounded(INBOX);
    let (up, reports) = bounded(REPORTS * max);
    let pool = Pool::new(threads, "evaluate", max)?;
    // Each evaluation has a second thread that waits for the books while the first one reads.
    let registrars = Pool::new(threads, "register", max)?;
    let answerers = Pool::new(threads, "answer", max)?;
    let core = Core::new(max, settings.paused);
    sweep(threads, &settings)?;
    let space = Space::new("evaluator", "evaluations", settings.minimum_disk_space);
    let disks = Disks::new(vec![
        settings.cache_directory.clone(),
        settings.log_directory.clone(),
        settings.database_directory.clone(),
    ]);
    let tools = job::Tools {
        database,
        launcher,
        updater,
        settings,
        tell,
        hold,
        held,
        registrars,
        answerers,
    };
    let work = Work { pool, tools, up, cuts: HashMap::new(), space, disks };
    threads.essential("evaluator", move |stop| run(core, requests, reports, work, stop))?;
    Ok(Handle { inbox })
}

/// Removes in the background what evaluations of an earlier life left: those of this one have other numbers.
/// There are no more of them than evaluations ran at once.
fn sweep(threads: &Spawner, settings: &Settings) -> io::Result<()> {
    // Usually there is no such directory, or nothing in it.
    let entries = fs::read_dir(settings.cache_directory.join("evaluations"));
    let left: Vec<_> = entries.into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    if left.is_empty() {
        return Ok(());
    }
    let body = move |_: Stop| -> Result<(), Gone> {
        for path in left {
            if let Err(error) = file::remove_tree(&path) {
                log::warn!(target: "evaluator", "cannot remove {}: {error}", path.display());
            }
        }
        Ok(())
    };
    let ended = |report| log::debug!(target: "evaluator", "{report:?}");
    threads.child("sweep/evaluator", body, ended)
}

/// The means to end one evaluation.
struct Control {
    reasons: Sender<Cut>,
    killer: Option<Killer>,
    /// Whether a reason was given.
    cut: bool,
}

/// What performs effects.
struct Work {
    pool: Pool,
    tools: job::Tools,
    up: Sender<Report>,
    cuts: HashMap<Slot, Control>,
    space: Space,
    disks: Disks,
}

impl Work {
    /// Tells the core whether there is room for what it may start next.
    fn measure(&mut self, core: &mut Core, out: &mut Vec<Effect>) {
        let now = clock::now();
        if self.space.is_due(now) {
            self.space.on_measured(now, self.disks.measure());
            core.on_space(self.space.shortage(), out);
        }
    }

    /// When to measure again, for the sake of what waits.
    fn due(&self, core: &Core) -> Option<Instant> {
        self.space.due().filter(|_| self.space.is_short() && !core.waiting.is_empty())
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Start(slot, request) => {
                let (reasons, cuts) = bounded(REASONS);
                let control = Control { reasons: reasons.clone(), killer: None, cut: false };
                self.cuts.insert(slot, control);
                let finish = job::Finish::new(slot, &request.specification.name, &self.up);
                let job = job::Job { tools: self.tools.clone(), request, reasons, cuts, finish };
                // Not run, it is dropped, and reports its end all the same.
                if self.pool.run(move || job.run()).is_err() {
                    log::debug!(target: "evaluator", "the pool takes no more work");
                }
            }
            Effect::Cut(slot, cut) => {
                if let Some(control) = self.cuts.get_mut(&slot) {
                    // A full channel holds reasons enough.
                    let _ = control.reasons.try_send(cut);
                    control.cut = true;
                    if let Some(killer) = &control.killer {
                        killer.cancel();
                    }
                }
            }
            Effect::Answer(lane, answer) => {
                if let Err(error) = lane.try_send(answer) {
                    log::debug!(target: "evaluator", "nobody waits for an evaluation: {error}");
                }
            }
        }
    }

    fn on_report(&mut self, report: Report, core: &mut Core, out: &mut Vec<Effect>) {
        match report {
            Report::Begun(slot, id) => core.on_begun(slot, id),
            Report::Running(slot, killer) => {
                if let Some(control) = self.cuts.get_mut(&slot) {
                    // A reason may have come before there was anything to end.
                    if control.cut {
                        killer.cancel();
                    }
                    control.killer = Some(killer);
                }
            }
            Report::Ended(slot, evaluated) => {
                self.cuts.remove(&slot);
                core.on_ended(slot, evaluated, out);
            }
        }
    }
}

fn run(
    mut core: Core,
    inbox: Receiver<Message>,
    reports: Receiver<Report>,
    mut work: Work,
    stop: Stop,
) -> Result<(), Gone> {
    let mut out = Vec::new();
    loop {
        let timer = work.due(&core).map_or_else(never, at);
        select_biased! {
            recv(stop) -> _ => break,
            recv(reports) -> report => {
                work.measure(&mut core, &mut out);
                work.on_report(report?, &mut core, &mut out);
            }
            recv(inbox) -> message => match message {
                Ok(message) => {
                    work.measure(&mut core, &mut out);
                    core.on_message(message, &mut out);
                }
                // Nobody can ask any more: the daemon is going down.
                Err(_) => break,
            },
            recv(timer) -> _ => work.measure(&mut core, &mut out),
        }
        fault("evaluator");
        out.drain(..).for_each(|effect| work.perform(effect));
    }
    // Whoever asks now hears at once that nobody answers.
    drop(inbox);
    core.on_stop(&mut out);
    let patience = after(STOP_PATIENCE);
    loop {
        out.drain(..).for_each(|effect| work.perform(effect));
        if core.running.is_empty() {
            return Ok(());
        }
        select_biased! {
            recv(reports) -> report => work.on_report(report?, &mut core, &mut out),
            recv(patience) -> _ => {
                log::error!(target: "evaluator", "{} evaluations do not end", core.running.len());
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests;
