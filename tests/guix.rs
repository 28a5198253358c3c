//! The `guix` evaluator: its real scripts, run by Debian's Guile on what tests/guix/ has in the place of Guix, whose
//! derivations are Nix's, so that a real nix-daemon builds them. With GORGET_TEST_GUIX, a command that runs Guix, and
//! GORGET_TEST_GUIX_DAEMON, the socket of its daemon, the real one as well.

#![allow(clippy::print_stderr, reason = "a test that cannot run says so")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::jobs::{Repository, system};
use crate::support::nix::Store;
use crate::support::sandbox::{Output, Sandbox};

/// Of no key: the stand-in looks for a branch of keys alone.
const INTRODUCTION: &str = "9edb3f66fd807b096b48283debdcddccfea34bad";

fn stand_in() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guix/guix")
}

/// A channel, with a module of jobs, a manifest, and a branch of keys.
fn channel() -> Repository {
    let channel = Repository::new(0);
    channel.write("manifest.scm", "(\"hello\" \"broken-call\" \"zile\")");
    fs::create_dir(channel.path().join("mine")).unwrap();
    channel.write(
        "mine/ci.scm",
        r#"(define-module (mine ci) #:use-module (guix derivations) #:export (cuirass-jobs))
           (define (cuirass-jobs store arguments)
             (display "on standard output")
             (let ((drv (nix-derivation "custom" (car (assq-ref arguments 'systems)) "echo > $out")))
               (list `((#:job-name . custom) (#:derivation . ,(derivation-file-name drv))
                       (#:outputs . ,(derivation->output-paths drv)) (#:nix-name . "custom")
                       (#:system . ,(derivation-system drv))))))"#,
    );
    channel.commit();
    channel.git(&["branch", "keyring"]);
    channel
}

fn specification(channels: &[(&str, &Repository)], build: Value) -> Value {
    let introduction = json!({ "commit": INTRODUCTION, "signer": INTRODUCTION });
    let channels: Vec<_> = channels
        .iter()
        .map(|(name, repository)| {
            let (url, branch) = (repository.url(), "main");
            json!({ "name": name, "url": url, "branch": branch, "introduction": introduction })
        })
        .collect();
    json!({ "name": "main", "channels": channels, "evaluator": "guix", "build": build })
}

struct Evaluation {
    output: Output,
    /// By name and system; each comes once.
    jobs: BTreeMap<(String, String), Value>,
}

/// Evaluates now, with a store in the sandbox.
fn evaluate(sandbox: &Sandbox, specification: &Value) -> Evaluation {
    let file = sandbox.write("main.json", &specification.to_string());
    let mut command = sandbox.command(["evaluate", "-S"]);
    command.arg(file).arg("--guix").arg(stand_in());
    for name in ["STORE", "STATE", "LOCALSTATE", "LOG", "CONF"] {
        let directory = sandbox.path().join("nix").join(name.to_lowercase().replace("local", ""));
        command.env(format!("NIX_{name}_DIR"), directory);
    }
    command.env("NIX_CONFIG", "substituters =\nbuild-users-group =\nsandbox = false");
    let output = sandbox.run(command);
    let mut jobs = BTreeMap::new();
    for line in output.stdout.lines() {
        let job: Value = serde_json::from_str(line).unwrap();
        let field = |name: &str| job[name].as_str().unwrap().to_owned();
        let key = (field("job"), field("system"));
        assert!(jobs.insert(key, job).is_none(), "{line} twice: {output:?}");
    }
    Evaluation { output, jobs }
}

impl Evaluation {
    #[track_caller]
    fn succeeded(&self) {
        assert_eq!(self.output.code(), 0, "{:?}", self.output);
    }

    #[track_caller]
    fn job(&self, name: &str) -> &Value {
        let key = (name.to_owned(), system());
        self.jobs.get(&key).unwrap_or_else(|| panic!("no {name} in {:?}", self.output))
    }

    /// For each job its error, or nothing.
    fn errors(&self) -> Vec<(&str, &str)> {
        self.jobs
            .iter()
            .map(|((name, _), job)| (name.as_str(), job["error"].as_str().unwrap_or_default()))
            .collect()
    }
}

#[test]
fn without_a_guix_channel_the_installed_guix_evaluates() {
    let (sandbox, channel) = (Sandbox::new(), channel());
    let evaluate = |build| evaluate(&sandbox, &specification(&[("mine", &channel)], build));
    let name = |package: &str| format!("{package}.{}", system());

    let hello = evaluate(json!("hello"));
    hello.succeeded();
    let job = hello.job(&name("hello"));
    assert!(job["derivation"].as_str().unwrap().ends_with("-hello.drv"), "{job}");
    assert!(job["outputs"]["out"].as_str().unwrap().ends_with("-hello"), "{job}");
    assert_eq!((&job["timeout"], &job["max-silent-time"]), (&json!(72_000), &json!(3600)));
    assert_eq!(job["nix-name"], "hello");

    let all = evaluate(json!("all"));
    all.succeeded();
    let (broken, hello, zile) = (name("broken-variable"), name("hello"), name("zile"));
    let expected = [
        (broken.as_str(), "Unbound variable: no-such-variable"),
        (hello.as_str(), ""),
        (zile.as_str(), ""),
    ];
    assert_eq!(all.errors(), expected);

    let asked = ["hello", "unknown", "broken-exit", "broken-in-store", "zile"];
    let packages = evaluate(json!({ "packages": asked }));
    packages.succeeded();
    let (broken, unknown) = (name("broken-exit"), name("unknown"));
    let refused = name("broken-in-store");
    let expected = [
        (broken.as_str(), "it ends Guix"),
        (refused.as_str(), "the store refuses"),
        (hello.as_str(), ""),
        (unknown.as_str(), "guix: error: unknown: unknown package"),
        (zile.as_str(), ""),
    ];
    assert_eq!(packages.errors(), expected);

    let manifests = evaluate(json!({ "manifests": ["manifest.scm", "none.scm"] }));
    manifests.succeeded();
    let wrong_type = "In procedure car: Wrong type argument in position 1 (expecting pair): ()";
    let expected = [
        ("broken-call-1", wrong_type),
        ("hello-1", ""),
        ("none.scm", "no channel has the file \"none.scm\""),
        ("zile-1", ""),
    ];
    assert_eq!(manifests.errors(), expected);

    // The module is in the channel; what it prints is for people.
    let custom = evaluate(json!({ "custom": ["(mine ci)", "(no ci)"] }));
    custom.succeeded();
    assert_eq!(custom.errors(), [("(no ci)", "no code for module (no ci)"), ("custom", "")]);
    assert!(custom.output.stderr.contains("on standard output"));

    let channels = evaluate(json!({ "channels": ["mine", "other"] }));
    channels.succeeded();
    let broken = name("broken-variable");
    let expected = [(broken.as_str(), "Unbound variable: no-such-variable"), (zile.as_str(), "")];
    assert_eq!(channels.errors(), expected);
}

#[test]
fn what_breaks_as_a_whole_fails_the_evaluation() {
    let (sandbox, channel) = (Sandbox::new(), channel());
    let failure = |build| {
        let found = evaluate(&sandbox, &specification(&[("mine", &channel)], build));
        assert_eq!(found.output.code(), 1, "{:?}", found.output);
        let last = found.output.stderr.lines().last().unwrap().to_owned();
        let again = found.output.stderr.contains("the evaluation was aborted: ");
        (last, found.jobs.len(), again)
    };
    let prefix = "gorget: the evaluation failed: ";
    let (last, jobs, again) = failure(json!("guix"));
    let needs = "build \"guix\" is of Guix itself: it needs a channel called guix";
    assert_eq!((last, jobs, again), (format!("{prefix}{needs}"), 0, false));
    // A store that goes away is nobody's fault: another try may do.
    let (last, jobs, again) = failure(json!({ "packages": ["hello", "lost-store", "zile"] }));
    let lost = format!("{prefix}{}: In procedure write: Broken pipe", system());
    assert_eq!((last, jobs, again), (lost, 1, true));
    let (last, jobs, again) = failure(json!({ "packages": ["hello", "absent-store", "zile"] }));
    let why = "cannot connect to the store daemon: Connection refused";
    let absent = format!("{prefix}{}: {why}", system());
    assert_eq!((last, jobs, again), (absent, 1, true));
}

#[test]
fn a_guix_channel_evaluates_itself_for_each_system() {
    let (sandbox, guix, mine) = (Sandbox::new(), channel(), channel());
    let mut specification = specification(&[("guix", &guix), ("mine", &mine)], json!("guix"));
    specification["systems"] = json!([system(), "riscv64-linux"]);
    let found = evaluate(&sandbox, &specification);
    found.succeeded();
    // What a one-off needs it builds.
    let profile = found.job("guix-profile")["outputs"]["out"].as_str().unwrap();
    assert!(Path::new(profile).join("bin/guix").exists());
    let commit = guix.git(&["rev-parse", "HEAD"]);
    for system in [system(), "riscv64-linux".to_owned()] {
        let job = &found.jobs[&(format!("guix.{system}"), system.clone())];
        let text = fs::read_to_string(job["derivation"].as_str().unwrap()).unwrap();
        // It ran in the profile, and was told of a checkout.
        assert!(text.contains(&format!("echo {commit} /")), "{text}");
    }
    // Without keys nothing is authentic.
    guix.git(&["branch", "-D", "keyring"]);
    let found = evaluate(&sandbox, &specification);
    assert_eq!((found.output.code(), found.jobs.len()), (1, 0), "{:?}", found.output);
    assert!(found.output.stderr.contains("origin/keyring"), "{:?}", found.output);
}

fn gorget(store: &Store, options: &[&str]) -> Daemon {
    let guix = format!("--guix={}", stand_in().display());
    store.gorget(&[&[guix.as_str()], options].concat())
}

fn only_evaluation(daemon: &mut Daemon) -> Value {
    let evaluations = daemon.until("evaluations main", |found| {
        found.first().is_some_and(|evaluation| evaluation["status"] != "started")
    });
    evaluations[0].clone()
}

/// One slot for builds, which the evaluation does not hold.
#[test]
fn the_profile_is_a_build_that_the_evaluation_waits_for() {
    let store = Store::start();
    let mut daemon = gorget(&store, &["--max-builds=1", "--max-evaluations=1"]);
    let (guix, mine) = (channel(), channel());
    let build = json!({ "manifests": ["manifest.scm"] });
    let specification = specification(&[("guix", &guix), ("mine", &mine)], build);
    daemon.ask(&format!("add {specification}"));
    daemon.settle();
    let evaluation = only_evaluation(&mut daemon);
    assert_eq!(evaluation["status"], "succeeded", "{evaluation}\n{}", daemon.log());
    let jobs = &evaluation["jobs"];
    assert_eq!((&jobs["total"], &jobs["succeeded"]), (&json!(4), &json!(3)), "{evaluation}");
    let profile = daemon.build("guix-profile");
    assert_eq!((&profile["status"], &profile["priority"]), (&json!("succeeded"), &json!(90)));
    let log = daemon.ask(&format!("log build {}", profile["id"]));
    assert_eq!(log[0]["text"], "building the profile\n");
    let hello = daemon.build("hello-1");
    assert_eq!(hello["status"], "succeeded");
    assert!(hello["timestamp"].as_i64() >= profile["stoptime"].as_i64());

    // The same Guix again is there at once.
    daemon.ask(&format!("retry-evaluation {}", evaluation["id"]));
    let again = daemon.until("evaluations main limit=1", |found| {
        found[0]["id"] != evaluation["id"] && found[0]["status"] != "started"
    });
    assert_eq!((&again[0]["status"], &again[0]["jobs"]["total"]), (&json!("succeeded"), &json!(4)));
    assert_eq!(daemon.ask("builds").len(), 4);
}

#[test]
fn a_guix_that_cannot_be_built_fails_the_evaluation() {
    let store = Store::start();
    let mut daemon = gorget(&store, &[]);
    let guix = channel();
    guix.write("BROKEN", "");
    guix.commit();
    daemon.ask(&format!("add {}", specification(&[("guix", &guix)], json!("hello"))));
    daemon.settle();
    let evaluation = only_evaluation(&mut daemon);
    assert_eq!(evaluation["status"], "failed", "{evaluation}");
    assert_eq!(evaluation["error"], "the job guix-profile was needed: failed: exit status 7");
    let profile = daemon.build("guix-profile");
    assert_eq!(
        (&profile["status"], &profile["error"]),
        (&json!("failed"), &json!("exit status 7"))
    );
}

#[test]
fn waiting_for_the_profile_is_not_the_evaluations_time() {
    const TIMEOUT: u64 = 5;
    let store = Store::start();
    let mut daemon = gorget(&store, &[]);
    daemon.ask("pause builds");
    let guix = channel();
    let mut specification = specification(&[("guix", &guix)], json!("hello"));
    specification["evaluation-timeout"] = json!(TIMEOUT);
    daemon.ask(&format!("add {specification}"));
    daemon.until("builds", |builds| builds.len() == 1 && builds[0]["waiting"] == "paused");
    // What is tested is that time passes.
    let (_sender, never) = std::sync::mpsc::channel::<()>();
    assert!(never.recv_timeout(std::time::Duration::from_secs(TIMEOUT)).is_err());
    daemon.ask("resume builds");
    daemon.settle();
    let evaluation = only_evaluation(&mut daemon);
    assert_eq!(evaluation["status"], "succeeded", "{evaluation}\n{}", daemon.log());
}

#[test]
fn a_canceled_profile_is_no_failure_of_the_evaluation() {
    let store = Store::start();
    let mut daemon = gorget(&store, &[]);
    daemon.ask("pause builds");
    let guix = channel();
    daemon.ask(&format!("add {}", specification(&[("guix", &guix)], json!("hello"))));
    daemon.until("builds", |builds| builds.len() == 1 && builds[0]["waiting"] == "paused");
    let id = daemon.build("guix-profile")["id"].clone();
    daemon.ask(&format!("cancel-build {id}"));
    let evaluation = only_evaluation(&mut daemon);
    let why = "the job guix-profile was needed: canceled";
    assert_eq!((&evaluation["status"], &evaluation["error"]), (&json!("aborted"), &json!(why)));
}

#[test]
fn an_evaluation_that_waits_can_be_canceled() {
    let store = Store::start();
    let mut daemon = gorget(&store, &[]);
    daemon.ask("pause builds");
    let guix = channel();
    daemon.ask(&format!("add {}", specification(&[("guix", &guix)], json!("hello"))));
    daemon.until("builds", |builds| {
        builds.len() == 1 && builds[0]["job"] == "guix-profile" && builds[0]["waiting"] == "paused"
    });
    let id = daemon.ask("evaluations main")[0]["id"].clone();
    daemon.ask(&format!("cancel-evaluation {id}"));
    let evaluation = only_evaluation(&mut daemon);
    assert_eq!(
        (&evaluation["status"], &evaluation["error"]),
        (&json!("aborted"), &json!("canceled"))
    );
    daemon.wait_for_no_descendants();
    daemon.until("builds", |builds| builds[0]["status"] == "canceled");
}

/// Git takes repositories from their owners alone, and mirrors are the daemon's.
#[test]
fn channels_are_lent_to_the_job_user() {
    if !crate::support::is_root("run jobs as another user") {
        return;
    }
    let store = Store::start();
    passable(store.directory.path());
    let mut daemon = gorget(&store, &["--job-user=nobody"]);
    passable(daemon.state().parent().unwrap());
    let guix = channel();
    daemon.ask(&format!("add {}", specification(&[("guix", &guix)], json!("hello"))));
    daemon.settle();
    let evaluation = only_evaluation(&mut daemon);
    let log = daemon.ask(&format!("log evaluation {}", evaluation["id"]));
    assert_eq!(evaluation["status"], "succeeded", "{evaluation} {log:?}\n{}", daemon.log());
    assert_eq!(daemon.build(&format!("hello.{}", system()))["status"], "succeeded");
    let cache = daemon.state().join("cache");
    let mirror = fs::metadata(cache.join("git")).unwrap();
    assert_eq!(mirror.permissions().mode() & 0o007, 0, "mirrors are nobody else's");
    assert_ne!(fs::metadata(cache.join("channels/main/guix.git")).unwrap().uid(), 0);
}

/// Lets others in.
fn passable(directory: &Path) {
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
}

/// From a specification in Scheme, which the real Guix reads, to what the real daemon has built. No network is needed:
/// the builder is a shell that is added to the store.
#[test]
fn the_real_guix_does_as_its_stand_in() {
    let given = |name: &str| std::env::var(name).ok();
    let (Some(guix), Some(socket)) = (given("GORGET_TEST_GUIX"), given("GORGET_TEST_GUIX_DAEMON"))
    else {
        eprintln!("GORGET_TEST_GUIX and GORGET_TEST_GUIX_DAEMON name no Guix: nothing is tested");
        return;
    };
    let sandbox = Sandbox::new();
    let channel = Repository::new(0);
    channel.write(
        "shell.scm",
        r#"(define-module (shell) #:use-module (gnu ci) #:use-module (guix derivations)
             #:use-module (guix store) #:export (cuirass-jobs))
           (define (cuirass-jobs store arguments)
             (define sh (add-to-store store "sh" #t "sha256" (canonicalize-path "/bin/sh")))
             (define system (car (assq-ref arguments 'systems)))
             (map (lambda (name script)
                    (derivation->job name
                                     (derivation store name sh (list "-c" script)
                                                 #:sources (list sh) #:system system)))
                  '("good" "bad") '("echo hello; echo x > $out" "exit 3")))"#,
    );
    channel.commit();
    let file = format!(
        "(list (specification (name 'main) (build '(custom (shell)))
                (channels (list (channel (name 'mine) (url {:?}) (branch \"main\"))))))",
        channel.url()
    );
    let file = sandbox.write("main.scm", &file);
    let mut daemon = sandbox.daemon().specification(&file).arg("--one-shot");
    for (name, value) in std::env::vars() {
        if name.starts_with("GUIX_") || name.starts_with("NIX_") {
            daemon = daemon.env(&name, value);
        }
    }
    let output = daemon.arg(format!("--guix={guix}")).env("GUIX_DAEMON_SOCKET", socket).finish();
    assert_eq!(output.code(), 1, "one build fails: {output:?}");
    let books = sandbox.database();
    let mut builds = books.prepare("SELECT job, status, error FROM builds ORDER BY job").unwrap();
    let builds: Vec<(String, i64, Option<String>)> = builds
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    let expected =
        [("bad".to_owned(), 1, Some("exit status 3".to_owned())), ("good".to_owned(), 0, None)];
    assert_eq!(builds, expected, "{output:?}");
}
