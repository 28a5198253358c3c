//! URLs of repositories: what kinds there are, how they are shown, and how a submodule's is read relative to
//! its parent's.
//!
//! Invariant: what [`Url::printable`] and [`Url::scrub`] give holds no user name, password or query.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::trouble::Trouble;
use crate::model::spec::printable_url;

/// Longest message from libgit2 or a server that is shown: some servers answer with whole pages.
const MESSAGE: usize = 400;

/// Shortest password that is cut out wherever it occurs; a shorter one would garble any text.
const SHORTEST_SECRET: usize = 4;

/// Names the mirror of a URL: 64 hexadecimal digits.
pub(crate) fn hash(url: &str) -> String {
    Sha256::digest(url.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A URL of one of the kinds that are fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Url {
    text: String,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Local(PathBuf),
    /// `scheme://…`
    Remote,
    /// `user@host:path`
    Scp,
}

impl Url {
    pub(super) fn parse(text: &str) -> Result<Self, Trouble> {
        let kind = kind(text).ok_or(Trouble::Url)?;
        Ok(Self { text: text.to_owned(), kind })
    }

    /// As it was given, for libgit2 alone: it may hold user info.
    pub(super) fn secret(&self) -> &str {
        &self.text
    }

    /// The directory, if it is one of this machine's.
    pub(super) fn local(&self) -> Option<&Path> {
        match &self.kind {
            Kind::Local(path) => Some(path),
            Kind::Remote | Kind::Scp => None,
        }
    }

    /// Whether TLS may come into play, if only by a redirect.
    pub(super) fn is_http(&self) -> bool {
        self.text.starts_with("http://") || self.text.starts_with("https://")
    }

    /// Names the mirror: 64 hexadecimal digits.
    pub(super) fn hash(&self) -> String {
        hash(&self.text)
    }

    /// User name and password as they are written in the URL, decoded.
    pub(super) fn user_info(&self) -> Option<(String, Option<String>)> {
        let info = user_info(&self.text)?;
        let (user, password) = match info.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (info, None),
        };
        let text = |part: &str| String::from_utf8_lossy(&decode(part)).into_owned();
        Some((text(user), password.map(text)))
    }

    pub(super) fn printable(&self) -> String {
        printable(&self.text)
    }

    /// `message` in one line and without what is secret of this URL.
    pub(super) fn scrub(&self, message: &str) -> String {
        let mut clean = message.replace(&self.text, &self.printable());
        if let Some(info) = user_info(&self.text).filter(|_| self.kind == Kind::Remote) {
            clean = clean.replace(&format!("{info}@"), "");
            let password = self.user_info().and_then(|(_, password)| password);
            let raw = info.split_once(':').map(|(_, password)| password.to_owned());
            for secret in [password, raw].into_iter().flatten() {
                if secret.len() >= SHORTEST_SECRET {
                    clean = clean.replace(&secret, "…");
                }
            }
        }
        if let Some((_, query)) = self.text.split_once('?').filter(|_| self.kind == Kind::Remote) {
            clean = clean.replace(&format!("?{query}"), "");
        }
        one_line(&clean)
    }

    /// The URL that `.gitmodules` of this repository means by `text`.
    pub(super) fn submodule(&self, text: &str) -> Result<Self, Trouble> {
        let url = match relative(&self.text, text) {
            Some(joined) => Self::parse(&joined.ok_or(Trouble::Url)?)?,
            None => Self::parse(text)?,
        };
        // What others push must not make us read this machine's own files.
        if url.local().is_some() && self.local().is_none() {
            return Err(Trouble::LocalSubmodule);
        }
        Ok(url)
    }
}

/// Like `printable_url`, and also for text that is no URL we know.
pub(super) fn printable(text: &str) -> String {
    match kind(text) {
        Some(_) => one_line(&printable_url(text)),
        // Whatever it is, what stands before an `@` could be a secret.
        None => one_line(text.rsplit('@').next().unwrap_or_default()),
    }
}

/// `text` without line ends and control characters, cut to [`MESSAGE`] characters.
fn one_line(text: &str) -> String {
    let plain = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(MESSAGE).collect()
}

fn kind(text: &str) -> Option<Kind> {
    if text.chars().any(char::is_control) {
        return None;
    }
    if text.starts_with('/') {
        return Some(Kind::Local(PathBuf::from(text)));
    }
    if let Some((scheme, rest)) = text.split_once("://") {
        return match scheme {
            "file" => {
                let path = decode(rest.strip_prefix("localhost").unwrap_or(rest));
                let path = PathBuf::from(OsStr::from_bytes(&path));
                (path.is_absolute() && !path.as_os_str().as_bytes().contains(&0))
                    .then_some(Kind::Local(path))
            }
            "git" | "http" | "https" | "ssh" => {
                let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
                let host = authority.rsplit('@').next().unwrap_or_default();
                (!host.is_empty() && !host.starts_with([':', '-'])).then_some(Kind::Remote)
            }
            _ => None,
        };
    }
    let (account, path) = text.split_once(':')?;
    let (user, host) = account.split_once('@')?;
    let good = !user.is_empty()
        && !host.is_empty()
        && !host.starts_with('-')
        && !account.contains('/')
        && !host.contains('@')
        && !path.is_empty();
    good.then_some(Kind::Scp)
}

/// What stands before the `@` of the authority.
fn user_info(text: &str) -> Option<&str> {
    let authority = match text.split_once("://") {
        Some(("file", _)) => return None,
        Some((_, rest)) => rest.split(['/', '?', '#']).next()?,
        None if text.starts_with('/') => return None,
        None => text.split_once(':')?.0,
    };
    Some(authority.rsplit_once('@')?.0)
}

/// Undoes percent-encoding; what is none is left as it is.
fn decode(text: &str) -> Vec<u8> {
    let (bytes, mut out, mut at) = (text.as_bytes(), Vec::with_capacity(text.len()), 0);
    while let Some(&byte) = bytes.get(at) {
        let digits = bytes.get(at + 1..at + 3).filter(|_| byte == b'%');
        let code = digits.and_then(|digits| {
            digits.iter().try_fold(0, |code, &digit| {
                Some(code * 16 + u8::try_from(char::from(digit).to_digit(16)?).ok()?)
            })
        });
        out.push(code.unwrap_or(byte));
        at += if code.is_some() { 3 } else { 1 };
    }
    out
}

/// Git's rule for `./` and `../` in `.gitmodules`; `None` if `text` is not relative, `Some(None)` if it leads nowhere.
fn relative(parent: &str, text: &str) -> Option<Option<String>> {
    if !(text.starts_with("./") || text.starts_with("../")) {
        return None;
    }
    // The part of the parent that `..` must not eat.
    let root = parent
        .split_once("://")
        .map_or(0, |(scheme, rest)| scheme.len() + 3 + rest.find('/').unwrap_or(rest.len()));
    let (mut base, mut rest) = (parent.trim_end_matches('/'), text);
    // A colon stands for the slash where `user@host:path` has no directory left.
    let mut separator = '/';
    loop {
        if let Some(tail) = rest.strip_prefix("./") {
            rest = tail;
        } else if let Some(tail) = rest.strip_prefix("../") {
            rest = tail;
            match base.rfind('/').filter(|slash| *slash >= root) {
                Some(slash) => base = &base[..slash],
                None if root > 0 => return Some(None),
                None => match base.rfind(':') {
                    Some(colon) if separator == '/' => {
                        base = &base[..colon];
                        separator = ':';
                    }
                    Some(_) | None => return Some(None),
                },
            }
        } else {
            break;
        }
    }
    Some(Some(format!("{base}{separator}{rest}").trim_end_matches('/').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn kinds_are_told_apart() {
        for good in ["git://h/x", "http://h:1/x", "https://u:p@h/x", "ssh://git@h/x", "me@h:x/y"] {
            assert!(url(good).local().is_none(), "{good}");
        }
        assert_eq!(url("/srv/x y").local(), Some(Path::new("/srv/x y")));
        assert_eq!(url("file:///srv/x%20y").local(), Some(Path::new("/srv/x y")));
        assert_eq!(url("file://localhost/srv/x").local(), Some(Path::new("/srv/x")));
        for bad in [
            "",
            "x",
            "./x",
            "../x",
            "h:x",
            "ftp://h/x",
            "ext::sh -c id",
            "http://",
            "http:///x",
            "file://h/x",
            "https://u@/x",
            "@h:x",
            "u@:x",
            "u@h:",
            "git://h/\nx",
            "ssh://-oProxyCommand=x/y",
            "u@-h:x",
        ] {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let secret = url("https://me:s%65cret@h.org/x?token=hush");
        assert_eq!(secret.printable(), "https://h.org/x");
        assert_eq!(secret.user_info(), Some(("me".into(), Some("secret".into()))));
        let message =
            "bad https://me:s%65cret@h.org/x?token=hush\nor me:s%65cret@h or secret or s%65cret";
        assert_eq!(secret.scrub(message), "bad https://h.org/x or h or … or …");
        assert_eq!(printable("ftp://me:pw@h/x"), "h/x");
        assert_eq!(url("git@h:x").printable(), "git@h:x");
    }

    #[test]
    fn submodules_are_relative_to_their_parent() {
        for (parent, text, joined) in [
            ("https://h/a/b.git", "../c.git", "https://h/a/c.git"),
            ("https://h/a/b.git/", "../../c", "https://h/c"),
            ("https://h/a/b", "./c", "https://h/a/b/c"),
            ("git@h:a/b", "../c", "git@h:a/c"),
            ("git@h:b", "../c", "git@h:c"),
            ("/srv/a", "../b", "/srv/b"),
            ("/srv/a", "/srv/b", "/srv/b"),
            ("file:///srv/a", "../b", "file:///srv/b"),
            ("/srv/a", "https://h/b", "https://h/b"),
        ] {
            assert_eq!(url(parent).submodule(text).unwrap().secret(), joined, "{parent} {text}");
        }
        for (parent, text) in [
            ("https://h/a", "/etc"),
            ("https://h/a", "file:///etc"),
            ("git@h:a", "/etc"),
            ("https://h/a", "../../../etc"),
            ("git@h:a", "../../etc"),
            ("https://h/a", "ext::x"),
        ] {
            assert!(url(parent).submodule(text).is_err(), "{parent} {text}");
        }
    }
}
