//! Unix sockets: binding under the lock, modes, peers' credentials.

use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::sys::socket::{
    Shutdown, SockaddrStorage, getpeername, getsockname, getsockopt, shutdown, sockopt,
};

use super::file;

/// Whoever may write may talk to us; the peer's credentials are looked at besides.
const SOCKET_MODE: u32 = 0o660;
/// How long somebody who listens may take to show it: a busy daemon answers within this.
const ANSWER: Duration = Duration::from_secs(3);
/// Room for supplementary groups at first: more than most users have.
const GROUPS: usize = 32;
/// The kernel's own limit.
const MAX_GROUPS: usize = 65_536;

/// Binds `path` in a directory of mode 0750 (created), removing a stale socket; the caller holds the state lock.
/// The socket gets mode 0660 and `group` if given; so does the directory if it is ours and closed to others, for
/// otherwise the group could not come near.
pub(crate) fn bind(path: &Path, group: Option<u32>) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        file::create_directory(directory)?;
        let metadata = fs::metadata(directory)?;
        let own = metadata.uid() == nix::unistd::geteuid().as_raw();
        let closed = metadata.permissions().mode() & 0o001 == 0;
        if own && closed && group.is_some_and(|group| group != metadata.gid()) {
            chown(directory, None, group)?;
        }
    }
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {
            if is_served(path)? {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            fs::remove_file(path)?;
        }
        Ok(_) => return Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    if group.is_some() {
        chown(path, None, group)?;
    }
    fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))?;
    Ok(listener)
}

/// Whether somebody answers there. A daemon with another state directory may have been given the same socket.
fn is_served(path: &Path) -> io::Result<bool> {
    let mut stream = match UnixStream::connect(path) {
        Ok(stream) => stream,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(false),
        Err(error) => return Err(error),
    };
    // A child of a daemon that was killed, on its way to its own program, may hold the listening end a moment longer:
    // then the connection ends without an answer.
    stream.set_read_timeout(Some(ANSWER))?;
    let answer = stream.write_all(b"version\n").and_then(|()| stream.read(&mut [0]));
    Ok(answer.map_or_else(|error| error.kind() == io::ErrorKind::WouldBlock, |length| length > 0))
}

/// What tells a socket from another one that took its name: a number alone may be given again.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Identity(u64, Option<SystemTime>);

pub(crate) fn identity(path: &Path) -> io::Result<Identity> {
    let metadata = fs::symlink_metadata(path)?;
    Ok(Identity(metadata.ino(), metadata.created().ok()))
}

/// Removes the socket that `bind` made, unless another one has taken its place.
pub(crate) fn remove(path: &Path, own: &Identity) -> io::Result<()> {
    if identity(path)? == *own { fs::remove_file(path) } else { Ok(()) }
}

/// Who is at the other end: as of its `connect`, whatever it became since.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) pid: i32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

pub(crate) fn peer(stream: &UnixStream) -> io::Result<Peer> {
    let credentials = getsockopt(stream, sockopt::PeerCredentials)?;
    let groups = peer_groups(stream, GROUPS)?;
    Ok(Peer { pid: credentials.pid(), uid: credentials.uid(), gid: credentials.gid(), groups })
}

/// The address at the other end of a TCP connection that somebody else owns.
pub(crate) fn address(descriptor: RawFd) -> io::Result<IpAddr> {
    Ok(place(&getpeername::<SockaddrStorage>(descriptor)?)?.ip())
}

/// How many bytes a TCP connection has received.
pub(crate) fn received(descriptor: RawFd) -> io::Result<u64> {
    // SAFETY: zero is a value of each of its fields, which are numbers.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of_val(&info)).unwrap_or(0);
    // SAFETY: `info` has room for `length` bytes, and both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            descriptor,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(info.tcpi_bytes_received)
}

/// Ends a TCP connection that somebody else owns, who closes it then. The descriptor may have become another one's
/// meanwhile: it must be connected to our `port` by `peer`.
pub(crate) fn hang_up(descriptor: RawFd, port: u16, peer: IpAddr) -> io::Result<()> {
    let own = place(&getsockname::<SockaddrStorage>(descriptor)?)?;
    if own.port() != port || address(descriptor)? != peer {
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(shutdown(descriptor, Shutdown::Both)?)
}

fn place(address: &SockaddrStorage) -> io::Result<SocketAddr> {
    let four = address.as_sockaddr_in().map(|four| SocketAddr::from((four.ip(), four.port())));
    let six = address.as_sockaddr_in6().map(|six| SocketAddr::from((six.ip(), six.port())));
    four.or(six).ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// Supplementary groups, read into room for `room` at first.
fn peer_groups(stream: &UnixStream, room: usize) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; room.min(MAX_GROUPS)];
    loop {
        let bytes = size_of_val(groups.as_slice());
        // At most 256 KiB.
        let mut length = libc::socklen_t::try_from(bytes).unwrap_or(libc::socklen_t::MAX);
        // SAFETY: `groups` has room for `length` bytes, and both outlive the call.
        let result = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let count = usize::try_from(length).unwrap_or(0) / size_of::<libc::gid_t>();
        match Errno::result(result) {
            Ok(_) => {
                groups.truncate(count);
                return Ok(groups);
            }
            // `length` says how much is needed.
            Err(Errno::ERANGE) if count > groups.len() && count <= MAX_GROUPS => {
                groups.resize(count, 0)
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/bridge");
        drop(bind(&path, None).unwrap());
        let own = nix::unistd::getegid().as_raw();
        let listener = bind(&path, Some(own)).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(listener.accept().unwrap());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o660, 0o750));
        let first = identity(&path).unwrap();
        // Nobody accepts: whoever listens is taken for one that is busy.
        assert_eq!(bind(&path, None).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        let _listener = bind(&path, None).unwrap();
        remove(&path, &first).unwrap();
        assert!(path.exists(), "another one has taken its place");
        remove(&path, &identity(&path).unwrap()).unwrap();
        assert!(!path.exists());
        let file = directory.path().join("file");
        fs::write(&file, "precious").unwrap();
        assert_eq!(bind(&file, None).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&file).unwrap(), b"precious");
    }

    #[test]
    fn the_group_can_reach_its_socket() {
        if !nix::unistd::geteuid().is_root() {
            return; // Only root can give files to any group.
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/bridge");
        let _listener = bind(&path, Some(4711)).unwrap();
        for path in [&path, path.parent().unwrap()] {
            assert_eq!(fs::metadata(path).unwrap().gid(), 4711);
        }
        let open = directory.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, Permissions::from_mode(0o755)).unwrap();
        let _listener = bind(&open.join("bridge"), Some(4711)).unwrap();
        assert_ne!(fs::metadata(&open).unwrap().gid(), 4711);
    }

    #[test]
    fn connections_of_others_are_told_apart_and_ended() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (served, _) = listener.accept().unwrap();
        let (here, there) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        assert_eq!(address(served.as_raw_fd()).unwrap(), here);
        hang_up(served.as_raw_fd(), port, there).unwrap_err();
        hang_up(client.as_raw_fd(), port, here).unwrap_err();
        let (pair, _other) = UnixStream::pair().unwrap();
        hang_up(pair.as_raw_fd(), port, here).unwrap_err();
        client.write_all(b"x").unwrap();
        assert_eq!(served.peek(&mut [0]).unwrap(), 1);
        assert_eq!(received(served.as_raw_fd()).unwrap(), 1);
        hang_up(served.as_raw_fd(), port, here).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn peers_are_known_with_all_their_groups() {
        let (stream, _other) = UnixStream::pair().unwrap();
        let own = peer(&stream).unwrap();
        assert_eq!(own.uid, nix::unistd::geteuid().as_raw());
        assert_eq!(own.gid, nix::unistd::getegid().as_raw());
        let mut groups: Vec<_> =
            nix::unistd::getgroups().unwrap().into_iter().map(nix::unistd::Gid::as_raw).collect();
        groups.sort_unstable();
        // Also when there is too little room at first.
        for room in [0, 1, GROUPS] {
            let mut read = peer_groups(&stream, room).unwrap();
            read.sort_unstable();
            assert_eq!(read, groups);
        }
    }
}
