//! A real Git repository, made with the git program.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A repository with a work tree, on the branch `main`.
pub(crate) struct Repository {
    directory: PathBuf,
}

impl Repository {
    /// Creates an empty one; `directory` must not exist.
    pub(crate) fn create(directory: &Path) -> Self {
        fs::create_dir_all(directory).unwrap();
        let repository = Self { directory: directory.to_owned() };
        repository.git(&["init", "--quiet", "--initial-branch=main"]);
        repository
    }

    pub(crate) fn path(&self) -> &Path {
        &self.directory
    }

    /// As a channel's `url`.
    pub(crate) fn url(&self) -> String {
        self.directory.to_str().unwrap().to_owned()
    }

    /// Writes a file of the work tree.
    pub(crate) fn write(&self, path: &str, contents: &str) -> &Self {
        let path = self.directory.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
        self
    }

    /// Writes an executable file of the work tree.
    pub(crate) fn script(&self, path: &str, contents: &str) -> &Self {
        self.write(path, contents);
        fs::set_permissions(self.directory.join(path), fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    /// Makes `./jobs` a program that prints these jobs, one a line.
    pub(crate) fn jobs(&self, jobs: &[serde_json::Value]) -> &Self {
        let lines: String = jobs.iter().map(|job| format!("{job}\n")).collect();
        self.script("jobs", &format!("#!/bin/sh\ncat <<'END_OF_JOBS'\n{lines}END_OF_JOBS\n"))
    }

    /// Commits all that is in the work tree, also when nothing changed; returns the commit's id.
    pub(crate) fn commit(&self, message: &str) -> String {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "--message", message]);
        self.head()
    }

    /// The id of the commit that is checked out.
    pub(crate) fn head(&self) -> String {
        self.git(&["rev-parse", "HEAD"])
    }

    /// Runs git in the repository and returns its output, without the last newline.
    pub(crate) fn git(&self, arguments: &[&str]) -> String {
        let output = command()
            .args(arguments)
            .current_dir(&self.directory)
            .output()
            .expect("git must be installed");
        assert!(
            output.status.success(),
            "git {arguments:?} failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }
}

/// Git with nothing of the user's own settings, and with commits that are the same every time.
#[expect(clippy::disallowed_methods, reason = "git runs to its end, here, as the tests' tool")]
pub(crate) fn command() -> Command {
    let mut command = Command::new("git");
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("GIT_")) {
            command.env_remove(name);
        }
    }
    command
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_AUTHOR_NAME", "Tester")
        .env("GIT_AUTHOR_EMAIL", "tester@example.org")
        .env("GIT_AUTHOR_DATE", "1700000000 +0000")
        .env("GIT_COMMITTER_NAME", "Tester")
        .env("GIT_COMMITTER_EMAIL", "tester@example.org")
        .env("GIT_COMMITTER_DATE", "1700000000 +0000")
        .stdin(Stdio::null());
    command
}
