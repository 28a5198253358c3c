//! What a nix-daemon says while it builds: activities, their results, and prose.
//!
//! Invariant: builders' output comes as results of their activity alone, so prose is the daemon's own.

use std::collections::{HashMap, HashSet};

use super::session::Step;
use super::{Output, Verdict, reason};

const BUILD: u64 = 105;
const SUBSTITUTE: u64 = 108;
const BUILD_LOG_LINE: u64 = 101;

/// A line of the daemon's; those of builders that it cites have a mark in front.
const NO_SPACE: &str = "note: build failure may have been caused by lack of free disk space";

/// Activities at once: one build, and what is fetched for it.
const MAX_ACTIVITIES: usize = 4096;

/// Characters of a warning: it has an item's name, and a place.
const MAX_SENTENCE: usize = 500;

/// Follows one build.
#[derive(Default)]
pub(super) struct Activities {
    target: String,
    /// Builders that run, by their activity.
    builders: HashMap<u64, String>,
    /// Derivations that were begun, besides the one asked for: only these can be to blame.
    begun: HashSet<String>,
    /// The first of them that the daemon said of that it failed, and why.
    culprit: Option<(String, Verdict)>,
    /// What is being fetched.
    fetching: String,
}

impl Activities {
    pub(super) fn new(target: &str) -> Self {
        Self { target: target.to_owned(), ..Self::default() }
    }

    /// Whether a builder runs, of whatever derivation: only then is silence somebody's.
    pub(super) fn is_building(&self) -> bool {
        !self.builders.is_empty()
    }

    pub(super) fn start(&mut self, id: u64, kind: u64, first: Option<String>) -> Step<'_> {
        let Some(first) = first else { return Step::Nothing };
        if kind == SUBSTITUTE {
            self.fetching = first;
            return Step::Output(Output::Fetching(&self.fetching));
        }
        if kind != BUILD {
            return Step::Nothing;
        }
        let derivation = first;
        if derivation != self.target && self.begun.len() < MAX_ACTIVITIES {
            self.begun.insert(derivation.clone());
        }
        if self.builders.len() >= MAX_ACTIVITIES {
            return Step::Nothing;
        }
        let derivation = self.builders.entry(id).insert_entry(derivation).into_mut();
        Step::Output(Output::Started(derivation))
    }

    pub(super) fn stop(&mut self, id: u64) {
        self.builders.remove(&id);
    }

    pub(super) fn result<'a>(
        &'a self,
        id: u64,
        kind: u64,
        text: Option<String>,
        line: &'a mut Vec<u8>,
    ) -> Step<'a> {
        let Some(text) = text.filter(|_| kind == BUILD_LOG_LINE) else { return Step::Nothing };
        line.clear();
        line.extend_from_slice(text.as_bytes());
        line.push(b'\n');
        let derivation = self.builders.get(&id).map_or(&*self.target, String::as_str);
        Step::Output(Output::Log { derivation, text: line })
    }

    pub(super) fn message<'a>(&'a mut self, payload: &'a mut Vec<u8>) -> Step<'a> {
        let text = plain(&String::from_utf8_lossy(payload));
        if self.culprit.is_none()
            && let Some((derivation, why)) = failure(&text)
            && self.begun.contains(&derivation)
        {
            let broken = lacked_space(&text);
            let verdict = if broken { Verdict::Broken(text.clone()) } else { Verdict::Failed(why) };
            self.culprit = Some((derivation, verdict));
        }
        *payload = text.into_bytes();
        Step::Output(Output::Prose(payload))
    }

    /// What the result of the build means.
    pub(super) fn verdict(&self, status: u64, message: &str) -> Verdict {
        let message = plain(message);
        match status {
            0 | 1 | 2 | 13 => Verdict::Done,
            // Transient: the disk was full, or, whatever happened, the output has a fixed hash.
            6 if lacked_space(&message) => Verdict::Broken(message),
            6 => Verdict::Failed(reason(&message)),
            // Permanently failed, input or output rejected, known to have failed, log limit, not deterministic.
            3 | 4 | 5 | 7 | 11 | 12 => Verdict::Failed(reason(&message)),
            8 if message.contains("of silence") => Verdict::Silent,
            8 => Verdict::TimedOut,
            10 => self.dependency(&message),
            // Miscellaneous: a derivation that is not there, or a dependency that failed.
            9 if self.culprit.is_some() => self.dependency(&message),
            _ => Verdict::Broken(message),
        }
    }

    /// What an error of the whole request means.
    pub(super) fn refused(&self, message: &str) -> Verdict {
        Verdict::Broken(message.to_owned())
    }

    fn dependency(&self, message: &str) -> Verdict {
        match &self.culprit {
            // A full disk is not the dependency's fault.
            Some((_, Verdict::Broken(why))) => Verdict::Broken(why.clone()),
            Some((culprit, verdict)) => {
                Verdict::DependencyFailed(Some(culprit.clone()), verdict.why())
            }
            None => Verdict::DependencyFailed(None, reason(message)),
        }
    }
}

/// Whether the daemon notes that a disk of its was all but full.
fn lacked_space(text: &str) -> bool {
    text.lines().any(|line| line.trim().starts_with(NO_SPACE))
}

/// The derivation that a message says has failed, and why: its first line does, others may cite the builder.
fn failure(text: &str) -> Option<(String, String)> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let sentence = lines.next()?.trim_start_matches("error: ");
    if let Some(rest) = sentence.strip_prefix("Cannot build '") {
        // As newer daemons put it: why is on a line of its own, and what only lacks another is not to blame.
        let why = lines.next()?.strip_prefix("Reason: ")?;
        let lacks = why.starts_with(|c: char| c.is_ascii_digit()) && why.contains("dependenc");
        return derivation(rest)
            .filter(|_| !lacks)
            .map(|(derivation, _)| (derivation, reason(why)));
    }
    let rest = sentence
        .strip_prefix("builder for '")
        .or_else(|| sentence.strip_prefix("building of '"))?;
    derivation(rest).map(|(derivation, rest)| (derivation, reason(rest)))
}

/// The name up to a quotation mark, without the outputs that are named with it, and what follows.
fn derivation(text: &str) -> Option<(String, &str)> {
    let (name, rest) = text.split_once('\'')?;
    let name = name.split(['!', '^']).next()?;
    name.ends_with(".drv").then(|| (name.to_owned(), rest))
}

/// What a warning of the daemon's says, in one line.
pub(super) fn sentence(payload: &[u8]) -> String {
    let text = plain(&String::from_utf8_lossy(payload));
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines.next().unwrap_or_default();
    line.trim_start_matches("warning: ").chars().take(MAX_SENTENCE).collect()
}

/// Without the escape sequences that colour it.
pub(super) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        if c != '\u{1b}' {
            plain.push(c);
            continue;
        }
        if characters.next() == Some('[') {
            // To the letter that ends it.
            characters.by_ref().find(|c| c.is_ascii_alphabetic());
        }
    }
    plain
}
