//! What machines do now, and what was measured.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};

use super::pages::{LISTED, Listed, listed};
use crate::db::{Error, convert};
use crate::model::build::BuildId;
use crate::model::time::Time;

/// A build, and since when it runs.
pub(crate) type Running = (BuildId, Option<Time>);

/// Builds that run, by the worker that runs them.
pub(crate) fn running(
    conn: &Connection,
    limit: usize,
) -> Result<BTreeMap<String, Vec<Running>>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT worker, id, starttime FROM builds INDEXED BY builds_pending
         WHERE status < 0 AND status = -1 AND worker IS NOT NULL ORDER BY id LIMIT ?1",
    )?;
    let mut found: BTreeMap<String, Vec<Running>> = BTreeMap::new();
    let mut rows = statement.query([convert::limit(limit)])?;
    while let Some(row) = rows.next()? {
        found.entry(row.get(0)?).or_default().push((row.get(1)?, row.get(2)?));
    }
    Ok(found)
}

/// Builds that run on a machine.
pub(crate) fn running_on(
    conn: &Connection,
    machine: &str,
    limit: usize,
) -> Result<Vec<BuildId>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT id FROM builds INDEXED BY builds_pending
         WHERE status < 0 AND status = -1 AND machine = ?1 ORDER BY id LIMIT ?2",
    )?;
    let rows = statement.query_map(params![machine, convert::limit(limit)], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// What was built on a machine, the last first.
pub(crate) fn built(conn: &Connection, machine: &str, limit: usize) -> Result<Vec<Listed>, Error> {
    let mut statement = conn.prepare_cached(&format!(
        "SELECT b.job, b.system, {LISTED} FROM builds b INDEXED BY builds_ended_by_machine
         WHERE b.machine = ?1 AND b.machine IS NOT NULL AND b.status >= 0 ORDER BY b.stoptime DESC, b.id DESC LIMIT ?2"
    ))?;
    let rows = statement.query_map(params![machine, convert::limit(limit)], listed)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The values of a metric: of numbers, days and evaluations, the last, in their order; of names, by name.
pub(crate) fn metric(
    conn: &Connection,
    number: i64,
    limit: usize,
) -> Result<Vec<(String, f64)>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT field, value FROM metrics WHERE type = ?1
         ORDER BY CAST(field AS INTEGER) DESC, field DESC LIMIT ?2",
    )?;
    let rows = statement
        .query_map(params![number, convert::limit(limit)], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let mut found: Vec<(String, f64)> = rows.collect::<Result<_, _>>()?;
    found.reverse();
    Ok(found)
}
