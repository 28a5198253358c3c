//! What the web interface reads.
//!
//! Invariant: every query finds what it shows by an index, and reads a bounded number of rows.

pub(crate) mod builds;
pub(crate) mod evaluations;
pub(crate) mod jobs;
