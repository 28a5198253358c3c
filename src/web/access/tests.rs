//! Roles, scopes, and a walk over all routes with each of them.

use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use crossbeam_channel::{Receiver, bounded};

use super::*;
use crate::actor::Spawner;
use crate::db::{Database, Tx, jobsets};
use crate::proto::control::{self, ROLES};
use crate::spec::parameters::{LOOPBACK_ROLES, Parameters};
use crate::web::Config;
use crate::web::context::Shared;
use crate::web::live;
use crate::web::request::{Method, Query, components};
use crate::web::route::{self, Found};

#[test]
fn roles_are_those_that_tokens_have() {
    let words: Vec<_> = Role::ALL.iter().map(|(word, _)| *word).collect();
    assert_eq!(words, ROLES);
    assert!(LOOPBACK_ROLES.iter().all(|word| Role::from_word(word).is_some()));
}

#[test]
fn each_role_may_what_it_is_for() {
    use Access::{Administer, Edit, Operate, Read, Trigger};
    for (role, allowed) in [
        (Role::Trigger, &[Trigger][..]),
        (Role::Viewer, &[Read]),
        (Role::Operator, &[Read, Trigger, Operate]),
        (Role::Editor, &[Read, Trigger, Operate, Edit]),
        (Role::Admin, &[Read, Trigger, Operate, Edit, Administer]),
    ] {
        for access in [Read, Trigger, Operate, Edit, Administer] {
            assert_eq!(role.may(access), allowed.contains(&access), "{role:?} {access:?}");
        }
    }
    assert_eq!(Role::needed(Access::Edit), Role::Editor);
    assert_eq!(Role::needed(Access::Trigger), Role::Trigger);
}

#[test]
fn a_scope_is_one_jobset() {
    let name = |text| JobsetName::new(text).unwrap();
    let scoped =
        Identity { name: "token x".to_owned(), role: Role::Operator, jobset: Some(name("a")) };
    assert!(scoped.may(Access::Operate, Some(&name("a"))));
    assert!(!scoped.may(Access::Operate, Some(&name("b"))));
    assert!(!scoped.may(Access::Operate, None));
    assert!(scoped.may(Access::Read, None));
    let all = Identity { jobset: None, ..scoped };
    assert!(all.may(Access::Operate, Some(&name("b"))) && all.may(Access::Operate, None));
}

/// A daemon that says `ok` to everything and tells what it was asked. Ends at the line `end`.
fn bridge(socket: &Path) -> (Receiver<String>, std::thread::JoinHandle<()>) {
    let listener = UnixListener::bind(socket).unwrap();
    let (asked, heard) = bounded(100);
    #[expect(
        clippy::disallowed_methods,
        reason = "a peer of the code under test, joined at its end"
    )]
    let thread = std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut line = String::new();
            while stream.read_line(&mut line).unwrap() > 0 {
                let request = line.trim().to_owned();
                line.clear();
                if request == "end" {
                    return;
                }
                // Of a token's use, and of refusals, nobody waits for more than that.
                let answer = if request.contains("register-dashboard") {
                    "{\"id\":\"x\"}\nok\n"
                } else {
                    "ok\n"
                };
                asked.send(request).unwrap();
                if stream.get_mut().write_all(answer.as_bytes()).is_err() {
                    break;
                }
            }
            let _ = stream.get_mut().shutdown(Shutdown::Both);
        }
    });
    (heard, thread)
}

fn request(method: Method, target: &str, secret: Option<&str>) -> Request {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut headers = vec![("Host".to_owned(), "ci.example.org".to_owned())];
    if let Some(secret) = secret {
        headers.push(("Authorization".to_owned(), format!("Bearer {secret}")));
    }
    Request {
        method,
        target: target.to_owned(),
        path: components(path),
        query: Query::parse(query),
        headers,
        body: Vec::new(),
        peer: "192.0.2.1".parse().unwrap(),
        secure: false,
        direct: true,
        id: String::new(),
    }
}

/// A path that the pattern matches.
fn example(pattern: &str) -> String {
    let part = |part: &str| match part {
        ":name" | ":jobset" => "a".to_owned(),
        "*" => "x".to_owned(),
        part if part.starts_with(':') => "1".to_owned(),
        part => part.to_owned(),
    };
    let parts: Vec<String> = pattern.split('/').map(part).collect();
    format!("{}?spec=a&names=x&jobsets=a&priority=5", parts.join("/"))
}

/// Each route with each role, on a public and on a private installation: whoever may not is told so before anything
/// else happens, and no GET makes the daemon change anything but for dashboards.
#[test]
fn every_route_asks_for_its_role_and_no_get_changes_anything() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, database) = (directory.path().join("bridge"), directory.path().join("db"));
    let (heard, daemon) = bridge(&socket);
    let (spawner, threads) = Spawner::new();
    let books = Database::open(&database, &spawner).unwrap();
    for (word, _) in Role::ALL {
        let write = move |tx: &mut Tx<'_>| {
            records::add_token(tx, word, &hash(&format!("secret of {word}")), word, None, None)
        };
        books.write("token", write).unwrap();
    }
    let name = JobsetName::new("a").unwrap();
    let specification = r#"{"name":"a","command":["x"],"channels":[]}"#;
    books.write("jobset", move |tx| jobsets::put(tx, &name, specification, true)).unwrap();
    for private in [false, true] {
        let parameters = Parameters { private, ..Parameters::default() };
        let (database, socket) = (database.clone(), socket.clone());
        let config = Config {
            listen: String::new(),
            database,
            socket,
            log_directory: directory.path().join("log"),
            products_directory: directory.path().join("products"),
            parameters,
        };
        // Its own wish to hear events is not what is listened for here.
        let nobody = Config { socket: directory.path().join("nobody"), ..config.clone() };
        let live = live::spawn(&spawner, &nobody).unwrap();
        let mut context = Context::new(Arc::new(Shared::new(config, live)));
        let roles = Role::ALL.iter().map(|(word, role)| Some((*word, *role)));
        for known in [None].into_iter().chain(roles) {
            // What other tests call is not what is offered.
            for route in route::all().filter(|route| !route.path.starts_with("/test/")) {
                let secret = known.map(|(word, _)| format!("secret of {word}"));
                let request = request(route.method, &example(route.path), secret.as_deref());
                let case = format!("{known:?} {} {} {private}", route.method.word(), route.path);
                context.begin();
                let result = check(&mut context, &request, route.access);
                let free = matches!(route.access, Access::Open | Access::Signed)
                    || (route.access == Access::Read && !private);
                let status = match known {
                    _ if free => None,
                    None => Some(401),
                    Some((_, role)) => (!role.may(route.access)).then_some(403),
                };
                assert_eq!(result.as_ref().err().map(Failure::status), status, "{case}");
                let Ok(identity) = result else { continue };
                context.identity = identity;
                let Found::Route(_, captures) = route::find(route.method, &request.path) else {
                    panic!("{case} is not found");
                };
                while heard.try_recv().is_ok() {}
                // Whatever it answers.
                let _ = (route.answer)(&mut context, &request, &captures);
                let asked: Vec<String> = heard.try_iter().collect();
                for line in asked {
                    let command = control::parse(&line).unwrap().command;
                    let fine = route.method.is_unsafe()
                        || !command.is_change()
                        || matches!(command, Command::RegisterDashboard { .. });
                    assert!(fine, "{case}: {line}");
                }
            }
        }
    }
    std::os::unix::net::UnixStream::connect(&socket).unwrap().write_all(b"end\n").unwrap();
    daemon.join().unwrap();
    drop((books, spawner, threads));
}
