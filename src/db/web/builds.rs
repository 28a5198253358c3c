//! Builds as programs and pages list them, with what they left.

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, params_from_iter};

use crate::db::builds::{COLUMNS, outputs, read};
use crate::db::snapshot::snapshot;
use crate::db::{Error, builds, convert};
use crate::model::build::{Build, BuildId};
use crate::model::evaluation::EvaluationId;

/// A build with the files that it left for people.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shown {
    pub(crate) build: Build,
    pub(crate) products: Vec<Left>,
}

/// A product, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) id: i64,
    pub(crate) kind: String,
    pub(crate) path: String,
    /// Bytes.
    pub(crate) size: i64,
    pub(crate) sha256: Option<String>,
}

/// What a list of builds selects by: all that is given must be so. A build's jobset, job and evaluation are those
/// that introduced it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) jobset: Option<String>,
    pub(crate) job: Option<String>,
    pub(crate) system: Option<String>,
    pub(crate) evaluation: Option<i64>,
    pub(crate) id: Option<i64>,
    pub(crate) derivation: Option<String>,
    pub(crate) worker: Option<String>,
    /// A number of the status.
    pub(crate) status: Option<i64>,
    /// Of evaluations older than this.
    pub(crate) older: Option<i64>,
    /// Ended before this time, or then and with a lower id …
    pub(crate) high: Option<(i64, i64)>,
    /// … and after this one.
    pub(crate) low: Option<(i64, i64)>,
}

/// What a list of ended builds is in the order of, newest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sorting {
    /// Evaluations, then builds.
    Evaluation,
    /// When they ended, then builds.
    End,
}

impl Filter {
    /// Whoever pages by the time of the end wants that order, and a worker has its builds in it.
    pub(crate) fn sorting(&self) -> Sorting {
        let single = self.id.is_some() || self.derivation.is_some();
        let range = self.high.is_some() || self.low.is_some();
        let of_worker = self.worker.is_some() && self.evaluation.is_none() && self.jobset.is_none();
        if !single && self.job.is_none() && (range || of_worker) {
            Sorting::End
        } else {
            Sorting::Evaluation
        }
    }
}

pub(crate) fn get(conn: &Connection, id: BuildId) -> Result<Option<Shown>, Error> {
    let build = builds::get(conn, id)?;
    build.map(|build| Ok(Shown { products: products(conn, id)?, build })).transpose()
}

/// Those of the builds that are still there.
pub(crate) fn each(conn: &Connection, ids: &[BuildId]) -> Result<Vec<Shown>, Error> {
    ids.iter().filter_map(|id| get(conn, *id).transpose()).collect()
}

/// The build of a derivation.
pub(crate) fn of_derivation(conn: &Connection, derivation: &str) -> Result<Option<Shown>, Error> {
    let id: Option<BuildId> = conn
        .prepare_cached("SELECT id FROM builds WHERE derivation = ?1")?
        .query_row([derivation], |row| row.get(0))
        .optional()?;
    id.map_or(Ok(None), |id| get(conn, id))
}

/// The newest build that left, or is to leave, a path: the output's name, and the build's id.
pub(crate) fn of_output(conn: &Connection, path: &str) -> Result<Option<(String, BuildId)>, Error> {
    Ok(conn
        .prepare_cached(
            "SELECT name, build FROM outputs WHERE path = ?1 ORDER BY build DESC LIMIT 1",
        )?
        .query_row([path], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?)
}

pub(crate) fn products(conn: &Connection, id: BuildId) -> Result<Vec<Left>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT id, type, path, size, sha256 FROM products WHERE build = ?1 ORDER BY id",
    )?;
    let rows = statement.query_map([id], |row| {
        Ok(Left {
            id: row.get(0)?,
            kind: row.get(1)?,
            path: row.get(2)?,
            size: row.get(3)?,
            sha256: row.get(4)?,
        })
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Builds that have ended: of the newest evaluation first, then the newest. `before` is the (evaluation, build) that
/// the list before this one ended with.
pub(crate) fn latest(
    conn: &Connection,
    filter: &Filter,
    before: Option<(EvaluationId, BuildId)>,
    limit: usize,
) -> Result<Vec<Shown>, Error> {
    let (sql, values) = latest_query(filter, before, limit);
    list(conn, &sql, values)
}

/// Builds that have yet to end, in the order in which they are begun: those that run come first.
pub(crate) fn queue(conn: &Connection, filter: &Filter, limit: usize) -> Result<Vec<Shown>, Error> {
    let mut found = Vec::new();
    for status in [-1, -2, -3] {
        if filter.status.is_some_and(|wanted| wanted != status) {
            continue;
        }
        let (sql, values) = queue_query(filter, status, limit - found.len());
        found.extend(list(conn, &sql, values)?);
        if found.len() >= limit {
            break;
        }
    }
    Ok(found)
}

fn list(conn: &Connection, sql: &str, values: Vec<Value>) -> Result<Vec<Shown>, Error> {
    let snapshot = snapshot(conn)?;
    let mut statement = conn.prepare_cached(sql)?;
    let rows = statement.query_map(params_from_iter(values), read)?;
    let found: Vec<Build> = rows.collect::<Result<_, _>>()?;
    let found = show(conn, found)?;
    drop(snapshot);
    Ok(found)
}

/// Adds outputs and products.
pub(crate) fn show(conn: &Connection, found: Vec<Build>) -> Result<Vec<Shown>, Error> {
    let snapshot = snapshot(conn)?;
    let found = found
        .into_iter()
        .map(|build| {
            let (outputs, products) = (outputs(conn, build.id)?, products(conn, build.id)?);
            Ok(Shown { build: Build { outputs, ..build }, products })
        })
        .collect();
    drop(snapshot);
    found
}

/// Conditions and their values, in step.
#[derive(Default)]
pub(super) struct Conditions {
    pub(super) text: Vec<String>,
    pub(super) values: Vec<Value>,
}

impl Conditions {
    /// `condition` has a `?` for each of the values.
    pub(super) fn add(&mut self, condition: &str, values: impl IntoIterator<Item = Value>) {
        self.text.push(condition.to_owned());
        self.values.extend(values);
    }

    pub(super) fn equal<T: Clone + Into<Value>>(&mut self, column: &str, value: Option<&T>) {
        if let Some(value) = value {
            self.add(&format!("{column} = ?"), [value.clone().into()]);
        }
    }
}

pub(super) fn number(value: i64) -> Value {
    Value::Integer(value)
}

/// What narrows a list further. A plus keeps a column from choosing the index.
fn rest(filter: &Filter, conditions: &mut Conditions) {
    conditions.equal("+b.jobset", filter.jobset.as_ref());
    conditions.equal("+b.job", filter.job.as_ref());
    conditions.equal("b.id", filter.id.as_ref());
    conditions.equal("b.derivation", filter.derivation.as_ref());
    conditions.equal("+b.worker", filter.worker.as_ref());
    if let Some(older) = filter.older {
        conditions.add("b.evaluation < ?", [number(older)]);
    }
    if let Some((time, id)) = filter.high {
        conditions.add("(b.stoptime, b.id) < (?, ?)", [number(time), number(id)]);
    }
    if let Some((time, id)) = filter.low {
        conditions.add("(b.stoptime, b.id) > (?, ?)", [number(time), number(id)]);
    }
}

/// The query of `latest`. Each form reads from an index that the most selective filter has, mostly in the order of the
/// list; further filters leave out of what that reads.
fn latest_query(
    filter: &Filter,
    before: Option<(EvaluationId, BuildId)>,
    limit: usize,
) -> (String, Vec<Value>) {
    let mut conditions = Conditions::default();
    let single = filter.id.is_some() || filter.derivation.is_some();
    let range = filter.high.is_some() || filter.low.is_some();
    let (mut order, mut group) = ("b.evaluation DESC, b.id DESC", "");
    let from = if single {
        "builds b"
    } else if let Some(job) = &filter.job {
        // As many rows as the job has had evaluations.
        conditions.add("j.name = ?", [job.clone().into()]);
        conditions.equal("s.name", filter.jobset.as_ref());
        group = "GROUP BY b.id";
        "jobsets s CROSS JOIN jobs j INDEXED BY jobs_by_name ON j.jobset = s.id
         CROSS JOIN builds b ON b.id = j.build"
    } else if filter.sorting() == Sorting::End {
        order = "b.stoptime DESC, b.id DESC";
        if filter.worker.is_some() {
            conditions.equal("b.worker", filter.worker.as_ref());
            "builds b INDEXED BY builds_ended_by_worker"
        } else {
            "builds b INDEXED BY builds_by_stoptime"
        }
    } else if filter.evaluation.is_some() {
        "builds b INDEXED BY builds_ended"
    } else if let Some(jobset) = &filter.jobset {
        conditions.add("e.jobset = ?", [jobset.clone().into()]);
        order = "e.id DESC, b.id DESC";
        "evaluations e INDEXED BY evaluations_by_jobset
         CROSS JOIN builds b INDEXED BY builds_ended ON b.evaluation = e.id"
    } else if filter.status.is_some_and(|status| status > 0) {
        "builds b INDEXED BY builds_ended_by_status"
    } else if filter.system.is_some() {
        "builds b INDEXED BY builds_ended_by_system"
    } else {
        "builds b INDEXED BY builds_ended"
    };
    conditions.add("b.status >= 0", []);
    match filter.status {
        // The condition of the partial index, so that it is used.
        Some(status) if status > 0 => {
            conditions.add(&format!("b.status > 0 AND b.status = {status}"), []);
        }
        Some(status) => conditions.add(&format!("+b.status = {status}"), []),
        None => {}
    }
    if range {
        conditions.add("b.stoptime IS NOT NULL", []);
    }
    conditions.equal("b.evaluation", filter.evaluation.as_ref());
    conditions.equal("b.system", filter.system.as_ref());
    rest(filter, &mut conditions);
    if let Some((evaluation, build)) = before {
        let (key, evaluation) = (order.starts_with("e."), number(evaluation.0));
        let key = if key { "e.id" } else { "b.evaluation" };
        conditions.add(
            &format!("{key} <= ? AND (b.evaluation, b.id) < (?, ?)"),
            [evaluation.clone(), evaluation, number(build.0)],
        );
    }
    conditions.values.push(number(convert::limit(limit)));
    let sql = format!(
        "SELECT {COLUMNS} FROM {from} WHERE {} {group} ORDER BY {order} LIMIT ?",
        conditions.text.join(" AND ")
    );
    (sql, conditions.values)
}

/// The query of `queue`, for one status.
fn queue_query(filter: &Filter, status: i64, limit: usize) -> (String, Vec<Value>) {
    let mut conditions = Conditions::default();
    let few = filter.id.is_some() || filter.derivation.is_some();
    let index = if few { "" } else { "INDEXED BY builds_pending" };
    conditions.add(&format!("b.status < 0 AND b.status = {status}"), []);
    conditions.equal("+b.evaluation", filter.evaluation.as_ref());
    conditions.equal("+b.system", filter.system.as_ref());
    rest(filter, &mut conditions);
    conditions.values.push(number(convert::limit(limit)));
    let sql = format!(
        "SELECT {COLUMNS} FROM builds b {index} WHERE {}
         ORDER BY b.priority, b.timestamp, b.id LIMIT ?",
        conditions.text.join(" AND ")
    );
    (sql, conditions.values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::migrate;
    use crate::db::testing::{Books, failure, job, success, version};

    fn ids(found: &[Shown]) -> Vec<i64> {
        found.iter().map(|shown| shown.build.id.0).collect()
    }

    #[test]
    fn lists_are_ordered_filtered_and_paged() {
        let mut books = Books::new();
        let (a, b) = (books.jobset("a"), books.jobset("b"));
        let first = books.evaluated(&a, &[job("x", &[]), job("y", &[])]);
        books.evaluated(&b, &[version("x", "x-of-b"), job("z", &[])]);
        books.run("x", &success());
        books.run("x-of-b", &failure());
        books.run("z", &success());
        let latest = |filter: &Filter| ids(&latest(&books.conn, filter, None, 10).unwrap());
        let of = |name: &str| books.id(name).0;
        let all = latest(&Filter::default());
        assert_eq!(all, [of("z"), of("x-of-b"), of("x")]);
        let jobset = Some("a".to_owned());
        assert_eq!(latest(&Filter { jobset: jobset.clone(), ..Filter::default() }), [of("x")]);
        let job = Some("x".to_owned());
        let by_job = Filter { job: job.clone(), ..Filter::default() };
        assert_eq!(latest(&by_job), [of("x-of-b"), of("x")]);
        assert_eq!(latest(&Filter { jobset, ..by_job.clone() }), [of("x")]);
        assert_eq!(latest(&Filter { status: Some(0), ..by_job }), [of("x")]);
        let good = Filter { status: Some(0), ..Filter::default() };
        assert_eq!(latest(&good), [of("z"), of("x")]);
        let bad = Filter { status: Some(1), ..Filter::default() };
        assert_eq!(latest(&bad), [of("x-of-b")]);
        let older = Filter { older: Some(first.0 + 1), ..Filter::default() };
        assert_eq!(latest(&older), [of("x")]);
        let none = Filter { jobset: Some("nosuch".to_owned()), ..Filter::default() };
        assert!(latest(&none).is_empty());

        let page = super::latest(&books.conn, &Filter::default(), None, 1).unwrap();
        let last = &page[0].build;
        let next =
            super::latest(&books.conn, &Filter::default(), Some((last.evaluation, last.id)), 10);
        assert_eq!(ids(&next.unwrap()), all[1..]);
        assert_eq!(ids(&queue(&books.conn, &Filter::default(), 10).unwrap()), [of("y")]);
    }

    /// Every filter and every two, so that a query that would read a whole table shows.
    #[test]
    fn every_list_finds_its_rows_by_an_index() {
        let conn = migrate::memory();
        let name = || Some("a".to_owned());
        let some = [
            Filter::default(),
            Filter { jobset: name(), ..Filter::default() },
            Filter { job: name(), ..Filter::default() },
            Filter { system: name(), ..Filter::default() },
            Filter { evaluation: Some(1), ..Filter::default() },
            Filter { id: Some(1), ..Filter::default() },
            Filter { derivation: name(), ..Filter::default() },
            Filter { worker: name(), ..Filter::default() },
            Filter { status: Some(0), ..Filter::default() },
            Filter { status: Some(1), ..Filter::default() },
            Filter { older: Some(1), ..Filter::default() },
            Filter { high: Some((1, 1)), ..Filter::default() },
        ];
        let both = |a: &Filter, b: &Filter| Filter {
            jobset: a.jobset.clone().or(b.jobset.clone()),
            job: a.job.clone().or(b.job.clone()),
            system: a.system.clone().or(b.system.clone()),
            evaluation: a.evaluation.or(b.evaluation),
            id: a.id.or(b.id),
            derivation: a.derivation.clone().or(b.derivation.clone()),
            worker: a.worker.clone().or(b.worker.clone()),
            status: a.status.or(b.status),
            older: a.older.or(b.older),
            high: a.high.or(b.high),
            low: a.high.or(b.high),
        };
        for a in &some {
            for b in &some {
                let filter = both(a, b);
                let before = Some((EvaluationId(1), BuildId(1)));
                for (sql, values) in [
                    latest_query(&filter, before, 10),
                    latest_query(&filter, None, 10),
                    queue_query(&filter, -2, 10),
                ] {
                    let mut plan = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
                    let rows = plan
                        .query_map(params_from_iter(values), |row| row.get::<_, String>(3))
                        .unwrap();
                    for detail in rows.map(Result::unwrap) {
                        let ordered = detail.contains("USING INDEX builds_ended");
                        let small = detail.starts_with("SCAN s ") || detail == "SCAN s";
                        let scan = detail.starts_with("SCAN") && !ordered && !small;
                        assert!(!scan, "{filter:?}\n{sql}\n{detail}");
                        if ordered && detail.starts_with("SCAN") {
                            assert!(filter.status.is_none_or(|s| s == 0), "{filter:?}\n{detail}");
                        }
                    }
                }
            }
        }
    }
}
