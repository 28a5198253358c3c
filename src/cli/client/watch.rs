//! `watch`: what the daemon does, as it happens. Progress bars on a terminal, a line for each event elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use super::output::{Output, clean};
use super::show::{duration, text};
use super::{Problem, object};
use crate::control::{Client, Error};
use crate::model::spec::JobsetName;
use crate::model::status::BuildStatus;
use crate::proto::control::{Builds, Command, Request};
use crate::sys::clock;

/// Events come in bursts: the bars follow this often at most, which looks live and costs the daemon little.
const REFRESH: Duration = Duration::from_millis(250);

/// Bars shown of each kind: more do not fit a terminal.
const BARS: usize = 16;

/// Prints until the daemon ends or standard output is closed. `events` and `state` are two connections.
pub(super) fn run(
    mut events: Client,
    mut state: Client,
    output: &mut Output,
    jobset: Option<JobsetName>,
) -> Result<ExitCode, Problem> {
    // What happens after this is told as an event, what happened before is in the state.
    let status = ask(&mut state, Command::Status)?;
    let from = status.first().and_then(|status| status["last-event"].as_i64());
    let command = Command::Subscribe { jobset: jobset.clone(), from };
    events.send(&Request { by: None, command }, None)?;
    if output.terminal && !output.json {
        let mut screen = Screen::new(jobset);
        screen.follow(&mut events, &mut state)?;
    } else {
        while let Some(line) = events.next()? {
            let line = if output.json { line } else { describe(&object(&line)?) };
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

/// An event in one line: time, what, of which jobset, evaluation and build, and the status it has now.
fn describe(event: &Value) -> String {
    let mut line = format!("{} {}", event["time"], text(event, "event"));
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

/// What a bar is of; evaluations come first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Evaluation(i64),
    Build(i64),
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
    fn follow(&mut self, events: &mut Client, state: &mut Client) -> Result<(), Problem> {
        self.refresh(state)?;
        let mut due: Option<Instant> = None;
        loop {
            events.set_deadline(due);
            match events.next() {
                Ok(Some(line)) => {
                    due = due.or_else(|| Some(clock::now() + REFRESH));
                    self.tell(&object(&line)?)?;
                }
                Ok(None) => return Ok(()),
                Err(Error::Daemon(error)) if error.kind() == io::ErrorKind::TimedOut => {
                    self.refresh(state)?;
                    due = None;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Bad ends stay on the screen, above the bars.
    fn tell(&self, event: &Value) -> Result<(), Problem> {
        let ended = matches!(text(event, "event"), "build-ended" | "evaluation-ended");
        if ended && text(event, "status") != "succeeded" {
            self.bars.println(describe(event)).map_err(Problem::Output)?;
        }
        Ok(())
    }

    fn refresh(&mut self, state: &mut Client) -> Result<(), Problem> {
        let jobset = self.jobset.clone();
        let evaluations = Command::Evaluations { jobset: jobset.clone(), limit: 100 };
        let evaluations = ask(state, evaluations)?;
        let status = Some(BuildStatus::Started);
        let builds = Builds { jobset, evaluation: None, status, limit: BARS };
        let builds = ask(state, Command::Builds(builds))?;
        let mut seen = BTreeSet::new();
        let going_on = |o: &&Value| {
            text(o, "status") == "started" || o["jobs"]["pending"].as_u64().unwrap_or(0) > 0
        };
        for evaluation in evaluations.iter().filter(going_on).take(BARS) {
            seen.insert(self.evaluation(evaluation));
        }
        for build in &builds {
            seen.insert(self.build(build));
        }
        let gone: Vec<_> = self.shown.keys().filter(|key| !seen.contains(key)).copied().collect();
        for key in gone {
            if let Some(bar) = self.shown.remove(&key) {
                bar.finish_and_clear();
                self.bars.remove(&bar);
            }
        }
        Ok(())
    }

    fn evaluation(&mut self, object: &Value) -> Key {
        let key = Key::Evaluation(object["id"].as_i64().unwrap_or(0));
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
        key
    }

    fn build(&mut self, object: &Value) -> Key {
        let key = Key::Build(object["id"].as_i64().unwrap_or(0));
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
        key
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
        assert_eq!(describe(&event), "9 build-ended a build 7 failed");
        assert_eq!(describe(&json!({"id": 3, "time": 9, "event": "overflow"})), "9 overflow");
    }
}
