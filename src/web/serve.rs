//! tiny_http in front of the routes: a pool of workers, each of which answers one request at a time.
//!
//! A worker `web/N` blocks on tiny_http's queue and is woken by `Server::unblock`, once per worker, when the process
//! is to stop.

use std::io::{self, Cursor, Read};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::access;
use super::context::{Context, Shared};
use super::failure::Failure;
use super::request::{Method, Query, Request, components};
use super::response::{Body, Response};
use super::route::{self, Found, Kind};
use crate::actor::{Gone, Spawner, panic_message};

/// Requests answered at once: queries take milliseconds, so that more would only wait for the processors.
const WORKERS: usize = 8;

pub(super) fn spawn(
    threads: &Spawner,
    listener: TcpListener,
    shared: &Arc<Shared>,
) -> io::Result<()> {
    let server = tiny_http::Server::from_listener(listener, None).map_err(io::Error::other)?;
    let server = Arc::new(server);
    for n in 0..WORKERS {
        let (server, shared) = (Arc::clone(&server), Arc::clone(shared));
        threads.essential(&format!("web/{n}"), move |stop| -> Result<(), Gone> {
            let mut context = Context::new(shared);
            loop {
                match server.recv() {
                    Ok(request) => serve(&mut context, request),
                    // Unblocked.
                    Err(_) if stop.try_recv() != Err(crossbeam_channel::TryRecvError::Empty) => {
                        return Ok(());
                    }
                    Err(_) => {}
                }
            }
        })?;
    }
    threads.child(
        "web/stop",
        move |stop| -> Result<(), Gone> {
            // Nothing is ever sent: this is the stop.
            let _ = stop.recv();
            for _ in 0..WORKERS {
                server.unblock();
            }
            Ok(())
        },
        |_| {},
    )
}

fn serve(context: &mut Context, mut incoming: tiny_http::Request) {
    let request = match read(&mut incoming) {
        Ok(request) => request,
        Err(error) => {
            log::debug!(target: "web", "a request broke off: {error}");
            return;
        }
    };
    let response = answer(context, &request);
    if let Err(error) = send(incoming, response) {
        log::debug!(target: "web", "request {}: {error}", request.id);
    }
}

fn read(incoming: &mut tiny_http::Request) -> io::Result<Request> {
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
    let headers = incoming.headers().iter();
    let headers =
        headers.map(|h| (h.field.as_str().as_str().to_owned(), h.value.as_str().to_owned()));
    Ok(Request {
        method,
        path: components(path),
        query: Query::parse(query),
        headers: headers.collect(),
        body,
        peer: incoming.remote_addr().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |a| a.ip()),
        secure: false,
        id: String::new(),
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

fn send(incoming: tiny_http::Request, response: Response) -> io::Result<()> {
    let Response { status, headers, body } = response;
    let headers = headers
        .iter()
        .filter_map(|(name, value)| tiny_http::Header::from_bytes(*name, value.as_bytes()).ok())
        .collect();
    let (body, length): (Box<dyn Read>, _) = match body {
        Body::Bytes(bytes) => {
            let length = bytes.len();
            (Box::new(Cursor::new(bytes)), Some(length))
        }
        Body::File { .. } | Body::Stream(_) => (Box::new(io::empty()), Some(0)),
    };
    let response = tiny_http::Response::new(status.into(), headers, body, length, None);
    incoming.respond(response)
}
