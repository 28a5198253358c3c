//! The way of jobs into the books: batches, and a second thread that waits for the database while the first one
//! reads and parses.
//!
//! Invariant: a job is in the books a few hundredths of a second after it was printed, however slowly the evaluator goes
//! on; and what is on its way is bounded.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, at, bounded, never, select};

use super::job::Tools;
use super::log_file::LogFile;
use crate::actor::{Gone, panic_message};
use crate::db::builds;
use crate::evaluate::run::{Cut, Limits, Sink};
use crate::model::error::chain;
use crate::model::evaluation::{Ending, EvaluationId};
use crate::model::job::{NewJob, Work};
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

/// Jobs and text of one evaluation on their way to the books and the log.
pub(super) struct Books {
    log: LogFile,
    batch: Vec<NewJob>,
    batch_bytes: usize,
    batch_due: Option<Instant>,
    batches: Option<Sender<Vec<NewJob>>>,
    /// How registering ended.
    done: Receiver<Result<(), String>>,
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
    ) -> Result<Self, Gone> {
        let (batches, inbox) = bounded(AHEAD);
        let (end, done) = bounded(1);
        let work = tools.clone();
        tools.registrars.run(move || {
            let result = catch_unwind(AssertUnwindSafe(|| register(&work, id, &inbox)));
            let result = result
                .unwrap_or_else(|panic| Err(format!("internal error: {}", panic_message(&*panic))));
            let failed = result.as_ref().err().cloned();
            if let Some(reason) = &failed {
                // A full channel holds reasons enough.
                let _ = reasons.try_send(Cut::Failed(reason.clone()));
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
            done,
            cuts,
            deadline: limits.deadline(),
        })
    }

    /// Registers what is left and returns how the evaluation ended, all things considered.
    pub(super) fn close(mut self, ending: Ending) -> Ending {
        let ending = match &ending {
            Ending::Succeeded | Ending::Failed(_) => match self.send() {
                Ok(()) => ending,
                Err(cut) => self.cut_short(cut),
            },
            // A person does not want them, and the next start evaluates again.
            Ending::Canceled | Ending::Interrupted => ending,
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
        let told = self.cuts.try_iter().find(|cut| !matches!(cut, Cut::Failed(_)));
        match (result, told, ending) {
            (_, Some(Cut::Canceled), _) => Ending::Canceled,
            (Err(_), Some(_), Ending::Succeeded) => Ending::Interrupted,
            (Err(reason), None, Ending::Succeeded) => Ending::Failed(reason),
            (_, _, ending) => ending,
        }
    }

    fn cut_short(&mut self, cut: Cut) -> Ending {
        match cut {
            Cut::Canceled => Ending::Canceled,
            Cut::Interrupted => Ending::Interrupted,
            Cut::TimedOut => Ending::Failed("timed out while its jobs were registered".to_owned()),
            Cut::Failed(reason) => Ending::Failed(reason),
        }
    }

    /// Hands over the batch; waits while the writer is behind, but not for ever.
    fn send(&mut self) -> Result<(), Cut> {
        (self.batch_bytes, self.batch_due) = (0, None);
        if self.batch.is_empty() {
            return Ok(());
        }
        let Some(batches) = &self.batches else { return Err(Cut::Interrupted) };
        self.batch = match batches.try_send(mem::take(&mut self.batch)) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Full(batch) | TrySendError::Disconnected(batch)) => batch,
        };
        loop {
            let due = self.log.flush_due().map_or_else(never, at);
            let deadline = self.deadline.map_or_else(never, at);
            select! {
                send(batches, mem::take(&mut self.batch)) -> sent => {
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
    batches: &Receiver<Vec<NewJob>>,
) -> Result<(), String> {
    for batch in batches {
        let changes = tools
            .database
            .write("register jobs", move |tx| builds::register(tx, id, &batch))
            .map_err(|error| format!("cannot register its jobs: {}", chain(&error)))?;
        if (tools.tell)(changes).is_err() {
            log::debug!(target: "evaluator", "the builder is gone; it finds the jobs at the next start");
        }
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
