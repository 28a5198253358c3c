//! The only source of "now".

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::model::time::Time;

/// For deadlines and periods: never jumps.
#[expect(clippy::disallowed_methods, reason = "this is the one source")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// For the books: wall-clock time, which may jump.
#[expect(clippy::disallowed_methods, reason = "this is the one source")]
pub(crate) fn wall() -> Time {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    Time(i64::try_from(seconds).unwrap_or(i64::MAX))
}
