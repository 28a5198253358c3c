//! What an evaluator of ours finds in its environment, as any other does: systems, channels, a place for files.

use std::path::PathBuf;
use std::{env, fmt, fs, io};

use serde::{Deserialize, Serialize};

/// A channel as the evaluator's list of channels has it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Channel {
    pub(super) name: String,
    pub(super) url: String,
    pub(super) commit: String,
    pub(super) directory: String,
}

pub(super) struct Lent {
    /// At least one.
    pub(super) systems: Vec<String>,
    pub(super) channels: Vec<Channel>,
    /// For files of ours; removed by whoever started us.
    pub(super) temporary: PathBuf,
}

#[derive(Debug)]
pub(super) enum Error {
    Missing(&'static str),
    Channels(PathBuf, io::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(name) => write!(f, "{name} is not set, or holds nothing"),
            Self::Channels(path, _) => {
                write!(f, "cannot read the list of channels {}", path.display())
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Channels(_, error) => Some(error),
            Self::Missing(_) => None,
        }
    }
}

impl Lent {
    pub(super) fn here() -> Result<Self, Error> {
        let systems = env::var("GORGET_SYSTEMS").unwrap_or_default();
        let systems: Vec<_> = systems.split_whitespace().map(str::to_owned).collect();
        if systems.is_empty() {
            return Err(Error::Missing("GORGET_SYSTEMS"));
        }
        let list = env::var_os("GORGET_CHANNELS").ok_or(Error::Missing("GORGET_CHANNELS"))?;
        let list = PathBuf::from(list);
        let channels = fs::read(&list)
            .and_then(|text| Ok(serde_json::from_slice(&text)?))
            .map_err(|error| Error::Channels(list, error))?;
        let temporary = env::var_os("TMPDIR").ok_or(Error::Missing("TMPDIR"))?.into();
        Ok(Self { systems, channels, temporary })
    }
}
