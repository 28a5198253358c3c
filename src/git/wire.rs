//! What parent and child say to each other: one JSON request, progress bytes, one JSON answer.
//!
//! Invariant: a progress byte is never the first of an answer, so the answer begins at the first `{`.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Error, Look, Places, Resolved};
use crate::model::spec::Reference;

/// Says that the child is not stuck.
pub(super) const PROGRESS: u8 = b'.';

/// Longest answer taken: thousands of references. A child that says more is broken.
pub(super) const ANSWER: usize = 4 << 20;

/// What the child is to do.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) places: Places,
    pub(super) look: Look,
    pub(super) silence: Duration,
}

/// What came of it.
pub(super) type Answer = Result<Vec<Result<Resolved, Error>>, Error>;

#[derive(Serialize, Deserialize)]
struct RequestView {
    url: String,
    references: Vec<ReferenceView>,
    mirrors: PathBuf,
    checkouts: PathBuf,
    silence_ms: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ReferenceView {
    Head,
    Branch(String),
    Tag(String),
    Commit(String),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum AnswerView {
    References(Vec<ResolvedView>),
    Error(String),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ResolvedView {
    Checkout { commit: String, tree: String, directory: PathBuf },
    Error(String),
}

pub(super) fn encode_request(request: &Request) -> Result<Vec<u8>, serde_json::Error> {
    let view = |reference: &Reference| match reference {
        Reference::Head => ReferenceView::Head,
        Reference::Branch(name) => ReferenceView::Branch(name.clone()),
        Reference::Tag(name) => ReferenceView::Tag(name.clone()),
        Reference::Commit(id) => ReferenceView::Commit(id.clone()),
    };
    serde_json::to_vec(&RequestView {
        url: request.look.url.clone(),
        references: request.look.references.iter().map(view).collect(),
        mirrors: request.places.mirrors.clone(),
        checkouts: request.places.checkouts.clone(),
        silence_ms: u64::try_from(request.silence.as_millis()).unwrap_or(u64::MAX),
    })
}

pub(super) fn decode_request(bytes: &[u8]) -> Result<Request, serde_json::Error> {
    let view: RequestView = serde_json::from_slice(bytes)?;
    let reference = |view| match view {
        ReferenceView::Head => Reference::Head,
        ReferenceView::Branch(name) => Reference::Branch(name),
        ReferenceView::Tag(name) => Reference::Tag(name),
        ReferenceView::Commit(id) => Reference::Commit(id),
    };
    Ok(Request {
        places: Places { mirrors: view.mirrors, checkouts: view.checkouts },
        look: Look {
            url: view.url,
            references: view.references.into_iter().map(reference).collect(),
        },
        silence: Duration::from_millis(view.silence_ms),
    })
}

pub(super) fn encode_answer(answer: Answer) -> Result<Vec<u8>, serde_json::Error> {
    let resolved = |result| match result {
        Ok(Resolved { commit, tree, directory }) => {
            ResolvedView::Checkout { commit, tree, directory }
        }
        Err(Error(text)) => ResolvedView::Error(text),
    };
    let view = match answer {
        Ok(references) => AnswerView::References(references.into_iter().map(resolved).collect()),
        Err(Error(text)) => AnswerView::Error(text),
    };
    let mut line = serde_json::to_vec(&view)?;
    line.push(b'\n');
    Ok(line)
}

pub(super) fn decode_answer(bytes: &[u8]) -> Result<Answer, serde_json::Error> {
    let resolved = |view| match view {
        ResolvedView::Checkout { commit, tree, directory } => {
            Ok(Resolved { commit, tree, directory })
        }
        ResolvedView::Error(text) => Err(Error(text)),
    };
    Ok(match serde_json::from_slice(bytes)? {
        AnswerView::References(views) => Ok(views.into_iter().map(resolved).collect()),
        AnswerView::Error(text) => Err(Error(text)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_answers_come_back_the_same() {
        let references = vec![
            Reference::Head,
            Reference::Branch("b".into()),
            Reference::Tag("t".into()),
            Reference::Commit("c".into()),
        ];
        let request = Request {
            places: Places { mirrors: "/m".into(), checkouts: "/c".into() },
            look: Look { url: "https://h/x".into(), references },
            silence: Duration::from_millis(1500),
        };
        let again = decode_request(&encode_request(&request).unwrap()).unwrap();
        assert_eq!(format!("{request:?}"), format!("{again:?}"));

        let resolved = Resolved { commit: "c".into(), tree: "t".into(), directory: "/d".into() };
        for answer in [Ok(vec![Ok(resolved), Err(Error("no".into()))]), Err(Error("never".into()))]
        {
            let line = encode_answer(answer.clone()).unwrap();
            assert_eq!(line[0], b'{');
            assert_eq!(decode_answer(&line).unwrap(), answer);
            assert!(decode_answer(&line[..line.len() / 2]).is_err());
        }
        assert!(decode_answer(b"garbage").is_err());
        assert!(decode_request(b"{}").is_err());
    }
}
