//! Forges: how each names its events and deliveries, signs them, and says what was pushed where.

use serde_json::Value;

use super::repository::normal;
use super::signature::{has_mac, has_token};
use crate::model::spec::{Reference, Specification};
use crate::web::failure::Failure;
use crate::web::request::Request;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Forge {
    GitHub,
    Gitea,
    Forgejo,
    GitLab,
}

/// Something was pushed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Delivery {
    /// The URLs of the repository, normal.
    repositories: Vec<String>,
    reference: Pushed,
    default_branch: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Pushed {
    Branch(String),
    Tag(String),
}

impl Forge {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::GitHub => "github",
            Self::Gitea => "gitea",
            Self::Forgejo => "forgejo",
            Self::GitLab => "gitlab",
        }
    }

    /// Whether the forge that sent this knows the secret. Forgejo also sends what Gitea does, for those who came
    /// from there.
    pub(super) fn is_signed(self, request: &Request, secret: &str) -> bool {
        match self {
            Self::GitHub => has_mac(request, "x-hub-signature-256", secret),
            Self::Gitea => has_mac(request, "x-gitea-signature", secret),
            Self::Forgejo => {
                has_mac(request, "x-forgejo-signature", secret)
                    || has_mac(request, "x-gitea-signature", secret)
            }
            Self::GitLab => has_token(request, secret),
        }
    }

    /// Whether it signs the body, and nothing else; another shows the secret.
    pub(super) fn signs(self) -> bool {
        match self {
            Self::GitHub | Self::Gitea | Self::Forgejo => true,
            Self::GitLab => false,
        }
    }

    /// What the forge calls this delivery, which stays the same when it is sent again.
    pub(super) fn delivery_id(self, request: &Request) -> Option<&str> {
        match self {
            Self::GitHub => request.header("x-github-delivery"),
            Self::Gitea => request.header("x-gitea-delivery"),
            Self::Forgejo => {
                request.header("x-forgejo-delivery").or(request.header("x-gitea-delivery"))
            }
            Self::GitLab => {
                request.header("idempotency-key").or(request.header("x-gitlab-event-uuid"))
            }
        }
    }

    fn event(self, request: &Request) -> &str {
        let event = match self {
            Self::GitHub => request.header("x-github-event"),
            Self::Gitea => request.header("x-gitea-event"),
            Self::Forgejo => request.header("x-forgejo-event").or(request.header("x-gitea-event")),
            Self::GitLab => request.header("x-gitlab-event"),
        };
        event.unwrap_or_default()
    }

    /// What was pushed; `None` of events that are about something else.
    pub(super) fn delivery(self, request: &Request) -> Result<Option<Delivery>, Failure> {
        let body: Value = serde_json::from_slice(&request.body)
            .map_err(|error| Failure::bad(format!("expected a delivery in JSON: {error}")))?;
        let name = |text: &str| text.to_owned();
        let reference = || body["ref"].as_str();
        let pushed = match self.event(request) {
            "push" | "Push Hook" | "Tag Push Hook" => {
                reference().and_then(|reference| match reference.strip_prefix("refs/heads/") {
                    Some(branch) => Some(Pushed::Branch(name(branch))),
                    None => reference.strip_prefix("refs/tags/").map(name).map(Pushed::Tag),
                })
            }
            "create" | "delete" => match body["ref_type"].as_str() {
                Some("branch") => reference().map(name).map(Pushed::Branch),
                Some("tag") => reference().map(name).map(Pushed::Tag),
                Some(_) | None => None,
            },
            _ => return Ok(None),
        };
        let Some(reference) = pushed else {
            return Err(Failure::bad(
                "expected the field ref of the delivery to name a branch or tag",
            ));
        };
        // Every text may be a URL; what is none is nobody's channel.
        let urls = [&body["repository"], &body["project"]]
            .into_iter()
            .filter_map(Value::as_object)
            .flatten()
            .filter(|(key, _)| is_url_field(key))
            .filter_map(|(_, value)| value.as_str());
        let repositories = urls.map(normal).collect();
        let default_branch = [&body["repository"], &body["project"]]
            .into_iter()
            .find_map(|repository| repository["default_branch"].as_str())
            .map(name);
        Ok(Some(Delivery { repositories, reference, default_branch }))
    }
}

/// Those that tell where to fetch from, or where people look at it, which can be the same place.
fn is_url_field(key: &str) -> bool {
    matches!(
        key,
        "clone_url"
            | "ssh_url"
            | "git_url"
            | "html_url"
            | "url"
            | "git_http_url"
            | "git_ssh_url"
            | "http_url"
            | "web_url"
    )
}

impl Delivery {
    /// Whether a channel of the specification is what was pushed to.
    pub(super) fn is_for(&self, specification: &Specification) -> bool {
        specification.channels.iter().any(|channel| {
            let same = self.repositories.contains(&normal(&channel.url));
            same && match (&channel.reference, &self.reference) {
                (Reference::Branch(wanted), Pushed::Branch(branch)) => wanted == branch,
                (Reference::Tag(wanted), Pushed::Tag(tag)) => wanted == tag,
                (Reference::Head, Pushed::Branch(branch)) => {
                    self.default_branch.as_ref().is_none_or(|default| default == branch)
                }
                (Reference::Head | Reference::Branch(_), Pushed::Tag(_))
                | (Reference::Tag(_), Pushed::Branch(_))
                | (Reference::Commit(_), Pushed::Branch(_) | Pushed::Tag(_)) => false,
            }
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::spec;
    use crate::web::request::{Method, Query};

    pub(in crate::web::hook) fn request(headers: &[(&str, &str)], body: &str) -> Request {
        Request {
            method: Method::Post,
            target: "/".to_owned(),
            path: Vec::new(),
            query: Query::default(),
            headers: headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            body: body.as_bytes().to_vec(),
            peer: "192.0.2.1".parse().unwrap(),
            secure: false,
            direct: true,
            id: String::new(),
        }
    }

    fn channel(fields: &str) -> Specification {
        let text = format!(
            r#"{{"name":"a","command":["x"],"channels":[{{"name":"c","url":"https://h.org/o/r.git"{fields}}}]}}"#
        );
        spec::json::parse(&text).unwrap().remove(0)
    }

    #[test]
    fn each_forges_push_is_understood() {
        let github = r#"{"ref":"refs/heads/main","repository":{"clone_url":"https://h.org/o/r.git","default_branch":"main"}}"#;
        let gitlab = r#"{"ref":"refs/heads/main","project":{"git_ssh_url":"git@h.org:o/r.git","default_branch":"main"}}"#;
        for (forge, event, body) in [
            (Forge::GitHub, ("X-GitHub-Event", "push"), github),
            (Forge::Gitea, ("X-Gitea-Event", "push"), github),
            (Forge::Forgejo, ("X-Forgejo-Event", "push"), github),
            (Forge::GitLab, ("X-Gitlab-Event", "Push Hook"), gitlab),
        ] {
            let delivery = forge.delivery(&request(&[event], body)).unwrap().unwrap();
            for (fields, meant) in [
                ("", true),
                (r#","branch":"main""#, true),
                (r#","branch":"other""#, false),
                (r#","tag":"main""#, false),
                (r#","commit":"0000000000000000000000000000000000000000""#, false),
            ] {
                assert_eq!(delivery.is_for(&channel(fields)), meant, "{forge:?} {fields}");
            }
        }
    }

    #[test]
    fn tags_and_branches_that_come_and_go_are_understood_and_the_rest_is_not_for_us() {
        let of = |event: &str, body: &str| {
            Forge::GitHub.delivery(&request(&[("X-GitHub-Event", event)], body))
        };
        let url = r#""repository":{"ssh_url":"ssh://git@h.org/o/r"}"#;
        let tag = of("push", &format!(r#"{{"ref":"refs/tags/v1",{url}}}"#)).unwrap().unwrap();
        assert!(tag.is_for(&channel(r#","tag":"v1""#)) && !tag.is_for(&channel("")));
        let made = format!(r#"{{"ref":"topic","ref_type":"branch",{url}}}"#);
        for event in ["create", "delete"] {
            let delivery = of(event, &made).unwrap().unwrap();
            assert!(delivery.is_for(&channel(r#","branch":"topic""#)), "{event}");
        }
        for event in ["ping", "issues", ""] {
            assert_eq!(of(event, "{}").unwrap(), None, "{event}");
        }
        assert!(matches!(of("push", "{}"), Err(Failure::Bad(_))));
        assert!(matches!(of("push", "nothing"), Err(Failure::Bad(_))));
        let longer =
            r#"{"ref":"refs/heads/main","repository":{"clone_url":"https://h.org/o/r-more"}}"#;
        assert!(!of("push", longer).unwrap().unwrap().is_for(&channel("")));
    }
}
