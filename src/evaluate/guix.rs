//! The `guix` evaluator: the jobs of a channel, as Guix's own `cuirass-jobs` decides them.
//!
//! Its program is this binary again, in a mode of its own: the [`driver`], which runs Guix under keepers of its own
//! and prints job lines. So all of it descends from the evaluation's keeper, under its deadline, its limits and its
//! cancel. Where the jobset has a channel called `guix`, that Guix evaluates, in two steps: the installed one computes
//! the profile that holds the channels, which is a job like others, and waited for; then the Guix in it is run, once
//! for each system. Without such a channel the installed Guix evaluates.

mod driver;
mod lend;
mod request;
mod script;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::place::Place;
use super::{Error, Evaluation, ask, command};
use crate::model::spec::{Channel, GuixSubset, Introduction, Reference};
use crate::sys::process::Launch;
pub(crate) use driver::main;
use request::{Asked, Given};

/// The hidden first argument that makes this binary the driver.
pub(crate) const DRIVER: &str = "guix-evaluator";

/// The channel that is Guix itself.
const GUIX: &str = "guix";

/// Where it comes from, and what everybody who has Guix trusts there: Guix itself knows it only by this URL.
const OFFICIAL: &str = "https://git.guix.gnu.org/guix.git";
const OFFICIAL_COMMIT: &str = "9edb3f66fd807b096b48283debdcddccfea34bad";
const OFFICIAL_SIGNER: &str = "BBB0 2DDF 2CEA F6A8 0D1D  E643 A2A0 6DF2 A33A 54FA";

/// What this evaluator needs besides what all have.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    /// The words of the command that runs Guix.
    pub(crate) command: Vec<String>,
    /// For each checkout, the mirror it is from.
    pub(crate) mirrors: Vec<PathBuf>,
    /// A directory for what Guix sees of them, always the same for a jobset: Guix keeps a clone for each name.
    pub(crate) lent: PathBuf,
}

/// What to run for an evaluation in `place`.
pub(super) fn launch(
    subset: &GuixSubset,
    evaluation: &Evaluation<'_>,
    place: &Place,
) -> Result<Launch, Error> {
    let tools = evaluation.guix;
    let channels = &evaluation.specification.channels;
    let has_guix = channels.iter().any(|channel| channel.name == GUIX);
    if has_guix {
        lend::all(tools, evaluation)?;
    }
    let asked = Asked {
        command: tools.command.clone(),
        subset: request::subset(subset),
        // Nobody builds for a one-off.
        builds: evaluation.id.is_none(),
        profile: has_guix,
        channels: evaluation
            .checkouts
            .iter()
            .filter_map(|checkout| {
                let channel = channels.iter().find(|channel| channel.name == checkout.channel)?;
                Some(given(channel, lend::place(&tools.lent, &channel.name)))
            })
            .collect(),
    };
    // In the eyes of the keeper that execs it: the very file that runs, even when a newer one has taken its name.
    let words = ["/proc/self/exe".to_owned(), DRIVER.to_owned(), asked.print()];
    let mut launch = command::launch(&words, evaluation, place);
    launch.environment.extend(settings(std::env::vars_os()));
    if evaluation.id.is_some() {
        launch.environment.push((ask::ANSWERS.into(), place.answers().into()));
    }
    Ok(launch)
}

fn given(channel: &Channel, repository: PathBuf) -> Given {
    let introduction = channel.introduction.clone().or_else(|| {
        let is_official = channel.name == GUIX && channel.url == OFFICIAL;
        is_official.then(|| Introduction {
            commit: OFFICIAL_COMMIT.to_owned(),
            signer: OFFICIAL_SIGNER.to_owned(),
        })
    });
    let branch = match &channel.reference {
        Reference::Branch(name) => Some(name.clone()),
        Reference::Head | Reference::Tag(_) | Reference::Commit(_) => None,
    };
    Given {
        name: channel.name.clone(),
        branch,
        introduction: introduction.map(|introduction| [introduction.commit, introduction.signer]),
        repository,
    }
}

/// What Guix itself reads from the environment: where the store and its daemon are, and where more packages.
fn settings(all: impl Iterator<Item = (OsString, OsString)>) -> Vec<(OsString, OsString)> {
    let known = |name: &[u8]| name.starts_with(b"GUIX_") || name.starts_with(b"NIX_");
    all.filter(|(name, _)| known(name.as_encoded_bytes())).collect()
}

/// Where jobsets' channels are lent to Guix, below the cache.
pub(crate) fn lent_directory(cache: &Path) -> PathBuf {
    cache.join("channels")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_environment_guix_gets_its_own() {
        let all = ["GUIX_DAEMON_SOCKET", "NIX_STORE_DIR", "GUIXY", "PATH"];
        let found = settings(all.iter().map(|name| (name.into(), "1".into())));
        let names: Vec<_> = found.iter().map(|(name, _)| name.to_str().unwrap()).collect();
        assert_eq!(names, ["GUIX_DAEMON_SOCKET", "NIX_STORE_DIR"]);
    }

    #[test]
    fn the_official_channel_is_known_by_its_url() {
        let channel = |name: &str, url: &str| Channel {
            name: name.to_owned(),
            url: url.to_owned(),
            reference: Reference::Branch("master".to_owned()),
            introduction: None,
        };
        let signer = |channel| given(&channel, PathBuf::new()).introduction.map(|[_, s]| s);
        assert_eq!(signer(channel("guix", OFFICIAL)).as_deref(), Some(OFFICIAL_SIGNER));
        assert_eq!(signer(channel("guix", "https://example.org/guix.git")), None);
        assert_eq!(signer(channel("my", OFFICIAL)), None);
    }
}
