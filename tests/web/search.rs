//! Finding builds, and what is newest of those found.

use super::api::with_builds;

#[test]
fn searches_find_builds_and_say_what_they_cannot() {
    let (_daemon, _repository, web) = with_builds();
    let names = |target: &str| -> Vec<String> {
        let found = web.json(target);
        let jobs = found.as_array().unwrap().iter().map(|build| build["job"].as_str().unwrap());
        jobs.map(str::to_owned).collect()
    };
    assert_eq!(names("/api/search?query=goo&nr=10"), ["good"]);
    assert_eq!(names("/api/search?query=spec:s+-good&nr=10"), ["bad"]);
    assert_eq!(names("/api/search?query=status:failed&nr=10"), ["bad"]);
    assert_eq!(names("/api/search?query=eval:1+job:good&nr=10"), ["good"]);
    assert_eq!(names("/api/search?query=b%25ad&nr=10"), ["bad"]);
    assert!(names("/api/search?query=&nr=10").is_empty());
    assert!(names("/api/search?query=nosuch&nr=10").is_empty());
    let first = web.get("/api/search?query=spec:s&nr=1");
    let next = first.header("link").unwrap();
    let next = next.strip_prefix('<').unwrap().split('>').next().unwrap();
    assert_ne!(names(next), names("/api/search?query=spec:s&nr=1"));
    for (target, status, told) in [
        ("/api/search?query=a", 400, "Parameter not defined"),
        ("/api/search?query=a&nr=1001", 400, "Maximum limit exceeded"),
        ("/api/search?nr=1", 400, "Query parameter not provided."),
        ("/api/search?query=spec:a:b&nr=1", 400, r#"Nothing can be meant by \"spec:a:b\"."#),
        ("/search/latest", 400, "Query parameter not provided."),
        ("/search/latest?query=nosuch", 404, "No build found."),
        ("/search/latest/archive?query=good", 404, "Could not find the requested build product."),
    ] {
        let reply = web.get(target);
        let expected = (status, format!(r#"{{"error":"{told}"}}"#));
        assert_eq!((reply.status, reply.text()), expected, "{target}");
    }
}

#[test]
fn the_newest_build_is_where_latest_leads() {
    let (_daemon, _repository, web) = with_builds();
    let id = web.json("/api/search?query=good&nr=1")[0]["id"].clone();
    let reply = web.get("/search/latest?query=spec:s+status:success+good");
    let place = format!("/build/{id}/details");
    assert_eq!((reply.status, reply.header("location")), (302, Some(place.as_str())));
}
