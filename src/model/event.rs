//! What happened, as subscribers are told.

use super::build::BuildId;
use super::evaluation::EvaluationId;
use super::spec::JobsetName;
use super::time::Time;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// Grows for ever, across restarts too.
    pub(crate) id: i64,
    pub(crate) time: Time,
    pub(crate) what: What,
    pub(crate) jobset: Option<JobsetName>,
    pub(crate) evaluation: Option<EvaluationId>,
    pub(crate) build: Option<BuildId>,
    /// The word of the status it has now.
    pub(crate) status: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    JobsetChanged,
    EvaluationStarted,
    EvaluationEnded,
    BuildsQueued,
    BuildStarted,
    BuildEnded,
    WorkerJoined,
    WorkerLeft,
}

impl What {
    pub(crate) const ALL: &[Self] = &[
        Self::JobsetChanged,
        Self::EvaluationStarted,
        Self::EvaluationEnded,
        Self::BuildsQueued,
        Self::BuildStarted,
        Self::BuildEnded,
        Self::WorkerJoined,
        Self::WorkerLeft,
    ];

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::JobsetChanged => "jobset-changed",
            Self::EvaluationStarted => "evaluation-started",
            Self::EvaluationEnded => "evaluation-ended",
            Self::BuildsQueued => "builds-queued",
            Self::BuildStarted => "build-started",
            Self::BuildEnded => "build-ended",
            Self::WorkerJoined => "worker-joined",
            Self::WorkerLeft => "worker-left",
        }
    }

    pub(crate) fn from_word(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|w| w.word() == word)
    }
}
