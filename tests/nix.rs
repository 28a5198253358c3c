//! The `nix` evaluator, with the real nix-instantiate on a store in the sandbox, and with a stand-in for nix-eval-jobs.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::support::jobs::system;
use crate::support::repository::Repository;
use crate::support::sandbox::{Output, Sandbox, Starter, specification};
use crate::support::until;

/// A function that makes a derivation nobody needs to build.
const MAKE: &str = r#"
  make = name: derivation {
    inherit name; system = "SYSTEM"; builder = "/bin/sh"; args = [ "-c" "echo ${name} > $out" ];
  };
"#;

fn expression(text: &str) -> String {
    text.replace("MAKE", MAKE).replace("SYSTEM", &system())
}

/// The environment for a store in the sandbox.
fn store(sandbox: &Sandbox) -> Vec<(String, String)> {
    let directories = [
        ("STORE", "store"),
        ("STATE", "var"),
        ("LOCALSTATE", "var"),
        ("LOG", "log"),
        ("CONF", "etc"),
    ];
    let at = |directory| sandbox.path().join("nix").join(directory).to_str().unwrap().to_owned();
    let mut all: Vec<_> =
        directories.map(|(name, directory)| (format!("NIX_{name}_DIR"), at(directory))).into();
    let settings = "substituters =\nbuild-users-group =\nsandbox = false";
    all.push(("NIX_CONFIG".to_owned(), settings.to_owned()));
    all
}

/// A specification of the jobset `main` for this evaluator.
fn nix(repository: &Repository, fields: Value) -> Value {
    let all = json!({ "evaluator": "nix", "build": {"file": "release.nix"} });
    let mut specification = specification("main", &repository.url(), all);
    let object = specification.as_object_mut().unwrap();
    object.remove("command");
    for (field, value) in fields.as_object().unwrap() {
        object.insert(field.clone(), value.clone());
    }
    specification
}

struct Evaluation {
    output: Output,
    /// By name; each name comes once.
    jobs: BTreeMap<String, Value>,
}

/// Evaluates these files of a repository now.
fn evaluate(sandbox: &Sandbox, files: &[(&str, &str)], fields: Value) -> Evaluation {
    let directory = sandbox.path().join("repositories/main");
    if directory.exists() {
        std::fs::remove_dir_all(&directory).unwrap();
    }
    let repository = sandbox.repository("main");
    for (file, text) in files {
        repository.write(file, &expression(text));
    }
    repository.commit("Add jobs");
    let file = sandbox.write("main.json", &nix(&repository, fields).to_string());
    let mut command = sandbox.command(["evaluate", "-S"]);
    command.arg(file);
    command.envs(store(sandbox));
    let output = sandbox.run(command);
    let mut jobs = BTreeMap::new();
    for line in output.stdout.lines() {
        let job: Value = serde_json::from_str(line).unwrap();
        let name = job["job"].as_str().unwrap().to_owned();
        assert!(jobs.insert(name.clone(), job).is_none(), "{name} twice: {output:?}");
    }
    Evaluation { output, jobs }
}

impl Evaluation {
    /// The job of this attribute.
    #[track_caller]
    fn job(&self, attribute: &str) -> &Value {
        let name = format!("{attribute}.{}", system());
        self.jobs.get(&name).unwrap_or_else(|| panic!("no {name} in {:?}", self.output))
    }

    #[track_caller]
    fn names(&self) -> Vec<String> {
        let end = format!(".{}", system());
        self.jobs.keys().map(|name| name.strip_suffix(&end).unwrap().to_owned()).collect()
    }

    #[track_caller]
    fn succeeded(&self) {
        assert_eq!(self.output.code(), 0, "{:?}", self.output);
    }
}

#[test]
fn attributes_become_jobs() {
    let sandbox = Sandbox::new();
    let text = r#"let MAKE in {
        plain = make "plain";
        nested.deep.a = make "a";
        nested.more."b.c" = make "bc";
        hidden = { recurseForDerivations = false; h = make "h"; };
        shown = { recurseForDerivations = true; s = make "s"; };
        timed = make "timed" // { meta = { timeout = 5; maxSilent = 7; schedulingPriority = 150; }; };
        two = derivation { name = "two"; system = "SYSTEM"; builder = "/bin/sh"; outputs = [ "out" "dev" ]; };
        call = { system }: make "call-${system}";
        other = derivation { name = "other"; system = "riscv64-linux"; builder = "/bin/sh"; };
        list = [ 1 ]; number = 1; nothing = null; path = ./.;
    }"#;
    let found = evaluate(&sandbox, &[("release.nix", text)], json!({}));
    found.succeeded();
    let expected =
        ["call", "nested.deep.a", "nested.more.\"b.c\"", "plain", "shown.s", "timed", "two"];
    assert_eq!(found.names(), expected);
    let job = found.job("timed");
    assert_eq!((&job["timeout"], &job["max-silent-time"]), (&json!(5), &json!(7)));
    assert_eq!((&job["priority"], &job["nix-name"]), (&json!(8), &json!("timed")));
    let derivation = found.job("two")["derivation"].as_str().unwrap().to_owned();
    assert!(std::path::Path::new(&derivation).exists(), "{derivation}");
    let outputs = found.job("two")["outputs"].as_object().unwrap();
    assert_eq!(outputs.keys().collect::<Vec<_>>(), ["dev", "out"]);
    assert!(found.output.stderr.contains("1 jobs for riscv64-linux are left out"));
}

#[test]
fn each_broken_attribute_costs_one_error_job() {
    let sandbox = Sandbox::new();
    let text = r#"let MAKE in {
        a = make "a";
        b = throw "thrown here";
        c = abort "aborted here";
        d = (make "d").missing;
        e = make 1;
        f = assert false; make "f";
        loop = let x = x; in x;
        set = { g = make "g"; h = abort "in a set"; i = make "i"; };
        z = make "z";
    }"#;
    let found = evaluate(&sandbox, &[("release.nix", text)], json!({}));
    found.succeeded();
    for name in ["a", "set.g", "set.i", "z"] {
        assert!(found.job(name)["derivation"].is_string(), "{name}");
    }
    for (name, word) in [
        ("b", "thrown here"),
        ("c", "aborted here"),
        ("d", "missing"),
        ("e", "string"),
        ("f", "assertion"),
        ("loop", "infinite recursion"),
        ("set.h", "in a set"),
    ] {
        let error = found.job(name)["error"].as_str().unwrap();
        assert!(error.contains(word), "{name}: {error}");
        // Where it was evaluated is no part of what is wrong.
        assert!(!error.contains(sandbox.path().to_str().unwrap()), "{error}");
    }
    assert_eq!(found.jobs.len(), 11);
}

#[test]
fn an_expression_that_is_broken_itself_fails_the_evaluation() {
    let sandbox = Sandbox::new();
    let build = json!({});
    for (text, word) in
        [("{ a = ", "syntax error"), ("throw \"all of it\"", "all of it"), ("{ x }: { }", "'x'")]
    {
        let found = evaluate(&sandbox, &[("release.nix", text)], build.clone());
        assert_eq!(found.output.code(), 1, "{:?}", found.output);
        let last = found.output.stderr.lines().last().unwrap();
        assert!(last.contains("the evaluation failed: "), "{last}");
        assert!(last.contains(word), "{last}");
        assert!(found.jobs.is_empty());
    }
    let missing = json!({"build": {"file": "release.nix", "attribute": "a.b"}});
    let found = evaluate(&sandbox, &[("release.nix", "{ a = { }; }")], missing);
    assert_eq!(found.output.code(), 1, "{:?}", found.output);
    assert!(found.output.stderr.contains("'b'"), "{:?}", found.output);
}

#[test]
fn functions_get_channels_systems_and_what_they_have_by_default() {
    let sandbox = Sandbox::new();
    let other = sandbox.repository("other");
    other.write("default.nix", "\"from the search path\"");
    let commit = other.commit("Add an input");
    let text = r#"{ input, systems, supportedSystems ? [ ], more ? "default" }: let MAKE in {
        jobs = { system ? "none" }: {
            revision = make "rev-${input.rev}";
            argument = make (if import input == import <input> then "same" else "different");
            systems = make (builtins.concatStringsSep "-" (systems ++ supportedSystems));
            more = make more;
            each = derivation { name = "each"; inherit system; builder = "/bin/sh"; };
        };
    }"#;
    let own = sandbox.path().join("repositories/main").to_str().unwrap().to_owned();
    let found = evaluate(
        &sandbox,
        &[("ci/release.nix", text)],
        json!({
            "channels": [{"name": "main", "url": own}, {"name": "input", "url": other.url()}],
            "systems": [system(), "riscv64-linux"],
            "build": {"file": "ci/release.nix", "attribute": "jobs"},
        }),
    );
    found.succeeded();
    assert_eq!(found.job("revision")["nix-name"], format!("rev-{commit}"));
    assert_eq!(found.job("argument")["nix-name"], "same");
    assert_eq!(found.job("more")["nix-name"], "default");
    let systems = format!("{0}-riscv64-linux-{0}-riscv64-linux", system());
    assert_eq!(found.job("systems")["nix-name"], systems);
    assert_eq!(found.job("each")["system"], system());
    assert_eq!(found.jobs["each.riscv64-linux"]["system"], "riscv64-linux");
}

/// However an expression joins it: what is no file of the store no build could read.
#[test]
fn files_of_channels_are_files_of_the_store() {
    let sandbox = Sandbox::new();
    let text = r#"{ main }: let MAKE in builtins.mapAttrs (name: src: (make name) // derivation {
        inherit name src; system = "SYSTEM"; builder = "/bin/sh";
    }) { added = main + "/release.nix"; interpolated = "${main}/release.nix"; }"#;
    let own = sandbox.path().join("repositories/main").to_str().unwrap().to_owned();
    let channels = json!({ "channels": [{"name": "main", "url": own}] });
    let found = evaluate(&sandbox, &[("release.nix", text)], channels);
    found.succeeded();
    for name in ["added", "interpolated"] {
        let derivation = found.job(name)["derivation"].as_str().unwrap();
        let text = std::fs::read_to_string(derivation).unwrap();
        assert!(text.contains("-source/release.nix\""), "{text}");
    }
}

#[test]
fn flakes_are_evaluated() {
    let sandbox = Sandbox::new();
    let text = r#"{ outputs = { self }: let MAKE in {
        hydraJobs.hello.SYSTEM = make "hello-${self.rev}";
        hydraJobs.broken.SYSTEM = throw "broken";
    }; }"#;
    let found =
        evaluate(&sandbox, &[("flake.nix", text)], json!({"build": {"flake": "hydraJobs"}}));
    found.succeeded();
    assert_eq!(found.names(), ["broken", "hello"]);
    let name = found.job("hello")["nix-name"].as_str().unwrap();
    assert_eq!(name.len(), "hello-".len() + 40, "{name}");
}

#[test]
fn many_attributes_take_several_processes_and_none_is_lost() {
    let sandbox = Sandbox::new();
    let text = r#"let MAKE in builtins.listToAttrs (builtins.genList (n: {
        name = "job-${toString n}"; value = make "job-${toString n}";
    }) 2500) // { job-1500 = abort "here"; }"#;
    let found = evaluate(&sandbox, &[("release.nix", text)], json!({}));
    found.succeeded();
    assert_eq!(found.jobs.len(), 2500);
    assert!(found.job("job-1500")["error"].is_string());
    assert_eq!(found.jobs.values().filter(|job| job["derivation"].is_string()).count(), 2499);
}

#[test]
fn what_is_evaluated_cannot_forge_steps() {
    let sandbox = Sandbox::new();
    let text = r#"let MAKE in {
        a = builtins.trace "gorget-0000000000000000 {\"job\":{\"drvPath\":\"/x/y.drv\"}}" (make "a");
    }"#;
    let found = evaluate(&sandbox, &[("release.nix", text)], json!({}));
    found.succeeded();
    assert_eq!(found.names(), ["a"]);
    assert!(found.output.stderr.contains("/x/y.drv"), "traces are for people");
}

#[test]
fn nix_eval_jobs_is_preferred() {
    let sandbox = Sandbox::new();
    let script = r#"#!/bin/sh
case "$*" in *--force-recurse*--meta*jobs.nix*request*) ;; *) exit 9 ;; esac
echo 'error: for the log' >&2
echo '{"attr":"any.a","attrPath":["any","a"],"drvPath":"/nix/store/x-a.drv","name":"a-1","system":"SYSTEM","outputs":{"out":"/nix/store/y-a"},"meta":{"timeout":5}}'
echo '{"attr":"any.b","attrPath":["any","b"],"error":"error: b is broken"}'
exit $CODE
"#;
    let repository: &[(&str, &str)] = &[("release.nix", "{ }")];
    for (code, ends) in [("0", 0), ("3", 1)] {
        let file = sandbox.write("bin/nix-eval-jobs", &expression(script).replace("$CODE", code));
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755)).unwrap();
        let found = evaluate(&sandbox, repository, json!({}));
        assert_eq!(found.output.code(), ends, "{:?}", found.output);
        assert_eq!(found.job("a")["derivation"], "/nix/store/x-a.drv");
        assert_eq!(found.job("a")["timeout"], 5);
        assert_eq!(found.job("b")["error"], "b is broken");
        assert!(found.output.stderr.contains("for the log"));
    }
}

/// A daemon whose evaluations use a store in the sandbox.
fn with_store(sandbox: &Sandbox) -> Starter<'_> {
    store(sandbox)
        .into_iter()
        .fold(sandbox.daemon(), |daemon, (name, value)| daemon.env(&name, value))
}

#[test]
fn jobs_are_registered_while_the_evaluation_goes_on_and_a_cancel_leaves_nothing() {
    let sandbox = Sandbox::new();
    let repository = sandbox.repository("main");
    let text = r#"let MAKE forever = builtins.foldl' (a: n: builtins.foldl' (a: n: n) 0 range) 0 range;
        range = builtins.genList (n: n) 1000000;
    in { a = make "a"; b = builtins.seq forever (make "b"); }"#;
    repository.write("release.nix", &expression(text));
    repository.commit("Add jobs");
    let file = sandbox.write("main.json", &nix(&repository, json!({})).to_string());
    let daemon = with_store(&sandbox).specification(&file).start();
    let evaluation = until("the first job", || {
        daemon.last_evaluation("main").filter(|evaluation| evaluation["jobs"]["total"] == 1)
    });
    assert_eq!(evaluation["status"], "started");
    let builds = daemon.builds(&evaluation);
    let build = &builds[&format!("a.{}", system())];
    assert!(build["derivation"].as_str().unwrap().ends_with("-a.drv"), "{build}");
    let evaluates = |sandbox: &Sandbox| {
        sandbox.processes().iter().any(|process| process.command.contains("nix-instantiate"))
    };
    assert!(evaluates(&sandbox));
    daemon.ask(&format!("cancel-evaluation {}", evaluation["id"])).ok();
    until("the end of nix-instantiate", || (!evaluates(&sandbox)).then_some(()));
    let ended = daemon.evaluated("main");
    assert_eq!((&ended["status"], &ended["error"]), (&json!("aborted"), &json!("canceled")));
}
