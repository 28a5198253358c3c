//! Sends what is to be told to people: e-mail, Mastodon posts, webhooks.
//!
//! Invariant: a message stays in the books until it was sent or its tries are spent, so that a crash sends it
//! twice at worst. Nothing waits for the notifier; secrets are never logged.

mod courier;
mod letter;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, at, bounded, never, select_biased};

use self::courier::{Courier, Failure};
use super::Parameters;
use crate::actor::pool::Pool;
use crate::actor::{self, Gone, Spawner, Stop};
use crate::db::notifications::{self, Pending};
use crate::db::{self, Database, Events, Reader, Subscription};
use crate::model::event::What;
use crate::model::time::Time;
use crate::sys::clock;
use crate::sys::process::Launcher;

/// Messages under way at once: one slow server must not hold up the others.
const COURIERS: usize = 4;

/// Tries before a message is dropped; with the waits between them they take some twelve hours.
const TRIES: i64 = 8;

/// Wait after the first try that did not work; three times as long after each further one.
const BACKOFF: Duration = Duration::from_secs(60);

/// Longest wait between two tries.
const LONGEST_BACKOFF: Duration = Duration::from_secs(6 * 3600);

/// Time in which ended builds are gathered before the books are asked: a thousand may end in a second.
const GATHER: Duration = Duration::from_millis(200);

/// Before the books are asked again when that did not work.
const PAUSE: Duration = Duration::from_secs(30);

/// Events that may pile up; more only mean that the books are asked at once.
const EVENTS: usize = 1024;

/// How long a write may take; a full disk must not hold the notifier up when the daemon stops.
const WRITING: Duration = Duration::from_secs(5);

/// How a try ended.
struct Delivery {
    id: i64,
    attempts: i64,
    /// What and to whom, for the log.
    subject: String,
    result: Result<(), Failure>,
}

/// What is to be written after a try.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Remove,
    Postpone(Time),
}

/// The decisions: what may be sent now, and what becomes of it.
#[derive(Default)]
struct Core {
    under_way: BTreeSet<i64>,
    /// When the books are to be asked.
    due: Option<Instant>,
    /// Messages that were sent but could not be struck out yet: not to be sent again meanwhile.
    unwritten: BTreeMap<i64, Time>,
}

impl Core {
    fn on_build_ended(&mut self, now: Instant) {
        let soon = now + GATHER;
        self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
    }

    /// How many to ask the books for: room for those under way, which they still hold.
    fn limit(&self) -> usize {
        COURIERS + self.unwritten.len()
    }

    /// Whether another may be sent.
    fn has_room(&self) -> bool {
        self.under_way.len() < COURIERS
    }

    fn may_send(&mut self, id: i64) -> bool {
        self.has_room() && !self.unwritten.contains_key(&id) && self.under_way.insert(id)
    }

    /// Decides on a try that ended. `jitter` is 0 to 1.
    fn on_delivery(&mut self, now: (Instant, Time), delivery: &Delivery, jitter: f64) -> Verdict {
        self.under_way.remove(&delivery.id);
        self.due = Some(now.0); // There is room again.
        let tries = delivery.attempts + 1;
        match &delivery.result {
            Ok(()) => Verdict::Remove,
            Err(Failure::Hopeless(_)) => Verdict::Remove,
            Err(Failure::Later(_)) if tries >= TRIES => Verdict::Remove,
            Err(Failure::Later(_)) => Verdict::Postpone(now.1.after(backoff(tries, jitter))),
        }
    }
}

/// The wait after try number `tries`, from four fifths to six fifths of the round number.
fn backoff(tries: i64, jitter: f64) -> Duration {
    let exponent = u32::try_from(tries - 1).unwrap_or(0).min(10);
    (BACKOFF * 3_u32.pow(exponent)).min(LONGEST_BACKOFF).mul_f64(0.8 + 0.4 * jitter)
}

/// Starts the thread `notifier` and its pool.
pub(crate) fn spawn(
    threads: &Spawner,
    database: Database,
    launcher: Launcher,
    parameters: Parameters,
) -> io::Result<()> {
    // A courier may be stuck with a dead server for half a minute, longer than a stop of the daemon may
    // take. These threads are not waited for: what they were sending stays in the books.
    let (own, couriers) = Spawner::new();
    let pool = Pool::new(&own, "courier", COURIERS)?;
    let courier = Courier::new(launcher, parameters);
    threads.essential("notifier", move |stop| {
        let (done, deliveries) = bounded(COURIERS);
        let core = Core { due: Some(clock::now()), ..Core::default() };
        let result =
            Thread { core, database, reader: None, pool, courier, done }.run(&deliveries, &stop);
        drop(couriers); // Ends those that are idle.
        result
    })
}

struct Thread {
    core: Core,
    database: Database,
    reader: Option<Reader>,
    pool: Pool,
    courier: Courier,
    done: Sender<Delivery>,
}

impl Thread {
    fn run(mut self, deliveries: &Receiver<Delivery>, stop: &Stop) -> Result<(), Gone> {
        let mut events: Option<Events> = None;
        let silence = never();
        loop {
            if events.is_none() {
                events = self.subscribe();
            }
            let lane: &Receiver<Subscription> = events.as_deref().unwrap_or(&silence);
            let timer = self.core.due.map_or_else(never, at);
            select_biased! {
                recv(stop) -> _ => return Ok(()),
                recv(deliveries) -> delivery => self.on_delivery(&delivery?),
                recv(lane) -> event => match event {
                    Ok(Subscription::Event(event)) if event.what != What::BuildEnded => {}
                    Ok(Subscription::Event(_)) => self.core.on_build_ended(clock::now()),
                    // Too slow, or the database is ending: what was missed is in the books.
                    Ok(Subscription::Overflow) | Err(_) => {
                        events = None;
                        self.core.on_build_ended(clock::now());
                    }
                },
                recv(timer) -> _ => self.look(),
            }
            actor::fault("notifier");
        }
    }

    /// Events from now on; without them the books are asked now and then all the same.
    fn subscribe(&mut self) -> Option<Events> {
        let events = self.database.subscribe(EVENTS);
        if let Err(error) = &events {
            log::debug!(target: "notifier", "no events: {error}");
            self.core.due = Some(clock::now() + PAUSE);
        }
        events.ok()
    }

    /// Asks the books what is due, and sends it.
    fn look(&mut self) {
        self.core.due = match self.send_due() {
            Ok(next) => next,
            Err(error) => {
                log::warn!(target: "notifier", "cannot read what is to be sent: {error}");
                self.reader = None;
                Some(clock::now() + PAUSE)
            }
        };
    }

    /// Sends what is due as far as there is room, and returns when to look again.
    fn send_due(&mut self) -> Result<Option<Instant>, db::Error> {
        let (now, wall) = (clock::now(), clock::wall());
        self.strike_out();
        if !self.core.has_room() {
            return Ok(None); // The next delivery looks again.
        }
        let reader = match self.reader.take() {
            Some(reader) => reader,
            None => self.database.reader()?,
        };
        let due = notifications::due(&reader, wall, self.core.limit());
        let next = notifications::next_due(&reader);
        self.reader = Some(reader);
        let due = due?;
        let all = due.len() < self.core.limit();
        for pending in due {
            if self.core.may_send(pending.id) {
                self.send(pending);
            }
        }
        if !self.core.under_way.is_empty() || !all {
            // The next delivery looks again; without one, what blocks is retried after a pause.
            return Ok((self.core.under_way.is_empty()).then_some(now + PAUSE));
        }
        let wait = |at: Time| now + wall.until(at).max(GATHER);
        let blocked = !self.core.unwritten.is_empty();
        Ok(if blocked { Some(now + PAUSE) } else { next?.map(wait) })
    }

    fn send(&mut self, pending: Pending) {
        let (courier, done) = (self.courier.clone(), self.done.clone());
        let id = pending.id;
        let sent = self.pool.run(move || {
            let attempts = pending.attempts;
            let subject = letter::subject(&pending);
            let send = std::panic::AssertUnwindSafe(|| courier.deliver(&pending));
            let result = std::panic::catch_unwind(send)
                .unwrap_or_else(|panic| Err(Failure::Later(actor::panic_message(panic.as_ref()))));
            // There is room for every courier; without a receiver the daemon is stopping.
            let _ = done.try_send(Delivery { id, attempts, subject, result });
        });
        if sent.is_err() {
            self.core.under_way.remove(&id);
        }
    }

    fn on_delivery(&mut self, delivery: &Delivery) {
        let Delivery { id, subject, attempts, result } = delivery;
        let now = (clock::now(), clock::wall());
        let verdict = self.core.on_delivery(now, delivery, jitter(*id, *attempts));
        match (result, &verdict) {
            (Ok(()), _) => log::debug!(target: "notifier", "sent: {subject}"),
            (Err(failure), Verdict::Remove) => {
                log::error!(target: "notifier", "not sent: {subject} {failure}; given up after {} tries", attempts + 1);
            }
            (Err(failure), Verdict::Postpone(_)) => {
                log::warn!(target: "notifier", "not sent: {subject} {failure}; will be tried again");
            }
        }
        let error = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
        match verdict {
            Verdict::Remove => {
                self.core.unwritten.insert(*id, now.1);
                self.strike_out();
            }
            Verdict::Postpone(at) => {
                let id = *id;
                let written =
                    self.database.write_within(WRITING, "postpone a message", move |tx| {
                        notifications::postpone(tx, id, at, &error)
                    });
                if let Err(error) = written {
                    // It is still due, and the pause keeps that from becoming a loop.
                    log::warn!(target: "notifier", "cannot postpone a message: {error}");
                    self.core.due = Some(now.0 + PAUSE);
                }
            }
        }
    }

    /// Removes from the books what is done with.
    fn strike_out(&mut self) {
        let ids: Vec<i64> = self.core.unwritten.keys().copied().collect();
        if ids.is_empty() {
            return;
        }
        let written = self.database.write_within(WRITING, "strike out messages", move |tx| {
            ids.iter().try_for_each(|id| notifications::remove(tx, *id))
        });
        match written {
            Ok(()) => self.core.unwritten.clear(),
            Err(error) => {
                log::warn!(target: "notifier", "cannot strike out what was sent: {error}");
            }
        }
    }
}

/// 0 to 1, as good as random, so that messages that failed together do not come back together.
fn jitter(id: i64, attempts: i64) -> f64 {
    use std::hash::{BuildHasher, RandomState};
    let word = RandomState::new().hash_one((id, attempts)) >> 48;
    f64::from(u16::try_from(word).unwrap_or(0)) / f64::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "an instant to count from; nothing waits for it")]
    fn start() -> (Instant, Time) {
        (Instant::now(), Time(1_000_000))
    }

    fn delivery(id: i64, attempts: i64, result: Result<(), Failure>) -> Delivery {
        Delivery { id, attempts, subject: "s".to_owned(), result }
    }

    fn later() -> Result<(), Failure> {
        Err(Failure::Later("connection refused".to_owned()))
    }

    #[test]
    fn a_message_is_tried_eight_times_within_a_day() {
        let (mut core, now) = (Core::default(), start());
        let mut waited = Duration::ZERO;
        for attempts in 0.. {
            match core.on_delivery(now, &delivery(1, attempts, later()), 1.0) {
                Verdict::Postpone(at) => waited += now.1.until(at),
                Verdict::Remove => {
                    assert_eq!(attempts + 1, TRIES);
                    break;
                }
            }
        }
        assert!(waited > Duration::from_secs(3600) && waited < Duration::from_secs(24 * 3600));
    }

    #[test]
    fn what_can_never_be_sent_is_not_tried_again() {
        let (mut core, now) = (Core::default(), start());
        let hopeless = Err(Failure::Hopeless("no address".to_owned()));
        assert_eq!(core.on_delivery(now, &delivery(1, 0, hopeless), 0.5), Verdict::Remove);
        assert_eq!(core.on_delivery(now, &delivery(2, 0, Ok(())), 0.5), Verdict::Remove);
    }

    #[test]
    fn waits_grow_and_differ() {
        assert!(backoff(1, 0.0) < backoff(1, 1.0));
        assert!(backoff(1, 1.0) < backoff(2, 0.0));
        assert_eq!(backoff(100, 0.5), LONGEST_BACKOFF);
    }

    #[test]
    fn no_message_is_under_way_twice_and_no_more_than_couriers() {
        let (mut core, now) = (Core::default(), start());
        assert!(core.may_send(1));
        assert!(!core.may_send(1));
        assert!((2..).take(COURIERS - 1).all(|id| core.may_send(id)));
        assert!(!core.may_send(99));
        core.on_delivery(now, &delivery(1, 0, Ok(())), 0.5);
        assert_eq!(core.due, Some(now.0), "the books are asked again");
        core.unwritten.insert(1, now.1);
        assert!(!core.may_send(1), "sent already, only not struck out");
        assert!(core.may_send(99));
    }

    #[test]
    fn ended_builds_are_gathered() {
        let (mut core, now) = (Core::default(), start());
        core.on_build_ended(now.0);
        core.on_build_ended(now.0 + GATHER / 2);
        assert_eq!(core.due, Some(now.0 + GATHER));
    }
}
