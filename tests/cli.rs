//! The command line as people and programs meet it: messages, exit statuses, help, the manual, completions.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::support::sandbox::Sandbox;
use crate::support::until;

/// Runs the program; its exit status, standard output and standard error.
fn gorget(arguments: &[&str]) -> (i32, String, String) {
    let output = Sandbox::new().gorget(arguments);
    (output.code(), output.stdout, output.stderr)
}

#[test]
fn usage_errors_name_the_option_and_exit_2() {
    for (arguments, message) in [
        (&[][..], "no command was given"),
        (&["statsu"], "there is no command \"statsu\"; did you mean \"status\"?"),
        (&["status", "--frob"], "there is no option --frob"),
        (
            &["register", "--max-builds=0"],
            "--max-builds: expected a number from 1 to 4096, found \"0\"",
        ),
        (&["register", "--job-user=nobody-of-that-name"], "--job-user: expected an existing user"),
        (
            &["register", "--socket-group=no-group-of-that-name"],
            "--socket-group: expected an existing group",
        ),
        (&["register", "--one-shot"], "--one-shot needs --specifications"),
        (
            &["register", "--interval=5m"],
            "--interval: expected a number of seconds, 1 or more, without a unit, found \"5m\"",
        ),
        (
            &["register", "--history-expiry=of"],
            "--history-expiry: expected off, or a duration of at least 1 s",
        ),
        (&["evaluate"], "the option --specifications is missing"),
        (
            &["register", "-D", "host=/var/run/postgresql password=hunter2"],
            "--database: expected a file name",
        ),
        (&["web", "--port=x"], "--port: expected a port, from 0 to 65535, found \"x\""),
        (&["remote-server", "-b", "x"], "--backend-port: expected a port, from 0 to 65535, found"),
        (&["remote-worker", "-s", "farm"], "--server: expected ADDRESS:PORT, found \"farm\""),
        (&["trigger"], "the argument NAME is missing"),
    ] {
        let (code, stdout, stderr) = gorget(arguments);
        assert_eq!((code, stdout.as_str()), (2, ""), "{arguments:?}: {stderr}");
        assert!(stderr.starts_with(&format!("gorget: {message}")), "{arguments:?}: {stderr}");
        assert!(!stderr.contains("hunter2"));
    }
}

#[test]
fn help_and_version_are_printed_by_every_command() {
    let (code, all, _) = gorget(&["--help"]);
    assert_eq!(code, 0);
    let listed = all.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let mut number = 0;
    for command in listed {
        let (code, stdout, stderr) = gorget(&[command, "--help"]);
        assert_eq!((code, stderr.as_str()), (0, ""), "{command}");
        assert!(stdout.starts_with(&format!("Usage: gorget {command} ")), "{command}: {stdout}");
        let (code, stdout, _) = gorget(&[command, "--version"]);
        assert_eq!((code, stdout), (0, format!("gorget {}\n", env!("CARGO_PKG_VERSION"))));
        number += 1;
    }
    assert!(number > 25, "{all}");
}

#[test]
fn clients_say_that_no_daemon_runs_and_exit_1() {
    let sandbox = Sandbox::new();
    for arguments in [&["status"][..], &["jobsets", "--json"], &["trigger", "hello"]] {
        let output = sandbox.client(arguments);
        assert_eq!((output.code(), output.stdout.as_str()), (1, ""), "{output:?}");
        assert!(output.stderr.contains("state/run/bridge"), "{output:?}");
        assert!(output.stderr.contains("gorget register"), "{output:?}");
    }
}

#[test]
fn check_tells_good_files_from_bad_ones() {
    let sandbox = Sandbox::new();
    let good = sandbox.write("good.json", r#"[{"name":"a"},{"name":"b","command":["true"]}]"#);
    let parameters = sandbox.write("parameters.json", r#"{"url":"https://ci.example.org"}"#);
    let output =
        sandbox.gorget(&["check", good.to_str().unwrap(), "-P", parameters.to_str().unwrap()]);
    assert_eq!((output.code(), output.stderr.as_str()), (0, ""));
    let lines: Vec<_> = output.stdout.lines().collect();
    assert_eq!(
        lines,
        [
            format!("{}: good; jobsets: a, b", good.display()),
            format!("{}: good", parameters.display()),
        ]
    );

    let bad =
        sandbox.write("bad.json", "{\"name\": \"x\",\n \"channels\": [\n  {\"name\": \"c\"}]}\n");
    let output = sandbox.gorget(&["check", bad.to_str().unwrap(), good.to_str().unwrap()]);
    let message = "jobset \"x\": field channels[0]: the field \"url\" is missing";
    assert_eq!(output.code(), 1);
    assert_eq!(output.stderr, format!("gorget: {}:3: {message}\n", bad.display()));
    assert_eq!(output.stdout.lines().count(), 1);

    let parameters = sandbox.write("parameters.json", r#"{"colour":"blue"}"#);
    let output = sandbox.gorget(&["check", "-P", parameters.to_str().unwrap()]);
    assert!(
        output.code() == 1 && output.stderr.contains("field colour: unknown field"),
        "{output:?}"
    );
    let output = sandbox.gorget(&["check", "/no/such/file.json"]);
    assert!(output.code() == 1 && output.stderr.contains("No such file"), "{output:?}");
}

#[test]
fn evaluate_prints_jobs_and_leaves_nothing() {
    let sandbox = Sandbox::new();
    let repository = sandbox.repository("hello");
    let jobs = [
        json!({"job": "a", "system": "x86_64-linux", "command": ["true"]}),
        json!({"job": "b", "system": "x86_64-linux", "command": ["true"], "needs": ["a"]}),
    ];
    repository.jobs(&jobs).commit("Begin");
    let file = sandbox.specification("hello", &repository, json!({}));
    let output = sandbox.gorget(&["evaluate", "-S", file.to_str().unwrap()]);
    assert_eq!(output.code(), 0, "{output:?}");
    let printed: Vec<serde_json::Value> =
        output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(printed, jobs);
    let left: Vec<_> = std::fs::read_dir(sandbox.path().join("tmp")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");

    repository.script("jobs", "#!/bin/sh\necho no luck today >&2\nexit 3\n").commit("Break");
    let output = sandbox.gorget(&["evaluate", "-S", file.to_str().unwrap(), "hello"]);
    assert_eq!(output.code(), 1, "{output:?}");
    assert!(output.stderr.contains("no luck today") && output.stderr.contains("3"), "{output:?}");
    assert_eq!(output.stderr.matches("the evaluation failed: ").count(), 1, "{output:?}");
    let output = sandbox.gorget(&["evaluate", "-S", file.to_str().unwrap(), "other"]);
    assert!(output.code() == 1 && output.stderr.contains("no jobset other"), "{output:?}");
    sandbox.deserted_within(Duration::from_secs(10));
}

#[test]
fn a_stopped_evaluate_leaves_nothing() {
    let sandbox = Sandbox::new();
    let repository = sandbox.repository("hello");
    repository.script("jobs", "#!/bin/sh\ntouch ../begun\nexec sleep 600\n").commit("Begin");
    let file = sandbox.specification("hello", &repository, json!({}));
    let left = || {
        let names = std::fs::read_dir(sandbox.path().join("tmp")).unwrap();
        names.map(|entry| entry.unwrap().path()).collect::<Vec<_>>()
    };
    let begin = || {
        let mut command = sandbox.command(["evaluate", "-S"]);
        let child = command.arg(&file).stderr(std::process::Stdio::piped()).spawn().unwrap();
        until("the evaluator", || {
            sandbox.processes().iter().any(|process| process.command == "sleep 600").then_some(())
        });
        child
    };
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let child = begin();
        let directory = left().remove(0);
        assert_eq!(directory.metadata().unwrap().permissions().mode() & 0o777, 0o700);
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).ends_with("gorget: interrupted\n"));
        assert!(left().is_empty(), "{:?}", left());
        sandbox.deserted_within(Duration::from_secs(10));
    }
    // Nobody can clean up after a kill, but the next one.
    let mut child = begin();
    child.kill().unwrap();
    child.wait().unwrap();
    sandbox.deserted_within(Duration::from_secs(10));
    let directory = left().remove(0);
    let long_ago = std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    File::open(&directory).unwrap().set_modified(long_ago).unwrap();
    repository.jobs(&[]).commit("Nothing");
    let output = sandbox.gorget(&["evaluate", "-S", file.to_str().unwrap()]);
    assert!(output.code() == 0 && !directory.exists(), "{output:?}");
}

#[test]
fn a_file_is_added_whole_or_not_at_all() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.daemon().start();
    let words: Vec<_> = (0..50).map(|number| format!("argument-{number:040}")).collect();
    let jobset = |number: usize| json!({"name": format!("a{number}"), "command": words});
    let write = |count: usize| {
        let jobsets: Vec<_> = (0..count).map(jobset).collect();
        sandbox.write("many.json", &json!(jobsets).to_string())
    };
    // Fine, and too long for one request.
    let file = write(60);
    let output = sandbox.client(&["add", file.to_str().unwrap()]);
    assert_eq!(output.code(), 1, "{output:?}");
    assert!(output.stderr.contains("--specifications"), "{output:?}");
    assert_eq!(daemon.ask("jobsets").ok().len(), 0);
    let file = write(10);
    let output = sandbox.client(&["add", file.to_str().unwrap()]);
    assert_eq!((output.code(), daemon.ask("jobsets").ok().len()), (0, 10), "{output:?}");
}

#[test]
fn clients_talk_to_a_running_daemon() {
    let sandbox = Sandbox::new();
    let repository = sandbox.repository("hello");
    repository
        .jobs(&[
            json!({"job": "good", "system": "any-linux", "command": ["sh", "-c", "echo out > $out; echo said"]}),
            json!({"job": "bad", "system": "any-linux", "command": ["false"]}),
        ])
        .commit("Begin");
    let systems = json!({"systems": ["any-linux"]});
    let daemon = sandbox.start(&sandbox.specification("hello", &repository, systems));
    let evaluation = until("an evaluation", || daemon.last_evaluation("hello"));
    let builds = until("its builds", || Some(daemon.builds(&evaluation)).filter(|b| b.len() == 2));
    // Nobody here builds for that system: they wait, and say so.
    for build in builds.values() {
        assert_eq!(build["status"], "scheduled", "{build}");
        assert!(build["waiting"].is_string(), "{build}");
    }
    let output = sandbox.client(&["builds", "--json"]);
    let printed: Vec<serde_json::Value> =
        output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((output.code(), printed.len()), (0, 2), "{output:?}");
    let output = sandbox.client(&["cancel", &builds["bad"]["id"].to_string()]);
    assert_eq!(output.code(), 0, "{output:?}");
    let output = sandbox.client(&["wait", &builds["bad"]["id"].to_string()]);
    assert_eq!(output.code(), 1, "{output:?}");
    // What has ended has ended, however short the time.
    let output = sandbox.client(&["wait", &builds["bad"]["id"].to_string(), "--timeout=0"]);
    assert!(output.code() == 1 && output.stdout.contains("canceled"), "{output:?}");
    let output = sandbox.client(&["wait", &builds["good"]["id"].to_string(), "--timeout=0"]);
    assert!(output.code() == 1 && output.stderr.contains("had not ended"), "{output:?}");
    for arguments in [
        &["trigger", "no-such-jobset"][..],
        &["watch", "no-such-jobset"],
        &["token", "add", "x", "viewer", "--jobset=no-such-jobset"],
    ] {
        let output = sandbox.client(arguments);
        assert!(output.code() == 1 && output.stderr.contains("no-such-jobset"), "{output:?}");
    }
    let (status, time) = daemon.stop();
    assert!(status.success() && time < Duration::from_secs(10), "{status} after {time:?}");
    sandbox.deserted_within(Duration::from_secs(1));
}

/// What a program has drawn on a terminal so far.
struct Screen {
    master: File,
    drawn: String,
}

impl Screen {
    /// A terminal of 80 columns and as many lines as said, and its other side, for a program.
    fn open(lines: u16) -> (Self, OwnedFd) {
        let size = nix::pty::Winsize { ws_row: lines, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = nix::pty::openpty(Some(&size), None).unwrap();
        let flags = nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK);
        nix::fcntl::fcntl(&pty.master, flags).unwrap();
        (Self { master: File::from(pty.master), drawn: String::new() }, pty.slave)
    }

    fn shows(&mut self, what: &str) -> bool {
        let mut bytes = Vec::new();
        // It fails when nothing is there yet, with what was there before in the buffer.
        let _ = self.master.read_to_end(&mut bytes);
        self.drawn.push_str(&String::from_utf8_lossy(&bytes));
        self.drawn.contains(what)
    }
}

#[test]
fn a_watch_outlives_a_full_bridge() {
    let sandbox = Sandbox::new();
    let system = format!("{}-linux", std::env::consts::ARCH);
    let specification = |name: &str, jobs: &[(&str, &[&str])]| {
        let repository = sandbox.repository(name);
        let job = |(job, command): &(&str, &[&str])| json!({"job": job, "system": system, "command": command});
        repository.jobs(&jobs.iter().map(job).collect::<Vec<_>>()).commit("Begin");
        sandbox.specification(name, &repository, json!({}))
    };
    let first = specification("first", &[("long", &["sleep", "600"])]);
    let second = specification("second", &[("bad", &["false"]), ("wide", &["sleep", "600"])]);
    let starter = sandbox.daemon().specification(&first).arg("--max-connections=6");
    let mut daemon = starter.arg("--max-builds=3").start();
    until("a build", || daemon.ask("builds status=started").ok().pop());
    let (mut screen, terminal) = Screen::open(24);
    let mut command = sandbox.command(["watch", "--state-directory"]);
    command.arg(sandbox.state()).env("TERM", "xterm").stdout(terminal);
    let mut watch = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    drop(command);
    until("the first build", || screen.shows("long").then_some(()));

    // All places are taken; then a newcomer gets that of who was idle longest.
    let mut clients = Vec::new();
    let newcomer = || {
        let mut client = daemon.connect();
        client.try_ask("version").is_ok_and(|answer| answer.last == "ok").then_some(client)
    };
    while let Some(client) = newcomer() {
        clients.push(client);
    }
    let mut client = until("a place", &newcomer);
    let text = std::fs::read_to_string(&second).unwrap();
    client.ask(&format!("add {text}")).ok();
    until("the failure", || screen.shows("build-ended second").then_some(()));
    drop((client, clients));
    until("the second build", || screen.shows("wide").then_some(()));
    let event = screen.drawn.split("build-ended").next().unwrap();
    let time = event.trim_end().rsplit(|c: char| c != ':' && !c.is_ascii_digit()).next().unwrap();
    assert_eq!((time.len(), time.matches(':').count()), (8, 2), "{event:?}");
    assert!(watch.try_wait().unwrap().is_none());
    daemon.signal(Signal::SIGTERM);
    daemon.ended_within(Duration::from_secs(30));
    let output = watch.wait_with_output().unwrap();
    // Whichever comes first: that the daemon stops, or that it has hung up.
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(["stopping", "hung up"].iter().any(|end| stderr.contains(end)), "{stderr}");
    assert!(!stderr.contains("broke"), "{stderr}");
}

#[test]
fn one_shot_tells_by_its_exit_status() {
    let sandbox = Sandbox::new();
    let repository = sandbox.repository("hello");
    let script = |command: &str| {
        let text = "for system in $GORGET_SYSTEMS; do echo '{\"job\":\"a\",\"system\":\"'$system'\",\"command\":[";
        format!("#!/bin/sh\n{text}\"{command}\"]}}'; done\n")
    };
    repository.script("jobs", &script("true")).commit("Begin");
    let file = sandbox.specification("hello", &repository, json!({}));
    let run = || sandbox.daemon().specification(&file).arg("--one-shot").finish();
    let output = run();
    assert_eq!(output.code(), 0, "{output:?}");
    repository.script("jobs", &script("false")).commit("Break");
    let output = run();
    assert_eq!(output.code(), 1, "{output:?}");
    sandbox.deserted_within(Duration::from_secs(1));
}

#[test]
fn a_closed_standard_output_is_success() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.command(["--help"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = command.stdout(writer).stderr(std::process::Stdio::null()).status().unwrap();
    assert!(status.success(), "{status}");
}

#[test]
fn man_pages_and_completions_are_current() {
    let sandbox = Sandbox::new();
    let rendered = sandbox.path().join("rendered");
    let output = sandbox.gorget(&["documentation", rendered.to_str().unwrap()]);
    assert_eq!(output.code(), 0, "{output:?}");
    let mut number = 0;
    for directory in ["man", "contrib/completions"] {
        let names = |root: &Path| {
            let entries = std::fs::read_dir(root.join(directory)).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert_eq!(names(root), names(&rendered), "run `make man`");
        for name in names(root) {
            let read =
                |root: &Path| std::fs::read_to_string(root.join(directory).join(&name)).unwrap();
            assert!(
                read(root) == read(&rendered),
                "{directory}/{name:?} is not current: run `make man`"
            );
            number += 1;
        }
    }
    assert!(number >= 7);
}

/// Whether a program can be run at all.
fn there_is(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// Runs a tool on a file of the repository and returns what it complains about.
#[expect(clippy::disallowed_methods, reason = "a tool that runs to its end, here")]
fn complaints(program: &str, arguments: &[&str], file: &Path) -> String {
    let output = std::process::Command::new(program)
        .args(arguments)
        .arg(file)
        .env("LC_ALL", "C.UTF-8")
        .env("MANWIDTH", "80")
        .output()
        .unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} on {}: {complaints}", file.display());
    complaints
}

#[test]
fn man_pages_are_clean_roff_and_completions_are_clean_shell() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    if there_is("man") && there_is("groff") {
        for entry in std::fs::read_dir(root.join("man")).unwrap() {
            let page = entry.unwrap().path();
            assert_eq!(complaints("man", &["--warnings", "-l"], &page), "", "{}", page.display());
        }
    }
    for (shell, file) in [("bash", "gorget.bash"), ("zsh", "_gorget"), ("fish", "gorget.fish")] {
        if there_is(shell) {
            complaints(shell, &["-n"], &root.join("contrib/completions").join(file));
        }
    }
}

/// What bash offers for the last of these words.
#[expect(clippy::disallowed_methods, reason = "a tool that runs to its end, here")]
fn offered(words: &[&str]) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = "source contrib/completions/gorget.bash; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); \
                  _gorget; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let output = std::process::Command::new("bash")
        .args(["--norc", "-c", script, "bash", "gorget"])
        .args(words)
        .current_dir(root)
        .output()
        .unwrap();
    assert!(output.stderr.is_empty(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn completions_offer_what_belongs_there() {
    if !there_is("bash") {
        return;
    }
    for (words, expected) in [
        (&["reg"][..], &["register"][..]),
        (&["register", "-S", "Cargo.t"], &["Cargo.toml"]),
        (&["register", "-D", "Cargo.t"], &["Cargo.toml"]),
        (&["register", "-P", "Cargo.t"], &["Cargo.toml"]),
        (&["register", "--specifications", "=", "Cargo.t"], &["Cargo.toml"]),
        (&["register", "-S", "a.json", "--one"], &["--one-shot"]),
        (&["register", "--builder", "=", ""], &["auto", "process", "guix", "nix"]),
        (&["register", "--max-builds", "-"], &[""]),
        (&["register", "--cache-directory", "contr"], &["contrib"]),
        (&["builds", "--status", "fail"], &["failed", "failed-dependency"]),
        (&["--socket", "Cargo.t"], &["Cargo.toml"]),
        (&["--socket", "x", "stat"], &["status"]),
        (&["pause", ""], &["builds", "evaluations", "worker"]),
        (&["pause", "--js"], &["--json"]),
        (&["resume", "e"], &["evaluations"]),
        (&["token", "--jobset", "add", "l"], &["list"]),
        (&["token", "add", "name", "v"], &["viewer"]),
        (&["token", "revoke", "name", "v"], &[""]),
        (&["add", "Cargo.t"], &["Cargo.toml"]),
        (&["check", "Cargo.toml", "Cargo.t"], &["Cargo.toml"]),
        (&["help", "stat"], &["status"]),
        (&["remote-worker", "-S", "Cargo.t"], &[""]),
    ] {
        assert_eq!(offered(words), expected, "{words:?}");
    }
}
