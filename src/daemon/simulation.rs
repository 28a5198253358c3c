//! The pure cores together, with real books in memory and a simulated world: repositories that change, looks and
//! evaluations and builds that take their time and fail, people who trigger, cancel and restart, and deaths of
//! the daemon at any moment. Hours pass by addition; a seed decides everything.
//!
//! What a CI promises is asserted all along: no ready build waits beside a free slot, no build runs twice at
//! once nor under one that reads what it left, every wait has a reason, every accepted trigger is followed by an evaluation of a commit at least as new,
//! and in the end every build has ended and every counter is right.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::path::Path;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::builder::queue::{Facts, Queue, Taken};
use super::evaluator::{self, Answer, Evaluated, Request};
use super::monitor::core as monitor;
use super::monitor::{Message, Moment, Reply, Seed};
use super::updater;
use crate::db::builds::{self, Changes};
use crate::db::promises::{self, Promised};
use crate::db::testing::Books;
use crate::db::{evaluations, jobsets, maintenance};
use crate::git::{self, Look, Resolved};
use crate::model::build::{BuildId, Outcome};
use crate::model::evaluation::{Ending, EvaluationId};
use crate::model::job::{NewJob, ProcessWork, Work};
use crate::model::spec::{Channel, Evaluator, JobsetName, Reference, Specification};
use crate::model::status::{BuildStatus, EvaluationStatus};
use crate::model::time::Time;
use crate::sys::clock;

/// Seeds tried: each is a few simulated hours.
const SEEDS: u64 = 2000;

/// How often an evaluation is tried that faults end.
const TRIES: u32 = 5;

/// Jobsets, which share the URLs.
const JOBSETS: usize = 3;

const URLS: [&str; 2] = ["/srv/one", "/srv/two"];

/// How long the world is unkind.
const UNKIND: Duration = Duration::from_secs(2 * 3600);
/// After that, how long nobody asks for anything.
const CALM: Duration = Duration::from_secs(3600);
/// How long it has to recover: longer than all backoffs together.
const RECOVERY: Duration = Duration::from_secs(4 * 3600);

/// What happens at some moment. Numbers name a life of the daemon: what an earlier life began is lost.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Push(usize),
    Trigger(usize),
    /// A push, and the trigger of the hook that goes with it.
    Release(usize),
    Meddle,
    /// The check that nothing which was asked for is left.
    Reckon,
    Death,
    Deadline(usize),
    QueueDeadline,
    LookRead {
        life: u64,
        url: String,
        references: Vec<String>,
        look: u64,
    },
    LookEnded {
        life: u64,
        url: String,
        look: u64,
    },
    Batch {
        life: u64,
        slot: u64,
        left: usize,
    },
    BuildEnded {
        life: u64,
        id: BuildId,
        attempt: i64,
    },
}

/// An evaluation that runs.
struct Running {
    id: EvaluationId,
    request: Box<Request>,
    /// Job names registered, so that the next batch can need them.
    made: Vec<String>,
    ending: Option<Ending>,
}

struct World {
    random: fastrand::Rng,
    seed: u64,
    start: Instant,
    passed: Duration,
    agenda: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    sequence: u64,
    life: u64,
    books: Books,
    /// Commits pushed so far, by URL.
    heads: Vec<u64>,
    monitors: Vec<monitor::Core>,
    updater: updater::Core,
    tickets: HashMap<updater::Ticket, usize>,
    next_ticket: u64,
    looks: u64,
    /// What looks under way have read.
    read: HashMap<u64, Result<Vec<u64>, ()>>,
    evaluator: evaluator::Core,
    evaluations: HashMap<u64, Running>,
    lanes: Vec<(Sender<Answer>, Receiver<Answer>)>,
    queue: Queue,
    running: BTreeMap<BuildId, i64>,
    /// The newest commit at an accepted trigger, by jobset.
    owed: Vec<u64>,
    /// Commits of evaluations to be repeated, by jobset.
    retries: Vec<BTreeSet<u64>>,
    /// The newest commit that an evaluation was made from, by jobset.
    evaluated: Vec<u64>,
    ended: BTreeSet<(BuildId, i64)>,
    /// Evaluations in a row that faults ended, by jobset.
    faults: Vec<u32>,
}

fn specification(n: usize) -> Specification {
    let url = URLS[n % URLS.len()];
    Specification {
        name: JobsetName::new(&format!("jobset-{n}")).unwrap(),
        channels: vec![Channel {
            name: "main".to_owned(),
            url: url.to_owned(),
            reference: Reference::Branch("main".to_owned()),
            introduction: None,
        }],
        evaluator: Evaluator::Command(vec!["jobs".to_owned()]),
        systems: vec!["x86_64-linux".to_owned()],
        build_outputs: vec![],
        notifications: vec![],
        // Polls would make good whatever the triggers of the first one lose.
        period: Duration::from_secs(if n == 0 { 30 * 86400 } else { 600 }),
        priority: u8::try_from(n).unwrap(),
        active: true,
        supersede: n == 1,
        evaluation_timeout: Duration::from_secs(3600),
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut books = Books::new();
        for n in 0..JOBSETS {
            let spec = specification(n);
            let text = crate::spec::json::print(&spec);
            books.write(|tx| jobsets::put(tx, &spec.name, &text, true)).unwrap();
        }
        let mut world = Self {
            random: fastrand::Rng::with_seed(seed),
            seed,
            start: clock::now(),
            passed: Duration::ZERO,
            agenda: BinaryHeap::new(),
            sequence: 0,
            life: 0,
            books,
            heads: vec![1; URLS.len()],
            monitors: vec![],
            updater: updater::Core::new(2),
            tickets: HashMap::new(),
            next_ticket: 0,
            looks: 0,
            read: HashMap::new(),
            evaluator: evaluator::Core::new(2, false),
            evaluations: HashMap::new(),
            lanes: vec![],
            queue: Queue::new(3),
            running: BTreeMap::new(),
            owed: vec![0; JOBSETS],
            retries: vec![BTreeSet::new(); JOBSETS],
            evaluated: vec![0; JOBSETS],
            ended: BTreeSet::new(),
            faults: vec![0; JOBSETS],
        };
        for _ in 0..12 {
            let (url, jobset) = (world.random.usize(0..URLS.len()), world.random.usize(0..JOBSETS));
            world.sometime(Event::Push(url));
            world.sometime(Event::Trigger(jobset));
            world.sometime(Event::Trigger(jobset));
            world.sometime(Event::Meddle);
        }
        for _ in 0..10 {
            // Also close together, into the looks and evaluations of one another.
            let seconds = world.random.u64(0..900);
            world.at(UNKIND + CALM + Duration::from_secs(1 + seconds), Event::Release(0));
        }
        world.at(UNKIND + CALM, Event::Reckon);
        for _ in 0..world.random.usize(0..4) {
            world.sometime(Event::Death);
        }
        world.be_born();
        world
    }

    fn moment(&self) -> Moment {
        Moment { instant: self.start + self.passed, wall: self.wall() }
    }

    fn wall(&self) -> Time {
        Time(1_800_000_000 + i64::try_from(self.passed.as_secs()).unwrap())
    }

    fn is_kind(&self) -> bool {
        self.passed > UNKIND
    }

    fn at(&mut self, when: Duration, event: Event) {
        self.sequence += 1;
        self.agenda.push(Reverse((when, self.sequence, event)));
    }

    /// At some moment of the unkind time.
    fn sometime(&mut self, event: Event) {
        let when = Duration::from_millis(self.random.u64(0..7_200_000));
        self.at(when, event);
    }

    fn soon(&mut self, milliseconds: u64, event: Event) {
        let delay = Duration::from_millis(self.random.u64(1..milliseconds));
        self.at(self.passed + delay, event);
    }

    /// One chance in `n`, while the world is unkind.
    fn misfortune(&mut self, n: u32) -> bool {
        !self.is_kind() && self.random.u32(0..n) == 0
    }

    /// Starts the daemon: everything but the books is new.
    fn be_born(&mut self) {
        self.life += 1;
        let wall = self.wall();
        self.books.now = wall;
        self.books.write(evaluations::recover).unwrap();
        self.books.write(builds::recover).unwrap();
        self.updater = updater::Core::new(2);
        self.evaluator = evaluator::Core::new(2, false);
        self.queue = Queue::new(3);
        self.tickets.clear();
        self.read.clear();
        self.evaluations.clear();
        self.running.clear();
        self.lanes = (0..JOBSETS).map(|_| bounded(2)).collect();
        let scheduled = builds::scheduled(&self.books.conn).unwrap();
        self.follow(scheduled);
        self.monitors.clear();
        for n in 0..JOBSETS {
            let specification = specification(n);
            let last =
                evaluations::last_fingerprint(&self.books.conn, &specification.name).unwrap();
            let promised = promises::of(&self.books.conn, &specification.name).unwrap();
            let seed = Seed {
                specification,
                active: true,
                last,
                fetch_error: None,
                evaluation_error: None,
                at_once: false,
                promised,
                interval: Duration::from_secs(300),
            };
            self.monitors.push(monitor::Core::new(self.moment(), seed));
        }
        for n in 0..JOBSETS {
            self.arm(n);
        }
        self.advance();
    }

    fn arm(&mut self, n: usize) {
        if let Some(due) = self.monitors[n].deadline() {
            let when = (due - self.start).max(self.passed);
            self.at(when, Event::Deadline(n));
        }
    }

    fn run(&mut self) {
        while let Some(Reverse((when, _, event))) = self.agenda.pop() {
            if when > UNKIND + RECOVERY {
                break;
            }
            self.passed = self.passed.max(when);
            let wall = self.wall();
            self.books.now = wall;
            self.happen(event);
            self.advance();
            self.queue.check_busy();
        }
        self.judge();
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Push(url) => self.heads[url] += 1,
            Event::Trigger(n) => self.trigger(n),
            Event::Release(n) => {
                self.heads[n % URLS.len()] += 1;
                self.trigger(n);
            }
            Event::Meddle => self.meddle(),
            Event::Reckon => self.reckon(),
            Event::Death => self.be_born(),
            Event::Deadline(n) => {
                let now = self.moment();
                if self.monitors[n].deadline().is_some_and(|due| due <= now.instant) {
                    let mut out = vec![];
                    self.monitors[n].on_deadline(now, &mut out);
                    self.perform(n, out);
                }
            }
            Event::QueueDeadline => self.queue.on_deadline(self.start + self.passed),
            Event::LookRead { life, url, references, look } if life == self.life => {
                let head = self.heads[URLS.iter().position(|u| *u == url).unwrap()];
                // Of a commit, it is that commit itself; of a branch, its head.
                let commit = |text: &String| text.split('"').nth(1)?.parse().ok();
                let commits = references.iter().map(|text| commit(text).unwrap_or(head)).collect();
                let read = if self.misfortune(6) { Err(()) } else { Ok(commits) };
                self.read.insert(look, read);
                self.soon(3000, Event::LookEnded { life, url, look });
            }
            Event::LookEnded { life, url, look } if life == self.life => {
                let answer = match self.read.remove(&look).unwrap() {
                    Ok(commits) => Ok(commits.into_iter().map(|n| Ok(resolved(n))).collect()),
                    Err(()) => Err(git::Error("unreachable".to_owned())),
                };
                let mut out = vec![];
                self.updater.on_ended(&url, &answer, &mut out);
                self.perform_updates(out);
            }
            Event::Batch { life, slot, left } if life == self.life => self.register(slot, left),
            Event::BuildEnded { life, id, attempt } if life == self.life => {
                self.end_build(id, attempt)
            }
            // Of an earlier life.
            Event::LookRead { .. }
            | Event::LookEnded { .. }
            | Event::Batch { .. }
            | Event::BuildEnded { .. } => {}
        }
    }

    fn trigger(&mut self, n: usize) {
        let (reply, answer) = bounded(1);
        self.tell(n, Message::Trigger(Reply::new(reply)));
        if answer.try_recv().unwrap().is_ok() {
            self.owed[n] = self.heads[n % URLS.len()];
        }
    }

    /// A person repeats some evaluation.
    fn retry(&mut self) {
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

    fn tell(&mut self, n: usize, message: Message) {
        let (now, mut out) = (self.moment(), vec![]);
        self.monitors[n].on_message(now, message, &mut out);
        self.perform(n, out);
    }

    fn perform(&mut self, n: usize, effects: Vec<monitor::Effect>) {
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

    fn perform_updates(&mut self, effects: Vec<updater::Effect>) {
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

    fn perform_evaluations(&mut self, effects: Vec<evaluator::Effect>) {
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
    fn register(&mut self, slot: u64, left: usize) {
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

    fn end_build(&mut self, id: BuildId, attempt: i64) {
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
    fn meddle(&mut self) {
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

    fn changed(&mut self, changes: Changes) {
        self.follow(changes.scheduled.into_iter().chain(changes.ended).collect());
    }

    /// As the builder does: makes the queue agree with the books.
    fn follow(&mut self, ids: Vec<BuildId>) {
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
    fn advance(&mut self) {
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

    /// What must hold whenever all have had time to do what they were asked for.
    fn reckon(&self) {
        let seed = self.seed;
        for n in 0..JOBSETS {
            assert!(
                self.evaluated[n] >= self.owed[n],
                "seed {seed}: jobset {n} was triggered at commit {} and evaluated at {}",
                self.owed[n],
                self.evaluated[n]
            );
            assert!(self.retries[n].is_empty(), "seed {seed}: {:?} not repeated", self.retries[n]);
        }
    }

    /// What must hold when all has calmed down.
    fn judge(&mut self) {
        let seed = self.seed;
        self.reckon();
        for n in 0..JOBSETS {
            let head = self.heads[n % URLS.len()];
            assert!(
                self.evaluated[n] >= head || n == 0 || self.faults[n] >= TRIES,
                "seed {seed}: the newest commit was never evaluated"
            );
        }
        for n in 0..JOBSETS {
            let promised = promises::of(&self.books.conn, &specification(n).name).unwrap();
            assert_eq!(promised, Promised::default(), "seed {seed}: jobset {n}");
        }
        assert!(self.running.is_empty(), "seed {seed}: {:?} still run", self.running);
        let all = builds::list(&self.books.conn, &builds::Filter::default(), 10_000).unwrap();
        for build in &all {
            assert!(!build.status.is_pending(), "seed {seed}: {build:?}");
            if build.status == BuildStatus::FailedDependency {
                assert!(build.error.is_some(), "seed {seed}: {build:?}");
            }
        }
        for evaluation in evaluations::list(&self.books.conn, None, 10_000).unwrap() {
            assert_ne!(evaluation.status, EvaluationStatus::Started, "seed {seed}");
        }
        let (wrong, _) =
            maintenance::miscounted(&self.books.conn, EvaluationId(0), 10_000).unwrap();
        assert_eq!(wrong, [], "seed {seed}: counters differ from a recount");
    }
}

fn resolved(n: u64) -> Resolved {
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

#[test]
fn what_a_ci_promises_holds_whatever_happens() {
    // Two halves, for two cores.
    std::thread::scope(|scope| {
        for half in 0..2 {
            let body = move || {
                for seed in (0..SEEDS).filter(|seed| seed % 2 == half) {
                    let result = std::panic::catch_unwind(|| World::new(seed).run());
                    assert!(result.is_ok(), "seed {seed} failed");
                }
            };
            scope.spawn(body);
        }
    });
}
