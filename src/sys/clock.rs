//! The only source of "now", and of how people read a time.

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

/// A moment as a clock on the wall shows it, in the time zone of the environment: `14:05:09`.
pub(crate) fn time_of_day(time: Time) -> String {
    // SAFETY: zeroes are a value of this structure of integers and a pointer that may be null.
    let mut fields: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both point to values of ours, and nothing here changes the environment it may read.
    let known = unsafe { !libc::localtime_r(&time.0, &mut fields).is_null() };
    if !known {
        return time.to_string();
    }
    format!("{:02}:{:02}:{:02}", fields.tm_hour, fields.tm_min, fields.tm_sec)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_day_are_those_of_clocks() {
        let (one, next) = (time_of_day(Time(1_700_000_000)), time_of_day(Time(1_700_000_001)));
        assert!(one.len() == 8 && one.ends_with(":20") && next.ends_with(":21"), "{one} {next}");
        // A year that no clock shows.
        assert_eq!(time_of_day(Time(i64::MAX)), i64::MAX.to_string());
    }
}
