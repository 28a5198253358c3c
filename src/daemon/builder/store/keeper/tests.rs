//! What a daemon sees of the keeper.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use super::*;

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
    let address = Address::Unix(place.join("socket"));
    let (keeper, _inbox) = prepare(Store::Guix);
    let ears = (bounded(16).0, keeper.clone());
    let reach = Reach::spawn(threads, Dialect::Guix, (address.clone(), None), ears).unwrap();
    let means = Means {
        dialect: Dialect::Guix,
        address,
        store: "/gnu/store".to_owned(),
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
