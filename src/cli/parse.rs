//! From words to one of the valid actions, without I/O: one lexopt loop, driven by the table, and for each command
//! a function that reads its typed options.

use std::ffi::OsString;
use std::path::PathBuf;

use super::client::{self, Activity, Target};
use super::given::Given;
use super::table::{self, COMMANDS, COMMON, CONNECTION, Command, Flag, Kind};
use super::usage::Usage;
use super::{check, evaluate, register, remote_server, remote_worker, web};
use crate::model::build::BuildId;
use crate::model::evaluation::EvaluationId;
use crate::model::spec::JobsetName;
use crate::model::status::BuildStatus;
use crate::model::time::parse_duration;
use crate::proto::control::{MAX_LIMIT, ROLES};

/// What to do.
#[derive(Debug)]
pub(super) enum Action {
    /// Help on a command, or on all.
    Help(Option<&'static Command>),
    Version,
    Register(Box<register::Options>),
    Web(web::Options),
    RemoteServer(Box<remote_server::Options>),
    RemoteWorker(remote_worker::Options),
    Evaluate(evaluate::Options),
    Check(check::Options),
    Client(Client),
    Documentation(PathBuf),
}

/// A command for the running daemon.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) socket: Option<PathBuf>,
    pub(super) state_directory: Option<PathBuf>,
    pub(super) json: bool,
    pub(super) command: client::Command,
}

/// Reads a command line, without the program's name.
pub(super) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Action, Usage> {
    use lexopt::Arg::{Long, Short, Value};
    let mut parser = lexopt::Parser::from_args(arguments);
    let mut command: Option<&'static Command> = None;
    let (mut options, mut operands) = (Vec::new(), Vec::new());
    while let Some(argument) = parser.next().map_err(error)? {
        let flag = match argument {
            Value(word) => {
                match command {
                    None => command = Some(find(&word)?),
                    Some(_) => operands.push(word),
                }
                continue;
            }
            Short(letter) => flag(command, |flag| flag.short == Some(letter))
                .ok_or_else(|| Usage::UnknownOption(format!("-{letter}")))?,
            Long(name) => flag(command, |flag| flag.name == name)
                .ok_or_else(|| Usage::UnknownOption(format!("--{name}")))?,
        };
        match flag.name {
            "help" => return Ok(Action::Help(command)),
            "version" => return Ok(Action::Version),
            _ => {}
        }
        let value = flag.value.map(|_| parser.value().map_err(error)).transpose()?;
        options.push((flag.name, value));
    }
    let command = command.ok_or(Usage::NoCommand)?;
    // Those before the command were not held against its own.
    if let Some((stray, _)) =
        options.iter().find(|(name, _)| command.flags().all(|f| f.name != *name))
    {
        return Err(Usage::UnknownOption(format!("--{stray}")));
    }
    let mut given = Given { command, options, operands: operands.into_iter() };
    let action = action(&mut given)?;
    given.end()?;
    Ok(action)
}

fn flag(command: Option<&'static Command>, is: impl Fn(&Flag) -> bool) -> Option<&'static Flag> {
    match command {
        Some(command) => command.flags().find(|flag| is(flag)),
        None => {
            [&COMMON, &CONNECTION].into_iter().flat_map(|group| group.flags).find(|flag| is(flag))
        }
    }
}

fn find(word: &OsString) -> Result<&'static Command, Usage> {
    let name = word.to_string_lossy();
    table::command(&name).ok_or_else(|| {
        let listed = COMMANDS.iter().filter(|command| command.kind != Kind::Hidden);
        let near = listed.map(|command| (distance(&name, command.name), command.name)).min();
        // Two slips in a word are as many as still leave no doubt what was meant.
        let near = near.filter(|(distance, _)| *distance <= 2).map(|(_, name)| name);
        Usage::UnknownCommand { name: name.into_owned(), near }
    })
}

/// The number of letters to insert, remove or replace to come from one word to the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[other.len()]
}

fn error(error: lexopt::Error) -> Usage {
    match error {
        lexopt::Error::MissingValue { option } => Usage::MissingValue(option.unwrap_or_default()),
        lexopt::Error::UnexpectedValue { option, value: _ } => Usage::UnexpectedValue(option),
        other => Usage::UnknownOption(other.to_string()),
    }
}

fn action(given: &mut Given) -> Result<Action, Usage> {
    match (given.command.kind, given.command.name) {
        (_, "register") => Ok(Action::Register(Box::new(register::Options::read(given)?))),
        (_, "remote-server") => {
            Ok(Action::RemoteServer(Box::new(remote_server::Options::read(given)?)))
        }
        (_, "web") => Ok(Action::Web(web::Options::read(given)?)),
        (_, "remote-worker") => Ok(Action::RemoteWorker(remote_worker::Options::read(given)?)),
        (_, "evaluate") => Ok(Action::Evaluate(evaluate::Options::read(given)?)),
        (_, "check") => Ok(Action::Check(check::Options::read(given)?)),
        (_, "documentation") => Ok(Action::Documentation(given.operand("DIR")?.into())),
        (_, "help") if given.more() => {
            let word = given.operand("COMMAND")?;
            Ok(Action::Help(Some(find(&word)?)))
        }
        (_, "help") => Ok(Action::Help(None)),
        _ => {
            let (socket, state_directory) = (given.path("socket")?, given.path("state-directory")?);
            let json = given.switch("json");
            Ok(Action::Client(Client { socket, state_directory, json, command: ask(given)? }))
        }
    }
}

/// What a client command asks.
fn ask(given: &mut Given) -> Result<client::Command, Usage> {
    use client::Command as Ask;
    Ok(match given.command.name {
        "status" => Ask::Status,
        "jobsets" => Ask::Jobsets,
        "builds" => {
            let words: Vec<_> = BuildStatus::ALL.iter().map(|status| status.word()).collect();
            Ask::Builds(client::Builds {
                jobset: given.jobset("jobset")?,
                evaluation: given.id("evaluation")?.map(EvaluationId),
                status: given.read("status", &words.join(", "), BuildStatus::from_word)?,
                limit: limit(given)?,
            })
        }
        "evaluations" => Ask::Evaluations { limit: limit(given)?, jobset: jobset_if_any(given)? },
        "queue" => Ask::Queue { limit: limit(given)? },
        "workers" => Ask::Workers,
        "trigger" => Ask::Trigger(given.jobset_operand()?),
        "add" => {
            let file = PathBuf::from(given.operand("FILE")?);
            Ask::Add { file, guix: given.command("guix")?.unwrap_or_else(super::guix) }
        }
        "activate" => Ask::Activate(given.jobset_operand()?),
        "deactivate" => Ask::Deactivate(given.jobset_operand()?),
        "delete" => Ask::Delete(given.jobset_operand()?),
        "restart" => {
            let all = given.switch("all");
            match target(given)? {
                Target::Evaluation(id) => Ask::RestartEvaluation { id, all },
                Target::Build(_) if all => return Err(Usage::Needs("--all", "--evaluation")),
                Target::Build(id) => Ask::RestartBuild(id),
            }
        }
        "cancel" => match target(given)? {
            Target::Evaluation(id) => Ask::CancelEvaluation(id),
            Target::Build(id) => Ask::CancelBuild(id),
        },
        "retry" => Ask::Retry(EvaluationId(given.id_operand("EVALUATION")?)),
        "prioritize" => Ask::Prioritize {
            build: BuildId(given.id_operand("BUILD")?),
            priority: given.read_operand("PRIORITY", "a number from 0 to 99", |text| {
                text.parse().ok().filter(|priority| *priority <= 99)
            })?,
        },
        name @ ("pause" | "resume") => pause(given, name == "pause")?,
        "log" => Ask::Log { follow: given.switch("follow"), of: target(given)? },
        "watch" => Ask::Watch { jobset: jobset_if_any(given)? },
        "wait" => {
            let timeout = given.read("timeout", "a duration", parse_duration)?;
            Ask::Wait { on: target(given)?, timeout }
        }
        "reload" => Ask::Reload,
        "backup" => Ask::Backup(given.operand("FILE")?.into()),
        "check-database" => Ask::CheckDatabase,
        "token" => Ask::Token(token(given)?),
        other => unreachable!("the table has a client command {other} that is not read"),
    })
}

fn limit(given: &Given) -> Result<Option<u32>, Usage> {
    let expected = format!("a number from 1 to {MAX_LIMIT}");
    given.read("limit", &expected, |text| {
        text.parse().ok().filter(|limit| (1..=MAX_LIMIT as u32).contains(limit))
    })
}

fn jobset_if_any(given: &mut Given) -> Result<Option<JobsetName>, Usage> {
    if given.more() { given.jobset_operand().map(Some) } else { Ok(None) }
}

/// The build or the evaluation that a command is about.
fn target(given: &mut Given) -> Result<Target, Usage> {
    match given.id("evaluation")? {
        Some(_) if given.more() => Err(Usage::Both("BUILD", "--evaluation")),
        Some(id) => Ok(Target::Evaluation(EvaluationId(id))),
        None => Ok(Target::Build(BuildId(given.id_operand("BUILD")?))),
    }
}

fn pause(given: &mut Given, paused: bool) -> Result<client::Command, Usage> {
    use client::Command as Ask;
    let ask = |activity| if paused { Ask::Pause(activity) } else { Ask::Resume(activity) };
    if !given.more() {
        return Ok(ask(None));
    }
    let which = given.read_operand("WHAT", "builds, evaluations or worker", |word| match word {
        "builds" => Some(Some(Activity::Builds)),
        "evaluations" => Some(Some(Activity::Evaluations)),
        "worker" => Some(None),
        _ => None,
    })?;
    match which {
        Some(activity) => Ok(ask(Some(activity))),
        None => {
            let name = given.text_operand("NAME")?.to_owned();
            Ok(Ask::PauseWorker { name, paused })
        }
    }
}

fn token(given: &mut Given) -> Result<client::Token, Usage> {
    let what = given.text_operand("add, list or revoke")?;
    let (jobset, expires) = (given.jobset("jobset")?, given.duration("expires")?);
    if what != "add" {
        for (option, is_given) in [("--jobset", jobset.is_some()), ("--expires", expires.is_some())]
        {
            if is_given {
                return Err(Usage::Needs(option, "token add"));
            }
        }
    }
    match what.as_str() {
        "add" => Ok(client::Token::Add {
            name: given.text_operand("NAME")?,
            role: given.read_operand("ROLE", &ROLES.join(", "), |role| {
                ROLES.contains(&role).then(|| role.to_owned())
            })?,
            jobset,
            expires,
        }),
        "list" => Ok(client::Token::List),
        "revoke" => Ok(client::Token::Revoke(given.text_operand("NAME")?)),
        other => Err(Usage::bad("token", other, "add, list or revoke")),
    }
}

#[cfg(test)]
mod tests;
