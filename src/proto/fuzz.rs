//! Targets for fuzzers: a store daemon that says anything, and any derivation file.
//!
//! cargo-fuzz drives them by `tests/fuzz`; the tests here do it with a seeded mutator over the recorded exchanges, for a
//! moment, or for `GORGET_FUZZ_SECONDS`.

use std::io::{self, Read, Write};

use super::drv;
use super::store::{Dialect, Options, Session, Step};

/// Gives out bytes in pieces and takes whatever is sent.
struct Peer<'a> {
    left: &'a [u8],
    piece: usize,
}

impl Read for Peer<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(self.piece).min(self.left.len());
        let (now, later) = self.left.split_at(length);
        buffer[..length].copy_from_slice(now);
        self.left = later;
        Ok(length)
    }
}

impl Write for Peer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The first byte says which dialect and how the rest is cut, the second what is asked; the rest is what the daemon says.
pub(crate) fn session(data: &[u8]) {
    let [how, what, left @ ..] = data else { return };
    let dialect = if how % 2 == 0 { Dialect::Guix } else { Dialect::Nix };
    let peer = Peer { left, piece: 1 << (how / 2 % 16) };
    let Ok(mut session) = Session::open(peer, dialect) else { return };
    let path = "/gnu/store/630anh2v63k4dgs6vdr2dgrjn418nrmi-ok-r1.drv";
    let options = Options { timeout: 1, max_silent_time: 1, ..Options::default() };
    // An error of one request need not be the last word.
    for bit in 0..8 {
        let done = match (what >> bit & 1, bit) {
            (0, _) => Ok(()),
            (_, 0) => session.set_options(&options),
            (_, 1) => session.is_valid(path).map(drop),
            (_, 2) => session.valid(&[path]).map(drop),
            (_, 3) => session.outputs(path).map(drop),
            (_, 4) => session.add_temporary_root(path),
            (_, 5) => session.add_indirect_root(b"/root"),
            (_, 6) => session.path_info(path).map(drop),
            _ => session.add_text("text", b"text", &[path]).map(drop),
        };
        drop(done);
    }
    if session.build(path).is_ok() {
        // It ends, as what it reads does.
        while !matches!(session.step(), Ok(Step::Over(_)) | Err(_)) {}
    }
}

pub(crate) fn derivation(data: &[u8]) {
    if let Ok(derivation) = drv::parse(data) {
        let kept: usize = derivation.inputs.iter().map(String::len).sum();
        assert!(kept + derivation.system.len() <= data.len(), "more is kept than was read");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use fastrand::Rng;

    use super::*;
    use crate::sys::clock;

    fn read(below: &str, file: &str) -> Vec<Vec<u8>> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(below);
        let mut directories: Vec<_> =
            std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
        // The same seeds in the same order everywhere.
        directories.sort();
        directories.iter().map(|directory| std::fs::read(directory.join(file)).unwrap()).collect()
    }

    /// What a nix-daemon could say, as none was recorded: words, and strings in quotes.
    fn nix() -> Vec<u8> {
        let words = [
            &[0x6478_696f, 0x125, 3, 0x0033_312e, 1, 0x616c_7473, 0x616c_7473][..],
            &[0x5354_5254, 7, 3, 105, 1, 0x61, 2, 1, 2, 0x6262, 0, 5, 0],
            &[0x5253_4c54, 7, 101, 1, 1, 3, 0x0063_6363],
            &[0x5354_4f50, 7, 0x616c_7473, 1, 1, 0x78, 3, 2, 0x6f6e],
            &[1, 0, 1, 2, 1, 9, 0, 1, 1, 0x79, 1, 0x7a],
        ];
        words.concat().iter().flat_map(|word: &u64| word.to_le_bytes()).collect()
    }

    fn mutate(random: &mut Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut data = seeds[random.usize(..seeds.len())].clone();
        for _ in 0..random.usize(..6) {
            let at = random.usize(..=data.len());
            match random.u8(..7) {
                0 => data.truncate(at),
                1 if at < data.len() => data[at] = random.u8(..),
                2 if at < data.len() => data[at] ^= 1 << random.u8(..8),
                // A length or a word of the protocol, where one may stand.
                3 if at / 8 * 8 + 8 <= data.len() => {
                    let at = at / 8 * 8;
                    let words =
                        [0, 1, 7, 8, 9, 1 << 20, 1 << 32, u64::MAX, 0x616c_7473, 0x6378_7470];
                    data[at..at + 8]
                        .copy_from_slice(&words[random.usize(..words.len())].to_le_bytes());
                }
                4 => {
                    let other = &seeds[random.usize(..seeds.len())];
                    let from = random.usize(..=other.len()) / 8 * 8;
                    let until = (from + random.usize(..400)).min(other.len());
                    let at = at / 8 * 8;
                    data.splice(at..at, other[from..until].iter().copied());
                }
                5 => {
                    let until = (at + random.usize(..64)).min(data.len());
                    data.drain(at..until);
                }
                _ => data.insert(at, random.u8(..)),
            }
        }
        data
    }

    /// Drives a target until its time is over. A failure names its round, which the seed leads to again.
    fn drive(seed: u64, seeds: &[Vec<u8>], target: fn(&[u8])) {
        let seconds = std::env::var("GORGET_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
        let end = clock::now() + seconds.map_or(Duration::from_millis(500), Duration::from_secs);
        let mut random = Rng::with_seed(seed);
        let mut rounds = 0_u64;
        while clock::now() < end {
            let data = mutate(&mut random, seeds);
            let outcome = std::panic::catch_unwind(|| target(&data));
            assert!(
                outcome.is_ok(),
                "round {rounds} of seed {seed}: {:?}",
                data.escape_ascii().to_string()
            );
            rounds += 1;
        }
        assert!(rounds > 100, "only {rounds} rounds");
    }

    #[test]
    fn daemons_that_say_anything() {
        let mut seeds = Vec::new();
        for (number, server) in read("tests/transcripts", "server.bin").into_iter().enumerate() {
            // Of long ones the beginning is as telling, and quicker.
            let server = &server[..server.len().min(4096)];
            let how = u8::try_from(number * 2 % 32).unwrap();
            // Some began with options, some with a question.
            for what in [0, 1, 0x1e, 0xff] {
                seeds.push([&[how, what], server].concat());
            }
        }
        seeds.push([&[1, 1][..], &nix()].concat());
        seeds.push([&[7, 1][..], &nix()].concat());
        drive(1, &seeds, session);
    }

    #[test]
    fn files_that_hold_anything() {
        let texts = [
            r#"Derive([("doc","/gnu/store/b-x-doc","",""),("out","/gnu/store/a-x","r:sha256","00")],[("/gnu/store/i.drv",["out"]),("/gnu/store/j.drv",["a","out"])],["/gnu/store/s"],"x86_64-linux","/bin/sh",["-c","echo \"a\"\n"],[("x","y")])"#,
            r#"Derive([],[],[],"","",[],[])"#,
        ];
        let seeds: Vec<_> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
        drive(2, &seeds, derivation);
    }
}
