//! Between server and daemon: a link that keeps the order of what is said, and ends with either.

use super::{Effect, Event, World};
use crate::proto::control::Failure;
use crate::proto::remote::ToWorker;
use crate::proto::remote::link::{Command, Event as Told, Try};

/// What the daemon hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Event(Told),
    Answer(Result<(), Failure>),
}

impl World {
    /// Whoever died, who is back finds the other within this many milliseconds.
    const RECONNECT: u64 = 2000;

    /// The daemon hands out what it can.
    pub(super) fn work(&mut self) {
        let wishes = self.daemon.advance();
        let life = self.daemon_life;
        for command in wishes.commands {
            let Some(link) = self.link else { continue };
            let arrival = (self.passed + self.delay()).max(self.link_arrivals[1]);
            self.link_arrivals[1] = arrival;
            self.at(arrival, Event::Commanded(link, command));
        }
        for (of, url) in wishes.takes {
            self.soon(5000, Event::Fetched(life, of, url));
        }
        if wishes.writes {
            self.soon(100, Event::Written(life));
        }
    }

    /// What the server decides is done.
    pub(super) fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Say(link, message) => {
                    let number = usize::try_from(link.0).unwrap();
                    let ours = self.machines[self.connections[number].worker].is_ours();
                    if matches!(message, ToWorker::Cancel { .. } | ToWorker::Gorget) && !ours {
                        panic!("{message} would kill a worker of Cuirass's");
                    }
                    self.say_to_worker(number, message.to_string());
                }
                Effect::HangUp(link, why) => panic!("{link:?} is hung up on: {why}"),
                Effect::Tell(event) => self.tell(Heard::Event(event)),
                Effect::Create(_) | Effect::Note(_) => {}
            }
        }
    }

    fn tell(&mut self, heard: Heard) {
        if let Some(link) = self.link {
            let arrival = (self.passed + self.delay()).max(self.link_arrivals[0]);
            self.link_arrivals[0] = arrival;
            self.at(arrival, Event::Heard(link, heard));
        }
    }

    pub(super) fn attach(&mut self, life: u64) {
        if !self.daemon_lives || self.daemon_life != life || self.link.is_some() {
            return;
        }
        let Some(hall) = &self.hall else {
            return self.soon(Self::RECONNECT, Event::DaemonConnects(life));
        };
        self.links += 1;
        let standing = hall.standing();
        (self.link, self.link_arrivals) = (Some(self.links), [self.passed; 2]);
        self.daemon.connected();
        for event in standing {
            self.tell(Heard::Event(event));
        }
    }

    /// The link has ended, with all that was on its way.
    pub(super) fn unlink(&mut self) {
        if self.link.take().is_some() {
            self.daemon.disconnected();
            self.soon(Self::RECONNECT, Event::DaemonConnects(self.daemon_life));
        }
    }

    pub(super) fn obey(&mut self, command: Command) {
        let (now, mut out) = (self.instant(), Vec::new());
        let Some(hall) = &mut self.hall else { return };
        let answer = match command {
            Command::Assign(assign) => hall.assign(now, assign, &mut out),
            Command::Adopt(adopt) => {
                let answer = hall.adopt(now, adopt, &mut out);
                assert_eq!(answer, Ok(()), "adopting");
                answer
            }
            Command::Settle(of) => {
                let answer = hall.settle(of);
                assert_eq!(answer, Ok(()), "settling {of}");
                answer
            }
            Command::Cancel(of) => {
                hall.cancel(of, &mut out);
                Ok(())
            }
            other => panic!("{other}"),
        };
        self.tell(Heard::Answer(answer));
        self.perform(out);
    }

    /// What was built comes, or does not.
    pub(super) fn fetch(&mut self, of: Try, url: String) {
        let result = if self.misfortune(40) {
            self.excuse(&super::derivation(usize::try_from(of.build.0).unwrap()));
            Err("connection refused".to_owned())
        } else {
            Ok(())
        };
        self.daemon.taken(of, url, result);
    }

    pub(super) fn kill_daemon(&mut self) {
        if self.is_kind() || !self.daemon_lives {
            return;
        }
        // What it was writing is in the books, or is not.
        if self.random.bool() {
            self.daemon.write();
        }
        self.daemon.die();
        self.link = None;
        self.daemon_lives = false;
        self.soon(100_000, Event::DaemonIsBorn);
    }

    pub(super) fn kill_server(&mut self) {
        if self.is_kind() || self.hall.take().is_none() {
            return;
        }
        // What it was told and the daemon did not write down, a worker of Cuirass's does not say again.
        for (_, derivation) in std::mem::take(&mut self.reported) {
            if !self.daemon.has_ended(&derivation) {
                self.excuse(&derivation);
            }
        }
        self.unlink();
        for number in 0..self.connections.len() {
            if self.connections[number].server_life == self.server_life {
                self.connections[number].at_server = false;
                self.sever(number);
            }
        }
        self.soon(100_000, Event::ServerIsBorn);
    }
}
