//! The way to a daemon of another machine: OpenSSH as a child, which forwards a socket of ours to the daemon's.
//!
//! Invariant: one child for each daemon, started when somebody tries the daemon and none runs, and ended with the
//! tunnel; it never asks anybody anything.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::sys::clock;
use crate::sys::process::{Child, How, Launch, Launcher, Program, Read};

/// How long OpenSSH may take to connect and log in.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks whether our socket is there: OpenSSH does not say so.
const LOOK: Duration = Duration::from_millis(50);

/// Bytes kept of what OpenSSH says before it gives up.
const MAX_WORDS: usize = 4 << 10;

/// A daemon behind OpenSSH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remote {
    /// `[USER@]HOST`, as OpenSSH takes it.
    pub(crate) destination: String,
    pub(crate) port: Option<u16>,
    /// The daemon's socket there.
    pub(crate) socket: String,
}

impl Remote {
    /// From what follows `ssh://`: `[USER@]HOST[:PORT][/SOCKET]`.
    pub(super) fn parse(text: &str, socket: &str) -> Option<Self> {
        let (place, path) = text.find('/').map_or((text, ""), |slash| text.split_at(slash));
        let (destination, port) = match place.rsplit_once(':') {
            // The colons of an IPv6 address stand in brackets.
            Some((host, port)) if !port.contains(']') => (host, Some(port.parse().ok()?)),
            _ => (place, None),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-_@:%[]".contains(c);
        let host = destination.rsplit('@').next().unwrap_or_default();
        // A word that begins with a dash would be an option.
        if host.is_empty() || destination.starts_with('-') || !destination.chars().all(plain) {
            return None;
        }
        let destination = destination.replace(['[', ']'], "");
        let socket = if path.len() > 1 { path } else { socket };
        // A colon would divide the forwarding.
        (!socket.contains(':')).then(|| Self { destination, port, socket: socket.to_owned() })
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ssh://{}", self.destination)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// OpenSSH, if it runs.
pub(crate) struct Tunnel {
    launcher: Launcher,
    remote: Remote,
    /// Ours.
    socket: PathBuf,
    child: Option<Child>,
}

impl Tunnel {
    pub(crate) fn new(launcher: Launcher, remote: Remote, socket: PathBuf) -> Self {
        Self { launcher, remote, socket, child: None }
    }

    /// Sees to it that our socket leads there, as long as that is `wanted`.
    pub(crate) fn open(&mut self, wanted: &dyn Fn() -> bool) -> io::Result<()> {
        if let Some(child) = &mut self.child {
            let mut said = Vec::new();
            // What it says while it runs is of interest only if it ended.
            loop {
                match child.read(&mut said, Some(clock::now()))? {
                    Read::Deadline => break,
                    Read::Output | Read::Errors => said.clear(),
                    Read::Canceled | Read::Ended(_) => {
                        self.child = None;
                        break;
                    }
                }
            }
        }
        if self.child.is_some() && UnixStream::connect(&self.socket).is_ok() {
            return Ok(());
        }
        self.child = None;
        self.start(wanted)
    }

    fn start(&mut self, wanted: &dyn Fn() -> bool) -> io::Result<()> {
        let mut child = self.launcher.start(self.launch(), None)?;
        let deadline = clock::now() + PATIENCE;
        let mut said = Vec::new();
        loop {
            let look = (clock::now() + LOOK).min(deadline);
            match child.read(&mut said, Some(look))? {
                Read::Output | Read::Errors => said.truncate(MAX_WORDS),
                Read::Canceled => return Err(io::ErrorKind::Interrupted.into()),
                Read::Ended(exit) => {
                    let why = match exit.how {
                        How::NotStarted(why) | How::Prevented(why) => why,
                        How::Code(_) | How::Signal(_) | How::Lost => {
                            let said = String::from_utf8_lossy(&said);
                            said.lines().last().unwrap_or("it ended").trim().to_owned()
                        }
                    };
                    return Err(io::Error::other(format!("ssh: {why}")));
                }
                Read::Deadline if UnixStream::connect(&self.socket).is_ok() => {
                    self.child = Some(child);
                    return Ok(());
                }
                Read::Deadline if !wanted() => {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
                Read::Deadline if clock::now() >= deadline => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Read::Deadline => {}
            }
        }
    }

    fn launch(&self) -> Launch {
        let mut words: Vec<OsString> = ["ssh", "-N", "-T"].map(OsString::from).into();
        for option in [
            "BatchMode=yes",
            "ExitOnForwardFailure=yes",
            "StreamLocalBindUnlink=yes",
            "StreamLocalBindMask=0177",
            "ControlPath=none",
            "ServerAliveInterval=15",
            "ConnectTimeout=20",
            "LogLevel=ERROR",
        ] {
            words.extend(["-o".into(), option.into()]);
        }
        if let Some(port) = self.remote.port {
            words.extend(["-p".into(), port.to_string().into()]);
        }
        let mut forward = OsString::from("-L");
        forward.push(&self.socket);
        forward.push(":");
        forward.push(&self.remote.socket);
        words.push(forward);
        // Nix's own variable for more.
        let more = std::env::var("NIX_SSHOPTS").unwrap_or_default();
        words.extend(more.split_whitespace().map(OsString::from));
        words.extend(["--".into(), self.remote.destination.clone().into()]);
        let environment = ["PATH", "HOME", "USER", "LOGNAME", "SSH_AUTH_SOCK"];
        let environment =
            environment.iter().filter_map(|name| Some((name.into(), std::env::var_os(name)?)));
        Launch {
            program: Program::Command(words),
            environment: environment.collect(),
            directory: self.socket.parent().unwrap_or(Path::new("/")).to_owned(),
            user: None,
            memory: None,
            merge: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_name_user_host_port_and_socket() {
        let parse = |text| Remote::parse(text, "/run/socket");
        let remote = |destination: &str, port, socket: &str| {
            let (destination, socket) = (destination.to_owned(), socket.to_owned());
            Some(Remote { destination, port, socket })
        };
        assert_eq!(parse("farm"), remote("farm", None, "/run/socket"));
        assert_eq!(parse("ci@farm:2222/"), remote("ci@farm", Some(2222), "/run/socket"));
        assert_eq!(parse("farm/srv/guix"), remote("farm", None, "/srv/guix"));
        assert_eq!(parse("ci@[::1]:22"), remote("ci@::1", Some(22), "/run/socket"));
        for bad in ["", "ci@", "-oProxyCommand=x", "a b", "farm:99999", "farm:x", "farm/a:b"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
