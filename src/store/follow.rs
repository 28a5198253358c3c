//! Following a build over a daemon's connection: what goes into its log, and what to say of how it ended.

use std::time::{Duration, Instant};

use super::{LONGEST, Output, Sink};

/// How much longer than a builder the daemon may say nothing: it enforces the limit itself, and may be busy.
const SLACK: Duration = Duration::from_secs(600);

/// What to say of a daemon that was silent for longer than [`patience`].
pub(crate) const LATE: &str = "the daemon says nothing any more";

/// How long a daemon may say nothing while a builder runs that may be silent for so many seconds.
pub(crate) fn patience(max_silent_time: u64) -> Duration {
    match max_silent_time {
        0 => LONGEST,
        seconds => Duration::from_secs(seconds).saturating_add(SLACK).min(LONGEST),
    }
}

/// What to say of a build whose input failed.
pub(crate) fn dependency(culprit: Option<&str>, why: &str) -> String {
    format!("dependency {} failed: {why}", culprit.unwrap_or("one of its inputs"))
}

pub(crate) fn timed_out(timeout: i64) -> String {
    format!("timed out after {timeout} s")
}

pub(crate) fn silent(max_silent_time: i64) -> String {
    format!("silent for {max_silent_time} s")
}

/// Where the log of a build goes.
pub(crate) trait Log {
    type Error;
    fn write(&mut self, bytes: &[u8]) -> Result<(), Self::Error>;
    /// A line that is not the builder's.
    fn remark(&mut self, text: &str) -> Result<(), Self::Error>;
    /// When `flush` is next needed.
    fn flush_due(&self) -> Option<Instant>;
    fn flush(&mut self) -> Result<(), Self::Error>;
}

/// Writes what is said of a build into its log. Lines of what is built on the way have that in front.
pub(crate) struct Follower<'a, L> {
    target: &'a str,
    log: &'a mut L,
    /// The input whose line is not at its end.
    input: Option<String>,
    /// Whether the daemon said anything.
    pub(crate) heard: bool,
    /// Whether the daemon built or fetched anything.
    pub(crate) worked: bool,
}

impl<'a, L: Log> Follower<'a, L> {
    pub(crate) fn new(target: &'a str, log: &'a mut L) -> Self {
        Self { target, log, input: None, heard: false, worked: false }
    }

    /// The lines of an input, each with its name.
    fn foreign(&mut self, derivation: &str, text: &[u8]) -> Result<(), L::Error> {
        let name = short(derivation);
        let mut marked = Vec::with_capacity(text.len() + 64);
        for line in text.split_inclusive(|&byte| byte == b'\n') {
            if self.input.as_deref() != Some(derivation) {
                if self.input.is_some() {
                    marked.push(b'\n');
                }
                marked.extend_from_slice(format!("{name}> ").as_bytes());
            }
            marked.extend_from_slice(line);
            self.input = (!line.ends_with(b"\n")).then(|| derivation.to_owned());
        }
        self.log.write(&marked)
    }

    fn end_input(&mut self) -> Result<(), L::Error> {
        if self.input.take().is_some() { self.log.write(b"\n") } else { Ok(()) }
    }
}

/// `hello-2.12` of `/gnu/store/HASH-hello-2.12.drv`.
pub(crate) fn short(derivation: &str) -> &str {
    let name = derivation.rsplit('/').next().unwrap_or(derivation);
    let name = name.split_once('-').map_or(name, |(_, name)| name);
    name.strip_suffix(".drv").unwrap_or(name)
}

impl<L: Log> Sink for Follower<'_, L> {
    type Error = L::Error;

    fn output(&mut self, output: Output<'_>) -> Result<(), L::Error> {
        self.heard = true;
        match output {
            Output::Log { derivation, text } if derivation == self.target => {
                self.end_input()?;
                self.log.write(text)
            }
            Output::Log { derivation, text } => self.foreign(derivation, text),
            Output::Prose(text) => {
                self.end_input()?;
                let text = String::from_utf8_lossy(text);
                self.log.remark(text.trim_end())
            }
            Output::Started(derivation) => {
                self.worked = true;
                if derivation == self.target {
                    return Ok(());
                }
                self.end_input()?;
                self.log.remark(&format!("building {}", short(derivation)))
            }
            Output::Fetching(item) => {
                self.worked = true;
                self.end_input()?;
                self.log.remark(&format!("fetching {}", short(item)))
            }
        }
    }

    fn due(&self) -> Option<Instant> {
        self.log.flush_due()
    }

    fn tick(&mut self) -> Result<(), L::Error> {
        self.log.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    impl Log for Vec<u8> {
        type Error = Infallible;

        fn write(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
            self.extend_from_slice(bytes);
            Ok(())
        }

        fn remark(&mut self, text: &str) -> Result<(), Infallible> {
            self.write(format!("gorget: {text}\n").as_bytes())
        }

        fn flush_due(&self) -> Option<Instant> {
            None
        }

        fn flush(&mut self) -> Result<(), Infallible> {
            Ok(())
        }
    }

    #[test]
    fn lines_of_inputs_are_marked_as_theirs() {
        let mut log = Vec::new();
        let target = "/gnu/store/t-top.drv";
        let mut follower = Follower::new(target, &mut log);
        let dep = "/gnu/store/d-dep-1.0.drv";
        for (derivation, text) in
            [(dep, "one\ntw"), (dep, "o\n"), (dep, "cut"), (target, "mine\n"), (dep, "three\n")]
        {
            let Ok(()) = follower.output(Output::Log { derivation, text: text.as_bytes() });
        }
        let expected = "dep-1.0> one\ndep-1.0> two\ndep-1.0> cut\nmine\ndep-1.0> three\n";
        assert_eq!(String::from_utf8(log).unwrap(), expected);
    }

    #[test]
    fn daemons_may_be_silent_longer_than_builders() {
        assert_eq!(patience(0), LONGEST);
        assert_eq!(patience(60), Duration::from_secs(660));
        assert_eq!(patience(u64::MAX), LONGEST);
    }
}
