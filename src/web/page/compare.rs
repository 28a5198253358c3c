//! What differs between two evaluations.

use maud::{Markup, html};

use super::part::{self, query};
use super::{Frame, evaluation, list};
use crate::db::evaluations;
use crate::db::web::differences::{self, Change, Difference};
use crate::db::web::pages;
use crate::model::build::BuildId;
use crate::model::evaluation::EvaluationId;
use crate::model::spec::JobsetName;
use crate::model::status::BuildStatus;
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::request::Request;
use crate::web::response::Response;
use crate::web::route::Captures;

/// Jobs that are looked at; an evaluation in which more of them differ is another world.
const LOOKED_AT: usize = 20_000;

/// Jobs told of each kind.
const TOLD: usize = 200;

/// Changes as they are headed, those that want attention first.
const CHANGES: [(Change, &str); 7] = [
    (Change::NewlyFailed, "Newly failed"),
    (Change::StillFailing, "Still failing"),
    (Change::Aborted, "Aborted or canceled"),
    (Change::NewlySucceeded, "Newly succeeded"),
    (Change::Unfinished, "Unfinished"),
    (Change::Added, "Added"),
    (Change::Removed, "Removed"),
];

/// GET `/eval/ID/compare`: `from`, the number of an evaluation, or `previous`.
pub(super) fn compare(
    context: &mut Context,
    request: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    let to = evaluation::numbered(context, captures)?;
    let books = context.books()?;
    let from = match request.query.get("from") {
        None | Some("" | "previous") => pages::neighbours(books, &to.jobset, to.id)?.0,
        Some(text) => Some(EvaluationId(text.parse().map_err(|_| {
            Failure::bad(format!(
                "from: expected the number of an evaluation, or previous; found {text:?}"
            ))
        })?)),
    };
    let from = from.map(|id| {
        let missing = || Failure::missing(format!("There is no evaluation {id}."));
        evaluations::get(books, id)?.ok_or_else(missing)
    });
    let from = from.transpose()?;
    let found = match &from {
        Some(from) => differences::between(books, from.id, to.id, LOOKED_AT)?,
        None => Vec::new(),
    };
    let title = format!("Comparison of evaluation {}", to.id);
    let action = format!("/eval/{}/compare", to.id);
    let number = from.as_ref().map(|from| from.id.to_string()).unwrap_or_default();
    let content = html! {
        h1 {
            "Evaluation " a href=(context.link(&format!("/eval/{}", to.id))) { (to.id) }
            @if let Some(from) = &from {
                " against " a href=(context.link(&format!("/eval/{}", from.id))) { (from.id) }
                @if from.jobset != to.jobset { " of " (part::jobset(context, &from.jobset)) }
            }
        }
        form class="filter" method="get" action=(context.link(&action)) {
            label { "Against evaluation " input type="number" min="1" name="from" value=(number); }
            button type="submit" { "Compare" }
            @if let Some(from) = &from {
                a href=(context.link(&format!("/eval/{}/compare{}", from.id, query(&[("from", &to.id.to_string())])))) {
                    "The other way round"
                }
            }
        }
        @if let Some(from) = &from {
            dl class="facts" {
                dt { "Channels" } dd { (list::changes(&from.checkouts, &to.checkouts)) }
                dt { "Jobs before" } dd { (part::counts(from.jobs)) }
                dt { "Jobs after" } dd { (part::counts(to.jobs)) }
            }
            @if found.is_empty() { p { "Their jobs are the same, and none of them failed." } }
            @if found.len() >= LOOKED_AT { p class="box warn" { "There is more than can be shown here." } }
            @for (change, word) in CHANGES {
                @let rows: Vec<&Difference> = found.iter().filter(|found| found.change() == Some(change)).collect();
                @if !rows.is_empty() {
                    h2 { (word) " " span class="dim" { (rows.len()) } }
                    (table(context, &to.jobset, &rows))
                    @if rows.len() > TOLD { p class="dim" { (rows.len() - TOLD) " more are not shown." } }
                }
            }
        } @else {
            p { "There is no evaluation before it that succeeded; name one to compare with." }
        }
    };
    let frame = Frame::new(&title)
        .of(context, &to.jobset)
        .below(format!("Evaluation {}", to.id), context.link(&format!("/eval/{}", to.id)));
    Ok(Response::html(200, frame.show(context, &content)))
}

fn table(context: &Context, jobset: &JobsetName, rows: &[&Difference]) -> Markup {
    let end = |end: Option<(BuildId, BuildStatus)>| {
        html! {
            @match end {
                Some((id, status)) => a href=(context.link(&format!("/build/{id}/details"))) { (part::status(status)) },
                None => "–",
            }
        }
    };
    html! {
        div class="scroll" {
            table class="rows" {
                thead {
                    tr {
                        th scope="col" class="name" { "Job" } th scope="col" { "System" }
                        th scope="col" { "Before" } th scope="col" { "After" }
                    }
                }
                tbody {
                    @for row in rows.iter().take(TOLD) {
                        tr {
                            td class="name" {
                                a href=(part::job_link(context, jobset, &row.job, &row.system)) { (row.job) }
                            }
                            (list::system_cell(&row.job, &row.system))
                            td data-th="Before" { (end(row.from)) } td data-th="After" { (end(row.to)) }
                        }
                    }
                }
            }
        }
    }
}
