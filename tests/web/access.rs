//! Who may what: tokens, sessions, this machine, and what other sites' pages try.

use std::fs;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::http::{Reply, Web};
use crate::support::jobs::{Repository, job};

const WEB: &str = "--web=127.0.0.1:0";

/// A daemon with these parameters; the directory is theirs.
fn daemon(parameters: &Value) -> (Daemon, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("parameters.json");
    fs::write(&file, parameters.to_string()).unwrap();
    (Daemon::start(&[WEB, &format!("--parameters={}", file.display())]), directory)
}

/// A new token of a role, with what `more` says.
pub(crate) fn token(daemon: &mut Daemon, name: &str, role: &str, more: &str) -> String {
    let made = daemon.ask(&format!("token add {name} {role} {more}"));
    made[0]["token"].as_str().unwrap().to_owned()
}

pub(crate) fn bearer(token: &str) -> (&'static str, String) {
    ("Authorization", format!("Bearer {token}"))
}

/// POST with a token.
fn post(web: Web, target: &str, token: &str, more: &[(&str, &str)]) -> Reply {
    let (name, value) = bearer(token);
    let mut headers = vec![(name, value.as_str())];
    headers.extend(more);
    web.post(target, &headers, "")
}

/// The lines of the audit log: who, what, how it ended.
pub(super) fn audit(daemon: &Daemon) -> Vec<(String, String, String)> {
    let books = rusqlite::Connection::open_with_flags(
        daemon.database(),
        rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY,
    )
    .unwrap();
    let mut statement =
        books.prepare("SELECT who, command, outcome FROM audit ORDER BY id").unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

fn has(audit: &[(String, String, String)], who: &str, what: &str, outcome: &str) -> bool {
    audit.iter().any(|(by, command, end)| {
        by.contains(who) && command.contains(what) && end.contains(outcome)
    })
}

fn cookie(reply: &Reply) -> String {
    reply.header("set-cookie").unwrap().split(';').next().unwrap().to_owned()
}

#[test]
fn a_token_opens_what_its_role_may_until_it_is_revoked() {
    let repository = Repository::with_jobs(&job("one", "true", ""));
    let mut daemon = Daemon::start(&[WEB]);
    daemon.ask(&repository.add("hello"));
    daemon.ask(&repository.add("other"));
    daemon.settle();
    let web = Web::of(&daemon);
    let trigger = token(&mut daemon, "t", "trigger", "");
    let viewer = token(&mut daemon, "v", "viewer", "");
    let scoped = token(&mut daemon, "s", "operator", "jobset=hello");
    let short = token(&mut daemon, "x", "admin", "expires=1");
    let hello = "/api/jobsets/hello/trigger";
    assert_eq!(web.post(hello, &[], "").status, 401);
    let unknown = post(web, hello, "nonsense", &[]);
    assert_eq!(unknown.status, 401);
    assert_eq!(unknown.header("www-authenticate"), Some("Bearer"));
    assert_eq!(post(web, hello, &viewer, &[]).status, 403);
    let reply = post(web, hello, &trigger, &[]);
    assert_eq!((reply.status, reply.text().as_str()), (200, r#"{"jobset":"hello"}"#));
    assert_eq!(post(web, "/api/builds/1/restart", &trigger, &[]).status, 403);
    // What a scope leaves out: another jobset, everything at once, a build that both want.
    assert_eq!(post(web, hello, &scoped, &[]).status, 200);
    let refused = post(web, "/api/jobsets/other/trigger", &scoped, &[]);
    assert_eq!(refused.status, 403, "{}", refused.text());
    assert!(refused.text().contains("jobset hello, not for other"), "{}", refused.text());
    assert_eq!(post(web, "/admin/pause", &scoped, &[]).status, 403);
    assert_eq!(post(web, "/api/builds/1/restart", &scoped, &[]).status, 403);
    daemon.ask("delete other");
    assert_eq!(post(web, "/api/builds/1/restart", &scoped, &[]).status, 200);
    // Its last use is known, and that it expires.
    let tokens = daemon.ask("token list");
    let used = |name: &str| tokens.iter().find(|t| t["name"] == name).unwrap()["last-used"].clone();
    assert!(used("t").is_i64() && used("x").is_null(), "{tokens:?}");
    crate::support::until("the token to expire", || {
        (post(web, hello, &short, &[]).status == 401).then_some(())
    });
    daemon.ask("token revoke s");
    assert_eq!(post(web, hello, &scoped, &[]).status, 401);
    let audit = audit(&daemon);
    assert!(has(&audit, "for token t from 127.0.0.1", "trigger hello", "ok"), "{audit:?}");
    assert!(has(&audit, "for token s from 127.0.0.1", "access to other", "refused"), "{audit:?}");
}

#[test]
fn a_private_installation_shows_nothing_to_strangers() {
    let (mut daemon, _directory) = daemon(&json!({ "private": true }));
    let web = Web::of(&daemon);
    let viewer = token(&mut daemon, "v", "viewer", "");
    let trigger = token(&mut daemon, "t", "trigger", "");
    let page = |token: &str| {
        let (name, value) = bearer(token);
        web.send("GET", "/admin/pause", &[(name, &value)], b"").status
    };
    assert_eq!(web.get("/admin/pause").status, 401);
    assert_eq!((page(&viewer), page(&trigger), page("nonsense")), (200, 403, 401));
    // Nor does it tell which jobsets there are.
    assert_eq!(web.post("/jobset/nobody/hook/evaluate", &[], "").status, 401);
    let (name, value) = bearer(&trigger);
    let reply = web.post("/jobset/nobody/hook/evaluate", &[(name, &value)], "");
    assert_eq!(reply.status, 404);
}

#[test]
fn a_session_begins_with_a_token_and_its_forms_are_its_own() {
    let mut daemon = Daemon::start(&[WEB]);
    let web = Web::of(&daemon);
    let secret = token(&mut daemon, "me", "operator", "");
    let page = web.get("/login?next=%2Fadmin%2Fpause");
    assert_eq!(page.status, 200);
    assert!(page.text().contains(r#"name="next" value="/admin/pause""#), "{}", page.text());
    let failed = web.post("/login", &[], "token=nonsense");
    assert_eq!((failed.status, failed.header("set-cookie")), (403, None));
    let reply = web.post("/login", &[], &format!("token={secret}&next=%2Fadmin%2Fpause"));
    assert_eq!((reply.status, reply.header("location")), (303, Some("/admin/pause")));
    let set = reply.header("set-cookie").unwrap();
    assert!(set.contains("; HttpOnly; SameSite=Lax") && !set.contains("Secure"), "{set}");
    assert!(!set.contains(&secret), "{set}");
    let session = cookie(&reply);
    let page = web.send("GET", "/admin/pause", &[("Cookie", &session)], b"");
    let page = page.text();
    let csrf = page.split("name=\"csrf\" value=\"").nth(1).unwrap().split('"').next().unwrap();
    // What another site has it ask for, a guess at the secret in the address, is not told by its size.
    let coding = |site: &str| {
        let headers =
            [("Cookie", session.as_str()), ("Accept-Encoding", "gzip"), ("Sec-Fetch-Site", site)];
        let reply = web.send("GET", "/search?query=csrf", &headers, b"");
        assert_eq!(reply.status, 200);
        reply.header("content-encoding").map(str::to_owned)
    };
    assert_eq!(coding("same-origin").as_deref(), Some("gzip"));
    assert_eq!((coding("cross-site"), coding("same-site")), (None, None));
    let pause = |headers: &[(&str, &str)], body: &str| {
        let mut all = vec![("Cookie", session.as_str())];
        all.extend(headers);
        web.post("/admin/pause", &all, body).status
    };
    assert_eq!(pause(&[], ""), 403);
    assert_eq!(pause(&[], "csrf=00"), 403);
    let form = format!("csrf={csrf}&what=builds");
    assert_eq!(pause(&[("Origin", "https://evil.example")], &form), 403);
    assert_eq!(pause(&[("Sec-Fetch-Site", "cross-site")], &form), 403);
    assert_eq!(daemon.ask("status")[0]["paused"]["builds"], json!(false));
    let own = format!("http://{}", web.0);
    assert_eq!(pause(&[("Origin", &own)], &form), 303);
    assert_eq!(pause(&[("X-CSRF-Token", csrf)], ""), 303);
    // Whoever has a token may send it from where they like, but no page of another site may.
    assert_eq!(post(web, "/admin/resume", &secret, &[]).status, 303);
    assert_eq!(
        post(web, "/admin/resume", &secret, &[("Origin", "https://evil.example")]).status,
        403
    );
    // With its token, or by logging out, it ends.
    let gone = web.post("/logout", &[("Cookie", &session)], "");
    assert!(gone.header("set-cookie").unwrap().contains("Max-Age=0"));
    assert_eq!(pause(&[], &form), 401);
    let session = cookie(&web.post("/login", &[], &format!("token={secret}")));
    daemon.ask("token revoke me");
    let after = web.post("/admin/pause", &[("Cookie", &session)], &form);
    assert_eq!(after.status, 401);
    let audit = audit(&daemon);
    assert!(has(&audit, "for anybody from 127.0.0.1", "login", "no such token"), "{audit:?}");
    assert!(has(&audit, "for token me from 127.0.0.1", "login", "ok"), "{audit:?}");
    assert!(!format!("{audit:?}{}", daemon.log()).contains(&secret), "the log has the token");
}

#[test]
fn the_audit_log_is_for_administrators() {
    let mut daemon = Daemon::start(&[WEB]);
    let web = Web::of(&daemon);
    // As long as a name can be, and none that is cut inside of a letter.
    let long = "é".repeat(64);
    let editor = token(&mut daemon, &long, "editor", "");
    let admin = token(&mut daemon, "root", "admin", "");
    let get = |token: &str, target: &str| {
        let (name, value) = bearer(token);
        web.send("GET", target, &[(name, &value)], b"")
    };
    assert_eq!(web.get("/api/audit").status, 401);
    assert_eq!(get(&editor, "/admin/audit").status, 403);
    assert_eq!(post(web, "/admin/pause", &editor, &[]).status, 303);
    let lines: Value = serde_json::from_slice(&get(&admin, "/api/audit?nr=2").body).unwrap();
    let lines = lines.as_array().unwrap();
    assert_eq!((lines.len(), &lines[0]["command"]), (2, &json!("pause")));
    let who = lines[0]["who"].as_str().unwrap();
    assert!(who.contains("for token éé") && who.ends_with("é from 127.0.0.1"), "{who}");
    assert_eq!(lines[1]["outcome"], "refused");
    let older = get(&admin, &format!("/api/audit?before={}", lines[1]["id"])).text();
    assert!(older.contains("token add root admin") && !older.contains("\"pause\""), "{older}");
    let page = get(&admin, "/admin/audit").text();
    assert!(page.contains("<code>pause</code></td><td>ok</td>"), "{page}");
    for query in ["?nr=0", "?nr=1001"] {
        assert_eq!(get(&admin, &format!("/api/audit{query}")).status, 400);
    }
}

#[test]
fn guessing_tokens_is_slow() {
    let mut daemon = Daemon::start(&[WEB]);
    let web = Web::of(&daemon);
    let secret = token(&mut daemon, "me", "operator", "");
    for n in 0..10 {
        assert_eq!(web.post("/login", &[], &format!("token={n}")).status, 403);
    }
    let refused = web.post("/login", &[], &format!("token={secret}"));
    assert_eq!(refused.status, 429);
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=300).contains(&wait), "{wait}");
}

#[test]
fn a_secure_site_has_secure_cookies() {
    let (mut daemon, _directory) = daemon(&json!({ "url": "https://ci.example.org/x" }));
    let web = Web::of(&daemon);
    let secret = token(&mut daemon, "me", "operator", "");
    let origin = ("Origin", "https://ci.example.org");
    let reply = web.post("/login", &[origin], &format!("token={secret}&next=//evil.example"));
    assert_eq!(reply.header("location"), Some("/x/"));
    let set = reply.header("set-cookie").unwrap();
    assert!(set.contains("; Path=/x;") && set.ends_with("; Secure"), "{set}");
}

#[test]
fn this_machine_has_a_role_when_configured_so() {
    let (mut daemon, _directory) = daemon(&json!({ "loopback-role": "operator" }));
    let web = Web::of(&daemon);
    let post = |path: &str, headers: &[(&str, &str)]| web.post(path, headers, "").status;
    assert_eq!(post("/admin/pause", &[]), 303);
    assert_eq!(daemon.ask("status")[0]["paused"]["builds"], json!(true));
    assert_eq!(post("/admin/resume", &[("X-Forwarded-For", "192.0.2.1")]), 401);
    assert_eq!(post("/admin/resume", &[("X-Gorget-Gate-Direct", "1"), ("Via", "1.1 x")]), 401);
    assert_eq!(post("/admin/resume", &[("Origin", "https://evil.example")]), 403);
    // It is no more than that.
    assert_eq!(post("/admin/specifications/delete/hello", &[]), 403);
    // Whoever may more can say so.
    let page = web.get("/admin/audit");
    assert!(page.status == 403 && page.text().contains("href=\"/login?next=%2Fadmin%2Faudit\""));
    assert!(web.get("/").text().contains("<a href=\"/login\">Log in</a>"));
    // A page of another site that has its name lead here is no page of this machine.
    let rebound: SocketAddr = web.0;
    let mut stream = web.connect();
    let head = format!(
        "POST /admin/resume HTTP/1.1\r\nHost: evil.example:{}\r\nOrigin: http://evil.example:{0}\r\n\
         Content-Length: 0\r\nConnection: close\r\n\r\n",
        rebound.port()
    );
    std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut stream, &mut bytes).unwrap();
    assert_eq!(Reply::parse(&bytes).status, 401);
    let audit = audit(&daemon);
    assert!(has(&audit, "for this machine from 127.0.0.1", "pause", "ok"), "{audit:?}");
}

#[test]
fn a_proxy_on_this_machine_makes_nobody_this_machine() {
    // As nginx passes a request on when it is told to pass on, and nothing else.
    let silent = |web: Web, version: &str, host: &str| {
        let head = format!(
            "POST /admin/pause {version}\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        let mut stream = web.connect();
        std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut stream, &mut bytes).unwrap();
        Reply::parse(&bytes).status
    };
    let url = "http://ci.example.org";
    let (own, _directory) = daemon(&json!({ "loopback-role": "admin", "url": url }));
    let web = Web::of(&own);
    assert_eq!(silent(web, "HTTP/1.1", "localhost"), 303);
    assert_eq!(silent(web, "HTTP/1.0", "localhost"), 401);
    assert_eq!(silent(web, "HTTP/1.1", "ci.example.org"), 401);
    // One that is trusted need not say anything.
    let trusted = json!({ "loopback-role": "admin", "trusted-proxies": ["127.0.0.1"] });
    let (theirs, _directory) = daemon(&trusted);
    assert_eq!(silent(Web::of(&theirs), "HTTP/1.1", "localhost"), 401);
}
