//! Small tables: settings, audit log, dashboards, tokens, workers.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Error, Tx};
use crate::model::spec::JobsetName;
use crate::model::time::Time;

/// Lines of the audit log that are kept: years of a busy installation, and some 20 MiB.
const AUDIT: i64 = 100_000;

/// `None` removes it.
pub(crate) fn set(tx: &mut Tx<'_>, name: &str, value: Option<&str>) -> Result<(), Error> {
    match value {
        Some(value) => tx
            .conn
            .prepare_cached("INSERT OR REPLACE INTO settings (name, value) VALUES (?1, ?2)")?
            .execute([name, value])?,
        None => tx.conn.prepare_cached("DELETE FROM settings WHERE name = ?1")?.execute([name])?,
    };
    Ok(())
}

pub(crate) fn setting(conn: &Connection, name: &str) -> Result<Option<String>, Error> {
    Ok(conn
        .prepare_cached("SELECT value FROM settings WHERE name = ?1")?
        .query_row([name], |row| row.get(0))
        .optional()?)
}

/// Writes a line of the audit log.
pub(crate) fn audit(tx: &mut Tx<'_>, who: &str, command: &str, outcome: &str) -> Result<(), Error> {
    tx.conn
        .prepare_cached("INSERT INTO audit (time, who, command, outcome) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![tx.now, who, command, outcome])?;
    // Ids only grow, so this removes at most what one line has pushed out.
    tx.conn
        .prepare_cached("DELETE FROM audit WHERE id <= ?1")?
        .execute([tx.conn.last_insert_rowid() - AUDIT])?;
    Ok(())
}

/// A line of the audit log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Audited {
    pub(crate) id: i64,
    pub(crate) time: Time,
    pub(crate) who: String,
    pub(crate) command: String,
    pub(crate) outcome: String,
}

/// Lines of the audit log below an id, newest first.
pub(crate) fn audited(conn: &Connection, before: i64, limit: i64) -> Result<Vec<Audited>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT id, time, who, command, outcome FROM audit WHERE id < ?2 ORDER BY id DESC LIMIT ?1",
    )?;
    let rows = statement.query_map([limit, before], |row| {
        Ok(Audited {
            id: row.get(0)?,
            time: row.get(1)?,
            who: row.get(2)?,
            command: row.get(3)?,
            outcome: row.get(4)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Registers a dashboard under a new random id of 16 alphanumerics, given by the caller.
pub(crate) fn add_dashboard(
    tx: &mut Tx<'_>,
    id: &str,
    jobset: &JobsetName,
    jobs: &[String],
) -> Result<(), Error> {
    let inserted = tx
        .conn
        .prepare_cached(
            "INSERT INTO dashboards (id, jobset, jobs) SELECT ?1, name, ?3 FROM jobsets WHERE name = ?2",
        )?
        .execute(params![id, jobset, jobs.join(",")])?;
    if inserted == 1 { Ok(()) } else { Err(Error::NotFound(format!("jobset {jobset}"))) }
}

/// The jobset of a dashboard, and its jobs.
pub(crate) fn dashboard(
    conn: &Connection,
    id: &str,
) -> Result<Option<(JobsetName, Vec<String>)>, Error> {
    let found: Option<(JobsetName, String)> = conn
        .prepare_cached("SELECT jobset, jobs FROM dashboards WHERE id = ?1")?
        .query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    Ok(found.map(|(jobset, jobs)| (jobset, jobs.split(',').map(str::to_owned).collect())))
}

/// A token as it is listed; the secret itself is never kept.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) name: String,
    pub(crate) role: String,
    pub(crate) jobset: Option<JobsetName>,
    pub(crate) created: Time,
    pub(crate) expires: Option<Time>,
    pub(crate) last_used: Option<Time>,
}

/// `Conflict` if the name is taken. `hash` is the SHA-256 of the secret, hexadecimal.
pub(crate) fn add_token(
    tx: &mut Tx<'_>,
    name: &str,
    hash: &str,
    role: &str,
    jobset: Option<&JobsetName>,
    expires: Option<Time>,
) -> Result<(), Error> {
    if let Some(name) = jobset
        && super::jobsets::get(tx.conn, name)?.is_none()
    {
        return Err(Error::NotFound(format!("jobset {name}")));
    }
    let inserted = tx
        .conn
        .prepare_cached(
            "INSERT INTO tokens (name, hash, role, jobset, created, expires) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT DO NOTHING",
        )?
        .execute(params![name, hash, role, jobset, tx.now, expires])?;
    if inserted == 1 {
        Ok(())
    } else {
        Err(Error::Conflict(format!("there is a token {name} already")))
    }
}

/// `NotFound` if there is none.
pub(crate) fn revoke_token(tx: &mut Tx<'_>, name: &str) -> Result<(), Error> {
    let removed = tx.conn.prepare_cached("DELETE FROM tokens WHERE name = ?1")?.execute([name])?;
    if removed == 1 { Ok(()) } else { Err(Error::NotFound(format!("token {name}"))) }
}

/// Notes that somebody has shown it. `NotFound` if there is none.
pub(crate) fn use_token(tx: &mut Tx<'_>, name: &str) -> Result<(), Error> {
    let changed = tx
        .conn
        .prepare_cached("UPDATE tokens SET last_used = ?2 WHERE name = ?1")?
        .execute(params![name, tx.now])?;
    if changed == 1 { Ok(()) } else { Err(Error::NotFound(format!("token {name}"))) }
}

/// The token whose secret has this SHA-256, whether it has expired or not.
pub(crate) fn token(conn: &Connection, hash: &str) -> Result<Option<Token>, Error> {
    Ok(conn
        .prepare_cached(&format!("SELECT {TOKEN} FROM tokens WHERE hash = ?1"))?
        .query_row([hash], read_token)
        .optional()?)
}

/// In the order of names.
pub(crate) fn tokens(conn: &Connection) -> Result<Vec<Token>, Error> {
    let mut statement =
        conn.prepare_cached(&format!("SELECT {TOKEN} FROM tokens ORDER BY name"))?;
    let rows = statement.query_map([], read_token)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The columns that `read_token` takes.
const TOKEN: &str = "name, role, jobset, created, expires, last_used";

fn read_token(row: &Row<'_>) -> rusqlite::Result<Token> {
    Ok(Token {
        name: row.get(0)?,
        role: row.get(1)?,
        jobset: row.get(2)?,
        created: row.get(3)?,
        expires: row.get(4)?,
        last_used: row.get(5)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::testing::Books;

    #[test]
    fn settings_are_set_replaced_and_removed() {
        let mut books = Books::new();
        for (value, expected) in [(Some("1"), Some("1")), (Some("2"), Some("2")), (None, None)] {
            books.write(|tx| set(tx, "paused.builds", value)).unwrap();
            let found = setting(&books.conn, "paused.builds").unwrap();
            assert_eq!(found.as_deref(), expected);
        }
    }

    #[test]
    fn tokens_have_unique_names_and_can_be_revoked() {
        let mut books = Books::new();
        books.write(|tx| add_token(tx, "ci", "aa", "trigger", None, Some(Time(5)))).unwrap();
        let twice = books.write(|tx| add_token(tx, "ci", "bb", "admin", None, None));
        assert!(matches!(twice, Err(Error::Conflict(_))));
        let listed = tokens(&books.conn).unwrap();
        assert_eq!((listed.len(), listed[0].role.as_str()), (1, "trigger"));
        assert_eq!(token(&books.conn, "bb").unwrap(), None);
        assert_eq!(token(&books.conn, "aa").unwrap().unwrap().last_used, None);
        books.write(|tx| use_token(tx, "ci")).unwrap();
        assert!(token(&books.conn, "aa").unwrap().unwrap().last_used.is_some());
        books.write(|tx| revoke_token(tx, "ci")).unwrap();
        let used = books.write(|tx| use_token(tx, "ci"));
        assert!(matches!(used, Err(Error::NotFound(_))));
        let again = books.write(|tx| revoke_token(tx, "ci"));
        assert!(matches!(again, Err(Error::NotFound(_))));
    }

    #[test]
    fn a_dashboard_needs_its_jobset() {
        let mut books = Books::new();
        let name = JobsetName::new("a").unwrap();
        let jobs = ["x".to_owned(), "y".to_owned()];
        let early = books.write(|tx| add_dashboard(tx, "0123456789abcdef", &name, &jobs));
        assert!(matches!(early, Err(Error::NotFound(_))));
        books.jobset("a");
        books.write(|tx| add_dashboard(tx, "0123456789abcdef", &name, &jobs)).unwrap();
        let found = dashboard(&books.conn, "0123456789abcdef").unwrap();
        assert_eq!(found, Some((name, jobs.to_vec())));
        assert_eq!(dashboard(&books.conn, "fedcba9876543210").unwrap(), None);
    }

    #[test]
    fn the_audit_log_is_bounded() {
        let mut books = Books::new();
        books.write(|tx| audit(tx, "0", "first", "ok")).unwrap();
        books
            .conn
            .execute("UPDATE sqlite_sequence SET seq = 200000 WHERE name = 'audit'", [])
            .unwrap();
        books.write(|tx| audit(tx, "0", "second", "ok")).unwrap();
        let kept = audited(&books.conn, i64::MAX, 10).unwrap();
        assert_eq!(kept.len(), 1);
        assert_eq!(kept[0].command, "second");
        assert!(audited(&books.conn, kept[0].id, 10).unwrap().is_empty());
    }
}
