//! A real SSH server on loopback, with a host key and authorized keys of its own: `sshd -i` for each connection, so
//! that no port needs to be chosen beforehand.
#![allow(
    clippy::disallowed_methods,
    reason = "tests start programs and wait under deadlines of their own"
)]

use std::fs;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tempfile::TempDir;

/// Debian's; it wants to be started by its whole name.
const PROGRAM: &str = "/usr/sbin/sshd";

/// Ends when dropped, with all its connections.
pub(crate) struct Sshd {
    directory: TempDir,
    address: SocketAddr,
    over: Arc<AtomicBool>,
    served: Arc<Mutex<Vec<(Child, TcpStream)>>>,
    acceptor: Option<JoinHandle<()>>,
}

impl Sshd {
    pub(crate) fn start() -> Self {
        assert!(Path::new(PROGRAM).exists(), "this test needs sshd: apt install openssh-server");
        assert!(Path::new("/run/sshd").is_dir(), "sshd needs /run/sshd: mkdir -m 755 /run/sshd");
        let directory = tempfile::tempdir().unwrap();
        for key in ["host", "client"] {
            keygen(&directory.path().join(key));
        }
        let authorized = directory.path().join("authorized");
        fs::copy(directory.path().join("client.pub"), &authorized).unwrap();
        let configuration = format!(
            "HostKey {host}\nAuthorizedKeysFile {authorized}\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nPermitRootLogin yes\nPidFile none\n",
            host = directory.path().join("host").display(),
            authorized = authorized.display(),
        );
        let file = directory.path().join("sshd_config");
        fs::write(&file, configuration).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let served = Arc::new(Mutex::new(Vec::new()));
        let (flag, children) = (Arc::clone(&over), Arc::clone(&served));
        let acceptor = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if flag.load(Ordering::SeqCst) {
                    return;
                }
                let stream = stream.unwrap();
                let end = || Stdio::from(OwnedFd::from(stream.try_clone().unwrap()));
                let child = Command::new(PROGRAM)
                    .args(["-i", "-e", "-f"])
                    .arg(&file)
                    .stdin(end())
                    .stdout(end())
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap();
                children.lock().unwrap().push((child, stream));
            }
        });
        Self { directory, address, over, served, acceptor: Some(acceptor) }
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// The private key that it lets in.
    pub(crate) fn client_key(&self) -> PathBuf {
        self.directory.path().join("client")
    }

    /// The line of `known_hosts` by which clients know it.
    pub(crate) fn known_host(&self) -> String {
        let key = fs::read_to_string(self.directory.path().join("host.pub")).unwrap();
        format!("[127.0.0.1]:{} {key}", self.port())
    }

    /// A home directory whose user knows the server and, if `key`, has the key.
    pub(crate) fn home(&self, home: &Path, key: bool) {
        let directory = home.join(".ssh");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("known_hosts"), self.known_host()).unwrap();
        if key {
            for name in ["", ".pub"] {
                let from = self.client_key().with_extension(name.trim_start_matches('.'));
                fs::copy(from, directory.join(format!("id_ed25519{name}"))).unwrap();
            }
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Wakes `accept`.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        for (mut child, stream) in self.served.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn keygen(file: &Path) {
    let status = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"])
        .arg(file)
        .status()
        .unwrap();
    assert!(status.success());
    assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o077, 0);
}

/// An agent with one key; ends when dropped.
pub(crate) struct Agent {
    directory: TempDir,
    child: Child,
}

impl Agent {
    pub(crate) fn start(key: &Path) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent");
        let child = Command::new("ssh-agent")
            .arg("-D")
            .arg("-a")
            .arg(&socket)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let agent = Self { directory, child };
        super::until("the agent's socket", || socket.exists().then_some(()));
        let status = Command::new("ssh-add")
            .arg("-q")
            .arg(key)
            .env("SSH_AUTH_SOCK", agent.socket())
            .status()
            .unwrap();
        assert!(status.success());
        agent
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("agent")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
