//! Jobsets: specifications and what was last seen of their channels.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::builds::{self, Changes};
use super::{Error, Tx, evaluations};
use crate::model::evaluation::EvaluationId;
use crate::model::event::What;
use crate::model::jobset::Jobset;
use crate::model::spec::JobsetName;

/// Registers or replaces a specification (its JSON text). `active` counts only at the first registration.
/// Returns whether it was new.
pub(crate) fn put(
    tx: &mut Tx<'_>,
    name: &JobsetName,
    specification: &str,
    active: bool,
) -> Result<bool, Error> {
    let kept: Option<String> = tx
        .conn
        .prepare_cached("SELECT specification FROM jobsets WHERE name = ?1")?
        .query_row([name], |row| row.get(0))
        .optional()?;
    match &kept {
        Some(kept) if kept == specification => return Ok(false),
        Some(_) => {
            tx.conn
                .prepare_cached("UPDATE jobsets SET specification = ?2 WHERE name = ?1")?
                .execute(params![name, specification])?;
        }
        None => {
            tx.conn
                .prepare_cached(
                    "INSERT INTO jobsets (name, specification, active, created) VALUES (?1, ?2, ?3, ?4)",
                )?
                .execute(params![name, specification, active, tx.now])?;
        }
    }
    tx.emit(What::JobsetChanged, Some(name), None, None, None)?;
    Ok(kept.is_none())
}

/// `NotFound` if there is none of that name.
pub(crate) fn set_active(tx: &mut Tx<'_>, name: &JobsetName, active: bool) -> Result<(), Error> {
    let was: bool = tx
        .conn
        .prepare_cached("SELECT active FROM jobsets WHERE name = ?1")?
        .query_row([name], |row| row.get(0))
        .optional()?
        .ok_or_else(|| not_found(name))?;
    if was == active {
        return Ok(());
    }
    tx.conn
        .prepare_cached("UPDATE jobsets SET active = ?2 WHERE name = ?1")?
        .execute(params![name, active])?;
    tx.emit(What::JobsetChanged, Some(name), None, None, None)
}

/// Deletes a jobset with its dashboards and withdraws its evaluations, which the janitor removes. Pending builds that
/// other jobsets' jobs point to are handed to one of those; the others are canceled.
pub(crate) fn delete(tx: &mut Tx<'_>, name: &JobsetName) -> Result<Changes, Error> {
    if get(tx.conn, name)?.is_none() {
        return Err(not_found(name));
    }
    let changes = builds::cancel_jobset(tx, name)?;
    let own: Vec<EvaluationId> = tx
        .conn
        .prepare_cached("SELECT id FROM evaluations WHERE jobset = ?1 ORDER BY id")?
        .query_map([name], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    evaluations::withdraw(tx, &own)?;
    builds::hand_over(tx, name)?;
    tx.conn.prepare_cached("DELETE FROM jobsets WHERE name = ?1")?.execute([name])?;
    tx.emit(What::JobsetChanged, Some(name), None, None, None)?;
    Ok(changes)
}

/// Records a look at the channels: when it worked, `error` is cleared but for what the last evaluation left of it.
pub(crate) fn checked(
    tx: &mut Tx<'_>,
    name: &JobsetName,
    error: Option<&str>,
) -> Result<(), Error> {
    if let Some(error) = error {
        return set_error(tx, name, Some(error));
    }
    tx.conn
        .prepare_cached("UPDATE jobsets SET last_checked = ?2 WHERE name = ?1")?
        .execute(params![name, tx.now])?;
    clear_error(tx, name)
}

/// Clears the error but for what the last evaluation left of it.
pub(crate) fn clear_error(tx: &mut Tx<'_>, name: &JobsetName) -> Result<(), Error> {
    let error = evaluations::trouble(tx.conn, name)?;
    set_error(tx, name, error.as_deref())
}

/// Why the last fetch or evaluation did not work; subscribers hear of a change.
pub(super) fn set_error(
    tx: &mut Tx<'_>,
    name: &JobsetName,
    error: Option<&str>,
) -> Result<(), Error> {
    let before = get(tx.conn, name)?.ok_or_else(|| not_found(name))?.error;
    if before.as_deref() == error {
        return Ok(());
    }
    tx.conn
        .prepare_cached("UPDATE jobsets SET error = ?2 WHERE name = ?1")?
        .execute(params![name, error])?;
    tx.emit(What::JobsetChanged, Some(name), None, None, None)
}

pub(crate) fn get(conn: &Connection, name: &JobsetName) -> Result<Option<Jobset>, Error> {
    Ok(conn
        .prepare_cached(&format!("SELECT {COLUMNS} FROM jobsets j WHERE j.name = ?1"))?
        .query_row([name], read)
        .optional()?)
}

/// In the order of names.
pub(crate) fn list(conn: &Connection) -> Result<Vec<Jobset>, Error> {
    let mut statement = conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM jobsets j WHERE j.name <> ?1 ORDER BY j.name"
    ))?;
    let rows = statement.query_map([evaluations::WITHDRAWN], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The columns that `read` takes, of `jobsets j`.
const COLUMNS: &str = "j.name, j.specification, j.active, \
     (SELECT max(e.id) FROM evaluations e WHERE e.jobset = j.name), j.last_checked, j.error";

fn read(row: &Row<'_>) -> rusqlite::Result<Jobset> {
    Ok(Jobset {
        name: row.get(0)?,
        specification: row.get(1)?,
        active: row.get(2)?,
        last_evaluation: row.get(3)?,
        last_checked: row.get(4)?,
        error: row.get(5)?,
    })
}

fn not_found(name: &JobsetName) -> Error {
    Error::NotFound(format!("jobset {name}"))
}
