//! A blocking connection to a store daemon.
//!
//! Invariant: no read or write waits longer than it was told to; closing from another thread ends both at once,
//! which is how a build is canceled.

pub(crate) mod follow;
mod hook;
pub(crate) mod roots;
mod tunnel;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{env, fmt};

use nix::poll::{PollFd, PollFlags};

pub(crate) use self::tunnel::{Remote, Tunnel};
pub(crate) use crate::proto::store::{Dialect, Error, Options, Output, Verdict};

use crate::actor::leash::End;
use crate::proto::store::{Session, Step};
use crate::sys::connect::{self, Patience};
use crate::sys::{clock, poll, socket};

/// How long a daemon may take to answer anything but a build: it may have to start a process and open a database.
const ANSWER: Duration = Duration::from_secs(60);

/// Where daemons listen on machines whose variables we do not see.
const GUIX_SOCKET: &str = "/var/guix/daemon-socket/socket";
const NIX_SOCKET: &str = "/nix/var/nix/daemon-socket/socket";

/// How long a daemon may say nothing when a builder may be silent for ever, or while it waits for what others build.
pub(crate) const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// Where Guix's daemon listens on TCP.
const GUIX_PORT: u16 = 44146;

/// The directory of a daemon's store.
pub(crate) fn directory(dialect: Dialect) -> String {
    match (dialect, env::var("NIX_STORE_DIR")) {
        (Dialect::Nix, Ok(directory)) if directory.starts_with('/') => directory,
        // Which derivations are Guix's is told by where its store always is.
        _ => dialect.store().to_owned(),
    }
}

/// The directories of all stores that there may be.
pub(crate) fn directories() -> Vec<String> {
    let plain = |dialect| directory(dialect).trim_end_matches('/').to_owned();
    [Dialect::Guix, Dialect::Nix].map(plain).into()
}

/// Where a daemon listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Unix(PathBuf),
    Tcp(String, u16),
    Ssh(Remote),
}

/// A variable that names no address we can connect to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct AddressError {
    variable: &'static str,
    value: String,
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { variable, value } = self;
        write!(
            f,
            "{variable}: expected a file name, unix://FILE, guix://HOST, tcp://HOST:PORT, ssh://HOST or ssh-ng://HOST, found {value:?}"
        )
    }
}

impl std::error::Error for AddressError {}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Ssh(remote) => remote.fmt(f),
        }
    }
}

impl Address {
    /// Where the daemon of this kind is to be found, by the variables that its own clients heed.
    pub(crate) fn found(dialect: Dialect) -> Result<Self, AddressError> {
        Self::named(dialect, &|name| env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn named(
        dialect: Dialect,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, AddressError> {
        let parse = |name: &'static str, value: String| {
            parse(&value, dialect).ok_or(AddressError { variable: name, value })
        };
        match dialect {
            Dialect::Guix => match variable("GUIX_DAEMON_SOCKET") {
                Some(value) => parse("GUIX_DAEMON_SOCKET", value),
                None => {
                    let state =
                        variable("GUIX_STATE_DIRECTORY").unwrap_or_else(|| "/var/guix".to_owned());
                    Ok(Self::Unix(PathBuf::from(state).join("daemon-socket/socket")))
                }
            },
            Dialect::Nix => {
                if let Some(value) = variable("NIX_REMOTE").filter(|value| value.contains("://")) {
                    return parse("NIX_REMOTE", value);
                }
                let socket = variable("NIX_DAEMON_SOCKET_PATH").unwrap_or_else(|| {
                    let state =
                        variable("NIX_STATE_DIR").unwrap_or_else(|| "/nix/var/nix".to_owned());
                    format!("{state}/daemon-socket/socket")
                });
                Ok(Self::Unix(socket.into()))
            }
        }
    }
}

fn parse(text: &str, dialect: Dialect) -> Option<Address> {
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.starts_with('/').then(|| Address::Unix(text.into()));
    };
    match scheme {
        "unix" | "file" => rest.starts_with('/').then(|| Address::Unix(rest.into())),
        "guix" | "tcp" => {
            let rest = rest.trim_end_matches('/');
            let (host, port) = match rest.rsplit_once(':') {
                // The colons of an IPv6 address stand in brackets.
                Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
                _ => (rest, GUIX_PORT),
            };
            let host = host.trim_start_matches('[').trim_end_matches(']');
            (!host.is_empty()).then(|| Address::Tcp(host.to_owned(), port))
        }
        "ssh" | "ssh-ng" => {
            let socket = match dialect {
                Dialect::Guix => GUIX_SOCKET,
                Dialect::Nix => NIX_SOCKET,
            };
            // What Nix has after a question mark is for its own client.
            let rest = rest.split('?').next().unwrap_or_default();
            Remote::parse(rest, socket).map(Address::Ssh)
        }
        _ => None,
    }
}

/// A socket of either kind.
#[derive(Debug)]
enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    fn connect(address: &Address, wanted: &dyn Fn() -> bool) -> io::Result<Self> {
        let patience = Patience { until: clock::now() + ANSWER, wanted };
        match address {
            Address::Unix(path) => connect::unix(path, &patience).map(Self::Unix),
            Address::Tcp(host, port) => {
                let mut last = io::Error::from(io::ErrorKind::NotFound);
                for address in (host.as_str(), *port).to_socket_addrs()? {
                    match connect::tcp(address, &patience) {
                        Ok(stream) => {
                            stream.set_nodelay(true)?;
                            return Ok(Self::Tcp(stream));
                        }
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
            // Whoever has such an address has a tunnel, too, and connects to its near end.
            Address::Ssh(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn set_timeouts(&self, read: Duration) -> io::Result<()> {
        match self {
            Self::Unix(stream) => {
                stream.set_read_timeout(Some(read))?;
                stream.set_write_timeout(Some(ANSWER))
            }
            Self::Tcp(stream) => {
                stream.set_read_timeout(Some(read))?;
                stream.set_write_timeout(Some(ANSWER))
            }
        }
    }

    fn try_clone(&self) -> io::Result<Self> {
        Ok(match self {
            Self::Unix(stream) => Self::Unix(stream.try_clone()?),
            Self::Tcp(stream) => Self::Tcp(stream.try_clone()?),
        })
    }

    fn close(&self) {
        // Closed already, it is as it should be.
        let _ = match self {
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buffer),
            Self::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What [`Connection::build_here`] can do.
#[derive(Debug)]
pub(crate) enum Hook {
    /// Nothing: the daemon is another machine's, or there is no place for a program.
    Unknown,
    Guix,
    /// A program that declines.
    Nix(String),
}

impl Hook {
    /// For a daemon of this machine; a program goes into `directory`.
    pub(crate) fn prepare(dialect: Dialect, directory: &Path) -> Self {
        if dialect == Dialect::Guix {
            return Self::Guix;
        }
        match hook::write(directory) {
            Ok(program) => program.map_or(Self::Unknown, Self::Nix),
            Err(error) => {
                let directory = directory.display();
                log::warn!(target: "builder", "cannot write a build hook into {directory}: {error}");
                Self::Unknown
            }
        }
    }
}

/// Closes a connection from another thread.
#[derive(Debug)]
pub(crate) struct Closer(Stream);

impl Closer {
    pub(crate) fn close(&self) {
        self.0.close();
    }
}

impl End for Closer {
    fn end(&self) {
        self.close();
    }
}

/// Who follows a build.
pub(crate) trait Sink {
    type Error;
    fn output(&mut self, output: Output<'_>) -> Result<(), Self::Error>;
    /// When `tick` is next needed.
    fn due(&self) -> Option<Instant>;
    fn tick(&mut self) -> Result<(), Self::Error>;
}

/// Why a build was not followed to its end.
#[derive(Debug)]
pub(crate) enum Cut<E> {
    Connection(Error),
    /// Nothing came until the deadline.
    Late,
    Sink(E),
}

/// The way to a daemon that has not been greeted yet.
pub(crate) struct Line(Stream);

impl Line {
    /// Connects, as long as it is `wanted`.
    pub(crate) fn connect(address: &Address, wanted: &dyn Fn() -> bool) -> Result<Self, Error> {
        let stream = Stream::connect(address, wanted).map_err(Error::Connect)?;
        stream.set_timeouts(ANSWER).map_err(Error::Connect)?;
        Ok(Self(stream))
    }

    pub(crate) fn closer(&self) -> io::Result<Closer> {
        self.0.try_clone().map(Closer)
    }
}

/// A connection to a daemon, of which one thread asks one thing at a time.
pub(crate) struct Connection(Session<Stream>);

impl Connection {
    /// Waits for the daemon's greeting; whoever does is to hold a closer.
    pub(crate) fn greet(line: Line, dialect: Dialect) -> Result<Self, Error> {
        Session::open(line.0, dialect).map(Self)
    }

    /// Whether the daemon is of this machine and runs as we do, so that it can run what we can.
    fn is_like_us(&self) -> bool {
        match self.0.stream() {
            Stream::Unix(stream) => {
                let own = nix::unistd::geteuid().as_raw();
                socket::peer(stream).is_ok_and(|peer| peer.uid == own)
            }
            Stream::Tcp(_) => false,
        }
    }

    /// Has it wait longer for answers; whoever does is to hold a closer.
    pub(crate) fn be_patient(&self, patience: Duration) -> io::Result<()> {
        self.0.stream().set_timeouts(patience)
    }

    pub(crate) fn closer(&self) -> io::Result<Closer> {
        self.0.stream().try_clone().map(Closer)
    }

    /// Whether the daemon has neither closed it nor said anything since its last answer.
    pub(crate) fn is_quiet(&self) -> bool {
        let mut fds = [PollFd::new(self.0.stream().descriptor(), PollFlags::POLLIN)];
        !self.0.has_more()
            && poll::ready(&mut fds, Some(clock::now())).is_ok_and(|ready| ready == 0)
    }

    pub(crate) fn set_options(&mut self, options: &Options) -> Result<(), Error> {
        self.0.set_options(options)
    }

    /// Keeps a daemon from asking its hook, once for each build, for other machines where there are none.
    /// To be called before options are set.
    pub(crate) fn build_here(&mut self, hook: &Hook) {
        match hook {
            Hook::Unknown => {}
            Hook::Guix => {
                let near = matches!(self.0.stream(), Stream::Unix(_));
                self.0.set_offload(!near || hook::guix_may_offload());
            }
            Hook::Nix(program) => {
                if self.is_like_us() && !hook::may_offload() {
                    self.0.set_build_hook(program);
                }
            }
        }
    }

    pub(crate) fn is_valid(&mut self, path: &str) -> Result<bool, Error> {
        self.0.is_valid(path)
    }

    /// Makes an item valid by a substitute, if it is not: whoever waits for one that is large is to be patient.
    pub(crate) fn ensure(&mut self, path: &str) -> Result<(), Error> {
        self.0.ensure_path(path)
    }

    pub(crate) fn valid(&mut self, paths: &[&str]) -> Result<Vec<String>, Error> {
        self.0.valid(paths)
    }

    /// The outputs of a derivation, by name.
    pub(crate) fn outputs(&mut self, derivation: &str) -> Result<BTreeMap<String, String>, Error> {
        self.0.outputs(derivation)
    }

    pub(crate) fn add_temporary_root(&mut self, path: &str) -> Result<(), Error> {
        self.0.add_temporary_root(path)
    }

    pub(crate) fn add_indirect_root(&mut self, link: &[u8]) -> Result<(), Error> {
        self.0.add_indirect_root(link)
    }

    /// Builds all outputs of `derivation` and follows it to its end, or until nothing came for `silence` while a builder
    /// runs. A daemon says nothing while it waits for what other connections build.
    pub(crate) fn build<S: Sink>(
        &mut self,
        derivation: &str,
        silence: Duration,
        sink: &mut S,
    ) -> Result<Verdict, Cut<S::Error>> {
        self.0.build(derivation).map_err(Cut::Connection)?;
        loop {
            let bound = if self.0.is_building() { silence } else { LONGEST };
            let deadline = clock::now() + bound;
            while !self.0.has_more() {
                let due = sink.due();
                let until = due.map_or(deadline, |due| due.min(deadline));
                let mut fds = [PollFd::new(self.0.stream().descriptor(), PollFlags::POLLIN)];
                let ready = poll::ready(&mut fds, Some(until));
                if ready.map_err(|error| Cut::Connection(Error::Receive(error)))? > 0 {
                    break;
                }
                if deadline <= clock::now() {
                    return Err(Cut::Late);
                }
                sink.tick().map_err(Cut::Sink)?;
            }
            match self.0.step().map_err(Cut::Connection)? {
                Step::Output(output) => sink.output(output).map_err(Cut::Sink)?,
                Step::Nothing => {}
                Step::Over(verdict) => return Ok(verdict),
            }
            if sink.due().is_some_and(|due| due <= clock::now()) {
                sink.tick().map_err(Cut::Sink)?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn daemons_are_found_as_their_clients_find_them() {
        let found = |dialect, name: &'static str, value: &'static str| {
            Address::named(dialect, &|asked| (asked == name).then(|| value.to_owned()))
        };
        let unix = |path: &str| Ok(Address::Unix(path.into()));
        let tcp = |host: &str, port| Ok(Address::Tcp(host.to_owned(), port));
        let (guix, nix) = (Dialect::Guix, Dialect::Nix);
        assert_eq!(found(guix, "", ""), unix("/var/guix/daemon-socket/socket"));
        assert_eq!(found(nix, "", ""), unix("/nix/var/nix/daemon-socket/socket"));
        let socket = "GUIX_DAEMON_SOCKET";
        assert_eq!(found(guix, socket, "/run/guix"), unix("/run/guix"));
        assert_eq!(found(guix, socket, "file:///run/guix"), unix("/run/guix"));
        assert_eq!(found(guix, socket, "guix://farm"), tcp("farm", GUIX_PORT));
        assert_eq!(found(guix, socket, "guix://[::1]:7000"), tcp("::1", 7000));
        assert_eq!(found(guix, socket, "guix://[::1]"), tcp("::1", GUIX_PORT));
        assert_eq!(found(nix, "NIX_DAEMON_SOCKET_PATH", "/run/nix"), unix("/run/nix"));
        assert_eq!(found(nix, "NIX_REMOTE", "unix:///run/nix"), unix("/run/nix"));
        assert_eq!(found(nix, "NIX_REMOTE", "daemon"), unix("/nix/var/nix/daemon-socket/socket"));
        let Ok(Address::Ssh(remote)) = found(guix, socket, "ssh://ci@farm") else { panic!() };
        assert_eq!((remote.to_string().as_str(), &*remote.socket), ("ssh://ci@farm", GUIX_SOCKET));
        let Ok(Address::Ssh(remote)) = found(nix, "NIX_REMOTE", "ssh-ng://farm?max-connections=1")
        else {
            panic!()
        };
        assert_eq!((&*remote.destination, &*remote.socket), ("farm", NIX_SOCKET));
        for bad in ["http://farm", "ssh://-x", "relative", "guix://", "guix://h:99999"] {
            let error = found(guix, socket, bad).unwrap_err();
            assert!(error.to_string().contains(bad), "{error}");
        }
    }
}
