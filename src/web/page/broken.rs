//! What failed newly in an evaluation, by whose fault it is, with the last lines of that log.

use maud::{Markup, html};

use super::{list, log, part};
use crate::db::web::pages::{self, Bucket, Listed, Place, Wanted};
use crate::db::web::relations;
use crate::db::{Error, Reader};
use crate::model::status::BuildStatus;
use crate::web::context::Context;
use crate::web::log_view;

/// Failures that are looked at: one that has many dependents hides the others no further than this.
const LOOKED_AT: usize = 25;

/// Faults told with their last lines: each is a log to read.
const TOLD: usize = 5;

/// A fault, and what could not be built for it.
pub(super) struct Fault {
    build: Listed,
    dependents: Vec<Listed>,
    lines: Option<String>,
}

/// What failed newly, and whether there is more of it.
#[derive(Default)]
pub(super) struct Broken {
    faults: Vec<Fault>,
    more: bool,
}

/// What of an evaluation failed that had succeeded in the one compared with.
pub(super) fn find(books: &Reader, wanted: &Wanted<'_>) -> Result<Broken, Error> {
    let wanted = Wanted { bucket: Bucket::NewlyFailed, system: None, name: None, ..wanted.clone() };
    let page = pages::jobs(books, &wanted, &Place::First, LOOKED_AT)?;
    let mut faults: Vec<Fault> = Vec::new();
    let mut more = page.more_after;
    for build in page.rows {
        let cause = match build.status {
            BuildStatus::FailedDependency => {
                pages::each(books, &relations::causes(books, build.id, 1)?)?.pop()
            }
            _ => None,
        };
        let id = cause.as_ref().map_or(build.id, |cause| cause.id);
        match (faults.iter().position(|fault| fault.build.id == id), cause) {
            (Some(known), Some(_)) => faults[known].dependents.push(build),
            // Told already, as the cause of another.
            (Some(_), None) => {}
            (None, _) if faults.len() == TOLD => more = true,
            (None, Some(cause)) => {
                faults.push(Fault { build: cause, dependents: vec![build], lines: None });
            }
            (None, None) => faults.push(Fault { build, dependents: Vec::new(), lines: None }),
        }
    }
    let mut budget = log::Budget::new();
    for fault in &mut faults {
        let path = fault.build.log.as_deref();
        fault.lines = path.and_then(|path| budget.last_lines(path.as_ref()));
    }
    Ok(Broken { faults, more })
}

/// Nothing where nothing failed newly. `all` is where the whole list is.
pub(super) fn show(context: &Context, broken: &Broken, all: &str) -> Markup {
    html! {
        @if !broken.faults.is_empty() {
            h2 { "Newly failed" }
            @for fault in &broken.faults { (one(context, fault)) }
            @if broken.more { p { a href=(all) { "All that failed newly" } } }
        }
    }
}

/// A failure with what a reader wants to know first: why, the end of its log, and what fell with it.
fn one(context: &Context, fault: &Fault) -> Markup {
    let build = &fault.build;
    html! {
        div class={ "box " (part::build_look(build.status).class) } {
            h3 {
                (part::status(build.status)) " "
                a href=(list::build_link(context, build)) { (build.job) }
                (list::system_of(&build.job, &build.system))
            }
            @if let Some(error) = &build.error { p { (error) } }
            @if let Some(lines) = &fault.lines {
                pre { (log_view::plain(lines)) }
                p class="small" { a href=(context.link(&format!("/build/{}/log#end", build.id))) { "The whole log" } }
            }
            @if !fault.dependents.is_empty() {
                p { "Failed because of it:" }
                (list::brief(context, &fault.dependents))
            }
        }
    }
}
