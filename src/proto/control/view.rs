//! The JSON objects of answers: names and order of their fields are part of the contract.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::model::build::Build;
use crate::model::evaluation::{Checkout, Evaluation};
use crate::model::event::Event;
use crate::model::spec::{Channel, Reference, printable_url};
use crate::model::time::Time;

/// An object on one line.
pub(crate) fn json(view: &impl Serialize) -> String {
    serde_json::to_string(view).expect("views have string keys and no failing serializer")
}

fn seconds(time: Option<Time>) -> Option<i64> {
    time.map(|t| t.0)
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct JobsetView<'a> {
    pub(crate) name: &'a str,
    pub(crate) active: bool,
    pub(crate) status: &'static str,
    pub(crate) last_evaluation: Option<i64>,
    pub(crate) last_checked: Option<i64>,
    pub(crate) error: Option<&'a str>,
    pub(crate) next_poll: Option<i64>,
    /// Seconds, the daemon's interval filled in.
    pub(crate) period: u64,
    pub(crate) priority: u8,
    pub(crate) evaluator: &'static str,
    pub(crate) channels: Vec<ChannelView<'a>>,
}

#[derive(Serialize)]
pub(crate) struct ChannelView<'a> {
    name: &'a str,
    url: String,
    branch: Option<&'a str>,
    tag: Option<&'a str>,
    commit: Option<&'a str>,
}

impl<'a> ChannelView<'a> {
    pub(crate) fn new(channel: &'a Channel) -> Self {
        let (mut branch, mut tag, mut commit) = (None, None, None);
        match &channel.reference {
            Reference::Head => {}
            Reference::Branch(name) => branch = Some(name.as_str()),
            Reference::Tag(name) => tag = Some(name.as_str()),
            Reference::Commit(id) => commit = Some(id.as_str()),
        }
        Self { name: &channel.name, url: printable_url(&channel.url), branch, tag, commit }
    }
}

#[derive(Serialize)]
struct EvaluationView<'a> {
    id: i64,
    jobset: &'a str,
    status: &'static str,
    timestamp: i64,
    checkouttime: Option<i64>,
    evaltime: Option<i64>,
    checkouts: Vec<CheckoutView<'a>>,
    jobs: CountsView,
    error: Option<&'a str>,
}

#[derive(Serialize)]
struct CheckoutView<'a> {
    channel: &'a str,
    url: String,
    commit: &'a str,
    directory: String,
}

impl<'a> CheckoutView<'a> {
    fn new(checkout: &'a Checkout) -> Self {
        Self {
            channel: &checkout.channel,
            url: printable_url(&checkout.url),
            commit: &checkout.commit,
            directory: checkout.directory.display().to_string(),
        }
    }
}

#[derive(Serialize)]
struct CountsView {
    total: i64,
    succeeded: i64,
    failed: i64,
    pending: i64,
    aborted: i64,
    canceled: i64,
}

pub(crate) fn evaluation(evaluation: &Evaluation) -> String {
    let jobs = evaluation.jobs;
    json(&EvaluationView {
        id: evaluation.id.0,
        jobset: evaluation.jobset.as_str(),
        status: evaluation.status.word(),
        timestamp: evaluation.timestamp.0,
        checkouttime: seconds(evaluation.checkouttime),
        evaltime: seconds(evaluation.evaltime),
        checkouts: evaluation.checkouts.iter().map(CheckoutView::new).collect(),
        jobs: CountsView {
            total: jobs.total,
            succeeded: jobs.succeeded,
            failed: jobs.failed,
            pending: jobs.pending,
            aborted: jobs.aborted,
            canceled: jobs.canceled,
        },
        error: evaluation.error.as_deref(),
    })
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct BuildView<'a> {
    id: i64,
    jobset: &'a str,
    evaluation: i64,
    job: &'a str,
    system: &'a str,
    derivation: &'a str,
    nix_name: &'a str,
    outputs: &'a BTreeMap<String, String>,
    status: &'static str,
    weather: &'static str,
    priority: i64,
    worker: Option<&'a str>,
    waiting: Option<&'a str>,
    attempts: i64,
    timestamp: i64,
    starttime: Option<i64>,
    stoptime: Option<i64>,
    log: Option<String>,
    error: Option<&'a str>,
}

/// `waiting`: why it does not run yet.
pub(crate) fn build(build: &Build, waiting: Option<&str>) -> String {
    json(&BuildView {
        id: build.id.0,
        jobset: build.jobset.as_str(),
        evaluation: build.evaluation.0,
        job: &build.job,
        system: &build.system,
        derivation: &build.derivation,
        nix_name: &build.nix_name,
        outputs: &build.outputs,
        status: build.status.word(),
        weather: build.weather.word(),
        priority: build.priority,
        worker: build.worker.as_deref(),
        waiting,
        attempts: build.attempts,
        timestamp: build.timestamp.0,
        starttime: seconds(build.starttime),
        stoptime: seconds(build.stoptime),
        log: build.log.as_ref().map(|path| path.display().to_string()),
        error: build.error.as_deref(),
    })
}

#[derive(Serialize)]
struct EventView<'a> {
    id: i64,
    time: i64,
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    jobset: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    evaluation: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    build: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'a str>,
}

pub(crate) fn event(event: &Event) -> String {
    json(&EventView {
        id: event.id,
        time: event.time.0,
        event: event.what.word(),
        jobset: event.jobset.as_ref().map(|name| name.as_str()),
        evaluation: event.evaluation.map(|id| id.0),
        build: event.build.map(|id| id.0),
        status: event.status.as_deref(),
    })
}

/// Events up to `id` are lost: the state is to be read again.
pub(crate) fn overflow(id: i64, now: Time) -> String {
    json(&EventView {
        id,
        time: now.0,
        event: "overflow",
        jobset: None,
        evaluation: None,
        build: None,
        status: None,
    })
}

#[derive(Serialize)]
pub(crate) struct LogView<'a> {
    pub(crate) offset: u64,
    pub(crate) text: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct StatusView<'a> {
    pub(crate) version: &'a str,
    pub(crate) pid: u32,
    pub(crate) started: i64,
    /// Seconds.
    pub(crate) uptime: u64,
    pub(crate) jobsets: JobsetCounts,
    pub(crate) builds: BuildCounts,
    /// What keeps builds waiting that wait for nothing else; null while the builder is too busy to say.
    pub(crate) obstacles: Option<Vec<ObstacleView>>,
    pub(crate) evaluations: EvaluationCounts,
    pub(crate) paused: Paused,
    /// Null while the database is too busy to say.
    pub(crate) writer: Option<WriterView>,
    /// Bytes, where the state is; null if unknown.
    pub(crate) free_space: Option<u64>,
    /// Where `subscribe from=` goes on.
    pub(crate) last_event: i64,
    pub(crate) warnings: &'a [String],
}

#[derive(Serialize)]
pub(crate) struct ObstacleView {
    /// As a build's `waiting`.
    pub(crate) waiting: String,
    pub(crate) builds: usize,
}

/// What the database has written since the daemon began.
#[derive(Serialize)]
pub(crate) struct WriterView {
    pub(crate) transactions: u64,
    pub(crate) requests: u64,
    /// That all transactions took together.
    pub(crate) seconds: f64,
}

#[derive(Serialize)]
pub(crate) struct JobsetCounts {
    pub(crate) total: usize,
    pub(crate) active: usize,
}

#[derive(Serialize)]
pub(crate) struct BuildCounts {
    pub(crate) scheduled: i64,
    pub(crate) running: i64,
    pub(crate) slots: usize,
}

#[derive(Serialize)]
pub(crate) struct EvaluationCounts {
    pub(crate) running: usize,
    pub(crate) waiting: usize,
    pub(crate) slots: usize,
}

#[derive(Serialize)]
pub(crate) struct Paused {
    pub(crate) builds: bool,
    pub(crate) evaluations: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct WorkerView<'a> {
    pub(crate) name: &'a str,
    pub(crate) address: &'a str,
    pub(crate) machine: &'a str,
    pub(crate) systems: &'a [String],
    pub(crate) last_seen: i64,
    /// Since when it is here.
    pub(crate) joined: i64,
    pub(crate) paused: bool,
    /// Builds that were aborted in a row, if it is paused for that.
    pub(crate) failures: u32,
    /// What it builds, and since when.
    pub(crate) build: Option<i64>,
    pub(crate) since: Option<i64>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct TokenView<'a> {
    pub(crate) name: &'a str,
    pub(crate) role: &'a str,
    pub(crate) jobset: Option<&'a str>,
    pub(crate) created: i64,
    pub(crate) expires: Option<i64>,
    pub(crate) last_used: Option<i64>,
}

/// A token just made: the only time its secret is shown.
#[derive(Serialize)]
pub(crate) struct NewTokenView<'a> {
    pub(crate) name: &'a str,
    pub(crate) role: &'a str,
    pub(crate) jobset: Option<&'a str>,
    pub(crate) expires: Option<i64>,
    pub(crate) token: &'a str,
}

#[derive(Serialize)]
pub(crate) struct UpdateTimesView<'a> {
    pub(crate) name: &'a str,
    pub(crate) times: Vec<i64>,
}

#[derive(Serialize)]
pub(crate) struct HelpView {
    pub(crate) command: &'static str,
    pub(crate) what: &'static str,
}

#[derive(Serialize)]
pub(crate) struct VersionView {
    pub(crate) version: &'static str,
}

#[derive(Serialize)]
pub(crate) struct DashboardView<'a> {
    pub(crate) id: &'a str,
    pub(crate) jobset: &'a str,
    pub(crate) jobs: &'a [String],
}

#[derive(Serialize)]
pub(crate) struct ProblemView<'a> {
    pub(crate) problem: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::build::BuildId;
    use crate::model::evaluation::{Counts, EvaluationId};
    use crate::model::event::What;
    use crate::model::spec::JobsetName;
    use crate::model::status::{BuildStatus, EvaluationStatus, Weather};

    #[test]
    fn objects_have_the_fields_of_the_contract_in_order() {
        let jobset = JobsetName::new("hello").unwrap();
        let text = build(
            &Build {
                id: BuildId(3),
                jobset: jobset.clone(),
                evaluation: EvaluationId(2),
                job: "j".to_owned(),
                system: "s".to_owned(),
                derivation: "process:00".to_owned(),
                nix_name: String::new(),
                outputs: BTreeMap::from([("out".to_owned(), "/p".to_owned())]),
                status: BuildStatus::Scheduled,
                weather: Weather::Unknown,
                priority: 99,
                worker: None,
                attempts: 0,
                timestamp: Time(5),
                starttime: None,
                stoptime: None,
                log: Some("/l/3.gz".into()),
                error: None,
            },
            Some("slots"),
        );
        assert_eq!(
            text,
            r#"{"id":3,"jobset":"hello","evaluation":2,"job":"j","system":"s","derivation":"process:00","nix-name":"","outputs":{"out":"/p"},"status":"scheduled","weather":"unknown","priority":99,"worker":null,"waiting":"slots","attempts":0,"timestamp":5,"starttime":null,"stoptime":null,"log":"/l/3.gz","error":null}"#
        );
        let text = evaluation(&Evaluation {
            id: EvaluationId(2),
            jobset: jobset.clone(),
            status: EvaluationStatus::Started,
            timestamp: Time(1),
            checkouttime: Some(Time(2)),
            evaltime: None,
            checkouts: vec![Checkout {
                channel: "c".to_owned(),
                url: "https://me:secret@h/x".to_owned(),
                commit: "00".to_owned(),
                tree: "11".to_owned(),
                directory: "/d".into(),
            }],
            jobs: Counts::default(),
            error: None,
        });
        assert_eq!(
            text,
            r#"{"id":2,"jobset":"hello","status":"started","timestamp":1,"checkouttime":2,"evaltime":null,"checkouts":[{"channel":"c","url":"https://h/x","commit":"00","directory":"/d"}],"jobs":{"total":0,"succeeded":0,"failed":0,"pending":0,"aborted":0,"canceled":0},"error":null}"#
        );
        let text = event(&Event {
            id: 7,
            time: Time(9),
            what: What::BuildEnded,
            jobset: Some(jobset),
            evaluation: None,
            build: Some(BuildId(3)),
            status: Some("failed".to_owned()),
        });
        assert_eq!(
            text,
            r#"{"id":7,"time":9,"event":"build-ended","jobset":"hello","build":3,"status":"failed"}"#
        );
        assert_eq!(overflow(7, Time(9)), r#"{"id":7,"time":9,"event":"overflow"}"#);
    }
}
