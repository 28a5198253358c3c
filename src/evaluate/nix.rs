//! The `nix` evaluator: the jobs of a Nix expression or flake, by nix-eval-jobs where it is installed, else by
//! nix-instantiate with an expression of ours.
//!
//! Its program is this binary again, in a mode of its own: the [`driver`], which runs the Nix programs under keepers
//! of its own and prints job lines. So all of them are descendants of the evaluation's keeper, under its deadline,
//! its limits and its cancel. A broken attribute costs one `error` job.

mod driver;
mod source;
mod steps;
mod translate;

use std::ffi::OsString;

use super::place::Place;
use super::{Evaluation, ask, command};
use crate::model::spec::NixSubset;
use crate::sys::process::Launch;
pub(crate) use driver::main;
pub(super) use steps::Cutter;

/// The hidden first argument that makes this binary the driver.
pub(crate) const DRIVER: &str = "nix-evaluator";

/// What its own lines in the evaluation's log begin with; the last one says why it failed.
pub(super) const SAYS: &str = "gorget: ";

/// What to run for an evaluation in `place`.
pub(super) fn launch(subset: &NixSubset, evaluation: &Evaluation<'_>, place: &Place) -> Launch {
    // In the eyes of the keeper that execs it: the very file that runs, even when a newer one has taken its name.
    let mut words = vec!["/proc/self/exe".to_owned(), DRIVER.to_owned()];
    match subset {
        NixSubset::File { file, attribute } => {
            words.extend(["file".to_owned(), file.clone()]);
            words.extend(attribute.clone());
        }
        NixSubset::Flake(attribute) => words.extend(["flake".to_owned(), attribute.clone()]),
    }
    let mut launch = command::launch(&words, evaluation, place);
    launch.environment.extend(settings(std::env::vars_os()));
    if evaluation.id.is_some() {
        launch.environment.push((ask::ANSWERS.into(), place.answers().into()));
    }
    launch
}

/// What Nix itself reads from the environment: where the store, its daemon and the search path are.
fn settings(all: impl Iterator<Item = (OsString, OsString)>) -> Vec<(OsString, OsString)> {
    all.filter(|(name, _)| name.as_encoded_bytes().starts_with(b"NIX_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_environment_nix_gets_its_own() {
        let all = ["NIX_PATH", "NIX_REMOTE", "NIXY", "GUIX_X", "PATH"];
        let found = settings(all.iter().map(|name| (name.into(), "1".into())));
        let names: Vec<_> = found.iter().map(|(name, _)| name.to_str().unwrap()).collect();
        assert_eq!(names, ["NIX_PATH", "NIX_REMOTE"]);
    }
}
