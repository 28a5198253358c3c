//! The metrics that Cuirass computes, under its numbers; days are UTC.
//!
//! Where there is nothing to take a mean of, nothing is written.

use rusqlite::{named_params, params};

use super::{Error, Tx};

const DAY: i64 = 86_400;

/// Per active jobset: (number, how many of the latest evaluations) of the mean duration.
const DURATIONS: [(i64, i64); 3] = [(0, 10), (1, 100), (2, i64::MAX)];

/// The same of the percentage of evaluations that ended badly.
const FAILURES: [(i64, i64); 3] = [(6, 10), (7, 100), (8, i64::MAX)];

/// Counts over builds of a day, and what they count as.
const DAILY: [&str; 3] = [
    "SELECT 3, :yesterday, count(*) FROM builds
     WHERE timestamp >= :yesterday AND timestamp < :today AND stoptime >= :yesterday AND stoptime < :today",
    "SELECT 4, :today, count(*) + 0 * :yesterday FROM builds WHERE status < 0",
    "SELECT 5, :yesterday, count(*) FROM builds WHERE timestamp >= :yesterday AND timestamp < :today",
];

/// Over the builds that a recent successful evaluation introduced. ?1 is the earliest evaluation's time.
const PER_EVALUATION: [&str; 2] = [
    "SELECT 9, e.id, avg(b.starttime - e.evaltime) FROM evaluations e INDEXED BY evaluations_by_timestamp
     CROSS JOIN builds b ON b.evaluation = e.id
     WHERE e.timestamp >= ?1 AND e.status = 0 AND e.jobset <> '.withdrawn' AND b.starttime > 0 GROUP BY e.id",
    "SELECT 10, e.id, avg(b.stoptime - e.evaltime) FROM evaluations e INDEXED BY evaluations_by_timestamp
     CROSS JOIN builds b ON b.evaluation = e.id
     WHERE e.timestamp >= ?1 AND e.status = 0 AND e.jobset <> '.withdrawn' AND b.stoptime > 0 GROUP BY e.id",
];

/// Computes the metrics (types 0–12 of the reference, in UTC days).
pub(crate) fn compute(tx: &mut Tx<'_>) -> Result<(), Error> {
    let today = tx.now.0 - tx.now.0.rem_euclid(DAY);
    for (number, latest) in DURATIONS {
        put(
            tx,
            "SELECT ?1, j.name, (SELECT avg(evaltime - timestamp) FROM
                 (SELECT evaltime, timestamp FROM evaluations e WHERE e.jobset = j.name AND e.status = 0
                  ORDER BY e.id DESC LIMIT ?2))
             FROM jobsets j WHERE j.active",
            params![number, latest],
        )?;
    }
    for (number, latest) in FAILURES {
        put(
            tx,
            "SELECT ?1, j.name, coalesce((SELECT avg(100.0 * (status > 0)) FROM
                 (SELECT status FROM evaluations e WHERE e.jobset = j.name ORDER BY e.id DESC LIMIT ?2)), 0)
             FROM jobsets j WHERE j.active",
            params![number, latest],
        )?;
    }
    for query in DAILY {
        put(tx, query, named_params! { ":today": today, ":yesterday": today - DAY })?;
    }
    for query in PER_EVALUATION {
        put(tx, query, params![today - 2 * DAY])?;
    }
    put(
        tx,
        "SELECT 11, e.id, 3600.0 * sum(b.status = 0)
             / max(1, CASE WHEN sum(b.status < 0) > 0 THEN ?2 ELSE max(b.stoptime) END - e.evaltime)
         FROM evaluations e INDEXED BY evaluations_by_timestamp
     CROSS JOIN builds b ON b.evaluation = e.id
         WHERE e.timestamp >= ?1 AND e.status = 0 AND e.jobset <> '.withdrawn' AND b.stoptime > 0 GROUP BY e.id",
        params![today - 2 * DAY, today],
    )?;
    put(
        tx,
        "SELECT 12, w.machine, (SELECT count(*) FROM builds b INDEXED BY builds_ended_by_machine
             WHERE b.machine = w.machine AND b.machine IS NOT NULL AND b.status >= 0 AND b.stoptime >= ?1)
         FROM workers w GROUP BY w.machine",
        params![today],
    )
}

/// Writes what a query of (number, field, value) finds.
fn put(tx: &Tx<'_>, query: &str, params: impl rusqlite::Params) -> Result<(), Error> {
    let sql = format!(
        "INSERT OR REPLACE INTO metrics (type, field, value, timestamp)
         SELECT number, CAST(field AS TEXT), value, {now}
         FROM (WITH found (number, field, value) AS ({query}) SELECT * FROM found)
         WHERE value IS NOT NULL",
        now = tx.now.0
    );
    // Not kept: the text holds the time.
    tx.conn.prepare(&sql)?.execute(params)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::evaluations;
    use crate::db::testing::{Books, failure, job, success};
    use crate::model::evaluation::Ending;
    use crate::model::time::Time;

    fn value(books: &Books, number: i64, field: &str) -> Option<f64> {
        let mut statement =
            books.conn.prepare("SELECT value FROM metrics WHERE type = ?1 AND field = ?2").unwrap();
        let mut rows = statement.query(params![number, field]).unwrap();
        rows.next().unwrap().map(|row| row.get(0).unwrap())
    }

    #[test]
    fn durations_and_failures_of_evaluations() {
        let mut books = Books::new();
        let name = books.jobset("a");
        let fail = Ending::Failed("no".to_owned());
        let started = books.now;
        for (seconds, ending) in
            [(600, Ending::Succeeded), (5, fail.clone()), (100, Ending::Succeeded), (7, fail)]
        {
            books.now = started;
            let id = books.evaluation(&name);
            books.now = Time(started.0 + seconds);
            books.write(|tx| evaluations::end(tx, id, &ending, false)).unwrap();
        }
        books.write(compute).unwrap();
        for number in [0, 1, 2] {
            assert_eq!(value(&books, number, "a"), Some(350.0));
        }
        for number in [6, 7, 8] {
            assert_eq!(value(&books, number, "a"), Some(50.0));
        }
        // Nothing was built: no mean, no row.
        assert_eq!(value(&books, 9, "1"), None);
        books.write(compute).unwrap();
    }

    #[test]
    fn builds_of_yesterday() {
        let mut books = Books::new();
        let today = 20_000 * DAY;
        let yesterday = today - DAY;
        let name = books.jobset("a");
        books.now = Time(yesterday);
        let id = books.evaluation(&name);
        books.register(id, &[job("x", &[])]);
        books.now = Time(yesterday + 600);
        books.write(|tx| evaluations::end(tx, id, &Ending::Succeeded, false)).unwrap();
        books.now = Time(yesterday + 1600);
        let order = books.start("x");
        books.now = Time(yesterday + 2600);
        books.write(|tx| crate::db::builds::end(tx, order.id, 1, &success())).unwrap();
        books.now = Time(today + 50);
        let late = books.evaluation(&name);
        books.register(late, &[job("y", &[]), job("z", &[])]);
        books.write(compute).unwrap();
        let (yesterday, today) = (yesterday.to_string(), today.to_string());
        assert_eq!(value(&books, 3, &yesterday), Some(1.0));
        assert_eq!(value(&books, 4, &today), Some(2.0));
        assert_eq!(value(&books, 5, &yesterday), Some(1.0));
        assert_eq!(value(&books, 9, "1"), Some(1000.0));
        assert_eq!(value(&books, 10, "1"), Some(2000.0));
        assert_eq!(value(&books, 11, "1"), Some(1.8));
    }

    #[test]
    fn speed_and_machines() {
        let mut books = Books::new();
        books.now = Time(20_000 * DAY);
        let name = books.jobset("a");
        let id = books.evaluated(&name, &[job("x", &[]), job("y", &[])]);
        books
            .conn
            .execute_batch(
                "INSERT INTO workers (name, address, machine, systems, last_seen, joined)
                 VALUES ('w1', '', 'm', 's', 0, 0), ('w2', '', 'idle', 's', 0, 0)",
            )
            .unwrap();
        books.now = Time(books.now.0 + 4);
        books.run("x", &success());
        books.run("y", &failure());
        books.conn.execute("UPDATE builds SET worker = 'gone', machine = 'm'", []).unwrap();
        books.write(compute).unwrap();
        assert_eq!(value(&books, 11, &id.to_string()), Some(900.0));
        assert_eq!(value(&books, 12, "m"), Some(2.0));
        assert_eq!(value(&books, 12, "idle"), Some(0.0));
    }
}
