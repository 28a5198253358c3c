//! Logs and products, as they are sent.

use std::io::Read;
use std::os::unix::fs::symlink;

use flate2::read::GzDecoder;

use crate::support::daemon::Daemon;
use crate::support::http::{Reply, Web};
use crate::support::jobs::{Repository, job};

const LOG: &str = "one\\ntwo\\nthree\\n";

/// A daemon that has built one job with a log of three lines and some products.
fn built() -> (Repository, Daemon, Web, i64) {
    let command = format!(
        "printf '{LOG}'; mkdir $out; printf 0123456789 > $out/digits; printf x > 'odd \"name\".txt'"
    );
    let repository = Repository::with_jobs(&job("one", &command, "\"products\":[\"*.txt\"]"));
    let mut daemon = Daemon::start(&["--web=127.0.0.1:0"]);
    daemon.ask(&repository.add("hello"));
    daemon.settle();
    let build = daemon.build("one");
    assert_eq!(build["status"], "succeeded", "{}", daemon.log());
    let web = Web::of(&daemon);
    let id = build["id"].as_i64().unwrap();
    (repository, daemon, web, id)
}

fn with(web: Web, target: &str, headers: &[(&str, &str)]) -> Reply {
    web.send("GET", target, headers, b"")
}

#[test]
fn logs_are_text_for_everybody() {
    let (_repository, _daemon, web, id) = built();
    let raw = format!("/build/{id}/log/raw");
    let plain = web.get(&raw);
    assert_eq!((plain.status, plain.text().as_str()), (200, "one\ntwo\nthree\n"));
    for (name, value) in [
        ("content-type", "text/plain;charset=utf-8"),
        ("content-disposition", "inline"),
        ("x-content-type-options", "nosniff"),
    ] {
        assert_eq!(plain.header(name), Some(value));
    }
    assert_eq!(plain.header("content-encoding"), None);
    let packed = with(web, &raw, &[("Accept-Encoding", "gzip, br")]);
    assert_eq!(packed.header("content-encoding"), Some("gzip"));
    let mut text = String::new();
    GzDecoder::new(&packed.body[..]).read_to_string(&mut text).unwrap();
    assert_eq!(text, plain.text());
    let refused = with(web, &raw, &[("Accept-Encoding", "gzip;q=0")]);
    assert_eq!(refused.text(), plain.text());
    let head = web.send("HEAD", &raw, &[], b"");
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-type"), plain.header("content-type"));
    for (query, expected) in [
        ("tail=1", "three\n"),
        ("tail=2", "two\nthree\n"),
        ("tail=99", "one\ntwo\nthree\n"),
        ("offset=4", "two\nthree\n"),
        ("from=4", "two\nthree\n"),
        ("from=999", ""),
        ("follow=1", "one\ntwo\nthree\n"),
        ("follow=1&from=8", "three\n"),
    ] {
        assert_eq!(web.get(&format!("{raw}?{query}")).text(), expected, "{query}");
    }
    for query in ["tail=x", "from=-1", "offset=1.5"] {
        let reply = web.get(&format!("{raw}?{query}"));
        assert_eq!(reply.status, 400, "{query}: {}", reply.text());
    }
    for missing in ["/build/42/log/raw", "/build/1xx/log/raw", "/eval/42/log/raw", "/log/none"] {
        let reply = web.get(missing);
        assert_eq!(reply.status, 404);
        assert_eq!(reply.header("content-type"), Some("text/plain;charset=utf-8"), "{missing}");
    }
    assert_eq!(web.get("/eval/1/log/raw").status, 200);
    let piece = web.json(&format!("/api/build/{id}/log?offset=4"));
    assert_eq!(piece["text"], "two\nthree\n");
    assert_eq!((&piece["next"], &piece["end"]), (&14.into(), &true.into()));
}

#[test]
fn parts_are_sent_as_asked_for() {
    let (_repository, daemon, web, id) = built();
    let log = format!("/build/{id}/log/raw");
    let digits = daemon.state().join(format!("products/{id}/out/digits"));
    let product = plant(&daemon, id, &digits.display().to_string());
    let all = [(log.as_str(), "one\ntwo\nthree\n"), (product.as_str(), "0123456789")];
    for (target, text) in all {
        let total = text.len();
        let whole = web.get(target);
        assert_eq!((whole.status, whole.text().as_str()), (200, text));
        assert_eq!(whole.header("accept-ranges"), Some("bytes"));
        let tag = whole.header("etag").unwrap();
        for (range, from, to) in [
            ("bytes=0-0", 0, 1),
            ("bytes=2-5", 2, 6),
            ("bytes=4-", 4, total),
            ("bytes=-3", total - 3, total),
            ("bytes=5-9999", 5, total),
        ] {
            let reply = with(web, target, &[("Range", range)]);
            assert_eq!((reply.status, reply.text().as_str()), (206, &text[from..to]), "{range}");
            let told = format!("bytes {from}-{}/{total}", to - 1);
            assert_eq!(reply.header("content-range"), Some(told.as_str()));
        }
        for range in ["bytes=999-", "bytes=-0"] {
            let reply = with(web, target, &[("Range", range)]);
            assert_eq!(reply.status, 416, "{range}");
            assert_eq!(reply.header("content-range"), Some(format!("bytes */{total}").as_str()));
        }
        for range in ["bytes=0-1,4-5", "bytes=5-2", "nonsense"] {
            assert_eq!(with(web, target, &[("Range", range)]).status, 200, "{range}");
        }
        let same = [("Range", "bytes=0-1"), ("If-Range", tag)];
        assert_eq!(with(web, target, &same).status, 206);
        let other = [("Range", "bytes=0-1"), ("If-Range", "\"other\"")];
        assert_eq!(with(web, target, &other).status, 200);
        assert_eq!(with(web, target, &[("If-None-Match", tag)]).status, 304);
    }
}

/// The address of a build's product whose path ends so.
fn download(daemon: &Daemon, end: &str, build: i64) -> String {
    let books = rusqlite::Connection::open(daemon.database()).unwrap();
    let query = "SELECT id FROM products WHERE build = ?1 AND path LIKE '%' || ?2";
    let id: i64 = books.query_row(query, (build, end), |row| row.get(0)).unwrap();
    format!("/download/{id}")
}

/// Adds a product to the books that no build of ours would leave.
fn plant(daemon: &Daemon, build: i64, path: &str) -> String {
    let books = rusqlite::Connection::open(daemon.database()).unwrap();
    books.busy_timeout(std::time::Duration::from_secs(30)).unwrap();
    let statement = "INSERT INTO products (build, type, path, size) VALUES (?1, 'file', ?2, 1)";
    books.execute(statement, (build, path)).unwrap();
    format!("/download/{}", books.last_insert_rowid())
}

#[test]
fn products_are_attachments_from_where_products_are() {
    let (_repository, daemon, web, id) = built();
    let reply = web.get(&download(&daemon, ".txt", id));
    assert_eq!((reply.status, reply.text().as_str()), (200, "x"));
    assert_eq!(
        reply.header("content-disposition"),
        Some("attachment; filename=\"odd__name_.txt\"; filename*=UTF-8''odd%20%22name%22.txt")
    );
    assert_eq!(reply.header("content-security-policy"), Some("sandbox"));
    let products = daemon.state().join("products").join(id.to_string());
    let out = products.join("out");
    symlink("/etc/passwd", out.join("link")).unwrap();
    symlink("digits", out.join("good")).unwrap();
    let inside = |name: &str| out.join(name).display().to_string();
    assert_eq!(web.get(&plant(&daemon, id, &inside("good"))).text(), "0123456789");
    for path in [
        "/etc/passwd".to_owned(),
        inside("link"),
        inside("../../../gorget.db"),
        inside("none"),
        daemon.database().display().to_string(),
        products.parent().unwrap().display().to_string(),
    ] {
        let reply = web.get(&plant(&daemon, id, &path));
        assert_eq!(reply.status, 404, "{path}");
        let told = "{\"error\":\"Could not find the requested build product.\"}";
        assert_eq!(reply.text(), told);
    }
    for target in ["/download/999", "/download/x", "/download/..%2F..%2Fgorget.db"] {
        assert_eq!(web.get(target).status, 404, "{target}");
    }
    // A directory comes as an archive in which links stay links.
    let reply = web.get(&download(&daemon, "/out", id));
    assert_eq!(reply.header("content-type"), Some("application/x-tar"));
    assert!(!String::from_utf8_lossy(&reply.body).contains("root:"));
    let names = reply.body.chunks(512).filter(|block| &block[257..262] == b"ustar");
    let names = names.map(|block| block.split(|byte| *byte == 0).next().unwrap());
    let names: Vec<_> = names.map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    assert_eq!(names, ["out/", "out/digits", "out/good", "out/link"]);
}
