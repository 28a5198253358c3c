//! When two URLs mean the same repository.

/// A URL without what may differ between two ways to write it: scheme, user, port, `.git`, a last slash, the case of
/// the host.
pub(super) fn normal(url: &str) -> String {
    let url = url.trim();
    let (host, path) = match url.split_once("://") {
        Some((_, rest)) => {
            let rest = rest.split(['?', '#']).next().unwrap_or_default();
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            (without_port(without_user(authority)), path)
        }
        // `user@host:path`
        None => match url.split_once(':').filter(|(host, _)| !host.contains('/')) {
            Some((host, path)) => (without_user(host), path),
            None => ("", url),
        },
    };
    let path = path.trim_matches('/');
    let path = path.strip_suffix(".git").unwrap_or(path).trim_end_matches('/');
    format!("{}/{path}", host.to_ascii_lowercase())
}

fn without_user(authority: &str) -> &str {
    authority.rsplit('@').next().unwrap_or_default()
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        Some(_) | None => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_to_write_one_repository_are_the_same() {
        for url in [
            "https://example.org/a/foo",
            "https://Example.org/a/foo.git",
            "http://example.org:8080/a/foo/",
            "https://user:secret@example.org/a/foo.git/",
            "ssh://git@example.org:22/a/foo.git",
            "git@example.org:a/foo.git",
            "git@example.org:/a/foo",
            "git://example.org/a/foo?x#y",
        ] {
            assert_eq!(normal(url), "example.org/a/foo", "{url}");
        }
        assert_eq!(normal("/srv/foo.git"), normal("file:///srv/foo"));
        assert_eq!(normal("ssh://git@[::1]:22/x"), "[::1]/x");
    }

    #[test]
    fn others_are_not() {
        for url in [
            "https://example.org/a/foo-bar",
            "https://example.org/a/Foo",
            "https://example.com/a/foo",
            "https://example.org/b/a/foo",
            "",
        ] {
            assert_ne!(normal(url), "example.org/a/foo", "{url}");
        }
    }
}
