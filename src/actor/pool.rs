//! A bounded pool of threads for work that takes long.
//!
//! Invariant: a job is handed over only to an idle thread; until then it waits in its owner's core, where
//! it can be reordered, cancelled and shown. A job that panics fails alone.

use std::io;

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded, select};

use super::{Gone, Spawner, Stop};

type Job = Box<dyn FnOnce() + Send>;

/// Hands jobs to the pool's threads. Each job reports its own end on a lane of its owner.
#[derive(Clone)]
pub(crate) struct Pool {
    jobs: Sender<Job>,
    /// To drop what no thread will take up any more: a channel keeps what it holds until its senders are gone.
    inbox: Receiver<Job>,
    stop: Stop,
}

impl Pool {
    /// Starts `size` threads named `family/0`, `family/1`, ….
    pub(crate) fn new(threads: &Spawner, family: &str, size: usize) -> io::Result<Self> {
        // Room for one job a thread: owners count what is under way and hand over no more.
        let (jobs, inbox) = bounded::<Job>(size);
        for n in 0..size {
            let inbox = inbox.clone();
            threads.child(
                &format!("{family}/{n}"),
                move |stop| -> Result<(), Gone> {
                    loop {
                        select! {
                            recv(stop) -> _ => {
                                drop_all(&inbox);
                                return Ok(());
                            }
                            recv(inbox) -> job => (job?)(),
                        }
                    }
                },
                |report| log::debug!(target: "pool", "{report:?}"),
            )?;
        }
        Ok(Self { jobs, inbox, stop: threads.stop() })
    }

    /// Hands over `job`, which must report its end itself, a panic included. `Err(Gone)` when the pool is
    /// stopping, or was given more than it has threads.
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) -> Result<(), Gone> {
        self.jobs.try_send(Box::new(job)).map_err(|error| match error {
            TrySendError::Full(_) | TrySendError::Disconnected(_) => Gone,
        })?;
        // Threads that see the stop look once more; whoever comes after that does it for them.
        if self.stop.try_recv() == Err(TryRecvError::Disconnected) {
            drop_all(&self.inbox);
        }
        Ok(())
    }
}

fn drop_all(inbox: &Receiver<Job>) {
    while inbox.try_recv().is_ok() {}
}
