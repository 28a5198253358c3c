//! Charts as SVG, drawn here: bars of evaluations and of a job's builds, curves of metrics.

use maud::{Markup, html};

use super::part;
use crate::db::web::pages::Listed;
use crate::model::evaluation::{Evaluation, EvaluationId};
use crate::web::context::Context;

/// Units of the drawing; the sheet scales it.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 140.0;
/// Room for the labels above and below, in letters that phones show.
const ABOVE: f64 = 24.0;
const BELOW: f64 = 24.0;

fn scale(value: f64, most: f64) -> f64 {
    if most > 0.0 { value / most * (HEIGHT - BELOW - ABOVE) } else { 0.0 }
}

fn n(value: f64) -> String {
    format!("{value:.1}")
}

/// The lines that stand for nothing and for the most, and what that is.
fn axes(most: &str) -> Markup {
    html! {
        line class="axis" x1="0" y1=(n(HEIGHT - BELOW)) x2=(n(WIDTH)) y2=(n(HEIGHT - BELOW)) {}
        line class="axis" x1="0" y1=(n(ABOVE)) x2=(n(WIDTH)) y2=(n(ABOVE)) {}
        text x="0" y=(n(ABOVE - 7.0)) { (most) }
    }
}

/// Jobs of evaluations by state, one bar each, oldest first; they come newest first.
pub(super) fn evaluations(context: &Context, evaluations: &[Evaluation]) -> Markup {
    let most = evaluations.iter().map(|evaluation| evaluation.jobs.total).max().unwrap_or(0);
    let step = WIDTH / evaluations.len().max(10) as f64;
    html! {
        svg class="chart" viewBox="0 0 640 140" role="group" aria-label="Jobs of the last evaluations by state" {
            (axes(&part::plural(most, "job", "jobs")))
            @for (place, evaluation) in evaluations.iter().rev().enumerate() {
                @let jobs = evaluation.jobs;
                @let title = format!("Evaluation {}: {} of {} succeeded", evaluation.id, jobs.succeeded, jobs.total);
                a href=(context.link(&format!("/eval/{}", evaluation.id))) aria-label=(title) {
                    title { (title) }
                    @for (y, height, class) in stacked(evaluation, most as f64) {
                        rect class=(class) x=(n(place as f64 * step + 1.0)) y=(n(y))
                            width=(n((step - 2.0).max(1.0))) height=(n(height)) {}
                    }
                }
            }
        }
        p class="small dim" {
            span class="s ok" { "■ succeeded" } " " span class="s bad" { "■ failed" } " "
            span class="s warn" { "■ aborted or canceled" } " " span class="s idle" { "■ pending" }
        }
    }
}

fn stacked(evaluation: &Evaluation, most: f64) -> Vec<(f64, f64, &'static str)> {
    let jobs = evaluation.jobs;
    let mut y = HEIGHT - BELOW;
    let mut parts = Vec::new();
    for (count, class) in [
        (jobs.succeeded, "f-ok"),
        (jobs.failed, "f-bad"),
        (jobs.aborted + jobs.canceled, "f-warn"),
        (jobs.pending, "f-idle"),
    ] {
        let height = scale(count as f64, most);
        if count > 0 {
            y -= height;
            parts.push((y, height, class));
        }
    }
    parts
}

/// How long a job's builds took, oldest first; they come newest first.
pub(super) fn builds(context: &Context, history: &[(EvaluationId, Listed)]) -> Markup {
    let took = |build: &Listed| match (build.starttime, build.stoptime) {
        (Some(start), Some(stop)) => (stop.0 - start.0).max(0),
        (Some(_) | None, Some(_) | None) => 0,
    };
    let most = history.iter().map(|(_, build)| took(build)).max().unwrap_or(0).max(1);
    let step = WIDTH / history.len().max(10) as f64;
    html! {
        svg class="chart" viewBox="0 0 640 140" role="group" aria-label="Durations of the job's builds" {
            (axes(&part::duration(most)))
            @for (place, (evaluation, build)) in history.iter().rev().enumerate() {
                @let look = part::build_look(build.status);
                @let title = format!("Evaluation {evaluation}: {}, {}", look.word, part::duration(took(build)));
                // What took no time can be seen, too.
                @let height = scale(took(build) as f64, most as f64).max(3.0);
                a href=(super::list::build_link(context, build)) aria-label=(title) {
                    title { (title) }
                    rect class={ "f-" (look.class) } x=(n(place as f64 * step + 1.0))
                        y=(n(HEIGHT - BELOW - height)) width=(n((step - 2.0).max(1.0))) height=(n(height)) {}
                }
            }
        }
    }
}

/// A curve through values, with the names of the first and the last.
pub(super) fn curve(label: &str, values: &[(String, f64)]) -> Markup {
    let most = values.iter().map(|(_, value)| *value).fold(0.0, f64::max);
    let step = (WIDTH - 4.0) / (values.len().max(2) - 1) as f64;
    let points: Vec<String> = values
        .iter()
        .enumerate()
        .map(|(place, (_, value))| {
            let y = HEIGHT - BELOW - scale(*value, most);
            format!("{},{}", n(2.0 + place as f64 * step), n(y))
        })
        .collect();
    let whole = most >= 100.0 || most.fract() == 0.0;
    let most = if whole { format!("{most:.0}") } else { format!("{most:.1}") };
    html! {
        svg class="chart" viewBox="0 0 640 140" role="img" aria-label=(label) {
            (axes(&most))
            polyline class="curve" points=(points.join(" ")) {}
            @if let [only] = points.as_slice() {
                @if let Some((x, y)) = only.split_once(',') { circle class="f-run" cx=(x) cy=(y) r="3" {} }
            }
            @if let (Some((first, _)), Some((last, _))) = (values.first(), values.last()) {
                text x="0" y=(n(HEIGHT - 5.0)) { (first) }
                @if values.len() > 1 { text x=(n(WIDTH)) y=(n(HEIGHT - 5.0)) text-anchor="end" { (last) } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_stays_in_its_box() {
        let values: Vec<(String, f64)> =
            [0.0, 5.0, 10.0].iter().map(|value| (value.to_string(), *value)).collect();
        let svg = curve("x", &values).into_string();
        assert!(svg.contains("points=\"2.0,116.0 320.0,70.0 638.0,24.0\""), "{svg}");
        curve("nothing", &[]).into_string();
    }
}
