//! Reading the specification files again, while the supervisor goes on: one in Scheme may take its time.
//!
//! Invariant: at most one reading is under way; whoever asks meanwhile is answered by one that began after that. At a
//! stop nothing is waited for.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::registry::Refusal;
use super::start;
use crate::actor::pool::Pool;
use crate::actor::{Spawner, panic_message};
use crate::model::spec::Specification;
use crate::spec::scheme::Guile;
use crate::sys::process::Killer;

/// Guiles that are tried for one file: Guix's own, and another.
const TRIES: usize = 2;

/// Whoever waits for a reading to end; a signal waits for nothing.
pub(super) type Asker = Option<Sender<Result<(), Refusal>>>;

/// What a reading found.
pub(super) type Found = Result<Vec<Specification>, Refusal>;

/// Has the files read by a thread of its own.
pub(super) struct Reader {
    pool: Pool,
    files: Vec<PathBuf>,
    guix: Vec<String>,
    /// What the reading that is under way will have found, with those who asked for it.
    reading: Option<(Receiver<Found>, Vec<Asker>)>,
    /// Those who asked since it began.
    next: Vec<Asker>,
    /// The Guiles of that reading, one after the other: the last may still run.
    running: Option<Receiver<Killer>>,
}

impl Reader {
    pub(super) fn new(
        threads: &Spawner,
        files: Vec<PathBuf>,
        guix: Vec<String>,
    ) -> io::Result<Self> {
        let pool = Pool::new(threads, "specifications", 1)?;
        Ok(Self { pool, files, guix, reading: None, next: Vec::new(), running: None })
    }

    /// Where the reading that is under way tells what it found.
    pub(super) fn lane(&self) -> Option<&Receiver<Found>> {
        self.reading.as_ref().map(|(lane, _)| lane)
    }

    /// Reads for `asker`, at once or when the reading under way is over.
    pub(super) fn ask(&mut self, asker: Asker) {
        self.next.push(asker);
        if self.reading.is_none() {
            self.begin();
        }
    }

    /// The reading is over: who asked for it.
    pub(super) fn done(&mut self) -> Vec<Asker> {
        let askers = self.reading.take().map(|(_, askers)| askers).unwrap_or_default();
        if !self.next.is_empty() {
            self.begin();
        }
        askers
    }

    /// Ends a Guile that runs, and the reading with it: the next one's killer finds nobody to take it.
    pub(super) fn stop(self) {
        if let Some(killer) = self.running.and_then(|running| running.try_iter().last()) {
            killer.cancel();
        }
    }

    fn begin(&mut self) {
        let (found, lane) = bounded(1);
        let (begun, running) = bounded(TRIES * self.files.len());
        let guile =
            Guile::new(self.guix.clone()).watched(move |killer| begun.try_send(killer).is_ok());
        let files = self.files.clone();
        let job = move || {
            let read = || start::read_specifications(&files, &guile);
            let result = match catch_unwind(AssertUnwindSafe(read)) {
                Ok(read) => read.map_err(|error| Refusal::Conflict(error.to_string())),
                Err(panic) => {
                    Err(Refusal::Conflict(format!("internal error: {}", panic_message(&*panic))))
                }
            };
            // At a stop nobody wants to know.
            let _ = found.try_send(result);
        };
        self.reading = Some((lane, std::mem::take(&mut self.next)));
        self.running = Some(running);
        if self.pool.run(job).is_err() {
            log::error!(target: "supervisor", "the thread that reads specifications is gone");
        }
    }
}
