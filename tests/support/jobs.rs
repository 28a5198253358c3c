//! A real Git repository with a job script.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "tests start programs and wait under deadlines of their own"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

pub(crate) struct Repository(TempDir);

impl Repository {
    /// With this many files of some KiB, on branch `main`.
    pub(crate) fn new(files: usize) -> Self {
        let this = Self(tempfile::tempdir().unwrap());
        this.git(&["init", "--quiet", "--initial-branch=main"]);
        for n in 0..files {
            this.write(&format!("file-{n}"), &format!("{n}\n").repeat(1000));
        }
        this.commit();
        this
    }

    /// With `script` as its executable file `jobs`.
    pub(crate) fn with_jobs(script: &str) -> Self {
        let this = Self::new(0);
        this.set_jobs(script);
        this
    }

    /// Commits another `jobs`.
    pub(crate) fn set_jobs(&self, script: &str) {
        self.write("jobs", &format!("#!/bin/sh\n{script}\n"));
        fs::set_permissions(self.path().join("jobs"), fs::Permissions::from_mode(0o755)).unwrap();
        self.commit();
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn url(&self) -> String {
        self.path().to_str().unwrap().to_owned()
    }

    pub(crate) fn git(&self, arguments: &[&str]) -> String {
        let output = Command::new("git")
            .args([
                "-c",
                "user.name=test",
                "-c",
                "user.email=test@localhost",
                "-c",
                "commit.gpgsign=false",
            ])
            .args(arguments)
            .current_dir(self.path())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "git {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    pub(crate) fn write(&self, file: &str, contents: &str) {
        fs::write(self.path().join(file), contents).unwrap();
    }

    /// Commits everything; the commit's id.
    pub(crate) fn commit(&self) -> String {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "--message=change"]);
        self.git(&["rev-parse", "HEAD"])
    }

    /// A specification that runs `command` in this repository.
    pub(crate) fn specification(&self, name: &str, command: &[&str]) -> serde_json::Value {
        serde_json::json!({
            "name": name,
            "channels": [{"name": "main", "url": self.url(), "branch": "main"}],
            "command": command,
        })
    }

    /// The request that adds a jobset which runs `./jobs`.
    pub(crate) fn add(&self, name: &str) -> String {
        format!("add {}", self.specification(name, &["./jobs"]))
    }
}

/// A job line for a shell script to print: `command` is run by `sh -c`.
pub(crate) fn job(name: &str, command: &str, more: &str) -> String {
    let line =
        serde_json::json!({"job": name, "system": system(), "command": ["sh", "-c", command]});
    let line = line.to_string();
    let line = if more.is_empty() { line } else { format!("{},{more}}}", &line[..line.len() - 1]) };
    format!("cat <<'LINE'\n{line}\nLINE\n")
}

/// This machine's system.
pub(crate) fn system() -> String {
    format!("{}-linux", std::env::consts::ARCH)
}
