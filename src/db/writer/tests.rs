//! The writer with a real file: grouping, failures of all kinds, subscribers, its end.

use crossbeam_channel::RecvTimeoutError;

use super::*;
use crate::actor::{Ended, PATIENCE, Threads};
use crate::db::{jobsets, records};

struct Fixture {
    directory: tempfile::TempDir,
    database: Database,
    threads: Threads,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (spawner, threads) = Spawner::new();
        let database = Database::open(&directory.path().join("gorget.db"), &spawner).unwrap();
        Self { directory, database, threads }
    }

    /// A connection of somebody else's.
    fn intruder(&self) -> Connection {
        Connection::open(self.directory.path().join("gorget.db")).unwrap()
    }

    fn setting(&self, name: &str) -> Option<String> {
        records::setting(&self.database.reader().unwrap(), name).unwrap()
    }

    /// Holds the writer in a request until the returned sender is dropped or sends.
    fn block(&self) -> Sender<()> {
        let (release, released) = bounded::<()>(0);
        let (entered, inside) = bounded(1);
        let database = self.database.clone();
        in_thread(move || {
            let _ = database.write("block", move |_| {
                let _ = entered.try_send(());
                let _ = released.recv_timeout(PATIENCE);
                Ok(())
            });
        });
        inside.recv_timeout(PATIENCE).unwrap();
        release
    }
}

#[expect(clippy::disallowed_methods, reason = "askers of a test; each is waited for by its answer")]
fn in_thread<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (sender, receiver) = bounded(1);
    std::thread::spawn(move || sender.send(body()));
    receiver
}

#[test]
fn what_was_written_is_counted_and_a_busy_writer_holds_nobody_up() {
    let fixture = Fixture::new();
    let second = Duration::from_secs(1);
    let before = fixture.database.tally(PATIENCE).unwrap();
    fixture.database.write("one", put("one")).unwrap();
    let one = fixture.database.tally(PATIENCE).unwrap();
    assert_eq!((one.transactions, one.requests), (before.transactions + 1, before.requests + 1));
    assert!(before.busy < one.busy && one.busy < PATIENCE);
    let release = fixture.block();
    assert_eq!(fixture.database.tally(second / 100), None);
    drop(release);
    fixture.database.write("two", put("two")).unwrap();
    let all = fixture.database.tally(PATIENCE).unwrap();
    assert!(all.transactions > one.transactions && all.busy >= one.busy + second / 100);
}

fn put(value: &'static str) -> impl FnMut(&mut Tx<'_>) -> Result<(), Error> + Send {
    move |tx| records::set(tx, value, Some(value))
}

#[test]
fn what_was_answered_can_be_read() {
    let fixture = Fixture::new();
    let reader = fixture.database.reader().unwrap();
    fixture.database.write("put", put("a")).unwrap();
    assert_eq!(records::setting(&reader, "a").unwrap().as_deref(), Some("a"));
    assert!(reader.execute("DELETE FROM settings", []).is_err());
}

#[test]
fn a_request_that_fails_leaves_nothing_and_spares_its_group() {
    let fixture = Fixture::new();
    let release = fixture.block();
    let answers: Vec<_> = ["a", "b", "c"]
        .into_iter()
        .map(|name| {
            let database = fixture.database.clone();
            in_thread(move || {
                database.write("maybe", move |tx| {
                    records::set(tx, name, Some(name))?;
                    if tx
                        .conn
                        .query_row("SELECT count(*) FROM settings", [], |r| r.get::<_, i64>(0))?
                        == 2
                    {
                        return Err(Error::Conflict("not the second".to_owned()));
                    }
                    Ok(())
                })
            })
        })
        .collect();
    drop(release);
    let results: Vec<_> =
        answers.iter().map(|answer| answer.recv_timeout(PATIENCE).unwrap().is_ok()).collect();
    // Whoever came second, and then who came third and found one only, too.
    assert_eq!(results.iter().filter(|&&ok| ok).count(), 1);
    let kept: i64 = fixture
        .database
        .reader()
        .unwrap()
        .query_row("SELECT count(*) FROM settings", [], |row| row.get(0))
        .unwrap();
    assert_eq!(kept, 1);
}

#[test]
fn a_group_is_one_transaction() {
    let fixture = Fixture::new();
    let reader = fixture.database.reader().unwrap();
    let (first_in, first) = bounded(1);
    let (go, gone) = bounded::<()>(1);
    let database = fixture.database.clone();
    let slow = in_thread(move || {
        database.write("first", move |tx| {
            records::set(tx, "a", Some("a"))?;
            let _ = first_in.try_send(());
            let _ = gone.recv_timeout(PATIENCE);
            Ok(())
        })
    });
    first.recv_timeout(PATIENCE).unwrap();
    // Nobody sees what is not committed yet.
    assert_eq!(records::setting(&reader, "a").unwrap(), None);
    go.send(()).unwrap();
    slow.recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(records::setting(&reader, "a").unwrap().as_deref(), Some("a"));
}

#[test]
fn a_locked_file_only_delays_a_write() {
    let fixture = Fixture::new();
    let intruder = fixture.intruder();
    intruder.execute_batch("BEGIN IMMEDIATE").unwrap();
    let database = fixture.database.clone();
    let lasting = in_thread(move || database.write("lasting", put("a")));
    let late = fixture.database.write_within(Duration::from_millis(100), "hurried", put("b"));
    assert!(matches!(late, Err(Error::Unavailable(_))));
    assert_eq!(lasting.recv_timeout(Duration::ZERO).unwrap_err(), RecvTimeoutError::Timeout);
    // A subscriber is served meanwhile.
    drop(fixture.database.subscribe(1).unwrap());
    intruder.execute_batch("ROLLBACK").unwrap();
    lasting.recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(fixture.setting("a").as_deref(), Some("a"));
    assert_eq!(fixture.setting("b"), None);
    fixture.database.write_within(PATIENCE, "in time", put("b")).unwrap();
}

#[test]
fn a_group_that_was_rolled_back_is_applied_once() {
    let fixture = Fixture::new();
    let mut tries = 0;
    let subscriber = fixture.database.subscribe(10).unwrap();
    let tries = fixture
        .database
        .write("third time lucky", move |tx| {
            tries += 1;
            jobsets::put(tx, &JobsetName::new("a").unwrap(), "{}", true)?;
            if tries < 3 {
                let full = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
                return Err(rusqlite::Error::SqliteFailure(full, None).into());
            }
            Ok(tries)
        })
        .unwrap();
    assert_eq!(tries, 3);
    assert!(matches!(subscriber.recv_timeout(PATIENCE), Ok(Subscription::Event(e)) if e.id == 1));
    assert!(subscriber.is_empty());
}

#[test]
fn what_takes_too_long_is_not_done_and_costs_others_nothing() {
    let fixture = Fixture::new();
    let (begun, started) = bounded(1);
    let (release, released) = bounded::<()>(0);
    let database = fixture.database.clone();
    let slow = in_thread(move || {
        database.write_within(Duration::from_millis(100), "slow", move |tx| {
            records::set(tx, "slow", Some("slow"))?;
            let _ = begun.try_send(());
            // Until after the deadline.
            let _ = released.recv_timeout(PATIENCE);
            Ok(())
        })
    });
    started.recv_timeout(PATIENCE).unwrap();
    assert!(slow.recv_timeout(Duration::from_millis(200)).is_err());
    drop(release);
    assert!(matches!(slow.recv_timeout(PATIENCE).unwrap(), Err(Error::Unavailable(_))));
    fixture.database.write("other", put("other")).unwrap();
    assert_eq!((fixture.setting("slow"), fixture.setting("other")), (None, Some("other".into())));
}

#[test]
fn a_full_file_is_waited_for() {
    let fixture = Fixture::new();
    // SQLite's own bound stands for a full disk; the connection is the writer's.
    let pages = |n: i64| {
        fixture.database.write("limit", move |tx| {
            tx.conn.query_row(&format!("PRAGMA max_page_count = {n}"), [], |_| Ok(()))?;
            Ok(())
        })
    };
    pages(1).unwrap(); // Clamped to the present size.
    let big = |name| {
        fixture.database.write_within(Duration::from_millis(200), "big", move |tx: &mut Tx<'_>| {
            records::set(tx, name, Some(&"x".repeat(1 << 20)))
        })
    };
    assert!(matches!(big("a"), Err(Error::Unavailable(_))));
    assert_eq!(fixture.setting("a"), None);
    pages(1 << 30).unwrap();
    big("b").unwrap();
    assert_eq!(fixture.setting("b").map(|text| text.len()), Some(1 << 20));
}

#[test]
fn the_slow_subscriber_is_dropped_and_told() {
    let fixture = Fixture::new();
    let (slow, quick) =
        (fixture.database.subscribe(2).unwrap(), fixture.database.subscribe(100).unwrap());
    for n in 0..5 {
        let name = JobsetName::new(&format!("j{n}")).unwrap();
        fixture.database.write("put", move |tx| jobsets::put(tx, &name, "{}", true)).unwrap();
    }
    for id in 1..=5 {
        assert!(matches!(quick.recv_timeout(PATIENCE), Ok(Subscription::Event(e)) if e.id == id));
    }
    for id in 1..=2 {
        assert!(matches!(slow.recv_timeout(PATIENCE), Ok(Subscription::Event(e)) if e.id == id));
    }
    assert_eq!(slow.recv_timeout(PATIENCE), Ok(Subscription::Overflow));
    assert_eq!(slow.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
}

#[test]
fn the_writer_ends_with_its_last_handle_and_not_with_the_stop() {
    let Fixture { directory, database, threads } = Fixture::new();
    drop(threads.stop);
    database.write("after the stop", put("a")).unwrap();
    drop(database);
    let report = threads.reports.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(report.ended, Ended::Returned));
    let (spawner, threads) = Spawner::new();
    let database = Database::open(&directory.path().join("gorget.db"), &spawner).unwrap();
    drop(spawner);
    assert!(records::setting(&database.reader().unwrap(), "a").unwrap().is_some());
    drop((database, threads.stop));
    assert_eq!(threads.all_gone.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
}

#[test]
fn a_stop_ends_the_retries() {
    let fixture = Fixture::new();
    let intruder = fixture.intruder();
    intruder.execute_batch("BEGIN IMMEDIATE").unwrap();
    let Fixture { directory: _directory, database, threads } = fixture;
    let lasting = in_thread(move || database.write("lasting", put("a")));
    drop(threads.stop);
    let answer = lasting.recv_timeout(Duration::from_secs(9)).unwrap();
    assert!(matches!(answer, Err(Error::Unavailable(_))));
    threads.reports.recv_timeout(PATIENCE).unwrap();
}

#[test]
fn a_panic_in_a_request_is_the_actors() {
    let fixture = Fixture::new();
    let panicked = fixture.database.write("rash", |tx| -> Result<(), Error> {
        records::set(tx, "a", Some("a"))?;
        panic!("no")
    });
    assert!(matches!(panicked, Err(Error::Unavailable(_))));
    let report = fixture.threads.reports.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(report.ended, Ended::Panicked(_)));
    assert!(matches!(fixture.database.write("late", put("b")), Err(Error::Unavailable(_))));
    assert_eq!(fixture.setting("a"), None);
}
