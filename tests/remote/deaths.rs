//! Server and workers that are killed in random order while they build, without the daemon.
//!
//! `GORGET_CHAOS_SECONDS` says for how long, `GORGET_CHAOS_SEED` in which order.
#![allow(clippy::disallowed_methods, reason = "a test starts programs")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::support::farm::{Server, Worker};
use crate::support::foreman::{Foreman, State};
use crate::support::jobs::system;
use crate::support::nix::Store;
use crate::support::now;

/// Workers, each a process, and builds that each runs at once.
const WORKERS: usize = 3;
const LOOPS: usize = 2;

/// Builds for each second of it: with all the deaths, about what the workers get done.
const BUILDS_A_SECOND: u64 = 5;

/// For all to end when nothing is killed any more: what waits for a worker that never comes back is given up after 90 s.
const RECOVERY: Duration = Duration::from_secs(200);

pub(super) fn setting(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}: expected a number")),
        Err(_) => otherwise,
    }
}

/// Quick builds that each write a line when they begin.
pub(super) fn expression(number: u64, diary: &Path) -> String {
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
pub(super) fn repeats(diary: &Path) -> BTreeMap<String, usize> {
    let mut begun: BTreeMap<String, usize> = BTreeMap::new();
    for line in std::fs::read_to_string(diary).unwrap_or_default().lines() {
        *begun.entry(line.to_owned()).or_default() += 1;
    }
    begun.into_iter().filter(|(_, times)| *times > 1).map(|(n, times)| (n, times - 1)).collect()
}

fn instantiate(store: &Store, expression: &str) -> Vec<String> {
    let output = Command::new("nix-instantiate")
        .args(["-E", expression])
        .envs(store.environment())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
#[ignore = "takes minutes; by name, with --ignored"]
fn every_build_ends_whoever_dies() {
    let seconds = setting("GORGET_CHAOS_SECONDS", 20);
    let mut random = fastrand::Rng::with_seed(setting("GORGET_CHAOS_SEED", 1));
    let store = Store::start();
    let diary = store.directory.path().join("diary");
    let derivations = instantiate(&store, &expression(seconds * BUILDS_A_SECOND, &diary));
    let state = store.directory.path().join("state");
    let mut server = Server::start(&state, &[]);
    let mut foreman = Foreman::new(&server.socket(), derivations);
    let address = format!("127.0.0.1:{}", server.port);
    let loops = format!("--workers={LOOPS}");
    let mut workers: Vec<Worker> = (0..WORKERS)
        .map(|n| {
            let state = store.directory.path().join(format!("worker-{n}"));
            Worker::prepare(&state, &address, &[], store.environment(), &[&loops])
        })
        .collect();
    workers.iter_mut().for_each(Worker::launch);

    let (began, mut deaths) = (now(), [0; 3]);
    let mut next = began;
    let mut back: Vec<(std::time::Instant, usize)> = Vec::new();
    let mut deaf = began;
    while foreman.open() > 0 {
        if now() >= deaf {
            foreman.turn(Duration::from_millis(50));
        } else {
            std::thread::sleep(Duration::from_millis(20));
        }
        for at in (0..back.len()).rev() {
            if back[at].0 <= now() {
                match back.remove(at).1 {
                    0 => server.launch(),
                    n => workers[n - 1].launch(),
                }
            }
        }
        let cruel = began.elapsed() < Duration::from_secs(seconds);
        if cruel && now() >= next {
            next = now() + Duration::from_millis(random.u64(200..2500));
            let again = now() + Duration::from_millis(random.u64(0..1500));
            let gone = |n: usize| back.iter().any(|(_, who)| *who == n);
            match random.usize(0..3) {
                0 if !gone(0) => {
                    server.kill();
                    back.push((again, 0));
                    deaths[0] += 1;
                }
                1 => {
                    foreman.die();
                    deaf = again;
                    deaths[1] += 1;
                }
                _ => {
                    let n = random.usize(1..=WORKERS);
                    if !gone(n) {
                        workers[n - 1].kill();
                        back.push((again, n));
                        deaths[2] += 1;
                    }
                }
            }
        }
        let late = began.elapsed() > Duration::from_secs(seconds) + RECOVERY;
        assert!(!late, "{deaths:?}: {} left: {}", foreman.open(), left(&foreman));
    }
    let bad: Vec<_> = foreman
        .builds
        .values()
        .filter(|b| b.state != State::Over("succeeded".to_owned()))
        .collect();
    assert!(bad.is_empty(), "{bad:#?}");
    let again = repeats(&diary);
    let lost: usize = foreman.builds.values().map(|build| build.lost).sum();
    eprintln!("{deaths:?} deaths, {lost} lost, begun again: {again:?}; {:?}", began.elapsed());
    assert!(again.values().sum::<usize>() <= deaths[2] * LOOPS, "{again:?}, {deaths:?} deaths");
}

fn left(foreman: &Foreman) -> String {
    let open = foreman.builds.iter().filter(|(_, b)| !matches!(b.state, State::Over(_)));
    format!("{:?}", open.take(10).collect::<Vec<_>>())
}
