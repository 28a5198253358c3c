//! Good lines, defaults, and one bad line per rule.

use super::*;

fn refused(line: &str) -> String {
    parse(line.as_bytes()).unwrap_err().to_string()
}

#[test]
fn a_derivation_job_with_everything() {
    let line = parse(
        br#"{"job":"hello.x86_64-linux","system":"x86_64-linux","derivation":"/gnu/store/00000000000000000000000000000000-hello-2.12.drv","outputs":{"out":"/gnu/store/x-hello"},"timeout":0,"max-silent-time":900,"priority":0,"needs":["a","b","a"]}"#,
    )
    .unwrap();
    assert_eq!(line.nix_name, "hello-2.12");
    assert_eq!(line.outputs["out"], "/gnu/store/x-hello");
    assert_eq!((line.timeout, line.max_silent_time, line.priority), (0, 900, 0));
    assert_eq!(line.needs, ["a", "b"]);
    assert!(line.notes.is_empty());
}

#[test]
fn a_command_job_has_defaults() {
    let line = parse(
        br#"{"job":"t","system":"s","command":["make","check"],"environment":{"CI":"true"},"products":["out/**/*.html"],"error":null} "#,
    )
    .unwrap();
    assert_eq!((line.timeout, line.max_silent_time, line.priority), (72_000, 3600, 9));
    assert_eq!(line.nix_name, "t");
    let What::Process { command, environment, products } = line.what else { panic!() };
    assert_eq!(command, ["make", "check"]);
    assert_eq!(environment["CI"], "true");
    assert_eq!(products, ["out/**/*.html"]);
}

#[test]
fn an_error_job_keeps_a_printable_message() {
    let long = format!(r#"{{"job":"b","system":"s","error":"a\u0000\n{}"}}"#, "x".repeat(99_999));
    let What::Error(message) = parse(long.as_bytes()).unwrap().what else { panic!() };
    assert!(message.starts_with("a\u{fffd}\nxxx") && message.len() < MAX_MESSAGE + 8);
}

#[test]
fn what_is_unknown_or_useless_is_noted() {
    let line = parse(
        br#"{"job":"b","system":"s","error":"e","needs":["x"],"meta":{"a":[1,{}]},"colour":1}"#,
    )
    .unwrap();
    assert!(line.needs.is_empty());
    assert_eq!(
        line.notes,
        [
            r#"unknown field "meta""#,
            r#"unknown field "colour""#,
            "`needs` means nothing for a job with `error`"
        ]
    );
}

#[test]
fn bad_lines_name_the_field() {
    let command = |rest: &str| format!(r#"{{"job":"j","system":"s","command":["c"],{rest}}}"#);
    for (line, expected) in [
        ("garbage".to_owned(), "expected value (byte 1)"),
        ("[]".to_owned(), "invalid type: sequence, expected a JSON object (byte 0)"),
        (r#"{"job":"x""#.to_owned(), "EOF while parsing an object (byte 10)"),
        (r#"{"job":"x"} {}"#.to_owned(), "trailing characters (byte 13)"),
        (r#"{"system":"s","error":""}"#.to_owned(), "`job` is missing"),
        (r#"{"job":"j","error":""}"#.to_owned(), "`system` is missing"),
        (r#"{"job":"","system":"s","error":""}"#.to_owned(), "`job` must have 1 to 512 bytes"),
        (
            r#"{"job":"a\nb","system":"s","error":""}"#.to_owned(),
            "`job` must not hold control characters",
        ),
        (
            "{\"job\":\"gnp.\u{202e}exe\",\"system\":\"s\",\"error\":\"e\"}".to_owned(),
            "`job` must not hold characters that turn others around",
        ),
        (
            r#"{"job":"j","system":"a b","error":""}"#.to_owned(),
            "`system` must not hold blanks or control characters",
        ),
        (
            r#"{"job":"j","system":"s"}"#.to_owned(),
            "a job has exactly one of `derivation`, `command` and `error`",
        ),
        (command(r#""error":"e""#), "a job has exactly one of `derivation`, `command` and `error`"),
        (command(r#""priority":10"#), "`priority` must be 0 to 9"),
        (command(r#""priority":-1"#), "`priority` must be 0 to 9"),
        (command(r#""timeout":-1"#), "`timeout` must be a number of seconds, 0 for none"),
        (
            command(r#""timeout":"1""#),
            "`timeout`: invalid type: string \"1\", expected i64 (byte 53)",
        ),
        (command(r#""job":"k""#), "`job` is given twice (byte 45)"),
        (
            command(r#""environment":{"A=B":""}"#),
            "`environment` has a name that no variable can have",
        ),
        (command(r#""environment":{"A":"\u0000"}"#), "`environment` must not hold NUL characters"),
        (command(r#""needs":[""]"#), "`needs` must have 1 to 512 bytes"),
        (
            command(r#""products":["/etc/*"]"#),
            "`products`: \"/etc/*\" must be relative to the working directory, without `..`",
        ),
        (
            command(r#""products":["a/../b"]"#),
            "`products`: \"a/../b\" must be relative to the working directory, without `..`",
        ),
        (
            r#"{"job":"j","system":"s","command":[]}"#.to_owned(),
            "`command` must begin with a program",
        ),
        (
            r#"{"job":"j","system":"s","command":["a\u0000"]}"#.to_owned(),
            "`command` must not hold NUL characters",
        ),
    ] {
        assert_eq!(refused(&line), expected, "{line}");
    }
    assert!(refused(&command(r#""products":["a["]"#)).starts_with("`products`: \"a[\" is no glob"));
    assert!(parse(b"{\"job\":\"\xff\",\"system\":\"s\",\"error\":\"\"}").is_err());
}

#[test]
fn derivations_are_store_files() {
    let line = |drv: &str| format!(r#"{{"job":"j","system":"s","derivation":"{drv}"}}"#);
    for good in ["/gnu/store/x-y.drv", "/nix/store/a.drv", "/home/me/store/a+b-1.0.drv"] {
        assert!(parse(line(good).as_bytes()).is_ok(), "{good}");
    }
    for bad in [
        "",
        "x.drv",
        "/x.drv",
        "/gnu/store/.drv",
        "/gnu/store/x",
        "/gnu/../x.drv",
        "/a//b.drv",
        "/a/b c.drv",
    ] {
        assert_eq!(
            refused(&line(bad)),
            "`derivation` must be the file name of a .drv in a store",
            "{bad}"
        );
    }
}

#[test]
fn over_long_values_do_not_make_over_long_errors() {
    let line = format!(r#"{{"job":"j","system":"s","timeout":"{}"}}"#, "x".repeat(99_999));
    assert!(refused(&line).len() < 400);
}
