//! What was promised with an `ok` and is still to be done: it outlives the process.
//!
//! Invariant: a promise is in the books before anybody hears of it, and leaves them when it is kept, or cannot be.

use rusqlite::{Connection, OptionalExtension, params};

use super::{Error, Tx, evaluations};
use crate::model::evaluation::{Checkout, EvaluationId};
use crate::model::spec::JobsetName;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Promise {
    /// A look at the jobset's channels.
    Look,
    /// An evaluation of the commits of this one.
    Retry(EvaluationId),
}

/// What is still to be done for a jobset.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Promised {
    pub(crate) look: bool,
    /// Oldest first.
    pub(crate) retries: Vec<(EvaluationId, Vec<Checkout>)>,
}

/// `NotFound` if the jobset or the evaluation is gone.
pub(crate) fn make(tx: &mut Tx<'_>, jobset: &JobsetName, promise: Promise) -> Result<(), Error> {
    match promise {
        Promise::Look => set_look(tx, jobset, true),
        Promise::Retry(id) => {
            evaluations::jobset(tx.conn, id)?;
            tx.conn
                .prepare_cached(
                    "INSERT INTO retries (evaluation) VALUES (?1) ON CONFLICT DO NOTHING",
                )?
                .execute([id])?;
            Ok(())
        }
    }
}

/// Done, or given up.
pub(crate) fn settle(tx: &mut Tx<'_>, jobset: &JobsetName, promise: Promise) -> Result<(), Error> {
    match promise {
        Promise::Look => set_look(tx, jobset, false),
        Promise::Retry(id) => {
            tx.conn.prepare_cached("DELETE FROM retries WHERE evaluation = ?1")?.execute([id])?;
            Ok(())
        }
    }
}

fn set_look(tx: &mut Tx<'_>, jobset: &JobsetName, wanted: bool) -> Result<(), Error> {
    let changed = tx
        .conn
        .prepare_cached("UPDATE jobsets SET look_wanted = ?2 WHERE name = ?1")?
        .execute(params![jobset, wanted])?;
    if changed == 1 { Ok(()) } else { Err(Error::NotFound(format!("jobset {jobset}"))) }
}

/// Nothing, if there is no such jobset.
pub(crate) fn of(conn: &Connection, jobset: &JobsetName) -> Result<Promised, Error> {
    let look = conn
        .prepare_cached("SELECT look_wanted FROM jobsets WHERE name = ?1")?
        .query_row([jobset], |row| row.get(0))
        .optional()?
        .unwrap_or(false);
    let ids: Vec<EvaluationId> = conn
        .prepare_cached(
            "SELECT r.evaluation FROM retries r CROSS JOIN evaluations e
             WHERE e.id = r.evaluation AND e.jobset = ?1 ORDER BY r.evaluation",
        )?
        .query_map([jobset], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let retries = ids.into_iter().map(|id| Ok((id, evaluations::checkouts(conn, id)?)));
    Ok(Promised { look, retries: retries.collect::<Result<_, Error>>()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::jobsets;
    use crate::db::testing::Books;
    use crate::model::evaluation::Ending;
    use crate::model::time::Time;

    #[test]
    fn promises_last_until_they_are_kept() {
        let mut books = Books::new();
        let name = JobsetName::new("promising").unwrap();
        books.write(|tx| jobsets::put(tx, &name, "{}", true)).unwrap();
        let old = books.write(|tx| evaluations::start(tx, &name, "f", Time(1), &[])).unwrap();
        books.write(|tx| evaluations::end(tx, old, &Ending::Succeeded, false)).unwrap();
        assert_eq!(of(&books.conn, &name).unwrap(), Promised::default());
        for promise in [Promise::Look, Promise::Retry(old), Promise::Retry(old)] {
            books.write(|tx| make(tx, &name, promise)).unwrap();
        }
        let retry = Promised { look: false, retries: vec![(old, vec![])] };
        let both = Promised { look: true, retries: retry.retries.clone() };
        assert_eq!(of(&books.conn, &name).unwrap(), both);
        books.write(|tx| settle(tx, &name, Promise::Look)).unwrap();
        assert_eq!(of(&books.conn, &name).unwrap(), retry);
        books.write(|tx| settle(tx, &name, Promise::Retry(old))).unwrap();
        assert_eq!(of(&books.conn, &name).unwrap(), Promised::default());
        let gone = books.write(|tx| make(tx, &name, Promise::Retry(EvaluationId(99))));
        assert!(matches!(gone, Err(Error::NotFound(_))));
        books.write(|tx| make(tx, &name, Promise::Retry(old))).unwrap();
        books.write(|tx| jobsets::delete(tx, &name)).unwrap();
        assert!(matches!(
            books.write(|tx| make(tx, &name, Promise::Look)),
            Err(Error::NotFound(_))
        ));
        assert_eq!(of(&books.conn, &name).unwrap(), Promised::default());
    }
}
