//! Passwords in `~/.netrc`.

use std::path::Path;

/// Largest file that is read: a real one has a few lines.
const LARGEST: u64 = 1 << 20;

/// User and password for a host.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Login {
    pub(super) user: String,
    pub(super) password: String,
}

/// Looks `host` up in `file`; `user`, if the URL names one, must be the entry's. A file that is missing or
/// cannot be read holds nothing.
pub(super) fn find(file: &Path, host: &str, user: Option<&str>) -> Option<Login> {
    let small = std::fs::metadata(file).is_ok_and(|data| data.is_file() && data.len() <= LARGEST);
    let text = std::fs::read(file).ok().filter(|_| small)?;
    search(&String::from_utf8_lossy(&text), host, user)
}

fn search(text: &str, host: &str, user: Option<&str>) -> Option<Login> {
    let mut words = Words { rest: text };
    let (mut ours, mut login, mut password) = (false, None::<String>, None::<String>);
    let complete = |ours: bool, login: &Option<String>, password: &Option<String>| {
        let login = login.as_deref().or(user).filter(|_| ours)?;
        let password = password.clone()?;
        let wanted = user.is_none_or(|user| user == login);
        wanted.then(|| Login { user: login.to_owned(), password })
    };
    while let Some(word) = words.next() {
        match word.as_str() {
            "machine" | "default" => {
                if let Some(found) = complete(ours, &login, &password) {
                    return Some(found);
                }
                ours = word == "default"
                    || words.next().is_some_and(|name| name.eq_ignore_ascii_case(host));
                (login, password) = (None, None);
            }
            "login" => login = words.next(),
            "password" => password = words.next(),
            "account" => drop(words.next()),
            "macdef" => words.skip_macro(),
            _ => {}
        }
    }
    complete(ours, &login, &password)
}

/// The words of the file; a quoted one may hold blanks.
struct Words<'a> {
    rest: &'a str,
}

impl Words<'_> {
    fn next(&mut self) -> Option<String> {
        loop {
            self.rest = self.rest.trim_start();
            match self.rest.strip_prefix('#') {
                Some(comment) => self.rest = comment.split_once('\n').map_or("", |(_, rest)| rest),
                None => break,
            }
        }
        let (mut word, mut quoted) = (String::new(), false);
        let mut chars = self.rest.char_indices();
        let mut end = self.rest.len();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' if quoted || at == 0 => quoted = !quoted,
                '\\' => word.extend(chars.next().map(|(_, escaped)| escaped)),
                c if c.is_whitespace() && !quoted => {
                    end = at;
                    break;
                }
                c => word.push(c),
            }
        }
        let empty = self.rest.is_empty();
        self.rest = &self.rest[end..];
        (!empty).then_some(word)
    }

    /// A macro ends at an empty line.
    fn skip_macro(&mut self) {
        self.rest = self.rest.split_once("\n\n").map_or("", |(_, rest)| rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# mine\nmachine a.org login me password \"two words\"\n\
        macdef init\nmachine b.org login no password no\n\n\
        machine b.org\n  login you\n  password p\\ q#r\nmachine b.org login me password s\n\
        machine c.org login half\ndefault login any password thing\n";

    #[test]
    fn entries_are_found() {
        let login = |user: &str, password: &str| {
            Some(Login { user: user.to_owned(), password: password.to_owned() })
        };
        assert_eq!(search(FILE, "a.org", None), login("me", "two words"));
        assert_eq!(search(FILE, "B.ORG", None), login("you", "p q#r"));
        assert_eq!(search(FILE, "b.org", Some("me")), login("me", "s"));
        assert_eq!(search(FILE, "d.org", None), login("any", "thing"));
        assert_eq!(search(FILE, "d.org", Some("else")), None);
        assert_eq!(search("machine a.org login me", "a.org", None), None);
        assert_eq!(search("machine a.org password p", "a.org", Some("u")), login("u", "p"));
        assert_eq!(search("", "a.org", None), None);
        assert_eq!(search("machine", "a.org", None), None);
        assert_eq!(search("machine a.org login \"open", "a.org", None), None);
    }
}
