//! Benchmarks of the real daemon, each against a peer or a floor measured in the same run.
//!
//! `make bench` runs all; `make bench ONLY=WORD` those whose name holds WORD.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark, run by people"
)]

mod baseline;
#[path = "../support/browser.rs"]
#[allow(dead_code, reason = "shared with the tests, which need more of it")]
mod browser;
#[path = "../support/daemon.rs"]
#[allow(dead_code, reason = "shared with the tests, which need more of it")]
mod daemon;
mod events;
#[path = "../support/farm.rs"]
#[allow(dead_code, reason = "shared with the tests, which need more of it")]
mod farm;
#[path = "../support/fleet.rs"]
#[allow(dead_code, reason = "shared with the tests, which need more of it")]
mod fleet;
mod guix;
#[path = "../support/http.rs"]
#[allow(dead_code, reason = "shared with the tests, which need more of it")]
mod http;
#[path = "../support/jobs.rs"]
#[allow(dead_code, reason = "shared with the tests, which need more of it")]
mod jobs;
mod nix;
#[path = "../support/nix.rs"]
#[allow(dead_code, reason = "shared with the tests, which need more of it")]
mod nix_daemon;
mod pages;
mod readers;
mod remote;
mod web;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use daemon::{Daemon, PATIENCE, Session};
use jobs::{Repository, system};

/// The jobs of the largest evaluation.
const MANY: usize = 100_000;

fn main() {
    let only = std::env::var("ONLY").unwrap_or_default();
    let all: [(&str, fn()); 18] = [
        ("registration", registration_and_recovery),
        ("trigger", trigger_to_first_build),
        ("builds", builds_of_true),
        ("idle", idle_jobsets),
        ("poll", poll_with_nothing_new),
        ("bridge", bridge_among_silent_clients),
        ("nix-builds", nix::builds),
        ("nix-evaluation", nix::evaluation),
        ("nix-cancel", nix::cancel),
        ("guix-builds", guix::builds),
        ("web", web::requests),
        ("pages", pages::pages),
        ("readers", readers::readers),
        ("events", events::events),
        ("remote-dispatch", remote::dispatch),
        ("remote-latency", remote::latency),
        ("remote-logs", remote::logs),
        ("remote-memory", remote::memory),
    ];
    for (_, run) in all.iter().filter(|(name, _)| name.contains(&only)) {
        run();
    }
}

/// What is shared with the tests waits with this.
fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn report(what: &str, figure: &str, compared: &str, target: &str) {
    println!("{what}: {figure} ({compared}; target: {target})");
}

fn millis(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() - 1) * percent / 100]
}

/// A subscription to what happens from now on.
fn subscribe(daemon: &mut Daemon) -> Session {
    let mut session = daemon.connect();
    session.send("version");
    session.answer().unwrap();
    session.send("subscribe");
    // Nothing says that a subscription has begun; this is long enough for a line to be read.
    std::thread::sleep(Duration::from_millis(50));
    session
}

/// Commits a `jobs.jsonl` of these lines; jobsets print it with `cat`.
fn set_jobs(repository: &Repository, lines: &str) {
    repository.write("jobs.jsonl", lines);
    repository.commit();
}

fn add(repository: &Repository, name: &str) -> String {
    format!("add {}", repository.specification(name, &["cat", "jobs.jsonl"]))
}

/// Asks `status` every 5 ms until `event`; the slowest answer.
fn slowest_answer_until(daemon: &mut Daemon, events: &mut Session, event: &str) -> Duration {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (socket, over) = (daemon.socket(), &over);
        let asking = scope.spawn(move || {
            let mut slowest = Duration::ZERO;
            while !over.load(Ordering::Relaxed) {
                let began = Instant::now();
                let mut session = Session::new(UnixStream::connect(&socket).unwrap());
                session.send("status");
                session.answer().unwrap();
                slowest = slowest.max(began.elapsed());
                std::thread::sleep(Duration::from_millis(5));
            }
            slowest
        });
        events.wait_for(event);
        over.store(true, Ordering::Relaxed);
        asking.join().unwrap()
    })
}

/// 100,000 jobs: registering them, the bridge meanwhile, memory, taking the next build, start after `kill -9`.
fn registration_and_recovery() {
    let repository = Repository::new(10);
    let mut lines = String::new();
    for n in 0..MANY {
        let line = format!(
            r#"{{"job":"job-{n}","system":"{}","command":["true","{n}"],"nix-name":"job-{n}"}}"#,
            system()
        );
        lines.push_str(&line);
        lines.push('\n');
    }
    set_jobs(&repository, &lines);
    let mut daemon = Daemon::start(&["--max-builds=1", "--interval=3600"]);
    daemon.ask("pause builds");
    let mut events = subscribe(&mut daemon);
    let asked = Instant::now();
    daemon.ask(&add(&repository, "many"));
    let (_, began) = events.wait_for("evaluation-started");
    let slowest = slowest_answer_until(&mut daemon, &mut events, "evaluation-ended");
    let took = began.elapsed();
    let peak = daemon.memory("VmHWM:");
    println!("# {:.2} s after the jobset was added", asked.elapsed().as_secs_f64());
    let floor = baseline::insert_same_rows(&daemon.database());
    report(
        "registering one evaluation of 100,000 jobs",
        &format!("{:.2} s", took.as_secs_f64()),
        &format!(
            "{:.2} x one prepared-statement transaction ({:.2} s)",
            took.as_secs_f64() / floor.as_secs_f64(),
            floor.as_secs_f64()
        ),
        "at most 2 x",
    );
    report(
        "peak memory meanwhile",
        &format!("{} MiB", peak >> 20),
        "VmHWM of the daemon",
        "under 300 MiB",
    );
    report(
        "slowest bridge answer meanwhile",
        &millis(slowest),
        "`status`, every 5 ms",
        "under 100 ms",
    );

    daemon.kill();
    let started = Instant::now();
    daemon.restart();
    report(
        "bridge back after kill -9, 100,000 pending",
        &millis(started.elapsed()),
        "exec to answer",
        "under 2 s",
    );

    let mut events = subscribe(&mut daemon);
    daemon.ask("resume builds");
    let mut gaps = Vec::new();
    let mut ended: Option<Instant> = None;
    while gaps.len() < 300 {
        let (event, at) = events.event();
        match event["event"].as_str().unwrap_or_default() {
            "build-ended" => ended = Some(at),
            "build-started" => gaps.extend(ended.take().map(|end| at - end)),
            _ => {}
        }
    }
    report(
        "picking the next build, 100,000 pending",
        &format!(
            "{:.3} ms median, {:.3} ms p99",
            ms(percentile(&mut gaps, 50)),
            ms(percentile(&mut gaps, 99))
        ),
        "one build's end to the next one's start, both in the books",
        "under 1 ms",
    );
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn trigger_to_first_build() {
    let repository = Repository::new(10);
    let mut daemon = Daemon::start(&["--interval=3600"]);
    let mut times = Vec::new();
    // A jobset takes eight triggers in five minutes; so several are used in turn.
    for jobset in 0..5 {
        let name = format!("jobset-{jobset}");
        daemon.ask(&add(&repository, &name));
        for round in 0..7 {
            let id = format!("{jobset}-{round}");
            // The commit must be news to the trigger.
            daemon.settle();
            set_jobs(
                &repository,
                &format!(
                    r#"{{"job":"one","system":"{}","command":["true","{id}"]}}{}"#,
                    system(),
                    "\n"
                ),
            );
            let mut events = subscribe(&mut daemon);
            let began = Instant::now();
            daemon.ask(&format!("trigger {name}"));
            let (_, at) = events.wait_for("build-started");
            times.push(at - began);
            events.wait_for("build-ended");
        }
    }
    report(
        "trigger to first build started",
        &format!("median {}", millis(percentile(&mut times, 50))),
        &format!(
            "p99 {}, {} rounds, each with a new commit",
            millis(percentile(&mut times, 99)),
            times.len()
        ),
        "median under 150 ms",
    );
}

fn builds_of_true() {
    const BUILDS: usize = 1000;
    let repository = Repository::new(10);
    let mut lines = String::new();
    for n in 0..BUILDS {
        lines += &format!(
            r#"{{"job":"t{n}","system":"{}","command":["true","{n}"]}}{}"#,
            system(),
            "\n"
        );
    }
    set_jobs(&repository, &lines);
    let mut daemon = Daemon::start(&["--max-builds=2", "--interval=3600"]);
    daemon.ask("pause builds");
    let mut events = subscribe(&mut daemon);
    daemon.ask(&add(&repository, "true"));
    events.wait_for("evaluation-ended");
    let began = Instant::now();
    daemon.ask("resume builds");
    for _ in 0..BUILDS {
        events.wait_for("build-ended");
    }
    let took = began.elapsed();
    let plain = baseline::fork_exec(BUILDS, 2);
    let overhead = took.saturating_sub(plain).as_secs_f64() * 1000.0 / BUILDS as f64;
    report(
        "1,000 builds of `true` on 2 slots",
        &format!("{overhead:.2} ms a build over fork/exec"),
        &format!(
            "{:.2} s in all; plain fork/exec on 2 threads {:.2} s",
            took.as_secs_f64(),
            plain.as_secs_f64()
        ),
        "under 10 ms",
    );
}

fn idle_jobsets() {
    let repository = Repository::new(1);
    let mut daemon = Daemon::start(&["--interval=3600"]);
    for n in 0..1000 {
        daemon.ask(&format!("add {}", repository.specification(&format!("idle-{n}"), &["true"])));
    }
    daemon.settle();
    // A fresh process, as an operator would find it.
    daemon.stop();
    daemon.restart();
    daemon.settle();
    let (memory, before) = (daemon.memory("VmRSS:"), daemon.processor_time());
    let window = Duration::from_secs(20);
    std::thread::sleep(window);
    let share = (daemon.processor_time() - before).as_secs_f64() / window.as_secs_f64() * 100.0;
    report(
        "1,000 idle jobsets: memory",
        &format!("{} MiB resident", memory >> 20),
        "VmRSS",
        "under 100 MiB",
    );
    report(
        "1,000 idle jobsets: processor",
        &format!("{share:.2} % of a core"),
        "20 s, polls each hour",
        "under 1 %",
    );
}

fn poll_with_nothing_new() {
    let repository = Repository::new(10);
    for n in 0..50 {
        repository.git(&["branch", &format!("b{n}")]);
    }
    let mut daemon = Daemon::start(&["--interval=3600"]);
    let mut ours = Vec::new();
    for jobset in 0..6 {
        let name = format!("poll-{jobset}");
        daemon.ask(&format!("add {}", repository.specification(&name, &["true"])));
        daemon.settle();
        for _ in 0..7 {
            let mut session = daemon.connect();
            let began = Instant::now();
            session.send(&format!("trigger {name}"));
            assert_eq!(session.answer().unwrap().1, "ok");
            // It is seen to look, then to have looked: an answer takes a fraction of a millisecond.
            for status in ["fetching", "idle"] {
                let until = Instant::now() + PATIENCE;
                loop {
                    session.send(&format!("jobset {name}"));
                    if session.answer().unwrap().0[0]["status"] == status {
                        break;
                    }
                    assert!(Instant::now() < until, "{name} is never {status}");
                    // Asking without a pause would take one of the processors that the look needs.
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
            ours.push(began.elapsed());
        }
    }
    let mut theirs: Vec<_> = (0..42)
        .map(|_| {
            let began = Instant::now();
            let status = Command::new("git")
                .args(["ls-remote", &repository.url()])
                .stdout(Stdio::null())
                .status()
                .unwrap();
            assert!(status.success());
            began.elapsed()
        })
        .collect();
    let (ours, theirs) = (percentile(&mut ours, 50), percentile(&mut theirs, 50));
    report(
        "a poll that finds nothing new",
        &millis(ours),
        &format!(
            "{:.2} x `git ls-remote` ({})",
            ours.as_secs_f64() / theirs.as_secs_f64(),
            millis(theirs)
        ),
        "within 1.5 x",
    );
}

fn bridge_among_silent_clients() {
    let mut daemon = Daemon::start(&["--interval=3600"]);
    let mut served = daemon.connect();
    let mut ask = || {
        let began = Instant::now();
        served.send("status");
        assert_eq!(served.answer().expect("the served client was dropped").1, "ok");
        began.elapsed()
    };
    ask();
    let mut silent = Vec::new();
    let (mut times, until) = (Vec::new(), Instant::now() + Duration::from_secs(5));
    while silent.len() < 500 || Instant::now() < until {
        if silent.len() < 500 {
            // Half never ask; half ask much and never read.
            if let Ok(mut other) = UnixStream::connect(daemon.socket()) {
                other.set_nonblocking(true).unwrap();
                if silent.len() % 2 == 0 {
                    let _ = other.write(&b"help\n".repeat(4096));
                }
                silent.push(other);
            }
        }
        times.push(ask());
    }
    report(
        "bridge round trip among 500 silent clients",
        &format!("p99 {}", millis(percentile(&mut times, 99))),
        &format!("median {}, {} requests", millis(percentile(&mut times, 50)), times.len()),
        "p99 under 50 ms",
    );
}
