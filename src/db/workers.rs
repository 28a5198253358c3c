//! Remote workers, as the daemon last heard of them.
//!
//! A worker's name is new at each of its starts: a row lives as long as the worker does.

use std::collections::BTreeMap;

use rusqlite::{Connection, params};

use super::{Error, Tx};
use crate::model::event::What;
use crate::model::time::Time;

/// A remote worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Worker {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) machine: String,
    pub(crate) systems: Vec<String>,
    pub(crate) last_seen: Time,
    /// Since when it is here.
    pub(crate) joined: Time,
    /// It gets nothing to build.
    pub(crate) paused: bool,
    /// Builds that were aborted in a row, if it is paused for that.
    pub(crate) failures: u32,
}

/// Seconds after which a worker that says nothing is taken to be gone, as by Cuirass.
const AWAY: i64 = 120;

impl Worker {
    pub(crate) fn is_away(&self, now: Time) -> bool {
        now.0 - self.last_seen.0 > AWAY
    }
}

/// News of workers, for the books.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// It is there, or still there; since when, and whether it is paused, stay as they are.
    Joined(Worker),
    Seen(BTreeMap<String, Time>),
    Left(String),
    /// There are no others than these.
    Only(Vec<String>),
    /// By somebody's order.
    Paused(String, bool),
    /// Paused, as so many builds in a row were aborted there.
    Broken(String, u32),
}

/// In the order of names.
pub(crate) fn list(conn: &Connection) -> Result<Vec<Worker>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT name, address, machine, systems, last_seen, joined, paused, failures FROM workers ORDER BY name",
    )?;
    let rows = statement.query_map([], |row| {
        let systems: String = row.get(3)?;
        Ok(Worker {
            name: row.get(0)?,
            address: row.get(1)?,
            machine: row.get(2)?,
            systems: systems.split_whitespace().map(str::to_owned).collect(),
            last_seen: row.get(4)?,
            joined: row.get(5)?,
            paused: row.get(6)?,
            failures: row.get(7)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Whether there is such a worker.
pub(crate) fn is_known(conn: &Connection, name: &str) -> Result<bool, Error> {
    let mut statement =
        conn.prepare_cached("SELECT EXISTS (SELECT 1 FROM workers WHERE name = ?1)")?;
    Ok(statement.query_row([name], |row| row.get(0))?)
}

/// Writes news down, in their order.
pub(crate) fn note(tx: &mut Tx<'_>, notes: &[Note]) -> Result<(), Error> {
    notes.iter().try_for_each(|note| match note {
        Note::Joined(worker) => join(tx, worker),
        Note::Seen(seen) => {
            let mut statement = tx.conn.prepare_cached(
                "UPDATE workers SET last_seen = ?2 WHERE name = ?1 AND last_seen < ?2",
            )?;
            seen.iter().try_for_each(|(name, time)| {
                statement.execute(params![name, time])?;
                Ok(())
            })
        }
        Note::Left(name) => leave(tx, name),
        Note::Only(names) => {
            let gone = list(tx.conn)?.into_iter().filter(|worker| !names.contains(&worker.name));
            gone.collect::<Vec<_>>().iter().try_for_each(|worker| leave(tx, &worker.name))
        }
        Note::Paused(name, paused) => pause(tx, name, *paused, 0),
        Note::Broken(name, failures) => pause(tx, name, true, *failures),
    })
}

fn pause(tx: &Tx<'_>, name: &str, paused: bool, failures: u32) -> Result<(), Error> {
    tx.conn
        .prepare_cached("UPDATE workers SET paused = ?2, failures = ?3 WHERE name = ?1")?
        .execute(params![name, paused, failures])?;
    Ok(())
}

fn join(tx: &mut Tx<'_>, worker: &Worker) -> Result<(), Error> {
    let news = !is_known(tx.conn, &worker.name)?;
    tx.conn
        .prepare_cached(
            "INSERT INTO workers (name, address, machine, systems, last_seen, joined) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (name) DO UPDATE SET address = ?2, machine = ?3, systems = ?4, last_seen = ?5",
        )?
        .execute(params![
            worker.name,
            worker.address,
            worker.machine,
            worker.systems.join(" "),
            worker.last_seen,
            worker.joined
        ])?;
    if news { tx.emit(What::WorkerJoined, None, None, None, None) } else { Ok(()) }
}

fn leave(tx: &mut Tx<'_>, name: &str) -> Result<(), Error> {
    let known = tx.conn.prepare_cached("DELETE FROM workers WHERE name = ?1")?.execute([name])?;
    if known > 0 { tx.emit(What::WorkerLeft, None, None, None, None) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::testing::Books;

    fn worker(name: &str, seen: i64) -> Worker {
        Worker {
            name: name.to_owned(),
            address: "10.0.0.2".to_owned(),
            machine: "ruche".to_owned(),
            systems: vec!["x86_64-linux".to_owned(), "i686-linux".to_owned()],
            last_seen: Time(seen),
            joined: Time(seen),
            paused: false,
            failures: 0,
        }
    }

    fn events(books: &Books) -> Vec<String> {
        let mut statement = books.conn.prepare("SELECT event FROM events ORDER BY id").unwrap();
        let rows = statement.query_map([], |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    }

    #[test]
    fn workers_come_are_seen_and_go() {
        let mut books = Books::new();
        let mut tell = |notes: Vec<Note>| books.write(|tx| note(tx, &notes)).unwrap();
        tell(vec![Note::Joined(worker("a", 5)), Note::Joined(worker("b", 5))]);
        tell(vec![Note::Paused("a".to_owned(), true), Note::Joined(worker("a", 6))]);
        tell(vec![Note::Seen([("a".to_owned(), Time(7)), ("b".to_owned(), Time(4))].into())]);
        let known = list(&books.conn).unwrap();
        let old = Worker { paused: true, joined: Time(5), ..worker("a", 7) };
        assert_eq!(known, [old, worker("b", 5)], "a pause outlives its being told of again");
        let mut tell = |notes: Vec<Note>| books.write(|tx| note(tx, &notes)).unwrap();
        tell(vec![Note::Left("c".to_owned()), Note::Only(vec!["b".to_owned()])]);
        assert_eq!(list(&books.conn).unwrap(), [worker("b", 5)]);
        assert!(is_known(&books.conn, "b").unwrap() && !is_known(&books.conn, "a").unwrap());
        assert_eq!(events(&books), ["worker-joined", "worker-joined", "worker-left"]);
    }

    #[test]
    fn why_a_worker_is_paused_is_known_until_it_is_resumed() {
        let mut books = Books::new();
        let mut tell = |note_: Note| {
            books.write(|tx| note(tx, &[note_])).unwrap();
            let worker = list(&books.conn).unwrap().remove(0);
            (worker.paused, worker.failures)
        };
        assert_eq!(tell(Note::Joined(worker("a", 5))), (false, 0));
        assert_eq!(tell(Note::Broken("a".to_owned(), 10)), (true, 10));
        assert_eq!(tell(Note::Joined(worker("a", 6))), (true, 10));
        assert_eq!(tell(Note::Paused("a".to_owned(), true)), (true, 0), "somebody wants it so");
        assert_eq!(tell(Note::Broken("a".to_owned(), 10)), (true, 10));
        assert_eq!(tell(Note::Paused("a".to_owned(), false)), (false, 0));
    }
}
