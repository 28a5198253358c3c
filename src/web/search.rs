//! What people and programs type to find builds, read word by word.
//!
//! `spec:`, `system:`, `job:`, `eval:` and `status:` narrow the search, `-WORD` takes out; what else has a colon is
//! passed over, as Cuirass does. Everything that is said must hold.

use crate::db::web::search::{Search, Sought};
use crate::model::build::BuildId;
use crate::model::evaluation::EvaluationId;
use crate::model::spec::JobsetName;
use crate::model::status::BuildStatus;
use crate::web::failure::Failure;

/// Words that are heeded: each is one more condition on every build.
const WORDS: usize = 20;

/// `None` if nothing is asked for; `Err` with the word that cannot be meant.
pub(super) fn parse(text: &str) -> Result<Option<Search>, String> {
    let mut search = Search::default();
    let mut said = false;
    for word in text.split_whitespace().take(WORDS) {
        said = true;
        let wrong = || word.to_owned();
        match word.split_once(':') {
            Some(("spec", name)) => {
                search.jobset = Some(JobsetName::new(name).ok_or_else(wrong)?);
            }
            Some(("system", name)) => search.system = Some(name.to_owned()),
            Some(("job", name)) => search.job = Some(name.to_owned()),
            Some(("eval", id)) => {
                search.evaluation = Some(EvaluationId(id.parse().map_err(|_| wrong())?));
            }
            Some(("status", status)) => search.status = sought(status),
            Some(_) => {}
            None => match word.strip_prefix('-').filter(|rest| !rest.is_empty()) {
                Some(rest) => search.without.push(rest.to_lowercase()),
                // Per cent signs were wild cards once.
                None => search.words.push(word.replace('%', "")),
            },
        }
    }
    search.words.retain(|word| !word.is_empty());
    Ok(said.then_some(search))
}

/// Another word means any status.
fn sought(word: &str) -> Option<Sought> {
    Some(match word {
        "success" | "succeeded" => Sought::Status(BuildStatus::Succeeded),
        "failed" => Sought::Status(BuildStatus::Failed),
        "failed-dependency" => Sought::Status(BuildStatus::FailedDependency),
        "failed-other" | "aborted" => Sought::Status(BuildStatus::Aborted),
        "canceled" => Sought::Status(BuildStatus::Canceled),
        "running" => Sought::Status(BuildStatus::Started),
        "pending" => Sought::Pending,
        "newly-failed" => Sought::NewlyFailed,
        _ => return None,
    })
}

/// What a list was told to begin after: `EVALUATION-BUILD`.
pub(super) fn position(text: &str) -> Result<(EvaluationId, BuildId), Failure> {
    let numbers = text.split_once('-').and_then(|(evaluation, build)| {
        Some((EvaluationId(evaluation.parse().ok()?), BuildId(build.parse().ok()?)))
    });
    numbers.ok_or_else(|| Failure::bad("before must be EVALUATION-BUILD, two numbers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_word_by_word() {
        let text = "spec:a system:s status:success Frob% two -Doc eval:7 job:j x:y %";
        let found = parse(text).unwrap().unwrap();
        assert_eq!(found.jobset, JobsetName::new("a"));
        assert_eq!((found.system.as_deref(), found.job.as_deref()), (Some("s"), Some("j")));
        assert_eq!(found.status, Some(Sought::Status(BuildStatus::Succeeded)));
        assert_eq!(found.words, ["Frob", "two"]);
        assert_eq!(found.without, ["doc"]);
        assert_eq!(found.evaluation, Some(EvaluationId(7)));
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        assert_eq!(parse("  "), Ok(None));
        assert_eq!(parse("good spec:a:b"), Err("spec:a:b".to_owned()));
        assert_eq!(parse("eval:x"), Err("eval:x".to_owned()));
        assert_eq!(parse("status:any").unwrap().unwrap(), Search::default());
    }
}
