//! Builds on other machines: the server that workers connect to, and the worker that builds for one.
//!
//! The server holds no database and decides nothing: what a worker is to build is decided by the daemon's ready queue, which
//! speaks to the server over `run/remote`. The messages are in `proto/remote.rs`.
#![forbid(unsafe_code)]

pub(crate) mod publish;
pub(crate) mod server;
pub(crate) mod worker;
