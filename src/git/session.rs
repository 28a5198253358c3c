//! One look, in process: what its parts share, and the answer put together.

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::time::{Duration, Instant};

use super::checkout;
use super::child::Authorities;
use super::mirror::{self, Found};
use super::trouble::Trouble;
use super::url::{self, Url};
use super::wire::{Answer, PROGRESS, Request};
use super::{Error, Resolved};
use crate::model::spec::Reference;
use crate::sys::clock;

/// At most one progress byte in this time: far below any silence that is allowed, far above what costs.
const TICK: Duration = Duration::from_millis(100);

/// What is at hand throughout a look.
pub(super) struct Session {
    pub(super) request: Request,
    progress: Progress,
    /// To be loaded before the first connection that may need them.
    authorities: Cell<Option<Authorities>>,
    /// Packs asked for so far; a look that finds nothing new asks for none.
    pub(super) fetches: Cell<u32>,
}

struct Progress {
    out: RefCell<Box<dyn Write>>,
    last: Cell<Option<Instant>>,
}

impl Session {
    pub(super) fn new(
        request: Request,
        out: Box<dyn Write>,
        authorities: Option<Authorities>,
    ) -> Self {
        let progress = Progress { out: RefCell::new(out), last: Cell::new(None) };
        let authorities = Cell::new(authorities);
        Self { request, progress, authorities, fetches: Cell::new(0) }
    }

    /// To be called before connecting to `url`.
    pub(super) fn prepare(&self, url: &Url) {
        if url.is_http()
            && let Some(authorities) = self.authorities.take()
        {
            authorities.load();
        }
    }

    /// Says that something moves. Called as often as one likes.
    pub(super) fn tick(&self) {
        let now = clock::now();
        if self.progress.last.get().is_some_and(|last| now.duration_since(last) < TICK) {
            return;
        }
        self.progress.last.set(Some(now));
        // A parent that no longer reads has ended; the keeper ends us too.
        if let Ok(mut out) = self.progress.out.try_borrow_mut() {
            let _ = out.write_all(&[PROGRESS]).and_then(|()| out.flush());
        }
    }

    /// Does what was requested.
    pub(super) fn answer(&self) -> Answer {
        let text = &self.request.look.url;
        let url = Url::parse(text)
            .map_err(|trouble| Error(format!("{}: {trouble}", url::printable(text))))?;
        let results = self.resolve(&url).map_err(|trouble| trouble.about(&url))?;
        let tell = |result: Result<Resolved, Trouble>| result.map_err(|t| t.about(&url));
        Ok(results.into_iter().map(tell).collect())
    }

    fn resolve(&self, url: &Url) -> Result<Vec<Result<Resolved, Trouble>>, Trouble> {
        let references = &self.request.look.references;
        let found = mirror::look(self, url, references)?;
        let fresh = found.fresh;
        let results = self.check_out(url, found);
        let broken =
            |result: &Result<Resolved, Trouble>| result.as_ref().is_err_and(Trouble::is_corruption);
        if fresh || !results.iter().any(broken) {
            return Ok(results);
        }
        Ok(self.check_out(url, mirror::anew(self, url, references)?))
    }

    fn check_out(&self, url: &Url, found: Found) -> Vec<Result<Resolved, Trouble>> {
        let Found { repository, commits, .. } = found;
        let one = |commit: Result<_, _>| checkout::shared(self, url, &repository, commit?);
        commits.into_iter().map(one).collect()
    }
}

/// As it is written in a specification, for messages.
pub(super) fn name(reference: &Reference) -> String {
    match reference {
        Reference::Head => "HEAD".to_owned(),
        Reference::Branch(name) => format!("branch {name}"),
        Reference::Tag(name) => format!("tag {name}"),
        Reference::Commit(id) => id.clone(),
    }
}
