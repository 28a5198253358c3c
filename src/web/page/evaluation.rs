//! One evaluation: what it was made from, and what became of its jobs, worst first.

use maud::{Markup, html};

use super::broken::{self, Broken};
use super::part::query;
use super::{Frame, forge, jobset, list, part};
use crate::db::evaluations;
use crate::db::jobsets;
use crate::db::web::pages::{self, Bucket, Listed, Page, Place, Wanted};
use crate::model::evaluation::{Checkout, Evaluation, EvaluationId};
use crate::model::spec::JobsetName;
use crate::model::status::EvaluationStatus;
use crate::web::access::Access;
use crate::web::api::channels;
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::link::component;
use crate::web::request::Request;
use crate::web::response::Response;
use crate::web::route::Captures;

/// Jobs on a page.
const ROWS: usize = 50;

/// The evaluation that a path names.
pub(super) fn numbered(context: &mut Context, captures: &Captures) -> Result<Evaluation, Failure> {
    let missing = || Failure::missing(format!("There is no evaluation {}.", captures.get("id")));
    let id = captures.id("id").map(EvaluationId).ok_or_else(missing)?;
    evaluations::get(context.books()?, id)?.ok_or_else(missing)
}

/// The jobset that a query names, which must be there.
pub(super) fn of_query(context: &mut Context, request: &Request) -> Result<JobsetName, Failure> {
    let name = request
        .query
        .get("spec")
        .ok_or_else(|| Failure::missing("Which jobset? Add spec=NAME."))?;
    Ok(jobset::named(context, name)?.name)
}

/// GET `/eval/latest`: `spec`.
pub(super) fn latest(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let name = of_query(context, request)?;
    let id = evaluations::last_succeeded(context.books()?, &name)?;
    let id =
        id.ok_or_else(|| Failure::missing(format!("No evaluation of {name} has succeeded.")))?;
    Ok(Response::found(context.link(&format!("/eval/{id}"))))
}

/// GET `/eval/ID`: `status`, `system`, `name`, and `after`, `before` or `last` with `at`, the system of that job.
pub(super) fn evaluation(
    context: &mut Context,
    request: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    let evaluation = numbered(context, captures)?;
    let (id, name) = (evaluation.id, evaluation.jobset.clone());
    let word = request.query.get("status").unwrap_or_default();
    let bucket = match word {
        "pending" => Bucket::Pending,
        "succeeded" => Bucket::Succeeded,
        "failed" => Bucket::Failed,
        "newly-failed" => Bucket::NewlyFailed,
        _ => Bucket::All,
    };
    let system = request.query.get("system").filter(|text| !text.is_empty());
    let part = request.query.get("name").map(str::trim).filter(|text| !text.is_empty());
    let at = request.query.get("at").unwrap_or_default().to_owned();
    let key = |key: &str| request.query.get(key).map(|job| (job.to_owned(), at.clone()));
    let place = match (key("after"), key("before"), request.query.get("last")) {
        (Some(after), ..) => Place::After(after),
        (None, Some(before), _) => Place::Before(before),
        (None, None, Some(_)) => Place::Last,
        (None, None, None) => Place::First,
    };
    let books = context.books()?;
    let (before, after) = pages::neighbours(books, &name, id)?;
    let older = pages::checkouts_before(books, &name, id)?;
    let wanted = Wanted { evaluation: id, bucket, system, name: part, before };
    // Counters say that there are none sooner than a look at every job.
    let page = match bucket {
        Bucket::Pending if evaluation.jobs.pending == 0 => Page::empty(),
        Bucket::Succeeded if evaluation.jobs.succeeded == 0 => Page::empty(),
        _ => pages::jobs(books, &wanted, &place, ROWS)?,
    };
    // The list itself tells them where they are what is asked for.
    let told = if before.is_some() && bucket != Bucket::NewlyFailed && evaluation.jobs.failed > 0 {
        broken::find(books, &wanted)?
    } else {
        Broken::default()
    };
    let kept = jobsets::get(books, &name)?.as_ref().and_then(jobset::specification);
    let systems = kept.map(|kept| kept.systems).unwrap_or_default();
    let good = evaluation.status == EvaluationStatus::Succeeded && !evaluation.checkouts.is_empty();
    let channels = if good { Some(channels::text(context, &evaluation)?) } else { None };
    let path = format!("/eval/{id}");
    let link = |status: &str, more: &str| {
        let mut text = query(&[
            ("status", status),
            ("system", system.unwrap_or_default()),
            ("name", part.unwrap_or_default()),
        ]);
        if !more.is_empty() {
            text.push(if text.is_empty() { '?' } else { '&' });
            text.push_str(more);
        }
        context.link(&format!("{path}{text}"))
    };
    let content = html! {
        div class="head" {
            h1 { "Evaluation " (id) " of " (part::jobset(context, &name)) }
            (actions(context, &evaluation))
        }
        div data-live="summary" { (summary(context, &evaluation, &older)) }
        p class="small" {
            @if let Some(before) = before {
                a href=(context.link(&format!("/eval/{before}"))) rel="prev" { "← Evaluation " (before) }
                " · "
                a href=(context.link(&format!("/eval/{id}/compare?from={before}"))) { "What changed since" }
            }
            @if let Some(after) = after {
                @if before.is_some() { " · " }
                a href=(context.link(&format!("/eval/{after}"))) rel="next" { "Evaluation " (after) " →" }
            }
        }
        div data-live="news" { (broken::show(context, &told, &link("newly-failed", ""))) }
        h2 id="jobs" { "Jobs" }
        (tabs(&evaluation, word, |status| link(status, "")))
        (filter(context, &path, word, system, part, &systems))
        div data-live="jobs" {
            @if page.rows.is_empty() { p { "There are none." } }
            @else { (list::builds(context, &page.rows, false)) }
        }
        (part::pager(
            &page,
            |row: &Listed| {
                let key = |word: &str| {
                    format!("{word}={}&at={}", component(&row.job), component(&row.system))
                };
                (key("before"), key("after"))
            },
            ("", "last=1"),
            |more| link(word, more),
        ))
        @if let Some(channels) = &channels { (snippet(context, id, channels)) }
    };
    let title = format!("Evaluation {id} of {name}");
    let frame = Frame::new(&title).of(context, &name).hearing(format!("?evaluation={id}"));
    Ok(Response::html(200, frame.show(context, &content)))
}

fn actions(context: &Context, evaluation: &Evaluation) -> Markup {
    let id = evaluation.id;
    html! {
        div class="actions" data-live="actions" {
            a class="button" href=(context.link(&format!("/eval/{id}/dashboard"))) { "Dashboard" }
            a class="button" href=(context.link(&format!("/eval/{id}/log"))) { "Log" }
            @if part::may(context, Access::Operate, &evaluation.jobset) {
                @let path = |word: &str| format!("/admin/evaluation/{id}/{word}");
                @if evaluation.jobs.failed + evaluation.jobs.aborted + evaluation.jobs.canceled > 0 {
                    (part::order(context, &path("restart-failed"), "Rebuild failed"))
                }
                a class="button" href=(context.link(&path("restart"))) { "Rebuild all" }
                a class="button" href=(context.link(&path("retry"))) { "Evaluate again" }
                @if evaluation.jobs.pending > 0 || evaluation.status == EvaluationStatus::Started {
                    a class="button" href=(context.link(&path("cancel"))) { "Cancel" }
                }
            }
        }
    }
}

fn summary(context: &Context, evaluation: &Evaluation, older: &[Checkout]) -> Markup {
    let jobs = evaluation.jobs;
    html! {
        @if let Some(error) = &evaluation.error {
            div class={ "box " (part::evaluation_look(evaluation).class) } {
                h2 { (part::evaluation_look(evaluation).word) }
                pre { (error) }
                p { a href=(context.link(&format!("/eval/{}/log", evaluation.id))) { "The evaluation's log" } }
            }
        }
        dl class="facts" {
            dt { "State" } dd { (part::state(part::evaluation_look(evaluation))) }
            dt { "Jobs" }
            dd {
                span class="ns" {
                    (part::counts(jobs))
                    @if jobs.total > 0 { (part::share(jobs)) " of " (jobs.total) }
                }
            }
            dt { "Began" } dd { (part::time(context.now, evaluation.timestamp)) }
            @if let Some(checkout) = evaluation.checkouttime {
                dt { "Fetching took" } dd { (part::duration(checkout.0 - evaluation.timestamp.0)) }
            }
            dt { "Evaluation took" }
            dd {
                (part::lasted(
                    context.now,
                    evaluation.checkouttime.or(Some(evaluation.timestamp)),
                    jobset::ended(evaluation),
                ))
            }
            dt { "Channels" }
            dd {
                @for checkout in &evaluation.checkouts {
                    @let old = older.iter().find(|old| old.channel == checkout.channel);
                    div {
                        strong { (checkout.channel) } " " (forge::commit(&checkout.url, &checkout.commit)) " "
                        @match old {
                            Some(old) if old.commit != checkout.commit => {
                                span class="n run" { "changed" } " from "
                                (forge::change(&checkout.url, &old.commit, &checkout.commit))
                            }
                            Some(_) => span class="dim" { "unchanged" },
                            None => span class="n run" { "new" },
                        }
                        " " span class="dim small" { (crate::model::spec::printable_url(&checkout.url)) }
                    }
                }
                @if evaluation.checkouts.is_empty() { "none" }
            }
        }
    }
}

fn tabs(evaluation: &Evaluation, current: &str, link: impl Fn(&str) -> String) -> Markup {
    let jobs = evaluation.jobs;
    let all = [
        ("", "All", Some(jobs.total)),
        ("newly-failed", "Newly failed", None),
        ("failed", "Failed", Some(jobs.failed + jobs.aborted + jobs.canceled)),
        ("pending", "Pending", Some(jobs.pending)),
        ("succeeded", "Succeeded", Some(jobs.succeeded)),
    ];
    html! {
        nav class="tabs" aria-label="Jobs by state" data-live="tabs" {
            @for (word, label, count) in all {
                a href=(link(word)) aria-current=[(word == current).then_some("page")] {
                    (label) @if let Some(count) = count { " " span class="dim" { (count) } }
                }
            }
        }
    }
}

fn filter(
    context: &Context,
    path: &str,
    status: &str,
    system: Option<&str>,
    name: Option<&str>,
    systems: &[String],
) -> Markup {
    html! {
        form class="filter" method="get" action=(context.link(path)) {
            @if !status.is_empty() { input type="hidden" name="status" value=(status); }
            label { "Name " input type="search" name="name" value=(name.unwrap_or_default()); }
            label {
                "System "
                select name="system" {
                    option value="" { "all" }
                    @for known in systems {
                        option value=(known) selected[system == Some(known)] { (known) }
                    }
                    @if let Some(other) = system.filter(|other| !systems.iter().any(|known| known == other)) {
                        option value=(other) selected { (other) }
                    }
                }
            }
            button type="submit" { "Filter" }
        }
    }
}

/// How to get these very channels.
fn snippet(context: &Context, id: EvaluationId, text: &str) -> Markup {
    let link = context.link(&format!("/eval/{id}/channels.scm"));
    html! {
        h2 { "Channels" }
        p class="small" { "For " code { "guix time-machine -C" } ", or by its address: " a href=(link) { (link) } }
        pre class="snippet" { (text) }
    }
}
