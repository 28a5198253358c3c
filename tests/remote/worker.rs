//! `remote-worker` against a server that plays Cuirass's byte for byte, with builds by a real nix-daemon.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use crate::support::cuirass::{Server, Worker};
use crate::support::nix::{Store, processes_of};
use crate::support::{now, until, within};

/// No limits.
const FREE: (u32, u32) = (0, 0);

fn report(end: &str, derivation: &str) -> String {
    format!("(build-{end} (drv \"{derivation}\") (url \"http://127.0.0.1:5558\") (log #f))")
}

fn fault(derivation: &str, fault: &str, why: &str) -> String {
    format!("(build-fault (drv \"{derivation}\") (fault \"{fault}\") (why \"{why}\"))")
}

fn request(name: &str) -> String {
    format!("(worker-request-work \"{name}\")")
}

/// A builder that tells the test that it runs, and waits for its word.
fn gate(place: &Path) -> String {
    let place = place.display();
    format!(
        "echo begun; touch {place}/begun; while ! test -e {place}/go; do sleep 0.05; done; echo done > $out"
    )
}

fn wait_for(file: &Path) {
    until(&file.display().to_string(), || file.exists().then_some(()));
}

#[test]
fn it_joins_builds_and_asks_again_as_cuirasss_worker_does() {
    let (store, server) = (Store::start(), Server::start());
    let worker = Worker::start(&store, server.port, &["--systems=x86_64-linux,i686-linux"]);
    let from = server.expect("(worker-request-info)").from;
    let port = server.log_port();
    server.say(
        &from,
        &format!("(server-info (worker-address \"10.1.2.3\") (log-port {port}) (publish-port #f))"),
    );
    let ready = server.hear().text;
    let name = ready.split('"').nth(1).unwrap().to_owned();
    assert!(name.len() == 8 && name.chars().all(|c| c.is_ascii_alphanumeric()), "{name}");
    let machine = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let machine = machine.trim();
    assert_eq!(
        ready,
        format!(
            "(worker-ready (worker (name \"{name}\") (address \"10.1.2.3\") (machine \"{machine}\") \
             (systems (\"x86_64-linux\" \"i686-linux\")) (last-seen 0)))"
        )
    );
    server.expect(&format!("(gorget-worker (version 1) (name \"{name}\"))"));
    server.expect(&request(&name));
    // Nothing to do: it asks again, after its time.
    let asked = now();
    server.say(&from, "(no-build)");
    server.expect(&request(&name));
    assert!(now() - asked >= Duration::from_secs(1));
    let derivation = store.derivation("good", "echo hello; echo hello > $out");
    server.assign(&from, &name, &derivation, FREE);
    let log = server.log();
    assert_eq!(log.header, format!("(log (version 0) (derivation \"{derivation}\"))"));
    assert!(log.rest().contains("hello\n"));
    let url = "http://10.1.2.3:5558";
    server.expect(&format!("(build-succeeded (drv \"{derivation}\") (url \"{url}\") (log #f))"));
    server.expect(&request(&name));
    // What was built is kept.
    let root = fs::read_dir(worker.gcroots()).unwrap().next().unwrap().unwrap().path();
    assert_eq!(fs::read_to_string(root).unwrap(), "hello\n");
    // What is not understood is passed over.
    server.say(&from, "(frobnicate)");
    server.say(&from, "#<unspecified>");
    server.say(&from, "(no-build)");
    server.expect(&request(&name));
}

#[test]
fn bad_ends_are_told_apart_for_those_who_understand() {
    let (store, server) = (Store::start(), Server::start());
    let _worker = Worker::start(&store, server.port, &[]);
    let (from, name) = server.join();
    let run = |derivation: &str, limits, known: Option<(&str, &str)>| {
        server.assign(&from, &name, derivation, limits);
        let log = server.log().rest();
        if let Some((word, why)) = known {
            server.expect(&fault(derivation, word, why));
        }
        server.expect(&report("failed", derivation));
        server.expect(&request(&name));
        log
    };
    let bad = store.derivation("bad", "echo about to fail; exit 7");
    let log = run(&bad, FREE, None);
    assert!(log.contains("about to fail\n") && log.ends_with("gorget: exit status 7\n"), "{log}");
    // From here on it is a server of Gorget.
    server.say(&from, "(gorget-server (version 1))");
    run(&bad, FREE, Some(("failed", "exit status 7")));
    let late = store.derivation("late", "while echo x; do sleep 0.2; done");
    run(&late, (1, 0), Some(("timed-out", "timed out after 1 s")));
    let silent = store.derivation("silent", "echo x; sleep 100");
    run(&silent, (0, 1), Some(("silent", "silent for 1 s")));
    let absent = format!(
        "{}/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-x.drv",
        store.directory.path().display()
    );
    server.assign(&from, &name, &absent, FREE);
    server.log().rest();
    let heard = server.hear().text;
    let start = format!(
        "(build-fault (drv \"{absent}\") (fault \"aborted\") (why \"cannot fetch {absent}: "
    );
    assert!(heard.starts_with(&start), "{heard}");
    server.expect(&report("failed", &absent));
}

#[test]
fn a_build_is_canceled_and_its_log_comes_while_it_runs() {
    let (store, server) = (Store::start(), Server::start());
    let place = tempfile::tempdir().unwrap();
    let _worker = Worker::start(&store, server.port, &[]);
    let (from, name) = server.join();
    server.say(&from, "(gorget-server (version 1))");
    let derivation = store.derivation("long", &gate(place.path()));
    server.assign(&from, &name, &derivation, FREE);
    let mut log = server.log();
    // It waits for us: this is read while it runs.
    log.until("begun\n");
    server.say(&from, &format!("(cancel-build (drv \"{derivation}x\"))"));
    server.say(&from, &format!("(cancel-build (drv \"{derivation}\"))"));
    server.expect(&fault(&derivation, "canceled", "canceled"));
    server.expect(&report("failed", &derivation));
    server.expect(&request(&name));
    assert!(log.rest().ends_with("gorget: given up\n"));
}

#[test]
fn without_its_store_daemon_it_asks_for_nothing_and_fails_nothing() {
    let (mut store, server) = (Store::start(), Server::start());
    let place = tempfile::tempdir().unwrap();
    let worker = Worker::start(&store, server.port, &[]);
    let (from, name) = server.join();
    server.say(&from, "(gorget-server (version 1))");
    let derivation = store.derivation("long", &gate(place.path()));
    server.assign(&from, &name, &derivation, FREE);
    let _log = server.log();
    wait_for(&place.path().join("begun"));
    store.kill();
    let heard = server.hear().text;
    let start = format!("(build-fault (drv \"{derivation}\") (fault \"aborted\") (why \"");
    assert!(heard.starts_with(&start), "{heard}");
    server.expect(&report("failed", &derivation));
    until("a line of the log", || {
        worker.log().contains("asks for no work: no store").then_some(())
    });
    assert!(server.is_quiet());
    store.serve();
    server.expect(&request(&name));
}

#[test]
fn what_is_built_while_the_server_is_away_is_reported_when_it_is_back() {
    let (store, mut server) = (Store::start(), Server::start());
    let place = tempfile::tempdir().unwrap();
    let worker = Worker::start(&store, server.port, &[]);
    let (from, name) = server.join();
    // While it waits for work.
    server = server.restart(|| {});
    assert_eq!(server.join().1, name);
    assert!(server.is_quiet(), "it asks once");
    server = server.restart(|| {});
    let (from_then, _) = server.join();
    drop(from);
    let derivation = store.derivation("long", &gate(place.path()));
    server.assign(&from_then, &name, &derivation, FREE);
    let log = server.log();
    wait_for(&place.path().join("begun"));
    // While it builds, and longer than that.
    server = server.restart(|| {
        fs::write(place.path().join("go"), "").unwrap();
        until("the end", || worker.log().contains(&format!("{name}: built")).then_some(()));
    });
    assert!(log.rest().contains("begun\n"));
    let (from, again) = server.greet();
    assert_eq!(again, name);
    server.expect(&report("succeeded", &derivation));
    server.expect(&request(&name));
    // A report that may have been lost is sent again, until an answer proves that it came.
    server.probe(&from);
    server.greet();
    server.expect(&report("succeeded", &derivation));
    server.expect(&request(&name));
    server.say(&from, "(no-build)");
    server.expect(&request(&name));
    server.probe(&from);
    server.join();
    // It was away while nothing was built, for some time.
    server = server.restart(|| crate::support::pause(Duration::from_secs(1)));
    server.join();
}

#[test]
fn it_drains_when_told_to_stop_and_gives_up_when_told_again() {
    let (store, server) = (Store::start(), Server::start());
    let place = tempfile::tempdir().unwrap();
    // One that builds nothing ends at once.
    let mut idle = Worker::start(&store, server.port, &[]);
    server.join();
    idle.signal("TERM");
    assert_eq!(idle.wait().code(), Some(0));
    // One that builds finishes and reports.
    let mut worker = Worker::start(&store, server.port, &[]);
    let (from, name) = server.join();
    let derivation = store.derivation("one", &gate(place.path()));
    server.assign(&from, &name, &derivation, FREE);
    let _log = server.log();
    wait_for(&place.path().join("begun"));
    worker.signal("TERM");
    until("the log's word", || worker.log().contains("stopping after").then_some(()));
    fs::write(place.path().join("go"), "").unwrap();
    server.expect(&report("succeeded", &derivation));
    assert_eq!(worker.wait().code(), Some(0));
    assert!(server.is_quiet(), "it asked for more");
    // Told again it gives up, and says so.
    fs::remove_file(place.path().join("go")).unwrap();
    fs::remove_file(place.path().join("begun")).unwrap();
    let mut worker = Worker::start(&store, server.port, &[]);
    let (from, name) = server.join();
    server.say(&from, "(gorget-server (version 1))");
    let derivation = store.derivation("two", &format!("true two; {}", gate(place.path())));
    server.assign(&from, &name, &derivation, FREE);
    let _log = server.log();
    wait_for(&place.path().join("begun"));
    worker.signal("TERM");
    crate::support::pause(Duration::from_millis(1100));
    worker.signal("TERM");
    server.expect(&fault(&derivation, "aborted", "the worker was stopped"));
    server.expect(&report("failed", &derivation));
    assert_eq!(worker.wait().code(), Some(0));
}

#[test]
fn two_loops_are_two_workers_that_build_at_once() {
    let (store, server) = (Store::start(), Server::start());
    let places = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let _worker = Worker::start(&store, server.port, &["-w", "2"]);
    let mut asked = Vec::new();
    let mut names = std::collections::BTreeSet::new();
    let info = format!(
        "(server-info (worker-address \"127.0.0.1\") (log-port {}) (publish-port #f))",
        server.log_port()
    );
    while asked.len() < 2 {
        let heard = server.hear();
        if heard.text == "(worker-request-info)" {
            server.say(&heard.from, &info);
        } else if heard.text.starts_with("(worker-request-work ") {
            names.insert(heard.text.split('"').nth(1).unwrap().to_owned());
            asked.push((heard.from, heard.text));
        }
    }
    assert_eq!(names.len(), 2);
    for ((from, request), place) in asked.iter().zip(&places) {
        let name = request.split('"').nth(1).unwrap();
        let derivation = store.derivation("both", &gate(place.path()));
        server.assign(from, name, &derivation, FREE);
    }
    let _logs = [server.log(), server.log()];
    for place in &places {
        wait_for(&place.path().join("begun"));
    }
    for place in &places {
        fs::write(place.path().join("go"), "").unwrap();
    }
    let ends = (0..4).map(|_| server.hear().text);
    assert_eq!(ends.filter(|text| text.starts_with("(build-succeeded ")).count(), 2);
}

#[test]
fn a_log_port_that_accepts_and_never_speaks_does_not_hang_the_build() {
    let (store, server) = (Store::start(), Server::start());
    let worker = Worker::start(&store, server.port, &[]);
    let (from, name) = server.join();
    let derivation = store.derivation("good", "echo hello > $out");
    server.assign(&from, &name, &derivation, FREE);
    let _silent = server.log_connection();
    let heard = within(Duration::from_secs(60), "the report", || Some(server.hear().text));
    assert_eq!(heard, report("succeeded", &derivation));
    assert!(worker.log().contains("cannot send the log of"));
}

#[test]
fn a_machine_without_room_or_rest_asks_for_nothing() {
    let (store, server) = (Store::start(), Server::start());
    for (option, why) in [
        ("--minimum-disk-space=1000000000", "less than "),
        ("--maximum-load=0.000001", "the load average is above"),
    ] {
        let mut worker = Worker::start(&store, server.port, &[option]);
        server.greet();
        until("a line of the log", || {
            worker.log().contains(&format!("asks for no work: {why}")).then_some(())
        });
        assert!(server.is_quiet());
        worker.signal("TERM");
        assert_eq!(worker.wait().code(), Some(0));
    }
}

#[test]
fn what_was_built_is_published_as_long_as_the_worker_lives() {
    let (store, server) = (Store::start(), Server::start());
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name).display().to_string();
    // Stands in for Guix: says what it was told, once, and ends; the next time it stays.
    let script = format!(
        "#!/bin/sh\ncase $2 in publish) ;; *) exit 9 ;; esac\n\
         cp /dev/stdin {key}\necho \"$@\" >{told}\n\
         test -e {again} && exec sleep 1000\ntouch {again}\necho no port >&2\nexit 3\n",
        key = at("key"),
        told = at("told"),
        again = at("again")
    );
    fs::write(at("guix"), script).unwrap();
    fs::set_permissions(at("guix"), fs::Permissions::from_mode(0o755)).unwrap();
    let options = |private: &str| {
        [
            format!("--guix={} -q", at("guix")),
            format!("--public-key={}", at("pub")),
            format!("--private-key={}", at(private)),
            "--publish-port=7777".to_owned(),
        ]
    };
    let start = |private: &str| {
        let options = options(private);
        let options: Vec<&str> = options.iter().map(|option| &**option).collect();
        Worker::publish(&store, server.port, &options)
    };
    fs::write(at("pub"), "(public-key)").unwrap();
    let mut worker = start("sec");
    assert_eq!(worker.wait().code(), Some(1));
    let log = worker.log();
    assert!(log.contains("cannot read the key") && log.contains("/sec"), "{log}");
    assert!(log.contains("--no-publish"), "{log}");
    fs::write(at("sec"), "(private-key)").unwrap();
    let mut worker = start("sec");
    server.join();
    until("guix publish, again", || {
        worker
            .log()
            .contains("guix publish ended with status 3; it said last: no port")
            .then_some(())
    });
    let children = until("the second one", || {
        let all = processes_of(worker.pid());
        let sleeps = |process: &String| {
            fs::read(format!("/proc/{process}/cmdline"))
                .is_ok_and(|line| line.starts_with(b"sleep"))
        };
        all.into_iter().find(sleeps)
    });
    assert_eq!(fs::read_to_string(at("key")).unwrap(), "(private-key)");
    let told = fs::read_to_string(at("told")).unwrap();
    let public = at("pub");
    assert_eq!(
        told.trim(),
        format!(
            "-q publish --port=7777 --compression=0 --negative-ttl=0s --public-key={public} --private-key=/dev/stdin"
        )
    );
    worker.signal("TERM");
    assert_eq!(worker.wait().code(), Some(0));
    assert!(!Path::new(&format!("/proc/{children}")).exists(), "it lives on");
    let mut worker = Worker::publish(&store, server.port, &["--guix=no-such-guix"]);
    assert_eq!(worker.wait().code(), Some(1));
    assert!(worker.log().contains("there is no \"no-such-guix\" here"), "{}", worker.log());
}
