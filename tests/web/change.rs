//! Changes by forms and by programs, and what a GET of the same path does: nothing.

use serde_json::{Value, json};

use super::access::{audit, bearer, token};
use crate::support::daemon::Daemon;
use crate::support::http::{Reply, Web};
use crate::support::jobs::{Repository, job, system};

const WEB: &str = "--web=127.0.0.1:0";

/// A client with a token.
struct Known {
    web: Web,
    token: String,
}

impl Known {
    fn send(&self, method: &str, target: &str, body: &str) -> Reply {
        let (name, value) = bearer(&self.token);
        self.web.send(method, target, &[(name, &value)], body.as_bytes())
    }

    #[track_caller]
    fn post(&self, target: &str, body: &str, status: u16) -> Reply {
        let reply = self.send("POST", target, body);
        assert_eq!(reply.status, status, "{target}: {}", reply.text());
        reply
    }
}

fn start(role: &str) -> (Daemon, Known, Repository) {
    let repository =
        Repository::with_jobs(&format!("{}\n{}", job("good", "true", ""), job("bad", "false", "")));
    let mut daemon = Daemon::start(&[WEB]);
    daemon.ask(&repository.add("hello"));
    daemon.settle();
    let token = token(&mut daemon, "me", role, "");
    let web = Web::of(&daemon);
    (daemon, Known { web, token }, repository)
}

/// Waits until a build has ended so many times; all builds that have until then, in their order.
fn ended(daemon: &mut Daemon, build: i64, times: usize) -> Vec<i64> {
    let mut events = daemon.events();
    let mut all = Vec::new();
    while all.iter().filter(|ended| **ended == build).count() < times {
        all.push(events.wait_for("build-ended").0["build"].as_i64().unwrap());
    }
    all
}

fn encode(fields: &[(&str, &str)]) -> String {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"-._".contains(&c);
    let encode = |text: &str| -> String {
        text.bytes()
            .map(|c| if plain(c) { char::from(c).to_string() } else { format!("%{c:02X}") })
            .collect()
    };
    let pairs: Vec<_> =
        fields.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
    pairs.join("&")
}

fn books(daemon: &Daemon) -> rusqlite::Connection {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    rusqlite::Connection::open_with_flags(daemon.database(), flags).unwrap()
}

/// A specification as it is kept, secrets included.
pub(super) fn kept(daemon: &Daemon, name: &str) -> Value {
    let text: String = books(daemon)
        .query_row("SELECT specification FROM jobsets WHERE name = ?1", [name], |row| row.get(0))
        .unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Everything in the tables that a request could change.
fn dump(daemon: &Daemon) -> Vec<String> {
    let books = books(daemon);
    let mut all = Vec::new();
    for table in
        ["jobsets", "evaluations", "builds", "jobs", "dashboards", "tokens", "audit", "settings"]
    {
        let mut statement = books.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let columns = statement.column_count();
        let mut rows = statement.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let values: Vec<_> =
                (0..columns).map(|n| format!("{:?}", row.get_ref(n).unwrap())).collect();
            all.push(format!("{table}: {values:?}"));
        }
    }
    all
}

#[test]
fn builds_and_evaluations_are_changed_by_programs() {
    let (mut daemon, me, _repository) = start("operator");
    let id = |build: &Value| build["id"].as_i64().unwrap();
    let (good, bad) = (id(&daemon.build("good")), id(&daemon.build("bad")));
    let reply = me.post(&format!("/api/builds/{bad}/restart"), "", 200);
    assert_eq!(reply.text(), format!(r#"{{"build":{bad}}}"#));
    ended(&mut daemon, bad, 2);
    let reply = me.post("/api/evaluations/1/restart-failed", "", 200);
    assert_eq!(reply.text(), r#"{"evaluation":1}"#);
    let all = ended(&mut daemon, bad, 3);
    assert_eq!(all.iter().filter(|ended| **ended == good).count(), 1, "{all:?}");
    me.post("/api/evaluations/1/restart", "", 200);
    ended(&mut daemon, good, 2);
    daemon.settle();
    me.post("/api/evaluations/1/retry", "", 200);
    daemon.until("evaluations hello", |all| all.len() == 2);
    daemon.settle();
    // What is over cannot be canceled, and what is not there cannot be anything.
    me.post("/api/evaluations/1/cancel", "", 409);
    me.post(&format!("/api/builds/{good}/cancel"), "", 409);
    let missing = me.post("/api/builds/999/restart", "", 404);
    assert_eq!(missing.text(), r#"{"error":"There is no build 999."}"#);
    me.post("/api/builds/x/restart", "", 404);
    me.post("/api/evaluations/999/cancel", "", 404);
    me.post("/api/jobsets/nobody/trigger", "", 404);
    // One that waits.
    daemon.ask("pause builds");
    me.post(&format!("/api/builds/{good}/restart"), "", 200);
    me.post(&format!("/api/builds/{good}/prioritize?priority=7"), "", 200);
    assert_eq!(daemon.build("good")["priority"], 7);
    me.post(&format!("/api/builds/{good}/prioritize"), r#"{"priority":3}"#, 200);
    assert_eq!(daemon.build("good")["priority"], 3);
    for body in ["", "priority=100", "priority=-1", "priority=soon"] {
        me.post(&format!("/api/builds/{good}/prioritize"), body, 422);
    }
    me.post(&format!("/api/builds/{good}/cancel"), "", 200);
    assert_eq!(daemon.build("good")["status"], "canceled");
}

#[test]
fn forms_do_the_same_and_lead_to_what_they_did() {
    let (mut daemon, me, _repository) = start("admin");
    let bad = daemon.build("bad")["id"].as_i64().unwrap();
    let location = |reply: &Reply| reply.header("location").unwrap().to_owned();
    let reply = me.post(&format!("/admin/build/{bad}/restart"), "", 303);
    assert_eq!(location(&reply), format!("/build/{bad}/details"));
    let reply = me.post("/admin/jobset/hello/trigger", "", 303);
    assert_eq!(location(&reply), "/jobset/hello");
    let reply = me.post("/admin/evaluation/1/restart", "", 303);
    assert_eq!(location(&reply), "/eval/1");
    let reply = me.post("/admin/pause", "what=builds", 303);
    assert_eq!(location(&reply), "/status");
    let paused = || {
        books(&daemon).query_row(
            "SELECT count(*) FROM settings WHERE name LIKE 'paused%'",
            [],
            |row| row.get(0),
        )
    };
    assert_eq!(paused(), Ok(1));
    me.post("/admin/resume", "", 303);
    me.post("/admin/pause", "what=everything", 422);
    me.post("/admin/specifications/deactivate/hello", "", 303);
    assert_eq!(daemon.ask("jobset hello")[0]["active"], json!(false));
    me.post("/admin/specifications/activate/hello", "", 303);
    assert_eq!(daemon.ask("jobset hello")[0]["active"], json!(true));
    daemon.settle();
    let reply = me.post("/admin/specifications/delete/hello", "", 303);
    assert_eq!(location(&reply), "/");
    assert!(daemon.ask("jobsets").is_empty());
    let audit = audit(&daemon);
    for command in ["deactivate hello", "delete hello", "restart-evaluation 1 all", "pause builds"]
    {
        let line = audit.iter().find(|(_, what, _)| what == command);
        let (who, _, outcome) = line.unwrap_or_else(|| panic!("{command} is not in {audit:?}"));
        assert!(who.ends_with("for token me from 127.0.0.1") && outcome == "ok", "{who} {outcome}");
    }
}

#[test]
fn a_get_of_what_changes_asks_and_changes_nothing() {
    let (mut daemon, me, _repository) = start("admin");
    let bad = daemon.build("bad")["id"].as_i64().unwrap();
    let paths = [
        "/admin/specifications/activate/hello".to_owned(),
        "/admin/specifications/deactivate/hello".to_owned(),
        "/admin/specifications/delete/hello".to_owned(),
        "/admin/jobset/hello/trigger".to_owned(),
        "/admin/evaluation/1/cancel".to_owned(),
        "/admin/evaluation/1/restart".to_owned(),
        "/admin/evaluation/1/restart-failed".to_owned(),
        "/admin/evaluation/1/retry".to_owned(),
        format!("/admin/build/{bad}/restart"),
        format!("/admin/build/{bad}/cancel"),
        format!("/admin/build/{bad}/prioritize"),
        "/admin/pause".to_owned(),
        "/admin/resume".to_owned(),
    ];
    // The token's use is noted once, now.
    me.send("GET", "/admin/pause", "");
    let before = dump(&daemon);
    for path in &paths {
        let asked = me.send("GET", path, "");
        assert_eq!(asked.status, 200, "{path}");
        let form = format!("<form method=\"post\" action=\"{path}\">");
        assert!(asked.text().contains(&form), "{path}: {}", asked.text());
        let stranger = me.web.get(path);
        assert_eq!(stranger.status, 200, "{path}");
        assert!(!stranger.text().contains("<form method=\"post\""), "{path}");
        assert!(stranger.text().contains("/login?next=%2Fadmin"), "{path}");
    }
    for path in ["/admin/specification/add", "/admin/specification/edit", "/login", "/logout"] {
        assert_ne!(me.send("GET", path, "").status, 303, "{path}");
    }
    for path in
        ["/admin/build/999/restart", "/admin/evaluation/x/cancel", "/admin/jobset/nobody/trigger"]
    {
        assert_eq!(me.send("GET", path, "").status, 404, "{path}");
    }
    assert_eq!(dump(&daemon), before);
}

#[test]
fn a_form_adds_and_edits_a_jobset_and_loses_nothing() {
    let (mut daemon, me, repository) = start("editor");
    let system = system();
    let url = repository.url();
    let base = [
        ("name", "new"),
        ("evaluator", "command"),
        ("command", "./jobs --x 'a b'"),
        ("channel-name", "new"),
        ("channel-url", url.as_str()),
        ("channel-branch", "main"),
        ("period", "3600"),
        ("priority", "4"),
        (system.as_str(), "on"),
        ("active", "no"),
    ];
    let reply = me.post("/admin/specification/add", &encode(&base), 303);
    assert_eq!(reply.header("location"), Some("/jobset/new"));
    let new = kept(&daemon, "new");
    assert_eq!(new["command"], json!(["./jobs", "--x", "a b"]));
    assert_eq!((&new["period"], &new["priority"]), (&json!(3600), &json!(4)));
    assert_eq!(daemon.ask("jobset new")[0]["active"], json!(false));
    let again = me.post("/admin/specification/add", &encode(&base), 422);
    assert!(again.text().contains("a jobset of that name already"), "{}", again.text());
    // What is wrong is told, and what was typed is kept.
    let mut wrong = base.to_vec();
    wrong[0].1 = "second";
    wrong[7].1 = "10";
    wrong[2].1 = "./jobs <&>";
    let reply = me.post("/admin/specification/add", &encode(&wrong), 422);
    assert!(reply.text().contains("priority") && reply.text().contains("from 0 to 9"));
    assert!(reply.text().contains("./jobs &lt;&amp;&gt;"), "{}", reply.text());
    assert_eq!(daemon.outcome("jobset second"), "error not-found there is no jobset second");
    // With things that Cuirass's form does not know.
    let mut full = new.clone();
    let id = "0123456789012345678901234567890123456789";
    full["channels"][0]["introduction"] = json!({ "commit": id, "signer": id });
    full["channels"][0]["url"] = json!("https://me:hush@example.org/x.git");
    full["notifications"] =
        json!([{ "type": "webhook", "url": "https://hook/x?key=hush", "secret": "hush" }]);
    full["build-outputs"] =
        json!([{ "job": "x", "type": "archive", "output": "out", "path": "a" }]);
    daemon.ask(&format!("add {full}"));
    let edit = [
        ("name", "new"),
        ("build", "all"),
        ("channel-name", "new"),
        ("channel-url", "https://example.org/x.git"),
        ("channel-branch", "next"),
        ("period", "60"),
        ("priority", "9"),
        (system.as_str(), "on"),
    ];
    me.post("/admin/specification/edit", &encode(&edit), 303);
    let mut expected = full.clone();
    expected["channels"][0]["branch"] = json!("next");
    (expected["period"], expected["priority"]) = (json!(60), json!(9));
    assert_eq!(kept(&daemon, "new"), expected);
    let mut activate = edit.to_vec();
    activate.push(("active", "yes"));
    me.post("/admin/specification/edit", &encode(&activate), 303);
    assert_eq!(daemon.ask("jobset new")[0]["active"], json!(true));
    me.post("/admin/specification/edit", "name=nobody&build=all", 404);
    assert!(!daemon.log().contains("hush"), "the log holds a secret");
}

#[test]
fn a_form_takes_the_whole_specification_as_json() {
    let (mut daemon, me, repository) = start("editor");
    let mut whole = repository.specification("new", &["./jobs"]);
    whole["channels"][0]["url"] = json!("https://me:hush@example.org/x.git");
    whole["notifications"] =
        json!([{ "type": "webhook", "url": "https://hook/x?key=hush", "secret": "hush" }]);
    whole["active"] = json!(false);
    let reply = me.post("/admin/specification/add", &encode(&[("json", &whole.to_string())]), 303);
    assert_eq!(reply.header("location"), Some("/jobset/new"));
    let before = kept(&daemon, "new");
    assert_eq!(before["notifications"], whole["notifications"]);
    // What the page shows, sent back, is what it was.
    let page = me.send("GET", "/specification/edit/new", "").text();
    assert!(!page.contains("hush"), "{page}");
    let (_, shown) = page.split_once("<textarea name=\"json\"").unwrap();
    let shown = shown.split_once('>').unwrap().1.split("</textarea>").next().unwrap();
    let shown = shown.replace("&quot;", "\"").replace("&amp;", "&");
    let edit = |text: &str, status| {
        me.post("/admin/specification/edit", &encode(&[("name", "new"), ("json", text)]), status)
    };
    edit(&shown, 303);
    assert_eq!(kept(&daemon, "new"), before);
    edit(&shown.replace("\"active\": false", "\"active\": true"), 303);
    assert_eq!(daemon.ask("jobset new")[0]["active"], json!(true));
    // A mistake is named, and what was typed is there to be mended.
    let reply = edit(&shown.replace("\"priority\": 9", "\"priority\": 90"), 422).text();
    assert!(reply.contains("field priority") && reply.contains("&quot;priority&quot;: 90"));
    assert!(edit(&shown.replace("\"new\"", "\"other\""), 422).text().contains("not renamed"));
    assert_eq!(kept(&daemon, "new")["priority"], before["priority"]);
    me.post("/admin/specification/add", &encode(&[("json", &shown)]), 422);
    assert!(!daemon.log().contains("hush"), "the log holds a secret");
}

#[test]
fn a_form_undoes_nothing_that_others_have_changed_since() {
    let (daemon, me, repository) = start("editor");
    let specification = repository.specification("new", &["./jobs"]);
    me.post("/admin/specification/add", &encode(&[("json", &specification.to_string())]), 303);
    let seen = |page: &str| {
        let (_, rest) = page.split_once("name=\"seen\" value=\"").expect("what was seen");
        rest.split('"').next().unwrap().to_owned()
    };
    let first = seen(&me.send("GET", "/specification/edit/new", "").text());
    let (url, system) = (repository.url(), system());
    let edit = |seen: &str, priority: &str, status| {
        let fields = [
            ("name", "new"),
            ("seen", seen),
            ("evaluator", "command"),
            ("command", "./jobs"),
            ("channel-name", "main"),
            ("channel-url", url.as_str()),
            ("channel-branch", "main"),
            ("priority", priority),
            (system.as_str(), "on"),
            ("active", "yes"),
        ];
        me.post("/admin/specification/edit", &encode(&fields), status).text()
    };
    let priority = || kept(&daemon, "new")["priority"].clone();
    edit(&first, "3", 303);
    assert_eq!(priority(), 3);
    // Somebody else has the form as it was, filled in.
    let page = edit(&first, "5", 422);
    assert!(page.contains("Somebody has changed this jobset") && page.contains("value=\"5\""));
    assert_eq!(priority(), 3);
    let whole = specification.to_string();
    let whole = [("name", "new"), ("seen", first.as_str()), ("json", whole.as_str())];
    let other = me.post("/admin/specification/edit", &encode(&whole), 422).text();
    assert_eq!(seen(&other), seen(&page));
    // Who knows and means it can.
    edit(&seen(&page), "5", 303);
    assert_eq!(priority(), 5);
}

#[test]
fn programs_put_and_delete_jobsets() {
    let (mut daemon, me, repository) = start("editor");
    let mut specification = repository.specification("new", &["./jobs"]);
    let url = "https://me:hush@example.org/x.git";
    specification["channels"][0]["url"] = json!(url);
    specification["active"] = json!(false);
    me.post("/api/jobsets", &specification.to_string(), 201);
    me.post("/api/jobsets", &specification.to_string(), 409);
    // As it is shown it means what it was.
    specification["channels"][0]["url"] = json!("https://example.org/x.git");
    specification["priority"] = json!(1);
    specification.as_object_mut().unwrap().remove("name");
    let put = |target: &str, body: &str| me.send("PUT", target, body);
    let reply = put("/api/jobsets/new", &specification.to_string());
    assert_eq!((reply.status, reply.text().as_str()), (200, r#"{"jobset":"new"}"#));
    let new = kept(&daemon, "new");
    assert_eq!((&new["channels"][0]["url"], &new["priority"]), (&json!(url), &json!(1)));
    assert_eq!(daemon.ask("jobset new")[0]["active"], json!(false));
    specification["active"] = json!(true);
    assert_eq!(put("/api/jobsets/new", &specification.to_string()).status, 200);
    assert_eq!(daemon.ask("jobset new")[0]["active"], json!(true));
    specification["active"] = json!(false);
    assert_eq!(put("/api/jobsets/newer", &specification.to_string()).status, 201);
    specification["name"] = json!("old");
    for (target, body, status) in [
        ("/api/jobsets/new", specification.to_string(), 422),
        ("/api/jobsets/new", json!({ "colour": 1 }).to_string(), 422),
        ("/api/jobsets/new", "[]".to_owned(), 400),
        ("/api/jobsets/new", "{".to_owned(), 400),
        ("/api/jobsets/.new", json!({}).to_string(), 422),
    ] {
        let reply = put(target, &body);
        assert_eq!(reply.status, status, "{body}: {}", reply.text());
        assert_eq!(reply.header("content-type"), Some("application/json;charset=utf-8"));
    }
    let after = kept(&daemon, "new");
    assert_eq!((&after["channels"], &after["priority"]), (&new["channels"], &new["priority"]));
    assert_eq!(me.send("DELETE", "/api/jobsets/new", "").status, 200);
    assert_eq!(me.send("DELETE", "/api/jobsets/new", "").status, 404);
    assert_eq!(daemon.outcome("jobset new"), "error not-found there is no jobset new");
}

#[test]
fn dashboards_are_registered_and_lead_to_the_latest_evaluation() {
    let (mut daemon, me, _repository) = start("operator");
    let web = me.web;
    let made = web.json("/api/dashboard/register?spec=hello&names=good,bad");
    let id = made["id"].as_str().unwrap();
    assert!(id.len() == 16 && id.bytes().all(|c| c.is_ascii_alphanumeric()), "{id}");
    let reply = web.get(&format!("/dashboard/{id}"));
    let there = format!("/eval/1/dashboard/{id}");
    assert_eq!((reply.status, reply.header("location")), (302, Some(there.as_str())));
    let reply = web.get("/dashboard/nothing");
    assert_eq!(
        (reply.status, reply.text().as_str()),
        (404, r#"{"error":"Dashboard with ID nothing doesn't exist."}"#)
    );
    for (query, status) in
        [("", 400), ("?spec=hello", 400), ("?names=x", 400), ("?spec=nobody&names=x", 404)]
    {
        assert_eq!(web.get(&format!("/api/dashboard/register{query}")).status, status, "{query}");
    }
    let refused = crate::support::until("a dashboard to be refused", || {
        let reply = web.get("/api/dashboard/register?spec=hello&names=x");
        (reply.status == 429).then_some(reply)
    });
    assert!(refused.header("retry-after").is_some());
    daemon.ask("version");
}

#[test]
fn without_a_daemon_nothing_is_changed_and_that_is_said() {
    let (mut daemon, me, _repository) = start("admin");
    // The process serves both; so another one serves the web here.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let alone = Alone::start(&daemon, port);
    let me = Known { web: Web(([127, 0, 0, 1], port).into()), token: me.token };
    me.post("/api/jobsets/hello/trigger", "", 200);
    daemon.stop();
    let reply = me.post("/api/jobsets/hello/trigger", "", 503);
    assert!(reply.text().contains("The daemon is not running"), "{}", reply.text());
    assert_eq!(me.web.post("/jobset/hello/hook/evaluate", &[], "").status, 503);
    // Asking works all the same.
    assert_eq!(me.send("GET", "/admin/jobset/hello/trigger", "").status, 200);
    daemon.restart();
    me.post("/api/jobsets/hello/trigger", "", 200);
    drop(alone);
}

/// `gorget web` as a process of its own, ended when dropped.
pub(super) struct Alone(std::process::Child);

impl Alone {
    #[expect(clippy::disallowed_methods, reason = "the program under test")]
    pub(super) fn start(daemon: &Daemon, port: u16) -> Self {
        let child = std::process::Command::new(env!("CARGO_BIN_EXE_gorget"))
            .arg("web")
            .arg(format!("--state-directory={}", daemon.state().display()))
            .arg(format!("--port={port}"))
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let this = Self(child);
        crate::support::until("the web interface to listen", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()
        });
        this
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
