//! Completions for bash, zsh and fish.

use std::fmt::Write as _;

use crate::cli::table::{BACKENDS, COMMANDS, CONNECTION, Command, Flag, Kind};
use crate::model::status::BuildStatus;
use crate::proto::control::ROLES;

const HEADER: &str = "# Rendered from the option table: change that, and run `make man`.\n";

fn listed() -> impl Iterator<Item = &'static Command> {
    COMMANDS.iter().filter(|command| command.kind != Kind::Hidden)
}

/// What a value or an argument names, as far as a shell can complete it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Names {
    Files,
    Directories,
    Users,
    Groups,
    /// One of these.
    Words(Vec<&'static str>),
    Other,
}

/// What the table's word for a value or an argument stands for.
fn names(value: &'static str) -> Names {
    match value.trim_matches(['[', ']']) {
        "FILE" | "FILE..." => Names::Files,
        "DIR" => Names::Directories,
        "USER" => Names::Users,
        "GROUP" => Names::Groups,
        "BACKEND" => Names::Words(BACKENDS.to_vec()),
        "WORD" => Names::Words(BuildStatus::ALL.iter().map(|status| status.word()).collect()),
        "ROLE" => Names::Words(ROLES.to_vec()),
        "COMMAND" => Names::Words(listed().map(|command| command.name).collect()),
        // What is to be written as it stands, one of several.
        words if words.starts_with(|c: char| c.is_ascii_lowercase()) => {
            Names::Words(words.split('|').collect())
        }
        _ => Names::Other,
    }
}

/// What an option's value names; the command of `--guix` is none of ours.
fn value_names(flag: &Flag) -> Option<Names> {
    flag.value.map(|value| if value == "COMMAND" { Names::Other } else { names(value) })
}

/// What can stand at a place of a command's arguments.
struct Operand {
    /// How many are before it.
    place: usize,
    /// The word that the first one must be.
    after: Option<&'static str>,
    repeated: bool,
    names: Names,
}

/// The arguments of a command that a shell can complete.
fn operands(command: &Command) -> Vec<Operand> {
    let mut operands: Vec<Operand> = Vec::new();
    for way in command.operands {
        // An option among the arguments is completed as one.
        let words: Vec<_> = way.split(' ').filter(|word| !word.is_empty()).collect();
        if words.first().is_some_and(|word| word.trim_start_matches('[').starts_with('-')) {
            continue;
        }
        let literal = |word: &'static str| word.starts_with(|c: char| c.is_ascii_lowercase());
        for (place, &word) in words.iter().enumerate() {
            let after = words.first().copied().filter(|first| place > 0 && literal(first));
            let new = Operand { place, after, repeated: word.ends_with("..."), names: names(word) };
            match (operands.iter_mut().find(|old| old.place == place && old.after == after), new) {
                (
                    Some(Operand { names: Names::Words(old), .. }),
                    Operand { names: Names::Words(new), .. },
                ) => {
                    old.extend(new);
                }
                (_, new) => operands.push(new),
            }
        }
    }
    operands.retain(|operand| operand.names != Names::Other);
    operands
}

/// What bash prints for names of this kind that begin with `$word`.
fn compgen(names: &Names) -> String {
    let action = match names {
        Names::Files => "-f".to_owned(),
        Names::Directories => "-d".to_owned(),
        Names::Users => "-u".to_owned(),
        Names::Groups => "-g".to_owned(),
        Names::Words(words) => format!("-W '{}'", words.join(" ")),
        Names::Other => return ":".to_owned(),
    };
    format!("compgen {action} -- \"$word\"")
}

/// `COMMAND OPTION` for every way to write an option that takes a value.
fn with_value(command: &str, flag: &Flag) -> String {
    let short = flag.short.map(|letter| format!("'{command} -{letter}'|")).unwrap_or_default();
    format!("{short}'{command} --{}'", flag.name)
}

pub(super) fn bash() -> String {
    // Before the command stand those that tell where the daemon is.
    let before = CONNECTION.flags.iter().map(|flag| ("", flag));
    let after = listed().flat_map(|command| command.flags().map(|flag| (command.name, flag)));
    let valued: Vec<_> = before.chain(after).filter(|(_, flag)| flag.value.is_some()).collect();
    let patterns: Vec<_> = valued.iter().map(|(command, flag)| with_value(command, flag)).collect();
    let mut text = String::from(HEADER);
    let _ = write!(
        text,
        "_gorget() {{\n    local word=${{COMP_WORDS[COMP_CWORD]}} command= option= i\n    local -a operands=()\n    \
         if [[ $word == = ]]; then word=; fi\n    \
         for ((i = 1; i < COMP_CWORD; i++)); do\n        \
         case \"$command ${{COMP_WORDS[i]}}\" in\n        \
         {})\n            option=\"$command ${{COMP_WORDS[i]}}\"\n            \
         if [[ ${{COMP_WORDS[i+1]}} == = ]]; then i=$((i + 1)); fi\n            \
         if ((i + 1 >= COMP_CWORD)); then break; fi\n            \
         option=\n            i=$((i + 1)) ;;\n        \
         *' -'*) ;;\n        \
         ' '*) command=${{COMP_WORDS[i]}} ;;\n        \
         *) operands+=(\"${{COMP_WORDS[i]}}\") ;;\n        esac\n    done\n    \
         case $option in\n    '') ;;\n",
        patterns.join("|\\\n        ")
    );
    for (command, flag) in &valued {
        let Some(names) = value_names(flag).filter(|names| *names != Names::Other) else {
            continue;
        };
        let _ = writeln!(
            text,
            "    {})\n        mapfile -t COMPREPLY < <({}); return ;;",
            with_value(command, flag),
            compgen(&names)
        );
    }
    // Options are offered where nothing else can stand, and to whoever begins one.
    text.push_str(
        "    *) COMPREPLY=(); return ;;\n    esac\n    \
         case \"${word:0:1} $command ${#operands[@]} ${operands[0]}\" in\n    -*) ;;\n",
    );
    for command in listed() {
        for Operand { place, after, repeated, names } in operands(command) {
            let pattern = match (repeated, after) {
                (true, _) => format!("*' {} '*", command.name),
                (false, None) => format!("*' {} {place} '*", command.name),
                (false, Some(word)) => format!("*' {} {place} {word}'", command.name),
            };
            let _ = writeln!(
                text,
                "    {pattern})\n        mapfile -t COMPREPLY < <({}); return ;;",
                compgen(&names)
            );
        }
    }
    text.push_str("    esac\n    local words=\n    case $command in\n");
    let all: Vec<_> = listed().map(|command| command.name).collect();
    let _ = writeln!(text, "    '') words='{} --help --version' ;;", all.join(" "));
    for command in listed() {
        let words: Vec<_> = command.flags().map(|flag| format!("--{}", flag.name)).collect();
        let _ = writeln!(text, "    {}) words='{}' ;;", command.name, words.join(" "));
    }
    text.push_str(
        "    esac\n    mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$word\")\n}\n\
         complete -o filenames -F _gorget gorget\n",
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
        let operands = operands(command);
        for Operand { place, names, .. } in operands.iter().filter(|operand| !operand.repeated) {
            let action = zsh_action(names);
            let _ = writeln!(text, "            '{}:argument:{action}' \\", place + 1);
        }
        let rest = operands.iter().find(|operand| operand.repeated);
        let rest = rest.map(|operand| zsh_action(&operand.names)).unwrap_or_default();
        let _ = writeln!(text, "            '*:argument:{rest}' ;;");
    }
    text.push_str("        esac ;;\n    esac\n}\n_gorget \"$@\"\n");
    text
}

fn zsh_action(names: &Names) -> String {
    match names {
        Names::Files => "_files".to_owned(),
        Names::Directories => "_files -/".to_owned(),
        Names::Users => "_users".to_owned(),
        Names::Groups => "_groups".to_owned(),
        Names::Words(words) => format!("({})", words.join(" ")),
        Names::Other => String::new(),
    }
}

fn zsh_option(flag: &Flag) -> String {
    let value = flag.value.map_or(String::new(), |value| {
        let action = value_names(flag).map(|names| zsh_action(&names)).unwrap_or_default();
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
        for Operand { after, names, .. } in operands(command) {
            let after = after.map(|word| format!("; and __fish_seen_subcommand_from {word}"));
            let condition = format!(
                "__fish_seen_subcommand_from {}{}",
                command.name,
                after.unwrap_or_default()
            );
            let arguments = fish_arguments(&names);
            let _ = writeln!(text, "complete -c gorget -n '{condition}'{arguments}");
        }
        for flag in command.flags() {
            let short = flag.short.map(|letter| format!(" -s {letter}")).unwrap_or_default();
            let value = match value_names(flag) {
                None => String::new(),
                Some(Names::Files) => " -r -F".to_owned(),
                Some(names) => format!(" -x{}", fish_arguments(&names)),
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

fn fish_arguments(names: &Names) -> String {
    let list = match names {
        Names::Files => return " -F".to_owned(),
        Names::Directories => "(__fish_complete_directories)".to_owned(),
        Names::Users => "(__fish_complete_users)".to_owned(),
        Names::Groups => "(__fish_complete_groups)".to_owned(),
        Names::Words(words) => words.join(" "),
        Names::Other => return String::new(),
    };
    format!(" -a '{list}'")
}
