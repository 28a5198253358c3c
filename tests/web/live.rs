//! What happens, as it happens: events and growing logs.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

use serde_json::Value;

use crate::support::daemon::Daemon;
use crate::support::http::Web;
use crate::support::jobs::{Repository, job};
use crate::support::until;

/// An answer that goes on, read as it comes.
struct Stream(BufReader<TcpStream>);

/// A server-sent event.
#[derive(Debug)]
struct Event {
    name: String,
    id: Option<String>,
    data: Value,
}

impl Stream {
    fn open(web: Web, target: &str, headers: &[(&str, &str)]) -> Self {
        let mut stream = web.connect();
        let mut head = format!("GET {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", web.0);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut this = Self(BufReader::new(stream));
        let status = this.raw_line().unwrap();
        assert!(status.contains(" 200 "), "{target}: {status}");
        while this.raw_line().is_some_and(|line| !line.is_empty()) {}
        this
    }

    fn raw_line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        let length = self.0.read_until(b'\n', &mut line).unwrap();
        (length > 0).then(|| String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    /// The next chunk; `None` at the end.
    fn chunk(&mut self) -> Option<String> {
        let size = usize::from_str_radix(&self.raw_line()?, 16).unwrap();
        let mut chunk = vec![0; size + 2];
        std::io::Read::read_exact(&mut self.0, &mut chunk).unwrap();
        (size > 0).then(|| String::from_utf8_lossy(&chunk[..size]).into_owned())
    }

    /// Text until it holds `mark`.
    fn text(&mut self, mark: &str) -> String {
        let mut text = String::new();
        while !text.contains(mark) {
            text += &self.chunk().unwrap_or_else(|| panic!("the end, and no {mark:?} in {text:?}"));
        }
        text
    }
}

/// Server-sent events of a stream.
struct Events {
    stream: Stream,
    buffer: String,
}

impl Events {
    fn open(web: Web, target: &str, headers: &[(&str, &str)]) -> Self {
        Self { stream: Stream::open(web, target, headers), buffer: String::new() }
    }

    /// `None` at the end of the stream.
    fn next(&mut self) -> Option<Event> {
        loop {
            while let Some((block, rest)) = self.buffer.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.buffer = rest;
                let field = |name: &str| {
                    let found = block.lines().find_map(|line| line.strip_prefix(name));
                    found.map(str::to_owned)
                };
                if let Some(name) = field("event: ") {
                    let data = serde_json::from_str(&field("data: ").unwrap()).unwrap();
                    return Some(Event { name, id: field("id: "), data });
                }
            }
            self.buffer += &self.stream.chunk()?;
        }
    }

    /// The next of this name.
    fn wait_for(&mut self, name: &str) -> Event {
        loop {
            let event = self.next().unwrap_or_else(|| panic!("the end, and no {name}"));
            if event.name == name {
                return event;
            }
        }
    }
}

/// A job that writes a line, and another for each file `N` that appears next to the repository, until `end` does.
fn growing(repository: &Repository) -> String {
    let place = repository.path().join(".git").display().to_string();
    let command = format!(
        "printf '\\033[32mbegun\\033[0m <b>\\n'; n=1; while [ ! -e {place}/end ]; do \
         if [ -e {place}/$n ]; then echo line-$n; n=$((n + 1)); fi; sleep 0.02; done; echo ended"
    );
    job("slow", &command, "")
}

fn more(repository: &Repository, name: &str) {
    repository.write(&format!(".git/{name}"), "");
}

fn started() -> (Repository, Daemon, Web, i64) {
    let repository = Repository::new(0);
    repository.set_jobs(&growing(&repository));
    let mut daemon = Daemon::start(&["--web=127.0.0.1:0"]);
    daemon.ask(&repository.add("hello"));
    let builds = daemon.until("builds status=started", |builds| builds.len() == 1);
    let web = Web::of(&daemon);
    (repository, daemon, web, builds[0]["id"].as_i64().unwrap())
}

#[test]
fn a_growing_log_is_followed_as_text() {
    let (repository, _daemon, web, id) = started();
    let mut text = Stream::open(web, &format!("/build/{id}/log/raw?follow=1"), &[]);
    text.text("begun");
    more(&repository, "1");
    let rest = text.text("line-1\n");
    assert!(!rest.contains("begun"), "{rest}");
    let mut late = Stream::open(web, &format!("/build/{id}/log/raw?follow=1&from=19"), &[]);
    assert_eq!(late.text("line-1\n"), "line-1\n");
    more(&repository, "end");
    text.text("ended\n");
    assert_eq!(text.chunk(), None);
}

#[test]
fn a_growing_log_is_followed_by_events() {
    let (repository, _daemon, web, id) = started();
    let target = format!("/build/{id}/log/events");
    let mut events = Events::open(web, &target, &[]);
    let status = events.next().unwrap();
    assert_eq!((status.name.as_str(), &status.data["status"]), ("status", &"started".into()));
    let first = events.wait_for("log");
    assert_eq!(
        first.data["html"],
        "<span id=\"L1\"><a href=\"#L1\">1</a> <span class=\"ansi-fg-2\">begun</span> &lt;b&gt;</span>\n"
    );
    let place = first.id.unwrap();
    assert!(place.starts_with("19."), "{place}");
    more(&repository, "1");
    assert!(events.wait_for("log").data["html"].as_str().unwrap().contains("line-1"));
    // Whoever comes back goes on where it was.
    let mut again = Events::open(web, &target, &[("Last-Event-ID", &place)]);
    let line = "<span id=\"L2\"><a href=\"#L2\">2</a> line-1</span>\n";
    assert_eq!(again.wait_for("log").data["html"], line);
    more(&repository, "end");
    for events in [&mut events, &mut again] {
        assert!(events.wait_for("log").data["html"].as_str().unwrap().contains("ended"));
        events.wait_for("end");
        assert!(events.next().is_none());
    }
}

#[test]
fn a_page_goes_on_with_the_line_that_its_log_is_in() {
    let repository = Repository::new(0);
    let place = repository.path().join(".git").display().to_string();
    let wait = format!("while [ ! -e {place}/end ]; do sleep 0.02; done");
    repository.set_jobs(&job("slow", &format!("printf 'one\\nhalf a '; {wait}; echo line"), ""));
    let mut daemon = Daemon::start(&["--web=127.0.0.1:0"]);
    daemon.ask(&repository.add("hello"));
    daemon.until("builds status=started", |builds| builds.len() == 1);
    let (web, id) = (Web::of(&daemon), daemon.build("slow")["id"].as_i64().unwrap());
    let target = format!("/build/{id}/log");
    let page = until("half a line", || {
        Some(web.get(&target).text()).filter(|page| page.contains("half a "))
    });
    // One stream is enough: a browser has few connections.
    assert!(page.contains("<span id=\"L2\">") && !page.contains("data-events"), "{page}");
    let (_, from) = page.split_once("data-from=\"").unwrap();
    let from = from.split('"').next().unwrap();
    let mut events = Events::open(web, &format!("{target}/events?from={from}"), &[]);
    more(&repository, "end");
    let line = "<span id=\"L2\"><a href=\"#L2\">2</a> half a line</span>\n";
    assert_eq!(events.wait_for("log").data["html"], line);
    events.wait_for("end");
}

#[test]
fn a_log_of_nothing_but_lines_is_told_in_pieces() {
    const LINES: usize = 300_000;
    let noise = format!("head -c {LINES} /dev/zero | tr '\\0' '\\n'");
    let repository = Repository::with_jobs(&job("empty", &noise, ""));
    let mut daemon = Daemon::start(&["--web=127.0.0.1:0"]);
    daemon.ask(&repository.add("hello"));
    daemon.settle();
    let (web, id) = (Web::of(&daemon), daemon.build("empty")["id"].as_i64().unwrap());
    let page = web.get(&format!("/build/{id}/log")).text();
    assert!(page.len() < 1 << 20, "a page of {} KiB", page.len() >> 10);
    assert!(page.contains(&format!("<span id=\"L{LINES}\">")));
    let mut events = Events::open(web, &format!("/build/{id}/log/events"), &[]);
    let (mut told, mut last) = (0, String::new());
    while let Some(event) = events.next() {
        let Some(html) = event.data["html"].as_str() else { continue };
        assert!(html.len() < 100 * 1024, "an event of {} KiB", html.len() >> 10);
        told += html.matches("<span id=").count();
        last = event.id.unwrap();
    }
    assert_eq!((told, last), (LINES, format!("{LINES}.1.{}", LINES + 1)));
}

#[test]
fn a_log_that_waits_begins_when_its_build_does() {
    let (repository, mut daemon, web, id) = started();
    let other = Repository::with_jobs(&job("other", "echo at last", ""));
    daemon.ask("pause builds");
    daemon.ask(&other.add("other"));
    let builds = daemon.until("builds status=scheduled", |builds| builds.len() == 1);
    let waiting = builds[0]["id"].as_i64().unwrap();
    assert_ne!(waiting, id);
    let mut events = Events::open(web, &format!("/build/{waiting}/log/events"), &[]);
    assert_eq!(events.next().unwrap().data["status"], "scheduled");
    daemon.ask("resume builds");
    assert!(events.wait_for("log").data["html"].as_str().unwrap().contains("at last"));
    events.wait_for("end");
    more(&repository, "end");
    daemon.settle();
}

#[test]
fn a_log_that_has_no_file_yet_is_a_page_that_waits_for_it() {
    let (repository, mut daemon, web, id) = started();
    let file = daemon.build("slow")["log"].as_str().unwrap().to_owned();
    until("the log's file", || std::fs::remove_file(&file).ok());
    let page = web.get(&format!("/build/{id}/log"));
    assert_eq!(page.status, 200, "{}", page.text());
    let follows = format!("data-log=\"/build/{id}/log/events\" data-from=\"0.1.1\"");
    assert!(page.text().contains(&follows), "{}", page.text());
    more(&repository, "end");
    daemon.settle();
    // Nothing will come any more.
    assert_eq!(web.get(&format!("/build/{id}/log")).status, 404);
}

#[test]
fn what_happens_is_told_with_the_state_first() {
    let (repository, mut daemon, web, id) = started();
    let mut all = Events::open(web, "/api/events", &[]);
    let status = all.next().unwrap();
    assert_eq!((status.name.as_str(), &status.data["builds"]["running"]), ("status", &1.into()));
    assert_eq!(status.data["up"], true);
    let mut mine = Events::open(web, &format!("/api/events?build={id}"), &[]);
    assert_eq!(mine.next().unwrap().data["build"]["status"], "started");
    let mut others = Events::open(web, "/api/events?jobset=other&build=999", &[]);
    others.next().unwrap();
    more(&repository, "end");
    for events in [&mut all, &mut mine] {
        let ended = events.wait_for("build-ended");
        assert_eq!(
            (&ended.data["build"], &ended.data["status"]),
            (&id.into(), &"succeeded".into())
        );
        assert_eq!(ended.id.unwrap(), ended.data["id"].to_string());
    }
    daemon.settle();
    // Whoever was away hears what it missed.
    let last = status.id.unwrap();
    let mut again = Events::open(web, "/api/events", &[("Last-Event-ID", &last)]);
    assert_eq!(again.next().unwrap().name, "status");
    again.wait_for("build-ended");
    // What nobody keeps any more, or what never was, is told as lost.
    let mut lost = Events::open(web, "/api/events?from=999999", &[]);
    assert_eq!(lost.next().unwrap().name, "status");
    assert_eq!(lost.next().unwrap().name, "overflow");
    for bad in ["/api/events?from=x", "/api/events?build=x", "/api/events?jobset=.x"] {
        assert_eq!(web.get(bad).status, 400, "{bad}");
    }
    daemon.ask("deactivate hello");
    assert_eq!(all.wait_for("jobset-changed").data["jobset"], "hello");
}

#[test]
fn nothing_is_missed_between_a_page_and_its_events() {
    let (repository, mut daemon, web, id) = started();
    more(&repository, "end");
    daemon.settle();
    for page in ["/".to_owned(), "/jobset/hello".to_owned(), format!("/build/{id}/details")] {
        let html = web.get(&page).text();
        let (_, rest) = html.split_once("data-events=\"").unwrap();
        let query = rest.split('"').next().unwrap().replace("&amp;", "&");
        daemon.ask(&format!("restart-build {id}"));
        daemon.settle();
        let mut events = Events::open(web, &format!("/api/events{query}"), &[]);
        assert_eq!(events.next().unwrap().name, "status");
        events.wait_for("build-ended");
    }
}

/// The web interface as a process of its own.
struct Alone(std::process::Child);

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts it beside a daemon, with its log in that directory.
#[expect(clippy::disallowed_methods, reason = "a process under test")]
fn alone(daemon: &Daemon, directory: &std::path::Path) -> (Alone, Web) {
    let log = directory.join("web.log");
    let child = std::process::Command::new(env!("CARGO_BIN_EXE_gorget"))
        .args(["web", "--port=0"])
        .arg(format!("--state-directory={}", daemon.state().display()))
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    let alone = Alone(child);
    let web = until("the address of the web interface", || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let (_, rest) = text.rsplit_once("listening on http://")?;
        rest.split('/').next()?.parse().ok().map(Web)
    });
    (alone, web)
}

/// What pages say where the daemon is away.
const AWAY: &str = "The daemon does not run";

#[test]
#[expect(clippy::disallowed_methods, reason = "how long readers wait is what is tested")]
fn a_daemon_that_hangs_keeps_readers_waiting_once() {
    let (repository, mut daemon, _, id) = started();
    let other = Repository::with_jobs(&job("other", "true", ""));
    daemon.ask("pause builds");
    daemon.ask(&other.add("other"));
    daemon.until("builds status=scheduled", |builds| builds.len() == 1);
    let waiting = daemon.build("other")["id"].clone();
    let (_alone, web) = alone(&daemon, &repository.path().join(".git"));
    daemon.signal("STOP");
    let began = std::time::Instant::now();
    for _ in 0..3 {
        for target in ["/queue".to_owned(), format!("/build/{waiting}/details")] {
            assert_eq!(web.get(&target).status, 200, "{target}");
        }
        assert_eq!(web.json("/api/queue?nr=9")[0]["id"], id);
    }
    let took = began.elapsed();
    daemon.signal("CONT");
    assert!(took < std::time::Duration::from_secs(8), "{took:?}");
    more(&repository, "end");
    daemon.ask("resume builds");
    daemon.settle();
}

#[test]
fn a_daemon_that_dies_is_told_and_its_logs_go_on() {
    let (repository, mut daemon, _, id) = started();
    let (_alone, web) = alone(&daemon, &repository.path().join(".git"));
    let mut events = Events::open(web, "/api/events", &[]);
    if events.next().unwrap().data["up"] == false {
        assert_eq!(events.wait_for("daemon").data["up"], true);
    }
    let mut text = Events::open(web, &format!("/build/{id}/log/events"), &[]);
    text.wait_for("log");
    assert!(!web.get("/").text().contains(AWAY));
    daemon.kill();
    assert_eq!(events.wait_for("daemon").data["up"], false);
    for page in ["/".to_owned(), format!("/build/{id}/details")] {
        assert!(web.get(&page).text().contains(AWAY), "{page}");
    }
    assert_eq!(web.get(&format!("/build/{id}/log/raw")).status, 200);
    daemon.restart();
    assert_eq!(events.wait_for("daemon").data["up"], true);
    assert!(!web.get("/").text().contains(AWAY));
    // The build is tried again, and its log written anew.
    text.wait_for("begin");
    assert!(text.wait_for("log").data["html"].as_str().unwrap().contains("id=\"L1\""));
    more(&repository, "end");
    text.wait_for("end");
    events.wait_for("build-ended");
    daemon.settle();
}

#[test]
fn many_readers_of_a_large_log_take_little_memory() {
    const READERS: usize = 100;
    let noise =
        "i=0; while [ $i -lt 8 ]; do head -c 786432 /dev/urandom | base64; i=$((i + 1)); done";
    let repository = Repository::with_jobs(&job("large", noise, ""));
    let mut daemon = Daemon::start(&["--web=127.0.0.1:0"]);
    daemon.ask(&repository.add("hello"));
    daemon.settle();
    let id = daemon.build("large")["id"].as_i64().unwrap();
    let web = Web::of(&daemon);
    let target = format!("/build/{id}/log/raw?from=0");
    let length = web.get(&target).body.len();
    assert!(length > 8 << 20);
    let before = daemon.memory("VmRSS:");
    let mut readers: Vec<_> = (0..READERS).map(|_| Stream::open(web, &target, &[])).collect();
    // All have begun, and none has read more than what fits on the way.
    let mut first = 0;
    for reader in &mut readers {
        first = reader.chunk().unwrap().len();
    }
    let held = daemon.memory("VmRSS:").saturating_sub(before);
    assert!(held < READERS as u64 * (1 << 20), "{READERS} readers hold {} KiB", held >> 10);
    let mut last = readers.pop().unwrap();
    let mut total = first;
    while let Some(chunk) = last.chunk() {
        total += chunk.len();
    }
    assert_eq!(total, length);
}
