//! Answers to evaluators that wait for a build, how it ended, or for their derivations to be kept.
//!
//! A build needs no evaluation to get on, so that waiting for one here holds nothing up but this evaluation, of which
//! the clock stands meanwhile. Invariant: an answer is written once, when the build has ended, or never, when the evaluation has.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, select};
use serde_json::{Value, json};

use super::Held;
use crate::db::{Database, Error, Subscription, builds};
use crate::evaluate::line::shortened;
use crate::model::error::chain;
use crate::model::evaluation::EvaluationId;
use crate::model::status::BuildStatus;
use crate::sys::clock;

/// Events that may pile up while one is looked at: more than that, and the books are read again.
const ROOM: usize = 1024;

/// Bytes of an error that are told: the line must fit a pipe at once.
const MAX_ERROR: usize = 512;

/// What an evaluator waits for.
pub(super) enum What {
    /// The end of a job's build.
    Build { job: String, system: String },
    /// That the derivations of its jobs are kept.
    Held,
}

pub(super) struct Awaited {
    pub(super) what: What,
    /// The pipe to write to.
    pub(super) answers: PathBuf,
    /// Disconnects when the evaluation is over.
    pub(super) over: Receiver<Infallible>,
    /// Gets when it was answered.
    pub(super) answered: Sender<Instant>,
}

impl Awaited {
    /// Waits for it, of jobs that are in the books, and tells. `held` gives what disconnects when derivations are kept.
    /// Runs on a thread of a pool.
    pub(super) fn tell(&self, database: &Database, held: &Held, evaluation: EvaluationId) {
        match &self.what {
            What::Build { job, system } => self.tell_end(database, evaluation, job, system),
            What::Held => {
                for store in held() {
                    select! {
                        recv(self.over) -> _ => return,
                        recv(store) -> _ => {}
                    }
                }
                self.answer(evaluation, &json!({ "status": "held", "error": null }));
            }
        }
    }

    fn tell_end(&self, database: &Database, evaluation: EvaluationId, job: &str, system: &str) {
        let (status, error) = match self.wait(database, evaluation, job, system) {
            Ok(Some(ended)) => ended,
            Ok(None) => return,
            Err(error) => (BuildStatus::Aborted, Some(chain(&error))),
        };
        let error = error.map(|error| shortened(&error, MAX_ERROR).into_owned());
        self.answer(evaluation, &json!({ "status": status.word(), "error": error }));
    }

    fn answer(&self, evaluation: EvaluationId, answer: &Value) {
        // There is room for the one answer; at the evaluation's end the other end is gone.
        let _ = self.answered.try_send(clock::now());
        if let Err(error) = write(&self.answers, format!("{answer}\n").as_bytes()) {
            log::warn!(target: "evaluator", "evaluation {evaluation} does not hear what it waits for: {error}");
        }
    }

    /// `None` when the evaluation was over first.
    fn wait(
        &self,
        database: &Database,
        evaluation: EvaluationId,
        job: &str,
        system: &str,
    ) -> Result<Option<(BuildStatus, Option<String>)>, Error> {
        let reader = database.reader()?;
        loop {
            // Subscribed before the look, so that nothing falls between; anew when events were lost.
            let subscription = database.subscribe(ROOM)?;
            let events: &Receiver<Subscription> = &subscription;
            loop {
                match builds::of_job(&reader, evaluation, job, system)? {
                    Some((status, error)) if !status.is_pending() => {
                        return Ok(Some((status, error)));
                    }
                    Some(_) => {}
                    // The jobset was deleted.
                    None => return Ok(None),
                }
                let first = select! {
                    recv(self.over) -> _ => return Ok(None),
                    recv(events) -> event => event.ok(),
                };
                let mut all = std::iter::once(first).chain(events.try_iter().map(Some));
                if all.any(|event| matches!(event, None | Some(Subscription::Overflow))) {
                    break;
                }
            }
        }
    }
}

/// The evaluator has opened it before it asked; if it is gone, this fails rather than waits.
fn write(pipe: &Path, line: &[u8]) -> io::Result<()> {
    let mut pipe = File::options().write(true).custom_flags(nix::libc::O_NONBLOCK).open(pipe)?;
    pipe.write_all(line)
}
