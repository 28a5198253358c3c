//! One derivation build, from its connection to its roots. Runs on a thread of the pool and blocks as it likes.
//!
//! Invariant: a build succeeds only when the daemon itself says that all outputs are valid, and its connection, which
//! holds them, is closed only when they have their roots.

mod take;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::idle::{Age, Held, Idle};
use super::probe::Reach;
use super::products::{self, Wishes};
use crate::daemon::builder::Settings;
use crate::daemon::builder::output::{Output as Log, Refused};
use crate::daemon::builder::running::Leash;
use crate::db::{Database, Reader};
use crate::model::build::{BuildId, Order, Outcome, Product};
use crate::model::error::chain;
use crate::model::spec::BuildOutput;
use crate::proto::drv;
use crate::store::follow::{self, Follower};
use crate::store::{
    self, Address, Closer, Connection, Cut, Dialect, Error, Hook, Line, Options, Verdict, roots,
};
use crate::sys::{clock, file};
pub(super) use take::take;

/// How long the daemon may say nothing while it fetches: the largest outputs take that on a slow line.
const FETCH: Duration = Duration::from_secs(3600);

/// What all jobs share.
pub(super) struct Tools {
    dialect: Dialect,
    address: Address,
    fallback: bool,
    max_log_size: u64,
    roots: PathBuf,
    /// The store's directory.
    store: String,
    hook: Hook,
    /// Connections whose last build went well.
    idle: Idle,
    /// How long the daemon may say nothing while it fetches.
    fetch: Duration,
    books: Mutex<Books>,
}

/// Where builds learn which products are wanted of them.
struct Books {
    database: Database,
    reader: Option<Reader>,
    wishes: Wishes,
}

impl Books {
    fn wishes(&mut self, build: BuildId) -> Result<Vec<BuildOutput>, crate::db::Error> {
        if self.reader.is_none() {
            self.reader = Some(self.database.reader()?);
        }
        match &self.reader {
            Some(reader) => self.wishes.of(reader, build),
            None => Ok(Vec::new()),
        }
    }
}

impl Tools {
    pub(super) fn new(
        (dialect, address): (Dialect, Address),
        (settings, database): (&Settings, &Database),
        hook: Hook,
        idle: Idle,
    ) -> Self {
        Self {
            dialect,
            address,
            fallback: settings.fallback,
            max_log_size: settings.max_log_size,
            roots: super::roots_directory(&settings.state_directory),
            store: store::directory(dialect),
            hook,
            idle,
            fetch: FETCH,
            books: Mutex::new(Books {
                database: database.clone(),
                reader: None,
                wishes: Wishes::default(),
            }),
        }
    }
}

/// Runs one build to its end.
pub(super) fn run(tools: &Tools, order: &Order, leash: &Leash<Closer>, reach: &Reach) -> Outcome {
    unless_canceled(leash, attempt(tools, order, leash, reach))
}

fn unless_canceled(leash: &Leash<Closer>, result: Result<Outcome, Outcome>) -> Outcome {
    match result.unwrap_or_else(|outcome| outcome) {
        // Whatever broke, we broke it.
        Outcome::Aborted(_) if leash.is_canceled() => Outcome::Interrupted,
        outcome => outcome,
    }
}

/// What a connection's error comes to.
fn lost(error: Error, leash: &Leash<Closer>, reach: &Reach) -> Outcome {
    match error {
        Error::Refused(message) => Outcome::Aborted(message),
        error => {
            // A cancel closes the connection, which says nothing of the daemon.
            if !leash.is_canceled() {
                reach.lose();
            }
            Outcome::Aborted(chain(&error))
        }
    }
}

fn aborted(doing: &str, error: &io::Error) -> Outcome {
    Outcome::Aborted(format!("cannot {doing}: {error}"))
}

fn attempt(
    tools: &Tools,
    order: &Order,
    leash: &Leash<Closer>,
    reach: &Reach,
) -> Result<Outcome, Outcome> {
    let created = Log::create(&order.log, tools.max_log_size);
    let mut log = created.map_err(|error| match aborted("create the log", &error) {
        // Nothing has been tried yet.
        Outcome::Aborted(why) if file::is_full(&error) => Outcome::NoSpace(why),
        outcome => outcome,
    })?;
    let lost = |error: Error| lost(error, leash, reach);
    let seconds = |seconds: i64| u64::try_from(seconds).unwrap_or(0);
    let options = Options {
        fallback: tools.fallback,
        timeout: seconds(order.timeout),
        max_silent_time: seconds(order.max_silent_time),
        ..Options::default()
    };
    let away = |error: Error| {
        if !leash.is_canceled() {
            // It was there a moment ago. Nothing was tried yet.
            log::warn!(target: "builder", "build {}: {}", order.id, chain(&error));
            reach.lose();
        }
        Outcome::Interrupted
    };
    let (Held { mut connection, age, .. }, rested) = connect(tools, &options, leash, &away, &lost)?;
    let outputs = outputs(&mut connection, &order.derivation, &lost)?;
    let silence = follow::patience(options.max_silent_time);
    // Asked to build what is there, a daemon says so at once; and it gives the derivation and its outputs temporary
    // roots of this connection's before it looks.
    let mut sink = Follower::new(&order.derivation, &mut log);
    let verdict = connection.build(&order.derivation, silence, &mut sink);
    let (heard, worked) = (sink.heard, sink.worked);
    let verdict = match verdict {
        // It broke while it rested, and that was not to be seen yet: nothing was tried.
        Err(Cut::Connection(error @ (Error::Send(_) | Error::Receive(_)))) if rested && !heard => {
            return Err(away(error));
        }
        verdict => verdict,
    };
    let limit = tools.max_log_size;
    if let Some(outcome) = judge(verdict, order, &mut log, limit, &lost)? {
        return Ok(outcome);
    }
    let paths: Vec<&str> = outputs.values().map(String::as_str).collect();
    let valid = connection.valid(&paths).map_err(lost)?;
    if let Some(missing) = paths.iter().find(|path| !valid.iter().any(|valid| valid == *path)) {
        let why = format!("the daemon said that {missing} was built, and it is not in the store");
        return Ok(Outcome::Aborted(why));
    }
    let unwritten = |error: io::Error| aborted("write the log", &error);
    if !worked {
        log.note("already in the store").map_err(unwritten)?;
    }
    keep(&mut connection, tools, &paths, &lost)?;
    let (products, notes) = products(tools, order, &outputs, leash)?;
    for note in notes {
        log.note(&note).map_err(unwritten)?;
    }
    log.flush().map_err(unwritten)?;
    if leash.release() {
        tools.idle.put_back(Held { connection, age: age.another(), options });
    }
    Ok(Outcome::Succeeded { outputs, products })
}

/// Keeps outputs from being collected.
fn keep(
    connection: &mut Connection,
    tools: &Tools,
    paths: &[&str],
    lost: &dyn Fn(Error) -> Outcome,
) -> Result<(), Outcome> {
    for path in paths {
        roots::keep(connection, &tools.roots, path).map_err(|trouble| match trouble {
            roots::Trouble::Link(error) => aborted("keep what was built", &error),
            roots::Trouble::Daemon(error) => lost(error),
        })?;
    }
    Ok(())
}

/// A connection on the leash, with these options, and whether it rested before. One that did may have been closed by the
/// daemon since. A daemon that is away costs no try; one that takes no options does, or there would be no end of it.
fn connect(
    tools: &Tools,
    options: &Options,
    leash: &Leash<Closer>,
    away: &dyn Fn(Error) -> Outcome,
    lost: &dyn Fn(Error) -> Outcome,
) -> Result<(Held, bool), Outcome> {
    let hold = |closer: io::Result<Closer>| {
        let closer = closer.map_err(|error| aborted("hold the connection", &error))?;
        if leash.take(closer) { Ok(()) } else { Err(Outcome::Interrupted) }
    };
    while let Some(Held { mut connection, age, options: known }) = tools.idle.take() {
        hold(connection.closer())?;
        let usable = if known == *options {
            connection.is_quiet()
        } else {
            connection.set_options(options).is_ok()
        };
        if usable {
            return Ok((Held { connection, age, options: options.clone() }, true));
        }
    }
    let age = Age::new(clock::now());
    let line = Line::connect(&tools.address, &|| !leash.is_canceled()).map_err(away)?;
    hold(line.closer())?;
    let mut connection = Connection::greet(line, tools.dialect).map_err(away)?;
    connection.build_here(&tools.hook);
    connection.set_options(options).map_err(lost)?;
    Ok((Held { connection, age, options: options.clone() }, false))
}

/// The derivation's outputs: from its file, or from the daemon where the store is another machine's.
fn outputs(
    connection: &mut Connection,
    path: &str,
    lost: &dyn Fn(Error) -> Outcome,
) -> Result<BTreeMap<String, String>, Outcome> {
    match file::read(Path::new(path), drv::MAX) {
        Ok(text) => match drv::parse(&text) {
            Ok(derivation) => Ok(derivation.outputs),
            Err(error) => Err(Outcome::Failed(format!("{path}: {error}"))),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if connection.is_valid(path).map_err(lost)? {
                connection.outputs(path).map_err(lost)
            } else {
                let why = "is not in the store any more; an evaluation makes it again";
                Err(Outcome::Missing(format!("{path} {why}")))
            }
        }
        Err(error) => Err(aborted(&format!("read {path}"), &error)),
    }
}

/// What specifications ask for of the outputs, and what is to be noted of that.
fn products(
    tools: &Tools,
    order: &Order,
    outputs: &BTreeMap<String, String>,
    leash: &Leash<Closer>,
) -> Result<(Vec<Product>, Vec<String>), Outcome> {
    let wishes = {
        let mut books = tools.books.lock().unwrap_or_else(PoisonError::into_inner);
        books.wishes(order.id)
    };
    let wishes = wishes.map_err(|error| {
        Outcome::Aborted(format!("cannot read which products are wanted: {}", chain(&error)))
    })?;
    let go_on = || match leash.is_canceled() {
        true => Err(io::ErrorKind::Interrupted.into()),
        false => Ok(()),
    };
    let mut notes = Vec::new();
    let found = products::collect(&tools.store, outputs, &wishes, &go_on, |note| {
        notes.push(note.to_owned());
    });
    Ok((found.map_err(|_| Outcome::Interrupted)?, notes))
}

/// What came of the build; `None` when the daemon says that it is there.
fn judge(
    verdict: Result<Verdict, Cut<Refused>>,
    order: &Order,
    log: &mut Log,
    limit: u64,
    lost: &dyn Fn(Error) -> Outcome,
) -> Result<Option<Outcome>, Outcome> {
    let outcome = match verdict {
        Ok(Verdict::Done) => return Ok(None),
        Ok(Verdict::Failed(why)) => Outcome::Failed(why),
        Ok(Verdict::DependencyFailed(culprit, why)) => {
            Outcome::DependencyFailed(follow::dependency(culprit.as_deref(), &why))
        }
        Ok(Verdict::TimedOut) => Outcome::Failed(follow::timed_out(order.timeout)),
        Ok(Verdict::Silent) => Outcome::Failed(follow::silent(order.max_silent_time)),
        Ok(Verdict::Broken(why)) => Outcome::Aborted(why),
        Err(Cut::Connection(error)) => lost(error),
        Err(Cut::Late) => Outcome::Aborted(follow::LATE.to_owned()),
        Err(Cut::Sink(Refused::TooLarge)) => {
            Outcome::Failed(format!("log larger than {limit} bytes"))
        }
        Err(Cut::Sink(Refused::Io(error))) => return Err(aborted("write the log", &error)),
    };
    if let Outcome::Failed(why) | Outcome::DependencyFailed(why) | Outcome::Aborted(why) = &outcome
    {
        log.note(why).map_err(|error| aborted("write the log", &error))?;
    }
    Ok(Some(outcome))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::actor::Spawner;
    use crate::model::evaluation::EvaluationId;
    use crate::model::spec::JobsetName;
    use crate::store::{Output, Sink};

    pub(super) fn tools(place: &Path, spawner: &Spawner) -> Tools {
        let database = Database::open(&place.join("gorget.db"), spawner).unwrap();
        Tools {
            dialect: Dialect::Guix,
            address: Address::Unix(place.join("socket")),
            fallback: false,
            max_log_size: 1 << 20,
            roots: place.join("gcroots"),
            store: "/gnu/store".to_owned(),
            hook: Hook::Unknown,
            idle: Idle::spawn(spawner, Dialect::Guix).unwrap(),
            fetch: Duration::from_millis(100),
            books: Mutex::new(Books { database, reader: None, wishes: Wishes::default() }),
        }
    }

    #[test]
    fn refused_options_cost_a_try_and_a_daemon_that_is_away_does_not() {
        let place = tempfile::tempdir().unwrap();
        let (spawner, _threads) = Spawner::new();
        let tools = tools(place.path(), &spawner);
        let away = |_| Outcome::Interrupted;
        let lost = |error: Error| Outcome::Aborted(error.to_string());
        let leash = Leash::default();
        let connect = || connect(&tools, &Options::default(), &leash, &away, &lost).map(drop);
        assert_eq!(connect().unwrap_err(), Outcome::Interrupted);
        let listener = UnixListener::bind(place.path().join("socket")).unwrap();
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut client, _) = listener.accept().unwrap();
                let greeting = [0x6478_696f, 0x164, 0x616c_7473];
                let refusal = [0x6378_7470, 2, u64::from_le_bytes(*b"no\0\0\0\0\0\0"), 1];
                for word in greeting.into_iter().chain(refusal) {
                    client.write_all(&u64::to_le_bytes(word)).unwrap();
                }
                client.read_to_end(&mut Vec::new()).unwrap();
            });
            let outcome = connect().unwrap_err();
            leash.cancel(); // It holds the connection, too.
            outcome
        });
        assert_eq!(outcome, Outcome::Aborted("the daemon refused: no".to_owned()));
    }

    /// Of a derivation that is there.
    pub(super) fn order(place: &Path) -> Order {
        let drv = place.join("t-x.drv");
        let text =
            r#"Derive([("out","/gnu/store/o-x","","")],[],[],"x86_64-linux","/bin/sh",[],[])"#;
        std::fs::write(&drv, text).unwrap();
        Order {
            id: BuildId(1),
            attempt: 1,
            jobset: JobsetName::new("guix").unwrap(),
            evaluation: EvaluationId(1),
            job: "x".to_owned(),
            system: "x86_64-linux".to_owned(),
            derivation: drv.to_str().unwrap().to_owned(),
            priority: 9,
            timeout: 0,
            max_silent_time: 0,
            process: None,
            checkouts: Vec::new(),
            needs: Vec::new(),
            log: place.join("1.gz"),
            worker: None,
        }
    }

    #[test]
    fn a_connection_that_broke_while_it_rested_costs_no_try() {
        let place = tempfile::tempdir().unwrap();
        let (spawner, _threads) = Spawner::new();
        let tools = tools(place.path(), &spawner);
        let listener = UnixListener::bind(place.path().join("socket")).unwrap();
        let order = order(place.path());
        // Accepts options, and goes when it is asked to build.
        let serve = || {
            let (mut client, _) = listener.accept().unwrap();
            for word in [0x6478_696f, 0x164, 0x616c_7473, 0x616c_7473] {
                client.write_all(&u64::to_le_bytes(word)).unwrap();
            }
            let mut asked = Vec::new();
            while !asked.windows(7).any(|part| part == b"t-x.drv") {
                let mut some = [0; 64];
                let count = client.read(&mut some).unwrap();
                asked.extend_from_slice(&some[..count]);
            }
        };
        let run = || run(&tools, &order, &Leash::default(), &Reach::unwatched());
        std::thread::scope(|scope| {
            scope.spawn(serve);
            let line = Line::connect(&tools.address, &|| true).unwrap();
            let mut connection = Connection::greet(line, Dialect::Guix).unwrap();
            connection.set_options(&Options::default()).unwrap();
            let age = Age::new(clock::now());
            tools.idle.put_back(Held { connection, age, options: Options::default() });
            assert_eq!(run(), Outcome::Interrupted);
        });
        std::thread::scope(|scope| {
            scope.spawn(serve);
            let outcome = run();
            assert!(matches!(outcome, Outcome::Aborted(_)), "{outcome:?}");
        });
    }

    #[test]
    fn what_the_daemon_says_counts() {
        let place = tempfile::tempdir().unwrap();
        let mut log = Log::create(&place.path().join("1.gz"), 100).unwrap();
        let mut follower = Follower::new("/nix/store/t-top.drv", &mut log);
        follower.output(Output::Prose(&[b'x'; 60])).unwrap();
        let more = follower.output(Output::Prose(&[b'x'; 60]));
        assert!(matches!(more, Err(Refused::TooLarge)));
        log.note("too much").unwrap();
    }
}
