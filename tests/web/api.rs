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
    // The page shows the same, to be copied.
    let page = web.get("/eval/1").text();
    assert!(page.contains(&text.replace('"', "&quot;")), "{page}");
    for missing in
        ["/eval/latest/channels.scm", "/eval/latest/channels.scm?spec=t", "/eval/9/channels.scm"]
    {
        assert_eq!(web.get(missing).status, 404, "{missing}");
    }
}

#[test]
fn what_pages_show_is_there_for_programs() {
    let (mut daemon, repository, web) = with_builds();
    let summary = web.json("/api/evaluation/1/summary");
    assert_eq!((&summary["progress"], &summary["jobs"]["failed"]), (&100.into(), &1.into()));
    assert_eq!(web.get("/api/evaluation/1/diff").status, 404);
    let mut script = job("good", "exit 4", "");
    script.push_str(&job("new", "true", ""));
    script.push_str(&job("after", "true", r#""needs":["good"]"#));
    repository.set_jobs(&script);
    daemon.ask("trigger s");
    crate::support::until("the second evaluation's builds to end", || {
        let ended = daemon.ask("evaluations").into_iter().find(|found| found["id"] == 2)?;
        (ended["status"] == "succeeded"
            && ended["jobs"]["pending"] == 0
            && ended["jobs"]["total"] == 3)
            .then_some(())
    });
    let diff = web.json("/api/evaluation/2/diff?from=previous");
    assert_eq!(web.json("/api/evaluation/2/diff?from=1"), diff);
    assert_eq!((&diff["evaluation"], &diff["from"]), (&2.into(), &1.into()));
    let jobs = |bucket: &str| -> Vec<String> {
        let jobs = diff["jobs"][bucket].as_array().unwrap().iter();
        let names = jobs.map(|job| job["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
        assert_eq!(diff["counts"][bucket], names.len());
        names
    };
    assert_eq!(jobs("newly-failed"), ["good"]);
    assert_eq!(jobs("added"), ["after", "new"]);
    assert_eq!(jobs("removed"), ["bad"]);
    assert_eq!(diff["channels"][0]["channel"], "main");
    for (target, status) in [
        ("/api/evaluation/2/diff?from=x", 400),
        ("/api/evaluation/2/diff?from=9", 404),
        ("/api/evaluation/9/summary", 404),
        ("/api/build/9999/dependents", 404),
        ("/api/jobsets/nosuch", 404),
    ] {
        assert_eq!(web.get(target).status, status, "{target}");
    }

    let build = |name: &str| web.json(&format!("/api/search?query=job:{name}&nr=1"))[0].clone();
    let (good, after) = (build("good"), build("after"));
    let ids = |target: String| web.json(&target)[0]["id"].clone();
    assert_eq!(ids(format!("/api/build/{}/dependencies", after["id"])), good["id"]);
    assert_eq!(ids(format!("/api/build/{}/dependents", good["id"])), after["id"]);
    let failure = web.json(&format!("/api/build/{}/first-failure", after["id"]));
    assert_eq!(failure["causes"][0]["id"], good["id"]);
    let failure = web.json(&format!("/api/build/{}/first-failure", good["id"]));
    assert_eq!(failure["since"]["id"], good["id"]);

    let jobset = web.json("/api/jobsets/s");
    assert_eq!((&jobset["name"], &jobset["last-evaluation"]["id"]), (&"s".into(), &2.into()));
    assert_eq!(jobset["last-evaluation"]["jobs"]["total"], 3);
    assert_eq!(web.get("/api/workers").text(), "[]");
    assert!(web.json("/api/metrics")["builds-per-day"].is_array());
}

#[test]
fn builds_that_wait_say_why() {
    let mut daemon = Daemon::start(&["--web=127.0.0.1:0"]);
    daemon.ask("pause builds");
    let repository = Repository::with_jobs(&job("held", "true", ""));
    daemon.ask(&repository.add("s"));
    crate::support::until("the build to be queued", || {
        (daemon.ask("queue").len() == 1).then_some(())
    });
    let web = Web::of(&daemon);
    let queue = web.json("/api/queue?nr=10");
    assert_eq!((&queue[0]["job"], &queue[0]["buildstatus"]), (&"held".into(), &(-2).into()));
    assert_eq!(queue[0]["waiting"], "paused");
}

#[test]
fn lists_in_the_order_of_ends_go_on() {
    let (_daemon, _repository, web) = with_builds();
    let whole = "/api/latestbuilds?nr=10&border-high-time=99999999999&border-high-id=1";
    let all = web.json(whole);
    let first = web.get(&whole.replace("nr=10", "nr=1"));
    let next = first.header("link").unwrap();
    let next = next.strip_prefix('<').unwrap().split('>').next().unwrap();
    assert!(!next.contains("before="), "{next}");
    assert_eq!(web.json(next)[0], all[1]);
}
