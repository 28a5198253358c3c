//! What machines read besides the API: health, badges, news, numbers, and how the API is described.

mod badge;
mod health;
mod news;
mod openapi;
mod prometheus;
mod xml;

use super::access::Access;
use super::request::Method;
use super::route::{Answer, Kind, Route};

pub(super) const ROUTES: &[Route] = &[
    get("/healthz", Access::Open, Kind::Api, health::health),
    get("/robots.txt", Access::Open, Kind::Text, health::robots),
    get("/jobset/:name/badge.svg", Access::Read, Kind::Text, badge::show),
    get("/events/rss", Access::Read, Kind::Text, news::rss),
    get("/events/atom", Access::Read, Kind::Text, news::atom),
    get("/jobset/:name/rss", Access::Read, Kind::Text, news::rss_of),
    get("/prometheus", Access::Read, Kind::Text, prometheus::show),
    get("/api/openapi.json", Access::Read, Kind::Api, openapi::show),
    get("/jobset/:name/atom", Access::Read, Kind::Text, news::atom_of),
];

const fn get(path: &'static str, access: Access, kind: Kind, answer: Answer) -> Route {
    Route { method: Method::Get, path, access, kind, answer }
}
