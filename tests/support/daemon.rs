//! The real daemon as a child, with a state directory of its own, and its bridge as a client sees it.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "tests start programs and wait under deadlines of their own"
)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take before a test fails: generous, as the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Looks again after this long where only a look can tell.
const PAUSE: Duration = Duration::from_millis(10);

/// A daemon with a state directory; killed with everything it started when dropped.
pub(crate) struct Daemon {
    /// Removed at the end; without one the state is the caller's, who may run other daemons there.
    directory: Option<TempDir>,
    state: PathBuf,
    options: Vec<String>,
    environment: Vec<(String, String)>,
    child: Option<Child>,
}

impl Daemon {
    /// Starts a daemon in a new directory and waits until its bridge answers.
    pub(crate) fn start(options: &[&str]) -> Self {
        let mut daemon = Self::prepare(options);
        daemon.restart();
        daemon
    }

    /// A daemon that is not running yet.
    pub(crate) fn prepare(options: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        let mut daemon = Self::prepare_in(&state, options);
        daemon.directory = Some(directory);
        daemon
    }

    /// A daemon that is not running yet, with its state in a directory of the caller's.
    pub(crate) fn prepare_in(state: &Path, options: &[&str]) -> Self {
        let options = options.iter().map(|&option| option.to_owned()).collect();
        Self {
            directory: None,
            state: state.to_owned(),
            options,
            environment: Vec::new(),
            child: None,
        }
    }

    pub(crate) fn environment(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Starts the process without waiting for anything.
    pub(crate) fn launch(&mut self) {
        assert!(self.child.is_none(), "it is running");
        fs::create_dir_all(&self.state).unwrap();
        let log = fs::File::options().create(true).append(true).open(self.log_file()).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_gorget"))
            .arg("register")
            .arg(format!("--state-directory={}", self.state.display()))
            .args(&self.options)
            .env("GORGET_LOG", "debug")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// Starts the process and waits until its bridge answers.
    pub(crate) fn restart(&mut self) {
        self.launch();
        let until = Instant::now() + PATIENCE;
        // Of a daemon that was killed a moment ago, a child on its way to its own program still holds the socket: whoever
        // connects to that is hung up on.
        while !self.connect().answers() {
            assert!(Instant::now() < until, "no answer:\n{}", self.log());
        }
    }

    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.state.join("run/bridge")
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.state.join("gorget.db")
    }

    fn log_file(&self) -> PathBuf {
        self.state.with_extension("log")
    }

    /// What the daemon has logged so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().expect("it is running").id()
    }

    /// Connects, waiting for the socket of a daemon that is starting.
    pub(crate) fn connect(&mut self) -> Session {
        let until = Instant::now() + PATIENCE;
        loop {
            match UnixStream::connect(self.socket()) {
                Ok(stream) => return Session::new(stream),
                Err(error) => assert!(Instant::now() < until, "{error}\n{}", self.log()),
            }
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().unwrap()) {
                panic!("the daemon ended with {status}:\n{}", self.log());
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// One request on a connection of its own: the objects of its answer and its last line.
    pub(crate) fn request(&mut self, request: &str) -> (Vec<Value>, String) {
        let mut session = self.connect();
        session.send(request);
        session.finish();
        session.answer().unwrap_or_else(|| panic!("no answer to {request}:\n{}", self.log()))
    }

    /// As `request`, for requests that must succeed.
    pub(crate) fn ask(&mut self, request: &str) -> Vec<Value> {
        let (objects, last) = self.request(request);
        assert_eq!(last, "ok", "{request}");
        objects
    }

    /// The last line of an answer, `ok` or an error.
    pub(crate) fn outcome(&mut self, request: &str) -> String {
        self.request(request).1
    }

    /// The build of a job in the newest evaluation it stands in.
    pub(crate) fn build(&mut self, job: &str) -> Value {
        let builds = self.ask("builds limit=10000");
        let found = builds.into_iter().find(|build| build["job"] == job);
        found.unwrap_or_else(|| panic!("no build of {job}:\n{}", self.log()))
    }

    /// Asks again until the objects are as `good` wants them.
    pub(crate) fn until(&mut self, request: &str, good: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let until = Instant::now() + PATIENCE;
        loop {
            let objects = self.ask(request);
            if good(&objects) {
                return objects;
            }
            assert!(Instant::now() < until, "{request} stays {objects:#?}\n{}", self.log());
            std::thread::sleep(PAUSE);
        }
    }

    /// Waits until every active jobset has been evaluated, all are idle and no build is pending.
    pub(crate) fn settle(&mut self) {
        self.until("jobsets", |jobsets| {
            jobsets.iter().filter(|jobset| jobset["active"] == true).all(|jobset| {
                jobset["status"] == "idle"
                    && (!jobset["last-evaluation"].is_null() || !jobset["error"].is_null())
            })
        });
        self.until("builds status=scheduled limit=1", <[Value]>::is_empty);
        self.until("builds status=started limit=1", <[Value]>::is_empty);
    }

    /// All events so far, oldest first.
    pub(crate) fn events(&mut self) -> Session {
        let mut session = self.connect();
        session.send("subscribe from=0");
        session
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("it is running");
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9), "{}", self.log());
    }

    /// Sends a signal by its name, `TERM` for one.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(self.pid().to_string())
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Waits for the process to end by itself.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("it is running");
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            if Instant::now() >= until {
                child.kill().unwrap();
                panic!("the daemon does not end:\n{}", self.log());
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// SIGTERM, and the status it ends with.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait()
    }

    /// Processes that the daemon started, however far removed: those with the state directory in their
    /// environment or arguments.
    pub(crate) fn descendants(&self) -> Vec<String> {
        let mark = self.state.to_str().unwrap().as_bytes();
        let own = self.child.as_ref().map(|child| child.id().to_string());
        let holds = |file: PathBuf| {
            fs::read(file).is_ok_and(|bytes| bytes.windows(mark.len()).any(|window| window == mark))
        };
        fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| {
                let path = entry.unwrap().path();
                let pid = path.file_name()?.to_str()?.to_owned();
                let ours = pid.bytes().all(|c| c.is_ascii_digit()) && Some(&pid) != own.as_ref();
                let marked = ours && (holds(path.join("environ")) || holds(path.join("cmdline")));
                let command = fs::read(path.join("cmdline")).unwrap_or_default();
                marked.then(|| {
                    format!("{pid}: {}", String::from_utf8_lossy(&command).replace('\0', " "))
                })
            })
            .collect()
    }

    /// Waits until nothing that the daemon started is left.
    pub(crate) fn wait_for_no_descendants(&self) {
        let until = Instant::now() + Duration::from_secs(20);
        while !self.descendants().is_empty() {
            assert!(Instant::now() < until, "left behind: {:#?}", self.descendants());
            std::thread::sleep(PAUSE);
        }
    }

    /// A field of `/proc/PID/status`, in bytes.
    pub(crate) fn memory(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Processor time used so far.
    pub(crate) fn processor_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        // utime and stime, in ticks of 10 ms.
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        } else if self.directory.is_some() {
            self.wait_for_no_descendants();
        }
    }
}

/// A connection to the bridge.
pub(crate) struct Session {
    stream: BufReader<UnixStream>,
}

impl Session {
    pub(crate) fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    pub(crate) fn stream(&mut self) -> &mut UnixStream {
        self.stream.get_mut()
    }

    pub(crate) fn send(&mut self, request: &str) {
        writeln!(self.stream.get_mut(), "{request}").unwrap();
    }

    /// Whether a daemon is at the other end.
    fn answers(mut self) -> bool {
        let mut line = String::new();
        writeln!(self.stream.get_mut(), "version").is_ok()
            && self.stream.read_line(&mut line).is_ok_and(|length| length > 0)
    }

    /// Ends the requests.
    pub(crate) fn finish(&mut self) {
        self.stream.get_mut().shutdown(Shutdown::Write).unwrap();
    }

    /// The next line; `None` at the end.
    pub(crate) fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let length = match self.stream.read_line(&mut line) {
            // It was killed before it had read what was sent.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => 0,
            length => length.unwrap(),
        };
        (length > 0).then(|| line.trim_end().to_owned())
    }

    /// The next answer: its objects and its last line.
    pub(crate) fn answer(&mut self) -> Option<(Vec<Value>, String)> {
        let mut objects = Vec::new();
        loop {
            let line = self.line()?;
            match serde_json::from_str(&line) {
                Ok(object) => objects.push(object),
                Err(_) => return Some((objects, line)),
            }
        }
    }

    /// The next event.
    pub(crate) fn event(&mut self) -> (Value, Instant) {
        let line = self.line().expect("the subscription ended");
        (serde_json::from_str(&line).unwrap_or_else(|_| panic!("no event: {line}")), Instant::now())
    }

    /// Reads events until one is `word`.
    pub(crate) fn wait_for(&mut self, word: &str) -> (Value, Instant) {
        loop {
            let (event, at) = self.event();
            if event["event"] == word {
                return (event, at);
            }
        }
    }
}
