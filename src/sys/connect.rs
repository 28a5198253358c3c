//! Connections that are made until a deadline, or until nobody wants them any more: who listens may not accept.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, UnixAddr, connect, getsockopt,
    socket, sockopt,
};

use super::{clock, poll};

/// Between two looks at whether it is still wanted: a cancel is to take less than a second.
const LOOK: Duration = Duration::from_millis(200);

/// Until when, and as long as what holds, a connection is waited for.
pub(crate) struct Patience<'a> {
    pub(crate) until: Instant,
    pub(crate) wanted: &'a dyn Fn() -> bool,
}

impl Patience<'_> {
    /// How long to wait before the next look.
    fn look(&self) -> io::Result<Duration> {
        if !(self.wanted)() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let left = self.until.saturating_duration_since(clock::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left.min(LOOK)) }
    }
}

/// Connects to a Unix socket.
pub(crate) fn unix(path: &Path, patience: &Patience) -> io::Result<UnixStream> {
    let address = UnixAddr::new(path)?;
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let stream = UnixStream::from(socket);
    loop {
        // Nothing tells when a queue that is full has room, but the kernel waits as long as for a write.
        stream.set_write_timeout(Some(patience.look()?))?;
        match connect(stream.as_raw_fd(), &address) {
            Ok(()) => break,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    stream.set_write_timeout(None)?;
    Ok(stream)
}

/// Connects to a TCP port.
pub(crate) fn tcp(address: SocketAddr, patience: &Patience) -> io::Result<TcpStream> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let stream = TcpStream::from(socket(family, SockType::Stream, flags, None)?);
    let begun = match address {
        SocketAddr::V4(address) => connect(stream.as_raw_fd(), &SockaddrIn::from(address)),
        SocketAddr::V6(address) => connect(stream.as_raw_fd(), &SockaddrIn6::from(address)),
    };
    match begun {
        Ok(()) | Err(Errno::EINPROGRESS | Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    loop {
        let until = clock::now() + patience.look()?;
        let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
        if poll::ready(&mut fds, Some(until))? > 0 {
            break;
        }
    }
    match getsockopt(&stream, sockopt::SocketError)? {
        0 => stream.set_nonblocking(false).map(|()| stream),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use nix::sys::socket::{Backlog, bind, listen};

    use super::*;

    #[test]
    fn nobody_waits_for_ever_for_who_does_not_accept() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("socket");
        let flags = SockFlag::SOCK_CLOEXEC;
        let listener = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&listener, Backlog::new(0).unwrap()).unwrap();
        let patience = |time, wanted| Patience { until: clock::now() + time, wanted };
        let (short, long) = (Duration::from_millis(50), Duration::from_secs(3600));
        let mut taken = Vec::new();
        let error = loop {
            match unix(&path, &patience(short, &|| true)) {
                Ok(stream) => taken.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(taken.len(), 1, "the queue holds one");
        let looks = std::cell::Cell::new(0);
        let wanted = || looks.replace(looks.get() + 1) == 0;
        let error = unix(&path, &patience(long, &wanted)).unwrap_err();
        assert_eq!((error.kind(), looks.get()), (io::ErrorKind::ConnectionAborted, 2));
    }

    #[test]
    fn ports_are_connected_to_or_refuse() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connect = || {
            let until = clock::now() + Duration::from_secs(60);
            tcp(address, &Patience { until, wanted: &|| true })
        };
        let stream = connect().unwrap();
        assert_eq!(stream.peer_addr().unwrap(), address);
        drop((stream, listener));
        assert_eq!(connect().unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
