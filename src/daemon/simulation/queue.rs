//! The builder's side: the queue, what it hands out, how builds end, and what people do to them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use crossbeam_channel::bounded;

use super::{Event, World};
use crate::daemon::builder::queue::{Facts, Taken};
use crate::daemon::evaluator;
use crate::db::builds::{self, Changes};
use crate::model::build::{BuildId, Outcome};

impl World {
    pub(super) fn end_build(&mut self, id: BuildId, attempt: i64) {
        let outcome = match self.random.u32(0..10) {
            0 => Outcome::Failed("exit status 1".to_owned()),
            1 if !self.is_kind() => Outcome::Aborted("the store went away".to_owned()),
            _ => Outcome::Succeeded { outputs: BTreeMap::new(), products: vec![] },
        };
        assert_eq!(self.running.remove(&id), Some(attempt));
        assert!(self.ended.insert((id, attempt)), "try {attempt} of {id} ended twice");
        assert!(self.queue.over(id, attempt));
        let changes = self.books.write(|tx| builds::end(tx, id, attempt, &outcome)).unwrap();
        self.queue.settled(id);
        self.follow(vec![id]);
        self.changed(changes);
    }

    /// A person does something.
    pub(super) fn meddle(&mut self) {
        if self.random.u32(0..8) == 0 {
            return self.retry();
        }
        let last = builds::list(&self.books.conn, &builds::Filter::default(), 1).unwrap();
        let Some(last) = last.first() else { return };
        let id = BuildId(self.random.i64(1..=last.id.0));
        let evaluation = last.evaluation;
        let choice = self.random.u32(0..7);
        let all = self.random.bool();
        let result = self.books.write(|tx| match choice {
            0 => builds::cancel(tx, id),
            1 => builds::restart(tx, id),
            2 => builds::cancel_evaluation(tx, evaluation),
            3 => builds::restart_evaluation(tx, evaluation, all),
            4 => builds::prioritize(tx, id, 5),
            5 => builds::expire(tx, Duration::from_secs(600)),
            _ => Ok(Changes::default()),
        });
        if let Ok(changes) = result {
            self.changed(changes);
        }
        if choice == 6
            && let Some(running) = self.evaluations.values().next()
        {
            let (reply, _answer) = bounded(1);
            let id = running.id;
            let mut out = vec![];
            self.evaluator.on_message(evaluator::Message::Cancel(id, reply), &mut out);
            self.perform_evaluations(out);
        }
    }

    pub(super) fn changed(&mut self, changes: Changes) {
        self.follow(changes.scheduled.into_iter().chain(changes.ended).collect());
    }

    /// As the builder does: makes the queue agree with the books.
    pub(super) fn follow(&mut self, ids: Vec<BuildId>) {
        let conn = &self.books.conn;
        let mut entries = builds::entries(conn, &ids).unwrap();
        let mut known: BTreeSet<BuildId> = ids.iter().copied().collect();
        let mut next = 0;
        while next < entries.len() {
            let missing: Vec<BuildId> = entries[next]
                .waits_for
                .iter()
                .copied()
                .filter(|id| !self.queue.knows(*id) && known.insert(*id))
                .collect();
            entries.extend(builds::entries(conn, &missing).unwrap());
            next += 1;
        }
        let running: Vec<(BuildId, i64)> = builds::running(conn)
            .unwrap()
            .into_iter()
            .map(|(id, attempt, _)| (id, attempt))
            .collect();
        let facts = Facts {
            now: self.start + self.passed,
            wall: self.wall(),
            ids: &ids,
            entries,
            running: &running,
        };
        let stopped = self.queue.follow(facts, &|_, _| None);
        for id in stopped {
            // Its processes take a moment to die; its report comes as for any other.
            let attempt = self.running[&id];
            let life = self.life;
            self.soon(3000, Event::BuildEnded { life, id, attempt });
            self.agenda.retain(|Reverse((when, _, event))| {
                !matches!(event, Event::BuildEnded { id: other, .. } if *other == id)
                    || *when <= self.passed + Duration::from_secs(3)
            });
            // Exactly one report may be left.
            let mut seen = false;
            self.agenda.retain(|Reverse((_, _, event))| match event {
                Event::BuildEnded { id: other, .. } if *other == id => {
                    !std::mem::replace(&mut seen, true)
                }
                _ => true,
            });
        }
    }

    /// Hands out all that can be.
    pub(super) fn advance(&mut self) {
        while let Some(Taken { id, .. }) = self.queue.take() {
            let started = self.books.write(|tx| builds::start(tx, id, Path::new("/log"), None));
            match started {
                Ok(order) => {
                    let again = self.queue.started(id, order.attempt);
                    let before = self.running.insert(id, order.attempt);
                    assert_eq!(before, None, "build {id} runs twice at once");
                    for need in &order.needs {
                        assert!(!need.job.is_empty() && !need.expired, "build {id}: {need:?}");
                    }
                    let readers: i64 = self
                        .books
                        .conn
                        .query_row(
                            "SELECT count(*) FROM dependencies d JOIN builds b ON b.id = d.source
                             WHERE d.target = ?1 AND b.status = -1",
                            [id],
                            |row| row.get(0),
                        )
                        .unwrap();
                    assert_eq!(readers, 0, "build {id} starts under those that read what it left");
                    let (life, attempt) = (self.life, order.attempt);
                    self.soon(120_000, Event::BuildEnded { life, id, attempt });
                    if again {
                        self.follow(vec![id]);
                    }
                }
                Err(error) => panic!("build {id} was handed out and cannot start: {error}"),
            }
        }
        if let Some(due) = self.queue.deadline() {
            let when = (due - self.start).max(self.passed);
            let armed = self
                .agenda
                .iter()
                .any(|Reverse((at, _, event))| *event == Event::QueueDeadline && *at <= when);
            if !armed {
                self.at(when, Event::QueueDeadline);
            }
        }
    }
}
