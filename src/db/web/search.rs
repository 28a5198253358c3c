//! Finds builds by what people type.
//!
//! The first word is the beginning of a package's or job's name, and is found by an index of names; what else is said
//! only narrows what was found by that, or by the best other index. What no index narrows is bounded by the time
//! that the connection has for its queries. Only what is shown is read whole.

use std::cmp::Reverse;

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};

use super::builds::{Conditions, number};
use crate::db::builds::{COLUMNS, read};
use crate::db::evaluations::WITHDRAWN;
use crate::db::snapshot::snapshot;
use crate::db::{Error, convert};
use crate::model::build::{Build, BuildId};
use crate::model::evaluation::EvaluationId;
use crate::model::spec::JobsetName;
use crate::model::status::BuildStatus;

/// All of it must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Search {
    pub(crate) jobset: Option<JobsetName>,
    pub(crate) system: Option<String>,
    /// Exactly this name.
    pub(crate) job: Option<String>,
    pub(crate) evaluation: Option<EvaluationId>,
    pub(crate) status: Option<Sought>,
    /// The first as names begin, the others as names hold them, whatever their case.
    pub(crate) words: Vec<String>,
    /// What names must not hold, in lower case.
    pub(crate) without: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sought {
    Status(BuildStatus),
    Pending,
    NewlyFailed,
}

/// Jobs that are looked at for a name, those of the newest evaluations first: a name that more jobs begin with is
/// too short to find something old by.
const JOBS: i64 = 20_000;

/// What lists of builds are in the order of, the greatest first.
type Key = (EvaluationId, BuildId);

/// Where rows come from, each by an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Product,
    Evaluation,
    Job,
    Name,
    Waiting,
    Changed,
    Badly,
    Jobset,
    System,
    Ended,
}

impl Source {
    fn from(self) -> &'static str {
        match self {
            Self::Product => {
                "products p INDEXED BY products_by_type CROSS JOIN builds b ON b.id = p.build"
            }
            Self::Evaluation => {
                "evaluations e CROSS JOIN jobs j ON j.evaluation = e.id CROSS JOIN builds b ON b.id = j.build"
            }
            Self::Job => {
                "jobsets s CROSS JOIN jobs j INDEXED BY jobs_by_name ON j.jobset = s.id
                 CROSS JOIN builds b ON b.id = j.build"
            }
            Self::Name => "builds b INDEXED BY builds_ended_by_name",
            Self::Waiting => "builds b INDEXED BY builds_pending",
            Self::Changed => "builds b INDEXED BY builds_changed",
            Self::Badly => "builds b INDEXED BY builds_ended_by_status",
            Self::Jobset => {
                "evaluations e INDEXED BY evaluations_by_jobset
                 CROSS JOIN builds b INDEXED BY builds_ended ON b.evaluation = e.id"
            }
            Self::System => "builds b INDEXED BY builds_ended_by_system",
            Self::Ended => "builds b INDEXED BY builds_ended",
        }
    }

    fn order(self) -> &'static str {
        match self {
            Self::Product => "p.build DESC",
            Self::Jobset => "e.id DESC, b.id DESC",
            Self::Evaluation
            | Self::Job
            | Self::Name
            | Self::Waiting
            | Self::Changed
            | Self::Badly
            | Self::System
            | Self::Ended => "b.evaluation DESC, b.id DESC",
        }
    }
}

/// Sources that, with [`by_job`] if there are words, together have all that is sought.
fn sources(search: &Search) -> Vec<Source> {
    let ended = match search.status {
        None => None,
        Some(Sought::Status(status)) => Some(!status.is_pending()),
        Some(Sought::Pending) => Some(false),
        Some(Sought::NewlyFailed) => Some(true),
    };
    if search.evaluation.is_some() {
        return vec![Source::Evaluation];
    }
    if search.job.is_some() {
        return vec![Source::Job];
    }
    let mut found = Vec::new();
    if ended != Some(true) {
        found.push(Source::Waiting);
    }
    if !search.words.is_empty() {
        if ended != Some(false) {
            found.push(Source::Name);
        }
    } else if ended != Some(false) {
        found.push(match search.status {
            Some(Sought::NewlyFailed) => Source::Changed,
            Some(Sought::Status(status)) if status != BuildStatus::Succeeded => Source::Badly,
            _ if search.jobset.is_some() => Source::Jobset,
            _ if search.system.is_some() => Source::System,
            _ => Source::Ended,
        });
    }
    found
}

/// Names that begin so are from the first to before the second.
fn range(word: &str) -> [Value; 2] {
    [word.to_owned().into(), format!("{word}{}", char::MAX).into()]
}

fn text(name: &JobsetName) -> Value {
    name.as_str().to_owned().into()
}

/// A query of builds, or of products of this type.
fn query(
    source: Source,
    search: &Search,
    kind: Option<&str>,
    before: Option<Key>,
    limit: usize,
) -> (String, Vec<Value>) {
    let mut conditions = Conditions::default();
    let first = search.words.first().map(String::as_str);
    match source {
        Source::Product => {
            conditions.add("p.type = ?", [kind.unwrap_or_default().to_owned().into()])
        }
        Source::Evaluation => {
            let id = number(search.evaluation.map_or(0, |id| id.0));
            conditions.add("e.id = ? AND e.jobset <> ?", [id, WITHDRAWN.to_owned().into()]);
        }
        Source::Job => {
            conditions.equal("j.name", search.job.as_ref());
            if let Some(jobset) = &search.jobset {
                conditions.add("s.name = ?", [text(jobset)]);
            }
        }
        Source::Name => {
            let names = range(first.unwrap_or_default());
            conditions.add("b.status >= 0 AND b.nix_name >= ? AND b.nix_name < ?", names);
        }
        Source::Waiting => conditions.add("b.status < 0", []),
        Source::Changed => conditions.add("b.weather IN (0, 1)", []),
        Source::Badly => conditions.add("b.status > 0", []),
        Source::Jobset => {
            conditions.add("b.status >= 0", []);
            conditions.add("e.jobset = ?", search.jobset.as_ref().map(text));
        }
        Source::System => {
            conditions.add("b.status >= 0", []);
            conditions.equal("b.system", search.system.as_ref());
        }
        Source::Ended => conditions.add("b.status >= 0", []),
    }
    narrow(Some(source), search, &mut conditions);
    if let Some((evaluation, build)) = before {
        conditions.add(
            "b.evaluation <= ? AND (b.evaluation, b.id) < (?, ?)",
            [number(evaluation.0), number(evaluation.0), number(build.0)],
        );
    }
    conditions.values.push(number(convert::limit(limit)));
    let columns = if source == Source::Product { "p.id" } else { "b.evaluation, b.id" };
    let group = match source {
        Source::Evaluation | Source::Job => "GROUP BY b.id",
        _ => "",
    };
    let sql = format!(
        "SELECT {columns} FROM {} WHERE {} {group} ORDER BY {} LIMIT ?",
        source.from(),
        conditions.text.join(" AND "),
        source.order()
    );
    (sql, conditions.values)
}

/// What the source, or without one the name of a job, does not select by itself. A plus keeps a column from choosing
/// another index.
fn narrow(source: Option<Source>, search: &Search, conditions: &mut Conditions) {
    if let Some(jobset) = search.jobset.as_ref().filter(|_| source != Some(Source::Job)) {
        conditions.add("+b.jobset = ?", [text(jobset)]);
    }
    conditions.equal("+b.system", search.system.as_ref());
    if source == Some(Source::Product) {
        conditions.equal("+b.job", search.job.as_ref());
        if let Some(evaluation) = search.evaluation {
            conditions.add(
                "EXISTS (SELECT 1 FROM jobs j WHERE j.build = b.id AND j.evaluation = ?)",
                [number(evaluation.0)],
            );
        }
    } else if source == Some(Source::Evaluation) {
        conditions.equal("+j.name", search.job.as_ref());
    }
    match search.status {
        None => {}
        Some(Sought::Pending) => conditions.add("+b.status < 0", []),
        Some(Sought::NewlyFailed) => conditions.add("+b.status > 0 AND +b.weather = 1", []),
        Some(Sought::Status(status)) => {
            let by = matches!(source, Some(Source::Badly | Source::Waiting));
            let column = if by { "b.status" } else { "+b.status" };
            conditions.add(&format!("{column} = {}", status.number()), []);
        }
    }
    if let Some((first, others)) = search.words.split_first() {
        if !matches!(source, None | Some(Source::Name)) {
            let ([low, high], [from, to]) = (range(first), range(first));
            conditions.add(
                "(+b.nix_name >= ? AND +b.nix_name < ? OR +b.job >= ? AND +b.job < ?)",
                [low, high, from, to],
            );
        }
        for word in others {
            let word = word.to_lowercase();
            conditions.add("instr(lower(b.nix_name || ' ' || b.job), ?) > 0", [word.into()]);
        }
    }
    for word in &search.without {
        conditions.add("instr(lower(b.nix_name || ' ' || b.job), ?) = 0", [word.clone().into()]);
    }
}

/// Builds, those of the newest evaluation first, then the newest. `before` is the (evaluation, build) that the list
/// before this one ended with.
pub(crate) fn find(
    conn: &Connection,
    search: &Search,
    before: Option<Key>,
    limit: usize,
) -> Result<Vec<Build>, Error> {
    let snapshot = snapshot(conn)?;
    let mut found = Vec::new();
    if let Some(first) = search.words.first()
        && search.evaluation.is_none()
        && search.job.is_none()
    {
        found = by_job(conn, search, first, before, limit)?;
    }
    for source in sources(search) {
        let (sql, values) = query(source, search, None, before, limit);
        let mut statement = conn.prepare_cached(&sql)?;
        let rows = statement.query_map(params_from_iter(values), key)?;
        for row in rows {
            found.push(row?);
        }
    }
    found.sort_unstable_by_key(|key| Reverse(*key));
    found.dedup();
    let mut statement =
        conn.prepare_cached(&format!("SELECT {COLUMNS} FROM builds b WHERE b.id = ?1"))?;
    let one = |(_, id): &Key| statement.query_row([id], read).optional().transpose();
    let found = found.iter().take(limit).filter_map(one).collect::<Result<_, _>>()?;
    drop(snapshot);
    Ok(found)
}

fn key(row: &Row<'_>) -> rusqlite::Result<Key> {
    Ok((row.get(0)?, row.get(1)?))
}

/// Builds whose job's name begins so: walks from the newest evaluation to those before it, each of which has the builds
/// that it introduced, until there are enough.
fn by_job(
    conn: &Connection,
    search: &Search,
    first: &str,
    before: Option<Key>,
    limit: usize,
) -> Result<Vec<Key>, Error> {
    let jobs = match &search.jobset {
        None => {
            "SELECT j.evaluation, j.build FROM evaluations e CROSS JOIN jobs j ON j.evaluation = e.id
             WHERE e.jobset <> ?1 AND e.id <= ?2 AND j.name >= ?3 AND j.name < ?4
             ORDER BY e.id DESC LIMIT ?5"
        }
        Some(_) => {
            "SELECT j.evaluation, j.build FROM evaluations e INDEXED BY evaluations_by_jobset
             CROSS JOIN jobs j ON j.evaluation = e.id
             WHERE e.jobset = ?1 AND e.id <= ?2 AND j.name >= ?3 AND j.name < ?4
             ORDER BY e.id DESC LIMIT ?5"
        }
    };
    let jobset = search.jobset.as_ref().map_or(WITHDRAWN, JobsetName::as_str);
    let from = before.map_or(EvaluationId(i64::MAX), |(evaluation, _)| evaluation);
    let [low, high] = range(first);
    let mut conditions = Conditions::default();
    conditions.add("b.evaluation = ? AND b.id = ?", []);
    narrow(None, search, &mut conditions);
    let fits = format!("SELECT 1 FROM builds b WHERE {}", conditions.text.join(" AND "));
    let mut fits = conn.prepare_cached(&fits)?;
    let mut fits = |(evaluation, build): Key| {
        let key = [number(evaluation.0), number(build.0)];
        fits.exists(params_from_iter(key.iter().chain(&conditions.values)))
    };
    let mut statement = conn.prepare_cached(jobs)?;
    let mut rows = statement.query(params![jobset, from, low, high, JOBS])?;
    let (mut found, mut block): (Vec<Key>, Vec<Key>) = (Vec::new(), Vec::new());
    loop {
        let next = rows.next()?.map(key).transpose()?;
        let is_whole = block.last().is_some_and(|last| next.is_none_or(|next| next.0 != last.0));
        if is_whole {
            block.sort_unstable_by_key(|key| Reverse(*key));
            block.dedup();
            for key in block.drain(..) {
                if before.is_none_or(|before| key < before) && fits(key)? {
                    found.push(key);
                }
                if found.len() == limit {
                    return Ok(found);
                }
            }
        }
        match next {
            Some(next) => block.push(next),
            None => return Ok(found),
        }
    }
}

/// The newest product of a type among those of the builds that are sought.
pub(crate) fn latest_product(
    conn: &Connection,
    search: &Search,
    kind: &str,
) -> Result<Option<i64>, Error> {
    let (sql, values) = query(Source::Product, search, Some(kind), None, 1);
    let mut statement = conn.prepare_cached(&sql)?;
    Ok(statement.query_row(params_from_iter(values), |row| row.get(0)).optional()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::migrate;
    use crate::db::testing::{Books, failure, job, success, version};

    #[test]
    fn names_are_found_by_how_they_begin() {
        let mut books = Books::new();
        let name = books.jobset("a");
        let jobs = [job("frob", &[]), job("frob-doc", &[]), job("other", &[])];
        let evaluation = books.evaluated(&name, &jobs);
        books.run("frob", &success());
        books.run("other", &failure());
        let found = |search: &Search| -> Vec<String> {
            let found = find(&books.conn, search, None, 10).unwrap();
            found.into_iter().map(|build| build.job).collect()
        };
        let words = |words: &[&str]| Search {
            words: words.iter().map(|&word| word.to_owned()).collect(),
            ..Search::default()
        };
        assert_eq!(found(&words(&["fro"])), ["frob-doc", "frob"]);
        assert_eq!(found(&words(&["frob", "DOC"])), ["frob-doc"]);
        assert!(found(&words(&["rob"])).is_empty());
        let spec = |name: &str| Search { jobset: JobsetName::new(name), ..words(&["fro"]) };
        assert_eq!(found(&spec("a")), ["frob-doc", "frob"]);
        assert!(found(&spec("b")).is_empty());
        let without = Search { without: vec!["doc".to_owned()], ..words(&["frob"]) };
        assert_eq!(found(&without), ["frob"]);
        assert_eq!(found(&Search::default()), ["other", "frob-doc", "frob"]);
        let pending = Search { status: Some(Sought::Pending), ..Search::default() };
        assert_eq!(found(&pending), ["frob-doc"]);
        let here = Search { evaluation: Some(evaluation), ..words(&["o"]) };
        assert_eq!(found(&here), ["other"]);
        let newest = find(&books.conn, &Search::default(), None, 1).unwrap();
        let last = (newest[0].evaluation, newest[0].id);
        assert_eq!(find(&books.conn, &Search::default(), Some(last), 10).unwrap().len(), 2);
    }

    /// A build that many jobs have is found once, in the evaluation that introduced it.
    #[test]
    fn names_are_looked_for_from_the_newest_evaluation_on() {
        let mut books = Books::new();
        let name = books.jobset("a");
        let evaluation = books.evaluated(&name, &[job("frob", &[]), job("frob-doc", &[])]);
        books.run("frob", &success());
        let fro = Search { words: vec!["fro".to_owned()], ..Search::default() };
        let second = books.evaluated(&name, &[job("frob", &[]), version("frob-2", "two")]);
        let all = find(&books.conn, &fro, None, 10).unwrap();
        let keys: Vec<_> = all.iter().map(|build| (build.evaluation, build.job.as_str())).collect();
        assert_eq!(keys, [(second, "frob-2"), (evaluation, "frob-doc"), (evaluation, "frob")]);
        for (at, build) in all.iter().enumerate() {
            let key = Some((build.evaluation, build.id));
            assert_eq!(find(&books.conn, &fro, key, 10).unwrap(), all[at + 1..]);
            assert_eq!(find(&books.conn, &fro, None, at).unwrap(), all[..at]);
        }
    }

    #[test]
    fn every_source_is_read_by_its_index() {
        let conn = migrate::memory();
        let all = Search {
            jobset: JobsetName::new("a"),
            system: Some("s".to_owned()),
            job: Some("j".to_owned()),
            evaluation: Some(EvaluationId(1)),
            status: None,
            words: vec!["w".to_owned(), "x".to_owned()],
            without: vec!["y".to_owned()],
        };
        let sources = [
            Source::Product,
            Source::Evaluation,
            Source::Job,
            Source::Name,
            Source::Waiting,
            Source::Changed,
            Source::Badly,
            Source::Jobset,
            Source::System,
            Source::Ended,
        ];
        for source in sources {
            let (sql, values) =
                query(source, &all, Some("t"), Some((EvaluationId(1), BuildId(1))), 1);
            let mut plan = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let rows =
                plan.query_map(params_from_iter(values), |row| row.get::<_, String>(3)).unwrap();
            for detail in rows.map(Result::unwrap) {
                // Those are few, those are bounded, those are in order of an index.
                let fine = ["SCAN e", "SCAN f", "SCAN (subquery", "SCAN s"];
                let ordered = detail.contains("USING INDEX");
                let scan = detail.starts_with("SCAN");
                assert!(
                    !scan || ordered || fine.iter().any(|fine| detail.starts_with(fine)),
                    "{sql}\n{detail}"
                );
            }
        }
    }
}
