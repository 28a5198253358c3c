//! The web interface, as clients of it see it.

mod acceptance;
pub(crate) mod access;
mod api;
mod basics;
mod bounds;
mod browser;
mod change;
mod described;
pub(crate) mod feeds;
mod files;
mod hooks;
mod live;
mod pages;
mod search;
