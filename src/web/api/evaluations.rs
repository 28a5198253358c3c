//! Evaluations, their jobs, and what became of jobs over time.

use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};

use super::view::{CheckoutView, EvaluationView, JobView, PastJob};
use super::{MOST, UNDEFINED, going_on, wanted};
use crate::db;
use crate::db::Reader;
use crate::db::web::jobs::Job;
use crate::db::web::{evaluations, jobs as books_jobs};
use crate::model::evaluation::EvaluationId;
use crate::sys::clock;
use crate::web::context::{Context, QUERY};
use crate::web::failure::Failure;
use crate::web::request::Request;
use crate::web::response::{JSON, Response, Sink};
use crate::web::route::Captures;

/// The most evaluations of a history, as in Cuirass.
const HISTORY: usize = 100;
/// The most names that a history or dashboard is asked about: more than fit a URL.
const NAMES: usize = 1000;
/// Cuirass's text here differs from elsewhere by a sign.
const MISSING: &str = "Parameter not defined!";

pub(super) fn one(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let id = request.query.number("id").ok_or_else(|| Failure::bad(MISSING))?;
    let found = db::evaluations::get(context.books()?, EvaluationId(id))?;
    let missing = || Failure::missing(format!("Evaluation with ID {id} doesn't exist."));
    Ok(Response::json(&EvaluationView::new(&found.ok_or_else(missing)?)))
}

pub(super) fn list(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let limit = wanted(request, MOST, MISSING)?;
    let before = request.query.number("before").map(EvaluationId);
    let jobset = request.query.get("spec");
    let found = evaluations::list(context.books()?, jobset, before, limit)?;
    let response = Response::json(&found.iter().map(EvaluationView::new).collect::<Vec<_>>());
    Ok(match found.last() {
        Some(last) if found.len() == limit => {
            going_on(response, request, "before", &last.id.to_string())
        }
        _ => response,
    })
}

pub(super) fn jobs(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let query = &request.query;
    let id = query.number("evaluation").map(EvaluationId).ok_or_else(|| Failure::bad(MISSING))?;
    let limit = match query.get("nr") {
        Some(_) => Some(wanted(request, MOST, MISSING)?),
        None => None,
    };
    let system = query.get("system");
    let books = context.books()?;
    if let Some(names) = query.get("names") {
        let mut found = Vec::new();
        for name in names_of(names)? {
            found.extend(books_jobs::named(books, id, name)?);
        }
        found.retain(|job| system.is_none_or(|system| job.system == system));
        found.sort_by(|a, b| (&a.name, &a.system).cmp(&(&b.name, &b.system)));
        return Ok(Response::json(&found.iter().map(JobView::new).collect::<Vec<_>>()));
    }
    // No system has a slash in its name.
    let after = query.get("after").map(|after| after.rsplit_once('/').unwrap_or((after, "")));
    let found = books_jobs::of_evaluation(books, id, system, after, limit.unwrap_or(MOST))?;
    if limit.is_none() && found.len() == MOST {
        // Cuirass's clients expect all of them, and there may be a hundred thousand.
        let (shared, system) = (Arc::clone(&context.shared), system.map(str::to_owned));
        return Ok(Response::stream(JSON, move |out| {
            all_jobs(&shared.config.database, id, system.as_deref(), found, out)
        }));
    }
    let response = Response::json(&found.iter().map(JobView::new).collect::<Vec<_>>());
    Ok(match found.last() {
        Some(last) if limit == Some(found.len()) => {
            going_on(response, request, "after", &format!("{}/{}", last.name, last.system))
        }
        _ => response,
    })
}

/// Writes the array of all jobs from `piece` on, piece by piece, so that no more than that is ever held.
fn all_jobs(
    database: &Path,
    id: EvaluationId,
    system: Option<&str>,
    mut piece: Vec<Job>,
    out: &mut dyn Sink,
) -> io::Result<()> {
    let mut books = Reader::open(database).map_err(io::Error::other)?;
    out.write_all(b"[")?;
    let mut first = true;
    loop {
        for job in &piece {
            if !std::mem::take(&mut first) {
                out.write_all(b",")?;
            }
            serde_json::to_writer(&mut *out, &JobView::new(job))?;
        }
        let Some(last) = piece.last().filter(|_| piece.len() == MOST) else { break };
        books.limit(clock::now() + QUERY).map_err(io::Error::other)?;
        let after = Some((last.name.as_str(), last.system.as_str()));
        piece =
            books_jobs::of_evaluation(&books, id, system, after, MOST).map_err(io::Error::other)?;
    }
    out.write_all(b"]")
}

/// The names of a list, each once, in their order.
fn names_of(text: &str) -> Result<Vec<&str>, Failure> {
    let mut names: Vec<&str> = Vec::new();
    for name in text.split(',').filter(|name| !name.is_empty()) {
        if !names.contains(&name) {
            names.push(name);
        }
        if names.len() > NAMES {
            return Err(Failure::bad(format!("at most {NAMES} names")));
        }
    }
    Ok(names)
}

#[derive(Serialize)]
struct Entry<'a> {
    evaluation: i64,
    checkouts: Vec<CheckoutView<'a>>,
    jobs: Vec<PastJob>,
}

pub(super) fn history(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let query = &request.query;
    let undefined = || Failure::bad(UNDEFINED);
    let jobset = query.jobset("spec").ok_or_else(undefined)?;
    let names = names_of(query.get("names").ok_or_else(undefined)?)?;
    let limit = wanted(request, HISTORY, UNDEFINED)?;
    let books = context.books()?;
    let ids = match &jobset {
        Some(jobset) => books_jobs::succeeded(books, jobset, limit)?,
        None => Vec::new(),
    };
    let mut entries: Vec<Value> = Vec::new();
    for id in ids {
        let mut jobs = Vec::new();
        for name in &names {
            jobs.extend(books_jobs::named(books, id, name)?);
        }
        let Some(evaluation) = db::evaluations::get(books, id)?.filter(|_| !jobs.is_empty()) else {
            continue;
        };
        let changed = evaluations::changed_checkouts(books, &evaluation)?;
        entries.push(json!(Entry {
            evaluation: id.0,
            checkouts: changed.iter().map(CheckoutView::new).collect(),
            jobs: jobs
                .into_iter()
                .map(|job| PastJob {
                    name: job.name,
                    build: job.build.0,
                    status: job.status.number()
                })
                .collect(),
        }));
    }
    Ok(Response::json(&entries))
}
