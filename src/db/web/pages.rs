//! What pages show: builds of evaluations by the page, what happened to a job, who needs whom.
//!
//! Lists go on from a key, never from a number of rows passed over, so that the last page costs what the first does.

use std::collections::BTreeMap;

use rusqlite::types::ToSql;
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::db::evaluations::{COLUMNS, WITHDRAWN, read};
use crate::db::{Error, convert, evaluations};
use crate::model::build::{Build, BuildId};
use crate::model::evaluation::{Checkout, Evaluation, EvaluationId};
use crate::model::spec::JobsetName;
use crate::model::status::{BuildStatus, Weather};
use crate::model::time::Time;

/// A build as lists show it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Listed {
    pub(crate) id: BuildId,
    pub(crate) jobset: JobsetName,
    pub(crate) evaluation: EvaluationId,
    pub(crate) job: String,
    pub(crate) system: String,
    pub(crate) nix_name: String,
    pub(crate) status: BuildStatus,
    pub(crate) weather: Weather,
    pub(crate) priority: i64,
    pub(crate) worker: Option<String>,
    pub(crate) timestamp: Time,
    pub(crate) starttime: Option<Time>,
    pub(crate) stoptime: Option<Time>,
    pub(crate) log: Option<String>,
    pub(crate) error: Option<String>,
}

/// The columns that `listed` takes, after job and system.
pub(super) const LISTED: &str = "b.id, b.jobset, b.evaluation, b.nix_name, b.status, b.weather, b.priority, b.worker, \
     b.timestamp, b.starttime, b.stoptime, b.log, b.error";

pub(super) fn listed(row: &Row<'_>) -> rusqlite::Result<Listed> {
    Ok(Listed {
        job: row.get(0)?,
        system: row.get(1)?,
        id: row.get(2)?,
        jobset: row.get(3)?,
        evaluation: row.get(4)?,
        nix_name: row.get(5)?,
        status: row.get(6)?,
        weather: row.get(7)?,
        priority: row.get(8)?,
        worker: row.get(9)?,
        timestamp: row.get(10)?,
        starttime: row.get(11)?,
        stoptime: row.get(12)?,
        log: row.get(13)?,
        error: row.get(14)?,
    })
}

impl From<Build> for Listed {
    fn from(build: Build) -> Self {
        Self {
            id: build.id,
            jobset: build.jobset,
            evaluation: build.evaluation,
            job: build.job,
            system: build.system,
            nix_name: build.nix_name,
            status: build.status,
            weather: build.weather,
            priority: build.priority,
            worker: build.worker,
            timestamp: build.timestamp,
            starttime: build.starttime,
            stoptime: build.stoptime,
            log: build.log.map(|path| path.display().to_string()),
            error: build.error,
        }
    }
}

/// Those of the builds that are still there.
pub(crate) fn each(conn: &Connection, ids: &[BuildId]) -> Result<Vec<Listed>, Error> {
    let mut statement = conn.prepare_cached(&format!(
        "SELECT b.job, b.system, {LISTED} FROM builds b WHERE b.id = ?1"
    ))?;
    let one = |id: &BuildId| statement.query_row([id], listed).optional().transpose();
    Ok(ids.iter().filter_map(one).collect::<Result<_, _>>()?)
}

/// Where a page of a list begins, in the order of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place<K> {
    First,
    After(K),
    Before(K),
    Last,
}

/// A page of a list, and whether there is more on either side.
#[derive(Debug, PartialEq)]
pub(crate) struct Page<T> {
    pub(crate) rows: Vec<T>,
    pub(crate) more_before: bool,
    pub(crate) more_after: bool,
}

impl<T> Page<T> {
    pub(crate) fn empty() -> Self {
        Self { rows: Vec::new(), more_before: false, more_after: false }
    }
}

impl<K> Place<K> {
    fn key(&self) -> Option<&K> {
        match self {
            Self::After(key) | Self::Before(key) => Some(key),
            Self::First | Self::Last => None,
        }
    }

    /// Whether rows are read from the end of the list.
    fn is_backward(&self) -> bool {
        matches!(self, Self::Before(_) | Self::Last)
    }

    /// Makes a page of rows that were read with one more than it holds.
    fn page<T>(&self, mut rows: Vec<T>, limit: usize) -> Page<T> {
        let more = rows.len() > limit;
        rows.truncate(limit);
        let (more_before, more_after) = match self {
            Self::First => (false, more),
            // There is at least what the key belongs to.
            Self::After(_) => (true, more),
            Self::Before(_) => (more, true),
            Self::Last => (more, false),
        };
        if self.is_backward() {
            rows.reverse();
        }
        Page { rows, more_before, more_after }
    }
}

/// A jobset's newest evaluations, newest first, without checkouts.
pub(crate) fn recent(
    conn: &Connection,
    jobset: &JobsetName,
    limit: usize,
) -> Result<Vec<Evaluation>, Error> {
    let mut statement = conn.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM evaluations WHERE jobset = ?1 ORDER BY id DESC LIMIT ?2"
    ))?;
    let rows = statement.query_map(params![jobset, convert::limit(limit)], read)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// A page of a jobset's evaluations, newest first, with checkouts.
pub(crate) fn evaluations(
    conn: &Connection,
    jobset: &JobsetName,
    place: &Place<EvaluationId>,
    limit: usize,
) -> Result<Page<Evaluation>, Error> {
    let (condition, order) = match place {
        Place::First => ("id > ?2", "DESC"),
        Place::After(_) => ("id < ?2", "DESC"),
        Place::Before(_) | Place::Last => ("id > ?2", "ASC"),
    };
    let key = place.key().copied().unwrap_or(EvaluationId(0));
    let rows: Vec<Evaluation> = conn
        .prepare_cached(&format!(
            "SELECT {COLUMNS} FROM evaluations WHERE jobset = ?1 AND {condition} ORDER BY id {order} LIMIT ?3"
        ))?
        .query_map(params![jobset, key, convert::limit(limit + 1)], read)?
        .collect::<Result<_, _>>()?;
    let mut page = place.page(rows, limit);
    for evaluation in &mut page.rows {
        evaluation.checkouts = evaluations::checkouts(conn, evaluation.id)?;
    }
    Ok(page)
}

/// The evaluation of the jobset before this one, with its checkouts.
pub(crate) fn checkouts_before(
    conn: &Connection,
    jobset: &JobsetName,
    id: EvaluationId,
) -> Result<Vec<Checkout>, Error> {
    let before: Option<EvaluationId> = conn
        .prepare_cached(
            "SELECT id FROM evaluations WHERE jobset = ?1 AND id < ?2 ORDER BY id DESC LIMIT 1",
        )?
        .query_row(params![jobset, id], |row| row.get(0))
        .optional()?;
    before.map_or(Ok(Vec::new()), |id| evaluations::checkouts(conn, id))
}

/// The succeeded evaluations of a jobset next to this one: before and after.
pub(crate) fn neighbours(
    conn: &Connection,
    jobset: &JobsetName,
    id: EvaluationId,
) -> Result<(Option<EvaluationId>, Option<EvaluationId>), Error> {
    let one = |sql: &str| -> Result<Option<EvaluationId>, Error> {
        let mut statement = conn.prepare_cached(sql)?;
        Ok(statement.query_row(params![jobset, id], |row| row.get(0)).optional()?)
    };
    Ok((
        one("SELECT id FROM evaluations WHERE jobset = ?1 AND id < ?2 AND status = 0
             ORDER BY id DESC LIMIT 1")?,
        one("SELECT id FROM evaluations WHERE jobset = ?1 AND id > ?2 AND status = 0
             ORDER BY id LIMIT 1")?,
    ))
}

/// Which jobs of an evaluation are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bucket {
    All,
    Succeeded,
    /// Whatever ended otherwise.
    Failed,
    /// What itself failed, or a dependency of it, and had succeeded in the evaluation compared with.
    NewlyFailed,
    Pending,
}

#[derive(Clone, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) evaluation: EvaluationId,
    pub(crate) bucket: Bucket,
    pub(crate) system: Option<&'a str>,
    /// A part of the job's name, whatever its case.
    pub(crate) name: Option<&'a str>,
    /// The evaluation before, for what failed newly.
    pub(crate) before: Option<EvaluationId>,
}

/// A page of the jobs of an evaluation, in the order of (name, system).
pub(crate) fn jobs(
    conn: &Connection,
    wanted: &Wanted<'_>,
    place: &Place<(String, String)>,
    limit: usize,
) -> Result<Page<Listed>, Error> {
    // The condition of the partial index, so that it is used.
    let bucket = match wanted.bucket {
        Bucket::All => "TRUE",
        Bucket::Succeeded => "j.bad = 0 AND +b.status = 0",
        Bucket::Failed => "j.bad > 0",
        Bucket::Pending => "j.bad = 0 AND +b.status < 0",
        Bucket::NewlyFailed => {
            "j.bad > 0 AND j.bad IN (1, 2) AND EXISTS (
                 SELECT 1 FROM jobs p CROSS JOIN builds q ON q.id = p.build
                 WHERE p.evaluation = :before AND p.name = j.name AND p.system = j.system AND p.bad = 0
                   AND q.status = 0)"
        }
    };
    let index = match wanted.bucket {
        Bucket::Failed | Bucket::NewlyFailed => "INDEXED BY jobs_bad",
        Bucket::All | Bucket::Succeeded | Bucket::Pending => "",
    };
    let (condition, order) = match place {
        Place::First => ("TRUE", ""),
        Place::After(_) => ("(j.name, j.system) > (:name, :system)", ""),
        Place::Before(_) => ("(j.name, j.system) < (:name, :system)", "DESC"),
        Place::Last => ("TRUE", "DESC"),
    };
    let limit_and_one = convert::limit(limit + 1);
    let part = wanted.name.map(holding);
    let mut values: Vec<(&str, &dyn ToSql)> =
        vec![(":evaluation", &wanted.evaluation), (":limit", &limit_and_one)];
    if let Some((name, system)) = place.key() {
        values.push((":name", name));
        values.push((":system", system));
    }
    if wanted.bucket == Bucket::NewlyFailed {
        values.push((":before", &wanted.before));
    }
    let mut conditions = format!("{condition} AND {bucket}");
    if let Some(system) = &wanted.system {
        conditions.push_str(" AND j.system = :only");
        values.push((":only", system));
    }
    if let Some(part) = &part {
        conditions.push_str(r" AND j.name LIKE :part ESCAPE '\'");
        values.push((":part", part));
    }
    let sql = format!(
        "SELECT j.name, j.system, {LISTED} FROM jobs j {index} CROSS JOIN builds b ON b.id = j.build
         WHERE j.evaluation = :evaluation AND {conditions}
         ORDER BY j.name {order}, j.system {order} LIMIT :limit"
    );
    let mut statement = conn.prepare_cached(&sql)?;
    let rows = statement.query_map(values.as_slice(), listed)?.collect::<Result<_, _>>()?;
    Ok(place.page(rows, limit))
}

/// The pattern of names that hold this, whatever their case: half of what it takes to lower each first.
fn holding(part: &str) -> String {
    let mut pattern = "%".to_owned();
    for letter in part.chars() {
        if matches!(letter, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(letter);
    }
    pattern.push('%');
    pattern
}

/// What a build's own page shows beside the build.
#[derive(Debug)]
pub(crate) struct Details {
    pub(crate) queued: Time,
    pub(crate) retry_at: Option<Time>,
    pub(crate) canceled_by: Option<String>,
    pub(crate) timeout: i64,
    pub(crate) max_silent: i64,
    /// Tries begun ever.
    pub(crate) tries: i64,
    pub(crate) expired: bool,
    /// JSON of what a process build runs.
    pub(crate) work: Option<String>,
    /// Where a remote build is built, or was.
    pub(crate) machine: Option<String>,
}

pub(crate) fn details(conn: &Connection, id: BuildId) -> Result<Option<Details>, Error> {
    Ok(conn
        .prepare_cached(
            "SELECT b.queued, b.retry_at, b.canceled_by, b.timeout, b.max_silent, b.attempt, b.expired, p.work, b.machine
             FROM builds b LEFT JOIN process_builds p ON p.build = b.id WHERE b.id = ?1",
        )?
        .query_row([id], |row| {
            Ok(Details {
                queued: row.get(0)?,
                retry_at: row.get(1)?,
                canceled_by: row.get(2)?,
                timeout: row.get(3)?,
                max_silent: row.get(4)?,
                tries: row.get(5)?,
                expired: row.get(6)?,
                work: row.get(7)?,
                machine: row.get(8)?,
            })
        })
        .optional()?)
}

/// Builds of a job, one for each evaluation that has it, newest evaluation first: (evaluation, build).
pub(crate) fn history(
    conn: &Connection,
    jobset: &JobsetName,
    (job, system): (&str, &str),
    below: Option<EvaluationId>,
    limit: usize,
) -> Result<Vec<(EvaluationId, Listed)>, Error> {
    let mut statement = conn.prepare_cached(&format!(
        "SELECT j.name, j.system, {LISTED}, j.evaluation
         FROM jobs j INDEXED BY jobs_by_name CROSS JOIN builds b ON b.id = j.build
         WHERE j.jobset = (SELECT id FROM jobsets WHERE name = ?1) AND j.name = ?2 AND j.system = ?3
           AND j.evaluation < ?4
         ORDER BY j.evaluation DESC LIMIT ?5"
    ))?;
    let below = below.unwrap_or(EvaluationId(i64::MAX));
    let rows = statement
        .query_map(params![jobset, job, system, below, convert::limit(limit)], |row| {
            Ok((row.get(15)?, listed(row)?))
        })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// The systems for which a jobset has a job of this name.
pub(crate) fn systems_of_job(
    conn: &Connection,
    jobset: &JobsetName,
    job: &str,
) -> Result<Vec<String>, Error> {
    // Jumps from system to system.
    let mut next = conn.prepare_cached(
        "SELECT j.system FROM jobs j INDEXED BY jobs_by_name
         WHERE j.jobset = (SELECT id FROM jobsets WHERE name = ?1) AND j.name = ?2 AND j.system > ?3
         ORDER BY j.system LIMIT 1",
    )?;
    let mut found: Vec<String> = Vec::new();
    while found.len() < 100 {
        let last = found.last().map_or("", String::as_str);
        let system = next.query_row(params![jobset, job, last], |row| row.get(0)).optional()?;
        let Some(system) = system else { break };
        found.push(system);
    }
    Ok(found)
}

/// Evaluations with a job for this build, newest first.
pub(crate) fn evaluations_with(
    conn: &Connection,
    id: BuildId,
    limit: usize,
) -> Result<Vec<(EvaluationId, JobsetName)>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT e.id, e.jobset FROM jobs j CROSS JOIN evaluations e ON e.id = j.evaluation
         WHERE j.build = ?1 AND e.jobset <> ?3 ORDER BY j.evaluation DESC LIMIT ?2",
    )?;
    let values = params![id, convert::limit(limit), WITHDRAWN];
    let rows = statement.query_map(values, |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Builds that run, the longest first.
pub(crate) fn running(conn: &Connection, limit: usize) -> Result<Vec<Listed>, Error> {
    let mut statement = conn.prepare_cached(&format!(
        "SELECT b.job, b.system, {LISTED} FROM builds b INDEXED BY builds_pending
         WHERE b.status < 0 AND b.status IN (-3, -1) ORDER BY b.starttime, b.id LIMIT ?1"
    ))?;
    let rows = statement.query_map([convert::limit(limit)], listed)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Builds that wait, in the order in which they start if nothing else holds them up.
pub(crate) fn waiting(conn: &Connection, limit: usize) -> Result<Vec<Listed>, Error> {
    let mut statement = conn.prepare_cached(&format!(
        "SELECT b.job, b.system, {LISTED} FROM builds b INDEXED BY builds_pending
         WHERE b.status < 0 AND b.status = -2 ORDER BY b.priority, b.timestamp, b.id LIMIT ?1"
    ))?;
    let rows = statement.query_map([convert::limit(limit)], listed)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// How many builds of each jobset run now.
pub(crate) fn running_by_jobset(conn: &Connection) -> Result<BTreeMap<String, i64>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT b.jobset, count(*) FROM builds b INDEXED BY builds_pending
         WHERE b.status < 0 AND b.status IN (-3, -1) GROUP BY b.jobset",
    )?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// How long the job's last build that succeeded took, for progress.
pub(crate) fn last_duration(conn: &Connection, build: &Listed) -> Result<Option<i64>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT b.stoptime - b.starttime FROM jobs j INDEXED BY jobs_by_name CROSS JOIN builds b ON b.id = j.build
         WHERE j.jobset = (SELECT id FROM jobsets WHERE name = ?1) AND j.name = ?2 AND j.system = ?3
           AND b.id <> ?4 AND b.status = 0 ORDER BY j.evaluation DESC LIMIT 1",
    )?;
    let found = statement
        .query_row(params![build.jobset, build.job, build.system, build.id], |row| row.get(0))
        .optional()?;
    Ok(found.flatten())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::db::testing::{Books, failure, job, success};

    #[test]
    fn jobs_are_paged_in_both_directions() {
        let mut books = Books::new();
        let name = books.jobset("a");
        let all: Vec<_> = ["a", "b", "c", "d", "e"].iter().map(|name| job(name, &[])).collect();
        let id = books.evaluated(&name, &all);
        let wanted =
            Wanted { evaluation: id, bucket: Bucket::All, system: None, name: None, before: None };
        let names = |place: &Place<(String, String)>| {
            let page = jobs(&books.conn, &wanted, place, 2).unwrap();
            let names: Vec<String> = page.rows.iter().map(|row| row.job.clone()).collect();
            (names.join(""), page.more_before, page.more_after)
        };
        let system = jobs(&books.conn, &wanted, &Place::First, 1).unwrap().rows[0].system.clone();
        let key = |name: &str| (name.to_owned(), system.clone());
        assert_eq!(names(&Place::First), ("ab".to_owned(), false, true));
        assert_eq!(names(&Place::After(key("b"))), ("cd".to_owned(), true, true));
        assert_eq!(names(&Place::After(key("d"))), ("e".to_owned(), true, false));
        assert_eq!(names(&Place::Before(key("c"))), ("ab".to_owned(), false, true));
        assert_eq!(names(&Place::Last), ("de".to_owned(), true, false));
    }

    #[test]
    fn what_failed_newly_had_succeeded_before() {
        let mut books = Books::new();
        let name = books.jobset("a");
        let mut old = [job("x", &[]), job("y", &[])];
        let before = books.evaluated(&name, &old);
        books.run("x", &success());
        books.run("y", &failure());
        for job in &mut old {
            job.derivation.push_str("-again");
        }
        let after = books.evaluated(&name, &old);
        books.run("x-again", &failure());
        books.run("y-again", &failure());
        let wanted = Wanted {
            evaluation: after,
            bucket: Bucket::NewlyFailed,
            system: None,
            name: None,
            before: Some(before),
        };
        let page = jobs(&books.conn, &wanted, &Place::First, 10).unwrap();
        assert_eq!(page.rows.iter().map(|row| row.job.as_str()).collect::<Vec<_>>(), ["x"]);
    }

    #[test]
    fn parts_of_names_are_found_whatever_their_case() {
        let mut books = Books::new();
        let name = books.jobset("a");
        let id = books.evaluated(&name, &["Ab", "a_b", "x%y\\z"].map(|name| job(name, &[])));
        let found = |part| -> Vec<String> {
            let wanted = Wanted {
                evaluation: id,
                bucket: Bucket::All,
                system: None,
                name: Some(part),
                before: None,
            };
            let page = jobs(&books.conn, &wanted, &Place::First, 10).unwrap();
            page.rows.into_iter().map(|row| row.job).collect()
        };
        assert_eq!(found("aB"), ["Ab"]);
        assert_eq!(found("A_"), ["a_b"]);
        assert_eq!(found("%Y\\"), ["x%y\\z"]);
        assert!(found("%b").is_empty());
    }

    /// What is asked for first is found among as many as there are of it, and nothing is sorted.
    #[test]
    fn what_ended_badly_is_read_by_its_index_in_order() {
        let mut books = Books::new();
        let name = books.jobset("a");
        let all: Vec<_> = (0..500).map(|n| job(&format!("job-{n}"), &[])).collect();
        let id = books.evaluated(&name, &all);
        for job in &all {
            books.run(&job.derivation, &if job.name == "job-7" { failure() } else { success() });
        }
        let steps = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&steps);
        let step = move || counted.fetch_add(1, Ordering::Relaxed) == usize::MAX;
        books.conn.progress_handler(1, Some(step)).unwrap();
        for bucket in [Bucket::Failed, Bucket::NewlyFailed] {
            for place in [Place::First, Place::Last] {
                let wanted =
                    Wanted { evaluation: id, bucket, system: None, name: None, before: Some(id) };
                steps.store(0, Ordering::Relaxed);
                jobs(&books.conn, &wanted, &place, 10).unwrap();
                let steps = steps.load(Ordering::Relaxed);
                assert!((1..200).contains(&steps), "{bucket:?} {place:?} takes {steps} steps");
            }
        }
    }
}
