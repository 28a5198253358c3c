//! The keeper: one thread between the daemon and one child, with nothing to do but to kill.
//!
//! Invariant: it does not end before the last descendant is gone, and it kills them as soon as the daemon says so, the
//! control socket closes, or the child ends. It blocks all signals, so that only SIGKILL can end it.

use std::fs::File;
use std::io::{self, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags};
use nix::sys::prctl;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use super::message::{self, Order, Report};
use super::program::{self, Prepared, Streams};
use super::{Exit, How, KILL_PATIENCE, descendants};
use crate::sys::{clock, descriptors, poll};

/// How long to wait for the killed before the next round, at first: a round is a scan of `/proc`, and most deaths take
/// less than this.
const FIRST_ROUND: Duration = Duration::from_millis(5);
/// And at most: what has survived many rounds sleeps in the kernel.
const LAST_ROUND: Duration = Duration::from_secs(1);

/// Bytes of the kernel's counters: some 4 KiB today.
const COUNTERS: usize = 16 << 10;

/// How long the killed may take: a little less than the daemon waits, to be heard before it gives up.
const PATIENCE: Duration = Duration::from_millis(KILL_PATIENCE.as_millis() as u64 * 3 / 4);

/// Does not return, so that no exit handler of a library runs.
pub(super) fn run(git: fn() -> i32) -> ExitCode {
    let code = i32::from(keep(git).is_err());
    // SAFETY: ends this process, which has one thread and nothing to flush.
    unsafe { libc::_exit(code) }
}

/// An error means that there is no child, and that the daemon will see our end.
fn keep(git: fn() -> i32) -> io::Result<()> {
    if let Some(usual) = std::env::args().nth(2).and_then(|usual| usual.parse().ok()) {
        descriptors::restore(usual)?;
    }
    // Whatever the daemon's own starter left open is not for its children.
    // SAFETY: nothing in this process knows of a descriptor above 2.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    prctl::set_name(c"gorget-keeper")?;
    prctl::set_child_subreaper(true)?;
    SigSet::all().thread_set_mask()?;
    let mut interesting = SigSet::empty();
    interesting.add(Signal::SIGCHLD);
    let signals =
        SignalFd::with_flags(&interesting, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;

    let control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let (order, mut fds) = receive(&control)?;
    let missing = || io::Error::from(io::ErrorKind::InvalidData);
    let mut next = || fds.next().ok_or_else(missing);
    // Held to the end, and that is all: see `Launcher`.
    let _lock = next()?;
    let output = next()?;
    let errors = order.errors.then(&mut next).transpose()?;
    let input = if order.input { next()? } else { File::open("/dev/null")?.into() };
    let streams = Streams { input, output, errors };

    let oom_kills = oom_kills();
    let exit = |how| Exit { how, max_resident: max_resident(), oom: self::oom_kills() > oom_kills };
    let prepared = match Prepared::new(order) {
        Ok(prepared) => prepared,
        Err(why) => return report(&control, exit(How::NotStarted(why)), false),
    };
    let (failure, failure_end) = nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    let keeper = Pid::this();
    // SAFETY: this process has one thread, so that its copy may run any code.
    let child = match unsafe { fork() }? {
        ForkResult::Child => prepared.run(&streams, &failure_end, keeper, git),
        ForkResult::Parent { child } => child,
    };
    drop((streams, failure_end));

    let mut watch = Watch { control: &control, signals, child, ended: None, killing: None };
    watch.until_ended();
    let lost = || {
        // Told to kill, and something does not die: the daemon must not wait for it.
        watch.ended.clone().unwrap_or(How::Lost)
    };
    let mut left = Vec::new();
    // Both ends are closed by now, but for a descendant that does not die.
    let _ = File::from(failure).read_to_end(&mut left);
    let how = program::failure(&left).unwrap_or_else(lost);
    let lingers = !watch.all_gone();
    // A daemon that is gone needs no report.
    let _ = report(&control, exit(how), lingers);
    if lingers {
        watch.linger();
    }
    Ok(())
}

/// The one child, from its fork to the end of all its descendants.
struct Watch<'a> {
    control: &'a UnixStream,
    signals: SignalFd,
    child: Pid,
    /// How the child itself ended, once it was reaped.
    ended: Option<How>,
    /// Since when everything is being killed.
    killing: Option<Instant>,
}

impl Watch<'_> {
    /// Returns when all descendants are gone, or do not go although they were killed.
    fn until_ended(&mut self) {
        let mut round = FIRST_ROUND;
        let mut open = true;
        loop {
            self.drain_signals();
            if self.all_gone() {
                return;
            }
            if self.ended.is_some() && self.killing.is_none() {
                self.killing = Some(clock::now());
            }
            let deadline = self.killing.map(|since| {
                descendants::kill_all();
                let end = clock::now() + round;
                round = (round * 2).min(LAST_ROUND);
                end.min(since + PATIENCE)
            });
            let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            if open {
                fds.push(PollFd::new(self.control.as_fd(), PollFlags::POLLIN));
            }
            let _ = poll::ready(&mut fds, deadline);
            if fds.get(1).is_some_and(poll::is_ready) {
                open = self.obey();
            }
            let late = |since| clock::now() >= since + PATIENCE;
            if self.killing.is_some_and(late) && !self.all_gone() {
                return;
            }
        }
    }

    /// For what sleeps in the kernel: kills on, so that the lock is held as long as something lives.
    fn linger(&mut self) {
        while !self.all_gone() {
            descendants::kill_all();
            let mut fds = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            let _ = poll::ready(&mut fds, Some(clock::now() + LAST_ROUND));
            self.drain_signals();
        }
    }

    /// Reads one command; false when there will be no more.
    fn obey(&mut self) -> bool {
        let mut command = [0];
        match self.control.read(&mut command) {
            Ok(1) if command[0] == message::TERMINATE => self.terminate(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(1) if command[0] != message::KILL => {}
            Ok(n) => {
                self.killing.get_or_insert_with(clock::now);
                return n > 0;
            }
            Err(_) => {
                self.killing.get_or_insert_with(clock::now);
                return false;
            }
        }
        true
    }

    fn terminate(&self) {
        // Once it is reaped, its number may be another's.
        if self.ended.is_none() {
            // Before its `setsid` there is no such group.
            if killpg(self.child, Signal::SIGTERM).is_err() {
                let _ = kill(self.child, Signal::SIGTERM);
            }
            // Who was stopped must wake up to hear of it.
            let _ = killpg(self.child, Signal::SIGCONT);
        }
    }

    /// Reaps what there is to reap; true when no descendant is left.
    fn all_gone(&mut self) -> bool {
        loop {
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            let pid = match waitid(Id::All, flags) {
                Ok(status) => match status.pid() {
                    Some(pid) => pid,
                    None => return false,
                },
                Err(Errno::EINTR) => continue,
                Err(_) => return true,
            };
            if pid == self.child {
                // As long as it is a zombie, its number is its group's as well.
                let _ = killpg(pid, Signal::SIGKILL);
            }
            let status = waitpid(pid, Some(WaitPidFlag::WNOHANG));
            if pid == self.child {
                self.ended = Some(match status {
                    Ok(WaitStatus::Exited(_, code)) => How::Code(code),
                    Ok(WaitStatus::Signaled(_, signal, _)) => How::Signal(signal as i32),
                    // It has ended in one of the two ways.
                    _ => How::Lost,
                });
            }
        }
    }

    fn drain_signals(&self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
    }
}

/// The order and the descriptors that come with it.
fn receive(control: &UnixStream) -> io::Result<(Order, impl Iterator<Item = OwnedFd>)> {
    let mut length = [0; 4];
    let mut space = nix::cmsg_space!([RawFd; 4]);
    let mut fds = Vec::new();
    let mut parts = [IoSliceMut::new(&mut length)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_WAITALL;
    let received = recvmsg::<()>(control.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    for part in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = part {
            // SAFETY: the kernel has just made these descriptors for us.
            fds.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
        }
    }
    if received.bytes < length.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if length > message::MAX_ORDER {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut order = vec![0; length];
    (&mut &*control).read_exact(&mut order)?;
    Ok((Order::decode(&order)?, fds.into_iter()))
}

fn report(mut control: &UnixStream, exit: Exit, lingers: bool) -> io::Result<()> {
    control.write_all(&Report { exit, lingers }.encode())
}

/// The largest resident set among those reaped, bytes.
fn max_resident() -> u64 {
    // The kernel counts in KiB.
    let kibibytes = getrusage(UsageWho::RUSAGE_CHILDREN).map_or(0, |usage| usage.max_rss());
    u64::try_from(kibibytes).unwrap_or(0).saturating_mul(1024)
}

/// How many processes the kernel has killed for want of memory since it started; 0 where it does not say.
fn oom_kills() -> u64 {
    // With room for all at once: the kernel counts anew for each read.
    let mut counters = String::with_capacity(COUNTERS);
    let read = File::open("/proc/vmstat").and_then(|mut file| file.read_to_string(&mut counters));
    let count = |line: &str| line.strip_prefix("oom_kill ")?.parse().ok();
    read.ok().and_then(|_| counters.lines().find_map(count)).unwrap_or(0)
}
