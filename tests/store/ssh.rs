//! A daemon that is reached through OpenSSH, with a real sshd on the loopback interface.
#![allow(clippy::disallowed_methods, reason = "tests start programs")]

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::json;

use super::{attribute, build, keep, log, repository, until};
use crate::support::daemon::Daemon;
use crate::support::jobs::system;
use crate::support::nix::Store;

/// An sshd with keys and configuration of its own.
struct Server {
    place: tempfile::TempDir,
    port: u16,
    child: Child,
}

impl Server {
    fn start() -> Self {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        for key in ["host", "client"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(at(key))
                .status()
                .expect("OpenSSH must be installed: apt install openssh-server");
            assert!(made.success());
        }
        fs::copy(at("client.pub"), at("authorized")).unwrap();
        // Somebody else may take it before sshd does, which then ends and says so.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let text = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {0}/host\nAuthorizedKeysFile {0}/authorized\n\
             PidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\nAllowStreamLocalForwarding yes\n",
            place.path().display()
        );
        fs::write(at("config"), text).unwrap();
        let known = format!("[127.0.0.1]:{port} {}", fs::read_to_string(at("host.pub")).unwrap());
        fs::write(at("known"), known).unwrap();
        // Where sshd separates its privileges; Debian's service makes it.
        let _ = fs::create_dir_all("/run/sshd");
        let child = Self::serve(place.path());
        let server = Self { place, port, child };
        server.wait();
        server
    }

    fn serve(place: &Path) -> Child {
        Command::new("/usr/sbin/sshd")
            .arg("-D")
            .arg("-f")
            .arg(place.join("config"))
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("OpenSSH must be installed: apt install openssh-server")
    }

    fn wait(&self) {
        until(
            || TcpStream::connect(("127.0.0.1", self.port)).is_ok(),
            || "sshd does not listen".to_owned(),
        );
    }

    /// Options of OpenSSH's client, by Nix's variable.
    fn options(&self) -> String {
        let place = self.place.path().display();
        format!(
            "-F none -i {place}/client -o UserKnownHostsFile={place}/known -o IdentitiesOnly=yes"
        )
    }

    fn kill(&mut self) {
        // Of each connection there is a process in a group of its own.
        let connections = crate::support::nix::processes_of(self.child.id());
        let _ = self.child.kill();
        let _ = self.child.wait();
        for process in connections {
            let _ = Command::new("kill").args(["-9", &process]).stderr(Stdio::null()).status();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

#[test]
fn builds_go_through_openssh() {
    let store = Store::start();
    let mut server = Server::start();
    let mut daemon = Daemon::prepare(&["--max-builds=2"]);
    for (name, value) in store.environment() {
        if name != "NIX_REMOTE" {
            daemon.environment(&name, &value);
        }
    }
    let user = String::from_utf8(Command::new("id").arg("-un").output().unwrap().stdout).unwrap();
    let (user, socket) = (user.trim(), store.socket());
    let remote = format!("ssh-ng://{user}@127.0.0.1:{}{socket}", server.port);
    daemon.environment("NIX_REMOTE", &remote);
    daemon.environment("NIX_SSHOPTS", &server.options());
    daemon.restart();
    // Evaluated here: Nix's own way through OpenSSH is not what is tested.
    let repository = repository(&[
        attribute("good", "echo hello; echo hello > $out", ""),
        attribute("bad", "exit 7", ""),
    ]);
    let mut jobs = String::new();
    for name in ["good", "bad"] {
        let made = Command::new("nix-instantiate")
            .args(["-A", name, "release.nix"])
            .current_dir(repository.path())
            .envs(store.environment())
            .output()
            .unwrap();
        let derivation = String::from_utf8(made.stdout).unwrap();
        let job = format!("{name}.{}", system());
        let line = json!({"job": job, "system": system(), "derivation": derivation.trim()});
        jobs += &format!("{line}\n");
    }
    repository.write("jobs.jsonl", &jobs);
    repository.commit();
    daemon.ask("pause builds");
    daemon.ask(&format!("add {}", repository.specification("ssh", &["cat", "jobs.jsonl"])));
    keep::wait_for_kept(&daemon, 2);
    // Of another machine's daemon these would not be seen.
    fs::remove_dir_all(daemon.state().join("gcroots")).unwrap();
    keep::collect_garbage(&store);
    daemon.ask("resume builds");
    daemon.settle();
    let good = build(&mut daemon, "good");
    assert_eq!(good["status"], "succeeded", "{good}\n{}", daemon.log());
    assert_eq!(log(&mut daemon, &good), "hello\n");
    assert!(PathBuf::from(good["outputs"]["out"].as_str().unwrap()).exists());
    assert_eq!(build(&mut daemon, "bad")["error"], "exit status 7");

    // The way breaks and comes back.
    server.kill();
    daemon.ask(&format!("restart-build {}", good["id"]));
    daemon.until("builds status=scheduled", |builds| {
        builds.iter().any(|build| build["waiting"] == "store unreachable")
    });
    server.child = Server::serve(server.place.path());
    server.wait();
    daemon.settle();
    assert_eq!(build(&mut daemon, "good")["status"], json!("succeeded"), "{}", daemon.log());
    daemon.stop();
    daemon.wait_for_no_descendants();
}
