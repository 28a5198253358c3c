//! The last events, for subscribers that come back.
//!
//! Invariant: ids only grow, and at least the last [`REPLAYED`] events are kept.

use rusqlite::{Connection, Row, params};

use super::{Error, convert};
use crate::model::event::Event;
use crate::model::spec::JobsetName;

/// How many events can be replayed.
pub(crate) const REPLAYED: i64 = 10_000;

/// Old events are removed once in so many: often enough to stay small, seldom enough to cost nothing.
const PRUNE_EVERY: i64 = 1_000;

/// Writes an event (its `id` is ignored) and returns its id.
pub(super) fn insert(conn: &Connection, event: &Event) -> Result<i64, Error> {
    conn.prepare_cached(
        "INSERT INTO events (time, event, jobset, evaluation, build, status) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![
        event.time,
        event.what,
        event.jobset,
        event.evaluation,
        event.build,
        event.status,
    ])?;
    let id = conn.last_insert_rowid();
    if id % PRUNE_EVERY == 0 {
        conn.prepare_cached("DELETE FROM events WHERE id <= ?1")?.execute([id - REPLAYED])?;
    }
    Ok(id)
}

/// Events after id `after`, oldest first, at most `limit`; `None` if some of them are no longer kept.
pub(crate) fn after(
    conn: &Connection,
    after: i64,
    jobset: Option<&JobsetName>,
    limit: usize,
) -> Result<Option<Vec<Event>>, Error> {
    // Both queries must see the same state, or a removal between them would look like no loss.
    let snapshot = conn.unchecked_transaction()?;
    let oldest: Option<i64> = snapshot.query_row("SELECT min(id) FROM events", [], |r| r.get(0))?;
    if oldest.is_some_and(|oldest| after < oldest - 1) {
        return Ok(None);
    }
    let mut statement = snapshot.prepare_cached(
        "SELECT id, time, event, jobset, evaluation, build, status FROM events
         WHERE id > ?1 AND (?2 IS NULL OR jobset = ?2) ORDER BY id LIMIT ?3",
    )?;
    let rows = statement.query_map(params![after, jobset, convert::limit(limit)], read)?;
    Ok(Some(rows.collect::<Result<_, _>>()?))
}

/// The id of the newest event; 0 if there is none.
pub(crate) fn last(conn: &Connection) -> Result<i64, Error> {
    Ok(conn
        .prepare_cached("SELECT coalesce(max(id), 0) FROM events")?
        .query_row([], |row| row.get(0))?)
}

fn read(row: &Row<'_>) -> rusqlite::Result<Event> {
    Ok(Event {
        id: row.get(0)?,
        time: row.get(1)?,
        what: row.get(2)?,
        jobset: row.get(3)?,
        evaluation: row.get(4)?,
        build: row.get(5)?,
        status: row.get(6)?,
    })
}
