//! `/api/events`: what happens, as server-sent events.
//!
//! The first is `status`, with the state that all others change; then each event as the bridge tells it, its word as
//! its name. `builds` stands for many at once, `daemon` says whether the daemon is there, and `overflow` that the state
//! is to be read again.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, select};
use serde::Serialize;
use serde_json::Value;

use super::hub::{Asked, Books, Filter, Heard, Subscription, Told, wants};
use super::log::ALIVE;
use crate::db::{Reader, builds, evaluations, events};
use crate::model::build::BuildId;
use crate::model::evaluation::EvaluationId;
use crate::model::spec::JobsetName;
use crate::proto::control::view::{self, json};
use crate::sys::clock;
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::request::Request;
use crate::web::response::{Body, Response, Sink, Stream};
use crate::web::route::Captures;

/// Between two writes to one listener: a tenth of a second is at once for people, and spares those who draw.
const BATCH: Duration = Duration::from_millis(100);

/// More events of builds than this at once are told as numbers.
const MANY: usize = 20;

/// What is replayed at most: whoever missed more reads the state again, which costs less.
const REPLAY: usize = 1000;

/// How soon browsers come back, in milliseconds.
const RETRY: u32 = 2_000;

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct StateView {
    version: &'static str,
    /// The server's clock, for running durations.
    time: i64,
    /// Of this process: another one may have other pages.
    started: i64,
    /// Whether the daemon is there.
    up: bool,
    last_event: i64,
    builds: BuildsView,
    #[serde(skip_serializing_if = "Option::is_none")]
    evaluation: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    build: Option<Value>,
}

#[derive(Serialize)]
struct BuildsView {
    scheduled: i64,
    running: i64,
}

#[derive(Serialize)]
struct DaemonView {
    up: bool,
}

#[derive(Default, Serialize)]
struct ManyView {
    queued: usize,
    started: usize,
    ended: usize,
}

/// A stream of events.
pub(super) fn stream(
    write: impl FnOnce(&mut dyn Sink) -> io::Result<()> + Send + 'static,
) -> Response {
    let kind = "text/event-stream;charset=utf-8";
    let write: Stream = Box::new(move |out| {
        write!(out, "retry: {RETRY}\n\n")?;
        out.flush()?;
        write(out)
    });
    Response {
        status: 200,
        headers: vec![("Content-Type", kind.to_owned())],
        body: Body::Stream(write),
    }
    .with("Cache-Control", "no-store")
    .with("X-Accel-Buffering", "no")
}

/// A stop ends a stream as it should: whoever listens comes back.
pub(super) fn ended(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        other => other,
    }
}

pub(super) fn answer(
    context: &mut Context,
    request: &Request,
    _captures: &Captures,
) -> Result<Response, Failure> {
    let filter = filter(request)?;
    let from = request.header("last-event-id").or_else(|| request.query.get("from"));
    let from = match from.filter(|text| !text.is_empty()) {
        None => None,
        Some(text) => Some(text.parse::<i64>().ok().filter(|id| *id >= 0).ok_or_else(|| {
            Failure::bad(format!("{text:?} is no event: expected the number of one"))
        })?),
    };
    let live = &context.shared.live;
    let seat = live.listener(request.peer)?;
    let away = |_| Failure::Unavailable("Events cannot be heard for now.".to_owned());
    // Before the state is read, so that nothing falls between.
    let subscription = live.subscribe(filter.clone()).map_err(away)?;
    let state = state(context, &filter, subscription.up)?;
    let last = state.last_event;
    let database = context.shared.config.database.clone();
    let state = json(&state);
    let shared = Arc::clone(&context.shared);
    Ok(stream(move |out| {
        let _seat = seat;
        let id = if from.is_none() { format!("id: {last}\n") } else { String::new() };
        write!(out, "event: status\n{id}data: {state}\n\n")?;
        let mut teller = Teller { out, told: last, filter, database };
        if let Some(from) = from {
            teller.replay(from)?;
        }
        teller.out.flush()?;
        let again = |filter: &Filter| shared.live.subscribe(filter.clone()).ok();
        ended(teller.run(subscription, &again))
    }))
}

fn filter(request: &Request) -> Result<Filter, Failure> {
    let number = |key: &str| match request.query.get(key) {
        None => Ok(None),
        Some(text) => text
            .parse::<i64>()
            .map(Some)
            .map_err(|_| Failure::bad(format!("{key} is {text:?}, and must be a number"))),
    };
    let jobset = match request.query.get("jobset") {
        None => None,
        Some(text) => Some(
            JobsetName::new(text)
                .ok_or_else(|| Failure::bad(format!("{text:?} is no jobset's name")))?,
        ),
    };
    let (evaluation, build) = (number("evaluation")?, number("build")?);
    Ok(Filter { jobset, evaluation: evaluation.map(EvaluationId), build: build.map(BuildId) })
}

/// What is there now, of what is listened to.
fn state(context: &mut Context, filter: &Filter, up: bool) -> Result<StateView, Failure> {
    let (time, started) = (context.now.0, context.shared.started.0);
    let books = context.books()?;
    let parse = |text: String| serde_json::from_str(&text).unwrap_or(Value::Null);
    let last_event = events::last(books)?;
    let (scheduled, running) = builds::pending_counts(books)?;
    let evaluation = match filter.evaluation {
        Some(id) => evaluations::get(books, id)?.map(|found| parse(view::evaluation(&found))),
        None => None,
    };
    let build = match filter.build {
        Some(id) => builds::get(books, id)?.map(|found| parse(view::build(&found, None))),
        None => None,
    };
    Ok(StateView {
        version: env!("CARGO_PKG_VERSION"),
        time,
        started,
        up,
        last_event,
        builds: BuildsView { scheduled, running },
        evaluation,
        build,
    })
}

struct Teller<'a> {
    out: &'a mut dyn Sink,
    /// Events up to this id are told.
    told: i64,
    filter: Filter,
    database: PathBuf,
}

impl Teller<'_> {
    /// Tells what happened after `from`, if that is kept and not too much.
    fn replay(&mut self, from: i64) -> io::Result<()> {
        let reader = Reader::open(&self.database).map_err(io::Error::other)?;
        let last = events::last(&reader).map_err(io::Error::other)?;
        // An id of the future is one of another life of the books.
        let page = if from > last {
            None
        } else {
            events::after(&reader, from, None, REPLAY).map_err(io::Error::other)?
        };
        let Some(page) = page.filter(|page| page.len() < REPLAY) else {
            return self.overflow(last);
        };
        let mut books = Books { database: self.database.clone(), reader: Some(reader) };
        let mut wanted = Vec::new();
        self.told = from;
        for event in page {
            self.told = event.id;
            let line = view::event(&event);
            if let Ok(heard) = serde_json::from_str::<Heard>(&line)
                && wants(&self.filter, &heard, &mut books, &mut Asked::default())
            {
                wanted.push(Arc::new(Heard { line, ..heard }));
            }
        }
        self.tell(&wanted)
    }

    fn overflow(&mut self, id: i64) -> io::Result<()> {
        self.told = id;
        let data = view::overflow(id, clock::wall());
        write!(self.out, "event: overflow\nid: {id}\ndata: {data}\n\n")
    }

    fn tell(&mut self, heard: &[Arc<Heard>]) -> io::Result<()> {
        let of_build = |heard: &&Arc<Heard>| heard.event.starts_with("build");
        let many = heard.iter().filter(of_build).count() > MANY;
        let mut counts = ManyView::default();
        for event in heard {
            if many && of_build(&event) {
                match event.event.as_str() {
                    "builds-queued" => counts.queued += 1,
                    "build-started" => counts.started += 1,
                    _ => counts.ended += 1,
                }
                continue;
            }
            let Heard { id, event, line, .. } = &**event;
            write!(self.out, "event: {event}\nid: {id}\ndata: {line}\n\n")?;
        }
        if let (true, Some(last)) = (many, heard.last()) {
            write!(self.out, "event: builds\nid: {}\ndata: {}\n\n", last.id, json(&counts))?;
        }
        Ok(())
    }

    /// Tells what is heard until the client is gone or the process stops.
    fn run(
        &mut self,
        subscription: Subscription,
        again: &dyn Fn(&Filter) -> Option<Subscription>,
    ) -> io::Result<()> {
        let stop = self.out.stop().clone();
        let (mut subscription, mut last) = (subscription, clock::now());
        loop {
            let alive = crossbeam_channel::at(last + ALIVE);
            let first = select! {
                recv(stop) -> _ => return Ok(()),
                recv(alive) -> _ => {
                    self.out.write_all(b":\n\n")?;
                    self.out.flush()?;
                    last = clock::now();
                    continue;
                }
                recv(subscription.lane) -> told => told.ok(),
            };
            // What comes soon after what was told last waits for the rest.
            let due: Instant = last + BATCH;
            if stop.recv_deadline(due) != Err(RecvTimeoutError::Timeout) {
                return Ok(());
            }
            let lost = first.is_none();
            let mut batch = Vec::new();
            for told in first.into_iter().chain(subscription.lane.try_iter()) {
                match told {
                    Told::Event(heard) if heard.id > self.told => {
                        self.told = heard.id;
                        batch.push(heard);
                    }
                    Told::Event(_) => {}
                    Told::Overflow(id) => {
                        batch.clear();
                        self.overflow(id)?;
                    }
                    Told::Daemon(up) => {
                        self.tell(&std::mem::take(&mut batch))?;
                        write!(self.out, "event: daemon\ndata: {}\n\n", json(&DaemonView { up }))?;
                    }
                }
            }
            self.tell(&batch)?;
            if lost {
                let Some(next) = again(&self.filter) else { return Ok(()) };
                subscription = next;
                let read = Reader::open(&self.database).and_then(|reader| events::last(&reader));
                self.overflow(read.map_err(io::Error::other)?)?;
            }
            self.out.flush()?;
            last = clock::now();
        }
    }
}
