//! The metrics that the daemon computes, as curves and tables.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::{Frame, chart, part};
use crate::db::web::machines;
use crate::model::time::Time;
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::link::component;
use crate::web::request::Request;
use crate::web::response::Response;
use crate::web::route::Captures;

/// Points of a curve.
const POINTS: usize = 100;

/// Curves: number, title, whether it is by day (or by evaluation), what seconds are divided by.
const CURVES: [(i64, &str, bool, f64); 6] = [
    (3, "Builds ended per day", true, 1.0),
    (5, "Builds registered per day", true, 1.0),
    (4, "Builds pending per day", true, 1.0),
    (11, "Speed of evaluations, in builds per hour", false, 1.0),
    (9, "Delay until builds start, in minutes", false, 60.0),
    (10, "Delay until builds end, in minutes", false, 60.0),
];

/// Columns of the table of jobsets: durations and failures over the last 10, the last 100, all.
const COLUMNS: [i64; 6] = [0, 1, 2, 6, 7, 8];

/// GET `/metrics`.
pub(super) fn metrics(
    context: &mut Context,
    _: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let books = context.books()?;
    let mut curves = Vec::new();
    for (number, title, by_day, unit) in CURVES {
        let values = machines::metric(books, number, POINTS)?;
        let label = |field: String| match field.parse() {
            Ok(seconds) if by_day => part::iso(Time(seconds))[..10].to_owned(),
            _ => format!("evaluation {field}"),
        };
        let values: Vec<_> =
            values.into_iter().map(|(field, value)| (label(field), value / unit)).collect();
        curves.push((title, values));
    }
    let mut jobsets: BTreeMap<String, [Option<f64>; 6]> = BTreeMap::new();
    for (place, number) in COLUMNS.into_iter().enumerate() {
        for (name, value) in machines::metric(books, number, 10 * POINTS)? {
            jobsets.entry(name).or_default()[place] = Some(value);
        }
    }
    let machines = machines::metric(books, 12, POINTS)?;
    let content = html! {
        h1 { "Metrics" }
        p class="dim" { "They are computed every hour." }
        @if !jobsets.is_empty() { h2 { "Evaluations" } (table(context, &jobsets)) }
        div class="figures" {
            @for (title, values) in &curves {
                section {
                    h2 { (title) }
                    @if values.is_empty() { p class="dim" { "Nothing is known yet." } }
                    @else { (chart::curve(title, values)) }
                }
            }
        }
        @if !machines.is_empty() {
            h2 { "Builds today by machine" }
            dl class="facts" { @for (name, value) in &machines { dt { (name) } dd { (value) } } }
        }
    };
    Ok(Response::html(200, Frame::new("Metrics").show(context, &content)))
}

fn table(context: &Context, jobsets: &BTreeMap<String, [Option<f64>; 6]>) -> Markup {
    let cell = |place: usize, value: &Option<f64>| match value {
        Some(seconds) if place < 3 => part::duration(seconds.round() as i64),
        Some(percent) => format!("{percent:.0} %"),
        None => "–".to_owned(),
    };
    html! {
        div class="scroll" {
            table {
                thead {
                    tr {
                        th scope="col" rowspan="2" class="name" { "Jobset" }
                        th scope="colgroup" colspan="3" class="num" { "Mean duration" }
                        th scope="colgroup" colspan="3" class="num" { "Failed or aborted" }
                    }
                    tr {
                        @for _ in 0..2 {
                            th scope="col" class="num" { "last 10" } th scope="col" class="num" { "last 100" }
                            th scope="col" class="num" { "all" }
                        }
                    }
                }
                tbody {
                    @for (name, values) in jobsets {
                        tr {
                            th scope="row" class="name" {
                                a href=(context.link(&format!("/jobset/{}", component(name)))) { (name) }
                            }
                            @for (place, value) in values.iter().enumerate() { td class="num" { (cell(place, value)) } }
                        }
                    }
                }
            }
        }
    }
}
