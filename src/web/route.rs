//! The one table of routes: which method on which path needs what access, and who answers.

use super::access::Access;
use super::context::Context;
use super::failure::Failure;
use super::request::{Method, Request};
use super::response::Response;
use super::{api, change, feed, file, live, page};

/// For whom an answer is, so that errors are told in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Programs: errors are JSON.
    Api,
    /// People: errors are pages.
    Page,
    /// Either: errors are a line of text.
    Text,
}

pub(super) struct Route {
    pub(super) method: Method,
    /// Components; `:NAME` matches any one, a last `*` any number of them.
    pub(super) path: &'static str,
    pub(super) access: Access,
    pub(super) kind: Kind,
    pub(super) answer: Answer,
}

pub(super) type Answer = fn(&mut Context, &Request, &Captures) -> Result<Response, Failure>;

/// What the variable components of a path were.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Captures(Vec<(&'static str, String)>);

impl Captures {
    /// A component that the route's path names; empty if it does not.
    pub(super) fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value)
    }

    /// One that is a number of ours.
    pub(super) fn id(&self, name: &str) -> Option<i64> {
        self.get(name).parse().ok().filter(|id| *id > 0)
    }
}

/// Every route, those with fixed components before those with variable ones in their place.
pub(super) fn all() -> impl Iterator<Item = &'static Route> {
    let all = [
        api::ROUTES,
        change::ROUTES,
        feed::ROUTES,
        live::ROUTES,
        file::ROUTES,
        page::ROUTES,
        #[cfg(test)]
        super::serve::tests::ROUTES,
    ];
    all.into_iter().flatten()
}

/// What a request's method and path lead to.
pub(super) enum Found {
    Route(&'static Route, Captures),
    /// The path exists, but not with this method.
    Method(Kind, Vec<&'static str>),
    Nothing,
}

pub(super) fn find(method: Method, path: &[String]) -> Found {
    let wanted = if method == Method::Head { Method::Get } else { method };
    let mut best: Option<(&'static Route, Captures)> = None;
    let (mut allowed, mut kind) = (Vec::new(), Kind::Page);
    for route in all() {
        let Some(captures) = matches(route.path, path) else { continue };
        if route.method != wanted {
            kind = route.kind;
            if route.method == Method::Get {
                allowed.push(Method::Head.word());
            }
            allowed.push(route.method.word());
            continue;
        }
        // The more is fixed, the better it fits.
        if best.as_ref().is_none_or(|(_, found)| captures.0.len() < found.0.len()) {
            best = Some((route, captures));
        }
    }
    match best {
        Some((route, captures)) => Found::Route(route, captures),
        None if !allowed.is_empty() => {
            allowed.sort_unstable();
            allowed.dedup();
            Found::Method(kind, allowed)
        }
        None => Found::Nothing,
    }
}

fn matches(pattern: &'static str, path: &[String]) -> Option<Captures> {
    let (mut captures, mut rest) = (Captures::default(), path.iter());
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        if part == "*" {
            return Some(captures);
        }
        let component = rest.next()?;
        match part.strip_prefix(':') {
            Some(name) => captures.0.push((name, component.clone())),
            None if part == component => {}
            None => return None,
        }
    }
    rest.next().is_none().then_some(captures)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::request::components;

    #[test]
    fn paths_are_matched_by_component() {
        let captures = matches("/build/:id/log", &components("/build/7/log")).unwrap();
        assert_eq!((captures.id("id"), captures.get("other")), (Some(7), ""));
        assert_eq!(matches("/build/:id", &components("/build/7/log")), None);
        assert_eq!(matches("/build/:id/log", &components("/build/7")), None);
        assert!(matches("/jobsets/*", &components("/jobsets/a/b")).is_some());
        assert!(matches("/jobsets/*", &components("/jobsets")).is_some());
        let captures = matches("/build/:id", &components("/build/42xx")).unwrap();
        assert_eq!(captures.id("id"), None);
    }

    #[test]
    fn nothing_that_changes_is_a_get_and_nothing_is_twice() {
        let mut seen = Vec::new();
        for route in all() {
            let key = (route.method.word(), route.path);
            assert!(!seen.contains(&key), "{key:?} is there twice");
            seen.push(key);
            // What only some may see is no change.
            let shown = route.access == Access::Administer && route.path.ends_with("/audit");
            assert!(route.method.is_unsafe() || route.access.is_read() || shown, "{key:?}");
        }
    }
}
