//! Real children under real keepers: the binary next to the test's, which `make check` builds first.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::child::CHUNK;
use super::*;

/// Generous: what it bounds takes milliseconds on an idle machine.
const LONG: Duration = Duration::from_secs(60);

/// The binary that knows how to be a keeper.
pub(super) fn executable() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    // target/debug/deps/gorget-HASH
    let path = own.parent().and_then(Path::parent).unwrap().join("gorget");
    assert!(path.exists(), "{} is missing: run `cargo build --bin gorget` first", path.display());
    path
}

struct Place {
    directory: tempfile::TempDir,
    launcher: Launcher,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let launcher =
            Launcher::new(directory.path().join("keepers"), clock::now() + LONG).unwrap();
        Self { directory, launcher }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn launch(&self, words: &[&str]) -> Launch {
        Launch {
            program: Program::Command(words.iter().map(Into::into).collect()),
            environment: vec![("PATH".into(), "/usr/bin:/bin".into())],
            directory: self.path().into(),
            user: None,
            memory: None,
            merge: false,
        }
    }

    fn start(&self, launch: Launch) -> Child {
        self.launcher.start(launch, None).unwrap()
    }

    fn shell(&self, script: &str) -> Child {
        self.start(self.launch(&["sh", "-c", script]))
    }

    /// Whether no keeper lives: a new life could begin.
    fn is_free(&self) -> bool {
        File::open(self.path().join("keepers")).unwrap().try_lock().is_ok()
    }
}

#[derive(Debug, Default)]
struct Everything {
    output: Vec<u8>,
    errors: Vec<u8>,
}

impl Everything {
    fn text(&self) -> (&str, &str) {
        (str::from_utf8(&self.output).unwrap().trim(), str::from_utf8(&self.errors).unwrap().trim())
    }
}

/// Reads to the end.
fn finish(child: &mut Child) -> (Everything, Exit) {
    let (mut all, mut buffer) = (Everything::default(), Vec::new());
    let deadline = clock::now() + LONG;
    loop {
        buffer.clear();
        match child.read(&mut buffer, Some(deadline)).unwrap() {
            Read::Output => all.output.extend_from_slice(&buffer),
            Read::Errors => all.errors.extend_from_slice(&buffer),
            Read::Ended(exit) => return (all, exit),
            other @ (Read::Deadline | Read::Canceled) => panic!("{other:?} after {all:?}"),
        }
    }
}

/// Reads until a whole line has come, and returns it.
fn line(child: &mut Child) -> String {
    let (mut buffer, deadline) = (Vec::new(), clock::now() + LONG);
    while !buffer.ends_with(b"\n") {
        let read = child.read(&mut buffer, Some(deadline)).unwrap();
        assert!(matches!(read, Read::Output), "{read:?}");
    }
    String::from_utf8(buffer).unwrap().trim().to_owned()
}

/// Whether process `pid` lives; a zombie does not.
fn lives(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().starts_with(" Z"))
}

/// For deaths that nobody reports.
fn wait_for_death(pid: &str) {
    let deadline = clock::now() + LONG;
    while lives(pid) {
        assert!(clock::now() < deadline, "{pid} lives");
        poll::ready(&mut [], Some(clock::now() + Duration::from_millis(2))).unwrap();
    }
}

#[test]
fn codes_signals_and_both_streams_come_back() {
    let place = Place::new();
    let (all, exit) = finish(&mut place.shell("echo out; echo err >&2; exit 3"));
    assert_eq!((all.text(), exit.how), (("out", "err"), How::Code(3)));
    assert!(exit.max_resident > 100_000 && !exit.oom, "{}", exit.max_resident);
    let (_, exit) = finish(&mut place.shell("kill -9 $$"));
    assert_eq!(exit.how, How::Signal(9));
    let mut launch = place.launch(&["sh", "-c", "echo out; echo err >&2"]);
    launch.merge = true;
    assert_eq!(finish(&mut place.start(launch)).0.text(), ("out\nerr", ""));
}

#[test]
fn a_child_gets_what_it_was_given_and_nothing_else() {
    let place = Place::new();
    let mut launch = place.launch(&["env"]);
    launch.environment.push(("CI".into(), "a=b".into()));
    assert_eq!(finish(&mut place.start(launch)).0.text().0, "PATH=/usr/bin:/bin\nCI=a=b");
    let script =
        "pwd; ulimit -c; cat; ls /proc/$$/fd; [ $(ps -o sid= -p $$) = $$ ] && echo own session";
    let (all, exit) = finish(&mut place.shell(script));
    let (output, errors) = all.text();
    assert_eq!((exit.how, errors), (How::Code(0), ""));
    let lines: Vec<_> = output.lines().collect();
    let directory = place.path().to_str().unwrap();
    assert_eq!(lines[..5], [directory, "0", "0", "1", "2"], "{output}");
    assert_eq!(lines[5..], ["own session"]);
    // Asked without a shell, which blocks signals while it starts another program.
    let launch = place.launch(&["grep", "Sig[BI]", "/proc/self/status"]);
    let (output, _) = finish(&mut place.start(launch));
    let lines: Vec<_> = output.text().0.lines().collect();
    assert_eq!(lines[0], "SigBlk:\t0000000000000000");
    let ignored = u64::from_str_radix(lines[1].rsplit('\t').next().unwrap(), 16).unwrap();
    // Signals 32 and 33 are the C library's own, which it lets nobody change.
    assert_eq!(ignored & !(3 << 31), 0, "{lines:?}");
}

#[test]
fn input_is_read_to_its_end() {
    let place = Place::new();
    let input = vec![b'x'; 1 << 20];
    let launch = place.launch(&["wc", "-c"]);
    let mut child = place.launcher.start(launch, Some(input)).unwrap();
    assert_eq!(finish(&mut child).0.text().0, "1048576");
}

#[test]
fn git_work_runs_without_another_program() {
    let place = Place::new();
    let mut launch = place.launch(&[]);
    launch.program = Program::Git(Vec::new());
    let mut child = place.launcher.start(launch, Some(b"no request".to_vec())).unwrap();
    let (output, _) = finish(&mut child);
    let (answer, _) = output.text();
    assert!(answer.contains("bad request"), "{answer}");
}

#[test]
fn what_cannot_be_started_says_why() {
    let place = Place::new();
    let why = |launch| match finish(&mut place.start(launch)).1.how {
        How::NotStarted(why) => why,
        other => panic!("{other:?}"),
    };
    let no_such = why(place.launch(&["no-such-program", "x"]));
    assert_eq!(no_such, "cannot run no-such-program: No such file or directory");
    assert_eq!(why(place.launch(&["/etc/passwd"])), "cannot run /etc/passwd: Permission denied");
    assert_eq!(why(place.launch(&["a\0b"])), "the program's name holds a NUL byte");
    assert_eq!(why(place.launch(&[])), "there is no command to run");
    let huge = "x".repeat(200 << 10);
    assert_eq!(why(place.launch(&["echo", &huge])), "cannot run echo: Argument list too long");
    let launch = place.launch(&["true", &"x".repeat(20 << 20)]);
    assert!(place.launcher.start(launch, None).is_err());
    // No fault of its own.
    let mut launch = place.launch(&["true"]);
    launch.directory = "/no/such".into();
    let why = "cannot enter /no/such: No such file or directory".to_owned();
    assert_eq!(finish(&mut place.start(launch)).1.how, How::Prevented(why));
}

#[test]
fn a_script_without_first_line_is_run_by_the_shell() {
    let place = Place::new();
    let script = place.path().join("jobs");
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o755)
        .open(&script)
        .unwrap();
    file.write_all(b"echo $0 $1").unwrap();
    drop(file);
    let (all, exit) = finish(&mut place.start(place.launch(&["./jobs", "one"])));
    assert_eq!((all.text().0, exit.how), ("./jobs one", How::Code(0)));
}

#[test]
fn much_output_on_both_streams_blocks_nobody() {
    let place = Place::new();
    let script =
        "head -c 5000000 /dev/zero >&2; head -c 3000000 /dev/zero; head -c 100 /dev/zero >&2";
    let (all, exit) = finish(&mut place.shell(script));
    assert_eq!(
        (all.output.len(), all.errors.len(), exit.how),
        (3_000_000, 5_000_100, How::Code(0))
    );
}

#[test]
fn descendants_die_with_the_child_however_they_hide() {
    let place = Place::new();
    let script = "setsid sh -c 'echo $$ >session; exec sleep 1000' & \
                  (setsid sh -c '(sh -c \"echo \\$\\$ >daemon; trap : TERM HUP; sleep 1000; sleep 1000\" &) &' &) & \
                  (sleep 1000 & echo $! >orphan) & \
                  while ! [ -s session -a -s daemon -a -s orphan ]; do sleep 0.01; done; echo ready";
    let (all, exit) = finish(&mut place.shell(script));
    assert_eq!((all.text().0, exit.how), ("ready", How::Code(0)));
    for name in ["session", "daemon", "orphan"] {
        let pid = fs::read_to_string(place.path().join(name)).unwrap();
        assert!(!lives(pid.trim()), "{name}");
    }
}

#[test]
fn a_fork_bomb_ends() {
    let place = Place::new();
    // Each generation in a session of its own, 200 generations at most lest a bug here take the machine along.
    fs::write(
        place.path().join("bomb"),
        "[ $1 -gt 200 ] && sleep 1000\nsetsid sh bomb $(($1 + 1)) &\nsetsid sh -c 'sleep 1000' &\nwait",
    )
    .unwrap();
    let mut child = place.shell("sh bomb 0 & sh bomb 100 & sh bomb 100 & echo go; wait");
    line(&mut child);
    child.kill();
    assert_eq!(finish(&mut child).1.how, How::Signal(9));
    assert!(processes_in(place.path()).is_empty());
}

/// Processes whose working directory is `directory`.
fn processes_in(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    entries
        .filter(|path| fs::read_link(path.join("cwd")).is_ok_and(|cwd| cwd == directory))
        .collect()
}

#[test]
fn the_end_of_the_control_socket_kills_everything() {
    let place = Place::new();
    let mut child =
        place.shell("trap : TERM HUP; setsid sleep 1000 & echo $$ $!; wait; sleep 1000");
    let pids = line(&mut child);
    // What is left of a daemon after `kill -9`: closed descriptors.
    child.control.shutdown(std::net::Shutdown::Both).unwrap();
    child.keeper.wait().unwrap();
    child.reaped = true;
    assert!(!pids.split(' ').any(lives), "{pids}");
    assert!(matches!(finish(&mut child).1.how, How::Lost));
}

#[test]
fn dropping_a_child_kills_it() {
    let place = Place::new();
    let mut child = place.shell("trap : TERM; setsid sleep 1000 & echo $$ $!; wait; sleep 1000");
    let pids = line(&mut child);
    let keeper = child.keeper.id().to_string();
    drop(child);
    assert!(!pids.split(' ').chain([keeper.as_str()]).any(lives), "{pids}");
    assert!(!Path::new(&format!("/proc/{keeper}")).exists(), "it was reaped");
}

#[test]
fn killing_a_keeper_kills_its_child_and_is_noticed() {
    let place = Place::new();
    let mut child = place.shell("echo $$; exec sleep 1000");
    let pid = line(&mut child);
    child.keeper.kill().unwrap();
    assert_eq!(finish(&mut child).1.how, How::Lost);
    wait_for_death(&pid);
}

#[test]
fn the_lock_is_held_as_long_as_a_keeper_lives() {
    let place = Place::new();
    let file = place.path().join("keepers");
    let mut child = place.shell("echo $$; sleep 1000");
    line(&mut child);
    let Place { directory, launcher } = place;
    drop(launcher);
    let early = Launcher::new(file.clone(), clock::now() + Duration::from_millis(50));
    assert_eq!(early.err().unwrap().kind(), io::ErrorKind::TimedOut);
    drop(child);
    assert!(Launcher::new(file, clock::now() + LONG).is_ok());
    drop(directory);
}

#[test]
fn a_cancel_wakes_the_reader() {
    let place = Place::new();
    let mut child = place.shell("echo ready; exec sleep 1000");
    line(&mut child);
    let killer = child.killer();
    let builder = std::thread::Builder::new().name("canceler".to_owned());
    let thread = builder.spawn(move || killer.cancel()).unwrap();
    let read = child.read(&mut Vec::new(), None).unwrap();
    assert!(matches!(read, Read::Canceled), "{read:?}");
    thread.join().unwrap();
    assert_eq!(child.stop(LONG).how, How::Signal(15));
}

#[test]
fn a_deadline_passes_in_silence_and_in_noise() {
    let place = Place::new();
    let mut child = place.shell("echo ready; exec sleep 1000");
    line(&mut child);
    let before = clock::now();
    let soon = before + Duration::from_millis(30);
    let read = child.read(&mut Vec::new(), Some(soon)).unwrap();
    assert!(matches!(read, Read::Deadline) && clock::now() >= soon, "{read:?}");
    drop(child);

    let mut child = place.shell("yes");
    let (past, mut buffer) = (clock::now(), Vec::new());
    assert!(matches!(child.read(&mut buffer, Some(past + LONG)).unwrap(), Read::Output));
    // What is there comes first, but the deadline is not hidden by it.
    let mut reads = 0;
    while !matches!(child.read(&mut buffer, Some(past)).unwrap(), Read::Deadline) {
        reads += 1;
    }
    assert!(reads <= 1 && buffer.len() <= 2 * CHUNK);
}

#[test]
fn a_child_that_ignores_sigterm_is_killed_after_the_grace() {
    let place = Place::new();
    let mut child = place.shell("trap '' TERM; echo ready; while :; do sleep 1; done");
    line(&mut child);
    assert_eq!(child.stop(Duration::from_millis(50)).how, How::Signal(9));
    // One that was stopped wakes up to end in order.
    let mut child = place.shell("trap 'exit 7' TERM; echo ready; kill -STOP $$; sleep 1000");
    line(&mut child);
    assert_eq!(child.stop(LONG).how, How::Code(7));
}

#[test]
fn nobody_waits_for_ever_for_what_cannot_be_killed() {
    let place = Place::new();
    let mut child = place.shell("echo ready; exec sleep 1000");
    line(&mut child);
    // A keeper that does not answer, as if it slept in the kernel.
    let keeper = nix::unistd::Pid::from_raw(child.keeper.id().cast_signed());
    nix::sys::signal::kill(keeper, nix::sys::signal::Signal::SIGSTOP).unwrap();
    child.kill();
    assert_eq!(finish(&mut child).1.how, How::Lost);
    assert!(!place.is_free());
    nix::sys::signal::kill(keeper, nix::sys::signal::Signal::SIGCONT).unwrap();
    child.keeper.wait().unwrap();
}

#[test]
fn memory_is_limited() {
    let place = Place::new();
    let mut launch = place.launch(&[
        "sh",
        "-c",
        "ulimit -v; ulimit -H -v; x=$(head -c 300M /dev/zero | tr '\\0' x)",
    ]);
    launch.memory = Some(100 << 20);
    let (all, exit) = finish(&mut place.start(launch));
    assert_eq!(all.text().0, "102400\n102400");
    assert!(!matches!(exit.how, How::Code(0)), "{exit:?}");
}

#[test]
fn another_user_has_no_groups_and_no_way_back() {
    if !nix::unistd::geteuid().is_root() {
        return; // Only root can become somebody else.
    }
    let user = User::find("nobody").unwrap().unwrap();
    assert_eq!(User::find("no such user").unwrap(), None);
    let place = Place::new();
    fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut launch = place.launch(&[
        "sh",
        "-c",
        "id -u; id -G; grep -E '^(Uid|CapEff)' /proc/$$/status; echo $$; exec sleep 1000",
    ]);
    launch.user = Some(user.clone());
    let mut child = place.start(launch);
    let mut text = String::new();
    while text.lines().count() < 5 {
        text += &(line(&mut child) + "\n");
    }
    let lines: Vec<_> = text.lines().collect();
    let uid = user.uid;
    assert_eq!(lines[..2], [uid.to_string(), user.gid.to_string()]);
    assert_eq!(lines[2], format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}"));
    assert_eq!(lines[3], "CapEff:\t0000000000000000");
    // The parent's death is still its own: the change of user did not undo that.
    child.keeper.kill().unwrap();
    assert_eq!(finish(&mut child).1.how, How::Lost);
    wait_for_death(lines[4]);
}

#[test]
fn starting_is_cheap() {
    let place = Place::new();
    let mut times = Vec::new();
    for _ in 0..50 {
        let before = clock::now();
        assert_eq!(finish(&mut place.start(place.launch(&["true"]))).1.how, How::Code(0));
        times.push(clock::now() - before);
    }
    times.sort();
    println!("start to end of `true`: median {:?}, fastest {:?}", times[25], times[0]);
    assert!(times[25] < Duration::from_secs(1), "{:?}", times[25]);
    assert!(
        !place.is_free()
            && fs::metadata(place.path().join("keepers")).unwrap().mode() & 0o7777 == 0o640
    );
}
