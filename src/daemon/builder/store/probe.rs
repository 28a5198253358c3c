//! Whether a daemon answers: asked at the start, and again after a build found that it does not, until it does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryRecvError, after, bounded, select};

use super::connect;
use super::keeper::Keeper;
use crate::actor::{Gone, Spawner, Stop};
use crate::daemon::builder::Report;
use crate::daemon::builder::running::Leash;
use crate::model::error::chain;
use crate::store::{Address, Closer, Dialect, Error, Tunnel};

/// Between two tries: a daemon that is restarted is found at once, one that is not there costs nothing to speak of.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));

/// Shared by the backend and its builds. The flag is no message: the report that follows its change is.
#[derive(Clone)]
pub(super) struct Reach {
    open: Arc<AtomicBool>,
    doubt: Sender<()>,
    leash: Arc<Leash<Closer>>,
}

impl Reach {
    /// Starts the thread `store/guix` or `store/nix`, which begins by asking.
    pub(super) fn spawn(
        threads: &Spawner,
        dialect: Dialect,
        (address, mut tunnel): (Address, Option<Tunnel>),
        (lane, keeper): (Sender<Report>, Keeper),
    ) -> io::Result<Self> {
        let (doubt, doubts) = bounded(1);
        let open = Arc::new(AtomicBool::new(false));
        let leash = Arc::new(Leash::default());
        let reach = Self { open: Arc::clone(&open), doubt, leash: Arc::clone(&leash) };
        reach.lose();
        let name = match dialect {
            Dialect::Guix => "store/guix",
            Dialect::Nix => "store/nix",
        };
        threads.essential(name, move |stop| {
            let mut reach = || {
                // Connecting may take long, and a stop must not.
                let wanted = || stop.try_recv() != Err(TryRecvError::Disconnected);
                if let Some(tunnel) = &mut tunnel {
                    tunnel.open(&wanted).map_err(Error::Connect)?;
                }
                drop(connect((&address, dialect), &leash, &wanted)?);
                // The leash holds it open, too.
                leash.release();
                Ok(())
            };
            run((dialect, &address), &mut reach, &open, (&lane, &keeper), &doubts, &stop)
        })?;
        Ok(reach)
    }

    /// That of a daemon that answers, as far as is known, and that nobody asks.
    #[cfg(test)]
    pub(super) fn unwatched() -> Self {
        Self { open: Arc::new(AtomicBool::new(true)), doubt: bounded(1).0, leash: Arc::default() }
    }

    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// For the stop: it may be waiting for the daemon.
    pub(super) fn end(&self) {
        self.leash.cancel();
    }

    /// A connection was refused or broke: nothing is started until the daemon answers again.
    pub(super) fn lose(&self) {
        self.open.store(false, Ordering::Release);
        let _ = self.doubt.try_send(()); // One doubt is enough.
    }
}

fn run(
    (dialect, address): (Dialect, &Address),
    reach: &mut dyn FnMut() -> Result<(), Error>,
    open: &AtomicBool,
    (lane, keeper): (&Sender<Report>, &Keeper),
    doubts: &Receiver<()>,
    stop: &Stop,
) -> Result<(), Gone> {
    let mut told = false;
    loop {
        select! {
            recv(stop) -> _ => return Ok(()),
            recv(doubts) -> doubt => doubt?,
        }
        let mut pause = PAUSES.0;
        while let Err(error) = reach() {
            if !told {
                let why = chain(&error);
                log::info!(target: "builder", "builds of {} wait for {dialect} at {address}: {why}", dialect.store());
                told = true;
            }
            select! {
                recv(stop) -> _ => return Ok(()),
                recv(after(pause)) -> _ => {}
            }
            pause = (pause * 2).min(PAUSES.1);
        }
        log::info!(target: "builder", "{dialect} answers at {address}");
        told = false;
        open.store(true, Ordering::Release);
        // A builder that is gone need not know.
        let _ = lane.send(Report::Changed);
        // Roots that could not be made meanwhile.
        keeper.look();
    }
}
