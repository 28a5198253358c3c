//! A farm of scripted workers, and the control socket.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::json;

use crate::support::sandbox::Sandbox;
use crate::support::server::{Server, wait_for};
use crate::support::worker::{Worker, derivation};
use crate::support::{now, until, within};

#[test]
fn a_build_goes_to_a_worker_and_its_end_comes_back() {
    let sandbox = Sandbox::new();
    let server = Server::start(&sandbox, &[]);
    let mut daemon = server.attach();
    let worker = Worker::join(server.port, "AbCd1234");
    let joined = wait_for(&mut daemon, "worker-joined");
    assert_eq!(joined["worker"]["name"], "AbCd1234");
    assert_eq!(joined["worker"]["address"], "127.0.0.1");
    assert_eq!(joined["worker"]["systems"], json!(["x86_64-linux", "i686-linux"]));
    worker.request_work();
    assert_eq!(wait_for(&mut daemon, "requested")["worker"], "AbCd1234");
    let drv = derivation("hello");
    let assign =
        format!("assign 7 1 AbCd1234 {drv} x86_64-linux priority=9 timeout=72000 max-silent=3600");
    daemon.ask(&assign).ok();
    assert_eq!(
        worker.hear(),
        format!(
            r#"(build (drv "{drv}") (priority 9) (timeout 72000) (max-silent 3600) (timestamp #f) (system "x86_64-linux"))"#
        )
    );
    worker.begin(&drv);
    let started = wait_for(&mut daemon, "started");
    let log = started["log"].as_str().unwrap().to_owned();
    assert_eq!(log, sandbox.state().join("cache/remote/7-1.gz").to_str().unwrap());
    assert_eq!(std::fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o660);
    worker.log(&drv, "all is well\n");
    let text = until("the log", || {
        let mut text = String::new();
        let file = std::fs::File::open(&log).unwrap();
        flate2::read::GzDecoder::new(file).read_to_string(&mut text).ok()?;
        Some(text)
    });
    assert_eq!(text, "all is well\n");
    worker.succeed(&drv);
    let reported = wait_for(&mut daemon, "reported");
    assert_eq!(reported["report"], json!({"outcome": "succeeded", "url": "http://127.0.0.1:5558"}));
    assert_eq!(server.ask("builds")[0]["phase"], "reported");
    daemon.ask("settle 7 1").ok();
    assert_eq!(server.ask("builds"), [] as [serde_json::Value; 0]);
    worker.request_work();
    wait_for(&mut daemon, "requested");
    let status = server.ask("status").remove(0);
    assert_eq!((&status["workers"], &status["requesting"]), (&json!(1), &json!(1)));
    assert!(server.stop().success());
    assert!(!sandbox.state().join("run/remote").exists());
}

#[test]
fn a_worker_that_is_killed_is_noticed_in_seconds() {
    let sandbox = Sandbox::new();
    let server = Server::start(&sandbox, &[]);
    let mut daemon = server.attach();
    let worker = Worker::join(server.port, "w");
    let drv = derivation("hello");
    worker.request_work();
    wait_for(&mut daemon, "requested");
    daemon.ask(&format!("assign 7 1 w {drv} x86_64-linux")).ok();
    worker.build();
    worker.begin(&drv);
    wait_for(&mut daemon, "started");
    drop(worker);
    let at = now();
    wait_for(&mut daemon, "worker-left");
    let lost = wait_for(&mut daemon, "lost");
    assert_eq!((&lost["build"], &lost["started"]), (&json!(7), &json!(true)));
    assert!((9..15).contains(&at.elapsed().as_secs()), "{:?}", at.elapsed());
}

#[test]
fn what_has_not_begun_is_lost_with_the_connection_at_once() {
    let sandbox = Sandbox::new();
    let server = Server::start(&sandbox, &[]);
    let mut daemon = server.attach();
    let worker = Worker::join(server.port, "w");
    worker.request_work();
    wait_for(&mut daemon, "requested");
    daemon.ask(&format!("assign 7 1 w {} x86_64-linux", derivation("hello"))).ok();
    worker.build();
    drop(worker);
    assert_eq!(wait_for(&mut daemon, "lost")["started"], false);
}

#[test]
fn a_break_of_the_network_costs_no_build() {
    let sandbox = Sandbox::new();
    let server = Server::start(&sandbox, &[]);
    let mut daemon = server.attach();
    let mut worker = Worker::join(server.port, "w");
    let drv = derivation("hello");
    worker.request_work();
    wait_for(&mut daemon, "requested");
    daemon.ask(&format!("assign 7 1 w {drv} x86_64-linux")).ok();
    worker.build();
    worker.begin(&drv);
    wait_for(&mut daemon, "started");
    worker.reconnect();
    worker.wait_for_probe();
    worker.ping();
    worker.succeed(&drv);
    worker.request_work();
    assert_eq!(wait_for(&mut daemon, "reported")["report"]["outcome"], "succeeded");
    wait_for(&mut daemon, "requested");
}

#[test]
fn a_server_that_was_killed_takes_up_where_it_was() {
    let sandbox = Sandbox::new();
    let server = Server::start(&sandbox, &[]);
    let mut daemon = server.attach();
    let busy = Worker::join(server.port, "busy");
    let done = Worker::join(server.port, "done");
    for (build, worker) in [(7, &busy), (8, &done)] {
        let drv = derivation(&worker.name);
        worker.request_work();
        wait_for(&mut daemon, "requested");
        daemon.ask(&format!("assign {build} 1 {} {drv} x86_64-linux", worker.name)).ok();
        worker.build();
        worker.begin(&drv);
        wait_for(&mut daemon, "started");
    }
    let ports = (server.port, server.log_port);
    server.kill();
    // Said while nobody hears it, and before anybody knows whose build that is.
    done.succeed(&derivation("done"));
    let server = Server::start_on(&sandbox, ports, &[]);
    until("the connections", || (server.ask("status")[0]["connections"] == 4).then_some(()));
    let mut daemon = server.attach();
    daemon.ask(&format!("adopt 8 1 done {}", derivation("done"))).ok();
    assert_eq!(wait_for(&mut daemon, "reported")["build"], 8);
    daemon.ask(&format!("adopt 7 1 busy {}", derivation("busy"))).ok();
    busy.ping();
    wait_for(&mut daemon, "worker-joined");
    busy.succeed(&derivation("busy"));
    assert_eq!(wait_for(&mut daemon, "reported")["build"], 7);
}

#[test]
fn one_daemon_is_attached_and_anybody_may_look() {
    let sandbox = Sandbox::new();
    let server = Server::start(&sandbox, &[]);
    let daemon = server.attach();
    let mut second = server.client();
    let refused = second.ask("attach");
    let own = std::process::id();
    let expected = format!("error conflict another daemon is attached (process {own})");
    assert_eq!(refused.last, expected);
    let refused = second.ask(&format!("assign 1 1 w {} x86_64-linux", derivation("hello")));
    assert_eq!(refused.error(), Some("conflict"));
    assert_eq!(second.ask("frob").error(), Some("unknown-command"));
    assert!(second.ask("help").ok().len() > 8);
    second.ask("subscribe").ok();
    wait_for(&mut second, "ready");
    drop(daemon);
    until("the end of the attachment", || {
        server.client().ask("status").one()["attached"].is_null().then_some(())
    });
    let _worker = Worker::join(server.port, "w");
    assert_eq!(wait_for(&mut second, "worker-joined")["worker"]["name"], "w");
    server.attach();
}

#[test]
fn clients_that_hang_cost_their_own_place() {
    let sandbox = Sandbox::new();
    let server = Server::start(&sandbox, &[]);
    let idle: Vec<_> = (0..64).map(|_| server.client()).collect();
    // Each is given up after ten seconds without a request.
    within(Duration::from_secs(30), "a place", || {
        let answer = server.client().try_ask("status").ok()?;
        (answer.last == "ok").then_some(())
    });
    drop(idle);
    let mut client = server.client();
    // The last one is nothing, and all before are answered all the same.
    client.send_bytes(b"version\nversion\n\n").unwrap();
    for _ in 0..2 {
        client.answer().unwrap().ok();
    }
    let mut long = server.client();
    long.send_bytes(&vec![b'x'; 100_000]).unwrap();
    long.send_bytes(b"\n").unwrap();
    assert_eq!(long.answer().unwrap().error(), Some("syntax"));
    long.send_bytes(b"\xff\n").unwrap();
    assert_eq!(long.answer().unwrap().last, "error syntax expected UTF-8");
    assert_eq!(long.ask("version").one()["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn a_second_server_is_refused() {
    let sandbox = Sandbox::new();
    let server = Server::start(&sandbox, &[]);
    let state = sandbox.state();
    let output = sandbox.gorget(&[
        "remote-server",
        "--no-publish",
        "--no-announce",
        "--backend-port=0",
        "--log-port=0",
        "--state-directory",
        state.to_str().unwrap(),
    ]);
    assert_eq!(output.code(), 1, "{output:?}");
    assert!(output.stderr.contains(&format!("(process {})", server.pid())), "{output:?}");
    // Its port, too, belongs to one.
    let other = Sandbox::new();
    let port = format!("--backend-port={}", server.port);
    let state = other.state();
    let state = state.to_str().unwrap();
    let arguments =
        ["remote-server", "--no-publish", "--no-announce", &port, "--state-directory", state];
    let output = other.gorget(&arguments);
    assert_eq!(output.code(), 1, "{output:?}");
    assert!(output.stderr.contains("--backend-port: cannot listen on port"), "{output:?}");
    let output =
        other.gorget(&["remote-server", "--guix=no-such-guix", "--state-directory", state]);
    assert_eq!(output.code(), 1, "{output:?}");
    assert!(output.stderr.contains("--no-publish"), "{output:?}");
}
