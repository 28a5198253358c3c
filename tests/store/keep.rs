//! What builds need of each other, what of the store is kept for them, and what is kept of them.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::{add, attribute, build, repository, until};
use crate::support::daemon::Daemon;
use crate::support::jobs::system;
use crate::support::nix::Store;

pub(super) fn collect_garbage(store: &Store) {
    let collected =
        Command::new("nix-store").arg("--gc").envs(store.environment()).output().unwrap();
    assert!(collected.status.success(), "{}", String::from_utf8_lossy(&collected.stderr));
}

/// The names of links that keep derivations.
fn kept_derivations(daemon: &Daemon) -> Vec<String> {
    let links = fs::read_dir(daemon.state().join("gcroots")).into_iter().flatten();
    let names = links.map(|link| link.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.ends_with(".drv")).collect();
    names.sort();
    names
}

pub(super) fn wait_for_kept(daemon: &Daemon, count: usize) {
    until(
        || kept_derivations(daemon).len() == count,
        || format!("{:?}\n{}", kept_derivations(daemon), daemon.log()),
    );
}

fn evaluated(daemon: &mut Daemon, count: usize) {
    daemon.until("evaluations nix", |all| all.len() == count && all[0]["status"] == "succeeded");
}

/// What a job is built from, with something between that is no job.
fn through(name: &str, below: &str) -> String {
    let system = system();
    format!(
        "{name} = derivation {{ name = \"{name}\"; system = \"{system}\"; builder = \"/bin/sh\"; \
         args = [ \"-c\" \"cat ${{derivation {{ name = \"between\"; system = \"{system}\"; \
         builder = \"/bin/sh\"; PATH = \"/usr/bin:/bin\"; \
         args = [ \"-c\" \"cat ${{{below}}} > $out\" ]; }}}} > $out\" ]; PATH = \"/usr/bin:/bin\"; }};\n"
    )
}

#[test]
fn builds_wait_for_those_they_are_built_from() {
    let store = Store::start();
    let mut daemon = store.gorget(&["--max-builds=2"]);
    let first = [
        // What is needed comes on a later line.
        through("above", "good"),
        through("doomed", "ill"),
        attribute("good", "echo hello > $out", ""),
        attribute("ill", "exit 3", ""),
    ];
    let repository = repository(&first);
    daemon.ask("pause builds");
    daemon.ask(&add(&repository));
    evaluated(&mut daemon, 1);
    let (good, ill) = (build(&mut daemon, "good"), build(&mut daemon, "ill"));
    let waiting = |build: &Value| format!("dependency {}", build["id"]);
    daemon.until("builds", |builds| {
        let of = |name: &str| {
            let job = format!("{name}.{}", system());
            builds.iter().find(|build| build["job"] == job.as_str()).unwrap()["waiting"].clone()
        };
        of("above") == waiting(&good) && of("doomed") == waiting(&ill) && of("good") == "paused"
    });
    daemon.ask("resume builds");
    daemon.settle();
    assert_eq!(build(&mut daemon, "above")["status"], "succeeded");
    let doomed = build(&mut daemon, "doomed");
    assert_eq!(doomed["status"], "failed-dependency", "{doomed}");
    assert_eq!(
        (&doomed["error"], &doomed["attempts"]),
        (&json!(format!("{} failed", waiting(&ill))), &json!(0))
    );

    // What is known to have failed is known to later evaluations.
    let more = [&first[..], &[attribute("late", "cat ${ill} > $out", "")]].concat();
    repository.write("release.nix", &format!("rec {{\n{}}}\n", more.concat()));
    repository.commit();
    daemon.ask("trigger nix");
    evaluated(&mut daemon, 2);
    daemon.settle();
    let late = build(&mut daemon, "late");
    assert_eq!(
        (&late["status"], &late["attempts"]),
        (&json!("failed-dependency"), &json!(0)),
        "{late}"
    );
}

#[test]
fn a_collector_takes_nothing_that_is_needed() {
    const JOBS: usize = 40;
    let mut store = Store::start();
    let mut daemon = store.gorget(&["--max-builds=2"]);
    let jobs: Vec<_> = (0..JOBS)
        .map(|n| attribute(&format!("job-{n}"), &format!("echo {n} > $out"), ""))
        .collect();
    let repository = repository(&jobs);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let collector = scope.spawn(|| {
            let mut rounds = 0;
            while !over.load(Ordering::Relaxed) {
                collect_garbage(&store);
                rounds += 1;
            }
            rounds
        });
        daemon.ask("pause builds");
        daemon.ask(&add(&repository));
        evaluated(&mut daemon, 1);
        // The evaluator is let go when they are kept, and not before.
        assert_eq!(kept_derivations(&daemon).len(), JOBS, "{}", daemon.log());
        daemon.ask("resume builds");
        daemon.settle();
        over.store(true, Ordering::Relaxed);
        assert!(collector.join().unwrap() > 2);
    });
    let builds = daemon.ask("builds limit=100");
    assert_eq!(builds.len(), JOBS);
    for build in &builds {
        assert_eq!(
            (&build["status"], &build["attempts"]),
            (&json!("succeeded"), &json!(1)),
            "{build}"
        );
        assert!(Path::new(build["outputs"]["out"].as_str().unwrap()).exists(), "{build}");
    }
    wait_for_kept(&daemon, 0);

    // What could not be kept while the daemon was away is kept when it answers, and what is lost is made again.
    daemon.ask("pause builds");
    store.kill();
    let job = attribute("another", "echo > $out", "");
    repository.write("release.nix", &format!("rec {{\n{job}}}\n"));
    repository.commit();
    store.serve();
    daemon.ask("trigger nix");
    evaluated(&mut daemon, 2);
    wait_for_kept(&daemon, 1);
    daemon.kill();
    fs::remove_dir_all(daemon.state().join("gcroots")).unwrap();
    daemon.restart();
    wait_for_kept(&daemon, 1);
    daemon.ask("resume builds");
    daemon.settle();
    wait_for_kept(&daemon, 0);
    let out = build(&mut daemon, "another")["outputs"]["out"].as_str().unwrap().to_owned();
    collect_garbage(&store);
    assert!(Path::new(&out).exists());
}

/// What would be had nothing kept it while its evaluator died.
#[test]
fn a_derivation_that_is_gone_is_made_again_by_another_evaluation() {
    let store = Store::start();
    let mut daemon = store.gorget(&[]);
    let repository = repository(&[attribute("lost", "echo hello > $out", "")]);
    daemon.ask("pause builds");
    daemon.ask(&add(&repository));
    evaluated(&mut daemon, 1);
    wait_for_kept(&daemon, 1);
    let derivation = build(&mut daemon, "lost")["derivation"].as_str().unwrap().to_owned();
    daemon.kill();
    fs::remove_dir_all(daemon.state().join("gcroots")).unwrap();
    collect_garbage(&store);
    assert!(!Path::new(&derivation).exists());
    daemon.restart();
    daemon.ask("resume builds");
    // The same commit again, and once.
    evaluated(&mut daemon, 2);
    assert!(Path::new(&derivation).exists(), "{}", daemon.log());
    let lost = build(&mut daemon, "lost");
    let error = format!("{derivation} is not in the store any more; an evaluation makes it again");
    assert_eq!((&lost["status"], &lost["error"]), (&json!("scheduled"), &json!(error)), "{lost}");
    assert!(lost["waiting"].as_str().unwrap().starts_with("retry at "), "{lost}");
    // A collector leaves it alone, as before.
    collect_garbage(&store);
    // It would be tried in a minute; a person need not wait.
    daemon.ask(&format!("cancel-build {}", lost["id"]));
    daemon.ask(&format!("restart-build {}", lost["id"]));
    daemon.settle();
    assert_eq!(build(&mut daemon, "lost")["status"], "succeeded", "{}", daemon.log());
    assert_eq!(daemon.ask("evaluations nix").len(), 2);
}

#[test]
fn a_stop_does_not_wait_for_a_daemon_that_does_not_greet() {
    let place = tempfile::tempdir().unwrap();
    let socket = place.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut daemon = Daemon::prepare(&[]);
    daemon.environment("NIX_DAEMON_SOCKET_PATH", socket.to_str().unwrap());
    daemon.restart();
    let _silent = listener.accept().unwrap();
    // Were it waited for, the stop would be late and say so.
    let status = daemon.stop();
    assert!(status.success(), "{status}\n{}", daemon.log());
}

/// Type, path and sum of a build's products, as the books have them.
fn products(daemon: &Daemon, build: &Value) -> Vec<(String, String, i64, Option<String>)> {
    let conn = rusqlite::Connection::open(daemon.database()).unwrap();
    let sql = "SELECT type, path, size, sha256 FROM products WHERE build = ?1 ORDER BY path";
    let mut query = conn.prepare(sql).unwrap();
    let rows = query
        .query_map([build["id"].as_i64().unwrap()], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
        })
        .unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}

#[test]
fn products_are_recorded_whenever_they_are_asked_for() {
    let store = Store::start();
    let mut daemon = store.gorget(&[]);
    let script = "mkdir -p $out/iso; echo -n 12345 > $out/iso/image; ln -s /etc/passwd $out/leak";
    let repository = repository(&[
        attribute("image-1", script, ""),
        attribute("other", "mkdir $out; echo -n 1 > $out/file", ""),
    ]);
    let specification = |outputs: Value| {
        let text = add(&repository);
        let mut specification: Value =
            serde_json::from_str(text.strip_prefix("add ").unwrap()).unwrap();
        specification["build-outputs"] = outputs;
        format!("add {specification}")
    };
    let image = json!({"job": "^image-[[:digit:]]", "type": "iso", "path": "iso/image"});
    let leak = json!({"job": "^image", "type": "leak", "path": "leak"});
    daemon.ask(&specification(json!([image, leak])));
    daemon.settle();
    let (image_1, other) = (build(&mut daemon, "image-1"), build(&mut daemon, "other"));
    let out = PathBuf::from(image_1["outputs"]["out"].as_str().unwrap());
    let path = out.join("iso/image").to_str().unwrap().to_owned();
    let sum = "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5".to_owned();
    assert_eq!(products(&daemon, &image_1), [("iso".to_owned(), path, 5, Some(sum))]);
    assert!(products(&daemon, &other).is_empty());
    let log = super::log(&mut daemon, &image_1);
    assert!(log.contains("leak: leads out of the store"), "{log}");

    // Nothing is evaluated or built for it.
    daemon.ask(&specification(json!([image, {"job": "other", "type": "all"}])));
    until(|| !products(&daemon, &other).is_empty(), || daemon.log());
    let found = products(&daemon, &other).remove(0);
    assert_eq!((found.0.as_str(), found.2, &found.3), ("all", 1, &None));
    assert_eq!(daemon.ask("evaluations nix").len(), 1);

    // Another jobset whose job is the same build.
    let second = specification(json!([{"job": ".", "type": "file", "path": "file"}]));
    daemon.ask(
        &second
            .replace("\"nix\",", "\"second\",")
            .replace("\"evaluator\":\"second\"", "\"evaluator\":\"nix\""),
    );
    until(|| products(&daemon, &other).len() == 2, || daemon.log());
}
