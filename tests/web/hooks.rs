//! Hooks: the one of Cuirass, those of forges, and the one for everything.

use std::fs;

use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use super::access::{audit, bearer, token};
use crate::support::daemon::Daemon;
use crate::support::http::{Reply, Web};
use crate::support::jobs::{Repository, job};

const WEB: &str = "--web=127.0.0.1:0";

fn mac(secret: &str, body: &str) -> String {
    let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(secret.as_bytes()).unwrap();
    let digest = mac.chain_update(body).finalize().into_bytes();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn json(reply: &Reply) -> Value {
    serde_json::from_slice(&reply.body).unwrap()
}

/// A daemon with these hook secrets.
fn daemon(secrets: &Value) -> (Daemon, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("parameters.json");
    fs::write(&file, json!({ "hook-secrets": secrets }).to_string()).unwrap();
    (Daemon::start(&[WEB, &format!("--parameters={}", file.display())]), directory)
}

#[test]
fn the_hook_of_cuirass_says_what_happened() {
    let repository = Repository::with_jobs(&job("one", "true", ""));
    let mut daemon = Daemon::start(&[WEB]);
    daemon.ask(&repository.add("hello"));
    daemon.settle();
    let web = Web::of(&daemon);
    let hook = "/jobset/hello/hook/evaluate";
    repository.commit();
    let reply = web.post(hook, &[("Content-Type", "application/json")], "{}");
    assert_eq!((reply.status, reply.text().as_str()), (200, r#"{"jobset":"hello"}"#));
    assert_eq!(reply.header("content-type"), Some("application/json;charset=utf-8"));
    daemon.until("evaluations hello", |all| all.len() == 2);
    // A client that sends no length at all.
    let mut stream = web.connect();
    let head = format!("POST {hook}?strict=1 HTTP/1.0\r\nHost: {}\r\n\r\n", web.0);
    std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut stream, &mut bytes).unwrap();
    assert_eq!(Reply::parse(&bytes).status, 202);
    let missing = web.post("/jobset/nobody/hook/evaluate", &[], "");
    assert_eq!(
        (missing.status, missing.text().as_str()),
        (404, r#"{"error":"Jobset not found."}"#)
    );
    assert_eq!(web.get(hook).status, 405);
    // Those that come while a look goes on are one; so this takes as many as it takes.
    let refused = crate::support::until("a look to be refused", || {
        let reply = web.post(hook, &[], "");
        assert_eq!(reply.status, 200);
        daemon.settle();
        json(&reply).get("accepted").is_some().then_some(reply)
    });
    assert_eq!(refused.text(), r#"{"jobset":"hello","accepted":false}"#);
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=300).contains(&wait), "{wait}");
    let strict = web.post(&format!("{hook}?strict=1"), &[], "");
    assert_eq!(strict.status, 429);
    assert!(strict.header("retry-after").is_some());
    daemon.ask("deactivate hello");
    assert_eq!(web.post(hook, &[], "").status, 409);
    let audit = audit(&daemon);
    let by = "for anybody from 127.0.0.1";
    assert!(audit.iter().any(|(who, what, _)| who.contains(by) && what == "trigger hello"));
}

#[test]
fn a_hook_with_a_secret_believes_those_who_know_it() {
    let repository = Repository::with_jobs(&job("one", "true", ""));
    let (mut daemon, _directory) = daemon(&json!({ "hello": ["old", "new"] }));
    daemon.ask(&repository.add("hello"));
    daemon.settle();
    let web = Web::of(&daemon);
    let call =
        |headers: &[(&str, &str)]| web.post("/jobset/hello/hook/evaluate", headers, "body").status;
    assert_eq!(call(&[]), 401);
    assert_eq!(call(&[("X-Hub-Signature-256", &format!("sha256={}", mac("wrong", "body")))]), 401);
    assert_eq!(call(&[("X-Hub-Signature-256", &format!("sha256={}", mac("new", "other")))]), 401);
    assert_eq!(call(&[("X-Hub-Signature-256", &format!("sha256={}", mac("new", "body")))]), 200);
    assert_eq!(call(&[("X-Gitlab-Token", "old")]), 200);
    let (name, value) = bearer(&token(&mut daemon, "t", "trigger", ""));
    assert_eq!(call(&[(name, &value)]), 200);
    let (name, value) = bearer(&token(&mut daemon, "v", "viewer", ""));
    assert_eq!(call(&[(name, &value)]), 401);
}

#[test]
fn forges_trigger_what_watches_the_branch_and_only_once() {
    let repository = Repository::with_jobs(&job("one", "true", ""));
    let secrets = json!({ "main": ["s"], "topic": ["s"], "guarded": ["other"] });
    let (mut daemon, _directory) = daemon(&secrets);
    repository.git(&["branch", "topic"]);
    for (name, branch) in [("main", "main"), ("topic", "topic"), ("guarded", "main")] {
        let mut specification = repository.specification(name, &["./jobs"]);
        specification["channels"][0]["branch"] = json!(branch);
        daemon.ask(&format!("add {specification}"));
    }
    daemon.settle();
    let web = Web::of(&daemon);
    let url = format!("file://{}/", repository.url());
    let delivery = |after: usize| {
        json!({ "ref": "refs/heads/main", "after": after, "repository": { "clone_url": url } })
            .to_string()
    };
    let body = delivery(0);
    let signature = mac("s", &body);
    let send = |path: &str, headers: &[(&str, &str)]| web.post(path, headers, &body);
    let hub = format!("sha256={signature}");
    let push = [("X-GitHub-Event", "push"), ("X-GitHub-Delivery", "1")];
    let signed = |more: &[(&'static str, &str)]| {
        let mut all = vec![("X-Hub-Signature-256", hub.as_str())];
        all.extend(more);
        send("/hooks/github", &all)
    };
    assert_eq!(send("/hooks/github", &push).status, 401);
    assert_eq!(web.post("/hooks/github", &[("X-Hub-Signature-256", &hub)], "{}").status, 401);
    repository.commit();
    let reply = signed(&push);
    assert_eq!((reply.status, json(&reply)), (200, json!({ "jobsetsTriggered": ["main"] })));
    daemon.until("evaluations main", |all| all.len() == 2);
    // Its name is not signed: whoever recorded it can give it another, and is heard no sooner than in a minute.
    for id in ["1", "2"] {
        let again = signed(&[("X-GitHub-Event", "push"), ("X-GitHub-Delivery", id)]);
        assert_eq!((again.status, json(&again)), (200, json!({ "jobsetsTriggered": [] })), "{id}");
    }
    // A repository tells the same to others, who have another secret.
    let other = format!("sha256={}", mac("other", &body));
    let reply = send("/hooks/github", &[("X-Hub-Signature-256", &other), push[0]]);
    assert_eq!(json(&reply), json!({ "jobsetsTriggered": ["guarded"] }));
    let ping = signed(&[("X-GitHub-Event", "ping")]);
    assert_eq!((ping.status, json(&ping)), (200, json!({ "jobsetsTriggered": [] })));
    for (n, (path, event, signature)) in [
        ("/hooks/gitea", "X-Gitea-Event", "X-Gitea-Signature"),
        ("/hooks/forgejo", "X-Forgejo-Event", "X-Forgejo-Signature"),
        ("/admin/forgejo/event", "X-Forgejo-Event", "X-Forgejo-Signature"),
    ]
    .into_iter()
    .enumerate()
    {
        let body = delivery(n + 1);
        let send = |value: &str| web.post(path, &[(event, "push"), (signature, value)], &body);
        assert_eq!(
            json(&send(&mac("s", &body))),
            json!({ "jobsetsTriggered": ["main"] }),
            "{path}"
        );
        assert_eq!(send("00").status, 401, "{path}");
    }
    for path in ["/hooks/gitlab", "/admin/gitlab/event"] {
        let event = [("X-Gitlab-Event", "Push Hook"), ("X-Gitlab-Event-UUID", path)];
        let reply = send(path, &[event[0], event[1], ("X-Gitlab-Token", "s")]);
        assert_eq!(json(&reply), json!({ "jobsetsTriggered": ["main"] }), "{path}");
        assert_eq!(send(path, &[event[0], ("X-Gitlab-Token", "wrong")]).status, 401, "{path}");
    }
    let refused = audit(&daemon).into_iter().filter(|(_, what, _)| what == "hook of github");
    assert_eq!(refused.count(), 2);
}

#[test]
fn whoever_has_a_token_pushes_by_name_or_by_repository() {
    let repository = Repository::with_jobs(&job("one", "true", ""));
    let mut daemon = Daemon::start(&[WEB]);
    daemon.ask(&repository.add("a"));
    daemon.ask(&repository.add("b"));
    daemon.settle();
    let web = Web::of(&daemon);
    let push = |token: &str, query: &str| {
        let (name, value) = bearer(token);
        web.post(&format!("/api/push?{query}"), &[(name, &value)], "")
    };
    let all = token(&mut daemon, "all", "trigger", "");
    let one = token(&mut daemon, "one", "operator", "jobset=a");
    assert_eq!(web.post("/api/push?jobsets=a", &[], "").status, 401);
    assert_eq!(json(&push(&all, "jobsets=project:a,b")), json!({ "jobsetsTriggered": ["a", "b"] }));
    let url = format!("repos=file://{}.git", repository.url());
    assert_eq!(json(&push(&all, &url)), json!({ "jobsetsTriggered": ["a", "b"] }));
    assert_eq!(json(&push(&one, &url)), json!({ "jobsetsTriggered": ["a"] }));
    assert_eq!(push(&one, "jobsets=b").status, 403);
    assert_eq!(push(&all, "jobsets=nobody").status, 404);
    assert_eq!(push(&all, "").status, 400);
    // By force what is known is evaluated again; for that a trigger is too little.
    daemon.settle();
    let before = daemon.ask("evaluations a").len();
    assert_eq!(push(&all, "jobsets=a&force=1").status, 403);
    assert_eq!(json(&push(&one, "jobsets=a&force=1")), json!({ "jobsetsTriggered": ["a"] }));
    daemon.until("evaluations a", |all| all.len() == before + 1);
}
