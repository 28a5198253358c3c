//! Whether the API answers what its own description says.

use serde_json::Value;

use crate::support::daemon::Daemon;
use crate::support::http::Web;
use crate::support::jobs::{Repository, job};

/// A path as it is described, and one of that kind to ask for.
const ASKED: &[(&str, &str)] = &[
    ("/build/{id}", "/build/1"),
    ("/jobsets", "/jobsets"),
    ("/specifications", "/specifications"),
    ("/api/evaluation", "/api/evaluation?id=1"),
    ("/api/evaluations", "/api/evaluations?nr=10"),
    ("/api/jobs", "/api/jobs?evaluation=1"),
    ("/api/jobs/history", "/api/jobs/history?spec=s&names=good&nr=10"),
    ("/api/latestbuilds", "/api/latestbuilds?nr=10"),
    ("/api/queue", "/api/queue?nr=10"),
    ("/api/jobsets/{name}", "/api/jobsets/s"),
    ("/healthz", "/healthz"),
    ("/api/evaluation/{id}/diff", "/api/evaluation/2/diff?from=1"),
    ("/api/evaluation/{id}/summary", "/api/evaluation/1/summary"),
    ("/api/build/{id}/dependencies", "/api/build/NEEDY/dependencies?nr=1"),
    ("/api/build/{id}/dependents", "/api/build/BAD/dependents?after=0"),
    ("/api/build/{id}/first-failure", "/api/build/NEEDY/first-failure"),
    ("/api/workers", "/api/workers"),
    ("/api/metrics", "/api/metrics"),
    ("/api/search", "/api/search?query=good&nr=10"),
];

/// What changes something, or has a test of its own with what it takes.
const ELSEWHERE: &[&str] = &[
    "/output/{name}",
    "/api/machines/{name}",
    "/api/dashboard/register",
    "/api/audit",
    "/api/openapi.json",
    "/api/build/{id}/log",
];

#[test]
fn answers_are_those_that_are_described() {
    let jobs = job("good", "true", "")
        + &job("bad", "exit 3", "")
        + &job("needy", "true", r#""needs":["bad"]"#);
    let repository = Repository::with_jobs(&jobs);
    let mut daemon = Daemon::start(&["--web=127.0.0.1:0"]);
    daemon.ask(&repository.add("s"));
    daemon.settle();
    daemon.ask("retry-evaluation 1");
    daemon.until("evaluations s", |all| all.len() == 2);
    daemon.settle();
    let web = Web::of(&daemon);
    let document = web.json("/api/openapi.json");
    let mut described = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let schema = &item["get"]["responses"]["200"]["content"]["application/json"]["schema"];
        if !schema.is_null() && !ELSEWHERE.contains(&path.as_str()) {
            described.push(path.as_str());
        }
    }
    let mut asked: Vec<&str> = ASKED.iter().map(|(path, _)| *path).collect();
    asked.sort_unstable();
    described.sort_unstable();
    assert_eq!(described, asked);
    let id = |daemon: &mut Daemon, job| daemon.build(job)["id"].to_string();
    let (bad, needy) = (id(&mut daemon, "bad"), id(&mut daemon, "needy"));
    for (path, target) in ASKED {
        let target = target.replace("BAD", &bad).replace("NEEDY", &needy);
        let answer = web.json(&target);
        let schema = &document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]
            ["schema"];
        assert_ne!(*schema, serde_json::json!({}), "{path} says nothing");
        fits(&document, schema, &answer).unwrap_or_else(|why| panic!("{target}{why}\n{answer:#}"));
    }
}

/// Whether a value is as a schema says, as far as the description goes; else where it is not.
fn fits(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    let expected = |what: &Value| Err(format!(": expected {what}, found {value:.80}"));
    if let Some(name) = schema["$ref"].as_str() {
        return fits(document, document.pointer(&name[1..]).unwrap(), value);
    }
    if let Some(any) = schema["oneOf"].as_array() {
        let one = any.iter().any(|one| fits(document, one, value).is_ok());
        return if one { Ok(()) } else { expected(&schema["oneOf"]) };
    }
    for all in schema["allOf"].as_array().into_iter().flatten() {
        fits(document, all, value)?;
    }
    let right = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("integer") => value.is_i64(),
        Some("number") => value.is_number(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some(other) => panic!("type {other}"),
        None => true,
    };
    let among = schema["enum"].as_array().is_none_or(|all| all.contains(value));
    let constant = schema.get("const").is_none_or(|constant| constant == value);
    if !right || !among || !constant {
        return expected(schema);
    }
    for (n, item) in value.as_array().into_iter().flatten().enumerate() {
        fits(document, &schema["items"], item).map_err(|why| format!("[{n}]{why}"))?;
    }
    let Some(object) = value.as_object() else { return Ok(()) };
    for name in schema["required"].as_array().into_iter().flatten() {
        if !object.contains_key(name.as_str().unwrap()) {
            return Err(format!(": {name} is missing"));
        }
    }
    for (name, value) in object {
        let other = &schema["additionalProperties"];
        let own = schema["properties"].get(name).or((!other.is_null()).then_some(other));
        if let Some(own) = own {
            fits(document, own, value).map_err(|why| format!(".{name}{why}"))?;
        }
    }
    Ok(())
}
