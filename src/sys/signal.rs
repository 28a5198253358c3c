//! Signals as messages.
//!
//! The thread `signals` blocks on signal-hook's pipe. It is woken by a signal, or by `signals/stop`, which waits for the
//! stop and then closes signal-hook's handle. A second TERM or INT, once a moment has passed, needs neither thread nor
//! supervisor, which may hang: the handler itself ends the process, and the keepers see to the children.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TrySendError, bounded};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};
use signal_hook::low_level;

use super::clock;
use crate::actor::{Gone, Spawner};

/// Signals not yet looked at. More are dropped: the reload that waits covers those after it, and of the stops the first
/// counts.
const INBOX: usize = 16;

/// What the process ends with at a second TERM: not in order.
const AT_ONCE: i32 = 1;

/// How soon after the first TERM another one is the same wish: `timeout` signals its child, and then the group that the
/// child is in.
const SAME: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// TERM or INT, the first. Another one, a moment later, ends the process at once, with status 1.
    Stop,
    /// HUP.
    Reload,
}

/// What the handler of TERM and INT does; `first` is when the first one came, in nanoseconds since `start`.
fn on_stop(start: Instant, first: &AtomicU64) {
    let now = clock::now().duration_since(start);
    // Never 0, which is for none; 584 years fit.
    let nanoseconds = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX).max(1);
    let earlier = first.compare_exchange(0, nanoseconds, Ordering::AcqRel, Ordering::Acquire);
    if earlier.is_err_and(|earlier| now.saturating_sub(Duration::from_nanos(earlier)) >= SAME) {
        low_level::exit(AT_ONCE);
    }
}

/// Starts the thread `signals` that turns TERM, INT and HUP into messages. SIGPIPE is ignored already by std.
/// It ends when the process is to stop: then the channel disconnects.
pub(crate) fn listen(threads: &Spawner) -> io::Result<Receiver<Signal>> {
    let (start, first) = (clock::now(), Arc::new(AtomicU64::new(0)));
    for number in [SIGTERM, SIGINT] {
        let first = Arc::clone(&first);
        // SAFETY: reading the clock, changing an atomic and `_exit` are allowed in a handler.
        unsafe { low_level::register(number, move || on_stop(start, &first)) }?;
    }
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let handle = signals.handle();
    let (sender, receiver) = bounded(INBOX);
    threads.essential("signals", move |_| {
        for number in signals.forever() {
            let signal = if number == SIGHUP { Signal::Reload } else { Signal::Stop };
            match sender.try_send(signal) {
                Ok(()) | Err(TrySendError::Full(_)) => {}
                Err(TrySendError::Disconnected(_)) => return Err(Gone),
            }
        }
        Ok(())
    })?;
    close_at_stop(threads, handle)?;
    Ok(receiver)
}

fn close_at_stop(threads: &Spawner, handle: Handle) -> io::Result<()> {
    threads.child(
        "signals/stop",
        move |stop| {
            // Nothing is ever sent: this is the disconnection.
            let _ = stop.recv();
            handle.close();
            Ok::<_, Gone>(())
        },
        |report| log::debug!(target: "signals", "{report:?}"),
    )
}

/// What signals ask of a process that has work to finish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// TERM, the first: finish what is under way.
    Drain,
    /// INT, or another TERM: give up what is under way. One more ends the process at once, with status 1.
    Abort,
}

/// What a TERM or an INT means after those before it.
#[derive(Debug, Default)]
struct Patience {
    term: Option<Instant>,
    abort: Option<Instant>,
}

impl Patience {
    /// `Err` for the end at once.
    fn heed(&mut self, now: Instant, number: i32) -> Result<Option<End>, ()> {
        let later = |earlier: Option<Instant>| earlier.is_some_and(|earlier| now >= earlier + SAME);
        if self.abort.is_some() {
            return if later(self.abort) { Err(()) } else { Ok(None) };
        }
        if number == SIGINT || later(self.term) {
            self.abort = Some(now);
            return Ok(Some(End::Abort));
        }
        let first = self.term.is_none();
        self.term.get_or_insert(now);
        Ok(first.then_some(End::Drain))
    }
}

/// As [`listen`], for a process that finishes what it does at the first TERM.
pub(crate) fn listen_patiently(threads: &Spawner) -> io::Result<Receiver<End>> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let handle = signals.handle();
    let (sender, receiver) = bounded(INBOX);
    threads.essential("signals", move |_| {
        let mut patience = Patience::default();
        for number in signals.forever() {
            match patience.heed(clock::now(), number) {
                // Whoever should look may hang.
                Err(()) => low_level::exit(AT_ONCE),
                Ok(None) => {}
                // There are two, and room for them.
                Ok(Some(end)) => sender.try_send(end).map_err(|_| Gone)?,
            }
        }
        Ok::<_, Gone>(())
    })?;
    close_at_stop(threads, handle)?;
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::RecvTimeoutError;
    use nix::sys::signal::{self, raise};

    use super::*;
    use crate::actor::PATIENCE;

    #[test]
    fn signals_become_messages_until_the_stop() {
        let (spawner, threads) = Spawner::new();
        let signals = listen(&spawner).unwrap();
        raise(signal::Signal::SIGHUP).unwrap();
        assert_eq!(signals.recv_timeout(PATIENCE), Ok(Signal::Reload));
        raise(signal::Signal::SIGTERM).unwrap();
        assert_eq!(signals.recv_timeout(PATIENCE), Ok(Signal::Stop));
        drop((threads.stop, spawner));
        assert_eq!(signals.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
        let end = threads.all_gone.recv_timeout(PATIENCE);
        assert_eq!(end.unwrap_err(), RecvTimeoutError::Disconnected);
    }

    #[test]
    fn a_process_with_work_drains_then_aborts_then_ends() {
        let (t0, mut patience) = (clock::now(), Patience::default());
        assert_eq!(patience.heed(t0, SIGTERM), Ok(Some(End::Drain)));
        assert_eq!(patience.heed(t0 + SAME / 2, SIGTERM), Ok(None), "the same wish");
        assert_eq!(patience.heed(t0 + SAME, SIGTERM), Ok(Some(End::Abort)));
        assert_eq!(patience.heed(t0 + SAME, SIGINT), Ok(None));
        assert_eq!(patience.heed(t0 + SAME * 2, SIGINT), Err(()));
        assert_eq!(Patience::default().heed(t0, SIGINT), Ok(Some(End::Abort)));
    }
}
