//! All recorded exchanges, both directions, with nothing but the primitives: what the client sent is taken apart and put
//! together again byte for byte, and what the daemon said is read to its end, at the offsets and with the values that
//! `decoded.txt` has.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read, Write};
use std::path::{Path, PathBuf};

use crate::proto::store::Error;
use crate::proto::store::wire::Wire;

/// Fields of requests and replies, one letter each: `s`tring, `l`ist, `w`ord, `p`airs, `n` an archive.
const SHAPES: &[(u64, &str, &str)] = &[
    (1, "s", "w"),
    (3, "s", "w"),
    (4, "s", "s"),
    (5, "s", "l"),
    (6, "s", "l"),
    (7, "swwsn", "s"),
    (8, "ssl", "s"),
    (9, "lw", "w"),
    (11, "s", "w"),
    (12, "s", "w"),
    (14, "", "p"),
    (16, "sw", "w"),
    (19, "wwwwwwwwwp", ""),
    (20, "wlwwwww", "lww"),
    (22, "s", "l"),
    (24, "", "l"),
    (26, "s", "sslww"),
    (27, "", "l"),
    (29, "s", "s"),
    (30, "l", "w"), // Of none.
    (31, "l", "l"),
    (32, "l", "l"),
    (33, "s", "l"),
    (80, "", "l"),
    (81, "", "l"),
];

/// One direction, read; what is written beside it is kept.
struct Side {
    bytes: Cursor<Vec<u8>>,
    written: Vec<u8>,
}

impl Read for Side {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.bytes.read(buffer)
    }
}

impl Write for Side {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.written.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn side(directory: &Path, file: &str) -> Wire<Side> {
    let bytes = Cursor::new(std::fs::read(directory.join(file)).unwrap());
    Wire::new(Side { bytes, written: Vec::new() })
}

fn offset(wire: &Wire<Side>) -> usize {
    usize::try_from(wire.stream().bytes.position()).unwrap() - wire.ahead()
}

fn is_over(wire: &Wire<Side>) -> bool {
    offset(wire) == wire.stream().bytes.get_ref().len()
}

/// Takes a field, and puts it again; as `decoded.txt` prints it.
fn field(wire: &mut Wire<Side>, kind: char) -> Result<String, Error> {
    Ok(match kind {
        'w' => {
            let word = wire.word()?;
            wire.put(word);
            word.to_string()
        }
        's' => string(wire)?,
        'l' | 'p' => {
            let length = wire.length()?;
            wire.put(length as u64);
            let mut items = Vec::new();
            for _ in 0..length {
                items.push(match kind {
                    'l' => string(wire)?,
                    _ => format!("({}, {})", string(wire)?, string(wire)?),
                });
            }
            format!("[{}]", items.join(", "))
        }
        'n' => {
            // Its tokens are strings, contents as well.
            let mut depth = 0;
            loop {
                match string(wire)?.as_str() {
                    "'('" => depth += 1,
                    "')'" => depth -= 1,
                    _ => continue,
                }
                if depth == 0 {
                    break String::new();
                }
            }
        }
        other => panic!("{other}"),
    })
}

fn string(wire: &mut Wire<Side>) -> Result<String, Error> {
    let mut bytes = Vec::new();
    wire.bytes(&mut bytes)?;
    wire.put_bytes(&bytes);
    Ok(format!("'{}'", String::from_utf8_lossy(&bytes)))
}

/// The exchange, as far as it goes.
fn decode(
    client: &mut Wire<Side>,
    server: &mut Wire<Side>,
    lines: &mut Vec<String>,
) -> Result<(), Error> {
    let magic = field(client, 'w')?;
    if magic != 0x6e69_7863.to_string() {
        return server.word().map(drop);
    }
    assert_eq!(server.word()?, 0x6478_696f);
    assert_eq!(server.word()?, 0x164);
    let version = field(client, 'w')?;
    if version == 0x164.to_string() {
        field(client, 'w')?; // Affinity.
    }
    field(client, 'w')?; // Reserve.
    answer(client, server, lines, "")?;
    while !is_over(client) {
        let at = offset(client);
        let operation = client.word()?;
        client.put(operation);
        lines.push(format!("C@{at} {operation}"));
        let shape = SHAPES.iter().find(|(number, ..)| *number == operation);
        let (arguments, reply) =
            shape.map_or(("", ""), |(_, arguments, reply)| (*arguments, *reply));
        for kind in arguments.chars() {
            field(client, kind)?;
        }
        answer(client, server, lines, reply)?;
    }
    Ok(())
}

/// What the daemon says until it has answered.
fn answer(
    client: &mut Wire<Side>,
    server: &mut Wire<Side>,
    lines: &mut Vec<String>,
    reply: &str,
) -> Result<(), Error> {
    loop {
        let at = offset(server);
        let word = server.word()?;
        let (name, kinds) = match word {
            0x6f6c_6d67 => ("NEXT", "s"),
            0x6461_7461 => ("READ", "w"),
            0x6461_7416 => ("WRITE", "s"),
            0x616c_7473 => ("LAST", ""),
            0x6378_7470 => ("ERROR", "sw"),
            _ => return Err(Error::Garbled("a message")),
        };
        lines.push(format!("S@{at} {name}"));
        for kind in kinds.chars() {
            field(server, kind)?;
        }
        match name {
            "READ" => drop(field(client, 's')?),
            "LAST" => break,
            "ERROR" => return Ok(()),
            _ => {}
        }
    }
    if !reply.is_empty() {
        let at = offset(server);
        let fields: Result<Vec<_>, _> = reply.chars().map(|kind| field(server, kind)).collect();
        let mut text = fields?.join(" ");
        // Substitutable items come as a list; there are none.
        if lines
            .iter()
            .rev()
            .find(|line| line.starts_with('C'))
            .is_some_and(|op| op.ends_with(" 30"))
        {
            text = text.replace('0', "[]");
        }
        lines.push(format!("S@{at} reply {text}"));
    }
    Ok(())
}

/// The lines of `decoded.txt` that say as much.
fn expected(text: &str) -> Vec<String> {
    let number = |word: &str| word.rsplit_once('(')?.1.strip_suffix(')').map(str::to_owned);
    let line = |line: &str| {
        let mut words = line.trim().splitn(3, ' ');
        let (at, what, rest) = (words.next()?, words.next()?, words.next());
        match (at.starts_with("C@"), at.starts_with("S@")) {
            (true, _) => Some(format!("{at} {}", number(what)?)),
            (_, true) if what == "magic" => None,
            (_, true) if what == "reply" => {
                Some(format!("{at} reply {}", rest.unwrap_or_default()))
            }
            (_, true) => Some(format!("{at} {what}")),
            _ => None,
        }
    };
    text.lines().filter_map(line).collect()
}

/// Long values are cut in `decoded.txt`.
fn is_same(line: &str, expected: &str) -> bool {
    match expected.split_once("... (") {
        Some((beginning, _)) => line.starts_with(beginning),
        None => line == expected,
    }
}

#[test]
fn all_are_read_and_written_as_they_were() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let mut seen = BTreeMap::new();
    for entry in std::fs::read_dir(root).unwrap() {
        let directory: PathBuf = entry.unwrap().path();
        let name = directory.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(directory.join("README.md").exists(), "{name}");
        let (mut client, mut server) =
            (side(&directory, "client.bin"), side(&directory, "server.bin"));
        let mut lines = Vec::new();
        let end = decode(&mut client, &mut server, &mut lines);
        let text = std::fs::read_to_string(directory.join("decoded.txt")).unwrap();
        let expected = expected(&text);
        assert_eq!(lines.len(), expected.len(), "{name}");
        for (line, expected) in lines.iter().zip(&expected) {
            assert!(is_same(line, expected), "{name}: {line:.200} is not {expected:.200}");
        }
        // Three ended before the daemon had said all.
        let cut = ["bad-magic", "client-hangs-up", "pipelined-during-build"].contains(&&*name);
        assert_eq!(end.is_err(), cut, "{name}: {end:?}");
        assert!(is_over(&client) && is_over(&server), "{name}");
        client.flush().unwrap();
        assert!(client.stream().written == *client.stream().bytes.get_ref(), "{name}");
        server.flush().unwrap();
        seen.insert(name, lines.len());
    }
    assert!(seen.len() >= 39, "{seen:?}");
}
