//! Codecs over `io::Read` and `io::Write`: no sockets, threads or clocks.

pub(crate) mod control;
pub(crate) mod drv;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub(crate) mod line;
pub(crate) mod pattern;
#[cfg_attr(not(test), expect(dead_code, reason = "its other users come next"))]
pub(crate) mod remote;
pub(crate) mod sexp;
pub(crate) mod store;
