//! Whoever assigns builds to a server's workers, in its simplest form: what it knows of its builds survives, what it
//! knows of the server is told anew each time it attaches.
//!
//! For tests of server and workers alone; the real one is the daemon's remote backend.
#![allow(clippy::disallowed_methods, reason = "tests wait under deadlines of their own")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::jobs::system;

/// Between two attempts to attach.
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Scheduled,
    /// By this worker.
    Assigned(String),
    /// `succeeded`, or the word of a fault.
    Over(String),
}

#[derive(Debug)]
pub(crate) struct Build {
    pub(crate) derivation: String,
    pub(crate) state: State,
    pub(crate) attempt: i64,
    /// How often a worker was lost that had begun it.
    pub(crate) lost: usize,
}

struct Link {
    stream: UnixStream,
    received: Vec<u8>,
    ready: bool,
    /// Workers that want work.
    wanting: BTreeSet<String>,
    /// What the server has.
    assigned: BTreeSet<(i64, i64)>,
    /// The assignments among the commands that have no answer yet.
    unanswered: VecDeque<Option<(i64, i64)>>,
}

pub(crate) struct Foreman {
    socket: PathBuf,
    pub(crate) builds: BTreeMap<i64, Build>,
    link: Option<Link>,
}

impl Foreman {
    pub(crate) fn new(socket: &Path, derivations: Vec<String>) -> Self {
        let build = |derivation| Build { derivation, state: State::Scheduled, attempt: 0, lost: 0 };
        let builds = (1..).zip(derivations.into_iter().map(build)).collect();
        Self { socket: socket.to_owned(), builds, link: None }
    }

    /// Builds that are not over.
    pub(crate) fn open(&self) -> usize {
        self.builds.values().filter(|build| !matches!(build.state, State::Over(_))).count()
    }

    /// Forgets all but the builds, as a daemon that is killed.
    pub(crate) fn die(&mut self) {
        self.link = None;
    }

    /// Attaches if need be, hears what there is to hear, or comes before `patience` is over, and hands out work.
    pub(crate) fn turn(&mut self, patience: Duration) {
        if self.link.is_none() {
            let Ok(stream) = UnixStream::connect(&self.socket) else {
                return std::thread::sleep(PAUSE);
            };
            self.link = Some(Link {
                stream,
                received: Vec::new(),
                ready: false,
                wanting: BTreeSet::new(),
                assigned: BTreeSet::new(),
                unanswered: VecDeque::new(),
            });
            self.say("attach".to_owned(), None);
        }
        let Some(link) = &mut self.link else { return };
        link.stream.set_read_timeout(Some(patience)).unwrap();
        let mut bytes = [0; 65536];
        match link.stream.read(&mut bytes) {
            Ok(0) => return self.die(),
            Ok(length) => link.received.extend_from_slice(&bytes[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(_) => return self.die(),
        }
        while let Some(link) = &mut self.link
            && let Some(end) = link.received.iter().position(|byte| *byte == b'\n')
        {
            let line: Vec<u8> = link.received.drain(..=end).collect();
            self.hear(std::str::from_utf8(&line).unwrap().trim_end());
        }
        self.hand_out();
    }

    fn say(&mut self, line: String, assignment: Option<(i64, i64)>) {
        let Some(link) = &mut self.link else { return };
        link.unanswered.push_back(assignment);
        if writeln!(link.stream, "{line}").is_err() {
            self.die();
        }
    }

    fn hear(&mut self, line: &str) {
        if line == "ok" || line.starts_with("error ") {
            let Some(link) = &mut self.link else { return };
            let asked = link.unanswered.pop_front().expect("an answer to nothing");
            match asked {
                Some(_) if line.starts_with("error syntax") => panic!("{line}"),
                Some((build, attempt)) if line != "ok" => self.reschedule(build, attempt),
                // The one before it is still seen to be there.
                None if line.starts_with("error conflict another daemon") => self.die(),
                None => assert_eq!(line, "ok"),
                Some(_) => {}
            }
            return;
        }
        let event: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        let number = |name: &str| event[name].as_i64().unwrap_or_else(|| panic!("{event}"));
        let worker = || event["worker"].as_str().unwrap_or_else(|| panic!("{event}")).to_owned();
        match event["event"].as_str().unwrap_or_else(|| panic!("{event}")) {
            "worker-joined" | "worker-seen" | "started" => {}
            "requested" => drop(self.wanting().insert(worker())),
            "withdrawn" | "worker-left" => drop(self.wanting().remove(&worker())),
            "assigned" => {
                let it = &event["assignment"];
                let (build, attempt) =
                    (it["build"].as_i64().unwrap(), it["attempt"].as_i64().unwrap());
                if let Some(link) = &mut self.link {
                    link.assigned.insert((build, attempt));
                }
                if !self.runs(build, attempt) {
                    self.say(format!("cancel {build} {attempt}"), None);
                } else if !it["report"].is_null() {
                    self.end(build, attempt, &it["report"]);
                }
            }
            "ready" => self.adopt(),
            "reported" => self.end(number("build"), number("attempt"), &event["report"]),
            "lost" => {
                let (build, attempt) = (number("build"), number("attempt"));
                if event["started"] == true && self.runs(build, attempt) {
                    self.builds.get_mut(&build).unwrap().lost += 1;
                }
                self.reschedule(build, attempt);
            }
            _ => panic!("{event}"),
        }
    }

    fn wanting(&mut self) -> &mut BTreeSet<String> {
        &mut self.link.as_mut().expect("events come over a link").wanting
    }

    fn runs(&self, build: i64, attempt: i64) -> bool {
        let build = &self.builds[&build];
        build.attempt == attempt && matches!(build.state, State::Assigned(_))
    }

    fn reschedule(&mut self, build: i64, attempt: i64) {
        if self.runs(build, attempt) {
            self.builds.get_mut(&build).unwrap().state = State::Scheduled;
        }
    }

    fn end(&mut self, build: i64, attempt: i64, report: &Value) {
        if self.runs(build, attempt) {
            let word = report["fault"].as_str().unwrap_or("succeeded").to_owned();
            self.builds.get_mut(&build).unwrap().state = State::Over(word);
        }
        self.say(format!("settle {build} {attempt}"), None);
    }

    /// All has been told: what the server does not know of, an earlier one did.
    fn adopt(&mut self) {
        let Some(link) = &mut self.link else { return };
        link.ready = true;
        let mut lines = Vec::new();
        for (id, build) in &self.builds {
            if let State::Assigned(worker) = &build.state
                && !link.assigned.contains(&(*id, build.attempt))
            {
                lines.push(format!("adopt {id} {} {worker} {}", build.attempt, build.derivation));
            }
        }
        for line in lines {
            self.say(line, None);
        }
    }

    fn hand_out(&mut self) {
        let mut lines = Vec::new();
        let Some(link) = &mut self.link else { return };
        if !link.ready {
            return;
        }
        for (id, build) in &mut self.builds {
            if build.state == State::Scheduled {
                let Some(worker) = link.wanting.pop_first() else { break };
                build.attempt += 1;
                let line = format!(
                    "assign {id} {} {worker} {} {}",
                    build.attempt,
                    build.derivation,
                    system()
                );
                build.state = State::Assigned(worker);
                lines.push((line, (*id, build.attempt)));
            }
        }
        for (line, of) in lines {
            self.say(line, Some(of));
        }
    }
}
