//! A JSON value with its place: reading it as something gives that, or an error that names the field.
//!
//! Invariant: a value of the wrong type is never repeated. It may stand where a secret belongs: only a number that
//! is out of a number's range, and a string that is none of the words known, is.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::Error;
use super::lines::Step;

/// Characters of a wrong value that a message repeats.
const MAX_SHOWN: usize = 40;

/// What is wrong with the value at a path; the caller adds the jobset and the line.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) path: Vec<Step>,
    pub(super) message: String,
}

impl Wrong {
    /// The error, once it is known that `path[skip..]` is what people know the field by.
    pub(super) fn into_error(
        self,
        skip: usize,
        line: Option<usize>,
        jobset: Option<String>,
    ) -> Error {
        let mut field = String::new();
        for step in self.path.iter().skip(skip) {
            match step {
                Step::Key(key) if field.is_empty() => field.push_str(&shown(key)),
                Step::Key(key) => {
                    field.push('.');
                    field.push_str(&shown(key));
                }
                Step::Index(index) => field.push_str(&format!("[{index}]")),
            }
        }
        let field = (!field.is_empty()).then_some(field);
        Error { file: None, line, jobset, field, message: self.message }
    }
}

/// A value and where it stands.
#[derive(Clone)]
pub(super) struct At<'a> {
    value: &'a Value,
    path: Vec<Step>,
}

impl<'a> At<'a> {
    pub(super) fn new(value: &'a Value, path: Vec<Step>) -> Self {
        Self { value, path }
    }

    pub(super) fn wrong(&self, message: impl Into<String>) -> Wrong {
        Wrong { path: self.path.clone(), message: message.into() }
    }

    fn expected(&self, what: &str) -> Wrong {
        let found = match self.value {
            Value::Null => "null",
            Value::Bool(_) => "a truth value",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        };
        self.wrong(format!("expected {what}, found {found}"))
    }

    /// A string without control characters, not empty.
    pub(super) fn text(&self) -> Result<&'a str, Wrong> {
        let text = self.any_text()?;
        if text.is_empty() {
            return Err(self.wrong("must not be empty"));
        }
        if text.chars().any(char::is_control) {
            return Err(self.wrong("must not contain control characters"));
        }
        Ok(text)
    }

    /// A string, of whatever characters but NUL, which no program can be given.
    pub(super) fn any_text(&self) -> Result<&'a str, Wrong> {
        let text = self.value.as_str().ok_or_else(|| self.expected("a string"))?;
        if text.contains('\0') {
            return Err(self.wrong("must not contain a NUL character"));
        }
        Ok(text)
    }

    /// A string that `good` accepts; the message says that `what` was expected and repeats the string.
    pub(super) fn checked(
        &self,
        what: &str,
        good: impl FnOnce(&str) -> bool,
    ) -> Result<&'a str, Wrong> {
        let text = self.text()?;
        if good(text) {
            return Ok(text);
        }
        Err(self.wrong(format!("expected {what}, found {:?}", shown(text))))
    }

    /// As `checked`, for what may hold a secret: the string is not repeated.
    pub(super) fn checked_silently(
        &self,
        what: &str,
        good: impl FnOnce(&str) -> bool,
    ) -> Result<&'a str, Wrong> {
        let text = self.text()?;
        if good(text) { Ok(text) } else { Err(self.wrong(format!("expected {what}"))) }
    }

    pub(super) fn flag(&self) -> Result<bool, Wrong> {
        self.value.as_bool().ok_or_else(|| self.expected("true or false"))
    }

    pub(super) fn integer(&self, range: RangeInclusive<u64>) -> Result<u64, Wrong> {
        let what = format!("an integer from {} to {}", range.start(), range.end());
        match self.value {
            Value::Number(number) => number
                .as_u64()
                .filter(|number| range.contains(number))
                .ok_or_else(|| self.wrong(format!("expected {what}, found {number}"))),
            _ => Err(self.expected(&what)),
        }
    }

    pub(super) fn list(&self) -> Result<Vec<At<'a>>, Wrong> {
        let list = self.value.as_array().ok_or_else(|| self.expected("a list"))?;
        let inside = |(index, value)| {
            let mut path = self.path.clone();
            path.push(Step::Index(index));
            At { value, path }
        };
        Ok(list.iter().enumerate().map(inside).collect())
    }

    /// The members of an object with keys of any name.
    pub(super) fn members(&self) -> Result<Vec<(&'a str, At<'a>)>, Wrong> {
        let map = self.value.as_object().ok_or_else(|| self.expected("an object"))?;
        let inside = |(key, value): (&'a String, &'a Value)| {
            let mut path = self.path.clone();
            path.push(Step::Key(key.clone()));
            (key.as_str(), At { value, path })
        };
        Ok(map.iter().map(inside).collect())
    }

    pub(super) fn is_object(&self) -> bool {
        self.value.is_object()
    }

    /// An object with no other fields than these.
    pub(super) fn object(&self, known: &[&str]) -> Result<Fields<'a>, Wrong> {
        let map = self.value.as_object().ok_or_else(|| self.expected("an object"))?;
        if let Some(unknown) = map.keys().find(|key| !known.contains(&key.as_str())) {
            let mut path = self.path.clone();
            path.push(Step::Key(unknown.clone()));
            let message = format!("unknown field; there are {}", known.join(", "));
            return Err(Wrong { path, message });
        }
        Ok(Fields { map, path: self.path.clone() })
    }
}

/// An object and where it stands; a field that is `null` counts as absent.
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: Vec<Step>,
}

impl<'a> Fields<'a> {
    pub(super) fn get(&self, name: &str) -> Option<At<'a>> {
        let value = self.map.get(name).filter(|value| !value.is_null())?;
        let mut path = self.path.clone();
        path.push(Step::Key(name.to_owned()));
        Some(At { value, path })
    }

    pub(super) fn need(&self, name: &str) -> Result<At<'a>, Wrong> {
        self.get(name).ok_or_else(|| self.wrong(format!("the field {name:?} is missing")))
    }

    /// What `read` makes of a field, or the default when it is absent.
    pub(super) fn or<T>(
        &self,
        name: &str,
        default: T,
        read: impl FnOnce(At<'a>) -> Result<T, Wrong>,
    ) -> Result<T, Wrong> {
        self.get(name).map_or(Ok(default), read)
    }

    pub(super) fn wrong(&self, message: impl Into<String>) -> Wrong {
        Wrong { path: self.path.clone(), message: message.into() }
    }

    /// The only field that is there; `None` when there are none or several.
    pub(super) fn only(&self) -> Option<(&'a str, At<'a>)> {
        let mut keys = self.map.keys();
        let (key, None) = (keys.next()?, keys.next()) else { return None };
        Some((key, self.get(key)?))
    }
}

/// The beginning of a text, for a message.
pub(super) fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(MAX_SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}
