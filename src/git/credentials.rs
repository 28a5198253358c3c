//! Who we say we are: URL, SSH agent, keys, `~/.netrc`, git's credential helper. Never a prompt.
//!
//! Invariant: each source is tried at most once a connection, so that a server that goes on refusing ends it.

use std::collections::VecDeque;
use std::env;
use std::path::PathBuf;

use git2::{Config, Cred, CredentialType, ErrorClass, ErrorCode};

use super::netrc;
use super::url::Url;

/// Names of keys that OpenSSH tries by default, best first.
const KEYS: [&str; 4] = ["id_ed25519", "id_ecdsa", "id_rsa", "id_dsa"];

/// A way to say who we are.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    /// Only names the user: SSH asks for it first.
    UserName,
    Agent,
    Key(PathBuf),
    Url,
    Netrc,
    Helper,
}

impl Source {
    fn fits(&self, allowed: CredentialType) -> bool {
        match self {
            Self::UserName => allowed.is_username(),
            Self::Agent | Self::Key(_) => allowed.is_ssh_key(),
            Self::Url | Self::Netrc | Self::Helper => allowed.is_user_pass_plaintext(),
        }
    }
}

/// What has not been tried yet with one connection.
pub(super) struct Credentials {
    url: Url,
    left: VecDeque<Source>,
}

impl Credentials {
    pub(super) fn new(url: &Url) -> Self {
        let mut left = VecDeque::from([Source::UserName, Source::Url, Source::Netrc]);
        if env::var_os("SSH_AUTH_SOCK").is_some() {
            left.push_back(Source::Agent);
        }
        if let Some(home) = home() {
            let keys = KEYS.iter().map(|name| home.join(".ssh").join(name));
            left.extend(keys.filter(|key| key.is_file()).map(Source::Key));
        }
        left.push_back(Source::Helper);
        Self { url: url.clone(), left }
    }

    /// libgit2's callback: `asking` is the URL that wants to know, which a redirect may have changed.
    pub(super) fn next(
        &mut self,
        asking: &str,
        user: Option<&str>,
        allowed: CredentialType,
    ) -> Result<Cred, git2::Error> {
        while let Some(at) = self.left.iter().position(|source| source.fits(allowed)) {
            let Some(source) = self.left.remove(at) else { break };
            if let Some(Ok(cred)) = self.make(&source, asking, user) {
                return Ok(cred);
            }
        }
        Err(git2::Error::new(
            ErrorCode::Auth,
            ErrorClass::Callback,
            "access denied, and no other credentials to try",
        ))
    }

    /// `None` if the source has nothing for this host.
    fn make(
        &self,
        source: &Source,
        asking: &str,
        user: Option<&str>,
    ) -> Option<Result<Cred, git2::Error>> {
        let own = self.url.user_info();
        let name = user.map(str::to_owned).or(own.as_ref().map(|(user, _)| user.clone()));
        let account = || name.clone().or_else(|| env::var("USER").ok()).unwrap_or("git".to_owned());
        Some(match source {
            Source::UserName => Cred::username(&account()),
            Source::Agent => Cred::ssh_key_from_agent(&account()),
            Source::Key(file) => Cred::ssh_key(&account(), None, file, None),
            Source::Url => {
                let (user, password) = own?;
                // Another host, where a redirect led, must not see them.
                (host(asking)? == host(self.url.secret())?).then_some(())?;
                Cred::userpass_plaintext(&user, &password?)
            }
            Source::Netrc => {
                let found = netrc::find(&home()?.join(".netrc"), host(asking)?, name.as_deref())?;
                Cred::userpass_plaintext(&found.user, &found.password)
            }
            Source::Helper => {
                let config = Config::open_default().ok()?;
                Cred::credential_helper(&config, &without_user(asking), name.as_deref())
            }
        })
    }
}

fn home() -> Option<PathBuf> {
    env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from)
}

/// The host of `scheme://user@host:port/path` or `user@host:path`, without the port.
fn host(url: &str) -> Option<&str> {
    let authority = match url.split_once("://") {
        Some((_, rest)) => rest.split(['/', '?', '#']).next()?,
        None => url.split_once(':')?.0,
    };
    let host = authority.rsplit('@').next()?;
    Some(match host.strip_prefix('[') {
        Some(address) => address.split(']').next()?,
        None => host.split(':').next()?,
    })
}

/// Helpers are asked by host; what the URL says of the user is passed apart.
fn without_user(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let end = rest.find('/').unwrap_or(rest.len());
            let host = rest[..end].rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{host}{}", &rest[end..])
        }
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_tried_once_and_never_for_another_host() {
        let url = Url::parse("https://me:secret@h.org/x").unwrap();
        let only_url = || Credentials { url: url.clone(), left: VecDeque::from([Source::Url]) };
        let plain = CredentialType::USER_PASS_PLAINTEXT;
        let mut ours = only_url();
        assert!(ours.next("https://h.org/x", None, plain).is_ok());
        assert!(ours.next("https://h.org/x", None, plain).is_err());
        assert!(only_url().next("https://evil.org/x", None, plain).is_err());
        let mut ssh = only_url();
        assert!(ssh.next("ssh://h.org/x", None, CredentialType::SSH_KEY).is_err());
        assert_eq!(ssh.left, [Source::Url]);
    }

    #[test]
    fn hosts_are_read_from_urls() {
        assert_eq!(host("https://u:p@h.org:8443/x@y"), Some("h.org"));
        assert_eq!(host("ssh://[::1]:22/x"), Some("::1"));
        assert_eq!(host("git@h.org:x"), Some("h.org"));
        assert_eq!(without_user("https://u:p@h:1/x@y"), "https://h:1/x@y");
    }
}
