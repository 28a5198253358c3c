//! GET `/api/openapi.json`: the API, described for programs.
//!
//! Invariant: the file describes every route of the API and no other, which a test here sees to.

use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::request::Request;
use crate::web::response::{JSON, Response};
use crate::web::route::Captures;

const DOCUMENT: &str = include_str!("openapi.json");

pub(super) fn show(_: &mut Context, _: &Request, _: &Captures) -> Result<Response, Failure> {
    Ok(Response::bytes(200, JSON, DOCUMENT))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::web::route::{self, Kind, Route};

    fn document() -> Value {
        serde_json::from_str(DOCUMENT).unwrap()
    }

    /// A route's path as the description spells it.
    fn place(route: &Route) -> String {
        let parts = route.path.split('/').filter(|part| *part != "*");
        let parts: Vec<String> = parts
            .map(|part| match part.strip_prefix(':') {
                Some(name) => format!("{{{name}}}"),
                None => part.to_owned(),
            })
            .collect();
        parts.join("/")
    }

    /// `GET /api/queue`, of the routes that hold to a condition.
    fn routes(wanted: impl Fn(&Route) -> bool) -> Vec<String> {
        let found = route::all().filter(|route| wanted(route));
        found.map(|route| format!("{} {}", route.method.word(), place(route))).collect()
    }

    fn described(document: &Value) -> Vec<String> {
        let paths = document["paths"].as_object().unwrap();
        let all = paths.iter().flat_map(|(path, item)| {
            let methods = item.as_object().unwrap().keys();
            methods.map(move |method| format!("{} {path}", method.to_uppercase()))
        });
        all.collect()
    }

    #[test]
    fn every_route_of_the_api_is_described_and_no_other() {
        let described = described(&document());
        let of_api = routes(|r| r.path.starts_with("/api/") || r.kind == Kind::Api);
        assert!(of_api.len() > 30, "only {} routes", of_api.len());
        let missing: Vec<_> = of_api.iter().filter(|route| !described.contains(route)).collect();
        assert!(missing.is_empty(), "openapi.json does not describe {missing:#?}");
        let all = routes(|_| true);
        let extra: Vec<_> = described.iter().filter(|route| !all.contains(route)).collect();
        assert!(extra.is_empty(), "openapi.json describes what is not there: {extra:#?}");
    }

    /// Its answers have a status each, what varies in a path is a parameter, and what it refers to is there.
    #[test]
    fn the_description_is_whole() {
        let document = document();
        assert_eq!(document["openapi"], "3.1.0");
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let named: Vec<&str> = match operation["parameters"].as_array() {
                    Some(all) => all
                        .iter()
                        .filter(|one| one["in"] == "path" && one["required"] == true)
                        .map(|one| one["name"].as_str().unwrap())
                        .collect(),
                    None => Vec::new(),
                };
                let vary = path.split('/').filter_map(|part| part.strip_prefix('{'));
                let vary: Vec<&str> = vary.map(|part| part.trim_end_matches('}')).collect();
                assert_eq!(named, vary, "{method} {path}");
                let answers = operation["responses"].as_object().unwrap();
                assert!(answers.len() > 1, "{method} {path}");
                assert!(operation["summary"].is_string(), "{method} {path}");
            }
        }
        let mut todo = vec![&document];
        while let Some(value) = todo.pop() {
            if let Some(there) = value["$ref"].as_str() {
                let pointer = there.strip_prefix('#').unwrap();
                assert!(document.pointer(pointer).is_some(), "{there} is not there");
            }
            match value {
                Value::Object(members) => todo.extend(members.values()),
                Value::Array(all) => todo.extend(all),
                _ => {}
            }
        }
    }
}
