//! A jobset as the database keeps it.

use super::evaluation::EvaluationId;
use super::spec::JobsetName;
use super::time::Time;

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Jobset {
    pub(crate) name: JobsetName,
    /// The specification as JSON text, secrets included.
    pub(crate) specification: String,
    pub(crate) active: bool,
    pub(crate) last_evaluation: Option<EvaluationId>,
    pub(crate) last_checked: Option<Time>,
    /// Why the last fetch or evaluation did not work.
    pub(crate) error: Option<String>,
}
