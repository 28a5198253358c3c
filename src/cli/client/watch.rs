//! `watch`: what the daemon does, as it happens. Progress bars on a terminal, a line for each event elsewhere.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use super::output::{Output, clean};
use super::show::{duration, text};
use super::{Problem, connect, object};
use crate::control::{Client, Error};
use crate::model::spec::JobsetName;
use crate::model::status::BuildStatus;
use crate::model::time::Time;
use crate::proto::control::{Builds, Command, FailureKind, MAX_LIMIT, Request};
use crate::sys::clock;

/// Events come in bursts: the bars follow this often at most, which looks live and costs the daemon little.
const REFRESH: Duration = Duration::from_millis(250);

/// When the state is asked for again if the bridge had no place: others may have left by then.
const AGAIN: Duration = Duration::from_secs(2);

/// Lines of a terminal that does not tell.
const LINES: usize = 24;

/// Evaluations looked at for those that still go on.
const EVALUATIONS: usize = 100;

/// Prints until the daemon ends or standard output is closed. `events` is a connection to `socket`.
pub(super) fn run(
    socket: &Path,
    mut events: Client,
    output: &mut Output,
    jobset: Option<JobsetName>,
) -> Result<ExitCode, Problem> {
    // What happens after this is told as an event, what happened before is in the state.
    let status = ask(&mut events, Command::Status)?;
    let from = status.first().and_then(|status| status["last-event"].as_i64());
    let command = Command::Subscribe { jobset: jobset.clone(), from };
    events.send(&Request { by: None, command }, None)?;
    if output.terminal && !output.json {
        let mut screen = Screen::new(jobset);
        screen.follow(&mut events, socket)?;
    } else {
        while let Some(line) = events.next()? {
            let line = if output.json { line } else { timed(&object(&line)?) };
            output.line(&line).and_then(|()| output.flush()).map_err(Problem::Output)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn ask(client: &mut Client, command: Command) -> Result<Vec<Value>, Problem> {
    client.send(&Request { by: None, command }, None)?;
    let mut objects = Vec::new();
    while let Some(line) = client.next()? {
        objects.push(object(&line)?);
    }
    Ok(objects)
}

/// An event in one line: what, of which jobset, evaluation and build, and the status it has now.
fn describe(event: &Value) -> String {
    let mut line = text(event, "event").to_owned();
    if let Some(jobset) = event["jobset"].as_str() {
        line = format!("{line} {jobset}");
    }
    for field in ["evaluation", "build"] {
        if let Some(id) = event[field].as_i64() {
            line = format!("{line} {field} {id}");
        }
    }
    if let Some(status) = event["status"].as_str() {
        line = format!("{line} {status}");
    }
    clean(&line)
}

/// An event for whoever reads lines: in Unix seconds when it happened, and what.
fn timed(event: &Value) -> String {
    format!("{} {}", event["time"], describe(event))
}

/// How many lines evaluations and builds get of `room`: half of them each, and what the others do not need.
fn share(room: usize, evaluations: usize, builds: usize) -> (usize, usize) {
    let evaluations = evaluations.min(room.saturating_sub(builds).max(room / 2));
    (evaluations, builds.min(room - evaluations))
}

/// What a bar is of, in the order in which they are shown: evaluations first, the newest of each first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Evaluation(Reverse<i64>),
    Build(Reverse<i64>),
}

impl Key {
    fn of_evaluation(object: &Value) -> Self {
        Self::Evaluation(Reverse(object["id"].as_i64().unwrap_or(0)))
    }

    fn of_build(object: &Value) -> Self {
        Self::Build(Reverse(object["id"].as_i64().unwrap_or(0)))
    }
}

struct Screen {
    jobset: Option<JobsetName>,
    bars: MultiProgress,
    shown: BTreeMap<Key, ProgressBar>,
}

impl Screen {
    fn new(jobset: Option<JobsetName>) -> Self {
        let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stdout());
        Self { jobset, bars, shown: BTreeMap::new() }
    }

    /// Reads the state again after events, `REFRESH` after the first of a burst.
    fn follow(&mut self, events: &mut Client, socket: &Path) -> Result<(), Problem> {
        let mut due = self.refresh(socket)?;
        loop {
            events.set_deadline(due);
            match events.next() {
                Ok(Some(line)) => {
                    due = due.or_else(|| Some(clock::now() + REFRESH));
                    self.tell(&object(&line)?)?;
                }
                Ok(None) => return Ok(()),
                Err(Error::Daemon(error)) if error.kind() == io::ErrorKind::TimedOut => {
                    due = self.refresh(socket)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Bad ends stay on the screen, above the bars.
    fn tell(&self, event: &Value) -> Result<(), Problem> {
        let ended = matches!(text(event, "event"), "build-ended" | "evaluation-ended");
        if ended && text(event, "status") != "succeeded" {
            let time = Time(event["time"].as_i64().unwrap_or(0));
            let line = format!("{} {}", clock::time_of_day(time), describe(event));
            self.bars.println(line).map_err(Problem::Output)?;
        }
        Ok(())
    }

    /// Shows the state; returns when to do it again without an event, because the bridge was full. The connection is one
    /// for this moment: an idle one is the first to lose its place.
    fn refresh(&mut self, socket: &Path) -> Result<Option<Instant>, Problem> {
        match self.ask_and_show(socket) {
            Ok(()) => Ok(None),
            // If the daemon is gone, the end of the events says so.
            Err(Problem::Connect(..)) => Ok(Some(clock::now() + AGAIN)),
            Err(Problem::Refused(failure)) if failure.kind == FailureKind::Unavailable => {
                Ok(Some(clock::now() + AGAIN))
            }
            Err(other) => Err(other),
        }
    }

    fn ask_and_show(&mut self, socket: &Path) -> Result<(), Problem> {
        let room = console::Term::stdout().size_checked().map_or(LINES, |(lines, _)| lines.into());
        // The last line is the cursor's.
        let room = room.saturating_sub(1).max(1);
        let mut state = connect(socket)?;
        let jobset = self.jobset.clone();
        let evaluations = Command::Evaluations { jobset: jobset.clone(), limit: EVALUATIONS };
        let evaluations = ask(&mut state, evaluations)?;
        let status = Some(BuildStatus::Started);
        let builds = Builds { jobset, evaluation: None, status, limit: room.min(MAX_LIMIT) };
        let builds = ask(&mut state, Command::Builds(builds))?;
        self.show(room, &evaluations, &builds);
        Ok(())
    }

    /// Both come newest first.
    fn show(&mut self, room: usize, evaluations: &[Value], builds: &[Value]) {
        let going_on = |o: &&Value| {
            text(o, "status") == "started" || o["jobs"]["pending"].as_u64().unwrap_or(0) > 0
        };
        let evaluations: Vec<_> = evaluations.iter().filter(going_on).collect();
        let (some, others) = share(room, evaluations.len(), builds.len());
        let (evaluations, builds) = (&evaluations[..some], &builds[..others]);
        let mut seen: BTreeSet<_> = evaluations.iter().map(|o| Key::of_evaluation(o)).collect();
        seen.extend(builds.iter().map(Key::of_build));
        // These first: no moment with more bars than lines.
        let gone: Vec<_> = self.shown.keys().filter(|key| !seen.contains(key)).copied().collect();
        for key in gone {
            if let Some(bar) = self.shown.remove(&key) {
                bar.finish_and_clear();
                self.bars.remove(&bar);
            }
        }
        for evaluation in evaluations {
            self.evaluation(evaluation);
        }
        for build in builds {
            self.build(build);
        }
    }

    fn evaluation(&mut self, object: &Value) {
        let key = Key::of_evaluation(object);
        let count = |field: &str| object["jobs"][field].as_u64().unwrap_or(0);
        let bar = self.bar(key, "{prefix:24!} {bar:30} {pos}/{len} {wide_msg}");
        let phase = if text(object, "status") == "started" { "evaluating" } else { "building" };
        bar.set_prefix(clean(&format!("{} {}", text(object, "jobset"), object["id"])));
        bar.set_length(count("total"));
        bar.set_position(count("total").saturating_sub(count("pending")));
        bar.set_message(match count("failed") {
            0 => phase.to_owned(),
            failed => format!("{phase}, {failed} failed"),
        });
    }

    fn build(&mut self, object: &Value) {
        let key = Key::of_build(object);
        let new = !self.shown.contains_key(&key);
        let bar = self.bar(key, "{spinner} {prefix:22!} {msg} {elapsed}");
        if new {
            bar.set_prefix(clean(&format!("build {}", object["id"])));
            bar.set_message(clean(text(object, "job")));
            let started = object["starttime"].as_i64().map(crate::model::time::Time);
            let running = started.map(|time| time.until(clock::wall())).unwrap_or_default();
            bar.set_elapsed(running);
            bar.enable_steady_tick(REFRESH);
        }
    }

    fn bar(&mut self, key: Key, template: &str) -> ProgressBar {
        let bars = &self.bars;
        let before = self.shown.range(..key).count();
        let bar = self.shown.entry(key).or_insert_with(|| {
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .with_key(
                    "elapsed",
                    |state: &indicatif::ProgressState, w: &mut dyn std::fmt::Write| {
                        // A terminal's line cannot refuse to be written.
                        let _ = w.write_str(&duration(state.elapsed().as_secs()));
                    },
                );
            let bar = bars.insert(before, ProgressBar::new(0));
            bar.set_style(style);
            bar
        });
        bar.clone()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_are_plain_lines() {
        let event = json!({"id": 3, "time": 9, "event": "build-ended", "jobset": "a", "build": 7, "status": "failed"});
        assert_eq!(timed(&event), "9 build-ended a build 7 failed");
        assert_eq!(timed(&json!({"id": 3, "time": 9, "event": "overflow"})), "9 overflow");
    }

    #[test]
    fn the_screen_is_shared_and_never_overfull() {
        for (room, evaluations, builds, expected) in [
            (10, 20, 20, (5, 5)),
            (10, 2, 20, (2, 8)),
            (10, 20, 2, (8, 2)),
            (10, 3, 4, (3, 4)),
            (1, 5, 5, (0, 1)),
            (1, 5, 0, (1, 0)),
        ] {
            assert_eq!(share(room, evaluations, builds), expected);
        }
    }

    #[test]
    fn the_newest_are_shown_first() {
        let mut screen = Screen {
            jobset: None,
            bars: MultiProgress::with_draw_target(ProgressDrawTarget::hidden()),
            shown: BTreeMap::new(),
        };
        let evaluations: Vec<_> =
            (1..=9).rev().map(|id| json!({"id": id, "status": "started"})).collect();
        let builds: Vec<_> = (1..=9).rev().map(|id| json!({"id": id})).collect();
        screen.show(4, &evaluations, &builds);
        let shown = |screen: &Screen| screen.shown.keys().copied().collect::<Vec<_>>();
        let (evaluation, build) = (|id| Key::Evaluation(Reverse(id)), |id| Key::Build(Reverse(id)));
        assert_eq!(shown(&screen), [evaluation(9), evaluation(8), build(9), build(8)]);
        screen.show(4, &evaluations[8..], &builds[2..4]);
        assert_eq!(shown(&screen), [evaluation(1), build(7), build(6)]);
    }
}
