//! Objects of answers as people read them.

use std::io;

use serde_json::Value;

use super::output::{Column, Output, clean};
use crate::model::status::BuildStatus;
use crate::model::time::Time;
use crate::sys::clock;

/// A field that is a string; empty if it is none.
pub(super) fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap_or("")
}

/// A field of any simple kind.
fn plain(object: &Value, field: &str) -> String {
    match &object[field] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(flag) => if *flag { "yes" } else { "no" }.to_owned(),
        Value::Array(values) => {
            let words: Vec<_> = values.iter().filter_map(Value::as_str).collect();
            words.join(" ")
        }
        number @ (Value::Number(_) | Value::Object(_)) => number.to_string(),
    }
}

fn time(object: &Value, field: &str) -> Option<Time> {
    object[field].as_i64().map(Time)
}

/// A duration in at most two units: `42 s`, `3 min`, `2 h 5 min`, `4 d`.
pub(super) fn duration(seconds: u64) -> String {
    let two = |big: u64, unit: &str, small: u64, smaller: &str| match small {
        0 => format!("{big} {unit}"),
        _ => format!("{big} {unit} {small} {smaller}"),
    };
    match seconds {
        0..60 => format!("{seconds} s"),
        60..600 => two(seconds / 60, "min", seconds % 60, "s"),
        600..3600 => format!("{} min", seconds / 60),
        3600..86_400 => two(seconds / 3600, "h", seconds % 3600 / 60, "min"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3600, "h"),
    }
}

/// A duration for a column: `599s`, `10min`, `599min`, `10h`, `239h`, `10d`. Never less than two digits of it once it
/// is long, and never more than six characters in the first ten years.
fn short(seconds: u64) -> String {
    match seconds {
        0..600 => format!("{seconds}s"),
        600..36_000 => format!("{}min", seconds / 60),
        36_000..864_000 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// How long ago, or in how long.
fn distance(time: Option<Time>, now: Time) -> String {
    match time {
        None => "-".to_owned(),
        Some(time) if time > now => format!("in {}", short(now.until(time).as_secs())),
        Some(time) => format!("{} ago", short(time.until(now).as_secs())),
    }
}

/// From `start` to `stop`, or until now for what still goes on.
fn took(start: Option<Time>, stop: Option<Time>, now: Time) -> String {
    start.map_or_else(|| "-".to_owned(), |start| short(start.until(stop.unwrap_or(now)).as_secs()))
}

/// Why a build waits, with a time of day where the daemon's word for it has Unix seconds.
fn reason(waiting: &str) -> String {
    let time = waiting.strip_prefix(RETRY_AT).and_then(|seconds| seconds.parse().ok());
    time.map_or_else(
        || waiting.to_owned(),
        |seconds| format!("{RETRY_AT}{}", clock::time_of_day(Time(seconds))),
    )
}

const RETRY_AT: &str = "retry at ";

/// What there is to say about a build: why it waits, why its last try ended badly.
fn note(build: &Value) -> String {
    match (reason(text(build, "waiting")), text(build, "error")) {
        (waiting, "") => waiting,
        (waiting, error) if waiting.is_empty() => error.to_owned(),
        (waiting, error) => format!("{waiting} ({error})"),
    }
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut whole, mut unit) = (count, 0);
    while whole >= 10_240 && unit + 1 < UNITS.len() {
        (whole, unit) = (whole / 1024, unit + 1);
    }
    format!("{whole} {}", UNITS[unit])
}

pub(super) fn status(output: &mut Output, objects: &[Value]) -> io::Result<()> {
    for status in objects {
        let count = |group: &str, field: &str| status[group][field].as_u64().unwrap_or(0);
        let paused = |what: &str| status["paused"][what].as_bool().unwrap_or(false);
        let note = |what| if paused(what) { ", paused" } else { "" };
        let uptime = duration(status["uptime"].as_u64().unwrap_or(0));
        let free = status["free-space"].as_u64().map_or_else(|| "unknown".to_owned(), bytes);
        let lines = [
            format!(
                "gorget       {}, process {}, up {uptime}",
                text(status, "version"),
                plain(status, "pid")
            ),
            format!(
                "jobsets      {} ({} active)",
                count("jobsets", "total"),
                count("jobsets", "active")
            ),
            format!(
                "evaluations  {} running of at most {}, {} waiting{}",
                count("evaluations", "running"),
                count("evaluations", "slots"),
                count("evaluations", "waiting"),
                note("evaluations")
            ),
            format!(
                "builds       {} running of at most {}, {} waiting{}",
                count("builds", "running"),
                count("builds", "slots"),
                count("builds", "scheduled"),
                note("builds")
            ),
            format!("free space   {free}"),
        ];
        for line in lines {
            output.line(&line)?;
        }
        for held in status["obstacles"].as_array().into_iter().flatten() {
            let builds = held["builds"].as_u64().unwrap_or(0);
            let word = if builds == 1 { "build waits" } else { "builds wait" };
            output.line(&format!("waiting      {builds} {word}: {}", text(held, "waiting")))?;
        }
        for warning in status["warnings"].as_array().into_iter().flatten() {
            output.line(&format!("warning      {}", clean(warning.as_str().unwrap_or(""))))?;
        }
    }
    Ok(())
}

pub(super) fn jobsets(output: &mut Output, objects: &[Value]) -> io::Result<()> {
    let now = clock::wall();
    let row = |o: &Value| {
        vec![
            plain(o, "name"),
            plain(o, "status"),
            plain(o, "last-evaluation"),
            distance(time(o, "last-checked"), now),
            distance(time(o, "next-poll"), now),
            text(o, "error").to_owned(),
        ]
    };
    let columns = [
        Column::text("NAME", 0, 8),
        Column::whole("STATUS", 1),
        Column::whole("EVALUATION", 3),
        Column::whole("CHECKED", 4),
        Column::whole("NEXT", 5),
        Column::text("ERROR", 2, 12),
    ];
    output.table(&columns, objects.iter().map(row).collect())
}

pub(super) fn builds(output: &mut Output, objects: &[Value]) -> io::Result<()> {
    let now = clock::wall();
    let row = |o: &Value| {
        vec![
            plain(o, "id"),
            plain(o, "jobset"),
            plain(o, "job"),
            plain(o, "system"),
            plain(o, "status"),
            distance(time(o, "starttime"), now),
            took(time(o, "starttime"), time(o, "stoptime"), now),
            note(o),
        ]
    };
    let columns = [
        Column::whole("ID", 0),
        Column::text("JOBSET", 4, 8),
        Column::text("JOB", 2, 16),
        Column::whole("SYSTEM", 7),
        Column::whole("STATUS", 1),
        Column::whole("STARTED", 6),
        Column::whole("TOOK", 5),
        Column::text("NOTE", 3, 12),
    ];
    output.table(&columns, objects.iter().map(row).collect())
}

pub(super) fn evaluations(output: &mut Output, objects: &[Value]) -> io::Result<()> {
    let now = clock::wall();
    let row = |o: &Value| {
        let count = |field: &str| plain(&o["jobs"], field);
        let short = |c: &Value| text(c, "commit").chars().take(8).collect::<String>();
        let commits: Vec<_> = o["checkouts"].as_array().into_iter().flatten().map(short).collect();
        vec![
            plain(o, "id"),
            plain(o, "jobset"),
            plain(o, "status"),
            distance(time(o, "timestamp"), now),
            took(time(o, "timestamp"), time(o, "evaltime"), now),
            count("total"),
            count("succeeded"),
            count("failed"),
            count("pending"),
            count("aborted"),
            count("canceled"),
            commits.join(" "),
            text(o, "error").to_owned(),
        ]
    };
    let columns = [
        Column::whole("ID", 0),
        Column::text("JOBSET", 2, 8),
        Column::whole("STATUS", 1),
        Column::whole("STARTED", 9),
        Column::whole("TOOK", 10),
        Column::whole("JOBS", 6),
        Column::whole("GOOD", 5),
        Column::whole("BAD", 3),
        Column::whole("PENDING", 4),
        Column::whole("ABORTED", 7),
        Column::whole("CANCELED", 8),
        Column::text("COMMITS", 12, 8),
        Column::text("ERROR", 11, 12),
    ];
    output.table(&columns, objects.iter().map(row).collect())
}

pub(super) fn queue(output: &mut Output, objects: &[Value]) -> io::Result<()> {
    let now = clock::wall();
    let row = |o: &Value| {
        vec![
            plain(o, "id"),
            plain(o, "jobset"),
            plain(o, "job"),
            plain(o, "system"),
            plain(o, "priority"),
            distance(time(o, "timestamp"), now),
            reason(text(o, "waiting")),
        ]
    };
    let columns = [
        Column::whole("ID", 0),
        Column::text("JOBSET", 3, 8),
        Column::text("JOB", 1, 16),
        Column::whole("SYSTEM", 6),
        Column::whole("PRIORITY", 4),
        Column::whole("QUEUED", 5),
        Column::text("WAITS FOR", 2, 12),
    ];
    output.table(&columns, objects.iter().map(row).collect())
}

pub(super) fn workers(output: &mut Output, objects: &[Value]) -> io::Result<()> {
    let now = clock::wall();
    let row = |o: &Value| {
        vec![
            plain(o, "name"),
            plain(o, "address"),
            plain(o, "machine"),
            plain(o, "systems"),
            distance(time(o, "joined"), now),
            distance(time(o, "last-seen"), now),
            plain(o, "build"),
            distance(time(o, "since"), now),
            plain(o, "paused"),
        ]
    };
    let columns = [
        Column::text("NAME", 0, 8),
        Column::text("ADDRESS", 5, 12),
        Column::text("MACHINE", 7, 8),
        Column::text("SYSTEMS", 6, 12),
        Column::whole("JOINED", 3),
        Column::whole("SEEN", 1),
        Column::whole("BUILD", 1),
        Column::whole("SINCE", 4),
        Column::whole("PAUSED", 2),
    ];
    output.table(&columns, objects.iter().map(row).collect())
}

pub(super) fn tokens(output: &mut Output, objects: &[Value]) -> io::Result<()> {
    let now = clock::wall();
    let row = |o: &Value| {
        vec![
            plain(o, "name"),
            plain(o, "role"),
            plain(o, "jobset"),
            distance(time(o, "created"), now),
            distance(time(o, "expires"), now),
            distance(time(o, "last-used"), now),
        ]
    };
    let columns = [
        Column::text("NAME", 0, 8),
        Column::whole("ROLE", 1),
        Column::text("JOBSET", 2, 8),
        Column::whole("CREATED", 5),
        Column::whole("EXPIRES", 3),
        Column::whole("USED", 4),
    ];
    output.table(&columns, objects.iter().map(row).collect())
}

/// The secret of a token just made, alone on its line for scripts.
pub(super) fn secret(output: &mut Output, objects: &[Value]) -> io::Result<()> {
    objects.iter().try_for_each(|object| output.line(text(object, "token")))
}

pub(super) fn problems(output: &mut Output, objects: &[Value]) -> io::Result<()> {
    if objects.is_empty() {
        return output.line("the database is sound");
    }
    objects.iter().try_for_each(|object| output.line(&clean(text(object, "problem"))))
}

/// Whether what was waited for succeeded, with all of its builds.
pub(super) fn succeeded(object: &Value) -> bool {
    let jobs = &object["jobs"];
    text(object, "status") == "succeeded" && (jobs.is_null() || jobs["total"] == jobs["succeeded"])
}

/// Whether a build, or an evaluation with all of its builds, is over.
pub(super) fn has_ended(object: &Value) -> bool {
    let over = |word| BuildStatus::from_word(word).is_none_or(|status| !status.is_pending());
    over(text(object, "status")) && object["jobs"]["pending"].as_u64().unwrap_or(0) == 0
}

/// One line on what was waited for.
pub(super) fn ended(output: &mut Output, object: &Value) -> io::Result<()> {
    let (id, status) = (plain(object, "id"), text(object, "status"));
    let error = match text(object, "error") {
        "" => String::new(),
        why => format!(": {}", clean(why)),
    };
    let jobs = &object["jobs"];
    if jobs.is_null() {
        let job = clean(text(object, "job"));
        return output.line(&format!("build {id} ({job}) {status}{error}"));
    }
    let counts = format!("{} of {} jobs succeeded", plain(jobs, "succeeded"), plain(jobs, "total"));
    output.line(&format!("evaluation {id} {status}, {counts}{error}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn durations_are_short() {
        for (seconds, expected) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (125, "2 min 5 s"),
            (700, "11 min"),
            (3600, "1 h"),
            (7500, "2 h 5 min"),
            (90_000, "1 d 1 h"),
        ] {
            assert_eq!(duration(seconds), expected);
        }
        for (seconds, expected) in
            [(0, "0s"), (599, "599s"), (600, "10min"), (36_000, "10h"), (864_000, "10d")]
        {
            assert_eq!(short(seconds), expected);
        }
        assert_eq!(distance(Some(Time(10)), Time(70)), "60s ago");
        assert_eq!(distance(Some(Time(70)), Time(10)), "in 60s");
        assert_eq!(took(Some(Time(5)), None, Time(9)), "4s");
        assert_eq!(bytes(5 * 1024 * 1024 * 1024), "5120 MiB");
        assert_eq!(bytes(50 * 1024 * 1024 * 1024), "50 GiB");
    }

    type Show = fn(&mut Output, &[Value]) -> io::Result<()>;

    /// What a terminal of this width is given.
    fn printed(width: usize, show: Show, objects: &[Value]) -> Vec<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut output = Output::terminal(file.reopen().unwrap(), width);
        show(&mut output, objects).unwrap();
        output.flush().unwrap();
        let text = std::fs::read_to_string(file.path()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn tables_fit_terminals_of_every_width() {
        let jobs = json!({"total": 12_345, "succeeded": 12_000, "failed": 300, "pending": 40, "aborted": 3, "canceled": 2});
        let checkouts = json!([{"commit": "0123456789abcdef"}, {"commit": "fedcba9876543210"}]);
        let evaluation = |id: i64, status: &str, error: Option<&str>| {
            json!({"id": id, "jobset": "guix-master-with-a-name", "status": status, "timestamp": 1_700_000_000,
                "evaltime": 1_700_000_900, "jobs": jobs, "checkouts": checkouts, "error": error})
        };
        let build = |id: i64, status: &str, started: Option<i64>| {
            json!({"id": id, "jobset": "guix-master", "job": "a-job-with-a-long-name.x86_64-linux",
                "system": "x86_64-linux", "status": status, "timestamp": 1_700_000_000, "priority": 99,
                "starttime": started, "stoptime": started, "waiting": "no backend for derivation builds",
                "error": "the connection to the daemon was lost in the middle of the build"})
        };
        let jobset = json!({"name": "guix-master-with-a-name", "status": "evaluating", "last-evaluation": 123,
            "last-checked": 1_700_000_000, "next-poll": 4_000_000_000_i64, "error": "timed out after 3600 s"});
        let evaluations = [
            evaluation(1234, "succeeded", None),
            evaluation(1233, "failed", Some("exit status 3")),
        ];
        let builds =
            [build(123_456, "failed-dependency", Some(1_700_000_000)), build(7, "scheduled", None)];
        let tables: [(Show, &[Value], &[&str]); 4] = [
            (super::evaluations, &evaluations, &["1234", "succeeded"]),
            (super::builds, &builds, &["123456", "failed-dependency"]),
            (super::queue, &builds, &["123456"]),
            (super::jobsets, &[jobset], &["guix-", "evaluating"]),
        ];
        for width in [20, 40, 60, 80, 120] {
            for (show, objects, whole) in &tables {
                let lines = printed(width, *show, objects);
                assert_eq!(lines.len(), objects.len() + 1, "{lines:?}");
                for line in &lines {
                    assert!(console::measure_text_width(line) <= width, "{width}: {line}");
                }
                for word in whole.iter().filter(|_| width >= 40) {
                    assert!(lines[1].contains(word), "{width}: {word} in {}", lines[1]);
                }
            }
        }
        // Nothing is left out where all fits.
        let head = printed(200, super::evaluations, &evaluations).remove(0);
        for word in ["JOBS", "GOOD", "BAD", "PENDING", "ABORTED", "CANCELED", "COMMITS", "ERROR"] {
            assert!(head.contains(word), "{head}");
        }
        // One that never started has no time of that.
        let lines = printed(200, super::builds, &builds);
        assert!(lines[1].contains(" ago") && !lines[2].contains(" ago"), "{lines:?}");
    }

    #[test]
    fn a_build_that_waits_says_why_before_what_went_wrong_last() {
        let build = json!({"waiting": "no space", "error": "worker lost"});
        assert_eq!(note(&build), "no space (worker lost)");
        assert_eq!(note(&json!({"waiting": "slots", "error": null})), "slots");
        assert_eq!(note(&json!({"waiting": null, "error": "signal 9"})), "signal 9");
        let retry = note(&json!({"waiting": "retry at 1700000000", "error": "no space"}));
        let time = clock::time_of_day(Time(1_700_000_000));
        assert_eq!(retry, format!("retry at {time} (no space)"));
    }

    #[test]
    fn what_has_ended_is_told_by_status_and_jobs() {
        for (object, over) in [
            (json!({"status": "scheduled"}), false),
            (json!({"status": "failed-dependency"}), true),
            (json!({"status": "started", "jobs": {"pending": 0}}), false),
            (json!({"status": "succeeded", "jobs": {"pending": 1}}), false),
            (json!({"status": "aborted", "jobs": {"pending": 0}}), true),
        ] {
            assert_eq!(has_ended(&object), over, "{object}");
        }
    }

    #[test]
    fn an_evaluation_succeeds_only_with_all_its_builds() {
        assert!(succeeded(&json!({"status": "succeeded"})));
        assert!(!succeeded(&json!({"status": "failed"})));
        let jobs = |good| json!({"status": "succeeded", "jobs": {"total": 2, "succeeded": good}});
        assert!(succeeded(&jobs(2)));
        assert!(!succeeded(&jobs(1)));
    }
}
