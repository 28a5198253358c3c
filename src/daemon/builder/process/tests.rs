//! Real builds, under real keepers.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use tempfile::TempDir;

use super::*;
use crate::actor::Spawner;
use crate::actor::Threads;
use crate::git::Places;
use crate::model::build::{Need, Product};
use crate::model::evaluation::{Checkout, EvaluationId};
use crate::model::job::ProcessWork;
use crate::model::spec::JobsetName;
use crate::sys::clock;
use crate::sys::process::User;

/// Generous: what it bounds takes seconds at most.
const LONG: Duration = Duration::from_secs(60);

struct Bench {
    place: TempDir,
    process: Process,
    reports: Receiver<Report>,
    threads: Option<Threads>,
}

impl Bench {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(adjust: impl FnOnce(&mut Settings)) -> Self {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir_all(place.path().join("cache")).unwrap();
        let checkout = place.path().join("checkout");
        fs::create_dir_all(checkout.join("src")).unwrap();
        fs::write(checkout.join("src/input"), "source\n").unwrap();
        let mut settings = Settings {
            state_directory: place.path().into(),
            database_directory: place.path().into(),
            fetch_timeout: Duration::from_secs(60),
            cache_directory: place.path().join("cache"),
            log_directory: place.path().join("log"),
            max_builds: 2,
            max_log_size: 1 << 20,
            minimum_disk_space: 0,
            job_user: None,
            fallback: false,
            one_shot: false,
            daemons: Vec::new(),
            remote: None,
        };
        adjust(&mut settings);
        let (spawner, threads) = Spawner::new();
        let keepers = place.path().join("keepers");
        let launcher = Launcher::new(keepers, clock::now() + LONG).unwrap();
        let (lane, reports) = bounded(settings.max_builds);
        let places = Places {
            mirrors: place.path().join("cache/git"),
            checkouts: place.path().join("cache/checkouts"),
        };
        let updater = updater::spawn(&spawner, launcher.clone(), places, 1, LONG).unwrap();
        let pool = Pool::new(&spawner, "build", 2).unwrap();
        let process = Process::new(pool, launcher, updater, settings, lane).unwrap();
        Self { place, process, reports, threads: Some(threads) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// An order to run `script` in a shell.
    fn order(&self, script: &str) -> Order {
        Order {
            id: BuildId(7),
            attempt: 1,
            jobset: JobsetName::new("tests").unwrap(),
            evaluation: EvaluationId(3),
            job: "a job".to_owned(),
            system: host_system(),
            derivation: "process:0".to_owned(),
            priority: 99,
            timeout: 0,
            max_silent_time: 0,
            process: Some(ProcessWork {
                command: ["sh", "-c", script].map(str::to_owned).into(),
                environment: BTreeMap::from([("CI".to_owned(), "true".to_owned())]),
                products: vec![],
                needs: vec![],
            }),
            checkouts: vec![Checkout {
                channel: "main".to_owned(),
                url: "file:///no/such/repository.git".to_owned(),
                commit: "c0ffee".to_owned(),
                tree: "7ee".to_owned(),
                directory: self.path("checkout"),
            }],
            needs: vec![],
            log: self.path("log/builds/7.gz"),
            worker: None,
        }
    }

    fn outcome(&self) -> Outcome {
        match self.reports.recv_timeout(LONG).unwrap() {
            Report::Ended { id: BuildId(7), attempt: 1, outcome } => outcome,
            other => panic!("{other:?}"),
        }
    }

    fn run(&mut self, order: Order) -> Outcome {
        self.process.start(order);
        self.outcome()
    }

    fn shell(&mut self, script: &str) -> Outcome {
        self.run(self.order(script))
    }

    fn log(&self) -> String {
        let mut text = String::new();
        let file = fs::File::open(self.path("log/builds/7.gz")).unwrap();
        flate2::read::MultiGzDecoder::new(file).read_to_string(&mut text).unwrap();
        text
    }

    /// Waits until the log, which a running build writes, holds a whole line, and returns it.
    fn first_line(&self) -> String {
        let (path, deadline) = (self.path("log/builds/7.gz"), clock::now() + LONG);
        let mut text = Vec::new();
        while !text.contains(&b'\n') {
            assert!(clock::now() < deadline);
            let Ok(mut tail) = crate::logs::Tail::open(&path, text.len() as u64) else { continue };
            if tail.read(&mut text).unwrap().is_none() {
                tail.wait(deadline).unwrap();
            }
        }
        String::from_utf8(text).unwrap().lines().next().unwrap().to_owned()
    }

    fn assert_clean(&self) {
        assert!(!self.path("cache/builds/7").exists());
        assert!(!self.path("products/7").exists());
    }
}

fn failed(why: &str) -> Outcome {
    Outcome::Failed(why.to_owned())
}

fn is_alive(pid: &str) -> bool {
    Path::new("/proc").join(pid).exists()
}

#[test]
fn a_build_gets_its_checkout_and_environment_and_leaves_its_products() {
    let mut bench = Bench::new();
    let need = bench.path("need");
    fs::write(&need, "needed").unwrap();
    let mut order = bench.order(
        "set -e; cat src/input; echo changed >src/input
         test -z \"$(cat)\"
         echo $CI $GORGET_JOB $GORGET_BUILD $GORGET_SYSTEM $GORGET_JOBSET $GORGET_EVALUATION
         cat \"$GORGET_NEEDS\" \"$GORGET_CHANNELS\"; echo; echo err >&2
         touch \"$TMPDIR/file\"
         mkdir $out; echo result >$out/result; echo report >report.html; echo no >other.html2",
    );
    order.needs = vec![Need {
        job: "compile".to_owned(),
        outputs: BTreeMap::from([("out".to_owned(), need.to_str().unwrap().to_owned())]),
        expired: false,
    }];
    order.process.as_mut().unwrap().products = vec!["*.html".to_owned()];
    let outcome = bench.run(order);
    let Outcome::Succeeded { outputs, products } = outcome else {
        panic!("{outcome:?}: {}", bench.log());
    };
    let out = bench.path("products/7/out");
    assert_eq!(outputs, BTreeMap::from([("out".to_owned(), out.to_str().unwrap().to_owned())]));
    assert_eq!(products.len(), 2);
    assert_eq!(products[0].path, bench.path("products/7/files/report.html"));
    assert_eq!((products[0].size, products[0].sha256.is_some()), (7, true));
    let directory = Product { kind: "directory".to_owned(), path: out, size: 7, sha256: None };
    assert_eq!(products[1], directory);
    assert_eq!(fs::read_to_string(bench.path("checkout/src/input")).unwrap(), "source\n");
    assert!(!bench.path("cache/builds/7").exists());
    let host = host_system();
    let work = bench.path("cache/builds/7/work");
    let expected = format!(
        "source\ntrue a job 7 {host} tests 3\n{{\"compile\":{{\"out\":\"{}\"}}}}[{{\"name\":\"main\",\
         \"url\":\"file:///no/such/repository.git\",\"commit\":\"c0ffee\",\"directory\":\"{}\"}}]\nerr\n",
        need.display(),
        work.display()
    );
    assert_eq!(bench.log(), expected);
}

#[test]
fn a_build_that_leaves_nothing_succeeds() {
    let mut bench = Bench::new();
    let nothing = Outcome::Succeeded { outputs: BTreeMap::new(), products: vec![] };
    assert_eq!(bench.shell("exit 0"), nothing);
    assert_eq!(bench.log(), "");
    bench.assert_clean();
}

#[test]
fn failures_say_how_the_build_ended() {
    let mut bench = Bench::new();
    assert_eq!(bench.shell("echo partial >$out; exit 3"), failed("exit status 3"));
    bench.assert_clean();
    assert_eq!(bench.shell("kill -9 $$"), failed("signal 9"));
    let mut order = bench.order("");
    order.process.as_mut().unwrap().command = vec!["./no-such-program".to_owned()];
    let Outcome::Failed(why) = bench.run(order) else { panic!() };
    assert!(why.contains("no-such-program"), "{why}");
    assert_eq!(bench.log(), format!("gorget: {why}\n"));
    let mut order = bench.order("");
    order.process.as_mut().unwrap().products = vec!["[".to_owned()];
    assert!(matches!(bench.run(order), Outcome::Failed(_)));
    bench.assert_clean();
}

#[test]
fn a_build_that_runs_too_long_is_killed_with_all_it_started() {
    let mut bench = Bench::new();
    let mut order = bench.order(
        "trap '' TERM; setsid sh -c 'echo $$; trap \"\" TERM; while :; do sleep 100; done' &
         while :; do sleep 1; printf .; done",
    );
    order.timeout = 1;
    assert_eq!(bench.run(order), failed("timed out after 1 s"));
    let log = bench.log();
    let pid = log.lines().next().unwrap().trim_end_matches('.');
    assert!(!is_alive(pid), "{pid}");
    assert!(log.ends_with("\ngorget: timed out after 1 s\n"), "{log}");
    bench.assert_clean();
}

#[test]
fn a_silent_build_is_killed() {
    let mut bench = Bench::new();
    let mut order = bench.order("echo hello; sleep 1000");
    order.max_silent_time = 1;
    assert_eq!(bench.run(order), failed("silent for 1 s"));
    assert_eq!(bench.log(), "hello\ngorget: silent for 1 s\n");
}

#[test]
fn a_log_has_its_limit() {
    let mut bench = Bench::with(|settings| settings.max_log_size = 100_000);
    assert_eq!(bench.shell("exec yes"), failed("log larger than 100000 bytes"));
    let log = bench.log();
    assert!(log.ends_with("y\ngorget: log larger than 100000 bytes\n"));
    assert_eq!(log.find("gorget"), Some(100_000));
}

#[test]
fn a_canceled_build_is_interrupted_and_its_log_was_live() {
    let mut bench = Bench::new();
    let order = bench.order("sleep 1000 & echo $!; trap 'echo bye; exit 1' TERM; wait");
    bench.process.start(order);
    let pid = bench.first_line();
    assert!(is_alive(&pid));
    bench.process.cancel(BuildId(7));
    assert_eq!(bench.outcome(), Outcome::Interrupted);
    assert!(!is_alive(&pid));
    assert_eq!(bench.log(), format!("{pid}\nbye\n"));
    bench.assert_clean();
    bench.process.cancel(BuildId(7));
}

#[test]
fn a_build_canceled_before_it_runs_does_not() {
    let mut bench = Bench::new();
    let order = bench.order("sleep 1000");
    bench.process.start(order);
    bench.process.cancel(BuildId(7));
    assert_eq!(bench.outcome(), Outcome::Interrupted);
    bench.assert_clean();
}

#[test]
fn a_build_whose_inputs_are_gone_is_aborted() {
    let mut bench = Bench::new();
    let mut order = bench.order("true");
    let outputs = BTreeMap::from([("out".to_owned(), "/no/such/output".to_owned())]);
    order.needs = vec![Need { job: "compile".to_owned(), outputs, expired: false }];
    let Outcome::Aborted(why) = bench.run(order.clone()) else { panic!() };
    assert!(why.starts_with("the output /no/such/output of compile is gone"), "{why}");
    order.needs[0].outputs.clear();
    order.needs[0].expired = true;
    let Outcome::Aborted(why) = bench.run(order) else { panic!() };
    assert_eq!(why, "what compile left has been removed");
    fs::remove_dir_all(bench.path("checkout")).unwrap();
    let Outcome::Aborted(why) = bench.shell("true") else { panic!() };
    // It cannot be made again from a repository that is gone, too.
    assert!(why.starts_with("cannot check out again: channel main: "), "{why}");
    bench.assert_clean();
}

#[test]
fn a_build_without_channels_works_in_an_empty_directory() {
    let mut bench = Bench::new();
    let mut order = bench.order("test -z \"$(ls -A)\"");
    order.checkouts = vec![];
    assert!(matches!(bench.run(order), Outcome::Succeeded { .. }));
}

#[test]
fn a_failure_on_a_full_disk_is_not_the_builds() {
    // The more is to be kept free, the more counts as full, up to a bound: here nothing does.
    let mut bench = Bench::with(|settings| settings.minimum_disk_space = u64::MAX);
    assert_eq!(bench.shell("exit 1"), failed("exit status 1"));
}

#[test]
fn what_keeps_a_job_from_being_started_is_not_its_failure() {
    let Some(user) = User::find("nobody").unwrap().filter(|_| nix::unistd::geteuid().is_root())
    else {
        return; // Only root can run jobs as another user.
    };
    // Its own directories are nobody's, but the way there is not.
    let closed = tempfile::tempdir().unwrap();
    fs::set_permissions(closed.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let mut bench = Bench::with(|settings| {
        settings.cache_directory = closed.path().join("cache");
        settings.job_user = Some(user);
        fs::create_dir(&settings.cache_directory).unwrap();
    });
    let outcome = bench.shell("true");
    let Outcome::Aborted(why) = outcome else { panic!("{outcome:?}") };
    assert!(why.starts_with("cannot enter ") && why.ends_with("Permission denied"), "{why}");
}

#[test]
fn what_finds_no_space_waits_for_it_and_what_breaks_otherwise_is_aborted() {
    use std::io::{Error, ErrorKind};
    let waits =
        |doing: &str| Outcome::NoSpace(format!("no space left on the disk: cannot {doing}"));
    for kind in [ErrorKind::StorageFull, ErrorKind::QuotaExceeded] {
        let outcomes = job::refused("make /x", || Error::from(kind));
        assert_eq!(outcomes, [waits("make /x"), waits("write the log")]);
    }
    let outcomes = job::refused("make /x", || Error::from(ErrorKind::PermissionDenied));
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Aborted(_))), "{outcomes:?}");
}

#[test]
fn a_build_that_fills_the_disk_by_itself_spends_tries() {
    let full = || Outcome::NoSpace("full".to_owned());
    assert_eq!(job::excuse(full(), true), Outcome::Aborted("full".to_owned()));
    assert_eq!(job::excuse(full(), false), full());
    assert_eq!(job::excuse(failed("exit status 1"), true), failed("exit status 1"));
}

#[test]
fn a_build_of_another_system_waits() {
    let bench = Bench::new();
    assert_eq!(bench.process.obstacle(&host_system()), None);
    let reason = bench.process.obstacle("pdp11-unix").unwrap();
    assert_eq!(reason.to_string(), "no worker for pdp11-unix");
}

#[test]
fn a_build_that_no_thread_takes_up_is_reported() {
    let mut bench = Bench::new();
    bench.threads = None;
    let order = bench.order("true");
    bench.process.start(order);
    // It may have been taken up just before its thread ended.
    assert!(matches!(bench.outcome(), Outcome::Interrupted | Outcome::Succeeded { .. }));
}

#[test]
fn builds_of_a_job_user_own_what_they_need_and_no_more() {
    if !nix::unistd::geteuid().is_root() {
        return; // Nobody else can become another user.
    }
    let Some(user) = User::find("nobody").unwrap() else { return };
    let mut bench = Bench::with(|settings| settings.job_user = Some(user.clone()));
    fs::set_permissions(bench.place.path(), fs::Permissions::from_mode(0o711)).unwrap();
    fs::write(bench.path("secret"), "daemon's").unwrap();
    fs::set_permissions(bench.path("secret"), fs::Permissions::from_mode(0o640)).unwrap();
    let script = format!(
        "id -u; id -G; touch src/new \"$TMPDIR/new\"; cat \"$GORGET_NEEDS\"; echo x >$out
         cat {} && exit 1; touch {0}.new && exit 2; touch ../../x && exit 3; exit 0",
        bench.path("secret").display()
    );
    let outcome = bench.shell(&script);
    assert!(matches!(outcome, Outcome::Succeeded { .. }), "{outcome:?}: {}", bench.log());
    assert!(bench.log().starts_with(&format!("{}\n{}\n{{}}", user.uid, user.gid)));
    assert_eq!(fs::metadata(bench.path("products/7/out")).unwrap().uid(), 0);
    assert_eq!(fs::metadata(bench.path("products/7")).unwrap().uid(), 0);
    assert!(!bench.path("cache/builds/7").exists());
}
