//! Gorget: continuous integration for functional package managers.
//!
//! One program, no async runtime: every actor is a named thread that owns its state and loops over a bounded
//! inbox; the books are an SQLite file with one writer; everything that may block or misbehave (git,
//! evaluators, builds, `sendmail`) is a child process.
//!
//! # Threads of `gorget register`
//!
//! ```text
//! main                 the supervisor: signals, reload, the end        daemon/{start,supervise}.rs
//! signals              turns TERM, INT and HUP into messages           sys/signal.rs
//! bridge               places of the Unix socket's connections         daemon/bridge.rs
//!   bridge/accept, bridge/N, bridge/refuse
//! registry             which jobsets there are                         daemon/registry.rs
//!   monitor/NAME       one active jobset: period, triggers             daemon/monitor.rs
//! updater              looks at channels, coalesced per URL            daemon/updater.rs
//!   fetch/N            each waits for one git child                    git.rs
//! evaluator            which evaluations run                           daemon/evaluator.rs
//!   evaluate/N, register/N   one reads an evaluator's jobs, one waits for the books
//!   answer/N           waits for a build whose end an evaluator wants to know
//! builder              the ready queue and the backends                daemon/builder.rs
//!   builder/books, build/N   writes for it; each waits for one build
//!   store/guix, store/nix    each asks a daemon that is away until it answers
//!   idle/guix, idle/nix      close connections that no build takes up
//!   roots/guix, roots/nix    keep derivations and outputs from the collector
//!   products/guix, …         look for products of what had been built before
//! notifier             messages to people, with retries                daemon/notifier.rs
//!   courier/N          each waits for somebody's server; not waited for at the end
//! janitor              sweeps, expires, counts                         daemon/janitor.rs
//! database             the only writer                                 db/writer.rs
//! specifications/0     reads specification files again, by Guile if need be  daemon/reload.rs
//! one-shot             drives the others once, with `--one-shot`       daemon/one_shot.rs
//! ```
//!
//! With `--web`, and in `gorget web`, besides:
//!
//! ```text
//! gate                 owns the TCP sockets: reads requests whole, hands them to tiny_http    web/gate.rs
//!   gate/stop          wakes it at the stop
//! web/N                each answers one request at a time              web/serve.rs
//!   stream/N           each writes one answer that is long, or goes on web/serve/stream.rs
//! web/events           hands events to those who listen                web/live/hub.rs
//!   web/bridge         hears them from the daemon
//! ```
//!
//! `gorget remote-server` is a process of its own, with neither books nor decisions; its threads are listed in
//! `remote/server.rs`.
//!
//! Requests go down this list on bounded inboxes; results come up on lanes with room for every outstanding
//! request, which a loop serves first. An actor waits for an answer only from one below it, so that no circle
//! of waiting can arise; the bridge's connections, which are no actors, may ask anyone, for a bounded time.
//!
//! An actor's decisions are a *core*: a state machine that takes the time and a message and returns effects.
//! The thread around it receives, calls and performs. Cores are tested by adding up hours, without threads.
//!
//! # Layers
//!
//! A module imports from lower rows only; `tests/tidy.rs` sees to it.
//!
//! | layer | holds |
//! | --- | --- |
//! | `cli` | argv to typed commands; the only place that prints |
//! | `web` | the web interface; it changes nothing but by the bridge |
//! | `remote` | builds on other machines: the server that workers connect to, and the worker; processes of their own |
//! | `daemon` | the actors; only `daemon/start.rs` and the registry spawn them |
//! | `control`, `db`, `git`, `logs`, `spec`, `store`, `evaluate` | one subject each; they do not know who calls them |
//! | `actor` | stop, ask, spawn, pools; nothing of the domain |
//! | `proto` | lines, S-expressions, the bridge's language; no sockets |
//! | `sys` | clock, children, signals, sockets, files: the only place with `unsafe`, but for one call in `git` |
//! | `model` | plain data; no I/O, no serialization |
//!
//! # Invariants
//!
//! - The books are the truth. Every change of a build's status, with its counters, dependents, weather, messages
//!   and event, is one transaction; the ready queue only caches what was committed, and the janitor compares.
//! - A build is told to have started before its child exists, and to have ended once: late reports carry an
//!   older attempt and change nothing.
//! - What was answered with success survives `kill -9`: answers follow the commit. What is accepted and not yet
//!   done, a look or the repetition of an evaluation, is kept in the books as a promise until it is.
//! - No child outlives the daemon: each runs under a keeper that kills all its descendants when the daemon's end
//!   of a socket closes, however that comes about.
//! - Every queue, pool, line and wait has a bound. After the first signal the process ends within ten seconds.
//! - A panic in an essential actor ends the process with status 70, and the next start recovers; a monitor alone
//!   is respawned, a job (a fetch, an evaluation, a build, a request) fails alone.
//!
//! # What is absent
//!
//! No shared state behind locks, no polling, no timers that find nothing to do, no second writer, no configuration
//! file besides specifications and parameters, and no way for an evaluated job to decide where it runs.

mod actor;
mod cli;
mod control;
mod daemon;
mod db;
mod evaluate;
mod git;
mod logs;
mod model;
mod proto;
mod remote;
mod spec;
mod store;
mod sys;
mod web;

pub use cli::main;

/// What `tests/fuzz` drives.
#[cfg(fuzzing)]
pub mod fuzz {
    pub fn session(data: &[u8]) {
        crate::proto::fuzz::session(data);
    }

    pub fn derivation(data: &[u8]) {
        crate::proto::fuzz::derivation(data);
    }
}
