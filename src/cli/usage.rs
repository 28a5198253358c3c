//! What can be wrong with a command line. Messages name the option at fault; a value that may hold a secret is
//! not repeated.

use std::fmt;

/// A usage error: exit status 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Usage {
    NoCommand,
    UnknownCommand {
        name: String,
        /// The command that was probably meant.
        near: Option<&'static str>,
    },
    UnknownOption(String),
    /// The command cannot do without it.
    MissingOption(&'static str),
    MissingValue(String),
    UnexpectedValue(String),
    /// The value is not what it must be.
    BadValue {
        /// `--NAME`, or the name of an argument.
        what: String,
        value: String,
        expected: String,
    },
    MissingArgument(&'static str),
    ExtraArgument(String),
    /// Both were given, and they exclude each other.
    Both(&'static str, &'static str),
    /// The second is needed for the first.
    Needs(&'static str, &'static str),
    PostgreSql,
    NotUtf8(String),
}

impl Usage {
    pub(super) fn bad(what: &str, value: &str, expected: impl Into<String>) -> Self {
        Self::BadValue { what: what.to_owned(), value: value.to_owned(), expected: expected.into() }
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCommand => f.write_str("no command was given"),
            Self::UnknownCommand { name, near: None } => write!(f, "there is no command {name:?}"),
            Self::UnknownCommand { name, near: Some(near) } => {
                write!(f, "there is no command {name:?}; did you mean {near:?}?")
            }
            Self::UnknownOption(option) => write!(f, "there is no option {option}"),
            Self::MissingOption(option) => write!(f, "the option {option} is missing"),
            Self::MissingValue(option) => write!(f, "the option {option} needs a value"),
            Self::UnexpectedValue(option) => write!(f, "the option {option} takes no value"),
            Self::BadValue { what, value, expected } => {
                write!(f, "{what}: expected {expected}, found {value:?}")
            }
            Self::MissingArgument(name) => write!(f, "the argument {name} is missing"),
            Self::ExtraArgument(word) => write!(f, "an argument too many: {word:?}"),
            Self::Both(one, other) => write!(f, "{one} and {other} exclude each other"),
            Self::Needs(one, other) => write!(f, "{one} needs {other}"),
            Self::PostgreSql => f.write_str(
                "--database: expected a file name, found what looks like a PostgreSQL connection string; \
                 the database is SQLite, in a file of its own",
            ),
            Self::NotUtf8(what) => write!(f, "{what}: not UTF-8"),
        }
    }
}

impl std::error::Error for Usage {}
