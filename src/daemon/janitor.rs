//! Keeps house: sweeps for broken invariants and repairs them, expires what is no longer wanted, counts.
//!
//! Invariant: what a pending build or a running evaluation needs is never removed, and no round of work is
//! long: what is left over is done in the next one.

mod chores;
mod files;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, io};

use crossbeam_channel::{at, never, select};

use self::chores::{Chore, Chores};
use self::files::Walk;
use super::builder;
use crate::actor::{self, Gone, Spawner, Stop};
use crate::db::builds::Changes;
use crate::db::{self, Database, Reader};
use crate::evaluate::guix;
use crate::git;
use crate::model::build::BuildId;
use crate::model::evaluation::EvaluationId;
use crate::model::time::Time;
use crate::spec;
use crate::sys::clock;

/// Evaluations recounted in one round: each costs a reader a scan of its jobs, a few milliseconds for large ones.
const RECOUNTED: usize = 20;

/// Rows removed in one transaction, so that other writers wait for milliseconds only.
const ROWS: usize = 100;

/// Jobs of an evaluation removed in one transaction: some 20 ms, as each costs five B-trees a row.
const JOBS: usize = 1000;

/// Directory entries looked at in one round.
const ENTRIES: usize = 500;

/// Trees removed in one round: each may hold tens of thousands of files.
const TREES: usize = 2;

/// Trees that cannot be removed, of which there are few; beyond this all are tried again, and told.
const GIVEN_UP: usize = 1000;

/// How long a write may take; a full disk must not hold the janitor up when the daemon stops.
const WRITING: Duration = Duration::from_secs(5);

/// A checkout younger than this may be about to be used by an evaluation that is not in the books yet.
const CHECKOUT_REST: Duration = Duration::from_secs(3600);

/// What the janitor is told.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// `log/builds` and `log/evaluations` are below it.
    pub(crate) log_directory: PathBuf,
    /// `checkouts` and `stale` are below it.
    pub(crate) cache_directory: PathBuf,
    pub(crate) products: PathBuf,
    pub(crate) roots: PathBuf,
    pub(crate) ttl: Duration,
    pub(crate) log_expiry: Duration,
    pub(crate) build_expiry: Option<Duration>,
    pub(crate) history_expiry: Option<Duration>,
}

/// Why a chore was left for the next time.
#[derive(Debug)]
enum Error {
    Database(db::Error),
    Files(PathBuf, io::Error),
    Gone,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Database(error) => match std::error::Error::source(error) {
                Some(source) => write!(f, "{error}: {source}"),
                None => error.fmt(f),
            },
            Self::Files(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Gone => Gone.fmt(f),
        }
    }
}

impl From<db::Error> for Error {
    fn from(error: db::Error) -> Self {
        Self::Database(error)
    }
}

impl From<Gone> for Error {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

/// Starts the thread `janitor`. It takes no requests.
pub(crate) fn spawn(
    threads: &Spawner,
    settings: Settings,
    database: Database,
    builder: builder::Handle,
) -> io::Result<()> {
    threads.essential("janitor", move |stop| {
        let chores = Chores::new(clock::now(), settings.build_expiry, settings.history_expiry);
        let mut janitor = Janitor {
            settings,
            database,
            builder,
            reader: None,
            progress: Progress::default(),
            given_up: HashSet::new(),
        };
        run(chores, &mut janitor, &stop)
    })
}

fn run(mut chores: Chores, janitor: &mut Janitor, stop: &Stop) -> Result<(), Gone> {
    loop {
        let timer = chores.deadline().map_or_else(never, at);
        select! {
            recv(stop) -> _ => return Ok(()),
            recv(timer) -> _ => {}
        }
        actor::fault("janitor");
        if let Some(chore) = chores.take(clock::now()) {
            let more = janitor.perform(chore).unwrap_or_else(|error| {
                log::warn!(target: "janitor", "{} left for later: {error}", chore.word());
                false
            });
            chores.done(clock::now(), chore, more);
        }
    }
}

/// Where chores that go over many things have got to.
#[derive(Default)]
struct Progress {
    recount: Option<EvaluationId>,
    orphans: Option<BuildId>,
    build_logs: Option<Walk>,
    evaluation_logs: Option<Walk>,
    checkouts: Option<Walk>,
    mirrors: Option<Walk>,
    homes: Option<Walk>,
    lent: Option<Walk>,
    products: Option<Walk>,
    roots: Option<Walk>,
}

struct Janitor {
    settings: Settings,
    database: Database,
    builder: builder::Handle,
    reader: Option<Reader>,
    progress: Progress,
    /// What was set aside and cannot be removed, in this life.
    given_up: HashSet<PathBuf>,
}

impl Janitor {
    /// One round of a chore; true if there is more of it to do.
    fn perform(&mut self, chore: Chore) -> Result<bool, Error> {
        match chore {
            Chore::Sweep => self.sweep(),
            Chore::Stale => {
                let stale = self.settings.cache_directory.join("stale");
                if self.given_up.len() >= GIVEN_UP {
                    self.given_up.clear();
                }
                let tell = |path: &Path, error| {
                    log::warn!(target: "janitor", "cannot remove {}: {error}", path.display());
                };
                files::remove_some(&stale, TREES, &mut self.given_up, tell)
                    .map_err(|error| Error::Files(stale, error))
            }
            Chore::Logs => self.logs(),
            Chore::Checkouts => self.checkouts(),
            Chore::Caches => self.caches(),
            Chore::Products => self.products(),
            Chore::Roots => self.roots(),
            Chore::Builds => self.builds(),
            Chore::History => self.history(),
            Chore::Withdrawn => self.withdrawn(),
            Chore::Orphans => self.orphans(),
            Chore::Strays => self.strays(),
            Chore::Metrics => {
                self.write("metrics", db::maintenance::compute_metrics)?;
                Ok(false)
            }
        }
    }

    fn write<T: Send + 'static>(
        &self,
        what: &'static str,
        apply: impl FnMut(&mut db::Tx<'_>) -> Result<T, db::Error> + Send + 'static,
    ) -> Result<T, Error> {
        Ok(self.database.write_within(WRITING, what, apply)?)
    }

    fn reader(&mut self) -> Result<&Reader, Error> {
        if self.reader.is_none() {
            self.reader = Some(self.database.reader()?);
        }
        // Just filled.
        self.reader.as_ref().ok_or(Error::Gone)
    }

    /// Compares the books with the queue, and counters with a recount.
    fn sweep(&mut self) -> Result<bool, Error> {
        let repaired = self.builder.reconcile()?;
        if repaired > 0 {
            log::warn!(target: "janitor", "{repaired} builds of the books were unknown to the queue; repaired");
        }
        let from = self.progress.recount.unwrap_or(EvaluationId(0));
        let (wrong, next) = db::maintenance::miscounted(self.reader()?, from, RECOUNTED)?;
        for id in wrong {
            if self.write("recount", move |tx| db::maintenance::recount(tx, id))? {
                log::warn!(target: "janitor", "the counters of evaluation {id} were wrong; repaired");
            }
        }
        // The next sweep goes on from here; there is no hurry.
        self.progress.recount = next;
        Ok(false)
    }

    fn logs(&mut self) -> Result<bool, Error> {
        let before = clock::wall().before(self.settings.log_expiry);
        let directories = [
            self.settings.log_directory.join("builds"),
            self.settings.log_directory.join("evaluations"),
        ];
        let mut more = false;
        for (directory, builds) in directories.into_iter().zip([true, false]) {
            let slot = if builds {
                &mut self.progress.build_logs
            } else {
                &mut self.progress.evaluation_logs
            };
            let Some(entries) = files::some_of(slot, &directory, ENTRIES)? else { continue };
            more = true;
            for path in entries {
                let Some(id) = files::log_id(&path) else { continue };
                if files::is_older(&path, before) && !self.is_under_way(id, builds)? {
                    remove_file(&path);
                }
            }
        }
        Ok(more)
    }

    /// Whether the build or evaluation `id` has yet to end.
    fn is_under_way(&mut self, id: i64, build: bool) -> Result<bool, Error> {
        let reader = self.reader()?;
        Ok(if build {
            db::builds::get(reader, BuildId(id))?.is_some_and(|build| build.status.is_pending())
        } else {
            let started = crate::model::status::EvaluationStatus::Started;
            db::evaluations::get(reader, EvaluationId(id))?.is_some_and(|e| e.status == started)
        })
    }

    fn checkouts(&mut self) -> Result<bool, Error> {
        let directory = self.settings.cache_directory.join("checkouts");
        let before = clock::wall().before(CHECKOUT_REST);
        let Some(entries) = files::some_of(&mut self.progress.checkouts, &directory, ENTRIES)?
        else {
            return Ok(false);
        };
        let old: Vec<_> = entries.into_iter().filter(|e| files::is_older(e, before)).collect();
        if old.is_empty() {
            return Ok(true);
        }
        let used = db::evaluations::checkouts_in_use(self.reader()?)?;
        for path in old.iter().filter(|path| !used.contains(path)) {
            // What is set aside first is never found half removed.
            let stale = self.settings.cache_directory.join("stale");
            files::set_aside(path, &stale).map_err(|error| Error::Files(path.clone(), error))?;
            log::debug!(target: "janitor", "unused checkout {} removed", path.display());
        }
        Ok(true)
    }

    /// Mirrors that no jobset has as a channel and that no look has used for long, as a submodule's, and directories in
    /// the cache of jobsets that are gone.
    fn caches(&mut self) -> Result<bool, Error> {
        let cache = &self.settings.cache_directory;
        let mirrors = files::some_of(&mut self.progress.mirrors, &cache.join("git"), ENTRIES)?;
        let homes = files::some_of(&mut self.progress.homes, &cache.join("jobsets"), ENTRIES)?;
        let lent = guix::lent_directory(cache);
        let lent = files::some_of(&mut self.progress.lent, &lent, ENTRIES)?;
        let more = mirrors.is_some() || homes.is_some() || lent.is_some();
        let old = |paths: Option<Vec<PathBuf>>, rest: Duration| {
            let before = clock::wall().before(rest);
            let paths = paths.into_iter().flatten();
            paths.filter(|path| files::is_older(path, before)).collect::<Vec<_>>()
        };
        let mirrors = old(mirrors, self.settings.ttl.max(CHECKOUT_REST));
        let mut homes = old(homes, CHECKOUT_REST);
        homes.extend(old(lent, CHECKOUT_REST));
        if mirrors.is_empty() && homes.is_empty() {
            return Ok(more);
        }
        let jobsets = db::jobsets::list(self.reader()?)?;
        let mut used: HashSet<String> = HashSet::new();
        for jobset in &jobsets {
            let Ok(specifications) = spec::json::parse(&jobset.specification) else {
                // What it uses cannot be told.
                return Ok(false);
            };
            let channels = specifications.iter().flat_map(|s| &s.channels);
            used.extend(channels.map(|channel| git::mirror_name(&channel.url)));
        }
        let stem =
            |path: &Path| path.file_stem().is_some_and(|s| used.contains(&*s.to_string_lossy()));
        let named = |path: &Path| {
            let name = path.file_name().unwrap_or_default();
            jobsets.iter().any(|jobset| name == jobset.name.as_str())
        };
        let unused = mirrors.iter().filter(|path| !stem(path));
        let stale = self.settings.cache_directory.join("stale");
        for path in unused.chain(homes.iter().filter(|path| !named(path))) {
            files::set_aside(path, &stale).map_err(|error| Error::Files(path.clone(), error))?;
            log::debug!(target: "janitor", "{}, which no jobset uses, removed", path.display());
        }
        Ok(more)
    }

    fn products(&mut self) -> Result<bool, Error> {
        let ttl = self.settings.ttl;
        let builds = self
            .write("expire products", move |tx| db::maintenance::expire_products(tx, ttl, ROWS))?;
        for id in &builds {
            self.remove_left(*id)?;
        }
        Ok(builds.len() >= ROWS)
    }

    /// Links to outputs that are old, and that no active jobset's last succeeded evaluation has. Those to derivations go
    /// with their builds' ends.
    fn roots(&mut self) -> Result<bool, Error> {
        let before = clock::wall().before(self.settings.ttl);
        let directory = self.settings.roots.clone();
        let Some(entries) = files::some_of(&mut self.progress.roots, &directory, ENTRIES)? else {
            return Ok(false);
        };
        let mut gone = Vec::new();
        for link in entries.iter().filter(|link| files::is_older(link, before)) {
            let Some(item) = builder::store::kept_item(link) else { continue };
            if !item.ends_with(".drv") && !db::wanted::is_output(self.reader()?, &item)? {
                remove_file(link);
                gone.push(item);
            }
        }
        if !gone.is_empty() {
            self.write("forget products", move |tx| db::wanted::forget_products(tx, &gone))?;
        }
        Ok(true)
    }

    fn builds(&mut self) -> Result<bool, Error> {
        let Some(age) = self.settings.build_expiry else { return Ok(false) };
        let changes = self.write("expire builds", move |tx| db::builds::expire(tx, age))?;
        if changes != Changes::default() {
            log::info!(target: "janitor", "{} builds canceled that had waited too long", changes.ended.len());
            self.builder.changed(changes)?;
        }
        Ok(false)
    }

    fn history(&mut self) -> Result<bool, Error> {
        let Some(age) = self.settings.history_expiry else { return Ok(false) };
        let expired =
            self.write("expire history", move |tx| db::maintenance::expire_history(tx, age, ROWS))?;
        Ok(expired.len() >= ROWS)
    }

    /// What is left of evaluations that expired or whose jobset was deleted.
    fn withdrawn(&mut self) -> Result<bool, Error> {
        let Some(id) = db::evaluations::withdrawn(self.reader()?)? else { return Ok(false) };
        // While the books still know of it.
        remove_file(&self.settings.log_directory.join("evaluations").join(format!("{id}.gz")));
        self.write("remove an evaluation", move |tx| db::evaluations::remove_some(tx, id, JOBS))?;
        Ok(true)
    }

    fn orphans(&mut self) -> Result<bool, Error> {
        let from = self.progress.orphans;
        let (removed, next) = self
            .write("remove orphans", move |tx| db::maintenance::remove_orphans(tx, from, ROWS))?;
        self.progress.orphans = next;
        for id in &removed {
            self.remove_left(*id)?;
            remove_file(&self.settings.log_directory.join("builds").join(format!("{id}.gz")));
        }
        Ok(next.is_some())
    }

    /// Products that the books know nothing of: left by a crash between a removal there and here, or by a build that was
    /// killed.
    fn strays(&mut self) -> Result<bool, Error> {
        let directory = self.settings.products.clone();
        let Some(entries) = files::some_of(&mut self.progress.products, &directory, ENTRIES)?
        else {
            return Ok(false);
        };
        // What is younger may be on its way here or there.
        let before = clock::wall().before(CHECKOUT_REST);
        for path in entries.iter().filter(|path| files::is_older(path, before)) {
            let id = path.file_name().and_then(|name| name.to_str()).and_then(|n| n.parse().ok());
            let Some(id) = id else { continue };
            if self.remove_left(BuildId(id))? {
                log::info!(target: "janitor", "what build {id} had left, and the books do not have, removed");
            }
        }
        Ok(true)
    }

    /// Removes the products of a build that has none by the books; whether it had. It may be made again meanwhile. What
    /// cannot be removed is tried again with the strays.
    fn remove_left(&mut self, id: BuildId) -> Result<bool, Error> {
        let path = self.settings.products.join(id.to_string());
        if !db::maintenance::has_nothing(self.reader()?, id)? {
            return Ok(false);
        }
        let stale = self.settings.cache_directory.join("stale");
        if let Err(error) = files::set_aside(&path, &stale) {
            log::warn!(target: "janitor", "cannot remove {}: {error}", path.display());
            return Ok(false);
        }
        Ok(true)
    }
}

fn remove_file(path: &Path) {
    match std::fs::remove_file(path) {
        Ok(()) => log::debug!(target: "janitor", "{} removed", path.display()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            log::warn!(target: "janitor", "cannot remove {}: {error}", path.display());
        }
    }
}

/// Sets the working copies of an earlier life aside, before anything new is put beside them; the janitor
/// removes them.
pub(crate) fn set_aside_left_overs(cache_directory: &Path) -> io::Result<()> {
    let stale = cache_directory.join("stale");
    for name in ["evaluations", "builds"] {
        files::set_aside(&cache_directory.join(name), &stale)?;
    }
    Ok(())
}

/// A wall-clock time as the file system has it.
fn system_time(time: Time) -> std::time::SystemTime {
    std::time::UNIX_EPOCH + Time(0).until(time)
}

#[cfg(test)]
mod tests;
