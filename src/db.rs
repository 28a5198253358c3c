//! The books: one writer thread, any number of read-only connections.
//!
//! Invariant: only the writer changes the file. Requests are applied in group commits, each in a savepoint
//! of its own, and answered after the commit; events of a group reach subscribers after it too.

pub(crate) mod builds;
mod convert;
pub(crate) mod error;
pub(crate) mod evaluations;
pub(crate) mod events;
pub(crate) mod jobsets;
pub(crate) mod maintenance;
mod metrics;
pub(crate) mod migrate;
pub(crate) mod notifications;
#[cfg(test)]
mod plans;
pub(crate) mod promises;
pub(crate) mod records;
mod snapshot;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod wanted;
pub(crate) mod web;
pub(crate) mod workers;
pub(crate) mod writer;

pub(crate) use error::Error;
pub(crate) use writer::{Database, Events, Reader, Subscription, Tx};
