//! The operating system: clock, children, signals, sockets, locks, files. The only place with `unsafe`
//! but for one call in `git`.

pub(crate) mod clock;
pub(crate) mod connect;
pub(crate) mod descriptors;
pub(crate) mod file;
pub(crate) mod lock;
pub(crate) mod poll;
pub(crate) mod process;
pub(crate) mod random;
pub(crate) mod signal;
pub(crate) mod socket;
