//! What a daemon sees of the keeper.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use crossbeam_channel::bounded;

use super::super::prepare;
use super::*;
use crate::actor::Spawner;
use crate::db::{self, Database, testing};
use crate::model::build::{Outcome, Store};
use crate::model::job::{NewJob, Work};
use crate::model::spec::JobsetName;
use crate::store::{Address, Dialect};

/// Greets as Guix's daemon.
fn greet(listener: &UnixListener) -> UnixStream {
    let (mut client, _) = listener.accept().unwrap();
    client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    for word in [0x6478_696f, 0x164, 0x616c_7473] {
        client.write_all(&u64::to_le_bytes(word)).unwrap();
    }
    client
}

fn rounds(place: &Path, threads: &Spawner) -> Rounds {
    rounds_with(place, threads, false)
}

fn rounds_with(place: &Path, threads: &Spawner, far: bool) -> Rounds {
    let address = Address::Unix(place.join("socket"));
    let (keeper, _inbox) = prepare(Store::Guix);
    let ears = (bounded(16).0, keeper.clone());
    let reach = Reach::spawn(threads, Dialect::Guix, (address.clone(), None), ears).unwrap();
    let means = Means {
        dialect: Dialect::Guix,
        address,
        store: "/gnu/store".to_owned(),
        far,
        directory: place.join("gcroots"),
        database: Database::open(&place.join("gorget.db"), threads).unwrap(),
    };
    Rounds::new(threads.stop(), keeper, reach, means)
}

#[test]
fn the_daemon_sees_the_end_of_a_connection_that_is_closed() {
    let place = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(place.path().join("socket")).unwrap();
    let (spawner, _threads) = Spawner::new();
    let mut rounds = rounds(place.path(), &spawner);
    // The probe's.
    greet(&listener).read_to_end(&mut Vec::new()).unwrap();
    std::thread::scope(|scope| {
        let daemon = scope.spawn(|| greet(&listener).read_to_end(&mut Vec::new()).unwrap());
        assert!(rounds.connection().is_ok());
        rounds.close();
        daemon.join().unwrap();
    });
    assert_eq!(rounds.retires(), None);
}

#[test]
fn a_stop_ends_a_wait_for_a_greeting() {
    let place = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(place.path().join("socket")).unwrap();
    let (spawner, _threads) = Spawner::new();
    let mut rounds = rounds(place.path(), &spawner);
    let (probe, _) = listener.accept().unwrap();
    rounds.reach.end();
    probe.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    (&probe).read_to_end(&mut Vec::new()).unwrap();
    std::thread::scope(|scope| {
        let keeper = rounds.keeper.clone();
        scope.spawn(move || {
            // Accepted by whoever was first: the probe may try again.
            let taken = listener.accept().unwrap();
            keeper.leash.cancel();
            drop(taken);
        });
        assert!(rounds.connection().is_err());
    });
}

/// Takes requests until the connection is closed; the items that got temporary roots over it.
fn serve(mut client: UnixStream) -> Vec<String> {
    let mut held = Vec::new();
    let mut word = [0; 8];
    // What follows the greeting: version, affinity, reserve.
    client.read_exact(&mut [0; 32]).unwrap();
    while client.read_exact(&mut word).is_ok() {
        let operation = u64::from_le_bytes(word);
        client.read_exact(&mut word).unwrap();
        let length = usize::try_from(u64::from_le_bytes(word)).unwrap();
        let mut text = vec![0; length.next_multiple_of(8)];
        client.read_exact(&mut text).unwrap();
        text.truncate(length);
        // Temporary roots; the others are indirect ones.
        if operation == 11 {
            held.push(String::from_utf8(text).unwrap());
        }
        for word in [0x616c_7473, 1_u64] {
            client.write_all(&word.to_le_bytes()).unwrap();
        }
    }
    held
}

#[test]
fn a_far_daemon_holds_what_is_wanted_as_long_as_it_is() {
    let place = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(place.path().join("socket")).unwrap();
    let (spawner, _threads) = Spawner::new();
    let mut rounds = rounds_with(place.path(), &spawner, true);
    greet(&listener).read_to_end(&mut Vec::new()).unwrap();
    let item = |name: &str| format!("/gnu/store/{}-{name}", "0".repeat(32));
    let job = |name: &str, needs: &[String]| NewJob {
        derivation: item(&format!("{name}.drv")),
        outputs: [("out".to_owned(), item(name))].into(),
        work: Work::Derivation,
        needs: needs.to_vec(),
        ..testing::job(name, &[])
    };
    let below = job("below", &[]);
    let jobs = vec![job("above", &[item("below.drv")]), below];
    let database = rounds.means.database.clone();
    let above = database.write("jobs", move |tx| {
        let name = JobsetName::new("far").unwrap();
        db::jobsets::put(tx, &name, "{}", true)?;
        let evaluation = db::evaluations::start(tx, &name, "", tx.now, &[])?;
        let ids = builds::register(tx, evaluation, &jobs)?.scheduled;
        let order = builds::start(tx, ids[1], Path::new("/log"), None)?;
        let outputs = jobs[1].outputs.clone();
        let succeeded = Outcome::Succeeded { outputs, products: Vec::new() };
        builds::end(tx, order.id, order.attempt, &succeeded)?;
        Ok(ids[0])
    });
    let above = above.unwrap();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| serve(greet(&listener)));
        rounds.hold(&[item("above.drv"), item("below.drv")]).ok().unwrap();
        assert!(rounds.everything().is_ok());
        // It rests, and is kept.
        rounds.used -= REST;
        rounds.retire();
        assert!(rounds.connection.is_some() && rounds.retires() > Some(clock::now()));
        // It is old, and makes room for another that holds less.
        rounds.opened -= LIFE;
        let second = scope.spawn(|| serve(greet(&listener)));
        rounds.retire();
        let held = first.join().unwrap();
        assert_eq!(held[..2], [item("above.drv"), item("below.drv")]);
        assert_eq!(held.last(), Some(&item("below")), "what was built for another");
        // Nothing waits any more.
        database.write("cancel", move |tx| builds::cancel(tx, above)).unwrap();
        rounds.used -= REST;
        rounds.retire();
        assert!(rounds.connection.is_none());
        assert_eq!(second.join().unwrap(), [item("above.drv"), item("below")]);
    });
}
