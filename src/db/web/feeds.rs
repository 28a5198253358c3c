//! What feeds tell of: builds that broke or mended their job, and evaluations that failed.

use rusqlite::{Connection, Row, params};

use crate::db::evaluations::WITHDRAWN;
use crate::db::{Error, convert};
use crate::model::build::BuildId;
use crate::model::evaluation::EvaluationId;
use crate::model::spec::JobsetName;
use crate::model::status::Weather;
use crate::model::time::Time;

/// Evaluations that are looked at, newest first, for something to tell of: those of weeks.
const LOOKED_AT: i64 = 1000;

/// A build that ended otherwise than the job's build before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Changed {
    pub(crate) build: BuildId,
    pub(crate) jobset: JobsetName,
    pub(crate) job: String,
    pub(crate) system: String,
    /// `NewSuccess` or `NewFailure`.
    pub(crate) weather: Weather,
    pub(crate) stoptime: Time,
    /// Why it ended badly.
    pub(crate) error: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) evaluation: EvaluationId,
    pub(crate) jobset: JobsetName,
    pub(crate) evaltime: Time,
    pub(crate) error: Option<String>,
}

/// What feeds of all jobsets read.
const CHANGED: &str = "SELECT b.id, e.jobset, b.job, b.system, b.weather, b.stoptime, b.error
     FROM builds b INDEXED BY builds_changed CROSS JOIN evaluations e ON e.id = b.evaluation
     WHERE b.weather IN (0, 1) AND b.stoptime IS NOT NULL AND e.jobset <> ?1
     ORDER BY b.evaluation DESC, b.id DESC LIMIT ?2";

/// What the feed of one reads.
const CHANGED_OF_JOBSET: &str =
    "SELECT b.id, e.jobset, b.job, b.system, b.weather, b.stoptime, b.error
     FROM evaluations e INDEXED BY evaluations_by_jobset
     CROSS JOIN builds b INDEXED BY builds_changed ON b.evaluation = e.id
     WHERE e.jobset = ?1 AND b.weather IN (0, 1) AND b.stoptime IS NOT NULL
       AND e.id > coalesce((SELECT l.id FROM evaluations l WHERE l.jobset = ?1
                            ORDER BY l.id DESC LIMIT 1 OFFSET ?3), 0)
     ORDER BY e.id DESC, b.id DESC LIMIT ?2";

const FAILED: &str = "SELECT id, jobset, evaltime, error FROM
         (SELECT id, jobset, status, evaltime, error FROM evaluations ORDER BY id DESC LIMIT ?3)
     WHERE status = 1 AND evaltime IS NOT NULL AND jobset <> ?1 ORDER BY id DESC LIMIT ?2";

const FAILED_OF_JOBSET: &str = "SELECT id, jobset, evaltime, error FROM
         (SELECT id, jobset, status, evaltime, error FROM evaluations WHERE jobset = ?1
          ORDER BY id DESC LIMIT ?3)
     WHERE status = 1 AND evaltime IS NOT NULL ORDER BY id DESC LIMIT ?2";

/// Of the newest evaluation first.
pub(crate) fn changed(
    conn: &Connection,
    jobset: Option<&JobsetName>,
    limit: usize,
) -> Result<Vec<Changed>, Error> {
    let read = |row: &Row<'_>| {
        Ok(Changed {
            build: row.get(0)?,
            jobset: row.get(1)?,
            job: row.get(2)?,
            system: row.get(3)?,
            weather: row.get(4)?,
            stoptime: row.get(5)?,
            error: row.get(6)?,
        })
    };
    let limit = convert::limit(limit);
    let rows: Vec<Changed> = match jobset {
        Some(jobset) => conn
            .prepare_cached(CHANGED_OF_JOBSET)?
            .query_map(params![jobset, limit, LOOKED_AT], read)?
            .collect::<Result<_, _>>()?,
        None => conn
            .prepare_cached(CHANGED)?
            .query_map(params![WITHDRAWN, limit], read)?
            .collect::<Result<_, _>>()?,
    };
    Ok(rows)
}

/// Newest first.
pub(crate) fn failed(
    conn: &Connection,
    jobset: Option<&JobsetName>,
    limit: usize,
) -> Result<Vec<Failed>, Error> {
    let read = |row: &Row<'_>| {
        Ok(Failed {
            evaluation: row.get(0)?,
            jobset: row.get(1)?,
            evaltime: row.get(2)?,
            error: row.get(3)?,
        })
    };
    let (sql, name) = match jobset {
        Some(jobset) => (FAILED_OF_JOBSET, jobset.as_str()),
        None => (FAILED, WITHDRAWN),
    };
    let mut statement = conn.prepare_cached(sql)?;
    let rows = statement.query_map(params![name, convert::limit(limit), LOOKED_AT], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::evaluations;
    use crate::db::migrate;
    use crate::db::testing::{Books, failure, job, success, version};
    use crate::model::evaluation::Ending;

    #[test]
    fn what_broke_and_what_was_mended_is_told_newest_first() {
        let mut books = Books::new();
        let (a, b) = (books.jobset("a"), books.jobset("b"));
        books.evaluated(&a, &[version("x", "x1"), version("y", "y1")]);
        books.run("x1", &success());
        books.run("y1", &success());
        books.evaluated(&a, &[version("x", "x2"), version("y", "y2")]);
        books.run("x2", &failure());
        books.run("y2", &success());
        books.evaluated(&a, &[version("x", "x3")]);
        books.run("x3", &success());
        let bad = books.evaluation(&b);
        let ending = Ending::Failed("no such file".to_owned());
        books.write(|tx| evaluations::end(tx, bad, &ending, false)).unwrap();

        let told = |jobset: Option<&JobsetName>| -> Vec<(i64, Weather)> {
            let found = changed(&books.conn, jobset, 100).unwrap();
            found.iter().map(|changed| (changed.build.0, changed.weather)).collect()
        };
        let of = |name: &str| books.id(name).0;
        let all = told(None);
        assert_eq!(all[..2], [(of("x3"), Weather::NewSuccess), (of("x2"), Weather::NewFailure)]);
        assert_eq!(told(Some(&a)), all);
        assert_eq!(told(Some(&b)), []);
        assert_eq!(changed(&books.conn, None, 1).unwrap().len(), 1);

        let found = failed(&books.conn, None, 100).unwrap();
        assert_eq!(found, failed(&books.conn, Some(&b), 100).unwrap());
        assert_eq!((found[0].evaluation, found[0].error.as_deref()), (bad, Some("no such file")));
        assert_eq!(failed(&books.conn, Some(&a), 100).unwrap(), []);
    }

    #[test]
    fn what_is_withdrawn_is_not_told() {
        let mut books = Books::new();
        let name = books.jobset("a");
        books.evaluated(&name, &[job("x", &[])]);
        books.run("x", &failure());
        let bad = books.evaluation(&name);
        let ending = Ending::Failed("no".to_owned());
        books.write(|tx| evaluations::end(tx, bad, &ending, false)).unwrap();
        books.write(|tx| crate::db::jobsets::delete(tx, &name)).unwrap();
        assert_eq!(changed(&books.conn, None, 100).unwrap(), []);
        assert_eq!(failed(&books.conn, None, 100).unwrap(), []);
    }

    /// In the order of an index, so that the limit ends the search.
    #[test]
    fn nothing_is_sorted_or_scanned_to_its_end() {
        let conn = migrate::memory();
        for sql in [CHANGED, CHANGED_OF_JOBSET, FAILED, FAILED_OF_JOBSET] {
            let mut plan = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let mut rows = plan.raw_query();
            while let Some(row) = rows.next().unwrap() {
                let detail: String = row.get(3).unwrap();
                assert!(!detail.contains("TEMP B-TREE"), "{sql}\n{detail}");
                let fine = detail.contains("builds_changed") || sql.contains("LIMIT ?3");
                assert!(!detail.starts_with("SCAN") || fine, "{sql}\n{detail}");
            }
        }
    }
}
