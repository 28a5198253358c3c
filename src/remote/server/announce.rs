//! Tells the local network of the server by mDNS, as Cuirass's does by Avahi: workers that are not told of a server find it.
//!
//! The library has a thread of its own, `mDNS_daemon`; it is asked to withdraw the service at the stop. A network where this
//! does not work is no reason to serve nobody.

use std::io;
use std::time::Duration;

use mdns_sd::{ServiceDaemon, ServiceInfo};

use crate::actor::{Gone, Spawner, Stop};

/// What workers look for.
const TYPE: &str = "_remote-server._tcp.local.";
const NAME: &str = "Cuirass remote server";

/// For the word that it is no more to leave.
const FAREWELL: Duration = Duration::from_secs(1);

/// What is told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) backend: u16,
    pub(super) log: u16,
    pub(super) publish: Option<u16>,
}

/// Starts the thread `announce`.
pub(super) fn spawn(threads: &Spawner, ports: Ports) -> io::Result<()> {
    threads.essential("announce", move |stop| {
        if let Err(error) = announce(ports, &stop) {
            log::warn!(target: "announce", "cannot announce the server: {error}");
            let _ = stop.recv();
        }
        Ok::<_, Gone>(())
    })
}

fn announce(ports: Ports, stop: &Stop) -> mdns_sd::Result<()> {
    let daemon = ServiceDaemon::new()?;
    let service = service(ports)?;
    let name = service.get_fullname().to_owned();
    daemon.register(service)?;
    log::info!(target: "announce", "the local network is told of {NAME:?}");
    // Nothing is ever sent: this is the disconnection.
    let _ = stop.recv();
    if let Ok(done) = daemon.unregister(&name) {
        let _ = done.recv_timeout(FAREWELL);
    }
    if let Ok(done) = daemon.shutdown() {
        let _ = done.recv_timeout(FAREWELL);
    }
    Ok(())
}

fn service(ports: Ports) -> mdns_sd::Result<ServiceInfo> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    // The first part of it, as mDNS has no others.
    let label = host.trim().split('.').next().filter(|label| !label.is_empty());
    let host = format!("{}.local.", label.unwrap_or("localhost"));
    let mut text = vec![("log-port", ports.log.to_string())];
    text.extend(ports.publish.map(|port| ("publish-port", port.to_string())));
    let service = ServiceInfo::new(TYPE, NAME, &host, "", ports.backend, text.as_slice())?;
    Ok(service.enable_addr_auto())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_learn_the_ports() {
        let ports = Ports { backend: 5555, log: 5556, publish: Some(5557) };
        let told = service(ports).unwrap();
        assert_eq!(told.get_fullname(), "Cuirass remote server._remote-server._tcp.local.");
        assert_eq!(told.get_port(), 5555);
        assert_eq!(told.get_property_val_str("log-port"), Some("5556"));
        assert_eq!(told.get_property_val_str("publish-port"), Some("5557"));
        let told = service(Ports { publish: None, ..ports }).unwrap();
        assert_eq!(told.get_property_val_str("publish-port"), None);
    }
}
