//! Children, each in its own session under a keeper: this binary re-executed, a subreaper that kills all
//! descendants when its control socket closes or the child ends.
//!
//! Invariant: when `Child` is dropped, or the daemon dies in whatever way, nothing the child started lives on. The
//! exceptions: what the kernel itself cannot kill (it sleeps in a broken file system), for which nobody waits longer
//! than [`KILL_PATIENCE`]; and, without a job user, what kills its own keeper.
//!
//! The keeper is started by `posix_spawn`, so that it costs the same however large the daemon is, with the control
//! socket as its standard input. All other descriptors follow over that socket: also the lock on the keepers' file,
//! which is one open file description for the daemon and all its keepers, and so is held until the last is gone.

mod child;
mod descendants;
mod keeper;
mod message;
mod program;
#[cfg(test)]
mod tests;

use std::ffi::{CString, OsString};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Gid, Uid};

use super::{clock, descriptors, poll};
pub(crate) use child::{Child, Killer};
use message::Order;

/// The hidden first argument that makes this binary a keeper.
pub(crate) const KEEPER: &str = "keeper";

/// How long SIGKILL may take: a killed process is gone in milliseconds unless the kernel holds it. Together with
/// the grace of 3 s a stop stays well under the daemon's 10 s.
const KILL_PATIENCE: Duration = Duration::from_secs(3);

/// How long a new keeper may take to read its order: it does so at once unless the machine is stuck.
const ORDER_PATIENCE: Duration = Duration::from_secs(10);

/// Between two tries for a lock that an earlier life's keepers hold: `flock` knows no deadline.
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// What to run.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) program: Program,
    /// The whole environment.
    pub(crate) environment: Vec<(OsString, OsString)>,
    pub(crate) directory: PathBuf,
    /// Run as this user, without supplementary groups.
    pub(crate) user: Option<User>,
    /// Bytes of address space; `None` for no limit.
    pub(crate) memory: Option<u64>,
    /// Whether stderr goes to the same pipe as stdout.
    pub(crate) merge: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Program {
    /// Program (looked up in the `PATH` of `environment`, relative to `directory` with a slash) and arguments.
    Command(Vec<OsString>),
    /// The work on one mirror, for which the keeper forks without another exec. Its request comes on standard
    /// input; the arguments are for people who look at the launch.
    Git(Vec<OsString>),
}

/// A user to run jobs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: PathBuf,
}

impl User {
    /// Looks a user up by name; `Ok(None)` if there is none.
    pub(crate) fn find(name: &str) -> io::Result<Option<Self>> {
        let user = nix::unistd::User::from_name(name)?;
        Ok(user.map(|user| Self {
            name: user.name,
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            home: user.dir,
        }))
    }
}

/// Makes this process the user's for good, with the groups that the user is in; to be called before there are threads.
pub(crate) fn become_user(user: &User) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    if nix::unistd::geteuid() == uid {
        return Ok(());
    }
    let name = CString::new(user.name.as_bytes())?;
    nix::unistd::initgroups(&name, gid)?;
    nix::unistd::setgid(gid)?;
    nix::unistd::setuid(uid)?;
    Ok(())
}

/// Something read from a running child.
#[derive(Debug)]
pub(crate) enum Read {
    /// Bytes were appended to the buffer given, from standard output or (if not merged) standard error.
    Output,
    Errors,
    /// The deadline passed first.
    Deadline,
    /// Its `Killer::cancel` was called.
    Canceled,
    /// It and all its descendants are gone; all output has been read.
    Ended(Exit),
}

/// How a child ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) how: How,
    /// Largest resident set of it or a descendant, bytes.
    pub(crate) max_resident: u64,
    /// Whether the kernel's out-of-memory killer was at work meanwhile.
    pub(crate) oom: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Code(i32),
    Signal(i32),
    /// Its program is none that can be run: why.
    NotStarted(String),
    /// Something here kept it from being started, want of memory or processes say: why.
    Prevented(String),
    /// The keeper itself went away, or could not kill the child.
    Lost,
}

/// Starts children for one state directory.
#[derive(Clone)]
pub(crate) struct Launcher {
    executable: PathBuf,
    /// Locked; one open file description for us and all keepers.
    lock: Arc<File>,
}

impl Launcher {
    /// `keepers` is the file on which every keeper holds a lock while it lives. Waits until the keepers of
    /// an earlier life are gone, until `deadline` at most (then `TimedOut`).
    pub(crate) fn new(keepers: PathBuf, deadline: Instant) -> io::Result<Self> {
        let executable = executable();
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o640)
            .open(keepers)?;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(Self { executable, lock: Arc::new(lock) }),
                Err(TryLockError::WouldBlock) if clock::now() >= deadline => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(TryLockError::WouldBlock) => {
                    poll::ready(&mut [], Some(clock::now() + LOCK_RETRY))?;
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    /// For children that need no state directory: nobody waits for their keepers in another life.
    pub(crate) fn alone() -> io::Result<Self> {
        let lock = File::from(memfd_create(c"keepers", MFdFlags::MFD_CLOEXEC)?);
        Ok(Self { executable: executable(), lock: Arc::new(lock) })
    }

    /// Starts a child with `input` as its standard input, or none.
    pub(crate) fn start(&self, launch: Launch, input: Option<Vec<u8>>) -> io::Result<Child> {
        let order = Order::new(&launch, input.is_some()).encode();
        if order.len() > message::MAX_ORDER {
            return Err(io::ErrorKind::ArgumentListTooLong.into());
        }
        let (output, output_end) = pipe()?;
        let errors = if launch.merge { None } else { Some(pipe()?) };
        let input = input.map(file_in_memory).transpose()?;
        let cancel = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let (control, control_end) = UnixStream::pair()?;
        control.set_write_timeout(Some(ORDER_PATIENCE))?;
        let keeper = self.spawn_keeper(control_end)?;
        // From here on the keeper is reaped by dropping the child.
        let (errors, errors_end) = errors.unzip();
        let mut child = Child::new(keeper, control, output, errors, cancel);
        let mut fds: Vec<RawFd> = vec![self.lock.as_raw_fd(), output_end.as_raw_fd()];
        fds.extend(errors_end.iter().map(AsRawFd::as_raw_fd));
        fds.extend(input.iter().map(AsRawFd::as_raw_fd));
        child.send_order(&order, &fds)?;
        Ok(child)
    }

    fn spawn_keeper(&self, control: UnixStream) -> io::Result<std::process::Child> {
        #[expect(clippy::disallowed_methods, reason = "this is the keeper that others run under")]
        let mut command = Command::new(&self.executable);
        // A process group of its own, lest ^C on a terminal reach it. Standard error stays ours for a panic.
        command
            .arg0("gorget")
            .arg(KEEPER)
            .args(descriptors::usual().map(|usual| usual.to_string()))
            .env_clear()
            .process_group(0)
            .stdin(Stdio::from(OwnedFd::from(control)))
            .stdout(Stdio::null());
        command.spawn()
    }
}

#[cfg(not(test))]
fn executable() -> PathBuf {
    // In the keeper's own eyes: the very file we run, even when a newer one has taken its name.
    PathBuf::from("/proc/self/exe")
}

#[cfg(test)]
use tests::executable;

/// A pipe whose reading end does not block.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok((reader, writer))
}

/// A file that needs no helper to be read: unlike a pipe, it takes all at once.
fn file_in_memory(contents: Vec<u8>) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"input", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&contents)?;
    file.rewind()?;
    Ok(file)
}

/// The keeper's life: called by `main` for the hidden first argument, before anything else and on one thread.
/// `git` is what it runs for [`Program::Git`].
pub(crate) fn keeper(git: fn() -> i32) -> ExitCode {
    keeper::run(git)
}
