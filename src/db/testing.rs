//! A database in memory for the tests of this layer, and short ways to fill it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::builds::{self, Changes};
use super::{Error, Tx, evaluations, jobsets, maintenance, migrate};
use crate::model::build::{Build, BuildId, Order, Outcome};
use crate::model::evaluation::{Checkout, Counts, Ending, EvaluationId};
use crate::model::event::Event;
use crate::model::job::{NewJob, ProcessWork, Work};
use crate::model::spec::JobsetName;
use crate::model::status::BuildStatus;
use crate::model::time::Time;

pub(crate) struct Books {
    pub(crate) conn: Connection,
    pub(crate) now: Time,
    /// All that were emitted.
    pub(crate) events: Vec<Event>,
}

impl Books {
    pub(crate) fn new() -> Self {
        Self { conn: migrate::memory(), now: Time(1_000_000), events: Vec::new() }
    }

    /// One request, in a savepoint as the writer makes it.
    pub(crate) fn write<T>(
        &mut self,
        apply: impl FnOnce(&mut Tx<'_>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.conn.execute_batch("SAVEPOINT request").unwrap();
        let result = apply(&mut Tx::new(&self.conn, self.now, &mut self.events));
        if result.is_err() {
            self.conn.execute_batch("ROLLBACK TO request").unwrap();
        }
        self.conn.execute_batch("RELEASE request").unwrap();
        result
    }

    pub(crate) fn jobset(&mut self, name: &str) -> JobsetName {
        self.jobset_with(name, "{}")
    }

    pub(crate) fn jobset_with(&mut self, name: &str, specification: &str) -> JobsetName {
        let name = JobsetName::new(name).unwrap();
        self.write(|tx| jobsets::put(tx, &name, specification, true)).unwrap();
        name
    }

    pub(crate) fn evaluation(&mut self, jobset: &JobsetName) -> EvaluationId {
        let checkout = Checkout {
            channel: "main".to_owned(),
            url: "/srv/main.git".to_owned(),
            commit: "c0ffee".to_owned(),
            tree: "7ee".to_owned(),
            directory: PathBuf::from(format!("/cache/{jobset}")),
        };
        let decided = self.now;
        self.write(|tx| evaluations::start(tx, jobset, "print", decided, &[checkout])).unwrap()
    }

    /// An evaluation of these jobs that has succeeded.
    pub(crate) fn evaluated(&mut self, jobset: &JobsetName, jobs: &[NewJob]) -> EvaluationId {
        let id = self.evaluation(jobset);
        self.register(id, jobs);
        self.write(|tx| evaluations::end(tx, id, &Ending::Succeeded, false)).unwrap();
        id
    }

    pub(crate) fn register(&mut self, evaluation: EvaluationId, jobs: &[NewJob]) -> Changes {
        self.write(|tx| builds::register(tx, evaluation, jobs)).unwrap()
    }

    /// All that the janitor removes of evaluations that were withdrawn.
    pub(crate) fn remove_withdrawn(&mut self) {
        while let Some(id) = evaluations::withdrawn(&self.conn).unwrap() {
            self.write(|tx| evaluations::remove_some(tx, id, 2)).unwrap();
        }
    }

    /// One pass of the janitor over builds without jobs.
    pub(crate) fn remove_orphans(&mut self) -> Vec<BuildId> {
        self.write(|tx| maintenance::remove_orphans(tx, None, 100)).unwrap().0
    }

    /// The build of a derivation.
    pub(crate) fn id(&self, derivation: &str) -> BuildId {
        self.conn
            .query_row("SELECT id FROM builds WHERE derivation = ?1", [derivation], |r| r.get(0))
            .unwrap()
    }

    pub(crate) fn build(&self, derivation: &str) -> Build {
        builds::get(&self.conn, self.id(derivation)).unwrap().unwrap()
    }

    pub(crate) fn status(&self, derivation: &str) -> BuildStatus {
        self.build(derivation).status
    }

    pub(crate) fn start(&mut self, derivation: &str) -> Order {
        let id = self.id(derivation);
        self.write(|tx| builds::start(tx, id, Path::new("/log"), None)).unwrap()
    }

    /// Starts a build and ends it.
    pub(crate) fn run(&mut self, derivation: &str, outcome: &Outcome) -> Changes {
        let order = self.start(derivation);
        self.write(|tx| builds::end(tx, order.id, order.attempt, outcome)).unwrap()
    }

    pub(crate) fn counts(&self, evaluation: EvaluationId) -> Counts {
        evaluations::get(&self.conn, evaluation).unwrap().unwrap().jobs
    }

    /// The errors of builds that ended badly, for their text.
    pub(crate) fn error(&self, derivation: &str) -> String {
        self.build(derivation).error.unwrap_or_default()
    }
}

/// A process job whose derivation is its name, with the derivations it needs.
pub(crate) fn job(name: &str, needs: &[&str]) -> NewJob {
    let needs: Vec<String> = needs.iter().map(|&need| need.to_owned()).collect();
    NewJob {
        name: name.to_owned(),
        system: "x86_64-linux".to_owned(),
        derivation: name.to_owned(),
        nix_name: name.to_owned(),
        outputs: BTreeMap::new(),
        priority: 99,
        timeout: 600,
        max_silent_time: 60,
        work: Work::Process(ProcessWork {
            command: vec!["make".to_owned(), name.to_owned()],
            environment: BTreeMap::from([("CI".to_owned(), "true".to_owned())]),
            products: vec!["*.html".to_owned()],
            needs: needs.clone(),
        }),
        needs,
    }
}

/// A job of this name whose derivation is another.
pub(crate) fn version(name: &str, derivation: &str) -> NewJob {
    NewJob { derivation: derivation.to_owned(), ..job(name, &[]) }
}

pub(crate) fn success() -> Outcome {
    Outcome::Succeeded { outputs: BTreeMap::new(), products: Vec::new() }
}

pub(crate) fn failure() -> Outcome {
    Outcome::Failed("exit status 1".to_owned())
}

pub(crate) fn abort() -> Outcome {
    Outcome::Aborted("no space".to_owned())
}
