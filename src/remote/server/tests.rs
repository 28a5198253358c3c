//! A farm without sockets: the server's hall, workers of Cuirass's kind, a daemon that keeps to the contract, and a network
//! that delays, drops and repeats what they say. Each of them dies and comes back at any moment. Hours pass by addition; a
//! seed decides everything.
//!
//! What a farm promises is asserted: every build ends, no end is taken twice, no worker is told what would kill it, and no
//! derivation is built again but for a mishap that cost what its worker had done or said.

mod daemon;
mod machine;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use self::daemon::{Daemon, Heard};
use self::machine::{Machine, Socket};
use super::hall::{Effect, From, Hall, Now, Settings};
use super::peers::Link;
use crate::model::build::BuildId;
use crate::model::time::Time;
use crate::proto::remote::ToWorker;
use crate::proto::remote::link::{Command, Event as Told};
use crate::sys::clock;

/// Seeds tried: each is most of an hour of a farm's life.
const SEEDS: u64 = 400;

const WORKERS: usize = 5;
const BUILDS: i64 = 60;

/// How long the world is unkind.
const UNKIND: Duration = Duration::from_secs(1200);
/// How long it has to recover: all grace and all builds of the longest kind, one after the other.
const RECOVERY: Duration = Duration::from_secs(3600);

/// ZMTP heartbeats notice a network that is gone after this long, and some.
const HEARTBEATS: Duration = Duration::from_secs(15);

/// What a network carries.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Parcel {
    Probe,
    ToWorker(String),
    ToServer(String),
    /// The other end has gone.
    End,
}

impl Parcel {
    /// The derivation that it is about.
    fn derivation(&self) -> Option<&str> {
        match self {
            Self::ToWorker(text) | Self::ToServer(text) => {
                text.split("(drv \"").nth(1)?.split('"').next()
            }
            Self::Probe | Self::End => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Event {
    NewBuild,
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
    Built {
        worker: usize,
        life: u64,
        derivation: String,
    },
    WorkerDies(usize),
    WorkerIsBorn(usize),
    ServerDies,
    ServerIsBorn,
    Deadline,
    DaemonDies,
    DaemonIsBorn,
    DaemonConnects(u64),
    /// Over the link between server and daemon.
    Heard(u64, Heard),
    Commanded(u64, Command),
    Fetched(u64, i64, i64),
    Patience(u64, u64),
}

/// A TCP connection between a worker and the server, of whom each may know it to be open.
struct Connection {
    worker: usize,
    life: u64,
    socket: Socket,
    link: Link,
    server_life: u64,
    at_worker: bool,
    at_server: bool,
    /// When what was sent last arrives, in each direction: nothing overtakes.
    arrivals: [Duration; 2],
}

struct World {
    random: fastrand::Rng,
    seed: u64,
    start: Instant,
    passed: Duration,
    agenda: BinaryHeap<Reverse<(Duration, u64)>>,
    events: BTreeMap<u64, Event>,
    sequence: u64,
    hall: Option<Hall>,
    server_life: u64,
    machines: Vec<Machine>,
    connections: Vec<Connection>,
    daemon: Daemon,
    /// The number of the link between daemon and server, if there is one.
    link: Option<u64>,
    links: u64,
    link_arrivals: [Duration; 2],
    /// How often each derivation was begun, and what mishaps may have cost.
    begun: BTreeMap<String, u32>,
    excused: BTreeMap<String, u32>,
    /// What this server was told the end of.
    reported: BTreeSet<String>,
}

fn address(worker: usize) -> IpAddr {
    // Two loops on each machine.
    IpAddr::from([10, 0, 0, 2 + u8::try_from(worker / 2).unwrap()])
}

fn derivation(build: i64) -> String {
    format!("/gnu/store/{build:032}-build.drv")
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            random: fastrand::Rng::with_seed(seed),
            seed,
            start: clock::now(),
            passed: Duration::ZERO,
            agenda: BinaryHeap::new(),
            events: BTreeMap::new(),
            sequence: 0,
            hall: None,
            server_life: 0,
            machines: (0..WORKERS).map(Machine::new).collect(),
            connections: Vec::new(),
            daemon: Daemon::default(),
            link: None,
            links: 0,
            link_arrivals: [Duration::ZERO; 2],
            begun: BTreeMap::new(),
            excused: BTreeMap::new(),
            reported: BTreeSet::new(),
        };
        for _ in 0..BUILDS {
            world.sometime(Event::NewBuild);
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
            self.happen(event);
            self.work();
            // What is due at one moment is told of once.
            if let Some(due) = self.hall.as_ref().and_then(Hall::deadline) {
                let when = due - self.start;
                let known = self.agenda.iter().any(|Reverse((at, n))| {
                    *at <= when && self.events.get(n) == Some(&Event::Deadline)
                });
                if !known {
                    self.at(when.max(self.passed), Event::Deadline);
                }
            }
        }
        self.judge();
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::NewBuild => self.daemon.add(),
            Event::Arrives(connection, parcel) => self.arrive(connection, parcel),
            Event::Connect { worker, life, socket } => self.connect(worker, life, socket),
            Event::Break(nth) => {
                let open: Vec<usize> = (0..self.connections.len())
                    .filter(|n| self.connections[*n].at_worker && self.connections[*n].at_server)
                    .collect();
                if !self.is_kind()
                    && let Some(connection) = open.get(nth)
                {
                    self.sever(*connection);
                }
            }
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
            Event::Built { worker, life, derivation } => {
                if self.machines[worker].lives(life) {
                    let ok = self.random.u32(0..5) > 0;
                    for text in self.machines[worker].finish(&derivation, ok, address(worker)) {
                        self.say(worker, Socket::Asks, text);
                    }
                }
            }
            Event::WorkerDies(worker) => self.kill_worker(worker),
            Event::WorkerIsBorn(worker) => {
                let machine = &mut self.machines[worker];
                machine.begin();
                let life = machine.life;
                for socket in [Socket::Asks, Socket::Pings] {
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
            Event::Deadline => {
                let (now, mut out) = (self.instant(), Vec::new());
                if let Some(hall) = &mut self.hall
                    && hall.deadline().is_some_and(|due| due <= now)
                {
                    hall.on_deadline(now, &mut out);
                    self.perform(out);
                }
            }
            Event::DaemonDies => {
                if self.daemon.life.is_some() {
                    self.unlink();
                    self.daemon.die();
                    self.soon(100_000, Event::DaemonIsBorn);
                }
            }
            Event::DaemonIsBorn => {
                let life = self.daemon.be_born();
                self.soon(100, Event::DaemonConnects(life));
                self.await_server();
            }
            Event::DaemonConnects(life) => self.attach(life),
            Event::Heard(link, heard) if self.link == Some(link) => {
                let commands = self.daemon.hear(heard);
                for (build, attempt) in self.daemon.take_fetches() {
                    let life = self.daemon.life.unwrap();
                    self.soon(5000, Event::Fetched(life, build, attempt));
                }
                self.command(commands);
            }
            Event::Commanded(link, command) if self.link == Some(link) => self.obey(command),
            Event::Fetched(life, build, attempt) if self.daemon.life == Some(life) => {
                let commands = self.daemon.fetched(build, attempt);
                self.command(commands);
            }
            Event::Patience(life, since) if self.daemon.life == Some(life) => {
                self.daemon.lose_patience(since);
            }
            // Of an earlier life.
            Event::Heard(..) | Event::Commanded(..) | Event::Fetched(..) | Event::Patience(..) => {}
        }
    }

    /// The daemon hands out what it can.
    fn work(&mut self) {
        let commands = self.daemon.hand_out();
        self.command(commands);
    }

    // The network.

    fn connect(&mut self, worker: usize, life: u64, socket: Socket) {
        let machine = &self.machines[worker];
        if !machine.lives(life) || machine.connections[socket as usize].is_some() {
            return;
        }
        if self.hall.is_none() || machine.parted.is_some() {
            return;
        }
        let number = self.connections.len();
        let link = Link(u64::try_from(number).unwrap());
        self.connections.push(Connection {
            worker,
            life,
            socket,
            link,
            server_life: self.server_life,
            at_worker: true,
            at_server: true,
            arrivals: [self.passed; 2],
        });
        self.machines[worker].connections[socket as usize] = Some(number);
        let now = self.instant();
        self.hall.as_mut().unwrap().on_open(now, link, address(worker));
        self.send(number, Parcel::Probe);
        // What was said meanwhile.
        let queued = std::mem::take(&mut self.machines[worker].queues[socket as usize]);
        for text in queued {
            self.send(number, Parcel::ToServer(text));
        }
    }

    /// Connects what is not connected, as libzmq does several times a second.
    fn reconnect(&mut self, worker: usize) {
        let life = self.machines[worker].life;
        for socket in [Socket::Asks, Socket::Pings] {
            self.soon(2000, Event::Connect { worker, life, socket });
        }
    }

    fn say(&mut self, worker: usize, socket: Socket, text: String) {
        match self.machines[worker].connections[socket as usize] {
            Some(number) => {
                // Whatever repeats a message: it may come twice, but for the one whose answer kills when it comes twice.
                let again = !self.is_kind() && self.random.u32(0..50) == 0;
                if again && text != machine::WHO_AM_I {
                    self.send(number, Parcel::ToServer(text.clone()));
                }
                self.send(number, Parcel::ToServer(text));
            }
            None => self.machines[worker].queues[socket as usize].push(text),
        }
    }

    fn send(&mut self, number: usize, parcel: Parcel) {
        let direction = usize::from(!matches!(parcel, Parcel::ToServer(_)));
        self.send_in(number, direction, parcel);
    }

    fn send_in(&mut self, number: usize, direction: usize, parcel: Parcel) {
        let delay = self.delay();
        let parted = self.machines[self.connections[number].worker].parted;
        let connection = &mut self.connections[number];
        let arrival = (self.passed + delay).max(connection.arrivals[direction]);
        // A short interruption delays; a long one has broken the connection by then.
        let arrival = parted.map_or(arrival, |until| arrival.max(until));
        connection.arrivals[direction] = arrival;
        self.at(arrival, Event::Arrives(number, parcel));
    }

    fn arrive(&mut self, number: usize, parcel: Parcel) {
        let connection = &self.connections[number];
        let (worker, life) = (connection.worker, connection.life);
        match parcel {
            Parcel::ToServer(_) | Parcel::End if !connection.at_server => {}
            Parcel::ToServer(text) => {
                if text.starts_with("(build-succeeded") || text.starts_with("(build-failed") {
                    self.reported
                        .extend(Parcel::ToServer(text.clone()).derivation().map(str::to_owned));
                }
                let connection = &self.connections[number];
                let from = From { link: Some(connection.link), address: address(worker) };
                let (now, mut out) = (self.now(), Vec::new());
                if let Some(hall) = &mut self.hall {
                    hall.on_message(now, from, text.as_bytes(), &mut out);
                }
                self.perform(out);
            }
            Parcel::End => self.close_at_server(number),
            Parcel::Probe | Parcel::ToWorker(_) => {
                if !connection.at_worker || !self.machines[worker].lives(life) {
                    return;
                }
                let socket = connection.socket;
                let text = match parcel {
                    Parcel::ToWorker(text) => Some(text),
                    Parcel::Probe | Parcel::ToServer(_) | Parcel::End => None,
                };
                if socket == Socket::Pings {
                    // Never read.
                    return;
                }
                self.machines[worker].inbox.push_back(text);
                self.read(worker);
            }
        }
    }

    /// The worker reads what it can.
    fn read(&mut self, worker: usize) {
        let reactions = self.machines[worker].read(address(worker));
        let life = self.machines[worker].life;
        for reaction in reactions {
            match reaction {
                machine::Reaction::Say(text) => self.say(worker, Socket::Asks, text),
                machine::Reaction::Ping => {
                    self.at(self.passed, Event::Ping { worker, life });
                }
                machine::Reaction::Die => self.end_worker(worker),
                machine::Reaction::Build(derivation) => {
                    *self.begun.entry(derivation.clone()).or_default() += 1;
                    self.soon(120_000, Event::Built { worker, life, derivation });
                }
            }
        }
    }

    fn close_at_server(&mut self, number: usize) {
        let connection = &mut self.connections[number];
        if !std::mem::replace(&mut connection.at_server, false) {
            return;
        }
        let (link, now, mut out) = (connection.link, self.instant(), Vec::new());
        if let Some(hall) = &mut self.hall {
            hall.on_close(now, link, &mut out);
        }
        self.perform(out);
    }

    /// What is on its way over a connection is lost, and with it what its derivation was about.
    fn drop_parcels(&mut self, number: usize) {
        let lost: Vec<u64> = self
            .events
            .iter()
            .filter(|(_, event)| matches!(event, Event::Arrives(n, _) if *n == number))
            .map(|(sequence, _)| *sequence)
            .collect();
        for sequence in lost {
            if let Some(Event::Arrives(_, parcel)) = self.events.remove(&sequence)
                && let Some(derivation) = parcel.derivation()
            {
                let derivation = derivation.to_owned();
                self.excuse(&derivation);
            }
        }
    }

    /// Breaks a connection at both ends.
    fn sever(&mut self, number: usize) {
        self.drop_parcels(number);
        let Connection { worker, socket, .. } = self.connections[number];
        if std::mem::replace(&mut self.connections[number].at_worker, false) {
            self.machines[worker].connections[socket as usize] = None;
            self.reconnect(worker);
        }
        self.close_at_server(number);
    }

    /// The network of a worker is gone for some time.
    fn part(&mut self, worker: usize, time: Duration) {
        if self.is_kind() || self.machines[worker].parted.is_some() {
            return;
        }
        let until = self.passed + time;
        self.machines[worker].parted = Some(until);
        self.at(until, Event::Reunion(worker));
        let numbers: Vec<usize> =
            self.machines[worker].connections.iter().flatten().copied().collect();
        if time < HEARTBEATS {
            // What is on its way comes later.
            for number in numbers {
                for arrival in &mut self.connections[number].arrivals {
                    *arrival = (*arrival).max(until);
                }
            }
            return;
        }
        // It costs what the worker has or says meanwhile.
        for derivation in self.machines[worker].concern() {
            self.excuse(&derivation);
        }
        for number in numbers {
            self.sever(number);
        }
    }

    fn kill_worker(&mut self, worker: usize) {
        if !self.is_kind() && self.machines[worker].is_alive() {
            self.end_worker(worker);
        }
    }

    fn end_worker(&mut self, worker: usize) {
        for derivation in self.machines[worker].concern() {
            self.excuse(&derivation);
        }
        let numbers: Vec<usize> =
            self.machines[worker].connections.iter().flatten().copied().collect();
        for number in numbers {
            // What it has said is still delivered, and then its end.
            self.connections[number].at_worker = false;
            self.send_in(number, 0, Parcel::End);
        }
        self.machines[worker].die();
        self.soon(60_000, Event::WorkerIsBorn(worker));
    }

    fn kill_server(&mut self) {
        let Some(hall) = self.hall.take() else { return };
        if self.is_kind() {
            self.hall = Some(hall);
            return;
        }
        drop(hall);
        // What it was told and the daemon did not write down, a worker of Cuirass's does not say again.
        for derivation in std::mem::take(&mut self.reported) {
            if !self.daemon.has_ended(&derivation) {
                self.excuse(&derivation);
            }
        }
        self.unlink();
        for number in 0..self.connections.len() {
            if self.connections[number].server_life == self.server_life {
                self.connections[number].at_server = false;
                self.sever(number);
            }
        }
        self.soon(100_000, Event::ServerIsBorn);
    }

    // Server and daemon.

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Say(link, message) => {
                    let number = usize::try_from(link.0).unwrap();
                    let text = message.to_string();
                    if matches!(message, ToWorker::Cancel { .. } | ToWorker::Gorget) {
                        panic!("seed {}: {text} would kill a worker of Cuirass's", self.seed);
                    }
                    if self.connections[number].at_server {
                        self.send(number, Parcel::ToWorker(text));
                    }
                }
                Effect::HangUp(link, why) => {
                    panic!("seed {}: {link:?} is hung up on: {why}", self.seed)
                }
                Effect::Tell(event) => self.tell(Heard::Event(event)),
                Effect::Create(_) | Effect::Note(_) => {}
            }
        }
    }

    fn tell(&mut self, heard: Heard) {
        if let Some(link) = self.link {
            let arrival = (self.passed + self.delay()).max(self.link_arrivals[0]);
            self.link_arrivals[0] = arrival;
            self.at(arrival, Event::Heard(link, heard));
        }
    }

    fn command(&mut self, commands: Vec<Command>) {
        for command in commands {
            let Some(link) = self.link else { return };
            let arrival = (self.passed + self.delay()).max(self.link_arrivals[1]);
            self.link_arrivals[1] = arrival;
            self.at(arrival, Event::Commanded(link, command));
        }
    }

    fn attach(&mut self, life: u64) {
        if self.daemon.life != Some(life) || self.link.is_some() {
            return;
        }
        let Some(hall) = &self.hall else {
            return self.soon(2000, Event::DaemonConnects(life));
        };
        self.links += 1;
        let standing = hall.standing();
        (self.link, self.link_arrivals) = (Some(self.links), [self.passed; 2]);
        self.daemon.attached();
        for event in standing {
            self.tell(Heard::Event(event));
        }
    }

    /// The link between daemon and server has ended, with all that was on its way.
    fn unlink(&mut self) {
        if self.link.take().is_none() {
            return;
        }
        // What the daemon was about to hear, it does not hear: the server knows it still, unless it is what has died.
        self.daemon.detached();
        if let Some(life) = self.daemon.life {
            self.soon(2000, Event::DaemonConnects(life));
            self.await_server();
        }
    }

    fn await_server(&mut self) {
        if let Some(life) = self.daemon.life {
            let since = self.daemon.absences;
            self.at(self.passed + daemon::PATIENCE, Event::Patience(life, since));
        }
    }

    fn obey(&mut self, command: Command) {
        let (now, mut out) = (self.instant(), Vec::new());
        let Some(hall) = &mut self.hall else { return };
        let answer = match command {
            Command::Assign(assign) => {
                let of = assign.of;
                let failed = hall.assign(now, assign, &mut out).err();
                failed.map(|_| Heard::Refused(of.build.0, of.attempt))
            }
            Command::Adopt(adopt) => {
                let of = adopt.of;
                let failed = hall.adopt(now, adopt, &mut out).err();
                assert_eq!(failed, None, "seed {}: adopting {of}", self.seed);
                None
            }
            Command::Settle(of) => {
                assert_eq!(hall.settle(of), Ok(()), "seed {}: settling {of}", self.seed);
                None
            }
            Command::Cancel(of) => {
                hall.cancel(of, &mut out);
                None
            }
            other => panic!("{other}"),
        };
        if let Some(answer) = answer {
            self.tell(answer);
        }
        self.perform(out);
    }

    /// What must hold when all has calmed down.
    fn judge(&self) {
        let seed = self.seed;
        for machine in &self.machines {
            assert_eq!(machine.dead(), None, "seed {seed}: {} read it", machine.name());
        }
        let open = self.daemon.open();
        assert_eq!(open, Vec::<i64>::new(), "seed {seed}: not over");
        if let Some(hall) = &self.hall {
            let left: Vec<_> = hall.assignments().collect();
            assert!(left.is_empty(), "seed {seed}: {left:?}");
        }
        for (derivation, begun) in &self.begun {
            let excused = self.excused.get(derivation).copied().unwrap_or(0);
            assert!(
                *begun <= 1 + excused,
                "seed {seed}: {derivation} was begun {begun} times, {excused} mishaps concern it"
            );
        }
        assert_eq!(self.begun.len(), usize::try_from(BUILDS).unwrap(), "seed {seed}");
    }
}

#[test]
fn what_a_farm_promises_holds_whatever_happens() {
    for seed in 0..SEEDS {
        let result = std::panic::catch_unwind(|| World::new(seed).run());
        assert!(result.is_ok(), "seed {seed} failed");
    }
}

/// The number of a build, of a try.
fn of(build: i64, attempt: i64) -> crate::proto::remote::link::Try {
    crate::proto::remote::link::Try { build: BuildId(build), attempt }
}
