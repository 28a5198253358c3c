//! Whether a build could begin here: store daemons answer, disks have room, and the processors are not busy.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use super::build::{Store, Tools};
use crate::model::error::chain;
use crate::store::{Address, Connection, Error, Line};
use crate::sys::file;

/// When a build is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Limits {
    /// Bytes that must be free where the stores are, and where builders have their files.
    pub(crate) minimum_disk_space: u64,
    /// The load average of the last minute above which none is.
    pub(crate) maximum_load: Option<f64>,
}

/// What is in the way, for people: the same words as long as it is the same.
pub(super) fn check(tools: &Tools) -> Result<(), String> {
    // The cheapest first.
    if let Some(most) = tools.limits.maximum_load {
        let load = load().map_err(|error| format!("cannot read the load average: {error}"))?;
        if load > most {
            return Err(format!("the load average is above {most}"));
        }
    }
    disks(tools)?;
    daemons(&tools.stores)
}

fn load() -> std::io::Result<f64> {
    let text = fs::read_to_string("/proc/loadavg")?;
    let first = text.split_whitespace().next().and_then(|word| word.parse().ok());
    first.ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}

fn disks(tools: &Tools) -> Result<(), String> {
    let temporary = env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from);
    let stores = tools.stores.iter().map(|store| PathBuf::from(&store.directory));
    let least = tools.limits.minimum_disk_space;
    for directory in stores.filter(|directory| directory.is_dir()).chain([temporary]) {
        let shown = directory.display();
        match file::free_space(&directory) {
            Ok(free) if free < least => {
                return Err(format!("less than {least} bytes are free in {shown}"));
            }
            Ok(_) => {}
            Err(error) => return Err(format!("cannot see how much is free in {shown}: {error}")),
        }
    }
    Ok(())
}

/// Of those that listen each must answer; one of another kind, which is not installed, is not missed.
fn daemons(stores: &[Store]) -> Result<(), String> {
    let mut answers = 0;
    for store in stores {
        if let Address::Unix(socket) = &store.address
            && !is_there(socket)
        {
            continue;
        }
        greet(store).map_err(|error| {
            format!("{} at {}: {}", store.dialect, store.address, chain(&error))
        })?;
        answers += 1;
    }
    if answers == 0 {
        let places: Vec<_> = stores.iter().map(|store| store.address.to_string()).collect();
        return Err(format!("no store daemon listens at {}", places.join(" or ")));
    }
    Ok(())
}

fn greet(store: &Store) -> Result<(), Error> {
    let line = Line::connect(&store.address, &|| true)?;
    Connection::greet(line, store.dialect).map(drop)
}

fn is_there(socket: &Path) -> bool {
    fs::symlink_metadata(socket).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Dialect;

    fn tools(place: &Path, limits: Limits) -> Tools {
        let store = Store {
            dialect: Dialect::Nix,
            address: Address::Unix(place.join("socket")),
            directory: place.display().to_string(),
        };
        Tools::prepare(vec![store], limits, place.to_owned())
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let place = tempfile::tempdir().unwrap();
        let why = |minimum_disk_space, maximum_load| {
            let limits = Limits { minimum_disk_space, maximum_load };
            check(&tools(place.path(), limits)).unwrap_err()
        };
        assert_eq!(why(0, Some(-1.0)), "the load average is above -1");
        let shown = place.path().display().to_string();
        assert!(why(u64::MAX, None).ends_with(&format!("bytes are free in {shown}")));
        assert_eq!(why(0, None), format!("no store daemon listens at {shown}/socket"));
        // One that is being restarted: its socket is there.
        drop(std::os::unix::net::UnixListener::bind(place.path().join("socket")).unwrap());
        assert!(why(0, None).starts_with(&format!("nix-daemon at {shown}/socket: cannot connect")));
    }
}
