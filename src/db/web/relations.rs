//! Which builds need which, and where what went wrong began.

use rusqlite::{Connection, OptionalExtension, params};

use crate::db::{Error, convert};
use crate::model::build::{Build, BuildId};

/// Builds that this one needs, after one of them, in the order of their numbers.
pub(crate) fn dependencies(
    conn: &Connection,
    id: BuildId,
    after: BuildId,
    limit: usize,
) -> Result<Vec<BuildId>, Error> {
    let sql = "SELECT target FROM dependencies WHERE source = ?1 AND target > ?2 ORDER BY target LIMIT ?3";
    related(conn, sql, id, after, limit)
}

/// Builds that need this one.
pub(crate) fn dependents(
    conn: &Connection,
    id: BuildId,
    after: BuildId,
    limit: usize,
) -> Result<Vec<BuildId>, Error> {
    let sql = "SELECT source FROM dependencies WHERE target = ?1 AND source > ?2 ORDER BY source LIMIT ?3";
    related(conn, sql, id, after, limit)
}

fn related(
    conn: &Connection,
    sql: &str,
    id: BuildId,
    after: BuildId,
    limit: usize,
) -> Result<Vec<BuildId>, Error> {
    let mut statement = conn.prepare_cached(sql)?;
    let rows = statement.query_map(params![id, after, convert::limit(limit)], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The builds for whose sake this one could not be built: what of its dependencies ended badly by itself. The search
/// follows 500 rows at most: a failed dependency is some steps away, not thousands.
pub(crate) fn causes(conn: &Connection, id: BuildId, limit: usize) -> Result<Vec<BuildId>, Error> {
    Ok(conn
        .prepare_cached(
            "WITH RECURSIVE hit (id, status) AS (
                 SELECT b.id, b.status FROM dependencies d CROSS JOIN builds b ON b.id = d.target
                 WHERE d.source = ?1 AND b.status > 0
                 UNION
                 SELECT b.id, b.status
                 FROM hit CROSS JOIN dependencies d ON d.source = hit.id CROSS JOIN builds b ON b.id = d.target
                 WHERE hit.status = 2 AND b.status > 0 LIMIT 500)
             SELECT id FROM hit WHERE status <> 2 ORDER BY id LIMIT ?2",
        )?
        .query_map(params![id, convert::limit(limit)], |row| row.get(0))?
        .collect::<Result<_, _>>()?)
}

/// The build that the job has failed since: the first that ended badly after its last success before this build.
pub(crate) fn failing_since(conn: &Connection, build: &Build) -> Result<Option<BuildId>, Error> {
    Ok(conn
        .prepare_cached(
            "SELECT b.id FROM jobs j INDEXED BY jobs_by_name CROSS JOIN builds b ON b.id = j.build
             WHERE j.jobset = (SELECT id FROM jobsets WHERE name = ?1) AND j.name = ?2 AND j.system = ?3
               AND j.evaluation <= ?4 AND b.status > 0 AND b.status <> 4 AND j.evaluation > coalesce((
                   SELECT g.evaluation FROM jobs g INDEXED BY jobs_by_name CROSS JOIN builds s ON s.id = g.build
                   WHERE g.jobset = j.jobset AND g.name = ?2 AND g.system = ?3 AND g.evaluation < ?4
                     AND s.status = 0 ORDER BY g.evaluation DESC LIMIT 1), 0)
             ORDER BY j.evaluation LIMIT 1",
        )?
        .query_row(
            params![build.jobset, build.job, build.system, build.evaluation],
            |row| row.get(0),
        )
        .optional()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::testing::{Books, failure, job, success, version};

    #[test]
    fn causes_are_what_failed_by_itself() {
        let mut books = Books::new();
        let name = books.jobset("a");
        books.evaluated(&name, &[job("x", &[]), job("y", &["x"]), job("z", &["y"])]);
        books.run("x", &failure());
        let (x, y, z) = (books.id("x"), books.id("y"), books.id("z"));
        let none = BuildId(0);
        assert_eq!(dependencies(&books.conn, z, none, 9).unwrap(), [y]);
        assert_eq!(dependents(&books.conn, x, none, 9).unwrap(), [y]);
        assert!(dependents(&books.conn, x, y, 9).unwrap().is_empty());
        assert_eq!(causes(&books.conn, z, 9).unwrap(), [x]);
        assert!(causes(&books.conn, x, 9).unwrap().is_empty());
    }

    #[test]
    fn a_job_fails_since_its_last_success() {
        let mut books = Books::new();
        let name = books.jobset("a");
        for (derivation, outcome) in
            [("x0", failure()), ("x1", success()), ("x2", failure()), ("x3", failure())]
        {
            books.evaluated(&name, &[version("x", derivation)]);
            books.run(derivation, &outcome);
        }
        let since = |name: &str| failing_since(&books.conn, &books.build(name)).unwrap();
        assert_eq!(since("x3"), Some(books.id("x2")));
        assert_eq!(since("x2"), Some(books.id("x2")));
        assert_eq!(since("x0"), Some(books.id("x0")));
    }
}
