//! What can go wrong with the books.

use std::path::PathBuf;
use std::{fmt, io};

#[derive(Debug)]
pub(crate) enum Error {
    Sqlite(rusqlite::Error),
    /// Creating or opening the file.
    Open(PathBuf, Box<Error>),
    /// The directory or file's modes could not be set.
    Io(PathBuf, io::Error),
    /// The file was written by a newer version.
    Newer {
        found: i64,
        known: i64,
    },
    /// The file holds what its schema does not allow.
    Corrupt(&'static str),
    /// The thing asked for does not exist: which.
    NotFound(String),
    /// It exists, but its state does not allow this: why.
    Conflict(String),
    /// A query took longer than its reader may.
    Interrupted,
    /// The file could not be written for now: disk full, locked, or the daemon is stopping.
    Unavailable(String),
}

impl Error {
    /// Whether the same request may work later without anybody changing it: disk full, locked, I/O.
    pub(crate) fn is_transient(&self) -> bool {
        use rusqlite::ErrorCode::{
            CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull, OutOfMemory, SystemIoFailure,
        };
        match self {
            Self::Sqlite(error) => matches!(
                error.sqlite_error_code(),
                Some(
                    DiskFull
                        | DatabaseBusy
                        | DatabaseLocked
                        | SystemIoFailure
                        | CannotOpen
                        | OutOfMemory
                )
            ),
            Self::Open(..)
            | Self::Io(..)
            | Self::Newer { .. }
            | Self::Corrupt(_)
            | Self::NotFound(_)
            | Self::Conflict(_)
            | Self::Interrupted
            | Self::Unavailable(_) => false,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(_) => f.write_str("the database refused"),
            Self::Open(path, _) => write!(f, "cannot open the database {}", path.display()),
            Self::Io(path, _) => write!(f, "cannot prepare {}", path.display()),
            Self::Newer { found, known } => write!(
                f,
                "the database has schema {found}, made by a newer version of this program, which knows {known}"
            ),
            Self::Corrupt(what) => write!(f, "the database holds an impossible value: {what}"),
            Self::NotFound(what) => write!(f, "there is no {what}"),
            Self::Interrupted => f.write_str("the query took too long"),
            Self::Conflict(why) | Self::Unavailable(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Sqlite(error) => Some(error),
            Self::Open(_, error) => Some(error.as_ref()),
            Self::Io(_, error) => Some(error),
            Self::Newer { .. }
            | Self::Corrupt(_)
            | Self::NotFound(_)
            | Self::Conflict(_)
            | Self::Interrupted
            | Self::Unavailable(_) => None,
        }
    }
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::OperationInterrupted) => Self::Interrupted,
            _ => Self::Sqlite(error),
        }
    }
}
