//! Times as HTTP and feeds write them, in UTC.

use crate::model::time::Time;

const DAY: i64 = 86_400;
const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

struct Fields {
    year: i64,
    /// From 0.
    month: usize,
    day: i64,
    weekday: &'static str,
    /// `08:49:37`
    clock: String,
}

fn fields(time: Time) -> Fields {
    let (mut days, seconds) = (time.0.div_euclid(DAY), time.0.rem_euclid(DAY));
    let weekday = WEEKDAYS[usize::try_from(days.rem_euclid(7)).unwrap_or(0)];
    // Years that begin in March end with the day that leap years add; 400 of them are always as long.
    days += 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (begun, next) = (month >= 10, (month + 2) % 12);
    Fields {
        year: era * 400 + year + i64::from(begun),
        month: usize::try_from(next).unwrap_or(0),
        day: day - (153 * month + 2) / 5 + 1,
        weekday,
        clock: format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60),
    }
}

/// As in HTTP, and in mail: `Sun, 06 Nov 1994 08:49:37 GMT`.
pub(super) fn http(time: Time) -> String {
    let Fields { year, month, day, weekday, clock } = fields(time);
    format!("{weekday}, {day:02} {} {year:04} {clock} GMT", MONTHS[month])
}

/// As in Atom: `1994-11-06T08:49:37Z`.
pub(super) fn atom(time: Time) -> String {
    let Fields { year, month, day, weekday: _, clock } = fields(time);
    format!("{year:04}-{:02}-{day:02}T{clock}Z", month + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(http(Time(784_111_777)), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(http(Time(0)), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(http(Time(951_782_399)), "Mon, 28 Feb 2000 23:59:59 GMT");
        assert_eq!(http(Time(951_782_400)), "Tue, 29 Feb 2000 00:00:00 GMT");
        assert_eq!(http(Time(-5)), "Wed, 31 Dec 1969 23:59:55 GMT");
        assert_eq!(atom(Time(951_782_400)), "2000-02-29T00:00:00Z");
        assert_eq!(atom(Time(951_868_799)), "2000-02-29T23:59:59Z");
        assert_eq!(atom(Time(4_107_542_400)), "2100-03-01T00:00:00Z");
        assert_eq!(atom(Time(1_735_689_599)), "2024-12-31T23:59:59Z");
    }
}
