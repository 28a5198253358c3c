//! Tests of the ready queue.

mod history;

use super::*;
use crate::model::build::Store;
use crate::sys::clock;

const HOST: &str = "x86_64-linux";

/// Here are builders for commands on the host's system only.
fn obstacle(kind: Kind, system: &str) -> Option<Reason> {
    match kind {
        Kind::Derivation(_) => Some(Reason::NoBackend(kind)),
        Kind::Process if system != HOST => Some(Reason::NoWorker(system.into())),
        Kind::Process => None,
    }
}

pub(super) fn check(queue: &Queue) {
    let near = queue.active.iter().filter(|(id, _)| !queue.far.contains(id));
    let holding = near.filter(|(_, active)| active.holds_slot()).count();
    assert_eq!(holding, queue.taken);
    assert!(queue.far.iter().all(|id| queue.active.get(id).is_some_and(|a| a.holds_slot())));
    assert!(queue.taken <= queue.slots);
    let mut timers = BTreeSet::new();
    let mut dependents: BTreeMap<BuildId, BTreeSet<BuildId>> = BTreeMap::new();
    let mut held = BTreeSet::new();
    let mut ready: BTreeMap<ClassKey, BTreeSet<Key>> = BTreeMap::new();
    for (&id, pending) in &queue.pending {
        assert_eq!(id, pending.key.id);
        assert!(!queue.active.contains_key(&id), "{id} is pending and active");
        assert!(queue.reason(id).is_some(), "{id} waits without a reason");
        timers.extend(pending.retry.map(|retry| (retry.due, id)));
        for target in &pending.waits {
            dependents.entry(*target).or_default().insert(id);
        }
        let class = ready.entry(pending.class.clone()).or_default();
        if pending.is_ready() {
            class.insert(pending.key);
        } else {
            held.insert(pending.key);
        }
    }
    assert_eq!(timers, queue.timers);
    assert_eq!(dependents, queue.dependents);
    assert_eq!(held, queue.held);
    assert_eq!(ready.len(), queue.classes.len());
    let mut heads = BTreeSet::new();
    for (key, class) in &queue.classes {
        assert_eq!(ready[key], class.ready);
        assert_eq!(class.members, queue.pending.values().filter(|p| p.class == *key).count());
        if class.obstacle.is_none() {
            heads.extend(class.ready.first().map(|first| (*first, key.clone())));
        }
    }
    assert_eq!(heads, queue.heads);
}

fn entry(id: i64, priority: i64) -> Entry {
    Entry {
        id: BuildId(id),
        priority,
        timestamp: Time(1000),
        system: HOST.to_owned(),
        kind: Kind::Process,
        waits_for: vec![],
        retry_at: None,
    }
}

/// A queue with the time it is at.
struct Bench {
    queue: Queue,
    now: Instant,
    wall: Time,
}

impl Bench {
    fn new(slots: usize) -> Self {
        Self { queue: Queue::new(slots), now: clock::now(), wall: Time(1_000_000) }
    }

    fn follow(&mut self, ids: &[i64], entries: Vec<Entry>, running: &[(BuildId, i64)]) -> Vec<i64> {
        let ids: Vec<BuildId> = ids.iter().copied().map(BuildId).collect();
        let facts = Facts { now: self.now, wall: self.wall, ids: &ids, entries, running };
        let stop = self.queue.follow(facts, &obstacle);
        self.queue.check();
        stop.into_iter().map(|id| id.0).collect()
    }

    fn load(&mut self, entries: Vec<Entry>) {
        let ids: Vec<i64> = entries.iter().map(|entry| entry.id.0).collect();
        assert!(self.follow(&ids, entries, &[]).is_empty());
    }

    fn take(&mut self) -> Option<i64> {
        let taken = self.queue.take();
        self.queue.check();
        taken.map(|taken| taken.id.0)
    }

    /// Hands out the next build and tells that the books and the backend took it.
    fn run(&mut self) -> Option<i64> {
        let id = self.take()?;
        assert!(!self.queue.started(BuildId(id), 1));
        Some(id)
    }

    fn finish(&mut self, id: i64) {
        assert!(self.queue.over(BuildId(id), 1));
        self.queue.settled(BuildId(id));
        self.follow(&[id], vec![], &[]);
    }

    fn reason(&self, id: i64) -> Option<String> {
        self.queue.reason(BuildId(id)).map(|reason| reason.to_string())
    }
}

#[test]
fn obstacles_are_those_of_builds_that_wait_for_nothing_else() {
    let mut bench = Bench::new(2);
    let on = |id: i64, system: &str| Entry { system: system.to_owned(), ..entry(id, 1) };
    let dependent = Entry { waits_for: vec![BuildId(1)], ..on(5, "hurd") };
    bench.load(vec![on(1, HOST), on(2, "arm"), on(3, "hurd"), on(4, "hurd"), dependent]);
    let no_worker = |system: &str| Reason::NoWorker(system.into());
    assert_eq!(bench.queue.obstacles(), [(no_worker("hurd"), 2), (no_worker("arm"), 1)]);
}

#[test]
fn builds_are_taken_by_priority_age_and_number() {
    let mut bench = Bench::new(9);
    let older = Entry { timestamp: Time(999), ..entry(4, 50) };
    bench.load(vec![entry(1, 90), entry(2, 50), entry(3, 50), older]);
    let listed: Vec<i64> = bench.queue.first(9).iter().map(|(id, _)| id.0).collect();
    assert_eq!(listed, [4, 2, 3, 1]);
    let taken: Vec<i64> = std::iter::from_fn(|| bench.take()).collect();
    assert_eq!(taken, [4, 2, 3, 1]);
}

#[test]
fn a_new_priority_moves_a_build() {
    let mut bench = Bench::new(1);
    bench.load(vec![entry(1, 50), entry(2, 50)]);
    bench.load(vec![entry(2, 10)]);
    assert_eq!(bench.take(), Some(2));
}

#[test]
fn slots_bound_what_runs() {
    let mut bench = Bench::new(1);
    bench.load(vec![entry(1, 50), entry(2, 50)]);
    assert_eq!(bench.reason(1).unwrap(), "queued");
    assert_eq!(bench.run(), Some(1));
    assert_eq!(bench.run(), None);
    assert_eq!(bench.reason(1), None);
    assert_eq!(bench.reason(2).unwrap(), "slots");
    assert!(bench.queue.over(BuildId(1), 1));
    assert_eq!(bench.take(), Some(2), "the slot is free before the books have the end");
}

#[test]
fn dependencies_hold_a_build_until_the_last_succeeded() {
    let mut bench = Bench::new(2);
    let dependent = Entry { waits_for: vec![BuildId(2), BuildId(1)], ..entry(3, 0) };
    bench.load(vec![entry(1, 50), entry(2, 50), dependent]);
    assert_eq!(bench.reason(3).unwrap(), "dependency 1");
    assert_eq!((bench.run(), bench.run(), bench.run()), (Some(1), Some(2), None));
    bench.finish(1);
    assert_eq!(bench.reason(3).unwrap(), "dependency 2");
    assert_eq!(bench.run(), None);
    bench.finish(2);
    assert_eq!(bench.run(), Some(3));
}

#[test]
fn a_retry_waits_for_its_time() {
    let mut bench = Bench::new(1);
    bench.load(vec![Entry {
        retry_at: Some(bench.wall.after(Duration::from_secs(60))),
        ..entry(1, 0)
    }]);
    assert_eq!(bench.reason(1).unwrap(), "retry at 1000060");
    assert_eq!(bench.take(), None);
    let due = bench.queue.deadline().unwrap();
    assert_eq!(due, bench.now + Duration::from_secs(60));
    bench.queue.on_deadline(due - Duration::from_millis(1));
    assert_eq!(bench.take(), None);
    bench.queue.on_deadline(due);
    assert_eq!(bench.queue.deadline(), None);
    assert_eq!(bench.take(), Some(1));
}

#[test]
fn a_clock_set_back_does_not_hold_a_retry_for_ever() {
    let mut bench = Bench::new(1);
    bench.load(vec![Entry { retry_at: Some(Time(9_000_000)), ..entry(1, 0) }]);
    assert_eq!(bench.queue.deadline(), Some(bench.now + LONGEST_BACKOFF));
}

#[test]
fn every_wait_has_its_reason() {
    let mut bench = Bench::new(1);
    bench.load(vec![
        entry(1, 50),
        Entry { system: "aarch64-linux".to_owned(), ..entry(2, 50) },
        Entry { kind: Kind::Derivation(Store::Guix), ..entry(3, 50) },
    ]);
    assert_eq!(bench.reason(2).unwrap(), "no worker for aarch64-linux");
    assert_eq!(bench.reason(3).unwrap(), "no backend for derivation builds");
    assert_eq!(bench.reason(9), None);
    bench.queue.set_short_of_space(true);
    assert_eq!(bench.reason(1).unwrap(), "no space");
    assert!(bench.queue.is_hungry());
    bench.queue.set_paused(true);
    assert_eq!(bench.reason(1).unwrap(), "paused");
    assert_eq!(bench.take(), None);
    bench.queue.set_paused(false);
    bench.queue.set_short_of_space(false);
    assert_eq!((bench.take(), bench.take()), (Some(1), None));
    assert_eq!(Reason::NoBackend(Kind::Process).to_string(), "no backend for command builds");
    assert_eq!(Reason::StoreUnreachable.to_string(), "store unreachable");
}

#[test]
fn an_obstacle_that_goes_away_sets_builds_free() {
    let mut bench = Bench::new(2);
    bench.load(vec![Entry { kind: Kind::Derivation(Store::Guix), ..entry(1, 0) }, entry(2, 50)]);
    let listed: Vec<i64> = bench.queue.first(9).iter().map(|(id, _)| id.0).collect();
    assert_eq!(listed, [2, 1], "what cannot run is listed last");
    bench.queue.reconsider(&|_, _| None);
    bench.queue.check();
    assert_eq!(bench.take(), Some(1));
    bench.queue.reconsider(&|_, _| Some(Reason::StoreUnreachable));
    bench.queue.check();
    assert_eq!((bench.take(), bench.reason(2).unwrap()), (None, "store unreachable".to_owned()));
}

#[test]
fn a_build_that_ended_in_the_books_is_stopped_once_and_its_slot_stays_taken() {
    let mut bench = Bench::new(1);
    bench.load(vec![entry(1, 0), entry(2, 0)]);
    assert_eq!(bench.run(), Some(1));
    assert_eq!(bench.follow(&[1], vec![], &[(BuildId(1), 1)]), [0; 0], "it runs there, too");
    assert_eq!(bench.follow(&[1], vec![], &[]), [1]);
    assert_eq!(bench.follow(&[1], vec![], &[]), [0; 0]);
    assert_eq!(bench.take(), None);
    assert!(bench.queue.over(BuildId(1), 1));
    assert_eq!(bench.take(), Some(2));
}

#[test]
fn a_restarted_build_does_not_run_beside_its_old_try() {
    let mut bench = Bench::new(2);
    bench.load(vec![entry(1, 0)]);
    assert_eq!(bench.run(), Some(1));
    assert_eq!(bench.follow(&[1], vec![entry(1, 0)], &[]), [1], "canceled and restarted");
    assert_eq!(bench.take(), None);
    assert!(bench.queue.over(BuildId(1), 1));
    assert!(!bench.queue.over(BuildId(1), 1), "one run has one end");
    bench.queue.settled(BuildId(1));
    bench.load(vec![entry(1, 0)]);
    assert_eq!(bench.take(), Some(1));
}

#[test]
fn news_of_a_build_that_is_being_started_are_not_lost() {
    let mut bench = Bench::new(1);
    bench.load(vec![entry(1, 0)]);
    assert_eq!(bench.take(), Some(1));
    assert_eq!(bench.follow(&[1], vec![], &[]), [0; 0], "canceled before the books had its start");
    assert!(bench.queue.started(BuildId(1), 1), "to be followed again");
    assert_eq!(bench.follow(&[1], vec![], &[]), [1]);
}

#[test]
fn a_start_that_the_books_refused_frees_its_slot() {
    let mut bench = Bench::new(1);
    bench.load(vec![entry(1, 0), entry(2, 0)]);
    assert_eq!(bench.take(), Some(1));
    bench.queue.not_started(BuildId(1));
    bench.load(vec![entry(1, 0)]);
    let due = bench.now + Duration::from_secs(60);
    bench.queue.hold(BuildId(1), due, bench.wall);
    bench.queue.check();
    assert_eq!(bench.take(), Some(2));
}

#[test]
fn an_orphan_of_the_books_is_still_waited_for() {
    let mut bench = Bench::new(1);
    bench.load(vec![Entry { waits_for: vec![BuildId(1)], ..entry(2, 0) }]);
    assert_eq!(bench.queue.missing().collect::<Vec<_>>(), [BuildId(1)]);
    bench.follow(&[1], vec![], &[(BuildId(1), 1)]);
    assert_eq!((bench.take(), bench.reason(2).unwrap()), (None, "dependency 1".to_owned()));
    bench.follow(&[1], vec![], &[]);
    assert_eq!(bench.take(), Some(2));
}

#[test]
fn the_next_of_a_hundred_thousand_is_found_without_a_search() {
    let mut bench = Bench::new(1000);
    let entries: Vec<Entry> = (1..=100_000).map(|id| entry(id, id % 97)).collect();
    let ids: Vec<BuildId> = entries.iter().map(|entry| entry.id).collect();
    let facts = Facts { now: bench.now, wall: bench.wall, ids: &ids, entries, running: &[] };
    bench.queue.follow(facts, &obstacle);
    let begin = clock::now();
    for _ in 0..1000 {
        bench.queue.take().unwrap();
    }
    // A thousand searches through them all would take many times this, also on a slow machine.
    assert!(clock::now() - begin < Duration::from_secs(1));
}
