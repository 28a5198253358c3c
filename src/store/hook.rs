//! What keeps daemons from looking for other machines, for every build anew, where there are none.
//!
//! A daemon starts its build hook for each request to build, and both `guix offload` and Nix's own need longer than a
//! small build to find out that there are no other machines. Where that is plain from its configuration, a guix-daemon is
//! told not to offload; a nix-daemon, which cannot be told, is given a hook of ours, which declines at once.
//!
//! Invariant: wherever other machines may be configured, or the daemon might not be able to run it, the hook stays what
//! it is.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::unistd::{AccessFlags, access};

/// Answers before it is asked, and takes what it is told until it is ended.
const SCRIPT: &str =
    "#!/bin/sh\necho '# decline-permanently' >&2\nwhile read -r line; do :; done\n";

/// Writes the hook into `directory`; `None` if it could not be run there.
pub(super) fn write(directory: &Path) -> io::Result<Option<String>> {
    let path = directory.join("no-build-hook");
    let aside = directory.join(".no-build-hook");
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o755).open(&aside)?;
    file.write_all(SCRIPT.as_bytes())?;
    drop(file);
    fs::rename(&aside, &path)?;
    // Of a file system that is not for programs, too, this says no.
    let runs = access(&path, AccessFlags::X_OK).is_ok();
    Ok(path.to_str().filter(|_| runs).map(str::to_owned))
}

/// Whether a guix-daemon of this machine has others build: `guix offload` reads which from this file alone.
pub(super) fn guix_may_offload() -> bool {
    let directory = std::env::var_os("GUIX_CONFIGURATION_DIRECTORY");
    let directory = PathBuf::from(directory.unwrap_or_else(|| "/etc/guix".into()));
    let machines = fs::metadata(directory.join("machines.scm"));
    !machines.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Whether a nix-daemon of this machine may have others build, as far as its configuration can be found.
pub(super) fn may_offload() -> bool {
    let directory = std::env::var_os("NIX_CONF_DIR").unwrap_or_else(|| "/etc/nix".into());
    may_offload_by(&PathBuf::from(directory), &std::env::var("NIX_CONFIG").unwrap_or_default())
}

fn may_offload_by(directory: &Path, more: &str) -> bool {
    let read = |name: &str| match fs::read_to_string(directory.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read,
    };
    let (Ok(settings), Ok(machines)) = (read("nix.conf"), read("machines")) else { return true };
    let telling = ["builders", "extra-builders", "build-hook", "include", "!include"];
    let mut words =
        settings.lines().chain(more.lines()).filter_map(|line| line.split([' ', '\t', '=']).next());
    words.any(|word| telling.contains(&word)) || !machines.trim().is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_machines_are_seen_in_the_configuration() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path();
        assert!(!may_offload_by(directory, ""));
        assert!(!may_offload_by(directory, "sandbox = false"));
        assert!(may_offload_by(directory, "sandbox = false\nbuilders=ssh://farm"));
        fs::write(directory.join("nix.conf"), "cores = 2\n").unwrap();
        assert!(!may_offload_by(directory, ""));
        fs::write(directory.join("nix.conf"), "cores = 2\n!include more.conf\n").unwrap();
        assert!(may_offload_by(directory, ""));
        fs::write(directory.join("nix.conf"), "").unwrap();
        fs::write(directory.join("machines"), "\n").unwrap();
        assert!(!may_offload_by(directory, ""));
        fs::write(directory.join("machines"), "ssh://farm\n").unwrap();
        assert!(may_offload_by(directory, ""));
        // What cannot be read may say anything.
        fs::remove_file(directory.join("machines")).unwrap();
        fs::create_dir(directory.join("machines")).unwrap();
        assert!(may_offload_by(directory, ""));
    }

    #[test]
    fn the_hook_declines() {
        let place = tempfile::tempdir().unwrap();
        let hook = write(place.path()).unwrap().unwrap();
        #[expect(clippy::disallowed_methods, reason = "a test of the program itself")]
        let output = std::process::Command::new(hook).stdin(std::process::Stdio::null()).output();
        assert_eq!(output.unwrap().stderr, b"# decline-permanently\n");
        assert!(write(place.path()).unwrap().is_some());
    }
}
