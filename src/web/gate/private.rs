//! tiny_http behind the gate: a socket that nobody else can reach, and a new server when one accepts no more.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::actor::Spawner;
use crate::web::context::Shared;
use crate::web::serve::{Server, Streams};

/// Between two servers: one that ends at once must not be replaced in a loop.
const AGAIN: Duration = Duration::from_secs(1);

/// Directories of ours begin with it.
const NAME: &str = "web-";

/// Nobody else comes near.
const MODE: u32 = 0o700;

/// A socket's path, with which the system copes.
const MAX_PATH: usize = 100;

/// What one more connection takes: our end, tiny_http's, and the copies that it makes of that.
pub(super) const SPARE: usize = 4;

/// The server in use, and how to make another one.
pub(super) struct Private {
    threads: Spawner,
    shared: Arc<Shared>,
    streams: Streams,
    server: Arc<Server>,
    /// How many there were before it.
    number: usize,
    /// Before that no other one is started.
    next: Option<Instant>,
    directory: Arc<Directory>,
}

impl Private {
    pub(super) fn start(
        threads: &Spawner,
        shared: &Arc<Shared>,
        streams: usize,
    ) -> io::Result<Self> {
        let directory = Arc::new(Directory::create(&shared.config.socket)?);
        let streams = Streams::new(threads.clone(), streams);
        let server = Server::start(threads, shared, &streams, &directory, 0)?;
        Ok(Self {
            threads: threads.clone(),
            shared: Arc::clone(shared),
            streams,
            server: Arc::new(server),
            number: 0,
            next: None,
            directory,
        })
    }

    /// A new connection, with the server that accepts it. Nothing is tried without descriptors to spare: tiny_http
    /// accepts no more after it has once found none.
    pub(super) fn connect(&mut self, now: Instant) -> io::Result<(UnixStream, Arc<Server>)> {
        let stream = {
            let spare = (0..SPARE).map(|_| io::stdin().as_fd().try_clone_to_owned());
            drop(spare.collect::<io::Result<Vec<_>>>()?);
            UnixStream::connect(self.server.socket())
        };
        let stream = match stream {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                self.replace(now)?;
                UnixStream::connect(self.server.socket())?
            }
            stream => stream?,
        };
        stream.set_nonblocking(true)?;
        Ok((stream, Arc::clone(&self.server)))
    }

    /// Another server: the old one's workers end with the last connection to it.
    fn replace(&mut self, now: Instant) -> io::Result<()> {
        if self.next.is_some_and(|next| now < next) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        log::warn!(target: "web", "the server accepts no more and is replaced");
        self.next = Some(now + AGAIN);
        self.number += 1;
        let server = Server::start(
            &self.threads,
            &self.shared,
            &self.streams,
            &self.directory,
            self.number,
        )?;
        self.server = Arc::new(server);
        Ok(())
    }

    /// Whether a connection is to the server that is in use.
    pub(super) fn is_current(&self, server: &Arc<Server>) -> bool {
        Arc::ptr_eq(server, &self.server)
    }
}

/// A directory of mode 0700 for the sockets, removed at the end.
pub(in crate::web) struct Directory(PathBuf);

impl Directory {
    /// Below the run directory, or else below that for temporary files.
    fn create(bridge: &Path) -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        let temporary = std::env::temp_dir();
        for parent in bridge.parent().into_iter().chain([temporary.as_path()]) {
            sweep(parent);
            // Of this process there may be others, in tests.
            for n in 0..100 {
                let path = parent.join(format!("{NAME}{}-{n}", std::process::id()));
                if path.as_os_str().len() > MAX_PATH {
                    break;
                }
                match DirBuilder::new().mode(MODE).create(&path) {
                    Ok(()) => return Ok(Self(path)),
                    Err(error) => {
                        let is_taken = error.kind() == io::ErrorKind::AlreadyExists;
                        last = error;
                        if !is_taken {
                            break;
                        }
                    }
                }
            }
        }
        Err(last)
    }

    /// Where the server with this number listens.
    pub(in crate::web) fn socket(&self, number: usize) -> PathBuf {
        self.0.join(number.to_string())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            log::warn!(target: "web", "cannot remove {}: {error}", self.0.display());
        }
    }
}

/// Removes what processes that were killed have left: a socket that nobody listens on, and its directory. Where
/// everybody has files, others may have such a name, too.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    let ours = entries.flatten().filter(|entry| is_ours(entry).unwrap_or(false));
    for directory in ours.map(|entry| entry.path()) {
        let Ok(sockets) = fs::read_dir(&directory) else { continue };
        let sockets: Vec<_> = sockets.flatten().map(|entry| entry.path()).collect();
        // A plain file refuses, too.
        let is_socket = |path: &Path| {
            fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
        };
        let is_refused = |socket: &PathBuf| {
            is_socket(socket)
                && UnixStream::connect(socket)
                    .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        };
        if !sockets.is_empty() && sockets.iter().all(is_refused) {
            match fs::remove_dir_all(&directory) {
                Ok(()) => log::debug!(target: "web", "removed {}", directory.display()),
                Err(error) => {
                    log::debug!(target: "web", "cannot remove {}: {error}", directory.display())
                }
            }
        }
    }
}

/// Whether it is a directory as [`Directory::create`] makes them, by this user.
fn is_ours(entry: &fs::DirEntry) -> io::Result<bool> {
    let metadata = entry.metadata()?;
    Ok(entry.file_name().to_string_lossy().starts_with(NAME)
        && metadata.is_dir()
        && metadata.mode() & 0o777 == MODE
        && metadata.uid() == nix::unistd::geteuid().as_raw())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn directories_are_closed_to_others_and_old_ones_swept() {
        let run = tempfile::tempdir().unwrap();
        let bridge = run.path().join("bridge");
        let (stale, served) = (run.path().join("web-1-0"), run.path().join("web-2-0"));
        let files = run.path().join("web-3-0");
        for directory in [&stale, &served, &files] {
            DirBuilder::new().mode(MODE).create(directory).unwrap();
        }
        fs::write(files.join("index.html"), "somebody's").unwrap();
        let open = run.path().join("web-4-0");
        fs::create_dir(&open).unwrap();
        drop(UnixListener::bind(open.join("0")).unwrap());
        drop(UnixListener::bind(stale.join("0")).unwrap());
        let _listener = UnixListener::bind(served.join("0")).unwrap();
        let directory = Directory::create(&bridge).unwrap();
        let path = directory.socket(0).parent().unwrap().to_owned();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert!(!stale.exists() && served.exists() && files.exists() && open.exists());
        drop(directory);
        assert!(!path.exists());
    }
}
