//! What the web interface reads.
//!
//! Invariant: a query finds what it shows by an index, or in the order of one as far as its limit goes; what filters
//! then leave out still costs, and the time that the connection has for its queries bounds that.

pub(crate) mod builds;
pub(crate) mod differences;
pub(crate) mod downloads;
pub(crate) mod evaluations;
pub(crate) mod feeds;
pub(crate) mod jobs;
pub(crate) mod machines;
pub(crate) mod numbers;
pub(crate) mod pages;
pub(crate) mod relations;
pub(crate) mod search;
