//! Wall-clock time in Unix seconds, and durations as Cuirass spells them.

use std::fmt;
use std::time::Duration;

/// Seconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Time(pub(crate) i64);

impl Time {
    /// This time moved by `duration`, in whole seconds rounded up.
    pub(crate) fn after(self, duration: Duration) -> Self {
        let round_up = i64::from(duration.subsec_nanos() > 0);
        let seconds = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(seconds).saturating_add(round_up))
    }

    /// This time moved back by `duration`, in whole seconds.
    pub(crate) fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)))
    }

    /// How long it is from `self` to `later`; zero when `later` is earlier.
    pub(crate) fn until(self, later: Self) -> Duration {
        Duration::from_secs(u64::try_from(later.0.saturating_sub(self.0)).unwrap_or(0))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Reads a duration: a bare number of seconds, or one number and one of the units `s min h d w m`.
/// `m` is a month of 30 days, as Cuirass has it. `None` for anything else.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let unit = match unit {
        "" | "s" => 1,
        "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        "m" => 30 * 86_400,
        _ => return None,
    };
    // Beyond this, sums with a Unix time could overflow.
    number.checked_mul(unit).filter(|&s| s <= 1 << 40).map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_the_units_of_cuirass() {
        let seconds = |text| parse_duration(text).map(|d| d.as_secs());
        assert_eq!(seconds("90"), Some(90));
        assert_eq!(seconds("2min"), Some(120));
        assert_eq!(seconds("1h"), Some(3600));
        assert_eq!(seconds("30d"), Some(2_592_000));
        assert_eq!(seconds("2w"), Some(1_209_600));
        assert_eq!(seconds("6m"), Some(15_552_000));
        for bad in ["", "d", "-1", "1 d", "1d2h", "1y", "99999999999999999999", "9999999999999d"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }
}
