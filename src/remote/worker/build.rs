//! One build, by the store daemon of this machine. Runs on a thread of the pool and blocks as it likes.
//!
//! Invariant: success is said only when the daemon says that all outputs are valid, and they have their roots.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::core::{Ended, Server};
use super::log_stream::Log;
use super::room::Limits;
use crate::actor::leash::Leash;
use crate::model::error::chain;
use crate::proto::remote::{Build, Fault};
use crate::store::follow::{self, Follower};
use crate::store::{
    Address, Closer, Connection, Cut, Dialect, Error, Hook, Line, Options, Verdict, roots,
};

/// How long a derivation may take to come, with all that it refers to: some thousand small files.
const FETCH: Duration = Duration::from_secs(600);

/// Guix's own.
const SUBSTITUTE_URLS: [&str; 2] = ["https://bordeaux.guix.gnu.org", "https://ci.guix.gnu.org"];

/// For answers after a build, as elsewhere.
const ANSWER: Duration = Duration::from_secs(60);

/// A store of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Store {
    pub(crate) dialect: Dialect,
    pub(crate) address: Address,
    pub(crate) directory: String,
}

/// Where the links are that keep what was built, below our directory.
pub(super) fn roots_directory(directory: &Path) -> PathBuf {
    directory.join("gcroots")
}

/// What all builds share.
pub(super) struct Tools {
    pub(super) stores: Vec<Store>,
    pub(super) limits: Limits,
    hooks: Vec<Hook>,
    roots: PathBuf,
    /// Where logs go; the port is told by the server.
    server: IpAddr,
    cores: u64,
    substitute_urls: Option<Vec<String>>,
}

impl Tools {
    /// For one builder that takes all processors, and a server of this machine; `directory` is ours.
    pub(super) fn prepare(stores: Vec<Store>, limits: Limits, directory: PathBuf) -> Self {
        let hooks = stores.iter().map(|store| match store.address {
            Address::Unix(_) => Hook::prepare(store.dialect, &directory),
            Address::Tcp(..) | Address::Ssh(_) => Hook::Unknown,
        });
        Self {
            hooks: hooks.collect(),
            stores,
            limits,
            roots: roots_directory(&directory),
            server: IpAddr::from([127, 0, 0, 1]),
            cores: 0,
            substitute_urls: None,
        }
    }

    /// For builders that share the processors, and a server.
    pub(super) fn sharing(
        self,
        cores: u64,
        substitute_urls: Option<Vec<String>>,
        server: IpAddr,
    ) -> Self {
        Self { cores, substitute_urls, server, ..self }
    }

    fn store(&self, derivation: &str) -> Option<(&Store, &Hook)> {
        let belongs = |(store, _): &(&Store, &Hook)| {
            let name = derivation.strip_prefix(store.directory.trim_end_matches('/'));
            let name = name.and_then(|name| name.strip_prefix('/'));
            name.is_some_and(|name| !name.contains('/') && name.ends_with(".drv"))
        };
        self.stores.iter().zip(&self.hooks).find(belongs)
    }

    /// The server's own substitutes come first, as it has the derivation.
    fn options(&self, build: &Build, server: &Server, dialect: Dialect) -> Options {
        let seconds = |seconds: i64| u64::try_from(seconds).unwrap_or(0);
        let published = server.publish_port.map(|port| match self.server {
            IpAddr::V4(address) => format!("http://{address}:{port}"),
            IpAddr::V6(address) => format!("http://[{address}]:{port}"),
        });
        let others = match (&self.substitute_urls, dialect) {
            (Some(urls), _) => urls.clone(),
            (None, Dialect::Guix) => SUBSTITUTE_URLS.map(str::to_owned).into(),
            (None, Dialect::Nix) => Vec::new(),
        };
        let urls: Vec<_> = published.into_iter().chain(others).collect();
        Options {
            fallback: true,
            timeout: seconds(build.timeout),
            max_silent_time: seconds(build.max_silent_time),
            keep_going: true,
            cores: self.cores,
            substitute_urls: (!urls.is_empty()).then_some(urls),
        }
    }
}

/// Runs one build to its end.
pub(super) fn run(tools: &Tools, build: &Build, server: &Server, leash: &Leash<Closer>) -> Ended {
    let place = (tools.server, server.log_port).into();
    let mut log = Log::open(place, &build.derivation, &|| !leash.is_canceled());
    let ended = match attempt(tools, build, server, leash, &mut log) {
        // Whatever broke, we broke it.
        _ if leash.is_canceled() => Ended::Interrupted,
        Ok(()) => Ended::Succeeded,
        Err(Trouble(fault, why)) => Ended::Failed(fault, why),
    };
    match &ended {
        Ended::Succeeded => {}
        Ended::Failed(_, why) => log.note(why),
        Ended::Interrupted => log.note("given up"),
    }
    log.finish();
    ended
}

/// Why a build did not succeed.
#[derive(Debug, PartialEq, Eq)]
struct Trouble(Fault, String);

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self(Fault::Aborted, chain(&error))
    }
}

fn aborted(doing: &str, error: &io::Error) -> Trouble {
    Trouble(Fault::Aborted, format!("cannot {doing}: {error}"))
}

fn attempt(
    tools: &Tools,
    build: &Build,
    server: &Server,
    leash: &Leash<Closer>,
    log: &mut Log,
) -> Result<(), Trouble> {
    let derivation = &*build.derivation;
    let (store, hook) = tools.store(derivation).ok_or_else(|| {
        let stores: Vec<_> = tools.stores.iter().map(|store| &*store.directory).collect();
        let why = format!("{derivation}: expected a derivation in {}", stores.join(" or "));
        Trouble(Fault::Aborted, why)
    })?;
    let options = tools.options(build, server, store.dialect);
    let mut connection = connect(store, hook, &options, leash)?;
    if !connection.is_valid(derivation)? {
        log.note(&format!("fetching {}", follow::short(derivation)));
        connection.be_patient(FETCH).map_err(|error| aborted("wait for the daemon", &error))?;
        connection.ensure(derivation).map_err(|error| {
            let why = chain(&error);
            let why = match error {
                Error::Refused(_) => format!("{why} ({})", store.dialect.trust()),
                _ => why,
            };
            Trouble(Fault::Aborted, format!("cannot fetch {derivation}: {why}"))
        })?;
        connection.be_patient(ANSWER).map_err(|error| aborted("wait for the daemon", &error))?;
    }
    let mut follower = Follower::new(derivation, log);
    let silence = follow::patience(options.max_silent_time);
    let verdict = connection.build(derivation, silence, &mut follower);
    let worked = follower.worked;
    judge(verdict, build)?;
    let outputs = connection.outputs(derivation)?;
    let paths: Vec<&str> = outputs.values().map(String::as_str).collect();
    let valid = connection.valid(&paths)?;
    if let Some(missing) = paths.iter().find(|path| !valid.iter().any(|valid| valid == *path)) {
        let why = format!("the daemon said that {missing} was built, and it is not in the store");
        return Err(Trouble(Fault::Aborted, why));
    }
    for path in &paths {
        roots::keep(&mut connection, &tools.roots, path).map_err(|trouble| match trouble {
            roots::Trouble::Link(error) => aborted("keep what was built", &error),
            roots::Trouble::Daemon(error) => Trouble::from(error),
        })?;
    }
    if !worked {
        log.note("already in the store");
    }
    Ok(())
}

/// A connection on the leash, with these options.
fn connect(
    store: &Store,
    hook: &Hook,
    options: &Options,
    leash: &Leash<Closer>,
) -> Result<Connection, Trouble> {
    let line = Line::connect(&store.address, &|| !leash.is_canceled())?;
    let closer = line.closer().map_err(|error| aborted("hold the connection", &error))?;
    if !leash.take(closer) {
        return Err(Trouble(Fault::Canceled, "given up".to_owned()));
    }
    let mut connection = Connection::greet(line, store.dialect)?;
    connection.build_here(hook);
    connection.set_options(options)?;
    Ok(connection)
}

/// What came of the build, as the daemon tells; the log takes everything.
fn judge(
    verdict: Result<Verdict, Cut<std::convert::Infallible>>,
    build: &Build,
) -> Result<(), Trouble> {
    let (fault, why) = match verdict {
        Ok(Verdict::Done) => return Ok(()),
        Ok(Verdict::Failed(why)) => (Fault::Failed, why),
        Ok(Verdict::DependencyFailed(culprit, why)) => {
            (Fault::Dependency, follow::dependency(culprit.as_deref(), &why))
        }
        Ok(Verdict::TimedOut) => (Fault::TimedOut, follow::timed_out(build.timeout)),
        Ok(Verdict::Silent) => (Fault::Silent, follow::silent(build.max_silent_time)),
        Ok(Verdict::Broken(why)) => (Fault::Aborted, why),
        Err(Cut::Connection(error)) => return Err(error.into()),
        Err(Cut::Late) => (Fault::Aborted, follow::LATE.to_owned()),
    };
    Err(Trouble(fault, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools() -> Tools {
        let store = |dialect, directory: &str| Store {
            dialect,
            address: Address::Tcp("localhost".to_owned(), 1),
            directory: directory.to_owned(),
        };
        let stores = vec![store(Dialect::Guix, "/gnu/store"), store(Dialect::Nix, "/nix/store/")];
        let limits = Limits { minimum_disk_space: 0, maximum_load: None };
        Tools::prepare(stores, limits, "/none".into())
    }

    fn build(timeout: i64) -> Build {
        Build {
            derivation: "/gnu/store/x-y.drv".to_owned(),
            priority: 9,
            timeout,
            max_silent_time: 60,
            system: "x86_64-linux".to_owned(),
        }
    }

    #[test]
    fn derivations_belong_to_the_store_they_are_in() {
        let tools = tools();
        let dialect = |path| tools.store(path).map(|(store, _)| store.dialect);
        assert_eq!(dialect("/gnu/store/h-x.drv"), Some(Dialect::Guix));
        assert_eq!(dialect("/nix/store/h-x.drv"), Some(Dialect::Nix));
        for bad in
            ["/gnu/storex/h-x.drv", "/gnu/store/h-x", "/gnu/store/../h-x.drv", "/tmp/h-x.drv"]
        {
            assert_eq!(dialect(bad), None, "{bad}");
        }
    }

    #[test]
    fn substitutes_come_from_the_server_first() {
        let own = "https://ci.example".to_owned();
        let tools = tools().sharing(2, Some(vec![own.clone()]), IpAddr::from([10, 0, 0, 1]));
        let server = |publish_port| Server { log_port: 5556, publish_port };
        let options = tools.options(&build(9), &server(Some(5557)), Dialect::Guix);
        let both = vec!["http://10.0.0.1:5557".to_owned(), own.clone()];
        assert_eq!(options.substitute_urls, Some(both));
        assert_eq!((options.timeout, options.max_silent_time, options.cores), (9, 60, 2));
        assert!(options.fallback && options.keep_going);
        let options = tools.options(&build(0), &server(None), Dialect::Nix);
        assert_eq!(options.substitute_urls, Some(vec![own]));
        // Nothing said, the daemon's own hold.
        let tools = tools.sharing(2, Some(vec![]), "::1".parse().unwrap());
        let urls = |tools: &Tools, port, dialect| {
            tools.options(&build(0), &server(port), dialect).substitute_urls
        };
        assert_eq!(urls(&tools, None, Dialect::Guix), None);
        let published = vec!["http://[::1]:1".to_owned()];
        assert_eq!(urls(&tools, Some(1), Dialect::Guix), Some(published));
        // Those of Guix are for Guix.
        let tools = tools.sharing(2, None, "::1".parse().unwrap());
        assert_eq!(urls(&tools, None, Dialect::Guix).unwrap(), SUBSTITUTE_URLS);
        assert_eq!(urls(&tools, None, Dialect::Nix), None);
    }

    #[test]
    fn verdicts_become_faults() {
        let fault = |verdict| judge(Ok(verdict), &build(7)).unwrap_err();
        assert_eq!(judge(Ok(Verdict::Done), &build(7)), Ok(()));
        let trouble = |fault, why: &str| Trouble(fault, why.to_owned());
        assert_eq!(fault(Verdict::TimedOut), trouble(Fault::TimedOut, "timed out after 7 s"));
        assert_eq!(fault(Verdict::Silent), trouble(Fault::Silent, "silent for 60 s"));
        assert_eq!(fault(Verdict::Broken("x".to_owned())), trouble(Fault::Aborted, "x"));
        let dependency = Verdict::DependencyFailed(None, "exit status 1".to_owned());
        let why = "dependency one of its inputs failed: exit status 1";
        assert_eq!(fault(dependency), trouble(Fault::Dependency, why));
        let late = judge(Err(Cut::Late), &build(7)).unwrap_err();
        assert_eq!(late.0, Fault::Aborted);
    }
}
