//! What differs between the jobs of two evaluations.

use rusqlite::{Connection, Row, named_params};

use crate::db::{Error, convert};
use crate::model::build::BuildId;
use crate::model::evaluation::EvaluationId;
use crate::model::status::BuildStatus;

/// A job that two evaluations do not agree on, or that has not succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) job: String,
    pub(crate) system: String,
    pub(crate) from: Option<(BuildId, BuildStatus)>,
    pub(crate) to: Option<(BuildId, BuildStatus)>,
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

impl Difference {
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

/// In the order of names, what is gone last; at most `limit` of either.
pub(crate) fn between(
    conn: &Connection,
    from: EvaluationId,
    to: EvaluationId,
    limit: usize,
) -> Result<Vec<Difference>, Error> {
    let mut there = conn.prepare_cached(
        "SELECT j.name, j.system, o.id, o.status, n.id, n.status
         FROM jobs j CROSS JOIN builds n ON n.id = j.build
         LEFT JOIN jobs p ON p.evaluation = :from AND p.name = j.name AND p.system = j.system
         LEFT JOIN builds o ON o.id = p.build
         WHERE j.evaluation = :to AND (n.status <> 0 OR p.build IS NULL OR o.status <> 0)
         ORDER BY j.name, j.system LIMIT :limit",
    )?;
    let mut gone = conn.prepare_cached(
        "SELECT p.name, p.system, o.id, o.status, NULL, NULL
         FROM jobs p CROSS JOIN builds o ON o.id = p.build
         WHERE p.evaluation = :from AND NOT EXISTS (
             SELECT 1 FROM jobs j WHERE j.evaluation = :to AND j.name = p.name AND j.system = p.system)
         ORDER BY p.name, p.system LIMIT :limit",
    )?;
    let limit = convert::limit(limit);
    let values = named_params! { ":from": from, ":to": to, ":limit": limit };
    let mut found: Vec<Difference> = there.query_map(values, read)?.collect::<Result<_, _>>()?;
    for difference in gone.query_map(values, read)? {
        found.push(difference?);
    }
    Ok(found)
}

fn read(row: &Row<'_>) -> rusqlite::Result<Difference> {
    let pair = |at| -> rusqlite::Result<Option<(BuildId, BuildStatus)>> {
        let id: Option<BuildId> = row.get(at)?;
        let status: Option<BuildStatus> = row.get(at + 1)?;
        Ok(id.zip(status))
    };
    Ok(Difference { job: row.get(0)?, system: row.get(1)?, from: pair(2)?, to: pair(4)? })
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
            ("mended", Some(Change::NewlySucceeded)),
            ("waits", Some(Change::Added)),
            ("gone", Some(Change::Removed)),
        ];
        assert_eq!(told, expected);
        let again = between(&books.conn, to, to, 10).unwrap();
        let told: Vec<_> = again.iter().map(|found| (found.job.as_str(), found.change())).collect();
        let expected = [("broke", Some(Change::StillFailing)), ("waits", Some(Change::Unfinished))];
        assert_eq!(told, expected);
    }
}
