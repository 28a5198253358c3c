//! Git servers that refuse, hang, drip and babble, while other jobsets go on.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "tests start programs and wait under deadlines of their own"
)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::daemon::Daemon;
use crate::support::jobs::{Repository, job};
use crate::support::sshd::{Agent, Sshd};

/// A server on loopback that treats each connection with `answer`, until dropped.
struct Server {
    port: u16,
    over: Arc<AtomicBool>,
}

impl Server {
    fn new(answer: fn(TcpStream, &AtomicBool)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let over = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&over);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if flag.load(Ordering::Relaxed) {
                    return;
                }
                let (stream, flag) = (stream.unwrap(), Arc::clone(&flag));
                std::thread::spawn(move || answer(stream, &flag));
            }
        });
        Self { port, over }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// Says nothing for as long as the test runs.
fn hang(mut stream: TcpStream, _: &AtomicBool) {
    let mut buffer = [0; 1024];
    while stream.read(&mut buffer).is_ok_and(|length| length > 0) {}
}

/// One byte of a plausible answer each 100 ms.
fn drip(mut stream: TcpStream, over: &AtomicBool) {
    let text = "HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-advertisement\r\n\r\n001e# service=git-upload-pack\n0000";
    for byte in text.bytes().chain(std::iter::repeat(b'0')) {
        if over.load(Ordering::Relaxed) || stream.write_all(&[byte]).is_err() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn babble(mut stream: TcpStream, _: &AtomicBool) {
    let _ = stream.write_all(&[0x5a; 100_000]);
}

#[test]
fn bad_servers_are_said_and_hold_nobody_up() {
    let good = Repository::with_jobs(&job("one", "true", ""));
    let refused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let servers = [Server::new(hang), Server::new(drip), Server::new(babble)];
    let mut daemon = Daemon::start(&["--fetch-timeout=1", "--interval=3600"]);
    let ports: Vec<u16> = servers.iter().map(|server| server.port).chain([refused]).collect();
    for (n, port) in ports.iter().enumerate() {
        for scheme in ["http", "git"] {
            let mut specification = good.specification(&format!("bad-{scheme}-{n}"), &["./jobs"]);
            specification["channels"][0]["url"] =
                format!("{scheme}://user:secret@127.0.0.1:{port}/repository").into();
            daemon.ask(&format!("add {specification}"));
        }
    }
    daemon.ask(&good.add("good"));
    let jobsets = daemon.until("jobsets", |jobsets| {
        jobsets.iter().all(|jobset| jobset["name"] == "good" || !jobset["error"].is_null())
    });
    daemon.settle();
    assert_eq!(daemon.build("one")["status"], "succeeded");
    for jobset in jobsets {
        assert!(!jobset.to_string().contains("secret"), "{jobset}");
    }
    assert!(!daemon.log().contains("secret"));
    daemon.wait_for_no_descendants();
}

#[test]
fn a_branch_that_is_not_there_is_said_and_found_when_it_comes() {
    let repository = Repository::with_jobs(&job("one", "true", ""));
    let mut specification = repository.specification("hello", &["./jobs"]);
    specification["channels"][0]["branch"] = "later".into();
    let mut daemon = Daemon::start(&[]);
    daemon.ask(&format!("add {specification}"));
    let jobset = daemon.until("jobset hello", |jobset| !jobset[0]["error"].is_null()).remove(0);
    assert!(jobset["error"].as_str().unwrap().contains("later"), "{jobset}");
    repository.git(&["branch", "later"]);
    daemon.ask("trigger hello");
    daemon.until("jobset hello", |jobset| jobset[0]["error"].is_null());
    daemon.settle();
    assert_eq!(daemon.build("one")["status"], "succeeded");
}

#[test]
fn forced_pushes_and_broken_mirrors_are_made_good() {
    let repository = Repository::with_jobs(&job("one", "true", ""));
    let mut daemon = Daemon::start(&[]);
    daemon.ask(&repository.add("hello"));
    daemon.settle();
    repository.set_jobs(&job("two", "true", ""));
    repository.git(&["commit", "--amend", "--quiet", "--message=other"]);
    daemon.ask("trigger hello");
    daemon.until("evaluations hello", |all| all.len() == 2);
    daemon.settle();
    // All objects of the mirror are gone.
    for mirror in std::fs::read_dir(daemon.state().join("cache/git")).unwrap() {
        let mirror = mirror.unwrap().path();
        if mirror.join("objects").exists() {
            std::fs::remove_dir_all(mirror.join("objects")).unwrap();
        }
    }
    repository.set_jobs(&job("three", "true", ""));
    daemon.ask("trigger hello");
    daemon.until("evaluations hello", |all| all.len() == 3);
    daemon.settle();
    assert_eq!(daemon.build("three")["status"], "succeeded");
}

#[test]
fn repositories_are_read_over_ssh_from_servers_that_are_known() {
    let sshd = Sshd::start();
    let repository = Repository::with_jobs(&job("one", "true", ""));
    let mut specification = repository.specification("hello", &["./jobs"]);
    let url = format!("ssh://root@127.0.0.1:{}{}", sshd.port(), repository.url());
    specification["channels"][0]["url"] = url.into();
    let add = format!("add {specification}");
    let home = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::prepare(&["--interval=86400"]);
    daemon.environment("HOME", home.path().to_str().unwrap());
    daemon.environment("SSH_AUTH_SOCK", "");
    daemon.restart();

    // A server that is not known is not believed; nobody is asked.
    daemon.ask(&add);
    let error = |jobsets: &[serde_json::Value]| jobsets[0]["error"].as_str().map(str::to_owned);
    let said = error(&daemon.until("jobset hello", |jobset| error(jobset).is_some())).unwrap();
    assert!(said.contains("known_hosts"), "{said}");
    // Known, but without a key that it lets in.
    sshd.home(home.path(), false);
    daemon.ask("trigger hello");
    daemon.until("jobset hello", |jobset| error(jobset).is_some_and(|now| now != said));
    sshd.home(home.path(), true);
    daemon.ask("trigger hello");
    daemon.until("evaluations hello", |all| all.len() == 1);
    daemon.settle();
    assert_eq!(daemon.build("one")["status"], "succeeded");

    // The same by an agent.
    let agent = Agent::start(&sshd.client_key());
    let home = tempfile::tempdir().unwrap();
    sshd.home(home.path(), false);
    let mut daemon = Daemon::prepare(&[]);
    daemon.environment("HOME", home.path().to_str().unwrap());
    daemon.environment("SSH_AUTH_SOCK", agent.socket().to_str().unwrap());
    daemon.restart();
    daemon.ask(&add);
    daemon.settle();
    assert_eq!(daemon.build("one")["status"], "succeeded");
}
