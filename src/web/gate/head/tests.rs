//! Heads that are good, that are not, and that a seeded mutator makes.

use super::*;

const PROXY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

fn read(head: &str) -> Result<Head, u16> {
    read_bytes(format!("{head}\r\n\r\n").as_bytes())
}

fn read_bytes(bytes: &[u8]) -> Result<Head, u16> {
    parse(bytes, Sender { address: PROXY, proxies: &[] }).map_err(|refusal| refusal.status)
}

fn lines(head: &Head) -> String {
    String::from_utf8(head.lines.clone()).unwrap()
}

#[test]
fn a_good_head_is_written_anew() {
    let head = read(
        "GET /a?b=c HTTP/1.1\r\nHost: h\r\nCookie:  a=b \r\nConnection: close, x\r\nTE: trailers\r\n\
         X-Forwarded-For: 1.2.3.4\r\nX-Gorget-Gate-Peer: 9.9.9.9\r\nx-gorget-gate-secure: 1\r\nX-Gorget-Gate-Direct: 1\r\nUpgrade: h2c",
    )
    .unwrap();
    assert_eq!(
        lines(&head),
        "GET /a?b=c HTTP/1.1\r\nhost: h\r\ncookie: a=b\r\nx-forwarded-for: 1.2.3.4\r\nx-gorget-gate-peer: 10.0.0.1\r\n"
    );
    assert!(!head.keep && head.is_safe && !head.is_1_0);
    assert_eq!(head.framing, Framing::Length(0));
    let head = read("GET http://h?x HTTP/1.0\r\nConnection: Keep-Alive").unwrap();
    assert!(lines(&head).starts_with("GET /?x HTTP/1.1\r\n"));
    assert!(head.keep && head.is_1_0);
    let head = read("GET /é HTTP/1.1\r\nHost: h\r\nUser-Agent: ü").unwrap();
    assert!(lines(&head).starts_with("GET /%C3%A9 HTTP/1.1\r\n"));
    assert!(lines(&head).contains("user-agent: ??\r\n"));
}

#[test]
fn bodies_have_one_length() {
    let read = |headers: &str| {
        read(&format!("POST / HTTP/1.1\r\nHost: h\r\n{headers}")).map(|head| head.framing)
    };
    assert_eq!(read("Content-Length: 7"), Ok(Framing::Length(7)));
    assert_eq!(read("Transfer-Encoding: Chunked"), Ok(Framing::Chunked));
    assert_eq!(read("Content-Length: 1048577"), Err(413));
    assert_eq!(read("Content-Length: 99999999999999999999999"), Err(413));
    assert_eq!(read("Transfer-Encoding: gzip, chunked"), Err(501));
    assert_eq!(read("Expect: a miracle"), Err(417));
    for bad in [
        "Content-Length: 7\r\nContent-Length: 7",
        "Content-Length: 7, 7",
        "Content-Length: +7",
        "Content-Length: 0x7",
        "Content-Length:",
        "Content-Length: 7\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 7",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding : chunked",
    ] {
        assert_eq!(read(bad), Err(400), "{bad}");
    }
}

#[test]
fn what_is_not_valid_is_refused() {
    for bad in [
        "",
        "GET",
        "GET /",
        "GET  / HTTP/1.1\r\nHost: h",
        "GET / HTTP/1.1 \r\nHost: h",
        "GET / http/1.1\r\nHost: h",
        "GET / HTTP/1.1",
        "GET / HTTP/1.1\r\nHost: h\r\nHost: h",
        "GET / HTTP/1.1\r\n Host: h",
        "GET / HTTP/1.1\r\nHost: h\r\n folded: x",
        "GET / HTTP/1.1\r\nHost: h\r\nA: b\n C: d",
        "GET / HTTP/1.1\nHost: h",
        "GET / HTTP/1.1\r\nHost: h\rA: b",
        "GET / HTTP/1.1\r\nHost: h\r\nA: b\0",
        "GET / HTTP/1.1\r\nHost: h\r\nno colon",
        "GET / HTTP/1.1\r\nHost: h\r\n: empty",
        "GET /\u{7f} HTTP/1.1\r\nHost: h",
        "G(T / HTTP/1.1\r\nHost: h",
        "CONNECT h:80 HTTP/1.1\r\nHost: h",
    ] {
        assert_eq!(read(bad).map(|head| lines(&head)), Err(400), "{bad:?}");
    }
    assert_eq!(read("PRI * HTTP/2.0"), Err(505));
    assert_eq!(read(&format!("GET /{} HTTP/1.1\r\nHost: h", "a".repeat(MAX_LINE))), Err(414));
    let many = "A: b\r\n".repeat(MAX_HEADERS);
    assert_eq!(read(&format!("GET / HTTP/1.1\r\nHost: h\r\n{many}A: b")), Err(431));
}

#[test]
fn proxies_are_believed_when_they_are_trusted() {
    let proxies = [PROXY, "10.0.0.2".parse().unwrap()];
    let read = |address: IpAddr, headers: &str| {
        let head = format!("GET / HTTP/1.1\r\nHost: h\r\n{headers}\r\n\r\n");
        lines(&parse(head.as_bytes(), Sender { address, proxies: &proxies }).unwrap())
    };
    let chain = "X-Forwarded-For: 6.6.6.6, 1.2.3.4, 10.0.0.2\r\nX-Forwarded-Proto: http, https";
    let text = read(PROXY, chain);
    assert!(text.contains("x-gorget-gate-peer: 1.2.3.4\r\nx-gorget-gate-secure: 1\r\n"), "{text}");
    let text = read("5.5.5.5".parse().unwrap(), chain);
    assert!(text.ends_with("\r\nx-gorget-gate-peer: 5.5.5.5\r\n"), "{text}");
    // What somebody says that a proxy would say counts against it.
    assert!(!text.contains("x-gorget-gate-direct"), "{text}");
    let text = read(PROXY, "X-Forwarded-For: rubbish");
    assert!(text.contains("x-gorget-gate-peer: 10.0.0.1\r\n"), "{text}");
}

#[test]
fn a_request_is_direct_when_nothing_tells_of_a_proxy() {
    let is_direct = |text: &str, proxies: &[IpAddr]| {
        let sender = Sender { address: PROXY, proxies };
        let head = parse(format!("{text}\r\n\r\n").as_bytes(), sender).unwrap();
        lines(&head).contains("x-gorget-gate-direct: 1\r\n")
    };
    let plain = "GET / HTTP/1.1\r\nHost: h";
    assert!(is_direct(plain, &[]));
    assert!(!is_direct(plain, &[PROXY]), "it is known to be a proxy");
    assert!(!is_direct("GET / HTTP/1.0\r\nHost: h", &[]), "as proxies speak");
    for header in ["Via: 1.1 x", "X-Real-IP: 1.2.3.4", "Forwarded: for=x", "X-Forwarded-For: "] {
        assert!(!is_direct(&format!("{plain}\r\n{header}"), &[]), "{header}");
    }
}

#[test]
fn ends_are_found_wherever_the_bytes_are_cut() {
    let bytes = b"GET / HTTP/1.1\r\nHost: h\r\n\r\nGET";
    let mut from = 0;
    for length in 1..=bytes.len() {
        let found = end(&bytes[..length], &mut from).unwrap();
        assert_eq!(found, (length >= 27).then_some(27), "{length}");
        if found.is_some() {
            from = 0;
        }
    }
    for bare in [b"\n".as_slice(), b"GET / HTTP/1.1\nHost: h\n\n"] {
        assert_eq!(end(bare, &mut 0).map_err(|refusal| refusal.status), Err(400));
    }
    assert!(end(&[b'a'; MAX_HEAD], &mut 0).is_err());
    let mut large = vec![b'a'; MAX_HEAD];
    large.extend_from_slice(b"\r\n\r\n");
    assert!(end(&large, &mut 0).is_err());
}

/// Whatever is sent: what is passed on is what tiny_http reads in the one way that the gate did.
#[test]
fn whatever_passes_is_unambiguous() {
    let seeds: &[&[u8]] = &[
        b"GET /a?b=c HTTP/1.1\r\nHost: h\r\nCookie: a=b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 12\r\nExpect: 100-continue\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nX-Forwarded-For: 1.1.1.1\r\n\r\n",
    ];
    let pieces: &[&[u8]] = &[
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b":",
        b"\0",
        b"Content-Length: 5\r\n",
        b"chunked",
        b"X-Gorget-Gate-Peer: 6.6.6.6\r\n",
        b"\r\n ",
        b"Transfer-Encoding: chunked\r\n",
        b"HTTP/1.0",
        b"\xff",
        b"Host: x\r\n",
        b"/",
        b"http://x",
        b"\x7f",
    ];
    let mut random = fastrand::Rng::with_seed(4);
    let mut passed = 0;
    for _ in 0..200_000 {
        let mut bytes = random.choice(seeds).unwrap().to_vec();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(0..bytes.len());
            match random.u8(0..4) {
                0 => bytes[at] = random.u8(..),
                1 => drop(bytes.remove(at)),
                2 => drop(bytes.splice(at..at, random.choice(pieces).unwrap().iter().copied())),
                _ => {
                    let until = random.usize(at..bytes.len());
                    let part = bytes[at..until].to_vec();
                    bytes.splice(at..at, part);
                }
            }
        }
        let Ok(Some(end)) = end(&bytes, &mut 0) else { continue };
        let Ok(head) = read_bytes(&bytes[..end]) else { continue };
        passed += 1;
        let text = String::from_utf8(head.lines).expect("ASCII");
        assert!(text.is_ascii() && text.ends_with("\r\n") && !text.contains("\r\n\r\n"));
        for (number, line) in text.strip_suffix("\r\n").unwrap().split("\r\n").enumerate() {
            assert!(line.bytes().all(|byte| byte == b'\t' || !byte.is_ascii_control()), "{line:?}");
            if number == 0 {
                assert_eq!(line.split(' ').count(), 3, "{line:?}");
                continue;
            }
            let (name, value) = line.split_once(": ").unwrap();
            assert!(!name.contains(char::is_whitespace) && !name.is_empty());
            assert!(
                !["content-length", "transfer-encoding", "expect", "connection"].contains(&name)
            );
            let ours = [(PEER, "10.0.0.1"), (DIRECT, "1")];
            assert!(!name.starts_with("x-gorget-gate-") || ours.contains(&(name, value)), "{line}");
        }
        assert_eq!(text.matches("\r\nx-gorget-gate-peer: ").count(), 1);
        assert!(text.matches("\r\nx-gorget-gate-direct: ").count() < 2);
    }
    assert!(passed > 10_000, "{passed} passed");
}
