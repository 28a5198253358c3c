//! Badges: how a jobset or one of its jobs stands, as a small picture for other people's pages.

use super::xml::{escape, shorten};
use crate::db::web::{evaluations, jobs};
use crate::model::evaluation::Counts;
use crate::model::status::BuildStatus;
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::request::Request;
use crate::web::response::{Response, SVG};
use crate::web::route::Captures;

/// Characters of a name that are shown: with every one of them escaped the picture stays within 1 KiB.
const LABEL: usize = 32;

/// The least percentage that looks well, and the least that looks half well.
const WELL: i64 = 90;
const HALF_WELL: i64 = 50;

/// White is legible on each of them.
const GREEN: &str = "#2b7a35";
const AMBER: &str = "#8a5a00";
const RED: &str = "#b3261e";
const GREY: &str = "#555";

/// What a badge says, and in which colour.
struct Told {
    value: String,
    colour: &'static str,
}

impl Told {
    fn new(value: impl Into<String>, colour: &'static str) -> Self {
        Self { value: value.into(), colour }
    }
}

/// GET `/jobset/NAME/badge.svg`: always a picture, since a page has nothing else to show.
pub(super) fn show(
    context: &mut Context,
    request: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    let (name, job) = (captures.get("name"), request.query.get("job"));
    let named = request.query.number("type").is_some_and(|kind| kind != 0);
    let books = context.books()?;
    let told = match (evaluations::latest_succeeded(books, name)?, job) {
        (None, _) => Told::new("error", GREY),
        (Some(evaluation), None) => of_jobset(&evaluation.jobs),
        (Some(evaluation), Some(job)) => {
            let found = jobs::named(books, evaluation.id, job)?;
            of_job(found.iter().map(|job| job.status))
        }
    };
    let label = if named { job.unwrap_or(name) } else { "" };
    let subject = job.unwrap_or(name);
    let picture = draw(label, subject, &told);
    Ok(Response::bytes(200, SVG, picture).with("Cache-Control", "no-cache"))
}

fn of_jobset(jobs: &Counts) -> Told {
    let Some(percent) = percent(jobs.succeeded, jobs.total) else {
        return Told::new("no jobs", GREY);
    };
    let colour = match percent {
        WELL.. => GREEN,
        HALF_WELL.. => AMBER,
        _ => RED,
    };
    Told::new(format!("{percent}%"), colour)
}

/// Rounded half to even; `None` of nothing.
fn percent(part: i64, whole: i64) -> Option<i64> {
    if whole <= 0 {
        return None;
    }
    let (down, rest) = (100 * part / whole, 100 * part % whole);
    let up = 2 * rest > whole || 2 * rest == whole && down % 2 == 1;
    Some(down + i64::from(up))
}

/// Of the builds of a job, one for each system: the worst that is known counts.
fn of_job(builds: impl Iterator<Item = BuildStatus>) -> Told {
    let worst = builds.max_by_key(|status| match status {
        BuildStatus::Succeeded => 0,
        BuildStatus::Submitted | BuildStatus::Scheduled | BuildStatus::Started => 1,
        BuildStatus::Canceled => 2,
        BuildStatus::Aborted => 3,
        BuildStatus::FailedDependency => 4,
        BuildStatus::Failed => 5,
    });
    match worst {
        None => Told::new("no such job", GREY),
        Some(status) if status.is_pending() => Told::new("pending", GREY),
        Some(status @ BuildStatus::Succeeded) => Told::new(status.word(), GREEN),
        Some(status @ BuildStatus::Canceled) => Told::new(status.word(), GREY),
        Some(status @ BuildStatus::Aborted) => Told::new(status.word(), AMBER),
        Some(status) => Told::new(status.word(), RED),
    }
}

/// Pixels of a text, near enough: it is fitted into them.
fn width(text: &str) -> usize {
    text.chars().count() * 7
}

/// `subject` is for screen readers, even where no label is shown.
fn draw(label: &str, subject: &str, told: &Told) -> String {
    let (label, subject) = (shorten(label, LABEL), shorten(subject, LABEL));
    let (left, right) = (width(&label), width(&told.value));
    let before = if label.is_empty() { 0 } else { left + 10 };
    let all = before + right + 10;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{all}\" height=\"20\" role=\"img\">\
         <title>{subject}: {value}</title>\
         <rect width=\"{before}\" height=\"20\" fill=\"#333\"/>\
         <rect x=\"{before}\" width=\"{rest}\" height=\"20\" fill=\"{colour}\"/>\
         <g fill=\"#fff\" font-family=\"Verdana,sans-serif\" font-size=\"11\">",
        subject = escape(&subject),
        value = escape(&told.value),
        rest = right + 10,
        colour = told.colour,
    );
    for (x, width, part) in [(5, left, &label), (before + 5, right, &told.value)] {
        if !part.is_empty() {
            text.push_str(&format!(
                "<text x=\"{x}\" y=\"14\" textLength=\"{width}\">{}</text>",
                escape(part)
            ));
        }
    }
    text.push_str("</g></svg>\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_rounded_half_to_even() {
        assert_eq!((percent(0, 0), percent(1, 1), percent(0, 3)), (None, Some(100), Some(0)));
        assert_eq!((percent(1, 200), percent(3, 200), percent(2, 3)), (Some(0), Some(2), Some(67)));
    }

    #[test]
    fn the_longest_name_fits_a_kibibyte() {
        for name in ["<".repeat(300), "&".repeat(300), "😀".repeat(300), "\u{1}\"".repeat(99)] {
            let picture = draw(&name, &name, &Told::new("failed-dependency", AMBER));
            assert!(picture.len() <= 1024, "{} bytes", picture.len());
            roxmltree::Document::parse(&picture).unwrap();
        }
    }

    #[test]
    fn the_worst_build_of_a_job_counts() {
        let told = |builds: &[BuildStatus]| of_job(builds.iter().copied()).value;
        assert_eq!(told(&[]), "no such job");
        assert_eq!(told(&[BuildStatus::Succeeded, BuildStatus::Failed]), "failed");
        assert_eq!(told(&[BuildStatus::Started, BuildStatus::Succeeded]), "pending");
        assert_eq!(told(&[BuildStatus::Succeeded]), "succeeded");
    }
}
