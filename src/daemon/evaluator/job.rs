//! One evaluation from its first row in the books to its last.
//!
//! Invariant: an evaluation that was begun is ended in the books, and its end is reported once, whatever happens in
//! between, a panic included.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::books::Books;
use super::log_file::LogFile;
use super::{Evaluated, Held, Hold, Report, Request, Settings, Slot, Tell};
use crate::actor::panic_message;
use crate::actor::pool::Pool;
use crate::daemon::updater::{self, Absent};
use crate::db::builds::{self, Changes};
use crate::db::{Database, Error, evaluations};
use crate::evaluate::place::Place;
use crate::evaluate::resolve::Resolver;
use crate::evaluate::run::{self, Cut, Limits};
use crate::evaluate::{self, Evaluation, guix};
use crate::git;
use crate::model::error::chain;
use crate::model::evaluation::{Checkout, Ending, EvaluationId};
use crate::model::spec::JobsetName;
use crate::store;
use crate::sys::clock;
use crate::sys::process::Launcher;

/// How long the commits may take to be checked out again, behind other fetches: it keeps a slot, and is repeated.
const CHECKOUT: Duration = Duration::from_secs(300);

/// What every evaluation works with.
#[derive(Clone)]
pub(super) struct Tools {
    pub(super) database: Database,
    pub(super) launcher: Launcher,
    pub(super) updater: updater::Handle,
    pub(super) settings: Settings,
    pub(super) tell: Tell,
    pub(super) hold: Hold,
    pub(super) held: Held,
    /// The threads that wait for the books.
    pub(super) registrars: Pool,
    /// The threads that wait for builds of which an evaluator wants to know the end.
    pub(super) answerers: Pool,
}

/// Reports an evaluation's end when dropped.
pub(super) struct Finish {
    slot: Slot,
    up: Sender<Report>,
    jobset: JobsetName,
    evaluation: Option<EvaluationId>,
    ending: Ending,
}

impl Finish {
    /// Dropped as it is, it says that the evaluation did not even start.
    pub(super) fn new(slot: Slot, jobset: &JobsetName, up: &Sender<Report>) -> Self {
        let (jobset, up) = (jobset.clone(), up.clone());
        Self { slot, up, jobset, evaluation: None, ending: Ending::Interrupted }
    }

    fn report(&self, report: Report) {
        // There is room for every report of every evaluation; at a late stop the actor may be gone.
        let _ = self.up.try_send(report);
    }
}

impl Drop for Finish {
    fn drop(&mut self) {
        let (jobset, evaluation) = (self.jobset.clone(), self.evaluation);
        let ending = self.ending.clone();
        self.report(Report::Ended(self.slot, Evaluated { jobset, evaluation, ending }));
    }
}

/// One evaluation.
pub(super) struct Job {
    pub(super) tools: Tools,
    pub(super) request: Box<Request>,
    /// Both ends of the channel that says why it is to end early.
    pub(super) reasons: Sender<Cut>,
    pub(super) cuts: Receiver<Cut>,
    pub(super) finish: Finish,
}

impl Job {
    /// Runs on a thread of the pool, which must survive it.
    pub(super) fn run(mut self) {
        // What is half changed by a panic is dropped with the job.
        let result = catch_unwind(AssertUnwindSafe(|| self.begin_and_end()));
        if let Err(panic) = result {
            let text = panic_message(&*panic);
            log::error!(target: "evaluator", "an evaluation of {} panicked: {text}", self.finish.jobset);
            self.finish.ending = Ending::Aborted(format!("internal error: {text}"));
        }
    }

    fn begin_and_end(&mut self) {
        let id = match self.begin() {
            Ok(id) => id,
            Err(error) => {
                let jobset = &self.finish.jobset;
                log::warn!(target: "evaluator", "cannot begin an evaluation of {jobset}: {}", chain(&error));
                self.finish.ending = Ending::Aborted(chain(&error));
                return;
            }
        };
        self.finish.evaluation = Some(id);
        self.finish.report(Report::Begun(self.finish.slot, id));
        let jobset = self.finish.jobset.clone();
        log::info!(target: "evaluator", "evaluation {id} of {jobset} begins");
        let mut place = None;
        let result = catch_unwind(AssertUnwindSafe(|| self.evaluate(id, &mut place)));
        let ending = result.unwrap_or_else(|panic| {
            let text = panic_message(&*panic);
            log::error!(target: "evaluator", "evaluation {id} of {jobset} panicked: {text}");
            Ending::Aborted(format!("internal error: {text}"))
        });
        // A person's word counts even where something else ended it at the same moment.
        let ending = if self.was_canceled() { Ending::Canceled } else { ending };
        match &ending {
            Ending::Succeeded => {
                log::info!(target: "evaluator", "evaluation {id} of {jobset} succeeded")
            }
            Ending::Failed(reason) => {
                log::warn!(target: "evaluator", "evaluation {id} of {jobset} failed: {reason}");
            }
            Ending::Aborted(reason) => {
                log::warn!(target: "evaluator", "evaluation {id} of {jobset} was aborted: {reason}");
            }
            Ending::Canceled => {
                log::info!(target: "evaluator", "evaluation {id} of {jobset} was canceled")
            }
            Ending::Interrupted => {
                log::info!(target: "evaluator", "evaluation {id} of {jobset} was interrupted");
            }
        }
        self.finish.ending = ending;
        self.end(id);
        if self.finish.ending != Ending::Canceled && self.was_canceled() {
            // While that was being written somebody was told, in agreement with the books, that it is canceled.
            self.cancel_what_it_left(id);
        }
        // Its directories go before anybody hears of the end: whoever evaluates next finds the disk free.
        drop(place);
    }

    /// Whether somebody has canceled it since this was asked last.
    fn was_canceled(&self) -> bool {
        self.cuts.try_iter().any(|cut| cut == Cut::Canceled)
    }

    fn cancel_what_it_left(&mut self, id: EvaluationId) {
        let canceled = self
            .tools
            .database
            .write("cancel an evaluation's builds", move |tx| builds::cancel_evaluation(tx, id));
        match canceled {
            Ok(changes) => self.tell(changes),
            // As for its end.
            Err(error) => {
                log::warn!(target: "evaluator", "cannot cancel the builds of evaluation {id}: {}", chain(&error));
            }
        }
        if matches!(self.finish.ending, Ending::Aborted(_)) {
            // Not to be repeated.
            self.finish.ending = Ending::Canceled;
        }
    }

    fn tell(&self, changes: Changes) {
        if (self.tools.tell)(changes).is_err() {
            log::debug!(target: "evaluator", "the builder is gone");
        }
    }

    fn begin(&self) -> Result<EvaluationId, Error> {
        let jobset = self.request.specification.name.clone();
        let fingerprint = self.request.fingerprint.clone();
        let (decided, checkouts) = (self.request.decided, self.request.checkouts.clone());
        self.tools.database.write("begin an evaluation", move |tx| {
            evaluations::start(tx, &jobset, &fingerprint, decided, &checkouts)
        })
    }

    fn end(&self, id: EvaluationId) {
        let ending = self.finish.ending.clone();
        // What a partial evaluation lacks may be what the older ones are still building.
        let supersede = self.request.specification.supersede && ending == Ending::Succeeded;
        let written = self
            .tools
            .database
            .write("end an evaluation", move |tx| evaluations::end(tx, id, &ending, supersede));
        match written {
            Ok(changes) => self.tell(changes),
            // Deleted meanwhile with its jobset, or recovered at the next start.
            Err(error) => {
                log::warn!(target: "evaluator", "cannot end evaluation {id}: {}", chain(&error));
            }
        }
    }

    /// The evaluation between its begin and its end. `place` outlives it, so that the end is not late.
    fn evaluate(&self, id: EvaluationId, place: &mut Option<Place>) -> Ending {
        let (settings, request) = (&self.tools.settings, &*self.request);
        let started = clock::now();
        let log = log_path(settings, id);
        let mut log = LogFile::create(&log, id, settings.max_log_size);
        // It may have waited for a slot for longer than checkouts are kept.
        let present = self.tools.updater.present(
            &request.specification.name,
            &request.checkouts,
            CHECKOUT,
            &|| !self.cuts.is_empty(),
        );
        let checkouts = match present {
            Ok(checkouts) => checkouts,
            Err(Absent::Failed(why)) => {
                return noted(&mut log, Ending::Aborted(format!("cannot check out again: {why}")));
            }
            Err(Absent::Late) => {
                let why = format!("its commits are not checked out after {} s", CHECKOUT.as_secs());
                return noted(&mut log, Ending::Aborted(why));
            }
            Err(Absent::Canceled) => {
                return match self.cuts.try_recv() {
                    Ok(Cut::Canceled) => Ending::Canceled,
                    _ => Ending::Interrupted,
                };
            }
        };
        let (guix, stores) = (self.guix(), store::directories());
        let evaluation = Evaluation {
            id: Some(id),
            specification: &request.specification,
            checkouts: &checkouts,
            user: settings.job_user.as_ref(),
            memory: settings.memory,
            stores: &stores,
            guix: &guix,
        };
        let child = self.prepare(id, &evaluation).and_then(|made| {
            let made = place.insert(made);
            evaluate::start(&self.tools.launcher, &evaluation, made)
        });
        let child = match child {
            Ok(child) => child,
            Err(error) => return noted(&mut log, error.ending()),
        };
        let answers = place.as_ref().map(Place::answers).unwrap_or_default();
        self.finish.report(Report::Running(self.finish.slot, child.killer()));
        let limits = Limits::new(&evaluation, started);
        let ends = (self.reasons.clone(), self.cuts.clone());
        let books = Books::open(&self.tools, id, log, ends, child.killer(), &limits, answers);
        let Ok(mut books) = books else { return Ending::Interrupted };
        let trees = request.checkouts.iter().map(|checkout| checkout.tree.clone()).collect();
        let specification = &request.specification;
        let resolver = Resolver::new(&specification.name, specification.priority, trees);
        let ending = run::run(child, resolver, &limits, &mut books);
        books.close(ending)
    }

    fn guix(&self) -> guix::Tools {
        let (settings, specification) = (&self.tools.settings, &self.request.specification);
        let cache = &settings.cache_directory;
        let mirror = |checkout: &Checkout| cache.join("git").join(git::mirror_name(&checkout.url));
        guix::Tools {
            command: settings.guix.clone(),
            mirrors: self.request.checkouts.iter().map(mirror).collect(),
            lent: guix::lent_directory(cache).join(specification.name.as_str()),
        }
    }

    fn prepare(
        &self,
        id: EvaluationId,
        evaluation: &Evaluation<'_>,
    ) -> Result<Place, evaluate::Error> {
        let cache = &self.tools.settings.cache_directory;
        let root = cache.join("evaluations").join(id.to_string());
        let home = cache.join("jobsets").join(evaluation.specification.name.as_str());
        Place::prepare(&root, &home, evaluation.checkouts, evaluation.user)
    }
}

/// With a line in the log that says why, as evaluators get that ran.
fn noted(log: &mut LogFile, ending: Ending) -> Ending {
    match &ending {
        Ending::Failed(reason) => log.note(&format!("the evaluation failed: {reason}")),
        Ending::Aborted(reason) => log.note(&format!("the evaluation was aborted: {reason}")),
        Ending::Succeeded | Ending::Canceled | Ending::Interrupted => {}
    }
    ending
}

/// Where the log of an evaluation is.
pub(super) fn log_path(settings: &Settings, id: EvaluationId) -> PathBuf {
    settings.log_directory.join("evaluations").join(format!("{id}.gz"))
}
