//! What the ready queue reads.
//!
//! `status < 0` is said in so many words because SQLite uses the partial index for no less.

use rusqlite::{Connection, OptionalExtension};

use super::change::kind_from;
use crate::db::Error;
use crate::db::snapshot::snapshot;
use crate::model::build::{BuildId, Entry, Kind};
use crate::model::time::Time;

/// The queue's entries of those of `ids` that are scheduled.
pub(crate) fn entries(conn: &Connection, ids: &[BuildId]) -> Result<Vec<Entry>, Error> {
    // One snapshot, so that no entry waits for a build that ended between two look-ups.
    let snapshot = snapshot(conn)?;
    let mut builds = conn.prepare_cached(
        "SELECT priority, timestamp, system, kind, retry_at, substr(derivation, 1, 12), attempt > 0
         FROM builds WHERE id = ?1 AND status = -2",
    )?;
    let mut needs = conn.prepare_cached(
        "SELECT t.id FROM dependencies d CROSS JOIN builds t ON t.id = d.target
         WHERE d.source = ?1 AND t.status <> 0",
    )?;
    // A process build that runs again takes away what it left, which these may be reading. Few builds run at once.
    let mut readers = conn.prepare_cached(
        "SELECT b.id FROM builds b CROSS JOIN dependencies d ON d.source = b.id AND d.target = ?1
         WHERE b.status < 0 AND b.status IN (-3, -1)",
    )?;
    let mut entries = Vec::with_capacity(ids.len());
    for &id in ids {
        let found = builds
            .query_row([id], |row| {
                Ok((
                    row.get(0)?,
                    row.get(1)?,
                    row.get(2)?,
                    row.get::<_, i64>(3)?,
                    row.get(4)?,
                    row.get::<_, String>(5)?,
                    row.get(6)?,
                ))
            })
            .optional()?;
        let Some((priority, timestamp, system, kind, retry_at, store, again)) = found else {
            continue;
        };
        // An `error` job is never scheduled.
        let Some(kind) = kind_from(kind, &store)? else { continue };
        let mut waits_for: Vec<BuildId> =
            needs.query_map([id], |row| row.get(0))?.collect::<Result<_, _>>()?;
        if again && kind == Kind::Process {
            for reader in readers.query_map([id], |row| row.get(0))? {
                waits_for.push(reader?);
            }
        }
        entries.push(Entry { id, priority, timestamp, system, kind, waits_for, retry_at });
    }
    drop(snapshot); // It only read.
    Ok(entries)
}

/// Ids of all builds that are scheduled.
pub(crate) fn scheduled(conn: &Connection) -> Result<Vec<BuildId>, Error> {
    let mut statement =
        conn.prepare_cached("SELECT id FROM builds WHERE status < 0 AND status = -2")?;
    let rows = statement.query_map([], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// How many builds there are of each pending status: scheduled, running (started or submitted).
pub(crate) fn pending_counts(conn: &Connection) -> Result<(i64, i64), Error> {
    let count = |sql| -> Result<i64, Error> {
        Ok(conn.prepare_cached(sql)?.query_row([], |row| row.get(0))?)
    };
    Ok((
        count("SELECT count(*) FROM builds WHERE status < 0 AND status = -2")?,
        count("SELECT count(*) FROM builds WHERE status < 0 AND status IN (-3, -1)")?,
    ))
}

/// Those among these builds that are started or submitted, with attempt numbers: hundreds may run on remote workers while
/// one of them ends.
pub(crate) fn running_among(
    conn: &Connection,
    ids: &[BuildId],
) -> Result<Vec<(BuildId, i64)>, Error> {
    let sql = "SELECT attempt FROM builds WHERE id = ?1 AND status IN (-3, -1)";
    let mut statement = conn.prepare_cached(sql)?;
    let mut running = Vec::new();
    for &id in ids {
        let attempt: Option<i64> = statement.query_row([id], |row| row.get(0)).optional()?;
        running.extend(attempt.map(|attempt| (id, attempt)));
    }
    Ok(running)
}

/// The builds that are started or submitted, with attempt number and time of the last start: what a sweep
/// compares.
pub(crate) fn running(conn: &Connection) -> Result<Vec<(BuildId, i64, Option<Time>)>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT id, attempt, starttime FROM builds WHERE status < 0 AND status IN (-3, -1) ORDER BY id",
    )?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}
