//! A whole specification as JSON, in one field of a form: every field there is, in the words of the manual.

use serde_json::Value;

use super::{Problem, keep, one};
use crate::model::spec::Specification;
use crate::spec;
use crate::web::request::Form;

/// The form's field.
pub(super) const FIELD: &str = "json";

/// All of a specification but what is secret, for people to edit.
pub(super) fn write(specification: &Specification, active: bool) -> String {
    let mut value: Value =
        serde_json::from_str(&spec::json::print(specification)).unwrap_or_default();
    value["active"] = Value::from(active);
    keep::hide(&mut value);
    format!("{value:#}")
}

/// The specification that is typed in place of `old`, and whether it says if the jobset is active.
pub(super) fn read(
    text: &str,
    old: Option<&Specification>,
) -> Result<(Specification, bool), Problem> {
    let wrong = |message: String| Problem::new(FIELD, message);
    // As it stands, so that what is wrong is told with its line.
    let told = |error: spec::Error| wrong(error.to_string());
    let typed = spec::json::parse(text).map_err(told)?;
    let mut value: Value = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    if !value.is_object() {
        return Err(wrong("expected one specification, an object".to_owned()));
    }
    if let (Some(old), Some(new)) = (old, typed.first())
        && old.name != new.name
    {
        return Err(wrong(format!("name: expected {}: jobsets are not renamed", old.name)));
    }
    keep::secrets(&mut value, old);
    let specification = one(&value).map_err(told)?;
    Ok((specification, value.get("active").is_some_and(Value::is_boolean)))
}

/// What was typed, without what is secret in it if it can be read.
pub(super) fn again(form: &Form) -> Option<String> {
    let text = form.get(FIELD)?;
    match serde_json::from_str::<Value>(text) {
        Ok(mut value) => {
            let typed = value.clone();
            keep::hide(&mut value);
            // As it was typed, if nothing had to be taken out.
            Some(if value == typed { text.to_owned() } else { format!("{value:#}") })
        }
        // Whoever typed it has yet to find the mistake.
        Err(_) => Some(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn specification() -> Specification {
        let value = json!({
            "name": "full", "command": ["./jobs", "a b"], "priority": 3, "supersede": true,
            "channels": [{ "name": "c", "url": "https://me:hush@h.org/c.git", "commit": "0".repeat(40) }],
            "notifications": [
                { "type": "email", "to": "c@d", "server": "smtp://u:hush@mail" },
                { "type": "webhook", "url": "https://hook/x?key=hush", "secret": "hush" },
            ],
        });
        spec::json::parse(&value.to_string()).unwrap().remove(0)
    }

    #[test]
    fn what_is_shown_means_what_it_was_and_shows_no_secret() {
        let old = specification();
        let text = write(&old, false);
        assert!(!text.contains("hush"), "{text}");
        let (new, told) = read(&text, Some(&old)).unwrap();
        assert_eq!((new, told), (Specification { active: false, ..old }, true));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let old = specification();
        let problem = |text: &str| read(text, Some(&old)).unwrap_err().message;
        let text = write(&old, true);
        let bad = problem(&text.replace("\"priority\": 3", "\"priority\": 30"));
        assert!(
            bad.contains("priority") && bad.contains("line") && bad.contains("0 to 9"),
            "{bad}"
        );
        let bad = problem(&text.replace("\"commit\"", "\"comit\""));
        assert!(bad.contains("channels[0]") && bad.contains("comit"), "{bad}");
        assert!(problem(&text.replace("\"full\"", "\"other\"")).contains("not renamed"));
        assert!(problem("[]").contains("an object"));
        assert!(!problem("{").is_empty());
    }

    #[test]
    fn what_was_typed_is_shown_again_without_secrets() {
        let again = |text: &str| again(&Form::new(vec![(FIELD.to_owned(), text.to_owned())]));
        assert_eq!(again("{ \"name\":  1 }").unwrap(), "{ \"name\":  1 }");
        let shown = again(r#"{"notifications":[{"type":"webhook","secret":"hush"}]}"#).unwrap();
        assert!(!shown.contains("hush") && shown.contains("webhook"), "{shown}");
        assert_eq!(again("{").unwrap(), "{");
    }
}
