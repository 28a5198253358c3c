//! What machines read besides the API: health, badges, news, numbers, the description of the API.

use std::collections::BTreeMap;

use roxmltree::Document;

use super::change::Alone;
use crate::support::daemon::Daemon;
use crate::support::http::{Reply, Web};
use crate::support::jobs::{Repository, job};
use crate::support::until;

/// Waits until the jobset's newest evaluation is this one, and all its builds have ended.
fn ended(daemon: &mut Daemon, evaluation: i64) {
    until("the builds to end", || {
        let all = daemon.ask("evaluations limit=1");
        let last = all.first()?;
        (last["id"] == evaluation
            && ["succeeded", "failed"].iter().any(|word| last["status"] == *word)
            && last["jobs"]["pending"] == 0)
            .then_some(())
    });
}

/// A daemon whose jobset `s` has an evaluation in which `good` succeeds and `bad` fails, then one that mends `bad` and
/// breaks `good`, then one that fails.
fn with_news() -> (Daemon, Repository, Web) {
    let first = job("good", "true", "") + &job("bad", "exit 3", "");
    let repository = Repository::with_jobs(&first);
    let mut daemon = Daemon::start(&["--web=127.0.0.1:0"]);
    daemon.ask(&repository.add("s"));
    ended(&mut daemon, 1);
    repository.set_jobs(&(job("good", "exit 4 # <&>", "") + &job("bad", "true", "")));
    daemon.ask("trigger s");
    ended(&mut daemon, 2);
    repository.set_jobs("echo '<oops>' >&2; exit 5");
    daemon.ask("trigger s");
    ended(&mut daemon, 3);
    let web = Web::of(&daemon);
    (daemon, repository, web)
}

#[track_caller]
fn good(reply: &Reply, kind: &str) -> String {
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(reply.header("content-type"), Some(kind));
    reply.text()
}

#[test]
fn news_are_what_broke_what_was_fixed_and_what_failed() {
    let (daemon, _repository, web) = with_news();
    let rss = web.get("/events/rss?specification=s");
    let text = good(&rss, "application/rss+xml;charset=utf-8");
    let document = Document::parse(&text).unwrap();
    let of = |name: &'static str| -> Vec<String> {
        let found = document.descendants().filter(move |node| {
            node.has_tag_name(name) && node.parent().is_some_and(|node| node.has_tag_name("item"))
        });
        found.map(|node| node.text().unwrap().to_owned()).collect()
    };
    let titles = of("title");
    assert!(titles.iter().any(|title| title == "Evaluation 3 of s failed."), "{titles:?}");
    for (job, word) in [("good", "broken"), ("bad", "fixed")] {
        let begins = format!("Build {job} (");
        let told = titles.iter().find(|title| title.starts_with(&begins)).unwrap();
        assert!(told.ends_with(&format!(" on s is {word}.")), "{told}");
    }
    let base = format!("http://{}/", web.0);
    for link in of("link") {
        let path = link.strip_prefix(&base).unwrap_or_else(|| panic!("{link} is not below {base}"));
        assert!(path.starts_with("build/") || path.starts_with("eval/"), "{link}");
    }
    assert_eq!(of("guid").len(), titles.len());
    assert_eq!(rss.header("last-modified"), of("pubDate").first().map(String::as_str));
    assert_eq!(web.get("/jobset/s/rss").body, rss.body);
    // All jobsets: the same items, and the same bytes each time.
    let all = web.get("/events/rss");
    assert_eq!(
        Document::parse(&all.text())
            .unwrap()
            .descendants()
            .filter(|n| n.has_tag_name("item"))
            .count(),
        titles.len()
    );
    assert_eq!(web.get("/events/rss").body, all.body);

    let atom = web.get("/events/atom?specification=s");
    let text = good(&atom, "application/atom+xml;charset=utf-8");
    let document = Document::parse(&text).unwrap();
    let space = "http://www.w3.org/2005/Atom";
    let entries = document.descendants().filter(|node| node.has_tag_name((space, "entry")));
    assert_eq!(entries.count(), titles.len());
    assert_eq!(web.get("/jobset/s/atom").body, atom.body);

    for missing in ["/events/rss?specification=t", "/jobset/t/atom", "/jobset/%3C/rss"] {
        assert_eq!(web.get(missing).status, 404, "{missing}");
    }
    // Whoever names another host is not believed what is no host.
    let odd = web.send("GET", "/events/rss", &[("Host", "a\"><b>")], b"");
    assert!(odd.status == 400 || Document::parse(&odd.text()).is_ok());
    drop(daemon);
}

#[test]
fn badges_are_pictures_whatever_is_asked() {
    let (_daemon, _repository, web) = with_news();
    let badge = |target: &str| -> String {
        let reply = web.get(target);
        let text = good(&reply, "image/svg+xml;charset=utf-8");
        assert_eq!(reply.header("cache-control"), Some("no-cache"));
        assert!(text.len() <= 1024, "{target}: {} bytes", text.len());
        let document = Document::parse(&text).unwrap_or_else(|e| panic!("{target}: {e}"));
        let shown = document.descendants().filter(|node| node.has_tag_name("text"));
        let shown: Vec<&str> = shown.map(|node| node.text().unwrap()).collect();
        shown.join(" ")
    };
    for (target, told) in [
        ("/jobset/s/badge.svg", "50%"),
        ("/jobset/s/badge.svg?type=0", "50%"),
        ("/jobset/s/badge.svg?type=abc", "50%"),
        ("/jobset/s/badge.svg?type=1", "s 50%"),
        ("/jobset/s/badge.svg?type=7", "s 50%"),
        ("/jobset/s/badge.svg?job=bad", "succeeded"),
        ("/jobset/s/badge.svg?job=good&type=1", "good failed"),
        ("/jobset/s/badge.svg?job=%3Cb%3E&type=1", "<b> no such job"),
        ("/jobset/nosuch/badge.svg", "error"),
        ("/jobset/%3C%26/badge.svg?type=1", "<& error"),
    ] {
        assert_eq!(badge(target), told, "{target}");
    }
}

#[test]
fn a_jobset_without_jobs_has_a_badge() {
    let repository = Repository::with_jobs("true");
    let mut daemon = Daemon::start(&["--web=127.0.0.1:0"]);
    daemon.ask(&repository.add("s"));
    ended(&mut daemon, 1);
    let reply = Web::of(&daemon).get("/jobset/s/badge.svg");
    let text = good(&reply, "image/svg+xml;charset=utf-8");
    assert!(Document::parse(&text).is_ok() && text.contains("no jobs"), "{text}");
}

#[test]
fn health_and_what_crawlers_leave_alone() {
    let daemon = Daemon::start(&["--web=127.0.0.1:0"]);
    let web = Web::of(&daemon);
    let reply = web.get("/healthz");
    let text = good(&reply, "application/json;charset=utf-8");
    assert_eq!(text, r#"{"status":"ok","database":true,"daemon":true}"#);
    let robots = good(&web.get("/robots.txt"), "text/plain;charset=utf-8");
    for path in ["/search", "/build/*/log", "/eval/*/compare", "/*?"] {
        assert!(robots.contains(&format!("Disallow: {path}\n")), "{robots}");
    }
}

/// What Prometheus reads: the value of each sample, of metrics that are described before.
pub(crate) fn samples(text: &str) -> BTreeMap<String, f64> {
    let (mut known, mut found) = (String::new(), BTreeMap::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            known = rest.split_once(' ').unwrap().0.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            assert!([format!("{known} gauge"), format!("{known} counter")].contains(&rest.into()));
        } else {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert_eq!(name.split('{').next().unwrap(), known, "{line}");
            assert!(found.insert(name.to_owned(), value.parse().unwrap()).is_none(), "{line}");
        }
    }
    found
}

#[test]
fn numbers_are_for_prometheus_with_and_without_a_daemon() {
    let (mut daemon, repository, web) = with_news();
    let reply = web.get("/prometheus");
    let found = samples(&good(&reply, "text/plain;version=0.0.4;charset=utf-8"));
    for (name, value) in [
        ("gorget_daemon_up", 1.0),
        ("gorget_evaluations_started_total", 3.0),
        ("gorget_builds_registered_total", 4.0),
        ("gorget_builds_pending{status=\"scheduled\"}", 0.0),
        ("gorget_pool_used{pool=\"builds\"}", 0.0),
        ("gorget_paused{what=\"builds\"}", 0.0),
        ("gorget_jobset_active{jobset=\"s\"}", 1.0),
        ("gorget_jobset_error{jobset=\"s\"}", 1.0),
        ("gorget_jobset_evaluation_status{jobset=\"s\"}", 1.0),
        ("gorget_jobset_jobs{jobset=\"s\",status=\"succeeded\"}", 1.0),
        ("gorget_jobset_jobs{jobset=\"s\",status=\"failed\"}", 1.0),
    ] {
        assert_eq!(found.get(name), Some(&value), "{name}: {found:#?}");
    }
    for name in ["size_bytes", "transactions_total", "requests_total", "transaction_seconds_total"]
    {
        assert!(found[&format!("gorget_database_{name}")] > 0.0, "{name}: {found:#?}");
    }
    // What waits, by reason.
    daemon.ask("pause builds");
    repository.set_jobs(&(job("good", "exit 0", "") + &job("bad", "exit 6", "")));
    daemon.ask("trigger s");
    daemon.until("queue", |queue| queue.len() == 2);
    let found = samples(&web.get("/prometheus").text());
    assert_eq!(found.get("gorget_queue_builds{reason=\"paused\"}"), Some(&2.0), "{found:#?}");
    assert_eq!(found.get("gorget_builds_pending{status=\"scheduled\"}"), Some(&2.0));
    // The process serves both; so another one serves the web here.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let alone = Alone::start(&daemon, port);
    let web = Web(([127, 0, 0, 1], port).into());
    assert_eq!(web.get("/healthz").status, 200);
    daemon.stop();
    let reply = web.get("/healthz");
    let told = r#"{"status":"unavailable","database":true,"daemon":false}"#;
    assert_eq!((reply.status, reply.text().as_str()), (503, told));
    let found = samples(&web.get("/prometheus").text());
    assert_eq!(found.get("gorget_daemon_up"), Some(&0.0));
    assert_eq!(found.get("gorget_builds_pending{status=\"scheduled\"}"), Some(&2.0));
    assert!(!found.keys().any(|name| name.starts_with("gorget_queue_builds")));
    drop(alone);
}

#[test]
fn the_api_describes_itself() {
    let daemon = Daemon::start(&["--web=127.0.0.1:0"]);
    let web = Web::of(&daemon);
    let reply = web.get("/api/openapi.json");
    good(&reply, "application/json;charset=utf-8");
    assert_eq!(web.json("/api/openapi.json")["openapi"], "3.1.0");
}
