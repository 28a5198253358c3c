//! One jobset: its evaluations, how it has been doing, what it is made of.

use maud::{Markup, html};

use super::{Frame, chart, forge, home, list, part};
use crate::db::web::pages::{self, Place};
use crate::db::{evaluations, jobsets};
use crate::model::evaluation::{Checkout, Evaluation, EvaluationId};
use crate::model::jobset::Jobset;
use crate::model::spec::{JobsetName, Reference, Specification, printable_url};
use crate::model::status::EvaluationStatus;
use crate::spec;
use crate::web::access::Access;
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::link::component;
use crate::web::request::Request;
use crate::web::response::Response;
use crate::web::route::Captures;

/// Evaluations on a page.
const ROWS: usize = 20;

/// Evaluations in the chart: as many bars as can be told apart on a phone.
const TREND: usize = 50;

/// The jobset that a path names.
pub(super) fn named(context: &mut Context, name: &str) -> Result<Jobset, Failure> {
    let missing = || Failure::missing(format!("There is no jobset {name:?}."));
    let name = JobsetName::new(name).ok_or_else(missing)?;
    jobsets::get(context.books()?, &name)?.ok_or_else(missing)
}

pub(super) fn specification(jobset: &Jobset) -> Option<Specification> {
    spec::json::parse(&jobset.specification).ok()?.into_iter().next()
}

/// GET `/jobset/NAME`: `border-high`, `border-low`.
pub(super) fn jobset(
    context: &mut Context,
    request: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    let jobset = named(context, captures.get("name"))?;
    let name = &jobset.name;
    let bound = |key| request.query.number(key).map(EvaluationId);
    let place = match (bound("border-high"), bound("border-low")) {
        (Some(high), _) => Place::After(high),
        (None, Some(EvaluationId(0))) => Place::Last,
        (None, Some(low)) => Place::Before(low),
        (None, None) => Place::First,
    };
    let books = context.books()?;
    let page = pages::evaluations(books, name, &place, ROWS)?;
    let before = match page.rows.last() {
        Some(last) => pages::checkouts_before(books, name, last.id)?,
        None => Vec::new(),
    };
    let recent = pages::recent(books, name, TREND)?;
    let succeeded = evaluations::last_succeeded(books, name)?.is_some();
    let path = format!("/jobset/{}", component(name.as_str()));
    let content = html! {
        div class="head" {
            h1 { (name) @if !jobset.active { " " span class="n idle" { "inactive" } } }
            (actions(context, &jobset, succeeded))
        }
        div data-live="state" {
            p class="dim" {
                "Channels last looked at: " (part::maybe_time(context.now, jobset.last_checked)) "."
            }
            @if let Some(error) = &jobset.error {
                div class="box bad" {
                    h2 { "The last fetch or evaluation did not work" }
                    pre { (error) }
                }
            }
        }
        @if recent.len() > 1 {
            h2 { "Trend" }
            div data-live="trend" { (chart::evaluations(context, &recent)) }
        }
        h2 { "Evaluations" }
        div data-live="evaluations" {
            @if page.rows.is_empty() {
                p {
                    @if jobset.active { "There are none yet: one is made as soon as the channels have been fetched." }
                    @else { "There are none: an inactive jobset is not looked at." }
                }
            } @else {
                (table(context, &page.rows, &before))
            }
        }
        (part::pager(
            &page,
            |row: &Evaluation| (format!("border-low={}", row.id), format!("border-high={}", row.id)),
            ("", "border-low=0"),
            |query| context.link(&if query.is_empty() { path.clone() } else { format!("{path}?{query}") }),
        ))
        @if let Some(specification) = specification(&jobset) {
            h2 id="configuration" { "Configuration" }
            (configuration(context, &specification))
        }
    };
    let events = format!("?jobset={}", component(name.as_str()));
    let frame = Frame { jobset: Some(name.clone()), ..Frame::new(name.as_str()) }.hearing(events);
    Ok(Response::html(200, frame.show(context, &content)))
}

fn actions(context: &Context, jobset: &Jobset, succeeded: bool) -> Markup {
    let name = &jobset.name;
    let encoded = component(name.as_str());
    html! {
        div class="actions" {
            @if part::may(context, Access::Trigger, name) {
                (part::order(context, &format!("/admin/jobset/{encoded}/trigger"), "Look at the channels now"))
            }
            @if part::may(context, Access::Edit, name) {
                a class="button" href=(home::edit_link(context, name.as_str())) { "Edit" }
                @let word = if jobset.active { "deactivate" } else { "activate" };
                a class="button" href=(context.link(&format!("/admin/specifications/{word}/{encoded}"))) {
                    @if jobset.active { "Deactivate" } @else { "Activate" }
                }
                a class="button" href=(context.link(&format!("/admin/specifications/delete/{encoded}"))) { "Delete" }
            }
            @if succeeded {
                a class="button" href=(context.link(&format!("/eval/latest/dashboard?spec={encoded}"))) { "Dashboard" }
            }
            a class="button" href=(context.link(&format!("/events/rss?specification={encoded}"))) { "RSS" }
        }
    }
}

fn table(context: &Context, evaluations: &[Evaluation], before: &[Checkout]) -> Markup {
    let older =
        |n: usize| evaluations.get(n + 1).map_or(before, |older| older.checkouts.as_slice());
    html! {
        div class="scroll" {
            table class="rows" {
                thead {
                    tr {
                        th scope="col" { "Evaluation" }
                        th scope="col" { "State" }
                        th scope="col" class="name" { "Channel changes" }
                        th scope="col" { "Jobs" }
                        th scope="col" { "Succeeded" }
                        th scope="col" { "Began" }
                        th scope="col" class="far" { "Took" }
                    }
                }
                tbody {
                    @for (n, evaluation) in evaluations.iter().enumerate() {
                        @let link = context.link(&format!("/eval/{}", evaluation.id));
                        tr {
                            td data-th="Evaluation" { a href=(link) { (evaluation.id) } }
                            td { (part::state(part::evaluation_look(evaluation))) }
                            td class="name more" { (list::changes(older(n), &evaluation.checkouts)) }
                            td { a href=(link) { (part::counts(evaluation.jobs)) } }
                            td {
                                @if evaluation.jobs.total > 0 { (part::share(evaluation.jobs)) }
                            }
                            td data-th="Began" { (part::time(context.now, evaluation.timestamp)) }
                            td class="far nowrap" {
                                (part::lasted(context.now, Some(evaluation.timestamp), ended(evaluation)))
                            }
                        }
                    }
                }
            }
        }
    }
}

/// When the evaluator was done; one that was cut off without a time did not go on for ever.
pub(super) fn ended(evaluation: &Evaluation) -> Option<crate::model::time::Time> {
    match evaluation.status {
        EvaluationStatus::Started => None,
        EvaluationStatus::Succeeded | EvaluationStatus::Failed | EvaluationStatus::Aborted => {
            evaluation.evaltime.or(Some(evaluation.timestamp))
        }
    }
}

fn configuration(context: &Context, specification: &Specification) -> Markup {
    let period = specification.period.as_secs();
    html! {
        dl class="facts" {
            dt { "Evaluator" }
            dd { (specification.evaluator.word()) " " code { (super::specification::subject(specification)) } }
            dt { "Channels" }
            dd {
                @for channel in &specification.channels {
                    div {
                        strong { (channel.name) } " " code { (printable_url(&channel.url)) }
                        @match &channel.reference {
                            Reference::Head => {}
                            Reference::Branch(name) => { " branch " code { (name) } }
                            Reference::Tag(name) => { " tag " code { (name) } }
                            Reference::Commit(id) => { " at " (forge::commit(&channel.url, id)) }
                        }
                        @if channel.introduction.is_some() { " " span class="n idle" { "authenticated" } }
                    }
                }
                @if specification.channels.is_empty() { "none" }
            }
            dt { "Systems" } dd { (specification.systems.join(", ")) }
            dt { "Period" }
            dd { @if period == 0 { "the daemon's" } @else { (part::duration(specification.period.as_secs() as i64)) } }
            dt { "Priority" } dd { (specification.priority) }
            dt { "Evaluation timeout" }
            dd { (part::duration(specification.evaluation_timeout.as_secs() as i64)) }
            dt { "A newer evaluation" }
            dd { @if specification.supersede { "cancels what older ones wait for" } @else { "leaves older ones alone" } }
            dt { "Build outputs" }
            dd {
                @for output in &specification.build_outputs {
                    div { code { (output.job) } " " (output.kind) ": " code { (output.output) "/" (output.path) } }
                }
                @if specification.build_outputs.is_empty() { "none" }
            }
            dt { "Notifications" } dd { (specification.notifications.len()) }
            dt { "Badge" }
            dd {
                @let badge = format!("/jobset/{}/badge.svg", component(specification.name.as_str()));
                a href=(context.link(&badge)) { code { (badge) } }
            }
        }
    }
}
