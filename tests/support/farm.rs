//! The other processes of a farm: `remote-server` and `remote-worker`, as children.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "tests start programs and wait under deadlines of their own"
)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::jobs::{Repository, system};

/// How long a process may take to do what takes it a moment.
const PATIENCE: Duration = Duration::from_secs(60);

/// Between two looks at what nothing announces.
const PAUSE: Duration = Duration::from_millis(10);

/// A port that nobody listens on.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port()
}

/// A request that adds the jobset `farm`: the derivations of `release.nix`.
pub(crate) fn add(repository: &Repository) -> String {
    let specification = json!({
        "name": "farm",
        "channels": [{"name": "main", "url": repository.url(), "branch": "main"}],
        "evaluator": "nix",
        "build": {"file": "release.nix"},
    });
    format!("add {specification}")
}

/// Derivations with valid outputs, so that scripted workers need build nothing: each is of known contents, which evaluation
/// adds to the store by the same name.
pub(crate) fn done_already(number: usize) -> Repository {
    let repository = Repository::new(0);
    repository.write("contents", "contents\n");
    let expression = r#"let hash = builtins.hashFile "sha256" ./contents; in
builtins.listToAttrs (builtins.genList (n: let
  name = "d-${toString n}";
  there = builtins.path { path = ./contents; inherit name; recursive = false; sha256 = hash; };
in {
  inherit name;
  value = builtins.seq (builtins.stringLength there) (derivation {
    inherit name; system = "SYSTEM"; builder = "/bin/sh"; args = [ "-c" "exit 1" ];
    outputHash = hash; outputHashAlgo = "sha256"; outputHashMode = "flat";
  });
}) NUMBER)"#;
    let expression = expression.replace("SYSTEM", &system()).replace("NUMBER", &number.to_string());
    repository.write("release.nix", &expression);
    repository.commit();
    repository
}

/// A process with a log; killed when dropped.
struct Process {
    command: Vec<String>,
    environment: Vec<(String, String)>,
    log: PathBuf,
    child: Option<Child>,
}

impl Process {
    fn launch(&mut self) {
        assert!(self.child.is_none(), "it is running");
        let log = fs::File::options().create(true).append(true).open(&self.log).unwrap();
        let (program, arguments) = self.command.split_first().unwrap();
        let child = Command::new(program)
            .args(arguments)
            .env("GORGET_LOG", "debug")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.child.as_ref().expect("it is running").id().to_string();
        let status = Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap();
        assert!(status.success());
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let text = self.text();
            let tail = text.char_indices().rev().nth(6000).map_or(0, |(at, _)| at);
            eprintln!("{} ends with:\n{}", self.log.display(), &text[tail..]);
        }
    }
}

/// `remote-server`, which publishes and announces nothing.
pub(crate) struct Server {
    process: Process,
    state: PathBuf,
    pub(crate) port: u16,
    pub(crate) log_port: u16,
}

impl Server {
    /// Starts one with its state where the daemon has it, and waits until it answers.
    pub(crate) fn start(state: &Path, options: &[&str]) -> Self {
        Self::start_by(&[], state, &[&["--no-announce"], options].concat())
    }

    /// One that is run by a command, `before`, and announces itself.
    pub(crate) fn start_by(before: &[&str], state: &Path, options: &[&str]) -> Self {
        let (port, log_port) = (free_port(), free_port());
        let mut command: Vec<String> = before.iter().map(|&word| word.to_owned()).collect();
        command.extend([
            env!("CARGO_BIN_EXE_gorget").to_owned(),
            "remote-server".to_owned(),
            format!("--state-directory={}", state.display()),
            format!("--backend-port={port}"),
            format!("--log-port={log_port}"),
            "--no-publish".to_owned(),
        ]);
        command.extend(options.iter().map(|&option| option.to_owned()));
        let log = state.with_extension("server.log");
        let process = Process { command, environment: vec![], log, child: None };
        let mut server = Self { process, state: state.to_owned(), port, log_port };
        server.restart();
        server
    }

    /// Starts the process without waiting for anything.
    pub(crate) fn launch(&mut self) {
        fs::create_dir_all(&self.state).unwrap();
        self.process.launch();
    }

    pub(crate) fn restart(&mut self) {
        self.launch();
        let until = Instant::now() + PATIENCE;
        while !self.answers() {
            assert!(Instant::now() < until, "no answer:\n{}", self.process.text());
            std::thread::sleep(PAUSE);
        }
    }

    fn answers(&self) -> bool {
        let Ok(stream) = UnixStream::connect(self.socket()) else { return false };
        let mut line = String::new();
        writeln!(&stream, "version").is_ok()
            && BufReader::new(&stream).read_line(&mut line).is_ok_and(|length| length > 0)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.state.join("run/remote")
    }

    /// The objects of the answer to one request.
    pub(crate) fn ask(&self, request: &str) -> Vec<Value> {
        let stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        writeln!(&stream, "{request}").unwrap();
        let mut objects = Vec::new();
        for line in BufReader::new(&stream).lines() {
            let line = line.unwrap();
            match serde_json::from_str(&line) {
                Ok(object) => objects.push(object),
                Err(_) if line == "ok" => return objects,
                Err(_) => panic!("{request}: {line}"),
            }
        }
        panic!("no answer to {request}");
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    pub(crate) fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    pub(crate) fn log(&self) -> String {
        self.process.text()
    }

    /// A field of `/proc/PID/status`, in bytes.
    pub(crate) fn memory(&self, field: &str) -> u64 {
        let pid = self.process.child.as_ref().expect("it is running").id();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

/// `remote-worker`, which publishes nothing.
pub(crate) struct Worker(Process);

impl Worker {
    /// A worker of a server at `address`, or of the one it finds if that is empty, which builds by the store daemon that `environment` names; not started.
    /// `before` is what its command is run by, none for most.
    pub(crate) fn prepare(
        state: &Path,
        address: &str,
        before: &[&str],
        environment: Vec<(String, String)>,
        options: &[&str],
    ) -> Self {
        let mut command: Vec<String> = before.iter().map(|&word| word.to_owned()).collect();
        command.extend([
            env!("CARGO_BIN_EXE_gorget").to_owned(),
            "remote-worker".to_owned(),
            format!("--state-directory={}", state.display()),
            "--no-publish".to_owned(),
            // Those that it has by default are on a network that tests do without.
            "--substitute-urls=".to_owned(),
        ]);
        if !address.is_empty() {
            command.push(format!("--server={address}"));
        }
        command.extend(options.iter().map(|&option| option.to_owned()));
        let log = state.with_extension("log");
        let mut environment = environment;
        // As Cuirass's own test: a worker with nothing to do asks again soon.
        environment.push(("REQUEST_PERIOD".to_owned(), "1".to_owned()));
        fs::create_dir_all(state).unwrap();
        Self(Process { command, environment, log, child: None })
    }

    pub(crate) fn launch(&mut self) {
        self.0.launch();
    }

    pub(crate) fn kill(&mut self) {
        self.0.kill();
    }

    pub(crate) fn signal(&self, name: &str) {
        self.0.signal(name);
    }

    pub(crate) fn log(&self) -> String {
        self.0.text()
    }
}
