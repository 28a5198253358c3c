//! Workers of Cuirass's kind, as easily broken as those, with the real server and the real daemon.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use serde_json::Value;

use crate::support::daemon::{Daemon, PATIENCE};
use crate::support::farm::{Server, add, done_already};
use crate::support::fleet::Fleet;
use crate::support::jobs::system;
use crate::support::nix::Store;
use crate::support::now;

/// A farm whose daemon has that many builds to hand out.
struct Farm {
    server: Server,
    daemon: Daemon,
    fleet: Fleet,
    /// Derivations that were begun and not asked for.
    begun: VecDeque<String>,
    // Outlives those who use it.
    _store: Store,
}

impl Farm {
    fn new(builds: usize, workers: usize) -> Self {
        let store = Store::start();
        let repository = done_already(builds);
        let mut daemon = store.gorget(&["--build-remote", "--interval=3600"]);
        let server = Server::start(daemon.state(), &[]);
        let mut fleet = Fleet::connect(server.port, workers, "script", &system());
        fleet.join(PATIENCE);
        daemon.ask(&add(&repository));
        daemon.until("evaluations farm limit=1", |evaluations| {
            evaluations.iter().any(|evaluation| evaluation["status"] == "succeeded")
        });
        Self { server, daemon, fleet, begun: VecDeque::new(), _store: store }
    }

    /// The next derivation that a worker begins.
    fn next(&mut self) -> String {
        let until = now() + PATIENCE;
        loop {
            if let Some(derivation) = self.begun.pop_front() {
                return derivation;
            }
            let told = self.fleet.turn(Duration::from_millis(50));
            self.begun.extend(told.into_iter().map(|told| told.derivation));
            assert_eq!(self.fleet.dead(), Vec::<&str>::new());
            assert!(now() < until, "no build comes:\n{}", self.server.log());
        }
    }

    /// Lets workers read for a while, in which no build may come.
    fn nothing_comes(&mut self, time: Duration) {
        let until = now() + time;
        while now() < until {
            let told = self.fleet.turn(Duration::from_millis(20));
            assert!(
                told.is_empty() && self.begun.is_empty() && self.fleet.dead().is_empty(),
                "{told:?}"
            );
        }
    }

    fn jobs(&mut self) -> Value {
        self.daemon.ask("evaluations farm limit=1").remove(0)["jobs"].clone()
    }

    /// Waits until all builds have succeeded, each begun once by the books.
    fn succeeds(&mut self, builds: usize) {
        let until = now() + PATIENCE;
        while self.jobs()["succeeded"] != builds {
            self.fleet.turn(Duration::from_millis(20));
            assert!(now() < until, "{}\n{}", self.jobs(), self.daemon.log());
        }
        let database = rusqlite::Connection::open(self.daemon.database()).unwrap();
        let count = |word: &str| -> i64 {
            let sql = "SELECT count(*) FROM events WHERE event = ?1";
            database.query_row(sql, [word], |row| row.get(0)).unwrap()
        };
        let builds = i64::try_from(builds).unwrap();
        assert_eq!((count("build-started"), count("build-ended")), (builds, builds));
        let left = self.server.ask("builds");
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn two_hundred_workers_connect_at_once_and_share_what_there_is() {
    const BUILDS: usize = 600;
    let mut farm = Farm::new(BUILDS, 200);
    let (mut told, mut busy) = (BTreeSet::new(), BTreeSet::new());
    let until = now() + PATIENCE;
    while told.len() < BUILDS {
        for build in farm.fleet.turn(Duration::from_millis(50)) {
            assert!(told.insert(build.derivation.clone()), "{} twice", build.derivation);
            busy.insert(build.worker);
            farm.fleet.succeed(build.worker);
        }
        assert!(now() < until, "{} of {BUILDS}", told.len());
    }
    assert_eq!(farm.fleet.dead(), Vec::<&str>::new());
    assert!(busy.len() > 100, "{} of 200 workers got work", busy.len());
    farm.succeeds(BUILDS);
}

/// It reports, asks, reads the probe and asks again: were both answered, it would be one build behind for ever.
#[test]
fn a_worker_that_asks_twice_after_a_restart_gets_one_build() {
    let mut farm = Farm::new(4, 1);
    let first = farm.next();
    farm.server.kill();
    farm.server.restart();
    farm.fleet.ping();
    farm.fleet.succeed(0);
    let second = farm.next();
    assert_ne!(second, first);
    farm.nothing_comes(Duration::from_secs(2));
    let given = farm.server.ask("builds");
    assert_eq!(given.iter().filter(|build| build["phase"] == "started").count(), 1, "{given:?}");
    // Again, with the daemon down as well.
    farm.server.kill();
    farm.daemon.kill();
    farm.fleet.succeed(0);
    farm.daemon.restart();
    farm.server.restart();
    farm.fleet.ping();
    let third = farm.next();
    farm.fleet.succeed(0);
    let fourth = farm.next();
    farm.fleet.succeed(0);
    assert_eq!(BTreeSet::from([&first, &second, &third, &fourth]).len(), 4);
    farm.succeeds(4);
}

#[test]
fn a_server_that_restarts_while_all_are_idle_is_asked_again() {
    let mut farm = Farm::new(2, 2);
    farm.daemon.ask("pause builds");
    for _ in 0..2 {
        let told = farm.next();
        assert!(!told.is_empty());
    }
    farm.fleet.succeed(0);
    farm.fleet.succeed(1);
    farm.succeeds(2);
    farm.server.kill();
    farm.server.restart();
    farm.fleet.ping();
    farm.nothing_comes(Duration::from_secs(2));
    let builds = farm.daemon.ask("builds limit=2");
    farm.daemon.ask("resume builds");
    for build in &builds {
        farm.daemon.ask(&format!("restart-build {}", build["id"]));
    }
    let (one, other) = (farm.next(), farm.next());
    assert_ne!(one, other);
    assert_eq!(farm.fleet.dead(), Vec::<&str>::new());
}

#[test]
fn a_daemon_that_restarts_repeats_nothing_that_is_built() {
    let mut farm = Farm::new(2, 2);
    farm.next();
    farm.next();
    farm.daemon.kill();
    // One ends while nobody is there to hear of it.
    farm.fleet.succeed(0);
    farm.nothing_comes(Duration::from_millis(500));
    farm.daemon.restart();
    farm.nothing_comes(Duration::from_millis(500));
    farm.fleet.succeed(1);
    farm.succeeds(2);
}
