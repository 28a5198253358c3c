//! Changes that are more than one call of an actor's handle.

use std::io;
use std::path::Path;
use std::time::Duration;

use crossbeam_channel::bounded;
use sha2::{Digest, Sha256};

use super::live::{Live, Order, failure, gone, refused};
use super::show::PAUSED_EVALUATIONS;
use crate::actor::{Gone, PATIENCE};
use crate::control::{Answer, Error};
use crate::db::{self, maintenance, records};
use crate::model::evaluation::EvaluationId;
use crate::model::spec::JobsetName;
use crate::model::status::EvaluationStatus;
use crate::proto::control::view::{DashboardView, NewTokenView, json};
use crate::proto::control::{Activity, Failure, FailureKind, TokenAdd};
use crate::spec;
use crate::sys::{clock, random};

/// Reading the specification files may take a Guile process each, and one reading may have to end first.
const RELOADING: Duration = Duration::from_secs(180);

/// 256 bits: not to be guessed.
const SECRET: usize = 32;

/// Cuirass's dashboards have names of this length.
const DASHBOARD: usize = 16;

impl Live {
    pub(super) fn add(&self, text: &str) -> Result<(), Failure> {
        let specifications =
            spec::json::parse(text).map_err(|error| Failure::syntax(error.to_string()))?;
        if specifications.is_empty() {
            return Err(Failure::syntax("add: expected at least one specification"));
        }
        self.ports.registry.put(specifications).map_err(gone)?.map_err(refused)
    }

    pub(super) fn cancel_evaluation(&mut self, id: EvaluationId) -> Result<(), Failure> {
        // Unknown ones are told apart first; the evaluator knows only those that run.
        self.evaluation(id)?;
        let canceled = self.ports.evaluator.cancel(id).map_err(gone)?;
        let evaluation = self.evaluation(id)?;
        if canceled && evaluation.status == EvaluationStatus::Started {
            return Ok(());
        }
        // It may have ended a moment ago, and its evaluator be tidying up: then its builds are what is left.
        if evaluation.status != EvaluationStatus::Started && evaluation.jobs.pending == 0 {
            let message = format!("evaluation {id} and all its builds have ended");
            return Err(Failure::new(FailureKind::Conflict, message));
        }
        self.ports.builder.cancel_evaluation(id).map_err(gone)?.map_err(failure)
    }

    /// Pauses or resumes, now and after a restart.
    pub(super) fn pause(&self, activity: Activity, paused: bool) -> Result<(), Failure> {
        if activity.builds() {
            self.ports.builder.pause(paused).map_err(gone)?;
        }
        if activity.evaluations() {
            let value = paused.then_some("1");
            let write = self.ports.database.write_within(PATIENCE, "pause", move |tx| {
                records::set(tx, PAUSED_EVALUATIONS, value)
            });
            write.map_err(failure)?;
            self.ports.evaluator.pause(paused).map_err(gone)?;
        }
        Ok(())
    }

    /// Gives a remote worker no more builds, or some again.
    pub(super) fn pause_worker(&self, name: &str, paused: bool) -> Result<(), Failure> {
        self.ports.builder.pause_worker(name, paused).map_err(gone)?.map_err(failure)
    }

    pub(super) fn add_dashboard(
        &self,
        jobset: &JobsetName,
        jobs: &[String],
        answer: &mut dyn Answer,
    ) -> Result<(), Error> {
        let id = random_name().map_err(no_random)?;
        let (row, jobset_row, jobs_row) = (id.clone(), jobset.clone(), jobs.to_vec());
        let write = self.ports.database.write_within(PATIENCE, "dashboard", move |tx| {
            records::add_dashboard(tx, &row, &jobset_row, &jobs_row)
        });
        write.map_err(failure)?;
        let view = DashboardView { id: &id, jobset: jobset.as_str(), jobs };
        answer.object(&json(&view)).map_err(Error::Asker)
    }

    /// The answer is the only place where the secret ever appears.
    pub(super) fn add_token(&self, token: &TokenAdd, answer: &mut dyn Answer) -> Result<(), Error> {
        let secret = random::hex(&random::bytes::<SECRET>().map_err(no_random)?);
        let hash = random::hex(&Sha256::digest(secret.as_bytes()));
        let expires = token.expires.map(|time| clock::wall().after(time));
        let row = token.clone();
        let write = self.ports.database.write_within(PATIENCE, "token", move |tx| {
            records::add_token(tx, &row.name, &hash, &row.role, row.jobset.as_ref(), expires)
        });
        write.map_err(failure)?;
        let view = NewTokenView {
            name: &token.name,
            role: &token.role,
            jobset: token.jobset.as_ref().map(JobsetName::as_str),
            expires: expires.map(|time| time.0),
            token: &secret,
        };
        answer.object(&json(&view)).map_err(Error::Asker)
    }

    pub(super) fn revoke_token(&self, name: &str) -> Result<(), Failure> {
        let name = name.to_owned();
        let write = self
            .ports
            .database
            .write_within(PATIENCE, "token", move |tx| records::revoke_token(tx, &name));
        write.map_err(failure)
    }

    pub(super) fn use_token(&self, name: &str) -> Result<(), Failure> {
        let name = name.to_owned();
        let write = self
            .ports
            .database
            .write_within(PATIENCE, "token", move |tx| records::use_token(tx, &name));
        write.map_err(failure)
    }

    /// The daemon may write where a member of the bridge's group may not: for those, below the state directory only.
    pub(super) fn backup(&mut self, file: &Path) -> Result<(), Failure> {
        let cannot = |error: io::Error| {
            Failure::new(FailureKind::Conflict, format!("cannot write {}: {error}", file.display()))
        };
        let directory = file.parent().unwrap_or(file).canonicalize().map_err(cannot)?;
        if !self.is_own_user() {
            let state = self.ports.facts.state_directory.canonicalize().map_err(cannot)?;
            if !directory.starts_with(&state) {
                let message = format!(
                    "{}: a user other than the daemon's gets backups below {} only",
                    file.display(),
                    state.display()
                );
                return Err(Failure::new(FailureKind::Conflict, message));
            }
        }
        maintenance::backup(self.reader()?, file).map_err(|error| match error {
            db::Error::Io(_, why) if is_askers(&why) => cannot(why),
            error => failure(error),
        })
    }

    pub(super) fn reload(&self) -> Result<(), Failure> {
        let (reply, answer) = bounded(1);
        let order = Order::Reload(reply);
        let sent = self.ports.supervisor.send_timeout(order, PATIENCE);
        sent.map_err(|_| gone(Gone))?;
        answer.recv_timeout(RELOADING).map_err(|_| gone(Gone))?.map_err(refused)
    }
}

/// Whether a file cannot be written because of its name, and not for a fault of ours.
fn is_askers(error: &io::Error) -> bool {
    use io::ErrorKind::{
        InvalidFilename, IsADirectory, NotADirectory, NotFound, PermissionDenied,
        ReadOnlyFilesystem,
    };
    matches!(
        error.kind(),
        InvalidFilename
            | IsADirectory
            | NotADirectory
            | NotFound
            | PermissionDenied
            | ReadOnlyFilesystem
    )
}

fn no_random(error: io::Error) -> Failure {
    Failure::new(FailureKind::Internal, format!("cannot read /dev/urandom: {error}"))
}

/// Letters and digits, each as likely as any other.
fn random_name() -> io::Result<String> {
    const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut name = String::new();
    while name.len() < DASHBOARD {
        // Of 64 values two are thrown away, or the first letters would come more often.
        let letters = random::bytes::<DASHBOARD>()?;
        let letters = letters.iter().filter_map(|byte| ALPHABET.get(usize::from(byte % 64)));
        name.extend(letters.map(|&letter| char::from(letter)));
    }
    name.truncate(DASHBOARD);
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_names_are_plain_and_differ() {
        let (one, other) = (random_name().unwrap(), random_name().unwrap());
        assert_eq!(one.len(), 16);
        assert!(one.bytes().all(|b| b.is_ascii_alphanumeric()));
        assert_ne!(one, other);
    }
}
