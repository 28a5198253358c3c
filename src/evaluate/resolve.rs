//! From job lines to jobs ready to register: needs resolved, identities computed.
//!
//! Invariant: a job comes out after every job it needs, exactly once. Jobs whose needs have not been printed
//! yet are held, up to a bound; of all others only the name and the identity are kept.

use std::collections::HashMap;
use std::fmt;

use super::cycles;
use super::identity;
use super::line::{self, Line, What};
use crate::model::job::{NewJob, ProcessWork, Work};
use crate::model::spec::JobsetName;

/// Jobs of one evaluation: ten times what Guix has for all its systems. What is kept of each is some
/// 200 bytes, so an evaluator that never ends cannot fill the memory.
const MAX_JOBS: usize = 1_000_000;

/// Bytes of jobs that wait for needs not yet printed: a hundred thousand ordinary ones fit several times.
const MAX_HELD: usize = 128 << 20;

/// Names of a cycle that its message lists.
const LISTED: usize = 8;

/// Why a job cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Error {
    Repeated { job: String, system: String },
    TooMany,
    TooMuchHeld,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Repeated { job, system } => write!(f, "job {job:?} of {system} is repeated"),
            Self::TooMany => write!(f, "there are more than {MAX_JOBS} jobs"),
            Self::TooMuchHeld => f.write_str(
                "too many jobs need jobs that have not been printed; print what is needed first",
            ),
        }
    }
}

impl std::error::Error for Error {}

/// Where a job stands.
enum State {
    /// It came out with this identity.
    Out(Box<str>),
    /// It is `Resolver::held[i]`.
    Held(usize),
}

/// A job whose needs are not all known.
struct Held {
    line: Line,
    key: Box<str>,
    /// How many of its needs have not come out.
    missing: usize,
    weight: usize,
}

/// The jobs of one evaluation.
pub(crate) struct Resolver {
    jobset: JobsetName,
    /// The jobset's share of a job's priority.
    base: i64,
    trees: Vec<String>,
    jobs: HashMap<Box<str>, State>,
    /// In the order of their lines; `None` once out.
    held: Vec<Option<Held>>,
    held_bytes: usize,
    /// By the key of a job that has not come out: who waits for it.
    waiters: HashMap<Box<str>, Vec<usize>>,
}

impl Resolver {
    /// `trees`: the tree ids of the checkouts, in the order of the channels.
    pub(crate) fn new(jobset: &JobsetName, priority: u8, trees: Vec<String>) -> Self {
        Self {
            jobset: jobset.clone(),
            base: 10 * i64::from(priority),
            trees,
            jobs: HashMap::new(),
            held: Vec::new(),
            held_bytes: 0,
            waiters: HashMap::new(),
        }
    }

    /// Takes a job; appends what can be registered now to `out`.
    pub(crate) fn feed(&mut self, line: Line, out: &mut Vec<NewJob>) -> Result<(), Error> {
        let key = key(&line.system, &line.job);
        if self.jobs.contains_key(&key) {
            return Err(Error::Repeated { job: line.job, system: line.system });
        }
        if self.jobs.len() >= MAX_JOBS {
            return Err(Error::TooMany);
        }
        let missing: Vec<_> = line
            .needs
            .iter()
            .map(|need| self::key(&line.system, need))
            .filter(|need| !matches!(self.jobs.get(need), Some(State::Out(_))))
            .collect();
        if missing.is_empty() {
            self.release(line, key, out);
            return Ok(());
        }
        let weight = weigh(&line, missing.len());
        if self.held_bytes + weight > MAX_HELD {
            return Err(Error::TooMuchHeld);
        }
        self.held_bytes += weight;
        let index = self.held.len();
        self.jobs.insert(key.clone(), State::Held(index));
        self.held.push(Some(Held { line, key, missing: missing.len(), weight }));
        for need in missing {
            self.waiters.entry(need).or_default().push(index);
        }
        Ok(())
    }

    /// How many jobs wait for others.
    pub(crate) fn held(&self) -> usize {
        self.held.iter().flatten().count()
    }

    /// No more jobs will come: those that need an unknown job, or themselves, come out as errors; what needs
    /// these comes out after them.
    pub(crate) fn finish(&mut self, out: &mut Vec<NewJob>) {
        // All are taken before the first comes out: none of them is to come out as a build of its own.
        let wrong: Vec<_> = self
            .wrong()
            .into_iter()
            .filter_map(|(index, message)| Some((self.held[index].take()?, message)))
            .collect();
        for (held, message) in wrong {
            self.held_bytes -= held.weight;
            let mut line = held.line;
            (line.what, line.needs) = (What::Error(message), Vec::new());
            self.release(line, held.key, out);
        }
        debug_assert_eq!(self.held(), 0, "every job that is not wrong needs one that came out");
    }

    /// The held jobs that cannot be built, in the order of their lines, and why.
    fn wrong(&self) -> Vec<(usize, String)> {
        let needs = |held: &Held| -> Vec<Need> {
            let key = |need: &String| self::key(&held.line.system, need);
            held.line.needs.iter().map(|need| self.need(&key(need))).collect()
        };
        let graph: Vec<Vec<usize>> = self
            .held
            .iter()
            .map(|held| {
                let needs = held.as_ref().map(needs).unwrap_or_default();
                needs.iter().filter_map(|need| need.held()).collect()
            })
            .collect();
        let mut messages = HashMap::new();
        for cycle in cycles::find(&graph) {
            let held = cycle.iter().filter_map(|&index| self.held[index].as_ref());
            let mut names: Vec<&str> = held.map(|held| held.line.job.as_str()).collect();
            names.sort_unstable();
            let message = circle(&names);
            messages.extend(cycle.into_iter().map(|index| (index, message.clone())));
        }
        let mut wrong = Vec::new();
        for (index, held) in self.held.iter().enumerate() {
            let Some(held) = held else { continue };
            let unknown = held
                .line
                .needs
                .iter()
                .find(|need| self.need(&key(&held.line.system, need)) == Need::Unknown)
                .map(|need| {
                    format!("needs {need:?}, which is no job of this evaluation and system")
                });
            if let Some(message) = unknown.or_else(|| messages.remove(&index)) {
                wrong.push((index, message));
            }
        }
        wrong
    }

    fn need(&self, key: &str) -> Need {
        match self.jobs.get(key) {
            None => Need::Unknown,
            Some(State::Out(_)) => Need::Out,
            Some(State::Held(index)) => Need::Held(*index),
        }
    }

    /// Lets a job out whose needs are out, and all that waited for nothing else.
    fn release(&mut self, line: Line, key: Box<str>, out: &mut Vec<NewJob>) {
        let mut ready = vec![(line, key)];
        while let Some((line, key)) = ready.pop() {
            let job = self.job(line);
            let waiters = self.waiters.remove(&key);
            self.jobs.insert(key, State::Out(job.derivation.as_str().into()));
            out.push(job);
            // Pushed in reverse, so that they come out in the order of their lines.
            for index in waiters.into_iter().flatten().rev() {
                let slot = &mut self.held[index];
                if let Some(held) = slot {
                    held.missing -= 1;
                    if held.missing == 0
                        && let Some(held) = slot.take()
                    {
                        self.held_bytes -= held.weight;
                        ready.push((held.line, held.key));
                    }
                }
            }
        }
    }

    /// The job of a line whose needs are out.
    fn job(&self, line: Line) -> NewJob {
        let identities: Vec<&str> = line
            .needs
            .iter()
            .filter_map(|need| match self.jobs.get(&key(&line.system, need)) {
                Some(State::Out(identity)) => Some(identity.as_ref()),
                Some(State::Held(_)) | None => None,
            })
            .collect();
        debug_assert_eq!(identities.len(), line.needs.len(), "needs come out first");
        let (derivation, work, needs) = match line.what {
            What::Derivation(derivation) => {
                // Two jobs may be one derivation, and that one does not wait for itself.
                let others = identities.into_iter().filter(|&identity| identity != derivation);
                let needs = others.map(str::to_owned).collect();
                (derivation, Work::Derivation, needs)
            }
            What::Process { command, environment, products } => {
                let derivation = identity::process(identity::Process {
                    job: &line.job,
                    system: &line.system,
                    trees: &self.trees,
                    command: &command,
                    environment: &environment,
                    products: &products,
                    needs: line.needs.iter().map(String::as_str).zip(identities.clone()).collect(),
                });
                let needs = identities.into_iter().map(str::to_owned).collect();
                let work = ProcessWork { command, environment, products, needs: line.needs };
                (derivation, Work::Process(work), needs)
            }
            What::Error(message) => {
                let jobset = self.jobset.as_str();
                let derivation = identity::error(jobset, &line.job, &line.system, &message);
                (derivation, Work::Error(message), Vec::new())
            }
        };
        NewJob {
            name: line.job,
            system: line.system,
            derivation,
            nix_name: line.nix_name,
            outputs: line.outputs,
            priority: self.base + i64::from(line.priority),
            timeout: line.timeout,
            max_silent_time: line.max_silent_time,
            work,
            needs,
        }
    }
}

/// Where a needed job stands.
#[derive(PartialEq, Eq)]
enum Need {
    Unknown,
    Out,
    Held(usize),
}

impl Need {
    fn held(&self) -> Option<usize> {
        match self {
            Self::Held(index) => Some(*index),
            Self::Unknown | Self::Out => None,
        }
    }
}

/// One string for system and name: neither holds control characters.
fn key(system: &str, job: &str) -> Box<str> {
    let mut key = String::with_capacity(system.len() + 1 + job.len());
    key.push_str(system);
    key.push('\0');
    key.push_str(job);
    key.into_boxed_str()
}

fn circle(names: &[&str]) -> String {
    if names.len() == 1 {
        return "needs itself".to_owned();
    }
    let listed: Vec<_> = names.iter().take(LISTED).map(|name| line::shortened(name, 64)).collect();
    let more = match names.len().saturating_sub(LISTED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("needs itself: {}{more} form a cycle", listed.join(", "))
}

/// About how many bytes a held job takes, with its entries in the tables.
fn weigh(line: &Line, missing: usize) -> usize {
    /// What a string takes beside its text: its header and the allocator's.
    const STRING: usize = 40;
    /// What a missing need takes beside its name: an entry of the table of waiters and a list of one.
    const WAITER: usize = 160;
    let texts = |texts: &[String]| texts.iter().map(|text| text.len() + STRING).sum::<usize>();
    let pairs = |pairs: &std::collections::BTreeMap<String, String>| {
        pairs.iter().map(|(name, value)| name.len() + value.len() + 2 * STRING).sum::<usize>()
    };
    let what = match &line.what {
        What::Derivation(text) | What::Error(text) => text.len(),
        What::Process { command, environment, products } => {
            texts(command) + pairs(environment) + texts(products)
        }
    };
    let names = 3 * line.job.len() + line.nix_name.len() + 2 * line.system.len();
    let needs = 2 * texts(&line.needs) + missing * (WAITER + line.system.len());
    size_of::<Held>() + names + pairs(&line.outputs) + needs + what
}

#[cfg(test)]
mod tests;
