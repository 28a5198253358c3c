//! Completions for bash, zsh and fish.

use std::fmt::Write as _;

use crate::cli::table::{COMMANDS, Command, Flag, Kind};

const HEADER: &str = "# Rendered from the option table: change that, and run `make man`.\n";

fn listed() -> impl Iterator<Item = &'static Command> {
    COMMANDS.iter().filter(|command| command.kind != Kind::Hidden)
}

/// What a value or an argument names, as far as a shell can complete it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    Files,
    Directories,
    Users,
    Groups,
    Other,
}

fn names(value: &str) -> Names {
    match value {
        "FILE" | "FILE..." => Names::Files,
        "DIR" => Names::Directories,
        "USER" => Names::Users,
        "GROUP" => Names::Groups,
        _ => Names::Other,
    }
}

/// The options and words that can follow a command.
fn words(command: &Command) -> String {
    let mut words: Vec<String> = command.flags().map(|flag| format!("--{}", flag.name)).collect();
    match command.name {
        "pause" | "resume" => words.extend(["builds", "evaluations"].map(str::to_owned)),
        "token" => words.extend(["add", "list", "revoke"].map(str::to_owned)),
        "help" => words.extend(listed().map(|command| command.name.to_owned())),
        _ => {}
    }
    words.join(" ")
}

fn takes_files(command: &Command) -> bool {
    command
        .operands
        .iter()
        .any(|operands| operands.split(' ').any(|word| names(word) == Names::Files))
}

/// The options, short and long, of any command whose values are names of this kind.
fn options_of(kind: Names) -> Vec<String> {
    let mut options = Vec::new();
    for flag in listed().flat_map(Command::flags) {
        if flag.value.map(names) == Some(kind) {
            options.push(format!("--{}", flag.name));
        }
    }
    options.sort();
    options.dedup();
    options
}

pub(super) fn bash() -> String {
    let mut text = String::from(HEADER);
    text.push_str(
        "_gorget() {\n    local word=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} command= i\n    \
         if [[ $word == = ]]; then word=; fi\n    \
         if [[ $previous == = ]]; then previous=${COMP_WORDS[COMP_CWORD-2]}; fi\n    \
         case $previous in\n",
    );
    for (kind, action) in [
        (Names::Files, "compgen -f"),
        (Names::Directories, "compgen -d"),
        (Names::Users, "compgen -u"),
        (Names::Groups, "compgen -g"),
    ] {
        let options = options_of(kind).join("|");
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "    {options})\n        mapfile -t COMPREPLY < <({action} -- \"$word\"); return ;;"
        );
    }
    text.push_str(
        "    esac\n    for ((i = 1; i < COMP_CWORD; i++)); do\n        \
         case ${COMP_WORDS[i]} in\n        -*|=) ;;\n        \
         *) if [[ ${COMP_WORDS[i-1]} != = ]]; then command=${COMP_WORDS[i]}; break; fi ;;\n        esac\n    \
         done\n    local words files=\n    case $command in\n",
    );
    let all: Vec<_> = listed().map(|command| command.name).collect();
    let _ = writeln!(text, "    '') words='{} --help --version' ;;", all.join(" "));
    for command in listed() {
        let files = if takes_files(command) { " files=1" } else { "" };
        let _ = writeln!(text, "    {}) words='{}'{files} ;;", command.name, words(command));
    }
    text.push_str(
        "    esac\n    mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$word\"; \
         if [[ $files ]]; then compgen -f -- \"$word\"; fi)\n}\ncomplete -o filenames -F _gorget gorget\n",
    );
    text
}

pub(super) fn zsh() -> String {
    let mut text = String::from("#compdef gorget\n");
    text.push_str(HEADER);
    text.push_str(
        "_gorget() {\n    local context state line\n    local -a commands\n    commands=(\n",
    );
    for command in listed() {
        // Writing to a string does not fail.
        let _ = writeln!(text, "        '{}:{}'", command.name, quoted(command.summary));
    }
    text.push_str(
        "    )\n    _arguments -C '(-h --help)'{-h,--help}'[help]' '(-V --version)'{-V,--version}'[version]' \\\n        \
         '1:command:->command' '*::argument:->argument'\n    case $state in\n    \
         command) _describe command commands ;;\n    argument)\n        case $line[1] in\n",
    );
    for command in listed() {
        let _ = writeln!(text, "        {}) _arguments \\", command.name);
        for flag in command.flags() {
            let _ = writeln!(text, "            {} \\", zsh_option(flag));
        }
        let operand = match command.name {
            "pause" | "resume" => "'1:what:(builds evaluations)'",
            "token" => "'1:what:(add list revoke)' '*:argument:'",
            _ if takes_files(command) => "'*:file:_files'",
            _ => "'*:argument:'",
        };
        let _ = writeln!(text, "            {operand} ;;");
    }
    text.push_str("        esac ;;\n    esac\n}\n_gorget \"$@\"\n");
    text
}

fn zsh_option(flag: &Flag) -> String {
    let value = flag.value.map_or(String::new(), |value| {
        let action = match names(value) {
            Names::Files => "_files",
            Names::Directories => "_files -/",
            Names::Users => "_users",
            Names::Groups => "_groups",
            Names::Other => "",
        };
        format!(":{}:{action}", value.replace(':', "\\:"))
    });
    let help = quoted(flag.help).replace('[', "\\[").replace(']', "\\]");
    let equals = if flag.value.is_some() { "=" } else { "" };
    match (flag.short, flag.repeatable) {
        (None, _) => format!("'--{}{equals}[{help}]{value}'", flag.name),
        (Some(short), true) => {
            format!("'*'{{-{short},--{}{equals}}}'[{help}]{value}'", flag.name)
        }
        (Some(short), false) => {
            format!("'(-{short} --{0})'{{-{short},--{0}{equals}}}'[{help}]{value}'", flag.name)
        }
    }
}

/// Inside single quotes; a colon would end a description.
fn quoted(text: &str) -> String {
    text.replace('`', "").replace('\'', "'\\''").replace(':', "\\:")
}

pub(super) fn fish() -> String {
    let mut text = String::from(HEADER);
    text.push_str("complete -c gorget -f\n");
    let single = |text: &str| text.replace('`', "").replace('\\', "\\\\").replace('\'', "\\'");
    for command in listed() {
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "complete -c gorget -n __fish_use_subcommand -a {} -d '{}'",
            command.name,
            single(command.summary)
        );
    }
    for command in listed() {
        let condition = format!("-n '__fish_seen_subcommand_from {}'", command.name);
        let arguments = match command.name {
            "pause" | "resume" => " -a 'builds evaluations'",
            "token" => " -a 'add list revoke'",
            _ if takes_files(command) => " -F",
            _ => "",
        };
        if !arguments.is_empty() {
            let _ = writeln!(text, "complete -c gorget {condition}{arguments}");
        }
        for flag in command.flags() {
            let short = flag.short.map(|letter| format!(" -s {letter}")).unwrap_or_default();
            let value = match flag.value.map(names) {
                None => "",
                Some(Names::Files) => " -r -F",
                Some(Names::Directories) => " -x -a '(__fish_complete_directories)'",
                Some(Names::Users) => " -x -a '(__fish_complete_users)'",
                Some(Names::Groups) => " -x -a '(__fish_complete_groups)'",
                Some(Names::Other) => " -x",
            };
            let help = single(flag.help);
            let _ = writeln!(
                text,
                "complete -c gorget {condition}{short} -l {}{value} -d '{help}'",
                flag.name
            );
        }
    }
    text
}
