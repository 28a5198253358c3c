//! Who asks, and what they may: checked in one place, before any handler runs.

use super::context::Context;
use super::failure::Failure;
use super::request::Request;
use crate::model::spec::JobsetName;

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

/// What a token may do; each may do what those before it may, but a trigger cannot read a private installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    Trigger,
    Viewer,
    Operator,
    Editor,
    Admin,
}

/// Who asks, if that is known and the route is for them; otherwise why not.
pub(super) fn check(
    context: &mut Context,
    request: &Request,
    access: Access,
) -> Result<Option<Identity>, Failure> {
    let _ = (context, request);
    if access.is_read() { Ok(None) } else { Err(Failure::Unknown) }
}
