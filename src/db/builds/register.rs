//! Registration of jobs: which build each points to, and which of those have to be built.
//!
//! This is the path that must be fast (an evaluation may have 100,000 jobs): prepared statements, look-ups by
//! unique index alone, counters once per batch.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use rusqlite::{OptionalExtension, params};
use serde::{Deserialize, Serialize};

use super::change::{Along, Cause, Known, Work, is_lost, kind_number, mark};
use super::{Changes, weather};
use crate::db::{Error, Tx, evaluations};
use crate::model::build::{BuildId, Kind, Store};
use crate::model::evaluation::EvaluationId;
use crate::model::event::What;
use crate::model::job::{NewJob, ProcessWork, Work as JobWork};
use crate::model::spec::JobsetName;
use crate::model::status::{BuildStatus, EvaluationStatus};

/// What `process_builds.work` holds.
#[derive(Serialize, Deserialize)]
pub(super) struct StoredWork<'a> {
    command: Cow<'a, [String]>,
    environment: Cow<'a, BTreeMap<String, String>>,
    products: Cow<'a, [String]>,
    /// Names of the needed jobs.
    pub(super) needs: Cow<'a, [String]>,
    /// Identities of their builds, in the same order.
    pub(super) identities: Cow<'a, [String]>,
}

impl StoredWork<'_> {
    pub(super) fn into_work(self) -> ProcessWork {
        ProcessWork {
            command: self.command.into_owned(),
            environment: self.environment.into_owned(),
            products: self.products.into_owned(),
            needs: self.needs.into_owned(),
        }
    }
}

/// The evaluation that registers.
struct Registrar {
    evaluation: EvaluationId,
    jobset: JobsetName,
    jobset_number: i64,
}

/// What registration must know of a build that jobs may need.
#[derive(Clone, Copy)]
struct Found {
    id: BuildId,
    /// It did not end well, or what it left is gone: dependents need a closer look.
    suspicious: bool,
    succeeded: bool,
}

/// Registers jobs of a running evaluation in order; `needs` name derivations registered before or in the
/// same batch. New builds are scheduled, known-failed dependencies count at once, `error` jobs fail.
/// A build that was aborted, expired, superseded or canceled with its evaluation is scheduled again.
pub(crate) fn register(
    tx: &mut Tx<'_>,
    evaluation: EvaluationId,
    jobs: &[NewJob],
) -> Result<Changes, Error> {
    let registrar = registrar(tx, evaluation)?;
    let mut work = Work::new(tx);
    let mut batch: HashMap<&str, Found> = HashMap::with_capacity(jobs.len());
    let mut new = Vec::with_capacity(jobs.len());
    let (mut lost, mut reused) = (Vec::new(), Vec::new());
    for job in jobs {
        let (id, status, expired) = match insert_build(&mut work, &registrar, job)? {
            Some((id, status)) => {
                new.push((id, job));
                (id, status, false)
            }
            None => existing(&work, &registrar, job, &mut lost)?,
        };
        let suspicious = status.number() > 0 || expired;
        let succeeded = status == BuildStatus::Succeeded;
        batch.insert(&job.derivation, Found { id, suspicious, succeeded });
        if succeeded && job.work == JobWork::Derivation {
            reused.push(id);
        }
        insert_job(&work, &registrar, job, (id, status))?;
        work.count_job(evaluation, status);
    }
    let mut suspicious = Vec::new();
    for (id, job) in new {
        if insert_needs(&work, &batch, id, job)? {
            suspicious.push(id);
        }
    }
    work.schedule(&lost, Along::Lost)?;
    for id in suspicious {
        let mut along = Vec::new();
        work.dependencies_along(id, Along::Lost, &mut along)?;
        work.schedule(&along, Along::Lost)?;
        work.settle(id)?;
    }
    let mut changes = work.done()?;
    changes.reused = reused;
    if !changes.scheduled.is_empty() {
        tx.emit(What::BuildsQueued, Some(&registrar.jobset), Some(evaluation), None, None)?;
    }
    Ok(changes)
}

fn registrar(tx: &Tx<'_>, evaluation: EvaluationId) -> Result<Registrar, Error> {
    let found: Option<(EvaluationStatus, JobsetName, i64)> = tx
        .conn
        .prepare_cached(
            "SELECT e.status, e.jobset, j.id FROM evaluations e JOIN jobsets j ON j.name = e.jobset
             WHERE e.id = ?1 AND e.jobset <> ?2",
        )?
        .query_row(params![evaluation, evaluations::WITHDRAWN], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()?;
    match found {
        None => Err(Error::NotFound(format!("evaluation {evaluation}"))),
        Some((EvaluationStatus::Started, jobset, jobset_number)) => {
            Ok(Registrar { evaluation, jobset, jobset_number })
        }
        Some((status, ..)) => {
            Err(Error::Conflict(format!("evaluation {evaluation} is over ({})", status.word())))
        }
    }
}

/// Inserts the job's build and what belongs to it; `None` if its derivation is known already.
fn insert_build(
    work: &mut Work<'_, '_>,
    registrar: &Registrar,
    job: &NewJob,
) -> Result<Option<(BuildId, BuildStatus)>, Error> {
    let (kind, status, error) = match &job.work {
        JobWork::Process(_) => (Some(Kind::Process), BuildStatus::Scheduled, None),
        JobWork::Derivation => {
            (Some(Kind::Derivation(Store::of(&job.derivation))), BuildStatus::Scheduled, None)
        }
        JobWork::Error(message) => (None, BuildStatus::Failed, Some(message)),
    };
    let conn = work.conn();
    let now = work.tx.now;
    let inserted = conn
        .prepare_cached(
            "INSERT INTO builds (derivation, evaluation, jobset, job, system, kind, nix_name, status, priority,
                 timeout, max_silent, timestamp, queued, stoptime, error)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?12, ?13, ?14)
             ON CONFLICT (derivation) DO NOTHING",
        )?
        .execute(params![
            job.derivation,
            registrar.evaluation,
            registrar.jobset,
            job.name,
            job.system,
            kind_number(kind),
            job.nix_name,
            status,
            job.priority,
            job.timeout,
            job.max_silent_time,
            now,
            error.map(|_| now),
            error,
        ])?;
    if inserted == 0 {
        return Ok(None);
    }
    let id = BuildId(conn.last_insert_rowid());
    work.touch(id, false, status);
    for (name, path) in &job.outputs {
        conn.prepare_cached("INSERT INTO outputs (build, name, path) VALUES (?1, ?2, ?3)")?
            .execute(params![id, name, path])?;
    }
    match &job.work {
        JobWork::Process(process) => insert_work(work, id, job, process)?,
        JobWork::Derivation => {}
        JobWork::Error(_) => {
            let known = Known::failed_at_once(id, registrar, job);
            weather::judge(work.tx, &known, status)?;
            work.announce(&known, status)?;
        }
    }
    Ok(Some((id, status)))
}

impl Known {
    /// The build of an `error` job.
    fn failed_at_once(id: BuildId, registrar: &Registrar, job: &NewJob) -> Self {
        Self {
            id,
            status: BuildStatus::Failed,
            kind: None,
            evaluation: registrar.evaluation,
            jobset: registrar.jobset.clone(),
            job: job.name.clone(),
            system: job.system.clone(),
            attempt: 0,
            attempts: 0,
            deaths: 0,
        }
    }
}

fn insert_work(
    work: &Work<'_, '_>,
    id: BuildId,
    job: &NewJob,
    process: &ProcessWork,
) -> Result<(), Error> {
    let stored = StoredWork {
        command: Cow::Borrowed(&process.command),
        environment: Cow::Borrowed(&process.environment),
        products: Cow::Borrowed(&process.products),
        needs: Cow::Borrowed(&process.needs),
        identities: Cow::Borrowed(&job.needs),
    };
    let text = serde_json::to_string(&stored)
        .map_err(|_| Error::Corrupt("what a process build runs has no JSON"))?;
    work.conn()
        .prepare_cached("INSERT INTO process_builds (build, work) VALUES (?1, ?2)")?
        .execute(params![id, text])?;
    Ok(())
}

/// The build that the job's derivation names already, and whether what it left is gone.
fn existing(
    work: &Work<'_, '_>,
    registrar: &Registrar,
    job: &NewJob,
    lost: &mut Vec<BuildId>,
) -> Result<(BuildId, BuildStatus, bool), Error> {
    let (id, status, expired, by_name, homeless): (BuildId, BuildStatus, bool, bool, bool) = work
        .conn()
        .prepare_cached(
            "SELECT b.id, b.status, b.expired, coalesce(b.canceled_by = ?2, 0),
                 NOT EXISTS (SELECT 1 FROM evaluations e WHERE e.id = b.evaluation AND e.jobset <> ?3)
             FROM builds b WHERE b.derivation = ?1",
        )?
        .query_row(params![job.derivation, Cause::NAME, evaluations::WITHDRAWN], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
        })?;
    if homeless {
        // Its evaluation was withdrawn or removed, and the janitor has not come by yet.
        work.conn()
            .prepare_cached(
                "UPDATE builds SET evaluation = ?2, jobset = ?3, job = ?4 WHERE id = ?1",
            )?
            .execute(params![id, registrar.evaluation, registrar.jobset, job.name])?;
    }
    if is_lost(status, by_name) {
        lost.push(id);
    }
    Ok((id, status, expired))
}

fn insert_job(
    work: &Work<'_, '_>,
    registrar: &Registrar,
    job: &NewJob,
    (build, status): (BuildId, BuildStatus),
) -> Result<(), Error> {
    let inserted = work
        .conn()
        .prepare_cached(
            "INSERT INTO jobs (evaluation, name, system, build, jobset, bad) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT DO NOTHING",
        )?
        .execute(params![
            registrar.evaluation,
            job.name,
            job.system,
            build,
            registrar.jobset_number,
            mark(status)
        ])?;
    if inserted == 0 {
        return Err(Error::Conflict(format!("job {} for {} is there twice", job.name, job.system)));
    }
    Ok(())
}

/// Records what a new build needs; returns whether some of that needs a closer look.
fn insert_needs(
    work: &Work<'_, '_>,
    batch: &HashMap<&str, Found>,
    id: BuildId,
    job: &NewJob,
) -> Result<bool, Error> {
    let conn = work.conn();
    let mut suspicious = false;
    for need in &job.needs {
        let found = match batch.get(need.as_str()) {
            Some(found) => *found,
            None => conn
                .prepare_cached(
                    "SELECT id, status > 0 OR expired, status = 0 FROM builds WHERE derivation = ?1",
                )?
                .query_row([need], |row| {
                    let (id, suspicious, succeeded) = (row.get(0)?, row.get(1)?, row.get(2)?);
                    Ok(Found { id, suspicious, succeeded })
                })
                .optional()?
                .ok_or_else(|| {
                    Error::NotFound(format!("build {need}, which job {} needs", job.name))
                })?,
        };
        // A build that waits for itself would wait for ever, and what a store has, or had, is its daemon's business.
        if found.id == id || found.succeeded && job.work == JobWork::Derivation {
            continue;
        }
        suspicious |= found.suspicious;
        conn.prepare_cached(
            "INSERT INTO dependencies (source, target) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
        )?
        .execute(params![id, found.id])?;
    }
    Ok(suspicious)
}

/// Records that builds which `evaluation` introduced need others, which became jobs of it later. What ended badly
/// counts at once.
pub(crate) fn depend(
    tx: &mut Tx<'_>,
    evaluation: EvaluationId,
    needs: &[(Arc<str>, Arc<str>)],
) -> Result<Changes, Error> {
    let mut work = Work::new(tx);
    let mut sources = BTreeSet::new();
    for (source, target) in needs {
        // Builds of earlier evaluations are left alone: what those jobs need was their evaluation's to say, and no two
        // evaluations together can make a circle.
        let source: Option<BuildId> = work
            .conn()
            .prepare_cached(
                "INSERT INTO dependencies (source, target)
                 SELECT s.id, t.id FROM builds s CROSS JOIN builds t ON t.derivation = ?2
                 WHERE s.derivation = ?1 AND s.evaluation = ?3 AND t.status <> 0 AND t.id <> s.id
                 ON CONFLICT DO NOTHING RETURNING source",
            )?
            .query_row(params![&**source, &**target, evaluation], |row| row.get(0))
            .optional()?;
        sources.extend(source);
    }
    for id in sources {
        if work.known(id)?.status == BuildStatus::Scheduled {
            work.touch(id, true, BuildStatus::Scheduled);
            work.settle(id)?;
        }
    }
    work.done()
}
