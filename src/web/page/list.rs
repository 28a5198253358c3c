//! Tables and strips of builds and evaluations.

use maud::{Markup, html};

use super::{forge, part};
use crate::db::web::pages::Listed;
use crate::model::evaluation::{Checkout, Evaluation};
use crate::model::spec::{Reference, Specification};
use crate::model::status::BuildStatus;
use crate::web::context::Context;

/// One mark for each evaluation, oldest first; they come newest first.
pub(super) fn strip(context: &Context, evaluations: &[Evaluation]) -> Markup {
    html! {
        span class="strip" {
            @for evaluation in evaluations.iter().rev() {
                @let look = part::evaluation_look(evaluation);
                @let title = format!("Evaluation {}: {}", evaluation.id, look.word);
                a class=(look.class) href=(context.link(&format!("/eval/{}", evaluation.id))) title=(title) {
                    (part::icon(look.icon)) span class="hidden" { (title) }
                }
            }
        }
    }
}

/// What a jobset watches, in short.
pub(super) fn channels(specification: &Specification) -> Markup {
    html! {
        @for (n, channel) in specification.channels.iter().enumerate() {
            @if n > 0 { ", " }
            (channel.name)
            @match &channel.reference {
                Reference::Head => {}
                Reference::Branch(name) | Reference::Tag(name) => span class="dim" { " on " (name) },
                Reference::Commit(id) => span class="dim" { " at " (id.get(..7).unwrap_or(id)) },
            }
        }
    }
}

/// Channels whose commit is another one than before; all, if there is nothing before.
pub(super) fn changes(before: &[Checkout], now: &[Checkout]) -> Markup {
    let changed: Vec<(&Checkout, Option<&Checkout>)> = now
        .iter()
        .map(|new| (new, before.iter().find(|old| old.channel == new.channel)))
        .filter(|(new, old)| old.is_none_or(|old| old.commit != new.commit))
        .collect();
    html! {
        @if changed.is_empty() { span class="dim" { "None" } }
        @for (n, (new, old)) in changed.iter().enumerate() {
            @if n > 0 { br; }
            (new.channel) " "
            @match old {
                Some(old) => (forge::change(&new.url, &old.commit, &new.commit)),
                None => (forge::commit(&new.url, &new.commit)),
            }
        }
    }
}

pub(super) fn build_link(context: &Context, build: &Listed) -> String {
    context.link(&format!("/build/{}/details", build.id))
}

/// Whether a job's name ends with its system, as those of Guix do.
fn says_system(job: &str, system: &str) -> bool {
    job.strip_suffix(system).is_some_and(|rest| rest.ends_with('.'))
}

/// The system of a job whose name does not say it.
pub(super) fn system_of(job: &str, system: &str) -> Markup {
    html! { @if !says_system(job, system) { " " span class="dim" { (system) } } }
}

/// The same as a column, which narrow screens leave out where the name says it.
pub(super) fn system_cell(job: &str, system: &str) -> Markup {
    html! { td class={ "nowrap" @if says_system(job, system) { " far" } } { (system) } }
}

/// The systems of a jobset, in short.
pub(super) fn systems(specification: &Specification) -> Markup {
    let all = &specification.systems;
    html! {
        @if let [first, others @ ..] = all.as_slice() {
            span class="nowrap" title=(all.join(", ")) {
                (first) @if !others.is_empty() { " +" (others.len()) span class="hidden" { ": " (others.join(", ")) } }
            }
        }
    }
}

/// A table of builds. `with_jobset` adds the column for lists that mix them.
pub(super) fn builds(context: &Context, builds: &[Listed], with_jobset: bool) -> Markup {
    html! {
        div class="scroll" {
            table class="rows" {
                thead {
                    tr {
                        th scope="col" { "Status" }
                        th scope="col" { span class="hidden" { "Trend" } }
                        th scope="col" class="name" { "Job" }
                        @if with_jobset { th scope="col" { "Jobset" } }
                        th scope="col" { "System" }
                        @if !with_jobset { th scope="col" class="far" { "Name" } }
                        th scope="col" { "Ended" }
                        th scope="col" class="far" { "Took" }
                        th scope="col" { "Build" }
                        th scope="col" { "Log" }
                    }
                }
                tbody {
                    @for build in builds {
                        tr {
                            td { (part::status(build.status)) }
                            td { (part::weather_icon(build.weather)) }
                            td class="name" { a href=(build_link(context, build)) { (build.job) } }
                            @if with_jobset { td { (part::jobset(context, &build.jobset)) } }
                            (system_cell(&build.job, &build.system))
                            @if !with_jobset { td class="far wrap" { (build.nix_name) } }
                            td data-th="Ended" { (part::maybe_time(context.now, build.stoptime)) }
                            td class="far nowrap" { (part::lasted(context.now, build.starttime, build.stoptime)) }
                            td data-th="Build" { a href=(build_link(context, build)) { (build.id) } }
                            td { (log_link(context, build)) }
                        }
                    }
                }
            }
        }
    }
}

/// Where its log is, if it has one.
pub(super) fn log_link(context: &Context, build: &Listed) -> Markup {
    let has_one = match build.status {
        BuildStatus::Started
        | BuildStatus::Succeeded
        | BuildStatus::Failed
        | BuildStatus::Aborted
        | BuildStatus::Canceled => build.log.is_some(),
        BuildStatus::Submitted | BuildStatus::Scheduled | BuildStatus::FailedDependency => false,
    };
    html! {
        @if has_one {
            a href=(context.link(&format!("/build/{}/log", build.id)))
                aria-label={ "Log of " (build.job) } { "log" }
        }
    }
}

/// Builds in one line each: state, job, system.
pub(super) fn brief(context: &Context, builds: &[Listed]) -> Markup {
    html! {
        @for build in builds {
            div class="brief" {
                (part::status(build.status)) " "
                a href=(build_link(context, build)) { (build.job) }
                (system_of(&build.job, &build.system))
            }
        }
    }
}
