//! Reads request lines: words as a shell splits them, or one of Cuirass's S-expressions.
//!
//! Every error says what was expected; nothing is guessed.

use std::path::PathBuf;

use super::{
    Activity, Builds, Command, DEFAULT_LIMIT, Failure, FailureKind, MAX_LIMIT, ROLES, Request,
    Target, TokenAdd,
};
use crate::model::build::BuildId;
use crate::model::evaluation::EvaluationId;
use crate::model::spec::JobsetName;
use crate::model::status::BuildStatus;
use crate::model::time::parse_duration;
use crate::proto::sexp::{self, Sexp};

/// Names in the audit log and of tokens: enough for any account name or address.
const MAX_NAME: usize = 128;

/// Whether a line is one of Cuirass's S-expressions (`by=WHO` may come before it).
pub(crate) fn is_scheme(line: &str) -> bool {
    let line = line.trim_start();
    let rest = match first_word(line) {
        (word, rest) if word.starts_with("by=") => rest,
        _ => line,
    };
    rest.starts_with('(')
}

/// Reads a request in words. Blank lines are the caller's to skip.
pub(crate) fn parse(line: &str) -> Result<Request, Failure> {
    let (by, rest) = prefix(line)?;
    let (word, arguments) = first_word(rest);
    let command = if word == "add" {
        Command::Add(inline(arguments)?.to_owned())
    } else {
        let words = shell_words::split(rest)
            .map_err(|_| Failure::syntax("a quotation mark is not closed"))?;
        let mut words = words.into_iter();
        let Some(name) = words.next() else {
            // All that the words of a shell leave out is a comment.
            let found = if rest.is_empty() { "nothing" } else { "a comment (#…)" };
            return Err(Failure::syntax(format!("expected a command, found {found}")));
        };
        command(&name, Words { command: name.clone(), words: words.collect() })?
    };
    Ok(Request { by, command })
}

/// Reads the S-expressions of a line, each a `(COMMAND ARG…)`.
pub(crate) fn parse_scheme(line: &str) -> Result<Vec<Request>, Failure> {
    let (by, mut rest) = prefix(line)?;
    let mut requests = Vec::new();
    while !rest.is_empty() {
        let (datum, after) = sexp::parse(rest).map_err(|e| Failure::syntax(e.to_string()))?;
        rest = after;
        let Sexp::List(elements) = datum else {
            return Err(Failure::syntax("expected a list (COMMAND ARG…)"));
        };
        let mut words = Vec::new();
        for element in elements {
            words.push(match element {
                Sexp::Symbol(text) | Sexp::String(text) => text,
                Sexp::Integer(number) => number.to_string(),
                Sexp::Bool(_) | Sexp::List(_) => {
                    return Err(Failure::syntax("expected symbols, strings and integers"));
                }
            });
        }
        if words.is_empty() {
            return Err(Failure::syntax("expected a command in the parentheses"));
        }
        let name = words.remove(0);
        let command = if name == "add" {
            let [json] = words.as_slice() else {
                return Err(Failure::syntax("add: expected one string of JSON"));
            };
            Command::Add(inline(json)?.to_owned())
        } else {
            command(&name, Words { command: name.clone(), words })?
        };
        requests.push(Request { by: by.clone(), command });
    }
    Ok(requests)
}

/// Takes `by=WHO` off the front.
fn prefix(line: &str) -> Result<(Option<String>, &str), Failure> {
    let line = line.trim();
    let (word, rest) = first_word(line);
    if !word.starts_with("by=") {
        return Ok((None, line));
    }
    let by = shell_words::split(word)
        .ok()
        .and_then(|words| words.first().and_then(|w| w.strip_prefix("by=")).map(str::to_owned))
        .filter(|by| is_name(by))
        .ok_or_else(|| Failure::syntax("by=WHO: expected a name of 1 to 128 characters"))?;
    Ok((Some(by), rest))
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_NAME && !text.contains(char::is_control)
}

/// Splits at the first blank outside of quotes; the rest has no blanks in front.
fn first_word(text: &str) -> (&str, &str) {
    let (mut quote, mut escaped) = (None, false);
    for (at, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (None | Some('"'), '\\') => escaped = true,
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            (None, c) if c.is_whitespace() => return (&text[..at], text[at..].trim_start()),
            (None | Some(_), _) => {}
        }
    }
    (text, "")
}

/// The JSON after `add`, out of its quotes if it is in any.
fn inline(text: &str) -> Result<&str, Failure> {
    let text = text.trim();
    let bare = text.strip_prefix('\'').and_then(|t| t.strip_suffix('\'')).unwrap_or(text);
    if bare.is_empty() {
        return Err(Failure::syntax("add: expected a specification in JSON"));
    }
    Ok(bare)
}

fn command(name: &str, mut words: Words) -> Result<Command, Failure> {
    let command = match name {
        "help" => Command::Help,
        "version" => Command::Version,
        "status" => Command::Status,
        "jobsets" => Command::Jobsets,
        "jobset" => Command::Jobset(words.jobset()?),
        "trigger" | "trigger-jobset" => Command::Trigger(words.jobset()?),
        "register-jobset" => Command::RegisterJobset(words.jobset()?),
        "update-jobset" => Command::UpdateJobset(words.jobset()?),
        "delete" => Command::Delete(words.jobset()?),
        "activate" => Command::Activate(words.jobset()?),
        "deactivate" => Command::Deactivate(words.jobset()?),
        "jobset-last-update-times" => Command::LastUpdateTimes(words.jobset()?),
        "evaluations" => {
            let limit = words.limit()?;
            let jobset = if words.is_empty() { None } else { Some(words.jobset()?) };
            Command::Evaluations { jobset, limit }
        }
        "evaluation" => Command::Evaluation(words.evaluation()?),
        "cancel-evaluation" => Command::CancelEvaluation(words.evaluation()?),
        "retry-evaluation" => Command::RetryEvaluation(words.evaluation()?),
        "restart-evaluation" => {
            let all = words.flag("all");
            Command::RestartEvaluation { id: words.evaluation()?, all }
        }
        "builds" => Command::Builds(Builds {
            limit: words.limit()?,
            jobset: words.value("jobset", "a jobset's name", JobsetName::new)?,
            evaluation: words
                .value("evaluation", "an evaluation's number", number)?
                .map(EvaluationId),
            status: words.value("status", &statuses(), BuildStatus::from_word)?,
        }),
        "build" => Command::Build(words.build()?),
        "restart-build" => Command::RestartBuild(words.build()?),
        "cancel-build" => Command::CancelBuild(words.build()?),
        "prioritize-build" => {
            let id = words.build()?;
            let in_range = |text: &str| number(text).filter(|n| *n <= 99);
            let priority = words.take("a priority from 0 (first) to 99", in_range)?;
            Command::PrioritizeBuild { id, priority }
        }
        "wait" => Command::Wait(words.target()?),
        "log" => {
            let bytes = |text: &str| number(text).and_then(|n| u64::try_from(n).ok());
            let from = words.value("from", "a number of bytes", bytes)?.unwrap_or(0);
            let follow = words.flag("follow");
            Command::Log { of: words.target()?, from, follow }
        }
        "queue" => Command::Queue { limit: words.limit()? },
        "workers" => Command::Workers,
        "pause" | "resume" if words.begins_with("worker") => {
            let worker = words.take("a worker's name", |word| Some(word.to_owned()))?;
            Command::PauseWorker { name: worker, paused: name == "pause" }
        }
        "pause" => Command::Pause(words.activity()?),
        "resume" => Command::Resume(words.activity()?),
        "register-dashboard" => {
            let jobset = words.jobset()?;
            let good = |job: &String| !job.is_empty() && !job.contains(',');
            let jobs = std::mem::take(&mut words.words);
            if jobs.is_empty() || !jobs.iter().all(good) {
                return Err(words.wrong("one or more job names without commas after the jobset"));
            }
            Command::RegisterDashboard { jobset, jobs }
        }
        "token" => token(&mut words)?,
        "audit" => {
            let text = |text: &str| is_name(text).then(|| text.to_owned());
            let command = words.take("what was tried, in 1 to 128 characters", text)?;
            let outcome = words.take("how it ended, in 1 to 128 characters", text)?;
            Command::Audit { command, outcome }
        }
        "backup" => {
            let absolute = |text: &str| Some(PathBuf::from(text)).filter(|p| p.is_absolute());
            Command::Backup(words.take("an absolute file name", absolute)?)
        }
        "check-database" => Command::CheckDatabase,
        "subscribe" => Command::Subscribe {
            jobset: words.value("jobset", "a jobset's name", JobsetName::new)?,
            from: words.value("from", "an event's number", number)?,
        },
        "reload" => Command::Reload,
        "shutdown" => Command::Shutdown,
        unknown => {
            let known: String = unknown.chars().take(MAX_NAME).collect();
            let message = format!("there is no command {known:?}; try help");
            return Err(Failure::new(FailureKind::UnknownCommand, message));
        }
    };
    words.end()?;
    Ok(command)
}

fn token(words: &mut Words) -> Result<Command, Failure> {
    let name = |text: &str| is_name(text).then(|| text.to_owned());
    match words.take("add, list, revoke or used", |text| Some(text.to_owned()))?.as_str() {
        "add" => {
            let jobset = words.value("jobset", "a jobset's name", JobsetName::new)?;
            let some_time = |text: &str| parse_duration(text).filter(|time| !time.is_zero());
            let expected = "a duration of at least 1 s, such as 30d";
            let expires = words.value("expires", expected, some_time)?;
            let name = words.take("the token's name", name)?;
            let known = |text: &str| ROLES.contains(&text).then(|| text.to_owned());
            let role = words.take(&format!("a role, one of {}", ROLES.join(" ")), known)?;
            Ok(Command::TokenAdd(TokenAdd { name, role, jobset, expires }))
        }
        "list" => Ok(Command::TokenList),
        "revoke" => Ok(Command::TokenRevoke(words.take("the token's name", name)?)),
        "used" => Ok(Command::TokenUsed(words.take("the token's name", name)?)),
        _ => Err(words.wrong("add, list, revoke or used")),
    }
}

fn statuses() -> String {
    let words: Vec<_> = BuildStatus::ALL.iter().map(|status| status.word()).collect();
    format!("one of {}", words.join(" "))
}

/// A number of the kind that identifies things: not negative, no sign.
fn number(text: &str) -> Option<i64> {
    text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()))
}

/// The arguments that nobody has taken yet.
struct Words {
    command: String,
    words: Vec<String>,
}

impl Words {
    fn wrong(&self, expected: &str) -> Failure {
        Failure::syntax(format!("{}: expected {expected}", self.command))
    }

    fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The next word, read by `read`.
    fn take<T>(&mut self, expected: &str, read: impl Fn(&str) -> Option<T>) -> Result<T, Failure> {
        if self.words.is_empty() {
            return Err(self.wrong(expected));
        }
        let word = self.words.remove(0);
        read(&word).ok_or_else(|| self.wrong(&format!("{expected}, not {}", quoted(&word))))
    }

    /// The value of `KEY=VALUE`, wherever it stands.
    fn value<T>(
        &mut self,
        key: &str,
        expected: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, Failure> {
        let value = |word: &String| word.strip_prefix(key).is_some_and(|w| w.starts_with('='));
        let Some(at) = self.words.iter().position(value) else { return Ok(None) };
        let word = self.words.remove(at);
        if self.words.iter().any(value) {
            return Err(self.wrong(&format!("{key}= only once")));
        }
        let text = &word[key.len() + 1..];
        let read = read(text)
            .ok_or_else(|| self.wrong(&format!("{key}= to be {expected}, not {}", quoted(text))))?;
        Ok(Some(read))
    }

    /// Takes the first word if it is this one.
    fn begins_with(&mut self, word: &str) -> bool {
        let is = self.words.first().is_some_and(|first| first == word);
        if is {
            self.words.remove(0);
        }
        is
    }

    /// Whether the word is there, wherever it stands.
    fn flag(&mut self, flag: &str) -> bool {
        let at = self.words.iter().position(|word| word == flag);
        at.map(|at| self.words.remove(at)).is_some()
    }

    fn jobset(&mut self) -> Result<JobsetName, Failure> {
        self.take("a jobset's name", JobsetName::new)
    }

    fn build(&mut self) -> Result<BuildId, Failure> {
        self.take("a build's number", number).map(BuildId)
    }

    fn evaluation(&mut self) -> Result<EvaluationId, Failure> {
        self.take("an evaluation's number", number).map(EvaluationId)
    }

    fn limit(&mut self) -> Result<usize, Failure> {
        let range = |text: &str| {
            let number = number(text).and_then(|n| usize::try_from(n).ok())?;
            (1..=MAX_LIMIT).contains(&number).then_some(number)
        };
        Ok(self.value("limit", "from 1 to 10000", range)?.unwrap_or(DEFAULT_LIMIT))
    }

    fn target(&mut self) -> Result<Target, Failure> {
        match self.take("build or evaluation", |word| Some(word.to_owned()))?.as_str() {
            "build" => self.build().map(Target::Build),
            "evaluation" => self.evaluation().map(Target::Evaluation),
            other => Err(self.wrong(&format!("build or evaluation, not {}", quoted(other)))),
        }
    }

    fn activity(&mut self) -> Result<Activity, Failure> {
        if self.is_empty() {
            return Ok(Activity::Both);
        }
        self.take("builds or evaluations", |word| match word {
            "builds" => Some(Activity::Builds),
            "evaluations" => Some(Activity::Evaluations),
            _ => None,
        })
    }

    fn end(&self) -> Result<(), Failure> {
        match self.words.first() {
            None => Ok(()),
            Some(word) => Err(self.wrong(&format!("nothing more, not {}", quoted(word)))),
        }
    }
}

/// A word of the peer's, short enough for an error.
fn quoted(word: &str) -> String {
    let short: String = word.chars().take(MAX_NAME).collect();
    format!("{short:?}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn command_of(line: &str) -> Command {
        parse(line).unwrap_or_else(|e| panic!("{line}: {e}")).command
    }

    fn name(text: &str) -> JobsetName {
        JobsetName::new(text).unwrap()
    }

    #[test]
    fn requests_are_read_back_as_they_were_written() {
        let commands = [
            Command::Trigger(name("hello")),
            Command::Add(r#"{"name": "x y", "quote": "'"}"#.to_owned()),
            Command::Evaluations { jobset: Some(name("a.b")), limit: 7 },
            Command::RestartEvaluation { id: EvaluationId(3), all: true },
            Command::Builds(Builds {
                jobset: Some(name("a")),
                evaluation: Some(EvaluationId(2)),
                status: Some(BuildStatus::FailedDependency),
                limit: 10_000,
            }),
            Command::PrioritizeBuild { id: BuildId(4), priority: 99 },
            Command::TokenUsed("ci's own".to_owned()),
            Command::Audit { command: "login".to_owned(), outcome: "no such token".to_owned() },
            Command::Wait(Target::Evaluation(EvaluationId(9))),
            Command::Log { of: Target::Build(BuildId(1)), from: 10, follow: true },
            Command::Pause(Activity::Evaluations),
            Command::Resume(Activity::Both),
            Command::PauseWorker { name: "a b".to_owned(), paused: true },
            Command::PauseWorker { name: "c".to_owned(), paused: false },
            Command::RegisterDashboard { jobset: name("d"), jobs: vec!["a b".to_owned()] },
            Command::TokenAdd(TokenAdd {
                name: "it's me".to_owned(),
                role: "admin".to_owned(),
                jobset: Some(name("j")),
                expires: Some(Duration::from_secs(60)),
            }),
            Command::TokenRevoke("it's me".to_owned()),
            Command::Backup("/tmp/a b.db".into()),
            Command::Subscribe { jobset: Some(name("j")), from: Some(12) },
        ];
        for command in commands {
            let request = Request { by: Some("Jane Doe".to_owned()), command };
            assert_eq!(parse(&request.to_string()), Ok(request));
        }
    }

    #[test]
    fn every_command_of_the_help_is_known() {
        for (usage, _) in super::super::HELP {
            let word = usage.split(' ').next().unwrap();
            let known = match parse(word) {
                Ok(_) => true,
                Err(failure) => failure.kind == FailureKind::Syntax,
            };
            assert!(known, "{word}");
        }
    }

    #[test]
    fn add_takes_the_rest_as_it_stands() {
        let json = r#"{"name":"a","command":["sh","-c","echo 'x' \"y\""]}"#;
        assert_eq!(command_of(&format!("add {json}")), Command::Add(json.to_owned()));
        assert_eq!(command_of(&format!("  add  '{json}' ")), Command::Add(json.to_owned()));
        let by = parse(&format!("by='a b' add '{json}'")).unwrap();
        assert_eq!(by, Request { by: Some("a b".to_owned()), command: Command::Add(json.into()) });
    }

    #[test]
    fn words_are_split_as_a_shell_does() {
        assert_eq!(command_of("trigger 'hello'"), Command::Trigger(name("hello")));
        assert_eq!(command_of("trigger-jobset \"hello\""), Command::Trigger(name("hello")));
        assert_eq!(
            command_of("log follow build 3 from=5"),
            Command::Log { of: Target::Build(BuildId(3)), from: 5, follow: true }
        );
    }

    #[test]
    fn errors_say_what_was_expected() {
        for (line, part) in [
            ("trigger", "a jobset's name"),
            ("trigger a b", "nothing more, not \"b\""),
            ("trigger 'a", "quotation mark"),
            ("trigger .a", "not \".a\""),
            ("build x", "a build's number"),
            ("build +1", "a build's number"),
            ("builds limit=0", "from 1 to 10000"),
            ("builds limit=10001", "from 1 to 10000"),
            ("builds limit=1 limit=2", "only once"),
            ("builds status=great", "failed-dependency"),
            ("builds colour=red", "nothing more"),
            ("prioritize-build 1 100", "from 0 (first) to 99"),
            ("prioritize-build 1", "a priority"),
            ("wait 3", "build or evaluation"),
            ("log build 1 from=x", "a number of bytes"),
            ("pause lunch", "builds or evaluations"),
            ("resume worker", "a worker's name"),
            ("register-dashboard a", "job names"),
            ("token", "add, list, revoke or used"),
            ("token add x king", "one of trigger"),
            ("token add x admin expires=soon", "a duration"),
            ("token add x admin expires=0", "of at least 1 s"),
            ("# a comment", "a command"),
            ("by=me # a comment", "a command"),
            ("backup relative", "an absolute file name"),
            ("add", "a specification"),
            ("add ''", "a specification"),
            ("by= status", "by=WHO"),
            ("by=me", "a command"),
            ("build 99999999999999999999", "a build's number"),
        ] {
            let failure = parse(line).expect_err(line);
            assert_eq!(failure.kind, FailureKind::Syntax, "{line}");
            assert!(failure.message.contains(part), "{line}: {failure}");
        }
        assert_eq!(parse("dance").unwrap_err().kind, FailureKind::UnknownCommand);
        let long = parse(&"x".repeat(60_000)).unwrap_err();
        assert!(long.to_string().len() < 300);
    }

    #[test]
    fn scheme_requests_name_jobsets_by_symbol_or_string() {
        for line in
            ["(trigger-jobset hello)", "(trigger-jobset \"hello\")", " (trigger-jobset #{hello}#)"]
        {
            assert!(is_scheme(line));
            let requests = parse_scheme(line).unwrap();
            assert_eq!(requests.len(), 1, "{line}");
            assert_eq!(requests[0].command, Command::Trigger(name("hello")));
        }
        assert!(is_scheme("by=me (status)"));
        assert!(!is_scheme("trigger (x)"));
        assert_eq!(parse_scheme("(status) (jobsets)").unwrap().len(), 2);
        for bad in ["(", "()", "(trigger-jobset)", "(trigger-jobset (a))", "(dance)", "x"] {
            assert!(parse_scheme(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn failures_are_one_line_and_read_back() {
        let failure = Failure::new(FailureKind::RateLimited, "retry in\n7 s");
        assert_eq!(failure.to_string(), "error rate-limited retry in 7 s");
        let read = Failure::from_line(&failure.to_string()).unwrap();
        assert_eq!(read, Failure::new(FailureKind::RateLimited, "retry in 7 s"));
        assert_eq!(Failure::from_line("ok"), None);
        assert_eq!(Failure::from_line("error strange x"), None);
    }
}
