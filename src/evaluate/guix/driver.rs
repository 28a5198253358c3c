//! The driver: has Guix compute the profile and the jobs of one evaluation, and prints them.
//!
//! Invariant: each job is printed once, by its name and system, whichever process comes upon it first.
//!
//! Nothing here has a deadline of its own: the evaluation's ends the driver, and its end ends what it started.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use serde_json::json;

use super::request::{Asked, Given, Pinned, datum};
use super::script::{self, Job, Printed, Run, Script};
use crate::actor::Spawner;
use crate::actor::pool::Pool;
use crate::evaluate::ask::{self, ANSWERS, Answer, Answers, PROFILE};
use crate::evaluate::lent::{self, Channel, Lent};
use crate::evaluate::nix::SAYS;
use crate::model::error::chain;
use crate::model::status::BuildStatus;
use crate::sys::clock;
use crate::sys::process::{How, Launcher};

/// How long the lock on a directory of our own may take: no time at all.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// Lines on their way from the processes to the output: they are short, and the output does not wait for long.
const LINES: usize = 64;

/// Why there are no jobs, or not all.
#[derive(Debug)]
enum Error {
    /// It was not started by the evaluator.
    Arguments,
    Lent(lent::Error),
    Prepare(PathBuf, io::Error),
    Script(script::Error),
    /// Of a system.
    System(String, script::Error),
    /// The profile was not built: how it ended, and why.
    Profile(String, Option<String>),
    /// Nobody says how the build ended.
    Answer(io::Error),
    Output(io::Error),
    Threads(io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arguments => f.write_str("this mode is for evaluations"),
            Self::Lent(error) => error.fmt(f),
            Self::Prepare(path, _) => write!(f, "cannot prepare {}", path.display()),
            Self::Script(error) => error.fmt(f),
            Self::System(system, error) => write!(f, "{system}: {error}"),
            Self::Profile(status, None) => write!(f, "the job {PROFILE} was needed: {status}"),
            Self::Profile(status, Some(why)) => {
                write!(f, "the job {PROFILE} was needed: {status}: {why}")
            }
            Self::Answer(_) => write!(f, "cannot learn how the job {PROFILE} ended"),
            Self::Output(_) => f.write_str("cannot hand on a job"),
            Self::Threads(_) => f.write_str("cannot start a thread"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Prepare(_, error)
            | Self::Answer(error)
            | Self::Output(error)
            | Self::Threads(error) => Some(error),
            Self::Script(error) | Self::System(_, error) => error.source(),
            Self::Lent(error) => error.source(),
            Self::Arguments | Self::Profile(..) => None,
        }
    }
}

impl Error {
    /// Whether the same may go well another time.
    fn is_foreign(&self) -> bool {
        match self {
            Self::Prepare(..) | Self::Lent(lent::Error::Channels(..)) | Self::Threads(_) => true,
            Self::Script(error) | Self::System(_, error) => error.is_foreign(),
            // The store was away, or somebody wanted it to end: of the channels that says nothing.
            Self::Profile(status, _) => {
                [BuildStatus::Aborted, BuildStatus::Canceled].iter().any(|s| s.word() == status)
            }
            Self::Arguments
            | Self::Lent(lent::Error::Missing(_))
            | Self::Answer(_)
            | Self::Output(_) => false,
        }
    }
}

impl From<script::Error> for Error {
    fn from(error: script::Error) -> Self {
        Self::Script(error)
    }
}

/// The driver's life: called by `main` for the hidden first argument, with those after it.
pub(crate) fn main(arguments: impl Iterator<Item = std::ffi::OsString>) -> ExitCode {
    let arguments: Vec<_> = arguments.map(|a| a.to_string_lossy().into_owned()).collect();
    match Driver::new(&arguments).and_then(|mut driver| driver.run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&chain(&error));
            if error.is_foreign() { ask::FOREIGN.into() } else { ExitCode::FAILURE }
        }
    }
}

/// A line for the evaluation's log.
fn say(text: &str) {
    // There is nobody left to tell.
    let _ = writeln!(io::stderr(), "{SAYS}{text}");
}

struct Driver {
    launcher: Launcher,
    asked: Asked,
    systems: Vec<String>,
    channels: Vec<Pinned>,
    printed: Jobs,
}

impl Driver {
    fn new(arguments: &[String]) -> Result<Self, Error> {
        let [asked] = arguments else { return Err(Error::Arguments) };
        let asked: Asked = serde_json::from_str(asked).map_err(|_| Error::Arguments)?;
        let Lent { systems, channels, temporary } = Lent::here().map_err(Error::Lent)?;
        let given = |channel: Channel| {
            let given = asked.channels.iter().find(|given| given.name == channel.name)?.clone();
            Some(Pinned { given, commit: channel.commit, directory: channel.directory.into() })
        };
        let channels = channels.into_iter().filter_map(given).collect();
        let keepers = temporary.join("keepers");
        let launcher = Launcher::new(keepers.clone(), clock::now() + LOCK_PATIENCE)
            .map_err(|error| Error::Prepare(keepers, error))?;
        Ok(Self { launcher, asked, systems, channels, printed: Jobs::default() })
    }

    fn run(&mut self) -> Result<(), Error> {
        let (guix, keeper) = if self.asked.profile {
            let (profile, keeper) = self.profile()?;
            (vec![format!("{profile}/bin/guix")], Some(keeper))
        } else {
            if ["guix", "images", "system-tests"].iter().any(|word| self.asked.subset == *word) {
                return Err(Error::Script(script::Error::Guix(format!(
                    "build {} is of Guix itself: it needs a channel called guix",
                    self.asked.subset
                ))));
            }
            (self.asked.command.clone(), None)
        };
        let result = self.jobs(&guix);
        // Only now may the profile and the channels' checkouts, which all systems read, be collected.
        if let Some(keeper) = keeper {
            keeper.stop();
        }
        result
    }

    /// The profile that holds the channels, once it is built, and what keeps it from being collected.
    fn profile(&mut self) -> Result<(String, Run), Error> {
        let answers = match self.asked.builds {
            true => None,
            false => Some(
                Answers::open()
                    .map_err(Error::Answer)?
                    .ok_or(Error::Lent(lent::Error::Missing(ANSWERS)))?,
            ),
        };
        let request = datum(&self.asked, &self.channels);
        let mut run =
            Run::start(&self.launcher, &self.asked.command, Script::Profile, &[&request])?;
        let (channels, mut found) = (&mut self.channels, None);
        let ended = run.listen(|printed| match printed {
            Printed::Channel { channel, commit, checkout } => {
                match channels.iter_mut().find(|known| known.given.name == channel) {
                    Some(known) => known.directory = checkout,
                    None => channels.push(dependency(channel, commit, checkout)),
                }
                Ok(false)
            }
            Printed::Profile { profile, name, system, outputs } => {
                found = Some((profile, name, system, outputs));
                Ok(true)
            }
            Printed::Job(_) | Printed::End { .. } => Err(script::Error::Incomplete),
        })?;
        let (derivation, name, system, outputs) = match (ended, found) {
            (None, Some(found)) => found,
            (Some(exit), _) => return Err(run.failure(exit).into()),
            (None, None) => return Err(Error::Script(script::Error::Incomplete)),
        };
        let output = outputs.get("out").and_then(|out| out.as_str()).unwrap_or_default().to_owned();
        let mut job = json!({
            "job": PROFILE, "system": system, "derivation": derivation, "nix-name": name,
            "outputs": outputs, "priority": 0,
        });
        if answers.is_some() {
            job["await"] = json!(true);
        }
        self.printed.emit(job.to_string().as_bytes(), PROFILE, &system, Some(&derivation))?;
        if let Some(answers) = answers {
            say(&format!("waiting for the build of {PROFILE}"));
            let Answer { status, error } = answers.next().map_err(Error::Answer)?;
            if status != BuildStatus::Succeeded.word() {
                // Of one that was canceled, both are that word.
                let error = error.filter(|error| *error != status);
                return Err(Error::Profile(status, error));
            }
        }
        // Of a build long ago nothing may be left; and for a one-off nobody has built it.
        if !Path::new(&output).join("bin/guix").exists() {
            self.build(&request, &derivation)?;
        }
        Ok((output, run))
    }

    /// Has the store build a derivation, its log in ours.
    fn build(&self, request: &str, derivation: &str) -> Result<(), Error> {
        let arguments = [request, "build", derivation];
        let mut run = Run::start(&self.launcher, &self.asked.command, Script::Profile, &arguments)?;
        match run.listen(|_| Err(script::Error::Incomplete))? {
            Some(exit) if exit.how == How::Code(0) => Ok(()),
            Some(exit) => Err(run.failure(exit).into()),
            None => Err(Error::Script(script::Error::Incomplete)),
        }
    }

    /// The jobs of all systems, a process for each, as many at once as there are processors.
    fn jobs(&mut self, guix: &[String]) -> Result<(), Error> {
        // One, when the kernel does not say.
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let most = cpus.min(self.systems.len());
        let (spawner, _threads) = Spawner::new();
        let pool = Pool::new(&spawner, "system", most).map_err(Error::Threads)?;
        let (lane, said) = bounded(LINES);
        let request = datum(&self.asked, &self.channels);
        let mut waiting = self.systems.clone().into_iter();
        let mut running = 0;
        let mut begin = |lane: &Sender<Said>| -> usize {
            let Some(system) = waiting.next() else { return 0 };
            let task = Task {
                launcher: self.launcher.clone(),
                guix: guix.to_vec(),
                request: request.clone(),
                system,
                lane: lane.clone(),
            };
            // There is a thread for each that runs.
            usize::from(pool.run(move || task.run()).is_ok())
        };
        for _ in 0..most {
            running += begin(&lane);
        }
        let mut worst: Option<Error> = None;
        while running > 0 {
            match receive(&said)? {
                Said::Job(job) => {
                    self.printed.emit(&job.line(), &job.job, &job.system, job.derivation())?;
                }
                Said::Ended(system, result) => {
                    running -= 1;
                    let error = match result {
                        Ok(run) => {
                            ask::hold().map_err(Error::Answer)?;
                            run.stop();
                            running += begin(&lane);
                            continue;
                        }
                        Err(error) => error,
                    };
                    running += begin(&lane);
                    // The others go on: what they find is good.
                    let error = Error::System(system, error);
                    // What is worth another try counts most, and else what came first.
                    if worst.as_ref().is_none_or(|worst| !worst.is_foreign() && error.is_foreign())
                    {
                        worst.replace(error).inspect(|error| say(&chain(error)));
                    } else {
                        say(&chain(&error));
                    }
                }
            }
        }
        self.printed.summary();
        worst.map_or(Ok(()), Err)
    }
}

/// A channel that the specification does not have.
fn dependency(name: String, commit: String, directory: PathBuf) -> Pinned {
    let given = Given { name, branch: None, introduction: None, repository: PathBuf::new() };
    Pinned { given, commit, directory }
}

fn receive(said: &Receiver<Said>) -> Result<Said, Error> {
    said.recv().map_err(|_| Error::Script(script::Error::Incomplete))
}

/// What a system's process says.
enum Said {
    Job(Box<Job>),
    /// With the process that is through with its jobs, and that keeps their derivations.
    Ended(String, Result<Box<Run>, script::Error>),
}

/// The jobs of one system.
struct Task {
    launcher: Launcher,
    guix: Vec<String>,
    request: String,
    system: String,
    lane: Sender<Said>,
}

impl Task {
    fn run(self) {
        let result = self.jobs().map(Box::new);
        // The driver is there until all have ended.
        let _ = self.lane.send(Said::Ended(self.system, result));
    }

    fn jobs(&self) -> Result<Run, script::Error> {
        let arguments = [self.request.as_str(), &self.system];
        let mut run = Run::start(&self.launcher, &self.guix, Script::Jobs, &arguments)?;
        let (mut number, mut through) = (0, false);
        let ended = run.listen(|printed| {
            match printed {
                Printed::Job(job) => {
                    number += 1;
                    let gone = |_| script::Error::Output(io::ErrorKind::BrokenPipe.into());
                    self.lane.send(Said::Job(job)).map_err(gone)?;
                }
                Printed::End { end } => {
                    through = end == number;
                    return Ok(true);
                }
                Printed::Channel { .. } | Printed::Profile { .. } => {
                    return Err(script::Error::Incomplete);
                }
            }
            Ok(false)
        })?;
        match ended {
            None if through => Ok(run),
            Some(exit) => Err(run.failure(exit)),
            None => Err(script::Error::Incomplete),
        }
    }
}

/// The jobs that were printed.
#[derive(Default)]
struct Jobs {
    /// The derivation of each name and system.
    known: HashMap<(String, String), Option<String>>,
    /// Those that were left out because their name was taken by another.
    left_out: usize,
}

impl Jobs {
    /// Hands a job to the evaluation, at once: builds begin while Guix still evaluates.
    fn emit(
        &mut self,
        line: &[u8],
        job: &str,
        system: &str,
        derivation: Option<&str>,
    ) -> Result<(), Error> {
        let key = (job.to_owned(), system.to_owned());
        let derivation = derivation.map(str::to_owned);
        match self.known.get(&key) {
            // Several systems come upon it, or several manifests.
            Some(known) if *known == derivation => return Ok(()),
            // Cuirass, too, takes the first.
            Some(_) => {
                self.left_out += 1;
                return Ok(());
            }
            None => {}
        }
        self.known.insert(key, derivation);
        let mut output = io::stdout().lock();
        output
            .write_all(&[line, b"\n"].concat())
            .and_then(|()| output.flush())
            .map_err(Error::Output)
    }

    fn summary(&self) {
        if self.left_out > 0 {
            say(&format!("{} jobs are left out: others have their names", self.left_out));
        }
    }
}
