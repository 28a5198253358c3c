//! `gorget remote-server` as a child, in a sandbox of its own or beside a daemon.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ExitStatus};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::client::Client;
use super::sandbox::Sandbox;
use super::{PATIENCE, now, until};

/// A server; killed at the end.
pub(crate) struct Server<'a> {
    sandbox: &'a Sandbox,
    child: Child,
    /// Where workers connect, and where logs go.
    pub(crate) port: u16,
    pub(crate) log_port: u16,
}

impl<'a> Server<'a> {
    /// Starts one on ports that are free.
    #[track_caller]
    pub(crate) fn start(sandbox: &'a Sandbox, options: &[&str]) -> Self {
        Self::start_on(sandbox, (0, 0), options)
    }

    /// Starts one on these ports, and waits until its socket answers.
    #[track_caller]
    pub(crate) fn start_on(sandbox: &'a Sandbox, ports: (u16, u16), options: &[&str]) -> Self {
        let mut all = vec!["--no-publish"];
        all.extend(options);
        Self::launch(sandbox, ports, &all)
    }

    /// Starts one that publishes, with a Guix of the sandbox's.
    #[track_caller]
    pub(crate) fn start_publishing(sandbox: &'a Sandbox, options: &[&str]) -> Self {
        Self::launch(sandbox, (0, 0), options)
    }

    #[track_caller]
    fn launch(sandbox: &'a Sandbox, ports: (u16, u16), options: &[&str]) -> Self {
        let mut command = sandbox.command(["remote-server", "--no-announce"]);
        let log = sandbox.path().join("server.log");
        let log = File::options().create(true).append(true).open(log).unwrap();
        command
            .arg("--state-directory")
            .arg(sandbox.state())
            .arg(format!("--backend-port={}", ports.0))
            .arg(format!("--log-port={}", ports.1))
            .args(options)
            .env("GORGET_LOG", "debug")
            .stderr(log);
        let child = command.spawn().unwrap();
        let mut server = Self { sandbox, child, port: 0, log_port: 0 };
        let deadline = now() + PATIENCE;
        let status = loop {
            let answer = Client::connect(&server.socket()).and_then(|mut c| c.try_ask("status"));
            if let Ok(answer) = answer {
                break answer.one();
            }
            if let Some(status) = server.child.try_wait().unwrap() {
                panic!("the server ended with {status}:\n{}", server.log());
            }
            assert!(now() < deadline, "the server does not answer:\n{}", server.log());
            super::pause(super::LOOK);
        };
        let port = |name| u16::try_from(status[name].as_u64().unwrap()).unwrap();
        (server.port, server.log_port) = (port("backend-port"), port("log-port"));
        server
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.sandbox.state().join("run/remote")
    }

    /// What it has logged, in all its lives.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.sandbox.path().join("server.log")).unwrap_or_default()
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    #[track_caller]
    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.socket()).unwrap()
    }

    /// The objects of an answer.
    #[track_caller]
    pub(crate) fn ask(&self, request: &str) -> Vec<Value> {
        self.client().ask(request).ok()
    }

    /// A client that is attached, and has read how things stand.
    #[track_caller]
    pub(crate) fn attach(&self) -> Client {
        let mut client = self.client();
        client.ask("attach").ok();
        wait_for(&mut client, "ready");
        client
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        assert_eq!(self.child.wait().unwrap().signal(), Some(9), "{}", self.log());
    }

    /// SIGTERM, and the status it ends with.
    #[track_caller]
    pub(crate) fn stop(mut self) -> ExitStatus {
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM).unwrap();
        until("the end of the server", || self.child.try_wait().unwrap())
    }

    /// A field of `/proc/PID/status`, in bytes.
    pub(crate) fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let tail = log.char_indices().rev().nth(8000).map_or(0, |(at, _)| at);
            eprintln!("the server's log ends with:\n{}", &log[tail..]);
        }
    }
}

/// Reads lines until there is this event.
#[track_caller]
pub(crate) fn wait_for(client: &mut Client, event: &str) -> Value {
    loop {
        let object =
            client.object().unwrap().unwrap_or_else(|| panic!("no {event} before the end"));
        if object["event"] == event {
            return object;
        }
    }
}
