//! What the janitor removes and what it leaves, with real books and files.

use std::fs::{self, File};
use std::os::unix::fs::symlink;

use super::*;
use crate::actor::Threads;
use crate::model::evaluation::Checkout;
use crate::model::spec::JobsetName;

/// A janitor with a state directory of its own.
struct Bench {
    janitor: Janitor,
    place: tempfile::TempDir,
    _threads: Threads,
}

impl Bench {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let (spawner, threads) = Spawner::new();
        let path = place.path();
        let settings = Settings {
            log_directory: path.join("log"),
            cache_directory: path.join("cache"),
            products: path.join("products"),
            roots: path.join("gcroots"),
            ttl: Duration::from_secs(3600),
            log_expiry: Duration::from_secs(3600),
            build_expiry: None,
            history_expiry: None,
        };
        let janitor = Janitor {
            settings,
            database: Database::open(&path.join("gorget.db"), &spawner).unwrap(),
            builder: builder::Handle::unattended(),
            reader: None,
            progress: Progress::default(),
            given_up: HashSet::new(),
        };
        Self { janitor, place, _threads: threads }
    }

    /// A directory below the cache, last changed long ago.
    fn old(&self, name: &str) -> PathBuf {
        let path = self.place.path().join("cache").join(name);
        fs::create_dir_all(&path).unwrap();
        File::open(&path).unwrap().set_modified(system_time(Time(1_000_000))).unwrap();
        path
    }

    fn jobset(&self, name: &str, url: &str) {
        let name = JobsetName::new(name).unwrap();
        let specification = format!(
            r#"{{"name":"{name}","channels":[{{"name":"main","url":"{url}"}}],"command":["true"]}}"#
        );
        self.janitor
            .write("jobset", move |tx| db::jobsets::put(tx, &name, &specification, true).map(drop))
            .unwrap();
    }

    /// All rounds of a chore, as many as it has.
    fn perform(&mut self, chore: Chore) {
        while self.janitor.perform(chore).unwrap() {}
    }
}

#[test]
fn caches_of_what_is_gone_are_removed() {
    let mut bench = Bench::new();
    bench.jobset("here", "https://example.org/here.git");
    let mirror = |url| format!("git/{}", git::mirror_name(url));
    let kept = [
        bench.old(&mirror("https://example.org/here.git")),
        bench.old(&(mirror("https://example.org/here.git") + ".lock")),
        bench.old("jobsets/here"),
        bench.old("channels/here"),
    ];
    let gone = [
        bench.old(&mirror("https://example.org/gone.git")),
        bench.old(&(mirror("https://example.org/gone.git") + ".lock")),
        bench.old("jobsets/gone"),
        bench.old("channels/gone"),
    ];
    let young = ["jobsets/young".to_owned(), mirror("https://example.org/submodule.git")]
        .map(|name| bench.place.path().join("cache").join(name));
    young.iter().for_each(|path| fs::create_dir_all(path).unwrap());
    bench.perform(Chore::Caches);
    assert!(kept.iter().chain(&young).all(|path| path.is_dir()));
    assert!(gone.iter().all(|path| !path.exists()));
    bench.perform(Chore::Stale);
    assert_eq!(fs::read_dir(bench.place.path().join("cache/stale")).unwrap().count(), 0);
}

#[test]
fn checkouts_in_use_stay() {
    let mut bench = Bench::new();
    bench.jobset("here", "/srv/here");
    let (used, unused) = (bench.old("checkouts/used"), bench.old("checkouts/unused"));
    let checkout = Checkout {
        channel: "main".to_owned(),
        url: "/srv/here".to_owned(),
        commit: "c0ffee".to_owned(),
        tree: "7ea".to_owned(),
        directory: used.clone(),
    };
    let name = JobsetName::new("here").unwrap();
    bench
        .janitor
        .write("evaluation", move |tx| {
            db::evaluations::start(tx, &name, "f", Time(1), std::slice::from_ref(&checkout))
        })
        .unwrap();
    bench.perform(Chore::Checkouts);
    assert!(used.is_dir() && !unused.exists());
}

#[test]
fn products_without_a_build_are_removed_and_links_not_followed() {
    let mut bench = Bench::new();
    let products = bench.place.path().join("products");
    let outside = bench.place.path().join("outside");
    fs::create_dir_all(products.join("7")).unwrap();
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("precious"), "").unwrap();
    symlink(&outside, products.join("7/link")).unwrap();
    File::open(products.join("7")).unwrap().set_modified(system_time(Time(1_000_000))).unwrap();
    // The other one's build may be about to be in the books.
    fs::create_dir_all(products.join("8")).unwrap();
    bench.perform(Chore::Strays);
    bench.perform(Chore::Stale);
    assert!(!products.join("7").exists() && products.join("8").exists());
    assert!(outside.join("precious").exists());
}

#[test]
fn products_that_the_books_do_not_have_are_removed() {
    let mut bench = Bench::new();
    bench.jobset("here", "/srv/here");
    let products = bench.place.path().join("products");
    for id in 1..=4 {
        let path = products.join(id.to_string());
        fs::create_dir_all(&path).unwrap();
        File::open(&path).unwrap().set_modified(system_time(Time(1_000_000))).unwrap();
    }
    bench
        .janitor
        .write("builds", |tx| {
            for (id, status, output) in [(1, 0, true), (2, 1, false), (3, -1, false), (4, 0, false)] {
                tx.conn.execute(
                    "INSERT INTO builds (id, derivation, evaluation, jobset, job, system, kind, nix_name, status,
                         priority, timeout, max_silent, timestamp, queued)
                     VALUES (?1, ?1, 1, 'here', ?1, 's', 0, 'n', ?2, 9, 0, 0, 1, 1)",
                    (id, status),
                )?;
                if output {
                    tx.conn.execute("INSERT INTO outputs VALUES (?1, 'out', '/x')", [id])?;
                }
            }
            Ok(())
        })
        .unwrap();
    bench.perform(Chore::Strays);
    let there = [1, 2, 3, 4].map(|id: i64| products.join(id.to_string()).exists());
    assert_eq!(there, [true, false, true, false]);
}

#[test]
fn old_logs_expire() {
    let mut bench = Bench::new();
    let logs = bench.place.path().join("log/builds");
    fs::create_dir_all(&logs).unwrap();
    for (name, old) in [("1.gz", true), ("2.gz", false), ("notes", true)] {
        let file = File::create(logs.join(name)).unwrap();
        if old {
            file.set_modified(system_time(Time(1_000_000))).unwrap();
        }
    }
    bench.perform(Chore::Logs);
    let left = |name: &str| logs.join(name).exists();
    assert_eq!((left("1.gz"), left("2.gz"), left("notes")), (false, true, true));
}

#[test]
fn what_a_deleted_jobset_leaves_is_removed() {
    let mut bench = Bench::new();
    bench.jobset("gone", "/srv/gone");
    let name = JobsetName::new("gone").unwrap();
    let started = name.clone();
    let id = bench
        .janitor
        .write("evaluation", move |tx| db::evaluations::start(tx, &started, "f", Time(1), &[]))
        .unwrap();
    let logs = bench.place.path().join("log/evaluations");
    fs::create_dir_all(&logs).unwrap();
    for log in [id, EvaluationId(id.0 + 1)] {
        File::create(logs.join(format!("{log}.gz"))).unwrap();
    }
    bench.perform(Chore::Withdrawn);
    assert_eq!(fs::read_dir(&logs).unwrap().count(), 2);
    bench.janitor.write("delete", move |tx| db::jobsets::delete(tx, &name).map(drop)).unwrap();
    bench.perform(Chore::Withdrawn);
    assert_eq!(fs::read_dir(&logs).unwrap().count(), 1);
    let reader = bench.janitor.reader().unwrap();
    let left: i64 =
        reader.query_row("SELECT count(*) FROM evaluations", [], |row| row.get(0)).unwrap();
    assert_eq!(left, 0);
}
