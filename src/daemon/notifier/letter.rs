//! The words of a message: subject, text, JSON. No I/O.

use hmac::{Hmac, KeyInit, Mac};
use lettre::message::header::ContentType;
use lettre::message::{Mailbox, Mailboxes};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::courier::Failure;
use crate::daemon::Parameters;
use crate::db::notifications::Pending;
use crate::model::build::Build;

/// Text that came from a job, fit for a header or a line.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

/// `Build JOB on JOBSET is WORD.`
pub(super) fn subject(pending: &Pending) -> String {
    let Build { job, jobset, .. } = &pending.build;
    format!("Build {} on {jobset} is {}.", plain(job), pending.word)
}

/// Where the build's page is, if the interface has a public address.
fn url(build: &Build, parameters: &Parameters) -> Option<String> {
    let base = parameters.url.as_deref()?.trim_end_matches('/');
    Some(format!("{base}/build/{}/details", build.id))
}

/// What happened and where to read more.
pub(super) fn text(pending: &Pending, parameters: &Parameters) -> String {
    let Build { job, jobset, .. } = &pending.build;
    let mut text = format!("The build {} on jobset {jobset} is {}.", plain(job), pending.word);
    if let Some(url) = url(&pending.build, parameters) {
        text.push_str(&format!(" Everything about it is at {url}."));
    }
    text
}

/// The body of a webhook.
pub(super) fn body(pending: &Pending, parameters: &Parameters) -> String {
    let build = &pending.build;
    json!({
        "word": pending.word,
        "jobset": build.jobset.as_str(),
        "evaluation": build.evaluation.0,
        "build": build.id.0,
        "job": build.job,
        "system": build.system,
        "derivation": build.derivation,
        "nix-name": build.nix_name,
        "status": build.status.word(),
        "weather": build.weather.word(),
        "error": build.error,
        "timestamp": build.timestamp.0,
        "starttime": build.starttime.map(|t| t.0),
        "stoptime": build.stoptime.map(|t| t.0),
        "url": url(build, parameters),
    })
    .to_string()
}

/// The value of `X-Gorget-Signature`.
pub(super) fn signature(secret: &str, body: &str) -> String {
    // An HMAC takes keys of any length.
    let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(secret.as_bytes());
    let digest = mac.map(|mac| mac.chain_update(body).finalize().into_bytes());
    format!("sha256={}", digest.map(|digest| hexadecimal(&digest)).unwrap_or_default())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An e-mail. Its Message-ID stays the same from try to try, and mails about one job form a thread.
pub(super) fn mail(
    pending: &Pending,
    parameters: &Parameters,
    from: Option<&str>,
    to: &str,
) -> Result<lettre::Message, Failure> {
    let Some(from) = from.or(parameters.mail_from.as_deref()) else {
        let why = "neither the notification (from) nor the parameters (mail-from) name a sender";
        return Err(Failure::Hopeless(why.to_owned()));
    };
    let hopeless = |what: &str| Failure::Hopeless(format!("the {what} address cannot be read"));
    let from: Mailbox = from.parse().map_err(|_| hopeless("sender's"))?;
    let to: Mailboxes = to.parse().map_err(|_| hopeless("recipients'"))?;
    let domain = domain(parameters).unwrap_or_else(|| from.email.domain().to_owned());
    let Build { id, job, jobset, .. } = &pending.build;
    let stop = pending.build.stoptime.unwrap_or(pending.build.timestamp);
    let thread = hexadecimal(&Sha256::digest(format!("{jobset} {job}"))[..8]);
    let thread = format!("<{thread}.gorget@{domain}>");
    let message = lettre::Message::builder()
        .date(std::time::UNIX_EPOCH + crate::model::time::Time(0).until(stop))
        .message_id(Some(format!("<{}.{id}.{stop}.gorget@{domain}>", pending.id)))
        .references(thread.clone())
        .in_reply_to(thread)
        .from(from)
        .subject(subject(pending))
        .header(ContentType::TEXT_PLAIN);
    to.into_iter()
        .fold(message, lettre::message::MessageBuilder::to)
        .body(format!("{}\n", text(pending, parameters)))
        .map_err(|_| Failure::Hopeless("the addresses make no envelope".to_owned()))
}

/// The host of the interface's public address.
fn domain(parameters: &Parameters) -> Option<String> {
    let (_, rest) = parameters.url.as_deref()?.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = authority.rsplit('@').next()?.split(':').next()?;
    let good = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
    (!host.is_empty() && host.chars().all(good)).then(|| host.to_owned())
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::build::BuildId;
    use crate::model::evaluation::EvaluationId;
    use crate::model::spec::JobsetName;
    use crate::model::status::{BuildStatus, Weather};
    use crate::model::time::Time;

    pub(in super::super) fn pending(notification: &str) -> Pending {
        Pending {
            id: 7,
            build: Build {
                id: BuildId(12),
                jobset: JobsetName::new("hello").unwrap(),
                evaluation: EvaluationId(3),
                job: "compile".to_owned(),
                system: "x86_64-linux".to_owned(),
                derivation: "process:abc".to_owned(),
                nix_name: "compile".to_owned(),
                outputs: BTreeMap::new(),
                status: BuildStatus::Failed,
                weather: Weather::NewFailure,
                priority: 99,
                worker: None,
                attempts: 1,
                timestamp: Time(1_700_000_000),
                starttime: Some(Time(1_700_000_010)),
                stoptime: Some(Time(1_700_000_020)),
                log: None,
                error: Some("exit status 3".to_owned()),
            },
            notification: notification.to_owned(),
            word: "broken".to_owned(),
            attempts: 0,
        }
    }

    pub(in super::super) fn parameters() -> Parameters {
        Parameters { url: Some("https://ci.example.org/".to_owned()), ..Parameters::default() }
    }

    #[test]
    fn words_are_those_of_cuirass() {
        let pending = pending("");
        assert_eq!(subject(&pending), "Build compile on hello is broken.");
        assert_eq!(
            text(&pending, &parameters()),
            "The build compile on jobset hello is broken. Everything about it is at https://ci.example.org/build/12/details."
        );
        let nowhere = text(&pending, &Parameters::default());
        assert_eq!(nowhere, "The build compile on jobset hello is broken.");
    }

    #[test]
    fn a_mail_has_its_headers() {
        let (from, to) = (Some("CI <ci@a.org>"), "x@b.org, Y <y@c.org>");
        let mail = mail(&pending(""), &parameters(), from, to).unwrap();
        let text = String::from_utf8(mail.formatted()).unwrap();
        for line in [
            "Date: Tue, 14 Nov 2023 22:13:40 +0000",
            "Message-ID: <7.12.1700000020.gorget@ci.example.org>",
            "Subject: Build compile on hello is broken.",
            "Content-Type: text/plain; charset=utf-8",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in {text}");
        }
        assert!(
            text.contains("x@b.org") && text.contains("y@c.org") && text.contains("References: <")
        );
        for (from, to) in [("ci@a.org", ""), ("nobody", "x@b.org")] {
            let refused = super::mail(&pending(""), &parameters(), Some(from), to);
            assert!(matches!(refused, Err(Failure::Hopeless(_))), "{from} {to}");
        }
    }

    #[test]
    fn the_installation_is_the_sender_where_none_is_named() {
        let parameters = Parameters { mail_from: Some("ci@d.org".to_owned()), ..parameters() };
        let sender = |from: Option<&str>| {
            let mail = mail(&pending(""), &parameters, from, "x@b.org").unwrap();
            mail.envelope().from().map(ToString::to_string)
        };
        assert_eq!(sender(None).as_deref(), Some("ci@d.org"));
        assert_eq!(sender(Some("ci@a.org")).as_deref(), Some("ci@a.org"));
        let nobody = mail(&pending(""), &Parameters::default(), None, "x@b.org").unwrap_err();
        assert!(nobody.to_string().contains("mail-from"), "{nobody}");
    }

    #[test]
    fn a_job_name_cannot_add_headers() {
        let mut pending = pending("");
        pending.build.job = "x\r\nBcc: all@b.org\r\n".to_owned();
        let mail = mail(&pending, &parameters(), Some("ci@a.org"), "x@b.org").unwrap();
        let text = String::from_utf8(mail.formatted()).unwrap();
        assert!(!text.lines().any(|line| line.starts_with("Bcc")), "{text}");
    }

    #[test]
    fn signatures_are_hmacs() {
        // RFC 4231, test case 2.
        assert_eq!(
            signature("Jefe", "what do ya want for nothing?"),
            "sha256=5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn domains_are_hosts_only() {
        let of =
            |url: &str| domain(&Parameters { url: Some(url.to_owned()), ..Parameters::default() });
        assert_eq!(of("https://u@ci.example.org:8080/x"), Some("ci.example.org".to_owned()));
        assert_eq!(of("https://[::1]/"), None);
        assert_eq!(of("nonsense"), None);
    }
}
