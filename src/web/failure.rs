//! Why a request has no good answer, and how that is told: as JSON to programs, as a page to people.

use serde::Serialize;

use super::context::Context;
use super::page;
use super::request::Request;
use super::response::Response;
use super::route::Kind;
use crate::db;
use crate::model::error::chain;
use crate::proto::control;

#[derive(Debug)]
pub(super) enum Failure {
    /// 400: what was sent is not what was expected.
    Bad(String),
    /// 401: nobody knows who asks.
    Unknown,
    /// 403: whoever asks may not.
    Forbidden(String),
    /// 404.
    Missing(String),
    /// 405, with the methods that there are.
    Method(Vec<&'static str>),
    /// 409: its state does not allow it.
    Conflict(String),
    /// 413: what was sent is longer than what is expected ever is.
    TooLarge(String),
    /// 422: what was sent was understood and is not valid.
    Invalid(String),
    /// 429, to be tried again after so many seconds.
    TooMany(String, u64),
    /// 503: the daemon, or its books, cannot be reached for now.
    Unavailable(String),
    /// 503: it takes longer than it may.
    Slow,
    /// 500: what was wrong is for the log only.
    Internal(String),
}

impl Failure {
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::Bad(message.into())
    }

    pub(super) fn missing(message: impl Into<String>) -> Self {
        Self::Missing(message.into())
    }

    pub(super) fn status(&self) -> u16 {
        match self {
            Self::Bad(_) => 400,
            Self::Unknown => 401,
            Self::Forbidden(_) => 403,
            Self::Missing(_) => 404,
            Self::Method(_) => 405,
            Self::Conflict(_) => 409,
            Self::TooLarge(_) => 413,
            Self::Invalid(_) => 422,
            Self::TooMany(..) => 429,
            Self::Internal(_) => 500,
            Self::Unavailable(_) | Self::Slow => 503,
        }
    }

    /// What is said to whoever asked: nothing of ours that is not theirs to know.
    pub(super) fn message(&self, request: &Request) -> String {
        match self {
            Self::Bad(why)
            | Self::Forbidden(why)
            | Self::Missing(why)
            | Self::Conflict(why)
            | Self::TooLarge(why)
            | Self::Invalid(why)
            | Self::TooMany(why, _)
            | Self::Unavailable(why) => why.clone(),
            Self::Unknown => {
                "This needs a token: send it as \"Authorization: Bearer TOKEN\", or log in."
                    .to_owned()
            }
            Self::Method(allowed) => format!("Only {} here.", allowed.join(", ")),
            Self::Slow => "The answer took too long to find; ask for less.".to_owned(),
            Self::Internal(_) => {
                format!("Something went wrong here; the log has more, as request {}.", request.id)
            }
        }
    }

    /// The whole answer.
    pub(super) fn response(
        &self,
        context: &mut Context,
        request: &Request,
        kind: Kind,
    ) -> Response {
        if let Self::Internal(why) = self {
            log::error!(target: "web", "request {}: {why}", request.id);
        }
        let message = self.message(request);
        let response = match kind {
            Kind::Api => Response::json_with(self.status(), &Told { error: &message }),
            Kind::Text => Response::text(self.status(), message),
            Kind::Page => page::failure(context, request, self.status(), &message),
        };
        match self {
            Self::Method(allowed) => response.with("Allow", allowed.join(", ")),
            Self::TooMany(_, seconds) => response.with("Retry-After", seconds.to_string()),
            Self::Unknown => response.with("WWW-Authenticate", "Bearer"),
            Self::Slow => response.with("Retry-After", "60"),
            Self::Bad(_)
            | Self::Forbidden(_)
            | Self::Missing(_)
            | Self::Conflict(_)
            | Self::TooLarge(_)
            | Self::Invalid(_)
            | Self::Unavailable(_)
            | Self::Internal(_) => response,
        }
    }
}

#[derive(Serialize)]
struct Told<'a> {
    error: &'a str,
}

impl From<db::Error> for Failure {
    fn from(error: db::Error) -> Self {
        match error {
            db::Error::NotFound(_) => Self::Missing(error.to_string()),
            db::Error::Conflict(why) => Self::Conflict(why),
            db::Error::Interrupted => Self::Slow,
            db::Error::Open(..) | db::Error::Io(..) | db::Error::Unavailable(_) => {
                log::warn!(target: "web", "{}", chain(&error));
                Self::Unavailable("The database cannot be read for now.".to_owned())
            }
            db::Error::Sqlite(_) | db::Error::Newer { .. } | db::Error::Corrupt(_) => {
                Self::Internal(chain(&error))
            }
        }
    }
}

/// What the bridge refused.
impl From<control::Failure> for Failure {
    fn from(failure: control::Failure) -> Self {
        use control::FailureKind::{
            Conflict, Internal, NotFound, RateLimited, Syntax, Unavailable, UnknownCommand,
        };
        match failure.kind {
            Syntax => Self::Invalid(failure.message),
            NotFound => Self::Missing(failure.message),
            Conflict => Self::Conflict(failure.message),
            RateLimited => {
                let seconds = failure.retry_after().unwrap_or(60);
                Self::TooMany(failure.message, seconds)
            }
            Unavailable => Self::Unavailable(failure.message),
            Internal | UnknownCommand => Self::Internal(failure.message),
        }
    }
}
