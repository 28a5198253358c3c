//! What workers may be called and may say of themselves.

use std::net::IpAddr;

use crate::proto::remote::Fault;
use crate::proto::remote::link::Report;

/// Letters of a name: Cuirass's have 8.
const MAX_NAME: usize = 64;

/// Letters of a machine's name, as long as DNS has them.
const MAX_MACHINE: usize = 255;

/// Systems of a worker: more than there are.
const MAX_SYSTEMS: usize = 64;

/// Letters of a reason that a worker gives.
const MAX_WHY: usize = 1000;

/// Letters of the place where results are: an address and a port, many times over.
const MAX_URL: usize = 200;

/// Letters of a derivation's file name: a store name of 211 in a long store directory.
const MAX_DERIVATION: usize = 512;

pub(super) fn is_name(name: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..=MAX_NAME).contains(&name.len()) && name.chars().all(good)
}

/// What is wrong with a worker's record, if anything.
pub(super) fn worker(name: &str, machine: &str, systems: &[String]) -> Result<(), &'static str> {
    if !is_name(name) {
        return Err("expected a name of 1 to 64 letters, digits, dots, hyphens and underscores");
    }
    if machine.len() > MAX_MACHINE || machine.chars().any(char::is_control) {
        return Err("expected a machine's name of at most 255 letters");
    }
    if systems.is_empty() || systems.len() > MAX_SYSTEMS || !systems.iter().all(|s| is_name(s)) {
        return Err("expected 1 to 64 systems");
    }
    Ok(())
}

/// Whether a text is the file name of a derivation, without a way out of the store.
pub(super) fn is_derivation(text: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "/+-._?=".contains(c);
    let Some((directory, base)) = text.rsplit_once('/') else { return false };
    let named = base.split_once('-').is_some_and(|(hash, name)| {
        hash.len() == 32 && hash.chars().all(|c| c.is_ascii_alphanumeric()) && name != ".drv"
    });
    directory.starts_with('/')
        && directory.split('/').skip(1).all(|part| !matches!(part, "" | "." | ".."))
        && named
        && base.ends_with(".drv")
        && text.len() <= MAX_DERIVATION
        && text.chars().all(good)
}

/// A reason, cut to what people read.
pub(super) fn cut(why: String) -> String {
    if why.chars().count() <= MAX_WHY { why } else { why.chars().take(MAX_WHY).collect() }
}

/// A success is believed of the machine that says it.
pub(super) fn success(mut url: String, address: IpAddr) -> Report {
    if url.len() > MAX_URL {
        url = url.chars().take(MAX_URL).chain("…".chars()).collect();
    }
    let host = url.strip_prefix("http://").and_then(|rest| {
        let (place, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = place.rsplit_once(':')?;
        let _: u16 = port.parse().ok()?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        (path.is_empty()).then(|| host.parse::<IpAddr>().ok())?
    });
    if host == Some(address) {
        return Report::Succeeded { url };
    }
    let why = format!("expected results at http://{address}:PORT, found {url:?}");
    Report::Failed { fault: Fault::Aborted.word().to_owned(), why: Some(why) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derivations_stay_in_a_store() {
        let hash = "630anh2v63k4dgs6vdr2dgrjn418nrmi";
        for good in ["/gnu/store", "/nix/store", "/tmp/t1/nix/store"] {
            assert!(is_derivation(&format!("{good}/{hash}-hello-2.12.drv")), "{good}");
        }
        for bad in [
            "/gnu/store/../../x-y.drv".to_owned(),
            format!("gnu/store/{hash}-x.drv"),
            format!("/gnu/../store/{hash}-x.drv"),
            format!("/gnu/store/{hash}-x"),
            format!("/gnu/store/{hash}-.drv"),
            format!("/gnu/store/{hash}-a b.drv"),
            format!("/gnu/store/{hash}-{}.drv", "x".repeat(600)),
            String::new(),
        ] {
            assert!(!is_derivation(&bad), "{bad}");
        }
    }

    #[test]
    fn results_are_at_the_address_they_are_told_from() {
        let address = "10.0.0.2".parse().unwrap();
        for good in ["http://10.0.0.2:5558", "http://10.0.0.2:80/"] {
            assert_eq!(
                success(good.to_owned(), address),
                Report::Succeeded { url: good.to_owned() }
            );
        }
        for bad in ["http://10.0.0.3:5558", "https://10.0.0.2:5558", "http://10.0.0.2", "file:///x"]
        {
            let Report::Failed { fault, why } = success(bad.to_owned(), address) else {
                panic!("{bad}");
            };
            assert_eq!(fault, "aborted");
            assert!(why.unwrap().contains(bad), "{bad}");
        }
    }
}
