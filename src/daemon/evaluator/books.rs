//! The way of jobs into the books: batches, and a second thread that waits for the database while the first one
//! reads and parses.
//!
//! Invariant: a job is in the books a few hundredths of a second after it was printed, however slowly the evaluator goes
//! on; what is on its way is bounded; and derivations are held in their stores before the books have them.

use std::convert::Infallible;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, at, bounded, never, select};

use super::answers::{Awaited, What};
use super::job::Tools;
use super::log_file::LogFile;
use crate::actor::{Gone, panic_message};
use crate::db::builds::{self, Changes};
use crate::db::{Error, Tx};
use crate::evaluate::inputs::Inputs;
use crate::evaluate::run::{Cut, Limits, Sink};
use crate::model::error::chain;
use crate::model::evaluation::{Ending, EvaluationId};
use crate::model::job::{NewJob, Work};
use crate::store;
use crate::sys::clock;
use crate::sys::process::Killer;

/// Jobs of a batch: enough that the transaction's own cost vanishes among its rows, few enough that other
/// writers need not wait long.
const BATCH: usize = 3000;

/// Bytes of a batch: jobs may be as large as a line, and a few batches are on their way at once.
const BATCH_BYTES: usize = 4 << 20;

/// How long a job waits for others to share its transaction: a small part of what a trigger may take to the
/// first build, and at most a hundred transactions a second.
const DELAY: Duration = Duration::from_millis(10);

/// Batches that wait while one is being written: one, so that the writer need not wait for the parser.
const AHEAD: usize = 1;

/// How far ahead the time of an answer that is due is granted: as often is it looked for, while an evaluation at the end
/// of its time waits.
const AHEAD_OF_ANSWER: Duration = Duration::from_secs(1);

/// Remarks of the second thread for the log: it has one to make.
const NOTES: usize = 4;

/// What is registered at once, and then waited for.
#[derive(Default)]
struct Batch {
    jobs: Vec<NewJob>,
    awaited: Vec<Awaited>,
}

/// Jobs and text of one evaluation on their way to the books and the log.
pub(super) struct Books {
    log: LogFile,
    batch: Vec<NewJob>,
    batch_bytes: usize,
    batch_due: Option<Instant>,
    batches: Option<Sender<Batch>>,
    /// Jobs whose end the evaluator waits for, to be told with the batch.
    awaited: Vec<Awaited>,
    /// Where it hears of them.
    answers: PathBuf,
    /// Since when an answer is due, and where the moment comes when it was given.
    due_answer: Option<(Instant, Receiver<Instant>)>,
    /// What earlier ones took.
    waited: Duration,
    /// Ends, when dropped, what waits for builds.
    _over: Sender<Infallible>,
    /// Its other end, for them.
    ended: Receiver<Infallible>,
    /// How registering ended.
    done: Receiver<Result<(), String>>,
    /// What the second thread has to say.
    notes: Receiver<String>,
    cuts: Receiver<Cut>,
    deadline: Option<Instant>,
}

impl Books {
    /// Starts the second thread. `reasons` is the sending end of `cuts`, `killer` the child's: both
    /// serve to end the evaluation when a batch cannot be registered.
    pub(super) fn open(
        tools: &Tools,
        id: EvaluationId,
        log: LogFile,
        (reasons, cuts): (Sender<Cut>, Receiver<Cut>),
        killer: Killer,
        limits: &Limits,
        answers: PathBuf,
    ) -> Result<Self, Gone> {
        let (batches, inbox) = bounded(AHEAD);
        let (over, ended) = bounded(0);
        let (end, done) = bounded(1);
        let (remarks, notes) = bounded(NOTES);
        let work = tools.clone();
        tools.registrars.run(move || {
            let result = catch_unwind(AssertUnwindSafe(|| register(&work, id, &inbox, &remarks)));
            let result = result
                .unwrap_or_else(|panic| Err(format!("internal error: {}", panic_message(&*panic))));
            let failed = result.as_ref().err().cloned();
            if let Some(reason) = &failed {
                // A full channel holds reasons enough.
                let _ = reasons.try_send(Cut::Broken(reason.clone()));
            }
            // The other end may have ended already.
            let _ = end.try_send(result);
            // Disconnects the batches: whoever is stuck on them, or on the child, then looks for the reason.
            drop(inbox);
            if failed.is_some() {
                killer.cancel();
            }
        })?;
        Ok(Self {
            log,
            batch: Vec::new(),
            batch_bytes: 0,
            batch_due: None,
            batches: Some(batches),
            awaited: Vec::new(),
            answers,
            due_answer: None,
            waited: Duration::ZERO,
            _over: over,
            ended,
            done,
            notes,
            cuts,
            deadline: limits.deadline(),
        })
    }

    /// Registers what is left and returns how the evaluation ended, all things considered.
    pub(super) fn close(mut self, ending: Ending) -> Ending {
        let sent = match &ending {
            Ending::Succeeded => self.send().and_then(|()| self.hand_over()),
            Ending::Failed(_) => self.send(),
            // A person does not want them, or all is evaluated again.
            Ending::Aborted(_) | Ending::Canceled | Ending::Interrupted => Ok(()),
        };
        let ending = match sent {
            Ok(()) => ending,
            Err(cut) => self.cut_short(cut),
        };
        self.batches = None;
        // The writer answers, or refuses when the daemon stops; the log stays live meanwhile.
        let result = loop {
            let due = self.log.flush_due().map_or_else(never, at);
            select! {
                recv(self.done) -> result => {
                    break result.unwrap_or_else(|_| Err("the daemon is stopping".to_owned()));
                }
                recv(due) -> _ => self.log.tick(),
            }
        };
        self.take_notes();
        let told = self.cuts.try_iter().find(|cut| !matches!(cut, Cut::Broken(_)));
        match (result, told, ending) {
            (_, Some(Cut::Canceled), _) => Ending::Canceled,
            (Err(_), Some(_), Ending::Succeeded) => Ending::Interrupted,
            (Err(reason), None, Ending::Succeeded) => Ending::Aborted(reason),
            (_, _, ending) => ending,
        }
    }

    fn take_notes(&mut self) {
        for note in self.notes.try_iter() {
            self.log.note(&note);
        }
    }

    fn cut_short(&mut self, cut: Cut) -> Ending {
        match cut {
            Cut::Canceled => Ending::Canceled,
            Cut::Interrupted => Ending::Interrupted,
            // The evaluator has done its part.
            Cut::TimedOut => Ending::Aborted("timed out while its jobs were registered".to_owned()),
            Cut::Broken(reason) => Ending::Aborted(reason),
        }
    }

    /// Hands over the batch; waits while the writer is behind, but not for ever.
    fn send(&mut self) -> Result<(), Cut> {
        (self.batch_bytes, self.batch_due) = (0, None);
        if self.batch.is_empty() && self.awaited.is_empty() {
            return Ok(());
        }
        self.hand_over()
    }

    fn await_what(&mut self, what: What) -> Result<(), Cut> {
        let (answers, over) = (self.answers.clone(), self.ended.clone());
        let (answered, moment) = bounded(1);
        self.waited();
        // The evaluator's own driver asks for one after the other.
        self.due_answer.get_or_insert((clock::now(), moment));
        self.awaited.push(Awaited { what, answers, over, answered });
        // What comes next may depend on it.
        self.send()
    }

    /// Hands over the batch as it is; an empty one says that it is the last.
    fn hand_over(&mut self) -> Result<(), Cut> {
        let Some(batches) = &self.batches else { return Err(Cut::Interrupted) };
        let batch =
            Batch { jobs: mem::take(&mut self.batch), awaited: mem::take(&mut self.awaited) };
        let mut batch = match batches.try_send(batch) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Full(batch) | TrySendError::Disconnected(batch)) => batch,
        };
        loop {
            let due = self.log.flush_due().map_or_else(never, at);
            let waited = self.waited();
            let deadline = self.deadline.and_then(|deadline| deadline.checked_add(waited));
            let deadline = deadline.map_or_else(never, at);
            let Some(batches) = &self.batches else { return Err(Cut::Interrupted) };
            select! {
                send(batches, mem::take(&mut batch)) -> sent => {
                    return sent.map_err(|_| self.cuts.try_recv().unwrap_or(Cut::Interrupted));
                }
                recv(self.cuts) -> cut => return Err(cut.unwrap_or(Cut::Interrupted)),
                recv(due) -> _ => self.log.tick(),
                recv(deadline) -> _ => return Err(Cut::TimedOut),
            }
        }
    }
}

impl Sink for Books {
    fn jobs(&mut self, _line: &[u8], jobs: &mut Vec<NewJob>) -> Result<(), Cut> {
        for job in jobs.drain(..) {
            self.batch_bytes += weigh(&job);
            self.batch.push(job);
            if self.batch.len() >= BATCH || self.batch_bytes >= BATCH_BYTES {
                self.send()?;
            }
        }
        if !self.batch.is_empty() && self.batch_due.is_none() {
            self.batch_due = Some(clock::now() + DELAY);
        }
        Ok(())
    }

    fn awaits(&mut self, job: &str, system: &str) -> Result<(), Cut> {
        self.await_what(What::Build { job: job.to_owned(), system: system.to_owned() })
    }

    fn holds(&mut self) -> Result<(), Cut> {
        self.await_what(What::Held)
    }

    fn waited(&mut self) -> Duration {
        let Some((since, moment)) = &self.due_answer else { return self.waited };
        let until = match moment.try_recv() {
            Ok(moment) => moment,
            Err(TryRecvError::Empty) => {
                return self.waited + (clock::now() - *since) + AHEAD_OF_ANSWER;
            }
            // Nobody will answer.
            Err(TryRecvError::Disconnected) => clock::now(),
        };
        self.waited += until.saturating_duration_since(*since);
        self.due_answer = None;
        self.waited
    }

    fn errors(&mut self, bytes: &[u8]) {
        self.log.write(bytes);
    }

    fn note(&mut self, text: &str) {
        self.log.note(text);
    }

    fn due(&self) -> Option<Instant> {
        self.batch_due.into_iter().chain(self.log.flush_due()).min()
    }

    fn tick(&mut self) -> Result<(), Cut> {
        self.take_notes();
        self.log.tick();
        if self.batch_due.is_some_and(|due| due <= clock::now()) { self.send() } else { Ok(()) }
    }

    fn why(&mut self) -> Cut {
        // Reasons are given before the killer is used.
        self.cuts.try_recv().unwrap_or(Cut::Interrupted)
    }
}

/// The second thread: until there are no more batches, or one cannot be registered.
fn register(
    tools: &Tools,
    id: EvaluationId,
    batches: &Receiver<Batch>,
    notes: &Sender<String>,
) -> Result<(), String> {
    let mut inputs = Inputs::new(store::directories());
    for Batch { mut jobs, awaited } in batches {
        if jobs.is_empty() && awaited.is_empty() {
            // All jobs are known.
            inputs.late(true, |needs| write(tools, move |tx| builds::depend(tx, id, &needs)))?;
            continue;
        }
        // Of one that is awaited, the job may have gone ahead.
        if !jobs.is_empty() {
            (tools.hold)(&jobs);
            inputs.add(&mut jobs);
            write(tools, move |tx| builds::register(tx, id, &jobs))?;
        }
        for awaited in awaited {
            let (database, held) = (tools.database.clone(), tools.held.clone());
            let waits = tools.answerers.run(move || awaited.tell(&database, &held, id));
            waits.map_err(|_| "nobody is free to wait for a build".to_owned())?;
        }
        inputs.late(false, |needs| write(tools, move |tx| builds::depend(tx, id, &needs)))?;
        if let Some(trouble) = inputs.trouble() {
            // The log has lines enough if nobody takes it.
            let _ = notes.try_send(format!(
                "builds may start before those of jobs that they need: {trouble}"
            ));
        }
    }
    Ok(())
}

/// Writes into the books, and tells the builder.
fn write(
    tools: &Tools,
    apply: impl FnMut(&mut Tx<'_>) -> Result<Changes, Error> + Send + 'static,
) -> Result<(), String> {
    let changes = tools
        .database
        .write("register jobs", apply)
        .map_err(|error| format!("cannot register its jobs: {}", chain(&error)))?;
    if (tools.tell)(changes).is_err() {
        log::debug!(target: "evaluator", "the builder is gone; it finds the jobs at the next start");
    }
    Ok(())
}

/// About how many bytes a job takes.
fn weigh(job: &NewJob) -> usize {
    let texts = |texts: &[String]| texts.iter().map(|text| text.len() + 24).sum::<usize>();
    let work = match &job.work {
        Work::Process(work) => {
            let environment = work.environment.iter();
            texts(&work.command)
                + texts(&work.products)
                + texts(&work.needs)
                + environment.map(|(name, value)| name.len() + value.len() + 48).sum::<usize>()
        }
        Work::Derivation => 0,
        Work::Error(message) => message.len(),
    };
    let outputs = job.outputs.iter().map(|(name, path)| name.len() + path.len() + 48);
    size_of::<NewJob>() + job.name.len() + work + outputs.sum::<usize>() + texts(&job.needs)
}
