//! The pure cores together, with real books in memory and a simulated world: repositories that change, looks and
//! evaluations and builds that take their time and fail, people who trigger, cancel and restart, and deaths of
//! the daemon at any moment. Hours pass by addition; a seed decides everything.
//!
//! What a CI promises is asserted all along: no ready build waits beside a free slot, no build runs twice at
//! once nor under one that reads what it left, every wait has a reason, every accepted trigger is followed by an evaluation of a commit at least as new,
//! and in the end every build has ended and every counter is right.

mod jobs;
mod queue;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use self::jobs::resolved;
use super::builder::queue::Queue;
use super::evaluator::{self, Answer, Request};
use super::monitor::core as monitor;
use super::monitor::{Moment, Seed};
use super::updater;
use crate::db::builds;
use crate::db::promises::{self, Promised};
use crate::db::testing::Books;
use crate::db::{evaluations, jobsets, maintenance};
use crate::git;
use crate::model::build::BuildId;
use crate::model::evaluation::{Ending, EvaluationId};
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
