//! `remote-server`: its options, and the configuration they make.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use super::directories::{self, Surroundings, Told};
use super::given::Given;
use super::print;
use super::usage::Usage;
use crate::remote::publish::{self, PRIVATE_KEY, PUBLIC_KEY};
use crate::remote::server::{self, Config};
use crate::sys::process::User;

/// Cuirass's.
const BACKEND_PORT: u16 = 5555;
const LOG_PORT: u16 = 5556;
const PUBLISH_PORT: u16 = 5557;
/// How long logs are kept, as Cuirass keeps them.
const LOG_EXPIRY: Duration = Duration::from_secs(180 * 86_400);
/// A log that is longer is read by nobody.
const MAX_LOG_SIZE: u64 = 1 << 30;

/// What the command line of `remote-server` says; what it does not say is `None`.
#[derive(Debug)]
pub(super) struct Options {
    told: Told,
    backend_port: Option<u16>,
    log_port: Option<u16>,
    publish_port: Option<u16>,
    no_publish: bool,
    no_announce: bool,
    cache: Option<PathBuf>,
    log_expiry: Option<Duration>,
    max_log_size: Option<u64>,
    user: Option<String>,
    socket_group: Option<String>,
    public_key: Option<PathBuf>,
    private_key: Option<PathBuf>,
    guix: Option<Vec<String>>,
    /// Options that do nothing here.
    without_effect: Vec<&'static str>,
}

impl Options {
    pub(super) fn read(given: &mut Given) -> Result<Self, Usage> {
        let port = |name| given.read(name, "a port, from 0 to 65535", |text| text.parse().ok());
        let ignored = ["database", "parameters", "ttl", "trigger-substitute-url"];
        let max_log_size = given.size("max-log-size")?;
        if max_log_size == Some(0) {
            return Err(Usage::bad("--max-log-size", "0", "a size of at least one byte"));
        }
        Ok(Self {
            told: Told {
                state: given.path("state-directory")?,
                run: given.path("run-directory")?,
                ..Told::default()
            },
            backend_port: port("backend-port")?,
            log_port: port("log-port")?,
            publish_port: given.read("publish-port", "a port, from 1 to 65535", |text| {
                text.parse().ok().filter(|port| *port > 0)
            })?,
            no_publish: given.switch("no-publish"),
            no_announce: given.switch("no-announce"),
            cache: given.path("cache")?,
            log_expiry: given.duration("log-expiry")?,
            max_log_size,
            user: given.text("user")?.map(str::to_owned),
            socket_group: given.text("socket-group")?.map(str::to_owned),
            public_key: given.path("public-key")?,
            private_key: given.path("private-key")?,
            guix: given.command("guix")?,
            without_effect: ignored
                .into_iter()
                .filter(|name| given.value(name).is_some())
                .collect(),
        })
    }

    fn config(self, here: &Surroundings) -> Result<Config, Failure> {
        let Told { state, run, .. } = self.told;
        let told = Told { state: absolute(state)?, run: absolute(run)?, ..Told::default() };
        let places = directories::choose(told, here);
        let publish = publish::Config {
            guix: self.guix.unwrap_or_else(super::guix),
            port: self.publish_port.unwrap_or(PUBLISH_PORT),
            public_key: absolute(self.public_key)?.unwrap_or_else(|| PUBLIC_KEY.into()),
            private_key: absolute(self.private_key)?.unwrap_or_else(|| PRIVATE_KEY.into()),
        };
        Ok(Config {
            run_directory: places.run,
            cache: absolute(self.cache)?.unwrap_or_else(|| places.cache.join("remote")),
            backend_port: self.backend_port.unwrap_or(BACKEND_PORT),
            log_port: self.log_port.unwrap_or(LOG_PORT),
            publish: (!self.no_publish).then_some(publish),
            announce: !self.no_announce,
            log_expiry: self.log_expiry.unwrap_or(LOG_EXPIRY),
            max_log_size: self.max_log_size.unwrap_or(MAX_LOG_SIZE),
            user: self.user.as_deref().map(|name| user(name, here)).transpose()?,
            socket_group: self.socket_group.as_deref().map(group).transpose()?,
        })
    }
}

/// Why there is no configuration.
#[derive(Debug)]
enum Failure {
    Usage(Usage),
    /// What was looked up says no.
    Other(String),
}

impl From<Usage> for Failure {
    fn from(usage: Usage) -> Self {
        Self::Usage(usage)
    }
}

fn absolute(path: Option<PathBuf>) -> Result<Option<PathBuf>, Failure> {
    let absolute = |path: PathBuf| {
        std::path::absolute(&path).map_err(|error| {
            Failure::Other(format!("cannot make {} absolute: {error}", path.display()))
        })
    };
    path.map(absolute).transpose()
}

fn user(name: &str, here: &Surroundings) -> Result<User, Failure> {
    let found = User::find(name)
        .map_err(|error| Failure::Other(format!("--user: cannot look up {name:?}: {error}")))?;
    let user = found.ok_or_else(|| Usage::bad("--user", name, "an existing user"))?;
    if !here.root && user.uid != nix::unistd::geteuid().as_raw() {
        return Err(Failure::Other(format!("--user: only root can become {name:?}")));
    }
    Ok(user)
}

fn group(name: &str) -> Result<u32, Failure> {
    let found = nix::unistd::Group::from_name(name).map_err(|error| {
        Failure::Other(format!("--socket-group: cannot look up {name:?}: {error}"))
    })?;
    let found = found.ok_or_else(|| Usage::bad("--socket-group", name, "an existing group"))?;
    Ok(found.gid.as_raw())
}

pub(super) fn run(options: Options) -> ExitCode {
    let ignored = options.without_effect.clone();
    match options.config(&Surroundings::here()) {
        Ok(config) => {
            for name in ignored {
                log::warn!(target: "server", "--{name} has no effect here");
            }
            server::run(&config)
        }
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
