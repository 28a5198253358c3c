//! Decoding of gzip that arrives in pieces, members one after the other, in bounded memory.
//!
//! Invariant: the end of what has arrived is never an error, wherever it is; bytes that cannot be gzip are one for ever.

use std::io;

use flate2::{Crc, Decompress, FlushDecompress, Status};

/// What one step yields at most; a reader keeps as much.
const CHUNK: usize = 16 << 10;
/// No header is longer, but for one made to fill our memory.
const MAX_HEADER: usize = 128 << 10;
/// CRC-32 and length.
const TRAILER: usize = 8;

/// The bits of a header's flags.
const HAS_CHECKSUM: u8 = 2;
const HAS_EXTRA: u8 = 4;
const HAS_NAME: u8 = 8;
const HAS_COMMENT: u8 = 16;
const RESERVED: u8 = 0xe0;

pub(super) struct Gunzip {
    /// Arrived and not yet decoded.
    input: Vec<u8>,
    /// How much of `input` is decoded.
    used: usize,
    part: Part,
    inflate: Decompress,
    /// Of the current member.
    checksum: Crc,
    output: Box<[u8]>,
}

#[derive(Clone, Copy)]
enum Part {
    Header,
    Body,
    Trailer,
    Broken,
}

impl Gunzip {
    pub(super) fn new() -> Self {
        Self {
            input: Vec::new(),
            used: 0,
            part: Part::Header,
            inflate: Decompress::new(false),
            checksum: Crc::new(),
            output: vec![0; CHUNK].into_boxed_slice(),
        }
    }

    /// Where bytes are appended after a step that yielded nothing.
    pub(super) fn input(&mut self) -> &mut Vec<u8> {
        self.input.drain(..self.used);
        self.used = 0;
        &mut self.input
    }

    /// The next piece of text; empty when more input is needed.
    pub(super) fn step(&mut self) -> io::Result<&[u8]> {
        match self.decode() {
            Ok(length) => Ok(&self.output[..length]),
            Err(Damaged) => {
                self.part = Part::Broken;
                Err(io::Error::new(io::ErrorKind::InvalidData, "the log is damaged"))
            }
        }
    }

    fn decode(&mut self) -> Result<usize, Damaged> {
        loop {
            let rest = &self.input[self.used..];
            match self.part {
                Part::Header => match header(rest)? {
                    Some(length) => {
                        self.used += length;
                        self.inflate.reset(false);
                        self.checksum.reset();
                        self.part = Part::Body;
                    }
                    None if rest.len() > MAX_HEADER => return Err(Damaged),
                    None => return Ok(0),
                },
                Part::Body => {
                    let (consumed, produced) = (self.inflate.total_in(), self.inflate.total_out());
                    let status =
                        self.inflate.decompress(rest, &mut self.output, FlushDecompress::None);
                    let status = status.map_err(|_| Damaged)?;
                    // Neither exceeds the slices given.
                    let consumed = (self.inflate.total_in() - consumed) as usize;
                    let produced = (self.inflate.total_out() - produced) as usize;
                    self.used += consumed;
                    self.checksum.update(&self.output[..produced]);
                    match status {
                        Status::StreamEnd => self.part = Part::Trailer,
                        Status::Ok | Status::BufError if consumed + produced == 0 => return Ok(0),
                        Status::Ok | Status::BufError => {}
                    }
                    if produced > 0 {
                        return Ok(produced);
                    }
                }
                Part::Trailer => {
                    let Some((trailer, _)) = rest.split_first_chunk::<TRAILER>() else {
                        return Ok(0);
                    };
                    let expected =
                        [self.checksum.sum().to_le_bytes(), self.checksum.amount().to_le_bytes()];
                    if trailer != expected.as_flattened() {
                        return Err(Damaged);
                    }
                    self.used += TRAILER;
                    self.part = Part::Header;
                }
                Part::Broken => return Err(Damaged),
            }
        }
    }
}

struct Damaged;

/// The length of the header that `bytes` begins with; `None` if some of it is missing.
fn header(bytes: &[u8]) -> Result<Option<usize>, Damaged> {
    let fixed = [0x1f, 0x8b, 8];
    if bytes.iter().zip(fixed).any(|(&byte, expected)| byte != expected) {
        return Err(Damaged);
    }
    let Some(&flags) = bytes.get(3) else { return Ok(None) };
    if flags & RESERVED != 0 {
        return Err(Damaged);
    }
    // Time, a level and a system: of no interest.
    let mut length = 10;
    if flags & HAS_EXTRA != 0 {
        let Some(field) = bytes.get(length..length + 2) else { return Ok(None) };
        length += 2 + usize::from(u16::from_le_bytes([field[0], field[1]]));
    }
    for flag in [HAS_NAME, HAS_COMMENT] {
        if flags & flag != 0 {
            let text = bytes.get(length..).unwrap_or_default();
            let Some(end) = text.iter().position(|&byte| byte == 0) else { return Ok(None) };
            length += end + 1;
        }
    }
    length += if flags & HAS_CHECKSUM != 0 { 2 } else { 0 };
    Ok((length <= bytes.len()).then_some(length))
}
