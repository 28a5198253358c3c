//! Opens the file and brings its schema up to date: numbered migrations, each applied once, recorded in
//! `user_version`.
//!
//! Invariant: a file is either wholly at one version or untouched; one of a newer program is not written to.

use std::fs::{self, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, FileControl, MAIN_DB, OpenFlags};

use super::Error;

/// All migrations, oldest first: entry N leads from version N to N + 1. Append only.
const MIGRATIONS: &[&str] = &[
    include_str!("migrations/001-initial.sql"),
    include_str!("migrations/002-promises.sql"),
    include_str!("migrations/003-web.sql"),
    include_str!("migrations/004-machines.sql"),
    include_str!("migrations/005-bad-jobs.sql"),
];

/// How long SQLite itself waits for a lock before a request counts as failed. Short, because the writer
/// retries on its own terms, and must look at its inbox meanwhile.
const BUSY: Duration = Duration::from_millis(250);

/// The same while opening, where nothing else is to be done: longer than another process needs to migrate.
const BUSY_OPENING: Duration = Duration::from_secs(10);

/// Prepared statements kept per connection: more than there are different ones in this layer.
const STATEMENTS: usize = 256;

/// The group may read the file; everyone else may not, as it holds secrets of specifications.
const MODE: u32 = 0o640;

/// Opens or creates the file for the writer and migrates it.
pub(crate) fn open(path: &Path) -> Result<Connection, Error> {
    let open = || {
        let io = |error| Error::Io(path.to_owned(), error);
        let existed = !create(path).map_err(io)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut conn = Connection::open_with_flags(path, flags)?;
        conn.busy_timeout(BUSY_OPENING)?;
        refuse_newer(version(&conn)?, MIGRATIONS)?;
        if existed {
            refuse_foreign(&conn)?;
            close_to_others(path).map_err(io)?;
        }
        let mode: String = conn.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
        if mode != "wal" {
            return Err(Error::Corrupt("the file cannot be put into WAL mode"));
        }
        // Readers may then open the file while no writer has it open.
        let mut persist = 1;
        conn.file_control(Some(MAIN_DB), FileControl::PersistWal(&mut persist))?;
        prepare(&conn)?;
        migrate(&mut conn, MIGRATIONS)?;
        conn.busy_timeout(BUSY)?;
        Ok(conn)
    };
    open().map_err(|error| Error::Open(path.to_owned(), Box::new(error)))
}

/// Opens the file for reading alone.
pub(crate) fn open_reader(path: &Path) -> Result<Connection, Error> {
    let open = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let conn = Connection::open_with_flags(path, flags)?;
        conn.busy_timeout(BUSY)?;
        keep_statements(&conn)?;
        let found = version(&conn)?;
        refuse_newer(found, MIGRATIONS)?;
        if found != known(MIGRATIONS) {
            return Err(Error::Corrupt("the schema is of an older version; start the daemon once"));
        }
        Ok(conn)
    };
    open().map_err(|error| Error::Open(path.to_owned(), Box::new(error)))
}

/// A database in memory with the current schema.
#[cfg(test)]
pub(crate) fn memory() -> Connection {
    let mut conn = Connection::open_in_memory().unwrap();
    prepare(&conn).unwrap();
    migrate(&mut conn, MIGRATIONS).unwrap();
    conn
}

/// Creates the file if it is missing; whether it was. Its -wal and -shm inherit the mode.
fn create(path: &Path) -> io::Result<bool> {
    let found = OpenOptions::new().write(true).create_new(true).mode(MODE).open(path);
    match found {
        // Once more, because the umask may have taken bits away.
        Ok(file) => file.set_permissions(Permissions::from_mode(MODE)).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // A link may lead to it.
            if fs::metadata(path)?.is_file() {
                Ok(false)
            } else {
                Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"))
            }
        }
        Err(error) => Err(error),
    }
}

/// Somebody else's file must stay as it is: an empty one, or one with a table that only ours have, is not theirs.
fn refuse_foreign(conn: &Connection) -> Result<(), Error> {
    let (tables, ours): (i64, bool) = conn.query_row(
        "SELECT count(*), coalesce(max(name = 'process_builds'), 0) FROM sqlite_schema",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    if (version(conn)? > 0 || tables > 0) && !ours {
        return Err(Error::Corrupt("it is the database of another program"));
    }
    Ok(())
}

/// Gives a file that was found, and what belongs to it, the mode of one that is created.
fn close_to_others(path: &Path) -> io::Result<()> {
    for suffix in ["", "-wal", "-shm"] {
        let mut file = path.as_os_str().to_owned();
        file.push(suffix);
        match fs::metadata(&file) {
            Ok(metadata) if metadata.permissions().mode() & 0o777 != MODE => {
                fs::set_permissions(&file, Permissions::from_mode(MODE))?;
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Has statements prepared once. Without the guarantee SQLite plans many of them anew for each value that is bound, which
/// takes longer than to run them and gains nothing: there are no statistics to heed.
fn keep_statements(conn: &Connection) -> Result<(), Error> {
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(())
}

fn prepare(conn: &Connection) -> Result<(), Error> {
    keep_statements(conn)?;
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    conn.execute_batch(
        // NORMAL: a commit survives the death of the process, and of the machine up to the last checkpoint.
        // Savepoints spill into memory. 64 MiB of cache hold the indexes a large registration touches. The
        // log is checkpointed every 16000 pages (64 MiB), as such a registration writes the same pages over
        // and over, and shrinks back to that after a burst.
        "PRAGMA synchronous = NORMAL;
         PRAGMA foreign_keys = ON;
         PRAGMA temp_store = MEMORY;
         PRAGMA cache_size = -65536;
         PRAGMA wal_autocheckpoint = 16000;
         PRAGMA journal_size_limit = 67108864;",
    )?;
    Ok(())
}

fn version(conn: &Connection) -> Result<i64, Error> {
    Ok(conn.query_row("PRAGMA user_version", [], |row| row.get(0))?)
}

fn known(migrations: &[&str]) -> i64 {
    i64::try_from(migrations.len()).unwrap_or(i64::MAX)
}

fn refuse_newer(found: i64, migrations: &[&str]) -> Result<(), Error> {
    let known = known(migrations);
    if found > known { Err(Error::Newer { found, known }) } else { Ok(()) }
}

fn migrate(conn: &mut Connection, migrations: &[&str]) -> Result<(), Error> {
    let tx = conn.transaction_with_behavior(rusqlite::TransactionBehavior::Exclusive)?;
    let found = version(&tx)?;
    refuse_newer(found, migrations)?;
    let from = usize::try_from(found).map_err(|_| Error::Corrupt("a negative schema version"))?;
    if from < migrations.len() {
        for migration in &migrations[from..] {
            tx.execute_batch(migration)?;
        }
        tx.pragma_update(None, "user_version", known(migrations))?;
    }
    Ok(tx.commit()?)
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;

    fn schema(conn: &Connection) -> Vec<String> {
        let mut statement = conn.prepare("SELECT sql FROM sqlite_schema ORDER BY name").unwrap();
        let rows = statement.query_map([], |row| row.get::<_, Option<String>>(0)).unwrap();
        rows.filter_map(|sql| sql.unwrap()).collect()
    }

    #[test]
    fn every_older_version_is_upgraded_to_what_a_fresh_one_is() {
        let fresh = schema(&memory());
        for version in 0..MIGRATIONS.len() {
            let mut conn = Connection::open_in_memory().unwrap();
            migrate(&mut conn, &MIGRATIONS[..version]).unwrap();
            migrate(&mut conn, MIGRATIONS).unwrap();
            assert_eq!(schema(&conn), fresh, "from version {version}");
        }
    }

    #[test]
    fn a_migration_that_fails_leaves_nothing() {
        let mut conn = Connection::open_in_memory().unwrap();
        let broken = ["CREATE TABLE a (x); CREATE TABLE a (x);"];
        assert!(migrate(&mut conn, &broken).is_err());
        assert_eq!((version(&conn).unwrap(), schema(&conn)), (0, vec![]));
    }

    #[test]
    fn a_file_is_created_private_and_opened_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gorget.db");
        assert!(open_reader(&path).is_err());
        drop(open(&path).unwrap());
        for name in ["gorget.db", "gorget.db-wal", "gorget.db-shm"] {
            let mode = fs::metadata(directory.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, MODE, "{name}");
        }
        let reader = open_reader(&path).unwrap();
        assert!(reader.execute("DELETE FROM settings", []).is_err());
        open(&path).unwrap();
    }

    #[test]
    fn statements_are_planned_once_whatever_is_bound() {
        let conn = memory();
        let sql = "SELECT evaluation, count(*) FROM jobs WHERE build = ?1 GROUP BY evaluation";
        for build in 1..10 {
            let mut statement = conn.prepare_cached(sql).unwrap();
            assert!(!statement.exists([build]).unwrap());
            assert_eq!(statement.get_status(StatementStatus::RePrepare), 0, "build {build}");
        }
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let theirs = directory.path().join("theirs.db");
        Connection::open(&theirs).unwrap().execute_batch("CREATE TABLE x (y)").unwrap();
        let text = directory.path().join("text");
        fs::write(&text, "precious\n".repeat(1000)).unwrap();
        for path in [&theirs, &text] {
            fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
            let before = fs::read(path).unwrap();
            assert!(open(path).is_err());
            assert_eq!((mode(path), fs::read(path).unwrap()), (0o644, before));
        }
        let inside = directory.path().join("directory");
        fs::create_dir(&inside).unwrap();
        fs::set_permissions(&inside, Permissions::from_mode(0o755)).unwrap();
        assert!(open(&inside).is_err());
        assert_eq!(mode(&inside), 0o755);
        // One of ours that was copied with other modes is put right.
        let ours = directory.path().join("ours.db");
        drop(open(&ours).unwrap());
        fs::set_permissions(&ours, Permissions::from_mode(0o666)).unwrap();
        drop(open(&ours).unwrap());
        assert_eq!(mode(&ours), MODE);
    }

    #[test]
    fn a_newer_database_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gorget.db");
        let conn = Connection::open(&path).unwrap();
        conn.pragma_update(None, "user_version", 999).unwrap();
        drop(conn);
        let before = fs::read(&path).unwrap();
        let newer = |result: Result<Connection, Error>| {
            matches!(result, Err(Error::Open(_, inner))
                if matches!(*inner, Error::Newer { found: 999, .. }))
        };
        assert!(newer(open(&path)));
        assert!(newer(open_reader(&path)));
        assert_eq!(fs::read(&path).unwrap(), before);
    }
}
