//! Against small real servers on the loopback interface.

use std::io::{BufRead, BufReader, Read as _, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::thread::JoinHandle;

use super::super::letter::tests::{parameters, pending};
use super::*;
use crate::daemon::Mastodon;

#[expect(clippy::disallowed_methods, reason = "a test's server thread, joined by the test")]
fn serve<T: Send + 'static>(
    talk: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (u16, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (port, std::thread::spawn(move || talk(listener.accept().unwrap().0)))
}

fn courier(directory: &Path, parameters: Parameters) -> Courier {
    let launcher = Launcher::new(directory.join("keepers"), clock::now() + PATIENCE).unwrap();
    Courier::new(launcher, parameters)
}

/// Reads one request, answers `status`, returns head and body.
fn http(status: &'static str) -> impl FnOnce(TcpStream) -> (String, String) {
    move |stream| {
        let mut reader = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(reader.read_line(&mut head).unwrap(), 0);
        }
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length").then(|| value.parse().unwrap())
        });
        let mut body = vec![0; length.unwrap()];
        reader.read_exact(&mut body).unwrap();
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
        reader.get_mut().write_all(answer.as_bytes()).unwrap();
        (head, String::from_utf8(body).unwrap())
    }
}

/// Plays a mail server; `answer` to the mail's end; returns all lines it was sent.
fn mail_server(answer: &'static str) -> impl FnOnce(TcpStream) -> Vec<String> {
    move |stream| {
        let mut reader = BufReader::new(stream);
        let say = |reader: &mut BufReader<TcpStream>, line: &str| {
            reader.get_mut().write_all(format!("{line}\r\n").as_bytes()).unwrap();
        };
        say(&mut reader, "220 here");
        let (mut lines, mut in_data) = (vec![], false);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap() == 0 {
                return lines;
            }
            let line = line.trim_end().to_owned();
            let reply = match line.get(..4) {
                _ if in_data && line != "." => None,
                _ if in_data => {
                    in_data = false;
                    Some(answer)
                }
                Some("DATA") => {
                    in_data = true;
                    Some("354 go on")
                }
                Some("QUIT") => Some("221 bye"),
                _ => Some("250 fine"),
            };
            lines.push(line);
            if let Some(reply) = reply {
                say(&mut reader, reply);
            }
        }
    }
}

#[test]
fn a_webhook_is_signed_json() {
    let directory = tempfile::tempdir().unwrap();
    let (port, server) = serve(http("204 No Content"));
    let notification =
        format!(r#"{{"type":"webhook","url":"http://127.0.0.1:{port}/hook?x=1","secret":"s3"}}"#);
    let courier = courier(directory.path(), parameters());
    assert_eq!(courier.deliver(&pending(&notification)), Ok(()));
    let (head, body) = server.join().unwrap();
    assert!(head.starts_with("POST /hook?x=1 HTTP/1.1\r\n"), "{head}");
    let expected = letter::signature("s3", &body);
    assert!(head.to_lowercase().contains(&format!("x-gorget-signature: {expected}")), "{head}");
    let json: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(json["word"], "broken");
    assert_eq!(json["build"], 12);
    assert_eq!(json["url"], "https://ci.example.org/build/12/details");
}

#[test]
fn http_answers_decide_whether_to_try_again() {
    let directory = tempfile::tempdir().unwrap();
    let courier = courier(directory.path(), parameters());
    for (status, later) in [
        ("500 No", true),
        ("429 Slow", true),
        ("302 Found\r\nlocation: http://127.0.0.1:1/", true),
        ("404 No", false),
    ] {
        let (port, server) = serve(http(status));
        let hook =
            format!(r#"{{"type":"webhook","url":"http://u:secret@127.0.0.1:{port}/token"}}"#);
        let failure = courier.deliver(&pending(&hook)).unwrap_err();
        assert_eq!(matches!(failure, Failure::Later(_)), later, "{status}: {failure}");
        let text = failure.to_string();
        assert!(!text.contains("secret") && !text.contains("token"), "{text}");
        server.join().unwrap();
    }
    let unreachable = r#"{"type":"webhook","url":"http://127.0.0.1:1/token"}"#;
    let failure = courier.deliver(&pending(unreachable)).unwrap_err();
    assert!(matches!(&failure, Failure::Later(why) if !why.contains("token")), "{failure}");
}

#[test]
fn mastodon_gets_the_text_and_the_token() {
    let directory = tempfile::tempdir().unwrap();
    let (port, server) = serve(http("200 OK"));
    let mut with = parameters();
    let post = pending(r#"{"type":"mastodon"}"#);
    let without = courier(directory.path(), with.clone()).deliver(&post);
    assert!(matches!(without, Err(Failure::Hopeless(_))));
    with.mastodon =
        Some(Mastodon { url: format!("http://127.0.0.1:{port}/"), token: "t0k".to_owned() });
    assert_eq!(courier(directory.path(), with).deliver(&post), Ok(()));
    let (head, body) = server.join().unwrap();
    assert!(head.starts_with("POST /api/v1/statuses "), "{head}");
    assert!(head.to_lowercase().contains("authorization: bearer t0k"), "{head}");
    assert!(body.starts_with("status=The"), "{body}");
}

#[test]
fn mail_goes_over_smtp() {
    let directory = tempfile::tempdir().unwrap();
    let courier = courier(directory.path(), parameters());
    for (answer, expected) in [
        ("250 taken", Ok(())),
        ("451 later", Err(Failure::Later("mail server answered 451".to_owned()))),
        ("550 never", Err(Failure::Hopeless("mail server answered 550".to_owned()))),
    ] {
        let (port, server) = serve(mail_server(answer));
        let mail = format!(
            r#"{{"type":"email","from":"ci@a.org","to":"x@b.org","server":"smtp://127.0.0.1:{port}"}}"#
        );
        assert_eq!(courier.deliver(&pending(&mail)), expected);
        let lines = server.join().unwrap();
        assert!(lines.iter().any(|line| line == "RCPT TO:<x@b.org>"), "{lines:?}");
        assert!(lines.iter().any(|line| line == "Subject: Build compile on hello is broken."));
    }
    let bad = r#"{"type":"email","from":"ci@a.org","to":"x@b.org","server":"gopher://u:secret@x"}"#;
    let failure = courier.deliver(&pending(bad)).unwrap_err();
    assert!(!failure.to_string().contains("secret"));
    assert!(matches!(failure, Failure::Hopeless(_)));
}

#[test]
fn unknown_kinds_are_hopeless() {
    let directory = tempfile::tempdir().unwrap();
    let courier = courier(directory.path(), parameters());
    let failure = courier.deliver(&pending(r#"{"type":"pigeon"}"#));
    assert!(matches!(failure, Err(Failure::Hopeless(_))));
}
