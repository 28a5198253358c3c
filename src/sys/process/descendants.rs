//! Finding and killing all descendants of this process, a subreaper.
//!
//! `/proc` is scanned as a whole: not every kernel lists the children of a process. That is done only while there is
//! something to kill.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// A process as `/proc/PID/stat` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    group: i32,
    /// In clock ticks since the system started: with the number it names a process for good.
    started: u64,
}

/// SIGKILL to every descendant there is now. Those forked meanwhile become ours and are met in the next round.
pub(super) fn kill_all() {
    let own = Pid::this();
    let own_group = nix::unistd::getpgrp();
    let all = scan();
    let mut children: HashMap<i32, Vec<Process>> = HashMap::new();
    for process in all {
        children.entry(process.parent).or_default().push(process);
    }
    // Whole groups first, each at one stroke, so that a group that forks without end cannot outrun us. The number of a
    // child of ours, and hence that of its group, is not given away before we have reaped it.
    let ours = children.remove(&own.as_raw()).unwrap_or_default();
    let groups: HashSet<_> = ours.iter().map(|process| process.group).collect();
    for group in groups {
        // Its own group is that of a child which has not yet come to `setsid`.
        if group != own_group.as_raw() {
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }
    for process in &ours {
        // One that is gone already is a zombie; nothing else can go wrong that waiting would not show.
        let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
    }
    let mut generation = ours;
    while !generation.is_empty() {
        let next: Vec<_> = generation
            .iter()
            .filter_map(|process| children.remove(&process.pid))
            .flatten()
            .collect();
        next.iter().for_each(kill_exactly);
        generation = next;
    }
}

/// Kills a process that is not our child: its parent may have reaped it and its number may be another's by now.
fn kill_exactly(process: &Process) {
    // SAFETY: no memory is passed; the result is a new descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, process.pid, 0) };
    let Some(fd) = i32::try_from(fd).ok().filter(|fd| *fd >= 0) else { return };
    // SAFETY: the descriptor was just made, and nobody else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    if read(process.pid).is_some_and(|now| now.started == process.started) {
        let no_info = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the descriptor is open, and a null pointer means plain signal information.
        unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), libc::SIGKILL, no_info, 0)
        };
    }
}

fn scan() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let number = |name: &std::ffi::OsStr| name.to_str()?.parse().ok();
    entries.flatten().filter_map(|entry| number(&entry.file_name())).filter_map(read).collect()
}

fn read(pid: i32) -> Option<Process> {
    parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// `PID (NAME) STATE PARENT GROUP …`, where the name may hold anything, and the start is field 22.
fn parse(stat: &[u8]) -> Option<Process> {
    let close = stat.iter().rposition(|&byte| byte == b')')?;
    let open = stat.iter().position(|&byte| byte == b'(')?;
    let pid = str::from_utf8(stat.get(..open)?).ok()?.trim().parse().ok()?;
    let mut fields = str::from_utf8(stat.get(close + 1..)?).ok()?.split_ascii_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    let group = fields.next()?.parse().ok()?;
    // Fields 3, 4 and 5 are consumed.
    let started = fields.nth(22 - 6)?.parse().ok()?;
    Some(Process { pid, parent, group, started })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_stat_may_hold_anything() {
        let line = b"17 (a) b) (\xff) S 4 5 6 0 -1 1 2 3 4 5 6 7 8 9 20 0 1 0 4711 9 9\n";
        let process = Process { pid: 17, parent: 4, group: 5, started: 4711 };
        assert_eq!(parse(line), Some(process));
        for bad in [&b""[..], b"17", b"17 (a", b"17 (a)", b"x (a) S 4 5", b"17 (a) S 4 5 6"] {
            assert_eq!(parse(bad), None);
        }
    }

    #[test]
    fn a_scan_finds_this_very_process() {
        let own = scan().into_iter().find(|process| process.pid == Pid::this().as_raw()).unwrap();
        assert_eq!(own.parent, Pid::parent().as_raw());
        assert_eq!(own.group, nix::unistd::getpgrp().as_raw());
        assert_eq!(read(own.pid), Some(own));
    }
}
