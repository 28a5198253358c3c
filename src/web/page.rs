//! Pages for people, rendered here, usable without script.

use maud::{DOCTYPE, Markup, html};

use super::context::Context;
use super::request::Request;
use super::response::Response;
use super::route::Route;

pub(super) const ROUTES: &[Route] = &[];

/// A page within the frame that all have: `title` without the installation's name.
pub(super) fn frame(context: &Context, title: &str, content: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) " – Gorget" }
            }
            body {
                header { a href=(context.link("/")) { "Gorget" } }
                main id="content" { (content) }
            }
        }
    }
}

/// An error, as people read it.
pub(super) fn failure(
    context: &mut Context,
    request: &Request,
    status: u16,
    message: &str,
) -> Response {
    let _ = request;
    let content = html! { h1 { "Error " (status) } p { (message) } };
    Response::html(status, frame(context, "Error", content))
}
