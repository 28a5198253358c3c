//! One connection: greeting, requests, and the messages with which a daemon accompanies its work.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use super::wire::Wire;
use super::{Dialect, Error, Info, Options, Output, Verdict, guix, nix};

const CLIENT_MAGIC: u64 = 0x6e69_7863;
const SERVER_MAGIC: u64 = 0x6478_696f;

/// What we announce to a guix-daemon, and the oldest that we take: Guix 1.0 of 2019, which multiplexes output.
const GUIX: u64 = 0x164;
const OLDEST_GUIX: u64 = 0x63;

/// The newest dialect of nix-daemon before it exchanges features, and the oldest that gives a result per build: Nix
/// 2.8 of 2022.
const NIX: u64 = 0x125;
const OLDEST_NIX: u64 = 34;

/// Seconds: daemons refuse limits that fit no 32 bits, and nobody meets one of 68 years.
const LONGEST: u64 = i32::MAX as u64;

const NEXT: u64 = 0x6f6c_6d67;
const LAST: u64 = 0x616c_7473;
const ERROR: u64 = 0x6378_7470;
const START_ACTIVITY: u64 = 0x5354_5254;
const STOP_ACTIVITY: u64 = 0x5354_4f50;
const RESULT: u64 = 0x5253_4c54;

const IS_VALID_PATH: u64 = 1;
const BUILD_PATHS: u64 = 9;
const ADD_TO_STORE: u64 = 7;
const ADD_TEXT_TO_STORE: u64 = 8;
const ENSURE_PATH: u64 = 10;
const ADD_TEMP_ROOT: u64 = 11;
const ADD_INDIRECT_ROOT: u64 = 12;
const SET_OPTIONS: u64 = 19;
const QUERY_DERIVATION_OUTPUTS: u64 = 22;
const QUERY_PATH_INFO: u64 = 26;
const QUERY_DERIVATION_OUTPUT_NAMES: u64 = 28;
const QUERY_VALID_PATHS: u64 = 31;
const QUERY_DERIVATION_OUTPUT_MAP: u64 = 41;
const BUILD_PATHS_WITH_RESULTS: u64 = 46;

/// A connection to a daemon, between two requests or during a build.
pub(crate) struct Session<S> {
    wire: Wire<S>,
    dialect: Dialect,
    /// What both ends speak.
    minor: u64,
    payload: Vec<u8>,
    build: Watch,
    /// What a nix-daemon is to ask for other machines, instead of its own hook.
    hook: Option<String>,
    /// Whether a guix-daemon is to offload.
    offload: bool,
    /// The first line of what a nix-daemon said last, for people.
    said: String,
}

/// What is known of the build under way.
enum Watch {
    Guix(guix::Trace),
    Nix(nix::Activities),
}

/// What comes next of a build.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step<'a> {
    Output(Output<'a>),
    /// Nothing that anybody has to see.
    Nothing,
    Over(Verdict),
}

impl<S: Read + Write> Session<S> {
    /// Greets the daemon.
    pub(crate) fn open(stream: S, dialect: Dialect) -> Result<Self, Error> {
        let mut wire = Wire::new(stream);
        wire.put(CLIENT_MAGIC);
        wire.flush()?;
        if wire.word()? != SERVER_MAGIC {
            return Err(Error::Garbled("the greeting of a store daemon"));
        }
        let version = wire.word()?;
        let (major, minor) = (version & !0xff, version & 0xff);
        // Nix will not count that far for long; Guix began there.
        let fits = match dialect {
            Dialect::Guix => minor >= OLDEST_GUIX,
            Dialect::Nix => (OLDEST_NIX..OLDEST_GUIX - 3).contains(&minor),
        };
        if major != 0x100 || !fits {
            return Err(Error::Version(dialect, version));
        }
        let (ours, watch) = match dialect {
            Dialect::Guix => (GUIX, Watch::Guix(guix::Trace::default())),
            Dialect::Nix => (NIX, Watch::Nix(nix::Activities::default())),
        };
        let minor = minor.min(ours & 0xff);
        let mut session = Self {
            wire,
            dialect,
            minor,
            payload: Vec::new(),
            build: watch,
            hook: None,
            offload: true,
            said: String::new(),
        };
        let wire = &mut session.wire;
        wire.put(ours);
        wire.put(0); // No processor affinity.
        match dialect {
            Dialect::Guix => wire.put(1), // Reserve space.
            Dialect::Nix => wire.put(0),
        }
        wire.flush()?;
        if dialect == Dialect::Nix {
            wire.string()?; // The daemon's version.
            if minor >= 35 {
                wire.word()?; // Whether we are trusted.
            }
        }
        session.wait()?;
        Ok(session)
    }

    pub(crate) fn stream(&self) -> &S {
        self.wire.stream()
    }

    /// Whether a step can be taken without waiting for the daemon.
    pub(crate) fn has_more(&self) -> bool {
        self.wire.has_more()
    }

    pub(crate) fn set_options(&mut self, options: &Options) -> Result<(), Error> {
        let wire = &mut self.wire;
        wire.put(SET_OPTIONS);
        wire.put(0); // Keep failed.
        wire.put(u64::from(options.keep_going));
        wire.put(u64::from(options.fallback));
        // Verbosity: errors. The trace and builders' output come all the same. What keeps a nix-daemon from fetching, keys
        // that it does not know, are warnings to it.
        let warnings = self.dialect == Dialect::Nix && options.substitute_urls.is_some();
        wire.put(u64::from(warnings));
        let max_silent_time = options.max_silent_time.min(LONGEST);
        let timeout = options.timeout.min(LONGEST).to_string();
        let silence = max_silent_time.to_string();
        let cores = options.cores.min(LONGEST);
        let urls = options.substitute_urls.as_ref().map(|urls| urls.join(" "));
        match self.dialect {
            Dialect::Guix => {
                let cores = (cores > 0).then(|| cores.to_string());
                wire.put(u64::from(self.offload));
                wire.put(0); // Build verbosity.
                wire.put(2); // Flat lines.
                wire.put(1); // The trace.
                wire.put(1); // Substitutes.
                let mut pairs = vec![
                    ("build-timeout", &*timeout),
                    ("build-max-silent-time", &*silence),
                    ("build-max-jobs", "1"),
                    ("multiplexed-build-output", "true"),
                    ("print-extended-build-trace", "0"),
                ];
                pairs.extend(cores.as_deref().map(|cores| ("build-cores", cores)));
                pairs.extend(urls.as_deref().map(|urls| ("substitute-urls", urls)));
                put_pairs(wire, &pairs);
            }
            Dialect::Nix => {
                wire.put(1); // Jobs at once.
                wire.put(max_silent_time);
                wire.put(1);
                wire.put(0); // Builders' output comes.
                wire.put(0);
                wire.put(0);
                wire.put(cores);
                wire.put(1); // Substitutes.
                let mut pairs = vec![("timeout", &*timeout), ("max-silent-time", &*silence)];
                if let Some(urls) = urls.as_deref() {
                    pairs.push(("substituters", urls));
                    // What was not there once, it would not ask for again within an hour.
                    pairs.push(("narinfo-cache-negative-ttl", "0"));
                }
                pairs.extend(self.hook.as_deref().map(|hook| ("build-hook", hook)));
                put_pairs(wire, &pairs);
            }
        }
        self.said.clear();
        self.ask()?;
        if !self.said.contains("substituter") {
            // It is of some other setting, which did not fit.
            self.said.clear();
        }
        Ok(())
    }

    /// Names the program that a nix-daemon asks for other machines, for this connection; it heeds whom it trusts.
    pub(crate) fn set_build_hook(&mut self, program: &str) {
        self.hook = Some(program.to_owned());
    }

    /// Has a guix-daemon build everything itself on this connection.
    pub(crate) fn set_offload(&mut self, offload: bool) {
        self.offload = offload;
    }

    pub(crate) fn is_valid(&mut self, path: &str) -> Result<bool, Error> {
        self.request_about(IS_VALID_PATH, path)?;
        Ok(self.wire.word()? != 0)
    }

    /// Those of `paths` that are valid.
    pub(crate) fn valid(&mut self, paths: &[&str]) -> Result<Vec<String>, Error> {
        self.wire.put(QUERY_VALID_PATHS);
        self.wire.put_list(paths);
        if self.dialect == Dialect::Nix {
            self.wire.put(0); // Without substituting them.
        }
        self.ask()?;
        self.wire.strings()
    }

    /// The outputs of a derivation that is in the store, by name.
    pub(crate) fn outputs(&mut self, derivation: &str) -> Result<BTreeMap<String, String>, Error> {
        if self.dialect == Dialect::Nix {
            self.request_about(QUERY_DERIVATION_OUTPUT_MAP, derivation)?;
            // Not reserved: the peer may claim more than it sends.
            let mut outputs = BTreeMap::new();
            for _ in 0..self.wire.length()? {
                outputs.insert(self.wire.string()?, self.wire.string()?);
            }
            return Ok(outputs);
        }
        self.request_about(QUERY_DERIVATION_OUTPUTS, derivation)?;
        let paths = self.wire.strings()?;
        self.request_about(QUERY_DERIVATION_OUTPUT_NAMES, derivation)?;
        let names = self.wire.strings()?;
        guix::outputs(derivation, &names, &paths).ok_or(Error::Garbled("the names of outputs"))
    }

    /// What the daemon knows of an item, if it is valid.
    #[cfg_attr(
        not(any(test, fuzzing)),
        expect(dead_code, reason = "the protocol is whole before all of it is used")
    )]
    pub(crate) fn path_info(&mut self, path: &str) -> Result<Option<Info>, Error> {
        match self.dialect {
            Dialect::Guix => {
                if !self.is_valid(path)? {
                    return Ok(None);
                }
                self.request_about(QUERY_PATH_INFO, path)?;
                self.info().map(Some)
            }
            Dialect::Nix => {
                self.request_about(QUERY_PATH_INFO, path)?;
                if self.wire.word()? == 0 { Ok(None) } else { self.info().map(Some) }
            }
        }
    }

    fn info(&mut self) -> Result<Info, Error> {
        let deriver = Some(self.wire.string()?).filter(|deriver| !deriver.is_empty());
        let (hash, references) = (self.wire.string()?, self.wire.strings()?);
        let (registered, size) = (self.wire.word()?, self.wire.word()?);
        if self.dialect == Dialect::Nix {
            self.wire.word()?; // Whether it was built here.
            self.wire.strings()?; // Signatures.
            self.wire.string()?; // How its content names it.
        }
        Ok(Info { deriver, hash, references, registered, size })
    }

    /// Makes an item valid by a substitute, if it is not; refused where there is none.
    pub(crate) fn ensure_path(&mut self, path: &str) -> Result<(), Error> {
        self.request_about(ENSURE_PATH, path).map_err(|error| match error {
            // Only that says why.
            Error::Refused(message) if !self.said.is_empty() => {
                Error::Refused(format!("{message}: {}", self.said))
            }
            error => error,
        })?;
        self.wire.word().map(drop)
    }

    /// Adds a file of this text, which refers to `references`; returns its path. The connection holds it.
    #[cfg_attr(
        not(any(test, fuzzing)),
        expect(dead_code, reason = "the protocol is whole before all of it is used")
    )]
    pub(crate) fn add_text<T: AsRef<[u8]>>(
        &mut self,
        name: &str,
        text: &[u8],
        references: &[T],
    ) -> Result<String, Error> {
        match self.dialect {
            Dialect::Guix => {
                self.wire.put(ADD_TEXT_TO_STORE);
                self.wire.put_bytes(name.as_bytes());
                self.wire.put_bytes(text);
                self.wire.put_list(references);
                self.ask()?;
                self.wire.string()
            }
            Dialect::Nix => {
                self.wire.put(ADD_TO_STORE);
                self.wire.put_bytes(name.as_bytes());
                self.wire.put_bytes(b"text:sha256");
                self.wire.put_list(references);
                self.wire.put(0); // Not to repair.
                self.wire.put_frame(text);
                self.ask()?;
                let path = self.wire.string()?;
                self.info()?;
                Ok(path)
            }
        }
    }

    /// Asks one thing about a store item.
    fn request_about(&mut self, operation: u64, path: &str) -> Result<(), Error> {
        self.wire.put(operation);
        self.wire.put_bytes(path.as_bytes());
        self.ask()
    }

    /// Keeps `path` from the collector as long as the connection lasts.
    pub(crate) fn add_temporary_root(&mut self, path: &str) -> Result<(), Error> {
        self.request_about(ADD_TEMP_ROOT, path)?;
        self.wire.word().map(drop)
    }

    /// Tells the daemon of a symbolic link to a store item, which keeps that item as long as it is there.
    pub(crate) fn add_indirect_root(&mut self, link: &[u8]) -> Result<(), Error> {
        self.wire.put(ADD_INDIRECT_ROOT);
        self.wire.put_bytes(link);
        self.ask()?;
        self.wire.word().map(drop)
    }

    /// Whether a builder of this connection runs; a build may also wait for what others build.
    pub(crate) fn is_building(&self) -> bool {
        match &self.build {
            Watch::Guix(trace) => trace.is_building(),
            Watch::Nix(activities) => activities.is_building(),
        }
    }

    /// Begins to build all outputs of `derivation`; `step` has to be called until it is over.
    pub(crate) fn build(&mut self, derivation: &str) -> Result<(), Error> {
        match &mut self.build {
            Watch::Guix(trace) => {
                *trace = guix::Trace::new(derivation);
                self.wire.put(BUILD_PATHS);
                self.wire.put_list(&[derivation]);
            }
            Watch::Nix(activities) => {
                *activities = nix::Activities::new(derivation);
                self.wire.put(BUILD_PATHS_WITH_RESULTS);
                self.wire.put_list(&[format!("{derivation}!*")]);
            }
        }
        self.wire.put(0); // Not to repair, not to check.
        self.wire.flush()
    }

    /// Waits for the next thing that the daemon has to say of the build.
    pub(crate) fn step(&mut self) -> Result<Step<'_>, Error> {
        let refused = match self.wire.word()? {
            NEXT => {
                self.wire.bytes(&mut self.payload)?;
                return Ok(match &mut self.build {
                    Watch::Guix(trace) => trace.message(&self.payload),
                    Watch::Nix(activities) => activities.message(&mut self.payload),
                });
            }
            LAST => None,
            ERROR => Some(self.refusal()?),
            word => return self.activity(word),
        };
        match (&self.build, refused) {
            (Watch::Guix(_), None) => {
                self.wire.word()?; // Always 1, whatever was built.
                Ok(Step::Over(Verdict::Done))
            }
            (Watch::Guix(trace), Some(message)) => Ok(Step::Over(trace.verdict(&message))),
            (Watch::Nix(_), None) => self.results(),
            (Watch::Nix(activities), Some(message)) => Ok(Step::Over(activities.refused(&message))),
        }
    }

    /// What only a nix-daemon says.
    fn activity(&mut self, word: u64) -> Result<Step<'_>, Error> {
        let Watch::Nix(activities) = &mut self.build else {
            return Err(Error::Garbled("a message"));
        };
        match word {
            START_ACTIVITY => {
                let (id, _level, kind) = (self.wire.word()?, self.wire.word()?, self.wire.word()?);
                self.wire.bytes(&mut self.payload)?;
                let first = fields(&mut self.wire)?;
                self.wire.word()?; // The activity that it is part of.
                Ok(activities.start(id, kind, first))
            }
            STOP_ACTIVITY => {
                activities.stop(self.wire.word()?);
                Ok(Step::Nothing)
            }
            RESULT => {
                let (id, kind) = (self.wire.word()?, self.wire.word()?);
                let first = fields(&mut self.wire)?;
                Ok(activities.result(id, kind, first, &mut self.payload))
            }
            _ => Err(Error::Garbled("a message")),
        }
    }

    /// The results of the one thing that a nix-daemon was asked to build.
    fn results(&mut self) -> Result<Step<'_>, Error> {
        let mut verdict = None;
        for _ in 0..self.wire.length()? {
            self.wire.string()?; // What was asked for.
            let (status, message) = (self.wire.word()?, self.wire.string()?);
            for _ in 0..4 {
                self.wire.word()?; // Times built, whether it is deterministic, begin, end.
            }
            if self.minor >= 37 {
                for _ in 0..2 {
                    if self.wire.word()? != 0 {
                        self.wire.word()?; // Processor time.
                    }
                }
            }
            for _ in 0..self.wire.length()? {
                self.wire.string()?;
                self.wire.string()?;
            }
            verdict.get_or_insert((status, message));
        }
        let Watch::Nix(activities) = &self.build else {
            return Err(Error::Garbled("the reply of a guix-daemon"));
        };
        let (status, message) = verdict.ok_or(Error::Garbled("the result of a build"))?;
        Ok(Step::Over(activities.verdict(status, &message)))
    }

    /// A request that has no answer, as it stands.
    #[cfg(test)]
    pub(super) fn request(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.wire.put_raw(bytes);
        self.ask()
    }

    /// Sends a request and waits until the reply's fields follow.
    fn ask(&mut self) -> Result<(), Error> {
        self.wire.flush()?;
        self.wait()
    }

    /// Passes over messages until the reply's fields follow.
    fn wait(&mut self) -> Result<(), Error> {
        loop {
            match self.wire.word()? {
                NEXT => {
                    self.wire.bytes(&mut self.payload)?;
                    if self.dialect == Dialect::Nix {
                        self.said = nix::sentence(&self.payload);
                    }
                }
                LAST => return Ok(()),
                ERROR => {
                    return Err(Error::Refused(self.refusal()?));
                }
                word => {
                    self.activity(word)?;
                }
            }
        }
    }

    /// What an error says. Guix's status says no more than the trace does.
    fn refusal(&mut self) -> Result<String, Error> {
        match self.dialect {
            Dialect::Guix => {
                let message = self.wire.string()?;
                self.wire.word()?;
                Ok(message)
            }
            Dialect::Nix => {
                self.wire.string()?; // `Error`
                self.wire.word()?;
                self.wire.string()?;
                let message = nix::plain(&self.wire.string()?);
                self.wire.word()?;
                for _ in 0..self.wire.length()? {
                    self.wire.word()?;
                    self.wire.string()?; // Where it came from.
                }
                Ok(message)
            }
        }
    }
}

fn put_pairs<S: Read + Write>(wire: &mut Wire<S>, pairs: &[(&str, &str)]) {
    wire.put(pairs.len() as u64);
    for (name, value) in pairs {
        wire.put_bytes(name.as_bytes());
        wire.put_bytes(value.as_bytes());
    }
}

/// The fields of an activity or result: the first, if it is a string.
fn fields<S: Read + Write>(wire: &mut Wire<S>) -> Result<Option<String>, Error> {
    let mut first = None;
    for n in 0..wire.length()? {
        match wire.word()? {
            0 => drop(wire.word()?),
            1 => {
                let text = wire.string()?;
                if n == 0 {
                    first = Some(text);
                }
            }
            _ => return Err(Error::Garbled("a field")),
        }
    }
    Ok(first)
}
