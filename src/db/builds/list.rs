//! What people see of builds.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rusqlite::types::ToSql;
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::db::{Error, convert, evaluations};
#[cfg(test)]
use crate::model::build::Product;
use crate::model::build::{Build, BuildId};
use crate::model::evaluation::EvaluationId;
use crate::model::spec::JobsetName;
use crate::model::status::{BuildStatus, EvaluationStatus};

/// The columns that `read` takes, of `builds b`.
pub(in crate::db) const COLUMNS: &str = "b.id, b.jobset, b.evaluation, b.job, b.system, b.derivation, b.nix_name, b.status, b.weather, \
     b.priority, b.worker, b.attempts, b.timestamp, b.starttime, b.stoptime, b.log, b.error";

pub(in crate::db) fn read(row: &Row<'_>) -> rusqlite::Result<Build> {
    Ok(Build {
        id: row.get(0)?,
        jobset: row.get(1)?,
        evaluation: row.get(2)?,
        job: row.get(3)?,
        system: row.get(4)?,
        derivation: row.get(5)?,
        nix_name: row.get(6)?,
        outputs: BTreeMap::new(),
        status: row.get(7)?,
        weather: row.get(8)?,
        priority: row.get(9)?,
        worker: row.get(10)?,
        attempts: row.get(11)?,
        timestamp: row.get(12)?,
        starttime: row.get(13)?,
        stoptime: row.get(14)?,
        log: row.get::<_, Option<String>>(15)?.map(PathBuf::from),
        error: row.get(16)?,
    })
}

pub(crate) fn get(conn: &Connection, id: BuildId) -> Result<Option<Build>, Error> {
    let build = conn
        .prepare_cached(&format!("SELECT {COLUMNS} FROM builds b WHERE b.id = ?1"))?
        .query_row([id], read)
        .optional()?;
    build.map(|build| Ok(Build { outputs: outputs(conn, id)?, ..build })).transpose()
}

/// How far the build of a job has come, and why it ended badly; `None` if there is no such job.
pub(crate) fn of_job(
    conn: &Connection,
    evaluation: EvaluationId,
    job: &str,
    system: &str,
) -> Result<Option<(BuildStatus, Option<String>)>, Error> {
    Ok(conn
        .prepare_cached(
            "SELECT b.status, b.error FROM jobs j JOIN builds b ON b.id = j.build
             WHERE j.evaluation = ?1 AND j.name = ?2 AND j.system = ?3",
        )?
        .query_row((evaluation, job, system), |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?)
}

/// Whether a job of this jobset points to the build, and none of another jobset that there still is.
pub(crate) fn is_only_of(
    conn: &Connection,
    id: BuildId,
    jobset: &JobsetName,
) -> Result<bool, Error> {
    Ok(conn
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM jobs
                            WHERE jobset = (SELECT id FROM jobsets WHERE name = ?2) AND build = ?1)
                AND NOT EXISTS (SELECT 1 FROM jobs j JOIN jobsets s ON s.id = j.jobset
                                WHERE j.build = ?1 AND s.name <> ?2)",
        )?
        .query_row(params![id, jobset], |row| row.get(0))?)
}

/// What `list` selects by. `jobset` and `evaluation` select by jobs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    pub(crate) jobset: Option<JobsetName>,
    pub(crate) evaluation: Option<EvaluationId>,
    pub(crate) status: Option<BuildStatus>,
}

/// Newest id first.
pub(crate) fn list(conn: &Connection, filter: &Filter, limit: usize) -> Result<Vec<Build>, Error> {
    let limit = convert::limit(limit);
    let mut values: Vec<&dyn ToSql> = vec![&limit];
    if let Some(evaluation) = &filter.evaluation {
        values.push(evaluation);
    }
    if let Some(jobset) = &filter.jobset {
        values.push(jobset);
    }
    let sql = query(filter);
    let mut statement = conn.prepare_cached(&sql)?;
    let builds: Vec<Build> =
        statement.query_map(values.as_slice(), read)?.collect::<Result<_, _>>()?;
    builds
        .into_iter()
        .map(|build| Ok(Build { outputs: outputs(conn, build.id)?, ..build }))
        .collect()
}

/// The query of `list`: ?1 is the limit, then evaluation and jobset, if they are there. Each form reads from
/// an index in the order of ids, or from one that few rows match.
pub(in crate::db) fn query(filter: &Filter) -> String {
    // Constants, and the condition of the partial indexes on status, so that those are used.
    let status = filter.status.map(BuildStatus::number);
    let same_status = |column| {
        status.map(|s| match s {
            ..0 => format!("{column} < 0 AND {column} = {s}"),
            0 => format!("{column} = 0"),
            1.. => format!("{column} > 0 AND {column} = {s}"),
        })
    };
    let in_jobset = |n| {
        format!(
            "EXISTS (SELECT 1 FROM jobs
                     WHERE jobset = (SELECT id FROM jobsets WHERE name = ?{n}) AND build = b.id)"
        )
    };
    let tail = "ORDER BY b.id DESC LIMIT ?1";
    let all = |conditions: Vec<Option<String>>| {
        let conditions: Vec<String> = conditions.into_iter().flatten().collect();
        if conditions.is_empty() { "TRUE".to_owned() } else { conditions.join(" AND ") }
    };
    if filter.evaluation.is_some() {
        let conditions = all(vec![
            Some("b.id IN (SELECT build FROM jobs WHERE evaluation = ?2)".to_owned()),
            same_status("+b.status"),
            filter.jobset.as_ref().map(|_| in_jobset(3)),
        ]);
        return format!("SELECT {COLUMNS} FROM builds b WHERE {conditions} {tail}");
    }
    let common = matches!(filter.status, None | Some(BuildStatus::Succeeded));
    if filter.jobset.is_some() && common {
        let conditions = all(vec![same_status("b.status")]);
        return format!(
            "SELECT {COLUMNS} FROM jobs j INDEXED BY jobs_by_jobset CROSS JOIN builds b ON b.id = j.build
             WHERE j.jobset = (SELECT id FROM jobsets WHERE name = ?2) AND {conditions}
             GROUP BY j.build ORDER BY j.build DESC LIMIT ?1"
        );
    }
    let conditions =
        all(vec![same_status("b.status"), filter.jobset.as_ref().map(|_| in_jobset(2))]);
    format!("SELECT {COLUMNS} FROM builds b WHERE {conditions} {tail}")
}

/// Output name to path.
pub(crate) fn outputs(conn: &Connection, id: BuildId) -> Result<BTreeMap<String, String>, Error> {
    let mut statement = conn.prepare_cached("SELECT name, path FROM outputs WHERE build = ?1")?;
    let rows = statement.query_map([id], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

#[cfg(test)]
pub(crate) fn products(conn: &Connection, id: BuildId) -> Result<Vec<Product>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT type, path, size, sha256 FROM products WHERE build = ?1 ORDER BY id",
    )?;
    let rows = statement.query_map([id], |row| {
        Ok(Product {
            kind: row.get(0)?,
            path: PathBuf::from(row.get::<_, String>(1)?),
            size: u64::try_from(row.get::<_, i64>(2)?).unwrap_or(0),
            sha256: row.get(3)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Whether a pending evaluation or build keeps `evaluation` from being over: (all ended, all succeeded).
pub(crate) fn settled(
    conn: &Connection,
    evaluation: EvaluationId,
) -> Result<Option<(bool, bool)>, Error> {
    Ok(conn
        .prepare_cached(
            "SELECT status, pending, total, succeeded FROM evaluations WHERE id = ?1 AND jobset <> ?2",
        )?
        .query_row(params![evaluation, evaluations::WITHDRAWN], |row| {
            let status: EvaluationStatus = row.get(0)?;
            let (pending, total, succeeded): (i64, i64, i64) =
                (row.get(1)?, row.get(2)?, row.get(3)?);
            let ended = status != EvaluationStatus::Started && pending == 0;
            let good = status == EvaluationStatus::Succeeded && succeeded == total;
            Ok((ended, ended && good))
        })
        .optional()?)
}
