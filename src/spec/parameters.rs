//! The parameters file of `-P`: settings of the installation that are no command-line options.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use serde_json::Value;

use super::scheme::Guile;
use super::value::{At, Wrong};
use super::{Error, is_scheme, text};
use super::{lines, unique};
use crate::model::spec::JobsetName;

/// What a parameters file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parameters {
    /// The public base URL of the web interface.
    pub(crate) url: Option<String>,
    pub(crate) mail_from: Option<String>,
    pub(crate) mastodon: Option<Mastodon>,
    /// Whether the web interface shows nothing to people it does not know.
    pub(crate) private: bool,
    /// Addresses of reverse proxies whose word on whom they act for is taken.
    pub(crate) trusted_proxies: Vec<IpAddr>,
    /// What whoever asks from this very machine may do without a token: one of [`LOOPBACK_ROLES`].
    pub(crate) loopback_role: Option<String>,
    /// The secrets of each jobset's hooks: any of them will do.
    pub(crate) hook_secrets: BTreeMap<JobsetName, Vec<String>>,
}

/// Roles that whoever asks from this machine can be given. A trigger's is left out: it is for hooks, which have secrets.
pub(crate) const LOOPBACK_ROLES: &[&str] = &["viewer", "operator", "editor", "admin"];

/// The account that posts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mastodon {
    pub(crate) name: String,
    pub(crate) url: String,
    pub(crate) token: String,
}

/// Reads a whole file.
pub(crate) fn read(path: &Path, guile: &Guile) -> Result<Parameters, Error> {
    let parameters = if is_scheme(path) {
        guile.parameters(path)
    } else {
        text(path).and_then(|text| parse(&text))
    };
    parameters.map_err(|error| error.about(path))
}

fn parse(text: &str) -> Result<Parameters, Error> {
    let value = unique::parse(text)?;
    of(&value).map_err(|wrong| {
        let line = lines::of(text, &wrong.path);
        wrong.into_error(0, line, None)
    })
}

/// What an object of parameters says.
pub(super) fn of(value: &Value) -> Result<Parameters, Wrong> {
    let at = At::new(value, Vec::new());
    let fields = at.object(&[
        "url",
        "private",
        "trusted-proxies",
        "loopback-role",
        "hook-secrets",
        "mastodon",
        "mail-from",
    ])?;
    let private = fields.or("private", false, |at| at.flag())?;
    let trusted_proxies = fields.or("trusted-proxies", Vec::new(), |at| {
        at.list()?
            .iter()
            .map(|at| {
                let address: Result<IpAddr, _> = at.text()?.parse();
                // As those who connect are known by.
                address.map(|a| a.to_canonical()).map_err(|_| at.wrong("expected an IP address"))
            })
            .collect()
    })?;
    let loopback_role = fields.get("loopback-role").map(|at| {
        let what = format!("one of {}", LOOPBACK_ROLES.join(", "));
        at.checked(&what, |role| LOOPBACK_ROLES.contains(&role)).map(str::to_owned)
    });
    let hook_secrets = fields.or("hook-secrets", BTreeMap::new(), |at| {
        let mut all = BTreeMap::new();
        for (jobset, secrets) in at.members()? {
            let Some(name) = JobsetName::new(jobset) else {
                return Err(secrets.wrong("its key is no jobset's name"));
            };
            let secrets = secrets.list()?;
            let secrets = secrets.iter().map(|secret| Ok(secret.text()?.to_owned()));
            all.insert(name, secrets.collect::<Result<_, Wrong>>()?);
        }
        Ok(all)
    })?;
    let mastodon = fields.get("mastodon").map(|at| {
        let fields = at.object(&["name", "url", "token"])?;
        Ok(Mastodon {
            name: fields.need("name")?.text()?.to_owned(),
            url: fields.need("url")?.checked_silently(WEB, is_web)?.to_owned(),
            token: fields.need("token")?.text()?.to_owned(),
        })
    });
    Ok(Parameters {
        url: fields
            .get("url")
            .map(|at| Ok(at.checked_silently(WEB, is_web)?.trim_end_matches('/').to_owned()))
            .transpose()?,
        mail_from: fields.get("mail-from").map(|at| at.text().map(str::to_owned)).transpose()?,
        mastodon: mastodon.transpose()?,
        private,
        trusted_proxies,
        loopback_role: loopback_role.transpose()?,
        hook_secrets,
    })
}

const WEB: &str = "a URL of http or https";

/// Whether a text is such a URL, with a host.
pub(super) fn is_web(url: &str) -> bool {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_keys_are_read() {
        let text = r#"{"url":"https://ci.example.org/","private":true,"trusted-proxies":["::ffff:10.0.0.1"],
            "loopback-role":"operator","hook-secrets":{"guix":["a","b"]},"mail-from":"ci@example.org",
            "mastodon":{"name":"ci","url":"https://m.example.org","token":"t"}}"#;
        let parameters = parse(text).unwrap();
        assert_eq!(parameters.url.as_deref(), Some("https://ci.example.org"));
        assert_eq!(parameters.mail_from.as_deref(), Some("ci@example.org"));
        assert_eq!(parameters.loopback_role.as_deref(), Some("operator"));
        assert_eq!(parameters.trusted_proxies, [IpAddr::from([10, 0, 0, 1])]);
        assert_eq!(parameters.mastodon.unwrap().name, "ci");
        assert_eq!(parse("{}"), Ok(Parameters::default()));
    }

    #[test]
    fn mistakes_name_line_and_field_and_no_secret() {
        for (text, message) in [
            (
                "{\"url\":\"http://h\",\n\"colour\":1}",
                "line 2: field colour: unknown field; there are url, private",
            ),
            (
                "{\"loopback-role\":\"trigger\"}",
                "field loopback-role: expected one of viewer, operator, editor, admin, found \"trigger\"",
            ),
            ("{\"private\":1}", "field private: expected true or false, found a number"),
            (
                "{\"trusted-proxies\":[1]}",
                "field trusted-proxies[0]: expected a string, found a number",
            ),
            (
                "{\"hook-secrets\":{\"a\":[735522018]}}",
                "field hook-secrets.a[0]: expected a string, found a number",
            ),
            (
                "{\"hook-secrets\":{\"a\":735522018}}",
                "field hook-secrets.a: expected a list, found a number",
            ),
            (
                "{\"mastodon\":{\"name\":\"a\",\"url\":\"https://h\",\"token\":735522018}}",
                "field mastodon.token: expected a string, found a number",
            ),
            (
                "{\"hook-secrets\":{\"a\":\"hunter2\"}}",
                "field hook-secrets.a: expected a list, found a string",
            ),
            (
                "{\"mastodon\":{\"name\":\"a\",\"token\":\"hunter2\"}}",
                "field mastodon: the field \"url\" is missing",
            ),
            ("{\"hook-secrets\":{\"a\":[\"\"]}}", "field hook-secrets.a[0]: must not be empty"),
            ("{\"url\":\"ftp://u:hunter2@h\"}", "field url: expected a URL of http or https"),
            ("[]", "expected an object, found a list"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
            assert!(!error.contains("hunter2") && !error.contains("735522018"), "{error}");
        }
    }
}
