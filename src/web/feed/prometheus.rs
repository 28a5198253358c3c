//! GET `/prometheus`: numbers in the text format of Prometheus.
//!
//! Invariant: nothing here takes longer the more builds the books hold. What the daemon alone knows is left out while
//! it is away, and `gorget_daemon_up` says so.

mod text;

use std::collections::BTreeMap;

use serde_json::Value;

use super::health;
use crate::db::web::machines;
use crate::db::web::numbers::{self, Ended, Standing};
use crate::db::workers;
use crate::model::evaluation::Counts;
use crate::model::status::BuildStatus;
use crate::proto::control::Command;
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::request::Request;
use crate::web::response::Response;
use crate::web::route::Captures;
use text::{Kind, Text};

const TYPE: &str = "text/plain;version=0.0.4;charset=utf-8";

/// Builds of the queue that the daemon is asked about: what waits behind them waits for them.
const ASKED: usize = 200;

/// The reason of those that it is not asked about.
const BEHIND: &str = "behind others";

/// Builds on remote workers that are looked at: more than there may be workers.
const RUNNING: usize = 10_000;

/// The most jobsets that are told of one by one: far more than any installation has.
const JOBSETS: usize = 1000;

pub(super) fn show(context: &mut Context, _: &Request, _: &Captures) -> Result<Response, Failure> {
    let mut text = Text::default();
    let (started, now) = (context.shared.started, context.now);
    text.one(
        "gorget_build_info",
        Kind::Gauge,
        "The version of the web interface.",
        &[("version", env!("CARGO_PKG_VERSION"))],
        1.0,
    );
    text.one(
        "gorget_web_start_time_seconds",
        Kind::Gauge,
        "When the web interface was started.",
        &[],
        whole(started.0),
    );
    let status = of_daemon(context, &mut text);
    books(context, &mut text, status.is_some())?;
    workers(context, &mut text)?;
    jobsets(context, &mut text, now.0)?;
    Ok(Response::bytes(200, TYPE, text.0).with("Cache-Control", "no-store"))
}

/// Counts are far below where a floating-point number is inexact.
#[expect(clippy::cast_precision_loss, reason = "counts, sizes and times are below 2^53")]
fn whole(number: i64) -> f64 {
    number as f64
}

fn flag(is: bool) -> f64 {
    f64::from(u8::from(is))
}

/// Name, help and place in the daemon's status of what its database has written.
const WRITER: [(&str, &str, &str); 3] = [
    (
        "gorget_database_transactions_total",
        "Transactions that the daemon has committed since it was started.",
        "/writer/transactions",
    ),
    ("gorget_database_requests_total", "Requests that were written by them.", "/writer/requests"),
    (
        "gorget_database_transaction_seconds_total",
        "How long they took, from their beginnings to their commits, all together.",
        "/writer/seconds",
    ),
];

/// What the daemon says of itself; `None` if it does not.
fn of_daemon(context: &Context, text: &mut Text) -> Option<Value> {
    let status = context
        .ask_within(health::DAEMON, Command::Status)
        .ok()
        .and_then(|objects| serde_json::from_str::<Value>(objects.first()?).ok());
    text.one(
        "gorget_daemon_up",
        Kind::Gauge,
        "Whether the daemon answers.",
        &[],
        flag(status.is_some()),
    );
    let status = status?;
    let number = |path: &str| status.pointer(path).and_then(Value::as_f64).unwrap_or(0.0);
    text.one(
        "gorget_daemon_uptime_seconds",
        Kind::Gauge,
        "How long the daemon has been running.",
        &[],
        number("/uptime"),
    );
    text.begin("gorget_pool_slots", Kind::Gauge, "Builds and evaluations that may run at once.");
    text.sample("gorget_pool_slots", &[("pool", "builds")], number("/builds/slots"));
    text.sample("gorget_pool_slots", &[("pool", "evaluations")], number("/evaluations/slots"));
    text.begin("gorget_pool_used", Kind::Gauge, "Builds and evaluations that run now.");
    text.sample("gorget_pool_used", &[("pool", "builds")], number("/builds/running"));
    text.sample("gorget_pool_used", &[("pool", "evaluations")], number("/evaluations/running"));
    text.one(
        "gorget_evaluations_waiting",
        Kind::Gauge,
        "Evaluations that wait for a slot.",
        &[],
        number("/evaluations/waiting"),
    );
    let paused = |what: &str| flag(status["paused"][what] == Value::Bool(true));
    text.begin("gorget_paused", Kind::Gauge, "Whether nothing new is begun until resumed.");
    text.sample("gorget_paused", &[("what", "builds")], paused("builds"));
    text.sample("gorget_paused", &[("what", "evaluations")], paused("evaluations"));
    if status["writer"].is_object() {
        for (name, help, field) in WRITER {
            text.one(name, Kind::Counter, help, &[], number(field));
        }
    }
    if let Some(bytes) = status["free-space"].as_f64() {
        text.one(
            "gorget_free_space_bytes",
            Kind::Gauge,
            "Free space where the daemon keeps its state.",
            &[],
            bytes,
        );
    }
    if let Some(obstacles) = status["obstacles"].as_array() {
        text.begin(
            "gorget_queue_obstructed_builds",
            Kind::Gauge,
            "Builds that wait for nothing but what is not there, such as a worker for their system.",
        );
        for held in obstacles {
            let labels = [("waiting", held["waiting"].as_str().unwrap_or_default())];
            let builds = held["builds"].as_f64().unwrap_or(0.0);
            text.sample("gorget_queue_obstructed_builds", &labels, builds);
        }
    }
    let warnings = status["warnings"].as_array().map_or(0, Vec::len);
    text.one(
        "gorget_warnings",
        Kind::Gauge,
        "What the daemon warned of when it started.",
        &[],
        f64::from(u32::try_from(warnings).unwrap_or(u32::MAX)),
    );
    Some(status)
}

fn books(context: &mut Context, text: &mut Text, up: bool) -> Result<(), Failure> {
    let books = context.books()?;
    let pending = numbers::pending(books)?;
    let (ever, evaluating) = (numbers::ever(books)?, numbers::evaluating(books)?);
    let (size, free) = numbers::size(books)?;
    let count = |wanted: BuildStatus| {
        pending.iter().find(|(status, _)| *status == wanted).map_or(0, |(_, count)| *count)
    };
    text.begin("gorget_builds_pending", Kind::Gauge, "Builds that have not ended, by status.");
    for status in [BuildStatus::Scheduled, BuildStatus::Submitted, BuildStatus::Started] {
        let labels = [("status", status.word())];
        text.sample("gorget_builds_pending", &labels, whole(count(status)));
    }
    if up && let Some(reasons) = queue(context, count(BuildStatus::Scheduled)) {
        text.begin(
            "gorget_queue_builds",
            Kind::Gauge,
            "Scheduled builds by what they wait for; beyond the first 200 they wait behind others.",
        );
        for (reason, count) in reasons {
            text.sample("gorget_queue_builds", &[("reason", reason)], whole(count));
        }
    }
    let counters = [
        ("gorget_builds_registered_total", "Builds ever registered.", ever.builds),
        ("gorget_evaluations_started_total", "Evaluations ever started.", ever.evaluations),
    ];
    for (name, help, value) in counters {
        text.one(name, Kind::Counter, help, &[], whole(value));
    }
    for (name, help, value) in [
        ("gorget_evaluations_running", "Evaluations that have not ended.", evaluating),
        ("gorget_database_size_bytes", "Bytes of the database's file.", size),
        ("gorget_database_free_bytes", "Bytes of the database's file that nothing uses.", free),
    ] {
        text.one(name, Kind::Gauge, help, &[], whole(value));
    }
    Ok(())
}

/// Remote workers by what they do, and those that each system has.
fn workers(context: &mut Context, text: &mut Text) -> Result<(), Failure> {
    let (now, books) = (context.now, context.books()?);
    let running = machines::running(books, RUNNING)?;
    let mut states = BTreeMap::from(["away", "building", "idle", "paused"].map(|word| (word, 0)));
    let mut systems: BTreeMap<String, i64> = BTreeMap::new();
    for worker in workers::list(books)? {
        let state = match () {
            () if worker.is_away(now) => "away",
            () if worker.paused => "paused",
            () if running.contains_key(&worker.name) => "building",
            () => "idle",
        };
        *states.entry(state).or_default() += 1;
        let serves = i64::from(state != "away" && state != "paused");
        for system in worker.systems {
            *systems.entry(system).or_default() += serves;
        }
    }
    text.begin("gorget_workers", Kind::Gauge, "Remote workers by state.");
    for (state, count) in states {
        text.sample("gorget_workers", &[("state", state)], whole(count));
    }
    text.begin(
        "gorget_system_workers",
        Kind::Gauge,
        "Remote workers that build for a system, those away or paused left out.",
    );
    for (system, count) in &systems {
        text.sample("gorget_system_workers", &[("system", system)], whole(*count));
    }
    Ok(())
}

/// Scheduled builds by reason; `None` if the daemon does not say.
fn queue(context: &Context, scheduled: i64) -> Option<BTreeMap<&'static str, i64>> {
    let asked = context.ask_within(health::DAEMON, Command::Queue { limit: ASKED }).ok()?;
    let mut reasons = BTreeMap::new();
    for object in &asked {
        let build = serde_json::from_str::<Value>(object).ok()?;
        *reasons.entry(kind(build["waiting"].as_str().unwrap_or_default())).or_insert(0) += 1;
    }
    // The queue may have moved on since it was counted.
    let told = i64::try_from(asked.len()).unwrap_or(i64::MAX);
    *reasons.entry(BEHIND).or_insert(0) += (scheduled - told).max(0);
    Some(reasons)
}

/// A reason without what it names, so that there are few.
fn kind(reason: &str) -> &'static str {
    const KINDS: &[&str] = &[
        "dependency",
        "slots",
        "queued",
        "paused",
        "no space",
        "retry",
        "no worker",
        "no backend",
        "store unreachable",
    ];
    KINDS.iter().find(|kind| reason.starts_with(**kind)).copied().unwrap_or("other")
}

/// A sample of each jobset that has one.
type Measure = fn(&Standing, i64) -> Option<f64>;

fn duration(ended: &Ended) -> Option<f64> {
    Some(whole(ended.evaltime?.0 - ended.timestamp.0))
}

/// Name, help and value of what is told of each jobset.
const OF_JOBSETS: &[(&str, &str, Measure)] = &[
    ("gorget_jobset_active", "Whether the jobset is looked at.", |jobset, _| {
        Some(flag(jobset.active))
    }),
    (
        "gorget_jobset_error",
        "Whether the jobset's last fetch or evaluation went wrong.",
        |jobset, _| Some(flag(jobset.trouble)),
    ),
    (
        "gorget_jobset_checked_age_seconds",
        "How long ago the jobset's channels were looked at with success.",
        |jobset, now| jobset.last_checked.map(|time| whole((now - time.0).max(0))),
    ),
    (
        "gorget_jobset_evaluation_status",
        "How the last evaluation ended: 0 succeeded, 1 failed, 2 aborted.",
        |jobset, _| jobset.last.as_ref().map(|ended| whole(ended.status.number())),
    ),
    (
        "gorget_jobset_evaluation_duration_seconds",
        "How long the last evaluation took, fetching included.",
        |jobset, _| jobset.last.as_ref().and_then(duration),
    ),
    ("gorget_jobset_evaluation_time_seconds", "When the last evaluation ended.", |jobset, _| {
        jobset.last.as_ref()?.evaltime.map(|time| whole(time.0))
    }),
];

/// Name, help, number and field of what the janitor computes: of a jobset …
const MEANS: &[(&str, &str, i64)] = &[
    (
        "gorget_jobset_evaluation_duration_mean_seconds",
        "Mean duration of the last ten evaluations that succeeded.",
        0,
    ),
    (
        "gorget_jobset_evaluation_failures_percent",
        "How many of the last ten evaluations ended badly.",
        6,
    ),
];

/// … and of its last evaluation that succeeded.
const BUILDS: &[(&str, &str, i64)] = &[
    ("gorget_jobset_build_wait_mean_seconds", "Mean time until its new builds began.", 9),
    ("gorget_jobset_build_end_mean_seconds", "Mean time until its new builds had ended.", 10),
    ("gorget_jobset_builds_per_hour", "Speed at which its new builds succeeded.", 11),
];

type Count = (&'static str, fn(&Counts) -> i64);

const COUNTS: &[Count] = &[
    ("succeeded", |jobs| jobs.succeeded),
    ("failed", |jobs| jobs.failed),
    ("pending", |jobs| jobs.pending),
    ("aborted", |jobs| jobs.aborted),
    ("canceled", |jobs| jobs.canceled),
];

fn jobsets(context: &mut Context, text: &mut Text, now: i64) -> Result<(), Failure> {
    let books = context.books()?;
    let jobsets = numbers::standings(books, JOBSETS)?;
    for &(name, help, value) in OF_JOBSETS {
        text.begin(name, Kind::Gauge, help);
        for jobset in &jobsets {
            if let Some(value) = value(jobset, now) {
                text.sample(name, &[("jobset", jobset.name.as_str())], value);
            }
        }
    }
    let name = "gorget_jobset_jobs";
    text.begin(name, Kind::Gauge, "Jobs of the last evaluation that succeeded, by status.");
    for jobset in &jobsets {
        let Some(good) = &jobset.good else { continue };
        for (status, count) in COUNTS {
            let labels = [("jobset", jobset.name.as_str()), ("status", *status)];
            text.sample(name, &labels, whole(count(&good.jobs)));
        }
    }
    for (of_jobset, table) in [(true, MEANS), (false, BUILDS)] {
        for &(name, help, number) in table {
            text.begin(name, Kind::Gauge, help);
            for jobset in &jobsets {
                let field = match &jobset.good {
                    _ if of_jobset => jobset.name.to_string(),
                    Some(good) => good.id.to_string(),
                    None => continue,
                };
                if let Some(value) = numbers::metric(books, number, &field)? {
                    text.sample(name, &[("jobset", jobset.name.as_str())], value);
                }
            }
        }
    }
    Ok(())
}
