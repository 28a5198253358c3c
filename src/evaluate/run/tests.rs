//! Real evaluators, written in shell, good and bad, under real keepers: the binary next to the test's.

use std::path::Path;

use super::*;
use crate::evaluate::{Evaluation, guix, once};
use crate::model::evaluation::{Checkout, EvaluationId};
use crate::model::spec::{JobsetName, Specification};
use crate::sys::process::{Launch, Launcher, Program};

/// Generous: what it bounds takes milliseconds on an idle machine.
const LONG: Duration = Duration::from_secs(60);

struct Bench {
    directory: tempfile::TempDir,
    launcher: Launcher,
    specification: Specification,
    checkouts: Vec<Checkout>,
    memory: Option<u64>,
}

/// What came of an evaluation.
struct Outcome {
    ending: Ending,
    lines: Vec<String>,
    text: String,
}

impl Bench {
    fn new(script: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let launcher =
            Launcher::new(directory.path().join("keepers"), clock::now() + LONG).unwrap();
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        let specification = Specification {
            name: JobsetName::new("js").unwrap(),
            channels: Vec::new(),
            evaluator: Evaluator::Command(command),
            systems: vec!["x86_64-linux".to_owned(), "i686-linux".to_owned()],
            build_outputs: Vec::new(),
            notifications: Vec::new(),
            period: Duration::ZERO,
            priority: 9,
            active: true,
            supersede: false,
            evaluation_timeout: LONG,
        };
        Self { directory, launcher, specification, checkouts: Vec::new(), memory: None }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn run(&self) -> Outcome {
        let evaluation = Evaluation {
            id: Some(EvaluationId(7)),
            specification: &self.specification,
            checkouts: &self.checkouts,
            user: None,
            memory: self.memory,
            stores: &["/gnu/store".to_owned()],
            guix: &guix::Tools {
                command: vec!["/nonexistent/guix".to_owned()],
                mirrors: Vec::new(),
                lent: "/".into(),
            },
        };
        let (mut lines, mut text) = (Vec::new(), Vec::new());
        let ending = once::once(
            &self.launcher,
            &evaluation,
            &self.path().join("root"),
            &self.path().join("home/js"),
            &mut once::Terminal {
                line: &mut |line| lines.push(String::from_utf8_lossy(line).into_owned()),
                text: &mut |bytes| text.extend_from_slice(bytes),
                started: &|_| {},
            },
        );
        assert!(!self.path().join("root").exists(), "its directories are gone");
        Outcome { ending, lines, text: String::from_utf8_lossy(&text).into_owned() }
    }
}

fn run(script: &str) -> Outcome {
    Bench::new(script).run()
}

fn failed(script: &str) -> String {
    match run(script).ending {
        Ending::Failed(reason) => reason,
        other => panic!("{other:?}"),
    }
}

const GOOD: &str = r#"{"job":"good","system":"s","command":["true"]}"#;

#[test]
fn jobs_and_text_come_through() {
    let outcome = run(&format!(
        "echo hello >&2; echo '{GOOD}'; echo; printf '%s' '{}'",
        r#"{"job":"half","system":"s","error":"e","odd":1}"#
    ));
    assert_eq!(outcome.ending, Ending::Succeeded);
    assert_eq!(outcome.lines.len(), 2);
    assert_eq!(outcome.lines[0], GOOD);
    assert!(outcome.text.contains("hello\n"));
    assert!(outcome.text.contains("gorget: line 3: unknown field \"odd\""), "{}", outcome.text);
}

#[test]
fn the_environment_is_the_documented_one() {
    let mut bench = Bench::new("env >&2; pwd >&2; cat file $GORGET_CHANNELS >&2; echo x >> file");
    let shared = bench.path().join("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("file"), "pristine\n").unwrap();
    bench.checkouts = vec![Checkout {
        channel: "c".to_owned(),
        url: "https://u:p@example.org/c.git".to_owned(),
        commit: "c0ffee".to_owned(),
        tree: "7ee".to_owned(),
        directory: shared.clone(),
    }];
    let outcome = bench.run();
    assert_eq!(outcome.ending, Ending::Succeeded, "{}", outcome.text);
    let work = bench.path().join("root/work");
    for line in [
        "GORGET_JOBSET=js".to_owned(),
        "GORGET_EVALUATION=7".to_owned(),
        "GORGET_SYSTEMS=x86_64-linux i686-linux".to_owned(),
        format!("XDG_CACHE_HOME={}", bench.path().join("home/js").display()),
        format!("TMPDIR={}", bench.path().join("root/tmp").display()),
        work.display().to_string(),
        "pristine".to_owned(),
        format!(
            r#"[{{"name":"c","url":"https://example.org/c.git","commit":"c0ffee","directory":"{}"}}]"#,
            work.display()
        ),
    ] {
        assert!(outcome.text.lines().any(|l| l == line), "{line} in {}", outcome.text);
    }
    assert!(!outcome.text.contains("CARGO"), "{}", outcome.text);
    assert_eq!(std::fs::read_to_string(shared.join("file")).unwrap(), "pristine\n");
}

#[test]
fn every_way_to_fail_has_its_reason() {
    assert_eq!(failed("exit 3"), "exit status 3");
    assert_eq!(failed("kill -9 $$"), "signal 9");
    assert_eq!(
        failed("echo '{\"job\":\"half'; exit 0"),
        "line 1: `job`: EOF while parsing a string (byte 12)"
    );
    assert_eq!(failed("printf '{\"job\":\"half'; exit 2"), "exit status 2");
    assert_eq!(
        failed(&format!("echo '{GOOD}'; echo '{GOOD}'")),
        "line 2: job \"good\" of s is repeated"
    );
    let mut bench = Bench::new("");
    bench.specification.evaluator = Evaluator::Command(vec!["./ci/jobs".to_owned()]);
    let Ending::Failed(reason) = bench.run().ending else { panic!() };
    assert_eq!(reason, "cannot start ./ci/jobs: No such file or directory");
    bench.specification.evaluator = Evaluator::Guix(crate::model::spec::GuixSubset::All);
    let Ending::Failed(reason) = bench.run().ending else { panic!() };
    let why = "cannot start Guix, which evaluates: cannot run /nonexistent/guix: No such file";
    assert!(reason.contains(why), "{reason}");
}

#[test]
fn what_is_worth_another_try_is_for_evaluators_of_ours_to_say() {
    assert_eq!(failed("exit 75"), "exit status 75");
    let bench = Bench::new("");
    let ending = |explains: bool, memory: Option<u64>, why: &str| {
        let launch = Launch {
            program: Program::Command(
                ["sh", "-c", &format!("echo 'gorget: {why}' >&2; exit 75")].map(Into::into).into(),
            ),
            environment: std::env::vars_os().collect(),
            directory: bench.path().to_owned(),
            user: None,
            memory: None,
            merge: false,
        };
        let child = bench.launcher.start(launch, None).unwrap();
        let (timeout, started, program) = (LONG, clock::now(), "sh".to_owned());
        let limits = Limits { timeout, started, memory, program, stores: Vec::new(), explains };
        let resolver = Resolver::new(&bench.specification.name, 9, Vec::new());
        let mut terminal =
            once::Terminal { line: &mut |_| {}, text: &mut |_| {}, started: &|_| {} };
        super::run(child, resolver, &limits, &mut terminal)
    };
    let away = "cannot connect to socket";
    assert_eq!(ending(true, Some(1 << 40), away), Ending::Aborted(away.to_owned()));
    assert_eq!(ending(false, None, away), Ending::Failed("exit status 75".to_owned()));
    // Another try would meet the same limit.
    let short = ending(true, Some(1 << 40), "out of memory");
    assert!(matches!(short, Ending::Failed(why) if why.starts_with("out of memory (limit ")));
}

/// Keeps jobs, and counts what is waited for.
#[derive(Default)]
struct Heard {
    jobs: Vec<NewJob>,
    waits: usize,
}

impl Sink for Heard {
    fn jobs(&mut self, _line: &[u8], jobs: &mut Vec<NewJob>) -> Result<(), Cut> {
        self.jobs.append(jobs);
        Ok(())
    }

    fn awaits(&mut self, job: &str, _system: &str) -> Result<(), Cut> {
        assert_eq!(job, PROFILE);
        self.waits += 1;
        Ok(())
    }

    fn holds(&mut self) -> Result<(), Cut> {
        Ok(())
    }

    fn errors(&mut self, _bytes: &[u8]) {}

    fn note(&mut self, _text: &str) {}

    fn due(&self) -> Option<Instant> {
        None
    }

    fn tick(&mut self) -> Result<(), Cut> {
        Ok(())
    }

    fn why(&mut self) -> Cut {
        Cut::Interrupted
    }
}

#[test]
fn one_build_is_waited_for_and_that_is_the_profiles() {
    let (mut lines, mut heard) = (lines(), Heard::default());
    let mut say = |job: &str, system: &str| {
        let line = format!(r#"{{"job":"{job}","system":"{system}","error":"e","await":true}}"#);
        assert!(lines.line(line.as_bytes(), &mut heard).is_ok());
        heard.waits
    };
    let said = [say("other", "s"), say(PROFILE, "s"), say(PROFILE, "t")];
    assert_eq!(said, [0, 1, 1]);
}

#[test]
fn derivations_outside_the_stores_are_errors() {
    let (mut lines, mut heard) = (lines(), Heard::default());
    for path in ["/gnu/store/x-a.drv", "/dev/x-b.drv", "/gnu/store/c/x-c.drv"] {
        let line = format!(r#"{{"job":"{path}","system":"s","derivation":"{path}"}}"#);
        assert!(lines.line(line.as_bytes(), &mut heard).is_ok());
    }
    let works: Vec<_> = heard.jobs.into_iter().map(|job| job.work).collect();
    let refused = "its derivation, /dev/x-b.drv, is not in /gnu/store";
    assert_eq!(works[..2], [Work::Derivation, Work::Error(refused.to_owned())]);
    assert!(matches!(works[2], Work::Error(_)));
}

/// As of an evaluator of ours.
fn lines() -> Lines {
    Lines {
        resolver: Resolver::new(&JobsetName::new("js").unwrap(), 9, Vec::new()),
        partial: Vec::new(),
        number: 0,
        noted: HashSet::new(),
        ready: Vec::new(),
        stores: vec!["/gnu/store".to_owned()],
        explains: true,
        has_awaited: false,
    }
}

#[test]
fn garbage_ends_it_at_once_and_what_came_before_stays() {
    let outcome = run(&format!("echo '{GOOD}'; echo garbage; exec sleep 1000"));
    let Ending::Failed(reason) = outcome.ending else { panic!() };
    assert_eq!(reason, "line 2: expected value (byte 1)");
    assert_eq!(outcome.lines, [GOOD]);
    assert!(outcome.text.contains("gorget: line 2 begins: garbage\n"));
}

#[test]
fn a_gigabyte_without_a_newline_stops_at_a_mebibyte() {
    let reason = failed("head -c 1000000000 /dev/zero; exec sleep 1000");
    assert_eq!(reason, "line 1: is longer than 1 MiB");
}

#[test]
fn one_that_never_ends_is_timed_out_also_while_it_writes() {
    for script in ["exec sleep 1000", "while :; do echo noise >&2; done"] {
        let mut bench = Bench::new(script);
        bench.specification.evaluation_timeout = Duration::from_secs(1);
        assert_eq!(bench.run().ending, Ending::Failed("timed out after 1 s".to_owned()));
    }
}

#[test]
fn one_that_eats_memory_is_said_to() {
    let mut bench = Bench::new("x=0123456789; while :; do x=$x$x; done");
    bench.memory = Some(64 << 20);
    let Ending::Failed(reason) = bench.run().ending else { panic!() };
    assert!(reason.starts_with("out of memory (limit 67108864 bytes): "), "{reason}");
}

#[test]
fn children_left_behind_do_not_keep_it_alive() {
    let outcome = run(&format!("setsid sleep 1000 & sleep 1000 & echo '{GOOD}'"));
    assert_eq!(outcome.ending, Ending::Succeeded);
    assert_eq!(outcome.lines.len(), 1);
}

#[test]
fn jobs_with_wrong_needs_are_named() {
    let line = r#"{"job":"a","system":"s","command":["true"],"needs":["ghost"]}"#;
    let outcome = run(&format!("echo '{line}'"));
    assert_eq!(outcome.ending, Ending::Succeeded);
    assert!(outcome.text.contains("job \"a\" of s needs \"ghost\""), "{}", outcome.text);
    let outcome = run(&format!("echo '{line}'; exit 1"));
    assert!(outcome.text.contains("1 jobs needed others"), "{}", outcome.text);
}
