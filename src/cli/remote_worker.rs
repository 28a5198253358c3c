//! `remote-worker`: its options, and the worker's configuration they make.

use std::path::PathBuf;
use std::process::ExitCode;

use super::directories::{self, Surroundings, Told};
use super::given::Given;
use super::print;
use super::usage::Usage;
use crate::remote::publish::{self, PRIVATE_KEY, PUBLIC_KEY};
use crate::remote::worker::{self, Config, Limits, Place};
use crate::spec;
use crate::sys::process::User;

/// Cuirass's.
const PUBLISH_PORT: u16 = 5558;
/// Cuirass's, in bytes.
const MINIMUM_DISK_SPACE: u64 = 5 << 30;

#[derive(Debug)]
pub(super) struct Options {
    workers: Option<usize>,
    server: Option<Place>,
    systems: Option<Vec<String>>,
    publish_port: Option<u16>,
    no_publish: bool,
    public_key: Option<PathBuf>,
    private_key: Option<PathBuf>,
    guix: Option<Vec<String>>,
    minimum_disk_space: Option<u64>,
    maximum_load: Option<f64>,
    substitute_urls: Option<Vec<String>>,
    user: Option<String>,
    state_directory: Option<PathBuf>,
    /// Options that do nothing.
    ignored: Vec<&'static str>,
}

impl Options {
    pub(super) fn read(given: &mut Given) -> Result<Self, Usage> {
        given.path("run-directory")?;
        let ignored = ["ttl", "database"].into_iter().filter(|name| given.value(name).is_some());
        let ignored = ignored.collect();
        Ok(Self {
            workers: given.count("workers")?,
            server: given.read("server", "ADDRESS:PORT", place)?,
            systems: given.read("systems", "systems, separated by commas", systems)?,
            publish_port: given.port("publish-port")?,
            no_publish: given.switch("no-publish"),
            public_key: given.path("public-key")?,
            private_key: given.path("private-key")?,
            guix: given.command("guix")?,
            minimum_disk_space: given.gibibytes("minimum-disk-space")?,
            maximum_load: given.read("maximum-load", "off, or a number above 0", load)?.flatten(),
            substitute_urls: given.read("substitute-urls", "URLs, separated by blanks", urls)?,
            user: given.text("user")?.map(str::to_owned),
            state_directory: given.path("state-directory")?,
            ignored,
        })
    }

    fn config(self, here: &Surroundings, cpus: usize) -> Result<Config, String> {
        let user = self.user.as_deref().map(user).transpose()?;
        let told = Told { state: self.state_directory, ..Told::default() };
        let publish_port = self.publish_port.unwrap_or(PUBLISH_PORT);
        let publish = (!self.no_publish).then(|| publish::Config {
            guix: self.guix.unwrap_or_else(super::guix),
            port: publish_port,
            public_key: self.public_key.unwrap_or_else(|| PUBLIC_KEY.into()),
            private_key: self.private_key.unwrap_or_else(|| PRIVATE_KEY.into()),
        });
        Ok(Config {
            workers: self.workers.unwrap_or(1),
            server: self.server.unwrap_or(Place::Announced),
            systems: self.systems.unwrap_or_else(|| vec![spec::host_system()]),
            publish_port,
            publish,
            limits: Limits {
                minimum_disk_space: self.minimum_disk_space.unwrap_or(MINIMUM_DISK_SPACE),
                maximum_load: self.maximum_load,
            },
            substitute_urls: self.substitute_urls,
            user,
            state_directory: directories::choose(told, here).state,
            cpus,
        })
    }
}

/// `ADDRESS:PORT`, where the address may be a host's name.
fn place(text: &str) -> Option<Place> {
    let (host, port) = super::web::place(text)?.rsplit_once(':').map(|(host, port)| {
        (host.trim_start_matches('[').trim_end_matches(']').to_owned(), port.parse().ok())
    })?;
    port.filter(|port| *port > 0).map(|port| Place::Named(host, port))
}

fn systems(text: &str) -> Option<Vec<String>> {
    let systems: Vec<_> = text.split(',').map(|system| system.trim().to_owned()).collect();
    let plain = |system: &String| {
        !system.is_empty() && system.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    systems.iter().all(plain).then_some(systems)
}

fn urls(text: &str) -> Option<Vec<String>> {
    let urls: Vec<_> = text.split_whitespace().map(str::to_owned).collect();
    urls.iter().all(|url| url.contains("://")).then_some(urls)
}

fn load(text: &str) -> Option<Option<f64>> {
    if text == "off" {
        return Some(None);
    }
    text.parse().ok().filter(|load: &f64| load.is_finite() && *load > 0.0).map(Some)
}

fn user(name: &str) -> Result<User, String> {
    match User::find(name) {
        Ok(Some(user)) => Ok(user),
        Ok(None) => Err(Usage::bad("--user", name, "an existing user").to_string()),
        Err(error) => Err(format!("--user: cannot look up {name:?}: {error}")),
    }
}

pub(super) fn run(options: Options) -> ExitCode {
    for name in &options.ignored {
        log::warn!(target: "worker", "--{name} has no effect");
    }
    // One, when the kernel does not say.
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    match options.config(&Surroundings::here(), cpus) {
        Ok(config) => worker::run(&config),
        Err(message) => {
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
        match parse(std::iter::once("remote-worker".into()).chain(words)) {
            Ok(Action::RemoteWorker(options)) => Ok(options),
            Ok(other) => panic!("{other:?}"),
            Err(usage) => Err(usage.to_string()),
        }
    }

    fn config(line: &str) -> Config {
        let here = Surroundings { root: true, variables: Vec::new() };
        options(line).unwrap().config(&here, 8).unwrap()
    }

    #[test]
    fn defaults_are_cuirasss() {
        let config = config("");
        assert_eq!(
            (config.workers, config.server, config.publish_port),
            (1, Place::Announced, 5558)
        );
        assert_eq!(config.limits, Limits { minimum_disk_space: 5 << 30, maximum_load: None });
        assert_eq!(config.substitute_urls, None);
        assert_eq!(config.systems, [spec::host_system()]);
        let publish = config.publish.unwrap();
        assert_eq!(publish.public_key, std::path::Path::new("/etc/guix/signing-key.pub"));
        assert_eq!((publish.guix, publish.port), (vec!["guix".to_owned()], 5558));
    }

    #[test]
    fn options_are_cuirasss() {
        let config = config(
            "-w 4 -s farm.example:5555 -S x86_64-linux,i686-linux -p 7000 --minimum-disk-space=10 \
             --substitute-urls='https://a https://b' -u root --public-key=/k.pub --private-key=/k.sec -t 1d -D x \
             --maximum-load=2.5 --guix='/x/guix -q' --state-directory=/s",
        );
        assert_eq!(config.workers, 4);
        assert_eq!(config.server, Place::Named("farm.example".to_owned(), 5555));
        assert_eq!(config.systems, ["x86_64-linux", "i686-linux"]);
        assert_eq!(config.limits.minimum_disk_space, 10 << 30);
        assert_eq!(config.limits.maximum_load, Some(2.5));
        assert_eq!(
            config.substitute_urls,
            Some(vec!["https://a".to_owned(), "https://b".to_owned()])
        );
        assert_eq!(config.user.map(|user| user.uid), Some(0));
        assert_eq!(config.state_directory, std::path::Path::new("/s"));
        let publish = config.publish.unwrap();
        assert_eq!((publish.port, publish.guix.len()), (7000, 2));
        assert_eq!(publish.private_key, std::path::Path::new("/k.sec"));
        let config = self::config(
            "--no-publish --minimum-disk-space=512M --substitute-urls= --maximum-load=off -s [::1]:1",
        );
        assert!(config.publish.is_none() && config.substitute_urls == Some(vec![]));
        assert_eq!(config.limits, Limits { minimum_disk_space: 512 << 20, maximum_load: None });
        assert_eq!(config.server.to_string(), "[::1]:1");
    }

    #[test]
    fn mistakes_name_the_option() {
        for (line, message) in [
            ("-s farm", "--server: expected ADDRESS:PORT, found \"farm\""),
            ("-s farm:0", "--server: expected ADDRESS:PORT, found \"farm:0\""),
            ("-w 0", "--workers: expected a number from 1 to 4096, found \"0\""),
            ("-S x86_64-linux,", "--systems: expected systems, separated by commas"),
            ("-p 0", "--publish-port: expected a port, from 1 to 65535, found \"0\""),
            ("--minimum-disk-space=5 GB", "--minimum-disk-space: expected a number of gibibytes"),
            ("--maximum-load=many", "--maximum-load: expected off, or a number above 0, found"),
            ("--substitute-urls=ci.guix", "--substitute-urls: expected URLs, separated by blanks"),
        ] {
            let words = [&*format!("'{}'", line.replace(' ', "' '"))].concat();
            let line = if line.contains(" GB") { "'--minimum-disk-space=5 GB'" } else { &*words };
            let found = options(line).unwrap_err();
            assert!(found.starts_with(message), "{line}: {found}");
        }
        let here = Surroundings { root: true, variables: Vec::new() };
        let refused = options("-u no-such-name").unwrap().config(&here, 1).unwrap_err();
        assert_eq!(refused, "--user: expected an existing user, found \"no-such-name\"");
    }
}
