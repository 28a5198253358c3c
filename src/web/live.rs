//! What goes on, as server-sent events: changes of the books, and logs that grow.
//!
//! Invariant: one connection to the bridge for all who listen. Whoever is too slow, or comes back too late, is told
//! `overflow`, to read the state again; nothing is held for them.

mod events;
pub(super) mod follow;
mod hub;
mod log;

use super::access::Access::Read;
use super::request::Method::Get;
use super::route::{Kind, Route};

pub(super) use hub::{Handle, spawn};
pub(super) use log::Place;

pub(super) const ROUTES: &[Route] = &[
    Route {
        method: Get,
        path: "/api/events",
        access: Read,
        kind: Kind::Api,
        answer: events::answer,
    },
    Route {
        method: Get,
        path: "/build/:id/log/events",
        access: Read,
        kind: Kind::Text,
        answer: log::of_build,
    },
    Route {
        method: Get,
        path: "/eval/:id/log/events",
        access: Read,
        kind: Kind::Text,
        answer: log::of_evaluation,
    },
];
