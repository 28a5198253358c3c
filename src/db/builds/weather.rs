//! Weather: a build's ending compared with the one before it of the same job, and the messages it gives rise to.
//!
//! Canceled builds are passed over: they say nothing about the job. Neither cancelling nor a failed dependency
//! computes weather; a build's own success, failure or last abort does.

use rusqlite::{Connection, OptionalExtension, params};
use serde_json::Value;

use super::change::Known;
use crate::db::{Error, Tx};
use crate::model::status::{BuildStatus, Weather};

/// Computes and records the weather of a build that ends with `status` now, and queues its notifications.
pub(super) fn judge(tx: &Tx<'_>, known: &Known, status: BuildStatus) -> Result<(), Error> {
    let last = last_status(tx.conn, known)?;
    let weather = match (status == BuildStatus::Succeeded, last) {
        (_, None) => Weather::Unknown,
        (true, Some(BuildStatus::Succeeded)) => Weather::StillSucceeding,
        (true, Some(_)) => Weather::NewSuccess,
        (false, Some(BuildStatus::Succeeded)) => Weather::NewFailure,
        (false, Some(_)) => Weather::StillFailing,
    };
    tx.conn
        .prepare_cached("UPDATE builds SET weather = ?2, last_status = ?3 WHERE id = ?1")?
        .execute(params![known.id, weather, last])?;
    match weather {
        Weather::NewFailure => notify(tx, known, "broken"),
        Weather::NewSuccess => notify(tx, known, "fixed"),
        Weather::Unknown | Weather::StillSucceeding | Weather::StillFailing => Ok(()),
    }
}

/// The status of the build that the same job pointed to in the newest older evaluation of the jobset where it
/// had ended.
fn last_status(conn: &Connection, known: &Known) -> Result<Option<BuildStatus>, Error> {
    Ok(conn
        .prepare_cached(
            "SELECT b.status FROM jobs j CROSS JOIN builds b ON b.id = j.build
             WHERE j.jobset = (SELECT id FROM jobsets WHERE name = ?1) AND j.name = ?2 AND j.system = ?3
               AND j.evaluation < ?4 AND b.id <> ?5 AND b.status >= 0 AND b.status <> 4
             ORDER BY j.evaluation DESC LIMIT 1",
        )?
        .query_row(
            params![known.jobset, known.job, known.system, known.evaluation, known.id],
            |row| row.get(0),
        )
        .optional()?)
}

/// Queues one message for each notification in the jobset's specification.
fn notify(tx: &Tx<'_>, known: &Known, word: &str) -> Result<(), Error> {
    let specification: Option<String> = tx
        .conn
        .prepare_cached("SELECT specification FROM jobsets WHERE name = ?1")?
        .query_row([&known.jobset], |row| row.get(0))
        .optional()?;
    let Some(specification) = specification else { return Ok(()) };
    let specification: Value = serde_json::from_str(&specification)
        .map_err(|_| Error::Corrupt("a specification that is not JSON"))?;
    let notifications = specification.get("notifications").and_then(Value::as_array);
    for notification in notifications.into_iter().flatten() {
        tx.conn
            .prepare_cached(
                "INSERT INTO notifications (build, notification, word, created, retry_at)
                 VALUES (?1, ?2, ?3, ?4, ?4)",
            )?
            .execute(params![known.id, notification.to_string(), word, tx.now])?;
    }
    Ok(())
}
