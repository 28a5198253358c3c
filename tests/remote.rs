//! Builds on other machines, over real sockets.

mod backend;
mod chaos;
mod guile;
mod network;
mod people;
mod server;
mod stores;
mod worker;
