//! The daemon's half of a farm that is simulated: the queue, this backend's core and books in memory, without threads.
//!
//! What the builder gives the books takes its time, which the simulation decides; a daemon that dies before loses it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

use super::core::{Core, Effect};
use crate::daemon::builder::books::{Batch, End, Start, Written, start};
use crate::daemon::builder::queue::{Facts, Queue, Reason, Taken};
use crate::daemon::builder::store;
use crate::db::builds::{self, Changes, Filter};
use crate::db::testing::{Books, job};
use crate::db::{maintenance, workers};
use crate::model::build::{Build, BuildId, Outcome};
use crate::model::evaluation::EvaluationId;
use crate::model::event::What;
use crate::model::job::{NewJob, Work};
use crate::model::time::Time;
use crate::proto::control::Failure;
use crate::proto::remote::link::{Command, Event, Try};

/// What is asked of the world.
#[derive(Default)]
pub(crate) struct Wishes {
    pub(crate) commands: Vec<Command>,
    /// What was built, to be fetched from there; `taken` is the answer.
    pub(crate) takes: Vec<(Try, String)>,
    /// The books are told something; `write` and `written` are to follow.
    pub(crate) writes: bool,
}

/// See the module's documentation.
pub(crate) struct Half {
    books: Books,
    now: Instant,
    evaluation: EvaluationId,
    life: Option<Life>,
}

/// What dies with the daemon.
struct Life {
    queue: Queue,
    core: Core,
    batch: Batch,
    /// What the books are being told.
    writing: Option<Batch>,
    /// What it has not heard yet of what they have.
    written: Option<Written>,
    wishes: Wishes,
}

impl Half {
    pub(crate) fn new(now: Instant) -> Self {
        let mut books = Books::new();
        let jobset = books.jobset("farm");
        let evaluation = books.evaluation(&jobset);
        Self { books, now, evaluation, life: None }
    }

    pub(crate) fn tell_time(&mut self, now: Instant, wall: Time) {
        (self.now, self.books.now) = (now, wall);
    }

    /// An evaluation finds one more derivation to be built.
    pub(crate) fn add(&mut self, derivation: &str, system: &str) {
        let job = NewJob {
            system: system.to_owned(),
            work: Work::Derivation,
            timeout: 0,
            max_silent_time: 0,
            ..job(derivation, &[])
        };
        let changes = self.books.register(self.evaluation, &[job]);
        self.changed(changes);
    }

    /// A person wants it no more.
    pub(crate) fn cancel(&mut self, derivation: &str) {
        let id = self.books.id(derivation);
        // Refused if it has ended.
        if let Ok(changes) = self.books.write(|tx| builds::cancel(tx, id)) {
            self.changed(changes);
        }
    }

    pub(crate) fn be_born(&mut self) {
        self.books.write(builds::recover).unwrap();
        let abroad = self.books.write(builds::abroad).unwrap();
        let paused = workers::list(&self.books.conn).unwrap().into_iter();
        let paused = paused.filter(|worker| worker.paused).map(|worker| worker.name).collect();
        let core = Core::new(self.now, abroad, paused);
        let mut queue = Queue::new(1);
        queue.set_open(core.open());
        core.orders().for_each(|order| queue.resume(order.id, order.attempt));
        let (batch, wishes) = (Batch::default(), Wishes::default());
        self.life = Some(Life { queue, core, batch, writing: None, written: None, wishes });
        let scheduled = builds::scheduled(&self.books.conn).unwrap();
        self.follow(&scheduled);
    }

    pub(crate) fn die(&mut self) {
        self.life = None;
    }

    pub(crate) fn connected(&mut self) {
        self.step(|core, _, _| core.on_connected());
    }

    pub(crate) fn disconnected(&mut self) {
        self.step(|core, now, out| core.on_disconnected(now, out));
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.step(|core, now, out| core.on_event(now, event, out));
    }

    pub(crate) fn answer(&mut self, answer: Result<(), Failure>) {
        self.step(|core, _, out| core.on_answer(answer, out));
    }

    /// What was to be fetched is here, or is not to be had.
    pub(crate) fn taken(&mut self, of: Try, url: String, result: Result<(), String>) {
        let taken = match result {
            Ok(()) => store::Taken::Over(Outcome::Succeeded {
                outputs: BTreeMap::new(),
                products: vec![],
            }),
            Err(why) => store::Taken::Unfetched(why),
        };
        self.step(|core, _, out| core.on_taken(of, url, taken, out));
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        let life = self.life.as_ref()?;
        life.queue.deadline().into_iter().chain(life.core.deadline()).min()
    }

    pub(crate) fn on_deadline(&mut self) {
        if let Some(life) = &mut self.life {
            life.queue.on_deadline(self.now);
        }
        self.step(|core, now, out| {
            if core.deadline().is_some_and(|due| due <= now) {
                core.on_deadline(now, out);
            }
        });
    }

    /// Hands out what can be; says what is to be done.
    pub(crate) fn advance(&mut self) -> Wishes {
        let Some(life) = &mut self.life else { return Wishes::default() };
        while let Some(Taken { id, far }) = life.queue.take() {
            let worker = far.and_then(|system| life.core.reserve(id, &system));
            assert!(worker.is_some(), "build {id} was handed out, and no worker is free");
            life.queue.set_open(life.core.open());
            life.batch.starts.push(Start { id, worker });
        }
        life.queue.check_busy();
        if life.writing.is_none() && !life.batch.is_empty() {
            life.writing = Some(std::mem::take(&mut life.batch));
            life.wishes.writes = true;
        }
        std::mem::take(&mut life.wishes)
    }

    /// The books have what they are being told, which the daemon may not live to hear.
    pub(crate) fn write(&mut self) {
        let Some(batch) = self.life.as_mut().and_then(|life| life.writing.take()) else { return };
        let Batch { ends, starts, commands: _, notes } = batch;
        let mut written = Written::default();
        self.books.write(|tx| workers::note(tx, &notes)).unwrap();
        for End { id, attempt, outcome } in ends {
            let changes = self.books.write(|tx| builds::end(tx, id, attempt, &outcome)).unwrap();
            written.changes.push(changes);
            written.ended.push(id);
        }
        for wanted in starts {
            let order = self.books.write(|tx| start(tx, &wanted, Path::new("/log")));
            written.started.push((wanted.id, order));
        }
        if let Some(life) = &mut self.life {
            life.written = Some(written);
        }
    }

    /// It hears of it.
    pub(crate) fn written(&mut self) {
        let Some(written) = self.life.as_mut().and_then(|life| life.written.take()) else { return };
        let (mut changed, mut ended) = (Vec::new(), written.ended);
        for (id, order) in written.started {
            let Some(life) = &mut self.life else { return };
            match order {
                Ok(order) => {
                    if life.queue.started(id, order.attempt) {
                        changed.push(id);
                    }
                    self.step(|core, _, out| core.start(order, out));
                }
                // It was canceled meanwhile.
                Err(_) => {
                    life.queue.not_started(id);
                    life.core.release(id);
                    life.queue.set_open(life.core.open());
                    ended.push(id);
                }
            }
        }
        if let Some(life) = &mut self.life {
            ended.iter().for_each(|id| life.queue.settled(*id));
        }
        for changes in written.changes {
            changed.extend(changes.scheduled);
            ended.extend(changes.ended);
        }
        self.step(|core, _, out| core.settle(&ended, out));
        changed.extend(ended);
        self.follow(&changed);
    }

    fn changed(&mut self, changes: Changes) {
        let Changes { scheduled, ended, .. } = changes;
        self.step(|core, _, out| core.settle(&ended, out));
        self.follow(&[scheduled, ended].concat());
    }

    /// Makes the queue agree with the books.
    fn follow(&mut self, ids: &[BuildId]) {
        let Some(life) = &mut self.life else { return };
        let entries = builds::entries(&self.books.conn, ids).unwrap();
        let running = builds::running_among(&self.books.conn, ids).unwrap();
        let (now, wall) = (self.now, self.books.now);
        let facts = Facts { now, wall, ids, entries, running: &running };
        let core = &life.core;
        for id in life.queue.follow(facts, &|_, system| obstacle(core, system)) {
            self.step(|core, _, out| core.cancel(id, out));
        }
    }

    fn step(&mut self, decide: impl FnOnce(&mut Core, Instant, &mut Vec<Effect>)) {
        let Some(life) = &mut self.life else { return };
        let mut effects = Vec::new();
        decide(&mut life.core, self.now, &mut effects);
        life.core.take(&|_| true, &mut effects);
        for effect in effects {
            match effect {
                Effect::Say(command) => life.wishes.commands.push(command),
                Effect::Take { url, order } => {
                    life.wishes.takes.push((Try { build: order.id, attempt: order.attempt }, url));
                }
                Effect::End { id, attempt, outcome } => {
                    if life.queue.over(id, attempt) {
                        life.batch.ends.push(End { id, attempt, outcome });
                    }
                }
                Effect::Note(note) => life.batch.notes.push(note),
                // Its end comes as that of any other, and nobody waits for it any more.
                Effect::Link { .. } | Effect::Drop(_) => {}
                Effect::Changed => {
                    life.queue.set_open(life.core.open());
                    let core = &life.core;
                    life.queue.reconsider(&|_, system| obstacle(core, system));
                }
            }
        }
    }

    /// All builds, as the books have them.
    pub(crate) fn builds(&self) -> Vec<Build> {
        builds::list(&self.books.conn, &Filter::default(), 10_000).unwrap()
    }

    pub(crate) fn has_ended(&self, derivation: &str) -> bool {
        !self.books.status(derivation).is_pending()
    }

    /// No end was counted twice, and every counter is right.
    pub(crate) fn check_books(&self) {
        let ends = self.books.events.iter().filter(|event| event.what == What::BuildEnded);
        let ends: Vec<_> = ends.map(|event| event.build).collect();
        let once: BTreeSet<_> = ends.iter().collect();
        assert_eq!(ends.len(), once.len(), "{ends:?}");
        let (wrong, _) =
            maintenance::miscounted(&self.books.conn, EvaluationId(0), 10_000).unwrap();
        assert_eq!(wrong, [], "counters differ from a recount");
    }
}

fn obstacle(core: &Core, system: &str) -> Option<Reason> {
    (!core.serves(system)).then(|| Reason::NoWorker(system.into()))
}
