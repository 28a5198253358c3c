//! The core by hand, and the actor with looks that are no processes.

use std::path::{Path, PathBuf};

use super::*;
use crate::actor::PATIENCE;

fn channel(name: &str, url: &str, branch: &str) -> Channel {
    Channel {
        name: name.to_owned(),
        url: url.to_owned(),
        reference: Reference::Branch(branch.to_owned()),
        introduction: None,
    }
}

fn resolved(commit: &str) -> Resolved {
    Resolved { commit: commit.to_owned(), tree: "t".into(), directory: PathBuf::from("/d") }
}

fn look(url: &str, branches: &[&str]) -> Effect {
    let references = branches.iter().map(|name| Reference::Branch((*name).to_owned())).collect();
    Effect::Look(Look { url: url.to_owned(), references })
}

fn commits(effect: &Effect) -> (u64, Result<Vec<String>, String>) {
    match effect {
        Effect::Answer(ticket, result) => {
            let commits = |all: &Vec<Checkout>| all.iter().map(|c| c.commit.clone()).collect();
            (ticket.0, result.as_ref().map(commits).map_err(Clone::clone))
        }
        Effect::Look(look) => panic!("not an answer: {look:?}"),
    }
}

#[test]
fn requests_during_a_look_share_the_next_one() {
    let (mut core, mut out) = (Core::new(4), vec![]);
    core.on_request(Ticket(1), vec![channel("c", "u", "a")], &mut out);
    assert_eq!(out, [look("u", &["a"])]);
    core.on_request(Ticket(2), vec![channel("c", "u", "a")], &mut out);
    core.on_request(Ticket(3), vec![channel("c", "u", "b"), channel("d", "u", "a")], &mut out);
    assert_eq!(out.len(), 1);
    out.clear();
    core.on_ended("u", &Ok(vec![Ok(resolved("old"))]), &mut out);
    assert_eq!(commits(&out[0]), (1, Ok(vec!["old".into()])));
    assert_eq!(out[1..], [look("u", &["a", "b"])]);
    out.clear();
    core.on_ended("u", &Ok(vec![Ok(resolved("new")), Ok(resolved("b"))]), &mut out);
    assert_eq!(commits(&out[0]), (2, Ok(vec!["new".into()])));
    assert_eq!(commits(&out[1]), (3, Ok(vec!["b".into(), "new".into()])));
    assert!(core.urls.is_empty() && core.requests.is_empty() && core.queue.is_empty());
    assert_eq!(core.idle, 4);
}

#[test]
fn urls_take_turns_on_the_threads() {
    let (mut core, mut out) = (Core::new(1), vec![]);
    for (ticket, url) in [(1, "u"), (2, "v"), (3, "u"), (4, "w"), (5, "v")] {
        core.on_request(Ticket(ticket), vec![channel("c", url, "a")], &mut out);
    }
    assert_eq!(out, [look("u", &["a"])]);
    let mut order = vec![];
    for url in ["u", "v", "w", "u"] {
        out.clear();
        core.on_ended(url, &Ok(vec![Ok(resolved("x"))]), &mut out);
        for effect in &out {
            match effect {
                Effect::Look(look) => order.push(look.url.clone()),
                Effect::Answer(ticket, _) => order.push(ticket.0.to_string()),
            }
        }
    }
    assert_eq!(order, ["1", "v", "2", "5", "w", "4", "u", "3"]);
}

#[test]
fn a_request_is_answered_when_all_its_urls_are() {
    let (mut core, mut out) = (Core::new(4), vec![]);
    let channels = vec![channel("c", "u", "a"), channel("d", "v", "a"), channel("e", "w", "a")];
    core.on_request(Ticket(1), channels, &mut out);
    assert_eq!(out, [look("u", &["a"]), look("v", &["a"]), look("w", &["a"])]);
    out.clear();
    core.on_ended("w", &Err(git::Error("third".into())), &mut out);
    core.on_ended("v", &Ok(vec![Err(git::Error("second".into()))]), &mut out);
    assert!(out.is_empty());
    core.on_ended("u", &Ok(vec![Ok(resolved("x"))]), &mut out);
    assert_eq!(commits(&out[0]), (1, Err("channel d: second".into())));
}

#[test]
fn no_channels_need_no_look() {
    let (mut core, mut out) = (Core::new(1), vec![]);
    core.on_request(Ticket(1), vec![], &mut out);
    assert_eq!(out, [Effect::Answer(Ticket(1), Ok(vec![]))]);
}

#[test]
fn unexpected_ends_change_nothing() {
    let (mut core, mut out) = (Core::new(1), vec![]);
    core.on_ended("u", &Ok(vec![]), &mut out);
    core.on_request(Ticket(1), vec![channel("c", "u", "a")], &mut out);
    assert_eq!((core.idle, out.len()), (0, 1));
    out.clear();
    // Half an answer is an error, not a wait without end.
    core.on_ended("u", &Ok(vec![]), &mut out);
    assert!(commits(&out[0]).1.is_err());
    core.on_ended("u", &Ok(vec![]), &mut out);
    assert_eq!(core.idle, 1);
}

#[test]
fn a_look_that_panics_fails_alone() {
    let (threads, _watch) = Spawner::new();
    let looker = |look: &Look, _: &dyn Fn(Killer)| -> Answer {
        assert!(look.url != "bad", "bad luck");
        Ok(look.references.iter().map(|_| Ok(resolved("x"))).collect())
    };
    let handle = spawn_with(&threads, 1, looker).unwrap();
    let name = JobsetName::new("j").unwrap();
    let (lane, answers) = bounded(3);
    for url in ["bad", "good", "bad"] {
        handle.fetch(&name, vec![channel("c", url, "a")], lane.clone()).unwrap();
    }
    let mut results: Vec<_> = (0..3)
        .map(|_| answers.recv_timeout(PATIENCE).unwrap())
        .map(|fetched| fetched.result.map(|all| all[0].commit.clone()))
        .collect();
    results.sort();
    let failed = Err("channel c: the look panicked: bad luck".to_owned());
    assert_eq!(results, [Ok("x".to_owned()), failed.clone(), failed]);
}

#[test]
fn whoever_needs_a_checkout_waits_as_long_as_it_likes_and_no_longer() {
    let (threads, _watch) = Spawner::new();
    let (release, released) = bounded::<()>(1);
    let looker = move |_: &Look, _: &dyn Fn(Killer)| -> Answer {
        let _ = released.recv_timeout(PATIENCE);
        Ok(vec![Ok(resolved("x"))])
    };
    let handle = spawn_with(&threads, 1, looker).unwrap();
    let name = JobsetName::new("j").unwrap();
    let here = tempfile::tempdir().unwrap();
    let checkout = |directory: &Path| Checkout {
        channel: "c".to_owned(),
        url: "u".to_owned(),
        commit: "x".to_owned(),
        tree: "t".to_owned(),
        directory: directory.to_owned(),
    };
    let there = [checkout(here.path())];
    let present = |checkouts, patience, canceled: bool| {
        handle.present(&name, checkouts, patience, &|| canceled).map(|all| all[0].commit.clone())
    };
    assert_eq!(present(&there, Duration::ZERO, true).unwrap(), "x");
    let gone = [checkout(&here.path().join("gone"))];
    assert!(matches!(present(&gone, Duration::ZERO, false), Err(Absent::Late)));
    assert!(matches!(present(&gone, PATIENCE, true), Err(Absent::Canceled)));
    drop(release);
    assert_eq!(present(&gone, PATIENCE, false).unwrap(), "x");
}

#[test]
fn a_stop_waits_for_looks_under_way() {
    let (threads, watch) = Spawner::new();
    let (entered, inside) = bounded(1);
    let (release, released) = bounded::<()>(1);
    let looker = move |_: &Look, _: &dyn Fn(Killer)| -> Answer {
        entered.send(()).unwrap();
        let _ = released.recv_timeout(PATIENCE);
        Ok(vec![])
    };
    let handle = spawn_with(&threads, 1, looker).unwrap();
    let (lane, _answers) = bounded(2);
    let name = JobsetName::new("j").unwrap();
    handle.fetch(&name, vec![channel("c", "u", "a")], lane).unwrap();
    inside.recv_timeout(PATIENCE).unwrap();
    drop((watch.stop, threads));
    assert!(watch.reports.try_recv().is_err());
    release.send(()).unwrap();
    assert_eq!(watch.reports.recv_timeout(PATIENCE).unwrap().name, "updater");
}
