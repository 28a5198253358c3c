//! What Cuirass's clients and people rely on, asked for as they do.

use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::http::{Reply, Web};
use crate::support::jobs::{Repository, job, system};
use crate::support::until;

/// A daemon whose jobset `s` has two channels of which only `main` changed between evaluations 1 and 2, and whose
/// third evaluation failed.
struct World {
    daemon: Daemon,
    web: Web,
    main: Repository,
    _extra: Repository,
}

fn script(version: u32) -> String {
    let frob = format!("echo frob {version} | tee frob.tar.gz");
    job("frob", &frob, "\"products\":[\"frob.tar.gz\"]") + &job("b+c", "true", "")
}

impl World {
    fn new() -> Self {
        let (main, extra) = (Repository::with_jobs(&script(1)), Repository::new(1));
        let mut specification = main.specification("s", &["./jobs"]);
        let other = json!({ "name": "extra", "url": extra.url(), "branch": "main" });
        specification["channels"].as_array_mut().unwrap().push(other);
        let mut daemon = Daemon::start(&["--web=127.0.0.1:0"]);
        daemon.ask(&format!("add {specification}"));
        let web = Web::of(&daemon);
        let mut world = Self { daemon, web, main, _extra: extra };
        world.evaluated(1, "succeeded");
        world.evaluate(&script(2), 2, "succeeded");
        world.evaluate("exit 5", 3, "failed");
        world
    }

    fn evaluate(&mut self, script: &str, id: i64, status: &str) {
        self.main.set_jobs(script);
        self.daemon.ask("trigger s");
        self.evaluated(id, status);
    }

    fn evaluated(&mut self, id: i64, status: &str) {
        self.daemon.until("evaluations s limit=1", |all| {
            all.first().is_some_and(|last| {
                last["id"] == id && last["status"] == status && last["jobs"]["pending"] == 0
            })
        });
    }

    fn books(&self) -> rusqlite::Connection {
        let books = rusqlite::Connection::open(self.daemon.database()).unwrap();
        books.busy_timeout(std::time::Duration::from_secs(30)).unwrap();
        books
    }

    fn build(&self, job: &str) -> Value {
        self.web.json(&format!("/api/latestbuilds?nr=1&jobset=s&job={job}"))[0].clone()
    }
}

fn location(reply: &Reply) -> (u16, &str) {
    (reply.status, reply.header("location").unwrap_or_default())
}

#[test]
fn what_is_not_there_is_not_found_and_nonsense_no_error() {
    let world = World::new();
    for missing in [
        "/build/42",
        "/build/42)",
        "/build/42/log/raw",
        "/build/42xx/log/raw",
        "/build/42/details",
        "/build/42xx/details",
        "/machine/nobody",
        "/jobset/nosuch",
        "/eval/99",
        "/specification/edit/nosuch",
        "/eval/latest",
        "/eval/latest?spec=nosuch",
    ] {
        assert_eq!(world.web.get(missing).status, 404, "{missing}");
    }
    for odd in ["/search", "/search?query=", "/search?query=spec:a:b", "/search?query=%25%00%FF"] {
        let reply = world.web.get(odd);
        assert_eq!(reply.status, 200, "{odd}");
        assert!(reply.header("content-type").unwrap().starts_with("text/html"), "{odd}");
    }
}

#[test]
fn evaluations_tell_of_all_channels_and_histories_of_what_changed() {
    let world = World::new();
    let channels = |checkouts: &Value| -> Vec<String> {
        let all = checkouts.as_array().unwrap().iter();
        all.map(|one| one["channel"].as_str().unwrap().to_owned()).collect()
    };
    let newest = world.web.json("/api/evaluations?nr=1&spec=s");
    assert_eq!(newest[0]["id"], 3);
    assert_eq!(channels(&newest[0]["checkouts"]), ["main", "extra"]);
    let history = world.web.json("/api/jobs/history?spec=s&names=frob,b+c&nr=10");
    let ids: Vec<&Value> =
        history.as_array().unwrap().iter().map(|entry| &entry["evaluation"]).collect();
    assert_eq!(ids, [&json!(2), &json!(1)], "only those that succeeded");
    assert_eq!(channels(&history[0]["checkouts"]), ["main"]);
    assert_eq!(channels(&history[1]["checkouts"]), ["main", "extra"]);
    let names = history[0]["jobs"].as_array().unwrap().iter().map(|job| &job["name"]);
    assert_eq!(names.collect::<Vec<_>>(), [&json!("frob"), &json!("b+c")]);
    let web = world.web;
    assert_eq!(location(&web.get("/eval/latest?spec=s")), (302, "/eval/2"));
    let dashboard = format!("/eval/2/dashboard?system={}", system());
    let asked = web.get(&format!("/eval/latest/dashboard?spec=s&system={}", system()));
    assert_eq!(location(&asked), (302, dashboard.as_str()));
}

#[test]
fn the_evaluation_before_is_the_last_that_succeeded() {
    let mut world = World::new();
    world.evaluate(&script(4), 4, "succeeded");
    for target in ["/api/evaluation/4/diff", "/api/evaluation/4/diff?from=previous"] {
        assert_eq!(world.web.json(target)["from"], 2, "{target}");
    }
    let page = world.web.get("/eval/4/compare?from=previous").text();
    assert!(page.contains(" against <a href=\"/eval/2\">"), "{page}");
    assert_eq!(world.web.get("/api/evaluation/1/diff").status, 404);
}

#[test]
fn what_waits_has_the_time_it_was_made() {
    let mut world = World::new();
    world.daemon.ask("pause builds");
    world.main.set_jobs(&job("held", "true", ""));
    world.daemon.ask("trigger s");
    until("a build to wait", || (world.daemon.ask("queue").len() == 1).then_some(()));
    let queue = world.web.json("/api/queue?nr=100");
    assert_eq!((queue.as_array().unwrap().len(), &queue[0]["buildstatus"]), (1, &json!(-2)));
    let known = world.daemon.build("held");
    assert_eq!(queue[0]["timestamp"], known["timestamp"]);
    for zero in ["starttime", "stoptime", "busy", "finished"] {
        assert_eq!(queue[0][zero], 0, "{zero}");
    }
    assert_eq!(queue[0]["weather"], -1);
}

#[test]
fn the_newest_product_of_a_type_is_where_latest_leads() {
    let world = World::new();
    let id = world.build("frob")["id"].as_i64().unwrap();
    let books = world.books();
    let changed = books
        .execute("UPDATE products SET type = 'archive' WHERE path LIKE '%frob.tar.gz'", [])
        .unwrap();
    assert_eq!(changed, 2, "one of each evaluation");
    let target =
        format!("/search/latest/archive?query=spec:s+status:success+system:{}+frob", system());
    let product: i64 = books
        .query_row("SELECT id FROM products WHERE build = ?1", [id], |row| row.get(0))
        .unwrap();
    let there = format!("/download/{product}");
    assert_eq!(location(&world.web.get(&target)), (302, there.as_str()));
    let file = world.web.get(&there);
    assert_eq!((file.status, file.text().as_str()), (200, "frob 2\n"));
    let named = "attachment; filename=\"frob.tar.gz\"; filename*=UTF-8''frob.tar.gz";
    assert_eq!(file.header("content-disposition"), Some(named));
    let page = world.web.get(&format!("/build/{id}/details")).text();
    assert!(page.contains(&format!("href=\"{there}\"")), "{page}");
}

#[test]
fn an_output_is_told_though_its_build_is_gone() {
    let world = World::new();
    let books = world.books();
    books.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
    let path = "/gnu/store/0c000000000000000000000000000000-gone-1.0";
    books
        .execute("INSERT INTO outputs (build, name, path) VALUES (9999, 'out', ?1)", [path])
        .unwrap();
    let name = path.rsplit('/').next().unwrap();
    let told = world.web.json(&format!("/output/{name}"));
    assert_eq!((&told["name"], &told["build"]), (&json!("out"), &json!(false)));
    let reply = world.web.get("/output/nothing");
    let error = r#"{"error":"Output with ID nothing doesn't exist."}"#;
    assert_eq!((reply.status, reply.text().as_str()), (404, error));
}

#[test]
fn a_head_has_what_a_get_has() {
    let world = World::new();
    let build = world.build("frob")["id"].clone();
    let product: i64 =
        world.books().query_row("SELECT max(id) FROM products", [], |row| row.get(0)).unwrap();
    let targets = [
        "/",
        "/jobset/s",
        "/jobset/s/job/frob",
        "/eval/latest?spec=s",
        "/eval/2",
        "/eval/2/log",
        "/eval/2/log/raw",
        "/eval/2/compare",
        "/eval/2/dashboard",
        "/eval/2/channels.scm",
        "/eval/latest/channels.scm?spec=s",
        "/eval/latest/dashboard?spec=s",
        "/queue",
        "/status",
        "/workers",
        "/machine/local",
        "/search",
        "/search?query=frob",
        "/search/latest?query=frob",
        "/metrics",
        "/specification/add",
        "/specification/edit/s",
        "/login",
        "/admin/audit",
        "/admin/pause",
        "/jobsets",
        "/specifications",
        "/api/evaluation?id=2",
        "/api/evaluations?nr=9",
        "/api/jobs?evaluation=2",
        "/api/latestbuilds?nr=9",
        "/api/jobs/history?spec=s&names=frob&nr=9",
        "/api/queue?nr=9",
        "/api/evaluation/2/diff",
        "/api/evaluation/2/summary",
        "/api/jobsets/s",
        "/api/workers",
        "/api/metrics",
        "/api/search?query=frob&nr=9",
        "/api/openapi.json",
        "/healthz",
        "/robots.txt",
        "/prometheus",
        "/jobset/s/badge.svg",
        "/jobset/s/rss",
        "/jobset/s/atom",
        "/events/rss",
        "/events/atom",
        "/build/x",
        "/nothing",
        "/output/x",
        "/dashboard/x",
    ]
    .map(str::to_owned);
    let of_build = ["", "/details", "/log", "/log/raw"].map(|end| format!("/build/{build}{end}"));
    let relations = ["dependencies", "dependents", "first-failure"]
        .map(|word| format!("/api/build/{build}/{word}"));
    let download = [format!("/download/{product}")];
    for target in targets.iter().chain(&of_build).chain(&relations).chain(&download) {
        let (get, head) = (world.web.get(target), world.web.send("HEAD", target, &[], b""));
        assert_eq!((head.status, head.body.len()), (get.status, 0), "{target}");
        // These change from one moment to the next, as pages tell how long ago something was; how a body is framed is
        // told where there is one.
        let fleeting = ["date", "x-request-id", "etag", "content-length", "transfer-encoding"];
        let headers = |reply: &Reply| -> Vec<(String, String)> {
            let all =
                reply.headers.iter().map(|(name, value)| (name.to_lowercase(), value.clone()));
            all.filter(|(name, _)| !fleeting.contains(&name.as_str())).collect()
        };
        assert_eq!(headers(&head), headers(&get), "{target}");
        assert_eq!(head.header("etag").is_some(), get.header("etag").is_some(), "{target}");
    }
}

#[test]
fn many_jobs_come_whole_or_by_the_page_and_few_news_of_them() {
    const JOBS: usize = 2_345;
    let system = system();
    let lines = format!(
        "for n in $(seq {JOBS}); do echo '{{\"job\":\"j'$n'\",\"system\":\"{system}\",\"error\":\"none\"}}'; done"
    );
    let repository = Repository::with_jobs(&lines);
    let mut daemon = Daemon::start(&["--web=127.0.0.1:0"]);
    daemon.ask(&repository.add("s"));
    daemon
        .until("evaluations s", |all| all.first().is_some_and(|one| one["status"] == "succeeded"));
    let web = Web::of(&daemon);
    let all = web.json("/api/jobs?evaluation=1");
    let all = all.as_array().unwrap();
    let names: Vec<&str> = all.iter().map(|job| job["name"].as_str().unwrap()).collect();
    assert!(names.len() == JOBS && names.is_sorted(), "{} jobs", names.len());
    let (mut paged, mut next) = (Vec::new(), Some("/api/jobs?evaluation=1&nr=1000".to_owned()));
    while let Some(target) = next {
        let reply = web.get(&target);
        let piece: Vec<Value> = serde_json::from_slice(&reply.body).unwrap();
        assert!(piece.len() <= 1000);
        paged.extend(piece);
        let link = reply.header("link").map(|link| link.split(['<', '>']).nth(1).unwrap());
        next = link.map(str::to_owned);
    }
    assert_eq!(&paged, all);
    assert_eq!(web.json(&format!("/api/jobs?evaluation=1&system={system}")).as_array(), Some(all));
    assert_eq!(web.get("/api/jobs?evaluation=1&nr=1001").status, 400);
    let diff = web.json("/api/evaluation/1/diff?from=1&nr=5");
    assert_eq!(diff["counts"]["still-failing"], JOBS);
    assert_eq!(diff["jobs"]["still-failing"].as_array().unwrap().len(), 5);
    let books = rusqlite::Connection::open(daemon.database()).unwrap();
    books.busy_timeout(std::time::Duration::from_secs(30)).unwrap();
    books.execute("UPDATE builds SET weather = 1", []).unwrap();
    for (feed, item) in [("rss", "<item>"), ("atom", "<entry>")] {
        let text = web.get(&format!("/jobset/s/{feed}")).text();
        assert_eq!(text.matches(item).count(), 100, "{feed}");
    }
}

/// Bytes that a browser gets.
fn weight(web: Web, target: &str) -> usize {
    let reply = web.send("GET", target, &[("Accept-Encoding", "gzip")], b"");
    assert_eq!(reply.status, 200, "{target}");
    reply.body.len()
}

#[test]
fn pages_are_light() {
    let mut world = World::new();
    for version in 4..=9 {
        world.evaluate(&script(version), version.into(), "succeeded");
    }
    // As many triggers are refused.
    world.daemon.ask("retry-evaluation 9");
    world.evaluated(10, "succeeded");
    let html = world.web.get("/eval/10").text();
    let assets = html.split('"').filter(|part| part.starts_with("/assets/"));
    let assets: usize = assets.map(|target| weight(world.web, target)).sum();
    assert!(assets < 30 * 1024, "{assets} bytes of assets");
    let build = world.build("frob")["id"].clone();
    for target in [
        "/".to_owned(),
        "/jobset/s".to_owned(),
        "/eval/10".to_owned(),
        format!("/build/{build}/details"),
        format!("/build/{build}/log"),
        "/metrics".to_owned(),
    ] {
        let whole = assets + weight(world.web, &target);
        assert!(whole <= 60 * 1024, "{target}: {whole} bytes");
    }
}
