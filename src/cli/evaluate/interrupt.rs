//! INT, TERM and HUP while something runs: they end its child, and the rest unwinds as after any failure, which removes
//! what was made. A second one ends the process at once.
//!
//! The thread `interrupt` waits for signals, and for the child that the next one is to end.

use std::convert::Infallible;
use std::io;

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded, select};

use crate::actor::{Gone, Spawner, Stop, Threads};
use crate::sys::process::Killer;
use crate::sys::signal::{self, Signal};

/// Children on their way to the thread, which is always ready for them.
const INBOX: usize = 1;

pub(super) struct Interrupt {
    children: Sender<Killer>,
    /// Disconnects at the first signal.
    told: Receiver<Infallible>,
    /// Dropped, they end the threads.
    #[expect(dead_code, reason = "held, not read")]
    threads: Threads,
}

impl Interrupt {
    pub(super) fn listen() -> io::Result<Self> {
        let (spawner, threads) = Spawner::new();
        let signals = signal::listen(&spawner)?;
        let (children, running) = bounded(INBOX);
        let (tell, told) = bounded(0);
        let body = move |stop| -> Result<(), Gone> { run(&stop, &signals, &running, tell) };
        spawner.child("interrupt", body, |_| ())?;
        Ok(Self { children, told, threads })
    }

    /// The next signal ends this child; at once, if it has come.
    pub(super) fn ends(&self, child: Killer) {
        // The thread goes only when this does.
        let _ = self.children.send(child);
    }

    /// Whether a signal has come.
    pub(super) fn has_come(&self) -> bool {
        self.told.try_recv() == Err(TryRecvError::Disconnected)
    }
}

fn run(
    stop: &Stop,
    signals: &Receiver<Signal>,
    running: &Receiver<Killer>,
    tell: Sender<Infallible>,
) -> Result<(), Gone> {
    let (mut tell, mut child): (_, Option<Killer>) = (Some(tell), None);
    loop {
        select! {
            recv(stop) -> _ => return Ok(()),
            recv(signals) -> signal => {
                signal?;
                // Dropped: this is the message.
                tell = None;
            }
            recv(running) -> killer => child = Some(killer?),
        }
        if tell.is_none()
            && let Some(child) = &child
        {
            child.cancel();
        }
    }
}
