//! Changes of status, with all that goes with one: counters, events, dependents.
//!
//! Invariant: after `done`, every evaluation's counters are what a recount would give, provided they were before,
//! and no scheduled build depends on one that ended badly.

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::Changes;
use crate::db::{Error, Tx, evaluations};
use crate::model::build::{BuildId, Kind, Store};
use crate::model::evaluation::{Counts, EvaluationId};
use crate::model::event::What;
use crate::model::spec::JobsetName;
use crate::model::status::BuildStatus;

/// Why a build was canceled, as the column `canceled_by` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// Someone asked for just this build: it stays canceled when a job points to it again.
    Name,
    /// One it depends on was canceled by name.
    Dependency(BuildId),
    Evaluation,
    Superseded,
    Expired,
    Jobset,
}

impl Cause {
    /// The word in the database of a cancellation that registration respects.
    pub(super) const NAME: &'static str = "name";

    fn word(self) -> &'static str {
        match self {
            Self::Name => Self::NAME,
            Self::Dependency(_) => "dependency",
            Self::Evaluation => "evaluation",
            Self::Superseded => "superseded",
            Self::Expired => "expired",
            Self::Jobset => "jobset",
        }
    }

    fn error(self) -> String {
        match self {
            Self::Name => "canceled".to_owned(),
            Self::Dependency(id) => format!("dependency {id} canceled"),
            Self::Evaluation => "canceled with its evaluation".to_owned(),
            Self::Superseded => "superseded by a newer evaluation".to_owned(),
            Self::Expired => "waited too long".to_owned(),
            Self::Jobset => "canceled with its jobset".to_owned(),
        }
    }
}

/// Which dependencies are scheduled together with a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Along {
    /// All that did not succeed: a person wants the build.
    Unfinished,
    /// Those that a registration would schedule again, too: aborted, or canceled otherwise than by name.
    Lost,
    /// Only those that succeeded but whose products are gone.
    Expired,
}

/// What must be known of a build to change it.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) id: BuildId,
    pub(super) status: BuildStatus,
    /// `None` for an `error` job: there is nothing to run.
    pub(super) kind: Option<Kind>,
    pub(super) evaluation: EvaluationId,
    pub(super) jobset: JobsetName,
    pub(super) job: String,
    pub(super) system: String,
    pub(super) attempt: i64,
    pub(super) attempts: i64,
    pub(super) deaths: i64,
}

pub(super) fn kind_number(kind: Option<Kind>) -> i64 {
    match kind {
        Some(Kind::Process) => 0,
        Some(Kind::Derivation(_)) => 1,
        None => 2,
    }
}

/// `derivation`: the derivation, or its beginning.
pub(super) fn kind_from(number: i64, derivation: &str) -> Result<Option<Kind>, Error> {
    match number {
        0 => Ok(Some(Kind::Process)),
        1 => Ok(Some(Kind::Derivation(Store::of(derivation)))),
        2 => Ok(None),
        _ => Err(Error::Corrupt("the kind of a build")),
    }
}

pub(super) fn find(conn: &Connection, id: BuildId) -> Result<Option<Known>, Error> {
    let read = |row: &Row<'_>| {
        let known = Known {
            id,
            status: row.get(0)?,
            kind: None,
            evaluation: row.get(2)?,
            jobset: row.get(3)?,
            job: row.get(4)?,
            system: row.get(5)?,
            attempt: row.get(6)?,
            attempts: row.get(7)?,
            deaths: row.get(8)?,
        };
        Ok((known, row.get::<_, i64>(1)?, row.get::<_, String>(9)?))
    };
    let found = conn
        .prepare_cached(
            "SELECT status, kind, evaluation, jobset, job, system, attempt, attempts, deaths,
                 substr(derivation, 1, 12)
             FROM builds WHERE id = ?1",
        )?
        .query_row([id], read)
        .optional()?;
    found
        .map(|(known, kind, store)| Ok(Known { kind: kind_from(kind, &store)?, ..known }))
        .transpose()
}

/// The counter that shows builds of this status.
pub(in crate::db) fn slot(counts: &mut Counts, status: BuildStatus) -> &mut i64 {
    match status {
        BuildStatus::Submitted | BuildStatus::Scheduled | BuildStatus::Started => {
            &mut counts.pending
        }
        BuildStatus::Succeeded => &mut counts.succeeded,
        BuildStatus::Failed | BuildStatus::FailedDependency => &mut counts.failed,
        BuildStatus::Aborted => &mut counts.aborted,
        BuildStatus::Canceled => &mut counts.canceled,
    }
}

/// What `jobs.bad` is for builds of this status.
pub(super) fn mark(status: BuildStatus) -> i64 {
    status.number().max(0)
}

/// Hands a build whose evaluation was withdrawn to the newest other one with a job for it, if there is one.
pub(in crate::db) fn adopt(conn: &Connection, id: BuildId) -> Result<(), Error> {
    let heir: Option<(EvaluationId, JobsetName, String)> = conn
        .prepare_cached(
            "SELECT j.evaluation, e.jobset, j.name FROM jobs j CROSS JOIN evaluations e ON e.id = j.evaluation
             WHERE j.build = ?1 AND e.jobset <> ?2 ORDER BY j.evaluation DESC LIMIT 1",
        )?
        .query_row(params![id, evaluations::WITHDRAWN], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()?;
    if let Some((evaluation, jobset, job)) = heir {
        conn.prepare_cached(
            "UPDATE builds SET evaluation = ?2, jobset = ?3, job = ?4 WHERE id = ?1",
        )?
        .execute(params![id, evaluation, jobset, job])?;
    }
    Ok(())
}

/// Hands the pending builds of a jobset whose evaluations were withdrawn to others that want them.
pub(in crate::db) fn hand_over(tx: &Tx<'_>, jobset: &JobsetName) -> Result<(), Error> {
    let ids: Vec<BuildId> = tx
        .conn
        .prepare_cached("SELECT id FROM builds WHERE status < 0 AND jobset = ?1")?
        .query_map([jobset], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    ids.into_iter().try_for_each(|id| adopt(tx.conn, id))
}

struct Touched {
    was_pending: bool,
    now: BuildStatus,
}

/// The changes of one request, and what is still to be written because of them.
pub(super) struct Work<'t, 'a> {
    pub(super) tx: &'t mut Tx<'a>,
    /// By how much the counters of evaluations change.
    counts: HashMap<EvaluationId, Counts>,
    touched: BTreeMap<BuildId, Touched>,
}

impl<'t, 'a> Work<'t, 'a> {
    pub(super) fn new(tx: &'t mut Tx<'a>) -> Self {
        Self { tx, counts: HashMap::new(), touched: BTreeMap::new() }
    }

    pub(super) fn conn(&self) -> &'a Connection {
        self.tx.conn
    }

    /// Writes the counters; says what was done.
    pub(super) fn done(self) -> Result<Changes, Error> {
        for (evaluation, by) in self.counts {
            self.tx
                .conn
                .prepare_cached(
                    "UPDATE evaluations SET total = total + ?2, succeeded = succeeded + ?3, failed = failed + ?4,
                         pending = pending + ?5, aborted = aborted + ?6, canceled = canceled + ?7 WHERE id = ?1",
                )?
                .execute(params![
                    evaluation, by.total, by.succeeded, by.failed, by.pending, by.aborted, by.canceled
                ])?;
        }
        let mut changes = Changes::default();
        for (id, touched) in self.touched {
            if touched.now == BuildStatus::Scheduled {
                changes.scheduled.push(id);
            } else if touched.was_pending && !touched.now.is_pending() {
                changes.ended.push(id);
            }
        }
        Ok(changes)
    }

    pub(super) fn known(&self, id: BuildId) -> Result<Known, Error> {
        find(self.tx.conn, id)?.ok_or_else(|| Error::NotFound(format!("build {id}")))
    }

    /// Counts a job that was just added, whose build has this status.
    pub(super) fn count_job(&mut self, evaluation: EvaluationId, status: BuildStatus) {
        let counts = self.counts.entry(evaluation).or_default();
        counts.total += 1;
        *slot(counts, status) += 1;
    }

    /// Notes a build that was just inserted, or whose entry in the queue must be read again.
    pub(super) fn touch(&mut self, id: BuildId, was_pending: bool, now: BuildStatus) {
        self.touched.entry(id).or_insert(Touched { was_pending, now }).now = now;
    }

    /// Moves all jobs of a build from one counter to another, marks those that ended badly, and notes the change.
    pub(super) fn moved(&mut self, known: &Known, to: BuildStatus) -> Result<(), Error> {
        self.touch(known.id, known.status.is_pending(), to);
        if matches!(known.status, BuildStatus::Submitted | BuildStatus::Started) {
            self.reload_needs(known.id)?;
        }
        if mark(known.status) != mark(to) {
            self.tx
                .conn
                .prepare_cached("UPDATE jobs SET bad = ?2 WHERE build = ?1")?
                .execute(params![known.id, mark(to)])?;
        }
        let mut probe = Counts::default();
        *slot(&mut probe, known.status) -= 1;
        *slot(&mut probe, to) += 1;
        if probe == Counts::default() {
            return Ok(());
        }
        let mut statement = self.tx.conn.prepare_cached(
            "SELECT evaluation, count(*) FROM jobs WHERE build = ?1 GROUP BY evaluation",
        )?;
        let mut rows = statement.query([known.id])?;
        while let Some(row) = rows.next()? {
            let (evaluation, jobs): (EvaluationId, i64) = (row.get(0)?, row.get(1)?);
            let counts = self.counts.entry(evaluation).or_default();
            *slot(counts, known.status) -= jobs;
            *slot(counts, to) += jobs;
        }
        Ok(())
    }

    /// Ends a build for good; its dependents are the caller's.
    pub(super) fn finish(
        &mut self,
        known: &Known,
        status: BuildStatus,
        error: Option<&str>,
    ) -> Result<(), Error> {
        self.close(known, status, error, None)
    }

    fn close(
        &mut self,
        known: &Known,
        status: BuildStatus,
        error: Option<&str>,
        cause: Option<Cause>,
    ) -> Result<(), Error> {
        self.tx
            .conn
            .prepare_cached(
                // The clock may have been set back since it started.
                "UPDATE builds SET status = ?2, stoptime = max(?3, coalesce(starttime, ?3)), error = ?4,
                     canceled_by = ?5, retry_at = NULL, expired = 0 WHERE id = ?1",
            )?
            .execute(params![known.id, status, self.tx.now, error, cause.map(Cause::word)])?;
        self.moved(known, status)?;
        self.announce(known, status)
    }

    pub(super) fn announce(&mut self, known: &Known, status: BuildStatus) -> Result<(), Error> {
        self.tx.emit(
            What::BuildEnded,
            Some(&known.jobset),
            Some(known.evaluation),
            Some(known.id),
            Some(status.word()),
        )
    }

    /// Cancels one pending build; its dependents are the caller's.
    pub(super) fn cancel(&mut self, known: &Known, cause: Cause) -> Result<(), Error> {
        self.close(known, BuildStatus::Canceled, Some(&cause.error()), Some(cause))
    }

    /// Ends the scheduled builds that need `id`, which ended badly, directly or not.
    pub(super) fn fail_dependents(&mut self, id: BuildId) -> Result<(), Error> {
        for (id, via) in self.dependents(id, BuildStatus::Scheduled..=BuildStatus::Scheduled)? {
            let known = self.known(id)?;
            let error = format!("dependency {via} failed");
            self.finish(&known, BuildStatus::FailedDependency, Some(&error))?;
        }
        Ok(())
    }

    /// Cancels the pending builds that need `id`, which was canceled, directly or not.
    pub(super) fn cancel_dependents(&mut self, id: BuildId) -> Result<(), Error> {
        for (id, via) in self.dependents(id, BuildStatus::Submitted..=BuildStatus::Started)? {
            let known = self.known(id)?;
            self.cancel(&known, Cause::Dependency(via))?;
        }
        Ok(())
    }

    /// The builds of these statuses that need `id`, directly or through others of them; each with one that it needs
    /// on the way.
    fn dependents(
        &self,
        id: BuildId,
        statuses: RangeInclusive<BuildStatus>,
    ) -> Result<Vec<(BuildId, BuildId)>, Error> {
        // Each edge is walked once. CROSS JOIN keeps the order in which the indexes are of use.
        let mut statement = self.tx.conn.prepare_cached(
            "WITH RECURSIVE hit (id, via) AS (
                 SELECT d.source, d.target FROM dependencies d CROSS JOIN builds b ON b.id = d.source
                 WHERE d.target = ?1 AND b.status BETWEEN ?2 AND ?3
                 UNION
                 SELECT d.source, d.target FROM hit CROSS JOIN dependencies d ON d.target = hit.id
                 CROSS JOIN builds b ON b.id = d.source WHERE b.status BETWEEN ?2 AND ?3)
             SELECT id, min(via) FROM hit GROUP BY id ORDER BY id",
        )?;
        let rows = statement.query_map(params![id, statuses.start(), statuses.end()], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Schedules builds that ended, with the dependencies that `along` says, and revives their dependents.
    /// Those that are pending or cannot be run are left out; those that need one that stays bad end again.
    pub(super) fn schedule(&mut self, ids: &[BuildId], along: Along) -> Result<(), Error> {
        let mut scheduled = Vec::new();
        let mut stack = ids.to_vec();
        while let Some(id) = stack.pop() {
            let known = self.known(id)?;
            if self.schedule_one(&known)? {
                scheduled.push(id);
                self.dependencies_along(id, along, &mut stack)?;
            }
        }
        for &id in &scheduled {
            self.settle(id)?;
        }
        self.revive_dependents(scheduled)
    }

    /// The dependencies of `id` that are to be scheduled with it.
    pub(super) fn dependencies_along(
        &self,
        id: BuildId,
        along: Along,
        into: &mut Vec<BuildId>,
    ) -> Result<(), Error> {
        let mut statement = self.tx.conn.prepare_cached(
            "SELECT t.id, t.status, t.canceled_by FROM dependencies d CROSS JOIN builds t ON t.id = d.target
             WHERE d.source = ?1 AND (t.status > 0 OR t.expired) AND t.kind <> 2",
        )?;
        let mut rows = statement.query([id])?;
        while let Some(row) = rows.next()? {
            let status: BuildStatus = row.get(1)?;
            let by_name = row.get::<_, Option<String>>(2)?.is_some_and(|by| by == Cause::NAME);
            let wanted = match along {
                Along::Unfinished => true,
                Along::Lost => is_lost(status, by_name) || status == BuildStatus::Succeeded,
                Along::Expired => status == BuildStatus::Succeeded,
            };
            if wanted {
                into.push(row.get(0)?);
            }
        }
        Ok(())
    }

    fn schedule_one(&mut self, known: &Known) -> Result<bool, Error> {
        if known.status.is_pending() || known.kind.is_none() {
            return Ok(false);
        }
        self.tx
            .conn
            .prepare_cached(
                "UPDATE builds SET status = -2, weather = -1, last_status = NULL, attempts = 0, deaths = 0,
                     retry_at = NULL, canceled_by = NULL, worker = NULL, machine = NULL, error = NULL, queued = ?2,
                     starttime = NULL, stoptime = NULL WHERE id = ?1",
            )?
            .execute(params![known.id, self.tx.now])?;
        self.moved(known, BuildStatus::Scheduled)?;
        if known.status == BuildStatus::Succeeded {
            self.reload_dependents(known.id)?;
        }
        Ok(true)
    }

    /// Scheduled builds that could start a moment ago and must wait for `id` now.
    fn reload_dependents(&mut self, id: BuildId) -> Result<(), Error> {
        let mut statement = self.tx.conn.prepare_cached(
            "SELECT b.id FROM dependencies d CROSS JOIN builds b ON b.id = d.source
             WHERE d.target = ?1 AND b.status = -2",
        )?;
        let ids: Vec<BuildId> =
            statement.query_map([id], |row| row.get(0))?.collect::<Result<_, _>>()?;
        for id in ids {
            self.touch(id, true, BuildStatus::Scheduled);
        }
        Ok(())
    }

    /// Scheduled builds that had to wait until `id` reads no more what an earlier try of theirs left.
    fn reload_needs(&mut self, id: BuildId) -> Result<(), Error> {
        let mut statement = self.tx.conn.prepare_cached(
            "SELECT t.id FROM dependencies d CROSS JOIN builds t ON t.id = d.target
             WHERE d.source = ?1 AND t.status = -2",
        )?;
        let ids: Vec<BuildId> =
            statement.query_map([id], |row| row.get(0))?.collect::<Result<_, _>>()?;
        for id in ids {
            self.touch(id, true, BuildStatus::Scheduled);
        }
        Ok(())
    }

    /// Ends a scheduled build that needs one that ended badly, and what needs it in turn.
    pub(super) fn settle(&mut self, id: BuildId) -> Result<(), Error> {
        let blocked: Option<(BuildId, BuildStatus)> = self
            .tx
            .conn
            .prepare_cached(
                "SELECT t.id, t.status FROM dependencies d CROSS JOIN builds t ON t.id = d.target
                 WHERE d.source = ?1 AND t.status > 0 ORDER BY t.status = 4, t.id LIMIT 1",
            )?
            .query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((by, status)) = blocked else { return Ok(()) };
        let known = self.known(id)?;
        if known.status != BuildStatus::Scheduled {
            return Ok(());
        }
        if status == BuildStatus::Canceled {
            self.cancel(&known, Cause::Dependency(by))?;
            self.cancel_dependents(id)
        } else {
            let error = format!("dependency {by} failed");
            self.finish(&known, BuildStatus::FailedDependency, Some(&error))?;
            self.fail_dependents(id)
        }
    }

    /// Schedules what had failed because of one of `ids`, and because of nothing else that is still bad.
    pub(super) fn revive_dependents(&mut self, ids: Vec<BuildId>) -> Result<(), Error> {
        let mut stack = ids;
        while let Some(id) = stack.pop() {
            let revived: Vec<BuildId> = self
                .tx
                .conn
                .prepare_cached(
                    "SELECT b.id FROM dependencies d CROSS JOIN builds b ON b.id = d.source
                     WHERE d.target = ?1 AND b.status = 2
                       AND (SELECT status FROM builds WHERE id = ?1) <= 0
                       AND NOT EXISTS (SELECT 1 FROM dependencies o CROSS JOIN builds t ON t.id = o.target
                                       WHERE o.source = b.id AND t.status > 0)",
                )?
                .query_map([id], |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            for id in revived {
                let known = self.known(id)?;
                if self.schedule_one(&known)? {
                    stack.push(id);
                    let mut gone = Vec::new();
                    self.dependencies_along(id, Along::Expired, &mut gone)?;
                    for id in gone {
                        let known = self.known(id)?;
                        self.schedule_one(&known)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Whether a job that points to a build of this status schedules it again.
pub(super) fn is_lost(status: BuildStatus, by_name: bool) -> bool {
    match status {
        BuildStatus::Aborted => true,
        BuildStatus::Canceled => !by_name,
        BuildStatus::Submitted
        | BuildStatus::Scheduled
        | BuildStatus::Started
        | BuildStatus::Succeeded
        | BuildStatus::Failed
        | BuildStatus::FailedDependency => false,
    }
}
