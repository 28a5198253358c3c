//! Forms as Cuirass's scripts send them, and as ours do.

use super::*;
use crate::spec;

fn form(fields: &[(&str, &str)]) -> Form {
    Form::new(
        fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
    )
}

fn specification(value: &Value) -> Specification {
    spec::json::parse(&value.to_string()).unwrap().remove(0)
}

fn full() -> Value {
    let id = "0123456789012345678901234567890123456789";
    json!({
        "name": "full", "evaluator": "guix",
        "build": { "custom": ["(list 1, 2)", "'foo", "\"a,b\""] },
        "systems": ["x86_64-linux", "weird-system"],
        "period": 60, "priority": 3, "supersede": true, "active": true, "evaluation-timeout": 99,
        "channels": [
            { "name": "guix", "url": "https://me:secret@h.org/guix.git", "branch": "master",
              "introduction": { "commit": id, "signer": id } },
            { "name": "pinned", "url": "https://h.org/p", "commit": id },
            { "name": "tagged", "url": "git@h.org:t", "tag": "v1" },
        ],
        "build-outputs": [{ "job": "x*", "type": "archive", "output": "doc", "path": "a/b" }],
        "notifications": [
            { "type": "email", "from": "a@b", "to": "c@d", "server": "smtp://u:secret@mail" },
            { "type": "mastodon" },
            { "type": "webhook", "url": "https://hook/?key=secret", "secret": "secret" },
        ],
    })
}

#[test]
fn what_is_not_changed_stays_and_no_secret_is_in_the_form() {
    for evaluator in [
        json!({ "evaluator": "guix", "build": { "custom": ["(list 1, 2)", "'foo", "\"a,b\""] } }),
        json!({ "evaluator": "guix", "build": { "channels": ["guix", "pinned"] } }),
        json!({ "evaluator": "guix", "build": { "packages": ["a", "b@1"] } }),
        json!({ "evaluator": "guix", "build": "system-tests" }),
        json!({ "evaluator": "nix", "build": { "file": "release.nix", "attribute": "a.b" } }),
        json!({ "evaluator": "nix", "build": { "flake": "hydraJobs" } }),
        json!({ "evaluator": "command", "command": ["./jobs", "a b", "it's", ""] }),
    ] {
        let mut value = full();
        for (field, part) in evaluator.as_object().unwrap() {
            value[field] = part.clone();
        }
        let old = specification(&value);
        let form = write(&old, true);
        assert!(form.iter().all(|(_, value)| !value.contains("secret")), "{form:?}");
        assert_eq!(read(&form, Some(&old)).unwrap(), old);
    }
}

#[test]
fn a_form_of_cuirass_loses_nothing() {
    let mut value = full();
    value["build"] = json!("all");
    let old = specification(&value);
    let sent = form(&[
        ("name", "full"),
        ("build", "packages"),
        ("param-input", "hello, world"),
        ("channel-name", "guix"),
        ("channel-url", "https://h.org/guix.git"),
        ("channel-branch", "next"),
        ("channel-name", "pinned"),
        ("channel-url", "https://h.org/p"),
        ("channel-branch", "main"),
        ("period", "0"),
        ("priority", "9"),
        ("x86_64-linux", "on"),
    ]);
    let new = read(&sent, Some(&old)).unwrap();
    assert_eq!(new.channels[0].reference, Reference::Branch("next".to_owned()));
    assert_eq!(new.channels[0].introduction, old.channels[0].introduction);
    assert_eq!(new.channels[0].url, old.channels[0].url);
    assert_eq!(new.channels[1], old.channels[1]);
    assert_eq!(new.channels.len(), 2);
    let packages = GuixSubset::Packages(vec!["hello".to_owned(), "world".to_owned()]);
    assert_eq!(new.evaluator, Evaluator::Guix(packages));
    assert_eq!(new.systems, ["x86_64-linux"]);
    assert_eq!(new.build_outputs, old.build_outputs);
    assert_eq!(new.notifications, old.notifications);
    assert!(new.supersede && new.active);
    assert_eq!(new.evaluation_timeout, old.evaluation_timeout);
}

#[test]
fn rows_can_be_removed_and_secrets_forgotten() {
    let old = specification(&full());
    let mut fields: Vec<(String, String)> = write(&old, true)
        .iter()
        .filter(|(name, _)| !name.starts_with("output-"))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    fields.push(("output-job".to_owned(), String::new()));
    fields.push(("notification-forget".to_owned(), "2".to_owned()));
    fields.push(("channel-remove".to_owned(), "1".to_owned()));
    let new = read(&Form::new(fields.clone()), Some(&old)).unwrap();
    assert!(new.build_outputs.is_empty());
    let names: Vec<&str> = new.channels.iter().map(|channel| channel.name.as_str()).collect();
    assert_eq!(names, ["guix", "tagged"]);
    // Rows keep their numbers, whichever are gone.
    for row in ["0", "1"] {
        let mut fields = fields.clone();
        fields.push(("notification-remove".to_owned(), row.to_owned()));
        let left = read(&Form::new(fields), Some(&old)).unwrap().notifications;
        assert_eq!((left.len(), &left[1]), (2, &new.notifications[2]));
    }
    let url = "https://hook/?key=secret".to_owned();
    assert_eq!(new.notifications[2], Notification::Webhook { url, secret: None });
}

#[test]
fn mistakes_are_told_beside_their_fields() {
    let base = [("name", "a"), ("build", "all"), ("x86_64-linux", "on")];
    let problem = |more: &[(&str, &str)]| {
        let mut fields: Vec<_> = base
            .iter()
            .filter(|(name, _)| !more.iter().any(|(other, _)| name == other))
            .copied()
            .collect();
        fields.extend(more);
        let problems = read(&form(&fields), None).unwrap_err();
        (problems[0].field.clone(), problems[0].row)
    };
    let channel = |url| [("channel-name", "c"), ("channel-url", url)];
    assert!(read(&form(&base), None).is_ok());
    assert_eq!(problem(&[("name", "a/b")]), ("name".to_owned(), None));
    assert_eq!(problem(&[("build", "")]), ("build".to_owned(), None));
    assert_eq!(problem(&[("build", "nonsense")]), ("build".to_owned(), None));
    assert_eq!(problem(&[("build", "packages")]), ("build".to_owned(), None));
    assert_eq!(problem(&[("x86_64-linux", "off")]), ("systems".to_owned(), None));
    assert_eq!(problem(&[("period", "soon")]), ("period".to_owned(), None));
    assert_eq!(problem(&[("priority", "10")]), ("priority".to_owned(), None));
    assert_eq!(
        problem(&[("evaluator", "command"), ("command", "a 'b")]),
        ("command".to_owned(), None)
    );
    assert_eq!(problem(&channel("ftp://x")), ("channel-url".to_owned(), Some(0)));
    // Of rows that are empty the number counts, too.
    let second =
        [("channel-name", ""), ("channel-url", ""), ("channel-name", "c"), ("channel-url", "x")];
    assert_eq!(problem(&second), ("channel-url".to_owned(), Some(1)));
    let introduction = [
        ("channel-name", "c"),
        ("channel-url", "/srv/c"),
        ("channel-introduction-commit", "x"),
        ("channel-introduction-signer", "y"),
    ];
    let expected = ("channel-introduction-signer".to_owned(), Some(0));
    assert_eq!(problem(&introduction), expected);
    let output = [("output-job", "("), ("output-type", "archive")];
    assert_eq!(problem(&output), ("output-job".to_owned(), Some(0)));
    let mail = [("notification-type", "email"), ("notification-to", "a@b")];
    assert_eq!(problem(&mail), ("notification-type".to_owned(), Some(0)));
}

#[test]
fn expressions_with_commas_stay_whole() {
    assert_eq!(items("a, b,,c\n d"), ["a", "b", "c", "d"]);
    assert_eq!(
        items("(a, b)\n[c, \"),\"], \"x,\\\",y\""),
        ["(a, b)", "[c, \"),\"]", "\"x,\\\",y\""]
    );
    assert!(items(" ,\n").is_empty());
}
