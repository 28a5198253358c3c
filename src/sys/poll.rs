//! Waiting on descriptors until a deadline.

use std::io;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollTimeout, poll};

use super::clock;

/// Waits until one of `fds` is ready or `deadline` has passed, and returns how many are ready.
pub(crate) fn ready(fds: &mut [PollFd], deadline: Option<Instant>) -> io::Result<usize> {
    loop {
        match poll(fds, timeout(clock::now(), deadline)) {
            // More than `poll` can wait for at once: some 24 days.
            Ok(0) if deadline.is_none_or(|deadline| clock::now() < deadline) => {}
            Err(Errno::EINTR) => {}
            result => return Ok(usize::try_from(result?).unwrap_or(0)),
        }
    }
}

/// Whether anything happened on a descriptor that `poll` has seen, its end or an error included.
pub(crate) fn is_ready(fd: &PollFd) -> bool {
    fd.any().unwrap_or(true)
}

/// Milliseconds from `now` to `deadline`, rounded up lest the last one is spent spinning.
fn timeout(now: Instant, deadline: Option<Instant>) -> PollTimeout {
    let Some(deadline) = deadline else { return PollTimeout::NONE };
    let milliseconds = deadline.saturating_duration_since(now).as_micros().div_ceil(1000);
    i32::try_from(milliseconds)
        .ok()
        .and_then(|milliseconds| PollTimeout::try_from(milliseconds).ok())
        .unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn timeouts_round_up_and_saturate() {
        let now = clock::now();
        let of = |duration| timeout(now, Some(now + duration)).as_millis();
        assert_eq!(timeout(now, None), PollTimeout::NONE);
        assert_eq!(timeout(now + Duration::from_secs(1), Some(now)).as_millis(), Some(0));
        assert_eq!(of(Duration::from_micros(1)), Some(1));
        assert_eq!(of(Duration::from_millis(20)), Some(20));
        assert_eq!(of(Duration::from_secs(1 << 40)), Some(u32::try_from(i32::MAX).unwrap()));
    }
}
