//! A real nix-daemon, with a store of its own.
#![allow(
    clippy::disallowed_methods,
    reason = "tests start programs and wait under deadlines of their own"
)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::daemon::Daemon;

/// How long nix-daemon may take to listen: it does in milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// A nix-daemon on a store of its own.
pub(crate) struct Store {
    pub(crate) directory: TempDir,
    /// Where the store is for its daemon, if that is not our directory: there, another one's is for everybody else.
    place: Option<PathBuf>,
    /// The key that what comes from elsewhere must be signed with, if it must.
    key: Option<String>,
    daemon: Option<Child>,
}

impl Store {
    pub(crate) fn start() -> Self {
        Self::start_at(None, None)
    }

    /// Takes from elsewhere what is signed with this key.
    pub(crate) fn start_trusting(key: &str) -> Self {
        Self::start_at(None, Some(key.to_owned()))
    }

    /// Another machine's, with the same name for its store, and the same trust: its daemon sees the directories of this one
    /// there.
    pub(crate) fn start_beside(other: &Self) -> Self {
        Self::start_at(Some(other.directory.path().to_owned()), other.key.clone())
    }

    fn start_at(place: Option<PathBuf>, key: Option<String>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["store", "var", "home"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        let mut store = Self { directory, place, key, daemon: None };
        store.serve();
        store
    }

    /// As its daemon and its clients call it.
    fn place(&self) -> &Path {
        self.place.as_deref().unwrap_or(self.directory.path())
    }

    /// Starts the daemon.
    pub(crate) fn serve(&mut self) {
        let here = self.directory.path();
        let mut daemon = Command::new("unshare");
        if let Some(place) = &self.place {
            let script = r#"mount --bind "$0/store" "$1/store" && mount --bind "$0/var" "$1/var" && exec nix-daemon"#;
            daemon.args(["--mount", "sh", "-ec", script]).args([here, place]);
        } else {
            daemon = Command::new("nix-daemon");
        }
        let daemon = daemon
            .envs(self.settings())
            .env_remove("NIX_REMOTE")
            // It remembers there what substitutes it has heard of.
            .env("HOME", here.join("home"))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nix-daemon must be installed: apt install nix-bin");
        self.daemon = Some(daemon);
        let (socket, until) = (self.socket(), Instant::now() + PATIENCE);
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < until, "nix-daemon does not listen on {socket}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends the daemon and what it runs.
    pub(crate) fn kill(&mut self) {
        let Some(mut daemon) = self.daemon.take() else { return };
        // A connection's process and its builders have groups of their own.
        let group = processes_of(daemon.id());
        let _ = daemon.kill();
        let _ = daemon.wait();
        for process in group {
            let _ = Command::new("kill").args(["-9", &process]).stderr(Stdio::null()).status();
        }
        let _ = std::fs::remove_file(self.socket());
    }

    pub(crate) fn socket(&self) -> String {
        format!("{}/var/daemon-socket/socket", self.directory.path().display())
    }

    /// What its clients' environment must have.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let mut all = self.settings();
        all.push(("NIX_REMOTE".to_owned(), "daemon".to_owned()));
        all.push(("NIX_DAEMON_SOCKET_PATH".to_owned(), self.socket()));
        all
    }

    fn settings(&self) -> Vec<(String, String)> {
        let at = |name: &str| format!("{}/{name}", self.place().display());
        let trust = match &self.key {
            Some(key) => format!("trusted-public-keys = {key}"),
            None => "require-sigs = false".to_owned(),
        };
        [
            ("NIX_STORE_DIR", at("store")),
            ("NIX_STATE_DIR", at("var")),
            ("NIX_LOCALSTATE_DIR", at("var")),
            ("NIX_LOG_DIR", at("log")),
            ("NIX_CONF_DIR", at("etc")),
            (
                "NIX_CONFIG",
                format!("sandbox = false\nsubstituters =\nbuild-users-group =\n{trust}"),
            ),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }

    pub(crate) fn gorget(&self, options: &[&str]) -> Daemon {
        let mut daemon = Daemon::prepare(options);
        for (name, value) in self.environment() {
            daemon.environment(&name, &value);
        }
        daemon.restart();
        daemon
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A process's children, and theirs.
pub(crate) fn processes_of(parent: u32) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![parent.to_string()];
    while let Some(process) = todo.pop() {
        let output = Command::new("ps").args(["-o", "pid=", "--ppid", &process]).output().unwrap();
        for child in String::from_utf8_lossy(&output.stdout).split_whitespace() {
            found.push(child.to_owned());
            todo.push(child.to_owned());
        }
    }
    found
}
