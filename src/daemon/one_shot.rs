//! `--one-shot`: evaluates every active jobset of the specification files once and waits for its builds.
//!
//! Invariant: it ends; what no backend will ever take, a full disk and a pause from an earlier life do not keep it
//! waiting. A pause that somebody asks for meanwhile lasts until they end it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use std::{fmt, io};

use crossbeam_channel::{Receiver, at, bounded, never, select};

use super::builder::{self, Waiting};
use super::evaluator::{Answer, Evaluated, Request};
use super::updater::Fetched;
use super::{evaluator, monitor, registry, updater};
use crate::actor::{Gone, Spawner, Stop};
use crate::db::builds::Filter;
use crate::db::{self, Database, Subscription};
use crate::model::evaluation::{Checkout, Ending, EvaluationId};
use crate::model::spec::{JobsetName, Specification};
use crate::model::status::BuildStatus;
use crate::model::time::Time;
use crate::sys::clock;

/// Time in which ends of builds are gathered before the books are asked.
const GATHER: Duration = Duration::from_millis(100);

/// The books are asked this often even without an event: whether all that is left waits for a backend that
/// is closed shows in no event.
const BACKSTOP: Duration = Duration::from_secs(5);

/// How long evaluations, or builds, wait for room on the disk while nothing else of this run could make some.
const ROOM: Duration = Duration::from_secs(30);

/// Why a build waits for room.
const NO_SPACE: &str = "no space";

/// Events that may pile up; more only mean that the books are asked.
const EVENTS: usize = 1024;

/// How many waiting builds are looked at when nothing runs.
const QUEUE: usize = 10_000;

/// How builds end that did not succeed.
const BAD: [BuildStatus; 4] = [
    BuildStatus::Failed,
    BuildStatus::FailedDependency,
    BuildStatus::Aborted,
    BuildStatus::Canceled,
];

/// Builds that are told of one by one, for each such status: more nobody reads.
const LISTED: usize = 100;

/// How the run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Succeeded,
    /// A fetch, an evaluation or a build ended otherwise.
    Failed,
}

pub(super) struct Ports {
    pub(super) database: Database,
    pub(super) updater: updater::Handle,
    pub(super) evaluator: evaluator::Handle,
    pub(super) builder: builder::Handle,
    pub(super) registry: registry::Handle,
}

/// Why it could not go on.
#[derive(Debug)]
enum Error {
    Database(db::Error),
    Gone,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Database(error) => error.fmt(f),
            Self::Gone => Gone.fmt(f),
        }
    }
}

impl From<db::Error> for Error {
    fn from(error: db::Error) -> Self {
        Self::Database(error)
    }
}

impl<E: Into<Gone>> From<E> for Error {
    fn from(_: E) -> Self {
        Self::Gone
    }
}

/// Starts the thread `one-shot`, which says at its end how it went.
pub(super) fn spawn(
    threads: &Spawner,
    ports: Ports,
    specifications: Vec<Specification>,
) -> io::Result<Receiver<Outcome>> {
    let (done, outcome) = bounded(1);
    threads.child(
        "one-shot",
        move |stop| -> Result<(), Gone> {
            let result = run(&ports, specifications, &stop);
            let outcome = result.unwrap_or_else(|error| {
                log::error!(target: "one-shot", "cannot go on: {error}");
                Outcome::Failed
            });
            Ok(done.send(outcome)?)
        },
        |report| log::debug!(target: "one-shot", "{report:?}"),
    )?;
    Ok(outcome)
}

fn run(ports: &Ports, specifications: Vec<Specification>, stop: &Stop) -> Result<Outcome, Error> {
    let active: Vec<_> = ports.registry.states()?.into_iter().filter(|s| s.active).collect();
    let wanted = |s: &Specification| active.iter().any(|state| state.specification.name == s.name);
    let specifications: BTreeMap<JobsetName, Specification> =
        specifications.into_iter().filter(wanted).map(|s| (s.name.clone(), s)).collect();
    let events = ports.database.subscribe(EVENTS)?;
    let (evaluations, evaluated_well) = evaluate(ports, &specifications, stop)?;
    let built_well = wait_for_builds(ports, &evaluations, &events, stop)?;
    Ok(if evaluated_well && built_well { Outcome::Succeeded } else { Outcome::Failed })
}

/// Fetches and evaluates everything; returns the evaluations, and whether all went well.
fn evaluate(
    ports: &Ports,
    specifications: &BTreeMap<JobsetName, Specification>,
    stop: &Stop,
) -> Result<(Vec<EvaluationId>, bool), Error> {
    let room = specifications.len().max(1);
    let (fetched, fetched_lane) = bounded(room);
    // Each may have to say that it waits, too, and that it does no longer; more than once, but not at once.
    let (evaluated, evaluated_lane) = bounded(3 * room);
    let decided = clock::wall();
    for specification in specifications.values() {
        ports.updater.fetch(
            &specification.name,
            specification.channels.clone(),
            fetched.clone(),
        )?;
    }
    let (mut left, mut evaluations, mut well) = (specifications.len(), Vec::new(), true);
    let mut waiting: BTreeSet<JobsetName> = BTreeSet::new();
    let mut short: Option<Instant> = None;
    while left > 0 {
        // What else is under way may make room.
        short = match waiting.len() == left {
            true => short.or_else(|| Some(clock::now() + ROOM)),
            false => None,
        };
        let patience = short.map_or_else(never, at);
        select! {
            recv(patience) -> _ => {
                log::error!(target: "one-shot", "no space for {left} evaluations; giving up");
                return Ok((evaluations, false));
            }
            recv(stop) -> _ => return Err(Error::Gone),
            recv(fetched_lane) -> answer => {
                let Fetched { jobset, result } = answer?;
                let error = result.as_ref().err().cloned();
                let name = jobset.clone();
                ports.database.write("look at channels", move |tx| {
                    db::jobsets::checked(tx, &name, error.as_deref())
                })?;
                match (result, specifications.get(&jobset)) {
                    (Ok(checkouts), Some(specification)) => {
                        let request = request(specification, checkouts, decided);
                        ports.evaluator.evaluate(request, evaluated.clone())?;
                    }
                    (Err(why), _) => {
                        log::error!(target: "one-shot", "jobset {jobset}: {why}");
                        (well, left) = (false, left - 1);
                    }
                    (Ok(_), None) => {}
                }
            }
            recv(evaluated_lane) -> answer => {
                let Evaluated { jobset, evaluation, ending } = match answer? {
                    Answer::Ended(evaluated) => evaluated,
                    Answer::Waits(jobset, why) => {
                        log::warn!(target: "one-shot", "jobset {jobset}: no space for its evaluation: {why}");
                        waiting.insert(jobset);
                        continue;
                    }
                    Answer::Room(jobset) => {
                        waiting.remove(&jobset);
                        continue;
                    }
                };
                waiting.remove(&jobset);
                left -= 1;
                evaluations.extend(evaluation);
                match ending {
                    Ending::Succeeded => {}
                    Ending::Failed(why) => {
                        log::error!(target: "one-shot", "jobset {jobset}: the evaluation failed: {why}");
                        well = false;
                    }
                    Ending::Aborted(why) => {
                        log::error!(target: "one-shot", "jobset {jobset}: the evaluation was aborted: {why}");
                        well = false;
                    }
                    Ending::Canceled | Ending::Interrupted => {
                        log::error!(target: "one-shot", "jobset {jobset}: the evaluation was cut off");
                        well = false;
                    }
                }
            }
        }
    }
    Ok((evaluations, well))
}

fn request(specification: &Specification, checkouts: Vec<Checkout>, decided: Time) -> Request {
    Request {
        fingerprint: monitor::fingerprint(specification, &checkouts),
        specification: specification.clone(),
        checkouts,
        decided,
    }
}

/// Waits until no build of these evaluations is left; whether all succeeded.
fn wait_for_builds(
    ports: &Ports,
    evaluations: &[EvaluationId],
    events: &Receiver<Subscription>,
    stop: &Stop,
) -> Result<bool, Error> {
    let reader = ports.database.reader()?;
    let mut stuck_since: Option<Instant> = None;
    loop {
        let mut well = true;
        let mut over = true;
        for id in evaluations {
            // One that was deleted meanwhile is over, and not well.
            let (ended, succeeded) = db::builds::settled(&reader, *id)?.unwrap_or((true, false));
            over &= ended;
            well &= succeeded;
        }
        if over {
            report(&reader, evaluations)?;
            return Ok(well);
        }
        let stuck = stuck(ports, &reader)?;
        let now = clock::now();
        let since = *stuck_since.get_or_insert(now);
        // For a while, it may be a build that is just about to start, or one that is to make room.
        let short = stuck.iter().any(|waiting| waiting.reason.starts_with(NO_SPACE));
        let patience = if short { ROOM } else { BACKSTOP };
        if stuck.is_empty() {
            stuck_since = None;
        } else if now.duration_since(since) >= patience {
            for waiting in stuck.iter().take(LISTED) {
                log::error!(target: "one-shot", "build {} cannot start: {}", waiting.id, waiting.reason);
            }
            log::error!(
                target: "one-shot",
                "{} builds wait for what is not there; giving up",
                stuck.len()
            );
            report(&reader, evaluations)?;
            return Ok(false);
        }
        wait_for_change(events, stop)?;
    }
}

/// The builds that are left, if none of them can ever start.
fn stuck(ports: &Ports, reader: &db::Reader) -> Result<Vec<Waiting>, Error> {
    let (_, running) = db::builds::pending_counts(reader)?;
    if running > 0 {
        return Ok(Vec::new());
    }
    let queue = ports.builder.queue(QUEUE)?;
    let hopeless = |reason: &str| {
        ["no backend", "no worker", "store unreachable", NO_SPACE, "dependency"]
            .iter()
            .any(|beginning| reason.starts_with(beginning))
    };
    let all = queue.iter().all(|waiting| hopeless(&waiting.reason));
    Ok(if all { queue } else { Vec::new() })
}

fn wait_for_change(events: &Receiver<Subscription>, stop: &Stop) -> Result<(), Error> {
    let mut deadline: Instant = clock::now() + BACKSTOP;
    loop {
        select! {
            recv(stop) -> _ => return Err(Error::Gone),
            recv(events) -> event => {
                let Ok(Subscription::Event(_)) = event else {
                    // Too slow: the backstop is left, which is enough.
                    select! {
                        recv(stop) -> _ => return Err(Error::Gone),
                        recv(at(deadline)) -> _ => return Ok(()),
                    }
                };
                deadline = deadline.min(clock::now() + GATHER);
            }
            recv(at(deadline)) -> _ => return Ok(()),
        }
    }
}

/// A line for each build that ended badly, as nobody can be asked afterwards, and one for each evaluation.
fn report(reader: &db::Reader, evaluations: &[EvaluationId]) -> Result<(), Error> {
    for id in evaluations {
        for status in BAD {
            let filter =
                Filter { evaluation: Some(*id), status: Some(status), ..Filter::default() };
            for build in db::builds::list(reader, &filter, LISTED)? {
                let why = build.error.unwrap_or_default();
                let log = build.log.map(|log| format!("; its log is {}", log.display()));
                log::error!(
                    target: "one-shot",
                    "build {} ({} of {}) ended {}: {why}{}",
                    build.id, build.job, build.jobset, status.word(), log.unwrap_or_default()
                );
            }
        }
        if let Some(evaluation) = db::evaluations::get(reader, *id)? {
            let jobs = evaluation.jobs;
            log::info!(
                target: "one-shot",
                "jobset {}: evaluation {id}: {} jobs, {} succeeded, {} failed, {} aborted, {} canceled",
                evaluation.jobset, jobs.total, jobs.succeeded, jobs.failed, jobs.aborted, jobs.canceled
            );
        }
    }
    Ok(())
}
