//! What the janitor and `backup`, `check-database` do.

use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, params};

use super::snapshot::snapshot;
use super::{Error, Tx, builds, convert, evaluations, metrics};
use crate::model::build::BuildId;
use crate::model::evaluation::{Counts, EvaluationId};
use crate::model::status::BuildStatus;

/// Complaints that `check` collects at most: one is enough to act upon.
const COMPLAINTS: usize = 100;

/// `PRAGMA integrity_check` and `foreign_key_check`: what is wrong, nothing if sound.
pub(crate) fn check(conn: &Connection) -> Result<Vec<String>, Error> {
    let mut wrong: Vec<String> = conn
        .prepare(&format!("PRAGMA integrity_check({COMPLAINTS})"))?
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    wrong.retain(|line| line != "ok");
    let mut statement = conn.prepare("PRAGMA foreign_key_check")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        if wrong.len() >= COMPLAINTS {
            break;
        }
        let (table, parent): (String, String) = (row.get(0)?, row.get(2)?);
        wrong.push(format!("a row of {table} refers to one of {parent} that is not there"));
    }
    Ok(wrong)
}

/// An online backup into a new file `target`, which must not exist; written aside and renamed when whole.
pub(crate) fn backup(conn: &Connection, target: &Path) -> Result<(), Error> {
    if fs::symlink_metadata(target).is_ok() {
        return Err(taken(target));
    }
    // A name of its own, so that others write theirs beside it.
    let mut aside = target.as_os_str().to_owned();
    aside.push(format!(".{:016x}.part", RandomState::new().hash_one(0)));
    let aside = PathBuf::from(aside);
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o640)
        .open(&aside)
        .map_err(|error| Error::Io(aside.clone(), error))?;
    let done = copy(conn, &aside, &file).and_then(|()| publish(&aside, target));
    // Not there any more if all went well.
    drop(fs::remove_file(&aside));
    done
}

/// Copies the whole database as it is now into the empty `file`, whose name is `aside`: one step, so that a busy writer
/// cannot make it begin again.
fn copy(conn: &Connection, aside: &Path, file: &File) -> Result<(), Error> {
    let mut copy = Connection::open(aside)?;
    // No journal: the file is thrown away if this fails, and synchronised as a whole.
    copy.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")?;
    let step = Backup::new(conn, &mut copy)?.step(-1)?;
    drop(copy);
    if step != StepResult::Done {
        return Err(Error::Unavailable("the database is locked".to_owned()));
    }
    file.sync_all().map_err(|error| Error::Io(aside.to_owned(), error))
}

/// Gives the finished file its name, never replacing one that appeared meanwhile.
fn publish(aside: &Path, target: &Path) -> Result<(), Error> {
    match fs::hard_link(aside, target) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(taken(target)),
        // Not every file system has hard links. The empty file keeps the name from whoever comes second.
        Err(_) => {
            let rename = || {
                OpenOptions::new().write(true).create_new(true).open(target)?;
                fs::rename(aside, target).inspect_err(|_| drop(fs::remove_file(target)))
            };
            rename().map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => taken(target),
                _ => Error::Io(target.to_owned(), error),
            })
        }
    }
}

fn taken(target: &Path) -> Error {
    Error::Conflict(format!("{} exists already", target.display()))
}

/// Compares the counters of evaluations `from..` (at most `limit`), and the marks of their jobs, with a recount; returns
/// those that differ and where to go on, `None` at the end. Only reads, so that nobody's writes wait for it.
pub(crate) fn miscounted(
    conn: &Connection,
    from: EvaluationId,
    limit: usize,
) -> Result<(Vec<EvaluationId>, Option<EvaluationId>), Error> {
    let ids: Vec<EvaluationId> = conn
        .prepare_cached(
            "SELECT id FROM evaluations WHERE id >= ?1 AND jobset <> ?2 ORDER BY id LIMIT ?3",
        )?
        .query_map(params![from, evaluations::WITHDRAWN, convert::limit(limit)], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let mut wrong = Vec::new();
    for &id in &ids {
        // Counters and jobs of the same moment.
        let snapshot = snapshot(conn)?;
        let (counted, marked) = count(conn, id)?;
        let kept = evaluations::get(conn, id)?.map(|evaluation| evaluation.jobs);
        if kept.is_some_and(|kept| kept != counted || !marked) {
            wrong.push(id);
        }
        drop(snapshot); // It only read.
    }
    let next = ids.last().filter(|_| ids.len() == limit).map(|last| EvaluationId(last.0 + 1));
    Ok((wrong, next))
}

/// Recounts an evaluation's counters and marks its jobs; returns whether any were wrong.
pub(crate) fn recount(tx: &mut Tx<'_>, id: EvaluationId) -> Result<bool, Error> {
    let (counts, marked) = count(tx.conn, id)?;
    if !marked {
        tx.conn
            .prepare_cached(
                "UPDATE jobs SET bad = (SELECT max(b.status, 0) FROM builds b WHERE b.id = jobs.build)
                 WHERE evaluation = ?1",
            )?
            .execute([id])?;
    }
    let changed = tx
        .conn
        .prepare_cached(
            "UPDATE evaluations
             SET total = ?2, succeeded = ?3, failed = ?4, pending = ?5, aborted = ?6, canceled = ?7
             WHERE id = ?1 AND jobset <> ?8 AND (total, succeeded, failed, pending, aborted, canceled)
                 <> (?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![
            id,
            counts.total,
            counts.succeeded,
            counts.failed,
            counts.pending,
            counts.aborted,
            counts.canceled,
            evaluations::WITHDRAWN
        ])?;
    Ok(changed == 1 || !marked)
}

/// What the counters should be, and whether every job that ended badly, and no other, is marked with how.
fn count(conn: &Connection, id: EvaluationId) -> Result<(Counts, bool), Error> {
    let (mut counts, mut marked) = (Counts::default(), true);
    let mut statement = conn.prepare_cached(
        "SELECT b.status, count(*), total(j.bad <> max(b.status, 0)) = 0
         FROM jobs j CROSS JOIN builds b ON b.id = j.build WHERE j.evaluation = ?1 GROUP BY b.status",
    )?;
    let mut rows = statement.query([id])?;
    while let Some(row) = rows.next()? {
        let (status, jobs): (BuildStatus, i64) = (row.get(0)?, row.get(1)?);
        counts.total += jobs;
        *builds::slot(&mut counts, status) += jobs;
        marked &= row.get::<_, bool>(2)?;
    }
    Ok((counts, marked))
}

/// Withdraws ended evaluations older than `age` (never an active jobset's newest), at most `limit`.
pub(crate) fn expire_history(
    tx: &mut Tx<'_>,
    age: Duration,
    limit: usize,
) -> Result<Vec<EvaluationId>, Error> {
    let ids: Vec<EvaluationId> = tx
        .conn
        .prepare_cached(
            "SELECT e.id FROM evaluations e
             WHERE e.timestamp < ?1 AND e.status >= 0 AND e.pending = 0 AND e.jobset <> ?3
                 AND NOT EXISTS (SELECT 1 FROM jobsets j WHERE j.name = e.jobset AND j.active
                     AND e.id = (SELECT max(n.id) FROM evaluations n WHERE n.jobset = j.name))
             ORDER BY e.timestamp, e.id LIMIT ?2",
        )?
        .query_map(
            params![tx.now.before(age), convert::limit(limit), evaluations::WITHDRAWN],
            |row| row.get(0),
        )?
        .collect::<Result<_, _>>()?;
    evaluations::withdraw(tx, &ids)?;
    Ok(ids)
}

/// Goes on over builds that no job pointed to, from the one before `from` or the newest on; at most `limit` of them.
/// Removes those that have ended and that no other build needs; returns them, so that their files can go, and where
/// to go on, `None` at the end. Newer ones come first because they need older ones more often than the other way round.
pub(crate) fn remove_orphans(
    tx: &mut Tx<'_>,
    from: Option<BuildId>,
    limit: usize,
) -> Result<(Vec<BuildId>, Option<BuildId>), Error> {
    let ids: Vec<BuildId> = tx
        .conn
        .prepare_cached("SELECT build FROM orphans WHERE build < ?1 ORDER BY build DESC LIMIT ?2")?
        .query_map(params![from.unwrap_or(BuildId(i64::MAX)), convert::limit(limit)], |row| {
            row.get(0)
        })?
        .collect::<Result<_, _>>()?;
    let mut removed = Vec::new();
    for &id in &ids {
        let found_a_job = tx
            .conn
            .prepare_cached(
                "DELETE FROM orphans WHERE build = ?1 AND EXISTS (SELECT 1 FROM jobs WHERE build = ?1)",
            )?
            .execute([id])?;
        if found_a_job == 1 {
            continue;
        }
        let gone = tx
            .conn
            .prepare_cached(
                "DELETE FROM builds WHERE id = ?1 AND status >= 0
                     AND NOT EXISTS (SELECT 1 FROM dependencies d WHERE d.target = ?1)",
            )?
            .execute([id])?;
        if gone == 1 {
            removed.push(id);
        }
    }
    let next = ids.last().filter(|_| ids.len() == limit).copied();
    Ok((removed, next))
}

/// Computes the metrics (types 0–12 of the reference, in UTC days).
pub(crate) fn compute_metrics(tx: &mut Tx<'_>) -> Result<(), Error> {
    metrics::compute(tx)
}

/// Builds whose products are older than `age` and not wanted by an active jobset's last succeeded
/// evaluation, nor by a build that waits; their product rows are removed.
pub(crate) fn expire_products(
    tx: &mut Tx<'_>,
    age: Duration,
    limit: usize,
) -> Result<Vec<BuildId>, Error> {
    let ids: Vec<BuildId> = tx
        .conn
        .prepare_cached(
            "WITH last (evaluation) AS MATERIALIZED (
                 SELECT (SELECT max(e.id) FROM evaluations e WHERE e.jobset = j.name AND e.status = 0)
                 FROM jobsets j WHERE j.active)
             SELECT b.id FROM builds b
             WHERE b.kind = 0 AND b.status = 0 AND b.expired = 0 AND b.stoptime < ?1
               AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.build = b.id
                               AND j.evaluation IN (SELECT evaluation FROM last WHERE evaluation IS NOT NULL))
               AND NOT EXISTS (SELECT 1 FROM dependencies d CROSS JOIN builds s ON s.id = d.source
                               WHERE d.target = b.id AND s.status < 0)
             ORDER BY b.stoptime LIMIT ?2",
        )?
        .query_map(params![tx.now.before(age), convert::limit(limit)], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for id in &ids {
        tx.conn.prepare_cached("UPDATE builds SET expired = 1 WHERE id = ?1")?.execute([id])?;
        tx.conn.prepare_cached("DELETE FROM products WHERE build = ?1")?.execute([id])?;
        tx.conn.prepare_cached("DELETE FROM outputs WHERE build = ?1")?.execute([id])?;
    }
    Ok(ids)
}

/// Whether the books know of nothing that a build has left: it is over, or not theirs.
pub(crate) fn has_nothing(conn: &Connection, id: BuildId) -> Result<bool, Error> {
    Ok(conn
        .prepare_cached(
            "SELECT NOT EXISTS (SELECT 1 FROM builds b WHERE b.id = ?1 AND (b.status < 0
                 OR EXISTS (SELECT 1 FROM outputs o WHERE o.build = b.id)
                 OR EXISTS (SELECT 1 FROM products p WHERE p.build = b.id)))",
        )?
        .query_row([id], |row| row.get(0))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::testing::{Books, failure, job, success, version};
    use crate::db::{events, jobsets, migrate};
    use crate::model::build::{Outcome, Product};
    use crate::model::job::NewJob;
    use crate::model::time::Time;

    const DAY: Duration = Duration::from_secs(86_400);

    fn later(books: &mut Books, days: u32) {
        books.now = books.now.after(DAY * days);
    }

    #[test]
    fn counters_that_differ_are_repaired() {
        let mut books = Books::new();
        let name = books.jobset("a");
        let ids: Vec<_> =
            (0..3).map(|n| books.evaluated(&name, &[job(&format!("x{n}"), &[])])).collect();
        let good = books.counts(ids[1]);
        books.conn.execute("UPDATE evaluations SET failed = 7 WHERE id = ?1", [ids[1]]).unwrap();
        let first = miscounted(&books.conn, EvaluationId(0), 2).unwrap();
        assert_eq!(first, (vec![ids[1]], Some(ids[2])));
        assert_eq!(miscounted(&books.conn, ids[2], 2).unwrap(), (vec![], None));
        assert!(books.write(|tx| recount(tx, ids[1])).unwrap());
        assert_eq!(books.counts(ids[1]), good);
        assert!(!books.write(|tx| recount(tx, ids[1])).unwrap(), "another has repaired it");
        books.conn.execute("UPDATE jobs SET bad = 1 WHERE evaluation = ?1", [ids[2]]).unwrap();
        assert_eq!(miscounted(&books.conn, ids[1], 9).unwrap(), (vec![ids[2]], None));
        assert!(books.write(|tx| recount(tx, ids[2])).unwrap());
        assert_eq!(miscounted(&books.conn, ids[1], 9).unwrap(), (vec![], None));
    }

    #[test]
    fn history_goes_but_not_the_newest_of_an_active_jobset() {
        let mut books = Books::new();
        let (a, b) = (books.jobset("a"), books.jobset("b"));
        let first = books.evaluated(&a, &[job("x", &[]), job("y", &["x"])]);
        let second = books.evaluated(&a, &[job("x", &[])]);
        let other = books.evaluated(&b, &[job("z", &[])]);
        for derivation in ["x", "y", "z"] {
            books.run(derivation, &success());
        }
        books.write(|tx| jobsets::set_active(tx, &b, false)).unwrap();
        later(&mut books, 10);
        assert!(books.write(|tx| expire_history(tx, DAY * 11, 9)).unwrap().is_empty());
        let gone = books.write(|tx| expire_history(tx, DAY * 9, 9)).unwrap();
        assert_eq!(gone, [first, other]);
        assert!(books.write(|tx| expire_history(tx, DAY * 9, 9)).unwrap().is_empty());
        assert!(evaluations::get(&books.conn, first).unwrap().is_none());
        books.remove_withdrawn();
        // The build that the newer evaluation wants was handed over; the others can go.
        assert_eq!(books.build("x").evaluation, second);
        let orphans = [books.id("z"), books.id("y")];
        assert_eq!(books.remove_orphans(), orphans);
        assert_eq!(books.status("x"), BuildStatus::Succeeded);
        assert!(books.remove_orphans().is_empty());
        assert!(check(&books.conn).unwrap().is_empty());
    }

    #[test]
    fn what_was_withdrawn_goes_in_small_steps() {
        let mut books = Books::new();
        let name = books.jobset("a");
        let jobs: Vec<_> = (0..10).map(|n| job(&format!("x{n}"), &[])).collect();
        let old = books.evaluated(&name, &jobs);
        books.write(|tx| jobsets::delete(tx, &name)).unwrap();
        let rows = |books: &Books| -> i64 {
            books.conn.query_row("SELECT count(*) FROM jobs", [], |row| row.get(0)).unwrap()
        };
        for left in [7, 4, 1] {
            assert_eq!(evaluations::withdrawn(&books.conn).unwrap(), Some(old));
            books.write(|tx| evaluations::remove_some(tx, old, 3)).unwrap();
            assert_eq!(rows(&books), left);
        }
        books.write(|tx| evaluations::remove_some(tx, old, 3)).unwrap();
        assert_eq!((evaluations::withdrawn(&books.conn).unwrap(), rows(&books)), (None, 0));
        // Likewise the builds, each once.
        let mut from = None;
        for removed in [4, 4, 2] {
            let (ids, next) = books.write(|tx| remove_orphans(tx, from, 4)).unwrap();
            assert_eq!((ids.len(), next.is_some()), (removed, removed == 4));
            from = next;
        }
        assert!(check(&books.conn).unwrap().is_empty());
    }

    #[test]
    fn an_evaluation_that_is_not_withdrawn_is_not_removed() {
        let mut books = Books::new();
        let name = books.jobset("a");
        let id = books.evaluated(&name, &[job("x", &[])]);
        books.write(|tx| evaluations::remove_some(tx, id, 9)).unwrap();
        assert_eq!(books.counts(id).total, 1);
        assert_eq!(miscounted(&books.conn, id, 9).unwrap(), (vec![], None));
    }

    #[test]
    fn evaluations_with_pending_builds_are_kept() {
        let mut books = Books::new();
        let name = books.jobset("a");
        books.evaluated(&name, &[job("x", &[])]);
        books.evaluated(&name, &[]);
        later(&mut books, 10);
        assert!(books.write(|tx| expire_history(tx, DAY, 9)).unwrap().is_empty());
        books.run("x", &failure());
        assert_eq!(books.write(|tx| expire_history(tx, DAY, 9)).unwrap().len(), 1);
    }

    #[test]
    fn products_expire_unless_somebody_wants_them() {
        let mut books = Books::new();
        let name = books.jobset("a");
        books.evaluated(&name, &[job("old", &[]), job("kept", &[])]);
        let done = Outcome::Succeeded {
            outputs: [("out".to_owned(), "/products/1/out".to_owned())].into(),
            products: vec![Product {
                kind: "file".into(),
                path: "/p".into(),
                size: 3,
                sha256: None,
            }],
        };
        books.run("old", &done);
        books.run("kept", &done);
        later(&mut books, 10);
        books.evaluated(&name, &[job("kept", &[])]);
        assert!(books.write(|tx| expire_products(tx, DAY * 11, 9)).unwrap().is_empty());
        let old = books.id("old");
        assert_eq!(books.write(|tx| expire_products(tx, DAY, 9)).unwrap(), [old]);
        assert!(books.write(|tx| expire_products(tx, DAY, 9)).unwrap().is_empty());
        assert!(builds::products(&books.conn, old).unwrap().is_empty());
        assert!(books.build("old").outputs.is_empty());
        let nothing = |id| has_nothing(&books.conn, id).unwrap();
        assert_eq!([nothing(old), nothing(BuildId(99))], [true, true]);
        // A new build that needs what is gone has it built again.
        let evaluation = books.evaluation(&name);
        books.register(evaluation, &[job("new", &["old"])]);
        assert_eq!(books.status("old"), BuildStatus::Scheduled);
    }

    #[test]
    fn what_has_expired_is_built_again_for_a_new_build_of_the_same_batch() {
        let mut books = Books::new();
        let name = books.jobset("a");
        books.evaluated(&name, &[job("compile", &[]), job("deploy", &["compile"])]);
        books.run("compile", &success());
        books.run("deploy", &success());
        books.evaluated(&name, &[job("other", &[])]);
        later(&mut books, 10);
        assert_eq!(books.write(|tx| expire_products(tx, DAY, 9)).unwrap().len(), 2);
        // What deploys again differs; what it needs is the same.
        let again = [job("compile", &[]), version("deploy", "deploy again")];
        let again = again.map(|job| NewJob {
            needs: if job.name == "deploy" { vec!["compile".to_owned()] } else { vec![] },
            ..job
        });
        let evaluation = books.evaluated(&name, &again);
        assert_eq!(books.status("compile"), BuildStatus::Scheduled);
        let entries = builds::entries(&books.conn, &[books.id("deploy again")]).unwrap();
        assert_eq!(entries[0].waits_for, [books.id("compile")]);
        assert_eq!(books.counts(evaluation).pending, 2);
    }

    #[test]
    fn a_backup_is_whole_private_and_replaces_nothing() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("copy.db");
        let mut books = Books::new();
        let name = books.jobset("a");
        books.evaluated(&name, &[job("x", &[])]);
        backup(&books.conn, &target).unwrap();
        assert!(matches!(backup(&books.conn, &target), Err(Error::Conflict(_))));
        assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        let copy = migrate::open(&target).unwrap();
        assert_eq!(jobsets::get(&copy, &name).unwrap(), jobsets::get(&books.conn, &name).unwrap());
        assert!(check(&copy).unwrap().is_empty());
        // A file of somebody else's is not taken for ours.
        let other = directory.path().join("other.db.part");
        fs::write(&other, "precious").unwrap();
        backup(&books.conn, &directory.path().join("other.db")).unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"precious");
        let nowhere = directory.path().join("no/copy.db");
        assert!(matches!(backup(&books.conn, &nowhere), Err(Error::Io(..))));
    }

    #[test]
    fn of_backups_side_by_side_one_gets_the_name_and_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source.db");
        let mut books = Books::new();
        let name = books.jobset("a");
        let jobs: Vec<_> = (0..200).map(|n| job(&format!("x{n}"), &[])).collect();
        books.evaluated(&name, &jobs);
        backup(&books.conn, &source).unwrap();
        for round in 0..10 {
            let target = directory.path().join(format!("{round}.db"));
            let done = std::thread::scope(|scope| {
                let run = || backup(&migrate::open_reader(&source).unwrap(), &target).is_ok();
                [scope.spawn(run), scope.spawn(run)].map(|thread| thread.join().unwrap())
            });
            assert_eq!(done.iter().filter(|&&done| done).count(), 1, "{done:?}");
            let copy = migrate::open_reader(&target).unwrap();
            assert!(check(&copy).unwrap().is_empty());
        }
        let left = fs::read_dir(directory.path()).unwrap();
        let parts = left.filter(|entry| {
            entry.as_ref().unwrap().path().extension().is_some_and(|part| part == "part")
        });
        assert_eq!(parts.count(), 0);
    }

    #[test]
    fn the_check_finds_a_row_without_its_parent() {
        let books = Books::new();
        books.conn.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
        books.conn.execute("INSERT INTO outputs VALUES (99, 'out', '/x')", []).unwrap();
        assert_eq!(check(&books.conn).unwrap().len(), 1);
    }

    #[test]
    fn events_are_kept_for_replay_and_no_longer() {
        let mut books = Books::new();
        let name = books.jobset("a");
        for n in 0..6000 {
            books.write(|tx| jobsets::set_active(tx, &name, n % 2 == 1)).unwrap();
        }
        assert_eq!(events::last(&books.conn).unwrap(), 6001);
        let all = events::after(&books.conn, 0, None, 10_000).unwrap().unwrap();
        assert_eq!(all, books.events);
        for n in 0..6000 {
            books.write(|tx| jobsets::set_active(tx, &name, n % 2 == 1)).unwrap();
        }
        let replay = |after| events::after(&books.conn, after, Some(&name), 20_000).unwrap();
        assert_eq!(replay(12_001 - events::REPLAYED).unwrap().len(), 10_000);
        assert_eq!(replay(0), None);
        assert_eq!(replay(12_001), Some(vec![]));
        let kept: i64 =
            books.conn.query_row("SELECT count(*) FROM events", [], |r| r.get(0)).unwrap();
        assert!((10_000..12_000).contains(&kept), "{kept}");
        assert_eq!(books.events.last().map(|e| e.time), Some(Time(1_000_000)));
    }
}
