//! Guix: builds through a real guix-daemon, whose socket `GORGET_TEST_GUIX_DAEMON` names, against a client that does
//! nothing but have them built. Its store must be /gnu/store, and it must build without a chroot.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::daemon::Daemon;
use crate::jobs::{Repository, system};
use crate::{report, subscribe};

/// Derivations of each side.
const BUILDS: usize = 1000;

/// A connection that speaks as much of the protocol as is needed here.
struct Client(UnixStream);

impl Client {
    fn open(socket: &str) -> Self {
        let mut client = Self(UnixStream::connect(socket).unwrap());
        client.send(&[0x6e69_7863]);
        assert_eq!((client.word(), client.word()), (0x6478_696f, 0x164));
        client.send(&[0x164, 0, 1]);
        client.wait().unwrap();
        client
    }

    fn send(&mut self, words: &[u64]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.0.write_all(&bytes).unwrap();
    }

    fn word(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.0.read_exact(&mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    fn string(&mut self) -> String {
        let length = usize::try_from(self.word()).unwrap();
        let mut bytes = vec![0; length.next_multiple_of(8)];
        self.0.read_exact(&mut bytes).unwrap();
        bytes.truncate(length);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Until the reply's fields follow, or an error.
    fn wait(&mut self) -> Result<(), String> {
        loop {
            match self.word() {
                0x6f6c_6d67 => drop(self.string()),
                0x616c_7473 => return Ok(()),
                0x6378_7470 => {
                    let message = self.string();
                    self.word();
                    return Err(message);
                }
                other => panic!("{other:x}"),
            }
        }
    }

    fn request(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.0.write_all(bytes).unwrap();
        self.wait()
    }

    fn set_options(&mut self) {
        // As Gorget does where there are no other machines, without pairs but one job at once.
        let mut bytes = words(&[19, 0, 0, 0, 0, 0, 0, 2, 1, 1, 1]);
        bytes.extend(string("build-max-jobs"));
        bytes.extend(string("1"));
        self.request(&bytes).unwrap();
    }

    fn add(&mut self, name: &str, text: &str, reference: &str) -> Result<String, String> {
        let mut bytes = words(&[8]);
        bytes.extend(string(name));
        bytes.extend(string(text));
        bytes.extend(words(&[1]));
        bytes.extend(string(reference));
        self.request(&bytes)?;
        Ok(self.string())
    }

    /// Adds this host's shell: a builder must be in the store.
    fn add_shell(&mut self) -> String {
        let mut bytes = words(&[7]);
        bytes.extend(string("sh"));
        bytes.extend(words(&[1, 1]));
        bytes.extend(string("sha256"));
        for token in ["nix-archive-1", "(", "type", "regular", "executable", "", "contents"] {
            bytes.extend(string(token));
        }
        bytes.extend(padded(&std::fs::read("/bin/sh").unwrap()));
        bytes.extend(string(")"));
        self.request(&bytes).unwrap();
        self.string()
    }

    fn build(&mut self, derivation: &str) {
        let mut bytes = words(&[9, 1]);
        bytes.extend(string(derivation));
        bytes.extend(words(&[0]));
        self.request(&bytes).unwrap();
        self.word();
    }

    /// A derivation that nobody built, and its output.
    fn derivation(&mut self, shell: &str, name: &str) -> (String, String) {
        let text = |path: &str| {
            format!(
                "Derive([(\"out\",\"{path}\",\"\",\"\")],[],[\"{shell}\"],\"{}\",\"{shell}\",\
                 [\"-c\",\"echo > $out\"],[(\"out\",\"{path}\")])",
                system()
            )
        };
        let file = format!("{name}.drv");
        let wrong = format!("/gnu/store/{}-{name}", "0".repeat(32));
        // The daemon knows better which path it has.
        let refused = self.add(&file, &text(&wrong), shell).unwrap_err();
        let right = refused
            .split(['`', '\''])
            .rfind(|word| word.starts_with("/gnu/store/") && !word.contains(&"0".repeat(32)))
            .unwrap_or_else(|| panic!("{refused}"))
            .to_owned();
        (self.add(&file, &text(&right), shell).unwrap(), right)
    }
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn string(text: &str) -> Vec<u8> {
    padded(text.as_bytes())
}

fn padded(text: &[u8]) -> Vec<u8> {
    let mut bytes = words(&[text.len() as u64]);
    bytes.extend_from_slice(text);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

pub(crate) fn builds() {
    let what = "1,000 derivations through guix-daemon, 2 slots";
    let Ok(socket) = std::env::var("GORGET_TEST_GUIX_DAEMON") else {
        println!("{what}: skipped; GORGET_TEST_GUIX_DAEMON names no daemon's socket");
        return;
    };
    let salt = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
    let mut client = Client::open(&socket);
    let shell = client.add_shell();
    let mut derivations = |side: &str| -> Vec<(String, String)> {
        (0..BUILDS).map(|n| client.derivation(&shell, &format!("{side}-{salt}-{n}"))).collect()
    };
    let (ours, theirs) = (derivations("ours"), derivations("theirs"));

    let mut lines = String::new();
    for (n, (derivation, out)) in ours.iter().enumerate() {
        let line = serde_json::json!({
            "job": format!("j{n}"), "system": system(), "derivation": derivation, "outputs": {"out": out},
        });
        lines += &format!("{line}\n");
    }
    let repository = Repository::new(0);
    crate::set_jobs(&repository, &lines);
    let mut daemon = Daemon::prepare(&["--max-builds=2", "--interval=3600", "--builder=guix"]);
    daemon.environment("GUIX_DAEMON_SOCKET", &socket);
    daemon.restart();
    daemon.ask("pause builds");
    let mut events = subscribe(&mut daemon);
    daemon.ask(&crate::add(&repository, "guix"));
    events.wait_for("evaluation-ended");
    // Their roots are made.
    let roots = daemon.state().join("gcroots");
    while std::fs::read_dir(&roots).map_or(0, Iterator::count) < BUILDS {
        std::thread::sleep(Duration::from_millis(10));
    }
    let before = daemon.processor_time();
    let began = Instant::now();
    daemon.ask("resume builds");
    let mut last = began;
    for _ in 0..BUILDS {
        let (event, at) = events.wait_for("build-ended");
        assert_eq!(event["status"], "succeeded", "{event}\n{}", daemon.log());
        last = at;
    }
    let took = last - began;
    let own = (daemon.processor_time() - before).as_secs_f64() * 1000.0 / BUILDS as f64;
    println!("# Gorget itself needs {own:.2} ms of a processor for a build");
    daemon.stop();

    let began = Instant::now();
    std::thread::scope(|scope| {
        for half in theirs.chunks(BUILDS / 2) {
            let mut client = Client::open(&socket);
            scope.spawn(move || {
                client.set_options();
                for (derivation, _) in half {
                    client.build(derivation);
                }
            });
        }
    });
    let bare = began.elapsed();
    report(
        what,
        &format!("{:.2} s", took.as_secs_f64()),
        &format!(
            "{:.2} x a bare client on 2 connections ({:.2} s)",
            took.as_secs_f64() / bare.as_secs_f64(),
            bare.as_secs_f64()
        ),
        "at most 1.1 x",
    );
}
