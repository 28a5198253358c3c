//! The actor `roots`: lets go of what was built here a while ago. By then the server has fetched it, or never will.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{after, select};

use crate::actor::{Gone, Stop};
use crate::model::time::Time;
use crate::store::roots;
use crate::sys::clock;

/// How long outputs are kept: a server that is away over a weekend still finds them.
const KEEP: Duration = Duration::from_secs(5 * 86_400);

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(6 * 3600);

/// The actor's loop.
pub(super) fn run(directory: &Path, stop: &Stop) -> Result<(), Gone> {
    loop {
        if let Err(error) = sweep(directory, clock::wall()) {
            log::warn!(target: "worker", "cannot let go of old builds in {}: {error}", directory.display());
        }
        select! {
            recv(stop) -> _ => return Ok(()),
            recv(after(PERIOD)) -> _ => {}
        }
    }
}

/// Removes links of ours that are older than [`KEEP`].
fn sweep(directory: &Path, now: Time) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let Some(item) = roots::item(&entry.path()) else { continue };
        // Another worker of this machine may have let it go.
        let Ok(metadata) = entry.metadata() else { continue };
        let made = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let made = made.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs());
        let until = i64::try_from(made.saturating_add(KEEP.as_secs())).unwrap_or(i64::MAX);
        if until <= now.0 {
            log::debug!(target: "worker", "letting {item} go");
            roots::release(directory, &item)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_was_built_is_kept_for_a_while() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("gcroots");
        sweep(&directory, clock::wall()).unwrap();
        fs::create_dir(&directory).unwrap();
        symlink("/gnu/store/a-x", directory.join("a-x")).unwrap();
        // None of ours.
        symlink("/gnu/store/b-y", directory.join("other")).unwrap();
        let now = clock::wall();
        let count = || fs::read_dir(&directory).unwrap().count();
        let days = |days: i64| Time(now.0 + days * 86_400);
        sweep(&directory, days(4)).unwrap();
        assert_eq!(count(), 2);
        sweep(&directory, days(6)).unwrap();
        assert_eq!(count(), 1);
        assert!(directory.join("other").symlink_metadata().is_ok());
    }
}
