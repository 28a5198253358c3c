//! Taking in what a remote worker built: fetched by the store daemon here, kept, and looked through for products.

use std::io;

use super::{Held, Tools, aborted, connect, keep, lost, outputs, products};
use crate::daemon::builder::running::Leash;
use crate::daemon::builder::store::Taken;
use crate::daemon::builder::store::probe::Reach;
use crate::model::build::{Order, Outcome};
use crate::model::error::chain;
use crate::store::{Closer, Error, Options};

/// Has the daemon fetch what a worker built from there, unless it is in the store already.
pub(in crate::daemon::builder::store) fn take(
    tools: &Tools,
    order: &Order,
    url: &str,
    leash: &Leash<Closer>,
    reach: &Reach,
) -> Taken {
    match take_in(tools, order, url, leash, reach).unwrap_or_else(|taken| taken) {
        // Whatever broke, we broke it.
        Taken::Over(Outcome::Aborted(_)) | Taken::Unfetched(_) if leash.is_canceled() => {
            Taken::CutOff
        }
        taken => taken,
    }
}

fn take_in(
    tools: &Tools,
    order: &Order,
    url: &str,
    leash: &Leash<Closer>,
    reach: &Reach,
) -> Result<Taken, Taken> {
    let lost = |error: Error| match error {
        error @ Error::Refused(_) => lost(error, leash, reach),
        error => {
            // It is fetched when the daemon is there again; its worker need not build it twice.
            log::warn!(target: "builder", "fetching what build {} left: {}", order.id, chain(&error));
            lost(error, leash, reach);
            Outcome::Interrupted
        }
    };
    let plain = Options { fallback: tools.fallback, ..Options::default() };
    let (Held { mut connection, age, .. }, _) = connect(tools, &plain, leash, &lost, &lost)?;
    let outputs = outputs(&mut connection, &order.derivation, &lost)?;
    let paths: Vec<&str> = outputs.values().map(String::as_str).collect();
    // Nothing collects them before they have their links.
    for path in &paths {
        connection.add_temporary_root(path).map_err(lost)?;
    }
    let valid = connection.valid(&paths).map_err(lost)?;
    let missing: Vec<&&str> =
        paths.iter().filter(|path| !valid.iter().any(|valid| valid == *path)).collect();
    if !missing.is_empty() {
        // Fallback is for what fails half-way, as Cuirass has it.
        let options = Options {
            fallback: true,
            substitute_urls: Some(vec![url.to_owned()]),
            ..Options::default()
        };
        connection.set_options(&options).map_err(lost)?;
        connection.be_patient(tools.fetch).map_err(|error| aborted("set a time-out", &error))?;
    }
    for path in &missing {
        connection.ensure(path).map_err(|error| match error {
            Error::Refused(why) => {
                let trust = tools.dialect.trust();
                Taken::Unfetched(format!("cannot fetch {path} from {url}: {why} ({trust})"))
            }
            // The daemon waits, too.
            Error::Receive(error) if is_late(&error) => {
                let seconds = tools.fetch.as_secs();
                Taken::Unfetched(format!(
                    "cannot fetch {path} from {url}: nothing came for {seconds} s"
                ))
            }
            error => lost(error).into(),
        })?;
    }
    keep(&mut connection, tools, &paths, &lost)?;
    let (products, notes) = products(tools, order, &outputs, leash)?;
    for note in notes {
        log::info!(target: "builder", "build {}: {note}", order.id);
    }
    // One that has fetched keeps its worker's address.
    if leash.release() && missing.is_empty() {
        tools.idle.put_back(Held { connection, age: age.another(), options: plain });
    }
    Ok(Taken::Over(Outcome::Succeeded { outputs, products }))
}

/// Whether a read ended because its time was over.
fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use super::super::tests::{order, tools};
    use super::*;
    use crate::actor::Spawner;

    #[test]
    fn a_fetch_that_stalls_says_nothing_of_the_daemon() {
        let place = tempfile::tempdir().unwrap();
        let (spawner, _threads) = Spawner::new();
        let tools = tools(place.path(), &spawner);
        let listener = UnixListener::bind(place.path().join("socket")).unwrap();
        let reach = Reach::unwatched();
        let take = || {
            let url = "http://127.0.0.1:5558";
            take(&tools, &order(place.path()), url, &Leash::default(), &reach)
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (mut client, _) = listener.accept().unwrap();
                let greeting = [0x6478_696f, 0x164, 0x616c_7473];
                // Options, a root, nothing is valid, and options again: the rest it has to ask for elsewhere.
                let answers = [0x616c_7473, 0x616c_7473, 1, 0x616c_7473, 0, 0x616c_7473];
                for word in greeting.into_iter().chain(answers) {
                    client.write_all(&u64::to_le_bytes(word)).unwrap();
                }
                client.read_to_end(&mut Vec::new()).unwrap();
            });
            let taken = take();
            assert!(
                matches!(&taken, Taken::Unfetched(why) if why.ends_with("nothing came for 0 s")),
                "{taken:?}"
            );
        });
        assert!(reach.is_open());
        drop(listener);
        assert_eq!(take(), Taken::CutOff);
        assert!(!reach.is_open());
    }
}
