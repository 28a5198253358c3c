//! Reads a log as it grows, to its end, also when another try writes it anew.

use std::io;
use std::time::Duration;

use crossbeam_channel::{TryRecvError, select};

use super::hub::{Filter, Subscription};
use crate::logs::Tail;
use crate::sys::clock;
use crate::web::file::{Look, Of, Source};
use crate::web::response::Sink;

/// How long a wait for more of a log may keep us from seeing what else happened.
const SLICE: Duration = Duration::from_millis(250);

/// How often the books are looked at though nothing was heard: the daemon may be away, its end with it.
const LOOK: Duration = Duration::from_secs(5);

/// Who is told.
pub(in crate::web) trait Listener {
    fn sink(&mut self) -> &mut dyn Sink;

    /// The build's or evaluation's status is another, or the log's end is near.
    fn status(&mut self, look: &Look) -> io::Result<()>;

    /// What comes next is from the beginning of what this try writes.
    fn begin(&mut self, attempt: i64) -> io::Result<()>;

    /// Bytes of the log, the first of them at `offset`. Those that are left in `bytes` come again, with more behind
    /// them; at the `end` nothing comes again.
    fn text(&mut self, offset: u64, bytes: &mut Vec<u8>, end: bool) -> io::Result<()>;

    /// Called now and then while there is nothing to tell.
    fn idle(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Tells `source` from the offset `from` on, until its writer has ended. `look` is what the books said just now.
pub(in crate::web) fn run(
    source: &Source,
    look: &Look,
    from: u64,
    listener: &mut dyn Listener,
) -> io::Result<()> {
    let filter = match source.of {
        Of::Build(id) => Filter { build: Some(id), ..Filter::default() },
        Of::Evaluation(id) => Filter { evaluation: Some(id), ..Filter::default() },
    };
    // Without one the books are looked at often enough.
    let heard = source.shared.live.watch(filter.clone()).ok();
    let now = look_at(source)?;
    let mut follower = Follower { source, filter, heard, now, next: clock::now() + LOOK };
    listener.status(&follower.now)?;
    follower.run(look.attempt, from, listener)
}

struct Follower<'a> {
    source: &'a Source,
    filter: Filter,
    heard: Option<Subscription>,
    now: Look,
    /// When to look at the books again.
    next: std::time::Instant,
}

impl Follower<'_> {
    fn run(&mut self, attempt: i64, from: u64, listener: &mut dyn Listener) -> io::Result<()> {
        let (mut attempt, mut from) = (attempt, from);
        loop {
            match self.now.open(from)? {
                Some(tail) => {
                    let first = self.now.attempt.max(1);
                    if first != attempt.max(1) {
                        (attempt, from) = (first, 0);
                        listener.begin(first)?;
                        continue;
                    }
                    if self.tell(tail, from, listener)? {
                        return listener.sink().flush();
                    }
                    // Another try has begun a log of its own.
                    (attempt, from) = (self.now.attempt.max(1), 0);
                    listener.begin(attempt)?;
                }
                None if self.now.over => return listener.sink().flush(),
                None => {
                    listener.sink().flush()?;
                    self.wait(listener)?;
                }
            }
        }
    }

    /// Tells one file to its end: true if nothing follows it.
    fn tell(&mut self, mut tail: Tail, from: u64, listener: &mut dyn Listener) -> io::Result<bool> {
        let (mut bytes, mut position) = (Vec::new(), from);
        loop {
            // Looked at before the file is read to its end, so that nothing can come after.
            let (over, replaced) = (self.now.over, tail.is_replaced()?);
            loop {
                let kept = bytes.len();
                let Some(offset) = tail.read(&mut bytes)? else { break };
                position = offset.saturating_sub(kept as u64);
                listener.text(position, &mut bytes, false)?;
            }
            if over || replaced {
                let left = bytes.len() as u64;
                let end = position.max(from);
                if left > 0 {
                    listener.text(end, &mut bytes, true)?;
                }
                bytes.clear();
                listener.sink().flush()?;
                if over && !replaced {
                    return Ok(true);
                }
                self.look(listener)?;
                return Ok(false);
            }
            listener.sink().flush()?;
            tail.wait(clock::now() + SLICE)?;
            self.news(listener)?;
        }
    }

    /// Waits until something may be different.
    fn wait(&mut self, listener: &mut dyn Listener) -> io::Result<()> {
        let stop = listener.sink().stop().clone();
        // The file comes a moment after the event.
        let late = crossbeam_channel::after(SLICE);
        let never = crossbeam_channel::never();
        let lane = self.heard.as_ref().map_or(&never, |heard| &heard.lane);
        select! {
            recv(stop) -> _ => return Err(stopping()),
            recv(lane) -> told => {
                if told.is_err() {
                    self.heard = self.source.shared.live.watch(self.filter.clone()).ok();
                }
                return self.look(listener);
            }
            recv(late) -> _ => {}
        }
        self.news(listener)
    }

    /// Looks at the books if something was heard, or it is time to.
    fn news(&mut self, listener: &mut dyn Listener) -> io::Result<()> {
        if listener.sink().stop().try_recv().is_err_and(|error| error.is_disconnected()) {
            return Err(stopping());
        }
        let mut heard = false;
        while let Some(told) = self.heard.as_ref().map(|heard| heard.lane.try_recv()) {
            match told {
                Ok(_) => heard = true,
                Err(TryRecvError::Empty) => break,
                // More has happened than there was room for.
                Err(TryRecvError::Disconnected) => {
                    heard = true;
                    self.heard = self.source.shared.live.watch(self.filter.clone()).ok();
                    break;
                }
            }
        }
        if heard || clock::now() >= self.next {
            self.look(listener)?;
        }
        listener.idle()
    }

    fn look(&mut self, listener: &mut dyn Listener) -> io::Result<()> {
        self.next = clock::now() + LOOK;
        match look_at(self.source) {
            Ok(now) if now.status == self.now.status => self.now = now,
            Ok(now) => {
                self.now = now;
                listener.status(&self.now)?;
            }
            // The books may be back before the log ends.
            Err(error) => log::debug!(target: "web", "a log's end is not known: {error}"),
        }
        Ok(())
    }
}

fn stopping() -> io::Error {
    io::Error::new(io::ErrorKind::Interrupted, "the process is stopping")
}

fn look_at(source: &Source) -> io::Result<Look> {
    let found = source.look().map_err(io::Error::other)?;
    found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "it has been removed"))
}

/// How many bytes can be told without cutting a character that may go on.
pub(in crate::web) fn whole_characters(bytes: &[u8]) -> usize {
    // A character has at most four bytes: only the last three can be the beginning of one. Invalid bytes wait for
    // nothing.
    let begins = |at: &usize| {
        std::str::from_utf8(&bytes[*at..])
            .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    };
    (bytes.len().saturating_sub(3)..bytes.len()).find(begins).unwrap_or(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_not_cut() {
        let text = "aé€🎉".as_bytes();
        let lengths: Vec<_> = (0..=text.len()).map(|n| whole_characters(&text[..n])).collect();
        assert_eq!(lengths, [0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10]);
        assert_eq!(whole_characters(b"a\x80\x80\x80\x80"), 5);
        assert_eq!(whole_characters(b"\xff\xff"), 2);
        assert_eq!(whole_characters(b"\xffabc"), 4);
    }
}
