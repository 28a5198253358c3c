//! Random histories beside naive books that the queue has to follow, whatever the order in which it hears of them.

use super::*;

/// Where a build stands in the naive books.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Status {
    Scheduled,
    Started,
    Succeeded,
    Over,
}

struct Row {
    status: Status,
    attempt: i64,
    priority: i64,
    timestamp: Time,
    system: &'static str,
    needs: Vec<i64>,
    retry_at: Option<Time>,
}

/// What the books say of a start (the number of the try, unless they refused) or an end.
enum Answer {
    Started(i64, Option<i64>),
    Ended(i64),
}

/// Books, backends and news in flight, beside the queue that has to follow them.
struct World {
    rng: fastrand::Rng,
    bench: Bench,
    rows: BTreeMap<i64, Row>,
    /// Starts that the books have not been told of, ends likewise (did it succeed).
    starts: Vec<i64>,
    ends: Vec<(i64, i64, bool)>,
    /// What the books said and the queue has not heard.
    answers: Vec<Answer>,
    /// What truly runs, and whether its backend was told to stop it.
    runs: BTreeMap<i64, (i64, bool)>,
    /// Changes of the books that the queue has not heard of.
    news: Vec<i64>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let bench = Bench::new(rng.usize(1..4));
        let (rows, runs) = (BTreeMap::new(), BTreeMap::new());
        Self { rng, bench, rows, starts: vec![], ends: vec![], answers: vec![], runs, news: vec![] }
    }

    fn entry(&self, id: i64) -> Option<Entry> {
        let row = self.rows.get(&id).filter(|row| row.status == Status::Scheduled)?;
        let unmet = |need: &&i64| self.rows[*need].status != Status::Succeeded;
        Some(Entry {
            id: BuildId(id),
            priority: row.priority,
            timestamp: row.timestamp,
            system: row.system.to_owned(),
            kind: Kind::Process,
            waits_for: row.needs.iter().filter(unmet).copied().map(BuildId).collect(),
            retry_at: row.retry_at,
        })
    }

    fn running(&self) -> Vec<(BuildId, i64)> {
        let started = self.rows.iter().filter(|(_, row)| row.status == Status::Started);
        started.map(|(id, row)| (BuildId(*id), row.attempt)).collect()
    }

    fn follow(&mut self, ids: &[i64]) {
        let entries: Vec<Entry> = ids.iter().filter_map(|id| self.entry(*id)).collect();
        let running = self.running();
        for id in self.bench.follow(ids, entries, &running) {
            self.runs.get_mut(&id).expect("only what runs is stopped").1 = true;
        }
    }

    fn register(&mut self) {
        let id = i64::try_from(self.rows.len()).unwrap() + 1;
        let candidates: Vec<i64> = self
            .rows
            .iter()
            .filter(|(_, row)| row.status != Status::Over)
            .map(|(id, _)| *id)
            .collect();
        let needs = self.rng.choose_multiple(candidates, 2);
        let needs = if self.rng.bool() { needs } else { vec![] };
        let row = Row {
            status: Status::Scheduled,
            attempt: 0,
            priority: self.rng.i64(0..4),
            timestamp: self.bench.wall,
            system: if self.rng.u8(0..8) == 0 { "riscv64-linux" } else { HOST },
            needs,
            retry_at: None,
        };
        self.rows.insert(id, row);
        self.news.push(id);
    }

    /// Ends a pending build other than with success, and its dependents with it.
    fn put_down(&mut self, id: i64) {
        let row = self.rows.get_mut(&id).unwrap();
        if !matches!(row.status, Status::Scheduled | Status::Started) {
            return;
        }
        row.status = Status::Over;
        self.news.push(id);
        let dependents: Vec<i64> = self
            .rows
            .iter()
            .filter(|(_, row)| row.needs.contains(&id))
            .map(|(id, _)| *id)
            .collect();
        for dependent in dependents {
            self.put_down(dependent);
        }
    }

    fn restart(&mut self, id: i64) {
        let row = self.rows.get_mut(&id).unwrap();
        if row.status != Status::Over {
            return;
        }
        (row.status, row.retry_at) = (Status::Scheduled, None);
        let needs = row.needs.clone();
        self.news.push(id);
        for need in needs {
            self.restart(need);
        }
    }

    /// The books are told of starts and ends.
    fn write(&mut self) {
        for id in std::mem::take(&mut self.starts) {
            let ready = self.entry(id).is_some_and(|entry| entry.waits_for.is_empty());
            let row = self.rows.get_mut(&id).unwrap();
            if ready {
                (row.status, row.attempt) = (Status::Started, row.attempt + 1);
            }
            self.answers.push(Answer::Started(id, ready.then_some(row.attempt)));
        }
        for (id, attempt, succeeded) in std::mem::take(&mut self.ends) {
            let row = self.rows.get_mut(&id).unwrap();
            if row.status == Status::Started && row.attempt == attempt {
                if succeeded {
                    row.status = Status::Succeeded;
                } else if self.rng.bool() {
                    row.status = Status::Scheduled;
                    row.retry_at = Some(self.bench.wall.after(Duration::from_secs(60)));
                } else {
                    self.put_down(id);
                }
            }
            self.answers.push(Answer::Ended(id));
        }
    }

    /// The books' answers are heard; much may have happened since.
    fn hear(&mut self) {
        for answer in std::mem::take(&mut self.answers) {
            match answer {
                Answer::Started(id, Some(attempt)) => {
                    let old = self.runs.insert(id, (attempt, false));
                    assert_eq!(old, None, "{id} runs twice at once");
                    if self.bench.queue.started(BuildId(id), attempt) {
                        self.follow(&[id]);
                    }
                }
                Answer::Started(id, None) => {
                    self.bench.queue.not_started(BuildId(id));
                    self.follow(&[id]);
                }
                Answer::Ended(id) => {
                    self.bench.queue.settled(BuildId(id));
                    self.follow(&[id]);
                }
            }
        }
    }

    fn report(&mut self, which: usize) {
        let Some((&id, &(attempt, _))) = self.runs.iter().nth(which) else { return };
        self.runs.remove(&id);
        assert!(self.bench.queue.over(BuildId(id), attempt));
        self.ends.push((id, attempt, self.rng.u8(0..4) > 0));
    }

    fn step(&mut self) {
        let known = i64::try_from(self.rows.len()).unwrap();
        let some = if known == 0 { 0 } else { self.rng.i64(1..=known) };
        match self.rng.u8(0..14) {
            0..4 => self.register(),
            4 => self.write(),
            5 => self.hear(),
            6 | 7 => {
                let which = self.rng.usize(0..3);
                self.report(which);
            }
            8 if known > 0 => self.put_down(some),
            9 if known > 0 => self.restart(some),
            10 if known > 0 => {
                self.rows.get_mut(&some).unwrap().priority = self.rng.i64(0..4);
                self.news.push(some);
            }
            11 => {
                self.bench.queue.set_paused(self.rng.u8(0..4) == 0);
                self.bench.queue.set_short_of_space(self.rng.u8(0..4) == 0);
            }
            12 => {
                let time = Duration::from_secs(self.rng.u64(1..90));
                self.pass(time);
            }
            _ => {
                // News arrive late and in any order.
                self.rng.shuffle(&mut self.news);
                let half = self.news.len() / 2;
                let heard = self.news.split_off(half);
                self.follow(&heard);
            }
        }
        self.hand_out();
    }

    fn pass(&mut self, time: Duration) {
        (self.bench.now, self.bench.wall) = (self.bench.now + time, self.bench.wall.after(time));
        self.bench.queue.on_deadline(self.bench.now);
    }

    fn hand_out(&mut self) {
        while let Some(id) = self.bench.take() {
            self.starts.push(id);
        }
        self.bench.queue.check_busy();
    }

    /// With all news heard, the queue must be what a naive look at the books says.
    fn compare(&mut self) {
        self.hear();
        let news = std::mem::take(&mut self.news);
        self.follow(&news);
        let queue = &self.bench.queue;
        let mut ready = vec![];
        for &id in self.rows.keys() {
            let busy = queue.active.contains_key(&BuildId(id));
            let entry = self.entry(id).filter(|_| !busy);
            assert_eq!(queue.is_pending(BuildId(id)), entry.is_some(), "{id}");
            let Some(entry) = entry else { continue };
            let waits: BTreeSet<BuildId> = entry.waits_for.iter().copied().collect();
            assert_eq!(queue.pending[&entry.id].waits, waits, "{id}");
            let due = entry.retry_at.is_none_or(|at| at <= self.bench.wall);
            if waits.is_empty() && due && entry.system == HOST {
                ready.push((entry.priority, entry.timestamp, entry.id));
            }
        }
        for (id, (attempt, told)) in &self.runs {
            let row = &self.rows[id];
            let wanted = row.status == Status::Started && row.attempt == *attempt;
            assert_eq!(*told, !wanted, "{id} is to be stopped if it has ended in the books");
        }
        ready.sort_unstable();
        let listed: Vec<BuildId> = queue.first(ready.len()).iter().map(|(id, _)| *id).collect();
        assert_eq!(listed, ready.iter().map(|(_, _, id)| *id).collect::<Vec<_>>());
        self.hand_out();
    }

    /// Left alone, everything that can run does, and what does not waits for what never will.
    fn drain(&mut self) {
        self.bench.queue.set_paused(false);
        self.bench.queue.set_short_of_space(false);
        for _ in 0..10_000 {
            self.compare();
            self.write();
            self.hear();
            self.report(0);
            self.pass(Duration::from_secs(61));
            self.compare();
            if self.bench.queue.active().next().is_none() {
                break;
            }
        }
        assert!(self.runs.is_empty() && self.starts.is_empty());
        for id in self.bench.queue.pending() {
            match self.bench.queue.reason(id).unwrap() {
                Reason::NoWorker(_) | Reason::Dependency(_) => {}
                other => panic!("{id} was left waiting: {other}"),
            }
        }
        assert_eq!(self.bench.queue.active().count(), 0);
    }
}

#[test]
fn random_histories_leave_the_queue_as_the_books_say() {
    for seed in 0..2000 {
        let mut world = World::new(seed);
        for step in 0..80 {
            world.step();
            if step % 10 == 9 {
                world.compare();
            }
        }
        world.drain();
    }
}
