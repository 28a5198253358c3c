//! A farm without sockets: the server's hall, the daemon's queue, core and books, workers of Cuirass's kind and of ours, and a
//! network that delays, drops and repeats what they say. Each of them dies and comes back at any moment. Hours pass by
//! addition; a seed decides everything.
//!
//! What a farm promises is asserted: every build ends, as a worker said or a person wanted, no end is counted twice, no worker
//! is told what would kill it, and no derivation is built again but for a mishap that cost what its worker had done or said.

mod link;
mod machine;
mod network;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use self::link::Heard;
use self::machine::{Machine, Reaction, SYSTEM, Socket};
use self::network::{Connection, Parcel};
use super::hall::{Effect, From, Hall, Now, Settings};
use super::peers::Link;
use crate::daemon::builder::remote::farm::Half;
use crate::model::status::BuildStatus;
use crate::model::time::Time;
use crate::proto::remote::link::{Command, Try};
use crate::sys::clock;

/// Seeds tried: each is most of an hour of a farm's life.
const SEEDS: u64 = 400;

const WORKERS: usize = 6;
const BUILDS: usize = 60;

/// How often the daemon tries a build whose tries mishaps end.
const TRIES: u32 = 5;

/// How long the world is unkind.
const UNKIND: Duration = Duration::from_secs(1200);
/// How long it has to recover: all grace and all builds of the longest kind, one after the other.
const RECOVERY: Duration = Duration::from_secs(3600);

/// ZMTP heartbeats notice a network that is gone after this long, and some.
const HEARTBEATS: Duration = Duration::from_secs(15);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    NewBuild,
    /// A person cancels some build.
    Cancel,
    Arrives(usize, Parcel),
    Connect {
        worker: usize,
        life: u64,
        socket: Socket,
    },
    /// A connection that breaks at both ends.
    Break(usize),
    Partition {
        worker: usize,
        time: Duration,
    },
    Reunion(usize),
    Ping {
        worker: usize,
        life: u64,
    },
    Checked {
        worker: usize,
        life: u64,
    },
    /// The build that a worker began as the one of this number.
    Built {
        worker: usize,
        life: u64,
        begun: u64,
    },
    WorkerDies(usize),
    WorkerIsBorn(usize),
    ServerDies,
    ServerIsBorn,
    DaemonDies,
    DaemonIsBorn,
    DaemonConnects(u64),
    /// Over the link between server and daemon.
    Heard(u64, Heard),
    Commanded(u64, Command),
    Fetched(u64, Try, String),
    Written(u64),
    Deadline(Timer),
}

/// Who is to be told that time has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Hall,
    Daemon,
    Worker(usize),
}

struct World {
    random: fastrand::Rng,
    seed: u64,
    start: Instant,
    passed: Duration,
    agenda: BinaryHeap<Reverse<(Duration, u64)>>,
    events: BTreeMap<u64, Event>,
    sequence: u64,
    /// The next of each on the agenda.
    timers: BTreeMap<Timer, Duration>,
    hall: Option<Hall>,
    server_life: u64,
    machines: Vec<Machine>,
    connections: Vec<Connection>,
    daemon: Half,
    /// How many lives the daemon has had, and whether this one goes on.
    daemon_life: u64,
    daemon_lives: bool,
    /// The number of the link between daemon and server, if there is one.
    link: Option<u64>,
    links: u64,
    link_arrivals: [Duration; 2],
    builds: usize,
    canceled: BTreeSet<String>,
    /// How often each derivation was begun, and what mishaps may have cost.
    begun: BTreeMap<String, u32>,
    excused: BTreeMap<String, u32>,
    /// How workers found them.
    finished: BTreeSet<(String, bool)>,
    /// What this server was told the end of, and by which worker.
    reported: BTreeSet<(usize, String)>,
}

fn address(worker: usize) -> IpAddr {
    // Two loops on each machine.
    IpAddr::from([10, 0, 0, 2 + u8::try_from(worker / 2).unwrap()])
}

fn derivation(build: usize) -> String {
    format!("/gnu/store/{build:032}-build.drv")
}

impl World {
    fn new(seed: u64) -> Self {
        let start = clock::now();
        let mut world = Self {
            random: fastrand::Rng::with_seed(seed),
            seed,
            start,
            passed: Duration::ZERO,
            agenda: BinaryHeap::new(),
            events: BTreeMap::new(),
            sequence: 0,
            timers: BTreeMap::new(),
            hall: None,
            server_life: 0,
            machines: (0..WORKERS).map(Machine::new).collect(),
            connections: Vec::new(),
            daemon: Half::new(start),
            daemon_life: 0,
            daemon_lives: false,
            link: None,
            links: 0,
            link_arrivals: [Duration::ZERO; 2],
            builds: 0,
            canceled: BTreeSet::new(),
            begun: BTreeMap::new(),
            excused: BTreeMap::new(),
            finished: BTreeSet::new(),
            reported: BTreeSet::new(),
        };
        for _ in 0..BUILDS {
            world.sometime(Event::NewBuild);
        }
        for _ in 0..world.random.usize(0..6) {
            world.sometime(Event::Cancel);
        }
        for _ in 0..world.random.usize(0..12) {
            let worker = world.random.usize(0..WORKERS);
            world.sometime(Event::WorkerDies(worker));
            let worker = world.random.usize(0..WORKERS);
            let time = Duration::from_secs(world.random.u64(1..200));
            world.sometime(Event::Partition { worker, time });
        }
        for _ in 0..world.random.usize(0..5) {
            world.sometime(Event::ServerDies);
            world.sometime(Event::DaemonDies);
        }
        for _ in 0..world.random.usize(0..30) {
            let number = world.random.usize(0..4 * WORKERS);
            world.sometime(Event::Break(number));
        }
        world.at(Duration::ZERO, Event::ServerIsBorn);
        world.at(Duration::ZERO, Event::DaemonIsBorn);
        for worker in 0..WORKERS {
            world.soon(5000, Event::WorkerIsBorn(worker));
        }
        world
    }

    fn instant(&self) -> Instant {
        self.start + self.passed
    }

    fn now(&self) -> Now {
        let seconds = i64::try_from(self.passed.as_secs()).unwrap();
        Now { instant: self.instant(), wall: Time(1_800_000_000 + seconds) }
    }

    fn is_kind(&self) -> bool {
        self.passed > UNKIND
    }

    /// One chance in `n`, while the world is unkind.
    fn misfortune(&mut self, n: u32) -> bool {
        !self.is_kind() && self.random.u32(0..n) == 0
    }

    fn at(&mut self, when: Duration, event: Event) {
        self.sequence += 1;
        self.agenda.push(Reverse((when, self.sequence)));
        self.events.insert(self.sequence, event);
    }

    fn sometime(&mut self, event: Event) {
        let when = Duration::from_millis(self.random.u64(0..1_200_000));
        self.at(when, event);
    }

    fn soon(&mut self, milliseconds: u64, event: Event) {
        let delay = Duration::from_millis(self.random.u64(1..milliseconds));
        self.at(self.passed + delay, event);
    }

    /// How long something is on its way: a moment for most.
    fn delay(&mut self) -> Duration {
        let most = if self.random.u32(0..20) == 0 { 3000 } else { 20 };
        Duration::from_millis(self.random.u64(0..most))
    }

    /// The mishaps that a derivation may have suffered from.
    fn mishaps(&self, derivation: &str) -> u32 {
        self.excused.get(derivation).copied().unwrap_or(0)
    }

    fn excuse(&mut self, derivation: &str) {
        *self.excused.entry(derivation.to_owned()).or_default() += 1;
    }

    fn run(mut self) {
        while let Some(Reverse((when, number))) = self.agenda.pop() {
            if when > UNKIND + RECOVERY {
                break;
            }
            let Some(event) = self.events.remove(&number) else { continue };
            self.passed = self.passed.max(when);
            let Now { instant, wall } = self.now();
            self.daemon.tell_time(instant, wall);
            self.happen(event);
            self.work();
            self.arm(Timer::Hall, self.hall.as_ref().and_then(Hall::deadline));
            self.arm(Timer::Daemon, self.daemon.deadline());
            for worker in 0..WORKERS {
                self.arm(Timer::Worker(worker), self.machines[worker].due());
            }
        }
        self.judge();
    }

    fn arm(&mut self, timer: Timer, due: Option<Instant>) {
        let Some(due) = due else { return };
        let when = (due - self.start).max(self.passed);
        if self.timers.get(&timer).is_none_or(|armed| *armed > when) {
            self.timers.insert(timer, when);
            self.at(when, Event::Deadline(timer));
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::NewBuild => {
                self.builds += 1;
                self.daemon.add(&derivation(self.builds), SYSTEM);
            }
            Event::Cancel if self.builds > 0 => {
                let derivation = derivation(self.random.usize(1..=self.builds));
                self.daemon.cancel(&derivation);
                self.canceled.insert(derivation);
            }
            Event::Cancel => {}
            Event::Arrives(connection, parcel) => self.arrive(connection, parcel),
            Event::Connect { worker, life, socket } => self.connect(worker, life, socket),
            Event::Break(nth) => self.break_connection(nth),
            Event::Partition { worker, time } => self.part(worker, time),
            Event::Reunion(worker) => {
                self.machines[worker].parted = None;
                self.reconnect(worker);
            }
            Event::Ping { worker, life } => {
                let machine = &mut self.machines[worker];
                if machine.lives(life) {
                    let text = machine.ping();
                    self.say(worker, Socket::Pings, text);
                    self.at(self.passed + Duration::from_secs(60), Event::Ping { worker, life });
                }
            }
            Event::Checked { worker, life } => {
                let (now, is_fine) = (self.instant(), !self.misfortune(5));
                if self.machines[worker].lives(life) {
                    let reactions = self.machines[worker].checked(now, is_fine);
                    self.react(worker, reactions);
                }
            }
            Event::Built { worker, life, begun } => self.build(worker, life, begun),
            Event::WorkerDies(worker) => self.kill_worker(worker),
            Event::WorkerIsBorn(worker) => {
                let machine = &mut self.machines[worker];
                machine.begin();
                let life = machine.life;
                for &socket in machine.sockets() {
                    self.soon(100, Event::Connect { worker, life, socket });
                }
            }
            Event::ServerDies => self.kill_server(),
            Event::ServerIsBorn => {
                self.server_life += 1;
                let settings =
                    Settings { log_port: 5556, publish_port: None, logs: "/remote".into() };
                self.hall = Some(Hall::new(settings));
                for worker in 0..WORKERS {
                    self.reconnect(worker);
                }
            }
            Event::DaemonDies => self.kill_daemon(),
            Event::DaemonIsBorn => {
                (self.daemon_life, self.daemon_lives) = (self.daemon_life + 1, true);
                self.daemon.be_born();
                self.soon(100, Event::DaemonConnects(self.daemon_life));
            }
            Event::DaemonConnects(life) => self.attach(life),
            Event::Heard(link, heard) if self.link == Some(link) => match heard {
                Heard::Event(event) => self.daemon.event(event),
                Heard::Answer(answer) => self.daemon.answer(answer),
            },
            Event::Commanded(link, command) if self.link == Some(link) => self.obey(command),
            Event::Fetched(life, of, url) if self.daemon_life == life => self.fetch(of, url),
            Event::Written(life) if self.daemon_life == life => {
                self.daemon.write();
                self.daemon.written();
            }
            Event::Deadline(timer) => self.on_deadline(timer),
            // Of an earlier life.
            Event::Heard(..) | Event::Commanded(..) | Event::Fetched(..) | Event::Written(_) => {}
        }
    }

    fn on_deadline(&mut self, timer: Timer) {
        self.timers.retain(|other, when| *other != timer || *when > self.passed);
        let (now, mut out) = (self.instant(), Vec::new());
        match timer {
            Timer::Hall => {
                if let Some(hall) = &mut self.hall {
                    hall.on_deadline(now, &mut out);
                }
                self.perform(out);
            }
            Timer::Daemon => self.daemon.on_deadline(),
            Timer::Worker(worker) => {
                if self.machines[worker].due().is_some_and(|due| due <= now) {
                    let reactions = self.machines[worker].on_due(now);
                    self.react(worker, reactions);
                }
            }
        }
    }

    /// A worker has heard something.
    fn react(&mut self, worker: usize, reactions: Vec<Reaction>) {
        let life = self.machines[worker].life;
        for reaction in reactions {
            let begun = self.machines[worker].begun;
            match reaction {
                Reaction::Say(text) => self.say(worker, Socket::Asks, text),
                Reaction::Ping => self.at(self.passed, Event::Ping { worker, life }),
                Reaction::Check => self.soon(1000, Event::Checked { worker, life }),
                Reaction::Die => self.end_worker(worker),
                Reaction::Build(derivation) => {
                    // What it said of an earlier try is of no use to this one.
                    self.reported.remove(&(worker, derivation.clone()));
                    *self.begun.entry(derivation).or_default() += 1;
                    self.soon(120_000, Event::Built { worker, life, begun });
                }
                Reaction::GiveUp => self.soon(3000, Event::Built { worker, life, begun }),
            }
        }
    }

    fn build(&mut self, worker: usize, life: u64, begun: u64) {
        let (now, is_good) = (self.instant(), self.random.u32(0..5) > 0);
        let machine = &mut self.machines[worker];
        if machine.lives(life)
            && let Some(derivation) = machine.building(begun)
        {
            self.finished.insert((derivation.to_owned(), is_good));
            let reactions = machine.finish(now, is_good, address(worker));
            self.react(worker, reactions);
        }
    }

    /// What must hold when all has calmed down.
    fn judge(&self) {
        let seed = self.seed;
        for machine in &self.machines {
            assert_eq!(machine.dead(), None, "seed {seed}: {} read it", machine.name());
        }
        let builds = self.daemon.builds();
        assert_eq!(builds.len(), BUILDS, "seed {seed}");
        for build in builds {
            let ended = |is_good| self.finished.contains(&(build.derivation.clone(), is_good));
            let is_so = match build.status {
                BuildStatus::Succeeded => ended(true),
                BuildStatus::Failed => ended(false),
                BuildStatus::Canceled => self.canceled.contains(&build.derivation),
                BuildStatus::Aborted => self.mishaps(&build.derivation) >= TRIES,
                _ => false,
            };
            assert!(is_so, "seed {seed}: {build:?}");
        }
        self.daemon.check_books();
        if let Some(hall) = &self.hall {
            let left: Vec<_> = hall.assignments().collect();
            assert!(left.is_empty(), "seed {seed}: {left:?}");
        }
        for (derivation, begun) in &self.begun {
            let mishaps = self.mishaps(derivation);
            assert!(
                *begun <= 1 + mishaps,
                "seed {seed}: {derivation} was begun {begun} times, {mishaps} mishaps concern it"
            );
        }
    }
}

#[test]
fn what_a_farm_promises_holds_whatever_happens() {
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
