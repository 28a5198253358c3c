//! The daemon, the server and workers together, each a process of its own, with builds by a real nix-daemon that serves
//! them all.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::daemon::Daemon;
use crate::support::farm::{Server, Worker, add};
use crate::support::jobs::{Repository, system};
use crate::support::nix::Store;
use crate::support::until;

/// A farm of one worker, whose daemon has the jobset `farm`. They end in this order: the daemon looks whether something is left in its place.
pub(super) struct Farm {
    server: Server,
    pub(super) worker: Worker,
    pub(super) daemon: Daemon,
    _repository: Repository,
    place: TempDir,
    _store: Store,
}

impl Farm {
    /// Of builds with these names and scripts.
    fn start(builds: &[(&str, &str)]) -> Self {
        Self::start_with(&[], builds)
    }

    pub(super) fn start_with(options: &[&str], builds: &[(&str, &str)]) -> Self {
        let store = Store::start();
        let place = tempfile::tempdir().unwrap();
        let options = [&["--build-remote", "--interval=3600"], options].concat();
        let mut daemon = store.gorget(&options);
        let server = Server::start(daemon.state(), &[]);
        let address = format!("127.0.0.1:{}", server.port);
        let state = place.path().join("worker");
        let mut worker =
            Worker::prepare(&state, &address, &[], store.environment(), &["--workers=1"]);
        worker.launch();
        let repository = Repository::new(0);
        repository.write("release.nix", &expression(place.path(), builds));
        repository.commit();
        assert_eq!(daemon.outcome(&add(&repository)), "ok");
        Self { server, worker, daemon, _repository: repository, place, _store: store }
    }

    pub(super) fn wait(&mut self, job: &str, status: &str) -> Value {
        let request = "builds";
        let is = |b: &Value| b["nix-name"] == job && b["status"] == status;
        let all = self.daemon.until(request, |builds| builds.iter().any(is));
        all.into_iter().find(is).unwrap()
    }

    /// Lets the builds that wait for it end.
    fn open(&self) {
        fs::write(self.place.path().join("go"), "").unwrap();
    }

    /// How often builds were begun.
    fn begun(&self) -> usize {
        fs::read_to_string(self.place.path().join("diary")).unwrap_or_default().lines().count()
    }
}

fn expression(place: &Path, builds: &[(&str, &str)]) -> String {
    let build = |(name, script): &(&str, &str)| {
        let script = script.replace("PLACE", &place.display().to_string());
        format!(
            r#"{name} = derivation {{ name = "{name}"; system = "{}"; builder = "/bin/sh"; PATH = "{}"; args = [ "-c" "{script}" ]; }};"#,
            system(),
            std::env::var("PATH").unwrap(),
        )
    };
    format!("{{ {} }}", builds.iter().map(build).collect::<String>())
}

/// Tells that it runs, and waits for the test's word.
const GATE: &str = "echo begun; echo x >> PLACE/diary; while ! test -e PLACE/go; do sleep 0.05; done; echo done; echo done > $out";

#[test]
fn workers_build_and_what_they_say_is_in_the_books() {
    let mut farm =
        Farm::start(&[("good", "echo hello; echo hello > $out"), ("bad", "echo no; exit 3")]);
    let good = farm.wait("good", "succeeded");
    let workers = farm.daemon.ask("workers");
    assert_eq!(good["worker"], workers[0]["name"], "{workers:?}");
    let out = good["outputs"]["out"].as_str().unwrap();
    let root = farm.daemon.state().join("gcroots").join(Path::new(out).file_name().unwrap());
    assert!(root.symlink_metadata().is_ok(), "{} has no root", root.display());
    let log = farm.daemon.ask(&format!("log build {}", good["id"]));
    assert!(log.iter().any(|part| part["text"].as_str().unwrap().contains("hello")), "{log:?}");
    let bad = farm.wait("bad", "failed");
    assert_eq!(bad["attempts"], 1);
    // Nothing is left with the server.
    until("settling", || farm.server.ask("builds").is_empty().then_some(()));
}

#[test]
fn a_daemon_that_dies_finds_what_workers_build_and_nothing_is_built_twice() {
    let mut farm = Farm::start(&[("slow", GATE)]);
    let slow = farm.wait("slow", "started");
    until("the builder", || (farm.begun() == 1).then_some(()));
    farm.daemon.kill();
    farm.daemon.restart();
    farm.wait("slow", "started");
    // The log goes on to be seen while it is written.
    until("its log", || {
        let log = farm.daemon.ask(&format!("log build {}", slow["id"]));
        log.iter().any(|part| part["text"].as_str().unwrap().contains("begun")).then_some(())
    });
    // A stop leaves it alone, too.
    assert!(farm.daemon.stop().success());
    farm.open();
    farm.daemon.restart();
    let slow = farm.wait("slow", "succeeded");
    assert_eq!((farm.begun(), &slow["attempts"]), (1, &Value::from(1)));
}

#[test]
fn a_server_that_dies_costs_no_build() {
    let mut farm = Farm::start(&[("slow", GATE)]);
    farm.wait("slow", "started");
    until("the builder", || (farm.begun() == 1).then_some(()));
    farm.server.kill();
    farm.server.restart();
    farm.open();
    farm.wait("slow", "succeeded");
    assert_eq!(farm.begun(), 1);
}

#[test]
fn what_is_canceled_stops_and_the_worker_goes_on_with_something_else() {
    let mut farm = Farm::start(&[("slow", GATE)]);
    let slow = farm.wait("slow", "started");
    until("the builder", || (farm.begun() == 1).then_some(()));
    assert_eq!(farm.daemon.outcome(&format!("cancel-build {}", slow["id"])), "ok");
    farm.wait("slow", "canceled");
    until("the worker", || {
        farm.server.ask("workers").iter().all(|w| w["build"].is_null()).then_some(())
    });
    farm.open();
    assert_eq!(farm.daemon.outcome(&format!("restart-build {}", slow["id"])), "ok");
    farm.wait("slow", "succeeded");
    assert_eq!(farm.begun(), 2);
}

#[test]
fn a_lost_worker_costs_a_try_and_others_wait_for_one() {
    let mut farm = Farm::start(&[("slow", GATE)]);
    farm.wait("slow", "started");
    until("the builder", || (farm.begun() == 1).then_some(()));
    farm.worker.kill();
    let slow = farm.wait("slow", "scheduled");
    assert_eq!(slow["waiting"], format!("no worker for {}", system()));
    farm.open();
    farm.worker.launch();
    let slow = farm.wait("slow", "succeeded");
    assert_eq!((farm.begun(), &slow["attempts"]), (2, &Value::from(2)));
}
