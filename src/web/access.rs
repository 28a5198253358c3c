//! Who asks, and what they may: checked in one place, before any handler runs.
//!
//! Somebody is known by a token in the request's head, by a session that a token began, or by asking from this
//! machine where the parameters say so. A token is looked up in the books each time, so that one that was revoked or
//! has expired is worth nothing from that moment on. What a handler changes may be out of a token's scope: it asks
//! [`Context::must`] about the jobset.

mod limit;
pub(super) mod login;
mod origin;
mod session;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::context::Context;
use super::failure::Failure;
use super::request::Request;
use crate::db::records;
use crate::model::spec::JobsetName;
use crate::model::time::Time;
use crate::proto::control::Command;
use crate::sys::{clock, random};
use limit::Limiter;
use session::Sessions;

/// What a route needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Access {
    /// Nothing, not even on a private installation: assets, health, logging in.
    Open,
    /// To read: anybody, unless the installation is private.
    Read,
    /// The handler checks a signature of its own over the body.
    Signed,
    /// To start evaluations.
    Trigger,
    /// To restart, cancel, prioritize.
    Operate,
    /// To edit specifications.
    Edit,
    Administer,
}

impl Access {
    /// Whether nothing more than reading is allowed by it.
    pub(super) fn is_read(self) -> bool {
        matches!(self, Self::Open | Self::Read)
    }
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// For the audit log: `token NAME`, say.
    pub(super) name: String,
    pub(super) role: Role,
    /// The one jobset that may be changed; `None` for all.
    pub(super) jobset: Option<JobsetName>,
}

impl Identity {
    /// Whether it may do that to a jobset, or with `None` to the whole installation.
    pub(super) fn may(&self, access: Access, jobset: Option<&JobsetName>) -> bool {
        self.role.may(access)
            && (access.is_read() || self.jobset.is_none() || self.jobset.as_ref() == jobset)
    }
}

/// What a token may do. From the viewer on, each may do what those before it may; a trigger cannot read a private
/// installation, and a viewer starts nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    Trigger,
    Viewer,
    Operator,
    Editor,
    Admin,
}

impl Role {
    /// As the bridge names them, in this order.
    const ALL: &[(&str, Self)] = &[
        ("trigger", Self::Trigger),
        ("viewer", Self::Viewer),
        ("operator", Self::Operator),
        ("editor", Self::Editor),
        ("admin", Self::Admin),
    ];

    fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == word).map(|(_, role)| *role)
    }

    pub(super) fn word(self) -> &'static str {
        Self::ALL.iter().find(|(_, role)| *role == self).map_or("", |(word, _)| word)
    }

    pub(super) fn may(self, access: Access) -> bool {
        match access {
            Access::Open | Access::Signed => true,
            Access::Read => self != Self::Trigger,
            Access::Trigger => self != Self::Viewer,
            Access::Operate => self >= Self::Operator,
            Access::Edit => self >= Self::Editor,
            Access::Administer => self >= Self::Admin,
        }
    }

    /// The least one that may.
    fn needed(access: Access) -> Self {
        let all = Self::ALL.iter().map(|(_, role)| *role);
        all.into_iter().find(|role| role.may(access)).unwrap_or(Self::Admin)
    }
}

/// The last use of a token is written down this often at most: it tells whether it is in use, not how much.
const NOTED: Duration = Duration::from_secs(60);

/// The daemon's time for that: a request should not wait for what it does not need.
const NOTING: Duration = Duration::from_secs(1);

/// Tokens whose last use is remembered. There are some dozens; past it all may be written down once more.
const TOKENS: usize = 1_000;

/// Logins that may fail from one address within [`LOGINS_WITHIN`]: somebody who mistypes has enough of them.
const LOGINS: usize = 10;
const LOGINS_WITHIN: Duration = Duration::from_secs(300);

/// Dashboards that one address may register within [`DASHBOARDS_WITHIN`]: a page of links registers each once.
const DASHBOARDS: usize = 30;
const DASHBOARDS_WITHIN: Duration = Duration::from_secs(300);

/// What all workers know of those who ask. Each lock is held for a look, never while anything else is waited for.
#[derive(Debug)]
pub(super) struct Guests {
    sessions: Mutex<Sessions>,
    /// Failed logins.
    logins: Mutex<Limiter>,
    dashboards: Mutex<Limiter>,
    /// Hooks that showed no secret.
    strangers: Mutex<Limiter>,
    /// When the use of a token was last written down.
    noted: Mutex<HashMap<String, Time>>,
}

impl Guests {
    pub(super) fn new() -> Self {
        Self {
            sessions: Mutex::new(Sessions::default()),
            logins: Mutex::new(Limiter::new(LOGINS, LOGINS_WITHIN)),
            dashboards: Mutex::new(Limiter::new(DASHBOARDS, DASHBOARDS_WITHIN)),
            strangers: Mutex::new(Limiter::new(LOGINS, LOGINS_WITHIN)),
            noted: Mutex::new(HashMap::new()),
        }
    }

    /// Whether the audit log is to have a line of this address's: those of a flood would push all others out.
    pub(super) fn is_news(&self, peer: IpAddr) -> bool {
        let (mut strangers, now) = (lock(&self.strangers), clock::now());
        let news = strangers.refusal(peer, now).is_none();
        if news {
            strangers.count(peer, now);
        }
        news
    }

    /// Counts a dashboard, or says after how many seconds this address may register another.
    pub(super) fn one_more_dashboard(&self, peer: IpAddr) -> Option<u64> {
        let (mut dashboards, now) = (lock(&self.dashboards), clock::now());
        let refusal = dashboards.refusal(peer, now);
        if refusal.is_none() {
            dashboards.count(peer, now);
        }
        refusal
    }
}

/// What is behind a lock, also after a panic: each change is whole in itself.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who asks, if that is known and the route is for them; otherwise why not.
pub(super) fn check(
    context: &mut Context,
    request: &Request,
    access: Access,
) -> Result<Option<Identity>, Failure> {
    context.peer = Some(request.peer);
    let changes = request.method.is_unsafe();
    if changes {
        let url = context.shared.config.parameters.url.as_deref();
        origin::check(request, url).map_err(|why| Failure::Forbidden(why.to_owned()))?;
    }
    if access == Access::Open {
        return Ok(None);
    }
    let known = identify(context, request)?;
    let private = context.shared.config.parameters.private;
    let anybody = access == Access::Signed || (access == Access::Read && !private);
    let Some((identity, by)) = known else {
        return if anybody { Ok(None) } else { Err(Failure::Unknown) };
    };
    if let By::Session { csrf } = by {
        if changes && !is_csrf(request, &csrf)? {
            let why =
                "This form is not of your session, or its session is over: load the page again.";
            return Err(Failure::Forbidden(why.to_owned()));
        }
        context.csrf = csrf;
    }
    if !anybody && !identity.role.may(access) {
        context.identity = Some(identity);
        return Err(context.refused(access, None));
    }
    Ok(Some(identity))
}

/// How somebody is known.
enum By {
    Token,
    Session { csrf: String },
    Machine,
}

fn identify(context: &mut Context, request: &Request) -> Result<Option<(Identity, By)>, Failure> {
    if let Some(secret) = bearer(request) {
        let identity = of_token(context, &hash(secret))?.ok_or(Failure::Unknown)?;
        return Ok(Some((identity, By::Token)));
    }
    if let Some(cookie) = request.cookie(login::COOKIE) {
        let key = hash(cookie);
        let found = lock(&context.shared.guests.sessions).get(&key, clock::now());
        if let Some((token, csrf)) = found {
            if let Some(identity) = of_token(context, &token)? {
                return Ok(Some((identity, By::Session { csrf })));
            }
            lock(&context.shared.guests.sessions).remove(&key);
        }
    }
    let parameters = &context.shared.config.parameters;
    let role = parameters.loopback_role.as_deref().and_then(Role::from_word);
    Ok(role.filter(|_| origin::is_local(request)).map(|role| {
        (Identity { name: "this machine".to_owned(), role, jobset: None }, By::Machine)
    }))
}

/// The token in a request's head. Of other schemes nothing is known here: a proxy may have asked for a password.
fn bearer(request: &Request) -> Option<&str> {
    let (scheme, secret) = request.header("authorization")?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(secret.trim())
}

/// What a token is kept as. Whoever compares hashes of secrets tells nothing by the time it takes.
fn hash(secret: &str) -> String {
    random::hex(&Sha256::digest(secret.as_bytes()))
}

/// Who has the token of this hash; `None` if there is none, or it has expired.
fn of_token(context: &mut Context, hash: &str) -> Result<Option<Identity>, Failure> {
    let now = context.now;
    let Some(token) = records::token(context.books()?, hash)? else { return Ok(None) };
    if token.expires.is_some_and(|expires| expires <= now) {
        return Ok(None);
    }
    let role = Role::from_word(&token.role)
        .ok_or_else(|| Failure::Internal(format!("token {} has no known role", token.name)))?;
    note(context, &token);
    let name = format!("token {}", token.name);
    Ok(Some(Identity { name, role, jobset: token.jobset }))
}

/// Has it written down that a token was shown, unless that was done a moment ago.
fn note(context: &Context, token: &records::Token) {
    let due = context.now.before(NOTED);
    if token.last_used.is_some_and(|last| last > due) {
        return;
    }
    {
        let mut noted = lock(&context.shared.guests.noted);
        if noted.get(&token.name).is_some_and(|last| *last > due) {
            return;
        }
        if noted.len() >= TOKENS {
            noted.clear();
        }
        noted.insert(token.name.clone(), context.now);
    }
    // A daemon that is away is no reason to refuse anybody.
    if context.ask_within(NOTING, Command::TokenUsed(token.name.clone())).is_err() {
        log::debug!(target: "web", "the use of token {} is not noted", token.name);
    }
}

/// Whether the request shows the secret of its session, as its forms do, or a script that read a page.
fn is_csrf(request: &Request, csrf: &str) -> Result<bool, Failure> {
    let is = |shown: &str| hash(shown) == hash(csrf);
    if let Some(shown) = request.header("x-csrf-token") {
        return Ok(is(shown));
    }
    Ok(request.form()?.get("csrf").is_some_and(is))
}

/// The address as the audit log names it: an IPv4 one in IPv6's clothes is an IPv4 one.
fn shown(peer: IpAddr) -> IpAddr {
    peer.to_canonical()
}

/// Longest name of whom a change was made for, so that the address fits on the bridge, too.
const MAX_NAME: usize = 70;

impl Context {
    /// Whether whoever asks may do that to a jobset, or with `None` to the whole installation.
    pub(super) fn may(&self, access: Access, jobset: Option<&JobsetName>) -> bool {
        match &self.identity {
            Some(identity) => identity.may(access, jobset),
            None => access.is_read(),
        }
    }

    /// [`may`](Self::may), or why not.
    pub(super) fn must(&self, access: Access, jobset: Option<&JobsetName>) -> Result<(), Failure> {
        if self.may(access, jobset) {
            return Ok(());
        }
        Err(if self.identity.is_none() { Failure::Unknown } else { self.refused(access, jobset) })
    }

    /// What forms of this session must hold in their field `csrf`; empty when there is no session.
    pub(super) fn csrf(&self) -> String {
        self.csrf.clone()
    }

    /// Whom a change is made for, as the audit log has it.
    pub(super) fn by(&self) -> Option<String> {
        let peer = shown(self.peer?);
        let name = self.identity.as_ref().map_or("anybody", |identity| &identity.name);
        let end = name.char_indices().map(|(at, c)| at + c.len_utf8());
        let end = end.take_while(|end| *end <= MAX_NAME).last().unwrap_or(0);
        Some(format!("{} from {peer}", &name[..end]))
    }

    /// Why somebody who is known may not, which the audit log is told.
    fn refused(&self, access: Access, jobset: Option<&JobsetName>) -> Failure {
        let Some(identity) = &self.identity else { return Failure::Unknown };
        let needed = Role::needed(access).word();
        let why = match (&identity.jobset, jobset) {
            (Some(own), Some(other)) if identity.role.may(access) => {
                format!("This token is for jobset {own}, not for {other}.")
            }
            (Some(own), None) if identity.role.may(access) => {
                format!("This token is for jobset {own} alone.")
            }
            (Some(_) | None, _) => {
                format!("This needs the role {needed}; yours is {}.", identity.role.word())
            }
        };
        let command = match jobset {
            Some(jobset) => format!("{needed}'s access to {jobset}"),
            None => format!("{needed}'s access"),
        };
        self.audit(&command, "refused");
        Failure::Forbidden(why)
    }

    /// Leaves a line in the audit log, if the daemon is there to write it.
    pub(super) fn audit(&self, command: &str, outcome: &str) {
        log::info!(target: "web", "{}: {command}: {outcome}", self.by().unwrap_or_default());
        let line = Command::Audit { command: command.to_owned(), outcome: outcome.to_owned() };
        if self.ask_within(NOTING, line).is_err() {
            log::warn!(target: "web", "the audit log misses a line: the daemon does not answer");
        }
    }
}

#[cfg(test)]
mod tests;
