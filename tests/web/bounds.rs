//! What clients do that mean no good, or know no better: it costs them alone.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Command;
use std::time::Duration;

use crate::support::daemon::Daemon;
use crate::support::http::{Reply, Web};
use crate::support::{now, until};

/// A normal request among whatever else goes on.
const SOON: Duration = Duration::from_secs(1);

/// A daemon, and its web interface that has answered once.
fn start() -> (Daemon, Web) {
    let daemon = Daemon::start(&["--web=127.0.0.1:0"]);
    let web = Web::of(&daemon);
    assert_eq!(web.get("/nothing").status, 404);
    (daemon, web)
}

/// A normal request, and that it is answered soon.
#[track_caller]
fn assert_answers(web: Web) {
    let began = now();
    assert_eq!(web.get("/nothing").status, 404);
    assert!(began.elapsed() < SOON, "it took {:?}", began.elapsed());
}

/// What comes back for these bytes, to the end of the connection.
fn exchange(web: Web, bytes: &[u8]) -> String {
    let mut stream = web.connect();
    stream.write_all(bytes).unwrap();
    rest(&mut stream)
}

fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        // Whoever still sends when the other end hangs up is told in this way.
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{error}, after {:?}", String::from_utf8_lossy(&bytes)),
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The statuses of all answers in a text.
fn statuses(text: &str) -> Vec<&str> {
    text.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect()
}

#[test]
fn thousands_of_slow_clients_hold_nobody_up() {
    let (_daemon, web) = start();
    let mut slow = Vec::new();
    for _ in 0..2000 {
        let mut stream = web.connect();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: h\r\nX-A: ").unwrap();
        slow.push(stream);
    }
    for round in 0..5 {
        for stream in &mut slow {
            // Those that took too long were told so and hung up on.
            let _ = stream.write_all(b"b");
        }
        assert_answers(web);
        assert!(round > 0 || slow.iter_mut().all(|stream| stream.write_all(b"b").is_ok()));
    }
    let late = rest(slow.last_mut().unwrap());
    assert_eq!(statuses(&late), ["408"], "{late}");
    assert_answers(web);
}

#[test]
fn endless_heads_are_refused() {
    let (_daemon, web) = start();
    for (begin, more, status) in [
        ("GET / HTTP/1.1\r\nHost: h\r\n", "X-A: b\r\n", "431"),
        ("GET / HTTP/1.1\r\nX-A: ", "bbbbbbbb", "431"),
        ("GET /", "aaaaaaaa", "431"),
    ] {
        let mut stream = web.connect();
        stream.write_all(begin.as_bytes()).unwrap();
        let mut sent = 0;
        while sent < 100_000_000 && stream.write_all(more.repeat(128).as_bytes()).is_ok() {
            sent += more.len() * 128;
        }
        assert!(sent < 100_000_000, "it is read for ever");
        assert_answers(web);
        let text =
            exchange(web, format!("{begin}{}", more.repeat(16 * 1024 / more.len())).as_bytes());
        assert_eq!(statuses(&text), [status], "{text}");
    }
    let target = "a".repeat(9000);
    let text = exchange(web, format!("GET /{target} HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes());
    assert_eq!(statuses(&text), ["414"]);
}

#[test]
fn bodies_have_a_limit() {
    let (_daemon, web) = start();
    let head = "POST /nothing HTTP/1.1\r\nHost: h\r\n";
    let text = exchange(web, format!("{head}Content-Length: 1048577\r\n\r\n").as_bytes());
    assert_eq!(statuses(&text), ["413"], "{text}");
    // What is announced chunk by chunk is refused by the chunk that is too much.
    let chunk = format!("80000\r\n{}\r\n", "a".repeat(0x80000));
    let text = exchange(
        web,
        format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunk}{chunk}1\r\n").as_bytes(),
    );
    assert_eq!(statuses(&text), ["413"], "{text}");
    let whole = "a".repeat(1024 * 1024);
    assert_eq!(web.post("/nothing", &[], &whole).status, 404);
    // A dripped one is nobody else's concern.
    let mut stream = web.connect();
    stream.write_all(format!("{head}Content-Length: 1000\r\n\r\n").as_bytes()).unwrap();
    for _ in 0..20 {
        stream.write_all(b"a").unwrap();
        assert_answers(web);
    }
}

#[test]
fn bodies_that_never_end_keep_nobody_from_sending_one() {
    let (_daemon, web) = start();
    let head = "POST /nothing HTTP/1.1\r\nHost: h\r\nContent-Length: 1048576\r\n\r\n";
    let most = format!("{head}{}", "a".repeat(1024 * 1024 - 1));
    let mut greedy = Vec::new();
    // More than all bodies together may be.
    for _ in 0..70 {
        let mut stream = web.connect();
        // Some are hung up on meanwhile.
        let _ = stream.write_all(most.as_bytes());
        greedy.push(stream);
        assert_eq!(web.post("/nothing", &[], &"b".repeat(1000)).status, 404);
    }
    let refused = greedy.into_iter().filter_map(|mut stream| {
        stream.shutdown(Shutdown::Write).ok()?;
        Some(rest(&mut stream))
    });
    assert!(refused.filter(|text| statuses(text) == ["503"]).count() >= 6);
}

#[test]
fn chunked_bodies_are_read_wherever_they_are_cut() {
    let (_daemon, web) = start();
    let request = "POST /nothing HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
                   3;x=y\r\nabc\r\n0\r\nTrailer: x\r\n\r\nGET /other HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    for piece in [1, 7, 1000] {
        let mut stream = web.connect();
        stream.set_nodelay(true).unwrap();
        for bytes in request.as_bytes().chunks(piece) {
            stream.write_all(bytes).unwrap();
        }
        let text = rest(&mut stream);
        assert_eq!(statuses(&text), ["404", "404"], "{text}");
        assert!(text.contains("/nothing") && text.ends_with("/other"), "{text}");
    }
    let text = exchange(web, request.replace("abc\r\n", "abcd\r\n").as_bytes());
    assert_eq!(statuses(&text), ["400"], "{text}");
}

#[test]
fn expectations_are_met() {
    let (_daemon, web) = start();
    let mut stream = web.connect();
    let head = "POST /nothing HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut told = [0; 25];
    stream.read_exact(&mut told).unwrap();
    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"abc").unwrap();
    assert_eq!(statuses(&rest(&mut stream)), ["404"]);
}

#[test]
fn one_connection_serves_many_requests() {
    let (_daemon, web) = start();
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n");
    // All at once, answered in their order.
    let mut stream = web.connect();
    let all: String = (0..50).map(|n| get(&format!("/{n}"))).collect();
    stream.write_all(all.as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let text = rest(&mut stream);
    assert_eq!(statuses(&text).len(), 50, "{text}");
    let mut from = 0;
    for n in 0..50 {
        let mark = format!("Resource not found: /{n}");
        from += text[from..].find(&mark).unwrap_or_else(|| panic!("{n} is not in its place"))
            + mark.len();
    }
    // One after the other, the last one closing.
    let mut stream = web.connect();
    for n in 0..3 {
        stream.write_all(get("/x").as_bytes()).unwrap();
        let reply = read_one(&mut stream);
        assert_eq!((reply.status, reply.header("connection")), (404, None), "{n}");
    }
    stream.write_all(b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
    let reply = Reply::parse(rest(&mut stream).as_bytes());
    assert_eq!((reply.status, reply.header("connection")), (404, Some("close")));
}

/// One answer of a connection that goes on.
fn read_one(stream: &mut TcpStream) -> Reply {
    let mut bytes = Vec::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        bytes.push(byte[0]);
        if bytes.ends_with(b"\r\n\r\n") {
            let head = Reply::parse(&bytes);
            let length = head.header("content-length").unwrap().parse().unwrap();
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            return Reply { body, ..head };
        }
    }
}

#[test]
fn older_clients_are_served() {
    let (_daemon, web) = start();
    let reply = Reply::parse(exchange(web, b"GET /old HTTP/1.0\r\n\r\n").as_bytes());
    assert_eq!((reply.status, reply.header("connection")), (404, Some("close")));
    assert_eq!(reply.text(), "Resource not found: /old");
    let mut stream = web.connect();
    stream.write_all(b"GET /old HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").unwrap();
    assert_eq!(read_one(&mut stream).header("connection"), Some("keep-alive"));
}

#[test]
fn a_head_is_what_a_get_has_without_its_body() {
    let (_daemon, web) = start();
    let mut stream = web.connect();
    stream.write_all(b"HEAD /nothing HTTP/1.1\r\nHost: h\r\n\r\nGET /nothing HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
    let text = rest(&mut stream);
    assert_eq!(statuses(&text), ["404", "404"]);
    let (head, get) = text.split_at(text.rfind("HTTP/1.1").unwrap());
    let of = |text: &str, name: &str| Reply::parse(text.as_bytes()).header(name).map(str::to_owned);
    assert!(head.ends_with("\r\n\r\n"), "{head}");
    for name in ["content-length", "content-type", "cache-control"] {
        assert_eq!(of(head, name), of(get, name));
        assert!(of(get, name).is_some());
    }
}

#[test]
fn nothing_is_smuggled() {
    let (_daemon, web) = start();
    let hidden = "GET /hidden HTTP/1.1\r\nHost: h\r\n\r\n";
    for headers in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 0\r\nContent-Length: 40\r\n",
        "Content-Length: 0\r\nContent-Length: 0\r\n",
        "Content-Length: 0, 40\r\n",
        "Content-Length: +0\r\n",
        "Content-Length : 0\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "A: b\r\n Content-Length: 0\r\n",
        "A: b\nContent-Length: 0\r\n",
        "A: b\rContent-Length: 0\r\n",
        "A: b\0\r\n",
    ] {
        let text = exchange(
            web,
            format!("POST / HTTP/1.1\r\nHost: h\r\n{headers}\r\n0\r\n\r\n{hidden}").as_bytes(),
        );
        let statuses = statuses(&text);
        assert!(statuses == ["400"] || statuses == ["501"], "{headers:?}: {text}");
        assert!(!text.contains("hidden"), "{headers:?}: {text}");
    }
    assert_answers(web);
}

#[test]
fn running_out_of_descriptors_is_survived() {
    let (daemon, web) = start();
    let limit = |soft: &str| {
        let pid = daemon.pid().to_string();
        let limit = format!("--nofile={soft}");
        #[expect(clippy::disallowed_methods, reason = "the test's own tool")]
        let status = Command::new("prlimit").args(["--pid", &pid, &limit]).status().unwrap();
        assert!(status.success());
    };
    let open = || std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    let before = open();
    limit(&format!("{}:", before + 20));
    // The kernel takes what the process cannot accept: those wait, and others give way to them.
    let mut idle: Vec<_> = (0..100).map(|_| web.connect()).collect();
    for stream in &mut idle {
        let _ = stream.write_all(b"GET ");
    }
    for _ in 0..5 {
        assert_answers(web);
    }
    drop(idle);
    assert_answers(web);
    limit(&format!("{}:", before + 200));
    let _idle: Vec<_> = (0..100).map(|_| web.connect()).collect();
    until("all to be accepted", || (open() >= before + 80).then_some(()));
    assert_answers(web);
}

#[test]
fn a_stop_ends_idle_connections_at_once() {
    let (mut daemon, web) = start();
    let mut idle = web.connect();
    idle.write_all(b"GET /x HTTP/1.1\r\nHost: h\r\n\r\n").unwrap();
    assert_eq!(read_one(&mut idle).status, 404);
    let began = now();
    assert!(daemon.stop().success());
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(rest(&mut idle), "");
    let run = daemon.socket();
    let left = std::fs::read_dir(run.parent().unwrap()).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with("web-")), "{left:?}");
}
