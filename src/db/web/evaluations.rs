//! Evaluations as programs and pages list them.

use rusqlite::{Connection, OptionalExtension, params};

use crate::db::evaluations::{COLUMNS, WITHDRAWN, checkouts, read, with_checkouts};
use crate::db::{Error, convert};
use crate::model::evaluation::{Checkout, Evaluation, EvaluationId};

/// Newest first, of all jobsets or one, older than `before`.
pub(crate) fn list(
    conn: &Connection,
    jobset: Option<&str>,
    before: Option<EvaluationId>,
    limit: usize,
) -> Result<Vec<Evaluation>, Error> {
    let (limit, before) = (convert::limit(limit), before.map_or(i64::MAX, |id| id.0));
    let found: Vec<Evaluation> = match jobset {
        Some(jobset) => conn
            .prepare_cached(&format!(
                "SELECT {COLUMNS} FROM evaluations WHERE jobset = ?1 AND id < ?2 AND jobset <> ?3
                 ORDER BY id DESC LIMIT ?4"
            ))?
            .query_map(params![jobset, before, WITHDRAWN, limit], read)?
            .collect::<Result<_, _>>()?,
        None => conn
            .prepare_cached(&format!(
                "SELECT {COLUMNS} FROM evaluations WHERE id < ?1 AND jobset <> ?2
                 ORDER BY id DESC LIMIT ?3"
            ))?
            .query_map(params![before, WITHDRAWN, limit], read)?
            .collect::<Result<_, _>>()?,
    };
    found.into_iter().map(|evaluation| with_checkouts(conn, evaluation)).collect()
}

/// A jobset's newest evaluation that has succeeded.
pub(crate) fn latest_succeeded(
    conn: &Connection,
    jobset: &str,
) -> Result<Option<Evaluation>, Error> {
    let found = conn
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM evaluations WHERE jobset = ?1 AND jobset <> ?2 AND status = 0
             ORDER BY id DESC LIMIT 1"
        ))?
        .query_row(params![jobset, WITHDRAWN], read)
        .optional()?;
    found.map(|evaluation| with_checkouts(conn, evaluation)).transpose()
}

/// The jobset's evaluation before this one.
fn before(conn: &Connection, evaluation: &Evaluation) -> Result<Option<EvaluationId>, Error> {
    Ok(conn
        .prepare_cached(
            "SELECT id FROM evaluations WHERE jobset = ?1 AND id < ?2 ORDER BY id DESC LIMIT 1",
        )?
        .query_row(params![evaluation.jobset, evaluation.id], |row| row.get(0))
        .optional()?)
}

/// Which of its checkouts differ from those of the jobset's evaluation before it; all, if there is none.
pub(crate) fn changed_checkouts(
    conn: &Connection,
    evaluation: &Evaluation,
) -> Result<Vec<Checkout>, Error> {
    let old = match before(conn, evaluation)? {
        Some(id) => checkouts(conn, id)?,
        None => Vec::new(),
    };
    let same = |new: &Checkout| {
        old.iter().any(|old| old.channel == new.channel && old.commit == new.commit)
    };
    Ok(evaluation.checkouts.iter().filter(|new| !same(new)).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::evaluations;
    use crate::db::testing::{Books, job};
    use crate::model::evaluation::Ending;

    #[test]
    fn the_latest_is_the_last_that_succeeded_and_lists_are_paged() {
        let mut books = Books::new();
        let name = books.jobset("a");
        assert_eq!(latest_succeeded(&books.conn, "a").unwrap(), None);
        let good = books.evaluated(&name, &[job("x", &[])]);
        let bad = books.evaluation(&name);
        let ending = Ending::Failed("no".to_owned());
        books.write(|tx| evaluations::end(tx, bad, &ending, false)).unwrap();
        let latest = latest_succeeded(&books.conn, "a").unwrap().unwrap();
        assert_eq!(latest.id, good);
        // Both at the same commit.
        assert_eq!(changed_checkouts(&books.conn, &latest).unwrap(), latest.checkouts);
        let last = evaluations::get(&books.conn, bad).unwrap().unwrap();
        assert_eq!(changed_checkouts(&books.conn, &last).unwrap(), []);
        let ids = |jobset, before| -> Vec<EvaluationId> {
            let found = list(&books.conn, jobset, before, 10).unwrap();
            found.iter().map(|evaluation| evaluation.id).collect()
        };
        assert_eq!(ids(None, None), [bad, good]);
        assert_eq!(ids(Some("a"), Some(bad)), [good]);
        assert_eq!(ids(Some("b"), None), []);
    }

    #[test]
    fn what_is_withdrawn_is_not_there() {
        let mut books = Books::new();
        let name = books.jobset("a");
        books.evaluated(&name, &[job("x", &[])]);
        books.write(|tx| crate::db::jobsets::delete(tx, &name)).unwrap();
        assert_eq!(list(&books.conn, None, None, 10).unwrap(), []);
        assert_eq!(list(&books.conn, Some(WITHDRAWN), None, 10).unwrap(), []);
        assert_eq!(latest_succeeded(&books.conn, WITHDRAWN).unwrap(), None);
    }
}
