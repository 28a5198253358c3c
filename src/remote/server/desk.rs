//! The clients of the control socket, as the router knows them: who listens, and what waits to be written to each.
//!
//! Invariant: nothing here waits for a client. What one does not read is kept up to a bound, and then it is hung up on.

use std::collections::HashMap;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use crossbeam_channel::{Sender, TrySendError};

use crate::proto::control::view::json;
use crate::proto::control::{Failure, FailureKind};
use crate::proto::remote::link::Event;

/// Turns of the router whose output a client may leave unread: 65,536 lines, at one line for each of a turn's messages.
pub(super) const BACKLOG: usize = 4096;

/// The number of a client; never used twice.
pub(super) type Number = u64;

struct Client {
    stream: Arc<UnixStream>,
    /// To the thread that writes.
    lines: Sender<String>,
    pid: i32,
    listens: bool,
    /// What this turn of the router has for it.
    turn: String,
}

#[derive(Default)]
pub(super) struct Desk {
    clients: HashMap<Number, Client>,
    attached: Option<Number>,
}

impl Desk {
    pub(super) fn open(
        &mut self,
        number: Number,
        stream: Arc<UnixStream>,
        lines: Sender<String>,
        pid: i32,
    ) {
        let client = Client { stream, lines, pid, listens: false, turn: String::new() };
        self.clients.insert(number, client);
    }

    /// The client is gone; with that the thread that writes to it ends, after what it has to write.
    pub(super) fn close(&mut self, number: Number) {
        self.flush_one(number);
        self.clients.remove(&number);
        if self.attached == Some(number) {
            self.attached = None;
            log::info!(target: "router", "the daemon is detached");
        }
    }

    pub(super) fn listen(&mut self, number: Number) {
        if let Some(client) = self.clients.get_mut(&number) {
            client.listens = true;
        }
    }

    pub(super) fn attach(&mut self, number: Number) -> Result<(), Failure> {
        if let Some(pid) = self.attached.filter(|holder| *holder != number).and(self.pid()) {
            let message = format!("another daemon is attached (process {pid})");
            return Err(Failure::new(FailureKind::Conflict, message));
        }
        self.attached = Some(number);
        log::info!(target: "router", "a daemon is attached (process {})", self.pid().unwrap_or(0));
        Ok(())
    }

    pub(super) fn is_attached(&self, number: Number) -> bool {
        self.attached == Some(number)
    }

    /// The process that is attached.
    pub(super) fn pid(&self) -> Option<i32> {
        Some(self.clients.get(&self.attached?)?.pid)
    }

    pub(super) fn line(&mut self, number: Number, line: &str) {
        if let Some(client) = self.clients.get_mut(&number) {
            client.turn.push_str(line);
            client.turn.push('\n');
        }
    }

    /// Tells all who listen.
    pub(super) fn tell(&mut self, event: &Event) {
        let mut listeners = self.clients.values_mut().filter(|client| client.listens).peekable();
        if listeners.peek().is_none() {
            return;
        }
        let line = json(event);
        for client in listeners {
            client.turn.push_str(&line);
            client.turn.push('\n');
        }
    }

    /// Hands over what this turn has for each.
    pub(super) fn flush(&mut self) {
        let waiting = self.clients.iter().filter(|(_, client)| !client.turn.is_empty());
        let waiting: Vec<Number> = waiting.map(|(number, _)| *number).collect();
        for number in waiting {
            self.flush_one(number);
        }
    }

    fn flush_one(&mut self, number: Number) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        if client.turn.is_empty() {
            return;
        }
        match client.lines.try_send(std::mem::take(&mut client.turn)) {
            // The thread has ended: the reader of the same connection says so.
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            Err(TrySendError::Full(_)) => {
                log::warn!(target: "router", "process {} does not read what it is told: hung up on", client.pid);
                // Its reader is woken and says that it is gone.
                let _ = client.stream.shutdown(Shutdown::Both);
            }
        }
    }

    /// Hangs up on all.
    pub(super) fn end(&mut self) {
        for client in self.clients.values() {
            let _ = client.stream.shutdown(Shutdown::Both);
        }
    }
}
