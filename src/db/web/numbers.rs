//! Numbers about the whole installation, for monitoring that asks every few seconds.
//!
//! Invariant: no query counts a table that grows; what is counted is the queue, and jobsets, which are few.

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::db::Error;
use crate::db::evaluations::WITHDRAWN;
use crate::model::evaluation::{Counts, EvaluationId};
use crate::model::spec::JobsetName;
use crate::model::status::{BuildStatus, EvaluationStatus};
use crate::model::time::Time;

/// How many there ever were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ever {
    pub(crate) builds: i64,
    pub(crate) evaluations: i64,
}

/// Ids are never used again, so that the last one says it.
pub(crate) fn ever(conn: &Connection) -> Result<Ever, Error> {
    let of = |table: &str| -> Result<i64, Error> {
        Ok(conn
            .prepare_cached("SELECT seq FROM sqlite_sequence WHERE name = ?1")?
            .query_row([table], |row| row.get(0))
            .optional()?
            .unwrap_or(0))
    };
    Ok(Ever { builds: of("builds")?, evaluations: of("evaluations")? })
}

/// Builds that have not ended, by status.
pub(crate) fn pending(conn: &Connection) -> Result<Vec<(BuildStatus, i64)>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT status, count(*) FROM builds INDEXED BY builds_pending WHERE status < 0 GROUP BY status",
    )?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Evaluations that go on.
pub(crate) fn evaluating(conn: &Connection) -> Result<i64, Error> {
    Ok(conn
        .prepare_cached(
            "SELECT count(*) FROM evaluations INDEXED BY evaluations_started
             WHERE status = -1 AND jobset <> ?1",
        )?
        .query_row([WITHDRAWN], |row| row.get(0))?)
}

/// How a jobset stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Standing {
    pub(crate) name: JobsetName,
    pub(crate) active: bool,
    /// Whether its last fetch or evaluation went wrong.
    pub(crate) trouble: bool,
    pub(crate) last_checked: Option<Time>,
    /// The newest that has come to an end.
    pub(crate) last: Option<Ended>,
    /// The newest that succeeded.
    pub(crate) good: Option<Ended>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ended {
    pub(crate) id: EvaluationId,
    pub(crate) status: EvaluationStatus,
    /// When it was decided upon, and when it ended.
    pub(crate) timestamp: Time,
    pub(crate) evaltime: Option<Time>,
    pub(crate) jobs: Counts,
}

const LAST: &str =
    "SELECT id, status, timestamp, evaltime, total, succeeded, failed, pending, aborted, canceled
     FROM evaluations WHERE jobset = ?1 AND status >= 0 ORDER BY id DESC LIMIT 1";

const GOOD: &str =
    "SELECT id, status, timestamp, evaltime, total, succeeded, failed, pending, aborted, canceled
     FROM evaluations WHERE jobset = ?1 AND status = 0 ORDER BY id DESC LIMIT 1";

/// Of the jobsets in the order of their names, `most` at most.
pub(crate) fn standings(conn: &Connection, most: usize) -> Result<Vec<Standing>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT name, active, error IS NOT NULL, last_checked FROM jobsets
         WHERE name <> ?1 ORDER BY name LIMIT ?2",
    )?;
    let rows = statement.query_map(params![WITHDRAWN, crate::db::convert::limit(most)], |row| {
        Ok(Standing {
            name: row.get(0)?,
            active: row.get(1)?,
            trouble: row.get(2)?,
            last_checked: row.get(3)?,
            last: None,
            good: None,
        })
    })?;
    let mut standings: Vec<Standing> = rows.collect::<Result<_, _>>()?;
    for standing in &mut standings {
        standing.last = ended(conn, LAST, &standing.name)?;
        standing.good = ended(conn, GOOD, &standing.name)?;
    }
    Ok(standings)
}

fn ended(conn: &Connection, sql: &str, jobset: &JobsetName) -> Result<Option<Ended>, Error> {
    let read = |row: &Row<'_>| {
        Ok(Ended {
            id: row.get(0)?,
            status: row.get(1)?,
            timestamp: row.get(2)?,
            evaltime: row.get(3)?,
            jobs: Counts {
                total: row.get(4)?,
                succeeded: row.get(5)?,
                failed: row.get(6)?,
                pending: row.get(7)?,
                aborted: row.get(8)?,
                canceled: row.get(9)?,
            },
        })
    };
    Ok(conn.prepare_cached(sql)?.query_row([jobset], read).optional()?)
}

/// What the janitor computed last, under Cuirass's number of it; `field` is whose it is.
pub(crate) fn metric(conn: &Connection, number: i64, field: &str) -> Result<Option<f64>, Error> {
    Ok(conn
        .prepare_cached("SELECT value FROM metrics WHERE type = ?1 AND field = ?2")?
        .query_row(params![number, field], |row| row.get(0))
        .optional()?)
}

/// Bytes of the database's file, and those in it that are free.
pub(crate) fn size(conn: &Connection) -> Result<(i64, i64), Error> {
    let pragma = |name: &str| -> Result<i64, Error> {
        Ok(conn.pragma_query_value(None, name, |row| row.get(0))?)
    };
    let page = pragma("page_size")?;
    Ok((pragma("page_count")? * page, pragma("freelist_count")? * page))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::migrate;
    use crate::db::testing::{Books, failure, job, success};

    #[test]
    fn numbers_are_those_of_the_books() {
        let mut books = Books::new();
        assert_eq!(ever(&books.conn).unwrap(), Ever::default());
        let name = books.jobset("a");
        let good = books.evaluated(&name, &[job("x", &[]), job("y", &[]), job("z", &[])]);
        books.run("x", &success());
        books.run("y", &failure());
        let bad = books.evaluation(&name);
        assert_eq!(evaluating(&books.conn).unwrap(), 1);
        let ending = crate::model::evaluation::Ending::Failed("no".to_owned());
        books.write(|tx| crate::db::evaluations::end(tx, bad, &ending, false)).unwrap();
        assert_eq!(ever(&books.conn).unwrap(), Ever { builds: 3, evaluations: 2 });
        assert_eq!(pending(&books.conn).unwrap(), [(BuildStatus::Scheduled, 1)]);
        let all = standings(&books.conn, 9).unwrap();
        let (last, standing) = (all[0].last.as_ref().unwrap(), all[0].good.as_ref().unwrap());
        assert_eq!((last.id, standing.id, all[0].trouble), (bad, good, true));
        assert_eq!((standing.jobs.total, standing.jobs.failed), (3, 1));
        assert_eq!(metric(&books.conn, 0, "a").unwrap(), None);
        books.write(crate::db::maintenance::compute_metrics).unwrap();
        assert_eq!(metric(&books.conn, 6, "a").unwrap(), Some(50.0));
        assert!(size(&books.conn).unwrap().0 > 0);
        books.write(|tx| crate::db::jobsets::delete(tx, &name)).unwrap();
        assert_eq!(standings(&books.conn, 9).unwrap(), []);
    }

    #[test]
    fn an_index_has_what_is_counted_and_the_order_of_what_is_last() {
        let conn = migrate::memory();
        for sql in [LAST, GOOD] {
            let mut plan = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let mut rows = plan.raw_query();
            let detail: String = rows.next().unwrap().unwrap().get(3).unwrap();
            assert!(detail.contains("USING INDEX evaluations_by_jobset"), "{detail}");
            assert!(rows.next().unwrap().is_none(), "{sql} sorts");
        }
    }
}
