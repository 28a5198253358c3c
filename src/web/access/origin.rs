//! Where a request comes from: whether a page of another site made the browser send it, and whether this very
//! machine did.

use crate::web::request::Request;

/// Whether what changes something may have come from where it did; if not, why. Browsers say where, programs do not.
pub(super) fn check(request: &Request, base: Option<&str>) -> Result<(), &'static str> {
    const FOREIGN: &str = "This was sent by a page of another site.";
    if let Some(origin) = request.header("origin") {
        let own = host(origin).is_some_and(|from| {
            let asked = request.header("host").map(str::to_ascii_lowercase);
            asked.as_ref() == Some(&from) || base.and_then(host).as_ref() == Some(&from)
        });
        return if own { Ok(()) } else { Err(FOREIGN) };
    }
    match request.header("sec-fetch-site") {
        None | Some("same-origin" | "none") => Ok(()),
        Some(_) => Err(FOREIGN),
    }
}

/// Whether it comes from this machine without a detour. The host it asks for must be this machine, too: a page of
/// another site can have its own name lead here, and a proxy that says nothing of itself may pass on the public one.
pub(super) fn is_local(request: &Request) -> bool {
    let own = request.header("host").map(str::to_ascii_lowercase).is_some_and(|asked| {
        let name = asked.rsplit_once(':').map_or(asked.as_str(), |(name, port)| {
            if port.bytes().all(|b| b.is_ascii_digit()) { name } else { &asked }
        });
        let literal = name.trim_start_matches('[').trim_end_matches(']');
        name == "localhost"
            || literal.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
    });
    request.direct && own && request.peer.to_canonical().is_loopback()
}

/// Host and port of a URL, in lower case, a port that goes without saying left out.
fn host(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?.to_ascii_lowercase();
    let usual = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return None,
    };
    Some(authority.strip_suffix(usual).map_or(authority.clone(), str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::request::{Method, Query};

    fn request(peer: &str, headers: &[(&str, &str)]) -> Request {
        Request {
            method: Method::Post,
            target: "/".to_owned(),
            path: Vec::new(),
            query: Query::default(),
            headers: headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            body: Vec::new(),
            peer: peer.parse().unwrap(),
            secure: false,
            direct: true,
            id: String::new(),
        }
    }

    #[test]
    fn other_sites_pages_change_nothing() {
        let base = Some("https://ci.example.org/x");
        for (headers, fine) in [
            (&[][..], true),
            (&[("Origin", "http://h:8080")], true),
            (&[("Origin", "https://CI.example.org")], true),
            (&[("Origin", "https://ci.example.org:443")], true),
            (&[("Origin", "https://ci.example.org:8443")], false),
            (&[("Origin", "https://evil.example")], false),
            (&[("Origin", "null")], false),
            (&[("Origin", "file://h:8080")], false),
            (&[("Sec-Fetch-Site", "same-origin")], true),
            (&[("Sec-Fetch-Site", "none")], true),
            (&[("Sec-Fetch-Site", "same-site")], false),
            (&[("Sec-Fetch-Site", "cross-site")], false),
            (&[("Origin", "https://evil.example"), ("Sec-Fetch-Site", "same-origin")], false),
        ] {
            let mut all = vec![("Host", "h:8080")];
            all.extend(headers);
            assert_eq!(check(&request("192.0.2.1", &all), base).is_ok(), fine, "{headers:?}");
        }
    }

    #[test]
    fn this_machine_is_told_from_proxies_and_rebound_names() {
        for (peer, headers, local) in [
            ("127.0.0.1", &[("Host", "localhost:8080")][..], true),
            ("::1", &[("Host", "[::1]:8080")], true),
            ("::1", &[("Host", "[::1]")], true),
            ("::ffff:127.0.0.1", &[("Host", "127.0.0.1")], true),
            ("127.0.0.1", &[("Host", "ci.example.org:8080")], false),
            ("127.0.0.1", &[("Host", "evil.example:8080")], false),
            ("127.0.0.1", &[], false),
            ("192.0.2.1", &[("Host", "localhost")], false),
        ] {
            assert_eq!(is_local(&request(peer, headers)), local, "{peer} {headers:?}");
        }
        let passed_on = request("127.0.0.1", &[("Host", "localhost")]);
        assert!(!is_local(&Request { direct: false, ..passed_on }));
    }
}
