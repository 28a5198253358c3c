//! The web interface: pages for people, an HTTP API for programs, both read from the books.
//!
//! Invariants: reads come from read-only connections, each with a time limit; every change goes over the bridge to
//! the daemon, for a named identity, and none is made by GET. What a client sends or leaves unread costs that client
//! alone: requests, connections, streams and answers are bounded. The daemon being away leaves reads working.
//!
//! A request comes in through `serve`, which tells it to its route in `routes`; `access` says who asks, and whether
//! the route is for them; `api`, `page`, `change`, `live` and `file` answer.

mod access;
mod api;
mod change;
mod context;
mod date;
mod failure;
mod feed;
mod file;
mod gate;
mod hook;
mod link;
mod live;
mod log_view;
mod network;
mod page;
mod request;
mod response;
mod route;
mod search;
mod seats;
mod serve;

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::{fmt, io};

use crossbeam_channel::select;
use sd_notify::NotifyState;

use crate::actor::{Spawner, Threads};
use crate::model::error::chain;
use crate::spec::parameters::Parameters;
use crate::sys::signal::{self, Signal};
use crate::sys::{clock, descriptors};
use context::Shared;

/// What the web interface must know.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// `HOST:PORT`.
    pub(crate) listen: String,
    pub(crate) database: PathBuf,
    /// The daemon's bridge.
    pub(crate) socket: PathBuf,
    /// Holds the logs of evaluations; builds tell where theirs are.
    pub(crate) log_directory: PathBuf,
    /// What builds left for people is in here, or in a store.
    pub(crate) products_directory: PathBuf,
    pub(crate) parameters: Parameters,
}

/// Why it did not start.
#[derive(Debug)]
pub(crate) enum Error {
    Listen(String, io::Error),
    Thread(&'static str, io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listen(place, _) => write!(f, "cannot listen on {place}"),
            Self::Thread(name, _) => write!(f, "cannot start {name}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Listen(_, error) | Self::Thread(_, error) => Some(error),
        }
    }
}

/// Starts the threads of the web interface in this process.
pub(crate) fn spawn(threads: &Spawner, config: Config) -> Result<(), Error> {
    let listeners =
        listen(&config.listen).map_err(|error| Error::Listen(config.listen.clone(), error))?;
    let places: Vec<_> =
        listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect();
    let live = live::spawn(threads, &config).map_err(|error| Error::Thread("web/events", error))?;
    let shared = Arc::new(Shared::new(config, live));
    let limits = descriptors::limit().map(gate::Limits::of);
    limits
        .and_then(|limits| gate::spawn(threads, listeners, &shared, limits))
        .map_err(|error| Error::Thread("the gate", error))?;
    for place in places {
        log::info!(target: "web", "listening on http://{place}/");
    }
    Ok(())
}

/// Listens on every address of a host, `localhost` has two; where the port is to be any, on the same one.
fn listen(place: &str) -> io::Result<Vec<TcpListener>> {
    let (mut listeners, mut port) = (Vec::new(), None);
    let mut absent = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for mut address in place.to_socket_addrs()? {
        if let (0, Some(port)) = (address.port(), port) {
            address.set_port(port);
        }
        match TcpListener::bind(address) {
            Ok(listener) => {
                port = listener.local_addr().map(|address: SocketAddr| address.port()).ok();
                listeners.push(listener);
            }
            // A resolver may know addresses of a family that this machine does not speak.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT)
                ) =>
            {
                log::debug!(target: "web", "cannot listen on {address}: {error}");
                absent = error;
            }
            Err(error) => return Err(error),
        }
    }
    if listeners.is_empty() { Err(absent) } else { Ok(listeners) }
}

/// For threads to end after a stop: as with the daemon, whose promise is less than ten seconds.
const GRACE: std::time::Duration = std::time::Duration::from_millis(9_500);

/// Runs the web interface as a process of its own, to its end; the log says why it ended badly.
pub(crate) fn run(config: Config) -> ExitCode {
    if let Err(error) = descriptors::raise() {
        log::warn!(target: "web", "cannot raise the limit on descriptors: {error}");
    }
    let (spawner, threads) = Spawner::new();
    let signals = match signal::listen(&spawner) {
        Ok(signals) => signals,
        Err(error) => {
            log::error!(target: "web", "cannot listen for signals: {error}");
            return ExitCode::FAILURE;
        }
    };
    if let Err(error) = spawn(&spawner, config) {
        log::error!(target: "web", "{}", chain(&error));
        return ExitCode::FAILURE;
    }
    drop(spawner);
    tell(NotifyState::Ready);
    let fine = loop {
        select! {
            recv(signals) -> signal => match signal {
                Ok(Signal::Reload) => log::info!(target: "web", "nothing to read again"),
                Ok(Signal::Stop) => break true,
                Err(_) => break false,
            },
            recv(threads.reports) -> report => {
                log::error!(target: "web", "a part ended unexpectedly: {report:?}");
                break false;
            }
        }
    };
    tell(NotifyState::Stopping);
    let Threads { stop, reports: _, all_gone } = threads;
    drop((stop, signals));
    let gone = all_gone.recv_deadline(clock::now() + GRACE);
    let gone = matches!(gone, Err(crossbeam_channel::RecvTimeoutError::Disconnected));
    if fine && gone { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Tells the service manager; fine if there is none.
fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        log::debug!(target: "web", "cannot tell the service manager: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn a_host_is_heard_at_each_of_its_addresses_on_one_port() {
        let listeners = listen("localhost:0").unwrap();
        let places: Vec<_> = listeners.iter().map(|l| l.local_addr().unwrap()).collect();
        assert!(places.iter().all(|place| place.port() == places[0].port()), "{places:?}");
        for address in "localhost:0".to_socket_addrs().unwrap() {
            // Of the families that this machine speaks.
            if TcpListener::bind(address).is_ok() {
                let place = SocketAddr::new(address.ip(), places[0].port());
                assert!(TcpStream::connect(place).is_ok(), "{place}");
            }
        }
        assert!(listen("127.0.0.1:none").is_err());
    }
}
