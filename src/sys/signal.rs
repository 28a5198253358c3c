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
use signal_hook::iterator::Signals;
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
    threads.child(
        "signals/stop",
        move |stop| {
            // Nothing is ever sent: this is the disconnection.
            let _ = stop.recv();
            handle.close();
            Ok::<_, Gone>(())
        },
        |report| log::debug!(target: "signals", "{report:?}"),
    )?;
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
}
