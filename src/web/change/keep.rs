//! What is never shown and must not be lost: user info in URLs, the secrets of webhooks.
//!
//! Whoever edits a specification sees URLs without what is secret of them, and no secrets. What comes back as it was
//! shown means what it was shown for. A URL that was changed takes nothing along: or somebody could have another
//! server be sent what is secret.

use serde_json::Value;

use crate::model::spec::{Notification, Specification, printable_url};

/// Puts what `old` holds into a specification that was made from what was shown of it. A webhook's secret that is
/// absent is the old one of the same URL, and one that is empty is none.
pub(super) fn secrets(new: &mut Value, old: Option<&Specification>) {
    if let Some(channels) = new.get_mut("channels").and_then(Value::as_array_mut) {
        for channel in channels {
            let name = channel["name"].as_str().unwrap_or_default().to_owned();
            let known = old.into_iter().flat_map(|old| &old.channels);
            // Two channels may differ in nothing but their user info.
            let (same, others): (Vec<_>, Vec<_>) = known.partition(|channel| channel.name == name);
            restore(channel, "url", same.iter().chain(&others).map(|channel| channel.url.as_str()));
        }
    }
    let Some(notifications) = new.get_mut("notifications").and_then(Value::as_array_mut) else {
        return;
    };
    let known = old.map(|old| old.notifications.as_slice()).unwrap_or_default();
    for notification in notifications {
        let servers = known.iter().filter_map(|old| match old {
            Notification::Email { server, .. } => Some(server.as_str()),
            Notification::Mastodon | Notification::Webhook { .. } => None,
        });
        restore(notification, "server", servers);
        restore(notification, "url", webhooks(known).map(|(url, _)| url));
        if notification["type"] == "webhook" {
            restore_secret(notification, known);
        }
    }
}

/// Takes out what is not shown, so that [`secrets`] can put it back.
pub(super) fn hide(value: &mut Value) {
    for (list, fields) in [("channels", &["url"][..]), ("notifications", &["server", "url"])] {
        for object in value.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(object) = object.as_object_mut() else { continue };
            object.remove("secret");
            for field in fields {
                if let Some(Value::String(url)) = object.get_mut(*field) {
                    *url = printable_url(url);
                }
            }
        }
    }
}

fn webhooks(known: &[Notification]) -> impl Iterator<Item = (&str, Option<&str>)> {
    known.iter().filter_map(|old| match old {
        Notification::Webhook { url, secret } => Some((url.as_str(), secret.as_deref())),
        Notification::Email { .. } | Notification::Mastodon => None,
    })
}

/// Replaces a URL that is as one of these is shown by that one.
fn restore<'a>(object: &mut Value, field: &str, mut known: impl Iterator<Item = &'a str>) {
    let Some(shown) = object.get(field).and_then(Value::as_str) else { return };
    if let Some(whole) = known.find(|whole| printable_url(whole) == shown) {
        object[field] = Value::from(whole);
    }
}

fn restore_secret(notification: &mut Value, known: &[Notification]) {
    let Some(object) = notification.as_object_mut() else { return };
    match object.get("secret") {
        None | Some(Value::Null) => {
            let url = object.get("url").and_then(Value::as_str);
            let old = webhooks(known).find(|(known, _)| Some(*known) == url);
            if let Some(secret) = old.and_then(|(_, secret)| secret) {
                object.insert("secret".to_owned(), Value::from(secret));
            }
        }
        Some(Value::String(text)) if text.is_empty() => {
            object.remove("secret");
        }
        Some(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::spec;

    fn old() -> Specification {
        let text = json!({
            "name": "a", "command": ["x"],
            "channels": [
                { "name": "one", "url": "https://me:first@h.org/r" },
                { "name": "two", "url": "https://me:second@h.org/r" },
            ],
            "notifications": [
                { "type": "email", "to": "a@b", "server": "smtp://u:mailsecret@mail" },
                { "type": "webhook", "url": "https://hook/x?token=t", "secret": "hush" },
            ],
        });
        spec::json::parse(&text.to_string()).unwrap().remove(0)
    }

    #[test]
    fn what_comes_back_as_it_was_shown_is_as_it_was() {
        let mut new = json!({
            "channels": [
                { "name": "two", "url": "https://h.org/r" },
                { "name": "one", "url": "https://h.org/r" },
            ],
            "notifications": [
                { "type": "email", "to": "a@b", "server": "smtp://mail" },
                { "type": "webhook", "url": "https://hook/x" },
            ],
        });
        secrets(&mut new, Some(&old()));
        assert_eq!(new["channels"][0]["url"], "https://me:second@h.org/r");
        assert_eq!(new["channels"][1]["url"], "https://me:first@h.org/r");
        assert_eq!(new["notifications"][0]["server"], "smtp://u:mailsecret@mail");
        assert_eq!(new["notifications"][1]["url"], "https://hook/x?token=t");
        assert_eq!(new["notifications"][1]["secret"], "hush");
    }

    #[test]
    fn what_was_changed_takes_no_secret_along() {
        let mut new = json!({
            "channels": [{ "name": "one", "url": "https://evil.example/r" }],
            "notifications": [
                { "type": "email", "to": "a@b", "server": "smtp://evil.example" },
                { "type": "webhook", "url": "https://evil.example/x" },
                { "type": "webhook", "url": "https://hook/x", "secret": "" },
                { "type": "webhook", "url": "https://hook/x", "secret": "new" },
            ],
        });
        secrets(&mut new, Some(&old()));
        assert!(!new.to_string().contains("mailsecret") && !new.to_string().contains("first"));
        assert_eq!(new["notifications"][1].get("secret"), None);
        assert_eq!(new["notifications"][2].get("secret"), None);
        assert_eq!(new["notifications"][3]["secret"], "new");
        secrets(&mut new, None);
    }
}
