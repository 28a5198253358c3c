//! Where what is sent as it is on disk can be found, and what events are about.

use std::path::PathBuf;

use rusqlite::{Connection, OptionalExtension, params};

use crate::db::Error;
use crate::model::build::{BuildId, Product};
use crate::model::evaluation::EvaluationId;
use crate::model::spec::JobsetName;
use crate::model::status::BuildStatus;

/// Where a build's log is, and whether more may come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Log {
    pub(crate) status: BuildStatus,
    /// Tries begun ever: each writes a log anew.
    pub(crate) attempt: i64,
    pub(crate) path: Option<PathBuf>,
}

pub(crate) fn log(conn: &Connection, id: BuildId) -> Result<Option<Log>, Error> {
    Ok(conn
        .prepare_cached("SELECT status, attempt, log FROM builds WHERE id = ?1")?
        .query_row([id], |row| {
            Ok(Log {
                status: row.get(0)?,
                attempt: row.get(1)?,
                path: row.get::<_, Option<String>>(2)?.map(PathBuf::from),
            })
        })
        .optional()?)
}

/// The newest build with this output.
pub(crate) fn build_of_output(conn: &Connection, path: &str) -> Result<Option<BuildId>, Error> {
    Ok(conn
        .prepare_cached("SELECT max(build) FROM outputs WHERE path = ?1")?
        .query_row([path], |row| row.get(0))?)
}

pub(crate) fn product(conn: &Connection, id: i64) -> Result<Option<Product>, Error> {
    Ok(conn
        .prepare_cached("SELECT type, path, size, sha256 FROM products WHERE id = ?1")?
        .query_row([id], |row| {
            Ok(Product {
                kind: row.get(0)?,
                path: PathBuf::from(row.get::<_, String>(1)?),
                size: u64::try_from(row.get::<_, i64>(2)?).unwrap_or(0),
                sha256: row.get(3)?,
            })
        })
        .optional()?)
}

/// Whether a job of the evaluation points at the build, whichever evaluation introduced that.
pub(crate) fn is_of_evaluation(
    conn: &Connection,
    build: BuildId,
    evaluation: EvaluationId,
) -> Result<bool, Error> {
    Ok(conn
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM jobs WHERE build = ?1 AND evaluation = ?2)")?
        .query_row(params![build, evaluation], |row| row.get(0))?)
}

/// Whether a job of the jobset points at the build.
pub(crate) fn is_of_jobset(
    conn: &Connection,
    build: BuildId,
    jobset: &JobsetName,
) -> Result<bool, Error> {
    Ok(conn
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM jobsets s CROSS JOIN jobs j ON j.jobset = s.id
             WHERE s.name = ?2 AND j.build = ?1)",
        )?
        .query_row(params![build, jobset], |row| row.get(0))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::testing::{Books, job};

    #[test]
    fn builds_are_of_all_who_want_them() {
        let mut books = Books::new();
        let (mine, other) = (books.jobset("mine"), books.jobset("other"));
        let first = books.evaluated(&mine, &[job("a", &[])]);
        let second = books.evaluated(&other, &[job("a", &[])]);
        let third = books.evaluated(&other, &[job("b", &[])]);
        let derivation = job("a", &[]).derivation;
        let id = books.id(&derivation);
        let of = |evaluation| is_of_evaluation(&books.conn, id, evaluation).unwrap();
        assert_eq!([first, second, third].map(of), [true, true, false]);
        assert!(is_of_jobset(&books.conn, id, &mine).unwrap());
        assert!(is_of_jobset(&books.conn, id, &other).unwrap());
        assert!(!is_of_jobset(&books.conn, id, &JobsetName::new("none").unwrap()).unwrap());
        let found = log(&books.conn, id).unwrap().unwrap();
        assert_eq!((found.status, found.attempt), (BuildStatus::Scheduled, 0));
        books.start(&derivation);
        let found = log(&books.conn, id).unwrap().unwrap();
        assert_eq!((found.status, found.attempt), (BuildStatus::Started, 1));
        assert_eq!(log(&books.conn, BuildId(99)).unwrap(), None);
        assert_eq!(product(&books.conn, 1).unwrap(), None);
        assert_eq!(build_of_output(&books.conn, "/nix/store/nothing").unwrap(), None);
    }
}
