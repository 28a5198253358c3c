//! Parts that many pages are made of: states as icon and word, times, sizes, counts, forms, pagers.

use maud::{Markup, html};

use crate::db::web::pages::Page;
use crate::model::evaluation::{Counts, Evaluation};
use crate::model::spec::JobsetName;
use crate::model::status::{BuildStatus, EvaluationStatus, Weather};
use crate::model::time::Time;
use crate::web::access::Access;
use crate::web::context::Context;
use crate::web::link::component;

const CHECK: &str = "M3 8.5 6.5 12 13 4.5";
const CROSS: &str = "M4 4l8 8M12 4l-8 8";
const CLOCK: &str = "M8 4.500V8l2.5 1.500M14 8A6 6 0 1 1 2 8a6 6 0 0 1 12 0";
const PLAY: &str = "M5 3.500v9l7-4.500z";
const CHAIN: &str = "M8 2.5 14.5 13.500H1.500zM8 6.500v3.500M8 12v.1";
const BAR: &str = "M14 8A6 6 0 1 1 2 8a6 6 0 0 1 12 0M4 12 12 4";
const UP: &str = "M8 13V3.500M4 7l4-4 4 4";
const DOWN: &str = "M8 3v9.500M4 9l4 4 4-4";
const LEVEL: &str = "M3 8h10";

pub(super) fn icon(path: &str) -> Markup {
    html! { svg class="i" viewBox="0 0 16 16" aria-hidden="true" { path d=(path) {} } }
}

/// How a state looks: its colour's class, its icon, its letter in grids, its word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) class: &'static str,
    pub(super) icon: &'static str,
    pub(super) letter: char,
    pub(super) word: &'static str,
}

const fn look(class: &'static str, icon: &'static str, letter: char, word: &'static str) -> Look {
    Look { class, icon, letter, word }
}

pub(super) fn build_look(status: BuildStatus) -> Look {
    match status {
        BuildStatus::Submitted => look("idle", CLOCK, 'q', "Submitted"),
        BuildStatus::Scheduled => look("idle", CLOCK, 'q', "Scheduled"),
        BuildStatus::Started => look("run", PLAY, 'r', "Running"),
        BuildStatus::Succeeded => look("ok", CHECK, 's', "Succeeded"),
        BuildStatus::Failed => look("bad", CROSS, 'F', "Failed"),
        BuildStatus::FailedDependency => look("bad", CHAIN, 'D', "Failed (dependency)"),
        BuildStatus::Aborted => look("warn", CHAIN, 'A', "Aborted"),
        BuildStatus::Canceled => look("warn", BAR, 'C', "Canceled"),
    }
}

pub(super) fn evaluation_look(evaluation: &Evaluation) -> Look {
    let jobs = evaluation.jobs;
    match evaluation.status {
        EvaluationStatus::Started => look("run", PLAY, 'r', "In progress"),
        EvaluationStatus::Failed => look("bad", CROSS, 'F', "Evaluation failed"),
        EvaluationStatus::Aborted => look("warn", BAR, 'A', "Evaluation aborted"),
        EvaluationStatus::Succeeded if jobs.pending > 0 => look("run", PLAY, 'r', "Building"),
        EvaluationStatus::Succeeded if jobs.failed > 0 => look("bad", CROSS, 'F', "Builds failed"),
        EvaluationStatus::Succeeded if jobs.aborted + jobs.canceled > 0 => {
            look("warn", BAR, 'A', "Builds aborted or canceled")
        }
        EvaluationStatus::Succeeded => look("ok", CHECK, 's', "Succeeded"),
    }
}

fn weather_look(weather: Weather) -> Option<Look> {
    match weather {
        Weather::Unknown => None,
        Weather::NewSuccess => Some(look("ok", UP, '+', "Newly succeeding")),
        Weather::NewFailure => Some(look("bad", DOWN, '-', "Newly failing")),
        Weather::StillSucceeding => Some(look("ok", LEVEL, '=', "Still succeeding")),
        Weather::StillFailing => Some(look("bad", LEVEL, '=', "Still failing")),
    }
}

pub(super) fn state(look: Look) -> Markup {
    html! { span class={ "s " (look.class) } { (icon(look.icon)) (look.word) } }
}

pub(super) fn status(status: BuildStatus) -> Markup {
    state(build_look(status))
}

/// Nothing where it is unknown.
pub(super) fn weather(weather: Weather) -> Markup {
    html! { @if let Some(look) = weather_look(weather) { (state(look)) } }
}

/// The icon alone, with its word for those who do not see it: where a column has room for no more.
pub(super) fn weather_icon(weather: Weather) -> Markup {
    html! {
        @if let Some(look) = weather_look(weather) {
            span class={ "s " (look.class) } title=(look.word) {
                (icon(look.icon)) span class="hidden" { (look.word) }
            }
        }
    }
}

/// A day's year, month and day from its number since 1970, in the Gregorian calendar without end.
fn date(days: i64) -> (i64, i64, i64) {
    // Years that begin in March have their leap day last; 400 of them are an era.
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let in_year = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * in_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year + i64::from(month <= 2), month, in_year - (153 * shifted + 2) / 5 + 1)
}

/// As `datetime` wants it.
pub(super) fn iso(time: Time) -> String {
    let (year, month, day) = date(time.0.div_euclid(86_400));
    let second = time.0.rem_euclid(86_400);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

fn relative(now: Time, time: Time) -> String {
    let seconds = now.0 - time.0;
    let text = |n: i64, unit: &str| {
        if seconds >= 0 { format!("{n} {unit} ago") } else { format!("in {n} {unit}") }
    };
    match seconds.abs() {
        away @ 0..120 => text(away, "s"),
        away @ 120..7_200 => text((away + 30) / 60, "min"),
        away @ 7_200..172_800 => text((away + 1_800) / 3_600, "h"),
        _ => iso(time)[..16].replace('T', " "),
    }
}

/// A moment: how long ago, and exactly.
pub(super) fn time(now: Time, time: Time) -> Markup {
    let exact = iso(time);
    let title = format!("{} UTC", exact[..19].replace('T', " "));
    html! { time class="nowrap" datetime=(exact) title=(title) { (relative(now, time)) } }
}

pub(super) fn maybe_time(now: Time, moment: Option<Time>) -> Markup {
    html! { @match moment { Some(moment) => (time(now, moment)), None => "–" } }
}

pub(super) fn duration(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..60 => format!("{s} s"),
        s @ 60..3_600 => format!("{} min {:02} s", s / 60, s % 60),
        s @ 3_600..86_400 => format!("{} h {:02} min", s / 3_600, s / 60 % 60),
        s => format!("{} d {:02} h", s / 86_400, s / 3_600 % 24),
    }
}

/// From when it began to when it ended, or so far.
pub(super) fn lasted(now: Time, start: Option<Time>, stop: Option<Time>) -> Markup {
    html! {
        @if let Some(start) = start {
            (duration(stop.unwrap_or(now).0 - start.0))
            @if stop.is_none() { " so far" }
        } @else { "–" }
    }
}

pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1_024 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64 / 1_024.0, 0);
    while value >= 1_023.95 && unit + 1 < UNITS.len() {
        value /= 1_024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

pub(super) fn plural(n: i64, one: &str, many: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {many}") }
}

/// Jobs by the state of their builds: icon and number, the word for whoever points at it or hears it.
pub(super) fn counts(jobs: Counts) -> Markup {
    let parts = [
        (jobs.succeeded, "ok", CHECK, "succeeded"),
        (jobs.failed, "bad", CROSS, "failed"),
        (jobs.aborted, "warn", CHAIN, "aborted"),
        (jobs.canceled, "warn", BAR, "canceled"),
        (jobs.pending, "idle", CLOCK, "pending"),
    ];
    html! {
        span class="ns" {
            @for (n, class, path, word) in parts {
                @if n > 0 {
                    span class={ "n " (class) } title={ (n) " " (word) } {
                        (icon(path)) (n) span class="hidden" { " " (word) }
                    }
                }
            }
            @if jobs.total == 0 { span class="dim" { "no jobs" } }
        }
    }
}

/// How many of all jobs are where, as a bar of 100 units; its numbers stand beside it.
fn meter(jobs: Counts) -> Markup {
    let total = jobs.total.max(1) as f64;
    let mut at = 0.0;
    let parts = [
        (jobs.succeeded, "f-ok"),
        (jobs.failed, "f-bad"),
        (jobs.aborted + jobs.canceled, "f-warn"),
        (jobs.pending, "f-idle"),
    ];
    let parts = parts.map(|(n, class)| {
        let (x, width) = (at, n as f64 * 100.0 / total);
        at += width;
        (format!("{x:.2}"), format!("{width:.2}"), class)
    });
    html! {
        svg class="meter" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true" {
            @for (x, width, class) in parts {
                @if width != "0.00" { rect x=(x) y="0" width=(width) height="6" class=(class) {} }
            }
        }
    }
}

/// What share of the jobs succeeded, in whole percents: all only if it is all.
fn percent(jobs: Counts) -> i64 {
    if jobs.total == 0 { 0 } else { jobs.succeeded * 100 / jobs.total }
}

/// The bar, and the share of the jobs that succeeded.
pub(super) fn share(jobs: Counts) -> Markup {
    html! { span class="share" { (meter(jobs)) span class="small" { (percent(jobs)) " %" } } }
}

pub(super) fn jobset(context: &Context, name: &JobsetName) -> Markup {
    html! { a href=(jobset_link(context, name)) { (name) } }
}

pub(super) fn jobset_link(context: &Context, name: &JobsetName) -> String {
    context.link(&format!("/jobset/{}", component(name.as_str())))
}

pub(super) fn job_link(context: &Context, jobset: &JobsetName, job: &str, system: &str) -> String {
    let (jobset, job) = (component(jobset.as_str()), component(job));
    context.link(&format!("/jobset/{jobset}/job/{job}?system={}", component(system)))
}

/// Why a build waits, in the daemon's words; another build that it waits for can be gone to.
pub(super) fn reason(context: &Context, words: &str) -> Markup {
    let id = words.strip_prefix("dependency ").and_then(|id| id.parse::<i64>().ok());
    html! {
        @match id {
            Some(id) => span class="reason" { "dependency " a href=(context.link(&format!("/build/{id}/details"))) { (id) } },
            None => (words),
        }
    }
}

/// Hidden fields of a form that changes something.
pub(super) fn csrf(context: &Context) -> Markup {
    let token = context.csrf();
    html! { @if !token.is_empty() { input type="hidden" name="csrf" value=(token); } }
}

/// A button that sends an order.
pub(super) fn order(context: &Context, path: &str, label: &str) -> Markup {
    html! {
        form method="post" action=(context.link(path)) {
            (csrf(context)) button type="submit" { (label) }
        }
    }
}

pub(super) fn may(context: &Context, access: Access, jobset: &JobsetName) -> bool {
    context.may(access, Some(jobset))
}

/// Links to the other pages of a list: `link` makes one from a query such as `after=7`.
pub(super) fn pager<T>(
    page: &Page<T>,
    key: impl Fn(&T) -> (String, String),
    (first, last): (&str, &str),
    link: impl Fn(&str) -> String,
) -> Markup {
    let before = page.rows.first().map(|row| key(row).0).filter(|_| page.more_before);
    let after = page.rows.last().map(|row| key(row).1).filter(|_| page.more_after);
    html! {
        @if before.is_some() || after.is_some() {
            nav class="pager" aria-label="Pages" {
                @match &before {
                    Some(before) => {
                        a href=(link(first)) { "First" }
                        a href=(link(before)) rel="prev" { "Previous" }
                    }
                    None => { span { "First" } span { "Previous" } }
                }
                @match &after {
                    Some(after) => {
                        a href=(link(after)) rel="next" { "Next" }
                        a href=(link(last)) { "Last" }
                    }
                    None => { span { "Next" } span { "Last" } }
                }
            }
        }
    }
}

/// A query from pairs, those without value left out, with its question mark.
pub(super) fn query(pairs: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (key, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
        text.push(if text.is_empty() { '?' } else { '&' });
        text.push_str(&format!("{key}={}", component(value)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_dates() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (-1, "1969-12-31T23:59:59Z"),
        ] {
            assert_eq!(iso(Time(seconds)), text);
        }
    }

    #[test]
    fn moments_are_told_from_now() {
        let now = Time(1_700_000_000);
        let told = |seconds: i64| relative(now, Time(now.0 - seconds));
        assert_eq!(told(5), "5 s ago");
        assert_eq!(told(600), "10 min ago");
        assert_eq!(told(-600), "in 10 min");
        assert_eq!(told(86_400), "24 h ago");
        assert_eq!(told(200_000), "2023-11-12 14:40");
    }

    #[test]
    fn durations_and_sizes_have_units() {
        assert_eq!(duration(59), "59 s");
        assert_eq!(duration(61), "1 min 01 s");
        assert_eq!(duration(7_260), "2 h 01 min");
        assert_eq!(duration(90_000), "1 d 01 h");
        assert_eq!(size(1_023), "1023 B");
        assert_eq!(size(1_536), "1.5 KiB");
        assert_eq!(size(1_048_575), "1.0 MiB");
    }

    #[test]
    fn nobody_is_told_that_all_is_well_when_it_is_not() {
        let jobs = Counts { total: 1_000, succeeded: 999, failed: 1, ..Counts::default() };
        assert_eq!(percent(jobs), 99);
        assert_eq!(percent(Counts { total: 3, succeeded: 3, ..Counts::default() }), 100);
    }

    #[test]
    fn queries_are_encoded() {
        assert_eq!(query(&[("a", "x&y"), ("b", ""), ("c", "1+1")]), "?a=x%26y&c=1%2B1");
    }
}
