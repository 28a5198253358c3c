//! The way to `remote-server`: one thread connects again and again and reads, another writes.
//!
//! Invariant: whoever has something to say never waits for the server; one that takes no lines is hung up on.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError, after, bounded, select};

use super::Heard;
use crate::actor::{Gone, Spawner, Stop};
use crate::proto::control::Failure;
use crate::proto::line::{Line, Lines, MAX_ANSWER};
use crate::proto::remote::link::{Command, Event};
use crate::sys::clock;
use crate::sys::connect::{self, Patience};

/// Between two tries to connect: a server that is restarted is found at once, one that is not there costs nothing.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Lines that wait to be written: an assignment and a settlement for each of many workers.
const LINES: usize = 16 * 1024;

/// How long the server may take no byte, or give no answer to whoever attaches.
const DRAIN: Duration = Duration::from_secs(10);

/// What is said to the server goes here, as long as the connection lasts.
#[derive(Debug)]
pub(in crate::daemon::builder) struct Mouth {
    lines: Sender<String>,
    stream: Arc<UnixStream>,
}

impl Mouth {
    pub(super) fn say(&self, command: &Command) {
        if self.lines.try_send(format!("{command}\n")).is_err() {
            // It has taken nothing for long; the reading thread notices the end.
            let _ = self.stream.shutdown(Shutdown::Both);
        }
    }
}

/// Hangs up when the builder is done with it.
impl Drop for Mouth {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Starts the thread `remote`, which tells on `lane` what it hears. It ends with the stop.
pub(super) fn spawn(threads: &Spawner, socket: PathBuf, lane: Sender<Heard>) -> io::Result<()> {
    let spawner = threads.clone();
    threads.essential("remote", move |stop| {
        let ear = Ear { threads: spawner, socket, lane };
        ear.run(&stop)
    })
}

struct Ear {
    threads: Spawner,
    socket: PathBuf,
    lane: Sender<Heard>,
}

impl Ear {
    fn run(&self, stop: &Stop) -> Result<(), Gone> {
        let (mut pause, mut told) = (PAUSES.0, false);
        loop {
            match self.attend(stop) {
                // It was there.
                Ok(why) => {
                    (pause, told) = (PAUSES.0, false);
                    if !is_over(stop) {
                        log::warn!(target: "builder", "the connection to remote-server ended: {why}");
                    }
                }
                Err(error) if !told => {
                    told = true;
                    let socket = self.socket.display();
                    log::info!(target: "builder", "builds of derivations wait for remote-server at {socket}: {error}");
                }
                Err(_) => {}
            }
            select! {
                recv(stop) -> _ => return Ok(()),
                recv(after(pause)) -> _ => pause = (pause * 2).min(PAUSES.1),
            }
        }
    }

    /// One connection, from its begin to its end, and why that came; an error if there was none.
    fn attend(&self, stop: &Stop) -> io::Result<String> {
        let patience = Patience { until: clock::now() + DRAIN, wanted: &|| !is_over(stop) };
        let stream = Arc::new(connect::unix(&self.socket, &patience)?);
        stream.set_write_timeout(Some(DRAIN))?;
        let (lines, written) = bounded::<String>(LINES);
        let writer = Arc::clone(&stream);
        self.threads.small(
            "remote/mouth",
            move |_stop| -> Result<(), Gone> {
                write(&writer, &written);
                Ok(())
            },
            |report| log::debug!(target: "builder", "{report:?}"),
        )?;
        let mouth = Mouth { lines, stream: Arc::clone(&stream) };
        mouth.say(&Command::Attach);
        // Whoever has it wakes us at the stop.
        if self.lane.send(Heard::Calling(mouth)).is_err() {
            return Ok("the daemon stops".to_owned());
        }
        let mut lines = Lines::new(&*stream, MAX_ANSWER);
        if let Err(error) = attached(&mut lines, &stream) {
            let _ = stream.shutdown(Shutdown::Both);
            return Err(error);
        }
        log::info!(target: "builder", "attached to remote-server at {}", self.socket.display());
        if self.lane.send(Heard::Connected).is_err() {
            return Ok("the daemon stops".to_owned());
        }
        let why = self.listen(&mut lines);
        // A builder that is gone need not know.
        let _ = self.lane.send(Heard::Disconnected);
        Ok(why)
    }

    fn listen(&self, lines: &mut Lines<&UnixStream>) -> String {
        loop {
            let line = match lines.read() {
                Ok(Line::Text(line)) => line,
                Ok(Line::End) => return "it was closed".to_owned(),
                Ok(Line::TooLong | Line::NotUtf8) => return "what came is no event".to_owned(),
                Err(error) => return error.to_string(),
            };
            let answer = match Failure::from_line(&line) {
                Some(failure) => {
                    log::debug!(target: "builder", "remote-server refused: {}", failure.message);
                    Some(Err(failure))
                }
                None => (line == "ok").then_some(Ok(())),
            };
            if let Some(answer) = answer {
                if self.lane.send(Heard::Answer(answer)).is_err() {
                    return "the daemon stops".to_owned();
                }
                continue;
            }
            match serde_json::from_str::<Event>(&line) {
                Ok(event) => {
                    if self.lane.send(Heard::Event(event)).is_err() {
                        return "the daemon stops".to_owned();
                    }
                }
                // A newer server may know more.
                Err(error) => log::debug!(target: "builder", "unknown event {line:.200}: {error}"),
            }
        }
    }
}

/// Waits for the answer to `attach`, which says whether we are the one that assigns.
fn attached(lines: &mut Lines<&UnixStream>, stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(DRAIN))?;
    let line = lines.read().map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "it does not answer"),
        _ => error,
    });
    match line? {
        Line::Text(line) if line == "ok" => stream.set_read_timeout(None),
        Line::Text(line) => {
            let why = Failure::from_line(&line).map_or(line, |failure| failure.message);
            Err(io::Error::other(why))
        }
        Line::TooLong | Line::NotUtf8 => Err(io::ErrorKind::InvalidData.into()),
        Line::End => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn is_over(stop: &Stop) -> bool {
    stop.try_recv() == Err(TryRecvError::Disconnected)
}

/// Writes lines as they come, those that are there at once.
fn write(stream: &UnixStream, lines: &Receiver<String>) {
    let mut text = String::new();
    while let Ok(line) = lines.recv() {
        text.push_str(&line);
        text.extend(lines.try_iter());
        if let Err(error) = (&*stream).write_all(text.as_bytes()) {
            log::debug!(target: "builder", "remote-server takes nothing: {error}");
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
        text.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_server_that_hangs_does_not_hold_up_a_stop() {
        let place = tempfile::tempdir().unwrap();
        let socket = place.path().join("remote");
        let listener = UnixListener::bind(&socket).unwrap();
        let (spawner, threads) = Spawner::new();
        let (lane, heard) = bounded(16);
        super::spawn(&spawner, socket, lane).unwrap();
        drop(spawner);
        let (server, _) = listener.accept().unwrap();
        let mut asked = String::new();
        BufReader::new(&server).read_line(&mut asked).unwrap();
        assert_eq!(asked, "attach\n");
        let calling = heard.recv_timeout(DRAIN).unwrap();
        assert!(matches!(calling, Heard::Calling(_)));
        // What the builder does at its end.
        drop((threads.stop, heard, calling));
        let gone = threads.all_gone.recv_timeout(DRAIN / 2);
        assert!(gone.unwrap_err().is_disconnected());
    }
}
