//! One evaluation on the spot, of which the books hear nothing: `gorget evaluate`.

use std::path::Path;
use std::time::Instant;

use super::Evaluation;
use super::place::Place;
use super::resolve::Resolver;
use super::run::{self, Cut, Limits, Sink};
use crate::model::evaluation::Ending;
use crate::model::job::NewJob;
use crate::sys::clock;
use crate::sys::process::{Killer, Launcher};

/// Where the output goes.
pub(crate) struct Terminal<'a> {
    /// Gets each valid job line as it was printed, without its newline.
    pub(crate) line: &'a mut dyn FnMut(&[u8]),
    /// Gets what the evaluator and we say to people.
    pub(crate) text: &'a mut dyn FnMut(&[u8]),
    /// Gets what can cancel the evaluator, once it runs.
    pub(crate) started: &'a dyn Fn(Killer),
}

/// Evaluates now. `root` is made for it and removed again, `cache_home` is kept.
pub(crate) fn once(
    launcher: &Launcher,
    evaluation: &Evaluation<'_>,
    root: &Path,
    cache_home: &Path,
    terminal: &mut Terminal<'_>,
) -> Ending {
    let specification = evaluation.specification;
    let place = Place::prepare(root, cache_home, evaluation.checkouts, evaluation.user);
    let started = place.and_then(|place| {
        let child = super::start(launcher, evaluation, &place)?;
        Ok((place, child))
    });
    let (_place, child) = match started {
        Ok(started) => started,
        Err(error) => return error.ending(),
    };
    (terminal.started)(child.killer());
    let trees = evaluation.checkouts.iter().map(|checkout| checkout.tree.clone()).collect();
    let resolver = Resolver::new(&specification.name, specification.priority, trees);
    let limits = Limits::new(evaluation, clock::now());
    run::run(child, resolver, &limits, terminal)
}

impl Sink for Terminal<'_> {
    fn jobs(&mut self, line: &[u8], jobs: &mut Vec<NewJob>) -> Result<(), Cut> {
        jobs.clear();
        // Jobs that come out at the end were printed when their lines came.
        if !line.is_empty() {
            (self.line)(line);
        }
        Ok(())
    }

    fn awaits(&mut self, _job: &str, _system: &str) -> Result<(), Cut> {
        // Nobody builds: a one-off evaluator of ours does not ask.
        Ok(())
    }

    fn holds(&mut self) -> Result<(), Cut> {
        Ok(())
    }

    fn errors(&mut self, bytes: &[u8]) {
        (self.text)(bytes);
    }

    fn note(&mut self, text: &str) {
        (self.text)(format!("gorget: {text}\n").as_bytes());
    }

    fn failed(&mut self, _reason: &str) {
        // Whoever asked for the evaluation says so.
    }

    fn due(&self) -> Option<Instant> {
        None
    }

    fn tick(&mut self) -> Result<(), Cut> {
        Ok(())
    }

    fn why(&mut self) -> Cut {
        // Nobody else has the child's killer.
        Cut::Interrupted
    }
}
