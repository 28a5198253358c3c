//! Workers that are cut off, hang, and come back.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::support::daemon::{Daemon, PATIENCE};
use crate::support::farm::{Server, Worker, add};
use crate::support::jobs::{Repository, system};
use crate::support::nix::Store;
use crate::support::{is_root, now, within};

/// Until a worker that is gone is known to be: heartbeats that fail, its grace, and a busy machine.
const NOTICED: Duration = Duration::from_secs(45);

/// One build that goes on until `go` is there, in a farm without workers.
struct Farm {
    server: Server,
    daemon: Daemon,
    store: Store,
}

impl Farm {
    fn new() -> Self {
        let store = Store::start();
        let go = store.directory.path().join("go");
        let repository = Repository::new(0);
        let expression = format!(
            r#"{{ slow = derivation {{ name = "slow"; system = "{}"; builder = "/bin/sh"; PATH = "{}";
  args = [ "-c" "while ! test -e {}; do sleep 0.1; done; echo > $out" ]; }}; }}"#,
            system(),
            std::env::var("PATH").unwrap(),
            go.display()
        );
        repository.write("release.nix", &expression);
        repository.commit();
        let mut daemon = store.gorget(&["--build-remote", "--interval=3600"]);
        let server = Server::start(daemon.state(), &[]);
        daemon.ask(&add(&repository));
        daemon.until("evaluations farm limit=1", |evaluations| {
            evaluations.iter().any(|evaluation| evaluation["status"] == "succeeded")
        });
        Self { server, daemon, store }
    }

    fn worker(&self, name: &str, host: &str, before: &[&str]) -> Worker {
        let state = self.store.directory.path().join(name);
        let address = format!("{host}:{}", self.server.port);
        let options = ["--workers=1"];
        let mut worker =
            Worker::prepare(&state, &address, before, self.store.environment(), &options);
        worker.launch();
        worker
    }

    /// The one build, when it is as `good` wants it.
    fn build(&mut self, patience: Duration, good: impl Fn(&Value) -> bool) -> Value {
        within(patience, "the build", || {
            let build = self.daemon.ask("builds limit=1").remove(0);
            good(&build).then_some(build)
        })
    }

    fn started_by(&mut self, patience: Duration, other_than: &Value) -> Value {
        let started = |build: &Value| {
            build["status"] == "started"
                && build["worker"].is_string()
                && build["worker"] != *other_than
        };
        self.build(patience, started)["worker"].clone()
    }

    fn go(&self) {
        std::fs::write(self.store.directory.path().join("go"), "").unwrap();
    }

    fn ends(&mut self) {
        let build = self.build(PATIENCE, |build| build["status"] != "started");
        assert_eq!(build["status"], "succeeded", "{build}");
        let database = rusqlite::Connection::open(self.daemon.database()).unwrap();
        let sql = "SELECT count(*) FROM events WHERE event = 'build-ended'";
        let ended: i64 = database.query_row(sql, [], |row| row.get(0)).unwrap();
        assert_eq!(ended, 1);
    }
}

/// A stopped process answers no heartbeat; when it goes on, its build is another's, and it works on as any other.
#[test]
fn a_worker_that_hangs_loses_its_build_and_may_come_back() {
    let mut farm = Farm::new();
    let first = farm.worker("first", "127.0.0.1", &[]);
    let name = farm.started_by(PATIENCE, &Value::Null);
    let _second = farm.worker("second", "127.0.0.1", &[]);
    farm.daemon.until("workers", |workers| workers.len() == 2);
    first.signal("STOP");
    let began = now();
    let other = farm.started_by(NOTICED, &name);
    assert_ne!(other, name);
    eprintln!("a stopped worker is noticed after {:?}", began.elapsed());
    farm.go();
    farm.ends();
    first.signal("CONT");
    // It reports, which nobody wants to know, and asks for work.
    within(PATIENCE, "the worker's return", || {
        let workers = farm.server.ask("workers");
        let back = workers.iter().find(|worker| worker["name"] == name)?;
        (back["requesting"] == true).then_some(())
    });
    farm.ends();
}

/// A network of its own, of one link; gone when dropped.
struct Namespace {
    name: String,
    outside: String,
}

/// The ends of the link, from the block for documentation.
const SERVER: &str = "198.51.100.1";
const WORKER: &str = "198.51.100.2";

#[expect(clippy::disallowed_methods, reason = "a test starts programs")]
fn run(words: &str) {
    let mut words = words.split(' ');
    let status = Command::new(words.next().unwrap()).args(words.clone()).status().unwrap();
    assert!(status.success(), "ip {}", words.collect::<Vec<_>>().join(" "));
}

impl Namespace {
    fn new() -> Self {
        let id = std::process::id();
        let (name, outside, inside) =
            (format!("gorget-{id}"), format!("gt{id}a"), format!("gt{id}b"));
        run(&format!("ip netns add {name}"));
        let this = Self { name, outside };
        let Self { name, outside } = &this;
        run(&format!("ip link add {outside} type veth peer name {inside}"));
        run(&format!("ip link set {inside} netns {name}"));
        run(&format!("ip address add {SERVER}/30 dev {outside}"));
        run(&format!("ip link set {outside} up"));
        run(&format!("ip -n {name} address add {WORKER}/30 dev {inside}"));
        run(&format!("ip -n {name} link set {inside} up"));
        run(&format!("ip -n {name} link set lo up"));
        this
    }

    fn set(&self, state: &str) {
        run(&format!("ip link set {} {state}", self.outside));
    }
}

impl Drop for Namespace {
    #[expect(clippy::disallowed_methods, reason = "a test starts programs")]
    fn drop(&mut self) {
        // The link goes with either end; there may be none of it.
        let _ = Command::new("ip").args(["link", "delete", &self.outside]).status();
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

/// Both are where no other network is, so that nothing of it is told there.
#[test]
fn a_worker_finds_its_server_by_itself() {
    if !is_root("make a network") {
        return;
    }
    let namespace = Namespace::new();
    let before = ["ip", "netns", "exec", &namespace.name];
    let store = Store::start();
    let place = store.directory.path();
    let server = Server::start_by(&before, &place.join("server"), &[]);
    let mut worker =
        Worker::prepare(&place.join("worker"), "", &before, store.environment(), &["--workers=1"]);
    worker.launch();
    crate::support::until("the worker", || (!server.ask("workers").is_empty()).then_some(()));
}

/// Its link goes down in the midst of a build: nothing is closed, nothing is said.
#[test]
fn a_worker_whose_network_disappears_loses_its_build() {
    if !is_root("make a network") {
        return;
    }
    let namespace = Namespace::new();
    let mut farm = Farm::new();
    let before = ["ip", "netns", "exec", &namespace.name];
    let mut first = farm.worker("first", SERVER, &before);
    let name = farm.started_by(PATIENCE, &Value::Null);
    let _second = farm.worker("second", "127.0.0.1", &[]);
    farm.daemon.until("workers", |workers| workers.len() == 2);
    namespace.set("down");
    let began = now();
    farm.started_by(NOTICED, &name);
    eprintln!("a network that disappears is noticed after {:?}", began.elapsed());
    // Both share a store, whose daemon builds a derivation for one at a time.
    first.kill();
    farm.go();
    farm.ends();
}
