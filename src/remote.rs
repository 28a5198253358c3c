//! Builds on other machines: the worker that builds for a server.
//!
//! The messages are in `proto/remote.rs`.
#![forbid(unsafe_code)]

pub(crate) mod publish;
pub(crate) mod worker;
