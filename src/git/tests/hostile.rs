//! Looks as the daemon makes them, in children under keepers, at servers that mean no good.

use super::super::gitserver::{Manner, Protocol, Server, refusing_url};
use super::*;
use crate::sys::process::Launcher;

/// Silence that is allowed: short, since the tests wait it out, and long beside what a look takes.
const SHORT: Duration = Duration::from_secs(2);

struct Looks {
    world: World,
    launcher: Launcher,
}

impl Looks {
    fn new() -> Self {
        let world = World::local();
        let author = world.repository("r");
        // Enough to be cut in two: what cannot be compressed.
        let mut random = fastrand::Rng::with_seed(1);
        let noise: String = (0..300_000).map(|_| random.alphanumeric()).collect();
        author.commit("main", &[file("f", "1"), file("noise", &noise)]);
        let keepers = world.path().join("keepers");
        let launcher = Launcher::new(keepers, clock::now() + SILENCE).unwrap();
        Self { world, launcher }
    }

    fn server(&self, protocol: Protocol, manner: Manner) -> Server {
        Server::start(self.world.path(), protocol, manner)
    }

    fn look(&self, url: &str, silence: Duration) -> wire::Answer {
        self.cancelable(url, silence, |_| ())
    }

    fn cancelable(
        &self,
        url: &str,
        silence: Duration,
        started: impl FnOnce(Killer),
    ) -> wire::Answer {
        let places = Places {
            mirrors: self.world.path().join("cache/git"),
            checkouts: self.world.path().join("cache/checkouts"),
        };
        let wanted = Look { url: url.to_owned(), references: vec![branch("main")] };
        look(&self.launcher, &places, &wanted, silence, started)
    }
}

fn good(answer: wire::Answer) -> Resolved {
    answer.unwrap().remove(0).unwrap()
}

#[test]
fn looks_work_over_each_protocol() {
    let looks = Looks::new();
    let local = looks.world.path().join("r");
    // A local repository may belong to another user; where we may make it so.
    let _ = std::os::unix::fs::chown(&local, Some(54_321), None);
    assert_eq!(read(&good(looks.look(local.to_str().unwrap(), SILENCE)), "f"), "1");
    for protocol in [Protocol::Git, Protocol::Http] {
        let server = looks.server(protocol, Manner::Honest);
        let first = good(looks.look(&server.url("r"), SILENCE));
        assert_eq!(read(&first, "f"), "1");
        let before = server.requests();
        assert_eq!(good(looks.look(&server.url("r"), SILENCE)), first);
        // Nothing new: the references, and no pack.
        assert_eq!(server.requests(), before + 1);
        let missing = looks.look(&server.url("nowhere"), SILENCE).unwrap_err().0;
        assert!(missing.starts_with(&server.url("nowhere")), "{missing}");
    }
}

#[test]
fn bad_servers_are_errors_in_bounded_time() {
    let looks = Looks::new();
    let refused = looks.look(&refusing_url("r"), SILENCE).unwrap_err().0;
    assert!(refused.contains("cannot look at it"), "{refused}");
    for protocol in [Protocol::Git, Protocol::Http] {
        for manner in [Manner::Hang, Manner::Drip, Manner::Garbage] {
            let server = looks.server(protocol, manner);
            let start = clock::now();
            let error = looks.look(&server.url("r"), SHORT).unwrap_err().0;
            assert!(clock::now() - start < SHORT * 10, "{protocol:?} {manner:?}");
            assert!(error.starts_with(&server.url("r")), "{error}");
        }
    }
}

#[test]
fn a_server_that_vanishes_leaves_nothing_broken() {
    let looks = Looks::new();
    for protocol in [Protocol::Git, Protocol::Http] {
        let server = looks.server(protocol, Manner::Vanish(100_000));
        let error = looks.look(&server.url("r"), SILENCE).unwrap_err().0;
        assert!(error.starts_with(&server.url("r")), "{error}");
        server.set(Manner::Honest);
        let first = good(looks.look(&server.url("r"), SILENCE));
        // The same in the middle of a later fetch.
        let author = Author { repository: Repository::open(looks.world.path().join("r")).unwrap() };
        let mut random = fastrand::Rng::with_seed(2);
        let noise: String = (0..300_000).map(|_| random.alphanumeric()).collect();
        author.commit("main", &[file("f", "2"), file("noise", &noise)]);
        server.set(Manner::Vanish(100_000));
        assert!(looks.look(&server.url("r"), SILENCE).is_err());
        server.set(Manner::Honest);
        let second = good(looks.look(&server.url("r"), SILENCE));
        assert_eq!((read(&first, "f").len(), read(&second, "f")), (1, "2".to_owned()));
        author.commit("main", &[file("f", "1"), file("noise", "")]);
    }
}

#[test]
fn passwords_are_used_and_never_shown() {
    let looks = Looks::new();
    let server = looks.server(Protocol::Http, Manner::Password);
    assert!(looks.look(&server.url_with("me:secret", "r"), SILENCE).is_ok());
    let wrong = looks.look(&server.url_with("me:wrong", "r"), SILENCE).unwrap_err().0;
    assert!(!wrong.contains("wrong") && !wrong.contains("me:"), "{wrong}");
    // And are not on disk.
    let mut directories = vec![looks.world.path().join("cache")];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                directories.push(entry.path());
            } else {
                let bytes = fs::read(entry.path()).unwrap();
                assert!(!bytes.windows(6).any(|part| part == b"secret"), "{:?}", entry.path());
            }
        }
    }
}

#[test]
fn a_look_can_be_canceled() {
    let looks = Looks::new();
    let server = looks.server(Protocol::Git, Manner::Hang);
    let canceled = looks.cancelable(&server.url("r"), SILENCE, |killer| killer.cancel());
    assert!(canceled.unwrap_err().0.ends_with("canceled"));
}

#[test]
fn two_looks_at_one_submodule_take_turns() {
    let looks = Looks::new();
    let sub = looks.world.repository("sub").commit("main", &[file("f", "sub")]).to_string();
    for name in ["a", "b"] {
        let modules = file(".gitmodules", "[submodule \"s\"]\n path = s\n url = ../sub\n");
        looks
            .world
            .repository(name)
            .commit("main", &[modules, (b"s", 0o160_000, sub.clone().into())]);
    }
    let server = looks.server(Protocol::Git, Manner::Honest);
    std::thread::scope(|scope| {
        let both = ["a", "b"].map(|name| {
            let url = server.url(name);
            let looks = &looks;
            scope.spawn(move || good(looks.look(&url, SILENCE)))
        });
        for look in both {
            assert_eq!(read(&look.join().unwrap(), "s/f"), "sub");
        }
    });
}

#[test]
fn a_local_repository_may_have_submodules_elsewhere() {
    let looks = Looks::new();
    let sub = looks.world.repository("sub").commit("main", &[file("f", "sub")]).to_string();
    let server = looks.server(Protocol::Http, Manner::Honest);
    let modules = format!("[submodule \"s\"]\n path = s\n url = {}\n", server.url("sub"));
    let top = looks.world.repository("top");
    top.commit("main", &[file(".gitmodules", &modules), (b"s", 0o160_000, sub.into())]);
    let at = good(looks.look(looks.world.path().join("top").to_str().unwrap(), SILENCE));
    assert_eq!(read(&at, "s/f"), "sub");
}
