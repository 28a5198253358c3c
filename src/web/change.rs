//! What changes something: each a command over the bridge, for whoever asks.
//!
//! The paths are Cuirass's, where a GET changed things; here it asks whether to.

mod action;
mod audit;
mod dashboard;
mod keep;
pub(super) mod specification;

use super::access::{Access, login};
use super::hook;
use super::request::Method;
use super::route::{Answer, Kind, Route};

pub(super) const ROUTES: &[Route] = &[
    get("/login", Access::Open, Kind::Page, login::ask),
    page("/login", Access::Open, login::login),
    page("/logout", Access::Open, login::logout),
    // Specifications.
    page("/admin/specification/add", Access::Edit, specification::add),
    page("/admin/specification/edit", Access::Edit, specification::edit),
    asks("/admin/specifications/activate/:name"),
    page("/admin/specifications/activate/:name", Access::Edit, action::act),
    asks("/admin/specifications/deactivate/:name"),
    page("/admin/specifications/deactivate/:name", Access::Edit, action::act),
    asks("/admin/specifications/delete/:name"),
    page("/admin/specifications/delete/:name", Access::Edit, action::act),
    api(Method::Post, "/api/jobsets", Access::Edit, specification::post),
    api(Method::Put, "/api/jobsets/:name", Access::Edit, specification::put),
    api(Method::Delete, "/api/jobsets/:name", Access::Edit, action::act_api),
    api(Method::Post, "/api/jobsets/:name/activate", Access::Edit, action::act_api),
    api(Method::Post, "/api/jobsets/:name/deactivate", Access::Edit, action::act_api),
    // Evaluations.
    asks("/admin/jobset/:name/trigger"),
    page("/admin/jobset/:name/trigger", Access::Trigger, action::act),
    asks("/admin/evaluation/:id/cancel"),
    page("/admin/evaluation/:id/cancel", Access::Operate, action::act),
    asks("/admin/evaluation/:id/restart"),
    page("/admin/evaluation/:id/restart", Access::Operate, action::act),
    asks("/admin/evaluation/:id/restart-failed"),
    page("/admin/evaluation/:id/restart-failed", Access::Operate, action::act),
    asks("/admin/evaluation/:id/retry"),
    page("/admin/evaluation/:id/retry", Access::Operate, action::act),
    api(Method::Post, "/api/jobsets/:name/trigger", Access::Trigger, action::act_api),
    api(Method::Post, "/api/evaluations/:id/cancel", Access::Operate, action::act_api),
    api(Method::Post, "/api/evaluations/:id/restart", Access::Operate, action::act_api),
    api(Method::Post, "/api/evaluations/:id/restart-failed", Access::Operate, action::act_api),
    api(Method::Post, "/api/evaluations/:id/retry", Access::Operate, action::act_api),
    // Builds.
    asks("/admin/build/:id/restart"),
    page("/admin/build/:id/restart", Access::Operate, action::act),
    asks("/admin/build/:id/cancel"),
    page("/admin/build/:id/cancel", Access::Operate, action::act),
    asks("/admin/build/:id/prioritize"),
    page("/admin/build/:id/prioritize", Access::Operate, action::act),
    api(Method::Post, "/api/builds/:id/restart", Access::Operate, action::act_api),
    api(Method::Post, "/api/builds/:id/cancel", Access::Operate, action::act_api),
    api(Method::Post, "/api/builds/:id/prioritize", Access::Operate, action::act_api),
    // Workers.
    asks("/admin/worker/:name/pause"),
    page("/admin/worker/:name/pause", Access::Operate, action::act),
    asks("/admin/worker/:name/resume"),
    page("/admin/worker/:name/resume", Access::Operate, action::act),
    api(Method::Post, "/api/workers/:name/pause", Access::Operate, action::act_api),
    api(Method::Post, "/api/workers/:name/resume", Access::Operate, action::act_api),
    // The place.
    asks("/admin/pause"),
    page("/admin/pause", Access::Operate, action::act),
    asks("/admin/resume"),
    page("/admin/resume", Access::Operate, action::act),
    // Dashboards.
    get("/api/dashboard/register", Access::Read, Kind::Api, dashboard::register),
    get("/dashboard/:id", Access::Read, Kind::Api, dashboard::open),
    // What was changed, and refused.
    get("/api/audit", Access::Administer, Kind::Api, audit::list),
    // Hooks.
    api(Method::Post, "/jobset/:name/hook/evaluate", Access::Signed, hook::evaluate),
    api(Method::Post, "/hooks/github", Access::Signed, hook::github),
    api(Method::Post, "/hooks/gitea", Access::Signed, hook::gitea),
    api(Method::Post, "/hooks/forgejo", Access::Signed, hook::forgejo),
    api(Method::Post, "/hooks/gitlab", Access::Signed, hook::gitlab),
    api(Method::Post, "/admin/forgejo/event", Access::Signed, hook::forgejo),
    api(Method::Post, "/admin/gitlab/event", Access::Signed, hook::gitlab),
    api(Method::Post, "/api/push", Access::Trigger, hook::push),
];

/// What a form of a page is sent to.
const fn page(path: &'static str, access: Access, answer: Answer) -> Route {
    Route { method: Method::Post, path, access, kind: Kind::Page, answer }
}

/// A page that asks whether to do what a POST to the same path does.
const fn asks(path: &'static str) -> Route {
    get(path, Access::Read, Kind::Page, action::ask)
}

/// What shows something, to those who may see it.
const fn get(path: &'static str, access: Access, kind: Kind, answer: Answer) -> Route {
    Route { method: Method::Get, path, access, kind, answer }
}

const fn api(method: Method, path: &'static str, access: Access, answer: Answer) -> Route {
    Route { method, path, access, kind: Kind::Api, answer }
}
