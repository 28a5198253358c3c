//! Files in Scheme, read by the real Guile (apt install guile-3.0), with what this module brings in the place of Guix.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::model::spec::{Evaluator, GuixSubset, Notification, Reference};

/// Longer than Guile takes, shorter than anybody waits for what must not end.
const MOMENT: Duration = Duration::from_secs(3);

fn guile() -> Guile {
    Guile::new(vec!["/nonexistent/guix".to_owned()])
}

struct File {
    directory: tempfile::TempDir,
}

impl File {
    fn new(text: &str) -> Self {
        let file = Self { directory: tempfile::tempdir().unwrap() };
        fs::write(file.path(), text).unwrap();
        file
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("specifications.scm")
    }

    fn read(&self) -> Result<Vec<Specification>, Error> {
        super::super::read(&self.path(), &guile())
    }
}

fn all(text: &str) -> Vec<Specification> {
    File::new(text).read().unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The error without its file, of which the line is kept.
fn refused(text: &str) -> String {
    let file = File::new(text);
    let error = file.read().expect_err(text);
    assert_eq!(error.file, Some(file.path()), "{error}");
    let line = error.line.map(|line| format!("{line}: ")).unwrap_or_default();
    line + &Error { file: None, line: None, ..error }.to_string()
}

fn subset(build: &str) -> GuixSubset {
    let text = format!("(list (specification (name 'x) (build {build})))");
    match all(&text).remove(0).evaluator {
        Evaluator::Guix(subset) => subset,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_form_of_build_is_read() {
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    assert_eq!(subset("'all"), GuixSubset::All);
    assert_eq!(subset("'core"), GuixSubset::Core);
    assert_eq!(subset("'guix"), GuixSubset::Guix);
    assert_eq!(subset("'hello"), GuixSubset::Hello);
    assert_eq!(subset("'images"), GuixSubset::Images);
    assert_eq!(subset("'system-tests"), GuixSubset::SystemTests);
    assert_eq!(subset("'tarball"), GuixSubset::Tarball);
    assert_eq!(subset(r#"'(packages "a" "b@1")"#), GuixSubset::Packages(words(&["a", "b@1"])));
    assert_eq!(subset("'(channels . (mine))"), GuixSubset::Channels(words(&["mine"])));
    assert_eq!(subset("(list 'channels 'a 'b)"), GuixSubset::Channels(words(&["a", "b"])));
    assert_eq!(subset(r#"'(manifests "ci.scm")"#), GuixSubset::Manifests(words(&["ci.scm"])));
    assert_eq!(subset("'(custom (my ci) (b))"), GuixSubset::Custom(words(&["(my ci)", "(b)"])));
}

#[test]
fn all_fields_are_read() {
    let text = r#"
        (use-modules (srfi srfi-1))
        (define fingerprint (openpgp-fingerprint "BBB0 2DDF 2CEA F6A8 0D1D  E643 A2A0 6DF2 A33A 54FA"))
        (define base
          (specification
            (name "base")
            (channels (list (channel (name 'my) (url "https://example.org/my.git") (branch "main")
                                     (introduction (make-channel-introduction
                                       "9edb3f66fd807b096b48283debdcddccfea34bad" fingerprint)))
                            (channel (name 'tagged) (url "/srv/a") (branch "refs/tags/v1"))
                            (channel (inherit %default-guix-channel) (name 'pinned)
                                     (commit "0123456789abcdef0123456789abcdef01234567"))))
            (build-outputs (list (build-output (job "bin") (type "archive") (path "a.tar"))))
            (notifications (list (email (from "a@b") (to "c@d") (server "smtp://h")) (mastodon)))
            (period (* 6 10)) (priority 3) (is-active? #f)
            (systems '("x86_64-linux" "aarch64-linux"))))
        (list base
              (specification (inherit base) (name 'second) (period 5)
                             (priority (+ 1 (specification-priority base)))))"#;
    let mut found = all(text);
    let second = found.pop().unwrap();
    let base = found.pop().unwrap();
    assert_eq!((base.name.as_str(), second.name.as_str()), ("base", "second"));
    let [my, tagged, pinned] = &base.channels[..] else { panic!("{base:?}") };
    assert_eq!(my.reference, Reference::Branch("main".to_owned()));
    let signer = &my.introduction.as_ref().unwrap().signer;
    assert!(signer.eq_ignore_ascii_case("BBB02DDF2CEAF6A80D1DE643A2A06DF2A33A54FA"), "{signer}");
    assert_eq!(tagged.reference, Reference::Tag("v1".to_owned()));
    assert!(matches!(pinned.reference, Reference::Commit(_)) && pinned.introduction.is_some());
    assert_eq!(
        (base.build_outputs[0].output.as_str(), base.build_outputs[0].path.as_str()),
        ("out", "a.tar")
    );
    assert_eq!(base.notifications[1], Notification::Mastodon);
    assert_eq!((base.period.as_secs(), base.priority, base.active), (60, 3, false));
    assert_eq!(base.systems, ["x86_64-linux", "aarch64-linux"]);
    assert_eq!((second.period.as_secs(), second.priority, second.active), (5, 4, false));
    assert_eq!((&second.channels, &second.notifications), (&base.channels, &base.notifications));
}

#[test]
fn defaults_are_those_of_cuirass() {
    let specification = all("(list (specification (name 'x)))").remove(0);
    assert_eq!(specification.evaluator, Evaluator::Guix(GuixSubset::All));
    assert_eq!(specification.channels[0].url, "https://git.guix.gnu.org/guix.git");
    assert_eq!(specification.channels[0].reference, Reference::Branch("master".to_owned()));
    assert_eq!(specification.systems, [super::super::host_system()]);
    assert_eq!((specification.priority, specification.period.as_secs()), (9, 0));
    assert!(specification.active);
    assert!(all("'()").is_empty());
}

#[test]
fn files_may_print_load_others_and_know_their_name() {
    let file = File::new(
        r#"(display "on standard output")
           (load "more.scm")
           (list (specification (name (basename (current-filename) ".scm")) (period more)))"#,
    );
    fs::write(file.directory.path().join("more.scm"), "(define more 7)").unwrap();
    let specification = file.read().unwrap().remove(0);
    assert_eq!(
        (specification.name.as_str(), specification.period.as_secs()),
        ("specifications", 7)
    );
}

#[test]
fn mistakes_name_line_jobset_and_field() {
    for (text, expected) in [
        (
            "(list\n (specification (name 'a)\n  (perod 5)))",
            "3: specification: unknown field perod; there are name, build",
        ),
        ("(list\n (specification (build 'all)))", "2: specification: the field name is missing"),
        (
            "(list (specification (name 'a) (name 'b)))",
            "1: specification: the field name is given twice",
        ),
        (
            "(list (specification (name 'a)\n (period -1)))",
            "2: jobset \"a\": field period: expected an integer from 0",
        ),
        (
            "(define base (specification (name 'base)\n (priority 10)))\n(list (specification (inherit base) (name 'b)))",
            "2: jobset \"b\": field priority: expected an integer from 0 to 9, found 10",
        ),
        (
            "(list (specification (name 'a)\n\n (build '(pakages \"x\"))))",
            "3: jobset \"a\": field build.pakages: unknown field",
        ),
        (
            "(list (specification (name 'a)\n (is-active? 5)))",
            "2: jobset \"a\": field active: expected true or false, found a number",
        ),
        (
            "(list (specification (name 'a)\n (period car)))",
            "2: jobset \"a\": field period: expected text, a number",
        ),
        (
            "(list (specification (name 'a)\n (channels (list\n 5))))",
            "2: jobset \"a\": field channels: expected a list of channels",
        ),
        (
            "(list (specification (name 'a)) (specification (name 'a)))",
            "1: jobset \"a\": a jobset of that name",
        ),
        ("(list (specification (name 'a\n", "2: unexpected end of input while searching for: )"),
        ("(list 1))", "1: unexpected \")\""),
        (
            "(define (f x)\n  (+ 1\n     (string-append x 5)))\n(list (f \"hunter2\"))",
            "3: Wrong type (expecting a string): a number",
        ),
        ("\n(list (specification (name foo)))", "2: Unbound variable: foo"),
        (
            "(error \"out of order:\" \"hunter2\" 735522018 'x)",
            "1: out of order: a string a number x",
        ),
        ("(use-modules (no such))", "1: no code for module (no such)"),
        (
            "(specification (name 'a))",
            "the last value must be a list of specifications, it is a specification",
        ),
        (
            "(list 1 2)",
            "the last value must be a list of specifications, it is a list with a number in it",
        ),
        ("", "the last value must be a list of specifications, it is nothing"),
        ("(exit 3)", "1: it ends Guile"),
        ("(primitive-_exit 3)", "Guile ended without an answer (exit status 3)"),
        ("(kill (getpid) SIGKILL)", "Guile ended without an answer (signal 9)"),
        (
            "(list (specification (name 'a) (channels (list (channel (name 'x)\n (ulr \"https://u:hunter2@h\"))))))",
            "2: channel: unknown field ulr",
        ),
        (
            "(list (specification (name 'a)\n (channels (list (channel (name 'x) (url \"gopher://u:hunter2@h\"))))))",
            "2: jobset \"a\": field channels[0].url: expected an absolute path",
        ),
    ] {
        let error = refused(text);
        assert!(error.starts_with(expected), "{text}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn a_mistake_in_a_file_that_is_loaded_is_told_of_that() {
    let file = File::new("(load \"more.scm\")\n(list more)");
    let more = file.directory.path().join("more.scm");
    fs::write(&more, "(define more\n (specification (name 'a)\n  (priority 77)))").unwrap();
    let error = file.read().unwrap_err();
    assert_eq!((error.file, error.line), (Some(more), Some(3)));
}

#[test]
fn what_does_not_end_is_ended() {
    for text in ["(let loop () (loop))", "(let loop () (sigaction SIGTERM SIG_IGN) (loop))"] {
        let file = File::new(text);
        let start = clock::now();
        let error = guile().ask("specifications", &file.path(), start + MOMENT).unwrap_err();
        assert_eq!(error.message, "Guile takes too long over it");
        assert!(clock::now() - start >= MOMENT);
    }
}

#[test]
fn endless_output_is_cut_off() {
    let huge = "(list (specification (name 'x) (systems (list (make-string 17000000 #\\x)))))";
    assert_eq!(refused(huge), "it makes more than 16 MiB of it");
    // What is for people is not kept.
    let prints = "(let loop ((n 0)) (if (< n 300) (begin (display (make-string 100000 #\\x)) (loop (+ n 1)))))\n'()";
    assert_eq!(all(prints), []);
}

#[test]
fn what_others_can_write_is_not_run() {
    let file = File::new("'()");
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o646)).unwrap();
    assert!(refused_whole(&file).contains("every user can write it"));
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(file.read().is_ok());
    fs::set_permissions(file.path(), fs::Permissions::from_mode(0o664)).unwrap();
    assert!(file.read().is_ok(), "our own group may write it");
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(file.path(), None, Some(12_345)).unwrap();
        assert!(refused_whole(&file).contains("group 12345 can write it"));
        std::os::unix::fs::chown(file.path(), Some(12_345), None).unwrap();
        assert!(refused_whole(&file).contains("it belongs to user 12345, and root would run it"));
    }
}

fn refused_whole(file: &File) -> String {
    file.read().unwrap_err().to_string()
}

#[test]
fn who_watches_can_end_it() {
    let file = File::new("(let loop () (loop))");
    let canceling = guile().watched(|killer| {
        killer.cancel();
        true
    });
    let error = canceling.ask("specifications", &file.path(), clock::now() + PATIENCE).unwrap_err();
    assert_eq!(error.message, "the daemon is stopping");
    let unwanted = guile().watched(|_| false);
    let error = unwanted.ask("specifications", &file.path(), clock::now() + PATIENCE).unwrap_err();
    assert_eq!(error.message, "the daemon is stopping");
}

#[test]
fn parameters_are_read() {
    let read = |text: &str| {
        let file = File::new(text);
        parameters::read(&file.path(), &guile())
    };
    let text = r#"(%cuirass-url "https://ci.example.org/")
        (%cuirass-database "means nothing here") (current-logging-level 'debug) (mu-debug 1)
        (%mastodon-instance-name "ci") (%mastodon-instance-url "https://m.example.org")
        (%mastodon-instance-token (string-append "hun" "ter2"))"#;
    let found = read(text).unwrap();
    assert_eq!(found.url.as_deref(), Some("https://ci.example.org"));
    assert_eq!(found.mastodon.unwrap().token, "hunter2");
    assert_eq!(read("").unwrap(), Parameters::default());
    for (text, message) in [
        ("(%mastodon-instance-token \"hunter2\")", "field mastodon: the field \"name\" is missing"),
        ("(%cuirass-url \"ftp://u:hunter2@h\")", "field url: expected a URL of http or https"),
        ("(%cuirass-url (list car \"hunter2\"))", "field %cuirass-url: expected text"),
        ("\n(%cuirass-utl \"hunter2\")", "2: Unbound variable: %cuirass-utl"),
    ] {
        let error = read(text).unwrap_err().to_string();
        assert!(error.contains(message) && !error.contains("hunter2"), "{error}");
    }
}
