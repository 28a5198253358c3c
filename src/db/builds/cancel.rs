//! Cancelling: by name, which spares nothing, and in bulk, which spares what a live evaluation wants.
//!
//! An evaluation is live while it runs, and as the newest of an active jobset. What it wants are the builds of
//! its jobs and all that those need.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use rusqlite::{Connection, params};

use super::Changes;
use super::change::{Cause, Work};
use crate::db::{Error, Tx};
use crate::model::build::BuildId;
use crate::model::evaluation::EvaluationId;
use crate::model::spec::JobsetName;

/// Cancels one build by name, whoever wants it, and its dependents. `Conflict` if it has ended.
pub(crate) fn cancel(tx: &mut Tx<'_>, id: BuildId) -> Result<Changes, Error> {
    let mut work = Work::new(tx);
    let known = work.known(id)?;
    if !known.status.is_pending() {
        let why = format!("build {id} has ended already ({})", known.status.word());
        return Err(Error::Conflict(why));
    }
    work.cancel(&known, Cause::Name)?;
    work.cancel_dependents(id)?;
    work.done()
}

/// Cancels the pending builds of an evaluation that no other live evaluation (running, or the newest of
/// an active jobset) wants.
pub(crate) fn cancel_evaluation(tx: &mut Tx<'_>, id: EvaluationId) -> Result<Changes, Error> {
    let candidates = ids(
        tx.conn,
        "SELECT DISTINCT b.id FROM jobs j CROSS JOIN builds b ON b.id = j.build
         WHERE j.evaluation = ?1 AND b.status < 0",
        params![id],
    )?;
    let mut live = live(tx.conn)?;
    live.remove(&id);
    let wanted = |conn: &Connection, build| wanted_by(conn, build, &live);
    cancel_unwanted(tx, candidates, Cause::Evaluation, wanted)
}

/// Cancels what older evaluations of the jobset still wait for and neither `newest` nor another live
/// evaluation wants; builds that run go on.
pub(crate) fn supersede(
    tx: &mut Tx<'_>,
    jobset: &JobsetName,
    newest: EvaluationId,
) -> Result<Changes, Error> {
    let candidates = ids(
        tx.conn,
        "SELECT DISTINCT b.id FROM evaluations e CROSS JOIN jobs j ON j.evaluation = e.id
         CROSS JOIN builds b ON b.id = j.build
         WHERE e.jobset = ?1 AND e.id < ?2 AND e.pending > 0 AND b.status = -2",
        params![jobset, newest],
    )?;
    let mut live = live(tx.conn)?;
    live.insert(newest);
    // A build that runs goes on, and so must what it might still be waiting for.
    let wanted =
        |conn: &Connection, build| Ok(is_running(conn, build)? || wanted_by(conn, build, &live)?);
    cancel_unwanted(tx, candidates, Cause::Superseded, wanted)
}

/// Cancels builds that have been scheduled for longer than `age` and that no live evaluation wants.
pub(crate) fn expire(tx: &mut Tx<'_>, age: Duration) -> Result<Changes, Error> {
    let candidates = ids(
        tx.conn,
        "SELECT id FROM builds WHERE status < 0 AND status = -2 AND queued < ?1",
        params![tx.now.before(age)],
    )?;
    let live = live(tx.conn)?;
    let wanted =
        |conn: &Connection, build| Ok(is_running(conn, build)? || wanted_by(conn, build, &live)?);
    cancel_unwanted(tx, candidates, Cause::Expired, wanted)
}

/// Cancels the pending builds that only evaluations of this jobset want, before it is deleted.
pub(crate) fn cancel_jobset(tx: &mut Tx<'_>, jobset: &JobsetName) -> Result<Changes, Error> {
    let candidates = ids(
        tx.conn,
        "SELECT DISTINCT b.id FROM evaluations e CROSS JOIN jobs j ON j.evaluation = e.id
         CROSS JOIN builds b ON b.id = j.build
         WHERE e.jobset = ?1 AND e.pending > 0 AND b.status < 0",
        params![jobset],
    )?;
    let wanted = |conn: &Connection, build: BuildId| {
        Ok(conn
            .prepare_cached(
                // Jobs of a jobset that was deleted are still there for a while.
                "SELECT EXISTS (SELECT 1 FROM jobs j CROSS JOIN jobsets s ON s.id = j.jobset
                     WHERE j.build = ?1 AND s.name <> ?2)",
            )?
            .query_row(params![build, jobset], |row| row.get(0))?)
    };
    cancel_unwanted(tx, candidates, Cause::Jobset, wanted)
}

fn ids(conn: &Connection, sql: &str, params: impl rusqlite::Params) -> Result<Vec<BuildId>, Error> {
    let mut statement = conn.prepare_cached(sql)?;
    let rows = statement.query_map(params, |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn live(conn: &Connection) -> Result<HashSet<EvaluationId>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT id FROM evaluations WHERE status = -1
         UNION ALL
         SELECT (SELECT max(e.id) FROM evaluations e WHERE e.jobset = j.name) AS newest
         FROM jobsets j WHERE j.active AND newest IS NOT NULL",
    )?;
    let rows = statement.query_map([], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn wanted_by(
    conn: &Connection,
    build: BuildId,
    evaluations: &HashSet<EvaluationId>,
) -> Result<bool, Error> {
    let mut statement = conn.prepare_cached("SELECT evaluation FROM jobs WHERE build = ?1")?;
    let mut rows = statement.query([build])?;
    while let Some(row) = rows.next()? {
        if evaluations.contains(&row.get(0)?) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_running(conn: &Connection, build: BuildId) -> Result<bool, Error> {
    Ok(conn
        .prepare_cached("SELECT status IN (-3, -1) FROM builds WHERE id = ?1")?
        .query_row([build], |row| row.get(0))?)
}

/// Cancels `candidates` and their pending dependents, except those that are wanted and all that those need.
fn cancel_unwanted(
    tx: &mut Tx<'_>,
    candidates: Vec<BuildId>,
    cause: Cause,
    wanted: impl Fn(&Connection, BuildId) -> Result<bool, Error>,
) -> Result<Changes, Error> {
    let conn = tx.conn;
    // Candidates and all that needs them, with what each of these needs among them.
    let mut needs: HashMap<BuildId, Vec<BuildId>> =
        candidates.iter().map(|&id| (id, Vec::new())).collect();
    let mut spared = Vec::new();
    let mut stack = candidates;
    while let Some(id) = stack.pop() {
        if wanted(conn, id)? {
            spared.push(id);
        }
        let dependents = ids(
            conn,
            "SELECT b.id FROM dependencies d CROSS JOIN builds b ON b.id = d.source
             WHERE d.target = ?1 AND b.status < 0",
            params![id],
        )?;
        for dependent in dependents {
            let known = needs.entry(dependent).or_insert_with(|| {
                stack.push(dependent);
                Vec::new()
            });
            known.push(id);
        }
    }
    while let Some(id) = spared.pop() {
        spared.extend(needs.remove(&id).into_iter().flatten());
    }
    let mut doomed: Vec<BuildId> = needs.into_keys().collect();
    doomed.sort_unstable();
    let mut work = Work::new(tx);
    for id in doomed {
        let known = work.known(id)?;
        work.cancel(&known, cause)?;
    }
    work.done()
}
