//! Answers that go on: waits, subscriptions, logs.
//!
//! Each subscribes to events first and reads the books then, so that nothing falls between. Each ends when the
//! asker is gone or the daemon stops.

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crossbeam_channel::{Receiver, select};

use super::live::{Live, failure, not_found};
use crate::control::{Answer, Error};
use crate::db::{Subscription, builds, events};
use crate::logs::Tail;
use crate::model::event::{Event, What};
use crate::model::spec::JobsetName;
use crate::model::status::EvaluationStatus;
use crate::proto::control::view::{self, LogView, json};
use crate::proto::control::{Failure, FailureKind, Target};
use crate::sys::clock;

/// Events that may pile up while a subscriber takes none: seconds of a busy daemon, a few hundred kilobytes.
const ROOM: usize = 4096;

/// Events replayed at once.
const PAGE: usize = 1000;

/// How often a followed log's end is looked for in the books while nothing is written to it.
const LOOK: Duration = Duration::from_secs(1);

impl Live {
    pub(super) fn wait(&mut self, target: Target, answer: &mut dyn Answer) -> Result<(), Error> {
        let mut watched = None;
        loop {
            let subscription = self.ports.database.subscribe(ROOM).map_err(failure)?;
            let lane: &Receiver<Subscription> = &subscription;
            loop {
                if let Some(object) = self.ended(target)? {
                    return answer.object(&object).map_err(Error::Asker);
                }
                let gone = watch(&mut watched, answer)?;
                if !self.next_ending(target, lane, gone)? {
                    // Events were lost: subscribe again, then look.
                    break;
                }
            }
        }
    }

    /// The object of what is waited for, once it has ended.
    fn ended(&mut self, target: Target) -> Result<Option<String>, Failure> {
        match target {
            Target::Build(id) => {
                let build = self.build(id)?;
                Ok((!build.status.is_pending()).then(|| view::build(&build, None)))
            }
            Target::Evaluation(id) => {
                let settled = builds::settled(self.reader()?, id).map_err(failure)?;
                let (all_ended, _) =
                    settled.ok_or_else(|| not_found(format!("there is no evaluation {id}")))?;
                if !all_ended {
                    return Ok(None);
                }
                Ok(Some(view::evaluation(&self.evaluation(id)?)))
            }
        }
    }

    /// Waits for an event after which the books may look different; false if events were lost.
    fn next_ending(
        &self,
        target: Target,
        lane: &Receiver<Subscription>,
        gone: &Receiver<Infallible>,
    ) -> Result<bool, Error> {
        loop {
            let first = self.next_event(lane, gone)?;
            let mut matters = false;
            // All that is there already costs one look.
            for subscription in std::iter::once(first).chain(lane.try_iter().map(Some)) {
                match subscription {
                    Some(Subscription::Event(event)) => matters |= may_end(target, &event),
                    Some(Subscription::Overflow) | None => return Ok(false),
                }
            }
            if matters {
                return Ok(true);
            }
        }
    }

    /// The next event; `None` when the lane is closed.
    fn next_event(
        &self,
        lane: &Receiver<Subscription>,
        gone: &Receiver<Infallible>,
    ) -> Result<Option<Subscription>, Error> {
        select! {
            recv(self.stop) -> _ => {
                Err(Failure::new(FailureKind::Unavailable, "the daemon is stopping").into())
            }
            recv(gone) -> _ => Err(Error::Asker(io::ErrorKind::BrokenPipe.into())),
            recv(lane) -> event => Ok(event.ok()),
        }
    }

    pub(super) fn subscribe(
        &mut self,
        jobset: Option<&JobsetName>,
        from: Option<i64>,
        answer: &mut dyn Answer,
    ) -> Result<(), Error> {
        self.known(jobset)?;
        let mut subscription = self.ports.database.subscribe(ROOM).map_err(failure)?;
        let mut told = match from {
            Some(from) => self.replay(jobset, from, answer)?,
            None => 0,
        };
        answer.flush().map_err(Error::Asker)?;
        let mut watched = None;
        let gone = watch(&mut watched, answer)?.clone();
        loop {
            let lane: &Receiver<Subscription> = &subscription;
            let first = self.next_event(lane, &gone)?;
            let mut lost = false;
            for subscription in std::iter::once(first).chain(lane.try_iter().map(Some)) {
                let Some(Subscription::Event(event)) = subscription else {
                    lost = true;
                    break;
                };
                // The replay may have told it already.
                if event.id > told && (jobset.is_none() || event.jobset.as_ref() == jobset) {
                    told = event.id;
                    answer.object(&view::event(&event)).map_err(Error::Asker)?;
                }
            }
            if lost {
                subscription = self.ports.database.subscribe(ROOM).map_err(failure)?;
                told = self.overflow(answer)?;
            }
            answer.flush().map_err(Error::Asker)?;
        }
    }

    /// Tells the events after `from`; returns the id up to which all is told.
    fn replay(
        &mut self,
        jobset: Option<&JobsetName>,
        from: i64,
        answer: &mut dyn Answer,
    ) -> Result<i64, Error> {
        // An id of the future is one of another life of the books.
        if from > events::last(self.reader()?).map_err(failure)? {
            return self.overflow(answer);
        }
        let mut told = from;
        loop {
            let page = events::after(self.reader()?, told, jobset, PAGE).map_err(failure)?;
            let Some(page) = page else { return self.overflow(answer) };
            for event in &page {
                told = event.id;
                answer.object(&view::event(event)).map_err(Error::Asker)?;
            }
            if page.len() < PAGE {
                return Ok(told);
            }
        }
    }

    /// Says that the state must be read again: events up to the id returned are not told.
    fn overflow(&mut self, answer: &mut dyn Answer) -> Result<i64, Error> {
        let last = events::last(self.reader()?).map_err(failure)?;
        answer.object(&view::overflow(last, clock::wall())).map_err(Error::Asker)?;
        Ok(last)
    }

    pub(super) fn log(
        &mut self,
        of: Target,
        from: u64,
        follow: bool,
        answer: &mut dyn Answer,
    ) -> Result<(), Error> {
        let mut source = self.log_source(of)?;
        if !follow {
            let Some(mut tail) = source.open(from)? else {
                // The books tell of a beginning a moment before the file is there.
                let begins = !source.over && source.path.is_some();
                let missing = || not_found(format!("there is no log of {of}"));
                return if begins { Ok(()) } else { Err(missing().into()) };
            };
            let mut text = Chunks::default();
            while text.read(&mut tail)? {
                text.tell(answer, false)?;
            }
            return text.tell(answer, true);
        }
        let mut watched = None;
        let gone = watch(&mut watched, answer)?.clone();
        let (mut from, mut told) = (from, false);
        loop {
            source = match source.open(from)? {
                Some(tail) => {
                    if self.follow(of, tail, answer, &gone)? {
                        return Ok(());
                    }
                    (from, told) = (0, true);
                    self.log_source(of)?
                }
                // It was removed meanwhile.
                None if source.over && told => return Ok(()),
                None if source.over => {
                    return Err(not_found(format!("there is no log of {of}")).into());
                }
                None => self.log_begins(of, &gone)?,
            };
        }
    }

    /// Tells one file until its writer has ended, or until another try has begun a file of its own: true if nothing
    /// follows it. The books tell of another try a moment before its file is there.
    fn follow(
        &mut self,
        of: Target,
        mut tail: Tail,
        answer: &mut dyn Answer,
        gone: &Receiver<Infallible>,
    ) -> Result<bool, Error> {
        let mut text = Chunks::default();
        loop {
            // Looked at before the file is read to its end, and in this order, so that nothing can come after.
            let over = self.log_source(of)?.over;
            let replaced = tail.is_replaced().map_err(unreadable)?;
            while text.read(&mut tail)? {
                text.tell(answer, false)?;
            }
            if over || replaced {
                text.tell(answer, true)?;
                answer.flush().map_err(Error::Asker)?;
                return Ok(!replaced);
            }
            answer.flush().map_err(Error::Asker)?;
            self.still_wanted(gone)?;
            tail.wait(clock::now() + LOOK).map_err(unreadable)?;
        }
    }

    /// Waits until there may be a log.
    fn log_begins(&mut self, of: Target, gone: &Receiver<Infallible>) -> Result<Source, Error> {
        let subscription = self.ports.database.subscribe(ROOM).map_err(failure)?;
        let lane: &Receiver<Subscription> = &subscription;
        let now = self.log_source(of)?;
        if now.over || now.path.as_ref().is_some_and(|path| path.exists()) {
            return Ok(now);
        }
        let late = crossbeam_channel::after(LOOK);
        select! {
            recv(self.stop) -> _ => {}
            recv(gone) -> _ => {}
            recv(lane) -> _ => {}
            // The file comes a moment after the event.
            recv(late) -> _ => {}
        }
        self.still_wanted(gone)?;
        Ok(self.log_source(of)?)
    }

    fn still_wanted(&self, gone: &Receiver<Infallible>) -> Result<(), Error> {
        if self.stop.try_recv().is_err_and(|error| error.is_disconnected()) {
            return Err(Failure::new(FailureKind::Unavailable, "the daemon is stopping").into());
        }
        if gone.try_recv().is_err_and(|error| error.is_disconnected()) {
            return Err(Error::Asker(io::ErrorKind::BrokenPipe.into()));
        }
        Ok(())
    }

    fn log_source(&mut self, of: Target) -> Result<Source, Failure> {
        match of {
            Target::Build(id) => {
                let build = self.build(id)?;
                let over = !build.status.is_pending();
                Ok(Source { path: build.log, over })
            }
            Target::Evaluation(id) => {
                let over = self.evaluation(id)?.status != EvaluationStatus::Started;
                let path = self.ports.facts.log_directory.join(format!("evaluations/{id}.gz"));
                Ok(Source { path: Some(path), over })
            }
        }
    }
}

/// Whether the end of `target` may have come with this event.
fn may_end(target: Target, event: &Event) -> bool {
    match event.what {
        What::BuildEnded => match target {
            Target::Build(id) => event.build == Some(id),
            Target::Evaluation(_) => true,
        },
        What::EvaluationEnded => target_is(target, event),
        // A jobset deleted takes its evaluations along.
        What::JobsetChanged => true,
        What::EvaluationStarted
        | What::BuildsQueued
        | What::BuildStarted
        | What::WorkerJoined
        | What::WorkerLeft => false,
    }
}

/// Cancelling an evaluation may end its builds without an event of each.
fn target_is(target: Target, event: &Event) -> bool {
    match target {
        Target::Build(_) => true,
        Target::Evaluation(id) => event.evaluation == Some(id),
    }
}

/// Starts to watch for the asker's end, once.
fn watch<'a>(
    watched: &'a mut Option<Receiver<Infallible>>,
    answer: &mut dyn Answer,
) -> Result<&'a Receiver<Infallible>, Error> {
    if watched.is_none() {
        answer.flush().map_err(Error::Asker)?;
    }
    match watched {
        Some(gone) => Ok(gone),
        None => Ok(watched.insert(answer.gone().map_err(Error::Asker)?)),
    }
}

/// Where a log is, and whether more may come.
struct Source {
    path: Option<PathBuf>,
    over: bool,
}

impl Source {
    /// `None` if there is no file yet, or no more.
    fn open(&self, from: u64) -> Result<Option<Tail>, Failure> {
        let Some(path) = &self.path else { return Ok(None) };
        match Tail::open(path, from) {
            Ok(tail) => Ok(Some(tail)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(unreadable(error)),
        }
    }
}

fn unreadable(error: io::Error) -> Failure {
    Failure::new(FailureKind::Internal, format!("cannot read the log: {error}"))
}

/// Bytes of a log on their way to becoming text.
#[derive(Default)]
struct Chunks {
    bytes: Vec<u8>,
    /// Of the first byte, in the uncompressed log.
    offset: u64,
}

impl Chunks {
    /// Reads what there is; false if there is nothing new.
    fn read(&mut self, tail: &mut Tail) -> Result<bool, Failure> {
        let kept = self.bytes.len();
        let Some(offset) = tail.read(&mut self.bytes).map_err(unreadable)? else {
            return Ok(false);
        };
        self.offset = offset.saturating_sub(u64::try_from(kept).unwrap_or(0));
        Ok(true)
    }

    /// Tells all whole characters; at the end also what is left.
    fn tell(&mut self, answer: &mut dyn Answer, end: bool) -> Result<(), Error> {
        let length = if end { self.bytes.len() } else { whole_characters(&self.bytes) };
        if length == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&self.bytes[..length]);
        let object = json(&LogView { offset: self.offset, text: &text });
        answer.object(&object).map_err(Error::Asker)?;
        self.bytes.drain(..length);
        self.offset += u64::try_from(length).unwrap_or(0);
        Ok(())
    }
}

/// How many bytes can be told without cutting a character that may go on.
fn whole_characters(bytes: &[u8]) -> usize {
    // A character has at most four bytes: only the last three can be the beginning of one.
    for back in 1..=bytes.len().min(3) {
        let at = bytes.len() - back;
        let length = match bytes[at] {
            0x00..=0x7f => 1,
            0x80..=0xbf => continue,
            0xc0..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xff => 4,
        };
        return if length > back { at } else { bytes.len() };
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_not_cut() {
        let text = "aé€🎉".as_bytes();
        let whole = |n: usize| whole_characters(&text[..n]);
        let lengths: Vec<_> = (0..=text.len()).map(whole).collect();
        assert_eq!(lengths, [0, 1, 1, 3, 3, 3, 6, 6, 6, 6, 10]);
        // Invalid bytes wait for nothing.
        assert_eq!(whole_characters(b"a\x80\x80\x80\x80"), 5);
        assert_eq!(whole_characters(b"\xff"), 0, "it could be the beginning of one");
        assert_eq!(whole_characters(b"\xffabc"), 4);
    }
}
