//! Jobs of evaluations, and what became of one job over time.

use rusqlite::{Connection, Row, params};

use crate::db::evaluations::WITHDRAWN;
use crate::db::{Error, convert};
use crate::model::build::BuildId;
use crate::model::evaluation::EvaluationId;
use crate::model::spec::JobsetName;
use crate::model::status::BuildStatus;

/// A job of an evaluation, and how far its build has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Job {
    pub(crate) name: String,
    pub(crate) system: String,
    pub(crate) build: BuildId,
    pub(crate) status: BuildStatus,
}

fn read(row: &Row<'_>) -> rusqlite::Result<Job> {
    Ok(Job { name: row.get(0)?, system: row.get(1)?, build: row.get(2)?, status: row.get(3)? })
}

/// In the order of names, then systems, after `after`, the name and system that the list before this one ended with.
pub(crate) fn of_evaluation(
    conn: &Connection,
    evaluation: EvaluationId,
    system: Option<&str>,
    after: Option<(&str, &str)>,
    limit: usize,
) -> Result<Vec<Job>, Error> {
    let (name, last) = after.unwrap_or_default();
    let mut statement = conn.prepare_cached(
        "SELECT j.name, j.system, j.build, b.status
         FROM evaluations e CROSS JOIN jobs j ON j.evaluation = e.id CROSS JOIN builds b ON b.id = j.build
         WHERE e.id = ?1 AND e.jobset <> ?2 AND (j.name, j.system) > (?3, ?4) AND (?5 IS NULL OR j.system = ?5)
         ORDER BY j.name, j.system LIMIT ?6",
    )?;
    let rows = statement.query_map(
        params![evaluation, WITHDRAWN, name, last, system, convert::limit(limit)],
        read,
    )?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Those of an evaluation that have this name, one for each system.
pub(crate) fn named(
    conn: &Connection,
    evaluation: EvaluationId,
    name: &str,
) -> Result<Vec<Job>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT j.name, j.system, j.build, b.status
         FROM evaluations e CROSS JOIN jobs j ON j.evaluation = e.id CROSS JOIN builds b ON b.id = j.build
         WHERE e.id = ?1 AND e.jobset <> ?2 AND j.name = ?3 ORDER BY j.system",
    )?;
    let rows = statement.query_map(params![evaluation, WITHDRAWN, name], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The jobset's latest evaluations that succeeded, newest first.
pub(crate) fn succeeded(
    conn: &Connection,
    jobset: &JobsetName,
    limit: usize,
) -> Result<Vec<EvaluationId>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT id FROM evaluations WHERE jobset = ?1 AND status = 0 ORDER BY id DESC LIMIT ?2",
    )?;
    let rows = statement.query_map(params![jobset, convert::limit(limit)], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::testing::{Books, job};

    #[test]
    fn jobs_are_in_the_order_of_names_and_paged() {
        let mut books = Books::new();
        let name = books.jobset("a");
        let id = books.evaluated(&name, &[job("y", &[]), job("x", &[]), job("z", &[])]);
        let names = |after, limit| -> Vec<String> {
            let found = of_evaluation(&books.conn, id, None, after, limit).unwrap();
            found.into_iter().map(|job| job.name).collect()
        };
        assert_eq!(names(None, 10), ["x", "y", "z"]);
        assert_eq!(names(None, 1), ["x"]);
        assert_eq!(names(Some(("x", "x86_64-linux")), 10), ["y", "z"]);
        let other = of_evaluation(&books.conn, id, Some("other"), None, 10).unwrap();
        assert!(other.is_empty());
        assert_eq!(named(&books.conn, id, "x").unwrap().len(), 1);
        assert_eq!(succeeded(&books.conn, &name, 10).unwrap(), [id]);
    }
}
