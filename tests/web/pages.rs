//! Pages: each answers for the data of a real daemon, is well formed, holds nothing inline, and links to what is there.

use std::collections::{BTreeMap, VecDeque};

use super::access::token;
use crate::support::daemon::Daemon;
use crate::support::http::{Reply, Web};
use crate::support::jobs::{Repository, job};

/// Elements without an end.
const VOID: &[&str] = &["input", "meta", "link", "br", "hr", "img"];

/// Pages that a crawl visits at most: a page that makes ever new links is found out.
const MOST: usize = 1_000;

/// Jobs that succeed, fail, need others, and have names that must be encoded; other ones in each `version`.
fn jobs(version: u32) -> String {
    [
        job("compile", &format!("echo compiling {version}; test {version} != 2"), ""),
        job("tests", &format!("echo testing {version}"), "\"needs\":[\"compile\"]"),
        job("gtk+/de mo", "echo '<b>bold</b>'; echo x > file", "\"products\":[\"file\"]"),
        job("broken", &format!("echo never {version}; exit 3"), ""),
    ]
    .concat()
}

fn daemon() -> Daemon {
    let repository = Repository::with_jobs(&jobs(1));
    let mut daemon = Daemon::start(&["--web=127.0.0.1:0"]);
    daemon.ask(&repository.add("a+b"));
    daemon.settle();
    for version in [2, 3] {
        repository.set_jobs(&jobs(version));
        daemon.ask("trigger a+b");
        daemon.until("evaluations a+b", |all| {
            all.len() == version as usize && all[0]["status"] == "succeeded"
        });
        daemon.settle();
    }
    daemon
}

/// Checks that elements are closed in the order in which they were opened, and that attributes hold no code.
#[track_caller]
fn check(target: &str, html: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = html.strip_prefix("<!DOCTYPE html>").expect("a document type");
    while let Some(start) = rest.find('<') {
        let end = rest[start..].find('>').expect("an end of the tag") + start;
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "{target}: </{name}>");
            continue;
        }
        let (name, attributes) = tag.split_once(' ').unwrap_or((tag, ""));
        // Between quotes stand values.
        let names: String = attributes.split('"').step_by(2).collect();
        let inline = names.split_whitespace().any(|name| {
            name.trim_end_matches('=') == "style" || name.to_lowercase().starts_with("on")
        });
        assert!(name != "style" && !inline, "{target}: <{tag}>");
        assert!(name != "script" || names.contains("src="), "{target}: <{tag}>");
        if !VOID.contains(&name) {
            open.push(name);
        }
    }
    assert!(open.is_empty(), "{target}: {open:?} are open at the end");
    assert_eq!(html.matches("<h1").count(), 1, "{target}: one heading");
}

/// Where a page's links and pictures lead on this server, without fragments.
fn links(html: &str) -> Vec<String> {
    let mut found = Vec::new();
    for mark in [" href=\"", " src=\""] {
        for rest in html.split(mark).skip(1) {
            let link = rest.split('"').next().unwrap_or_default().replace("&amp;", "&");
            let link = link.split('#').next().unwrap_or_default();
            if link.starts_with('/') {
                found.push(link.to_owned());
            }
        }
    }
    found
}

fn crawl(get: impl Fn(&str) -> Reply, from: &[&str]) -> BTreeMap<String, u16> {
    let mut todo: VecDeque<String> = from.iter().map(|&target| target.to_owned()).collect();
    let mut seen = BTreeMap::new();
    while let Some(target) = todo.pop_front() {
        if seen.contains_key(&target) {
            continue;
        }
        assert!(seen.len() < MOST, "links have no end, such as {target}");
        let reply = get(&target);
        if reply.header("content-type").is_some_and(|kind| kind.starts_with("text/html")) {
            let html = reply.text();
            check(&target, &html);
            todo.extend(links(&html));
        }
        todo.extend(reply.header("location").map(str::to_owned));
        seen.insert(target, reply.status);
    }
    seen
}

/// What feeds and badges answer has tests of its own.
fn is_elsewhere(target: &str) -> bool {
    target.ends_with("/badge.svg") || target.starts_with("/events/rss")
}

#[test]
fn every_link_from_the_first_page_leads_somewhere() {
    let mut daemon = daemon();
    let web = Web::of(&daemon);
    let admin = token(&mut daemon, "admin", "admin", "");
    let header = format!("Bearer {admin}");
    for headers in [vec![], vec![("Authorization", header.as_str())]] {
        let seen = crawl(
            |target| web.send("GET", target, &headers, b""),
            &["/", "/login", "/search?query=compile", "/eval/latest?spec=a%2Bb", "/?show=all"],
        );
        let bad: Vec<_> = seen
            .iter()
            .filter(|(target, status)| !matches!(**status, 200 | 302) && !is_elsewhere(target))
            .collect();
        assert!(bad.is_empty(), "{bad:?}");
        for wanted in
            ["/queue", "/status", "/workers", "/metrics", "/eval/1", "/eval/3/compare?from=2"]
        {
            assert_eq!(seen.get(wanted), Some(&200), "{wanted} of {seen:#?}");
        }
        assert!(seen.keys().any(|target| target.starts_with("/jobset/a%2Bb/job/gtk%2B%2Fde%20mo")));
        assert_eq!(seen.contains_key("/admin/audit"), !headers.is_empty());
        assert_eq!(seen.contains_key("/specification/edit/a%2Bb"), !headers.is_empty());
    }
}

#[test]
fn an_evaluation_tells_what_failed_newly_and_why() {
    let daemon = daemon();
    let web = Web::of(&daemon);
    let html = web.get("/eval/2").text();
    let (_, news) = html.split_once("<h2>Newly failed</h2>").expect("what failed newly");
    let (news, _) = news.split_once("id=\"jobs\"").unwrap();
    assert!(news.contains(">compile</a>") && news.contains("compiling 2"), "{news}");
    let (_, fallen) = news.split_once("Failed because of it:").expect("what failed for want of it");
    assert!(fallen.contains(">tests</a>") && !fallen.contains(">compile</a>"), "{fallen}");
    assert!(!news.contains(">broken</a>"), "{news}");
    // The last tab is what succeeded.
    let html = web.get("/eval/2?status=succeeded").text();
    assert!(html.contains(">gtk+/de mo</a>") && !html.contains(">broken</a>"), "{html}");
    assert_eq!(web.get("/eval/99").status, 404);
    assert_eq!(web.get("/jobset/nothing").status, 404);
}

#[test]
fn a_build_that_failed_tells_how_its_log_ends() {
    let mut daemon = daemon();
    let web = Web::of(&daemon);
    let page = |job: &str, daemon: &mut Daemon| {
        let id = daemon.build(job)["id"].clone();
        (web.get(&format!("/build/{id}/details")).text(), id)
    };
    let (broken, id) = page("broken", &mut daemon);
    assert!(broken.contains("<pre>exit status 3</pre><pre>never 3</pre>"), "{broken}");
    assert!(broken.contains(&format!("href=\"/build/{id}/log#end\"")), "{broken}");
    assert!(!page("tests", &mut daemon).0.contains("<pre>"));
}

#[test]
fn whoever_waits_for_another_leads_there() {
    let repository = Repository::with_jobs(
        &(job("first", "sleep 1000", "") + &job("then", "true", "\"needs\":[\"first\"]")),
    );
    let mut daemon = Daemon::start(&["--web=127.0.0.1:0"]);
    daemon.ask(&repository.add("s"));
    daemon.until("builds status=started", |builds| builds.len() == 1);
    let web = Web::of(&daemon);
    let (first, then) = (daemon.build("first")["id"].clone(), daemon.build("then")["id"].clone());
    let link = format!("dependency <a href=\"/build/{first}/details\">{first}</a>");
    for target in ["/queue".to_owned(), format!("/build/{then}/details")] {
        let page = web.get(&target).text();
        assert!(page.contains(&link), "{target}: {page}");
    }
}

#[test]
fn pages_of_a_jobset_offer_its_news() {
    let mut daemon = daemon();
    let web = Web::of(&daemon);
    let id = daemon.build("broken")["id"].clone();
    for (target, feed) in [
        ("/".to_owned(), "/events/rss"),
        ("/queue".to_owned(), "/events/atom"),
        ("/jobset/a+b".to_owned(), "/jobset/a%2Bb/rss"),
        ("/eval/2".to_owned(), "/jobset/a%2Bb/rss"),
        ("/eval/2/dashboard".to_owned(), "/jobset/a%2Bb/atom"),
        (format!("/build/{id}/details"), "/jobset/a%2Bb/atom"),
        (format!("/build/{id}/log"), "/jobset/a%2Bb/rss"),
    ] {
        let html = web.get(&target).text();
        let kind = feed.rsplit('/').next().unwrap();
        let link = format!("<link rel=\"alternate\" type=\"application/{kind}+xml\"");
        let (_, rest) = html.split_once(&link).unwrap_or_else(|| panic!("{target}: {html}"));
        assert!(rest.split('>').next().unwrap().contains(&format!("href=\"{feed}\"")), "{target}");
        assert_eq!(web.get(feed).status, 200, "{feed}");
    }
}

#[test]
fn logs_are_shown_by_line_and_escaped() {
    let mut daemon = daemon();
    let web = Web::of(&daemon);
    let id = daemon.build("gtk+/de mo")["id"].clone();
    let html = web.get(&format!("/build/{id}/log")).text();
    assert!(html.contains("id=\"L1\"") && html.contains("&lt;b&gt;bold&lt;/b&gt;"), "{html}");
    assert_eq!(web.get("/build/99/log").status, 404);
}

#[test]
fn assets_are_kept_for_good() {
    let daemon = Daemon::start(&["--web=127.0.0.1:0"]);
    let web = Web::of(&daemon);
    let html = web.get("/").text();
    let assets: Vec<String> =
        links(&html).into_iter().filter(|link| link.starts_with("/assets/")).collect();
    assert_eq!(assets.len(), 3, "{assets:?}");
    for asset in assets {
        let reply = web.get(&asset);
        assert_eq!(reply.status, 200, "{asset}");
        assert!(reply.header("cache-control").unwrap().contains("immutable"), "{asset}");
    }
    assert_eq!(web.get("/assets/style.css").status, 404);
}
