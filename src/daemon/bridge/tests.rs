//! The bridge over a real socket, with a double in place of the daemon.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::actor::{PATIENCE, Threads};
use crate::control::{Answer, Client, Error};
use crate::proto::control::{Command, Failure, FailureKind, Request};

/// Answers as the tests want it.
struct Double {
    stop: Stop,
    asked: Sender<String>,
}

impl Control for Double {
    fn perform(&mut self, request: &Request, answer: &mut dyn Answer) -> Result<(), Error> {
        self.asked.send_timeout(request.to_string(), PATIENCE).unwrap();
        match &request.command {
            Command::Version => answer.object("{\"version\":\"1\"}").map_err(Error::Asker),
            Command::LastUpdateTimes(name) if name.as_str() == "hello" => {
                answer.object("{\"times\":[3,2]}").map_err(Error::Asker)
            }
            Command::Jobsets => panic!("a request that panics"),
            // More than any socket's buffer.
            Command::Workers => (0..40_000).try_for_each(|n| {
                answer.object(&format!("{{\"n\":\"{n:050}\"}}")).map_err(Error::Asker)
            }),
            Command::Subscribe { .. } => {
                answer.object("{\"begun\":true}").map_err(Error::Asker)?;
                answer.flush().map_err(Error::Asker)?;
                let gone = answer.gone().map_err(Error::Asker)?;
                select! {
                    recv(gone) -> _ => drop(self.asked.send_timeout("gone".to_owned(), PATIENCE)),
                    recv(self.stop) -> _ => {}
                }
                Ok(())
            }
            _ => Err(Failure::new(FailureKind::NotFound, "no\nsuch thing").into()),
        }
    }

    fn answered(&mut self, request: &Request) {
        if request.command == Command::Shutdown {
            drop(self.asked.send_timeout("answered".to_owned(), PATIENCE));
        }
    }
}

struct Bench {
    directory: TempDir,
    threads: Option<Threads>,
    asked: Receiver<String>,
}

impl Bench {
    fn new(max_connections: usize) -> Self {
        let directory = TempDir::new().unwrap();
        let (spawner, threads) = Spawner::new();
        let (sender, asked) = bounded(1000);
        let stop = spawner.stop();
        let open = move |_| -> Box<dyn Control> {
            Box::new(Double { stop: stop.clone(), asked: sender.clone() })
        };
        let socket = directory.path().join("run/bridge");
        let options = Options { socket, group: None, max_connections };
        serve(&spawner, options, Arc::new(open)).unwrap();
        Self { directory, threads: Some(threads), asked }
    }

    fn socket(&self) -> std::path::PathBuf {
        self.directory.path().join("run/bridge")
    }

    fn connect(&self) -> UnixStream {
        connect(&self.socket())
    }

    /// Sends all of `input`, closes that way, and returns all that comes back.
    fn talk(&self, input: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(input).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        rest(&mut stream)
    }

    /// Stops everything and waits for the last thread.
    fn stop(&mut self) {
        if let Some(threads) = self.threads.take() {
            drop(threads.stop);
            let end = threads.all_gone.recv_timeout(PATIENCE);
            assert_eq!(end, Err(crossbeam_channel::RecvTimeoutError::Disconnected));
        }
    }
}

fn connect(socket: &Path) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn rest(stream: &mut UnixStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn line(stream: &UnixStream) -> String {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line
}

#[test]
fn requests_are_answered_in_order() {
    let bench = Bench::new(4);
    assert_eq!(
        bench.talk(b"version\n\n  \ndance\nbuild x\nstatus\nversion"),
        "{\"version\":\"1\"}\nok\n\
         error unknown-command there is no command \"dance\"; try help\n\
         error syntax build: expected a build's number, not \"x\"\n\
         error not-found no such thing\n\
         {\"version\":\"1\"}\nok\n"
    );
    assert_eq!(bench.talk(b""), "");
}

#[test]
fn scheme_gets_what_cuirass_gives() {
    let bench = Bench::new(4);
    let input = b"(trigger-jobset hello)\n(jobset-last-update-times \"hello\")\n\
        (jobset-last-update-times nobody) (nonsense\n(version)\n(jobset-last-update-times #{hello}#)";
    assert_eq!(bench.talk(input), "(reply (3 2))\n(reply (3 2))\n");
    assert_eq!(bench.talk(b"(jobset-last-update-times nobody)"), "(reply #f)\n");
    let asked: Vec<_> = bench.asked.try_iter().collect();
    assert_eq!(asked[0], "trigger hello");
}

#[test]
fn hostile_input_gets_errors_and_the_next_request_its_answer() {
    let bench = Bench::new(4);
    let long = [vec![b'x'; 3 << 20], b"\nversion\n".to_vec()].concat();
    let answer = bench.talk(&long);
    assert!(answer.starts_with("error syntax expected at most 65536 bytes"), "{answer}");
    assert!(answer.ends_with("{\"version\":\"1\"}\nok\n"), "{answer}");
    let answer = bench.talk(b"\xff\xfe\nversion\n");
    assert_eq!(answer, "error syntax expected UTF-8\n{\"version\":\"1\"}\nok\n");
}

#[test]
fn a_panicking_request_ends_only_its_connection() {
    let bench = Bench::new(1);
    assert_eq!(bench.talk(b"jobsets\n"), "");
    assert_eq!(bench.talk(b"version\n"), "{\"version\":\"1\"}\nok\n");
}

#[test]
fn newcomers_without_a_place_are_told_so() {
    let bench = Bench::new(1);
    let first = bench.connect();
    (&first).write_all(b"version\n").unwrap();
    assert_eq!(line(&first), "{\"version\":\"1\"}\n");
    // The place is taken and its holder was busy just now.
    let refused = "error unavailable all connections are taken; try again\n";
    assert_eq!(bench.talk(b"version\n"), refused);
    assert_eq!(bench.talk(b"(trigger-jobset hello)\n"), "");
    // One that says nothing is answered within a second or so.
    assert_eq!(rest(&mut bench.connect()), refused);
    drop(first);
}

#[test]
fn an_idle_client_gives_way() {
    let bench = Bench::new(1);
    let mut first = bench.connect();
    let started = clock::now();
    assert!(bench.talk(b"version\n").starts_with("error unavailable"));
    // It has never asked: in five seconds its place is free, well before its own ten are over.
    while bench.talk(b"version\n").starts_with("error") {
        assert!(started.elapsed() < Duration::from_secs(9));
        // As long as a refusal of a silent client takes.
        rest(&mut bench.connect());
    }
    assert!(started.elapsed() > Duration::from_secs(4));
    assert_eq!(rest(&mut first), "");
}

#[test]
fn who_sends_no_whole_line_is_dropped() {
    let bench = Bench::new(4);
    let mut stream = bench.connect();
    let started = clock::now();
    stream.write_all(b"versio").unwrap();
    assert_eq!(rest(&mut stream), "");
    let seconds = started.elapsed().as_secs();
    assert!((9..15).contains(&seconds), "{seconds}");
}

#[test]
fn a_subscriber_ends_when_the_peer_has_closed_both_ways() {
    let bench = Bench::new(4);
    let stream = bench.connect();
    (&stream).write_all(b"subscribe\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(line(&stream), "{\"begun\":true}\n");
    assert_eq!(bench.asked.recv_timeout(PATIENCE).unwrap(), "subscribe");
    // Half of four places.
    let other = bench.connect();
    (&other).write_all(b"subscribe\n").unwrap();
    assert_eq!(line(&other), "{\"begun\":true}\n");
    assert_eq!(bench.asked.recv_timeout(PATIENCE).unwrap(), "subscribe");
    assert!(bench.talk(b"subscribe\n").starts_with("error unavailable half"));
    drop(stream);
    assert_eq!(bench.asked.recv_timeout(PATIENCE).unwrap(), "gone");
}

#[test]
fn who_takes_no_answer_does_not_hold_up_others_or_the_stop() {
    let mut bench = Bench::new(2);
    let lazy = bench.connect();
    (&lazy).write_all(b"workers\n").unwrap();
    assert_eq!(bench.asked.recv_timeout(PATIENCE).unwrap(), "workers");
    assert_eq!(bench.talk(b"version\n"), "{\"version\":\"1\"}\nok\n");
    let idle = bench.connect();
    bench.stop();
    assert!(!bench.socket().exists());
    drop((lazy, idle));
}

#[test]
fn the_client_speaks_the_same_language() {
    let bench = Bench::new(4);
    let mut client = Client::connect(&bench.socket()).unwrap();
    let request = |command| Request { by: Some("a b".to_owned()), command };
    client.send(&request(Command::Version), None).unwrap();
    assert_eq!(client.next().unwrap().as_deref(), Some("{\"version\":\"1\"}"));
    assert_eq!(client.next().unwrap(), None);
    client.send(&request(Command::Status), None).unwrap();
    let Err(Error::Failure(failure)) = client.next() else { panic!("an error was due") };
    assert_eq!(failure, Failure::new(FailureKind::NotFound, "no such thing"));
    client.send(&request(Command::Shutdown), None).unwrap();
    assert!(client.next().is_err());
    let asked: Vec<_> = (0..4).map(|_| bench.asked.recv_timeout(PATIENCE).unwrap()).collect();
    assert_eq!(asked, ["by='a b' version", "by='a b' status", "by='a b' shutdown", "answered"]);
    client
        .send(
            &request(Command::Subscribe { jobset: None, from: None }),
            Some(Duration::from_millis(50)),
        )
        .unwrap();
    assert!(client.next().unwrap().is_some());
    let Err(Error::Daemon(error)) = client.next() else { panic!("a time-out was due") };
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}
