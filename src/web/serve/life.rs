//! An end for streams of private installations: whoever listens is asked again who they are.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use crate::actor::Stop;
use crate::sys::clock;
use crate::web::response::{Sink, Stream};

/// How long a stream goes on after its asker's token was looked at. Browsers come back by themselves, where they were.
const LIFE: Duration = Duration::from_secs(3600);

/// The same stream, ended in time.
pub(super) fn mortal(write: Stream) -> Stream {
    Box::new(move |out| write(&mut Mortal { out, until: clock::now() + LIFE }))
}

struct Mortal<'a> {
    out: &'a mut dyn Sink,
    until: Instant,
}

impl Write for Mortal<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    /// As at the stop, which streams know: what they have said is whole.
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()?;
        if self.until <= clock::now() { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    }
}

impl Sink for Mortal<'_> {
    fn stop(&self) -> &Stop {
        self.out.stop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Plain(Vec<u8>, Stop);

    impl Write for Plain {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Sink for Plain {
        fn stop(&self) -> &Stop {
            &self.1
        }
    }

    #[test]
    fn a_stream_is_interrupted_when_its_time_is_over() {
        let (_sender, stop) = crossbeam_channel::bounded(0);
        let mut plain = Plain(Vec::new(), stop);
        let mut young = Mortal { out: &mut plain, until: clock::now() + LIFE };
        young.write_all(b"a").unwrap();
        young.flush().unwrap();
        let mut old = Mortal { out: &mut plain, until: clock::now() };
        old.write_all(b"b").unwrap();
        assert_eq!(old.flush().unwrap_err().kind(), io::ErrorKind::Interrupted);
        assert_eq!(plain.0, b"ab");
    }
}
