//! argv -> command -> ExitCode. The only module that prints; error chains end here.
//!
//! What can be said on a command line is in `table`, what it means in `parse`; `doc` writes the help and the
//! manual from the same table. Everything else here is one command each.
#![forbid(unsafe_code)]

mod check;
pub(crate) mod client;
mod directories;
mod doc;
mod evaluate;
mod given;
mod logging;
mod parse;
mod print;
mod register;
mod remote_server;
mod remote_worker;
mod table;
mod usage;
mod web;

use std::path::PathBuf;
use std::process::ExitCode;

use parse::{Action, Client};

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == crate::sys::process::KEEPER) {
        return crate::sys::process::keeper(crate::git::child_main);
    }
    if std::env::args_os().nth(1).is_some_and(|word| word == crate::evaluate::nix::DRIVER) {
        return crate::evaluate::nix::main(std::env::args_os().skip(2));
    }
    if std::env::args_os().nth(1).is_some_and(|word| word == crate::evaluate::guix::DRIVER) {
        return crate::evaluate::guix::main(std::env::args_os().skip(2));
    }
    match parse::parse(std::env::args_os().skip(1)) {
        Ok(action) => perform(action),
        Err(usage) => {
            print::err(&format!("{usage}\nTry 'gorget --help'."));
            ExitCode::from(print::USAGE)
        }
    }
}

fn perform(action: Action) -> ExitCode {
    match action {
        Action::Help(command) => print::out(&doc::help::text(command)),
        Action::Version => print::out(concat!("gorget ", env!("CARGO_PKG_VERSION"), "\n")),
        Action::Register(options) => {
            logging::start("info");
            register::run(*options)
        }
        Action::Web(options) => {
            logging::start("info");
            web::run(options)
        }
        Action::RemoteServer(options) => {
            logging::start("info");
            remote_server::run(*options)
        }
        Action::RemoteWorker(options) => {
            logging::start("info");
            remote_worker::run(options)
        }
        Action::Evaluate(options) => {
            logging::start("warn");
            evaluate::run(&options)
        }
        Action::Check(options) => check::run(&options),
        Action::Client(Client { socket, state_directory, json, command }) => {
            let socket = socket.unwrap_or_else(|| find_socket(state_directory));
            client::run(&socket, json, command)
        }
        Action::Documentation(directory) => doc::write(&directory),
    }
}

/// The command that runs Guix when no other is given.
fn guix() -> Vec<String> {
    vec!["guix".to_owned()]
}

/// The socket that is there; the most likely one if none is, so that the error names it.
fn find_socket(state: Option<PathBuf>) -> PathBuf {
    let mut sockets = directories::sockets(state.as_deref(), &directories::Surroundings::here());
    let there = sockets.iter().position(|socket| socket.exists()).unwrap_or(0);
    sockets.swap_remove(there)
}
