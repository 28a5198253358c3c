//! The driver: runs Nix programs for one evaluation and prints the jobs they find.
//!
//! Invariant: every attribute is begun at most twice, and each pass through them gets further than the one before, so
//! that it ends whatever the attributes do. A pass that its process does not survive goes on behind the attribute
//! that ended it. A broken store, and want of memory, end the evaluation instead: they are nobody's attribute.
//!
//! Nothing here has a deadline of its own: the evaluation's ends the driver, and its end ends what it started.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::BuildHasher;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use std::{env, fmt, fs};

use nix::sys::stat::Mode;

use super::SAYS;
use super::source::{self, Source, Walk};
use super::steps::{self, Cutter, Said, Step};
use super::translate::{Found, Translator, print};
use crate::actor::{Spawner, Threads};
use crate::evaluate::ask;
use crate::model::error::chain;
use crate::sys::clock;
use crate::sys::process::{Child, Exit, How, Launch, Launcher, Program, Read};

/// The expression that walks the attributes.
const EXPRESSION: &str = include_str!("jobs.nix");

/// What evaluates, where nix-eval-jobs is not installed.
const INSTANTIATE: &str = "nix-instantiate";

/// Attributes after which a new process goes on: what Nix has evaluated it keeps, and a thousand packages of Nixpkgs
/// come to a few GB; against their minute, the second of a new start is nothing.
const RENEW: usize = 1000;

/// Attributes that throw of which the message is looked up, each by a process: with Nixpkgs a few minutes.
const MAX_MESSAGES: usize = 200;

/// What those beyond are told to have.
const NO_MESSAGE: &str = "it throws, or fails an assertion (too many do to look up what each says)";

/// How long a process that is to be renewed may take to end.
const GRACE: Duration = Duration::from_secs(3);

/// How long the lock on a directory of our own may take: no time at all.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// Why there are no jobs, or not all.
#[derive(Debug)]
enum Error {
    Source(source::Error),
    Prepare(PathBuf, io::Error),
    Start(&'static str, io::Error),
    Read(io::Error),
    Output(io::Error),
    /// The daemon does not say that it keeps derivations.
    Hold(io::Error),
    /// The expression itself cannot be evaluated, or the store not be used: what Nix says.
    Nix(String),
    /// What ended it is no fault of what is evaluated.
    Foreign(String),
    /// The program ended so.
    Ended(&'static str, How),
    /// A line of nix-eval-jobs.
    Line(serde_json::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source(_) => f.write_str("cannot tell what to evaluate"),
            Self::Prepare(path, _) => write!(f, "cannot prepare {}", path.display()),
            Self::Start(program, _) => write!(f, "cannot start {program}"),
            Self::Read(_) => f.write_str("cannot read from a process"),
            Self::Output(_) => f.write_str("cannot hand on a job"),
            Self::Hold(_) => f.write_str("cannot tell whether derivations are kept"),
            Self::Nix(message) | Self::Foreign(message) => f.write_str(message),
            Self::Ended(program, How::Code(code)) => write!(f, "{program}: exit status {code}"),
            Self::Ended(program, How::Signal(signal)) => write!(f, "{program}: signal {signal}"),
            Self::Ended(program, How::NotStarted(why) | How::Prevented(why)) => {
                write!(f, "cannot start {program}: {why}")
            }
            Self::Ended(program, How::Lost) => {
                write!(f, "the process that watches over {program} was killed")
            }
            Self::Line(_) => f.write_str("nix-eval-jobs printed something odd"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Source(error) => Some(error),
            Self::Prepare(_, error)
            | Self::Start(_, error)
            | Self::Read(error)
            | Self::Output(error)
            | Self::Hold(error) => Some(error),
            Self::Line(error) => Some(error),
            Self::Nix(_) | Self::Foreign(_) | Self::Ended(..) => None,
        }
    }
}

impl Error {
    /// Whether the same may go well another time.
    fn is_foreign(&self) -> bool {
        match self {
            Self::Foreign(_) | Self::Prepare(..) | Self::Start(..) | Self::Read(_) => true,
            Self::Source(_)
            | Self::Output(_)
            | Self::Hold(_)
            | Self::Nix(_)
            | Self::Ended(..)
            | Self::Line(_) => false,
        }
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
    log_line(format!("{SAYS}{text}").as_bytes());
}

fn log_line(line: &[u8]) {
    // There is nobody left to tell.
    let _ = io::stderr().write_all(&[line, b"\n"].concat());
}

struct Driver {
    launcher: Launcher,
    /// For the threads that open the gate.
    spawner: Spawner,
    _threads: Threads,
    /// The pipe that processes read at their end; `None` where nobody keeps derivations.
    gate: Option<PathBuf>,
    source: Source,
    translator: Translator,
    expression: PathBuf,
    /// What steps are marked with: not to be guessed by what is evaluated.
    mark: String,
    /// Attributes that throw, of which the message is still to be looked up.
    failed: Vec<Vec<String>>,
    /// Jobs left out, by their system.
    left_out: BTreeMap<String, usize>,
}

/// How a pass ended.
enum Pass {
    Complete,
    /// At this attribute, which was not yet looked at.
    Renewed(Vec<String>),
    Died(Death),
}

struct Death {
    program: &'static str,
    /// The attribute that was being looked at.
    at: Option<Vec<String>>,
    /// Attributes done before.
    done: usize,
    exit: Exit,
    message: String,
}

impl Death {
    /// Whether the cause may lie elsewhere than in the attribute: memory that others took, a store that went away.
    fn is_foreign(&self) -> bool {
        let words = [
            "out of memory",
            "std::bad_alloc",
            "cannot allocate memory",
            "cannot connect to",
            "nix daemon disconnected",
            "no space left on device",
            "unexpected end-of-file",
        ];
        let message = self.message.to_ascii_lowercase();
        // Nix begins with these words; what an attribute says comes after others, or is tried once more.
        let first = message.lines().next().unwrap_or_default();
        ask::is_foreign(&self.exit) || words.iter().any(|words| first.starts_with(words))
    }

    fn error(self) -> Error {
        let is_foreign = self.is_foreign();
        let error = match self.message.is_empty() {
            true => Error::Ended(self.program, self.exit.how),
            false => Error::Nix(self.message),
        };
        if is_foreign { Error::Foreign(error.to_string()) } else { error }
    }
}

impl Driver {
    fn new(arguments: &[String]) -> Result<Self, Error> {
        let source = Source::here(arguments).map_err(Error::Source)?;
        let keepers = source.temporary.join("keepers");
        let launcher = Launcher::new(keepers.clone(), clock::now() + LOCK_PATIENCE)
            .map_err(|error| Error::Prepare(keepers, error))?;
        let expression = source.temporary.join("jobs.nix");
        fs::write(&expression, EXPRESSION)
            .map_err(|error| Error::Prepare(expression.clone(), error))?;
        let mark = format!("gorget-{:016x} ", RandomState::new().hash_one(0));
        let gate = match env::var_os(ask::ANSWERS) {
            Some(_) => {
                let gate = source.gate();
                nix::unistd::mkfifo(&gate, Mode::S_IRUSR | Mode::S_IWUSR)
                    .map_err(|error| Error::Prepare(gate.clone(), error.into()))?;
                Some(gate)
            }
            None => None,
        };
        let (spawner, threads) = Spawner::new();
        Ok(Self {
            launcher,
            spawner,
            _threads: threads,
            gate,
            translator: Translator::new(source.systems.clone(), source.places()),
            source,
            expression,
            mark,
            failed: Vec::new(),
            left_out: BTreeMap::new(),
        })
    }

    fn run(&mut self) -> Result<(), Error> {
        if is_installed("nix-eval-jobs") {
            return self.eval_jobs();
        }
        self.walk()?;
        self.look_up_messages()?;
        for (system, number) in &self.left_out {
            say(&format!("{number} jobs for {system} are left out: the jobset is not for it"));
        }
        Ok(())
    }

    /// Passes through the attributes until all are done.
    fn walk(&mut self) -> Result<(), Error> {
        let mut resume: Option<(Vec<String>, bool)> = None;
        loop {
            let death = match self.pass(resume.as_ref())? {
                Pass::Complete => return Ok(()),
                Pass::Renewed(at) => {
                    resume = Some((at, true));
                    continue;
                }
                Pass::Died(death) => death,
            };
            let at = match &death.at {
                // The expression itself is `any` or a system.
                Some(at) if at.len() > 1 => at.clone(),
                Some(_) | None => return Err(death.error()),
            };
            if death.is_foreign() {
                if death.done == 0 {
                    return Err(death.error());
                }
                say(&format!("{}: once more, in a process of its own", print(&at)));
                resume = Some((at, true));
                continue;
            }
            say(&format!("{} cannot be evaluated", print(&at)));
            let message = death.error().to_string();
            emit(&self.translator.error(&at, &message))?;
            resume = Some((at, false));
        }
    }

    /// One process, from `resume` on.
    fn pass(&mut self, resume: Option<&(Vec<String>, bool)>) -> Result<Pass, Error> {
        let walk = Walk {
            walk: true,
            mark: &self.mark,
            resume: resume.map(|(path, _)| path.as_slice()),
            inclusive: resume.is_some_and(|&(_, inclusive)| inclusive),
            strict: false,
            only: None,
            gate: self.gate.as_deref(),
        };
        let mut child = self.instantiate(&walk)?;
        let (mut cutter, mut said) = (Cutter::default(), Said::default());
        let (mut current, mut done) = (None, 0);
        let exit = loop {
            let mut buffer = Vec::new();
            match child.read(&mut buffer, None).map_err(Error::Read)? {
                // Nothing but the value, which is `null`.
                Read::Output | Read::Deadline | Read::Canceled => continue,
                Read::Ended(exit) => break exit,
                Read::Errors => {}
            }
            let mut renew = None;
            cutter.feed(&buffer, |line| {
                if renew.is_some() {
                    return Ok(());
                }
                let Some(step) = steps::step(line, &self.mark) else {
                    said.line(line);
                    log_line(line);
                    return Ok(());
                };
                if let Step::Begin(path) = step {
                    said.clear();
                    if done >= RENEW {
                        renew = Some(path);
                    } else {
                        current = Some(path);
                    }
                    return Ok(());
                }
                if let Step::End = step {
                    return self.open_gate();
                }
                let path = current.take().unwrap_or_default();
                done += usize::from(self.step(step, path)?);
                Ok(())
            })?;
            if let Some(path) = renew {
                ask::hold().map_err(Error::Hold)?;
                child.stop(GRACE);
                return Ok(Pass::Renewed(path));
            }
        };
        if let Some(line) = cutter.last() {
            said.line(&line);
            log_line(&line);
        }
        if exit.how == How::Code(0) {
            return Ok(Pass::Complete);
        }
        let message = said.message();
        Ok(Pass::Died(Death { program: INSTANTIATE, at: current, done, exit, message }))
    }

    /// Performs what a step says of the attribute at `path`; whether that is done with.
    fn step(&mut self, step: Step, path: Vec<String>) -> Result<bool, Error> {
        match step {
            Step::Job(found) => emit(&self.translator.job(&path, *found))?,
            Step::Failed(path) if self.failed.len() < MAX_MESSAGES => self.failed.push(path),
            Step::Failed(path) => emit(&self.translator.error(&path, NO_MESSAGE))?,
            Step::Other(system) => *self.left_out.entry(system).or_default() += 1,
            Step::Deep(path) => {
                say(&format!("{} is nested too deep and is left out", print(&path)));
            }
            Step::Begin(_) | Step::Enter | Step::End => return Ok(false),
            Step::None => {}
        }
        Ok(true)
    }

    /// Lets a process end that is through, once the derivations that it keeps are kept by the daemon. Opening the pipe
    /// waits for the process to read it; should it die before, that thread is left behind.
    fn open_gate(&self) -> Result<(), Error> {
        let Some(gate) = self.gate.clone() else { return Ok(()) };
        ask::hold().map_err(Error::Hold)?;
        let open = move |_| File::options().write(true).open(gate).map(drop);
        self.spawner.child("gate", open, |_| {}).map_err(Error::Hold)
    }

    /// Attributes that throw are caught, but not what they say: that takes a process that dies of it.
    fn look_up_messages(&mut self) -> Result<(), Error> {
        for path in std::mem::take(&mut self.failed) {
            let walk = Walk {
                walk: true,
                mark: &self.mark,
                resume: None,
                inclusive: false,
                strict: true,
                only: Some(&path),
                gate: None,
            };
            if path.len() > 1 {
                say(&format!("{} cannot be evaluated:", print(&path)));
            }
            let mut child = self.instantiate(&walk)?;
            let (exit, said) = listen(&mut child, |_| Ok(()))?;
            let message = said.message();
            let death = Death { program: INSTANTIATE, at: None, done: 0, exit, message };
            // The expression itself is `any` or a system.
            if path.len() <= 1 {
                return Err(death.error());
            }
            // It is known to be broken, whatever ended this process.
            let message = death.error().to_string();
            emit(&self.translator.error(&path, &message))?;
        }
        Ok(())
    }

    fn instantiate(&self, walk: &Walk<'_>) -> Result<Child, Error> {
        let mut words: Vec<String> =
            [INSTANTIATE, "--eval", "--read-write-mode"].map(str::to_owned).into();
        words.extend(self.words(walk));
        start(&self.launcher, INSTANTIATE, words)
    }

    fn words(&self, walk: &Walk<'_>) -> Vec<String> {
        let mut words = self.source.options();
        words.extend([
            self.expression.to_string_lossy().into_owned(),
            "--argstr".to_owned(),
            "request".to_owned(),
            self.source.request(walk),
        ]);
        words
    }

    fn eval_jobs(&mut self) -> Result<(), Error> {
        const PROGRAM: &str = "nix-eval-jobs";
        let walk = Walk {
            walk: false,
            mark: "",
            resume: None,
            inclusive: false,
            strict: true,
            only: None,
            gate: None,
        };
        let roots = self.source.temporary.join("roots").to_string_lossy().into_owned();
        let mut words: Vec<String> =
            [PROGRAM, "--force-recurse", "--meta", "--gc-roots-dir", &roots]
                .map(str::to_owned)
                .into();
        words.extend(self.words(&walk));
        let mut child = start(&self.launcher, PROGRAM, words)?;
        let (exit, said) = listen(&mut child, |line| self.found(line))?;
        if exit.how == How::Code(0) {
            return Ok(());
        }
        let message = said.message();
        Err(Death { program: PROGRAM, at: None, done: 0, exit, message }.error())
    }

    /// A line of nix-eval-jobs.
    fn found(&mut self, line: &[u8]) -> Result<(), Error> {
        if line.trim_ascii().is_empty() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(line);
        let mut found: Found = serde_json::from_str(&text).map_err(Error::Line)?;
        let path = found.attr_path.take().unwrap_or_else(|| source::path(&found.attr));
        let Some(error) = found.error.take() else {
            return emit(&self.translator.job(&path, found));
        };
        let message = match steps::message(&error) {
            message if message.is_empty() => error,
            message => message,
        };
        // The expression itself is `any` or a system.
        if path.len() <= 1 {
            return Err(Error::Nix(message));
        }
        emit(&self.translator.error(&path, &message))
    }
}

/// Reads a process to its end: lines of its output go to `line`, what it says to the log.
fn listen(
    child: &mut Child,
    mut line: impl FnMut(&[u8]) -> Result<(), Error>,
) -> Result<(Exit, Said), Error> {
    let (mut output, mut errors, mut said) =
        (Cutter::default(), Cutter::default(), Said::default());
    let mut hear = |text: &[u8]| -> Result<(), Error> {
        said.line(text);
        log_line(text);
        Ok(())
    };
    let mut buffer = Vec::new();
    let exit = loop {
        buffer.clear();
        match child.read(&mut buffer, None).map_err(Error::Read)? {
            Read::Output => output.feed(&buffer, &mut line)?,
            Read::Errors => errors.feed(&buffer, &mut hear)?,
            Read::Deadline | Read::Canceled => {}
            Read::Ended(exit) => break exit,
        }
    };
    if let Some(last) = output.last() {
        line(&last)?;
    }
    if let Some(last) = errors.last() {
        hear(&last)?;
    }
    Ok((exit, said))
}

fn start(launcher: &Launcher, name: &'static str, words: Vec<String>) -> Result<Child, Error> {
    let failed = |error| Error::Start(name, error);
    let launch = Launch {
        program: Program::Command(words.into_iter().map(Into::into).collect()),
        environment: env::vars_os().collect(),
        directory: env::current_dir().map_err(failed)?,
        user: None,
        // The driver's own limit is inherited.
        memory: None,
        merge: false,
    };
    launcher.start(launch, None).map_err(failed)
}

/// Hands a job to the evaluation, at once: builds begin while Nix still evaluates.
fn emit(line: &str) -> Result<(), Error> {
    let mut output = io::stdout().lock();
    writeln!(output, "{line}").and_then(|()| output.flush()).map_err(Error::Output)
}

fn is_installed(program: &str) -> bool {
    use std::os::unix::fs::PermissionsExt;
    let path = env::var_os("PATH").unwrap_or_default();
    path.as_bytes().split(|&byte| byte == b':').any(|directory| {
        let file = Path::new(std::ffi::OsStr::from_bytes(directory)).join(program);
        fs::metadata(file)
            .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    })
}
