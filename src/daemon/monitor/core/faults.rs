//! Evaluations that faults here ended, and that are therefore repeated.
//!
//! Invariant: such an evaluation is repeated until its tries are spent, or until something else is evaluated; polls do
//! not hasten that, and whoever asks for a look does.

use std::time::{Duration, Instant};

use super::{Core, Effect, Moment, Retry};

/// The wait before an evaluation is repeated that a fault here ended; it triples with each try.
pub(super) const BACKOFF: Duration = Duration::from_secs(60);

/// How often an evaluation is tried that faults here end: as often as a build, over about 40 minutes.
const TRIES: u32 = 5;

/// What faults here did to the last evaluation.
pub(super) struct Faults {
    pub(super) fingerprint: String,
    pub(super) tries: u32,
    /// When a look is to find it again; `None` when that is for others to ask.
    pub(super) due: Option<Instant>,
}

impl Core {
    /// Whether what a look found is to be evaluated.
    pub(super) fn is_wanted(&self, now: Moment, fingerprint: &str, asked: bool) -> bool {
        match &self.last {
            Some((last, repeat)) if last == fingerprint => {
                // What a fault here ended is not repeated by every poll, but when it is time.
                let time = match &self.faults {
                    Some(faults) if faults.fingerprint == fingerprint => {
                        asked || faults.due.is_some_and(|due| due <= now.instant)
                    }
                    Some(_) | None => true,
                };
                *repeat && time
            }
            Some(_) | None => true,
        }
    }

    /// A fault here ended an evaluation: it is repeated later, until its tries are spent.
    pub(super) fn on_fault(
        &mut self,
        now: Moment,
        fingerprint: String,
        retry: Option<Retry>,
        out: &mut Vec<Effect>,
    ) {
        if let Some(retry) = retry {
            let tries = retry.tries + 1;
            if self.faults.as_ref().is_none_or(|faults| faults.fingerprint == fingerprint) {
                self.faults = Some(Faults { fingerprint, tries, due: None });
            }
            if tries < TRIES {
                // It stays promised.
                let due = now.instant + backoff(tries);
                self.retries.push_back(Retry { tries, due, ..retry });
            } else {
                self.keep_retry(&retry, out);
            }
            return;
        }
        let tries = self.faults.as_ref().map_or(0, |faults| faults.tries) + 1;
        let due = (tries < TRIES).then(|| now.instant + backoff(tries));
        self.faults = Some(Faults { fingerprint, tries, due });
        // The books have it as an evaluation to be repeated.
        self.keep_promise(out);
    }

    /// This is evaluated: what faults did to others before is forgotten, or to the same when somebody `asked`. A retry
    /// of others leaves the repetition to a look.
    pub(super) fn heed_faults(&mut self, fingerprint: &str, is_retry: bool, asked: bool) {
        let Some(faults) = &mut self.faults else { return };
        match faults.fingerprint == fingerprint {
            true if asked => self.faults = None,
            true => faults.due = None,
            false if is_retry => {}
            false => self.faults = None,
        }
    }

    /// When a look is due for the sake of an evaluation that a fault here ended.
    pub(super) fn repetition(&self) -> Option<Instant> {
        self.faults.as_ref().and_then(|faults| faults.due).filter(|_| self.active)
    }
}

/// The wait after this many tries that faults here ended.
pub(super) fn backoff(tries: u32) -> Duration {
    BACKOFF * 3_u32.pow(tries.clamp(1, TRIES) - 1)
}
