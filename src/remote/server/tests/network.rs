//! Between workers and the server: connections that keep the order of what is said, until they break.

use std::time::Duration;

use super::machine::{WHO_AM_I, derivation as named};
use super::{Event, From, HEARTBEATS, Link, Socket, World, address};

/// What a network carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Parcel {
    Probe,
    ToWorker(String),
    ToServer(String),
    /// The other end has gone.
    End,
}

/// A TCP connection between a worker and the server, of whom each may know it to be open.
pub(super) struct Connection {
    pub(super) worker: usize,
    life: u64,
    socket: Socket,
    link: Link,
    pub(super) server_life: u64,
    at_worker: bool,
    pub(super) at_server: bool,
    /// When what was sent last arrives, in each direction: nothing overtakes.
    arrivals: [Duration; 2],
}

impl World {
    pub(super) fn connect(&mut self, worker: usize, life: u64, socket: Socket) {
        let machine = &self.machines[worker];
        if !machine.lives(life) || machine.connections[socket as usize].is_some() {
            return;
        }
        if self.hall.is_none() || machine.parted.is_some() {
            return;
        }
        let number = self.connections.len();
        let link = Link(u64::try_from(number).unwrap());
        self.connections.push(Connection {
            worker,
            life,
            socket,
            link,
            server_life: self.server_life,
            at_worker: true,
            at_server: true,
            arrivals: [self.passed; 2],
        });
        self.machines[worker].connections[socket as usize] = Some(number);
        let now = self.instant();
        self.hall.as_mut().unwrap().on_open(now, link, address(worker));
        self.send(number, Parcel::Probe);
        // What was said meanwhile.
        let queued = std::mem::take(&mut self.machines[worker].queues[socket as usize]);
        for text in queued {
            self.send(number, Parcel::ToServer(text));
        }
    }

    /// Connects what is not connected, as libzmq does several times a second.
    pub(super) fn reconnect(&mut self, worker: usize) {
        let life = self.machines[worker].life;
        for &socket in self.machines[worker].sockets() {
            self.soon(2000, Event::Connect { worker, life, socket });
        }
    }

    pub(super) fn say(&mut self, worker: usize, socket: Socket, text: String) {
        match self.machines[worker].connections[socket as usize] {
            Some(number) => {
                // Whatever repeats a message: it may come twice, but for the one whose answer kills when it comes twice.
                if self.misfortune(50) && text != WHO_AM_I {
                    self.send(number, Parcel::ToServer(text.clone()));
                }
                self.send(number, Parcel::ToServer(text));
            }
            None if self.machines[worker].is_ours() => self.machines[worker].cut(),
            None => self.machines[worker].queues[socket as usize].push(text),
        }
    }

    pub(super) fn say_to_worker(&mut self, number: usize, text: String) {
        if self.connections[number].at_server {
            self.send(number, Parcel::ToWorker(text));
        }
    }

    fn send(&mut self, number: usize, parcel: Parcel) {
        let direction = usize::from(!matches!(parcel, Parcel::ToServer(_) | Parcel::End));
        let delay = self.delay();
        let parted = self.machines[self.connections[number].worker].parted;
        let connection = &mut self.connections[number];
        let arrival = (self.passed + delay).max(connection.arrivals[direction]);
        // A short interruption delays; a long one has broken the connection by then.
        let arrival = parted.map_or(arrival, |until| arrival.max(until));
        connection.arrivals[direction] = arrival;
        self.at(arrival, Event::Arrives(number, parcel));
    }

    pub(super) fn arrive(&mut self, number: usize, parcel: Parcel) {
        let connection = &self.connections[number];
        let (worker, life, socket) = (connection.worker, connection.life, connection.socket);
        let text = match parcel {
            Parcel::ToServer(_) | Parcel::End if !connection.at_server => return,
            Parcel::ToServer(text) => {
                let from = From { link: Some(connection.link), address: address(worker) };
                let (now, mut out) = (self.now(), Vec::new());
                if text.starts_with("(build-succeeded") || text.starts_with("(build-failed") {
                    self.reported.extend(named(&text).map(|of| (worker, of.to_owned())));
                }
                if let Some(hall) = &mut self.hall {
                    hall.on_message(now, from, text.as_bytes(), &mut out);
                }
                return self.perform(out);
            }
            Parcel::End => return self.close_at_server(number),
            Parcel::Probe => None,
            Parcel::ToWorker(text) => Some(text),
        };
        // The other connection is never read.
        if connection.at_worker && self.machines[worker].lives(life) && socket == Socket::Asks {
            let now = self.instant();
            let reactions = self.machines[worker].hear(now, text);
            self.react(worker, reactions);
        }
    }

    fn close_at_server(&mut self, number: usize) {
        let connection = &mut self.connections[number];
        if !std::mem::replace(&mut connection.at_server, false) {
            return;
        }
        let (link, now, mut out) = (connection.link, self.instant(), Vec::new());
        if let Some(hall) = &mut self.hall {
            hall.on_close(now, link, &mut out);
        }
        self.perform(out);
    }

    /// What is on its way over a connection is lost, and with it what its derivation was about.
    fn drop_parcels(&mut self, number: usize) {
        let lost: Vec<u64> = self
            .events
            .iter()
            .filter(|(_, event)| matches!(event, Event::Arrives(n, _) if *n == number))
            .map(|(sequence, _)| *sequence)
            .collect();
        let ours = self.machines[self.connections[number].worker].is_ours();
        for sequence in lost {
            let Some(Event::Arrives(_, parcel)) = self.events.remove(&sequence) else { continue };
            let cost = match &parcel {
                // One of ours says again how a build ended, and not that it began.
                Parcel::ToServer(text) if ours && !text.starts_with("(build-started") => None,
                Parcel::ToServer(text) | Parcel::ToWorker(text) => named(text),
                Parcel::Probe | Parcel::End => None,
            };
            if let Some(derivation) = cost {
                let derivation = derivation.to_owned();
                self.excuse(&derivation);
            }
        }
    }

    /// Breaks one of the connections that there are.
    pub(super) fn break_connection(&mut self, nth: usize) {
        let open = |n: &usize| self.connections[*n].at_worker && self.connections[*n].at_server;
        if !self.is_kind()
            && let Some(number) = (0..self.connections.len()).filter(open).nth(nth)
        {
            self.sever(number);
        }
    }

    /// Breaks a connection at both ends.
    pub(super) fn sever(&mut self, number: usize) {
        self.drop_parcels(number);
        let Connection { worker, socket, .. } = self.connections[number];
        if std::mem::replace(&mut self.connections[number].at_worker, false) {
            self.machines[worker].connections[socket as usize] = None;
            self.reconnect(worker);
        }
        self.close_at_server(number);
    }

    /// The network of a worker is gone for some time.
    pub(super) fn part(&mut self, worker: usize, time: Duration) {
        if self.is_kind() || self.machines[worker].parted.is_some() {
            return;
        }
        let until = self.passed + time;
        self.machines[worker].parted = Some(until);
        self.at(until, Event::Reunion(worker));
        let numbers: Vec<usize> =
            self.machines[worker].connections.iter().flatten().copied().collect();
        if time < HEARTBEATS {
            // What is on its way comes later.
            for number in numbers {
                for arrival in &mut self.connections[number].arrivals {
                    *arrival = (*arrival).max(until);
                }
            }
            return;
        }
        // It costs what the worker has or says meanwhile.
        self.excuse_worker(worker);
        for number in numbers {
            self.sever(number);
        }
    }

    fn excuse_worker(&mut self, worker: usize) {
        for derivation in self.machines[worker].concern() {
            if !self.reported.contains(&(worker, derivation.clone())) {
                self.excuse(&derivation);
            }
        }
    }

    pub(super) fn kill_worker(&mut self, worker: usize) {
        if !self.is_kind() && self.machines[worker].is_alive() {
            self.end_worker(worker);
        }
    }

    pub(super) fn end_worker(&mut self, worker: usize) {
        self.excuse_worker(worker);
        let numbers: Vec<usize> =
            self.machines[worker].connections.iter().flatten().copied().collect();
        for number in numbers {
            // What it has said is still delivered, and then its end.
            self.connections[number].at_worker = false;
            self.send(number, Parcel::End);
        }
        self.machines[worker].die();
        self.soon(60_000, Event::WorkerIsBorn(worker));
    }
}
