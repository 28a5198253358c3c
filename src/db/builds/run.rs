//! The life of a try: begun, ended, or found interrupted at start-up.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, params};

use super::change::{Known, Work};
use super::register::StoredWork;
use super::{Changes, list, missing, weather};
use crate::db::{Error, Tx, evaluations};
use crate::model::build::{BuildId, Kind, Need, Order, Outcome};
use crate::model::event::What;
use crate::model::job::ProcessWork;
use crate::model::status::BuildStatus;
use crate::model::time::Time;

/// How often a build is tried whose tries are aborted: with the waits between them, for about 40 minutes.
const TRIES: i64 = 5;

/// The wait after the first aborted try; it triples with each.
const BACKOFF: Duration = Duration::from_secs(60);

/// The wait of a build that has to let something else come first: the first backoff.
const POSTPONED: Duration = BACKOFF;

/// A build that was running when the daemon died so often in a row is held to be the cause.
const DEATHS: i64 = 3;

/// Marks a scheduled build as started, counts the try and returns what the backend needs; `log_directory`
/// is where its log goes (`ID.gz`). `Conflict` if it is not scheduled.
pub(crate) fn start(
    tx: &mut Tx<'_>,
    id: BuildId,
    log_directory: &Path,
    worker: Option<&str>,
) -> Result<Order, Error> {
    let log = log_directory.join(format!("{id}.gz"));
    let work = Work::new(tx);
    let known = work.known(id)?;
    if known.status != BuildStatus::Scheduled {
        return Err(Error::Conflict(format!("build {id} is {}", known.status.word())));
    }
    tx.conn
        .prepare_cached(
            "UPDATE builds SET status = -1, attempts = attempts + 1, attempt = attempt + 1, worker = ?2,
                 machine = (SELECT machine FROM workers WHERE name = ?2), log = ?3, starttime = ?4,
                 stoptime = NULL, error = NULL, retry_at = NULL WHERE id = ?1",
        )?
        .execute(params![id, worker, log.to_string_lossy(), tx.now])?;
    if known.kind == Some(Kind::Process) {
        // What an earlier try left is removed from disk before this one begins.
        tx.conn.prepare_cached("DELETE FROM outputs WHERE build = ?1")?.execute([id])?;
        tx.conn.prepare_cached("DELETE FROM products WHERE build = ?1")?.execute([id])?;
    }
    tx.emit(
        What::BuildStarted,
        Some(&known.jobset),
        Some(known.evaluation),
        Some(id),
        Some(BuildStatus::Started.word()),
    )?;
    let attempt = known.attempt + 1;
    order(tx, known, attempt, log)
}

fn order(tx: &Tx<'_>, known: Known, attempt: i64, log: PathBuf) -> Result<Order, Error> {
    let id = known.id;
    let (derivation, priority, timeout, max_silent_time, worker) = tx
        .conn
        .prepare_cached(
            "SELECT derivation, priority, timeout, max_silent, worker FROM builds WHERE id = ?1",
        )?
        .query_row([id], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
        })?;
    let (process, needs) = match known.kind {
        Some(Kind::Process) => {
            let (work, needs) = process_work(tx, id)?;
            (Some(work), needs)
        }
        Some(Kind::Derivation(_)) | None => (None, Vec::new()),
    };
    Ok(Order {
        id,
        attempt,
        checkouts: evaluations::checkouts(tx.conn, known.evaluation)?,
        jobset: known.jobset,
        evaluation: known.evaluation,
        job: known.job,
        system: known.system,
        derivation,
        priority,
        timeout,
        max_silent_time,
        process,
        needs,
        log,
        worker,
    })
}

fn process_work(tx: &Tx<'_>, id: BuildId) -> Result<(ProcessWork, Vec<Need>), Error> {
    let text: String = tx
        .conn
        .prepare_cached("SELECT work FROM process_builds WHERE build = ?1")?
        .query_row([id], |row| row.get(0))?;
    let stored: StoredWork<'_> = serde_json::from_str(&text)
        .map_err(|_| Error::Corrupt("what a process build runs is no such JSON"))?;
    let mut needs = Vec::with_capacity(stored.needs.len());
    for (name, identity) in stored.needs.iter().zip(stored.identities.iter()) {
        let (need, expired): (BuildId, bool) = tx
            .conn
            .prepare_cached("SELECT id, expired FROM builds WHERE derivation = ?1")?
            .query_row([identity], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let outputs = list::outputs(tx.conn, need)?;
        needs.push(Need { job: name.clone(), outputs, expired });
    }
    Ok((stored.into_work(), needs))
}

/// Records how try `attempt` of a build ended; a late report (another attempt, or not running) changes
/// nothing. Aborted tries are scheduled again with backoff until five are spent.
pub(crate) fn end(
    tx: &mut Tx<'_>,
    id: BuildId,
    attempt: i64,
    outcome: &Outcome,
) -> Result<Changes, Error> {
    let mut work = Work::new(tx);
    let known = work.known(id)?;
    let running = matches!(known.status, BuildStatus::Started | BuildStatus::Submitted);
    if !running || known.attempt != attempt {
        return Ok(Changes::default());
    }
    if known.deaths > 0 {
        work.conn().prepare_cached("UPDATE builds SET deaths = 0 WHERE id = ?1")?.execute([id])?;
    }
    match outcome {
        Outcome::Succeeded { outputs, products } => {
            keep(&work, id, outputs, products)?;
            work.finish(&known, BuildStatus::Succeeded, None)?;
            weather::judge(work.tx, &known, BuildStatus::Succeeded)?;
            work.revive_dependents(vec![id])?;
        }
        Outcome::Failed(why) => {
            fail(&mut work, &known, BuildStatus::Failed, why)?;
        }
        Outcome::DependencyFailed(why) => {
            fail(&mut work, &known, BuildStatus::FailedDependency, why)?;
        }
        Outcome::Aborted(why) if known.attempts >= TRIES => {
            fail(&mut work, &known, BuildStatus::Aborted, why)?;
        }
        Outcome::Lost(why) if known.attempts >= TRIES => {
            fail(&mut work, &known, BuildStatus::Aborted, why)?;
        }
        Outcome::Aborted(why) => back_off(&mut work, &known, why)?,
        Outcome::Lost(why) => {
            put_back(&mut work, &known)?;
            note_wait(&work, id, None, why)?;
            work.settle(id)?;
        }
        Outcome::Missing(why) => {
            let repeat = missing::repeat(&mut work, id)?;
            if known.attempts < TRIES && (repeat.is_some() || missing::is_expected(&work, id)?) {
                back_off(&mut work, &known, why)?;
            } else {
                fail(&mut work, &known, BuildStatus::Aborted, why)?;
            }
            let mut changes = work.done()?;
            changes.repeats.extend(repeat);
            return Ok(changes);
        }
        Outcome::NoSpace(why) => {
            put_back(&mut work, &known)?;
            take_back_try(&work, id)?;
            note_wait(&work, id, None, why)?;
            work.settle(id)?;
        }
        Outcome::Postponed(why) => {
            let retry_at = work.tx.now.after(POSTPONED);
            put_back(&mut work, &known)?;
            take_back_try(&work, id)?;
            note_wait(&work, id, Some(retry_at), why)?;
            work.settle(id)?;
        }
        Outcome::Interrupted => {
            put_back(&mut work, &known)?;
            take_back_try(&work, id)?;
            work.settle(id)?;
        }
    }
    work.done()
}

/// Ends a build badly, with all that follows from it.
fn fail(
    work: &mut Work<'_, '_>,
    known: &Known,
    status: BuildStatus,
    why: &str,
) -> Result<(), Error> {
    work.finish(known, status, Some(why))?;
    weather::judge(work.tx, known, status)?;
    work.fail_dependents(known.id)
}

/// Schedules a build whose try was aborted: for later and later.
fn back_off(work: &mut Work<'_, '_>, known: &Known, why: &str) -> Result<(), Error> {
    let power = u32::try_from(known.attempts - 1).unwrap_or(0);
    let retry_at = work.tx.now.after(BACKOFF * 3_u32.saturating_pow(power));
    put_back(work, known)?;
    note_wait(work, known.id, Some(retry_at), why)?;
    work.settle(known.id)
}

/// Schedules a build that was running. What it needs may have been restarted meanwhile and have failed: settle it
/// afterwards.
fn put_back(work: &mut Work<'_, '_>, known: &Known) -> Result<(), Error> {
    work.conn()
        .prepare_cached(
            "UPDATE builds SET status = -2, worker = NULL, machine = NULL, starttime = NULL WHERE id = ?1",
        )?
        .execute([known.id])?;
    work.moved(known, BuildStatus::Scheduled)
}

/// Why a build that was put back waits, and until when.
fn note_wait(
    work: &Work<'_, '_>,
    id: BuildId,
    retry_at: Option<Time>,
    why: &str,
) -> Result<(), Error> {
    work.conn()
        .prepare_cached("UPDATE builds SET retry_at = ?2, error = ?3 WHERE id = ?1")?
        .execute(params![id, retry_at, why])?;
    Ok(())
}

fn take_back_try(work: &Work<'_, '_>, id: BuildId) -> Result<(), Error> {
    work.conn()
        .prepare_cached("UPDATE builds SET attempts = max(0, attempts - 1) WHERE id = ?1")?
        .execute([id])?;
    Ok(())
}

/// Records what a build that succeeded left.
fn keep(
    work: &Work<'_, '_>,
    id: BuildId,
    outputs: &BTreeMap<String, String>,
    products: &[crate::model::build::Product],
) -> Result<(), Error> {
    let conn = work.conn();
    for (name, path) in outputs {
        conn.prepare_cached(
            "INSERT OR REPLACE INTO outputs (build, name, path) VALUES (?1, ?2, ?3)",
        )?
        .execute(params![id, name, path])?;
    }
    conn.prepare_cached("DELETE FROM products WHERE build = ?1")?.execute([id])?;
    insert_products(conn, id, products)
}

/// Adds products, each path once.
pub(in crate::db) fn insert_products(
    conn: &Connection,
    id: BuildId,
    products: &[crate::model::build::Product],
) -> Result<(), Error> {
    for product in products {
        conn.prepare_cached(
            "INSERT OR REPLACE INTO products (build, type, path, size, sha256) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![
            id,
            product.kind,
            product.path.to_string_lossy(),
            i64::try_from(product.size).unwrap_or(i64::MAX),
            product.sha256
        ])?;
    }
    Ok(())
}

/// At start-up: the builds that remote workers were building, which they may still be.
pub(crate) fn abroad(tx: &mut Tx<'_>) -> Result<Vec<Order>, Error> {
    let running: Vec<(BuildId, Option<String>)> = tx
        .conn
        .prepare_cached(
            "SELECT id, log FROM builds WHERE status < 0 AND status = -1 AND kind <> 0 AND worker IS NOT NULL ORDER BY id",
        )?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;
    let mut orders = Vec::with_capacity(running.len());
    for (id, log) in running {
        let known = Work::new(tx).known(id)?;
        let attempt = known.attempt;
        orders.push(order(tx, known, attempt, log.unwrap_or_default().into())?);
    }
    Ok(orders)
}

/// At start-up of a daemon that has no remote workers: what they were building is scheduled again with the rest.
pub(crate) fn call_home(tx: &mut Tx<'_>) -> Result<(), Error> {
    tx.conn
        .prepare_cached(
            "UPDATE builds SET worker = NULL, machine = NULL
             WHERE status < 0 AND status IN (-3, -1) AND kind <> 0 AND worker IS NOT NULL",
        )?
        .execute([])?;
    Ok(())
}

/// At start-up: builds of process and store backends left submitted or started are scheduled again; one
/// that was running at three deaths in a row is aborted. Returns how many were recovered.
pub(crate) fn recover(tx: &mut Tx<'_>) -> Result<usize, Error> {
    // A derivation build with a worker runs elsewhere, and may still be running.
    let ids: Vec<BuildId> = tx
        .conn
        .prepare_cached(
            "SELECT id FROM builds WHERE status < 0 AND status IN (-3, -1) AND (kind = 0 OR worker IS NULL) ORDER BY id",
        )?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let mut work = Work::new(tx);
    for &id in &ids {
        let known = work.known(id)?;
        let deaths = known.deaths + 1;
        if deaths >= DEATHS {
            let why = format!("the daemon died {deaths} times in a row while it was running");
            fail(&mut work, &known, BuildStatus::Aborted, &why)?;
        } else {
            put_back(&mut work, &known)?;
            take_back_try(&work, id)?;
        }
        work.conn()
            .prepare_cached("UPDATE builds SET deaths = ?2 WHERE id = ?1")?
            .execute(params![id, deaths])?;
    }
    for &id in &ids {
        work.settle(id)?;
    }
    work.done()?;
    Ok(ids.len())
}
