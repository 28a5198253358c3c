//! What the daemon is compared with: the same work without it.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};

/// Inserts the rows that registration left in `source` into an empty database of the same schema, table by
/// table, by prepared statements in one transaction.
pub(crate) fn insert_same_rows(source: &Path) -> Duration {
    let directory = tempfile::tempdir().unwrap();
    let from = Connection::open(source).unwrap();
    let mut to = Connection::open(directory.path().join("floor.db")).unwrap();
    to.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON",
    )
    .unwrap();
    let schema: Vec<String> = from
        .prepare("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' ORDER BY rootpage")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    to.execute_batch(&schema.join(";")).unwrap();
    let tables = [
        "jobsets",
        "evaluations",
        "checkouts",
        "builds",
        "process_builds",
        "jobs",
        "outputs",
        "dependencies",
    ];
    let rows: Vec<Vec<Vec<Value>>> = tables.iter().map(|table| read(&from, table)).collect();
    let began = Instant::now();
    let transaction = to.transaction().unwrap();
    for (table, rows) in tables.iter().zip(rows) {
        let Some(width) = rows.first().map(Vec::len) else { continue };
        let marks = vec!["?"; width].join(",");
        let mut insert =
            transaction.prepare(&format!("INSERT INTO {table} VALUES ({marks})")).unwrap();
        for row in rows {
            insert.execute(params_from_iter(row)).unwrap();
        }
    }
    transaction.commit().unwrap();
    began.elapsed()
}

fn read(from: &Connection, table: &str) -> Vec<Vec<Value>> {
    let mut query = from.prepare(&format!("SELECT * FROM {table}")).unwrap();
    let width = query.column_count();
    query
        .query_map([], |row| (0..width).map(|column| row.get(column)).collect())
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap()
}

/// `true`, `count` times, on `threads` threads.
pub(crate) fn fork_exec(count: usize, threads: usize) -> Duration {
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                for _ in 0..count / threads {
                    assert!(Command::new("true").status().unwrap().success());
                }
            });
        }
    });
    began.elapsed()
}
