//! Plain data that every layer speaks of: no I/O, no serialization.

pub(crate) mod build;
pub(crate) mod error;
pub(crate) mod evaluation;
pub(crate) mod event;
pub(crate) mod job;
pub(crate) mod jobset;
pub(crate) mod spec;
pub(crate) mod status;
pub(crate) mod time;
