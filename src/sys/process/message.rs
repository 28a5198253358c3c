//! What the daemon and a keeper tell each other on the control socket.
//!
//! The daemon sends one [`Order`], its length first, with the descriptors the child needs; then single bytes
//! ([`TERMINATE`], [`KILL`]). The keeper answers with one [`Report`]. The end of the socket means the death of
//! the other side.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;

use super::{Exit, How, Launch, Program};

/// From the daemon: SIGTERM to the child's process group.
pub(super) const TERMINATE: u8 = b'T';
/// From the daemon: SIGKILL to all descendants.
pub(super) const KILL: u8 = b'K';

/// A command line with its environment is at most 6 MiB for the kernel; above this, a length is garbage.
pub(super) const MAX_ORDER: usize = 16 << 20;
/// Reasons are one line; longer file names than this are cut off.
const MAX_TEXT: usize = 4096;

/// A [`Launch`] as the keeper gets it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) kind: Kind,
    pub(super) arguments: Vec<Vec<u8>>,
    /// `NAME=VALUE` each.
    pub(super) environment: Vec<Vec<u8>>,
    pub(super) directory: Vec<u8>,
    /// User and group number.
    pub(super) user: Option<(u32, u32)>,
    pub(super) memory: Option<u64>,
    /// Whether a descriptor for standard error comes along.
    pub(super) errors: bool,
    /// Whether a descriptor for standard input comes along.
    pub(super) input: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Command,
    Git,
}

impl Order {
    pub(super) fn new(launch: &Launch, input: bool) -> Self {
        let bytes = |text: &OsStr| text.as_bytes().to_vec();
        let (kind, arguments) = match &launch.program {
            Program::Command(words) => (Kind::Command, words),
            Program::Git(words) => (Kind::Git, words),
        };
        Self {
            kind,
            arguments: arguments.iter().map(|word| bytes(word)).collect(),
            environment: launch
                .environment
                .iter()
                .map(|(name, value)| [bytes(name), bytes(value)].join(&b'='))
                .collect(),
            directory: bytes(launch.directory.as_os_str()),
            user: launch.user.as_ref().map(|user| (user.uid, user.gid)),
            memory: launch.memory,
            errors: !launch.merge,
            input,
        }
    }

    /// Without its length.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4096);
        out.push(match self.kind {
            Kind::Command => b'c',
            Kind::Git => b'g',
        });
        for list in [&self.arguments, &self.environment] {
            put(&mut out, list.len());
            for item in list {
                put(&mut out, item.len());
                out.extend_from_slice(item);
            }
        }
        put(&mut out, self.directory.len());
        out.extend_from_slice(&self.directory);
        out.push(u8::from(self.user.is_some()));
        let (uid, gid) = self.user.unwrap_or_default();
        out.extend_from_slice(&uid.to_le_bytes());
        out.extend_from_slice(&gid.to_le_bytes());
        out.push(u8::from(self.memory.is_some()));
        out.extend_from_slice(&self.memory.unwrap_or_default().to_le_bytes());
        out.extend_from_slice(&[u8::from(self.errors), u8::from(self.input)]);
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> io::Result<Self> {
        let mut rest = Rest(bytes);
        let kind = match rest.byte()? {
            b'c' => Kind::Command,
            b'g' => Kind::Git,
            _ => return Err(garbage()),
        };
        let (arguments, environment) = (rest.list()?, rest.list()?);
        let directory = rest.bytes()?.to_vec();
        let has_user = rest.flag()?;
        let user = (rest.u32()?, rest.u32()?);
        let has_memory = rest.flag()?;
        let memory = rest.u64()?;
        let order = Self {
            kind,
            arguments,
            environment,
            directory,
            user: has_user.then_some(user),
            memory: has_memory.then_some(memory),
            errors: rest.flag()?,
            input: rest.flag()?,
        };
        if rest.0.is_empty() { Ok(order) } else { Err(garbage()) }
    }
}

/// How the child ended, and whether the keeper has to stay on for descendants that do not die.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) exit: Exit,
    pub(super) lingers: bool,
}

impl Report {
    /// The largest encoded report.
    pub(super) const MAX: usize = 64 + MAX_TEXT;

    pub(super) fn encode(&self) -> Vec<u8> {
        let (kind, value, text) = match &self.exit.how {
            How::Code(code) => (b'c', *code, ""),
            How::Signal(signal) => (b's', *signal, ""),
            How::NotStarted(why) => (b'n', 0, why.as_str()),
            How::Prevented(why) => (b'p', 0, why.as_str()),
            How::Lost => (b'l', 0, ""),
        };
        let text = &text.as_bytes()[..text.len().min(MAX_TEXT)];
        let mut out = vec![kind];
        out.extend_from_slice(&value.to_le_bytes());
        out.extend_from_slice(&self.exit.max_resident.to_le_bytes());
        out.extend_from_slice(&[u8::from(self.exit.oom), u8::from(self.lingers)]);
        put(&mut out, text.len());
        out.extend_from_slice(text);
        out
    }

    /// `UnexpectedEof` as long as bytes are missing.
    pub(super) fn decode(bytes: &[u8]) -> io::Result<Self> {
        let mut rest = Rest(bytes);
        let (kind, value) = (rest.byte()?, rest.u32()?.cast_signed());
        let (max_resident, oom, lingers) = (rest.u64()?, rest.flag()?, rest.flag()?);
        let text = String::from_utf8_lossy(rest.bytes()?).into_owned();
        let how = match kind {
            b'c' => How::Code(value),
            b's' => How::Signal(value),
            b'n' => How::NotStarted(text),
            b'p' => How::Prevented(text),
            b'l' => How::Lost,
            _ => return Err(garbage()),
        };
        Ok(Self { exit: Exit { how, max_resident, oom }, lingers })
    }
}

fn put(out: &mut Vec<u8>, length: usize) {
    // What does not fit fails at the other end: nothing the kernel takes is that long.
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
}

fn garbage() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

/// Bytes not yet decoded.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, length: usize) -> io::Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| garbage())
    }

    fn byte(&mut self) -> io::Result<u8> {
        self.array().map(|[byte]| byte)
    }

    fn flag(&mut self) -> io::Result<bool> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(garbage()),
        }
    }

    fn u32(&mut self) -> io::Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> io::Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn length(&mut self) -> io::Result<usize> {
        usize::try_from(self.u32()?).map_err(|_| garbage())
    }

    fn bytes(&mut self) -> io::Result<&'a [u8]> {
        let length = self.length()?;
        self.take(length)
    }

    fn list(&mut self) -> io::Result<Vec<Vec<u8>>> {
        (0..self.length()?).map(|_| self.bytes().map(<[u8]>::to_vec)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::User;

    fn order() -> Order {
        let user = User { name: "job".to_owned(), uid: 7, gid: 8, home: "/nonexistent".into() };
        let launch = Launch {
            program: Program::Command(vec!["a".into(), "".into()]),
            environment: vec![("A".into(), "b=c".into())],
            directory: "/tmp".into(),
            user: Some(user),
            memory: Some(1 << 33),
            merge: false,
        };
        Order::new(&launch, true)
    }

    #[test]
    fn orders_round_trip() {
        let order = order();
        assert_eq!(order.environment, [b"A=b=c".to_vec()]);
        let bytes = order.encode();
        assert_eq!(Order::decode(&bytes).unwrap(), order);
        for length in 0..bytes.len() {
            assert!(Order::decode(&bytes[..length]).is_err(), "{length}");
        }
        let too_long = [bytes.as_slice(), b"x"].concat();
        assert!(Order::decode(&too_long).is_err());
        // A length that promises more than there is allocates nothing.
        assert!(Order::decode(b"c\xff\xff\xff\xff").is_err());
        assert!(Order::decode(b"garbage").is_err());
    }

    #[test]
    fn reports_round_trip() {
        let hows = [
            How::Code(3),
            How::Signal(9),
            How::NotStarted("no ☂".to_owned()),
            How::Prevented("no ☂ now".to_owned()),
            How::Lost,
        ];
        for how in hows {
            let report =
                Report { exit: Exit { how, max_resident: 1 << 40, oom: true }, lingers: false };
            let bytes = report.encode();
            assert_eq!(Report::decode(&bytes).unwrap(), report);
            for length in 0..bytes.len() {
                let error = Report::decode(&bytes[..length]).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
            }
        }
        let long = How::NotStarted("x".repeat(100_000));
        let exit = Exit { how: long, max_resident: 0, oom: false };
        assert!(Report { exit, lingers: true }.encode().len() <= Report::MAX);
        let error = Report::decode(&[b'?'; 64]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
