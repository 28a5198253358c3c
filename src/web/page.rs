//! Pages for people, rendered here, usable without script.
//!
//! What is told from data is told twice where it matters: a state by icon and word, a moment by how long ago and when.

mod asset;
mod broken;
mod build;
mod chart;
mod compare;
mod dashboard;
mod evaluation;
mod forge;
mod home;
mod job;
mod jobset;
mod list;
mod log;
mod machine;
mod metrics;
mod part;
mod phases;
mod place;
mod queue;
mod search;
pub(super) mod specification;

use maud::{DOCTYPE, Markup, html};

use super::access::Access;
use super::context::Context;
use super::link::component;
use super::request::{Method, Request};
use super::response::Response;
use super::route::{Answer, Kind, Route};
use crate::model::spec::JobsetName;

pub(super) const ROUTES: &[Route] = &[
    with("/assets/:name", Access::Open, asset::get),
    page("/", home::home),
    page("/jobset/:name", jobset::jobset),
    page("/jobset/:name/job/:job", job::job),
    page("/eval/latest", evaluation::latest),
    page("/eval/latest/dashboard", dashboard::latest),
    page("/eval/:id", evaluation::evaluation),
    page("/eval/:id/compare", compare::compare),
    page("/eval/:id/dashboard", dashboard::dashboard),
    page("/eval/:id/dashboard/:dashboard", dashboard::registered),
    page("/eval/:id/log", log::evaluation),
    page("/build/:id/details", build::build),
    page("/build/:id/log", log::build),
    page("/queue", queue::queue),
    page("/status", queue::status),
    page("/workers", machine::workers),
    page("/machine/:name", machine::machine),
    page("/search", search::search),
    page("/metrics", metrics::metrics),
    page("/specification/add", specification::add),
    page("/specification/edit/:name", specification::edit),
    with("/admin/audit", Access::Administer, place::audit),
];

const fn page(path: &'static str, answer: Answer) -> Route {
    with(path, Access::Read, answer)
}

const fn with(path: &'static str, access: Access, answer: Answer) -> Route {
    Route { method: Method::Get, path, access, kind: Kind::Page, answer }
}

/// The title of the page that all others are below.
const HOME: &str = "Jobsets";

/// What a page has besides its content.
struct Frame<'a> {
    /// Without the installation's name.
    title: &'a str,
    /// Where it is: names and links of what it is part of, outermost first, home left out.
    crumbs: Vec<(String, String)>,
    /// Events of which the page wants to hear, as the query of `/api/events`.
    events: Option<String>,
    /// What the search field holds.
    query: &'a str,
    /// Whether the content takes the whole width.
    wide: bool,
    /// The jobset whose news readers of feeds are offered; without one, those of all.
    jobset: Option<JobsetName>,
}

impl<'a> Frame<'a> {
    fn new(title: &'a str) -> Self {
        Self { title, crumbs: Vec::new(), events: None, query: "", wide: false, jobset: None }
    }

    fn below(mut self, name: impl Into<String>, link: String) -> Self {
        self.crumbs.push((name.into(), link));
        self
    }

    /// Part of a jobset.
    fn of(mut self, context: &Context, jobset: &JobsetName) -> Self {
        self.jobset = Some(jobset.clone());
        self.below(jobset.as_str(), part::jobset_link(context, jobset))
    }

    fn hearing(mut self, query: impl Into<String>) -> Self {
        self.events = Some(query.into());
        self
    }

    fn show(&self, context: &Context, content: &Markup) -> Markup {
        html! {
            (DOCTYPE)
            html lang="en" data-base=(context.prefix()) {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    title { (self.title) " – " (installation(context)) }
                    link rel="stylesheet" href=(asset::link(context, "style"));
                    link rel="icon" type="image/svg+xml" href=(asset::link(context, "icon"));
                    @for (kind, word) in [("rss", "RSS"), ("atom", "Atom")] {
                        link rel="alternate" type={ "application/" (kind) "+xml" } title=(self.feed_title(word))
                            href=(self.feed(context, kind));
                    }
                    script src=(asset::link(context, "script")) defer {}
                }
                body {
                    a class="skip" href="#content" { "Skip to the content" }
                    (self.top(context))
                    main id="content" tabindex="-1" class=[self.wide.then_some("wide")]
                        data-events=[self.listening(context)] {
                        @if self.title != HOME {
                            nav aria-label="Breadcrumbs" {
                                ol class="crumbs" {
                                    li { a href=(context.link("/")) { (HOME) } }
                                    @for (name, link) in &self.crumbs {
                                        li { a href=(link) { (name) } }
                                    }
                                    li aria-current="page" { (self.title) }
                                }
                            }
                        }
                        div data-live="daemon" { (away(context)) }
                        (content)
                    }
                    footer {
                        div class="bar" {
                            span { "Gorget " (env!("CARGO_PKG_VERSION")) }
                            span { "Times are UTC." }
                            span { "Free software: GPL 3 or later, no warranty." }
                        }
                    }
                }
            }
        }
    }

    fn feed(&self, context: &Context, kind: &str) -> String {
        match &self.jobset {
            Some(jobset) => format!("{}/{kind}", part::jobset_link(context, jobset)),
            None => context.link(&format!("/events/{kind}")),
        }
    }

    fn feed_title(&self, word: &str) -> String {
        match &self.jobset {
            Some(jobset) => format!("{word} of {jobset}"),
            None => format!("{word} of all jobsets"),
        }
    }

    /// The query of the events that change what the page shows.
    fn listening(&self, context: &Context) -> Option<String> {
        let query = self.events.as_deref()?;
        let separator = if query.is_empty() { '?' } else { '&' };
        Some(format!("{query}{separator}from={}", context.since()))
    }

    fn top(&self, context: &Context) -> Markup {
        html! {
            header class="top" {
                div class="bar" {
                    a class="brand" href=(context.link("/")) {
                        svg viewBox="0 0 24 24" class="i run" aria-hidden="true" {
                            path d="M4 5c0 8 3 14 8 14s8-6 8-14M7.5 4.5C8 10 9.5 13 12 13s4-3 4.5-8.5" {}
                        }
                        (installation(context))
                    }
                    nav aria-label="Main" {
                        a href=(context.link("/status")) { "Running" }
                        a href=(context.link("/queue")) { "Queue" }
                        a href=(context.link("/workers")) { "Workers" }
                        a href=(context.link("/metrics")) { "Metrics" }
                        @if context.may(Access::Administer, None) {
                            a href=(context.link("/admin/audit")) { "Audit" }
                        }
                    }
                    form role="search" action=(context.link("/search")) method="get" {
                        label class="hidden" for="query" { "Search builds" }
                        input type="search" id="query" name="query" value=(self.query)
                            placeholder="Search builds" autocomplete="off";
                        button type="submit" { "Search" }
                    }
                    (who(context))
                }
            }
        }
    }
}

/// That the daemon is away, where it is.
fn away(context: &Context) -> Markup {
    html! {
        @if !context.shared.live.is_up() {
            p class="box warn" role="status" {
                "The daemon does not run: this is how things stood, and nothing can be changed until it is back."
            }
        }
    }
}

/// Who is logged in, and out again; a link to log in for all others, whatever they may already.
fn who(context: &Context) -> Markup {
    html! {
        @if context.csrf().is_empty() {
            a href=(context.link("/login")) { "Log in" }
        } @else {
            form class="who" method="post" action=(context.link("/logout")) {
                (part::csrf(context))
                @if let Some(identity) = &context.identity { span class="dim" { (identity.name) } }
                button type="submit" { "Log out" }
            }
        }
    }
}

/// What tells this installation from others: the host of its public address.
fn installation(context: &Context) -> String {
    let url = context.shared.config.parameters.url.as_deref().unwrap_or_default();
    let host = url.split_once("://").and_then(|(_, rest)| rest.split('/').next());
    match host.filter(|host| !host.is_empty()) {
        Some(host) => format!("Gorget at {}", host.rsplit('@').next().unwrap_or(host)),
        None => "Gorget".to_owned(),
    }
}

/// A page within the frame that all have: `title` without the installation's name.
pub(super) fn frame(context: &Context, title: &str, content: Markup) -> Markup {
    Frame::new(title).show(context, &content)
}

/// An error, as people read it.
pub(super) fn failure(
    context: &mut Context,
    request: &Request,
    status: u16,
    message: &str,
) -> Response {
    let title = match status {
        400 | 422 => "That is not valid",
        401 => "Please log in",
        403 => "Not allowed",
        404 => "Not found",
        409 => "Not possible now",
        429 => "Too many requests",
        503 => "Not available now",
        _ => "Error",
    };
    let content = html! {
        h1 { (title) }
        p { (message) }
        // Somebody else may.
        @if status == 401 || (status == 403 && context.csrf().is_empty()) {
            p {
                a class="button" href=(context.link(&format!("/login?next={}", component(&request.target)))) {
                    "Log in"
                }
            }
        }
        p class="dim small" { "Status " (status) @if !request.id.is_empty() { ", request " (request.id) } "." }
        p { a href=(context.link("/")) { "All jobsets" } }
    };
    Response::html(status, frame(context, title, content))
}
