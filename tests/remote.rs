//! Builds on other machines, over real sockets.

mod server;
mod worker;
