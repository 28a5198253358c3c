//! Remote builds: dispatch against a bare echo loop, how soon a worker is told, logs, memory.
//!
//! Workers are scripted: what is measured are `remote-server` and the daemon, not builds. Derivations are real, in a real
//! nix-daemon's store, and their outputs are there beforehand.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::daemon::{Daemon, PATIENCE};
use crate::farm::{Server, add, done_already};
use crate::fleet::Fleet;
use crate::jobs::system;
use crate::nix_daemon::Store;
use crate::{millis, percentile, report};

const WORKERS: usize = 200;
const BUILDS: usize = 20_000;

/// For workers to connect and say who they are.
const JOIN: Duration = Duration::from_secs(60);

/// A daemon with that many builds that wait, none of which is begun before `resume builds`; and its server.
fn farm(store: &Store, number: usize) -> (Daemon, Server) {
    let repository = done_already(number);
    let mut daemon = store.gorget(&["--build-remote", "--interval=3600"]);
    daemon.ask("pause builds");
    daemon.ask(&add(&repository));
    daemon.until("evaluations farm limit=1", |evaluations| {
        evaluations.iter().any(|evaluation| evaluation["status"] == "succeeded")
    });
    let server = Server::start(daemon.state(), &[]);
    (daemon, server)
}

/// Jobs of the one evaluation that are not over.
fn pending(daemon: &mut Daemon) -> i64 {
    let evaluation = daemon.ask("evaluations farm limit=1").remove(0);
    let jobs = &evaluation["jobs"];
    for bad in ["failed", "aborted", "canceled"] {
        assert_eq!(jobs[bad], 0, "{evaluation}");
    }
    jobs["pending"].as_i64().unwrap()
}

/// Runs workers on a thread of their own that do each build at once, while `body` runs.
fn driven<T>(mut fleet: Fleet, body: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let driver = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for told in fleet.turn(Duration::from_millis(20)) {
                    fleet.succeed(told.worker);
                }
            }
            assert_eq!(fleet.dead(), Vec::<&str>::new());
        });
        let result = body();
        over.store(true, Ordering::Relaxed);
        driver.join().unwrap();
        result
    })
}

/// 20,000 builds of no work on 200 workers.
pub(crate) fn dispatch() {
    let echo = echo_loop(Duration::from_secs(5));
    let store = Store::start();
    let (mut daemon, server) = farm(&store, BUILDS);
    let mut fleet = Fleet::connect(server.port, WORKERS, "bnch", &system());
    fleet.join(JOIN);
    daemon.until("workers", |workers| workers.len() == WORKERS);
    let took = driven(fleet, || {
        let (began, before) = (Instant::now(), daemon.processor_time());
        daemon.ask("resume builds");
        while pending(&mut daemon) > 0 {
            assert!(began.elapsed() < PATIENCE * 5, "{} are left", pending(&mut daemon));
            std::thread::sleep(Duration::from_millis(50));
        }
        println!(
            "# the daemon's processor time: {:.2} s",
            (daemon.processor_time() - before).as_secs_f64()
        );
        began.elapsed()
    });
    let rate = BUILDS as f64 / took.as_secs_f64();
    report(
        "dispatch: 20,000 builds of no work on 200 scripted workers",
        &format!("{rate:.0} builds/s"),
        &format!(
            "{:.2} x a bare ROUTER/DEALER echo loop's {echo:.0} round trips/s; {:.2} s in all",
            rate / echo,
            took.as_secs_f64()
        ),
        "at least 2,000 builds/s, and 0.25 x",
    );
}

/// Round trips in a second between as many DEALERs, each with one message under way, and a ROUTER that sends back
/// what stands for a build to whoever asks. Both ends are as plain as can be.
fn echo_loop(window: Duration) -> f64 {
    const REQUEST: &str = r#"(worker-request-work "bnch0000")"#;
    let build = format!(
        r#"(build (drv "/gnu/store/{}-hello-2.12.drv") (priority 99) (timeout 72000) (max-silent 3600) (timestamp #f) (system "{}"))"#,
        "0".repeat(32),
        system()
    );
    let (over, port) = (AtomicBool::new(false), AtomicU16::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let context = zmq::Context::new();
            let router = context.socket(zmq::ROUTER).unwrap();
            router.bind("tcp://127.0.0.1:*").unwrap();
            let endpoint = router.get_last_endpoint().unwrap().unwrap();
            port.store(endpoint.rsplit(':').next().unwrap().parse().unwrap(), Ordering::Release);
            router.set_rcvtimeo(100).unwrap();
            router.set_linger(0).unwrap();
            while !over.load(Ordering::Relaxed) {
                if let Ok(frames) = router.recv_multipart(0) {
                    let [identity, ..] = frames.as_slice() else { panic!("{frames:?}") };
                    router.send_multipart([identity, b"".as_slice(), build.as_bytes()], 0).unwrap();
                }
            }
        });
        while port.load(Ordering::Acquire) == 0 {
            std::thread::yield_now();
        }
        let context = zmq::Context::new();
        let dealers: Vec<_> = (0..WORKERS)
            .map(|_| {
                let dealer = context.socket(zmq::DEALER).unwrap();
                dealer.set_linger(0).unwrap();
                let endpoint = format!("tcp://127.0.0.1:{}", port.load(Ordering::Acquire));
                dealer.connect(&endpoint).unwrap();
                dealer.send_multipart(["", REQUEST], 0).unwrap();
                dealer
            })
            .collect();
        let mut items: Vec<_> =
            dealers.iter().map(|dealer| dealer.as_poll_item(zmq::POLLIN)).collect();
        let (began, mut count) = (Instant::now(), 0_u32);
        while began.elapsed() < window {
            zmq::poll(&mut items, 100).unwrap();
            for (dealer, item) in dealers.iter().zip(&items) {
                if item.is_readable() {
                    dealer.recv_multipart(0).unwrap();
                    dealer.send_multipart(["", REQUEST], 0).unwrap();
                    count += 1;
                }
            }
        }
        let rate = f64::from(count) / began.elapsed().as_secs_f64();
        over.store(true, Ordering::Relaxed);
        rate
    })
}

/// From the request that makes a build ready to its arrival at a worker that waits.
pub(crate) fn latency() {
    const ROUNDS: usize = 100;
    let store = Store::start();
    let (mut daemon, server) = farm(&store, 1);
    let mut fleet = Fleet::connect(server.port, 1, "idle", &system());
    fleet.join(JOIN);
    daemon.until("workers", |workers| workers.len() == 1);
    daemon.ask("resume builds");
    let mut times = Vec::new();
    let mut session = daemon.connect();
    let next = |fleet: &mut Fleet| {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(told) = fleet.turn(Duration::from_millis(100)).pop() {
                return told.at;
            }
            assert!(Instant::now() < until, "no build comes");
        }
    };
    next(&mut fleet);
    let build = daemon.ask("builds limit=1").remove(0)["id"].clone();
    for _ in 0..ROUNDS {
        fleet.succeed(0);
        daemon.until(&format!("build {build}"), |builds| builds[0]["status"] == "succeeded");
        // Its request for more work has come as well: it was sent after the report.
        let began = Instant::now();
        session.send(&format!("restart-build {build}"));
        times.push(next(&mut fleet) - began);
        assert_eq!(session.answer().unwrap().1, "ok");
    }
    report(
        "build ready to worker told, idle worker",
        &format!("median {}", millis(percentile(&mut times, 50))),
        &format!(
            "p99 {}, {ROUNDS} rounds, from the request that restarts the build",
            millis(percentile(&mut times, 99))
        ),
        "median under 20 ms; Cuirass's workers poll every 15 to 44 s",
    );
}

/// The control socket as whoever assigns has it.
struct Attached(BufReader<UnixStream>);

impl Attached {
    fn new(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut this = Self(BufReader::new(stream));
        this.send("attach");
        this.wait_for("ready");
        this
    }

    fn send(&mut self, line: &str) {
        writeln!(self.0.get_mut(), "{line}").unwrap();
    }

    /// Reads on until an event of this name; refusals are none.
    fn wait_for(&mut self, word: &str) -> Value {
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "no {word}");
            assert!(!line.starts_with("error"), "{line}");
            if let Ok(event) = serde_json::from_str::<Value>(&line)
                && event["event"] == word
            {
                return event;
            }
        }
    }
}

/// Logs of 50 builds at once.
pub(crate) fn logs() {
    const CONNECTIONS: usize = 50;
    const SIZE: usize = 32 << 20;
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(&directory.path().join("state"), &[]);
    let mut fleet = Fleet::connect(server.port, CONNECTIONS, "logs", &system());
    fleet.join(JOIN);
    let mut attached = Attached::new(&server.socket());
    let derivation = |n: usize| format!("/gnu/store/{n:032}-log.drv");
    for n in 0..CONNECTIONS {
        let (name, drv) = (fleet.name(n), derivation(n));
        attached.send(&format!("assign {} 1 {name} {drv} {}", n + 1, system()));
    }
    let until = Instant::now() + PATIENCE;
    while (0..CONNECTIONS).any(|n| fleet.building(n).is_none()) {
        fleet.turn(Duration::from_millis(20));
        assert!(Instant::now() < until, "not all builds come");
    }
    let files: Vec<_> = (0..CONNECTIONS)
        .map(|_| attached.wait_for("started")["log"].as_str().unwrap().to_owned())
        .collect();
    let stream = noise(SIZE);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for n in 0..CONNECTIONS {
            let (stream, port) = (&stream, server.log_port);
            scope.spawn(move || {
                let mut connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
                let mut greeting = vec![0; "(log-server (version 0))".len()];
                connection.read_exact(&mut greeting).unwrap();
                write!(connection, "(log (version 0) (derivation \"{}\"))", derivation(n)).unwrap();
                connection.write_all(stream).unwrap();
            });
        }
    });
    let total = (stream.len() * CONNECTIONS) as u64;
    let written = || files.iter().map(|file| std::fs::metadata(file).unwrap().len()).sum::<u64>();
    while written() < total {
        assert!(began.elapsed() < PATIENCE, "{} of {total} bytes", written());
        std::thread::sleep(Duration::from_millis(5));
    }
    let took = began.elapsed();
    let floor = plain_write(directory.path(), &stream, CONNECTIONS);
    let rate = |took: Duration| total as f64 / 1e6 / took.as_secs_f64();
    report(
        "log ingest, 50 workers",
        &format!("{:.0} MB/s compressed", rate(took)),
        &format!(
            "{} MB in {:.2} s; written to the same disk by one thread: {:.0} MB/s",
            total / 1_000_000,
            took.as_secs_f64(),
            rate(floor)
        ),
        "at least 200 MB/s",
    );
    report(
        "peak memory meanwhile",
        &format!("{} MiB", server.memory("VmHWM:") >> 20),
        "VmHWM of remote-server",
        "under 64 MiB",
    );
}

/// A gzip stream of what cannot be compressed.
fn noise(size: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(1);
    let mut bytes = vec![0; size];
    random.fill(&mut bytes);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&bytes).unwrap();
    gzip.finish().unwrap()
}

fn plain_write(directory: &Path, bytes: &[u8], files: usize) -> Duration {
    let began = Instant::now();
    for n in 0..files {
        std::fs::write(directory.join(format!("plain-{n}")), bytes).unwrap();
    }
    began.elapsed()
}

/// What 500 workers, each with its two connections, cost the server.
pub(crate) fn memory() {
    const MANY: usize = 500;
    raise_descriptors();
    let directory = tempfile::tempdir().unwrap();
    let server = Server::start(&directory.path().join("state"), &[]);
    let mut fleet = Fleet::connect(server.port, MANY, "many", &system());
    fleet.join(JOIN);
    let until = Instant::now() + PATIENCE;
    while server.ask("workers").iter().filter(|worker| worker["requesting"] == true).count() < MANY
    {
        fleet.turn(Duration::from_millis(50));
        assert!(Instant::now() < until, "not all workers are there");
    }
    report(
        "memory of remote-server with 500 workers",
        &format!("{} MiB", server.memory("VmRSS:") >> 20),
        &format!("VmRSS, 1,000 connections; peak {} MiB", server.memory("VmHWM:") >> 20),
        "under 50 MiB",
    );
}

/// As many descriptors as may be: each socket needs two or three.
fn raise_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
}
