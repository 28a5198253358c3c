//! Removes logs that are older than they are kept, at the start and daily. What the daemon has linked stays with it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crossbeam_channel::RecvTimeoutError;

use crate::actor::{Gone, Spawner, Stop};
use crate::model::time::Time;
use crate::sys::clock;

/// Between two runs: files are kept for days.
const PERIOD: Duration = Duration::from_secs(86_400);

/// Starts the thread `expiry`.
pub(in crate::remote::server) fn spawn(
    threads: &Spawner,
    directory: PathBuf,
    kept: Duration,
) -> io::Result<()> {
    threads.essential("expiry", move |stop| run(&directory, kept, &stop))
}

fn run(directory: &Path, kept: Duration, stop: &Stop) -> Result<(), Gone> {
    loop {
        match expire(directory, clock::wall().before(kept)) {
            Ok(0) => {}
            Ok(count) => log::info!(target: "expiry", "{count} logs removed"),
            Err(error) => {
                log::error!(target: "expiry", "cannot remove old logs in {}: {error}", directory.display());
            }
        }
        match stop.recv_deadline(clock::now() + PERIOD) {
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Ok(never) => match never {},
        }
    }
}

/// Removes logs that were last written to before `limit`, and returns how many.
fn expire(directory: &Path, limit: Time) -> io::Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let is_log = entry.path().extension().is_some_and(|extension| extension == "gz");
        let Ok(metadata) = entry.metadata() else { continue };
        if is_log && metadata.is_file() && written(&metadata)? < limit {
            fs::remove_file(entry.path())?;
            count += 1;
        }
    }
    Ok(count)
}

fn written(metadata: &fs::Metadata) -> io::Result<Time> {
    let since = metadata.modified()?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Ok(Time(i64::try_from(since.as_secs()).unwrap_or(i64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_logs_alone_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["1-1.gz", "2-1.gz", "note"] {
            let file = fs::File::create(directory.path().join(name)).unwrap();
            let age = if name == "2-1.gz" { 100 } else { 1000 };
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(10_000 - age)).unwrap();
        }
        fs::create_dir(directory.path().join("d.gz")).unwrap();
        assert_eq!(expire(directory.path(), Time(9500)).unwrap(), 1);
        assert!(!directory.path().join("1-1.gz").exists());
        assert!(directory.path().join("2-1.gz").exists() && directory.path().join("note").exists());
    }
}
