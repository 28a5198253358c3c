//! Evaluations and their checkouts.
//!
//! Invariant: a started evaluation ends once; the counters are the business of `builds`. One that is to go is
//! withdrawn first, which is quick: nobody sees it any more. Its rows are removed afterwards, some at a time.

use std::path::PathBuf;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::builds::{self, Changes};
use super::{Error, Tx, convert, jobsets};
use crate::model::build::BuildId;
use crate::model::evaluation::{Checkout, Counts, Ending, Evaluation, EvaluationId};
use crate::model::event::What;
use crate::model::spec::JobsetName;
use crate::model::status::EvaluationStatus;
use crate::model::time::Time;

/// The jobset of evaluations that were withdrawn. No jobset can have this name.
pub(super) const WITHDRAWN: &str = ".withdrawn";

/// In the column `interrupted`: ended by a stop or crash of the daemon, to be repeated at the next start …
const INTERRUPTED: i64 = 1;

/// … or by a fault here, which the jobset has as its error; to be repeated as well.
const BROKEN: i64 = 2;

/// Records an evaluation as started with the checkouts it is made from. `NotFound` if the jobset is gone.
pub(crate) fn start(
    tx: &mut Tx<'_>,
    jobset: &JobsetName,
    fingerprint: &str,
    decided: Time,
    checkouts: &[Checkout],
) -> Result<EvaluationId, Error> {
    let inserted = tx
        .conn
        .prepare_cached(
            "INSERT INTO evaluations (jobset, status, fingerprint, timestamp, checkouttime)
             SELECT name, -1, ?2, ?3, ?4 FROM jobsets WHERE name = ?1",
        )?
        .execute(params![jobset, fingerprint, decided, tx.now])?;
    if inserted == 0 {
        return Err(Error::NotFound(format!("jobset {jobset}")));
    }
    let id = EvaluationId(tx.conn.last_insert_rowid());
    for (position, checkout) in checkouts.iter().enumerate() {
        tx.conn
            .prepare_cached(
                "INSERT INTO checkouts (evaluation, position, channel, url, \"commit\", tree, directory)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![
                id,
                convert::limit(position),
                checkout.channel,
                checkout.url,
                checkout.commit,
                checkout.tree,
                checkout.directory.to_string_lossy(),
            ])?;
    }
    let status = EvaluationStatus::Started.word();
    tx.emit(What::EvaluationStarted, Some(jobset), Some(id), None, Some(status))?;
    Ok(id)
}

/// Records how a started evaluation ended; of one already ended nothing changes. `Canceled` also cancels
/// its builds, as `builds::cancel_evaluation` does. A jobset that supersedes: so do older evaluations' builds.
pub(crate) fn end(
    tx: &mut Tx<'_>,
    id: EvaluationId,
    ending: &Ending,
    supersede: bool,
) -> Result<Changes, Error> {
    let (status, error, interrupted) = match ending {
        Ending::Succeeded => (EvaluationStatus::Succeeded, None, 0),
        Ending::Failed(why) => (EvaluationStatus::Failed, Some(why.as_str()), 0),
        Ending::Aborted(why) => (EvaluationStatus::Aborted, Some(why.as_str()), BROKEN),
        Ending::Canceled => (EvaluationStatus::Aborted, Some("canceled"), 0),
        Ending::Interrupted => (EvaluationStatus::Aborted, Some("interrupted"), INTERRUPTED),
    };
    let jobset: Option<JobsetName> = tx
        .conn
        .prepare_cached(
            "UPDATE evaluations SET status = ?2, error = ?3, interrupted = ?4, evaltime = max(?5, timestamp)
             WHERE id = ?1 AND status = -1 RETURNING jobset",
        )?
        .query_row(params![id, status, error, interrupted, tx.now], |row| row.get(0))
        .optional()?;
    let Some(jobset) = jobset else { return Ok(Changes::default()) };
    tx.emit(What::EvaluationEnded, Some(&jobset), Some(id), None, Some(status.word()))?;
    match ending {
        Ending::Succeeded | Ending::Failed(_) | Ending::Aborted(_) => {
            jobsets::set_error(tx, &jobset, error)?;
        }
        Ending::Canceled => return builds::cancel_evaluation(tx, id),
        Ending::Interrupted => {}
    }
    match ending {
        Ending::Succeeded if supersede => builds::supersede(tx, &jobset, id),
        Ending::Succeeded
        | Ending::Failed(_)
        | Ending::Aborted(_)
        | Ending::Canceled
        | Ending::Interrupted => Ok(Changes::default()),
    }
}

/// At start-up: evaluations left started become aborted (interrupted). Returns their ids.
pub(crate) fn recover(tx: &mut Tx<'_>) -> Result<Vec<EvaluationId>, Error> {
    let ids: Vec<EvaluationId> = tx
        .conn
        .prepare_cached("SELECT id FROM evaluations WHERE status = -1 ORDER BY id")?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for &id in &ids {
        end(tx, id, &Ending::Interrupted, false)?;
    }
    Ok(ids)
}

/// What went wrong with the jobset's last evaluation that came to an end of its own: one that was cut off says nothing.
pub(crate) fn trouble(conn: &Connection, jobset: &JobsetName) -> Result<Option<String>, Error> {
    let last: Option<(EvaluationStatus, i64, Option<String>)> = conn
        .prepare_cached(
            "SELECT status, interrupted, error FROM evaluations
             WHERE jobset = ?1 AND (status IN (0, 1) OR interrupted = 2) ORDER BY id DESC LIMIT 1",
        )?
        .query_row([jobset], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    Ok(last
        .filter(|(status, interrupted, _)| {
            *status == EvaluationStatus::Failed || *interrupted == BROKEN
        })
        .and_then(|(_, _, error)| error))
}

/// What a monitor compares with: the fingerprint of the jobset's last evaluation, and whether it is to be repeated.
pub(crate) fn last_fingerprint(
    conn: &Connection,
    jobset: &JobsetName,
) -> Result<Option<(String, bool)>, Error> {
    Ok(conn
        .prepare_cached(
            "SELECT fingerprint, interrupted FROM evaluations WHERE jobset = ?1 ORDER BY id DESC LIMIT 1",
        )?
        .query_row([jobset], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?)
}

pub(crate) fn get(conn: &Connection, id: EvaluationId) -> Result<Option<Evaluation>, Error> {
    let found = conn
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM evaluations WHERE id = ?1 AND jobset <> ?2"
        ))?
        .query_row(params![id, WITHDRAWN], read)
        .optional()?;
    found.map(|evaluation| with_checkouts(conn, evaluation)).transpose()
}

/// The newest of a jobset that succeeded.
pub(crate) fn last_succeeded(
    conn: &Connection,
    jobset: &JobsetName,
) -> Result<Option<EvaluationId>, Error> {
    Ok(conn
        .prepare_cached(
            "SELECT id FROM evaluations WHERE jobset = ?1 AND status = 0 ORDER BY id DESC LIMIT 1",
        )?
        .query_row([jobset], |row| row.get(0))
        .optional()?)
}

/// Newest first.
pub(crate) fn list(
    conn: &Connection,
    jobset: Option<&JobsetName>,
    limit: usize,
) -> Result<Vec<Evaluation>, Error> {
    let limit = convert::limit(limit);
    let evaluations: Vec<Evaluation> = match jobset {
        Some(jobset) => conn
            .prepare_cached(&format!(
                "SELECT {COLUMNS} FROM evaluations WHERE jobset = ?1 ORDER BY id DESC LIMIT ?2"
            ))?
            .query_map(params![jobset, limit], read)?
            .collect::<Result<_, _>>()?,
        None => conn
            .prepare_cached(&format!(
                "SELECT {COLUMNS} FROM evaluations WHERE jobset <> ?2 ORDER BY id DESC LIMIT ?1"
            ))?
            .query_map(params![limit, WITHDRAWN], read)?
            .collect::<Result<_, _>>()?,
    };
    evaluations.into_iter().map(|evaluation| with_checkouts(conn, evaluation)).collect()
}

/// The columns that `read` takes.
pub(super) const COLUMNS: &str = "id, jobset, status, timestamp, checkouttime, evaltime, error, total, succeeded, failed, \
     pending, aborted, canceled";

pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Evaluation> {
    Ok(Evaluation {
        id: row.get(0)?,
        jobset: row.get(1)?,
        status: row.get(2)?,
        timestamp: row.get(3)?,
        checkouttime: row.get(4)?,
        evaltime: row.get(5)?,
        checkouts: Vec::new(),
        error: row.get(6)?,
        jobs: Counts {
            total: row.get(7)?,
            succeeded: row.get(8)?,
            failed: row.get(9)?,
            pending: row.get(10)?,
            aborted: row.get(11)?,
            canceled: row.get(12)?,
        },
    })
}

pub(super) fn with_checkouts(
    conn: &Connection,
    evaluation: Evaluation,
) -> Result<Evaluation, Error> {
    Ok(Evaluation { checkouts: checkouts(conn, evaluation.id)?, ..evaluation })
}

/// In the order of the specification's channels.
pub(super) fn checkouts(conn: &Connection, id: EvaluationId) -> Result<Vec<Checkout>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT channel, url, \"commit\", tree, directory FROM checkouts WHERE evaluation = ?1 ORDER BY position",
    )?;
    let rows = statement.query_map([id], |row| {
        Ok(Checkout {
            channel: row.get(0)?,
            url: row.get(1)?,
            commit: row.get(2)?,
            tree: row.get(3)?,
            directory: PathBuf::from(row.get::<_, String>(4)?),
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The jobset of an evaluation. `NotFound` if there is no such evaluation.
pub(super) fn jobset(conn: &Connection, id: EvaluationId) -> Result<JobsetName, Error> {
    conn.prepare_cached("SELECT jobset FROM evaluations WHERE id = ?1 AND jobset <> ?2")?
        .query_row(params![id, WITHDRAWN], |row| row.get(0))
        .optional()?
        .ok_or_else(|| Error::NotFound(format!("evaluation {id}")))
}

/// Takes evaluations out of everybody's sight, however many jobs they have; those that run are over. What is left of
/// them is for `remove_some`.
pub(super) fn withdraw(tx: &mut Tx<'_>, ids: &[EvaluationId]) -> Result<(), Error> {
    if ids.is_empty() {
        return Ok(());
    }
    // Every evaluation has a jobset.
    tx.conn
        .prepare_cached(
            "INSERT INTO jobsets (name, specification, active, created) VALUES (?1, '', 0, ?2)
             ON CONFLICT DO NOTHING",
        )?
        .execute(params![WITHDRAWN, tx.now])?;
    for id in ids {
        let running: Option<JobsetName> = tx
            .conn
            .prepare_cached("SELECT jobset FROM evaluations WHERE id = ?1 AND status = -1")?
            .query_row([id], |row| row.get(0))
            .optional()?;
        if let Some(jobset) = running {
            let status = EvaluationStatus::Aborted.word();
            tx.emit(What::EvaluationEnded, Some(&jobset), Some(*id), None, Some(status))?;
        }
        tx.conn
            .prepare_cached(
                "UPDATE evaluations SET jobset = ?2, status = CASE status WHEN -1 THEN 2 ELSE status END
                 WHERE id = ?1",
            )?
            .execute(params![id, WITHDRAWN])?;
    }
    Ok(())
}

/// The first of those that were withdrawn and are not removed yet.
pub(crate) fn withdrawn(conn: &Connection) -> Result<Option<EvaluationId>, Error> {
    Ok(conn
        .prepare_cached("SELECT id FROM evaluations WHERE jobset = ?1 ORDER BY id LIMIT 1")?
        .query_row([WITHDRAWN], |row| row.get(0))
        .optional()?)
}

/// Removes at most `limit` jobs of an evaluation that was withdrawn, and itself after the last. Builds that it
/// introduced are handed to other evaluations with a job for them; those without are left to
/// `maintenance::remove_orphans`.
pub(crate) fn remove_some(tx: &mut Tx<'_>, id: EvaluationId, limit: usize) -> Result<(), Error> {
    let jobs: Vec<(String, String, BuildId, bool)> = tx
        .conn
        .prepare_cached(
            "SELECT j.name, j.system, j.build, b.evaluation = j.evaluation
             FROM evaluations e CROSS JOIN jobs j ON j.evaluation = e.id CROSS JOIN builds b ON b.id = j.build
             WHERE e.id = ?1 AND e.jobset = ?2 LIMIT ?3",
        )?
        .query_map(params![id, WITHDRAWN, convert::limit(limit)], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })?
        .collect::<Result<_, _>>()?;
    for (name, system, build, introduced) in &jobs {
        tx.conn
            .prepare_cached("DELETE FROM jobs WHERE evaluation = ?1 AND name = ?2 AND system = ?3")?
            .execute(params![id, name, system])?;
        tx.conn
            .prepare_cached(
                "INSERT INTO orphans (build)
                 SELECT ?1 WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE build = ?1)
                 ON CONFLICT DO NOTHING",
            )?
            .execute([build])?;
        if *introduced {
            builds::adopt(tx.conn, *build)?;
        }
    }
    if jobs.len() < limit {
        tx.conn
            .prepare_cached("DELETE FROM evaluations WHERE id = ?1 AND jobset = ?2")?
            .execute(params![id, WITHDRAWN])?;
    }
    Ok(())
}

/// Directories of checkouts in use: of started evaluations, of builds that are pending, and of each active
/// jobset's newest evaluation.
pub(crate) fn checkouts_in_use(conn: &Connection) -> Result<Vec<PathBuf>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT DISTINCT directory FROM checkouts WHERE evaluation IN (
             SELECT id FROM evaluations WHERE status = -1
             UNION
             SELECT evaluation FROM builds INDEXED BY builds_pending WHERE status < 0
             UNION
             SELECT (SELECT max(e.id) FROM evaluations e WHERE e.jobset = j.name) FROM jobsets j WHERE j.active)",
    )?;
    let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
    Ok(rows.map(|path| path.map(PathBuf::from)).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::jobsets;
    use crate::db::testing::Books;

    #[test]
    fn what_is_cut_off_says_nothing_of_the_jobset() {
        let mut books = Books::new();
        let name = JobsetName::new("troubled").unwrap();
        books.write(|tx| jobsets::put(tx, &name, "{}", true)).unwrap();
        let mut after = |ending: Ending| {
            let id = books.write(|tx| start(tx, &name, "f", Time(1), &[])).unwrap();
            books.write(|tx| end(tx, id, &ending, false)).unwrap();
            books.write(|tx| jobsets::checked(tx, &name, None)).unwrap();
            let jobset = jobsets::get(&books.conn, &name).unwrap().unwrap();
            assert_eq!(jobset.error, trouble(&books.conn, &name).unwrap());
            jobset.error
        };
        let failed = || Some("exit status 3".to_owned());
        assert_eq!(after(Ending::Failed("exit status 3".to_owned())), failed());
        assert_eq!(after(Ending::Canceled), failed());
        assert_eq!(after(Ending::Interrupted), failed());
        assert_eq!(after(Ending::Aborted("no memory".to_owned())), Some("no memory".to_owned()));
        assert_eq!(after(Ending::Succeeded), None);
        assert_eq!(after(Ending::Canceled), None);
    }
}
