//! Asked for again: restarts, and other priorities.

use std::collections::HashSet;

use rusqlite::params;

use super::Changes;
use super::change::{Along, Work};
use crate::db::{Error, Tx};
use crate::model::build::BuildId;
use crate::model::evaluation::EvaluationId;
use crate::model::event::What;
use crate::model::status::BuildStatus;

/// Schedules a build again with its unfinished dependencies, and revives its failed-dependency dependents. One that
/// waits for its next try need not wait any longer. `Conflict` if it is pending otherwise, or an `error` job.
pub(crate) fn restart(tx: &mut Tx<'_>, id: BuildId) -> Result<Changes, Error> {
    let mut work = Work::new(tx);
    let known = work.known(id)?;
    if known.status == BuildStatus::Scheduled && try_now(&work, id)? {
        work.touch(id, true, known.status);
        return work.done();
    }
    if known.status.is_pending() {
        return Err(Error::Conflict(format!("build {id} is {} already", known.status.word())));
    }
    if known.kind.is_none() {
        let why = format!("build {id} cannot be built: its job could not be evaluated");
        return Err(Error::Conflict(why));
    }
    if let Some(need) = hopeless_need(&work, id, &mut HashSet::new())? {
        let why = format!("build {id} needs build {need}, whose job could not be evaluated");
        return Err(Error::Conflict(why));
    }
    let (jobset, evaluation) = (known.jobset, known.evaluation);
    work.schedule(&[id], Along::Unfinished)?;
    let changes = work.done()?;
    tx.emit(What::BuildsQueued, Some(&jobset), Some(evaluation), Some(id), None)?;
    Ok(changes)
}

/// Whether a build waited for its next try; it does so no more.
fn try_now(work: &Work<'_, '_>, id: BuildId) -> Result<bool, Error> {
    let mut statement = work.conn().prepare_cached(
        "UPDATE builds SET retry_at = NULL WHERE id = ?1 AND retry_at IS NOT NULL",
    )?;
    Ok(statement.execute([id])? == 1)
}

/// Schedules what failed, was aborted or was canceled in an evaluation again; `all`: everything that ended.
pub(crate) fn restart_evaluation(
    tx: &mut Tx<'_>,
    id: EvaluationId,
    all: bool,
) -> Result<Changes, Error> {
    let jobset = super::super::evaluations::jobset(tx.conn, id)?;
    // What is 1 and above ended badly.
    let from = if all { BuildStatus::Succeeded } else { BuildStatus::Failed };
    let ended: Vec<BuildId> = tx
        .conn
        .prepare_cached(
            "SELECT DISTINCT b.id FROM jobs j CROSS JOIN builds b ON b.id = j.build
             WHERE j.evaluation = ?1 AND b.status >= ?2 AND b.kind <> 2 ORDER BY b.id",
        )?
        .query_map(params![id, from], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let mut work = Work::new(tx);
    let mut seen = HashSet::new();
    let mut wanted = Vec::with_capacity(ended.len());
    for build in ended {
        // One that needs a job that could not be evaluated stays as it is.
        if hopeless_need(&work, build, &mut seen)?.is_none() {
            wanted.push(build);
        }
    }
    work.schedule(&wanted, Along::Unfinished)?;
    let changes = work.done()?;
    if !changes.scheduled.is_empty() {
        tx.emit(What::BuildsQueued, Some(&jobset), Some(id), None, None)?;
    }
    Ok(changes)
}

/// A job that could not be evaluated among what a build needs, if it needs one. `sound` remembers builds
/// found to need none.
fn hopeless_need(
    work: &Work<'_, '_>,
    id: BuildId,
    sound: &mut HashSet<BuildId>,
) -> Result<Option<BuildId>, Error> {
    let mut visited = HashSet::from([id]);
    let mut stack = vec![id];
    while let Some(id) = stack.pop() {
        if sound.contains(&id) {
            continue;
        }
        let mut statement = work.conn().prepare_cached(
            "SELECT t.id, t.kind = 2 FROM dependencies d CROSS JOIN builds t ON t.id = d.target
             WHERE d.source = ?1 AND t.status > 0",
        )?;
        let mut rows = statement.query([id])?;
        while let Some(row) = rows.next()? {
            let (need, hopeless): (BuildId, bool) = (row.get(0)?, row.get(1)?);
            if hopeless {
                return Ok(Some(need));
            }
            if visited.insert(need) {
                stack.push(need);
            }
        }
    }
    sound.extend(visited);
    Ok(None)
}

/// Gives a pending build another priority (0–99). `Conflict` if it has ended.
pub(crate) fn prioritize(tx: &mut Tx<'_>, id: BuildId, priority: i64) -> Result<Changes, Error> {
    let mut work = Work::new(tx);
    let known = work.known(id)?;
    if !known.status.is_pending() {
        let why = format!("build {id} has ended already ({})", known.status.word());
        return Err(Error::Conflict(why));
    }
    work.conn()
        .prepare_cached("UPDATE builds SET priority = ?2 WHERE id = ?1")?
        .execute(params![id, priority])?;
    if known.status == BuildStatus::Scheduled {
        work.touch(id, true, known.status);
    }
    work.done()
}
