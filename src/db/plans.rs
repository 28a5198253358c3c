//! A test of every statement of this layer: on tables that grow, it must find its rows by an index.

use super::builds::{self, Filter};
use super::migrate;
use crate::model::evaluation::EvaluationId;
use crate::model::spec::JobsetName;
use crate::model::status::BuildStatus;

const SOURCES: &[&str] = &[
    include_str!("builds/cancel.rs"),
    include_str!("builds/change.rs"),
    include_str!("builds/list.rs"),
    include_str!("builds/queue.rs"),
    include_str!("builds/register.rs"),
    include_str!("builds/restart.rs"),
    include_str!("builds/run.rs"),
    include_str!("builds/weather.rs"),
    include_str!("evaluations.rs"),
    include_str!("events.rs"),
    include_str!("jobsets.rs"),
    include_str!("maintenance.rs"),
    include_str!("metrics.rs"),
    include_str!("notifications.rs"),
    include_str!("promises.rs"),
    include_str!("records.rs"),
    include_str!("wanted.rs"),
    include_str!("web/downloads.rs"),
    include_str!("web/pages.rs"),
    include_str!("web/builds.rs"),
    include_str!("web/differences.rs"),
    include_str!("web/evaluations.rs"),
    include_str!("web/jobs.rs"),
    include_str!("web/machines.rs"),
    include_str!("web/relations.rs"),
    include_str!("web/search.rs"),
];

/// Tables that hold few rows, whatever happens.
const SMALL: &[&str] = &[
    "jobsets",
    "j",
    "s",
    "workers",
    "w",
    "tokens",
    "dashboards",
    "settings",
    "metrics",
    "orphans",
    "o",
    "retries",
    "r",
];

/// What is read in order, and only as far as the limit goes; what a query has collected itself.
const FINE: &[&str] = &[
    "LIMIT ?1",
    "SCAN hit",
    "SCAN last",
    "SCAN found",
    "SCAN CONSTANT ROW",
    "SCAN (subquery",
    "evaluations_started",
];

/// The statements in a source file before its tests, as far as they are plain literals.
fn statements(source: &str) -> Vec<String> {
    let code = source.split("#[cfg(test)]").next().unwrap_or_default();
    let starts = ["SELECT ", "UPDATE ", "DELETE ", "INSERT ", "WITH "];
    // Which columns are read does not matter.
    let code = code.replace("\\\"", "\u{1}").replace("{COLUMNS}", "*").replace("{LISTED}", "b.*");
    code.split('"')
        .skip(1)
        .step_by(2)
        .filter(|text| starts.iter().any(|start| text.starts_with(start)) && !text.contains('{'))
        .map(|text| text.replace('\u{1}', "\""))
        .collect()
}

#[test]
fn no_statement_scans_a_table_that_grows() {
    let conn = migrate::memory();
    let mut all: Vec<String> = SOURCES.iter().flat_map(|source| statements(source)).collect();
    assert!(all.len() > 80, "only {} statements were found", all.len());
    let some = (JobsetName::new("a"), Some(EvaluationId(1)));
    for jobset in [None, some.0] {
        for evaluation in [None, some.1] {
            for status in std::iter::once(None).chain(BuildStatus::ALL.iter().copied().map(Some)) {
                all.push(builds::query(&Filter { jobset: jobset.clone(), evaluation, status }));
            }
        }
    }
    let mut bad = Vec::new();
    for sql in all {
        let mut statement = conn
            .prepare(&format!("EXPLAIN QUERY PLAN {sql}"))
            .unwrap_or_else(|error| panic!("{error}: {sql}"));
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next().unwrap() {
            let detail: String = row.get(3).unwrap();
            let Some(table) = detail.strip_prefix("SCAN ") else { continue };
            let table = table.split(' ').next().unwrap_or_default();
            let fine = SMALL.contains(&table)
                || FINE.iter().any(|fine| detail.contains(fine) || sql.contains(fine));
            if !fine {
                bad.push(format!("{detail}\n{sql}"));
            }
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n\n"));
}
