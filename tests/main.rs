//! The integration tests: they drive the program itself, in a sandbox.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by a panic, and says more on stderr"
)]

mod support;

mod cli;
mod daemon;
mod guix;
mod nix;
mod remote;
mod scheme;
mod store;
mod tidy;
mod web;
