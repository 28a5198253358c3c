//! What an evaluation is made from: commits of channels, and what of a specification decides jobs.

use sha2::{Digest, Sha256};

use crate::model::evaluation::Checkout;
use crate::model::spec::{Channel, Specification};
use crate::spec;

/// Whether the jobs could differ between the two.
pub(in crate::daemon) fn decides_jobs(old: &Specification, new: &Specification) -> bool {
    old.channels != new.channels || old.evaluator != new.evaluator || old.systems != new.systems
}

/// The channels of an evaluation's checkouts, at their commits.
pub(super) fn pinned(specification: &Specification, checkouts: &[Checkout]) -> Vec<Channel> {
    let introduction = |checkout: &Checkout| {
        let same = |c: &&Channel| c.name == checkout.channel && c.url == checkout.url;
        specification.channels.iter().find(same).and_then(|c| c.introduction.clone())
    };
    checkouts
        .iter()
        .map(|checkout| Channel { introduction: introduction(checkout), ..checkout.pinned() })
        .collect()
}

/// Identifies what an evaluation is made from: what in the specification decides jobs, and the set of
/// (channel, commit).
pub(in crate::daemon) fn fingerprint(
    specification: &Specification,
    checkouts: &[Checkout],
) -> String {
    let mut commits: Vec<_> =
        checkouts.iter().map(|c| (c.channel.as_str(), c.commit.as_str())).collect();
    commits.sort_unstable();
    let mut hash = Sha256::new();
    hash.update(spec::json::job_fingerprint(specification));
    for (channel, commit) in commits {
        // Neither holds a zero byte, so no two sets read alike.
        hash.update(channel);
        hash.update([0]);
        hash.update(commit);
        hash.update([0]);
    }
    let mut text = String::with_capacity(64);
    for byte in hash.finalize() {
        use std::fmt::Write as _;
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}
