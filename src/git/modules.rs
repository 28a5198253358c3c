//! `.gitmodules`: which URL a submodule's path stands for.
//!
//! Only what that file needs of git's configuration format is read, and nothing is included: it comes from
//! whoever pushed last.

use std::collections::HashMap;

/// What the file says of one submodule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Module {
    pub(super) url: Option<String>,
    /// `update = none`: not to be checked out.
    pub(super) skipped: bool,
}

/// Submodules by path. Lines that make no sense are passed over, as an unknown key is.
pub(super) fn parse(text: &str) -> HashMap<String, Module> {
    let mut sections: Vec<(Option<String>, Module)> = Vec::new();
    let mut names: HashMap<String, usize> = HashMap::new();
    let mut current = None;
    for line in logical_lines(text) {
        let line = line.trim();
        if let Some(rest) = line.strip_prefix('[') {
            current = section(rest).map(|name| {
                *names.entry(name).or_insert_with(|| {
                    sections.push((None, Module::default()));
                    sections.len() - 1
                })
            });
            continue;
        }
        let (Some(index), Some((key, value))) = (current, line.split_once('=')) else { continue };
        let Some((path, module)) = sections.get_mut(index) else { continue };
        let value = plain(value);
        match key.trim().to_ascii_lowercase().as_str() {
            "path" => *path = Some(value.trim_end_matches('/').to_owned()),
            "url" => module.url = Some(value),
            "update" => module.skipped = value == "none",
            _ => {}
        }
    }
    sections.into_iter().filter_map(|(path, module)| Some((path?, module))).collect()
}

/// Joins lines that end in a backslash.
fn logical_lines(text: &str) -> Vec<String> {
    let (mut lines, mut open) = (Vec::new(), String::new());
    for line in text.lines() {
        let backslashes = line.bytes().rev().take_while(|&byte| byte == b'\\').count();
        if backslashes % 2 == 1 {
            open.push_str(&line[..line.len() - 1]);
        } else {
            lines.push(std::mem::take(&mut open) + line);
        }
    }
    lines.push(open);
    lines
}

/// The name in `submodule "NAME"]`.
fn section(text: &str) -> Option<String> {
    let (kind, rest) = text.split_once('"')?;
    if !kind.trim().eq_ignore_ascii_case("submodule") {
        return None;
    }
    let (mut name, mut chars) = (String::new(), rest.chars());
    loop {
        match chars.next()? {
            '"' => return Some(name),
            '\\' => name.push(chars.next()?),
            c => name.push(c),
        }
    }
}

/// A value without quotes, escapes, comments and outer blanks.
fn plain(text: &str) -> String {
    let (mut value, mut quoted) = (String::new(), false);
    let mut kept = 0; // Bytes that a blank at the end is not cut from.
    let mut chars = text.trim_start().chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => quoted = !quoted,
            '#' | ';' if !quoted => break,
            '\\' => match chars.next() {
                Some('n') => value.push('\n'),
                Some('t') => value.push('\t'),
                Some(escaped) => value.push(escaped),
                None => {}
            },
            c => value.push(c),
        }
        if quoted || !c.is_whitespace() {
            kept = value.len();
        }
    }
    value.truncate(kept);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn submodules_are_read() {
        let modules = parse(
            "# ours\n[submodule \"a \\\"b\\\"\"]\n\tpath = lib/a/ ; here\n\tURL = \"../a # b\" # there\n\
             \tbranch = x\n[core]\n\tpath = no\n[submodule \"n\"]\n\tpath=n\\\nn\n\tupdate = none\n\
             [submodule \"a \\\"b\\\"\"]\n\tnonsense\n[submodule \"open]\n\tpath = p\n",
        );
        let a = Module { url: Some("../a # b".into()), skipped: false };
        let n = Module { url: None, skipped: true };
        assert_eq!(modules, HashMap::from([("lib/a".into(), a), ("nn".into(), n)]));
        assert!(parse("").is_empty());
        assert!(parse("[submodule \"x\"\\").is_empty());
    }
}
