//! What is sent as it is on disk: logs, and what builds left for people.

mod accept;
mod log;
mod product;
mod range;
mod tar;

use super::access::Access::Read;
use super::request::Method::Get;
use super::route::{Kind, Route};

pub(super) use log::{Look, Of, Source, missing};

pub(super) const ROUTES: &[Route] = &[
    Route {
        method: Get,
        path: "/build/:id/log/raw",
        access: Read,
        kind: Kind::Text,
        answer: log::of_build,
    },
    Route {
        method: Get,
        path: "/eval/:id/log/raw",
        access: Read,
        kind: Kind::Text,
        answer: log::of_evaluation,
    },
    Route {
        method: Get,
        path: "/log/:name",
        access: Read,
        kind: Kind::Text,
        answer: log::of_output,
    },
    Route {
        method: Get,
        path: "/api/build/:id/log",
        access: Read,
        kind: Kind::Api,
        answer: log::piece,
    },
    Route {
        method: Get,
        path: "/download/:id",
        access: Read,
        kind: Kind::Api,
        answer: product::download,
    },
    // Names below a product's number are for `wget` and the like, which name files by the address.
    Route {
        method: Get,
        path: "/download/:id/:name",
        access: Read,
        kind: Kind::Api,
        answer: product::download,
    },
];
