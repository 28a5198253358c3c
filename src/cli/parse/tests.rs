//! Tests of the command line: what is understood, what is refused and in which words.

use super::*;
use crate::cli::client::{Builds, Command as Ask, Token};

fn words(line: &str) -> Vec<OsString> {
    shell_words::split(line).unwrap().into_iter().map(OsString::from).collect()
}

fn asks(line: &str) -> Client {
    match parse(words(line)) {
        Ok(Action::Client(client)) => client,
        other => panic!("{line}: {other:?}"),
    }
}

fn refused(line: &str) -> String {
    match parse(words(line)) {
        Err(usage) => usage.to_string(),
        Ok(action) => panic!("{line}: {action:?}"),
    }
}

#[test]
fn every_client_command_is_read() {
    let name = || JobsetName::new("x").unwrap();
    let (build, evaluation) = (BuildId(5), EvaluationId(6));
    for (line, command) in [
        ("status", Ask::Status),
        ("jobsets", Ask::Jobsets),
        ("builds", Ask::Builds(Builds::default())),
        (
            "builds --jobset=x --evaluation 6 --status failed --limit=3",
            Ask::Builds(Builds {
                jobset: Some(name()),
                evaluation: Some(evaluation),
                status: Some(BuildStatus::Failed),
                limit: Some(3),
            }),
        ),
        ("evaluations", Ask::Evaluations { jobset: None, limit: None }),
        (
            "evaluations x --limit 10000",
            Ask::Evaluations { jobset: Some(name()), limit: Some(10_000) },
        ),
        ("queue --limit=1", Ask::Queue { limit: Some(1) }),
        ("workers", Ask::Workers),
        ("trigger x", Ask::Trigger(name())),
        ("add a.json", Ask::Add { file: "a.json".into(), guix: vec!["guix".to_owned()] }),
        ("activate x", Ask::Activate(name())),
        ("deactivate x", Ask::Deactivate(name())),
        ("delete x", Ask::Delete(name())),
        ("restart 5", Ask::RestartBuild(build)),
        ("restart --evaluation 6", Ask::RestartEvaluation { id: evaluation, all: false }),
        ("restart --evaluation 6 --all", Ask::RestartEvaluation { id: evaluation, all: true }),
        ("cancel 5", Ask::CancelBuild(build)),
        ("cancel --evaluation=6", Ask::CancelEvaluation(evaluation)),
        ("retry 6", Ask::Retry(evaluation)),
        ("prioritize 5 99", Ask::Prioritize { build, priority: 99 }),
        ("pause", Ask::Pause(None)),
        ("pause builds", Ask::Pause(Some(Activity::Builds))),
        ("resume evaluations", Ask::Resume(Some(Activity::Evaluations))),
        ("log 5", Ask::Log { of: Target::Build(build), follow: false }),
        ("log --evaluation 6 -f", Ask::Log { of: Target::Evaluation(evaluation), follow: true }),
        ("watch", Ask::Watch { jobset: None }),
        ("watch x", Ask::Watch { jobset: Some(name()) }),
        ("wait 5", Ask::Wait { on: Target::Build(build), timeout: None }),
        (
            "wait --evaluation 6 --timeout 2min",
            Ask::Wait {
                on: Target::Evaluation(evaluation),
                timeout: Some(std::time::Duration::from_secs(120)),
            },
        ),
        ("reload", Ask::Reload),
        ("backup a.db", Ask::Backup("a.db".into())),
        ("check-database", Ask::CheckDatabase),
        ("token list", Ask::Token(Token::List)),
        ("token revoke a", Ask::Token(Token::Revoke("a".to_owned()))),
        (
            "token add a viewer --jobset x",
            Ask::Token(Token::Add {
                name: "a".to_owned(),
                role: "viewer".to_owned(),
                jobset: Some(name()),
                expires: None,
            }),
        ),
    ] {
        assert_eq!(asks(line).command, command, "{line}");
        let told = asks(&format!("--socket=/s {line} --json --state-directory /d"));
        assert_eq!(told.command, command, "{line}");
        assert_eq!((told.socket, told.json), (Some("/s".into()), true));
        assert_eq!(told.state_directory, Some("/d".into()));
    }
}

#[test]
fn every_command_has_help_and_version() {
    for command in COMMANDS {
        for option in ["--help", "-h"] {
            let help = parse(words(&format!("{} {option}", command.name)));
            assert!(matches!(help, Ok(Action::Help(Some(found))) if found.name == command.name));
        }
        let version = parse(words(&format!("{} --version", command.name)));
        assert!(matches!(version, Ok(Action::Version)));
    }
    assert!(matches!(parse(words("--help")), Ok(Action::Help(None))));
    assert!(matches!(parse(words("-V")), Ok(Action::Version)));
    assert!(matches!(parse(words("help builds")), Ok(Action::Help(Some(c))) if c.name == "builds"));
}

#[test]
fn mistakes_are_named() {
    for (line, message) in [
        ("", "no command was given"),
        ("regster", "there is no command \"regster\"; did you mean \"register\"?"),
        ("make-coffee", "there is no command \"make-coffee\""),
        ("status --frob", "there is no option --frob"),
        ("status -x", "there is no option -x"),
        ("--frob status", "there is no option --frob"),
        ("--socket /s check a.json", "there is no option --socket"),
        ("status --json=1", "the option --json takes no value"),
        ("status --socket", "the option --socket needs a value"),
        ("status --socket=", "--socket: expected a file name, found \"\""),
        ("status now", "an argument too many: \"now\""),
        ("trigger", "the argument NAME is missing"),
        ("trigger a/b", "NAME: expected a jobset's name, found \"a/b\""),
        ("trigger a b", "an argument too many: \"b\""),
        ("builds --limit 0", "--limit: expected a number from 1 to 10000, found \"0\""),
        ("builds --evaluation x", "--evaluation: expected a number from 1, found \"x\""),
        ("restart", "the argument BUILD is missing"),
        ("restart 5 --all", "--all needs --evaluation"),
        ("restart 5 --evaluation 6", "BUILD and --evaluation exclude each other"),
        ("prioritize 5 100", "PRIORITY: expected a number from 0 to 99, found \"100\""),
        ("pause tests", "WHAT: expected builds, evaluations or worker, found \"tests\""),
        (
            "token add a king",
            "ROLE: expected trigger, viewer, operator, editor, admin, found \"king\"",
        ),
        ("token list --jobset x", "--jobset needs token add"),
        ("token sell", "token: expected add, list or revoke, found \"sell\""),
        ("remote-server --log-port=x", "--log-port: expected a port, from 0 to 65535, found \"x\""),
        ("remote-server -p 0", "--publish-port: expected a port, from 1 to 65535, found \"0\""),
        (
            "remote-server --max-log-size=0",
            "--max-log-size: expected a size of at least one byte, found \"0\"",
        ),
        ("evaluate", "the option --specifications is missing"),
        ("check", "the argument FILE is missing"),
    ] {
        assert_eq!(refused(line), message, "{line}");
    }
    assert!(refused("builds --status won").starts_with("--status: expected submitted, scheduled"));
}

#[test]
fn slips_are_counted() {
    assert_eq!(distance("status", "status"), 0);
    assert_eq!(distance("statsu", "status"), 2);
    assert_eq!(distance("", "log"), 3);
    assert_eq!(distance("lgo", "log"), 2);
}
