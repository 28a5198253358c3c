//! What differs between the jobs of two evaluations.

use std::cmp::Ordering;
use std::collections::HashMap;

use rusqlite::{Connection, Row, params};

use crate::db::Error;
use crate::db::snapshot::snapshot;
use crate::model::build::BuildId;
use crate::model::evaluation::EvaluationId;
use crate::model::status::BuildStatus;

/// A job that two evaluations do not agree on, or that has not succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) job: String,
    pub(crate) system: String,
    pub(crate) from: Option<State>,
    pub(crate) to: Option<State>,
}

impl Difference {
    pub(crate) fn change(&self) -> Option<Change> {
        let Self { job, system, from, to } = self;
        Seen { job, system, from: *from, to: *to }.change()
    }
}

/// What a difference means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Change {
    NewlyFailed,
    NewlySucceeded,
    Added,
    Removed,
    StillFailing,
    Aborted,
    Unfinished,
}

impl Change {
    pub(crate) const ALL: [(Self, &'static str); 7] = [
        (Self::NewlyFailed, "newly-failed"),
        (Self::NewlySucceeded, "newly-succeeded"),
        (Self::Added, "added"),
        (Self::Removed, "removed"),
        (Self::StillFailing, "still-failing"),
        (Self::Aborted, "aborted"),
        (Self::Unfinished, "unfinished"),
    ];
}

/// A build, and how far it has come.
type State = (BuildId, BuildStatus);

/// A job of either evaluation, where it stands in the books.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) job: &'a str,
    pub(crate) system: &'a str,
    pub(crate) from: Option<State>,
    pub(crate) to: Option<State>,
}

impl Seen<'_> {
    /// Whether the evaluations do not agree on it, or it has not succeeded.
    fn is_difference(&self) -> bool {
        let good = |state: Option<State>| matches!(state, Some((_, BuildStatus::Succeeded)));
        !(good(self.from) && good(self.to))
    }

    fn to_difference(self) -> Difference {
        let Self { job, system, from, to } = self;
        Difference { job: job.to_owned(), system: system.to_owned(), from, to }
    }

    /// `None` if there is nothing to tell: another build succeeded as the one before it did.
    pub(crate) fn change(&self) -> Option<Change> {
        use BuildStatus::{
            Aborted, Canceled, Failed, FailedDependency, Scheduled, Started, Submitted, Succeeded,
        };
        let (from, to) = match (self.from, self.to) {
            (Some((_, from)), Some((_, to))) => (from, to),
            (None, Some(_)) => return Some(Change::Added),
            (_, None) => return Some(Change::Removed),
        };
        match to {
            Submitted | Scheduled | Started => Some(Change::Unfinished),
            Aborted | Canceled => Some(Change::Aborted),
            Failed | FailedDependency if from == Succeeded => Some(Change::NewlyFailed),
            Failed | FailedDependency => Some(Change::StillFailing),
            Succeeded => {
                (from != Succeeded && !from.is_pending()).then_some(Change::NewlySucceeded)
            }
        }
    }
}

/// The first `limit` differences, in the order of names.
pub(crate) fn between(
    conn: &Connection,
    from: EvaluationId,
    to: EvaluationId,
    limit: usize,
) -> Result<Vec<Difference>, Error> {
    let mut found = Vec::new();
    each(conn, from, to, |seen| {
        if found.len() < limit && seen.is_difference() {
            found.push(seen.to_difference());
        }
        found.len() < limit
    })?;
    Ok(found)
}

/// Tells of every job of either evaluation in the order of names, until `tell` says no. Both lists are read once, side
/// by side, as looking each job up in the other takes up to twice as long; builds are not read at all, because jobs are
/// marked with how theirs ended if that was badly, and those that wait are known.
pub(crate) fn each(
    conn: &Connection,
    from: EvaluationId,
    to: EvaluationId,
    mut tell: impl FnMut(&Seen<'_>) -> bool,
) -> Result<(), Error> {
    const JOBS: &str = "SELECT j.name, j.system, j.build, j.bad FROM jobs j
                        WHERE j.evaluation = ?1 ORDER BY j.name, j.system";
    let snapshot = snapshot(conn)?;
    let pending = pending(conn, from, to)?;
    let state = |row: &Row<'_>| -> rusqlite::Result<State> {
        let (id, ended): (BuildId, BuildStatus) = (row.get(2)?, row.get(3)?);
        Ok((id, pending.get(&id).copied().unwrap_or(ended)))
    };
    let (mut before, mut after) = (conn.prepare_cached(JOBS)?, conn.prepare_cached(JOBS)?);
    let (mut before, mut after) = (before.query([from])?, after.query([to])?);
    let (mut old, mut new) = (before.next()?, after.next()?);
    loop {
        let order = match (old, new) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => key(old)?.cmp(&key(new)?),
        };
        let (old_row, new_row) = (old.filter(|_| order.is_le()), new.filter(|_| order.is_ge()));
        // One of them is there.
        let Some(row) = new_row.or(old_row) else { break };
        let (job, system) = key(row)?;
        let (was, is) = (old_row.map(state).transpose()?, new_row.map(state).transpose()?);
        if !tell(&Seen { job, system, from: was, to: is }) {
            break;
        }
        if order.is_le() {
            old = before.next()?;
        }
        if order.is_ge() {
            new = after.next()?;
        }
    }
    drop(snapshot);
    Ok(())
}

/// All builds that have yet to end, if either evaluation has any: no more than wait in the queue.
fn pending(
    conn: &Connection,
    from: EvaluationId,
    to: EvaluationId,
) -> Result<HashMap<BuildId, BuildStatus>, Error> {
    let any: bool = conn
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM evaluations WHERE id IN (?1, ?2) AND pending > 0)",
        )?
        .query_row(params![from, to], |row| row.get(0))?;
    if !any {
        return Ok(HashMap::new());
    }
    let mut statement = conn.prepare_cached(
        "SELECT id, status FROM builds INDEXED BY builds_pending WHERE status < 0",
    )?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

fn key<'a>(row: &'a Row<'_>) -> Result<(&'a str, &'a str), Error> {
    let text = |at| -> rusqlite::Result<&'a str> { Ok(row.get_ref(at)?.as_str()?) };
    Ok((text(0)?, text(1)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::testing::{Books, failure, job, success, version};

    #[test]
    fn jobs_of_two_evaluations_are_told_apart() {
        let mut books = Books::new();
        let name = books.jobset("a");
        let first = ["broke", "gone", "mended", "same"].map(|name| job(name, &[]));
        let from = books.evaluated(&name, &first);
        for good in ["broke", "gone", "same"] {
            books.run(good, &success());
        }
        books.run("mended", &failure());
        let mut second = vec![job("same", &[]), job("waits", &[])];
        second.push(version("broke", "broke-2"));
        second.push(version("mended", "mended-2"));
        let to = books.evaluated(&name, &second);
        books.run("broke-2", &failure());
        books.run("mended-2", &success());
        let found = between(&books.conn, from, to, 10).unwrap();
        let told: Vec<_> = found.iter().map(|found| (found.job.as_str(), found.change())).collect();
        let expected = [
            ("broke", Some(Change::NewlyFailed)),
            ("gone", Some(Change::Removed)),
            ("mended", Some(Change::NewlySucceeded)),
            ("waits", Some(Change::Added)),
        ];
        assert_eq!(told, expected);
        let again = between(&books.conn, to, to, 10).unwrap();
        let told: Vec<_> = again.iter().map(|found| (found.job.as_str(), found.change())).collect();
        let expected = [("broke", Some(Change::StillFailing)), ("waits", Some(Change::Unfinished))];
        assert_eq!(told, expected);
    }
}
