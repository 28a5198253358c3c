//! Pages and the API on the books of a large farm: a million builds, two thousand evaluations, one of a hundred
//! thousand jobs.

use std::time::{Duration, Instant};

use rusqlite::{Connection, Transaction, params};

use super::daemon::Daemon;
use super::web::{Client, address};
use super::{MANY, millis, percentile, report};

const JOBSETS: i64 = 20;
const EVALUATIONS: i64 = 2_000;
/// Which of them has [`MANY`] jobs; the others share the rest of the million.
const LARGE: i64 = 1_981;
const JOBS: i64 = 455;

/// Requests of each page, by one client; the first fills the caches.
const ROUNDS: usize = 50;

/// What a page may take, at the 99th of a hundred.
const LIMIT: Duration = Duration::from_millis(50);

const TARGETS: &[&str] = &[
    "/",
    "/jobset/js1",
    "/eval/1981",
    "/eval/1981?status=failed",
    "/eval/1981?status=newly-failed",
    "/eval/1981?status=pending",
    "/eval/1981?name=pkg9999",
    "/eval/1981/dashboard",
    "/eval/1981/compare?from=1961",
    "/build/900000/details",
    "/jobset/js1/job/pkg5.x86_64-linux",
    "/queue",
    "/status",
    "/workers",
    "/search?query=pkg77",
    "/search?query=status:failed",
    "/search?query=nothing",
    "/metrics",
    "/jobsets",
    "/build/900000",
    "/api/evaluation?id=1981",
    "/api/evaluations?nr=1000",
    "/api/jobs?evaluation=1990",
    "/api/jobs?evaluation=1981&nr=1000",
    "/api/jobs/history?spec=js1&names=pkg1.x86_64-linux,pkg2.x86_64-linux&nr=10",
    "/api/latestbuilds?nr=1000",
    "/api/latestbuilds?nr=10&status=0",
    "/api/latestbuilds?nr=10&jobset=js1&status=1",
    "/api/latestbuilds?nr=10&jobset=nosuch",
    "/api/queue?nr=100",
    "/api/search?query=pkg77&nr=10",
    "/api/evaluation/1981/diff?from=1961",
    "/eval/latest?spec=js1",
    "/eval/latest/channels.scm?spec=js1",
    "/search/latest?query=spec:js1+status:success+pkg5",
    "/jobset/js1/badge.svg",
    "/events/rss?specification=js1",
    "/prometheus",
];

/// How long each takes, one client, everything warm.
pub(super) fn pages() {
    let mut daemon = Daemon::start(&["--web=127.0.0.1:0", "--interval=3600"]);
    daemon.environment("GORGET_LOG", "info");
    daemon.stop();
    fill(&mut Connection::open(daemon.database()).unwrap());
    daemon.restart();
    let mut client = Client::new(address(&daemon));
    let mut slow = Vec::new();
    let mut worst = Duration::ZERO;
    for target in TARGETS {
        client.ask(target);
        let mut times: Vec<_> = (0..ROUNDS)
            .map(|_| {
                let began = Instant::now();
                client.ask(target);
                began.elapsed()
            })
            .collect();
        let time = percentile(&mut times, 99);
        worst = worst.max(time);
        if time > LIMIT {
            slow.push(format!("{target} {}", millis(time)));
        }
    }
    let late = if slow.is_empty() { "none is later".to_owned() } else { slow.join(", ") };
    report(
        &format!("{} pages and API routes, a million builds, p99 of the slowest", TARGETS.len()),
        &millis(worst),
        &format!("over {}: {late}", millis(LIMIT)),
        "each under 50 ms",
    );
}

/// Writes what so many evaluations would have left.
fn fill(conn: &mut Connection) {
    conn.execute_batch("PRAGMA synchronous = OFF; PRAGMA foreign_keys = OFF").unwrap();
    let tx = conn.transaction().unwrap();
    for n in 0..JOBSETS {
        let specification = format!(
            r#"{{"name":"js{n}","channels":[{{"name":"c","url":"https://example.org/{n}.git","branch":"main"}}],"command":["./jobs"]}}"#
        );
        tx.execute(
            "INSERT INTO jobsets (name, specification, active, created) VALUES (?1, ?2, 0, 1700000000)",
            params![format!("js{n}"), specification],
        )
        .unwrap();
    }
    let mut build = 0;
    for evaluation in 1..=EVALUATIONS {
        let jobs = if evaluation == LARGE { MANY as i64 } else { JOBS };
        build = fill_evaluation(&tx, evaluation, jobs, build);
    }
    tx.commit().unwrap();
}

/// One evaluation, its builds numbered from after `last`; the last number. One job in fifty fails.
fn fill_evaluation(tx: &Transaction<'_>, evaluation: i64, jobs: i64, last: i64) -> i64 {
    let jobset = format!("js{}", evaluation % JOBSETS);
    let time = 1_700_000_000 + 600 * evaluation;
    let bad = (jobs + 49) / 50;
    tx.execute(
        "INSERT INTO evaluations (id, jobset, status, fingerprint, timestamp, checkouttime, evaltime, total, succeeded, failed)
         VALUES (?1, ?2, 0, ?1, ?3, ?3 + 5, ?3 + 60, ?4, ?5, ?6)",
        params![evaluation, jobset, time, jobs, jobs - bad, bad],
    )
    .unwrap();
    tx.execute(
        "INSERT INTO checkouts (evaluation, position, channel, url, \"commit\", tree, directory)
         VALUES (?1, 0, 'c', 'https://example.org/c.git', ?2, ?2, '/c')",
        params![evaluation, format!("{evaluation:040x}")],
    )
    .unwrap();
    let mut builds = tx
        .prepare_cached(
            "INSERT INTO builds (id, derivation, evaluation, jobset, job, system, kind, nix_name, status, weather, priority,
                                 timeout, max_silent, timestamp, queued, starttime, stoptime)
             VALUES (?1, ?2, ?3, ?4, ?5, 'x86_64-linux', 1, ?6, ?7, ?8, 90, 3600, 900, ?9, ?9, ?9 + 10, ?9 + 60)",
        )
        .unwrap();
    let mut rows = tx
        .prepare_cached(
            "INSERT INTO jobs (evaluation, name, system, build, jobset, bad)
             VALUES (?1, ?2, 'x86_64-linux', ?3, (SELECT id FROM jobsets WHERE name = ?4), ?5)",
        )
        .unwrap();
    let mut outputs = tx
        .prepare_cached("INSERT INTO outputs (build, name, path) VALUES (?1, 'out', ?2)")
        .unwrap();
    for n in 0..jobs {
        let (id, job) = (last + n + 1, format!("pkg{n}.x86_64-linux"));
        let name = format!("pkg{n}-1.{evaluation}");
        let path = format!("/gnu/store/{id:032}-{name}");
        let (status, weather) = if n % 50 > 0 { (0, 2) } else { (1, 1 + 2 * (n % 100 / 50)) };
        builds
            .execute(params![
                id,
                format!("{path}.drv"),
                evaluation,
                jobset,
                job,
                name,
                status,
                weather,
                time
            ])
            .unwrap();
        rows.execute(params![evaluation, job, id, jobset, status]).unwrap();
        outputs.execute(params![id, path]).unwrap();
    }
    last + jobs
}
