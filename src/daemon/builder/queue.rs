//! The ready queue: which build runs next, and why every other one does not. Pure: `now` is an argument.
//!
//! It caches the books. What is scheduled there is *pending* here, what was handed out is *active*; [`Queue::follow`]
//! makes both agree with what was just read from the books, whatever happened meanwhile and in whatever order the
//! news arrived.
//!
//! Invariants, which `Queue::check` asserts in tests: a build is pending or active, never both, so it cannot run
//! twice at once; no more slots are taken than there are; every pending build has a reason to wait; and the build
//! that [`Queue::take`] returns is the first of all that may run, found without looking at the others.

mod order;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::order::{ClassKey, Key, merge};
use crate::model::build::{BuildId, Entry, Kind};
use crate::model::time::Time;

/// The longest backoff after an abort (60 s × 3³). A wait in the books that is longer than this tells of a clock
/// that was set back, and is cut to it.
const LONGEST_BACKOFF: Duration = Duration::from_secs(1620);

/// Why a build does not run yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The lowest id among the builds it needs that have not succeeded, and those that read what it left before.
    Dependency(BuildId),
    /// All slots are taken.
    Slots,
    /// Nothing is in its way: its turn is now.
    Queued,
    Paused,
    NoSpace,
    RetryAt(Time),
    /// Nobody here builds for this system.
    NoWorker(Arc<str>),
    NoBackend(Kind),
    StoreUnreachable,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dependency(id) => write!(f, "dependency {id}"),
            Self::Slots => f.write_str("slots"),
            Self::Queued => f.write_str("queued"),
            Self::Paused => f.write_str("paused"),
            Self::NoSpace => f.write_str("no space"),
            Self::RetryAt(time) => write!(f, "retry at {time}"),
            Self::NoWorker(system) => write!(f, "no worker for {system}"),
            Self::NoBackend(Kind::Process) => f.write_str("no backend for command builds"),
            Self::NoBackend(Kind::Derivation(_)) => f.write_str("no backend for derivation builds"),
            Self::StoreUnreachable => f.write_str("store unreachable"),
        }
    }
}

/// What keeps all builds of a kind and system from running; `None` if nothing does.
pub(crate) type Obstacle<'a> = &'a dyn Fn(Kind, &str) -> Option<Reason>;

/// What was read from the books about some builds, all in one transaction.
pub(crate) struct Facts<'a> {
    pub(crate) now: Instant,
    pub(crate) wall: Time,
    /// The builds in question.
    pub(crate) ids: &'a [BuildId],
    /// Those of them that are scheduled, and perhaps others that are.
    pub(crate) entries: Vec<Entry>,
    /// All builds that run, with the number of their try.
    pub(crate) running: &'a [(BuildId, i64)],
}

/// A build that is scheduled in the books and was not handed out.
struct Pending {
    key: Key,
    class: ClassKey,
    /// What it needs and has not succeeded yet, and what it must not start under.
    waits: BTreeSet<BuildId>,
    retry: Option<Retry>,
}

#[derive(Clone, Copy)]
struct Retry {
    due: Instant,
    /// For people.
    at: Time,
}

impl Pending {
    fn is_ready(&self) -> bool {
        self.waits.is_empty() && self.retry.is_none()
    }
}

/// The pending builds of one kind and system.
#[derive(Default)]
struct Class {
    obstacle: Option<Reason>,
    members: usize,
    ready: BTreeSet<Key>,
    /// What `Queue::heads` holds of this class.
    head: Option<Key>,
}

/// A build that was handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Active {
    /// The books are being told that it starts. `doubted`: they were heard to have changed since.
    Starting { doubted: bool },
    /// `stale`: this try has ended in the books, and its backend was told to stop it.
    Running { attempt: i64, stale: bool },
    /// It is over, and the books are being told.
    Ending,
}

#[cfg(test)]
impl Active {
    fn holds_slot(self) -> bool {
        match self {
            Self::Starting { .. } | Self::Running { .. } => true,
            Self::Ending => false,
        }
    }
}

/// What [`Queue::take`] hands out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) id: BuildId,
    /// The system of one that goes to a remote worker.
    pub(crate) far: Option<Arc<str>>,
}

/// See the module's documentation.
pub(crate) struct Queue {
    slots: usize,
    taken: usize,
    /// Systems for which remote workers want work now, where derivations go to such.
    open: Option<BTreeSet<Arc<str>>>,
    /// Active builds that go to remote workers, and hold no slot.
    far: BTreeSet<BuildId>,
    paused: bool,
    short: bool,
    pending: BTreeMap<BuildId, Pending>,
    active: BTreeMap<BuildId, Active>,
    /// Which pending builds wait for a build.
    dependents: BTreeMap<BuildId, BTreeSet<BuildId>>,
    classes: BTreeMap<ClassKey, Class>,
    /// The first ready build of every class without an obstacle.
    heads: BTreeSet<(Key, ClassKey)>,
    /// Pending builds that are not ready.
    held: BTreeSet<Key>,
    timers: BTreeSet<(Instant, BuildId)>,
}

impl Queue {
    pub(crate) fn new(slots: usize) -> Self {
        Self {
            slots,
            taken: 0,
            open: None,
            far: BTreeSet::new(),
            paused: false,
            short: false,
            pending: BTreeMap::new(),
            active: BTreeMap::new(),
            dependents: BTreeMap::new(),
            classes: BTreeMap::new(),
            heads: BTreeSet::new(),
            held: BTreeSet::new(),
            timers: BTreeSet::new(),
        }
    }

    /// Agrees with the books. Returns running builds that ended there: their backends are to stop them.
    pub(crate) fn follow(&mut self, facts: Facts<'_>, obstacle: Obstacle<'_>) -> Vec<BuildId> {
        let Facts { now, wall, ids, entries, running } = facts;
        let scheduled: BTreeSet<BuildId> = entries.iter().map(|entry| entry.id).collect();
        let mut stop = Vec::new();
        for &id in ids {
            match self.active.get_mut(&id) {
                Some(Active::Starting { doubted }) => *doubted = true,
                Some(Active::Running { attempt, stale }) => {
                    if !*stale && !running.contains(&(id, *attempt)) {
                        *stale = true;
                        stop.push(id);
                    }
                }
                // It is followed again once the books have its end.
                Some(Active::Ending) => {}
                None if scheduled.contains(&id) => {}
                None => {
                    self.forget(id);
                    if !running.iter().any(|(other, _)| *other == id) {
                        self.resolve(id);
                    }
                }
            }
        }
        for entry in entries {
            if !self.active.contains_key(&entry.id) {
                self.put(now, wall, entry, obstacle);
            }
        }
        stop
    }

    /// Hands out the first build that may run; it holds a slot from now on, or goes to a remote worker.
    pub(crate) fn take(&mut self) -> Option<Taken> {
        if self.short {
            return None;
        }
        let (key, (kind, system)) = self.next()?.clone();
        let far = self.is_far(kind).then_some(system);
        self.forget(key.id);
        self.active.insert(key.id, Active::Starting { doubted: false });
        if far.is_some() {
            self.far.insert(key.id);
        } else {
            self.taken += 1;
        }
        Some(Taken { id: key.id, far })
    }

    /// Whether a build would run now if only there is space on the disk.
    pub(crate) fn is_hungry(&self) -> bool {
        self.next().is_some()
    }

    /// The first build that may run, as far as slots, workers and a pause go: there are few classes.
    fn next(&self) -> Option<&(Key, ClassKey)> {
        let free = |(_, class): &&(Key, ClassKey)| self.is_free(class);
        self.heads.iter().filter(|_| !self.paused).find(free)
    }

    fn is_free(&self, (kind, system): &ClassKey) -> bool {
        match &self.open {
            Some(open) if self.is_far(*kind) => open.contains(system),
            Some(_) | None => self.taken < self.slots,
        }
    }

    fn is_far(&self, kind: Kind) -> bool {
        self.open.is_some() && kind != Kind::Process
    }

    /// Derivations go to remote workers, and these are the systems for which there are some that want work.
    pub(crate) fn set_open(&mut self, open: BTreeSet<Arc<str>>) {
        self.open = Some(open);
    }

    /// A remote worker has had it since before the start.
    pub(crate) fn resume(&mut self, id: BuildId, attempt: i64) {
        self.active.insert(id, Active::Running { attempt, stale: false });
        self.far.insert(id);
    }

    /// A remote worker has it and keeps it while we are gone.
    pub(crate) fn leave(&mut self, id: BuildId) {
        if self.far.remove(&id) {
            self.active.remove(&id);
        }
    }

    /// What it held is free.
    fn free(&mut self, id: BuildId) {
        if !self.far.remove(&id) {
            self.taken -= 1;
        }
    }

    /// The books say that it started. True if they have changed since: it is to be followed again.
    pub(crate) fn started(&mut self, id: BuildId, attempt: i64) -> bool {
        let before = self.active.insert(id, Active::Running { attempt, stale: false });
        debug_assert!(matches!(before, Some(Active::Starting { .. })), "{id} was {before:?}");
        before == Some(Active::Starting { doubted: true })
    }

    /// The books refused to start it: it is to be followed again.
    pub(crate) fn not_started(&mut self, id: BuildId) {
        let before = self.active.remove(&id);
        debug_assert!(matches!(before, Some(Active::Starting { .. })), "{id} was {before:?}");
        self.free(id);
    }

    /// Its run is over and its slot free. False if it is not known to run: an old report.
    pub(crate) fn over(&mut self, id: BuildId, attempt: i64) -> bool {
        let Some(active) = self.active.get_mut(&id) else { return false };
        match *active {
            Active::Running { attempt: current, .. } if current == attempt => {
                *active = Active::Ending;
                self.free(id);
                true
            }
            Active::Starting { .. } | Active::Running { .. } | Active::Ending => false,
        }
    }

    /// The books have its end: it is to be followed again.
    pub(crate) fn settled(&mut self, id: BuildId) {
        if self.active.get(&id) == Some(&Active::Ending) {
            self.active.remove(&id);
        }
    }

    /// Holds a pending build back for a while: the books did not let it start.
    pub(crate) fn hold(&mut self, id: BuildId, due: Instant, at: Time) {
        if let Some(mut pending) = self.withdraw(id) {
            pending.retry = Some(Retry { due, at });
            self.place(id, pending);
        }
    }

    pub(crate) fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
    }

    pub(crate) fn set_short_of_space(&mut self, short: bool) {
        self.short = short;
    }

    /// Asks anew what each class's obstacle is.
    pub(crate) fn reconsider(&mut self, obstacle: Obstacle<'_>) {
        let keys: Vec<ClassKey> = self.classes.keys().cloned().collect();
        for key in keys {
            if let Some(class) = self.classes.get_mut(&key) {
                class.obstacle = obstacle(key.0, &key.1);
            }
            self.refresh_head(&key);
        }
    }

    /// When something becomes due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.timers.first().map(|(due, _)| *due)
    }

    pub(crate) fn on_deadline(&mut self, now: Instant) {
        while let Some(&(due, id)) = self.timers.first()
            && due <= now
        {
            // A timer belongs to a pending build that has it as its retry.
            let Some(mut pending) = self.withdraw(id) else { break };
            pending.retry = None;
            self.place(id, pending);
        }
    }

    /// Whether it is pending or active.
    pub(crate) fn knows(&self, id: BuildId) -> bool {
        self.pending.contains_key(&id) || self.active.contains_key(&id)
    }

    #[cfg(test)]
    pub(crate) fn is_pending(&self, id: BuildId) -> bool {
        self.pending.contains_key(&id)
    }

    /// Whether it is pending and only a slot, space or an obstacle can keep it waiting.
    pub(crate) fn is_ready(&self, id: BuildId) -> bool {
        self.pending.get(&id).is_some_and(Pending::is_ready)
    }

    /// All pending builds, in the order of ids.
    pub(crate) fn pending(&self) -> impl Iterator<Item = BuildId> + '_ {
        self.pending.keys().copied()
    }

    /// All builds that were handed out, in the order of ids.
    pub(crate) fn active(&self) -> impl Iterator<Item = BuildId> + '_ {
        self.active.keys().copied()
    }

    /// Builds that a backend has, in the order of ids, with the number of their try.
    pub(crate) fn running(&self) -> impl Iterator<Item = (BuildId, i64)> + '_ {
        self.active.iter().filter_map(|(id, active)| match active {
            Active::Running { attempt, .. } => Some((*id, *attempt)),
            Active::Starting { .. } | Active::Ending => None,
        })
    }

    /// Builds that pending ones wait for and that are themselves neither pending nor active.
    pub(crate) fn missing(&self) -> impl Iterator<Item = BuildId> + '_ {
        self.dependents.keys().copied().filter(|id| !self.knows(*id))
    }

    /// Why a build does not run; `None` if it does or is unknown.
    pub(crate) fn reason(&self, id: BuildId) -> Option<Reason> {
        match self.active.get(&id) {
            Some(Active::Running { stale: false, .. }) => return None,
            // Scheduled in the books, or about to be again.
            Some(Active::Starting { .. } | Active::Running { .. } | Active::Ending) => {
                return Some(Reason::Queued);
            }
            None => {}
        }
        let pending = self.pending.get(&id)?;
        let class = self.classes.get(&pending.class);
        Some(if let Some(dependency) = pending.waits.first() {
            Reason::Dependency(*dependency)
        } else if let Some(obstacle) = class.and_then(|class| class.obstacle.as_ref()) {
            obstacle.clone()
        } else if let Some(retry) = pending.retry {
            Reason::RetryAt(retry.at)
        } else if self.paused {
            Reason::Paused
        } else if self.short {
            Reason::NoSpace
        } else if !self.is_free(&pending.class) {
            Reason::Slots
        } else {
            Reason::Queued
        })
    }

    /// The first `limit` pending builds: those that may run in the order they will, then all others in the
    /// order of their priority and age.
    pub(crate) fn first(&self, limit: usize) -> Vec<(BuildId, Reason)> {
        let open = self.classes.values().filter(|class| class.obstacle.is_none());
        let closed = self.classes.values().filter(|class| class.obstacle.is_some());
        let ready = merge(open.map(|class| &class.ready));
        let others = merge(closed.map(|class| &class.ready).chain([&self.held]));
        ready
            .chain(others)
            .take(limit)
            .filter_map(|key| Some((key.id, self.reason(key.id)?)))
            .collect()
    }

    /// What keeps builds from running that wait for nothing else, and how many.
    pub(crate) fn obstacles(&self) -> Vec<(Reason, usize)> {
        let mut found: Vec<(Reason, usize)> = Vec::new();
        for class in self.classes.values().filter(|class| !class.ready.is_empty()) {
            let Some(obstacle) = &class.obstacle else { continue };
            match found.iter_mut().find(|(reason, _)| reason == obstacle) {
                Some((_, builds)) => *builds += class.ready.len(),
                None => found.push((obstacle.clone(), class.ready.len())),
            }
        }
        found.sort_by_key(|(_, builds)| std::cmp::Reverse(*builds));
        found
    }

    /// Adds a build or replaces what is known of it.
    fn put(&mut self, now: Instant, wall: Time, entry: Entry, obstacle: Obstacle<'_>) {
        self.forget(entry.id);
        let Entry { id, priority, timestamp, system, kind, waits_for, retry_at } = entry;
        let mut class: ClassKey = (kind, system.into());
        if let Some((shared, _)) = self.classes.get_key_value(&class) {
            class = shared.clone(); // One copy of the system's name a class, not one a build.
        } else {
            let obstacle = obstacle(kind, &class.1);
            self.classes.insert(class.clone(), Class { obstacle, ..Class::default() });
        }
        let retry = retry_at.filter(|at| *at > wall).map(|at| {
            let wait = wall.until(at).min(LONGEST_BACKOFF);
            Retry { due: now + wait, at: wall.after(wait) }
        });
        let waits: BTreeSet<BuildId> = waits_for.into_iter().collect();
        for target in &waits {
            self.dependents.entry(*target).or_default().insert(id);
        }
        let key = Key { priority, timestamp, id };
        self.classes.entry(class.clone()).or_default().members += 1;
        self.place(id, Pending { key, class, waits, retry });
    }

    /// Removes a pending build; others go on waiting for it.
    fn forget(&mut self, id: BuildId) {
        let Some(pending) = self.withdraw(id) else { return };
        for target in &pending.waits {
            if let Some(sources) = self.dependents.get_mut(target) {
                sources.remove(&id);
                if sources.is_empty() {
                    self.dependents.remove(target);
                }
            }
        }
        if let Some(class) = self.classes.get_mut(&pending.class) {
            class.members -= 1;
            if class.members == 0 {
                self.classes.remove(&pending.class);
            }
        }
    }

    /// Nobody has to wait for this one any more.
    fn resolve(&mut self, target: BuildId) {
        for id in self.dependents.remove(&target).unwrap_or_default() {
            let Some(pending) = self.pending.get_mut(&id) else { continue };
            pending.waits.remove(&target);
            if pending.waits.is_empty()
                && let Some(pending) = self.withdraw(id)
            {
                self.place(id, pending);
            }
        }
    }

    /// Takes a pending build out of the sets that its state decides.
    fn withdraw(&mut self, id: BuildId) -> Option<Pending> {
        let pending = self.pending.remove(&id)?;
        if let Some(retry) = pending.retry {
            self.timers.remove(&(retry.due, id));
        }
        // It may have become ready since it was put among the held.
        if !self.held.remove(&pending.key)
            && let Some(class) = self.classes.get_mut(&pending.class)
        {
            class.ready.remove(&pending.key);
            self.refresh_head(&pending.class);
        }
        Some(pending)
    }

    /// Puts a pending build into the sets that its state decides.
    fn place(&mut self, id: BuildId, pending: Pending) {
        if let Some(retry) = pending.retry {
            self.timers.insert((retry.due, id));
        }
        if pending.is_ready() {
            self.classes.entry(pending.class.clone()).or_default().ready.insert(pending.key);
            self.refresh_head(&pending.class);
        } else {
            self.held.insert(pending.key);
        }
        self.pending.insert(id, pending);
    }

    /// Makes `heads` agree with a class that changed.
    fn refresh_head(&mut self, key: &ClassKey) {
        let Some(class) = self.classes.get_mut(key) else { return };
        let head = class.ready.first().copied().filter(|_| class.obstacle.is_none());
        if head == class.head {
            return;
        }
        if let Some(old) = class.head.take() {
            self.heads.remove(&(old, key.clone()));
        }
        if let Some(new) = head {
            class.head = Some(new);
            self.heads.insert((new, key.clone()));
        }
    }

    /// Asserts the invariants that hold between any two calls.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        tests::check(self);
    }

    /// Asserts in addition what must hold when all that can be handed out has been.
    #[cfg(test)]
    pub(crate) fn check_busy(&self) {
        self.check();
        assert!(!self.is_hungry() || self.short, "a ready build waits beside a free slot");
    }
}
