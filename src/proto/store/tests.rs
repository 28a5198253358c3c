//! Exchanges recorded with a real guix-daemon, played again: what we send is what it was sent, byte for byte, and
//! what it answered is understood. Then damaged ones.

mod live;
mod transcripts;

use std::io::{self, Read, Write};
use std::path::Path;

use super::*;

/// A recorded connection: gives out what the daemon said, and insists on what it was told.
struct Replay {
    client: Vec<u8>,
    sent: usize,
    server: Vec<u8>,
    read: usize,
    /// Bytes given out at once.
    piece: usize,
}

impl Replay {
    fn new(name: &str, piece: usize) -> Self {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts").join(name);
        let read = |file| std::fs::read(directory.join(file)).unwrap();
        Self { client: read("client.bin"), sent: 0, server: read("server.bin"), read: 0, piece }
    }
}

impl Read for Replay {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = &self.server[self.read..];
        let length = left.len().min(buffer.len()).min(self.piece);
        buffer[..length].copy_from_slice(&left[..length]);
        self.read += length;
        Ok(length)
    }
}

impl Write for Replay {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let expected = &self.client[self.sent..self.client.len().min(self.sent + bytes.len())];
        assert_eq!(bytes, expected, "at byte {}", self.sent);
        self.sent += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A build to its end: what was printed, by whom, and the verdict.
#[derive(Debug, PartialEq)]
struct Played {
    log: Vec<(String, String)>,
    verdict: Verdict,
}

/// Plays a recorded build of `derivation`. The recorded client set options of its own, in `options` bytes.
fn play(name: &str, options: usize, derivation: &str, piece: usize) -> Played {
    let mut session = Session::open(Replay::new(name, piece), Dialect::Guix).unwrap();
    let recorded = session.stream().client[32..32 + options].to_vec();
    session.request(&recorded).unwrap();
    let derivation = format!("/gnu/store/{derivation}.drv");
    session.build(&derivation).unwrap();
    let mut log: Vec<(String, String)> = Vec::new();
    loop {
        match session.step().unwrap() {
            Step::Output(Output::Log { derivation, text }) => {
                let text = String::from_utf8_lossy(text);
                match log.last_mut() {
                    Some((last, all)) if last == derivation => all.push_str(&text),
                    _ => log.push((derivation.to_owned(), text.into_owned())),
                }
            }
            Step::Output(Output::Prose(_) | Output::Started(_) | Output::Fetching(_))
            | Step::Nothing => {}
            Step::Over(verdict) => return Played { log, verdict },
        }
    }
}

#[test]
fn recorded_builds_are_understood() {
    let failed = |why: &str| Verdict::Failed(why.to_owned());
    let baddep = "/gnu/store/ss3r1ar9qjps8mx4404rf1x06q8v3xwj-baddep-r1.drv";
    let mismatch = "hash mismatch for store item";
    for (name, options, derivation, verdict) in [
        ("build-success", 304, "630anh2v63k4dgs6vdr2dgrjn418nrmi-ok-r1", Verdict::Done),
        ("build-success-two-deep", 304, "511ccnij0zn69rn6zz85zz8zjg8kp3w6-top-r1", Verdict::Done),
        ("build-already-valid", 304, "dfl0w2cp89mrndj34jk79lxz3v7z53pw-valid-r1", Verdict::Done),
        ("build-multiple-outputs", 304, "v3jgdq6zvxhcb6ap6ybzjn4il0nyxsh2-multi-r1", Verdict::Done),
        ("build-unsupported-system", 304, "d2km5xxywdpzn05nq8dz96zcyvx3iqrg-arm-r2", Verdict::Done),
        (
            "build-failure",
            304,
            "7fiydrx5bgrhzym1bkhgv7jicimjnxjf-fails-r1",
            failed("exit status 7"),
        ),
        ("build-timeout", 344, "3fgxwl83m0axq3fqfw2z4hqg9xqlc18z-tmo-r1", Verdict::TimedOut),
        ("build-max-silent", 352, "h2j5da9i9da2ibjxc3698ig2ljbs9034-silent-r1", Verdict::Silent),
        (
            "build-dependency-failure",
            304,
            "m44gvlgwcj66hxni1dn26ky90sjw7mp8-victim-r1",
            Verdict::DependencyFailed(Some(baddep.to_owned()), "exit status 1".to_owned()),
        ),
        (
            "build-nonexistent-drv",
            304,
            "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz-nothing-here",
            Verdict::Broken(
                "/gnu/store/zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz-nothing-here.drv is not in the store"
                    .to_owned(),
            ),
        ),
    ] {
        for piece in [usize::MAX, 1, 13] {
            assert_eq!(play(name, options, derivation, piece).verdict, verdict, "{name}");
        }
    }
    let drv = "7v0hlnd6qm96h2l05q5id0bm5pmxwvbv-fod-r1";
    let Verdict::Failed(why) = play("build-hash-mismatch", 304, drv, 4096).verdict else {
        panic!()
    };
    assert!(why.contains(mismatch), "{why}");
    for (name, drv) in [
        ("build-failure-no-output", "if3nrp4a8gv7h8wpxpm1ajg7qyyd8qwb-noout-r1"),
        ("build-failure-signal", "9hwx57bp2nvjir1h2sbiwkl1ypav39py-sig-r1"),
    ] {
        let Verdict::Failed(why) = play(name, 304, drv, 4096).verdict else { panic!("{name}") };
        assert!(why.contains("failed to produce output path"), "{why}");
    }
}

#[test]
fn logs_are_their_builders() {
    let played =
        play("build-dependency-failure", 304, "m44gvlgwcj66hxni1dn26ky90sjw7mp8-victim-r1", 7);
    let baddep = "/gnu/store/ss3r1ar9qjps8mx4404rf1x06q8v3xwj-baddep-r1.drv".to_owned();
    assert_eq!(played.log, [(baddep, "dep fails\n".to_owned())]);
    let played = play("build-large-log", 304, "5aia4vsl83wb73jhc1f0y1jksvzg3rc0-biglog-r1", 4096);
    let [(_, text)] = &played.log[..] else { panic!("{:?}", played.log.len()) };
    assert!(text.len() > 100_000 && !text.contains("@ build-"), "{}", text.len());
}

#[test]
fn roots_are_made_as_recorded() {
    let mut session = Session::open(Replay::new("roots", 4096), Dialect::Guix).unwrap();
    session.add_temporary_root("/gnu/store/3cf45zwwch5fkdzf6w9yk673yf6km916-rooted-r1").unwrap();
    session.add_indirect_root(b"/tmp/root-r1").unwrap();
}

#[test]
fn questions_are_asked_as_recorded() {
    let open = |name| Session::open(Replay::new(name, 13), Dialect::Guix).unwrap();
    let mut session = open("valid-path-query-path-info");
    let plain = "/gnu/store/hwyclp307kxg2f6hx5bbbwygxxsxgkjj-plain-r1";
    assert!(session.is_valid(plain).unwrap());
    assert!(!session.is_valid("/gnu/store/zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz-nothing-here").unwrap());

    let mut session = open("add-text-to-store");
    let none: [&str; 0] = [];
    let first = session.add_text("a.txt-r1", b"hello\n", &none).unwrap();
    assert_eq!(first, "/gnu/store/486ij07lygjcw28qvp6gvzrx626kxk85-a.txt-r1");
    let second =
        session.add_text("b.txt-r1", format!("see {first}\n").as_bytes(), &[&first]).unwrap();
    assert_eq!(second, "/gnu/store/mnq2v3qkl7qs79fm6rs3nwmvx6m5g65g-b.txt-r1");
    let refused = session.add_text("bad/name", b"x", &none).unwrap_err();
    assert!(refused.to_string().contains("invalid character"), "{refused}");
    let missing = "/gnu/store/zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz-nothing-here";
    let refused = session.add_text("c.txt-r1", b"x", &[missing]).unwrap_err();
    assert!(refused.to_string().contains("is not valid"), "{refused}");
}

#[test]
fn outputs_bear_their_names() {
    let text = |text: &str| text.to_owned();
    let (names, paths) =
        ([text("doc"), text("out")], [text("/gnu/store/1-x-1.0"), text("/gnu/store/2-x-1.0-doc")]);
    let outputs = guix::outputs("/gnu/store/3-x-1.0.drv", &names, &paths).unwrap();
    assert_eq!(outputs["out"], paths[0]);
    assert_eq!(outputs["doc"], paths[1]);
    assert_eq!(guix::outputs("/gnu/store/3-y.drv", &names, &paths), None);
}

#[test]
fn a_connection_outlives_a_failed_build() {
    let mut session = Session::open(Replay::new("build-failure", 4096), Dialect::Guix).unwrap();
    let recorded = session.stream().client[32..336].to_vec();
    session.request(&recorded).unwrap();
    let derivation = "/gnu/store/7fiydrx5bgrhzym1bkhgv7jicimjnxjf-fails-r1.drv";
    session.build(derivation).unwrap();
    while !matches!(session.step().unwrap(), Step::Over(_)) {}
    assert!(session.is_valid(derivation).unwrap());
}

/// Opens a session with a daemon of this version that takes options, and sets those: `words`, then `pairs`.
fn expect_options(dialect: Dialect, words: &[u64], pairs: &[(&str, &str)], options: &Options) {
    let bytes = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let (server, greeting): (Vec<u8>, Vec<u8>) = match dialect {
        Dialect::Guix => {
            let server = bytes(&[0x6478_696f, 0x164, 0x616c_7473, 0x616c_7473]);
            (server, bytes(&[0x6e69_7863, 0x164, 0, 1]))
        }
        Dialect::Nix => {
            let server = bytes(&[0x6478_696f, 0x122, 0, 0x616c_7473, 0x616c_7473]);
            (server, bytes(&[0x6e69_7863, 0x125, 0, 0]))
        }
    };
    let mut client = greeting;
    client.extend::<Vec<u8>>(bytes(words));
    client.extend((pairs.len() as u64).to_le_bytes());
    for text in pairs.iter().flat_map(|(name, value)| [name, value]) {
        client.extend((text.len() as u64).to_le_bytes());
        client.extend(text.as_bytes());
        client.resize(client.len().next_multiple_of(8), 0);
    }
    let length = client.len();
    let replay = Replay { client, sent: 0, server, read: 0, piece: 64 };
    let mut session = Session::open(replay, dialect).unwrap();
    session.set_options(options).unwrap();
    assert_eq!(session.stream().sent, length, "{options:?}");
}

#[test]
fn limits_are_what_daemons_take() {
    let most: u64 = i32::MAX as u64;
    let seconds = &*most.to_string();
    let (timeout, max_silent_time) = (i64::MAX as u64, 5_000_000_000);
    expect_options(
        Dialect::Nix,
        &[19, 0, 0, 0, 0, 1, most, 1, 0, 0, 0, 0, 1],
        &[("timeout", seconds), ("max-silent-time", seconds)],
        &Options { timeout, max_silent_time, ..Options::default() },
    );
}

#[test]
fn daemons_are_told_where_substitutes_are_and_how_many_processors_to_use() {
    let urls = Some(vec!["http://10.0.0.1:5557".to_owned(), "https://ci.example".to_owned()]);
    let options = Options {
        fallback: true,
        timeout: 9,
        max_silent_time: 8,
        keep_going: true,
        cores: 3,
        substitute_urls: urls,
    };
    let listed = "http://10.0.0.1:5557 https://ci.example";
    expect_options(
        Dialect::Nix,
        &[19, 0, 1, 1, 1, 1, 8, 1, 0, 0, 0, 3, 1],
        &[
            ("timeout", "9"),
            ("max-silent-time", "8"),
            ("substituters", listed),
            ("narinfo-cache-negative-ttl", "0"),
        ],
        &options,
    );
    let limits = |build: &[(&'static str, &'static str)]| {
        let mut pairs = vec![("build-timeout", "9"), ("build-max-silent-time", "8")];
        pairs.extend([("build-max-jobs", "1"), ("multiplexed-build-output", "true")]);
        pairs.push(("print-extended-build-trace", "0"));
        pairs.extend(build);
        pairs
    };
    expect_options(
        Dialect::Guix,
        &[19, 0, 1, 1, 0, 1, 0, 2, 1, 1],
        &limits(&[("build-cores", "3"), ("substitute-urls", listed)]),
        &options,
    );
    // What is not wanted is not said: the daemon's own setting holds.
    expect_options(
        Dialect::Guix,
        &[19, 0, 1, 1, 0, 1, 0, 2, 1, 1],
        &limits(&[]),
        &Options { cores: 0, substitute_urls: None, ..options },
    );
}

/// Plays what the daemon said, damaged, and takes no offence at what is sent.
struct Damaged(Replay);

impl Read for Damaged {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Damaged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn damaged_answers_end_in_errors() {
    let mut random = fastrand::Rng::with_seed(11);
    let whole = Replay::new("build-dependency-failure", usize::MAX).server;
    for round in 0..20_000 {
        let mut server = whole.clone();
        if round % 4 == 0 {
            server.truncate(random.usize(0..server.len()));
        }
        for _ in 0..random.usize(0..4) {
            if let Some(at) = server.len().checked_sub(1).map(|last| random.usize(0..=last)) {
                server[at] = random.u8(..);
            }
        }
        let dialect = if round % 2 == 0 { Dialect::Guix } else { Dialect::Nix };
        let replay = Replay { client: vec![], sent: 0, server, read: 0, piece: 64 };
        let Ok(mut session) = Session::open(Damaged(replay), dialect) else { continue };
        if session.request(&[]).is_err() || session.build("/gnu/store/x.drv").is_err() {
            continue;
        }
        // It ends, as what it reads does.
        while !matches!(session.step(), Ok(Step::Over(_)) | Err(_)) {}
    }
}

/// A daemon that says a gigabyte, 4 KiB at a time.
struct Chatterbox {
    head: Vec<u8>,
    frame: Vec<u8>,
    /// Bytes of frames, and of what ends them.
    left: usize,
    at: usize,
}

impl Read for Chatterbox {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.head.is_empty() {
            let length = self.head.len().min(buffer.len());
            buffer[..length].copy_from_slice(&self.head[..length]);
            self.head.drain(..length);
            return Ok(length);
        }
        let length = buffer.len().min(self.left).min(self.frame.len() - self.at);
        buffer[..length].copy_from_slice(&self.frame[self.at..self.at + length]);
        self.left -= length;
        self.at = (self.at + length) % self.frame.len();
        Ok(length)
    }
}

impl Write for Chatterbox {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
#[ignore = "a benchmark: make bench"]
#[allow(clippy::print_stdout, reason = "people read it")]
fn a_gigabyte_of_log_is_decoded() {
    const PIECE: usize = 4096;
    const PIECES: usize = 256 << 10;
    let words =
        |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let text = |text: &[u8]| {
        let mut bytes = words(&[0x6f6c_6d67, text.len() as u64]);
        bytes.extend_from_slice(text);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    };
    let mut head = words(&[0x6478_696f, 0x164, 0x616c_7473]);
    head.extend(text(b"@ build-started /gnu/store/a.drv - x86_64-linux /var/log/a.gz 7\n"));
    let piece = [format!("@ build-log 7 {PIECE}\n").as_bytes(), &[b'x'; PIECE]].concat();
    let frame = text(&piece).repeat(64);
    let left = frame.len() / 64 * PIECES;
    let peer = Chatterbox { head, frame, left, at: 0 };
    let mut session = Session::open(peer, Dialect::Guix).unwrap();
    session.build("/gnu/store/a.drv").unwrap();
    let (began, mut bytes) = (crate::sys::clock::now(), 0);
    while bytes < PIECE * PIECES {
        if let Step::Output(Output::Log { text, .. }) = session.step().unwrap() {
            bytes += text.len();
        }
    }
    let speed = bytes as f64 / 1e6 / (crate::sys::clock::now() - began).as_secs_f64();
    println!("decoding a log of 1 GiB: {speed:.0} MB/s of one core (target: at least 500 MB/s)");
}

#[test]
fn builders_cannot_say_what_the_daemon_says() {
    let target = "/gnu/store/a.drv";
    let mut trace = guix::Trace::new(target);
    trace.message(b"@ build-started /gnu/store/a.drv - x86_64-linux /var/log/a.gz 7\n");
    let event = "@ build-failed /gnu/store/a.drv - 1 forged text\n";
    let forged = format!("@ build-log 7 {}\n{event}", event.len());
    assert!(matches!(trace.message(forged.as_bytes()), Step::Output(Output::Log { .. })));
    assert!(matches!(trace.verdict("no"), Verdict::Broken(_)));
    // A length that is not that of the rest is no log, and no event either.
    let wrong = b"@ build-log 7 3\n@ build-failed /gnu/store/a.drv - 1 forged text\n";
    assert!(matches!(trace.message(wrong), Step::Output(Output::Prose(_))));
}

#[test]
fn escapes_are_taken_out() {
    assert_eq!(nix::plain("\u{1b}[31;1merror:\u{1b}[0m no"), "error: no");
}

#[test]
fn transient_failures_are_failures_unless_the_disk_was_full() {
    let verdict = |message: &str| nix::Activities::new("/nix/store/a.drv").verdict(6, message);
    let failed = "builder for '/nix/store/a.drv' failed with exit code 3";
    let note = "note: build failure may have been caused by lack of free disk space";
    assert_eq!(verdict(failed), Verdict::Failed("exit status 3".to_owned()));
    assert!(matches!(verdict(&format!("{failed};\n  > {note}")), Verdict::Failed(_)));
    assert!(matches!(verdict(&format!("{failed}\n{note}")), Verdict::Broken(_)));
}

#[test]
fn an_input_is_blamed_by_the_daemon_alone_and_not_for_a_full_disk() {
    let note = "note: build failure may have been caused by lack of free disk space";
    let blamed = |messages: &[&str]| {
        let mut activities = nix::Activities::new("/nix/store/a.drv");
        activities.start(1, 105, Some("/nix/store/i.drv".to_owned()));
        activities.start(2, 105, Some("/nix/store/j.drv".to_owned()));
        for message in messages {
            activities.message(&mut message.as_bytes().to_vec());
        }
        activities.verdict(10, "1 dependencies of derivation '/nix/store/a.drv' failed to build")
    };
    let culprit = |name: &str, why: &str| {
        Verdict::DependencyFailed(Some(format!("/nix/store/{name}.drv")), why.to_owned())
    };
    let failed =
        "\u{1b}[31;1merror:\u{1b}[0m builder for '/nix/store/i.drv' failed with exit code 3";
    assert_eq!(blamed(&[failed]), culprit("i", "exit status 3"));
    // A builder whose last lines are cited says the same of somebody else.
    let cited = "error: building of '/nix/store/i.drv' timed out after 5 seconds;\n \
                 last 1 log lines:\n > builder for '/nix/store/j.drv' failed with exit code 1";
    assert!(matches!(blamed(&[cited]),
        Verdict::DependencyFailed(Some(drv), _) if drv == "/nix/store/i.drv"));
    // As newer ones put it.
    let newer =
        "error: Cannot build '/nix/store/i.drv'.\n       Reason: builder failed with exit code 3.";
    let above = "error: Cannot build '/nix/store/j.drv'.\n       Reason: 1 dependency failed.";
    assert_eq!(blamed(&[above, newer]), culprit("i", "exit status 3"));
    assert!(matches!(blamed(&[&format!("{newer}\n{note}")]), Verdict::Broken(_)));
    let outputs = "error: building of '/nix/store/i.drv^out' from .drv file failed";
    assert!(matches!(blamed(&[outputs]),
        Verdict::DependencyFailed(Some(drv), _) if drv == "/nix/store/i.drv"));
    let other = "error: builder for '/nix/store/never-begun.drv' failed with exit code 1";
    assert_eq!(blamed(&[other, failed]), culprit("i", "exit status 3"));
    let full = format!("{failed};\n       last 1 log lines:\n       > no\n{note}");
    assert!(matches!(blamed(&[&full]), Verdict::Broken(_)));
    let forged = format!("{failed};\n       last 1 log lines:\n       > {note}");
    assert!(matches!(blamed(&[&forged]), Verdict::DependencyFailed(..)));
}

#[test]
fn a_builder_that_met_a_full_disk_has_not_failed() {
    let note = b"note: build failure may have been caused by lack of free disk space\n";
    let failed = |drv: &str| {
        format!("@ build-failed {drv} - 1 builder for `{drv}' failed with exit code 3\n")
    };
    let (target, input) = ("/gnu/store/a.drv", "/gnu/store/i.drv");
    for drv in [target, input] {
        let mut trace = guix::Trace::new(target);
        trace.message(note);
        trace.message(failed(drv).as_bytes());
        assert!(matches!(trace.verdict("no"), Verdict::Broken(_)), "{drv}");
    }
    // The note was about another, and what a builder prints is none.
    let mut trace = guix::Trace::new(target);
    trace.message(note);
    trace.message(failed("/gnu/store/other.drv").as_bytes());
    trace.message(
        format!("@ build-log 7 {}\n", note.len())
            .as_bytes()
            .iter()
            .chain(note)
            .copied()
            .collect::<Vec<_>>()
            .as_slice(),
    );
    trace.message(failed(target).as_bytes());
    assert_eq!(trace.verdict("no"), Verdict::Failed("exit status 3".to_owned()));
}

#[test]
fn who_waits_for_what_others_build_is_not_building() {
    let mut trace = guix::Trace::new("/gnu/store/a.drv");
    trace.message(b"waiting for locks or build slots...\n");
    assert!(!trace.is_building());
    for (process, end) in
        [(7, "build-succeeded /gnu/store/i.drv -"), (8, "build-failed /gnu/store/i.drv - 1 x")]
    {
        let start = format!("@ build-started /gnu/store/i.drv - x86_64-linux /l {process}\n");
        trace.message(start.as_bytes());
        assert!(trace.is_building());
        trace.message(format!("@ {end}\n").as_bytes());
        assert!(!trace.is_building());
    }
    let mut activities = nix::Activities::new("/nix/store/a.drv");
    activities.start(1, 108, Some("/nix/store/fetched".to_owned()));
    assert!(!activities.is_building());
    activities.start(2, 105, Some("/nix/store/i.drv".to_owned()));
    assert!(activities.is_building());
    activities.stop(2);
    assert!(!activities.is_building());
}
