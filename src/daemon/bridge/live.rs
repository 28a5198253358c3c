//! The live daemon under control: each command is handed to the actor that does it, or read from the books.
//!
//! Reads are here and in `show` and `follow`, changes in `change`. Every change leaves a line in the audit log.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;

use crate::actor::{Gone, PATIENCE, Stop};
use crate::control::{Answer, Control, Error};
use crate::daemon::registry::Refusal;
use crate::daemon::{builder, evaluator, registry};
use crate::db::{self, Database, Reader, records};
use crate::model::build::{Build, BuildId};
use crate::model::error::chain;
use crate::model::evaluation::{Evaluation, EvaluationId};
use crate::model::status::BuildStatus;
use crate::model::time::Time;
use crate::proto::control::view::{self, HelpView, VersionView, json};
use crate::proto::control::{Command, Failure, FailureKind, HELP, Request};
use crate::spec;

/// What the bridge orders of the supervisor.
pub(crate) enum Order {
    /// Read the specification files again.
    Reload(Sender<Result<(), Refusal>>),
    Shutdown,
}

/// What does not change while the daemon lives.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) started: Time,
    /// The same moment, for the uptime.
    pub(crate) since: Instant,
    pub(crate) state_directory: PathBuf,
    pub(crate) log_directory: PathBuf,
    pub(crate) max_builds: usize,
    pub(crate) max_evaluations: usize,
    /// What `status` warns of, such as jobs that run as the daemon's own user.
    pub(crate) warnings: Vec<String>,
}

/// The actors below, and the supervisor.
pub(crate) struct Ports {
    pub(crate) database: Database,
    pub(crate) registry: registry::Handle,
    pub(crate) builder: builder::Handle,
    pub(crate) evaluator: evaluator::Handle,
    pub(crate) supervisor: Sender<Order>,
    pub(crate) facts: Facts,
}

/// Performs the requests of one connection.
pub(super) struct Live {
    pub(super) ports: Arc<Ports>,
    pub(super) stop: Stop,
    uid: u32,
    /// Opened when it is first needed.
    reader: Option<Reader>,
}

impl Live {
    pub(super) fn new(ports: Arc<Ports>, stop: Stop, uid: u32) -> Self {
        Self { ports, stop, uid, reader: None }
    }

    /// Whether the peer is root or the daemon's own user, and not a member of the bridge's group.
    pub(super) fn is_own_user(&self) -> bool {
        self.uid == 0 || self.uid == nix::unistd::geteuid().as_raw()
    }

    pub(super) fn reader(&mut self) -> Result<&Reader, Failure> {
        if self.reader.is_none() {
            self.reader = Some(self.ports.database.reader().map_err(failure)?);
        }
        let reader = self.reader.as_ref();
        reader.ok_or_else(|| Failure::new(FailureKind::Internal, "the reader has vanished"))
    }

    pub(super) fn build(&mut self, id: BuildId) -> Result<Build, Failure> {
        let found = db::builds::get(self.reader()?, id).map_err(failure)?;
        found.ok_or_else(|| not_found(format!("there is no build {id}")))
    }

    pub(super) fn evaluation(&mut self, id: EvaluationId) -> Result<Evaluation, Failure> {
        let found = db::evaluations::get(self.reader()?, id).map_err(failure)?;
        found.ok_or_else(|| not_found(format!("there is no evaluation {id}")))
    }

    /// The objects of these builds, with why the scheduled ones wait.
    pub(super) fn show_builds(
        &self,
        builds: &[Build],
        answer: &mut dyn Answer,
    ) -> Result<(), Error> {
        let scheduled = |b: &&Build| b.status == BuildStatus::Scheduled;
        let ids: Vec<_> = builds.iter().filter(scheduled).map(|b| b.id).collect();
        let reasons: HashMap<BuildId, String> = if ids.is_empty() {
            HashMap::new()
        } else {
            // A builder that does not answer in time is no reason to show nothing.
            let reasons = self.ports.builder.waiting(ids.clone()).unwrap_or_default();
            ids.into_iter().zip(reasons).filter_map(|(id, why)| Some((id, why?))).collect()
        };
        for build in builds {
            let queued = (build.status == BuildStatus::Scheduled).then_some("queued");
            let waiting =
                queued.map(|queued| reasons.get(&build.id).map_or(queued, String::as_str));
            answer.object(&view::build(build, waiting)).map_err(Error::Asker)?;
        }
        Ok(())
    }

    fn dispatch(&mut self, request: &Request, answer: &mut dyn Answer) -> Result<(), Error> {
        let by = request.by.as_deref();
        match &request.command {
            Command::Help => {
                for &(command, what) in HELP {
                    answer.object(&json(&HelpView { command, what })).map_err(Error::Asker)?;
                }
                Ok(())
            }
            Command::Version => {
                let version = env!("CARGO_PKG_VERSION");
                answer.object(&json(&VersionView { version })).map_err(Error::Asker)
            }
            Command::Status => self.show_status(answer),
            Command::Jobsets => self.show_jobsets(None, answer),
            Command::Jobset(name) => self.show_jobsets(Some(name), answer),
            Command::LastUpdateTimes(name) => self.show_update_times(name, answer),
            Command::Evaluations { jobset, limit } => {
                self.show_evaluations(jobset.as_ref(), *limit, answer)
            }
            Command::Evaluation(id) => {
                let evaluation = self.evaluation(*id)?;
                answer.object(&view::evaluation(&evaluation)).map_err(Error::Asker)
            }
            Command::Builds(wanted) => self.show_selected(wanted, answer),
            Command::Build(id) => {
                let build = self.build(*id)?;
                self.show_builds(&[build], answer)
            }
            Command::Queue { limit } => self.show_queue(*limit, answer),
            Command::Workers => self.show_workers(answer),
            Command::TokenList => self.show_tokens(answer),
            Command::CheckDatabase => self.check_database(answer),
            Command::Wait(target) => self.wait(*target, answer),
            Command::Log { of, from, follow } => self.log(*of, *from, *follow, answer),
            Command::Subscribe { jobset, from } => self.subscribe(jobset.as_ref(), *from, answer),
            Command::Trigger(name) => Ok(self.ask(|ports| ports.registry.trigger(name))?),
            Command::RegisterJobset(name) | Command::UpdateJobset(name) => {
                Ok(self.ask(|ports| ports.registry.refresh(name))?)
            }
            Command::Delete(name) => Ok(self.ask(|ports| ports.registry.delete(name))?),
            Command::Activate(name) => Ok(self.ask(|ports| ports.registry.set_active(name, true))?),
            Command::Deactivate(name) => {
                Ok(self.ask(|ports| ports.registry.set_active(name, false))?)
            }
            Command::Add(text) => Ok(self.add(text)?),
            Command::CancelEvaluation(id) => Ok(self.cancel_evaluation(*id)?),
            Command::RetryEvaluation(id) => {
                let evaluation = self.evaluation(*id)?;
                Ok(self.ask(|ports| ports.registry.retry(evaluation))?)
            }
            Command::RestartEvaluation { id, all } => {
                self.evaluation(*id)?;
                Ok(self.build_order(|builder| builder.restart_evaluation(*id, *all))?)
            }
            Command::RestartBuild(id) => Ok(self.build_order(|builder| builder.restart(*id))?),
            Command::CancelBuild(id) => Ok(self.build_order(|builder| builder.cancel(*id))?),
            Command::PrioritizeBuild { id, priority } => {
                Ok(self.build_order(|builder| builder.prioritize(*id, *priority))?)
            }
            Command::Pause(activity) => Ok(self.pause(*activity, true)?),
            Command::Resume(activity) => Ok(self.pause(*activity, false)?),
            Command::PauseWorker { name, paused } => Ok(self.pause_worker(name, *paused)?),
            Command::RegisterDashboard { jobset, jobs } => self.add_dashboard(jobset, jobs, answer),
            Command::TokenAdd(token) => self.add_token(token, answer),
            Command::TokenRevoke(name) => Ok(self.revoke_token(name)?),
            Command::TokenUsed(name) => Ok(self.use_token(name)?),
            Command::Audit { command, outcome } => {
                self.audit(by, command.clone(), outcome.clone());
                Ok(())
            }
            Command::Backup(file) => Ok(self.backup(file)?),
            Command::Reload => Ok(self.reload()?),
            // Done when it has been answered.
            Command::Shutdown => Ok(()),
        }
    }

    fn ask(
        &self,
        order: impl FnOnce(&Ports) -> Result<Result<(), Refusal>, Gone>,
    ) -> Result<(), Failure> {
        order(&self.ports).map_err(gone)?.map_err(refused)
    }

    fn build_order(
        &self,
        order: impl FnOnce(&builder::Handle) -> Result<Result<(), db::Error>, Gone>,
    ) -> Result<(), Failure> {
        order(&self.ports.builder).map_err(gone)?.map_err(failure)
    }

    /// Writes who did what with which outcome; that it was done matters more than that it is written.
    fn audit(&self, by: Option<&str>, command: String, outcome: String) {
        let who = match by {
            Some(by) => format!("uid {} for {by}", self.uid),
            None => format!("uid {}", self.uid),
        };
        log::info!(target: "bridge", "{who}: {command}: {outcome}");
        let write = self.ports.database.write_within(PATIENCE, "audit", move |tx| {
            records::audit(tx, &who, &command, &outcome)
        });
        if let Err(error) = write {
            log::warn!(target: "bridge", "the audit log misses a line: {}", chain(&error));
        }
    }
}

impl Control for Live {
    fn perform(&mut self, request: &Request, answer: &mut dyn Answer) -> Result<(), Error> {
        let result = self.dispatch(request, answer);
        if request.command.is_change() {
            let command = match &request.command {
                Command::Add(text) => added(text),
                other => other.to_string(),
            };
            let outcome = match &result {
                Ok(()) => "ok".to_owned(),
                Err(Error::Failure(failure)) => failure.to_string(),
                Err(Error::Asker(_) | Error::Daemon(_)) => "not answered".to_owned(),
            };
            self.audit(request.by.as_deref(), command, outcome);
        }
        result
    }

    fn answered(&mut self, request: &Request) {
        if request.command == Command::Shutdown {
            // One that does not take it within its patience is stopping already.
            let _ = self.ports.supervisor.send_timeout(Order::Shutdown, PATIENCE);
        }
    }
}

/// `add` without the specification, which may hold secrets: the names of its jobsets.
fn added(text: &str) -> String {
    let names: Vec<_> = spec::json::parse(text)
        .map(|specs| specs.iter().map(|s| s.name.to_string()).collect())
        .unwrap_or_default();
    format!("add {}", names.join(" ")).trim_end().to_owned()
}

pub(super) fn not_found(message: String) -> Failure {
    Failure::new(FailureKind::NotFound, message)
}

pub(super) fn gone(gone: Gone) -> Failure {
    Failure::new(FailureKind::Unavailable, gone.to_string())
}

pub(super) fn refused(refusal: Refusal) -> Failure {
    match refusal {
        Refusal::NotFound(what) => not_found(format!("there is no {what}")),
        Refusal::Conflict(why) => Failure::new(FailureKind::Conflict, why),
        Refusal::RateLimited(seconds) => {
            Failure::new(FailureKind::RateLimited, format!("retry in {seconds} s"))
        }
        Refusal::Unavailable(why) => Failure::new(FailureKind::Unavailable, why),
        Refusal::Internal(why) => Failure::new(FailureKind::Internal, why),
    }
}

pub(super) fn failure(error: db::Error) -> Failure {
    let kind = match &error {
        db::Error::NotFound(_) => FailureKind::NotFound,
        db::Error::Conflict(_) => FailureKind::Conflict,
        db::Error::Unavailable(_) | db::Error::Interrupted => FailureKind::Unavailable,
        db::Error::Sqlite(_) | db::Error::Open(..) | db::Error::Io(..) if error.is_transient() => {
            FailureKind::Unavailable
        }
        db::Error::Sqlite(_)
        | db::Error::Open(..)
        | db::Error::Io(..)
        | db::Error::Newer { .. }
        | db::Error::Corrupt(_) => FailureKind::Internal,
    };
    Failure::new(kind, chain(&error))
}
