//! The child that publishes the store, and running as somebody else. A script stands for Guix, which need not be here.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Group, Pid, User};

use crate::support::sandbox::Sandbox;
use crate::support::server::{Server, wait_for};
use crate::support::until;
use crate::support::worker::{Worker, derivation};

/// Writes down how it was called and what its key is, and stays.
const GUIX: &str = "#!/bin/sh
file=$HOME/called.$$
key=$(cat /dev/stdin)
echo \"$*, uid $(id -u), key $key\" >\"$file.new\"
mv \"$file.new\" \"$file\"
exec sleep 600
";

/// A sandbox with a Guix and keys, whose server's user may be anybody.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    let guix = sandbox.write("bin/guix", GUIX);
    fs::set_permissions(guix, Permissions::from_mode(0o755)).unwrap();
    let key = sandbox.write("key.sec", "(secret)");
    fs::set_permissions(key, Permissions::from_mode(0o400)).unwrap();
    sandbox.write("key.pub", "(public)");
    for (path, mode) in [("", 0o755), ("home", 0o777), ("tmp", 0o777)] {
        fs::set_permissions(sandbox.path().join(path), Permissions::from_mode(mode)).unwrap();
    }
    sandbox
}

/// Starts a server that publishes.
fn start<'a>(sandbox: &'a Sandbox, options: &[&str]) -> Server<'a> {
    let file = |name: &str| sandbox.path().join(name).display().to_string();
    let public = format!("--public-key={}", file("key.pub"));
    let private = format!("--private-key={}", file("key.sec"));
    let mut all = vec![public.as_str(), private.as_str(), "--publish-port=5999"];
    all.extend(options);
    Server::start_publishing(sandbox, &all)
}

/// How Guix was called, each time, and by which process.
fn calls(sandbox: &Sandbox) -> Vec<(i32, String)> {
    let entries = fs::read_dir(sandbox.path().join("home")).unwrap().flatten();
    let call = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let pid = name.strip_prefix("called.")?.parse().ok()?;
        Some((pid, fs::read_to_string(entry.path()).ok()?))
    };
    entries.filter_map(call).collect()
}

#[test]
fn the_store_is_published_and_published_again() {
    let sandbox = sandbox();
    let server = start(&sandbox, &[]);
    assert_eq!(server.ask("status")[0]["publish-port"], 5999);
    let (pid, call) = until("guix publish", || calls(&sandbox).pop());
    let public = sandbox.path().join("key.pub");
    let expected = format!(
        "publish --port=5999 --compression=0 --negative-ttl=0s --public-key={} --private-key=/dev/stdin",
        public.display()
    );
    assert!(call.starts_with(&expected) && call.ends_with("key (secret)\n"), "{call}");
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    until("another one", || (calls(&sandbox).len() == 2).then_some(()));
    // It does not outlive the server, however that ends.
    server.kill();
    sandbox.deserted_within(Duration::from_secs(10));
}

#[test]
fn the_server_runs_as_the_user_it_is_told() {
    if !crate::support::is_root("become another user") {
        return;
    }
    let sandbox = sandbox();
    let server = start(&sandbox, &["--user=nobody", "--socket-group=adm"]);
    let nobody = User::from_name("nobody").unwrap().unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let ids = |field: &str| {
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().skip(1).map(|id| id.parse().unwrap()).collect::<Vec<u32>>()
    };
    assert_eq!(ids("Uid:"), [nobody.uid.as_raw(); 4]);
    assert_eq!(ids("Gid:"), [nobody.gid.as_raw(); 4]);
    assert_eq!(ids("Groups:"), [] as [u32; 0]);
    let (_, call) = until("guix publish", || calls(&sandbox).pop());
    assert!(call.contains(&format!("uid {}, key (secret)", nobody.uid)), "{call}");
    // Logs have the group of the cache, though nobody is no member.
    let state = sandbox.state();
    for directory in [&state, &state.join("cache")] {
        fs::set_permissions(directory, Permissions::from_mode(0o755)).unwrap();
    }
    let mut daemon = server.attach();
    let worker = Worker::join(server.port, "w");
    let drv = derivation("hello");
    worker.request_work();
    wait_for(&mut daemon, "requested");
    daemon.ask(&format!("assign 7 1 w {drv} x86_64-linux")).ok();
    worker.build();
    worker.begin(&drv);
    let started = wait_for(&mut daemon, "started");
    let log = fs::metadata(started["log"].as_str().unwrap()).unwrap();
    let group = Group::from_name("adm").unwrap().unwrap().gid;
    assert_eq!((log.uid(), log.gid()), (nobody.uid.as_raw(), group.as_raw()));
    assert_eq!(log.mode() & 0o777, 0o660);
    assert!(server.stop().success());
    sandbox.deserted_within(Duration::from_secs(10));
}
