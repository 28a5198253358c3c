//! Logs of builds and evaluations: gzip files that can be read while they grow.
//!
//! Invariant: what was written can be read back at most 100 ms later, also from a file whose writer was killed.

mod gunzip;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use nix::poll::{PollFd, PollFlags};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::sys::{clock, file, poll};
use gunzip::Gunzip;

/// How long written bytes may stay unreadable: a reader sees no delay, and a chatty writer does not lose its
/// compression to flushes.
const FLUSH_AFTER: Duration = Duration::from_millis(100);
/// What is read of a file at once: a thousand readers hold as much each.
const CHUNK: usize = 16 << 10;
/// How long a reader sleeps where the system has no more inotify instances for us (128 a user by default).
const NAP: Duration = Duration::from_secs(1);

/// Appends to one log. Dropping it finishes the gzip stream.
pub(crate) struct Writer {
    stream: GzEncoder<File>,
    written: u64,
    /// When the first byte not yet flushed was written.
    unflushed: Option<Instant>,
}

impl Writer {
    /// Creates the file anew (an older log of that name is replaced; its readers keep the old one).
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let open = || OpenOptions::new().write(true).create_new(true).mode(0o640).open(path);
        let file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                path.parent().map_or(Ok(()), file::create_directory)?;
                open()?
            }
            result => result?,
        };
        // The processor's time belongs to the builds: text shrinks well at the fastest level, too.
        let stream = GzEncoder::new(file, Compression::fast());
        Ok(Self { stream, written: 0, unflushed: None })
    }

    /// After an error (no space, say) it may be called again for later bytes; some may be missing then.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.stream.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    rest = &rest[n..];
                    self.written += n as u64;
                    self.unflushed.get_or_insert_with(clock::now);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// When `flush` is due; `None` if all is readable already.
    pub(crate) fn flush_due(&self) -> Option<Instant> {
        self.unflushed.map(|since| since + FLUSH_AFTER)
    }

    /// Makes all that was written readable.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if self.unflushed.is_some() {
            self.stream.flush()?;
            self.unflushed = None;
        }
        Ok(())
    }

    /// Bytes written so far, uncompressed.
    pub(crate) fn len(&self) -> u64 {
        self.written
    }
}

/// Reads one log from a byte offset of its uncompressed text, also while it grows.
pub(crate) struct Tail {
    path: PathBuf,
    file: File,
    gunzip: Gunzip,
    /// Bytes of the file read so far.
    taken: u64,
    /// Uncompressed bytes passed so far.
    position: u64,
    from: u64,
    watch: Watch,
    /// Whether `wait` has told that the file lost its name.
    told: bool,
}

enum Watch {
    /// Nobody waited yet.
    No,
    Inotify(Inotify),
    /// The system refused.
    Refused,
}

impl Tail {
    /// `from`: bytes of the uncompressed log to skip. Fails with `NotFound` if there is no log yet.
    pub(crate) fn open(path: &Path, from: u64) -> io::Result<Self> {
        let file = File::open(path)?;
        let gunzip = Gunzip::new();
        let path = path.to_owned();
        Ok(Self { path, file, gunzip, taken: 0, position: 0, from, watch: Watch::No, told: false })
    }

    /// Appends what can be read now, at most 16 KiB, and returns the offset it begins at; `None` if there is
    /// nothing new. Where the file was cut off there is nothing new; where it is damaged, `InvalidData`.
    pub(crate) fn read(&mut self, buffer: &mut Vec<u8>) -> io::Result<Option<u64>> {
        loop {
            let text = self.gunzip.step()?;
            if !text.is_empty() {
                let (begin, end) = (self.position, self.position + text.len() as u64);
                self.position = end;
                if end <= self.from {
                    continue;
                }
                let start = begin.max(self.from);
                let skipped = usize::try_from(start - begin).unwrap_or(usize::MAX);
                buffer.extend_from_slice(text.get(skipped..).unwrap_or_default());
                return Ok(Some(start));
            }
            let input = self.gunzip.input();
            input.reserve_exact(CHUNK);
            let taken = (&self.file).take(CHUNK as u64).read_to_end(input)?;
            self.taken += taken as u64;
            if taken == 0 {
                return Ok(None);
            }
        }
    }

    /// Waits until the file grew, was replaced or `deadline` passed (inotify; no polling).
    pub(crate) fn wait(&mut self, deadline: Instant) -> io::Result<()> {
        if let Watch::No = self.watch {
            self.watch = self.watch();
        }
        loop {
            if let Watch::Inotify(inotify) = &self.watch {
                // What they told of is seen below.
                while inotify.read_events().is_ok() {}
            }
            let replaced = self.is_replaced()?;
            if self.file.metadata()?.len() > self.taken || (replaced && !self.told) {
                self.told |= replaced;
                return Ok(());
            }
            let now = clock::now();
            if now >= deadline {
                return Ok(());
            }
            match &self.watch {
                Watch::Inotify(inotify) => {
                    let mut fds = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
                    poll::ready(&mut fds, Some(deadline))?;
                }
                Watch::No | Watch::Refused => {
                    poll::ready(&mut [], Some(deadline.min(now + NAP)))?;
                }
            }
        }
    }

    /// Whether the file has lost its name: its writer has begun another, or it has been removed.
    /// It may have another name besides, where somebody else keeps it.
    pub(crate) fn is_replaced(&self) -> io::Result<bool> {
        let own = self.file.metadata()?;
        match fs::metadata(&self.path) {
            Ok(named) => Ok((named.dev(), named.ino()) != (own.dev(), own.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Watches the very file that is open, whatever has its name by now.
    fn watch(&self) -> Watch {
        let path = PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
        let flags = AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_ATTRIB;
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
        match inotify.and_then(|inotify| inotify.add_watch(&path, flags).map(|_| inotify)) {
            Ok(inotify) => Watch::Inotify(inotify),
            Err(error) => {
                log::warn!(target: "logs", "cannot watch a log for changes: {error}");
                Watch::Refused
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use flate2::read::MultiGzDecoder;

    use super::*;

    /// Everything there is to read, in order and without holes.
    fn rest(tail: &mut Tail) -> io::Result<String> {
        let (mut text, mut next) = (Vec::new(), None);
        loop {
            let before = text.len();
            let Some(offset) = tail.read(&mut text)? else { break };
            assert!(text.len() > before && text.len() - before <= 64 << 10);
            assert_eq!(offset, next.unwrap_or(offset), "a hole");
            next = Some(offset + (text.len() - before) as u64);
        }
        Ok(String::from_utf8(text).unwrap())
    }

    fn temporary() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("builds/1.gz");
        (directory, path)
    }

    fn unzip(path: &Path) -> String {
        let mut text = String::new();
        MultiGzDecoder::new(File::open(path).unwrap()).read_to_string(&mut text).unwrap();
        text
    }

    /// Lines that do not compress to nothing.
    fn noise(bytes: usize) -> String {
        let mut random = fastrand::Rng::with_seed(7);
        (0..bytes).map(|n| if n % 60 == 59 { '\n' } else { random.alphanumeric() }).collect()
    }

    #[test]
    fn flushed_text_can_be_read_while_it_grows_and_after() {
        let (_directory, path) = temporary();
        assert_eq!(Tail::open(&path, 0).err().unwrap().kind(), io::ErrorKind::NotFound);
        let mut writer = Writer::create(&path).unwrap();
        let (mut tail, mut late) = (Tail::open(&path, 0).unwrap(), Tail::open(&path, 4).unwrap());
        assert_eq!(rest(&mut tail).unwrap(), "");
        assert_eq!(writer.flush_due(), None);
        let before = clock::now();
        writer.write(b"one\n").unwrap();
        let due = writer.flush_due().unwrap();
        assert!(due >= before + FLUSH_AFTER && due <= clock::now() + FLUSH_AFTER);
        writer.flush().unwrap();
        assert_eq!(writer.flush_due(), None);
        assert_eq!(rest(&mut tail).unwrap(), "one\n");
        assert_eq!(rest(&mut late).unwrap(), "");
        writer.write(b"two\n").unwrap();
        writer.write(b"three\n").unwrap();
        assert_eq!(writer.len(), 14);
        drop(writer);
        assert_eq!(late.read(&mut Vec::new()).unwrap(), Some(4));
        assert_eq!(rest(&mut tail).unwrap(), "two\nthree\n");
        assert_eq!(rest(&mut Tail::open(&path, 9).unwrap()).unwrap(), "hree\n");
        assert_eq!(rest(&mut Tail::open(&path, 14).unwrap()).unwrap(), "");
        assert_eq!(rest(&mut Tail::open(&path, u64::MAX).unwrap()).unwrap(), "");
        assert_eq!(unzip(&path), "one\ntwo\nthree\n");
    }

    #[test]
    fn an_empty_log_is_a_whole_gzip_file() {
        let (_directory, path) = temporary();
        drop(Writer::create(&path).unwrap());
        assert_eq!(unzip(&path), "");
        assert_eq!(rest(&mut Tail::open(&path, 0).unwrap()).unwrap(), "");
    }

    #[test]
    fn a_large_log_is_read_from_anywhere() {
        let (_directory, path) = temporary();
        let text = noise(3_000_000);
        let mut writer = Writer::create(&path).unwrap();
        for (n, piece) in text.as_bytes().chunks(12_345).enumerate() {
            writer.write(piece).unwrap();
            if n % 7 == 0 {
                writer.flush().unwrap();
            }
        }
        drop(writer);
        for from in [0, 1, 65_535, 65_536, 1_000_000, 2_999_999] {
            let mut tail = Tail::open(&path, from as u64).unwrap();
            assert!(rest(&mut tail).unwrap() == text[from..], "from {from}");
        }
        let long = "a".repeat(50 << 20);
        let mut writer = Writer::create(&path).unwrap();
        writer.write(long.as_bytes()).unwrap();
        drop(writer);
        assert!(rest(&mut Tail::open(&path, 1).unwrap()).unwrap() == long[1..]);
    }

    #[test]
    fn a_file_that_was_cut_off_reads_to_its_last_flush() {
        let (_directory, path) = temporary();
        let text = noise(200_000);
        let mut writer = Writer::create(&path).unwrap();
        writer.write(text.as_bytes()).unwrap();
        writer.flush().unwrap();
        let flushed = fs::metadata(&path).unwrap().len();
        writer.write(noise(100_000).as_bytes()).unwrap();
        drop(writer);
        let whole = fs::read(&path).unwrap();
        let mut random = fastrand::Rng::with_seed(3);
        let all = 0..whole.len();
        let cuts = (0..100).map(|_| random.usize(all.clone())).chain(0..30);
        for cut in cuts.chain([flushed as usize, whole.len() - 8, whole.len() - 1]) {
            fs::write(&path, &whole[..cut]).unwrap();
            let read = rest(&mut Tail::open(&path, 0).unwrap()).unwrap();
            assert!(cut < flushed as usize || read.starts_with(&text), "cut at {cut}");
        }
    }

    #[test]
    fn a_damaged_file_is_an_error_each_time() {
        let (_directory, path) = temporary();
        let mut writer = Writer::create(&path).unwrap();
        writer.write(noise(100_000).as_bytes()).unwrap();
        drop(writer);
        let whole = fs::read(&path).unwrap();
        let at = |n: usize, byte: u8| {
            let mut bytes = whole.clone();
            bytes[n] ^= byte;
            bytes
        };
        let cases = [
            ("magic number", at(0, 1)),
            ("method", at(2, 1)),
            ("reserved flags", at(3, 0x80)),
            ("checksum", at(whole.len() - 8, 1)),
            ("length", at(whole.len() - 1, 1)),
            ("text", at(whole.len() / 2, 0x10)),
            ("what follows", [&whole[..], b"more"].concat()),
        ];
        for (what, bytes) in cases {
            fs::write(&path, bytes).unwrap();
            let mut tail = Tail::open(&path, 0).unwrap();
            for _ in 0..2 {
                assert_eq!(
                    rest(&mut tail).unwrap_err().kind(),
                    io::ErrorKind::InvalidData,
                    "{what}"
                );
            }
        }
    }

    #[test]
    fn members_follow_each_other_and_headers_may_hold_everything() {
        let (_directory, path) = temporary();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut bytes = Vec::new();
        for (n, text) in ["one\n", "", "two\n"].iter().enumerate() {
            let builder =
                flate2::GzBuilder::new().extra(vec![7; 300 * n]).filename("log").comment("☂");
            let mut encoder = builder.write(&mut bytes, Compression::best());
            encoder.write_all(text.as_bytes()).unwrap();
            encoder.finish().unwrap();
        }
        fs::write(&path, &bytes).unwrap();
        assert_eq!(rest(&mut Tail::open(&path, 0).unwrap()).unwrap(), "one\ntwo\n");
        // Byte by byte, as a slow disk would have it.
        let mut growing = OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
        let (mut tail, mut text) = (Tail::open(&path, 2).unwrap(), String::new());
        for byte in bytes {
            growing.write_all(&[byte]).unwrap();
            text += &rest(&mut tail).unwrap();
        }
        assert_eq!(text, "e\ntwo\n");
    }

    #[test]
    fn a_wait_ends_with_growth_replacement_or_deadline() {
        let (_directory, path) = temporary();
        let far = clock::now() + Duration::from_secs(60);
        let mut writer = Writer::create(&path).unwrap();
        let mut tail = Tail::open(&path, 0).unwrap();
        let soon = clock::now() + Duration::from_millis(20);
        tail.wait(soon).unwrap();
        assert!(clock::now() >= soon);

        let builder = thread::Builder::new().name("writer".to_owned());
        let thread = builder.spawn(move || {
            writer.write(b"text").unwrap();
            writer.flush().unwrap();
            writer
        });
        let mut text = String::new();
        while text != "text" {
            tail.wait(far).unwrap();
            text += &rest(&mut tail).unwrap();
        }
        let writer = thread.unwrap().join().unwrap();

        assert!(!tail.is_replaced().unwrap());
        // Also where it has another name.
        fs::hard_link(&path, path.with_extension("kept")).unwrap();
        drop(Writer::create(&path).unwrap());
        tail.wait(far).unwrap();
        assert!(tail.is_replaced().unwrap());
        assert_eq!(rest(&mut tail).unwrap(), "");
        // Told once: whoever goes on waiting does not spin.
        let soon = clock::now() + Duration::from_millis(20);
        tail.wait(soon).unwrap();
        assert!(clock::now() >= soon && soon < far);
        // Growth of the old file is still seen.
        drop(writer);
        tail.wait(far).unwrap();
        assert!(clock::now() < far);
    }
}
