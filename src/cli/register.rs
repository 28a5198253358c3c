//! `register`: its options, and the daemon's configuration they make.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use super::directories::{self, Surroundings, Told};
use super::given::Given;
use super::print;
use super::usage::Usage;
use crate::daemon::{self, Backends, Config, Mastodon, Parameters};
use crate::spec;
use crate::spec::scheme::Guile;
use crate::sys::process::User;
use crate::web;

/// Time between polls: as long as people can wait for a result they did not trigger.
const INTERVAL: Duration = Duration::from_secs(300);
/// Fetches at once: they wait for the network, not for us.
const MAX_FETCHES: usize = 4;
/// A server that says nothing for this long has forgotten us.
pub(super) const FETCH_TIMEOUT: Duration = Duration::from_secs(60);
/// Evaluations at once, however many CPUs there are: a Guix evaluation takes gigabytes.
const MOST_EVALUATIONS: usize = 4;
/// Clients at once: people and scripts of one installation.
const MAX_CONNECTIONS: usize = 64;
/// A log that is longer is read by nobody, and a runaway build must not fill the disk.
const MAX_LOG_SIZE: u64 = 1 << 30;
/// Free space below which a build would soon fail for want of it.
const MINIMUM_DISK_SPACE: u64 = 1 << 30;
const DAY: u64 = 86_400;
/// How long products are kept, as Cuirass keeps GC roots.
const TTL: Duration = Duration::from_secs(30 * DAY);
/// How long logs are kept, as Cuirass keeps them.
const LOG_EXPIRY: Duration = Duration::from_secs(180 * DAY);

/// What the command line says; what it does not say is `None`.
#[derive(Debug)]
pub(super) struct Options {
    specifications: Vec<PathBuf>,
    told: Told,
    interval: Option<Duration>,
    one_shot: bool,
    max_fetches: Option<usize>,
    fetch_timeout: Option<Duration>,
    max_evaluations: Option<usize>,
    evaluation_memory: Option<u64>,
    max_builds: Option<usize>,
    max_connections: Option<usize>,
    max_log_size: Option<u64>,
    minimum_disk_space: Option<u64>,
    job_user: Option<String>,
    socket_group: Option<String>,
    backends: Option<Backends>,
    build_remote: bool,
    guix: Option<Vec<String>>,
    fallback: bool,
    ttl: Option<Duration>,
    log_expiry: Option<Duration>,
    build_expiry: Option<Duration>,
    history_expiry: Option<Duration>,
    /// `HOST:PORT`.
    web: Option<String>,
    parameters: Option<PathBuf>,
}

impl Options {
    pub(super) fn read(given: &mut Given) -> Result<Self, Usage> {
        if given.value("database").is_some_and(is_postgresql) {
            return Err(Usage::PostgreSql);
        }
        let specifications: Vec<PathBuf> = given.all("specifications").map(Into::into).collect();
        for file in &specifications {
            if file.as_os_str().is_empty() {
                return Err(Usage::bad("--specifications", "", "a file name"));
            }
        }
        let one_shot = given.switch("one-shot");
        if one_shot && specifications.is_empty() {
            return Err(Usage::Needs("--one-shot", "--specifications"));
        }
        let build_remote = given.switch("build-remote");
        if build_remote && given.text("builder")? == Some("process") {
            return Err(Usage::Both("--build-remote", "--builder=process"));
        }
        let positive = |name, size: Option<u64>| match size {
            Some(0) => Err(Usage::bad(name, "0", "a size of at least one byte")),
            size => Ok(size),
        };
        let threads = given.count("threads")?;
        let max_evaluations = given.count("max-evaluations")?;
        if threads.is_some() && max_evaluations.is_some() {
            return Err(Usage::Both("--threads", "--max-evaluations"));
        }
        Ok(Self {
            specifications,
            told: Told {
                state: given.path("state-directory")?,
                run: given.path("run-directory")?,
                cache: given.path("cache-directory")?,
                log: given.path("log-directory")?,
                database: given.path("database")?,
                socket: given.path("socket")?,
            },
            interval: given.seconds("interval")?,
            one_shot,
            max_fetches: given.count("max-fetches")?,
            fetch_timeout: given.seconds("fetch-timeout")?,
            max_evaluations: max_evaluations.or(threads),
            evaluation_memory: positive(
                "--evaluation-memory",
                given.size_or_off("evaluation-memory")?,
            )?,
            max_builds: given.count("max-builds")?,
            max_connections: given.count("max-connections")?,
            max_log_size: positive("--max-log-size", given.size("max-log-size")?)?,
            minimum_disk_space: given.size("minimum-disk-space")?,
            job_user: given.text("job-user")?.map(str::to_owned),
            socket_group: given.text("socket-group")?.map(str::to_owned),
            backends: given.read("builder", "auto, process, guix or nix", |word| match word {
                "auto" => Some(Backends::Auto),
                "process" => Some(Backends::Process),
                "guix" => Some(Backends::Guix),
                "nix" => Some(Backends::Nix),
                _ => None,
            })?,
            guix: given.command("guix")?,
            build_remote,
            fallback: given.switch("fallback"),
            ttl: given.duration("ttl")?,
            log_expiry: given.duration("log-expiry")?,
            build_expiry: given.duration_or_off("build-expiry")?,
            history_expiry: given.duration_or_off("history-expiry")?,
            web: given.read("web", "HOST:PORT", super::web::place)?,
            parameters: given.path("parameters")?,
        })
    }

    /// The whole configuration. Looks up users and groups, reads the parameters file.
    fn config(self, here: &Surroundings, cpus: usize) -> Result<Config, Failure> {
        let Told { state, run, cache, log, database, socket } = self.told;
        let absolute = |path: Option<PathBuf>| path.map(|path| absolute(&path)).transpose();
        let told = Told {
            state: absolute(state)?,
            run: absolute(run)?,
            cache: absolute(cache)?,
            log: absolute(log)?,
            database: absolute(database)?,
            socket: absolute(socket)?,
        };
        let places = directories::choose(told, here);
        let guix = self.guix.unwrap_or_else(super::guix);
        let read = |file: &Path| spec::parameters::read(file, &Guile::new(guix.clone()));
        let said = self.parameters.as_deref().map(read).transpose();
        let said = said.map_err(|error| Failure::Other(error.to_string()))?.unwrap_or_default();
        let web = self.web.map(|listen| web::Config {
            listen,
            database: places.database.clone(),
            socket: places.socket.clone(),
            log_directory: places.log.clone(),
            products_directory: places.state.join("products"),
            parameters: said.clone(),
        });
        let remote = self.build_remote.then(|| places.run.join("remote"));
        let specifications = self.specifications.into_iter().map(|file| absolute(Some(file)));
        Ok(Config {
            specifications: specifications
                .filter_map(Result::transpose)
                .collect::<Result<_, _>>()?,
            database: places.database,
            state_directory: places.state,
            run_directory: places.run,
            cache_directory: places.cache,
            log_directory: places.log,
            socket: places.socket,
            interval: self.interval.unwrap_or(INTERVAL),
            one_shot: self.one_shot,
            max_fetches: self.max_fetches.unwrap_or(MAX_FETCHES),
            fetch_timeout: self.fetch_timeout.unwrap_or(FETCH_TIMEOUT),
            max_evaluations: self.max_evaluations.unwrap_or(cpus.min(MOST_EVALUATIONS)),
            evaluation_memory: self.evaluation_memory,
            max_builds: self.max_builds.unwrap_or(cpus),
            max_connections: self.max_connections.unwrap_or(MAX_CONNECTIONS),
            max_log_size: self.max_log_size.unwrap_or(MAX_LOG_SIZE),
            minimum_disk_space: self.minimum_disk_space.unwrap_or(MINIMUM_DISK_SPACE),
            job_user: self.job_user.as_deref().map(|name| user(name, here)).transpose()?,
            socket_group: self.socket_group.as_deref().map(group).transpose()?,
            backends: self.backends.unwrap_or(Backends::Auto),
            remote,
            fallback: self.fallback,
            ttl: self.ttl.unwrap_or(TTL),
            log_expiry: self.log_expiry.unwrap_or(LOG_EXPIRY),
            build_expiry: self.build_expiry,
            history_expiry: self.history_expiry,
            parameters: parameters(said),
            web,
            guix,
        })
    }
}

/// Why there is no configuration.
#[derive(Debug)]
enum Failure {
    Usage(Usage),
    /// What was read, or looked up, says no.
    Other(String),
}

impl From<Usage> for Failure {
    fn from(usage: Usage) -> Self {
        Self::Usage(usage)
    }
}

/// Whether a database is one of Cuirass's: libpq's URIs and `key=value` strings.
fn is_postgresql(value: &OsStr) -> bool {
    let text = value.to_string_lossy();
    let keys = [
        "dbname", "host", "hostaddr", "port", "user", "password", "service", "sslmode", "passfile",
    ];
    text.starts_with("postgresql://")
        || text.starts_with("postgres://")
        || text
            .split_whitespace()
            .any(|word| word.split_once('=').is_some_and(|(key, _)| keys.contains(&key)))
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| {
        Failure::Other(format!("cannot make {} absolute: {error}", path.display()))
    })
}

fn user(name: &str, here: &Surroundings) -> Result<User, Failure> {
    let found = User::find(name)
        .map_err(|error| Failure::Other(format!("--job-user: cannot look up {name:?}: {error}")))?;
    let user = found.ok_or_else(|| Usage::bad("--job-user", name, "an existing user"))?;
    if !here.root && user.uid != nix::unistd::geteuid().as_raw() {
        let message = format!("--job-user: only root can run jobs as {name:?}");
        return Err(Failure::Other(message));
    }
    Ok(user)
}

fn group(name: &str) -> Result<u32, Failure> {
    let found = nix::unistd::Group::from_name(name).map_err(|error| {
        Failure::Other(format!("--socket-group: cannot look up {name:?}: {error}"))
    })?;
    Ok(found.ok_or_else(|| Usage::bad("--socket-group", name, "an existing group"))?.gid.as_raw())
}

/// What the daemon itself must know of the parameters.
fn parameters(said: spec::parameters::Parameters) -> Parameters {
    let mastodon = said.mastodon.map(|account| Mastodon { url: account.url, token: account.token });
    Parameters { url: said.url, mail_from: said.mail_from, mastodon }
}

pub(super) fn run(options: Options) -> ExitCode {
    // One, when the kernel does not say.
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    match options.config(&Surroundings::here(), cpus) {
        Ok(config) => daemon::run(&config),
        Err(Failure::Usage(usage)) => {
            print::err(&usage.to_string());
            ExitCode::from(print::USAGE)
        }
        Err(Failure::Other(message)) => {
            print::err(&message);
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::parse::{Action, parse};

    fn options(line: &str) -> Result<Options, String> {
        let words = shell_words::split(line).unwrap().into_iter().map(Into::into);
        match parse(std::iter::once("register".into()).chain(words)) {
            Ok(Action::Register(options)) => Ok(*options),
            Ok(other) => panic!("{other:?}"),
            Err(usage) => Err(usage.to_string()),
        }
    }

    fn config(line: &str) -> Config {
        let here = Surroundings { root: true, variables: Vec::new() };
        options(line).unwrap().config(&here, 8).unwrap()
    }

    #[test]
    fn defaults_are_those_of_the_manual() {
        let config = config("");
        assert_eq!(config.database, Path::new("/var/lib/gorget/gorget.db"));
        assert_eq!(config.interval.as_secs(), 300);
        assert_eq!((config.max_fetches, config.max_evaluations, config.max_builds), (4, 4, 8));
        assert_eq!((config.fetch_timeout.as_secs(), config.max_connections), (60, 64));
        assert_eq!((config.max_log_size, config.minimum_disk_space), (1 << 30, 1 << 30));
        assert_eq!((config.ttl.as_secs(), config.log_expiry.as_secs()), (2_592_000, 15_552_000));
        assert_eq!((config.build_expiry, config.history_expiry), (None, None));
        assert_eq!((config.evaluation_memory, config.backends), (None, Backends::Auto));
        assert_eq!(config.guix, ["guix"]);
        assert!(!config.one_shot && config.job_user.is_none() && config.socket_group.is_none());
    }

    #[test]
    fn every_option_has_its_effect() {
        let config = config(
            "-S /a.json --specifications=/b.json -D /d/my.db --state-directory /s --run-directory /r \
             --cache-directory /c --log-directory /l --socket /x --interval 60 --one-shot --max-fetches 1 \
             --fetch-timeout 5 --max-evaluations 2 --evaluation-memory 2GiB --max-builds 3 \
             --max-connections 9 --max-log-size 512M --minimum-disk-space 0 --job-user root \
             --socket-group root --builder nix --guix '/x/guix -q' --use-substitutes --ttl 1d --log-expiry 2w \
             --build-expiry 1h --history-expiry 1m",
        );
        assert_eq!(config.specifications, [Path::new("/a.json"), Path::new("/b.json")]);
        assert_eq!(config.database, Path::new("/d/my.db"));
        assert_eq!(config.state_directory, Path::new("/s"));
        assert_eq!(config.run_directory, Path::new("/r"));
        assert_eq!(config.cache_directory, Path::new("/c"));
        assert_eq!(config.log_directory, Path::new("/l"));
        assert_eq!(config.socket, Path::new("/x"));
        assert_eq!((config.interval.as_secs(), config.one_shot), (60, true));
        assert_eq!((config.max_fetches, config.max_evaluations, config.max_builds), (1, 2, 3));
        assert_eq!((config.fetch_timeout.as_secs(), config.max_connections), (5, 9));
        assert_eq!((config.max_log_size, config.minimum_disk_space), (512 << 20, 0));
        assert_eq!(config.evaluation_memory, Some(2 << 30));
        assert_eq!((config.job_user.unwrap().uid, config.socket_group), (0, Some(0)));
        assert_eq!(config.backends, Backends::Nix);
        for word in crate::cli::table::BACKENDS {
            assert!(options(&format!("--builder {word}")).is_ok(), "{word}");
        }
        assert_eq!(config.guix, ["/x/guix", "-q"]);
        assert_eq!((config.ttl.as_secs(), config.log_expiry.as_secs()), (86_400, 1_209_600));
        assert_eq!(config.build_expiry.unwrap().as_secs(), 3600);
        assert_eq!(config.history_expiry.unwrap().as_secs(), 2_592_000);
        assert_eq!(self::config("--threads 7 -I 5 -I 6").max_evaluations, 7);
        // The manual's "Default: off" is a value.
        let config = self::config(
            "--evaluation-memory=off --build-expiry=1h --build-expiry=off --history-expiry=off",
        );
        assert_eq!((config.evaluation_memory, config.build_expiry), (None, None));
        assert_eq!(config.history_expiry, None);
    }

    #[test]
    fn mistakes_name_the_option() {
        for (line, message) in [
            (
                "-D 'dbname=cuirass host=/x password=hunter2'",
                "--database: expected a file name, found what",
            ),
            ("-D postgresql://u:hunter2@h/x", "--database: expected a file name, found what"),
            ("--build-remote --builder=process", "--build-remote and --builder=process"),
            ("--guix ''", "--guix: expected a command, found \"\""),
            ("--guix \"guix '\"", "--guix: expected a command, found \"guix '\""),
            ("--max-builds 0", "--max-builds: expected a number from 1 to 4096, found \"0\""),
            ("--interval 0", "--interval: expected a number of seconds"),
            ("--ttl 3y", "--ttl: expected a duration of at least 1 s"),
            ("--max-log-size 0", "--max-log-size: expected a size of at least one byte"),
            ("--evaluation-memory big", "--evaluation-memory: expected off, or a size in bytes"),
            ("--builder make", "--builder: expected auto, process, guix or nix, found \"make\""),
            (
                "--threads 1 --max-evaluations 1",
                "--threads and --max-evaluations exclude each other",
            ),
            ("--one-shot", "--one-shot needs --specifications"),
            (
                "--interval 5m",
                "--interval: expected a number of seconds, 1 or more, without a unit, found \"5m\"",
            ),
            ("--fetch-timeout 1min", "--fetch-timeout: expected a number of seconds"),
            ("-S ''", "--specifications: expected a file name, found \"\""),
            ("spec.json", "an argument too many: \"spec.json\""),
        ] {
            let found = options(line).unwrap_err();
            assert!(found.starts_with(message) && !found.contains("hunter2"), "{line}: {found}");
        }
    }

    #[test]
    fn users_and_groups_must_exist() {
        let here = Surroundings { root: true, variables: Vec::new() };
        for option in ["--job-user", "--socket-group"] {
            let failure =
                options(&format!("{option} no-such-name")).unwrap().config(&here, 1).unwrap_err();
            let Failure::Usage(usage) = failure else { panic!("{failure:?}") };
            assert!(usage.to_string().starts_with(option), "{usage}");
        }
    }
}
