//! JSON texts in which no object has a key twice: of two values one would be ignored without a word.
//!
//! Invariant: no message holds a value from the text.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use serde_json::{Map, Value};

use super::Error;
use super::value::shown;

pub(super) fn parse(text: &str) -> Result<Value, Error> {
    let value = serde_json::from_str::<Unique>(text);
    value.map(|Unique(value)| value).map_err(|error| wrong(&error))
}

/// What is wrong with the text; never what it holds.
fn wrong(error: &serde_json::Error) -> Error {
    // The message ends in the position, which is told apart.
    let text = error.to_string();
    let end = text.rfind(" at line ").unwrap_or(text.len());
    let line = (error.line() > 0).then_some(error.line());
    let message = match error.classify() {
        Category::Data => text[..end].to_owned(),
        Category::Io | Category::Syntax | Category::Eof => {
            format!("not JSON: {}, column {}", &text[..end], error.column())
        }
    };
    Error { line, ..Error::plain(message) }
}

/// As serde_json's own reading of a `Value`, but for repeated keys.
struct Unique(Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reading).map(Self)
    }
}

struct Reading;

impl<'de> Visitor<'de> for Reading {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Unique(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = members.next_key::<String>()? {
            if map.contains_key(&key) {
                let key = shown(&key);
                return Err(de::Error::custom(format!("the field {key:?} is given twice")));
            }
            let Unique(value) = members.next_value()?;
            map.insert(key, value);
        }
        Ok(map.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_read_as_it_stands() {
        let text = r#"{"a": [null, true, 1, -1, 1.5, "x"], "b": {"a": {}}}"#;
        assert_eq!(parse(text).unwrap().to_string(), text.replace(": ", ":").replace(", ", ","));
    }

    #[test]
    fn a_repeated_key_is_an_error_that_tells_its_line() {
        let error = parse("[{\"a\": 1,\n \"b\": {\"c\": 2,\n\"c\": 3}}]").unwrap_err();
        assert_eq!(
            (error.line, error.message.as_str()),
            (Some(3), "the field \"c\" is given twice")
        );
        let error = parse("{\"a\": 1,").unwrap_err();
        assert!(error.message.starts_with("not JSON: EOF"), "{}", error.message);
    }
}
