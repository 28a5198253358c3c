//! A directory of one's own to run the program in: its state, its repositories, its home.
//!
//! Processes of the program are recognised by the sandbox's directory in their environment (the daemon hands
//! `PATH` and `HOME` on) or as their working directory, however they were forked; the last act of a sandbox is
//! to kill what is left of them.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::client::{Answer, Client};
use super::repository::Repository;
use super::{PATIENCE, now, until, within};

/// The directory and everything in it; removed at the end, kept when `GORGET_TEST_KEEP` is set.
pub(crate) struct Sandbox {
    directory: PathBuf,
    _removed: Option<tempfile::TempDir>,
}

/// What a command left.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    /// The exit status; a death by signal is a panic.
    #[track_caller]
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("{self:?}"))
    }
}

/// A process of the sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// Its arguments, separated by blanks.
    pub(crate) command: String,
}

impl Sandbox {
    pub(crate) fn new() -> Self {
        Self::below(&std::env::temp_dir())
    }

    /// A sandbox in another directory than the usual one, such as one on a small file system.
    pub(crate) fn below(parent: &Path) -> Self {
        let made = tempfile::Builder::new().prefix("gorget-test-").tempdir_in(parent).unwrap();
        // The path as the kernel shows it.
        let directory = made.path().canonicalize().unwrap();
        let removed = if std::env::var_os("GORGET_TEST_KEEP").is_some() {
            let kept = made.keep();
            assert!(kept.exists());
            None
        } else {
            Some(made)
        };
        for name in ["bin", "home", "tmp"] {
            fs::create_dir(directory.join(name)).unwrap();
        }
        Self { directory, _removed: removed }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.directory
    }

    /// The state directory.
    pub(crate) fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.state().join("run/bridge")
    }

    /// The daemon's log, of all its lives.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.directory.join("daemon.log")).unwrap_or_default())
            .into_owned()
    }

    /// A new repository.
    pub(crate) fn repository(&self, name: &str) -> Repository {
        Repository::create(&self.directory.join("repositories").join(name))
    }

    /// Writes a file of the sandbox and returns its path.
    pub(crate) fn write(&self, path: &str, contents: &str) -> PathBuf {
        let path = self.directory.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, contents).unwrap();
        path
    }

    /// Writes a specification file for a jobset whose one channel is `repository`, evaluated by its `./jobs`,
    /// with these fields added or replaced (`json!({})` for none); returns the file's path.
    pub(crate) fn specification(
        &self,
        name: &str,
        repository: &Repository,
        fields: Value,
    ) -> PathBuf {
        let specification = specification(name, &repository.url(), fields);
        self.write(&format!("{name}.json"), &specification.to_string())
    }

    /// The read-only database, for what the bridge does not tell.
    pub(crate) fn database(&self) -> rusqlite::Connection {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        let connection =
            rusqlite::Connection::open_with_flags(self.state().join("gorget.db"), flags).unwrap();
        connection.busy_timeout(PATIENCE).unwrap();
        connection
    }

    /// The program with these arguments and an environment of the sandbox's own.
    #[expect(
        clippy::disallowed_methods,
        reason = "the sandbox is what waits for and kills what it starts"
    )]
    pub(crate) fn command(
        &self,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gorget"));
        let mut path = OsString::from(self.directory.join("bin"));
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap());
        command
            .args(arguments)
            .current_dir(&self.directory)
            .env_clear()
            .env("PATH", path)
            .env("HOME", self.directory.join("home"))
            .env("TMPDIR", self.directory.join("tmp"))
            .env("LANG", "C.UTF-8")
            .env("TZ", "UTC")
            .stdin(Stdio::null());
        command
    }

    /// Runs the program to its end, within the usual patience.
    #[track_caller]
    pub(crate) fn gorget(&self, arguments: &[&str]) -> Output {
        self.run(self.command(arguments))
    }

    /// Runs a client command against the sandbox's daemon.
    #[track_caller]
    pub(crate) fn client(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        command.arg("--state-directory").arg(self.state());
        self.run(command)
    }

    /// Runs a command to its end; kills it and panics when it takes too long.
    #[track_caller]
    pub(crate) fn run(&self, mut command: Command) -> Output {
        // Files, so that nothing waits for a pipe that a forgotten descendant holds.
        let outputs = tempfile::tempdir_in(self.directory.join("tmp")).unwrap();
        let (stdout, stderr) = (outputs.path().join("stdout"), outputs.path().join("stderr"));
        command.stdout(File::create(&stdout).unwrap()).stderr(File::create(&stderr).unwrap());
        let mut child = command.spawn().unwrap();
        let deadline = now() + PATIENCE;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if now() > deadline {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("{command:?} took longer than {PATIENCE:?}");
            }
            super::pause(Duration::from_millis(2));
        };
        let text = |path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
        Output { status, stdout: text(stdout), stderr: text(stderr) }
    }

    /// A daemon to start in this sandbox.
    pub(crate) fn daemon(&self) -> Starter<'_> {
        let mut command = self.command(["register"]);
        command.arg("--state-directory").arg(self.state()).env("GORGET_LOG", "debug");
        Starter { sandbox: self, command }
    }

    /// Starts a daemon on this specification file.
    #[track_caller]
    pub(crate) fn start(&self, specification: &Path) -> Daemon<'_> {
        self.daemon().specification(specification).start()
    }

    /// All processes that live of this sandbox: daemons, keepers, evaluators, builds and their descendants.
    pub(crate) fn processes(&self) -> Vec<Process> {
        let own = self.directory.as_os_str().as_encoded_bytes();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok())
            else {
                continue;
            };
            if pid == std::process::id().cast_signed() {
                continue;
            }
            let directory = entry.path();
            let Ok(command) = fs::read(directory.join("cmdline")) else { continue };
            // A zombie has neither arguments nor environment, and harms nobody.
            let environment = fs::read(directory.join("environ")).unwrap_or_default();
            let inside = fs::read_link(directory.join("cwd"))
                .is_ok_and(|cwd| cwd.starts_with(&self.directory));
            if inside || environment.windows(own.len()).any(|part| part == own) {
                let words = command.split(|&byte| byte == 0).map(String::from_utf8_lossy);
                found.push(Process {
                    pid,
                    command: words.collect::<Vec<_>>().join(" ").trim().to_owned(),
                });
            }
        }
        found
    }

    /// Asserts that all processes of the sandbox go within `patience`.
    #[track_caller]
    pub(crate) fn deserted_within(&self, patience: Duration) {
        let deadline = now() + patience;
        loop {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            assert!(now() < deadline, "still there after {patience:?}: {left:?}");
            super::pause(Duration::from_millis(10));
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // Twice, for what was forked between the look and the kill.
        for _ in 0..2 {
            for process in self.processes() {
                // It may have ended by itself meanwhile.
                let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
            }
        }
    }
}

/// A specification as JSON; the members of `fields` are added or replace.
pub(crate) fn specification(name: &str, url: &str, fields: Value) -> Value {
    let mut specification = json!({
        "name": name,
        "channels": [{ "name": name, "url": url }],
        "command": ["./jobs"],
    });
    for (field, value) in fields.as_object().expect("fields is an object") {
        specification[field] = value.clone();
    }
    specification
}

/// The arguments and environment of a daemon to be.
pub(crate) struct Starter<'a> {
    sandbox: &'a Sandbox,
    command: Command,
}

impl<'a> Starter<'a> {
    pub(crate) fn specification(self, file: &Path) -> Self {
        self.arg("-S").arg(file)
    }

    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Starts the daemon and waits until its bridge answers.
    #[track_caller]
    pub(crate) fn start(self) -> Daemon<'a> {
        let mut daemon = self.spawn();
        let socket = daemon.sandbox.socket();
        let deadline = now() + PATIENCE;
        loop {
            let answer = Client::connect(&socket).and_then(|mut client| client.try_ask("version"));
            if answer.is_ok_and(|answer| answer.last == "ok") {
                return daemon;
            }
            if let Some(status) = daemon.child.try_wait().unwrap() {
                panic!(
                    "the daemon ended with {status} before it answered:\n{}",
                    daemon.sandbox.log()
                );
            }
            assert!(now() < deadline, "the daemon does not answer:\n{}", daemon.sandbox.log());
            super::pause(Duration::from_millis(5));
        }
    }

    /// Starts the daemon and returns at once.
    #[track_caller]
    pub(crate) fn spawn(mut self) -> Daemon<'a> {
        let log = self.sandbox.directory.join("daemon.log");
        let log = File::options().create(true).append(true).open(log).unwrap();
        self.command.stdout(log.try_clone().unwrap()).stderr(log);
        let child = self.command.spawn().unwrap();
        Daemon { sandbox: self.sandbox, child }
    }

    /// Runs the daemon to its own end, as with `--one-shot`.
    #[track_caller]
    pub(crate) fn finish(self) -> Output {
        self.sandbox.run(self.command)
    }
}

/// A running daemon; killed when dropped.
pub(crate) struct Daemon<'a> {
    sandbox: &'a Sandbox,
    child: Child,
}

impl Daemon<'_> {
    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// A new connection to the bridge.
    #[track_caller]
    pub(crate) fn connect(&self) -> Client {
        Client::connect(&self.sandbox.socket()).unwrap()
    }

    /// One request on a connection of its own.
    #[track_caller]
    pub(crate) fn ask(&self, request: &str) -> Answer {
        self.connect().ask(request)
    }

    /// The newest evaluation of a jobset, `None` before its first.
    #[track_caller]
    pub(crate) fn last_evaluation(&self, jobset: &str) -> Option<Value> {
        self.ask(&format!("evaluations {jobset} limit=1")).ok().pop()
    }

    /// Waits until an evaluation of `jobset` with an id above `after` has ended, with all builds of its jobs,
    /// and returns it.
    #[track_caller]
    pub(crate) fn evaluated_after(&self, jobset: &str, after: i64) -> Value {
        let evaluation = until("the next evaluation", || {
            self.last_evaluation(jobset)
                .filter(|evaluation| evaluation["id"].as_i64() > Some(after))
        });
        let id = &evaluation["id"];
        // `wait` answers an error when something did not succeed; the evaluation says what.
        let _ = self.ask(&format!("wait evaluation {id}"));
        self.ask(&format!("evaluation {id}")).one()
    }

    /// Waits for the first evaluation of `jobset` and all its builds.
    #[track_caller]
    pub(crate) fn evaluated(&self, jobset: &str) -> Value {
        self.evaluated_after(jobset, 0)
    }

    /// The builds of an evaluation by the names of their jobs.
    #[track_caller]
    pub(crate) fn builds(&self, evaluation: &Value) -> std::collections::BTreeMap<String, Value> {
        let id = &evaluation["id"];
        let builds = self.ask(&format!("builds evaluation={id} limit=10000")).ok();
        builds.into_iter().map(|b| (b["job"].as_str().unwrap().to_owned(), b)).collect()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// SIGKILL to the daemon alone, as the kernel or a power cut would.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; returns how it ended and how long that took, 30 s at most.
    #[track_caller]
    pub(crate) fn stop(mut self) -> (ExitStatus, Duration) {
        let begin = now();
        self.signal(Signal::SIGTERM);
        let status = self.ended_within(Duration::from_secs(30));
        (status, now() - begin)
    }

    /// Waits for the daemon to end by itself.
    #[track_caller]
    pub(crate) fn ended_within(&mut self, patience: Duration) -> ExitStatus {
        within(patience, "the daemon's end", || self.child.try_wait().unwrap())
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.sandbox.log();
            let tail = log.char_indices().rev().nth(8000).map_or(0, |(at, _)| at);
            eprintln!("the daemon's log ends with:\n{}", &log[tail..]);
        }
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
