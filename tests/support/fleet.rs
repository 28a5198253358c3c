//! Many workers of Cuirass's kind in one thread: each says and reads what Guile's worker does, byte for byte, and is
//! as easily broken.
//!
//! A worker has a connection that asks for work and, like Guile's, another one that says that it lives and is never
//! read. While it builds it reads nothing; after a restart of the server it asks once for itself and once more when it
//! reads the probe; whatever it does not expect is its death, but for its pings.
#![allow(clippy::disallowed_methods, reason = "tests wait under deadlines of their own")]

use std::time::{Duration, Instant};

use zmq::{Context, DEALER, DONTWAIT, POLLIN, Socket};

/// Guile's worker pings this often.
const PING: Duration = Duration::from_secs(60);

/// Sockets of one context: libzmq's default is 1,023.
const SOCKETS: usize = 500;

/// After `(no-build)`, as Cuirass's own test sets it.
const REQUEST_PERIOD: Duration = Duration::from_secs(1);

/// What a worker waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Probe,
    Info,
    Asked,
    Paused(Instant),
    Building(String),
    /// It read what it did not expect.
    Dead(String),
}

struct Worker {
    name: String,
    /// Asks for work.
    asks: Socket,
    /// Says that it lives.
    pings: Socket,
    step: Step,
    record: String,
    ping: Option<Instant>,
}

/// A build that a worker was told to do.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) worker: usize,
    pub(crate) derivation: String,
    pub(crate) at: Instant,
}

/// See the module's documentation.
pub(crate) struct Fleet {
    // Dropped before their contexts.
    workers: Vec<Worker>,
    _contexts: Vec<Context>,
    system: String,
    /// Where results are said to be.
    url: String,
}

impl Fleet {
    /// Workers named `PREFIX0000` and so on that connect to a server on this machine; nothing is waited for.
    pub(crate) fn connect(port: u16, count: usize, prefix: &str, system: &str) -> Self {
        let mut contexts: Vec<Context> = Vec::new();
        let mut workers = Vec::new();
        for n in 0..count {
            if 2 * n >= contexts.len() * SOCKETS {
                contexts.push(Context::new());
            }
            let context = contexts.last().unwrap();
            let socket = || {
                let socket = context.socket(DEALER).unwrap();
                socket.set_linger(0).unwrap();
                socket.connect(&format!("tcp://127.0.0.1:{port}")).unwrap();
                socket
            };
            workers.push(Worker {
                name: format!("{prefix}{n:04}"),
                asks: socket(),
                pings: socket(),
                step: Step::Probe,
                record: String::new(),
                ping: None,
            });
        }
        Self {
            workers,
            _contexts: contexts,
            system: system.to_owned(),
            url: "http://127.0.0.1:1".to_owned(),
        }
    }

    pub(crate) fn name(&self, worker: usize) -> &str {
        &self.workers[worker].name
    }

    /// The workers that wait for an answer to their request.
    pub(crate) fn asking(&self) -> usize {
        self.workers.iter().filter(|worker| worker.step == Step::Asked).count()
    }

    /// What a worker builds.
    pub(crate) fn building(&self, worker: usize) -> Option<&str> {
        match &self.workers[worker].step {
            Step::Building(derivation) => Some(derivation),
            _ => None,
        }
    }

    /// What the dead have read.
    pub(crate) fn dead(&self) -> Vec<&str> {
        let dead = |worker| match worker {
            &Worker { step: Step::Dead(ref what), .. } => Some(what.as_str()),
            _ => None,
        };
        self.workers.iter().filter_map(dead).collect()
    }

    /// Waits until all ask for work.
    pub(crate) fn join(&mut self, patience: Duration) {
        let until = Instant::now() + patience;
        while self.asking() < self.workers.len() {
            assert!(self.turn(Duration::from_millis(20)).is_empty(), "a build for one who joins");
            let (asking, dead) = (self.asking(), self.dead());
            assert!(Instant::now() < until, "{asking} ask for work, dead are {dead:?}");
        }
    }

    /// Reads what has come, or comes before `patience` is over, and answers it; returns the builds that were begun.
    pub(crate) fn turn(&mut self, patience: Duration) -> Vec<Told> {
        let now = Instant::now();
        for worker in &mut self.workers {
            if let Step::Paused(until) = worker.step
                && until <= now
            {
                worker.ask();
            }
            if worker.ping.is_some_and(|ping| ping <= now) {
                worker.ping(now);
            }
        }
        let reading: Vec<usize> =
            (0..self.workers.len()).filter(|n| self.workers[*n].reads()).collect();
        let mut items: Vec<_> =
            reading.iter().map(|n| self.workers[*n].asks.as_poll_item(POLLIN)).collect();
        let patience = i64::try_from(patience.as_millis()).unwrap();
        zmq::poll(&mut items, patience).unwrap();
        let ready: Vec<usize> =
            reading.iter().zip(&items).filter(|(_, i)| i.is_readable()).map(|(n, _)| *n).collect();
        drop(items);
        let mut told = Vec::new();
        for n in ready {
            let worker = &mut self.workers[n];
            while worker.reads()
                && let Ok(frames) = worker.asks.recv_multipart(DONTWAIT)
            {
                worker.read(&frames, &self.system);
                if let Step::Building(derivation) = &worker.step {
                    let derivation = derivation.clone();
                    told.push(Told { worker: n, derivation, at: Instant::now() });
                }
            }
        }
        told
    }

    /// A build has ended well; the next one is asked for at once.
    pub(crate) fn succeed(&mut self, worker: usize) {
        self.report(worker, "build-succeeded");
    }

    pub(crate) fn fail(&mut self, worker: usize) {
        self.report(worker, "build-failed");
    }

    /// The minute is over for all: a server that has restarted knows of its workers by their pings.
    pub(crate) fn ping(&mut self) {
        let now = Instant::now();
        self.workers.iter_mut().for_each(|worker| worker.ping(now));
    }

    fn report(&mut self, worker: usize, word: &str) {
        let worker = &mut self.workers[worker];
        let Step::Building(drv) = &worker.step else { panic!("{} builds nothing", worker.name) };
        let report = format!("({word} (drv \"{drv}\") (url \"{}\") (log #f))", self.url);
        worker.say(&report);
        worker.ask();
    }
}

impl Worker {
    /// Guile's worker reads nothing while it builds, and nothing more when it is dead.
    fn reads(&self) -> bool {
        matches!(self.step, Step::Probe | Step::Info | Step::Asked)
    }

    fn say(&self, text: &str) {
        self.asks.send_multipart(["", text], 0).unwrap();
    }

    fn ask(&mut self) {
        self.say(&format!("(worker-request-work \"{}\")", self.name));
        self.step = Step::Asked;
    }

    fn ping(&mut self, now: Instant) {
        let text = format!("(worker-ping {})", self.record);
        self.pings.send_multipart(["", &text], 0).unwrap();
        self.ping = Some(now + PING);
    }

    fn read(&mut self, frames: &[Vec<u8>], system: &str) {
        let text = match frames {
            [empty] if empty.is_empty() => None,
            [empty, text] if empty.is_empty() => Some(String::from_utf8_lossy(text).into_owned()),
            other => return self.die(format!("{other:?}")),
        };
        match (&self.step, text.as_deref()) {
            (Step::Probe, None) => {
                self.say("(worker-request-info)");
                self.step = Step::Info;
            }
            (Step::Info, Some(text)) if text.starts_with("(server-info (worker-address \"") => {
                let address = text.split('"').nth(1).unwrap();
                self.record = format!(
                    "(worker (name \"{}\") (address \"{address}\") (machine \"script\") (systems (\"{system}\")) (last-seen 0))",
                    self.name
                );
                self.say(&format!("(worker-ready {})", self.record));
                self.ping(Instant::now());
                self.ask();
            }
            // A server that has restarted.
            (Step::Asked, None) => self.ask(),
            (Step::Asked, Some("(no-build)")) => {
                self.step = Step::Paused(Instant::now() + REQUEST_PERIOD);
            }
            (Step::Asked, Some(text)) => match text.strip_prefix("(build (drv \"") {
                Some(rest) => {
                    let drv = rest.split('"').next().unwrap().to_owned();
                    let started =
                        format!("(build-started (drv \"{drv}\") (worker \"{}\"))", self.name);
                    self.say(&started);
                    self.step = Step::Building(drv);
                }
                None => self.die(text.to_owned()),
            },
            (_, what) => {
                let what = format!("{:?} while {:?}", what, self.step);
                self.die(what);
            }
        }
    }

    fn die(&mut self, what: String) {
        self.step = Step::Dead(what);
    }
}
