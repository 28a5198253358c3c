//! What the web interface reads.
//!
//! Invariant: every query finds what it shows by an index.

pub(crate) mod builds;
pub(crate) mod downloads;
pub(crate) mod evaluations;
pub(crate) mod feeds;
pub(crate) mod jobs;
pub(crate) mod pages;
pub(crate) mod numbers;
pub(crate) mod search;
