//! What a command line gave, still as words: reading it as typed values.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Duration;

use super::table::Command;
use super::usage::Usage;
use crate::model::spec::JobsetName;
use crate::model::time::parse_duration;

/// The largest number of anything at once: more threads or connections than this is a slip of the keyboard.
const MAX_COUNT: u64 = 4096;

/// The words of one command.
pub(super) struct Given {
    pub(super) command: &'static Command,
    /// Options by their long names, in the order in which they were given.
    pub(super) options: Vec<(&'static str, Option<OsString>)>,
    pub(super) operands: std::vec::IntoIter<OsString>,
}

impl Given {
    fn known(&self, name: &str) {
        debug_assert!(
            self.command.flags().any(|flag| flag.name == name),
            "--{name} is not in the table"
        );
    }

    /// Whether a switch was given.
    pub(super) fn switch(&self, name: &str) -> bool {
        self.known(name);
        self.options.iter().any(|(given, _)| *given == name)
    }

    /// All values of an option.
    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = &OsStr> {
        self.known(name);
        let named = self.options.iter().filter(move |(given, _)| *given == name);
        named.filter_map(|(_, value)| value.as_deref())
    }

    /// The value of an option: the last one counts.
    pub(super) fn value(&self, name: &str) -> Option<&OsStr> {
        self.all(name).last()
    }

    pub(super) fn text(&self, name: &str) -> Result<Option<&str>, Usage> {
        let Some(value) = self.value(name) else { return Ok(None) };
        value.to_str().map(Some).ok_or_else(|| Usage::NotUtf8(format!("--{name}")))
    }

    /// What `read` makes of an option's value; `None` from it says that `expected` was expected.
    pub(super) fn read<T>(
        &self,
        name: &str,
        expected: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, Usage> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let value = read(text).ok_or_else(|| Usage::bad(&format!("--{name}"), text, expected))?;
        Ok(Some(value))
    }

    /// The name of a file or directory, not empty.
    pub(super) fn path(&self, name: &str) -> Result<Option<PathBuf>, Usage> {
        let Some(value) = self.value(name) else { return Ok(None) };
        if value.is_empty() {
            return Err(Usage::bad(&format!("--{name}"), "", "a file name"));
        }
        Ok(Some(value.into()))
    }

    /// The words of a command.
    pub(super) fn command(&self, name: &str) -> Result<Option<Vec<String>>, Usage> {
        self.read(name, "a command", |text| {
            shell_words::split(text)
                .ok()
                .filter(|words| words.first().is_some_and(|w| !w.is_empty()))
        })
    }

    /// A number of things, at least one.
    pub(super) fn count(&self, name: &str) -> Result<Option<usize>, Usage> {
        let expected = format!("a number from 1 to {MAX_COUNT}");
        self.read(name, &expected, |text| {
            let number = number(text).filter(|number| (1..=MAX_COUNT).contains(number))?;
            usize::try_from(number).ok()
        })
    }

    /// A duration of at least one second.
    pub(super) fn duration(&self, name: &str) -> Result<Option<Duration>, Usage> {
        self.read(name, DURATION, duration)
    }

    /// As `duration`, where the word `off` says what leaving the option out does.
    pub(super) fn duration_or_off(&self, name: &str) -> Result<Option<Duration>, Usage> {
        let expected = format!("off, or {DURATION}");
        Ok(self.read(name, &expected, |text| or_off(text, duration))?.flatten())
    }

    /// A time that is given in seconds, at least one. It has no unit: `5m`, five months elsewhere, would be taken for
    /// five minutes here.
    pub(super) fn seconds(&self, name: &str) -> Result<Option<Duration>, Usage> {
        self.read(name, "a number of seconds, 1 or more, without a unit", |text| {
            number(text).and_then(|_| duration(text))
        })
    }

    pub(super) fn size(&self, name: &str) -> Result<Option<u64>, Usage> {
        self.read(name, SIZE, size)
    }

    /// As `size`, where a number without a unit counts gibibytes, as Cuirass's does.
    pub(super) fn gibibytes(&self, name: &str) -> Result<Option<u64>, Usage> {
        self.read(name, "a number of gibibytes, such as 5, or a size, such as 512M", |text| {
            match number(text) {
                Some(_) => size(&format!("{text}G")),
                None => size(text),
            }
        })
    }

    pub(super) fn port(&self, name: &str) -> Result<Option<u16>, Usage> {
        self.read(name, "a port, from 1 to 65535", |text| {
            text.parse().ok().filter(|port| *port > 0)
        })
    }

    /// As `size`, where the word `off` says what leaving the option out does.
    pub(super) fn size_or_off(&self, name: &str) -> Result<Option<u64>, Usage> {
        let expected = format!("off, or {SIZE}");
        Ok(self.read(name, &expected, |text| or_off(text, size))?.flatten())
    }

    pub(super) fn jobset(&self, name: &str) -> Result<Option<JobsetName>, Usage> {
        self.read(name, JOBSET, JobsetName::new)
    }

    /// A positive number.
    pub(super) fn id(&self, name: &str) -> Result<Option<i64>, Usage> {
        self.read(name, ID, id)
    }

    /// The next argument; `name` is what the usage calls it.
    pub(super) fn operand(&mut self, name: &'static str) -> Result<OsString, Usage> {
        self.operands.next().ok_or(Usage::MissingArgument(name))
    }

    pub(super) fn text_operand(&mut self, name: &'static str) -> Result<String, Usage> {
        self.operand(name)?.into_string().map_err(|_| Usage::NotUtf8(name.to_owned()))
    }

    /// As `read`, for the next argument.
    pub(super) fn read_operand<T>(
        &mut self,
        name: &'static str,
        expected: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, Usage> {
        let text = self.text_operand(name)?;
        read(&text).ok_or_else(|| Usage::bad(name, &text, expected))
    }

    pub(super) fn jobset_operand(&mut self) -> Result<JobsetName, Usage> {
        self.read_operand("NAME", JOBSET, JobsetName::new)
    }

    pub(super) fn id_operand(&mut self, name: &'static str) -> Result<i64, Usage> {
        self.read_operand(name, ID, id)
    }

    /// Whether there are more arguments.
    pub(super) fn more(&self) -> bool {
        self.operands.len() > 0
    }

    /// That there are no more arguments.
    pub(super) fn end(&mut self) -> Result<(), Usage> {
        match self.operands.next() {
            None => Ok(()),
            Some(extra) => Err(Usage::ExtraArgument(extra.to_string_lossy().into_owned())),
        }
    }
}

const JOBSET: &str = "a jobset's name";
const ID: &str = "a number from 1";
const DURATION: &str = "a duration of at least 1 s, such as 90, 10min, 12h, 30d, 2w or 6m (months)";
const SIZE: &str = "a size in bytes, such as 1048576, 512M or 1GiB";

fn duration(text: &str) -> Option<Duration> {
    parse_duration(text).filter(|duration| !duration.is_zero())
}

fn or_off<T>(text: &str, read: impl FnOnce(&str) -> Option<T>) -> Option<Option<T>> {
    if text == "off" { Some(None) } else { read(text).map(Some) }
}

fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn id(text: &str) -> Option<i64> {
    i64::try_from(number(text)?).ok().filter(|id| *id > 0)
}

/// Reads a size: bytes, or a number and a unit. `K KiB M MiB G GiB T TiB` are powers of 1024, `kB MB GB TB` of 1000.
fn size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits);
    let unit: u64 = match unit {
        "" | "B" => 1,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        "kB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        _ => return None,
    };
    // SQLite and `off_t` have signed 64-bit numbers.
    number(digits)?.checked_mul(unit).filter(|&bytes| bytes <= i64::MAX as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("512M", 512 << 20),
            ("1GiB", 1 << 30),
            ("2kB", 2000),
            ("3T", 3 << 40),
        ] {
            assert_eq!(size(text), Some(bytes), "{text}");
        }
        for bad in ["", "M", "-1", "1.5G", "1 G", "1g", "99999999999999999999", "9999999T"] {
            assert_eq!(size(bad), None, "{bad}");
        }
    }

    #[test]
    fn numbers_are_plain_and_positive() {
        assert_eq!(id("1"), Some(1));
        for bad in ["", "0", "+1", "-1", "1a", "9223372036854775808", "99999999999999999999"] {
            assert_eq!(id(bad), None, "{bad}");
        }
    }
}
