//! `web`: its options, and the web interface as a process of its own.

use std::path::PathBuf;
use std::process::ExitCode;

use super::directories::{self, Surroundings, Told};
use super::given::Given;
use super::print;
use super::usage::Usage;
use crate::spec;
use crate::spec::scheme::Guile;
use crate::web::{self, Config};

/// Cuirass's.
const PORT: u16 = 8080;
/// Whoever wants others to see it says so, or puts a proxy in front.
const HOST: &str = "127.0.0.1";

#[derive(Debug)]
pub(super) struct Options {
    port: Option<u16>,
    host: Option<String>,
    told: Told,
    parameters: Option<PathBuf>,
}

impl Options {
    pub(super) fn read(given: &mut Given) -> Result<Self, Usage> {
        Ok(Self {
            port: given.read("port", "a port, from 0 to 65535", |text| text.parse().ok())?,
            host: given.read("listen", "a host's name or address", |text| {
                (!text.is_empty()).then(|| text.to_owned())
            })?,
            told: Told {
                state: given.path("state-directory")?,
                database: given.path("database")?,
                socket: given.path("socket")?,
                ..Told::default()
            },
            parameters: given.path("parameters")?,
        })
    }
}

/// Whether a text is `HOST:PORT`; if so, it.
pub(super) fn place(text: &str) -> Option<String> {
    let (host, port) = text.rsplit_once(':')?;
    let bare = !host.contains(':') || (host.starts_with('[') && host.ends_with(']'));
    let _: u16 = port.parse().ok()?;
    (bare && !host.is_empty()).then(|| text.to_owned())
}

pub(super) fn run(options: Options) -> ExitCode {
    let read = |file: PathBuf| spec::parameters::read(&file, &Guile::new(super::guix()));
    let parameters = match options.parameters.map(read).transpose() {
        Ok(parameters) => parameters.unwrap_or_default(),
        Err(error) => {
            print::err(&error.to_string());
            return ExitCode::FAILURE;
        }
    };
    let places = directories::choose(options.told, &Surroundings::here());
    let host = options.host.as_deref().unwrap_or(HOST);
    // An IPv6 address needs brackets before a port.
    let bare = host.contains(':') && !host.starts_with('[');
    let host = if bare { format!("[{host}]") } else { host.to_owned() };
    web::run(Config {
        listen: format!("{host}:{}", options.port.unwrap_or(PORT)),
        database: places.database,
        socket: places.socket,
        log_directory: places.log,
        products_directory: places.state.join("products"),
        parameters,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_have_a_host_and_a_port() {
        for good in ["localhost:80", "127.0.0.1:0", "[::1]:8080"] {
            assert_eq!(place(good).as_deref(), Some(good));
        }
        for bad in ["", "8080", ":80", "::1:80", "host:", "host:65536", "host:http"] {
            assert_eq!(place(bad), None, "{bad}");
        }
    }
}
