//! `check`: reads files and says what is wrong with them.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use super::given::Given;
use super::print;
use super::usage::Usage;
use crate::spec;
use crate::spec::scheme::Guile;

/// The files to check: at least one.
#[derive(Debug)]
pub(super) struct Options {
    specifications: Vec<PathBuf>,
    parameters: Option<PathBuf>,
    /// The words of the command that runs Guix.
    guix: Vec<String>,
}

impl Options {
    pub(super) fn read(given: &mut Given) -> Result<Self, Usage> {
        let mut specifications: Vec<PathBuf> =
            given.all("specifications").map(Into::into).collect();
        let parameters = given.path("parameters")?;
        if given.more() || (specifications.is_empty() && parameters.is_none()) {
            specifications.push(given.operand("FILE")?.into());
        }
        while given.more() {
            specifications.push(given.operand("FILE")?.into());
        }
        let guix = given.command("guix")?.unwrap_or_else(super::guix);
        Ok(Self { specifications, parameters, guix })
    }
}

/// 0 if all are good, 1 if not.
pub(super) fn run(options: &Options) -> ExitCode {
    let (mut good, mut bad) = (String::new(), false);
    let guile = Guile::new(options.guix.clone());
    let mut say = |result: Result<String, spec::Error>| match result {
        // Writing to a string does not fail.
        Ok(line) => drop(writeln!(good, "{line}")),
        Err(error) => {
            print::err(&error.to_string());
            bad = true;
        }
    };
    for file in &options.specifications {
        say(spec::read(file, &guile).map(|specifications| {
            let names: Vec<_> = specifications.iter().map(|s| s.name.as_str()).collect();
            format!("{}: good; jobsets: {}", file.display(), names.join(", "))
        }));
    }
    if let Some(file) = &options.parameters {
        say(spec::parameters::read(file, &guile).map(|_| format!("{}: good", file.display())));
    }
    let printed = print::out(&good);
    if bad { ExitCode::FAILURE } else { printed }
}
