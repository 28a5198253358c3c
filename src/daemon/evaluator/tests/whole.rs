//! The whole actor with real books, keepers and evaluators written in shell.

use std::fs;
use std::io::Write;
use std::time::Duration;

use super::*;
use crate::actor::Threads;
use crate::db::builds::Filter;
use crate::db::{Reader, builds, evaluations, jobsets};
use crate::git::Places;
use crate::logs::Tail;
use crate::model::build::Build;
use crate::model::status::{BuildStatus, EvaluationStatus};
use crate::sys::clock;

/// Generous: what it bounds takes milliseconds on an idle machine.
const LONG: Duration = Duration::from_secs(60);

struct Whole {
    directory: tempfile::TempDir,
    threads: Threads,
    handle: Handle,
    reader: Reader,
    settings: Settings,
    told: Receiver<Changes>,
    lane: Sender<Answer>,
    answers: Receiver<Answer>,
}

impl Whole {
    fn new() -> Self {
        let (sender, told) = bounded(10_000);
        Self::telling(told, move |changes| Ok(sender.send_timeout(changes, LONG)?))
    }

    fn telling(
        told: Receiver<Changes>,
        tell: impl Fn(Changes) -> Result<(), Gone> + Send + Sync + 'static,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        // What a death of the daemon left behind.
        fs::create_dir_all(path.join("cache/evaluations/999/work")).unwrap();
        let (spawner, threads) = Spawner::new();
        let launcher = Launcher::new(path.join("keepers"), clock::now() + LONG).unwrap();
        let database = Database::open(&path.join("gorget.db"), &spawner).unwrap();
        for jobset in ["a", "b"] {
            let put = move |tx: &mut crate::db::Tx<'_>| jobsets::put(tx, &name(jobset), "{}", true);
            database.write("test", put).unwrap();
        }
        let settings = Settings {
            max_evaluations: 2,
            paused: false,
            database_directory: path.to_owned(),
            cache_directory: path.join("cache"),
            log_directory: path.join("log"),
            minimum_disk_space: 0,
            max_log_size: 1000,
            memory: None,
            job_user: None,
            guix: vec!["guix".to_owned()],
        };
        let reader = database.reader().unwrap();
        let places =
            Places { mirrors: path.join("cache/git"), checkouts: path.join("cache/checkouts") };
        let updater = updater::spawn(&spawner, launcher.clone(), places, 1, LONG).unwrap();
        let tools = (database, launcher, updater);
        let handle = spawn_telling(
            &spawner,
            tools,
            settings.clone(),
            (Arc::new(tell), Arc::new(|_| {}), Arc::new(Vec::new)),
        )
        .unwrap();
        let (lane, answers) = bounded(8);
        Self { directory, threads, handle, reader, settings, told, lane, answers }
    }

    fn start(&self, jobset: &str, script: &str) {
        let request = request(specification(jobset, &["sh", "-c", script]));
        self.handle.evaluate(request, self.lane.clone()).unwrap();
    }

    fn end(&self) -> Evaluated {
        match self.answers.recv_timeout(LONG).unwrap() {
            Answer::Ended(evaluated) => evaluated,
            other => panic!("{other:?}"),
        }
    }

    fn run(&self, script: &str) -> (EvaluationId, Ending) {
        self.start("a", script);
        let evaluated = self.end();
        (evaluated.evaluation.unwrap(), evaluated.ending)
    }

    fn builds(&self, id: EvaluationId) -> Vec<Build> {
        let filter = Filter { evaluation: Some(id), ..Filter::default() };
        builds::list(&self.reader, &filter, 10_000).unwrap()
    }

    fn evaluation(&self, id: EvaluationId) -> crate::model::evaluation::Evaluation {
        evaluations::get(&self.reader, id).unwrap().unwrap()
    }

    fn log(&self, id: EvaluationId) -> String {
        let path = job::log_path(&self.settings, id);
        let (mut tail, mut text) = (Tail::open(&path, 0).unwrap(), Vec::new());
        while tail.read(&mut text).unwrap().is_some() {}
        String::from_utf8(text).unwrap()
    }
}

fn line(job: &str) -> String {
    format!(r#"{{"job":"{job}","system":"s","command":["true"]}}"#)
}

#[test]
fn jobs_are_in_the_books_while_the_evaluator_goes_on() {
    let whole = Whole::new();
    let fifo = whole.directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let (one, two) = (line("one"), line("two"));
    whole.start(
        "a",
        &format!("echo begun >&2; echo '{one}'; read x < {}; echo '{two}'", fifo.display()),
    );
    let changes = whole.told.recv_timeout(LONG).unwrap();
    assert_eq!(changes.scheduled.len(), 1);
    let id = EvaluationId(1);
    assert_eq!(whole.builds(id)[0].job, "one");
    assert_eq!(whole.builds(id)[0].priority, 49);
    assert_eq!(whole.evaluation(id).status, EvaluationStatus::Started);
    fs::OpenOptions::new().write(true).open(&fifo).unwrap().write_all(b"go\n").unwrap();
    let evaluated = whole.end();
    assert_eq!((evaluated.evaluation, evaluated.ending), (Some(id), Ending::Succeeded));
    assert_eq!(whole.builds(id).len(), 2);
    assert_eq!(whole.evaluation(id).status, EvaluationStatus::Succeeded);
    assert_eq!(whole.log(id), "begun\n");
    assert!(!whole.settings.cache_directory.join("evaluations/1").exists());
}

#[test]
fn a_bad_line_fails_it_and_what_was_registered_stays() {
    let whole = Whole::new();
    let (id, ending) = whole.run(&format!("echo '{}'; echo '{{}}'; sleep 1000", line("one")));
    assert_eq!(ending, Ending::Failed("line 2: `job` is missing".to_owned()));
    assert_eq!(whole.builds(id)[0].status, BuildStatus::Scheduled);
    assert_eq!(whole.evaluation(id).error.as_deref(), Some("line 2: `job` is missing"));
    let log = whole.log(id);
    assert!(log.ends_with("gorget: the evaluation failed: line 2: `job` is missing\n"), "{log}");
}

#[test]
fn thousands_of_jobs_with_needs_ahead_are_all_registered() {
    let whole = Whole::new();
    let script = r#"i=0; while [ $i -lt 3000 ]; do
        n=$((i + 1)); echo '{"job":"j'$i'","system":"s","command":["true"],"needs":["j'$n'"]}'; i=$n; done
        echo '{"job":"j3000","system":"s","command":["true"]}'"#;
    let (id, ending) = whole.run(script);
    assert_eq!(ending, Ending::Succeeded);
    assert_eq!(whole.evaluation(id).jobs.total, 3001);
    let scheduled: usize = whole.told.try_iter().map(|changes| changes.scheduled.len()).sum();
    assert_eq!(scheduled, 3001);
}

#[test]
fn the_log_is_bounded_and_says_so() {
    let whole = Whole::new();
    let (id, ending) = whole.run("head -c 5000 /dev/zero | tr '\\0' x >&2; exit 4");
    assert_eq!(ending, Ending::Failed("exit status 4".to_owned()));
    let log = whole.log(id);
    let (text, rest) = log.split_once('\n').unwrap();
    assert_eq!(text, "x".repeat(1000));
    assert_eq!(
        rest,
        "gorget: the log is longer than 1000 bytes; the rest is left out\n\
         gorget: the evaluation failed: exit status 4\n"
    );
}

#[test]
fn a_canceled_one_ends_and_its_builds_with_it() {
    let whole = Whole::new();
    whole.start("a", &format!("trap '' TERM; echo '{}'; sleep 1000", line("one")));
    whole.told.recv_timeout(LONG).unwrap();
    let id = EvaluationId(1);
    assert!(whole.handle.cancel(id).unwrap());
    assert_eq!(whole.end().ending, Ending::Canceled);
    assert_eq!(whole.builds(id)[0].status, BuildStatus::Canceled);
    assert!(!whole.handle.cancel(id).unwrap());
    assert_eq!(whole.evaluation(id).error.as_deref(), Some("canceled"));
}

#[test]
fn a_stop_interrupts_what_runs() {
    let whole = Whole::new();
    whole.start("a", &format!("echo '{}'; sleep 1000", line("one")));
    whole.told.recv_timeout(LONG).unwrap();
    let Whole { threads, handle, answers, reader, directory, .. } = whole;
    drop((threads.stop, handle));
    let answer = answers.recv_timeout(LONG).unwrap();
    assert!(
        matches!(&answer, Answer::Ended(ended) if ended.ending == Ending::Interrupted),
        "{answer:?}"
    );
    let last = evaluations::last_fingerprint(&reader, &name("a")).unwrap();
    assert_eq!(last, Some(("f".to_owned(), true)));
    let all_gone = threads.all_gone.recv_timeout(LONG);
    assert_eq!(all_gone.unwrap_err(), crossbeam_channel::RecvTimeoutError::Disconnected);
    let left = fs::read_dir(directory.path().join("cache/evaluations")).unwrap().count();
    assert_eq!(left, 0, "also what was there before");
}

#[test]
fn a_panic_aborts_one_evaluation_and_no_more() {
    let (sender, told) = bounded(8);
    let whole = Whole::telling(told, move |changes| {
        assert!(changes.scheduled.is_empty(), "boom");
        Ok(sender.send_timeout(changes, LONG)?)
    });
    for job in ["one", "two", "three"] {
        let (_, ending) = whole.run(&format!("echo '{}'; sleep 1000", line(job)));
        assert_eq!(ending, Ending::Aborted("internal error: boom".to_owned()));
    }
    assert_eq!(whole.run("true").1, Ending::Succeeded);
}

#[test]
fn what_cannot_be_prepared_is_a_fault_of_ours() {
    let whole = Whole::new();
    fs::create_dir_all(whole.settings.cache_directory.join("jobsets")).unwrap();
    // In the way of a directory.
    fs::write(whole.settings.cache_directory.join("jobsets/a"), "").unwrap();
    let (id, ending) = whole.run("true");
    let Ending::Aborted(why) = ending else { panic!("{ending:?}") };
    assert!(why.starts_with("cannot prepare "), "{why}");
    let evaluation = whole.evaluation(id);
    assert_eq!(
        (evaluation.status, evaluation.error),
        (EvaluationStatus::Aborted, Some(why.clone()))
    );
    let jobset = jobsets::get(&whole.reader, &name("a")).unwrap().unwrap();
    assert_eq!(jobset.error, Some(why));
    let last = evaluations::last_fingerprint(&whole.reader, &name("a")).unwrap();
    assert_eq!(last, Some(("f".to_owned(), true)), "to be repeated");
}

#[test]
fn what_cannot_begin_is_answered() {
    let whole = Whole::new();
    whole.start("gone", "true");
    let evaluated = whole.end();
    assert_eq!(evaluated.evaluation, None);
    assert_eq!(evaluated.ending, Ending::Aborted("there is no jobset gone".to_owned()));
}
