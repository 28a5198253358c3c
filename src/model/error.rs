//! Errors as people read them.

use std::error::Error;
use std::fmt::Write;

/// An error with its sources, on one line. No error repeats its source, so that whoever prints joins them.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let _ = write!(text, ": {error}"); // A string takes everything.
        source = error.source();
    }
    text
}
