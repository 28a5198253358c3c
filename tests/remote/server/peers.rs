//! Peers that no worker is, and many workers at once. Each costs itself alone.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect as connect_to, socket,
};

use crate::support::sandbox::Sandbox;
use crate::support::server::{Server, wait_for};
use crate::support::worker::{Worker, derivation, log_connection};
use crate::support::{PATIENCE, now, pause, until, within};

/// What a peer of ZMTP 3.1 says first: its greeting and READY.
fn greeting() -> Vec<u8> {
    let mut bytes = b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x01NULL".to_vec();
    bytes.resize(64, 0);
    bytes
        .extend_from_slice(b"\x04\x29\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\0");
    bytes
}

/// Bytes of the server's greeting and READY.
const SERVERS: usize = 64 + 43;

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A connection from an address of this machine.
fn connect_from([a, b, c, d]: [u8; 4], port: u16) -> TcpStream {
    let socket =
        socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(socket.as_raw_fd(), &SockaddrIn::new(a, b, c, d, 0)).unwrap();
    connect_to(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port)).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The same, which has said what is to be said first.
fn greet_from(address: [u8; 4], port: u16) -> TcpStream {
    let mut stream = connect_from(address, port);
    stream.write_all(&greeting()).unwrap();
    stream
}

/// A connection of ZMTP whose probe has been read.
#[track_caller]
fn shake_hands(port: u16) -> TcpStream {
    let mut stream = connect(port);
    stream.write_all(&greeting()).unwrap();
    let mut bytes = [0; SERVERS + 2];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes[SERVERS..], [0, 0], "the probe is the first frame: {bytes:?}");
    stream
}

/// A message of an empty frame and a short payload.
fn message(payload: &[u8]) -> Vec<u8> {
    let length = u64::try_from(payload.len()).unwrap();
    let mut bytes = vec![1, 0, 2];
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Reads until the server hangs up, over its heartbeats; what came besides.
#[track_caller]
fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
    }
    bytes
}

#[test]
fn the_probe_is_the_first_frame_and_comes_once() {
    let sandbox = Sandbox::new();
    let server = Server::start(&sandbox, &[]);
    for _ in 0..2 {
        let mut stream = shake_hands(server.port);
        stream.write_all(&message(b"(worker-request-info)")).unwrap();
        let info = format!(
            r#"(server-info (worker-address "127.0.0.1") (log-port {}) (publish-port #f))"#,
            server.log_port
        );
        let mut bytes = vec![0; 4 + info.len()];
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes[..4], [1, 0, 0, u8::try_from(info.len()).unwrap()]);
        assert_eq!(bytes[4..], *info.as_bytes());
        // Nothing else but a PING, which comes within some seconds.
        let mut ping = [0; 7];
        stream.read_exact(&mut ping).unwrap();
        assert_eq!(ping, *b"\x04\x07\x04PING", "{ping:?}");
    }
}

#[test]
fn nonsense_costs_its_sender_the_connection_alone() {
    let sandbox = Sandbox::new();
    let server = Server::start(&sandbox, &[]);
    let mut daemon = server.attach();
    let worker = Worker::join(server.port, "good");
    worker.request_work();
    wait_for(&mut daemon, "requested");
    for bytes in [
        message(b"("),
        message(b"#<x>"),
        message(b"\xff\xfe"),
        message("(".repeat(10_000).as_bytes()),
        message(br#"(worker-ready (worker (name "x") (address "127.0.0.1") (machine "m")))"#),
        message(&vec![b' '; 10 << 20]),
        // No empty frame; three frames.
        b"\0\x15(worker-request-info)".to_vec(),
        b"\x01\0\x01\x01x\0\x15(worker-request-info)".to_vec(),
        // A command that there is not, too long.
        [b"\x06\x7f\xff\xff\xff\xff\xff\xff\xff".to_vec(), vec![0; 1000]].concat(),
    ] {
        let mut stream = shake_hands(server.port);
        // It may hang up before all is written.
        let _ = stream.write_all(&bytes);
        let said = read_to_end(&mut stream);
        assert_eq!(said.len(), 0, "{:?}: {said:?}", &bytes[..20.min(bytes.len())]);
    }
    for bytes in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), &[0xff; 200], b"\x16\x03\x01\x02\x00"] {
        let mut stream = connect(server.port);
        // Here, too.
        let _ = stream.write_all(bytes).and_then(|()| stream.shutdown(Shutdown::Write));
        read_to_end(&mut stream);
    }
    // Half a handshake is given up.
    let mut half = connect(server.port);
    half.write_all(&greeting()[..30]).unwrap();
    let at = now();
    read_to_end(&mut half);
    assert!(at.elapsed() < Duration::from_secs(20), "{:?}", at.elapsed());
    // Nobody else has noticed.
    daemon.ask(&format!("assign 7 1 good {} x86_64-linux", derivation("hello"))).ok();
    assert_eq!(worker.build(), derivation("hello"));
    until("the end of the others", || (server.ask("status")[0]["connections"] == 2).then_some(()));
    assert!(server.memory("VmRSS") < 40 << 20, "{}", server.memory("VmRSS"));
}

#[test]
fn a_message_without_end_costs_its_sender_the_connection_alone() {
    let sandbox = Sandbox::new();
    let server = Server::start(&sandbox, &[]);
    let worker = Worker::join(server.port, "good");
    // Frames that more of the message follows; no faster than what is noticed in seconds.
    let frames = [b"\x01\xff".as_slice(), &[b' '; 255]].concat().repeat(64);
    let mut stream = shake_hands(server.port);
    let mut sent = 0;
    while stream.write_all(&frames).is_ok() {
        sent += frames.len();
        assert!(sent < 1 << 30, "nobody hangs up");
        if sent > 1 << 20 {
            pause(Duration::from_millis(20));
        }
    }
    assert!(server.memory("RssAnon") < 32 << 20);
    worker.request_work();
    until("the other", || (server.ask("status")[0]["requesting"] == 1).then_some(()));
    assert!(server.log().contains("a message that does not end"));
}

#[test]
fn whatever_bytes_come_the_server_goes_on() {
    const PEERS: usize = 400;
    let sandbox = Sandbox::new();
    let server = Server::start(&sandbox, &[]);
    let mut daemon = server.attach();
    let worker = Worker::join(server.port, "good");
    worker.request_work();
    wait_for(&mut daemon, "requested");
    let mut random = fastrand::Rng::with_seed(20_261_125);
    let said = message(format!("(worker-ready {})", worker.record()).as_bytes());
    let whole = [greeting(), said.clone(), said].concat();
    let mut streams = Vec::new();
    for peer in 0..PEERS {
        let mut bytes = whole.clone();
        for _ in 0..random.usize(1..6) {
            let at = random.usize(0..bytes.len());
            match random.u8(0..4) {
                0 => bytes[at] = random.u8(..),
                1 => bytes.truncate(at.max(1)),
                2 => bytes.insert(at, random.u8(..)),
                _ if bytes.len() > 1 => drop(bytes.remove(at)),
                _ => {}
            }
        }
        // Of some all bytes, the greeting's included, are any.
        if peer % 10 == 0 {
            bytes.iter_mut().for_each(|byte| *byte = random.u8(..));
        }
        let mut stream = connect(server.port);
        // It may hang up before all is written.
        let _ = stream.write_all(&bytes);
        streams.push(stream);
    }
    daemon.ask(&format!("assign 7 1 good {} x86_64-linux", derivation("hello"))).ok();
    assert_eq!(worker.build(), derivation("hello"));
    drop(streams);
    until("the end of the others", || (server.ask("status")[0]["connections"] == 2).then_some(()));
}

#[test]
fn bad_logs_cost_themselves() {
    let sandbox = Sandbox::new();
    let server = Server::start(&sandbox, &["--max-log-size=100000"]);
    let mut daemon = server.attach();
    let worker = Worker::join(server.port, "w");
    let drv = derivation("hello");
    worker.request_work();
    wait_for(&mut daemon, "requested");
    daemon.ask(&format!("assign 7 1 w {drv} x86_64-linux")).ok();
    worker.build();
    worker.begin(&drv);
    let started = wait_for(&mut daemon, "started");
    let log = started["log"].as_str().unwrap().to_owned();
    let mut silent = connect(server.log_port);
    let mut half = connect(server.log_port);
    half.write_all(b"(log (version 0) (deriv").unwrap();
    for header in [
        r#"(log (version 0) (derivation "/gnu/store/../../x-y.drv"))"#.to_owned(),
        format!(r#"(log (version 0) (derivation "{}"))"#, derivation("other")),
    ] {
        let mut stream = connect(server.log_port);
        stream.write_all(header.as_bytes()).unwrap();
        // It is read all the same, and nothing comes of it.
        stream.write_all(&vec![0x1f; 4 << 20]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        read_to_end(&mut stream);
    }
    for header in [b"\x1f\x8b\x08".as_slice(), b")", &[b'('; 5000]] {
        let mut stream = connect(server.log_port);
        // It may hang up before all is written.
        let _ = stream.write_all(header);
        read_to_end(&mut stream);
    }
    // From where no worker is nothing is read.
    let mut stranger = connect_from([127, 0, 0, 9], server.log_port);
    stranger.write_all(format!(r#"(log (version 0) (derivation "{drv}"))"#).as_bytes()).unwrap();
    assert_eq!(read_to_end(&mut stranger), b"(log-server (version 0))");
    let mut plain = log_connection(server.log_port, &drv);
    plain.write_all(b"this is no gzip").unwrap();
    plain.shutdown(Shutdown::Write).unwrap();
    read_to_end(&mut plain);
    assert_eq!(std::fs::read(&log).unwrap(), b"");
    // Too much is read to the end, and cut.
    let mut much = log_connection(server.log_port, &drv);
    much.write_all(b"\x1f\x8b").unwrap();
    much.write_all(&vec![7; 10 << 20]).unwrap();
    much.shutdown(Shutdown::Write).unwrap();
    read_to_end(&mut much);
    assert_eq!(std::fs::metadata(&log).unwrap().len(), 100_000);
    let files = std::fs::read_dir(sandbox.state().join("cache/remote")).unwrap().count();
    assert_eq!(files, 1);
    for stream in [&mut silent, &mut half] {
        let said = read_to_end(stream);
        assert_eq!(said, b"(log-server (version 0))");
    }
    worker.succeed(&drv);
    wait_for(&mut daemon, "reported");
}

#[test]
fn two_hundred_workers_come_at_once() {
    const WORKERS: usize = 200;
    let sandbox = Sandbox::new();
    let server = Server::start(&sandbox, &[]);
    let mut daemon = server.attach();
    let port = server.port;
    let workers: Vec<Worker> = std::thread::scope(|scope| {
        let join = |n: usize| {
            scope.spawn(move || {
                let join = |n| Worker::join(port, &format!("w{n}"));
                (n..WORKERS).step_by(8).map(join).collect::<Vec<_>>()
            })
        };
        let joining: Vec<_> = (0..8).map(join).collect();
        joining.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    for worker in &workers {
        worker.request_work();
    }
    for _ in 0..WORKERS {
        wait_for(&mut daemon, "requested");
    }
    for (n, worker) in workers.iter().enumerate() {
        let drv = derivation(&format!("p{n}"));
        daemon.send(&format!("assign {n} 1 {} {drv} x86_64-linux", worker.name)).unwrap();
    }
    for worker in &workers {
        let drv = worker.build();
        worker.begin(&drv);
        worker.succeed(&drv);
        worker.request_work();
    }
    for _ in 0..WORKERS {
        wait_for_report(&mut daemon);
    }
    until("all", || (server.ask("status")[0]["requesting"] == WORKERS).then_some(()));
    drop(workers);
    within(Duration::from_secs(30), "none", || {
        (server.ask("status")[0]["workers"] == 0).then_some(())
    });
}

#[test]
fn connections_are_bounded_and_those_there_are_go_on() {
    const MAX: usize = 4608;
    let sandbox = Sandbox::new();
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let server = Server::start(&sandbox, &[]);
    let mut daemon = server.attach();
    let worker = Worker::join(server.port, "w");
    worker.request_work();
    wait_for(&mut daemon, "requested");
    // Those of the worker are two.
    let mut many = Vec::new();
    for (address, open) in [([127, 0, 0, 1], MAX / 2), ([127, 0, 0, 2], MAX)] {
        while many.len() < open - 2 {
            // No more at once than the kernel keeps until they are accepted.
            let some = 500.min(open - 2 - many.len());
            many.extend((0..some).map(|_| greet_from(address, server.port)));
            until("them", || {
                let open = server.ask("status")[0]["connections"].as_u64().unwrap();
                (usize::try_from(open).unwrap() >= many.len() + 2).then_some(())
            });
        }
        read_to_end(&mut greet_from(address, server.port));
    }
    read_to_end(&mut greet_from([127, 0, 0, 3], server.port));
    assert!(server.log().contains("too many connections from there"));
    daemon.ask(&format!("assign 7 1 w {} x86_64-linux", derivation("hello"))).ok();
    assert_eq!(worker.build(), derivation("hello"));
    drop(many);
    Worker::join(server.port, "v");
}

#[test]
fn five_hundred_workers_take_little_memory() {
    const WORKERS: usize = 500;
    let sandbox = Sandbox::new();
    // A thousand descriptors here, and some.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let server = Server::start(&sandbox, &[]);
    let contexts = [zmq::Context::new(), zmq::Context::new()];
    let join = |n| Worker::join_in(&contexts[n % 2], server.port, &format!("w{n}"));
    let workers: Vec<Worker> = (0..WORKERS).map(join).collect();
    let status = until("all of them", || {
        let status = server.ask("status").remove(0);
        (status["workers"] == WORKERS && status["connections"] == 2 * WORKERS).then_some(status)
    });
    assert_eq!(status["requesting"], 0);
    for worker in &workers {
        worker.request_work();
    }
    until("all requests", || (server.ask("status")[0]["requesting"] == WORKERS).then_some(()));
    // Without the program itself, of which a build for tests has more.
    let memory = server.memory("RssAnon");
    assert!(memory < 40 << 20, "{} MiB", memory >> 20);
}

/// Reads answers and events until one is a report.
#[track_caller]
fn wait_for_report(client: &mut crate::support::client::Client) {
    loop {
        let line = client.line().unwrap().expect("a report before the end");
        if line.starts_with(r#"{"event":"reported""#) {
            return;
        }
        assert!(!line.starts_with("error"), "{line}");
    }
}
