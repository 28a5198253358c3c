//! Links to where forges show commits, made from the URLs of channels.

use maud::{Markup, html};

use crate::model::spec::printable_url;

/// Hosts whose paths for commits are known, and how those continue after the repository.
const FORGES: &[(&str, &str, &str)] = &[
    ("github.com", "/commit/", "/compare/"),
    ("gitlab.com", "/-/commit/", "/-/compare/"),
    ("gitlab.inria.fr", "/-/commit/", "/-/compare/"),
    ("framagit.org", "/-/commit/", "/-/compare/"),
    ("codeberg.org", "/commit/", "/compare/"),
    ("notabug.org", "/commit/", ""),
    ("git.savannah.gnu.org", "/commit/?id=", "/diff/?id="),
];

/// The forge of a repository's URL: where its pages begin, how commits and comparisons go on.
fn forge(url: &str) -> Option<(String, &'static str, &'static str, &'static str)> {
    let url = printable_url(url);
    let (host, path) = match url.split_once("://") {
        Some((_, rest)) => rest.split_once('/')?,
        None => url.rsplit('@').next()?.split_once(':')?,
    };
    let host = host.split(':').next().unwrap_or(host);
    let known = FORGES.iter().find(|(known, ..)| *known == host)?;
    let path = path.trim_matches('/');
    // Savannah shows with cgit what it serves as git or https.
    let path = if host == "git.savannah.gnu.org" {
        let path = path.strip_prefix("git/").or_else(|| path.strip_prefix("cgit/")).unwrap_or(path);
        format!("cgit/{path}")
    } else {
        path.strip_suffix(".git").unwrap_or(path).to_owned()
    };
    Some((format!("https://{host}/{path}"), known.0, known.1, known.2))
}

/// The first digits of a commit, linked where that is possible.
pub(super) fn commit(url: &str, commit: &str) -> Markup {
    let short = commit.get(..12).unwrap_or(commit);
    html! {
        @match forge(url) {
            Some((page, _, path, _)) => a href={ (page) (path) (commit) } rel="noreferrer" { code { (short) } },
            None => code title=(commit) { (short) },
        }
    }
}

/// What changed from one commit to another, linked where that is possible.
pub(super) fn change(url: &str, old: &str, new: &str) -> Markup {
    let text = format!("{} → {}", old.get(..12).unwrap_or(old), new.get(..12).unwrap_or(new));
    html! {
        @match compare(url, old, new) {
            Some(link) => a href=(link) rel="noreferrer" { code { (text) } },
            None => code { (text) },
        }
    }
}

fn compare(url: &str, old: &str, new: &str) -> Option<String> {
    let (page, host, _, path) = forge(url)?;
    match (host, path) {
        (_, "") => None,
        ("git.savannah.gnu.org", path) => Some(format!("{page}{path}{new}&id2={old}")),
        (_, path) => Some(format!("{page}{path}{old}...{new}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_link_to_their_forge() {
        let linked = |url| commit(url, "0123456789abcdef").into_string();
        for (url, expected) in [
            ("https://u:p@github.com/a/b.git", "https://github.com/a/b/commit/0123456789abcdef"),
            ("git@gitlab.com:a/b.git", "https://gitlab.com/a/b/-/commit/0123456789abcdef"),
            (
                "https://git.savannah.gnu.org/git/guix.git",
                "https://git.savannah.gnu.org/cgit/guix.git/commit/?id=0123456789abcdef",
            ),
        ] {
            assert!(linked(url).contains(&format!("href=\"{expected}\"")), "{}", linked(url));
        }
        assert!(!linked("/srv/x").contains("href"));
        assert!(!linked("https://evil.example/github.com/a").contains("href"));
    }

    #[test]
    fn changes_link_to_a_comparison() {
        let link = |url| compare(url, "aa", "bb");
        assert_eq!(
            link("https://codeberg.org/a/b").as_deref(),
            Some("https://codeberg.org/a/b/compare/aa...bb")
        );
        assert_eq!(link("https://notabug.org/a/b"), None);
    }
}
