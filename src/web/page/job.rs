//! One job of a jobset through all evaluations.

use maud::html;

use super::part::query;
use super::{Frame, chart, jobset, list, part};
use crate::db::web::pages;
use crate::model::evaluation::EvaluationId;
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::link::component;
use crate::web::request::Request;
use crate::web::response::Response;
use crate::web::route::Captures;

/// Evaluations on a page, each a bar of the chart.
const ROWS: usize = 50;

/// GET `/jobset/NAME/job/JOB`: `system`, `below`.
pub(super) fn job(
    context: &mut Context,
    request: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    let name = jobset::named(context, captures.get("name"))?.name;
    let job = captures.get("job");
    let below = request.query.number("below").map(EvaluationId);
    let books = context.books()?;
    let systems = pages::systems_of_job(books, &name, job)?;
    let missing = || Failure::missing(format!("Jobset {name} has no job {job:?}."));
    let system = request.query.get("system").filter(|text| !text.is_empty());
    let system = system.or(systems.first().map(String::as_str)).ok_or_else(missing)?.to_owned();
    let history = pages::history(books, &name, (job, &system), below, ROWS)?;
    if history.is_empty() && below.is_none() {
        return Err(missing());
    }
    let path = format!("/jobset/{}/job/{}", component(name.as_str()), component(job));
    let link = |pairs: &[(&str, &str)]| context.link(&format!("{path}{}", query(pairs)));
    let content = html! {
        h1 { (job) (list::system_of(job, &system)) }
        @if systems.len() > 1 {
            nav class="tabs" aria-label="Systems" {
                @for other in &systems {
                    a href=(link(&[("system", other)])) aria-current=[(*other == system).then_some("page")] { (other) }
                }
            }
        }
        h2 { "Durations" }
        div data-live="chart" { (chart::builds(context, &history)) }
        h2 { "History" }
        div class="scroll" data-live="history" {
            table class="rows" {
                thead {
                    tr {
                        th scope="col" { "Evaluation" } th scope="col" { "Status" } th scope="col" { "Trend" }
                        th scope="col" { "Build" } th scope="col" class="far" { "Name" }
                        th scope="col" { "Ended" } th scope="col" { "Took" } th scope="col" { "Log" }
                    }
                }
                tbody {
                    @for (evaluation, build) in &history {
                        tr {
                            td data-th="Evaluation" { a href=(context.link(&format!("/eval/{evaluation}"))) { (evaluation) } }
                            td { (part::status(build.status)) }
                            td { (part::weather_icon(build.weather)) }
                            td data-th="Build" { a href=(list::build_link(context, build)) { (build.id) } }
                            td class="far wrap" { (build.nix_name) }
                            td data-th="Ended" { (part::maybe_time(context.now, build.stoptime)) }
                            td class="nowrap" data-th="Took" { (part::lasted(context.now, build.starttime, build.stoptime)) }
                            td { (list::log_link(context, build)) }
                        }
                    }
                }
            }
        }
        nav class="pager" aria-label="Pages" {
            @if below.is_some() { a href=(link(&[("system", &system)])) { "Newest" } }
            @if let Some((last, _)) = history.last().filter(|_| history.len() == ROWS) {
                a rel="next" href=(link(&[("system", &system), ("below", &last.to_string())])) { "Older" }
            }
        }
    };
    let frame =
        Frame::new(job).of(context, &name).hearing(format!("?jobset={}", component(name.as_str())));
    Ok(Response::html(200, frame.show(context, &content)))
}
