//! Files in Scheme through the program itself, with Debian's Guile where there is no Guix.

use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::sandbox::{Output, Sandbox};
use crate::support::until;

/// Jobsets that nobody watches, so that nothing is evaluated.
fn jobset(name: &str, period: u32) -> String {
    format!("(specification (name '{name}) (period {period}) (is-active? #f) (channels '()))")
}

fn check(sandbox: &Sandbox, arguments: &[&str]) -> Output {
    sandbox.gorget(&[&["check", "--guix=/nonexistent/guix"], arguments].concat())
}

#[test]
fn check_names_file_line_and_field() {
    let sandbox = Sandbox::new();
    let good = sandbox.write("good.scm", &format!("(list {} {})", jobset("a", 1), jobset("b", 2)));
    let bad = sandbox.write("bad.scm", "(list (specification (name 'c)\n (priority 10)))");
    let parameters = sandbox.write("parameters.scm", "(%cuirass-url 5)");
    let output = check(
        &sandbox,
        &[good.to_str().unwrap(), bad.to_str().unwrap(), "-P", parameters.to_str().unwrap()],
    );
    assert_eq!(output.code(), 1);
    assert_eq!(output.stdout, format!("{}: good; jobsets: a, b\n", good.display()));
    let expected = format!(
        "gorget: {}:2: jobset \"c\": field priority: expected an integer from 0 to 9, found 10\n\
         gorget: {}: field url: expected a string, found a number\n",
        bad.display(),
        parameters.display()
    );
    assert_eq!(output.stderr, expected);
}

#[test]
fn without_guix_and_guile_it_is_said_what_to_install() {
    let sandbox = Sandbox::new();
    let file = sandbox.write("a.scm", "'()");
    let mut command = sandbox.command(["check"]);
    command.arg(&file).env("PATH", sandbox.path().join("bin"));
    let output = sandbox.run(command);
    assert_eq!(output.code(), 1);
    assert!(output.stderr.contains("apt install guile-3.0"), "{output:?}");
    assert!(
        output.stderr.contains("cannot run guix") && output.stderr.contains("cannot run guile")
    );
}

/// The command of `--guix` is run before another Guile, as Guix's own.
#[test]
fn guix_is_asked_first() {
    let sandbox = Sandbox::new();
    let script = "#!/bin/sh\ntest \"$*\" = \"-q repl -- /dev/stdin guix specifications $FILE\" || exit 9\n\
        printf '%s' '{\"specifications\":[{\"name\":\"from-guix\"}],\"places\":[]}'\n";
    let file = sandbox.write("a.scm", "not read");
    let guix = sandbox.write("bin/my-guix", &script.replace("$FILE", file.to_str().unwrap()));
    std::fs::set_permissions(&guix, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let guix = format!("--guix={} -q", guix.display());
    let output = sandbox.gorget(&["check", &guix, file.to_str().unwrap()]);
    assert_eq!(
        output.stdout,
        format!("{}: good; jobsets: from-guix\n", file.display()),
        "{output:?}"
    );
}

#[test]
fn the_daemon_registers_and_reloads_them() {
    let sandbox = Sandbox::new();
    let file = sandbox.write("jobsets.scm", &format!("(list {})", jobset("one", 7)));
    let parameters = sandbox.write("parameters.scm", "(%cuirass-url \"https://ci.example.org\")");
    let daemon = sandbox.daemon().specification(&file).arg("-P").arg(parameters).start();
    let periods = || {
        let jobsets = daemon.ask("jobsets").ok();
        jobsets.iter().map(|j| (j["name"].clone(), j["period"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(periods(), [(json!("one"), json!(7))]);

    sandbox.write("jobsets.scm", &format!("(list {} {})", jobset("one", 8), jobset("two", 9)));
    daemon.ask("reload").ok();
    assert_eq!(periods(), [(json!("one"), json!(8)), (json!("two"), json!(9))]);

    sandbox.write("jobsets.scm", &format!("(list {}\n (specification))", jobset("one", 1)));
    let answer = daemon.ask("reload");
    let error =
        format!("error conflict {}:2: specification: the field name is missing", file.display());
    assert_eq!(answer.last, error);
    assert_eq!(periods(), [(json!("one"), json!(8)), (json!("two"), json!(9))]);

    let added = sandbox.write("added.scm", &format!("(list {})", jobset("three", 5)));
    let output = sandbox.client(&["add", added.to_str().unwrap()]);
    assert_eq!(output.code(), 0, "{output:?}");
    assert_eq!(periods().len(), 3);
}

/// A file that does not end holds neither the bridge nor the end of the daemon up.
#[test]
fn an_endless_file_is_left_at_a_stop() {
    let sandbox = Sandbox::new();
    let file = sandbox.write("jobsets.scm", &format!("(list {})", jobset("one", 7)));
    let daemon = sandbox.start(&file);
    sandbox.write("jobsets.scm", "(let loop () (loop))");
    daemon.signal(Signal::SIGHUP);
    until("a Guile that reads", || {
        sandbox
            .processes()
            .iter()
            .any(|process| {
                process.command.contains("jobsets.scm") && process.command.contains("/dev/stdin")
            })
            .then_some(())
    });
    assert_eq!(daemon.ask("jobsets").ok().len(), 1);
    let (status, took) = daemon.stop();
    assert!(status.success() && took.as_secs() < 10, "{status} after {took:?}");
    sandbox.deserted_within(crate::support::PATIENCE);
}
