//! The queue of messages to people: written with the build's end, removed when sent.

use rusqlite::{Connection, params};

use super::{Error, Tx, builds, convert};
use crate::model::build::{Build, BuildId};
use crate::model::time::Time;

pub(crate) struct Pending {
    pub(crate) id: i64,
    pub(crate) build: Build,
    /// The notification's JSON in the specification.
    pub(crate) notification: String,
    /// `broken` or `fixed`.
    pub(crate) word: String,
    pub(crate) attempts: i64,
}

/// The oldest due at `now`, at most `limit`.
pub(crate) fn due(conn: &Connection, now: Time, limit: usize) -> Result<Vec<Pending>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT id, build, notification, word, attempts FROM notifications
         WHERE retry_at <= ?1 ORDER BY retry_at, id LIMIT ?2",
    )?;
    let mut rows = statement.query(params![now, convert::limit(limit)])?;
    let mut due = Vec::new();
    while let Some(row) = rows.next()? {
        let build: BuildId = row.get(1)?;
        // Gone since the query began, and the row with it.
        let Some(build) = builds::get(conn, build)? else { continue };
        due.push(Pending {
            id: row.get(0)?,
            build,
            notification: row.get(2)?,
            word: row.get(3)?,
            attempts: row.get(4)?,
        });
    }
    Ok(due)
}

/// When the next one is due.
pub(crate) fn next_due(conn: &Connection) -> Result<Option<Time>, Error> {
    Ok(conn
        .prepare_cached("SELECT min(retry_at) FROM notifications")?
        .query_row([], |row| row.get(0))?)
}

/// Sent, or given up.
pub(crate) fn remove(tx: &mut Tx<'_>, id: i64) -> Result<(), Error> {
    tx.conn.prepare_cached("DELETE FROM notifications WHERE id = ?1")?.execute([id])?;
    Ok(())
}

/// Did not go out: try again at `retry_at`.
pub(crate) fn postpone(tx: &mut Tx<'_>, id: i64, retry_at: Time, error: &str) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "UPDATE notifications SET attempts = attempts + 1, retry_at = ?2, error = ?3 WHERE id = ?1",
        )?
        .execute(params![id, retry_at, error])?;
    Ok(())
}
