//! What an evaluator of ours tells the daemon: by its exit status, whether to try again; and by lines of its own among the jobs, and the answers, which come through the
//! pipe that `GORGET_ANSWERS` names. A one-off has no daemon, and no such variable.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::{env, io::Take};

use serde::Deserialize;

use crate::sys::process::{Exit, How};

/// The exit status that says: for no fault of what was evaluated, the store was away, say; it is worth another try. What
/// `sysexits.h` has for that, and neither Guix, Nix nor a shell ends with.
pub(super) const FOREIGN: u8 = 75;

/// Whether a program ended for no fault of what it evaluated: others took the memory, or its keeper was killed.
pub(super) fn is_foreign(exit: &Exit) -> bool {
    match exit.how {
        How::Code(code) => exit.oom || code == i32::from(FOREIGN),
        How::Signal(signal) => exit.oom || signal == libc::SIGKILL,
        How::Prevented(_) | How::Lost => true,
        How::NotStarted(_) => false,
    }
}

/// The one job of which the end of its build may be asked: the Guix of the jobset's channels.
pub(super) const PROFILE: &str = "guix-profile";

/// The line that asks whether the derivations of all jobs before it are kept. Until it is answered, the process that made
/// them must live: it is what keeps them.
pub(crate) const HOLD: &[u8] = br#"{"hold":true}"#;

/// The variable.
pub(super) const ANSWERS: &str = "GORGET_ANSWERS";

/// Bytes of an answer: an error is a line.
const MAX_ANSWER: u64 = 4096;

/// How the daemon says that a build has ended, or that derivations are kept.
#[derive(Deserialize)]
pub(super) struct Answer {
    pub(super) status: String,
    pub(super) error: Option<String>,
}

/// Where answers come.
pub(super) struct Answers(BufReader<Take<File>>);

impl Answers {
    /// Before anything is asked. For writing, too: so that it is not at its end while nobody else writes. `None` when
    /// nobody would answer.
    pub(super) fn open() -> io::Result<Option<Self>> {
        let Some(path) = env::var_os(ANSWERS) else { return Ok(None) };
        let file = File::options().read(true).write(true).open(path)?;
        Ok(Some(Self(BufReader::new(file.take(MAX_ANSWER)))))
    }

    pub(super) fn next(mut self) -> io::Result<Answer> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }
}

/// Returns when the derivations of all jobs that were printed are kept.
pub(super) fn hold() -> io::Result<()> {
    let Some(answers) = Answers::open()? else { return Ok(()) };
    let mut output = io::stdout().lock();
    output.write_all(&[HOLD, b"\n"].concat())?;
    output.flush()?;
    answers.next().map(drop)
}
