//! Codecs over `io::Read` and `io::Write`: no sockets, threads or clocks.

pub(crate) mod control;
pub(crate) mod drv;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub(crate) mod line;
pub(crate) mod pattern;
pub(crate) mod remote;
pub(crate) mod sexp;
pub(crate) mod store;
