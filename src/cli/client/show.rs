//! Objects of answers as people read them.

use std::io;

use serde_json::Value;

use super::output::{Output, clean};
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

/// How long ago, or in how long.
fn distance(time: Option<Time>, now: Time) -> String {
    match time {
        None => "-".to_owned(),
        Some(time) if time > now => format!("in {}", duration(now.until(time).as_secs())),
        Some(time) => format!("{} ago", duration(time.until(now).as_secs())),
    }
}

/// From `start` to `stop`, or until now for what still goes on.
fn took(start: Option<Time>, stop: Option<Time>, now: Time) -> String {
    start.map_or_else(
        || "-".to_owned(),
        |start| duration(start.until(stop.unwrap_or(now)).as_secs()),
    )
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
    let head = ["NAME", "STATUS", "EVALUATION", "CHECKED", "NEXT", "ERROR"];
    output.table(&head, objects.iter().map(row).collect())
}

pub(super) fn builds(output: &mut Output, objects: &[Value]) -> io::Result<()> {
    let now = clock::wall();
    let row = |o: &Value| {
        let note = if o["error"].is_string() { text(o, "error") } else { text(o, "waiting") };
        vec![
            plain(o, "id"),
            plain(o, "jobset"),
            plain(o, "job"),
            plain(o, "system"),
            plain(o, "status"),
            distance(time(o, "starttime").or(time(o, "timestamp")), now),
            took(time(o, "starttime"), time(o, "stoptime"), now),
            note.to_owned(),
        ]
    };
    let head = ["ID", "JOBSET", "JOB", "SYSTEM", "STATUS", "STARTED", "TOOK", "NOTE"];
    output.table(&head, objects.iter().map(row).collect())
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
            commits.join(" "),
            text(o, "error").to_owned(),
        ]
    };
    let head = [
        "ID", "JOBSET", "STATUS", "STARTED", "TOOK", "JOBS", "GOOD", "BAD", "PENDING", "COMMITS",
        "ERROR",
    ];
    output.table(&head, objects.iter().map(row).collect())
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
            text(o, "waiting").to_owned(),
        ]
    };
    let head = ["ID", "JOBSET", "JOB", "SYSTEM", "PRIORITY", "QUEUED", "WAITS FOR"];
    output.table(&head, objects.iter().map(row).collect())
}

pub(super) fn workers(output: &mut Output, objects: &[Value]) -> io::Result<()> {
    let now = clock::wall();
    let row = |o: &Value| {
        vec![
            plain(o, "name"),
            plain(o, "address"),
            plain(o, "machine"),
            plain(o, "systems"),
            distance(time(o, "last-seen"), now),
            plain(o, "paused"),
        ]
    };
    let head = ["NAME", "ADDRESS", "MACHINE", "SYSTEMS", "SEEN", "PAUSED"];
    output.table(&head, objects.iter().map(row).collect())
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
    let head = ["NAME", "ROLE", "JOBSET", "CREATED", "EXPIRES", "USED"];
    output.table(&head, objects.iter().map(row).collect())
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
        assert_eq!(distance(Some(Time(10)), Time(70)), "1 min ago");
        assert_eq!(distance(Some(Time(70)), Time(10)), "in 1 min");
        assert_eq!(took(Some(Time(5)), None, Time(9)), "4 s");
        assert_eq!(bytes(5 * 1024 * 1024 * 1024), "5120 MiB");
        assert_eq!(bytes(50 * 1024 * 1024 * 1024), "50 GiB");
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
