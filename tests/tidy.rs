//! Rules about the source that the compiler does not check: layers, sizes, first lines, migrations.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines a file may have at most; a split is due at 500.
const MAX_LINES: usize = 900;

/// What a top-level module may import besides itself: rows below its own.
const LAYERS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("sys", &["model", "actor"]),
    ("proto", &["model"]),
    // The test double of an actor's clock is `sys::clock`.
    ("actor", &["sys"]),
    ("logs", &["model", "sys", "actor"]),
    ("control", LOW),
    ("db", LOW),
    ("git", LOW),
    ("store", LOW),
    ("spec", LOW),
    ("evaluate", LOW),
    ("daemon", MIDDLE),
    ("web", MIDDLE),
    ("remote", MIDDLE),
];

const LOW: &[&str] = &["model", "sys", "proto", "actor", "logs"];
const MIDDLE: &[&str] = &[
    "model", "sys", "proto", "actor", "logs", "control", "db", "git", "store", "spec", "evaluate",
];

/// Imports beyond the table, each with its reason.
const EXCEPTIONS: &[(&str, &str)] = &[
    // The daemon serves the web interface in its own process on request.
    ("src/daemon.rs", "web"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files with this ending below a directory, with their names from the repository's root.
fn files(below: &str, ending: &str) -> BTreeMap<String, String> {
    let (mut found, mut todo) = (BTreeMap::new(), vec![root().join(below)]);
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else if path.to_str().unwrap().ends_with(ending) {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                found.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    found
}

fn sources() -> BTreeMap<String, String> {
    let mut all = files("src", ".rs");
    all.extend(files("tests", ".rs"));
    assert!(all.contains_key("src/lib.rs") && all.contains_key("tests/tidy.rs"));
    all
}

/// The part of a file before its tests, which may import what they like.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod ").next().unwrap()
}

/// The top-level modules that a file names as `crate::MODULE`.
fn imports(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.trim_start();
        if line.starts_with("//") {
            continue;
        }
        for rest in line.split("crate::").skip(1) {
            let names = match rest.strip_prefix('{') {
                // `use crate::{a, b}` names several.
                Some(list) => list.split([',', '}']).map(str::trim).collect::<Vec<_>>(),
                None => vec![rest],
            };
            for name in names {
                let end =
                    name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
                found.push(name[..end].to_owned());
            }
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

#[test]
fn modules_import_from_lower_layers_only() {
    let mut wrong = Vec::new();
    for (file, text) in files("src", ".rs") {
        let module = file["src/".len()..].split(['/', '.']).next().unwrap().to_owned();
        if ["lib", "main", "cli"].contains(&module.as_str()) || file.ends_with("tests.rs") {
            continue;
        }
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == module) else {
            wrong.push(format!("{file}: {module} has no layer in tests/tidy.rs"));
            continue;
        };
        for import in imports(without_tests(&text)) {
            let fine = import == module
                || allowed.contains(&import.as_str())
                || EXCEPTIONS.contains(&(file.as_str(), import.as_str()))
                // Macros and items of the crate's root are no modules.
                || !LAYERS.iter().any(|(name, _)| *name == import) && import != "cli";
            if !fine {
                wrong.push(format!("{file} imports {import}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn foreign_crates_have_one_owner() {
    let owners: &[(&str, &[&str])] = &[
        ("lexopt::", &["cli"]),
        ("rusqlite::", &["db"]),
        ("git2::", &["git"]),
        ("tiny_http::", &["web"]),
        ("zmq::", &["remote"]),
        ("mdns_sd::", &["remote"]),
        ("env_logger::", &["cli"]),
        ("indicatif::", &["cli"]),
    ];
    let mut wrong = Vec::new();
    for (file, text) in files("src", ".rs") {
        let module = file["src/".len()..].split(['/', '.']).next().unwrap();
        for (name, allowed) in owners {
            let code =
                without_tests(&text).lines().filter(|line| !line.trim_start().starts_with("//"));
            let used = code.into_iter().any(|line| line.contains(name));
            if used && !allowed.contains(&module) && !file.ends_with("tests.rs") {
                wrong.push(format!("{file} uses {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn files_are_short_and_say_what_they_are() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let lines = text.lines().count();
        if lines > MAX_LINES {
            wrong.push(format!("{file} has {lines} lines"));
        }
        if !text.starts_with("//! ") {
            wrong.push(format!("{file} does not begin with //!"));
        }
        if text.lines().any(|line| line.trim_end() != line) || !text.ends_with('\n') {
            wrong.push(format!("{file} has blanks at a line's end, or a last line without one"));
        }
        if file.ends_with("/mod.rs") {
            wrong.push(format!("{file}: foo.rs beside foo/, no mod.rs"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn nothing_is_left_unfinished_or_unsafe() {
    // In two parts, so that this file does not hold them.
    let words = [
        ("to", "do!("),
        ("unimple", "mented!("),
        ("TO", "DO"),
        ("FIX", "ME"),
        ("X", "XX:"),
        ("db", "g!("),
    ];
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        for (begin, end) in words {
            let word = format!("{begin}{end}");
            if text.contains(&word) {
                wrong.push(format!("{file} holds {word}"));
            }
        }
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let is_unsafe = code.into_iter().any(|line| {
            ["unsafe {", "unsafe fn", "unsafe impl"].iter().any(|word| line.contains(word))
        });
        let may_be =
            file.starts_with("src/sys") || file.starts_with("src/git") || file == "tests/tidy.rs";
        if is_unsafe && !may_be {
            wrong.push(format!("{file} is unsafe"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Numbers without a gap, in the order in which they are run.
#[test]
fn migrations_are_numbered_and_all_are_run() {
    let runner = fs::read_to_string(root().join("src/db/migrate.rs")).unwrap();
    let migrations = files("src/db/migrations", ".sql");
    assert!(!migrations.is_empty());
    for (index, name) in migrations.keys().enumerate() {
        let name = name.rsplit('/').next().unwrap();
        let number = format!("{:03}-", index + 1);
        assert!(name.starts_with(&number), "{name} should begin with {number}");
        assert!(runner.contains(name), "src/db/migrate.rs does not run {name}");
    }
}

/// They are compiled by cargo-fuzz alone.
#[test]
fn targets_of_the_fuzzer_are_those_that_there_are() {
    let targets = files("tests/fuzz/fuzz_targets", ".rs");
    assert!(!targets.is_empty());
    let manifest = fs::read_to_string(root().join("tests/fuzz/Cargo.toml")).unwrap();
    let library = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    assert_eq!(manifest.matches("[[bin]]").count(), targets.len());
    for (file, text) in targets {
        let name = file.rsplit('/').next().unwrap().strip_suffix(".rs").unwrap();
        let path = format!("path = \"fuzz_targets/{name}.rs\"");
        assert!(manifest.contains(&path), "tests/fuzz/Cargo.toml does not name {file}");
        let call =
            format!("libfuzzer_sys::fuzz_target!(|data: &[u8]| gorget::fuzz::{name}(data));");
        assert!(text.contains(&call), "{file} does not call gorget::fuzz::{name}");
        let function = format!("pub fn {name}(data: &[u8]) {{");
        assert!(library.contains(&function), "src/lib.rs has no {function}");
    }
}

#[test]
fn imports_are_found() {
    let text = "use crate::{db, spec::json};\n// crate::cli\nlet a = crate::actor::fault(crate::sys::x);\n";
    assert_eq!(imports(text), ["db", "spec", "actor", "sys"]);
}
