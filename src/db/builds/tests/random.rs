//! Seeded random operations: after each, the books are in order.

use std::time::Duration;

use crate::db::testing::{Books, abort, failure, job, success};
use crate::db::{Error, builds, evaluations, jobsets, maintenance};
use crate::model::build::{BuildId, Outcome};
use crate::model::evaluation::{Ending, EvaluationId};
use crate::model::job::{NewJob, Work};
use crate::model::spec::JobsetName;

/// Each runs some hundred operations on a world of its own.
const SEEDS: u64 = 40;

struct World {
    books: Books,
    random: fastrand::Rng,
    jobsets: Vec<JobsetName>,
    /// Evaluations that run.
    running: Vec<EvaluationId>,
    /// The queue as the builder would keep it.
    queue: std::collections::BTreeSet<BuildId>,
}

#[test]
fn the_books_stay_in_order_whatever_happens() {
    for seed in 0..SEEDS {
        let mut world = World {
            books: Books::new(),
            random: fastrand::Rng::with_seed(seed),
            jobsets: Vec::new(),
            running: Vec::new(),
            queue: std::collections::BTreeSet::new(),
        };
        for step in 0..200 {
            world.step();
            world.check(&format!("seed {seed}, step {step}"));
        }
    }
}

impl World {
    fn step(&mut self) {
        self.books.now = self.books.now.after(Duration::from_secs(self.random.u64(0..100)));
        let changes = match self.random.u8(0..24) {
            0..4 => self.evaluate(),
            4..10 => self.start(),
            10..16 => self.end(),
            16 => self.end_evaluation(),
            17 => self.with_build(builds::cancel),
            18 => self.with_build(builds::restart),
            19 => self.with_evaluation(|tx, id| builds::restart_evaluation(tx, id, id.0 % 2 == 0)),
            20 => self.with_evaluation(builds::cancel_evaluation),
            21 => self.books.write(|tx| builds::expire(tx, Duration::from_secs(2000))).ok(),
            22 => self.tidy(),
            23 => self.delete(),
            _ => unreachable!(),
        };
        if let Some(changes) = changes {
            self.queue.retain(|id| !changes.ended.contains(id));
            self.queue.extend(changes.scheduled);
        }
    }

    fn evaluate(&mut self) -> Option<builds::Changes> {
        if self.jobsets.is_empty() || self.random.u8(0..10) == 0 {
            let name = format!("j{}", self.random.u8(0..4));
            let name = self.books.jobset(&name);
            self.jobsets.retain(|known| *known != name);
            self.jobsets.push(name);
        }
        let evaluation = if self.running.is_empty() || self.random.bool() {
            let jobset = self.random.choice(&self.jobsets)?.clone();
            let id = self.books.evaluation(&jobset);
            self.running.push(id);
            id
        } else {
            *self.random.choice(&self.running)?
        };
        // Derivations are shared by all; each may need lower ones, which then are jobs, too.
        let mut numbers: Vec<u32> =
            (0..self.random.u32(1..6)).map(|_| self.random.u32(0..40)).collect();
        let mut jobs: Vec<NewJob> = Vec::new();
        while let Some(number) = numbers.pop() {
            let needs: Vec<u32> =
                [number / 2, number / 3].into_iter().filter(|&n| n < number).collect();
            let names: Vec<String> = needs.iter().map(|n| format!("d{n}")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let mut new = job(&format!("d{number}"), &names);
            if number == 7 {
                new.work = Work::Error("no".to_owned());
            }
            new.name = format!("{}-{}", new.name, self.random.u32(0..3));
            if jobs.iter().all(|known| known.name != new.name) {
                jobs.push(new);
                numbers.extend(needs);
            }
        }
        // A job that is there already refuses the whole batch.
        self.books.write(|tx| builds::register(tx, evaluation, &jobs)).ok()
    }

    fn start(&mut self) -> Option<builds::Changes> {
        let queue: Vec<BuildId> = self.queue.iter().copied().collect();
        let entries = builds::entries(&self.books.conn, &queue).unwrap();
        let ready: Vec<BuildId> =
            entries.iter().filter(|e| e.waits_for.is_empty()).map(|e| e.id).collect();
        let id = *self.random.choice(&ready)?;
        self.books.write(|tx| builds::start(tx, id, "/log".as_ref(), None)).unwrap();
        self.queue.remove(&id);
        None
    }

    fn end(&mut self) -> Option<builds::Changes> {
        let running = builds::running(&self.books.conn).unwrap();
        if self.random.u8(0..20) == 0 {
            // The daemon died; the queue is read anew.
            self.books.write(builds::recover).unwrap();
            for id in self.books.write(evaluations::recover).unwrap() {
                self.running.retain(|known| *known != id);
            }
            self.queue = builds::scheduled(&self.books.conn).unwrap().into_iter().collect();
            return None;
        }
        let (id, attempt, _) = *self.random.choice(&running)?;
        let outcome = match self.random.u8(0..8) {
            0..4 => success(),
            4..6 => failure(),
            6 if self.random.bool() => Outcome::Missing("it is gone".to_owned()),
            6 => abort(),
            7 => Outcome::Interrupted,
            _ => unreachable!(),
        };
        // Now and then a report of an older try.
        let attempt = attempt - i64::from(self.random.u8(0..10) == 0);
        Some(self.books.write(|tx| builds::end(tx, id, attempt, &outcome)).unwrap())
    }

    fn end_evaluation(&mut self) -> Option<builds::Changes> {
        let id = *self.random.choice(&self.running)?;
        self.running.retain(|known| *known != id);
        let ending = match self.random.u8(0..4) {
            0 => Ending::Failed("no".to_owned()),
            1 => Ending::Canceled,
            2 => Ending::Interrupted,
            3 => Ending::Succeeded,
            _ => unreachable!(),
        };
        let supersede = self.random.bool();
        Some(self.books.write(|tx| evaluations::end(tx, id, &ending, supersede)).unwrap())
    }

    fn tidy(&mut self) -> Option<builds::Changes> {
        let age = Duration::from_secs(self.random.u64(0..5000));
        self.books.write(|tx| maintenance::expire_history(tx, age, 3)).unwrap();
        self.books.write(|tx| maintenance::expire_products(tx, age, 3)).unwrap();
        if let Some(id) = evaluations::withdrawn(&self.books.conn).unwrap() {
            self.books.write(|tx| evaluations::remove_some(tx, id, 4)).unwrap();
        }
        self.books.write(|tx| maintenance::remove_orphans(tx, None, 5)).unwrap();
        None
    }

    fn delete(&mut self) -> Option<builds::Changes> {
        let name = self.random.choice(&self.jobsets)?.clone();
        self.jobsets.retain(|known| *known != name);
        let changes = self.books.write(|tx| jobsets::delete(tx, &name)).unwrap();
        let conn = &self.books.conn;
        self.running.retain(|id| evaluations::get(conn, *id).unwrap().is_some());
        Some(changes)
    }

    fn with_build(
        &mut self,
        apply: impl FnOnce(&mut crate::db::Tx<'_>, BuildId) -> Result<builds::Changes, Error>,
    ) -> Option<builds::Changes> {
        let filter = builds::Filter::default();
        let all = builds::list(&self.books.conn, &filter, 1000).unwrap();
        let id = self.random.choice(&all)?.id;
        self.allow_conflict(|tx| apply(tx, id))
    }

    fn with_evaluation(
        &mut self,
        apply: impl FnOnce(&mut crate::db::Tx<'_>, EvaluationId) -> Result<builds::Changes, Error>,
    ) -> Option<builds::Changes> {
        let all = evaluations::list(&self.books.conn, None, 1000).unwrap();
        let id = self.random.choice(&all)?.id;
        self.allow_conflict(|tx| apply(tx, id))
    }

    fn allow_conflict(
        &mut self,
        apply: impl FnOnce(&mut crate::db::Tx<'_>) -> Result<builds::Changes, Error>,
    ) -> Option<builds::Changes> {
        match self.books.write(apply) {
            Ok(changes) => Some(changes),
            Err(Error::Conflict(_)) => None,
            Err(error) => panic!("{error:?}"),
        }
    }

    fn check(&mut self, when: &str) {
        let wrong = maintenance::miscounted(&self.books.conn, EvaluationId(0), 10_000).unwrap();
        assert_eq!(wrong.0, [], "{when}: counters differ from a recount");
        let none = |what: &str, sql: &str| {
            let found: i64 = self
                .books
                .conn
                .query_row(&format!("SELECT count(*) FROM {sql}"), [], |r| r.get(0))
                .unwrap();
            assert_eq!(found, 0, "{when}: {what}");
        };
        let edges =
            "dependencies d JOIN builds s ON s.id = d.source JOIN builds t ON t.id = d.target";
        none(
            "a scheduled build waits for one that ended badly",
            &format!("{edges} WHERE s.status = -2 AND t.status > 0"),
        );
        none(
            "a build failed because of a dependency that did not",
            "builds b WHERE status = 2 AND NOT EXISTS (SELECT 1 FROM dependencies d
             JOIN builds t ON t.id = d.target WHERE d.source = b.id AND t.status > 0)",
        );
        none("times and status disagree", "builds WHERE (status >= 0) <> (stoptime IS NOT NULL)");
        none("a bad ending without a reason", "builds WHERE status > 0 AND error IS NULL");
        none(
            "a build with jobs, but none in its evaluation",
            "builds b WHERE EXISTS (SELECT 1 FROM jobs j JOIN evaluations e ON e.id = j.evaluation
                             WHERE j.build = b.id AND e.jobset <> '.withdrawn')
             AND NOT EXISTS (SELECT 1 FROM jobs WHERE build = b.id AND evaluation = b.evaluation)",
        );
        none(
            "a job is not marked as its build ended",
            "jobs j JOIN builds b ON b.id = j.build WHERE j.bad <> max(b.status, 0)",
        );
        none(
            "an ended build without a job that the janitor does not know",
            "builds b WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE build = b.id)
             AND NOT EXISTS (SELECT 1 FROM orphans WHERE build = b.id)",
        );
        none(
            "a build runs, and so does one that it reads from",
            &format!("{edges} WHERE s.status = -1 AND t.status = -1"),
        );
        none("foreign keys", "pragma_foreign_key_check");
        let books: Vec<BuildId> = builds::scheduled(&self.books.conn).unwrap();
        let queue: Vec<BuildId> = self.queue.iter().copied().collect();
        let mut sorted = books;
        sorted.sort_unstable();
        assert_eq!(queue, sorted, "{when}: the queue that follows the changes");
    }
}
