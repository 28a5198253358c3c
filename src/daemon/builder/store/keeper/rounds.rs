//! What the keeper does: roots are made, held and let go, one after the other, over one connection.
//!
//! Invariant: what could not be done is noted as such, and is done when everything is looked at; nothing is let go of that
//! a build which is not over needs.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::TryRecvError;

use super::{Keeper, LAST_LINKS, Means, Message};
use crate::actor::Stop;
use crate::daemon::builder::store::changed::Changed;
use crate::daemon::builder::store::connect;
use crate::daemon::builder::store::probe::Reach;
use crate::daemon::builder::store::retry::Retry;
use crate::daemon::builder::store::roots::{self, Trouble};
use crate::db::builds;
use crate::db::{Reader, wanted};
use crate::model::build::BuildId;
use crate::model::error::chain;
use crate::model::status::BuildStatus;
use crate::store::{Connection, Error};
use crate::sys::clock;

/// How long a connection that nothing was asked of is kept: what it holds and has no link yet is in the books by then.
const REST: Duration = Duration::from_secs(60);

/// How long one is kept in any case: a daemon holds all that was ever held over it. What is still wanted is held over the
/// next one before.
const LIFE: Duration = Duration::from_secs(1800);

/// How long a daemon may take to answer: an old one answers when its collection is over.
const PATIENCE: Duration = Duration::from_secs(4 * 3600);

/// Outputs that are asked about at once.
const QUERY: usize = 1000;

/// Why something was left for later.
enum Left {
    Stopping,
    Books(crate::db::Error),
    Root(Trouble),
}

impl From<crate::db::Error> for Left {
    fn from(error: crate::db::Error) -> Self {
        Self::Books(error)
    }
}

impl From<Trouble> for Left {
    fn from(trouble: Trouble) -> Self {
        Self::Root(trouble)
    }
}

impl From<Error> for Left {
    fn from(error: Error) -> Self {
        Self::Root(Trouble::Daemon(error))
    }
}

impl From<io::Error> for Left {
    fn from(error: io::Error) -> Self {
        Self::Root(Trouble::Link(error))
    }
}

/// What the thread of the keeper works on.
pub(super) struct Rounds {
    pub(super) keeper: Keeper,
    reach: Reach,
    means: Means,
    stop: Stop,
    reader: Option<Reader>,
    connection: Option<Connection>,
    /// What the connection holds and nothing else does: noted of a far daemon only.
    held: HashSet<String>,
    /// When the connection was opened, and last used.
    opened: Instant,
    used: Instant,
    pub(super) changed: Changed,
    pub(super) retry: Retry,
    /// Until when a stop lets it go on.
    last: Option<Instant>,
    /// Whether the daemon knows the links that an earlier life made: it may have ended between the two.
    registered: bool,
}

impl Rounds {
    pub(super) fn new(stop: Stop, keeper: Keeper, reach: Reach, means: Means) -> Self {
        let now = clock::now();
        Self {
            keeper,
            reach,
            means,
            stop,
            reader: None,
            connection: None,
            held: HashSet::new(),
            opened: now,
            used: now,
            changed: Changed::default(),
            retry: Retry::default(),
            last: None,
            registered: false,
        }
    }

    pub(super) fn take(&mut self, message: Message) {
        if !self.reach.is_open() {
            // It is told when that changes.
            self.changed.take();
            self.retry.clear();
            self.keeper.behind.store(true, Ordering::Release);
            return;
        }
        let behind = self.keeper.behind.swap(false, Ordering::AcqRel);
        let done = match &message {
            Message::Hold(derivations) => self.hold(derivations),
            Message::Scheduled(builds) => self.scheduled(builds),
            Message::Changed(builds) => {
                self.changed.add(clock::now(), builds);
                Ok(())
            }
            // The one who asked is told by the drop of the message, at the end of this round.
            Message::CatchUp | Message::Tell(_) => self.catch_up(),
        };
        let done = done.and_then(|()| if behind { self.everything() } else { Ok(()) });
        match done {
            Ok(()) => self.retry.clear(),
            Err(left) => self.leave(&left),
        }
    }

    /// Something was left for later.
    fn leave(&mut self, left: &Left) {
        self.retry.failed(clock::now());
        self.keeper.behind.store(true, Ordering::Release);
        self.warn(left);
        if let Left::Root(Trouble::Daemon(error)) = left {
            self.close();
            // A daemon that refuses something is there.
            if !matches!(error, Error::Refused(_)) {
                self.reach.lose();
            }
        }
    }

    fn warn(&self, left: &Left) {
        let store = self.means.store.as_str();
        match left {
            Left::Stopping => {}
            Left::Books(error) => {
                log::warn!(target: "builder", "roots of {store} are made later: {}", chain(error));
            }
            Left::Root(Trouble::Link(error)) => {
                let directory = self.means.directory.display();
                log::warn!(target: "builder", "roots in {directory} are made later: {error}");
            }
            Left::Root(Trouble::Daemon(error)) => {
                log::warn!(target: "builder", "roots of {store} are made later: {}", chain(error));
            }
        }
    }

    fn hold(&mut self, derivations: &[String]) -> Result<(), Left> {
        for derivation in derivations {
            if self.is_item(derivation) {
                self.hold_item(derivation)?;
            }
        }
        Ok(())
    }

    fn hold_item(&mut self, item: &str) -> Result<(), Left> {
        self.connection()?.add_temporary_root(item)?;
        if self.means.far {
            self.held.insert(item.to_owned());
        }
        Ok(())
    }

    /// Whether nothing keeps `item` but a link that is not seen.
    fn is_loose(&self, item: &str) -> bool {
        self.means.far && !self.held.contains(item)
    }

    /// Makes links that builds which are not over need. Those that end meanwhile are said to have changed.
    fn scheduled(&mut self, ids: &[BuildId]) -> Result<(), Left> {
        let builds = wanted::derivations(self.reader()?, ids)?;
        for build in builds {
            if build.status.is_pending() && self.is_item(&build.derivation) {
                self.root(&build.derivation, false)?;
            }
        }
        Ok(())
    }

    /// For the stop: what is registered has its link before nobody holds it, as far as there is time for it.
    pub(super) fn last_links(&mut self) {
        self.last = Some(clock::now() + LAST_LINKS);
        if self.reach.is_open()
            && let Err(left) = self.pending_links(false)
        {
            self.warn(&left);
        }
        self.close();
    }

    fn catch_up(&mut self) -> Result<(), Left> {
        let ids = self.changed.take();
        if ids.is_empty() {
            return Ok(());
        }
        let builds = wanted::derivations(self.reader()?, &ids)?;
        let mut succeeded = Vec::new();
        for build in builds {
            if !self.is_item(&build.derivation) {
                continue;
            }
            if build.status.is_pending() {
                self.root(&build.derivation, false)?;
                continue;
            }
            roots::release(&self.means.directory, &build.derivation)?;
            if build.status == BuildStatus::Succeeded {
                succeeded.push(build.id);
            }
        }
        self.all_outputs(&succeeded)
    }

    /// Compares the links with the books.
    fn everything(&mut self) -> Result<(), Left> {
        // With one that broke while nothing was asked of it, all is lost that it held.
        if self.means.far && self.connection.as_ref().is_some_and(|one| !one.is_quiet()) {
            self.close();
        }
        let pending = self.pending_links(!self.registered)?;
        self.registered = true;
        self.sweep(&pending)?;
        if self.means.far {
            let needed = wanted::needed(self.reader()?)?;
            return needed.iter().try_for_each(|item| self.hold_loose(item));
        }
        let builds = wanted::succeeded(self.reader()?)?;
        self.all_outputs(&builds)
    }

    /// Derivations of all builds that are not over, which have their links now; with `anew`, new ones.
    fn pending_links(&mut self, anew: bool) -> Result<HashSet<String>, Left> {
        let pending: HashSet<String> = wanted::pending(self.reader()?)?.into_iter().collect();
        for derivation in &pending {
            if self.is_item(derivation) {
                self.root(derivation, anew)?;
            }
        }
        Ok(pending)
    }

    /// Lets go of derivations whose builds are over. Nobody else makes their links.
    fn sweep(&self, pending: &HashSet<String>) -> Result<(), Left> {
        let entries = match fs::read_dir(&self.means.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let Some(item) = roots::item(&entry?.path()) else { continue };
            if item.ends_with(".drv") && self.is_item(&item) && !pending.contains(&item) {
                roots::release(&self.means.directory, &item)?;
            }
        }
        Ok(())
    }

    fn all_outputs(&mut self, builds: &[BuildId]) -> Result<(), Left> {
        builds.chunks(QUERY).try_for_each(|some| self.outputs(some))
    }

    /// Keeps outputs that are in the store and are not kept.
    fn outputs(&mut self, builds: &[BuildId]) -> Result<(), Left> {
        let mut bare = Vec::new();
        for &id in builds {
            for path in builds::outputs(self.reader()?, id)?.into_values() {
                let link = roots::link(&self.means.directory, &path)?;
                let kept = fs::symlink_metadata(link).is_ok() && !self.is_loose(&path);
                if self.is_item(&path) && !kept {
                    bare.push(path);
                }
            }
        }
        if bare.is_empty() {
            return Ok(());
        }
        for path in &bare {
            self.hold_item(path)?;
        }
        let paths: Vec<&str> = bare.iter().map(String::as_str).collect();
        for path in self.connection()?.valid(&paths)? {
            self.root(&path, false)?;
        }
        Ok(())
    }

    /// Makes a link where there is none; with `anew`, in any case.
    fn root(&mut self, item: &str, anew: bool) -> Result<(), Left> {
        let link = roots::link(&self.means.directory, item)?;
        if !anew && fs::symlink_metadata(link).is_ok() {
            return self.hold_loose(item);
        }
        self.hold_item(item)?;
        let directory = self.means.directory.clone();
        Ok(roots::keep(self.connection()?, &directory, item)?)
    }

    /// Holds what only a link keeps that is not seen.
    fn hold_loose(&mut self, item: &str) -> Result<(), Left> {
        if self.is_loose(item) && self.is_item(item) { self.hold_item(item) } else { Ok(()) }
    }

    /// Whether `path` is one that the daemon takes for a store item; it may close the connection over another.
    fn is_item(&self, path: &str) -> bool {
        let name = path.strip_prefix(&self.means.store).and_then(|rest| rest.strip_prefix('/'));
        name.and_then(|name| name.split_once('-')).is_some_and(|(hash, name)| {
            hash.len() == 32
                && hash.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
                && !name.is_empty()
                && !name.contains('/')
        })
    }

    fn reader(&mut self) -> Result<&Reader, Left> {
        if self.is_over() {
            return Err(Left::Stopping);
        }
        if self.reader.is_none() {
            self.reader = Some(self.means.database.reader()?);
        }
        // Just filled.
        self.reader.as_ref().ok_or(Left::Stopping)
    }

    fn connection(&mut self) -> Result<&mut Connection, Left> {
        if self.is_over() {
            return Err(Left::Stopping);
        }
        let now = clock::now();
        if self.connection.is_none() {
            let address = (&self.means.address, self.means.dialect);
            let connection = connect(address, &self.keeper.leash, &|| !self.is_over())?;
            let patient = connection.be_patient(PATIENCE);
            self.connection = Some(connection);
            self.opened = now;
            if let Err(error) = patient {
                self.close();
                return Err(error.into());
            }
        }
        self.used = now;
        // Just filled.
        self.connection.as_mut().ok_or(Left::Stopping)
    }

    /// Whether to stop, and what a stop gives time for is done.
    fn is_over(&self) -> bool {
        match self.last {
            Some(last) => last <= clock::now(),
            None => self.stop.try_recv() == Err(TryRecvError::Disconnected),
        }
    }

    /// When the connection is to be closed, if nothing needs it first.
    pub(super) fn retires(&self) -> Option<Instant> {
        self.connection.as_ref()?;
        if self.keeper.behind.load(Ordering::Acquire) {
            return None;
        }
        let life = self.opened + LIFE;
        let resting = self.changed.due().is_none();
        Some(if resting { life.min(self.used + REST) } else { life })
    }

    /// Closes the connection when all that it could be needed for is done.
    pub(super) fn retire(&mut self) {
        self.take(Message::CatchUp);
        if self.keeper.behind.load(Ordering::Acquire) {
            return;
        }
        if !self.means.far {
            self.close();
        } else if let Err(left) = self.renew() {
            self.leave(&left);
        }
    }

    /// Closes a connection that nobody needs; an old one when another holds what is wanted.
    fn renew(&mut self) -> Result<(), Left> {
        let mut wanted = wanted::pending(self.reader()?)?;
        wanted.extend(wanted::needed(self.reader()?)?);
        wanted.retain(|item| self.is_item(item));
        let now = clock::now();
        if wanted.is_empty() {
            self.close();
        } else if now < self.opened + LIFE {
            self.used = now;
        } else {
            self.held.clear();
            let _old = self.connection.take();
            wanted.iter().try_for_each(|item| self.hold_item(item))?;
        }
        Ok(())
    }

    /// The daemon lets go of what the connection held. The leash holds it open, too.
    fn close(&mut self) {
        self.keeper.leash.release();
        self.connection = None;
        self.held.clear();
    }
}

#[cfg(test)]
mod tests;
