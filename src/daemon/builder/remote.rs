//! The remote backend: leaves builds of derivations to workers that `remote-server` listens to.
//!
//! It lives on the builder's thread: [`core`] decides, [`link`] holds the connection to the server, and a pool of threads
//! takes what was built into the store here. Builds go on when the daemon ends, and are found again by the next.

mod core;
#[cfg(test)]
pub(crate) mod farm;
mod link;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};

use self::core::{Core, Effect, TAKERS};
use self::link::Mouth;
use super::Report;
use super::queue::Reason;
use super::running::Leash;
use super::store::{Taken, Taker};
use crate::actor::pool::Pool;
use crate::actor::{Spawner, fault, panic_message};
use crate::db::workers::Note;
use crate::model::build::{BuildId, Kind, Order, Outcome, Store};
use crate::proto::control::Failure;
use crate::proto::remote::link::{Event, Try};
use crate::store::Closer;
use crate::sys::clock;

/// News that wait for the builder: a moment of a busy farm.
const ROOM: usize = 1024;

/// What comes from the backend's threads.
pub(super) enum Heard {
    /// There is a connection to the server, which has not taken us yet.
    Calling(Mouth),
    Connected,
    Disconnected,
    /// To what was said first of what has no answer yet.
    Answer(Result<(), Failure>),
    Event(Event),
    Taken {
        of: Try,
        url: String,
        taken: Taken,
    },
}

/// What came of a step, for the builder.
#[derive(Default)]
pub(super) struct News {
    pub(super) reports: Vec<Report>,
    pub(super) notes: Vec<Note>,
}

/// See the module's documentation.
pub(super) struct Remote {
    core: Core,
    mouth: Option<Mouth>,
    takers: BTreeMap<Store, Taker>,
    pool: Pool,
    lane: Sender<Heard>,
    leashes: BTreeMap<BuildId, Weak<Leash<Closer>>>,
}

impl Remote {
    /// Also returns the lane on which its threads are heard.
    pub(super) fn new(
        threads: &Spawner,
        socket: PathBuf,
        takers: BTreeMap<Store, Taker>,
        abroad: Vec<Order>,
        paused: BTreeSet<String>,
    ) -> io::Result<(Self, Receiver<Heard>)> {
        let (lane, heard) = bounded(ROOM);
        let pool = Pool::new(threads, "take", TAKERS)?;
        link::spawn(threads, socket, lane.clone())?;
        let core = Core::new(clock::now(), abroad, paused);
        let remote = Self { core, mouth: None, takers, pool, lane, leashes: BTreeMap::new() };
        Ok((remote, heard))
    }

    /// What workers have; at the start, what they have had since before it.
    pub(super) fn orders(&self) -> impl Iterator<Item = &Order> {
        self.core.orders()
    }

    /// What keeps builds of this system from being given to workers.
    pub(super) fn obstacle(&self, store: Store, system: &str) -> Option<Reason> {
        match self.takers.get(&store) {
            None => return Some(Reason::NoBackend(Kind::Derivation(store))),
            // What is built could not be taken in.
            Some(taker) if !taker.is_open() => return Some(Reason::StoreUnreachable),
            Some(_) => {}
        }
        (!self.core.serves(system)).then(|| Reason::NoWorker(system.into()))
    }

    pub(super) fn open(&self) -> BTreeSet<Arc<str>> {
        self.core.open()
    }

    pub(super) fn reserve(&mut self, id: BuildId, system: &str) -> Option<String> {
        self.core.reserve(id, system)
    }

    pub(super) fn release(&mut self, id: BuildId) {
        self.core.release(id);
    }

    pub(super) fn start(&mut self, order: Order) -> News {
        self.step(|core, out| core.start(order, out))
    }

    pub(super) fn cancel(&mut self, id: BuildId) -> News {
        self.step(|core, out| core.cancel(id, out))
    }

    pub(super) fn settle(&mut self, ids: &[BuildId]) -> News {
        self.step(|core, out| core.settle(ids, out))
    }

    pub(super) fn pause(&mut self, worker: &str, paused: bool) -> News {
        self.step(|core, out| core.pause(clock::now(), worker, paused, out))
    }

    /// A store may be open again: what was built and waits for it is taken in.
    pub(super) fn on_changed(&mut self) -> News {
        self.step(|_, _| {})
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.core.deadline()
    }

    pub(super) fn on_deadline(&mut self, now: Instant) -> News {
        self.step(|core, out| core.on_deadline(now, out))
    }

    pub(super) fn on_heard(&mut self, now: Instant, heard: Heard) -> News {
        match heard {
            Heard::Calling(mouth) => {
                self.mouth = Some(mouth);
                News::default()
            }
            Heard::Connected => self.step(|core, _| core.on_connected()),
            Heard::Disconnected => {
                self.mouth = None;
                self.step(|core, out| core.on_disconnected(now, out))
            }
            Heard::Event(event) => self.step(|core, out| core.on_event(now, event, out)),
            Heard::Answer(answer) => self.step(|core, out| core.on_answer(answer, out)),
            Heard::Taken { of, url, taken } => {
                self.step(|core, out| core.on_taken(of, url, taken, out))
            }
        }
    }

    /// For the stop: workers go on building, and what is being taken in is left to the next life.
    pub(super) fn leave(&mut self) {
        self.mouth = None;
        for leash in self.leashes.values().filter_map(Weak::upgrade) {
            leash.cancel();
        }
    }

    fn step(&mut self, decide: impl FnOnce(&mut Core, &mut Vec<Effect>)) -> News {
        let mut effects = Vec::new();
        decide(&mut self.core, &mut effects);
        let takers = &self.takers;
        // Without a taker, it is found out when it is to be taken.
        let is_open = |store| takers.get(&store).is_none_or(Taker::is_open);
        self.core.take(&is_open, &mut effects);
        let mut news = News::default();
        let mut changed = false;
        for effect in effects {
            match effect {
                Effect::Say(command) => {
                    if let Some(mouth) = &self.mouth {
                        mouth.say(&command);
                    }
                }
                Effect::Link { from, order } => link_log(Path::new(&from), &order),
                Effect::Take { url, order } => self.take(url, *order),
                Effect::Drop(id) => {
                    if let Some(leash) = self.leashes.get(&id).and_then(Weak::upgrade) {
                        leash.cancel();
                    }
                }
                Effect::End { id, attempt, outcome } => {
                    news.reports.push(Report::Ended { id, attempt, outcome });
                }
                Effect::Note(note) => news.notes.push(note),
                Effect::Changed => changed = true,
            }
        }
        if changed {
            news.reports.push(Report::Changed);
        }
        news
    }

    fn take(&mut self, url: String, order: Order) {
        self.leashes.retain(|_, leash| leash.strong_count() > 0);
        let leash = Arc::new(Leash::default());
        self.leashes.insert(order.id, Arc::downgrade(&leash));
        let of = Try { build: order.id, attempt: order.attempt };
        let untold = Untold { lane: self.lane.clone(), of, url: url.clone() };
        let Some(taker) = self.takers.get(&Store::of(&order.derivation)).cloned() else {
            // It was given away by an earlier life, which had other options.
            let why = "there is no store to take its outputs into".to_owned();
            let _ = self.pool.run(move || untold.tell(Taken::Over(Outcome::Aborted(why))));
            return;
        };
        // The core hands out no more than there are threads; a refusal says that they are stopping.
        let _ = self.pool.run(move || {
            let run = AssertUnwindSafe(|| {
                fault("take");
                taker.take(&order, &url, &leash)
            });
            untold.tell(catch_unwind(run).unwrap_or_else(|payload| {
                let text = panic_message(payload.as_ref());
                log::error!(target: "builder", "taking in build {} panicked: {text}", order.id);
                Taken::Over(Outcome::Aborted(format!("internal error: {text}")))
            }));
        });
    }
}

/// Says what came of taking something in.
struct Untold {
    lane: Sender<Heard>,
    of: Try,
    url: String,
}

impl Untold {
    fn tell(self, taken: Taken) {
        let heard = Heard::Taken { of: self.of, url: self.url, taken };
        // A builder that is gone leaves it to the next life.
        let _ = self.lane.send(heard);
    }
}

/// Makes the build's log the file that the server writes, in the place of an earlier try's.
fn link_log(from: &Path, order: &Order) {
    let make = || {
        let aside = order.log.with_extension("part");
        let _ = std::fs::remove_file(&aside); // Left by a crash.
        std::fs::hard_link(from, &aside)?;
        // Whoever follows the log never finds none. Renaming one name of a file to another of its does nothing.
        std::fs::rename(&aside, &order.log)?;
        if aside.exists() { std::fs::remove_file(&aside) } else { Ok(()) }
    };
    if let Err(error) = make() {
        let (from, to, id) = (from.display(), order.log.display(), order.id);
        log::warn!(
            target: "builder",
            "the log of build {id} cannot be linked from {from} to {to}: {error}; both must be of one file system and group"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::evaluation::EvaluationId;
    use crate::model::spec::JobsetName;

    #[test]
    fn a_log_gets_its_name_again_and_again() {
        let place = tempfile::tempdir().unwrap();
        let (one, two) = (place.path().join("1-1.gz"), place.path().join("1-2.gz"));
        std::fs::write(&one, "one").unwrap();
        std::fs::write(&two, "two").unwrap();
        let order = Order {
            id: BuildId(1),
            attempt: 1,
            jobset: JobsetName::new("guix").unwrap(),
            evaluation: EvaluationId(1),
            job: "x".to_owned(),
            system: "x86_64-linux".to_owned(),
            derivation: "/gnu/store/x.drv".to_owned(),
            priority: 9,
            timeout: 0,
            max_silent_time: 0,
            process: None,
            checkouts: Vec::new(),
            needs: Vec::new(),
            log: place.path().join("1.gz"),
            worker: None,
        };
        for (from, text) in [(&one, "one"), (&one, "one"), (&two, "two")] {
            link_log(from, &order);
            assert_eq!(std::fs::read_to_string(&order.log).unwrap(), text);
        }
        // What there is stays when there is nothing better.
        link_log(&place.path().join("absent"), &order);
        assert_eq!(std::fs::read_to_string(&order.log).unwrap(), "two");
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 3);
    }
}
