//! A farm whose processes are killed in random order while it builds.
//!
//! `GORGET_CHAOS_SECONDS` says for how long, `GORGET_CHAOS_SEED` in which order.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::support::daemon::Daemon;
use crate::support::farm::{Server, Worker, add};
use crate::support::jobs::{Repository, system};
use crate::support::nix::Store;
use crate::support::{now, pause, within};

/// Workers, each a process, and builds that each runs at once.
const WORKERS: usize = 3;
const LOOPS: usize = 2;

/// Builds for each second of it: with all the kills, about what the workers get done.
const BUILDS_A_SECOND: u64 = 6;

/// For all to end when nothing is killed any more: what waits for a worker that never comes back is given up after 90 s.
const RECOVERY: Duration = Duration::from_secs(300);

fn setting(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}: expected a number")),
        Err(_) => otherwise,
    }
}

/// Quick builds that each write a line when they begin.
fn expression(number: u64, diary: &Path) -> String {
    format!(
        r#"builtins.listToAttrs (builtins.genList (n: let name = "quick-${{toString n}}"; in {{
  inherit name;
  value = derivation {{
    inherit name; system = "{}"; builder = "/bin/sh"; PATH = "{}";
    args = [ "-c" "echo ${{toString n}} >> {}; sleep 0.${{toString (n - n / 8 * 8)}}; echo > $out" ];
  }};
}}) {number})"#,
        system(),
        std::env::var("PATH").unwrap(),
        diary.display(),
    )
}

/// How often builds were begun again.
fn repeats(diary: &Path) -> BTreeMap<String, usize> {
    let mut begun: BTreeMap<String, usize> = BTreeMap::new();
    for line in std::fs::read_to_string(diary).unwrap_or_default().lines() {
        *begun.entry(line.to_owned()).or_default() += 1;
    }
    begun.into_iter().filter(|(_, times)| *times > 1).map(|(n, times)| (n, times - 1)).collect()
}

#[test]
fn all_builds_end_whatever_is_killed() {
    let seconds = setting("GORGET_CHAOS_SECONDS", 20);
    let seed = setting("GORGET_CHAOS_SEED", 1);
    let builds = seconds * BUILDS_A_SECOND;
    let mut random = fastrand::Rng::with_seed(seed);
    let store = Store::start();
    let diary = store.directory.path().join("diary");
    let repository = Repository::new(0);
    repository.write("release.nix", &expression(builds, &diary));
    repository.commit();
    let mut daemon = store.gorget(&["--build-remote", "--interval=3600"]);
    let mut server = Server::start(daemon.state(), &[]);
    let address = format!("127.0.0.1:{}", server.port);
    let loops = format!("--workers={LOOPS}");
    let mut workers: Vec<Worker> = (0..WORKERS)
        .map(|n| {
            let state = store.directory.path().join(format!("worker-{n}"));
            Worker::prepare(&state, &address, &[], store.environment(), &[&loops])
        })
        .collect();
    workers.iter_mut().for_each(Worker::launch);
    daemon.ask(&add(&repository));
    daemon.until("evaluations farm limit=1", |evaluations| {
        evaluations.iter().any(|evaluation| evaluation["status"] == "succeeded")
    });

    let (began, mut killed) = (now(), [0; 3]);
    while began.elapsed() < Duration::from_secs(seconds) {
        pause(Duration::from_millis(random.u64(200..2500)));
        let absence = Duration::from_millis(random.u64(0..1500));
        match random.usize(0..4) {
            0 => {
                server.kill();
                pause(absence);
                server.restart();
                killed[0] += 1;
            }
            1 => {
                daemon.kill();
                pause(absence);
                daemon.restart();
                killed[1] += 1;
            }
            2 => {
                // Both at once.
                server.kill();
                daemon.kill();
                pause(absence);
                daemon.restart();
                server.restart();
                killed[0] += 1;
                killed[1] += 1;
            }
            _ => {
                let worker = random.usize(0..WORKERS);
                workers[worker].kill();
                pause(absence);
                workers[worker].launch();
                killed[2] += 1;
            }
        }
    }
    all_end(&mut daemon, builds);

    let again = repeats(&diary);
    let times: usize = again.values().sum();
    eprintln!("{killed:?} killed; begun again: {again:?}; {:?}", began.elapsed());
    assert!(times <= killed[2] * LOOPS, "{again:?}, {killed:?} killed: {}", daemon_tail(&daemon));
}

fn daemon_tail(daemon: &Daemon) -> String {
    let log = daemon.log();
    log[log.char_indices().rev().nth(4000).map_or(0, |(at, _)| at)..].to_owned()
}

/// Every build ends, once, and well; the books agree with a recount.
fn all_end(daemon: &mut Daemon, builds: u64) {
    within(RECOVERY, "the end of all builds", || {
        let evaluation = daemon.ask("evaluations farm limit=1").remove(0);
        let jobs = &evaluation["jobs"];
        for bad in ["failed", "aborted", "canceled"] {
            assert_eq!(jobs[bad], 0, "{evaluation}\n{}", daemon_tail(daemon));
        }
        pause(Duration::from_millis(100));
        (jobs["pending"] == 0).then(|| assert_eq!(jobs["succeeded"], builds, "{evaluation}"))
    });
    let database = rusqlite::Connection::open(daemon.database()).unwrap();
    let ended = "SELECT count(*), count(DISTINCT build) FROM events WHERE event = 'build-ended'";
    let counts: (i64, i64) =
        database.query_row(ended, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    assert_eq!(counts.0, counts.1, "ends, and builds that ended");
}
