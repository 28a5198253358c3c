//! What becomes of an assignment: sent or adopted, started, reported, settled; canceled or lost.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::strays::Said;
use super::{ADOPTION, Assignment, BEGIN, Effect, From, Hall, LATE, Link, Now, Out, Timer, check};
use crate::proto::control::{Failure, FailureKind};
use crate::proto::remote::link::{Adopt, Assign, AssignmentView, Event, Phase, Report, Try};
use crate::proto::remote::{Build, Fault, MAX_REPLY, ToWorker};

/// Where a log may be written to.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::remote::server) struct Permit {
    pub(in crate::remote::server) of: Try,
    pub(in crate::remote::server) path: PathBuf,
}

/// A time limit; 0 is none.
fn seconds(seconds: i64) -> Option<Duration> {
    u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs)
}

fn conflict<T>(message: String) -> Result<T, Failure> {
    Err(Failure::new(FailureKind::Conflict, message))
}

impl Hall {
    pub(in crate::remote::server) fn assign(
        &mut self,
        now: Instant,
        assign: Assign,
        out: &mut Out,
    ) -> Result<(), Failure> {
        let Assign { of, worker: name, derivation, system, priority, timeout, max_silent_time } =
            assign;
        if self.assignments.contains_key(&of) {
            return conflict(format!("try {of} is assigned already"));
        }
        if !check::is_derivation(&derivation) {
            let message =
                format!("assign: expected the file name of a derivation, found {derivation:?}");
            return Err(Failure::syntax(message));
        }
        let Some(worker) = self.workers.get_mut(&name) else {
            return Err(Failure::new(FailureKind::NotFound, format!("no worker {name}")));
        };
        let Some(link) = worker.request else {
            return conflict(format!("worker {name} wants no work"));
        };
        if !worker.systems.contains(&system) {
            return conflict(format!("worker {name} builds nothing for {system}"));
        }
        let build =
            Build { derivation: derivation.clone(), priority, timeout, max_silent_time, system };
        let message = ToWorker::Build(build);
        if message.to_string().len() > MAX_REPLY {
            let message = format!("assign: expected a message of at most {MAX_REPLY} bytes");
            return Err(Failure::syntax(message));
        }
        worker.request = None;
        worker.tasks.push(of);
        let assignment = Assignment {
            worker: name,
            derivation,
            phase: Phase::Sent,
            link: Some(link),
            report: None,
            fault: None,
            limit: seconds(timeout).map(|timeout| timeout + LATE),
            canceled: false,
            logging: false,
            adopted: false,
            due: None,
        };
        self.insert(of, assignment);
        self.due(of, Some(now + BEGIN));
        out.push(Effect::Say(link, message));
        Ok(())
    }

    /// Takes an assignment of an earlier server over, with what is known of it.
    pub(in crate::remote::server) fn adopt(
        &mut self,
        now: Instant,
        adopt: Adopt,
        out: &mut Out,
    ) -> Result<(), Failure> {
        let Adopt { of, worker: name, derivation } = adopt;
        if let Some(known) = self.assignments.get(&of) {
            if (&known.worker, &known.derivation) == (&name, &derivation) {
                return Ok(());
            }
            return conflict(format!("try {of} is assigned to worker {}", known.worker));
        }
        let worker = self.workers.get(&name);
        let said = self.strays.take(now, &derivation, &name, worker.map(|worker| worker.address));
        let (phase, report) = match said {
            Some(Said::Ended(report)) => (Phase::Reported, Some(report)),
            Some(Said::Started) => (Phase::Started, None),
            None if worker.is_some() => (Phase::Started, None),
            None => (Phase::Adopted, None),
        };
        // Of several that were adopted it builds one, and has reported the others, which died with who was told.
        let given = |of: &Try| self.assignments.get(of).is_some_and(|other| !other.adopted);
        let (wants, busy) =
            worker.map_or((false, false), |w| (w.request.is_some(), w.tasks.iter().any(given)));
        let assignment = Assignment {
            worker: name.clone(),
            derivation,
            phase,
            link: None,
            report: report.clone(),
            fault: None,
            limit: None,
            canceled: false,
            logging: false,
            adopted: true,
            due: None,
        };
        self.insert(of, assignment);
        if let Some(report) = report {
            out.push(Effect::Tell(Event::Reported {
                build: of.build.0,
                attempt: of.attempt,
                report,
            }));
        } else if wants {
            self.lose(of, false, "its worker wants work and has not said how it ended", out);
        } else if busy {
            self.lose(of, false, "its worker builds something else", out);
        } else if let Some(worker) = self.workers.get_mut(&name) {
            worker.tasks.push(of);
        } else {
            // Whoever said that it had begun has not said yet that it lives.
            self.due(of, Some(now + ADOPTION));
        }
        Ok(())
    }

    pub(in crate::remote::server) fn settle(&mut self, of: Try) -> Result<(), Failure> {
        match self.assignments.get(&of).map(|assignment| assignment.phase) {
            Some(Phase::Sent | Phase::Started | Phase::Adopted) => {
                conflict(format!("try {of} has not ended"))
            }
            Some(Phase::Reported) => {
                self.remove(of);
                Ok(())
            }
            // Forgotten already.
            None => Ok(()),
        }
    }

    pub(in crate::remote::server) fn cancel(&mut self, of: Try, out: &mut Out) {
        let Some(assignment) = self.assignments.get_mut(&of) else { return };
        if assignment.phase == Phase::Reported {
            self.remove(of);
            return;
        }
        if std::mem::replace(&mut assignment.canceled, true) {
            return;
        }
        let (worker, sent) = (assignment.worker.clone(), assignment.link);
        let cancel = ToWorker::Cancel { derivation: assignment.derivation.clone() };
        if let Some(link) = self.reach(&worker, sent) {
            out.push(Effect::Say(link, cancel));
        }
    }

    /// Says again what a worker of ours may have missed while it was not connected.
    pub(super) fn cancel_again(&mut self, link: Link, out: &mut Out) {
        let name = self.links.get(&link).and_then(|connection| connection.worker.as_deref());
        let worker = name.and_then(|name| self.workers.get(name));
        for of in worker.into_iter().flat_map(|worker| &worker.tasks) {
            if let Some(assignment) = self.assignments.get(of)
                && assignment.canceled
            {
                let derivation = assignment.derivation.clone();
                out.push(Effect::Say(link, ToWorker::Cancel { derivation }));
            }
        }
    }

    /// A worker of ours says why a build is about to fail. Its connection may have ended since.
    pub(super) fn on_fault(&mut self, from: From, derivation: String, fault: Fault, why: String) {
        let sender = self.sender(from);
        let of = self.reported(&derivation, sender.as_deref(), from);
        if let Some(assignment) = of.and_then(|of| self.assignments.get_mut(&of)) {
            assignment.fault = Some((fault, why));
        } else if let Some(connection) = from.link.and_then(|link| self.links.get_mut(&link)) {
            connection.fault = Some((derivation, fault, why));
        }
    }

    /// What was said last of why this is failing.
    pub(super) fn fault(&mut self, from: From, derivation: &str) -> Option<(Fault, String)> {
        let sender = self.sender(from);
        let of = self.reported(derivation, sender.as_deref(), from);
        if let Some(fault) = of.and_then(|of| self.assignments.get_mut(&of)?.fault.take()) {
            return Some(fault);
        }
        let (of, fault, why) = self.links.get_mut(&from.link?)?.fault.take()?;
        (of == derivation).then_some((fault, why))
    }

    /// Who sent a message, if its connection is open and has said whose it is.
    fn sender(&self, from: From) -> Option<String> {
        self.links.get(&from.link?)?.worker.clone()
    }

    /// The connection on which a worker of ours listens: that of its build, or after a break one that has said that it is
    /// ours.
    fn reach(&self, worker: &str, sent: Option<Link>) -> Option<Link> {
        let links = self.workers.get(worker).map(|worker| &worker.links);
        let ours = |link: &Link| self.links.get(link).is_some_and(|connection| connection.ours);
        sent.into_iter().chain(links.into_iter().flatten().copied()).find(ours)
    }

    /// The adopted assignments of a worker that has just been heard of.
    pub(super) fn adopted(&mut self, worker: &str) -> Vec<Try> {
        let is = |a: &Assignment| a.worker == worker && a.phase != Phase::Reported;
        let mine = self.assignments.iter().filter(|(_, assignment)| is(assignment));
        let tries: Vec<Try> = mine.map(|(of, _)| *of).collect();
        for of in &tries {
            if let Some(assignment) = self.assignments.get_mut(of) {
                assignment.phase = Phase::Started;
            }
            self.due(*of, None);
        }
        tries
    }

    pub(super) fn on_started(
        &mut self,
        now: Now,
        from: From,
        derivation: String,
        name: String,
        out: &mut Out,
    ) {
        if !check::is_derivation(&derivation) || !check::is_name(&name) {
            return self.refuse(
                now.instant,
                from,
                "build-started: expected a derivation and a name",
                out,
            );
        }
        if let Some(link) = from.link
            && self.workers.contains_key(&name)
            && !self.bind(now, link, from, &name, out)
        {
            return;
        }
        self.hear(&name, now);
        let mine = |of: &Try| self.assignments.get(of).is_some_and(|a| a.worker == name);
        let of = self.of_derivation(&derivation).find(mine);
        match of {
            Some(of) => self.start(now.instant, of, out),
            None => {
                let who = (Some(name), from.address);
                self.strays.keep(now.instant, derivation, who, Said::Started);
            }
        }
    }

    /// An assignment that was sent has begun.
    fn start(&mut self, now: Instant, of: Try, out: &mut Out) {
        let log = self.log(of);
        let Some(assignment) = self.assignments.get_mut(&of) else { return };
        match assignment.phase {
            Phase::Sent => {}
            Phase::Adopted => {
                // That its worker lives is for the worker to say.
                assignment.phase = Phase::Started;
                return;
            }
            Phase::Started | Phase::Reported => return,
        }
        assignment.phase = Phase::Started;
        let canceled = assignment.canceled;
        let due = assignment.limit.map(|limit| now + limit);
        self.due(of, due);
        if !canceled {
            out.push(Effect::Create(log.clone()));
            let log = log.display().to_string();
            out.push(Effect::Tell(Event::Started { build: of.build.0, attempt: of.attempt, log }));
        }
    }

    pub(super) fn on_ended(
        &mut self,
        now: Now,
        from: From,
        derivation: String,
        report: Report,
        out: &mut Out,
    ) {
        if !check::is_derivation(&derivation) {
            return self.refuse(now.instant, from, "expected a derivation", out);
        }
        let sender = self.sender(from);
        let Some(of) = self.reported(&derivation, sender.as_deref(), from) else {
            let who = (sender, from.address);
            self.strays.keep(now.instant, derivation, who, Said::Ended(report));
            return;
        };
        // One that has not said that it begins has done so all the same.
        self.start(now.instant, of, out);
        self.due(of, None);
        let Some(assignment) = self.assignments.get_mut(&of) else { return };
        let name = assignment.worker.clone();
        (assignment.phase, assignment.link) = (Phase::Reported, None);
        assignment.report = Some(report.clone());
        let canceled = assignment.canceled;
        if let Some(worker) = self.workers.get_mut(&name) {
            worker.tasks.retain(|task| *task != of);
        }
        // Of a connection that has not said whose it is, another loop of the same machine may have reported.
        if sender.is_some() {
            self.hear(&name, now);
        }
        if canceled {
            self.remove(of);
        } else {
            let (build, attempt) = (of.build.0, of.attempt);
            out.push(Effect::Tell(Event::Reported { build, attempt, report }));
        }
    }

    /// The assignment that a report is about: the sender's, or, of a connection that has not said whose it is, that of a
    /// worker at its address.
    fn reported(&self, derivation: &str, sender: Option<&str>, from: From) -> Option<Try> {
        let fits = |of: &Try| {
            let Some(assignment) = self.assignments.get(of) else { return false };
            let worker = self.workers.get(&assignment.worker);
            let here = worker.is_none_or(|worker| worker.address == from.address);
            assignment.phase != Phase::Reported
                && here
                && sender.is_none_or(|name| name == assignment.worker)
        };
        self.of_derivation(derivation).find(fits)
    }

    /// Whether the log of a derivation may come from an address, and where it goes. It says that the build has begun, should
    /// the worker's own word of it still be on its way.
    pub(in crate::remote::server) fn on_log(
        &mut self,
        now: Instant,
        derivation: &str,
        address: std::net::IpAddr,
        out: &mut Out,
    ) -> Option<Permit> {
        let fits = |of: &Try| {
            let Some(assignment) = self.assignments.get(of) else { return false };
            let worker = self.workers.get(&assignment.worker);
            worker.is_some_and(|worker| worker.address == address)
                && assignment.phase != Phase::Reported
                && !assignment.canceled
                && !assignment.logging
        };
        let of = self.of_derivation(derivation).find(fits)?;
        self.start(now, of, out);
        self.assignments.get_mut(&of)?.logging = true;
        Some(Permit { of, path: self.log(of) })
    }

    pub(in crate::remote::server) fn on_log_end(&mut self, of: Try) {
        if let Some(assignment) = self.assignments.get_mut(&of) {
            assignment.logging = false;
        }
    }

    pub(super) fn on_due(&mut self, of: Try, out: &mut Out) {
        let Some(assignment) = self.assignments.get_mut(&of) else { return };
        assignment.due = None;
        match assignment.phase {
            Phase::Sent => self.lose(of, false, "its worker did not begin within 60 s", out),
            Phase::Started if assignment.limit.is_some() => {
                self.lose(
                    of,
                    true,
                    "its worker lives and says nothing of it, a day after its time limit",
                    out,
                );
            }
            Phase::Adopted | Phase::Started => {
                self.lose(of, true, "nothing was heard of its worker for 90 s", out);
            }
            Phase::Reported => {}
        }
    }

    /// Nobody builds it any more.
    pub(super) fn lose(&mut self, of: Try, started: bool, why: &str, out: &mut Out) {
        let Some(assignment) = self.remove(of) else { return };
        if let Some(worker) = self.workers.get_mut(&assignment.worker) {
            worker.tasks.retain(|task| *task != of);
        }
        if !assignment.canceled {
            let (build, attempt, why) = (of.build.0, of.attempt, why.to_owned());
            out.push(Effect::Tell(Event::Lost { build, attempt, started, why }));
        }
    }

    /// Those that somebody wants, by build.
    pub(in crate::remote::server) fn assignments(&self) -> impl Iterator<Item = AssignmentView> {
        self.assignments.iter().filter(|(_, assignment)| !assignment.canceled).map(|(of, a)| {
            let begun = !matches!(a.phase, Phase::Sent);
            AssignmentView {
                build: of.build.0,
                attempt: of.attempt,
                worker: a.worker.clone(),
                derivation: a.derivation.clone(),
                phase: a.phase,
                log: begun.then(|| self.log(*of).display().to_string()),
                report: a.report.clone(),
            }
        })
    }

    fn log(&self, of: Try) -> PathBuf {
        self.settings.logs.join(format!("{}-{}.gz", of.build, of.attempt))
    }

    /// The assignments of a derivation, the newest first.
    fn of_derivation(&self, derivation: &str) -> impl Iterator<Item = Try> {
        self.derivations.get(derivation).into_iter().flatten().rev().copied()
    }

    fn insert(&mut self, of: Try, assignment: Assignment) {
        self.derivations.entry(assignment.derivation.clone()).or_default().push(of);
        self.assignments.insert(of, assignment);
    }

    fn remove(&mut self, of: Try) -> Option<Assignment> {
        self.due(of, None);
        let assignment = self.assignments.remove(&of)?;
        if let Some(tries) = self.derivations.get_mut(&assignment.derivation) {
            tries.retain(|other| *other != of);
            if tries.is_empty() {
                self.derivations.remove(&assignment.derivation);
            }
        }
        Some(assignment)
    }

    fn due(&mut self, of: Try, at: Option<Instant>) {
        let Some(assignment) = self.assignments.get_mut(&of) else { return };
        let old = std::mem::replace(&mut assignment.due, at);
        if let Some(old) = old {
            self.timers.remove(&(old, Timer::Assignment(of)));
        }
        if let Some(at) = at {
            self.timers.insert((at, Timer::Assignment(of)));
        }
    }
}
