//! `guix publish` as a child: what was built here is fetched from it.
//!
//! Invariant: while the process lives, it runs or is about to be started again; the private key is read once, before
//! privileges are dropped, and is in no file and no argument of ours.

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{after, select};

use crate::actor::leash::Leash;
use crate::actor::{Gone, Spawner, Stop};
use crate::sys::process::{Child, Exit, How, Killer, Launch, Launcher, Program, Read};
use crate::sys::{clock, file};

/// Where Guix keeps its own pair.
pub(crate) const PUBLIC_KEY: &str = "/etc/guix/signing-key.pub";
pub(crate) const PRIVATE_KEY: &str = "/etc/guix/signing-key.sec";

/// Before it is started again, doubled each time: a port that is still taken is free in seconds.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// When it ran for so long, what ended it is a new trouble.
const FINE: Duration = Duration::from_secs(300);

/// How long it may take to end by itself.
const GRACE: Duration = Duration::from_secs(2);

/// Characters of its last words that are logged again.
const MAX_WORDS: usize = 500;

/// A key has some hundred bytes.
const MAX_KEY: u64 = 64 << 10;

/// What to publish with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// The command that runs Guix.
    pub(crate) guix: Vec<String>,
    pub(crate) port: u16,
    pub(crate) public_key: PathBuf,
    pub(crate) private_key: PathBuf,
}

/// Why nothing can be published.
#[derive(Debug)]
pub(crate) enum Error {
    NoGuix(String),
    Key(PathBuf, io::Error),
    Start(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoGuix(command) => write!(
                f,
                "cannot publish what is built: there is no {command:?} here; install Guix, name it with --guix, or say --no-publish"
            ),
            Self::Key(file, _) => write!(
                f,
                "cannot publish what is built: cannot read the key {} (guix archive --generate-key makes a pair; --no-publish does without)",
                file.display()
            ),
            Self::Start(_) => f.write_str("cannot start the thread publish"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::NoGuix(_) => None,
            Self::Key(_, error) | Self::Start(error) => Some(error),
        }
    }
}

/// All that it takes: to be prepared with the privileges that the keys need.
pub(crate) struct Publisher {
    config: Config,
    private_key: Vec<u8>,
}

impl Publisher {
    pub(crate) fn prepare(config: Config) -> Result<Self, Error> {
        let program = config.guix.first().cloned().unwrap_or_default();
        if !is_there(&program, &env::var_os("PATH").unwrap_or_default()) {
            return Err(Error::NoGuix(program));
        }
        let key = |path: &Path| {
            file::read(path, MAX_KEY).map_err(|error| Error::Key(path.to_owned(), error))
        };
        key(&config.public_key)?;
        let private_key = key(&config.private_key)?;
        Ok(Self { config, private_key })
    }

    /// Starts the thread `publish`, and `publish/stop`, which wakes it at the stop: then it ends its child.
    pub(crate) fn spawn(self, threads: &Spawner, launcher: Launcher) -> Result<(), Error> {
        let leash = Arc::new(Leash::default());
        let held = Arc::clone(&leash);
        threads
            .child(
                "publish/stop",
                move |stop| {
                    // Nothing is ever sent: this is the disconnection.
                    let _ = stop.recv();
                    held.cancel();
                    Ok::<_, Gone>(())
                },
                |report| log::debug!(target: "publish", "{report:?}"),
            )
            .map_err(Error::Start)?;
        let body = move |stop| run(&self, &launcher, &leash, &stop);
        threads.essential("publish", body).map_err(Error::Start)
    }

    fn launch(&self) -> Launch {
        let Config { guix, port, public_key, .. } = &self.config;
        let mut words: Vec<OsString> = guix.iter().map(OsString::from).collect();
        words.push("publish".into());
        words.push(format!("--port={port}").into());
        words.push("--compression=0".into());
        words.push("--negative-ttl=0s".into());
        let mut key = OsString::from("--public-key=");
        key.push(public_key);
        words.push(key);
        // It comes on standard input.
        words.push("--private-key=/dev/stdin".into());
        Launch {
            program: Program::Command(words),
            environment: env::vars_os().filter(|(name, _)| !is_ours(name)).collect(),
            directory: "/".into(),
            user: None,
            memory: None,
            merge: true,
        }
    }
}

/// What the service manager told us, and nobody else.
fn is_ours(name: &OsString) -> bool {
    name == "NOTIFY_SOCKET" || name == "WATCHDOG_PID" || name == "WATCHDOG_USEC"
}

/// Whether there is such a program; what keeps it from running is seen when it is to.
fn is_there(program: &str, path: &OsString) -> bool {
    if program.contains('/') {
        return Path::new(program).is_file();
    }
    env::split_paths(path).any(|directory| directory.join(program).is_file())
}

fn run(
    publisher: &Publisher,
    launcher: &Launcher,
    leash: &Leash<Killer>,
    stop: &Stop,
) -> Result<(), Gone> {
    let mut pause = PAUSES.0;
    loop {
        let began = clock::now();
        match launcher.start(publisher.launch(), Some(publisher.private_key.clone())) {
            Ok(child) => {
                if !leash.take(child.killer()) {
                    child.stop(GRACE);
                    return Ok(());
                }
                log::info!(target: "publish", "publishing on port {}", publisher.config.port);
                let mut last = String::new();
                match follow(child, &mut last) {
                    None => return Ok(()),
                    Some(exit) => {
                        let how = ended(&exit);
                        log::warn!(target: "publish", "guix publish {how}; it said last: {last}");
                    }
                }
            }
            Err(error) => log::warn!(target: "publish", "cannot start guix publish: {error}"),
        }
        if clock::now() >= began + FINE {
            pause = PAUSES.0;
        }
        select! {
            recv(stop) -> _ => return Ok(()),
            recv(after(pause)) -> _ => {}
        }
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// Logs what it says until it ends; `None` at the stop. What it says last may tell why it ended.
fn follow(mut child: Child, last: &mut String) -> Option<Exit> {
    let mut said = Vec::new();
    loop {
        match child.read(&mut said, None) {
            Ok(Read::Output | Read::Errors) => tell(&mut said, last),
            Ok(Read::Ended(exit)) => return Some(exit),
            Ok(Read::Deadline) => {}
            Ok(Read::Canceled) => {
                child.stop(GRACE);
                return None;
            }
            Err(error) => {
                log::warn!(target: "publish", "cannot read what guix publish says: {error}");
                return Some(child.stop(GRACE));
            }
        }
    }
}

/// Logs the whole lines of what was said. One without an end is not waited for beyond what a read returns.
fn tell(said: &mut Vec<u8>, last: &mut String) {
    for line in String::from_utf8_lossy(said).lines() {
        log::debug!(target: "publish", "{line}");
        *last = line.chars().take(MAX_WORDS).collect();
    }
    said.clear();
}

fn ended(exit: &Exit) -> String {
    match &exit.how {
        How::Code(code) => format!("ended with status {code}"),
        How::Signal(number) => format!("was killed by signal {number}"),
        How::NotStarted(why) | How::Prevented(why) => format!("was not started: {why}"),
        How::Lost => "was lost".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(directory: &Path, guix: &str) -> Config {
        Config {
            guix: vec![guix.to_owned(), "-q".to_owned()],
            port: 5558,
            public_key: directory.join("key.pub"),
            private_key: directory.join("key.sec"),
        }
    }

    #[test]
    fn keys_and_guix_must_be_there_and_keys_are_in_no_argument() {
        let place = tempfile::tempdir().unwrap();
        let refused = |guix: &str| match Publisher::prepare(config(place.path(), guix)) {
            Err(error) => error.to_string(),
            Ok(_) => String::new(),
        };
        assert!(refused("no-such-guix").contains("no \"no-such-guix\" here"));
        assert!(refused("no-such-guix").contains("--no-publish"));
        assert!(refused("sh").contains("key.pub"));
        std::fs::write(place.path().join("key.pub"), "(public-key)").unwrap();
        assert!(refused("sh").contains("key.sec"));
        std::fs::write(place.path().join("key.sec"), "(secret)").unwrap();
        let publisher = Publisher::prepare(config(place.path(), "/bin/sh")).unwrap();
        assert_eq!(publisher.private_key, b"(secret)");
        let Program::Command(words) = publisher.launch().program else { panic!() };
        let words: Vec<_> = words.iter().map(|word| word.to_str().unwrap()).collect();
        let public = format!("--public-key={}/key.pub", place.path().display());
        assert_eq!(
            words,
            [
                "/bin/sh",
                "-q",
                "publish",
                "--port=5558",
                "--compression=0",
                "--negative-ttl=0s",
                &public,
                "--private-key=/dev/stdin"
            ]
        );
    }
}
