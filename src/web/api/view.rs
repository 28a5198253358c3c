//! The objects of answers.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use crate::db::web::builds::Shown;
use crate::db::web::jobs;
use crate::model::evaluation::{Checkout, Evaluation};
use crate::model::status::BuildStatus;
use crate::model::time::Time;

/// What may be absent, which is told as `false`.
pub(super) struct OrFalse<T>(pub(super) Option<T>);

impl<T: Serialize> Serialize for OrFalse<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Some(value) => value.serialize(serializer),
            None => serializer.serialize_bool(false),
        }
    }
}

/// A time that is not yet is 0.
pub(super) fn seconds(time: Option<Time>) -> i64 {
    time.map_or(0, |time| time.0)
}

#[derive(Serialize)]
pub(super) struct BuildView<'a> {
    id: i64,
    evaluation: i64,
    jobset: &'a str,
    job: &'a str,
    timestamp: i64,
    starttime: i64,
    stoptime: i64,
    derivation: &'a str,
    buildoutputs: BTreeMap<&'a str, Output<'a>>,
    system: &'a str,
    nixname: &'a str,
    buildstatus: i64,
    weather: i64,
    busy: u8,
    priority: i64,
    finished: u8,
    buildproducts: Vec<Product<'a>>,
    /// Why it ended badly.
    reason: OrFalse<&'a str>,
    worker: OrFalse<&'a str>,
}

#[derive(Serialize)]
struct Output<'a> {
    path: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Product<'a> {
    id: i64,
    #[serde(rename = "type")]
    kind: &'a str,
    path: &'a str,
    file_size: i64,
}

impl<'a> BuildView<'a> {
    pub(super) fn new(shown: &'a Shown) -> Self {
        let build = &shown.build;
        let outputs = build.outputs.iter();
        let products = shown.products.iter();
        Self {
            id: build.id.0,
            evaluation: build.evaluation.0,
            jobset: build.jobset.as_str(),
            job: &build.job,
            timestamp: build.stoptime.unwrap_or(build.timestamp).0,
            starttime: seconds(build.starttime),
            stoptime: seconds(build.stoptime),
            derivation: &build.derivation,
            buildoutputs: outputs.map(|(name, path)| (name.as_str(), Output { path })).collect(),
            system: &build.system,
            nixname: &build.nix_name,
            buildstatus: build.status.number(),
            weather: build.weather.number(),
            busy: u8::from(build.status == BuildStatus::Started),
            priority: build.priority,
            finished: u8::from(!build.status.is_pending()),
            buildproducts: products
                .map(|left| Product {
                    id: left.id,
                    kind: &left.kind,
                    path: &left.path,
                    file_size: left.size,
                })
                .collect(),
            reason: OrFalse(build.error.as_deref()),
            worker: OrFalse(build.worker.as_deref()),
        }
    }
}

#[derive(Serialize)]
pub(super) struct EvaluationView<'a> {
    id: i64,
    specification: &'a str,
    status: i64,
    timestamp: i64,
    checkouttime: i64,
    evaltime: i64,
    checkouts: Vec<CheckoutView<'a>>,
}

impl<'a> EvaluationView<'a> {
    pub(super) fn new(evaluation: &'a Evaluation) -> Self {
        Self {
            id: evaluation.id.0,
            specification: evaluation.jobset.as_str(),
            status: evaluation.status.number(),
            timestamp: evaluation.timestamp.0,
            checkouttime: seconds(evaluation.checkouttime),
            evaltime: seconds(evaluation.evaltime),
            checkouts: evaluation.checkouts.iter().map(CheckoutView::new).collect(),
        }
    }
}

#[derive(Serialize)]
pub(super) struct CheckoutView<'a> {
    commit: &'a str,
    channel: &'a str,
    directory: String,
}

impl<'a> CheckoutView<'a> {
    pub(super) fn new(checkout: &'a Checkout) -> Self {
        Self {
            commit: &checkout.commit,
            channel: &checkout.channel,
            directory: checkout.directory.display().to_string(),
        }
    }
}

#[derive(Serialize)]
pub(super) struct JobView<'a> {
    build: i64,
    status: i64,
    name: &'a str,
    system: &'a str,
}

impl<'a> JobView<'a> {
    pub(super) fn new(job: &'a jobs::Job) -> Self {
        Self {
            build: job.build.0,
            status: job.status.number(),
            name: &job.name,
            system: &job.system,
        }
    }
}

/// A job in a history, whose keys are in another order.
#[derive(Serialize)]
pub(super) struct PastJob {
    pub(super) name: String,
    pub(super) build: i64,
    pub(super) status: i64,
}
