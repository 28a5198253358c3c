//! One process build, from its checkout to its products. Runs on a thread of the pool and blocks as it likes.
//!
//! Invariant: when it has returned, nothing of the build runs any more, its working directory is gone, and what it
//! left belongs to the daemon.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::limits::{Exceeded, Limits};
use super::products::{self, Collector, Refused as Uncollected};
use crate::daemon::builder::Settings;
use crate::daemon::builder::output::{Output, Refused};
use crate::daemon::builder::running::Leash;
use crate::daemon::updater::{self, Absent};
use crate::evaluate;
use crate::evaluate::place::Place;
use crate::model::build::{Need, Order, Outcome};
use crate::model::evaluation::Checkout;
use crate::model::job::ProcessWork;
use crate::sys::process::{Child, Exit, How, Killer, Launch, Launcher, Program, Read};
use crate::sys::{clock, file};

/// How long a build that is to stop may take to end by itself.
const GRACE: Duration = Duration::from_secs(3);

/// A build that fails with less than this free on its disk is taken to have failed for that: what one write of a
/// linker or an archiver may need. Never more than the space at which builds stop being started.
const FULL: u64 = 64 << 20;

/// The longest read of a child, which is also what is kept in memory of a build's output.
const BUFFER: usize = 64 << 10;

/// How long a build holds its slot while its commit is checked out again, beyond the time after which a remote that says
/// nothing is given up: behind one that only drips others can build.
const CHECKOUT: Duration = Duration::from_secs(30);

/// How long taking what a build leaves may take: a disk image of some hundred gigabytes.
const COLLECTING: Duration = Duration::from_secs(600);

/// What all jobs share.
pub(super) struct Tools {
    launcher: Launcher,
    updater: updater::Handle,
    settings: Settings,
}

/// Why a build did not succeed.
#[derive(Debug)]
enum Trouble {
    /// It said so itself.
    Failed(String),
    /// Something here broke: doing what.
    Io(String, io::Error),
    /// Likewise, before anything of the build ran.
    Prepare(String, io::Error),
    /// Its log cannot be written.
    Log(io::Error),
    /// It cannot begin yet: why.
    Postponed(String),
    Aborted(String),
    Canceled,
}

impl From<Trouble> for Outcome {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Failed(why) => Self::Failed(why),
            Trouble::Io(doing, error) if file::is_full(&error) => Self::Aborted(no_space(&doing)),
            Trouble::Prepare(doing, error) if file::is_full(&error) => {
                Self::NoSpace(no_space(&doing))
            }
            Trouble::Log(error) if file::is_full(&error) => {
                Self::NoSpace(no_space("write the log"))
            }
            Trouble::Io(doing, error) | Trouble::Prepare(doing, error) => {
                Self::Aborted(format!("cannot {doing}: {error}"))
            }
            Trouble::Log(error) => Self::Aborted(format!("cannot write the log: {error}")),
            Trouble::Postponed(why) => Self::Postponed(why),
            Trouble::Aborted(why) => Self::Aborted(why),
            // If it was a person, the books have that already and this changes nothing there.
            Trouble::Canceled => Self::Interrupted,
        }
    }
}

fn no_space(doing: &str) -> String {
    format!("no space left on the disk: cannot {doing}")
}

/// For `map_err`: names what was being done.
fn doing(what: impl Into<String>) -> impl FnOnce(io::Error) -> Trouble {
    move |error| Trouble::Io(what.into(), error)
}

/// Likewise for what is done before anything of the build runs.
fn preparing(what: impl Into<String>) -> impl FnOnce(io::Error) -> Trouble {
    move |error| Trouble::Prepare(what.into(), error)
}

impl Tools {
    pub(super) fn new(
        launcher: Launcher,
        updater: updater::Handle,
        settings: Settings,
    ) -> io::Result<Self> {
        if settings.job_user.is_some() {
            // The job user has to get through to its own directories, not to look around.
            for directory in [&settings.state_directory, &settings.cache_directory] {
                file::make_passable(directory)?;
            }
        }
        Ok(Self { launcher, updater, settings })
    }

    fn has_room(&self) -> bool {
        let room = self.settings.disks().measure();
        room.is_ok_and(|room| room.free >= self.settings.minimum_disk_space)
    }

    /// Where a build's products are.
    fn products(&self, order: &Order) -> PathBuf {
        self.settings.state_directory.join("products").join(order.id.to_string())
    }
}

/// Runs one build to its end.
pub(super) fn run(tools: &Tools, order: &Order, leash: &Leash<Killer>) -> Outcome {
    let result = attempt(tools, order, leash);
    let mid_way = matches!(result, Err(Trouble::Log(_)));
    let outcome = result.unwrap_or_else(Outcome::from);
    let directory = tools.products(order);
    let removed = match &outcome {
        Outcome::Succeeded { products, outputs } if products.is_empty() && outputs.is_empty() => {
            file::remove_tree(&directory)
        }
        Outcome::Succeeded { .. } => Ok(()),
        Outcome::Failed(_)
        | Outcome::DependencyFailed(_)
        | Outcome::Aborted(_)
        | Outcome::Missing(_)
        | Outcome::Lost(_)
        | Outcome::NoSpace(_)
        | Outcome::Postponed(_)
        | Outcome::Interrupted => file::remove_tree(&directory),
    };
    if let Err(error) = removed {
        log::warn!(target: "builder", "cannot remove {}: {error}", directory.display());
    }
    excuse(outcome, mid_way && tools.has_room())
}

/// A build that filled the disk with what it made, so that now, with that gone, `it_made_room`, must not do so for ever.
pub(super) fn excuse(outcome: Outcome, it_made_room: bool) -> Outcome {
    match outcome {
        Outcome::NoSpace(why) if it_made_room => Outcome::Aborted(why),
        outcome => outcome,
    }
}

fn attempt(tools: &Tools, order: &Order, leash: &Leash<Killer>) -> Result<Outcome, Trouble> {
    let settings = &tools.settings;
    let work = order
        .process
        .as_ref()
        .ok_or_else(|| Trouble::Aborted("this build is none for the process backend".to_owned()))?;
    let mut output = Output::create(&order.log, settings.max_log_size)
        .map_err(preparing(format!("create the log {}", order.log.display())))?;
    let globs =
        products::globs(&work.products).map_err(|error| Trouble::Failed(error.to_string()))?;
    let directory = prepare_products(tools, order)?;
    let out = directory.join("out");
    check_inputs(order)?;
    let patience = settings.fetch_timeout + CHECKOUT;
    let checkouts = tools
        .updater
        .present(&order.jobset, &order.checkouts, patience, &|| leash.is_canceled())
        .map_err(|absent| match absent {
            Absent::Late => Trouble::Postponed(format!(
                "its commit is not checked out after {} s",
                patience.as_secs()
            )),
            Absent::Failed(why) => Trouble::Aborted(format!("cannot check out again: {why}")),
            Absent::Canceled => Trouble::Canceled,
        })?;
    let place = prepare_place(settings, order, &checkouts)?;
    let launch = launch(settings, order, work, &place, &out)?;
    if leash.is_canceled() {
        return Err(Trouble::Canceled);
    }
    let child = tools.launcher.start(launch, None).map_err(doing("start a process"))?;
    let limits = Limits {
        began: clock::now(),
        timeout: order.timeout,
        max_silent_time: order.max_silent_time,
    };
    let exit = if leash.take(child.killer()) {
        Watch { child, limits, output: &mut output }.watch()?
    } else {
        child.stop(GRACE);
        return Err(Trouble::Canceled);
    };
    judge(settings, exit, &mut output)?;
    output.flush().map_err(Trouble::Log)?;
    let collector = Collector::new(settings.job_user.as_ref(), leash, COLLECTING);
    match collector.collect(&place.work(), &globs, &directory) {
        Ok((outputs, products)) => Ok(Outcome::Succeeded { outputs, products }),
        Err(Uncollected::Bad(why)) => {
            output.note(&why).map_err(Trouble::Log)?;
            Err(Trouble::Failed(why))
        }
        Err(Uncollected::Canceled) => Err(Trouble::Canceled),
        Err(Uncollected::Io(error)) => Err(doing("collect the products")(error)),
    }
}

/// Makes the directory that holds `$out`, anew.
fn prepare_products(tools: &Tools, order: &Order) -> Result<PathBuf, Trouble> {
    let directory = tools.products(order);
    let make = || {
        file::remove_tree(&directory)?;
        file::create_directory(&directory)?;
        if let Some(user) = &tools.settings.job_user {
            directory.parent().map_or(Ok(()), file::make_passable)?;
            file::chown_tree(&directory, user)?;
        }
        Ok(())
    };
    make().map_err(preparing(format!("make {}", directory.display())))?;
    Ok(directory)
}

/// What a build works on may have been removed since it was registered.
fn check_inputs(order: &Order) -> Result<(), Trouble> {
    for Need { job, outputs, expired } in &order.needs {
        if *expired {
            return Err(Trouble::Aborted(format!("what {job} left has been removed")));
        }
        for path in outputs.values() {
            if let Err(error) = fs::symlink_metadata(path) {
                let why = format!("the output {path} of {job} is gone: {error}");
                return Err(Trouble::Aborted(why));
            }
        }
    }
    Ok(())
}

/// A checkout of the build's own, with the list of channels and the file of needs beside it.
fn prepare_place(
    settings: &Settings,
    order: &Order,
    checkouts: &[Checkout],
) -> Result<Place, Trouble> {
    let cache = &settings.cache_directory;
    let root = cache.join("builds").join(order.id.to_string());
    let home = cache.join("jobsets").join(order.jobset.as_str());
    let user = settings.job_user.as_ref();
    Place::prepare(&root, &home, checkouts, user).map_err(|error| match error {
        evaluate::Error::Prepare(path, error) => {
            Trouble::Prepare(format!("prepare {}", path.display()), error)
        }
        evaluate::Error::Start(error) => Trouble::Io("start a process".to_owned(), error),
    })
}

/// What to run: the environment is the evaluators', then the job's own, then what it cannot change.
fn launch(
    settings: &Settings,
    order: &Order,
    work: &ProcessWork,
    place: &Place,
    out: &Path,
) -> Result<Launch, Trouble> {
    let user = settings.job_user.as_ref();
    let needs = place.temporary().join("needs.json");
    write_needs(&needs, order).map_err(preparing(format!("write {}", needs.display())))?;
    let mut environment: BTreeMap<OsString, OsString> =
        evaluate::command::inherited(user).into_iter().collect();
    environment.insert("TMPDIR".into(), place.temporary().into());
    environment.insert("XDG_CACHE_HOME".into(), place.cache_home().into());
    environment.extend(work.environment.iter().map(|(name, value)| (name.into(), value.into())));
    let ours: [(&str, OsString); 9] = [
        ("out", out.into()),
        ("GORGET_JOBSET", order.jobset.as_str().into()),
        ("GORGET_EVALUATION", order.evaluation.to_string().into()),
        ("GORGET_SYSTEMS", order.system.as_str().into()),
        ("GORGET_CHANNELS", place.channels().into()),
        ("GORGET_JOB", order.job.as_str().into()),
        ("GORGET_BUILD", order.id.to_string().into()),
        ("GORGET_SYSTEM", order.system.as_str().into()),
        ("GORGET_NEEDS", needs.into()),
    ];
    environment.extend(ours.map(|(name, value)| (name.into(), value)));
    Ok(Launch {
        program: Program::Command(work.command.iter().map(OsString::from).collect()),
        environment: environment.into_iter().collect(),
        directory: place.work(),
        user: user.cloned(),
        memory: None,
        merge: true,
    })
}

/// `{"JOB":{"out":"PATH"}}`
fn write_needs(path: &Path, order: &Order) -> io::Result<()> {
    let needs: BTreeMap<&str, &BTreeMap<String, String>> =
        order.needs.iter().map(|need| (need.job.as_str(), &need.outputs)).collect();
    fs::write(path, serde_json::to_vec(&needs)?)?;
    fs::set_permissions(path, Permissions::from_mode(0o644))
}

/// A child under watch.
struct Watch<'a> {
    child: Child,
    limits: Limits,
    output: &'a mut Output,
}

impl Watch<'_> {
    /// Follows the child to its end, or ends it. Nothing of it runs afterwards.
    fn watch(mut self) -> Result<Exit, Trouble> {
        let mut last = self.limits.began;
        let mut buffer = Vec::with_capacity(BUFFER);
        loop {
            let now = clock::now();
            if let Some(exceeded) = self.limits.exceeded(now, last) {
                return Err(self.out_of_time(exceeded));
            }
            if self.output.flush_due().is_some_and(|due| due <= now)
                && let Err(error) = self.output.flush()
            {
                return Err(self.cannot_write(Refused::Io(error)));
            }
            let deadlines = [self.limits.deadline(last), self.output.flush_due()];
            buffer.clear();
            match self.child.read(&mut buffer, deadlines.into_iter().flatten().min()) {
                Ok(Read::Output | Read::Errors) => {
                    last = clock::now();
                    if let Err(refused) = self.output.write(&buffer) {
                        return Err(self.cannot_write(refused));
                    }
                }
                Ok(Read::Deadline) => {}
                Ok(Read::Canceled) => {
                    self.stop();
                    return Err(Trouble::Canceled);
                }
                Ok(Read::Ended(exit)) => return Ok(exit),
                Err(error) => {
                    self.child.stop(GRACE);
                    return Err(Trouble::Io("watch the process".to_owned(), error));
                }
            }
        }
    }

    fn out_of_time(mut self, exceeded: Exceeded) -> Trouble {
        self.stop();
        let why = exceeded.to_string();
        match self.output.note(&why) {
            Ok(()) => Trouble::Failed(why),
            Err(error) => Trouble::Log(error),
        }
    }

    fn cannot_write(self, refused: Refused) -> Trouble {
        self.child.stop(GRACE);
        match refused {
            Refused::TooLarge => {
                let why = format!("log larger than {} bytes", self.output.limit());
                match self.output.note(&why) {
                    Ok(()) => Trouble::Failed(why),
                    Err(error) => Trouble::Log(error),
                }
            }
            Refused::Io(error) => Trouble::Log(error),
        }
    }

    /// SIGTERM, grace, SIGKILL; what it says meanwhile is logged.
    fn stop(&mut self) {
        self.child.terminate();
        if !self.drain(Some(clock::now() + GRACE)) {
            self.child.kill();
            self.drain(None);
        }
    }

    /// Whether it ended by `deadline`; without one, a kill has set one.
    fn drain(&mut self, deadline: Option<Instant>) -> bool {
        let mut buffer = Vec::new();
        loop {
            buffer.clear();
            match self.child.read(&mut buffer, deadline) {
                // It is being stopped for another reason than what the log cannot take.
                Ok(Read::Output | Read::Errors) => drop(self.output.write(&buffer)),
                Ok(Read::Canceled) => {}
                Ok(Read::Deadline) => return false,
                Ok(Read::Ended(_)) | Err(_) => return true,
            }
        }
    }
}

/// Whether the build succeeded by its own account.
fn judge(settings: &Settings, exit: Exit, output: &mut Output) -> Result<(), Trouble> {
    let why = match exit.how {
        How::Code(0) => return Ok(()),
        How::Code(code) => format!("exit status {code}"),
        How::Signal(signal) if exit.oom => format!("signal {signal} (out of memory)"),
        How::Signal(signal) => format!("signal {signal}"),
        How::NotStarted(why) => {
            output.note(&why).map_err(Trouble::Log)?;
            return Err(Trouble::Failed(why));
        }
        How::Prevented(why) => return Err(Trouble::Aborted(why)),
        How::Lost => return Err(Trouble::Aborted("the keeper of the build was lost".to_owned())),
    };
    let full = FULL.min(settings.minimum_disk_space);
    for directory in [&settings.cache_directory, &settings.state_directory] {
        if file::free_space(directory).is_ok_and(|free| free < full) {
            return Err(Trouble::Aborted(format!("no space left on the disk: {why}")));
        }
    }
    Err(Trouble::Failed(why))
}

/// What becomes of a build whose directories cannot be made, and of one whose log cannot be written.
#[cfg(test)]
pub(super) fn refused(what: &str, error: impl Fn() -> io::Error) -> [Outcome; 2] {
    [preparing(what)(error()).into(), Trouble::Log(error()).into()]
}
