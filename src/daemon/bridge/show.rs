//! Answers that are read from the books and the actors' memory.

use std::collections::HashMap;
use std::time::Duration;

use super::live::{Live, failure, gone, not_found};
use crate::control::{Answer, Error};
use crate::daemon::builder::Obstructed;
use crate::daemon::registry::State;
use crate::db::web::machines;
use crate::db::{builds, evaluations, events, jobsets, maintenance, records, workers};
use crate::model::error::chain;
use crate::model::jobset::Jobset;
use crate::model::spec::{JobsetName, Specification};
use crate::model::status::JobsetStatus;
use crate::proto::control::view::{
    self, BuildCounts, ChannelView, EvaluationCounts, JobsetCounts, JobsetView, ObstacleView,
    Paused, ProblemView, StatusView, TokenView, UpdateTimesView, WorkerView, WriterView, json,
};
use crate::proto::control::{Builds, Failure, FailureKind};
use crate::spec;
use crate::sys::{clock, file};

/// The settings that outlive the process: present while paused.
pub(super) const PAUSED_BUILDS: &str = "paused.builds";
pub(super) const PAUSED_EVALUATIONS: &str = "paused.evaluations";

/// Builds on remote workers that are looked at for what each has: as many as there may be workers.
const RUNNING: usize = 4096;

/// A writer that does not answer within this is busy with a disk that is slow: the rest is told without it.
const WRITER: Duration = Duration::from_millis(500);

impl Live {
    pub(super) fn show_status(&mut self, answer: &mut dyn Answer) -> Result<(), Error> {
        let states = self.ports.registry.states().map_err(gone)?;
        let reader = self.reader()?;
        let (scheduled, running) = builds::pending_counts(reader).map_err(failure)?;
        let last_event = events::last(reader).map_err(failure)?;
        let paused = Paused {
            builds: records::setting(reader, PAUSED_BUILDS).map_err(failure)?.is_some(),
            evaluations: records::setting(reader, PAUSED_EVALUATIONS).map_err(failure)?.is_some(),
        };
        let facts = &self.ports.facts;
        let evaluations = self.ports.evaluator.counts().map_err(gone)?;
        // A builder that does not answer in time is no reason to show nothing.
        let obstacles = self.ports.builder.obstacles().ok().map(|all| {
            let view =
                |held: Obstructed| ObstacleView { waiting: held.reason, builds: held.builds };
            all.into_iter().map(view).collect()
        });
        let status = StatusView {
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            started: facts.started.0,
            uptime: clock::now().saturating_duration_since(facts.since).as_secs(),
            jobsets: JobsetCounts {
                total: states.len(),
                active: states.iter().filter(|state| state.active).count(),
            },
            builds: BuildCounts { scheduled, running, slots: facts.max_builds },
            obstacles,
            evaluations: EvaluationCounts {
                running: evaluations.running,
                waiting: evaluations.waiting,
                slots: facts.max_evaluations,
            },
            paused,
            writer: self.ports.database.tally(WRITER).map(|tally| WriterView {
                transactions: tally.transactions,
                requests: tally.requests,
                seconds: tally.busy.as_secs_f64(),
            }),
            free_space: file::free_space(&facts.state_directory).ok(),
            last_event,
            warnings: &facts.warnings,
        };
        answer.object(&json(&status)).map_err(Error::Asker)
    }

    pub(super) fn show_jobsets(
        &mut self,
        only: Option<&JobsetName>,
        answer: &mut dyn Answer,
    ) -> Result<(), Error> {
        let reader = self.reader()?;
        let jobsets = match only {
            None => jobsets::list(reader).map_err(failure)?,
            Some(name) => {
                let jobset = jobsets::get(reader, name).map_err(failure)?;
                vec![jobset.ok_or_else(|| not_found(format!("there is no jobset {name}")))?]
            }
        };
        let states = self.ports.registry.states().map_err(gone)?;
        let states: HashMap<_, _> =
            states.iter().map(|state| (&state.specification.name, state)).collect();
        for jobset in &jobsets {
            let object = match states.get(&jobset.name) {
                Some(state) => object(jobset, &state.specification, Some(state)),
                // Registered since, or its monitor is gone: the books know the rest.
                None => match spec::json::parse(&jobset.specification).as_deref() {
                    Ok([specification]) => object(jobset, specification, None),
                    Ok(_) => continue,
                    Err(error) => {
                        let message = format!("jobset {}: {}", jobset.name, chain(error));
                        return Err(Failure::new(FailureKind::Internal, message).into());
                    }
                },
            };
            answer.object(&object).map_err(Error::Asker)?;
        }
        Ok(())
    }

    pub(super) fn show_update_times(
        &mut self,
        name: &JobsetName,
        answer: &mut dyn Answer,
    ) -> Result<(), Error> {
        let times = self.ports.registry.update_times(name).map_err(gone)?;
        let times = times.ok_or_else(|| not_found(format!("there is no jobset {name}")))?;
        let times = times.into_iter().map(|time| time.0).collect();
        let view = UpdateTimesView { name: name.as_str(), times };
        answer.object(&json(&view)).map_err(Error::Asker)
    }

    pub(super) fn show_evaluations(
        &mut self,
        jobset: Option<&JobsetName>,
        limit: usize,
        answer: &mut dyn Answer,
    ) -> Result<(), Error> {
        self.known(jobset)?;
        let evaluations = evaluations::list(self.reader()?, jobset, limit).map_err(failure)?;
        for evaluation in &evaluations {
            answer.object(&view::evaluation(evaluation)).map_err(Error::Asker)?;
        }
        Ok(())
    }

    pub(super) fn show_selected(
        &mut self,
        wanted: &Builds,
        answer: &mut dyn Answer,
    ) -> Result<(), Error> {
        self.known(wanted.jobset.as_ref())?;
        if let Some(id) = wanted.evaluation {
            self.evaluation(id)?;
        }
        let filter = builds::Filter {
            jobset: wanted.jobset.clone(),
            evaluation: wanted.evaluation,
            status: wanted.status,
        };
        let found = builds::list(self.reader()?, &filter, wanted.limit).map_err(failure)?;
        self.show_builds(&found, answer)
    }

    /// Who asks for a jobset that does not exist is told so, instead of nothing.
    pub(super) fn known(&mut self, jobset: Option<&JobsetName>) -> Result<(), Failure> {
        let Some(name) = jobset else { return Ok(()) };
        let found = jobsets::get(self.reader()?, name).map_err(failure)?;
        found.map(drop).ok_or_else(|| not_found(format!("there is no jobset {name}")))
    }

    pub(super) fn show_queue(
        &mut self,
        limit: usize,
        answer: &mut dyn Answer,
    ) -> Result<(), Error> {
        let queue = self.ports.builder.queue(limit).map_err(gone)?;
        let reader = self.reader()?;
        for waiting in queue {
            // It may have been deleted since.
            if let Some(build) = builds::get(reader, waiting.id).map_err(failure)? {
                let object = view::build(&build, Some(&waiting.reason));
                answer.object(&object).map_err(Error::Asker)?;
            }
        }
        Ok(())
    }

    pub(super) fn show_workers(&mut self, answer: &mut dyn Answer) -> Result<(), Error> {
        let running = machines::running(self.reader()?, RUNNING).map_err(failure)?;
        for worker in workers::list(self.reader()?).map_err(failure)? {
            let build = running.get(&worker.name).and_then(|builds| builds.first());
            let view = WorkerView {
                name: &worker.name,
                address: &worker.address,
                machine: &worker.machine,
                systems: &worker.systems,
                last_seen: worker.last_seen.0,
                joined: worker.joined.0,
                paused: worker.paused,
                failures: worker.failures,
                build: build.map(|(id, _)| id.0),
                since: build.and_then(|(_, since)| since.map(|time| time.0)),
            };
            answer.object(&json(&view)).map_err(Error::Asker)?;
        }
        Ok(())
    }

    pub(super) fn show_tokens(&mut self, answer: &mut dyn Answer) -> Result<(), Error> {
        for token in records::tokens(self.reader()?).map_err(failure)? {
            let view = TokenView {
                name: &token.name,
                role: &token.role,
                jobset: token.jobset.as_ref().map(JobsetName::as_str),
                created: token.created.0,
                expires: token.expires.map(|time| time.0),
                last_used: token.last_used.map(|time| time.0),
            };
            answer.object(&json(&view)).map_err(Error::Asker)?;
        }
        Ok(())
    }

    pub(super) fn check_database(&mut self, answer: &mut dyn Answer) -> Result<(), Error> {
        let problems = maintenance::check(self.reader()?).map_err(failure)?;
        for problem in &problems {
            answer.object(&json(&ProblemView { problem })).map_err(Error::Asker)?;
        }
        if problems.is_empty() {
            return Ok(());
        }
        let message = format!("the database has {} problems", problems.len());
        Err(Failure::new(FailureKind::Internal, message).into())
    }
}

fn object(jobset: &Jobset, specification: &Specification, state: Option<&State>) -> String {
    let idle = if jobset.active { JobsetStatus::Idle } else { JobsetStatus::Inactive };
    let monitor_error = state.and_then(|state| state.error.as_deref());
    json(&JobsetView {
        name: jobset.name.as_str(),
        active: jobset.active,
        status: state.map_or(idle, |state| state.status).word(),
        last_evaluation: jobset.last_evaluation.map(|id| id.0),
        last_checked: jobset.last_checked.map(|time| time.0),
        error: jobset.error.as_deref().or(monitor_error),
        next_poll: state.and_then(|state| state.next_poll).map(|time| time.0),
        period: state.map_or(specification.period, |state| state.period).as_secs(),
        priority: specification.priority,
        evaluator: specification.evaluator.word(),
        channels: specification.channels.iter().map(ChannelView::new).collect(),
    })
}
