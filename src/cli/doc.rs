//! Help, man pages and completions: loops over the table, and the pages' hand-written bodies.
//!
//! Invariant: what is in `man/` and `contrib/completions/` is what this renders; the tests compare.

mod completions;
pub(super) mod help;
mod man;

use std::path::Path;
use std::process::ExitCode;

use super::print;

/// All files, by their names below the repository.
pub(super) fn files() -> Vec<(&'static str, String)> {
    vec![
        ("man/gorget.1", man::gorget()),
        ("man/gorget-register.1", man::register()),
        ("man/gorget-web.1", man::web()),
        ("man/gorget-remote-server.1", man::remote_server()),
        ("man/gorget-remote-worker.1", man::remote_worker()),
        ("man/gorget-specification.5", man::specification()),
        ("man/gorget-bridge.7", man::bridge()),
        ("contrib/completions/gorget.bash", completions::bash()),
        ("contrib/completions/_gorget", completions::zsh()),
        ("contrib/completions/gorget.fish", completions::fish()),
    ]
}

/// Writes all files below `directory`.
pub(super) fn write(directory: &Path) -> ExitCode {
    for (name, text) in files() {
        let path = directory.join(name);
        let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        if let Err(error) = made.and_then(|()| std::fs::write(&path, text)) {
            print::err(&format!("cannot write {}: {error}", path.display()));
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
