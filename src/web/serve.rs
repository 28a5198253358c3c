//! tiny_http behind the gate and in front of the routes: a pool of workers, each of which answers one request at a time.
//!
//! Invariant: no worker waits for a client. It writes itself only what the gate takes in whole; all that is longer, or
//! takes its time, is written by a thread of its own, of which there is a bounded number.
//!
//! A worker `web/N` blocks on tiny_http's queue and is woken by `Server::unblock`, once per worker, when its server is
//! given up.

mod finish;
mod life;
mod stream;

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::access;
use super::context::{Context, Shared};
use super::failure::Failure;
use super::gate::{DIRECT, Directory, PEER, SECURE};
use super::request::{Method, Query, Request, components};
use super::response::Response;
use super::route::{self, Found, Kind};
use crate::actor::{Gone, Spawner, panic_message};
use crate::sys::clock;
pub(super) use stream::Streams;

/// Requests answered at once: queries take milliseconds, so that more would only wait for the processors.
const WORKERS: usize = 8;

/// Of a target in the log.
const SHOWN: usize = 200;

/// A tiny_http server on a private socket, and its workers. When the last of it is dropped, its workers end, and the
/// socket is removed.
pub(super) struct Server {
    held: Arc<Held>,
    socket: PathBuf,
}

/// Held by every worker, and given up in this order.
struct Held {
    server: tiny_http::Server,
    _directory: Arc<Directory>,
}

impl Server {
    /// Starts it on a new socket; `number` tells it from those before it.
    pub(super) fn start(
        threads: &Spawner,
        shared: &Arc<Shared>,
        streams: &Streams,
        directory: &Arc<Directory>,
        number: usize,
    ) -> io::Result<Self> {
        let socket = directory.socket(number);
        let listener = UnixListener::bind(&socket)?;
        let server = tiny_http::Server::from_listener(listener, None).map_err(io::Error::other)?;
        let held = Arc::new(Held { server, _directory: Arc::clone(directory) });
        let server = Self { held, socket };
        for n in 0..WORKERS {
            let n = number * WORKERS + n;
            let (held, streams) = (Arc::clone(&server.held), streams.clone());
            let mut context = Context::new(Arc::clone(shared));
            let mut names = Names::new(shared, n);
            threads.child(
                &format!("web/{n}"),
                move |_| -> Result<(), Gone> {
                    loop {
                        match held.server.recv() {
                            Ok(request) => {
                                let serve = || serve(&mut context, &streams, &mut names, request);
                                // tiny_http answers a request that is dropped with 500.
                                if let Err(panic) = catch_unwind(AssertUnwindSafe(serve)) {
                                    let why = panic_message(&*panic);
                                    log::error!(target: "web", "an answer panicked: {why}");
                                }
                            }
                            Err(error) if is_unblocked(&error) => return Ok(()),
                            // It accepts no more; the gate will notice.
                            Err(error) => log::warn!(target: "web", "cannot accept: {error}"),
                        }
                    }
                },
                |report| log::debug!(target: "web", "{} ended: {:?}", report.name, report.ended),
            )?;
        }
        Ok(server)
    }

    /// Where it listens.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for _ in 0..WORKERS {
            self.held.server.unblock();
        }
    }
}

/// tiny_http tells the two apart by nothing else: what `accept` fails with has a number of the system's.
fn is_unblocked(error: &io::Error) -> bool {
    error.raw_os_error().is_none()
}

/// Names requests, so that a log line, a page and whoever asks for help mean the same one.
struct Names {
    prefix: String,
    next: u64,
}

impl Names {
    fn new(shared: &Shared, worker: usize) -> Self {
        Self { prefix: format!("{:x}-{worker}", shared.started.0), next: 0 }
    }

    fn next(&mut self) -> String {
        self.next += 1;
        format!("{}-{}", self.prefix, self.next)
    }
}

fn serve(
    context: &mut Context,
    streams: &Streams,
    names: &mut Names,
    mut incoming: tiny_http::Request,
) {
    let began = clock::now();
    if incoming.url() == "*" {
        // The gate asks whether a new connection is there.
        if let Err(error) = stream::nothing(&mut *incoming.into_writer()) {
            log::debug!(target: "web", "a connection broke off: {error}");
        }
        return;
    }
    let request = match read(&mut incoming, names.next()) {
        Ok(request) => request,
        Err(error) => {
            log::debug!(target: "web", "a request broke off: {error}");
            return;
        }
    };
    let response = answer(context, &request);
    let response = finish::finish(context, &request, response);
    let (status, body) = (response.status, format!("{:?}", response.body));
    let result = streams.send(incoming.into_writer(), &request, response);
    log::debug!(
        target: "web",
        "{} {} {}: {status}, {body} in {:.1} ms, for {}{}",
        request.id,
        request.method.word(),
        request.target.get(..SHOWN).unwrap_or(&request.target),
        began.elapsed().as_secs_f64() * 1000.0,
        request.peer,
        result.err().map_or_else(String::new, |error| format!(": {error}")),
    );
}

/// What the gate let through: the head was checked, the body is whole.
fn read(incoming: &mut tiny_http::Request, id: String) -> io::Result<Request> {
    let mut body = Vec::new();
    incoming.as_reader().read_to_end(&mut body)?;
    let target = incoming.url().to_owned();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let method = match incoming.method() {
        tiny_http::Method::Get => Method::Get,
        tiny_http::Method::Head => Method::Head,
        tiny_http::Method::Post => Method::Post,
        tiny_http::Method::Put => Method::Put,
        tiny_http::Method::Delete => Method::Delete,
        _ => Method::Other,
    };
    let (mut peer, mut secure, mut direct) = (IpAddr::V4(Ipv4Addr::UNSPECIFIED), false, false);
    let mut headers = Vec::with_capacity(incoming.headers().len());
    for header in incoming.headers() {
        let (name, value) = (header.field.as_str().as_str(), header.value.as_str());
        if name.eq_ignore_ascii_case(PEER) {
            peer = value.parse().map_err(io::Error::other)?;
        } else if name.eq_ignore_ascii_case(SECURE) {
            secure = true;
        } else if name.eq_ignore_ascii_case(DIRECT) {
            direct = true;
        } else {
            headers.push((name.to_owned(), value.to_owned()));
        }
    }
    Ok(Request {
        method,
        path: components(path),
        query: Query::parse(query),
        headers,
        body,
        peer,
        secure,
        direct,
        id,
        target,
    })
}

/// Finds the route, checks the access, has the handler answer; a handler that panics fails its request alone.
fn answer(context: &mut Context, request: &Request) -> Response {
    context.begin();
    let (kind, result) = match route::find(request.method, &request.path) {
        Found::Nothing => {
            let missing = format!("Resource not found: {}", request.target);
            (Kind::Text, Err(Failure::Missing(missing)))
        }
        Found::Method(kind, allowed) => (kind, Err(Failure::Method(allowed))),
        Found::Route(route, captures) => {
            let result = access::check(context, request, route.access).and_then(|identity| {
                context.identity = identity;
                let handler = AssertUnwindSafe(|| (route.answer)(context, request, &captures));
                catch_unwind(handler).unwrap_or_else(|panic| {
                    Err(Failure::Internal(format!(
                        "a handler panicked: {}",
                        panic_message(&*panic)
                    )))
                })
            });
            (route.kind, result)
        }
    };
    result.unwrap_or_else(|failure| failure.response(context, request, kind))
}

#[cfg(test)]
pub(super) mod tests;
