//! The HTTP API, as Cuirass's clients use it.

use crate::support::daemon::Daemon;
use crate::support::http::Web;
use crate::support::jobs::{Repository, job};

const KEYS: [&str; 17] = [
    "id",
    "evaluation",
    "jobset",
    "job",
    "timestamp",
    "starttime",
    "stoptime",
    "derivation",
    "buildoutputs",
    "system",
    "nixname",
    "buildstatus",
    "weather",
    "busy",
    "priority",
    "finished",
    "buildproducts",
];

/// A daemon whose jobset `s` has an ended evaluation: `good` succeeded, `bad` failed.
pub(super) fn with_builds() -> (Daemon, Repository, Web) {
    let mut script = job("good", "true", "");
    script.push_str(&job("bad", "exit 3", ""));
    let repository = Repository::with_jobs(&script);
    let mut daemon = Daemon::start(&["--web=127.0.0.1:0"]);
    daemon.ask(&repository.add("s"));
    crate::support::until("both builds to end", || {
        let ended = daemon.ask("evaluations").pop()?;
        (ended["status"] == "succeeded"
            && ended["jobs"]["pending"] == 0
            && ended["jobs"]["total"] == 2)
            .then_some(())
    });
    let web = Web::of(&daemon);
    (daemon, repository, web)
}

#[test]
fn shapes_are_those_that_clients_know() {
    let (_daemon, _repository, web) = with_builds();
    let list = web.get("/jobsets");
    assert_eq!(list.header("content-type"), Some("application/json;charset=utf-8"));
    for other in ["/jobsets/", "//specifications", "/jobsets/a/b"] {
        assert_eq!(web.get(other).body, list.body, "{other}");
    }
    let one = web.get("/build/1");
    assert!(one.text().starts_with(r#"{"id":1,"evaluation":1,"jobset":"s","#), "{}", one.text());
    let build = web.json("/build/1");
    let keys: Vec<&str> = build.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys[..17], KEYS);
    assert_eq!((&build["busy"], &build["finished"]), (&0.into(), &1.into()));
    for missing in ["/build/42", "/build/42)", "/build/42xx", "/api/evaluation?id=999999"] {
        let reply = web.get(missing);
        assert_eq!(reply.status, 404, "{missing}");
        assert!(reply.text().starts_with(r#"{"error":""#), "{missing}: {}", reply.text());
    }
    let evaluation = web.json("/api/evaluations?nr=1");
    assert_eq!(web.json("/api/evaluation?id=1"), evaluation[0]);
    assert_eq!(evaluation[0]["checkouts"][0]["channel"], "main");
    let jobs = web.json("/api/jobs?evaluation=1");
    assert_eq!((&jobs[0]["name"], &jobs[1]["name"]), (&"bad".into(), &"good".into()));
    assert_eq!(web.get("/api/jobs?evaluation=9").text(), "[]");
    let history = web.json("/api/jobs/history?spec=s&names=good,b+c&nr=10");
    assert_eq!(history[0]["jobs"].as_array().unwrap().len(), 1);
    assert_eq!(history[0]["jobs"][0]["status"], 0);
}

#[test]
fn lists_of_builds_are_filtered_and_bounded() {
    let (_daemon, _repository, web) = with_builds();
    for (target, told) in [
        ("/api/latestbuilds", "Parameter not defined"),
        ("/api/latestbuilds?nr&jobset=x", "Parameter not defined"),
        ("/api/latestbuilds?nr=1001", "Maximum limit exceeded"),
        ("/api/queue", "Parameter not defined"),
        ("/api/evaluations", "Parameter not defined!"),
        ("/api/jobs/history?spec=s&names=a&nr=101", "Maximum limit exceeded"),
    ] {
        let reply = web.get(target);
        assert_eq!((reply.status, reply.text()), (400, format!(r#"{{"error":"{told}"}}"#)));
    }
    assert_eq!(web.get("/api/latestbuilds?nr=1&jobset=nosuch").text(), "[]");
    assert_eq!(web.get("/api/queue?nr=100").text(), "[]");
    let all = web.json("/api/latestbuilds?nr=1000");
    assert_eq!(all.as_array().unwrap().len(), 2);
    let good = web.json("/api/latestbuilds?nr=10&status=0");
    assert_eq!((good.as_array().unwrap().len(), &good[0]["job"]), (1, &"good".into()));
    let bad = web.json("/api/latestbuilds?nr=10&job=bad&jobset=s");
    assert_eq!(bad[0]["reason"], "exit status 3");
    let first = web.get("/api/latestbuilds?nr=1");
    let next = first.header("link").unwrap();
    let next = next.strip_prefix('<').unwrap().split('>').next().unwrap();
    assert_eq!(web.json(next)[0], all[1]);
}

#[test]
fn channels_are_those_of_the_evaluation() {
    let (_daemon, repository, web) = with_builds();
    let latest = web.get("/eval/latest/channels.scm?spec=s");
    assert_eq!(latest.body, web.get("/eval/1/channels.scm").body);
    let commit = repository.git(&["rev-parse", "HEAD"]);
    let text = latest.text();
    assert!(text.starts_with("(list (channel"), "{text}");
    assert!(text.contains(&format!("(commit \"{commit}\"")), "{text}");
    assert!(text.contains("(branch \"main\")"), "{text}");
    for missing in
        ["/eval/latest/channels.scm", "/eval/latest/channels.scm?spec=t", "/eval/9/channels.scm"]
    {
        assert_eq!(web.get(missing).status, 404, "{missing}");
    }
}
