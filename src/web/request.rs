//! A request as handlers see it: its path decoded, its head and body whole.

use std::net::IpAddr;

use percent_encoding::percent_decode_str;

use super::failure::Failure;
use crate::model::spec::JobsetName;

/// A form: the largest holds a specification, and no longer one gets through the bridge.
const MAX_FORM: usize = 64 * 1024;

/// What the request wants done. HEAD is GET whose answer has no body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    /// Any other, which no route knows.
    Other,
}

impl Method {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Other => "another method",
        }
    }

    /// Whether it may change something.
    pub(super) fn is_unsafe(self) -> bool {
        match self {
            Self::Get | Self::Head => false,
            Self::Post | Self::Put | Self::Delete | Self::Other => true,
        }
    }
}

#[derive(Debug)]
pub(super) struct Request {
    pub(super) method: Method,
    /// As it was sent: path and query.
    pub(super) target: String,
    /// The components of the path, each decoded; empty ones are dropped.
    pub(super) path: Vec<String>,
    pub(super) query: Query,
    /// In the order in which they came.
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    /// Who is at the other end; behind a trusted proxy, whom that says it acts for.
    pub(super) peer: IpAddr,
    /// Whether what came last on the way to us was HTTPS.
    pub(super) secure: bool,
    /// Whether nothing tells of a proxy on the way to us.
    pub(super) direct: bool,
    /// Names this request in the log and in error messages.
    pub(super) id: String,
}

impl Request {
    /// The first header of this name, whatever its case.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The value of a cookie.
    pub(super) fn cookie(&self, name: &str) -> Option<&str> {
        self.header("cookie")?.split(';').find_map(|pair| {
            let (known, value) = pair.trim().split_once('=')?;
            (known == name).then_some(value)
        })
    }

    /// The fields of a form in the body, in their order.
    pub(super) fn form(&self) -> Result<Form, Failure> {
        if self.body.len() > MAX_FORM {
            return Err(Failure::TooLarge("The form is longer than 64 KiB.".to_owned()));
        }
        let text = std::str::from_utf8(&self.body)
            .map_err(|_| Failure::bad("the form is not UTF-8".to_owned()))?;
        Ok(Form(pairs(text, true)))
    }
}

/// The query string. Of a key that is repeated the last value counts; parts without exactly one `=` are dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    /// Decodes percent signs, and leaves every `+` alone but in `query`, where it is a blank.
    pub(super) fn parse(text: &str) -> Self {
        let parts = text.split('&').filter(|part| part.matches('=').count() == 1);
        Self(
            parts
                .filter_map(|part| part.split_once('='))
                .map(|(key, value)| {
                    let key = decode(key);
                    let value =
                        if key == "query" { value.replace('+', " ") } else { value.to_owned() };
                    (key, decode(&value))
                })
                .collect(),
        )
    }

    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// A value that is a whole number; one that is not counts as absent.
    pub(super) fn number(&self, key: &str) -> Option<i64> {
        self.get(key)?.parse().ok()
    }

    /// A jobset's name; what cannot be one names no jobset.
    pub(super) fn jobset(&self, key: &str) -> Option<Option<JobsetName>> {
        self.get(key).map(JobsetName::new)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

/// The fields of a form, in their order; keys may repeat.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    pub(super) fn new(fields: Vec<(String, String)>) -> Self {
        Self(fields)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    pub(super) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(known, _)| known == key).map(|(_, value)| value.as_str())
    }
}

/// The components of a path, each decoded on its own, so that `%2F` stays inside of one; empty ones are dropped.
pub(super) fn components(path: &str) -> Vec<String> {
    path.split('/').filter(|part| !part.is_empty()).map(decode).collect()
}

fn pairs(text: &str, plus_is_blank: bool) -> Vec<(String, String)> {
    let plain = |text: &str| {
        if plus_is_blank { decode(&text.replace('+', " ")) } else { decode(text) }
    };
    text.split('&')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            (plain(key), plain(value))
        })
        .collect()
}

fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lose_empty_components_and_keep_encoded_slashes() {
        assert_eq!(components("//events//rss/"), ["events", "rss"]);
        assert_eq!(components("/jobset/a%2Fb+c%20d"), ["jobset", "a/b+c d"]);
        assert!(components("/").is_empty());
    }

    #[test]
    fn a_plus_is_a_blank_in_searches_only() {
        let query = Query::parse("names=gtk+.x86_64-linux&query=spec:a+b%2Bc&nr=1&nr=2&nr&x=y=z");
        assert_eq!(query.get("names"), Some("gtk+.x86_64-linux"));
        assert_eq!(query.get("query"), Some("spec:a b+c"));
        assert_eq!(query.number("nr"), Some(2));
        assert_eq!(query.get("x"), None);
        assert_eq!(Query::parse("nr=abc").number("nr"), None);
    }

    #[test]
    fn forms_keep_repeated_fields_in_order() {
        let form = Form(pairs("channel-name=a+b&channel-name=c%26d&empty=", true));
        assert_eq!(form.all("channel-name").collect::<Vec<_>>(), ["a b", "c&d"]);
        assert_eq!((form.get("empty"), form.get("none")), (Some(""), None));
    }
}
