//! The channels of an evaluation at its commits, as `guix time-machine -C` reads them.

use std::fmt::Write;

use crate::db::web::evaluations;
use crate::db::{self, jobsets};
use crate::model::evaluation::{Evaluation, EvaluationId};
use crate::model::spec::{Reference, Specification, printable_url};
use crate::spec::json::parse;
use crate::web::context::Context;
use crate::web::failure::Failure;
use crate::web::request::Request;
use crate::web::response::Response;
use crate::web::route::Captures;

/// Of the jobset's latest evaluation that succeeded.
pub(super) fn latest(
    context: &mut Context,
    request: &Request,
    _: &Captures,
) -> Result<Response, Failure> {
    let missing = || Failure::missing(format!("Resource not found: {}", request.target));
    let jobset = request.query.get("spec").ok_or_else(missing)?;
    let found = evaluations::latest_succeeded(context.books()?, jobset)?;
    answer(context, &found.ok_or_else(missing)?)
}

pub(super) fn of_evaluation(
    context: &mut Context,
    request: &Request,
    captures: &Captures,
) -> Result<Response, Failure> {
    let missing = || Failure::missing(format!("Resource not found: {}", request.target));
    let id = captures.id("id").map(EvaluationId).ok_or_else(missing)?;
    let found = db::evaluations::get(context.books()?, id)?;
    answer(context, &found.ok_or_else(missing)?)
}

fn answer(context: &mut Context, evaluation: &Evaluation) -> Result<Response, Failure> {
    Ok(Response::text(200, text(context, evaluation)?))
}

/// The channels of an evaluation, for people to copy.
pub(in crate::web) fn text(
    context: &mut Context,
    evaluation: &Evaluation,
) -> Result<String, Failure> {
    let jobset = jobsets::get(context.books()?, &evaluation.jobset)?;
    // The specification may have changed since: branches and introductions of channels it has no more are left out.
    let specification = jobset
        .and_then(|jobset| parse(&jobset.specification).ok())
        .and_then(|mut specifications| specifications.pop());
    Ok(scheme(evaluation, specification.as_ref()))
}

/// One list of channels and nothing else: Guix evaluates it in a sandbox.
fn scheme(evaluation: &Evaluation, specification: Option<&Specification>) -> String {
    let mut text = String::from("(list");
    for checkout in &evaluation.checkouts {
        let known = specification.and_then(|specification| {
            specification.channels.iter().find(|channel| channel.name == checkout.channel)
        });
        let _ = write!(
            text,
            " (channel\n        (name '{})\n        (url {})",
            symbol(&checkout.channel),
            string(&printable_url(&checkout.url))
        );
        if let Some(Reference::Branch(branch)) = known.map(|channel| &channel.reference) {
            let _ = write!(text, "\n        (branch {})", string(branch));
        }
        let _ = write!(text, "\n        (commit {})", string(&checkout.commit));
        if let Some(introduction) = known.and_then(|channel| channel.introduction.as_ref()) {
            let _ = write!(
                text,
                "\n        (introduction\n          (make-channel-introduction\n            {}\n            \
                 (openpgp-fingerprint\n              {})))",
                string(&introduction.commit),
                string(&introduction.signer)
            );
        }
        text.push_str(")\n     ");
    }
    format!("{})\n", text.trim_end())
}

fn string(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// A name as Scheme reads it: one that is not plain is put into braces.
fn symbol(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
    if name.chars().all(plain) && name.starts_with(|c: char| c.is_ascii_alphabetic()) {
        return name.to_owned();
    }
    format!("#{{{}}}#", name.replace('\\', "\\x5c;").replace('}', "\\x7d;"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_hold_stays_inside_of_them() {
        assert_eq!(string(r#"a"b\c"#), r#""a\"b\\c""#);
        assert_eq!((symbol("guix"), symbol("a(b")), ("guix".to_owned(), "#{a(b}#".to_owned()));
    }
}
