//! Builds whose derivation has gone from the store: an evaluator has to make it again.
//!
//! Invariant: the same commits are evaluated again once on this account, and never while that would put an older
//! evaluation above a newer one.

use rusqlite::OptionalExtension;

use super::change::Work;
use crate::db::Error;
use crate::db::promises::{self, Promise};
use crate::model::build::BuildId;
use crate::model::evaluation::EvaluationId;
use crate::model::spec::JobsetName;

/// Promises that the evaluation is repeated that a job for the build comes from: the newest of an active jobset, if it is
/// over and the only one of its commits that has that job.
pub(super) fn repeat(work: &mut Work<'_, '_>, id: BuildId) -> Result<Option<EvaluationId>, Error> {
    let found: Option<(EvaluationId, JobsetName)> = work
        .conn()
        .prepare_cached(
            "SELECT e.id, e.jobset FROM (SELECT DISTINCT evaluation FROM jobs WHERE build = ?1) j
             CROSS JOIN evaluations e ON e.id = j.evaluation
             CROSS JOIN jobsets s ON s.name = e.jobset
             WHERE s.active = 1 AND e.status <> -1 AND e.interrupted = 0
               AND e.id = (SELECT max(n.id) FROM evaluations n WHERE n.jobset = e.jobset)
               AND NOT EXISTS (SELECT 1 FROM retries r WHERE r.evaluation = e.id)
               AND NOT EXISTS (
                   SELECT 1 FROM jobs o CROSS JOIN evaluations b ON b.id = o.evaluation
                   WHERE o.build = ?1 AND b.id < e.id AND b.jobset = e.jobset
                     AND b.fingerprint = e.fingerprint)
             ORDER BY e.id DESC LIMIT 1",
        )?
        .query_row([id], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((evaluation, jobset)) = found else { return Ok(None) };
    promises::make(work.tx, &jobset, Promise::Retry(evaluation))?;
    Ok(Some(evaluation))
}

/// Whether an evaluation that may make the derivation again is under way or promised.
pub(super) fn is_expected(work: &Work<'_, '_>, id: BuildId) -> Result<bool, Error> {
    Ok(work
        .conn()
        .prepare_cached(
            "SELECT EXISTS (
                 SELECT 1 FROM (SELECT DISTINCT e.jobset FROM jobs j
                                CROSS JOIN evaluations e ON e.id = j.evaluation WHERE j.build = ?1) own
                 CROSS JOIN evaluations e ON e.jobset = own.jobset
                 WHERE e.status = -1 OR e.interrupted <> 0 AND e.id = (
                           SELECT max(n.id) FROM evaluations n WHERE n.jobset = e.jobset)
                       OR EXISTS (SELECT 1 FROM retries r WHERE r.evaluation = e.id))",
        )?
        .query_row([id], |row| row.get(0))?)
}
