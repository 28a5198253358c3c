//! Answers to evaluators that wait for a build: how it ended.
//!
//! A build needs no evaluation to get on, so that waiting for one here holds nothing up but this evaluation, which has
//! its own deadline. Invariant: an answer is written once, when the build has ended, or never, when the evaluation has.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crossbeam_channel::{Receiver, select};
use serde_json::json;

use crate::db::{Database, Error, Subscription, builds};
use crate::evaluate::line::shortened;
use crate::model::error::chain;
use crate::model::evaluation::EvaluationId;
use crate::model::status::BuildStatus;

/// Events that may pile up while one is looked at: more than that, and the books are read again.
const ROOM: usize = 1024;

/// Bytes of an error that are told: the line must fit a pipe at once.
const MAX_ERROR: usize = 512;

/// A job whose end an evaluator waits for.
pub(super) struct Awaited {
    pub(super) job: String,
    pub(super) system: String,
    /// The pipe to write to.
    pub(super) answers: PathBuf,
    /// Disconnects when the evaluation is over.
    pub(super) over: Receiver<Infallible>,
}

impl Awaited {
    /// Waits for the end of the build of a job that is in the books, and tells. Runs on a thread of a pool.
    pub(super) fn tell(&self, database: &Database, evaluation: EvaluationId) {
        let (status, error) = match self.wait(database, evaluation) {
            Ok(Some(ended)) => ended,
            Ok(None) => return,
            Err(error) => (BuildStatus::Aborted, Some(chain(&error))),
        };
        let error = error.map(|error| shortened(&error, MAX_ERROR).into_owned());
        let line = format!("{}\n", json!({ "status": status.word(), "error": error }));
        if let Err(error) = write(&self.answers, line.as_bytes()) {
            log::warn!(target: "evaluator", "evaluation {evaluation} does not hear of its build: {error}");
        }
    }

    /// `None` when the evaluation was over first.
    fn wait(
        &self,
        database: &Database,
        evaluation: EvaluationId,
    ) -> Result<Option<(BuildStatus, Option<String>)>, Error> {
        let reader = database.reader()?;
        loop {
            // Subscribed before the look, so that nothing falls between; anew when events were lost.
            let subscription = database.subscribe(ROOM)?;
            let events: &Receiver<Subscription> = &subscription;
            loop {
                match builds::of_job(&reader, evaluation, &self.job, &self.system)? {
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
