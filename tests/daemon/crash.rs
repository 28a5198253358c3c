//! `kill -9`, SIGTERM and panics, at any moment.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "tests start programs and wait under deadlines of their own"
)]

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::daemon::Daemon;
use crate::support::jobs::{Repository, job};

/// How often the daemon is killed.
const KILLS: usize = 30;

/// Builds of the evaluation that goes on meanwhile: of each ten, one fails, one needs that, and one needs a good one.
const BUILDS: usize = 300;

fn fails(n: usize) -> bool {
    n % 10 == 3
}

fn needs(n: usize) -> Option<usize> {
    [4, 6].contains(&(n % 10)).then(|| n - 1)
}

/// How a job ends if nobody interferes.
fn expected(n: usize) -> &'static str {
    match needs(n) {
        _ if fails(n) => "failed",
        Some(need) if fails(need) => "failed-dependency",
        Some(_) | None => "succeeded",
    }
}

/// Jobs that note each run in the file `ran`.
fn mixture(ran: &Path) -> String {
    let job = |n: usize| {
        // A child in a session of its own, that nothing but the keeper finds.
        let command = format!(
            "echo {n} >> {}; echo {n} > $out; setsid sleep 1000 & sleep 0.02; exit {}",
            ran.display(),
            u8::from(fails(n))
        );
        let needs = needs(n).map(|need| format!(r#""needs":["job-{need}"]"#));
        job(&format!("job-{n}"), &command, &needs.unwrap_or_default())
    };
    (0..BUILDS).map(job).collect()
}

fn number(build: &Value) -> usize {
    build["job"].as_str().unwrap().strip_prefix("job-").unwrap().parse().unwrap()
}

#[test]
fn nothing_is_lost_to_kill_9() {
    let directory = tempfile::tempdir().unwrap();
    let ran = directory.path().join("ran");
    let repository = Repository::with_jobs(&format!("{}sleep 0.3", mixture(&ran)));
    let mut daemon = Daemon::prepare(&["--max-builds=2", "--interval=1"]);
    daemon.restart();
    daemon.ask(&repository.add("hello"));
    let mut random = fastrand::Rng::with_seed(7);
    // Jobs that somebody interfered with, and those that may have been drawn in.
    let mut touched: HashSet<usize> = HashSet::new();
    for kill in 0..KILLS {
        std::thread::sleep(Duration::from_millis(random.u64(20..400)));
        if kill % 3 == 0 {
            let word = ["cancel-build", "restart-build"][kill / 3 % 2];
            let builds = daemon.ask("builds limit=10000");
            if let Some(build) = random.choice(&builds) {
                // It may have ended, or begun, meanwhile.
                daemon.outcome(&format!("{word} {}", build["id"]));
                let n = number(build);
                touched.extend([n.saturating_sub(1), n, n + 1]);
            }
        }
        daemon.kill();
        daemon.launch();
    }
    daemon.settle();
    let evaluations = daemon.until("evaluations hello", |all| all[0]["status"] == "succeeded");
    daemon.settle();
    let mut ends: HashMap<usize, Vec<Value>> = HashMap::new();
    let builds = daemon.ask("builds limit=10000");
    assert_eq!(builds.len(), BUILDS);
    let numbers: HashMap<i64, usize> =
        builds.iter().map(|build| (build["id"].as_i64().unwrap(), number(build))).collect();
    // On a busy machine a build may be running at three deaths in a row, which aborts it and fails what needs it; an
    // evaluation that was interrupted, too, schedules both again.
    for build in builds.iter().filter(|build| build["status"] == "aborted") {
        touched.extend([number(build), number(build) + 1]);
    }
    for build in builds.iter().filter(|build| !touched.contains(&number(build))) {
        assert_eq!(build["status"], expected(number(build)), "{build}");
        ends.insert(number(build), vec![]);
    }
    let mut runs: HashMap<usize, usize> = HashMap::new();
    for line in fs::read_to_string(&ran).unwrap().lines() {
        *runs.entry(line.parse().unwrap()).or_default() += 1;
    }
    for &n in ends.keys() {
        assert_eq!(runs.contains_key(&n), expected(n) != "failed-dependency", "runs of job {n}");
    }
    // At most those that were running at a kill ran again.
    let untouched = runs.iter().filter(|(n, _)| !touched.contains(n));
    let repeated: usize = untouched.map(|(_, runs)| runs - 1).sum();
    assert!(repeated <= KILLS * 2, "{repeated} runs too many");
    let mut events = daemon.events();
    // What was aborted so and scheduled again takes what needs it along: that ends twice.
    let mut aborted: HashSet<usize> = HashSet::new();
    while ends.values().any(Vec::is_empty) {
        let (event, _) = events.wait_for("build-ended");
        let n = numbers[&event["build"].as_i64().unwrap()];
        let again = match event["status"].as_str().unwrap() {
            "aborted" => {
                aborted.insert(n);
                true
            }
            "failed-dependency" => needs(n).is_some_and(|need| aborted.remove(&need)),
            _ => false,
        };
        if let Some(ends) = ends.get_mut(&n)
            && !again
        {
            ends.push(event["status"].clone());
        }
    }
    assert!(ends.values().all(|ends| ends.len() == 1), "{ends:?}");

    // Asked for again, what was canceled ends as if nothing had happened.
    daemon.ask(&format!("restart-evaluation {}", evaluations[0]["id"]));
    daemon.settle();
    let builds = daemon.ask("builds limit=10000");
    for build in &builds {
        assert_eq!(build["status"], expected(number(build)), "{build}");
    }
    assert_eq!(daemon.outcome("check-database"), "ok");
    let jobs = daemon.ask("evaluations hello limit=1").remove(0)["jobs"].clone();
    let count = |word| (0..BUILDS).filter(|&n| (expected(n) == "succeeded") == word).count();
    assert_eq!((&jobs["succeeded"], &jobs["failed"]), (&count(true).into(), &count(false).into()));
    assert_eq!(daemon.stop().code(), Some(0));
    daemon.wait_for_no_descendants();
    // Nothing is left of builds that did not succeed, nor of what they worked in.
    let names = |directory: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(daemon.state().join(directory)).into_iter().flatten();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    let good = builds.iter().filter(|build| build["status"] == "succeeded");
    assert_eq!(names("products"), good.map(|build| build["id"].to_string()).collect());
    assert_eq!(names("cache/builds"), BTreeSet::new());
}

#[test]
fn a_kill_while_fetching_is_made_good() {
    let repository = Repository::with_jobs(&job("one", "true", ""));
    for n in 0..2000 {
        repository.write(&format!("file-{n}"), &format!("{n}"));
    }
    repository.commit();
    let mut daemon = Daemon::prepare(&["--interval=1"]);
    daemon.restart();
    daemon.ask(&repository.add("hello"));
    // A build that was running at three deaths would be aborted, and rightly.
    daemon.ask("pause builds");
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(random.u64(1..60)));
        daemon.kill();
        daemon.launch();
    }
    daemon.ask("resume builds");
    daemon.until("jobset hello", |jobset| {
        jobset[0]["status"] == "idle" && !jobset[0]["last-evaluation"].is_null()
    });
    daemon.settle();
    assert_eq!(daemon.build("one")["status"], "succeeded");
}

#[test]
fn what_was_answered_ok_is_done_after_a_kill() {
    let repository = Repository::with_jobs(&job("one", "true", ""));
    let mut daemon = Daemon::start(&["--interval=86400"]);
    daemon.ask(&repository.add("hello"));
    daemon.until("evaluations hello", |evaluations| evaluations.len() == 1);
    daemon.settle();
    for round in 0..5 {
        repository.write("content", &format!("round {round}"));
        let commit = repository.commit();
        daemon.ask("trigger hello");
        daemon.kill();
        daemon.restart();
        daemon.until("evaluations hello", |evaluations| {
            evaluations[0]["checkouts"][0]["commit"] == commit.as_str()
        });
        daemon.settle();
        let first = daemon.ask("evaluations hello").pop().unwrap();
        let old = first["checkouts"][0]["commit"].clone();
        daemon.ask(&format!("retry-evaluation {}", first["id"]));
        daemon.kill();
        daemon.restart();
        daemon.until("evaluations hello", |evaluations| {
            let newest = &evaluations[0];
            newest["checkouts"][0]["commit"] == old && newest["status"] == "succeeded"
        });
        daemon.settle();
    }
}

#[test]
fn sigterm_ends_everything_soon_and_it_is_resumed() {
    let directory = tempfile::tempdir().unwrap();
    let calm = directory.path().join("calm");
    let stubborn = format!(
        "[ -e {} ] || {{ trap '' TERM; setsid sleep 1000 & sleep 1000; sleep 1000; }}",
        calm.display()
    );
    let builds = Repository::with_jobs(&job("one", &stubborn, ""));
    let evaluation = Repository::with_jobs(&format!("{}{stubborn}", job("two", "true", "")));
    let mut daemon = Daemon::start(&[]);
    daemon.ask(&builds.add("builds"));
    daemon.ask(&evaluation.add("evaluation"));
    daemon.until("builds status=started", |builds| builds.len() == 1);
    daemon.until("jobset evaluation", |jobset| jobset[0]["status"] == "evaluating");
    let began = Instant::now();
    let status = daemon.stop();
    assert_eq!(status.code(), Some(0), "{}", daemon.log());
    assert!(began.elapsed() < Duration::from_secs(10));
    daemon.wait_for_no_descendants();
    assert!(!daemon.socket().exists());

    fs::write(&calm, "").unwrap();
    daemon.restart();
    daemon.until("jobset evaluation", |jobset| jobset[0]["status"] == "idle");
    daemon.settle();
    for job in ["one", "two"] {
        assert_eq!(daemon.build(job)["status"], "succeeded");
    }
    let attempts = daemon.build("one")["attempts"].as_i64().unwrap();
    assert!(attempts <= 2, "{attempts}");
}

#[test]
fn a_build_that_kills_the_daemon_is_aborted_at_the_third_death() {
    let repository = Repository::with_jobs(&job("killer", "sleep 1000", ""));
    let mut daemon = Daemon::start(&[]);
    daemon.ask(&repository.add("hello"));
    for _ in 0..3 {
        daemon.until("builds status=started", |builds| builds.len() == 1);
        daemon.kill();
        daemon.restart();
    }
    daemon.settle();
    assert_eq!(daemon.build("killer")["status"], "aborted");
}

#[test]
fn a_job_user_who_could_use_the_bridge_is_refused() {
    let mut daemon = Daemon::prepare(&["--job-user=nobody", "--socket-group=nogroup"]);
    daemon.launch();
    assert_eq!(daemon.wait().code(), Some(1));
    assert!(daemon.log().contains("--job-user=nobody is in group"), "{}", daemon.log());
}

#[test]
fn two_sigterms_at_once_are_one_wish() {
    // So `timeout` does: to its child, then to the group that the child is in.
    let mut daemon = Daemon::start(&[]);
    daemon.signal("TERM");
    daemon.signal("TERM");
    assert_eq!(daemon.wait().code(), Some(0), "{}", daemon.log());
    assert!(!daemon.socket().exists());
}

#[test]
fn a_second_daemon_is_refused() {
    let mut daemon = Daemon::start(&[]);
    let mut second = Daemon::prepare_in(daemon.state(), &[]);
    second.launch();
    assert_eq!(second.wait().code(), Some(1));
    // Nor may one with a state directory of its own work with another part of this one.
    for (option, part) in [
        ("database", "gorget.db"),
        ("cache-directory", "cache"),
        ("log-directory", "log"),
        ("socket", "run/bridge"),
    ] {
        let shared = format!("--{option}={}", daemon.state().join(part).display());
        let mut other = Daemon::prepare(&[&shared]);
        other.launch();
        assert_eq!(other.wait().code(), Some(1), "{option}");
        let said = if option == "socket" { "cannot listen on" } else { "another daemon (process" };
        assert!(other.log().contains(said), "{}", other.log());
    }
    assert_eq!(daemon.ask("version").len(), 1);
}

/// Every actor without which the daemon cannot go on.
#[test]
fn a_panic_of_an_essential_actor_ends_with_status_70_and_nothing_is_lost() {
    let actors = [
        "database",
        "builder",
        "evaluator",
        "updater",
        "registry",
        "bridge",
        "notifier",
        "janitor",
    ];
    for actor in actors {
        let repository = Repository::with_jobs(&job("one", "sleep 0.5", ""));
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("panic");
        let mut daemon = Daemon::prepare(&["--interval=1"]);
        daemon.environment("GORGET_TEST_PANIC", file.to_str().unwrap());
        daemon.restart();
        daemon.ask(&repository.add("hello"));
        daemon.until("builds", |builds| builds.len() == 1);
        // Something to fetch and to evaluate, so that all have work.
        repository.set_jobs(&format!("{}{}", job("one", "sleep 0.5", ""), job("two", "true", "")));
        fs::write(&file, actor).unwrap();
        // Each of these makes one of the actors work; the last answers are lost with the daemon.
        for request in ["trigger hello", "queue", "status"] {
            if let Ok(stream) = std::os::unix::net::UnixStream::connect(daemon.socket()) {
                use std::io::Write;
                let _ = writeln!(&stream, "{request}");
            }
        }
        assert_eq!(daemon.wait().code(), Some(70), "{actor}: {}", daemon.log());
        daemon.wait_for_no_descendants();
        daemon.restart();
        daemon.settle();
        daemon.until("evaluations hello", |all| all.len() >= 2);
        daemon.settle();
        for job in ["one", "two"] {
            assert_eq!(daemon.build(job)["status"], "succeeded", "{actor}");
        }
    }
}

#[test]
fn a_monitor_that_panics_is_respawned() {
    let repository = Repository::with_jobs(&job("one", "true", ""));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("panic");
    let mut daemon = Daemon::prepare(&[]);
    daemon.environment("GORGET_TEST_PANIC", file.to_str().unwrap());
    daemon.restart();
    daemon.ask(&repository.add("hello"));
    daemon.settle();
    repository.set_jobs(&job("two", "true", ""));
    fs::write(&file, "monitor").unwrap();
    daemon.outcome("trigger hello");
    daemon.until("evaluations hello", |all| all.len() == 2);
    daemon.settle();
    assert_eq!(daemon.build("two")["status"], "succeeded");
}

#[test]
fn a_job_that_panics_fails_alone() {
    let repository = Repository::with_jobs(&job("one", "true", ""));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("panic");
    let mut daemon = Daemon::prepare(&["--interval=86400"]);
    daemon.environment("GORGET_TEST_PANIC", file.to_str().unwrap());
    daemon.restart();
    daemon.ask(&repository.add("hello"));
    daemon.settle();
    repository.set_jobs(&job("two", "true", ""));
    fs::write(&file, "fetch").unwrap();
    daemon.ask("trigger hello");
    daemon.until("jobset hello", |jobsets| {
        jobsets[0]["error"].as_str().is_some_and(|error| error.contains("the look panicked"))
    });
    fs::write(&file, "build").unwrap();
    daemon.ask("trigger hello");
    daemon.until("builds status=scheduled", |builds| {
        let error = builds.first().and_then(|build| build["error"].as_str());
        error.is_some_and(|error| error.starts_with("internal error"))
    });
    let two = daemon.build("two");
    assert!(two["waiting"].as_str().unwrap().starts_with("retry at "), "{two}");
    assert!(daemon.ask("jobset hello")[0]["error"].is_null());
    assert_eq!(daemon.stop().code(), Some(0), "{}", daemon.log());
}
