//! Standard output and standard error, for what no logger says.

use std::io::{self, Write};
use std::process::ExitCode;

/// A usage error.
pub(super) const USAGE: u8 = 2;

/// Prints to standard output. A reader that has gone has read enough: that is success.
pub(super) fn out(text: &str) -> ExitCode {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            err(&format!("cannot write to standard output: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Prints a message with the program's name to standard error.
pub(super) fn err(message: &str) {
    // There is nobody left to tell.
    let _ = writeln!(io::stderr(), "gorget: {message}");
}
