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
    Time(i64::try_from(seconds).unwrap_or(i64::MAX).saturating_add(jump()))
}

/// How far tests set the clock wrong, in seconds: what the file that `GORGET_TEST_CLOCK` names holds now.
#[cfg(debug_assertions)]
fn jump() -> i64 {
    use std::sync::OnceLock;
    static FILE: OnceLock<Option<std::path::PathBuf>> = OnceLock::new();
    let file = FILE.get_or_init(|| std::env::var_os("GORGET_TEST_CLOCK").map(Into::into));
    let text = file.as_ref().and_then(|file| std::fs::read_to_string(file).ok());
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Nothing in release builds.
#[cfg(not(debug_assertions))]
fn jump() -> i64 {
    0
}
