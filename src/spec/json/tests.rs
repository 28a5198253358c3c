//! Tests of the schema: what is read, what is refused and how, and that print and parse are inverse.

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn one(text: &str) -> Specification {
    let mut all = parse(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert_eq!(all.len(), 1);
    all.remove(0)
}

/// The message for a specification `x` with these further members.
fn refused(members: &str) -> String {
    let text = format!("{{\"name\":\"x\",{members}}}");
    match parse(&text) {
        Ok(_) => panic!("accepted: {text}"),
        Err(error) => {
            assert_eq!(error.jobset.as_deref(), Some("x"));
            format!("{}: {}", error.field.unwrap_or_default(), error.message)
        }
    }
}

#[test]
fn the_example_of_the_contract_is_read() {
    let text = format!(
        r#"{{ "name": "hello",
  "channels": [ {{ "name": "hello", "url": "https://example.org/hello.git", "branch": "main",
     "commit": null, "introduction": {{ "commit": "{COMMIT}", "signer": "{COMMIT}" }} }} ],
  "evaluator": "guix", "build": "all", "systems": ["x86_64-linux"],
  "build-outputs": [ {{ "job": "binary-tarball*", "type": "archive", "output": "out", "path": "" }} ],
  "notifications": [ {{ "type": "email", "from": "a@b", "to": "c@d", "server": "smtp://h" }} ],
  "period": 0, "priority": 9, "active": true, "supersede": false,
  "command": ["./ci/jobs"], "evaluation-timeout": 3600 }}"#
    );
    let specification = one(&text);
    assert_eq!(specification.evaluator, Evaluator::Guix(GuixSubset::All));
    assert_eq!(specification.channels[0].reference, Reference::Branch("main".to_owned()));
    assert_eq!(specification.evaluation_timeout.as_secs(), 3600);
}

#[test]
fn defaults_are_filled_in() {
    let specification = one(r#"{"name":"x","command":["./jobs"]}"#);
    assert_eq!(specification.evaluator, Evaluator::Command(vec!["./jobs".to_owned()]));
    assert_eq!(specification.systems, [host_system()]);
    assert_eq!((specification.priority, specification.period.as_secs()), (9, 0));
    assert!(specification.active && !specification.supersede);
    assert_eq!(specification.evaluation_timeout.as_secs(), 14_400);
    assert!(specification.channels.is_empty() && specification.build_outputs.is_empty());
    assert_eq!(one(r#"{"name":"x"}"#).evaluator, Evaluator::Guix(GuixSubset::All));
    let nix = one(r#"{"name":"x","evaluator":"nix","build":{"file":"release.nix"}}"#);
    let file = NixSubset::File { file: "release.nix".to_owned(), attribute: None };
    assert_eq!(nix.evaluator, Evaluator::Nix(file));
    assert_eq!(parse("[]"), Ok(vec![]));
}

#[test]
fn wrong_fields_are_named() {
    for (members, message) in [
        (r#""periode":1"#, "periode: unknown field; there are name, channels, evaluator, build"),
        (r#""period":"1""#, "period: expected an integer from 0 to 315360000, found a string"),
        (r#""period":1.5"#, "period: expected an integer from 0 to 315360000, found 1.5"),
        (r#""priority":10"#, "priority: expected an integer from 0 to 9, found 10"),
        (r#""active":1"#, "active: expected true or false, found a number"),
        (r#""evaluation-timeout":0"#, "evaluation-timeout: expected an integer from 1"),
        (r#""channels":{}"#, "channels: expected a list, found an object"),
        (r#""channels":["a"]"#, "channels[0]: expected an object, found a string"),
        (r#""channels":[{"url":"/a"}]"#, "channels[0]: the field \"name\" is missing"),
        (r#""channels":[{"name":"a"}]"#, "channels[0]: the field \"url\" is missing"),
        (
            r#""channels":[{"name":"a","url":"/a","branch":5}]"#,
            "channels[0].branch: expected a string, found a number",
        ),
        (
            r#""channels":[{"name":"a","url":"/a","branch":"a..b"}]"#,
            "channels[0].branch: expected a name that Git",
        ),
        (
            r#""channels":[{"name":"a","url":"/a","commit":"abc"}]"#,
            "channels[0].commit: expected a full commit id",
        ),
        (
            r#""channels":[{"name":"a","url":"/a","branch":"b","tag":"t"}]"#,
            "channels[0]: at most one of",
        ),
        (
            r#""channels":[{"name":"a","url":"/a"},{"name":"a","url":"/b"}]"#,
            "channels[1]: a second channel \"a\"",
        ),
        (
            r#""evaluator":"make""#,
            "evaluator: expected \"guix\", \"nix\" or \"command\", found \"make\"",
        ),
        (r#""evaluator":"command""#, ": the evaluator \"command\" needs the field \"command\""),
        (r#""evaluator":"nix""#, ": the field \"build\" is missing"),
        (r#""evaluator":"nix","build":"all""#, "build: expected an object, found a string"),
        (
            r#""evaluator":"nix","build":{"file":"../x"}"#,
            "build.file: expected a path inside the checkout",
        ),
        (
            r#""evaluator":"nix","build":{"flake":"a","file":"b"}"#,
            "build: expected {\"file\": PATH}",
        ),
        (r#""build":"everything""#, "build: expected \"all\", \"core\""),
        (r#""build":{"packages":["a"],"custom":["b"]}"#, "build: expected \"all\", \"core\""),
        (r#""build":{"packages":[]}"#, "build.packages: must not be empty"),
        (r#""build":{"packages":[1]}"#, "build.packages[0]: expected a string, found a number"),
        (r#""command":[]"#, "command: expected a program and its arguments"),
        (r#""command":"make""#, "command: expected a list, found a string"),
        (r#""systems":[]"#, "systems: must not be empty"),
        (
            r#""systems":["linux"]"#,
            "systems[0]: expected a system such as x86_64-linux, found \"linux\"",
        ),
        (
            r#""build-outputs":[{"job":"(","type":"t"}]"#,
            "build-outputs[0].job: expected a regular expression",
        ),
        (r#""build-outputs":[{"job":"a"}]"#, "build-outputs[0]: the field \"type\" is missing"),
        (
            r#""build-outputs":[{"job":"a","type":"t","path":"../x"}]"#,
            "build-outputs[0].path: expected a path inside",
        ),
        (r#""notifications":[{"type":"fax"}]"#, "notifications[0].type: expected \"email\""),
        (
            r#""notifications":[{"type":"email","from":"a","server":"smtp://h"}]"#,
            "notifications[0]: the field \"to\"",
        ),
        (
            r#""notifications":[{"type":"email","from":"","to":"a","server":"smtp://h"}]"#,
            "notifications[0].from: must not be empty",
        ),
        (
            r#""notifications":[{"type":"mastodon","url":"u"}]"#,
            "notifications[0].url: not a field of",
        ),
    ] {
        let found = refused(members);
        assert!(found.starts_with(message), "{members}: {found}");
    }
}

#[test]
fn neither_user_info_nor_secrets_get_into_messages() {
    for members in [
        r#""channels":[{"name":"a","url":"ftp://u:hunter2@h/"}]"#,
        r#""notifications":[{"type":"webhook","url":"ftp://u:hunter2@h/"}]"#,
        r#""notifications":[{"type":"webhook","url":"https://h/","secret":"hunter2\u0007"}]"#,
        r#""notifications":[{"type":"email","from":"a","to":"b","server":"http://u:hunter2@h"}]"#,
    ] {
        assert!(!refused(members).contains("hunter2"), "{members}");
    }
    // Nor when their types are wrong: a secret may be all digits.
    for members in [
        r#""notifications":[{"type":"webhook","url":"https://h/","secret":735522018}]"#,
        r#""notifications":[{"type":"webhook","url":"https://h/","secret":[735522018]}]"#,
        r#""notifications":[{"type":"webhook","url":735522018}]"#,
        r#""notifications":[{"type":"email","from":"a","to":"b","server":735522018}]"#,
        r#""notifications":[735522018]"#,
        r#""notifications":735522018"#,
        r#""channels":[{"name":"a","url":735522018}]"#,
        r#""command":["login",735522018]"#,
        r#""active":735522018"#,
    ] {
        let found = refused(members);
        assert!(!found.contains("735522018"), "{found}");
    }
    let error = parse("{\"name\": hunter2}").unwrap_err();
    assert_eq!(error.to_string(), "not JSON: expected value, column 10");
}

#[test]
fn urls_are_those_that_git_can_fetch() {
    for good in [
        "/a",
        "file:///a",
        "git://h/x",
        "http://h",
        "https://u:p@h:1/x.git",
        "ssh://h/x",
        "git@h:x/y.git",
    ] {
        assert!(is_repository(good), "{good}");
    }
    for bad in [
        "a",
        "./a",
        "file://a",
        "https:///x",
        "https://",
        "ftp://h/x",
        "h:x",
        "-o@h:x",
        "a@h",
        "a@h/b:c",
        "ext::sh -c true",
    ] {
        assert!(!is_repository(bad), "{bad}");
    }
}

#[test]
fn names_are_unique_in_a_file_and_lines_are_told() {
    let error = parse("[{\"name\":\"a\"},\n{\"name\":\"a\"}]").unwrap_err();
    assert_eq!(
        error.to_string(),
        "line 2: jobset \"a\": a jobset of that name is in the file already"
    );
    let error = parse("[{\"name\":\"a\"},\n 5]").unwrap_err();
    assert_eq!(error.to_string(), "line 2: field [1]: expected an object, found a number");
    let error =
        parse("{\"name\":\"a\",\n\"channels\":[\n{\"name\":\"b\",\n\"url\":\"x\"}]}").unwrap_err();
    assert_eq!((error.line, error.field.as_deref()), (Some(4), Some("channels[0].url")));
    assert_eq!(parse("{\n\n,").unwrap_err().line, Some(3));
    assert!(parse("").is_err());
    assert!(parse(&"[".repeat(100_000)).is_err());
    assert!(parse("{\"name\":\".a\"}").unwrap_err().message.contains("1 to 64"));
}

/// A specification of random fields: every variant and every option in some of them.
fn random(random: &mut fastrand::Rng) -> Specification {
    let text = |random: &mut fastrand::Rng| -> String {
        let length = random.usize(1..8);
        let characters = ['a', 'Z', '0', 'é', '"', '\\', '\'', '$', ' ', '{', '<', ']'];
        (0..length).map(|_| random.choice(&characters).copied().unwrap()).collect::<String>() + "x"
    };
    let texts = |random: &mut fastrand::Rng| {
        (0..random.usize(1..4)).map(|_| text(random)).collect::<Vec<_>>()
    };
    let references = [
        Reference::Head,
        Reference::Branch("a/b".to_owned()),
        Reference::Tag("v1.0".to_owned()),
        Reference::Commit(COMMIT.to_owned()),
    ];
    let introduction =
        Introduction { commit: COMMIT.to_owned(), signer: "AB ".repeat(20).trim().to_owned() };
    let evaluators = [
        Evaluator::Command(texts(random)),
        Evaluator::Guix(GuixSubset::All),
        Evaluator::Guix(GuixSubset::Core),
        Evaluator::Guix(GuixSubset::Guix),
        Evaluator::Guix(GuixSubset::Hello),
        Evaluator::Guix(GuixSubset::Images),
        Evaluator::Guix(GuixSubset::SystemTests),
        Evaluator::Guix(GuixSubset::Tarball),
        Evaluator::Guix(GuixSubset::Packages(texts(random))),
        Evaluator::Guix(GuixSubset::Channels(texts(random))),
        Evaluator::Guix(GuixSubset::Manifests(texts(random))),
        Evaluator::Guix(GuixSubset::Custom(texts(random))),
        Evaluator::Nix(NixSubset::File { file: text(random), attribute: None }),
        Evaluator::Nix(NixSubset::File { file: text(random), attribute: Some(text(random)) }),
        Evaluator::Nix(NixSubset::Flake(text(random))),
    ];
    let notifications = [
        Notification::Email {
            from: random.bool().then(|| text(random)),
            to: text(random),
            server: "smtp://u:p@h".to_owned(),
        },
        Notification::Mastodon,
        Notification::Webhook { url: "https://u:p@h/".to_owned(), secret: None },
        Notification::Webhook { url: "http://h/".to_owned(), secret: Some(text(random)) },
    ];
    let channels = (0..random.usize(0..3)).map(|number| Channel {
        name: format!("c{number}"),
        url: format!("/{}", text(random)),
        reference: random.choice(&references).unwrap().clone(),
        introduction: random.bool().then(|| introduction.clone()),
    });
    Specification {
        channels: channels.collect(),
        name: JobsetName::new("a.b_c+d").unwrap(),
        evaluator: random.choice(&evaluators).unwrap().clone(),
        systems: vec!["x86_64-linux".to_owned(), "i586-gnu".to_owned()],
        build_outputs: vec![BuildOutput {
            job: "a*".to_owned(),
            kind: text(random),
            output: text(random),
            path: String::new(),
        }],
        notifications: (0..random.usize(0..3))
            .map(|_| random.choice(&notifications).unwrap().clone())
            .collect(),
        period: Duration::from_secs(random.u64(0..=MAX_PERIOD)),
        priority: random.u8(0..=9),
        active: random.bool(),
        supersede: random.bool(),
        evaluation_timeout: Duration::from_secs(random.u64(1..=MAX_EVALUATION_TIMEOUT)),
    }
}

#[test]
fn what_is_printed_is_read_back() {
    let mut generator = fastrand::Rng::with_seed(20_261_123);
    for _ in 0..2000 {
        let specification = random(&mut generator);
        assert_eq!(one(&print(&specification)), specification);
    }
}

#[test]
fn the_fingerprint_changes_with_what_decides_jobs_only() {
    let base = one(r#"{"name":"x","command":["a"],"channels":[{"name":"c","url":"/a"}]}"#);
    let print = job_fingerprint(&base);
    assert_eq!(print.len(), 64);
    for same in [
        r#"{"name":"x","command":["a"],"channels":[{"name":"c","url":"/a"}],"priority":1,"period":5}"#,
        r#"{"name":"x","command":["a"],"channels":[{"name":"c","url":"/a"}],"active":false}"#,
    ] {
        assert_eq!(job_fingerprint(&one(same)), print, "{same}");
    }
    for other in [
        r#"{"name":"x","command":["b"],"channels":[{"name":"c","url":"/a"}]}"#,
        r#"{"name":"x","command":["a"],"channels":[{"name":"c","url":"/b"}]}"#,
        r#"{"name":"x","command":["a"],"channels":[{"name":"c","url":"/a","branch":"b"}]}"#,
        r#"{"name":"x","command":["a"],"channels":[{"name":"c","url":"/a"}],"systems":["i586-gnu"]}"#,
        r#"{"name":"x","evaluator":"guix","channels":[{"name":"c","url":"/a"}]}"#,
    ] {
        assert_ne!(job_fingerprint(&one(other)), print, "{other}");
    }
}

#[test]
fn only_a_systems_own_sendmail_can_be_named() {
    let parse = |server: &str| {
        super::parse(&format!(
            r#"{{"name":"a","command":["true"],"notifications":[{{"type":"email","from":"a@b","to":"a@b","server":"{server}"}}]}}"#
        ))
    };
    assert!(parse("sendmail:///usr/sbin/sendmail").is_ok());
    for bad in [
        "sendmail:///tmp/mine",
        "sendmail://",
        "sendmail:///usr/sbin/sendmail/../../sh",
        "sendmail:x",
    ] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}
