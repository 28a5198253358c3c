//! Carries one message to where it is to go, within half a minute.
//!
//! Invariant: an error's text never holds an address' user info, a path or a secret.

use std::ffi::OsString;
use std::fmt;
use std::time::Duration;

use lettre::{SmtpTransport, Transport};
use serde::Deserialize;

use super::letter;
use crate::daemon::Parameters;
use crate::db::notifications::Pending;
use crate::sys::clock;
use crate::sys::process::{How, Launch, Launcher, Program, Read};

/// For one message: people's servers answer in seconds, and a courier is waited for by other messages.
const PATIENCE: Duration = Duration::from_secs(30);

/// For `sendmail` to go after it was told to.
const GRACE: Duration = Duration::from_secs(3);

/// Why a message was not sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It may work later.
    Later(String),
    /// It never will.
    Hopeless(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Later(why) | Self::Hopeless(why) => write!(f, "({why})"),
        }
    }
}

/// A notification as specifications spell it.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Target {
    Email { from: Option<String>, to: String, server: String },
    Mastodon,
    Webhook { url: String, secret: Option<String> },
}

#[derive(Clone)]
pub(super) struct Courier {
    launcher: Launcher,
    parameters: Parameters,
    agent: ureq::Agent,
}

impl Courier {
    pub(super) fn new(launcher: Launcher, parameters: Parameters) -> Self {
        let tls = ureq::tls::TlsConfig::builder().provider(ureq::tls::TlsProvider::NativeTls);
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            // A message is for the server that was named.
            .max_redirects(0)
            .max_idle_connections(0)
            .tls_config(tls.build())
            .user_agent(concat!("gorget/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Self { launcher, parameters, agent }
    }

    pub(super) fn deliver(&self, pending: &Pending) -> Result<(), Failure> {
        let target: Target = serde_json::from_str(&pending.notification)
            .map_err(|_| Failure::Hopeless("the notification cannot be read".to_owned()))?;
        match target {
            Target::Email { from, to, server } => {
                let mail = letter::mail(pending, &self.parameters, from.as_deref(), &to)?;
                match server.strip_prefix("sendmail://") {
                    Some(program) => self.sendmail(program, &mail),
                    None => smtp(&server, &mail),
                }
            }
            Target::Mastodon => self.mastodon(pending),
            Target::Webhook { url, secret } => self.webhook(pending, &url, secret.as_deref()),
        }
    }

    fn mastodon(&self, pending: &Pending) -> Result<(), Failure> {
        let Some(mastodon) = &self.parameters.mastodon else {
            let why = "the parameters name no Mastodon instance".to_owned();
            return Err(Failure::Hopeless(why));
        };
        let url = format!("{}/api/v1/statuses", mastodon.url.trim_end_matches('/'));
        let status = letter::text(pending, &self.parameters);
        let request = self
            .agent
            .post(url)
            .header("Authorization", format!("Bearer {}", mastodon.token))
            // A try whose answer was lost does not post again.
            .header("Idempotency-Key", format!("gorget-{}-{}", pending.id, pending.build.id));
        answered(request.send_form([("status", status.as_str())]))
    }

    fn webhook(&self, pending: &Pending, url: &str, secret: Option<&str>) -> Result<(), Failure> {
        let body = letter::body(pending, &self.parameters);
        let mut request = self.agent.post(url).content_type("application/json");
        if let Some(secret) = secret {
            request = request.header("X-Gorget-Signature", letter::signature(secret, &body));
        }
        answered(request.send(body.as_str()))
    }

    /// Hands a mail to a program as `sendmail` takes it.
    fn sendmail(&self, program: &str, mail: &lettre::Message) -> Result<(), Failure> {
        let envelope = mail.envelope();
        let mut command = vec![OsString::from(program), "-i".into()];
        if let Some(from) = envelope.from() {
            command.extend(["-f".into(), from.to_string().into()]);
        }
        command.push("--".into());
        command.extend(envelope.to().iter().map(|to| OsString::from(to.to_string())));
        let kept = ["PATH", "HOME", "LANG", "TMPDIR"];
        let environment = kept.into_iter().filter_map(|n| Some((n.into(), std::env::var_os(n)?)));
        let launch = Launch {
            program: Program::Command(command),
            environment: environment.collect(),
            directory: "/".into(),
            user: None,
            memory: None,
            merge: true,
        };
        let failed = |error: std::io::Error| Failure::Later(format!("sendmail: {error}"));
        let mut child = self.launcher.start(launch, Some(mail.formatted())).map_err(failed)?;
        let deadline = clock::now() + PATIENCE;
        let mut said = Vec::new();
        let exit = loop {
            said.clear(); // Nobody reads what it says, but it must not block on it.
            match child.read(&mut said, Some(deadline)).map_err(failed)? {
                Read::Output | Read::Errors => {}
                Read::Deadline | Read::Canceled => {
                    child.stop(GRACE);
                    return Err(Failure::Later("sendmail took too long".to_owned()));
                }
                Read::Ended(exit) => break exit,
            }
        };
        match exit.how {
            How::Code(0) => Ok(()),
            How::Code(code) => Err(Failure::Later(format!("sendmail: exit status {code}"))),
            How::Signal(signal) => Err(Failure::Later(format!("sendmail: signal {signal}"))),
            How::NotStarted(why) | How::Prevented(why) => {
                Err(Failure::Later(format!("sendmail: {why}")))
            }
            How::Lost => Err(Failure::Later("sendmail was lost".to_owned())),
        }
    }
}

fn smtp(server: &str, mail: &lettre::Message) -> Result<(), Failure> {
    // The error may quote the address, password included.
    let transport = SmtpTransport::from_url(server)
        .map_err(|_| Failure::Hopeless("the mail server's address cannot be read".to_owned()))?
        .timeout(Some(PATIENCE))
        .build();
    let result = transport.send(mail);
    match result {
        Ok(_) => Ok(()),
        Err(error) => {
            let code = error.status().map(|code| format!("mail server answered {code}"));
            let why = code.unwrap_or_else(|| {
                let word = if error.is_timeout() { "took too long" } else { "cannot be reached" };
                format!("mail server {word}")
            });
            // A 5xx is the server's last word.
            Err(if error.is_permanent() { Failure::Hopeless(why) } else { Failure::Later(why) })
        }
    }
}

/// What an HTTP answer means.
fn answered(result: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<(), Failure> {
    let why = match result {
        Ok(response) if response.status().is_success() => return Ok(()),
        Ok(response) => format!("the server answered {}", response.status().as_u16()),
        // Gone for good, or a request that will not get better; a time-out and too many requests will.
        Err(ureq::Error::StatusCode(code @ 400..=499)) if ![408, 425, 429].contains(&code) => {
            return Err(Failure::Hopeless(format!("the server answered {code}")));
        }
        Err(ureq::Error::StatusCode(code)) => format!("the server answered {code}"),
        Err(ureq::Error::Timeout(_)) => "the server took too long".to_owned(),
        Err(ureq::Error::Io(error)) => format!("cannot reach the server: {}", error.kind()),
        Err(ureq::Error::HostNotFound) => "the server's name is unknown".to_owned(),
        Err(ureq::Error::BadUri(_)) => {
            return Err(Failure::Hopeless("its address cannot be read".to_owned()));
        }
        // Others may quote the address.
        Err(_) => "the request did not work".to_owned(),
    };
    Err(Failure::Later(why))
}

#[cfg(test)]
mod tests;
