//! Connections that rest until the next build: a daemon starts a process and opens its database for each connection,
//! which takes as long as a small build.
//!
//! A connection holds temporary roots on all that was built over it. So a thread closes those that no build takes up,
//! and those that have been open for long are not put back.
//!
//! Invariant: what a connection holds is let go soon after the last build that it had for itself, whether others come
//! or not.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, at, bounded, never, select};

use crate::actor::{Gone, Spawner, Stop};
use crate::store::{Connection, Dialect, Options};
use crate::sys::clock;

/// How long a connection rests: longer than what lies between two builds while there is something to build.
const REST: Duration = Duration::from_secs(30);

/// One that has been open for so long is closed after its build: thousands of small builds share one, and a large one
/// shares its own with few.
const LIFE: Duration = Duration::from_secs(60);

/// … and so is one that had so many builds: a daemon remembers each of its roots.
const MANY: usize = 1000;

/// What a connection may hold by now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Age {
    opened: Instant,
    builds: usize,
}

impl Age {
    pub(super) fn new(now: Instant) -> Self {
        Self { opened: now, builds: 0 }
    }

    /// After one more build.
    pub(super) fn another(self) -> Self {
        Self { builds: self.builds + 1, ..self }
    }

    fn is_old(self, now: Instant) -> bool {
        now >= self.opened + LIFE || self.builds >= MANY
    }
}

/// A connection and what must be known to use it again.
pub(super) struct Held {
    pub(super) connection: Connection,
    pub(super) age: Age,
    /// What the daemon was told last.
    pub(super) options: Options,
}

/// See the module's documentation.
pub(super) struct Idle {
    shelf: Arc<Mutex<Shelf<Held>>>,
    wake: Sender<()>,
}

impl Idle {
    /// Starts the thread `idle/guix` or `idle/nix`.
    pub(super) fn spawn(threads: &Spawner, dialect: Dialect) -> io::Result<Self> {
        Self::resting(threads, dialect, REST)
    }

    fn resting(threads: &Spawner, dialect: Dialect, rest: Duration) -> io::Result<Self> {
        let shelf = Arc::new(Mutex::new(Shelf { rest, resting: Vec::new(), watched: false }));
        let (wake, woken) = bounded(1);
        let name = match dialect {
            Dialect::Guix => "idle/guix",
            Dialect::Nix => "idle/nix",
        };
        let watched = Arc::clone(&shelf);
        threads.essential(name, move |stop| run(&watched, &woken, &stop))?;
        Ok(Self { shelf, wake })
    }

    /// The one that was put back last: the daemon's end of it is the warmest. Old ones on the way are closed.
    pub(super) fn take(&self) -> Option<Held> {
        let now = clock::now();
        loop {
            let (_, held) = lock(&self.shelf).resting.pop()?;
            // Builds that are far between would else prolong what it holds.
            if !held.age.is_old(now) {
                return Some(held);
            }
        }
    }

    /// Others may use it, unless it is old.
    pub(super) fn put_back(&self, held: Held) {
        let now = clock::now();
        if !held.age.is_old(now) && lock(&self.shelf).put(now, held) {
            let _ = self.wake.try_send(()); // Woken once, it looks at all.
        }
    }
}

fn run(shelf: &Mutex<Shelf<Held>>, woken: &Receiver<()>, stop: &Stop) -> Result<(), Gone> {
    let mut due = None;
    loop {
        let timer = due.map_or_else(never, at);
        select! {
            recv(stop) -> _ => return Ok(()),
            recv(woken) -> wake => wake?,
            recv(timer) -> _ => {}
        }
        let (closed, next) = lock(shelf).tidy(clock::now());
        due = next;
        drop(closed); // After the lock.
    }
}

fn lock<T>(shelf: &Mutex<Shelf<T>>) -> MutexGuard<'_, Shelf<T>> {
    shelf.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What rests, and since when; the oldest is the first.
struct Shelf<T> {
    rest: Duration,
    resting: Vec<(Instant, T)>,
    /// Whether the thread will look without being woken. While builds come it looks once in a rest.
    watched: bool,
}

impl<T> Shelf<T> {
    /// Whether the thread is to be woken.
    fn put(&mut self, now: Instant, one: T) -> bool {
        self.resting.push((now, one));
        !std::mem::replace(&mut self.watched, true)
    }

    /// Those that rested for long enough, and when to look again.
    fn tidy(&mut self, now: Instant) -> (Vec<T>, Option<Instant>) {
        let rested = self.resting.iter().take_while(|(since, _)| *since + self.rest <= now).count();
        let closed = self.resting.drain(..rested).map(|(_, one)| one).collect();
        let next = self.resting.first().map(|(since, _)| *since + self.rest);
        self.watched = next.is_some();
        (closed, next)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::store::{Address, Line};

    #[test]
    fn what_rested_for_long_enough_goes_and_the_thread_is_woken_once() {
        let (t0, second) = (clock::now(), Duration::from_secs(1));
        let mut shelf = Shelf { rest: second * 10, resting: Vec::new(), watched: false };
        assert!(shelf.put(t0, "a"));
        assert!(!shelf.put(t0 + second, "b"));
        assert_eq!(shelf.tidy(t0 + second), (vec![], Some(t0 + second * 10)));
        assert_eq!(shelf.tidy(t0 + second * 10), (vec!["a"], Some(t0 + second * 11)));
        assert_eq!(shelf.resting.pop().map(|(_, one)| one), Some("b"));
        assert!(!shelf.put(t0 + second * 11, "b"), "it looks all the same");
        assert_eq!(shelf.tidy(t0 + second * 11), (vec![], Some(t0 + second * 21)));
        assert_eq!(shelf.tidy(t0 + second * 30), (vec!["b"], None));
        assert!(shelf.put(t0 + second * 30, "c"));
    }

    #[test]
    fn a_connection_is_old_after_a_time_or_many_builds() {
        let t0 = clock::now();
        let age = Age::new(t0);
        assert!(!age.is_old(t0 + LIFE / 2) && age.is_old(t0 + LIFE));
        let before = (1..MANY).fold(age, |age, _| age.another());
        assert!(!before.is_old(t0) && before.another().is_old(t0));
    }

    #[test]
    fn a_connection_that_no_build_takes_up_is_closed() {
        let place = tempfile::tempdir().unwrap();
        let socket = place.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let (spawner, _threads) = Spawner::new();
        let idle = Idle::resting(&spawner, Dialect::Guix, Duration::from_millis(20)).unwrap();
        let daemon = std::thread::scope(|scope| {
            let daemon = scope.spawn(|| {
                let (mut client, _) = listener.accept().unwrap();
                for word in [0x6478_696f, 0x164, 0x616c_7473] {
                    client.write_all(&u64::to_le_bytes(word)).unwrap();
                }
                client
            });
            let line = Line::connect(&Address::Unix(socket), &|| true).unwrap();
            let connection = Connection::greet(line, Dialect::Guix).unwrap();
            let options = Options::default();
            idle.put_back(Held { connection, age: Age::new(clock::now()), options });
            daemon.join().unwrap()
        });
        // Nothing else happens.
        let until = Some(Duration::from_secs(30));
        daemon.set_read_timeout(until).unwrap();
        (&daemon).read_to_end(&mut Vec::new()).unwrap();
        assert!(idle.take().is_none());
    }
}
