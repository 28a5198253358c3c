//! Specification files: JSON, or Scheme that Guile runs. Errors name file, line, jobset and field.
//!
//! Invariant: no message holds a URL or a secret from the file.

pub(crate) mod json;
mod lines;
pub(crate) mod parameters;
pub(crate) mod scheme;
mod unique;
mod value;

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::model::spec::Specification;
use scheme::Guile;

/// Bytes of the largest file that is read: ten thousand jobsets fit, a device or a log given by mistake does not.
const MAX_FILE: u64 = 16 << 20;

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Error {
    pub(crate) file: Option<PathBuf>,
    pub(crate) line: Option<usize>,
    pub(crate) jobset: Option<String>,
    pub(crate) field: Option<String>,
    pub(crate) message: String,
}

impl Error {
    /// An error about a text or file as a whole.
    fn plain(message: impl Into<String>) -> Self {
        Self { file: None, line: None, jobset: None, field: None, message: message.into() }
    }

    /// The error with the file it came up in, unless that is known better.
    fn about(self, path: &Path) -> Self {
        Self { file: self.file.or_else(|| Some(path.to_owned())), ..self }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, "{}:{line}: ", file.display())?,
            (Some(file), None) => write!(f, "{}: ", file.display())?,
            (None, Some(line)) if line > 1 => write!(f, "line {line}: ")?,
            (None, _) => {}
        }
        if let Some(jobset) = &self.jobset {
            write!(f, "jobset {jobset:?}: ")?;
        }
        if let Some(field) = &self.field {
            write!(f, "field {field}: ")?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Whether a file is one for Guile, by its name.
pub(crate) fn is_scheme(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "scm")
}

/// Reads a whole file; all its specifications or an error.
pub(crate) fn read(path: &Path, guile: &Guile) -> Result<Vec<Specification>, Error> {
    let specifications = if is_scheme(path) {
        guile.specifications(path)
    } else {
        text(path).and_then(|text| json::parse(&text))
    };
    specifications.map_err(|error| error.about(path))
}

/// The system whose builds this machine runs, as Guix and Nix spell it.
pub(crate) fn host_system() -> String {
    let machine = match std::env::consts::ARCH {
        "x86" => "i686",
        "arm" => "armhf",
        "powerpc64" if cfg!(target_endian = "little") => "powerpc64le",
        "loongarch64" => "loongarch64",
        other => other,
    };
    format!("{machine}-{}", std::env::consts::OS)
}

fn text(path: &Path) -> Result<String, Error> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text));
    match read {
        Ok(length) if length as u64 > MAX_FILE => {
            Err(Error::plain(format!("longer than {} MiB", MAX_FILE >> 20)))
        }
        Ok(_) => Ok(text),
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            Err(Error::plain("not UTF-8"))
        }
        Err(error) => Err(Error::plain(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_file_line_jobset_and_field() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("a.json");
        std::fs::write(&file, "[{\"name\": \"x\",\n \"command\": [\"true\"],\n \"period\": -1}]")
            .unwrap();
        let read = |path: &Path| super::read(path, &Guile::new(Vec::new()));
        let error = read(&file).unwrap_err().to_string();
        let expected =
            ":3: jobset \"x\": field period: expected an integer from 0 to 315360000, found -1";
        assert_eq!(error, format!("{}{expected}", file.display()));
        assert!(
            read(&directory.path().join("none.scm")).unwrap_err().message.contains("No such file")
        );
        assert!(
            read(&directory.path().join("none.json")).unwrap_err().message.contains("No such file")
        );
        std::fs::write(&file, b"\xff").unwrap();
        assert_eq!(read(&file).unwrap_err().message, "not UTF-8");
    }
}
