//! From triggers to registered jobs: monitors, updater and evaluator, and what they ask of the world.

use std::collections::BTreeMap;

use crossbeam_channel::bounded;

use super::{Event, JOBSETS, Running, TRIES, URLS, World, specification};
use crate::daemon::evaluator::{self, Evaluated};
use crate::daemon::monitor::core as monitor;
use crate::daemon::monitor::{Message, Reply};
use crate::daemon::updater;
use crate::db::{builds, evaluations, jobsets, promises};
use crate::git::{Look, Resolved};
use crate::model::evaluation::Ending;
use crate::model::job::{NewJob, ProcessWork, Work};
use crate::model::spec::JobsetName;

impl World {
    pub(super) fn trigger(&mut self, n: usize) {
        let (reply, answer) = bounded(1);
        self.tell(n, Message::Trigger(Reply::new(reply)));
        if answer.try_recv().unwrap().is_ok() {
            self.owed[n] = self.heads[n % URLS.len()];
        }
    }

    /// A person repeats some evaluation.
    pub(super) fn retry(&mut self) {
        let all = evaluations::list(&self.books.conn, None, 10_000).unwrap();
        let Some(evaluation) = self.random.choice(all) else { return };
        let n = (0..JOBSETS).find(|n| specification(*n).name == evaluation.jobset).unwrap();
        let commit = evaluation.checkouts[0].commit.parse().unwrap();
        let (reply, answer) = bounded(1);
        self.tell(n, Message::Retry(evaluation.id, evaluation.checkouts, Reply::new(reply)));
        if answer.try_recv().unwrap().is_ok() {
            self.retries[n].insert(commit);
        }
    }

    pub(super) fn tell(&mut self, n: usize, message: Message) {
        let (now, mut out) = (self.moment(), vec![]);
        self.monitors[n].on_message(now, message, &mut out);
        self.perform(n, out);
    }

    pub(super) fn perform(&mut self, n: usize, effects: Vec<monitor::Effect>) {
        for effect in effects {
            match effect {
                monitor::Effect::Fetch(channels) => {
                    self.next_ticket += 1;
                    let ticket = updater::Ticket(self.next_ticket);
                    self.tickets.insert(ticket, n);
                    let mut out = vec![];
                    self.updater.on_request(ticket, channels, &mut out);
                    self.perform_updates(out);
                }
                monitor::Effect::Evaluate(request) => {
                    let lane = self.lanes[n].0.clone();
                    let mut out = vec![];
                    self.evaluator
                        .on_message(evaluator::Message::Evaluate(request, lane), &mut out);
                    self.perform_evaluations(out);
                }
                monitor::Effect::Checked(error) => {
                    let name = specification(n).name;
                    self.books.write(|tx| jobsets::checked(tx, &name, error.as_deref())).unwrap();
                    if error.is_some() {
                        // Whoever asked can read why nothing came of it.
                        self.owed[n] = self.owed[n].min(self.evaluated[n]);
                        self.retries[n].clear();
                    }
                }
                monitor::Effect::Withdraw => {
                    let message = evaluator::Message::Withdraw(specification(n).name);
                    let mut out = vec![];
                    self.evaluator.on_message(message, &mut out);
                    self.perform_evaluations(out);
                }
                monitor::Effect::Cleared => {
                    let name = specification(n).name;
                    self.books.write(|tx| jobsets::clear_error(tx, &name)).unwrap();
                }
                monitor::Effect::Promise(promise) => {
                    let name = specification(n).name;
                    self.books.write(|tx| promises::make(tx, &name, promise)).unwrap();
                }
                monitor::Effect::Settle(promise) => {
                    let name = specification(n).name;
                    self.books.write(|tx| promises::settle(tx, &name, promise)).unwrap();
                }
                monitor::Effect::Answer(reply, answer) => reply.send(answer),
            }
        }
        self.arm(n);
    }

    pub(super) fn perform_updates(&mut self, effects: Vec<updater::Effect>) {
        for effect in effects {
            match effect {
                updater::Effect::Look(Look { url, references }) => {
                    self.looks += 1;
                    let references = references.iter().map(|r| format!("{r:?}")).collect();
                    let (life, look) = (self.life, self.looks);
                    self.soon(2000, Event::LookRead { life, url, references, look });
                }
                updater::Effect::Answer(ticket, result) => {
                    let n = self.tickets.remove(&ticket).expect("every fetch is answered once");
                    let (now, mut out) = (self.moment(), vec![]);
                    self.monitors[n].on_fetched(now, result, &mut out);
                    self.perform(n, out);
                }
            }
        }
    }

    pub(super) fn perform_evaluations(&mut self, effects: Vec<evaluator::Effect>) {
        for effect in effects {
            match effect {
                evaluator::Effect::Start(slot, request) => {
                    let name = request.specification.name.clone();
                    let same = self.evaluations.values();
                    assert!(same.into_iter().all(|other| other.request.specification.name != name));
                    let id = self
                        .books
                        .write(|tx| {
                            evaluations::start(
                                tx,
                                &name,
                                &request.fingerprint,
                                request.decided,
                                &request.checkouts,
                            )
                        })
                        .unwrap();
                    self.evaluator.on_begun(slot, id);
                    let running = Running { id, request, made: vec![], ending: None };
                    self.evaluations.insert(slot, running);
                    let left = self.random.usize(1..4);
                    let life = self.life;
                    self.soon(30_000, Event::Batch { life, slot, left });
                }
                evaluator::Effect::Cut(slot, _) => {
                    if let Some(running) = self.evaluations.get_mut(&slot) {
                        running.ending = Some(Ending::Canceled);
                    }
                }
                evaluator::Effect::Answer(lane, answer) => lane.try_send(answer).unwrap(),
            }
        }
        for n in 0..JOBSETS {
            while let Ok(answer) = self.lanes[n].1.try_recv() {
                let (now, mut out) = (self.moment(), vec![]);
                self.monitors[n].on_answer(now, answer, &mut out);
                self.perform(n, out);
            }
        }
    }

    /// One batch of an evaluation's jobs, or its end.
    pub(super) fn register(&mut self, slot: u64, left: usize) {
        let (failed, broken) = (self.misfortune(30), self.misfortune(10));
        let Some(running) = self.evaluations.get_mut(&slot) else { return };
        if failed {
            running.ending.get_or_insert(Ending::Failed("exit status 1".to_owned()));
        } else if broken {
            running.ending.get_or_insert(Ending::Aborted("no space left".to_owned()));
        }
        if left > 0 && running.ending.is_none() {
            let commit = running.request.checkouts[0].commit.clone();
            let id = running.id;
            let mut jobs = vec![];
            for _ in 0..self.random.usize(1..6) {
                let n = running.made.len();
                // Half of the jobs do not depend on the commit, so later evaluations meet them again.
                let version = if n % 2 == 0 { &commit } else { "same" };
                let mut needs: Vec<String> = vec![];
                for need in &running.made {
                    if self.random.u32(0..3) == 0 && (n % 2 == 0 || need.ends_with("same")) {
                        needs.push(need.clone());
                    }
                }
                let derivation = format!("process:{n}-{version}");
                running.made.push(derivation.clone());
                jobs.push(job(n, derivation, needs));
            }
            let changes = self.books.write(|tx| builds::register(tx, id, &jobs)).unwrap();
            self.changed(changes);
            let life = self.life;
            self.soon(30_000, Event::Batch { life, slot, left: left - 1 });
            return;
        }
        let Running { id, request, ending, .. } = self.evaluations.remove(&slot).unwrap();
        let ending = ending.unwrap_or(Ending::Succeeded);
        let supersede = request.specification.supersede;
        let changes = self.books.write(|tx| evaluations::end(tx, id, &ending, supersede)).unwrap();
        self.changed(changes);
        let n = self.jobset(&request.specification.name);
        let commit: u64 = request.checkouts[0].commit.parse().unwrap();
        if matches!(ending, Ending::Aborted(_)) {
            self.faults[n] += 1;
            if self.faults[n] >= TRIES {
                // The tries may be spent; whoever asked can read why.
                self.owed[n] = self.owed[n].min(self.evaluated[n]);
                self.retries[n].clear();
            }
        } else {
            self.faults[n] = 0;
            self.evaluated[n] = self.evaluated[n].max(commit);
            self.retries[n].remove(&commit);
        }
        let evaluated =
            Evaluated { jobset: request.specification.name, evaluation: Some(id), ending };
        let mut out = vec![];
        self.evaluator.on_ended(slot, evaluated, &mut out);
        self.perform_evaluations(out);
    }

    fn jobset(&self, name: &JobsetName) -> usize {
        (0..JOBSETS).find(|n| specification(*n).name == *name).unwrap()
    }
}

pub(super) fn resolved(n: u64) -> Resolved {
    Resolved { commit: n.to_string(), tree: n.to_string(), directory: "/checkout".into() }
}

fn job(n: usize, derivation: String, needs: Vec<String>) -> NewJob {
    NewJob {
        name: format!("job-{n}"),
        system: "x86_64-linux".to_owned(),
        derivation,
        nix_name: format!("job-{n}"),
        outputs: BTreeMap::new(),
        priority: i64::try_from(n).unwrap(),
        timeout: 0,
        max_silent_time: 0,
        work: Work::Process(ProcessWork {
            command: vec!["true".to_owned()],
            environment: BTreeMap::new(),
            products: vec![],
            needs: needs.iter().map(|need| need.replace("process:", "job-")).collect(),
        }),
        needs,
    }
}
