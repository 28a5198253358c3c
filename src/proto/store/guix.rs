//! What a guix-daemon says while it builds: its trace, and builders' output between.
//!
//! Invariant: one message is one event, or one piece of one builder's output, or prose. Only whole messages are
//! events, so that nothing a builder prints can be one.

use std::collections::{BTreeMap, HashMap};

use super::session::Step;
use super::{Output, Verdict, reason};

/// Builders at once on one connection: the daemon is told to run one, and others may still be ending.
const MAX_BUILDERS: usize = 1024;

/// What the daemon says before it tells that a builder failed, when a disk of its was all but full.
const NO_SPACE: &str = "note: build failure may have been caused by lack of free disk space";

/// Failures remembered: the first are those that count.
const MAX_FAILURES: usize = 64;

/// Follows one build.
#[derive(Default)]
pub(super) struct Trace {
    target: String,
    /// Builders that run, by their process.
    builders: HashMap<u64, String>,
    /// What failed, in order.
    failures: Vec<(String, Verdict)>,
    /// The last sentence of the daemon, which says more of a time-out than the event that follows it.
    prose: String,
    /// Whether the disk was full when the builder ended whose failure is told next.
    no_space: bool,
    missing: bool,
}

impl Trace {
    pub(super) fn new(target: &str) -> Self {
        Self { target: target.to_owned(), ..Self::default() }
    }

    /// Whether a builder runs, of whatever derivation: only then is silence somebody's.
    pub(super) fn is_building(&self) -> bool {
        !self.builders.is_empty()
    }

    pub(super) fn message<'a>(&'a mut self, payload: &'a [u8]) -> Step<'a> {
        if let Some((process, text)) = log(payload) {
            let derivation = self.builders.get(&process).map_or(&*self.target, String::as_str);
            return Step::Output(Output::Log { derivation, text });
        }
        let line = payload.strip_prefix(b"@ ").and_then(|rest| rest.strip_suffix(b"\n"));
        let line = line.filter(|line| !line.contains(&b'\n'));
        if let Some(event) = line.and_then(|line| std::str::from_utf8(line).ok()) {
            return self.event(event);
        }
        self.prose = String::from_utf8_lossy(payload).trim().to_owned();
        self.no_space |= self.prose == NO_SPACE;
        self.missing |= self.prose.starts_with("cannot build missing derivation");
        Step::Output(Output::Prose(payload))
    }

    fn event<'a>(&'a mut self, event: &'a str) -> Step<'a> {
        let mut words = event.split(' ');
        let (name, derivation) =
            (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        match name {
            "build-started" => {
                let process = words.nth(3).and_then(|word| word.parse().ok());
                if let Some(process) = process
                    && self.builders.len() < MAX_BUILDERS
                {
                    self.builders.insert(process, derivation.to_owned());
                }
                Step::Output(Output::Started(derivation))
            }
            "substituter-started" => Step::Output(Output::Fetching(derivation)),
            "build-succeeded" => {
                self.forget(derivation);
                Step::Nothing
            }
            "build-failed" => {
                let rest = event.split(' ').nth(3).unwrap_or_default();
                let message = event.splitn(5, ' ').nth(4).unwrap_or_default();
                let verdict = match rest {
                    "timeout" if self.prose.contains("of silence") => Verdict::Silent,
                    "timeout" if self.prose.contains("timed out") => Verdict::TimedOut,
                    "timeout" => {
                        Verdict::Failed("wrote more than the daemon's log may hold".to_owned())
                    }
                    "cached" => Verdict::Failed("failed before; the daemon remembers".to_owned()),
                    _ if self.no_space => {
                        Verdict::Broken(format!("{}: {NO_SPACE}", reason(message)))
                    }
                    _ => Verdict::Failed(reason(message)),
                };
                self.fail(derivation, verdict);
                Step::Nothing
            }
            "hook-failed" => {
                let message = event.splitn(5, ' ').nth(4).unwrap_or_default();
                self.fail(derivation, Verdict::Broken(format!("offloading failed: {message}")));
                Step::Nothing
            }
            _ => Step::Nothing,
        }
    }

    fn forget(&mut self, derivation: &str) {
        self.builders.retain(|_, running| running != derivation);
    }

    fn fail(&mut self, derivation: &str, verdict: Verdict) {
        self.forget(derivation);
        self.no_space = false;
        if self.failures.len() < MAX_FAILURES {
            self.failures.push((derivation.to_owned(), verdict));
        }
    }

    /// What an error of the whole request means.
    pub(super) fn verdict(&self, message: &str) -> Verdict {
        if let Some((_, verdict)) = self.failures.iter().find(|(drv, _)| *drv == self.target) {
            return verdict.clone();
        }
        match self.failures.first() {
            // The fault of whoever offloads, or of a full disk, is not the dependency's.
            Some((_, Verdict::Broken(why))) => Verdict::Broken(why.clone()),
            Some((culprit, verdict)) => {
                Verdict::DependencyFailed(Some(culprit.clone()), verdict.why())
            }
            None if self.missing => Verdict::Broken(format!("{} is not in the store", self.target)),
            None => Verdict::Broken(message.to_owned()),
        }
    }
}

impl Verdict {
    /// In a few words.
    pub(super) fn why(&self) -> String {
        match self {
            Self::Done => "succeeded".to_owned(),
            Self::Failed(why) | Self::DependencyFailed(_, why) | Self::Broken(why) => why.clone(),
            Self::TimedOut => "timed out".to_owned(),
            Self::Silent => "was silent for too long".to_owned(),
        }
    }
}

/// Which of `paths` is which output of a derivation: they bear its name, and that of the output but for `out`.
pub(super) fn outputs(
    derivation: &str,
    names: &[String],
    paths: &[String],
) -> Option<BTreeMap<String, String>> {
    let bare =
        |path: &str| path.rsplit('/').next()?.split_once('-').map(|(_, name)| name.to_owned());
    let own = bare(derivation)?.strip_suffix(".drv")?.to_owned();
    let path = |name: &String| {
        let wanted = if name == "out" { own.clone() } else { format!("{own}-{name}") };
        let path = paths.iter().find(|path| bare(path).as_deref() == Some(&wanted))?;
        Some((name.clone(), path.clone()))
    };
    names.iter().map(path).collect()
}

/// `@ build-log PROCESS LENGTH`, a newline, and exactly that many bytes.
fn log(payload: &[u8]) -> Option<(u64, &[u8])> {
    let rest = payload.strip_prefix(b"@ build-log ")?;
    let end = rest.iter().position(|&byte| byte == b'\n')?;
    let header = std::str::from_utf8(&rest[..end]).ok()?;
    let (process, length) = header.split_once(' ')?;
    let text = &rest[end + 1..];
    (length.parse() == Ok(text.len())).then_some((process.parse().ok()?, text))
}
