//! The builder's pen: a thread that tells the books what the builder decided, so that the builder itself answers
//! while a write waits for a full disk.
//!
//! Invariant: one batch is under way at a time and each is answered; what piles up meanwhile goes into the next as
//! one transaction. An item that the books refuse fails alone.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::actor::{Gone, Spawner};
use crate::db::builds::{self, Changes};
use crate::db::workers::{self, Note};
use crate::db::{Database, Error, Tx, records};
use crate::model::build::{BuildId, Order, Outcome};
use crate::model::error::chain;
use crate::model::evaluation::EvaluationId;
use crate::sys::clock;

/// The setting that keeps builds paused across restarts of the daemon.
pub(super) const PAUSED: &str = "paused.builds";

/// How long a command about one build may take in the database: less than its asker waits, who then learns why.
const ONE: Duration = Duration::from_secs(3);

/// Likewise a command about all builds of an evaluation: there may be 100,000 of them, on a slow machine.
const MANY: Duration = Duration::from_secs(30);

/// What people ask of builds.
#[derive(Clone, Debug)]
pub(super) enum Command {
    Cancel(BuildId),
    CancelEvaluation(EvaluationId),
    Restart(BuildId),
    RestartEvaluation { id: EvaluationId, all: bool },
    Prioritize(BuildId, i64),
    Pause(bool),
    PauseWorker(String, bool),
}

impl Command {
    /// How long it may take, the waiting for what the books are being told included.
    pub(super) fn patience(&self) -> Duration {
        match self {
            Self::Cancel(_)
            | Self::Restart(_)
            | Self::Prioritize(..)
            | Self::Pause(_)
            | Self::PauseWorker(..) => ONE,
            Self::CancelEvaluation(_) | Self::RestartEvaluation { .. } => MANY,
        }
    }
}

/// A command that somebody waits for.
pub(super) struct Asked {
    pub(super) command: Command,
    /// It is not begun after this time: whoever asked is told, or has been, that it was not done.
    pub(super) deadline: Instant,
    pub(super) reply: Reply,
}

/// Where the outcome of a command goes.
pub(super) type Reply = Sender<Result<(), Error>>;

/// The end of one run.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) id: BuildId,
    pub(super) attempt: i64,
    pub(super) outcome: Outcome,
}

/// A build that is to start.
#[derive(Clone, Debug)]
pub(super) struct Start {
    pub(super) id: BuildId,
    /// The remote worker that is to have it.
    pub(super) worker: Option<String>,
}

/// What the books are to be told at once.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) ends: Vec<End>,
    pub(super) starts: Vec<Start>,
    pub(super) commands: Vec<Asked>,
    pub(super) notes: Vec<Note>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.ends.is_empty()
            && self.starts.is_empty()
            && self.commands.is_empty()
            && self.notes.is_empty()
    }
}

/// What came of a batch.
#[derive(Default)]
pub(super) struct Written {
    pub(super) changes: Vec<Changes>,
    /// All ends of the batch, also those that the books refused.
    pub(super) ended: Vec<BuildId>,
    pub(super) started: Vec<(BuildId, Result<Order, Error>)>,
    /// Whether builds are now paused, if that was changed.
    pub(super) paused: Option<bool>,
    /// Workers that get builds no more, or again.
    pub(super) workers: Vec<(String, bool)>,
    pub(super) replies: Vec<(Reply, Result<(), Error>)>,
}

/// The builder's side of the thread.
pub(super) struct Books {
    batches: Sender<Batch>,
    busy: bool,
}

impl Books {
    /// Also returns the lane of the answers.
    pub(super) fn spawn(
        threads: &Spawner,
        database: Database,
        logs: PathBuf,
    ) -> io::Result<(Self, Receiver<Written>)> {
        // One batch is under way at a time, and one answer.
        let (batches, inbox) = bounded::<Batch>(1);
        let (answers, written) = bounded(1);
        let pen = Pen { database, logs: Arc::new(logs) };
        threads.child(
            "builder/books",
            // It does not heed the stop but ends with the builder, which has the last ends to tell.
            move |_stop| -> Result<(), Gone> {
                for batch in inbox {
                    answers.send(pen.write(batch))?;
                }
                Ok(())
            },
            // The builder notices: the lane of answers disconnects.
            |report| log::debug!(target: "builder", "{report:?}"),
        )?;
        Ok((Self { batches, busy: false }, written))
    }

    pub(super) fn is_busy(&self) -> bool {
        self.busy
    }

    /// Must not be busy.
    pub(super) fn write(&mut self, batch: Batch) -> Result<(), Gone> {
        self.batches.try_send(batch).map_err(|_| Gone)?;
        self.busy = true;
        Ok(())
    }

    /// Its answer was received.
    pub(super) fn answered(&mut self) {
        self.busy = false;
    }
}

struct Pen {
    database: Database,
    logs: Arc<PathBuf>,
}

impl Pen {
    fn write(&self, batch: Batch) -> Written {
        let Batch { ends, starts, commands, notes } = batch;
        // First, so that whoever reads of a build finds its worker.
        if !notes.is_empty()
            && let Err(error) = self.database.write("workers", move |tx| workers::note(tx, &notes))
        {
            log::warn!(target: "builder", "news of workers were not recorded: {}", chain(&error));
        }
        let mut written = self.all_at_once(&ends, &starts).unwrap_or_else(|error| {
            log::debug!(target: "builder", "a batch of builds is written one by one: {error}");
            self.one_by_one(&ends, &starts)
        });
        for Asked { command, deadline, reply } in commands {
            let result = self.obey(command.clone(), deadline).map(|changes| {
                written.changes.push(changes);
                match command {
                    Command::Pause(paused) => written.paused = Some(paused),
                    Command::PauseWorker(name, paused) => written.workers.push((name, paused)),
                    Command::Cancel(_)
                    | Command::CancelEvaluation(_)
                    | Command::Restart(_)
                    | Command::RestartEvaluation { .. }
                    | Command::Prioritize(..) => {}
                }
            });
            written.replies.push((reply, result));
        }
        written
    }

    fn all_at_once(&self, ends: &[End], starts: &[Start]) -> Result<Written, Error> {
        if ends.is_empty() && starts.is_empty() {
            return Ok(Written::default());
        }
        let (ends, starts, logs) = (ends.to_vec(), starts.to_vec(), Arc::clone(&self.logs));
        self.database.write("builds start and end", move |tx| {
            let mut written = Written::default();
            for end in &ends {
                written.changes.push(builds::end(tx, end.id, end.attempt, &end.outcome)?);
                written.ended.push(end.id);
            }
            for wanted in &starts {
                written.started.push((wanted.id, Ok(start(tx, wanted, &logs)?)));
            }
            Ok(written)
        })
    }

    fn one_by_one(&self, ends: &[End], starts: &[Start]) -> Written {
        let mut written = Written::default();
        for end in ends {
            let End { id, attempt, outcome } = end.clone();
            match self
                .database
                .write("build ends", move |tx| builds::end(tx, id, attempt, &outcome))
            {
                Ok(changes) => written.changes.push(changes),
                // The janitor's sweep finds a build that runs in the books only.
                Err(error) => {
                    log::error!(target: "builder", "the end of build {id} was not recorded: {}", chain(&error));
                }
            }
            written.ended.push(id);
        }
        for wanted in starts.iter().cloned() {
            let (id, logs) = (wanted.id, Arc::clone(&self.logs));
            let order = self.database.write("build starts", move |tx| start(tx, &wanted, &logs));
            written.started.push((id, order));
        }
        written
    }

    fn obey(&self, command: Command, deadline: Instant) -> Result<Changes, Error> {
        let left = deadline.saturating_duration_since(clock::now());
        if left.is_zero() {
            return Err(Error::Unavailable("the database could not be written in time".to_owned()));
        }
        let what = match command {
            Command::Cancel(_) => "cancel a build",
            Command::CancelEvaluation(_) => "cancel an evaluation's builds",
            Command::Restart(_) => "restart a build",
            Command::RestartEvaluation { .. } => "restart an evaluation's builds",
            Command::Prioritize(..) => "prioritize a build",
            Command::Pause(_) => "pause builds",
            Command::PauseWorker(..) => "pause a worker",
        };
        self.database.write_within(left, what, move |tx| match command {
            Command::Cancel(id) => builds::cancel(tx, id),
            Command::CancelEvaluation(id) => builds::cancel_evaluation(tx, id),
            Command::Restart(id) => builds::restart(tx, id),
            Command::RestartEvaluation { id, all } => builds::restart_evaluation(tx, id, all),
            Command::Prioritize(id, priority) => builds::prioritize(tx, id, priority),
            Command::Pause(paused) => {
                records::set(tx, PAUSED, paused.then_some("1"))?;
                Ok(Changes::default())
            }
            Command::PauseWorker(ref name, paused) => {
                if !workers::is_known(tx.conn, name)? {
                    return Err(Error::NotFound(format!("worker {name:.80}")));
                }
                workers::note(tx, &[Note::Paused(name.clone(), paused)])?;
                Ok(Changes::default())
            }
        })
    }
}

/// Starts a build in the books. Refuses one that has others to wait for since the queue took it.
pub(super) fn start(
    tx: &mut Tx<'_>,
    Start { id, worker }: &Start,
    logs: &std::path::Path,
) -> Result<Order, Error> {
    let id = *id;
    let entries = builds::entries(tx.conn, &[id])?;
    if let Some(dependency) = entries.first().and_then(|entry| entry.waits_for.first()) {
        return Err(Error::Conflict(format!("build {id} waits for build {dependency}")));
    }
    builds::start(tx, id, logs, worker.as_deref())
}
