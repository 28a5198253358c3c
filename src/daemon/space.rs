//! Whether there is room on the disks for more work: builds, or evaluations. Pure but for the measuring: what was
//! measured is an argument.
//!
//! Invariant: what an operator reads is one line when room gets scarce and one when there is enough again.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::sys::file;

/// While there is room it is measured at most this often: work takes longer than that to fill what is left.
const FRESH: Duration = Duration::from_secs(1);

/// While there is none it is measured this often, as nobody tells when a disk gets emptier.
const RECHECK: Duration = Duration::from_secs(5);

/// Where a write failed although there is room by our measure, a quota or inodes must be spent: then only another try
/// can tell, which costs a write or two.
const REFUSED: Duration = Duration::from_secs(60);

/// Directories that work writes to, on one file system or on several.
pub(super) struct Disks(Vec<PathBuf>);

/// The least that is free on any of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Room {
    pub(super) free: u64,
    pub(super) directory: PathBuf,
}

impl Disks {
    pub(super) fn new(directories: Vec<PathBuf>) -> Self {
        Self(directories)
    }

    /// What cannot be measured counts only when nothing can: a directory may yet have to be made.
    pub(super) fn measure(&self) -> io::Result<Room> {
        let (mut least, mut trouble) = (None::<Room>, io::ErrorKind::NotFound.into());
        for directory in &self.0 {
            match file::free_space(directory) {
                Ok(free) if least.as_ref().is_none_or(|room| free < room.free) => {
                    least = Some(Room { free, directory: directory.clone() });
                }
                Ok(_) => {}
                Err(error) => trouble = error,
            }
        }
        least.ok_or(trouble)
    }
}

pub(super) struct Space {
    /// What waits: `builds`.
    what: &'static str,
    /// The actor that says so.
    target: &'static str,
    minimum: u64,
    short: Option<String>,
    measured: Option<Instant>,
    wait: Duration,
}

impl Space {
    pub(super) fn new(target: &'static str, what: &'static str, minimum: u64) -> Self {
        Self { what, target, minimum, short: None, measured: None, wait: Duration::ZERO }
    }

    pub(super) fn is_short(&self) -> bool {
        self.short.is_some()
    }

    /// Why work waits, if it does.
    pub(super) fn shortage(&self) -> Option<&str> {
        self.short.as_deref()
    }

    /// When to measure next.
    pub(super) fn due(&self) -> Option<Instant> {
        self.measured.map(|at| at + self.wait)
    }

    /// Whether a measurement is due before more work starts.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due().is_none_or(|due| due <= now)
    }

    /// `room` was measured. Where it could not be, what was known stays so.
    pub(super) fn on_measured(&mut self, now: Instant, room: io::Result<Room>) {
        let short = match room {
            Ok(Room { free, directory }) if free < self.minimum => Some(format!(
                "{free} bytes free on the disk of {}, less than the {} to keep free",
                directory.display(),
                self.minimum
            )),
            Ok(_) => None,
            Err(error) => {
                log::warn!(target: self.target, "cannot measure the free space: {error}");
                self.short.clone()
            }
        };
        self.set(now, short);
        self.wait = if self.is_short() { RECHECK } else { FRESH };
    }

    /// A write failed for want of space: why.
    pub(super) fn on_refused(&mut self, now: Instant, why: &str) {
        self.set(now, Some(why.to_owned()));
        self.wait = REFUSED;
    }

    fn set(&mut self, now: Instant, short: Option<String>) {
        match (&short, self.is_short()) {
            (Some(why), false) => log::warn!(target: self.target, "{} wait: {why}", self.what),
            (None, true) => log::info!(target: self.target, "{} go on", self.what),
            (Some(_), true) | (None, false) => {}
        }
        (self.measured, self.short) = (Some(now), short);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::clock;

    fn room(free: u64) -> io::Result<Room> {
        Ok(Room { free, directory: "/d".into() })
    }

    #[test]
    fn room_is_measured_now_and_then() {
        let (t0, mut space) = (clock::now(), Space::new("test", "builds", 100));
        assert!(space.is_due(t0));
        space.on_measured(t0, room(100));
        assert!(!space.is_short() && !space.is_due(t0));
        assert!(space.is_due(t0 + FRESH));
        space.on_measured(t0 + FRESH, room(99));
        let why = "99 bytes free on the disk of /d, less than the 100 to keep free";
        assert_eq!(space.shortage(), Some(why));
        assert!(!space.is_due(t0 + FRESH + FRESH));
        assert_eq!(space.due(), Some(t0 + FRESH + RECHECK));
        space.on_measured(t0 + FRESH + RECHECK, Err(io::ErrorKind::NotFound.into()));
        assert_eq!(space.shortage(), Some(why), "what was known stays so");
        space.on_measured(t0 + FRESH + RECHECK * 2, room(100));
        assert!(!space.is_short());
        space.on_refused(t0, "a quota");
        assert_eq!((space.shortage(), space.due()), (Some("a quota"), Some(t0 + REFUSED)));
    }

    #[test]
    fn the_fullest_disk_counts() {
        let place = tempfile::tempdir().unwrap();
        let missing = place.path().join("missing");
        let proc = PathBuf::from("/proc");
        let disks = |all: &[&PathBuf]| Disks::new(all.iter().map(|&path| path.clone()).collect());
        let here = place.path().to_owned();
        // Which never has room.
        let expected = Room { free: 0, directory: proc.clone() };
        assert_eq!(disks(&[&here, &proc, &missing]).measure().unwrap(), expected);
        assert_eq!(disks(&[&missing, &here]).measure().unwrap().directory, here);
        assert!(disks(&[&missing]).measure().is_err());
    }
}
