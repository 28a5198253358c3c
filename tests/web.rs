//! The web interface, as clients of it see it.

mod access;
mod basics;
mod change;
mod hooks;
