//! The forked child on its way to its program: identity, limits, descriptors, exec.

use std::ffi::{CStr, CString, OsStr};
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::panic;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, Signal};
use nix::unistd::{Gid, Pid, Uid};

use super::How;
use super::message::{Kind, Order};

/// What a failure to start ends with; nobody sees it but the keeper, which has the reason as well.
const NOT_STARTED: i32 = 127;
/// As Rust's own processes end after a panic.
const PANICKED: i32 = 101;
/// The first byte of what a child that failed leaves for its keeper: its program is none that can be run …
const PROGRAM: u8 = b'p';
/// … or something here kept it from being started.
const SYSTEM: u8 = b's';
/// Where programs are looked up when the environment has no `PATH`: as `execvp` does, with the usual directories.
const DEFAULT_PATH: &[u8] = b"/usr/local/bin:/usr/bin:/bin";

/// The child's descriptors.
pub(super) struct Streams {
    pub(super) input: OwnedFd,
    pub(super) output: OwnedFd,
    /// Standard error, if it is not the output's.
    pub(super) errors: Option<OwnedFd>,
}

/// All that exec takes, made before the fork.
pub(super) struct Prepared {
    kind: Kind,
    /// Candidates for the program, in the order of `PATH`.
    files: Vec<CString>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    directory: CString,
    user: Option<(u32, u32)>,
    memory: Option<u64>,
}

impl Prepared {
    /// The error is a reason for people.
    pub(super) fn new(order: Order) -> Result<Self, String> {
        let strings =
            |list: Vec<Vec<u8>>| list.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>();
        let nul = |what: &str| format!("{what} holds a NUL byte");
        let files = match order.kind {
            Kind::Command => {
                let name = order.arguments.first().filter(|name| !name.is_empty());
                candidates(name.ok_or("there is no command to run")?, &order.environment)
            }
            Kind::Git => Vec::new(),
        };
        Ok(Self {
            kind: order.kind,
            files: strings(files).map_err(|_| nul("the program's name"))?,
            arguments: strings(order.arguments).map_err(|_| nul("an argument"))?,
            environment: strings(order.environment).map_err(|_| nul("the environment"))?,
            directory: CString::new(order.directory).map_err(|_| nul("the directory's name"))?,
            user: order.user,
            memory: order.memory,
        })
    }

    /// Never returns: becomes the program, or writes to `failure` why it could not. For the freshly forked child of
    /// `keeper` only.
    pub(super) fn run(
        &self,
        streams: &Streams,
        failure: &OwnedFd,
        keeper: Pid,
        git: fn() -> i32,
    ) -> ! {
        let code = match self.enter(streams, keeper) {
            Ok(()) => match self.kind {
                Kind::Command => self.exec(failure),
                Kind::Git => self.call(git),
            },
            Err(reason) => fail(failure, SYSTEM, &reason),
        };
        // SAFETY: ends this process at once; nothing of the keeper's state is to be torn down in its copy.
        unsafe { libc::_exit(code) }
    }

    fn enter(&self, streams: &Streams, keeper: Pid) -> Result<(), String> {
        nix::unistd::setsid().map_err(|error| because("start a session", error))?;
        let limit = |what, value| {
            setrlimit(what, value, value).map_err(|error| because("set limits", error))
        };
        limit(Resource::RLIMIT_CORE, 0)?;
        // A daemon may run under a tighter mask; what a job makes is for the jobs that need it, too.
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
        // Where memory is short, jobs go before the daemon. A kernel that has it no other way leaves it as it is.
        let _ = std::fs::write("/proc/self/oom_score_adj", "500");
        if let Some(bytes) = self.memory {
            limit(Resource::RLIMIT_AS, bytes)?;
        }
        if let Some((uid, gid)) = self.user {
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            nix::unistd::setgroups(&[])
                .and_then(|()| nix::unistd::setresgid(gid, gid, gid))
                .and_then(|()| nix::unistd::setresuid(uid, uid, uid))
                .map_err(|error| because(&format!("become user {uid}"), error))?;
            drop_capabilities().map_err(|error| because("drop capabilities", error))?;
        }
        // After the change of user, which would undo it. Had the keeper died before, nobody would tell.
        let _ = prctl::set_pdeathsig(Signal::SIGKILL);
        if nix::unistd::getppid() != keeper {
            return Err("the keeper is gone".to_owned());
        }
        let directory = Path::new(OsStr::from_bytes(self.directory.to_bytes()));
        nix::unistd::chdir(directory)
            .map_err(|error| because(&format!("enter {}", directory.display()), error))?;
        let errors = streams.errors.as_ref().unwrap_or(&streams.output);
        let redirect = |error| because("redirect the standard streams", error);
        nix::unistd::dup2_stdin(&streams.input).map_err(redirect)?;
        nix::unistd::dup2_stdout(&streams.output).map_err(redirect)?;
        nix::unistd::dup2_stderr(errors).map_err(redirect)?;
        reset_signals();
        Ok(())
    }

    /// Becomes the program; returns only when that failed.
    fn exec(&self, failure: &OwnedFd) -> i32 {
        let mut worst = Errno::ENOENT;
        for file in &self.files {
            match self.exec_file(file) {
                // Not in this directory of `PATH`.
                Errno::ENOENT | Errno::ENOTDIR => {}
                // As shells do: there may be a better one further on.
                Errno::EACCES => worst = Errno::EACCES,
                error => {
                    worst = error;
                    break;
                }
            }
        }
        let name = self.arguments.first().map(|name| name.to_string_lossy()).unwrap_or_default();
        let whose = if is_of_program(worst) { PROGRAM } else { SYSTEM };
        fail(failure, whose, &because(&format!("run {name}"), worst))
    }

    fn exec_file(&self, file: &CStr) -> Errno {
        match nix::unistd::execve(file, &self.arguments, &self.environment) {
            // A script without its first line is the shell's, as for `execvp`.
            Err(Errno::ENOEXEC) => {
                let shell = c"/bin/sh";
                let rest = self.arguments.iter().skip(1).map(AsRef::as_ref);
                let arguments: Vec<&CStr> = [shell, file].into_iter().chain(rest).collect();
                match nix::unistd::execve(shell, &arguments, &self.environment) {
                    Err(error) => error,
                    Ok(never) => match never {},
                }
            }
            Err(error) => error,
            Ok(never) => match never {},
        }
    }

    /// Runs `git` in this process.
    fn call(&self, git: fn() -> i32) -> i32 {
        let _ = prctl::set_name(c"gorget-git");
        // A peer that hangs up is an error of the library's, not our death.
        // SAFETY: ignoring a signal runs no code.
        let _ = unsafe { nix::sys::signal::signal(Signal::SIGPIPE, SigHandler::SigIgn) };
        // SAFETY: there is only this thread, and `self` outlives the process.
        unsafe {
            libc::clearenv();
            for variable in &self.environment {
                libc::putenv(variable.as_ptr().cast_mut());
            }
            // The lock, the control socket and the rest: exec would have closed them.
            libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0);
        }
        // The keeper's frames must not be unwound into; the message is on standard error.
        let code = panic::catch_unwind(git).unwrap_or(PANICKED);
        let _ = std::io::stdout().flush();
        code
    }
}

/// The files to try for a program called `name`.
fn candidates(name: &[u8], environment: &[Vec<u8>]) -> Vec<Vec<u8>> {
    if name.contains(&b'/') {
        return vec![name.to_vec()];
    }
    let path = environment.iter().find_map(|variable| variable.strip_prefix(b"PATH="));
    path.unwrap_or(DEFAULT_PATH)
        .split(|&byte| byte == b':')
        // An empty entry would be the working directory, where pushed code lies; nobody means that.
        .filter(|directory| !directory.is_empty())
        .map(|directory| [directory, name].join(&b'/'))
        .collect()
}

/// Only root loses its capabilities by becoming somebody else; a daemon that is not root but was given some keeps them,
/// and so would what it starts.
fn drop_capabilities() -> nix::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = [VERSION_3, 0];
    // Effective, permitted and inheritable, twice 32 bits.
    let none = [0_u32; 6];
    // SAFETY: both point to what version 3 of the call expects; 0 means this thread.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    // The ambient set is cut down with the others.
    Errno::result(result).map(drop)
}

/// Back to what a program expects: the keeper blocks all signals, and Rust ignores SIGPIPE.
fn reset_signals() {
    for number in 1..=libc::SIGRTMAX() {
        // SAFETY: default actions run no code of ours; numbers that cannot be set are refused.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    let _ = SigSet::empty().thread_set_mask();
}

fn because(what: &str, error: Errno) -> String {
    format!("cannot {what}: {}", error.desc())
}

/// Whether the same program would be refused whenever it is tried: it is not there, nothing that can be run, or called
/// with too much. Everything else, want of processes or memory first of all, says nothing about it.
fn is_of_program(error: Errno) -> bool {
    matches!(
        error,
        Errno::ENOENT
            | Errno::ENOTDIR
            | Errno::EACCES
            | Errno::ENOEXEC
            | Errno::E2BIG
            | Errno::ELOOP
            | Errno::ENAMETOOLONG
            // Executables whose interpreter is none, or which have two.
            | Errno::ELIBBAD
            | Errno::EINVAL
    )
}

/// What a child left that did not become its program; `None` from one that did.
pub(super) fn failure(left: &[u8]) -> Option<How> {
    let (&whose, reason) = left.split_first()?;
    let reason = String::from_utf8_lossy(reason).into_owned();
    Some(if whose == PROGRAM { How::NotStarted(reason) } else { How::Prevented(reason) })
}

/// Leaves the reason for the keeper.
fn fail(failure: &OwnedFd, whose: u8, reason: &str) -> i32 {
    // The pipe is empty and takes a page at once.
    let _ = write_once(failure.as_fd(), &[&[whose], reason.as_bytes()].concat());
    NOT_STARTED
}

fn write_once(fd: BorrowedFd, bytes: &[u8]) -> nix::Result<usize> {
    nix::unistd::write(fd, &bytes[..bytes.len().min(4096)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_looked_up_in_the_given_path() {
        let names = |name: &str, path: &str| -> Vec<String> {
            let files = candidates(name.as_bytes(), &[b"X=1".to_vec(), path.into()]);
            files.into_iter().map(|file| String::from_utf8(file).unwrap()).collect()
        };
        assert_eq!(names("cc", "PATH=/a:/b"), ["/a/cc", "/b/cc"]);
        assert_eq!(names("cc", "PATH=:/b:"), ["/b/cc"]);
        assert_eq!(names("./cc", "PATH=/a"), ["./cc"]);
        assert_eq!(names("cc", "HOME=/"), ["/usr/local/bin/cc", "/usr/bin/cc", "/bin/cc"]);
    }

    #[test]
    fn what_is_no_fault_of_the_program_is_told_apart() {
        use Errno::{
            E2BIG, EACCES, EAGAIN, EIO, ELOOP, EMFILE, ENFILE, ENOENT, ENOEXEC, ENOMEM, ENOTDIR,
            EPERM, ETXTBSY,
        };
        for error in [ENOENT, ENOTDIR, EACCES, ENOEXEC, E2BIG, ELOOP] {
            assert!(is_of_program(error), "{error}");
        }
        for error in [EAGAIN, ENOMEM, ENFILE, EMFILE, EIO, EPERM, ETXTBSY] {
            assert!(!is_of_program(error), "{error}");
        }
        assert_eq!(failure(b""), None);
        assert_eq!(failure(b"pno"), Some(How::NotStarted("no".to_owned())));
        assert_eq!(failure(b"sno"), Some(How::Prevented("no".to_owned())));
    }
}
