//! Finding the server: by its name and port, or by asking the network.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use crossbeam_channel::{Receiver, TryRecvError, after, bounded, select};
use mdns_sd::{RecvTimeoutError, ServiceDaemon, ServiceEvent};

use crate::actor::{Gone, Spawner, Stop};

/// What Cuirass's server announces itself as.
const SERVICE: &str = "_remote-server._tcp.local.";

/// Between two tries to look a name up, doubled each time: a machine that starts may not have its network yet.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Between two looks for the stop while the network is asked.
const LOOK: Duration = Duration::from_millis(500);

/// Where the server is said to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A name or an address, and a port.
    Named(String, u16),
    /// The first that the network knows.
    Announced,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Named(host, port) => write!(f, "{host}:{port}"),
            Self::Announced => write!(f, "{SERVICE}"),
        }
    }
}

/// Starts the thread `find`, which sends the address once it has one.
pub(super) fn spawn(threads: &Spawner, place: Place) -> io::Result<Receiver<SocketAddr>> {
    let (found, address) = bounded(1);
    threads.child(
        "find",
        move |stop| {
            let address = find(&place, &stop)?;
            log::info!(target: "worker", "the server is at {address}");
            Ok::<_, Gone>(found.send(address)?)
        },
        |report| log::debug!(target: "worker", "{report:?}"),
    )?;
    Ok(address)
}

/// Tries for ever.
fn find(place: &Place, stop: &Stop) -> Result<SocketAddr, Gone> {
    let (mut pause, mut told) = (PAUSES.0, String::new());
    loop {
        let why = match place {
            Place::Named(host, port) => match resolve(host, *port) {
                Ok(address) => return Ok(address),
                Err(error) => format!("cannot look up the server {host}: {error}"),
            },
            Place::Announced => match browse(stop) {
                Ok(address) => return address,
                Err(error) => format!("cannot ask the network for a server: {error}"),
            },
        };
        if why != told {
            log::warn!(target: "worker", "{why}");
            told = why;
        }
        select! {
            recv(stop) -> _ => return Err(Gone),
            recv(after(pause)) -> _ => {}
        }
        pause = (pause * 2).min(PAUSES.1);
    }
}

/// An address of a host: of the fourth version if it has one, as Cuirass's server listens on those only.
fn resolve(host: &str, port: u16) -> io::Result<SocketAddr> {
    let found: Vec<_> = (host, port).to_socket_addrs()?.collect();
    let fourth = found.iter().find(|address| address.is_ipv4());
    fourth.or(found.first()).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Waits until the network knows of a server.
fn browse(stop: &Stop) -> Result<Result<SocketAddr, Gone>, mdns_sd::Error> {
    log::info!(target: "worker", "asking the network for a server ({SERVICE})");
    let daemon = ServiceDaemon::new()?;
    let events = daemon.browse(SERVICE)?;
    let address = loop {
        match events.recv_timeout(LOOK) {
            Ok(ServiceEvent::ServiceResolved(service)) => {
                let addresses = service.addresses.iter().map(mdns_sd::ScopedIp::to_ip_addr);
                if let Some(address) = choose(addresses.collect()) {
                    break Ok(SocketAddr::new(address, service.port));
                }
            }
            // What else there is to hear.
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(mdns_sd::Error::Msg("it ended".to_owned()));
            }
        }
        if stop.try_recv() == Err(TryRecvError::Disconnected) {
            break Err(Gone);
        }
    };
    // It ends by itself; whoever hears that is gone.
    let _ = daemon.shutdown();
    Ok(address)
}

/// As [`resolve`]; of the sixth version none that is of one link only, as those need its name.
fn choose(mut addresses: Vec<IpAddr>) -> Option<IpAddr> {
    addresses.retain(|address| match address {
        IpAddr::V4(_) => true,
        IpAddr::V6(address) => !address.is_unicast_link_local(),
    });
    addresses.sort();
    addresses.first().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_fourth_version_are_preferred() {
        let parse = |text: &str| text.parse::<IpAddr>().unwrap();
        let addresses = ["2001:db8::1", "fe80::1", "10.0.0.1"].map(parse);
        assert_eq!(choose(addresses.to_vec()), Some(parse("10.0.0.1")));
        assert_eq!(choose(addresses[..2].to_vec()), Some(parse("2001:db8::1")));
        assert_eq!(choose(addresses[1..2].to_vec()), None);
        assert_eq!(resolve("127.0.0.1", 5555).unwrap().to_string(), "127.0.0.1:5555");
        assert_eq!(resolve("::1", 5555).unwrap().to_string(), "[::1]:5555");
    }
}
