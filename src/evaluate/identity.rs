//! Identities of builds that no store names: SHA-256 over an unambiguous encoding of what decides them.
//!
//! Invariant: the encoding never changes, or every process build of every jobset would be repeated. Each
//! string is preceded by its length, each list by its number of elements (64 bits, little endian).

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

/// What decides a process build.
pub(crate) struct Process<'a> {
    pub(crate) job: &'a str,
    pub(crate) system: &'a str,
    /// Tree ids of the checkouts, in the order of the channels.
    pub(crate) trees: &'a [String],
    pub(crate) command: &'a [String],
    pub(crate) environment: &'a BTreeMap<String, String>,
    pub(crate) products: &'a [String],
    /// Name and identity of each needed job: a build is told its needs by name.
    pub(crate) needs: Vec<(&'a str, &'a str)>,
}

/// `process:` and 64 hexadecimal digits.
pub(crate) fn process(mut build: Process<'_>) -> String {
    // The order in which needs are listed changes nothing for the build.
    build.needs.sort_unstable();
    let mut encoder = Encoder::new("gorget process 1");
    encoder.text(build.job);
    encoder.list(build.trees);
    encoder.list(build.command);
    encoder.number(build.environment.len());
    for (name, value) in build.environment {
        encoder.text(name);
        encoder.text(value);
    }
    encoder.text(build.system);
    encoder.list(build.products);
    encoder.number(build.needs.len());
    for (name, identity) in build.needs {
        encoder.text(name);
        encoder.text(identity);
    }
    encoder.finish("process:")
}

/// `error:` and 64 hexadecimal digits.
pub(crate) fn error(jobset: &str, job: &str, system: &str, message: &str) -> String {
    let mut encoder = Encoder::new("gorget error 1");
    for text in [jobset, job, system, message] {
        encoder.text(text);
    }
    encoder.finish("error:")
}

struct Encoder(Sha256);

impl Encoder {
    fn new(purpose: &str) -> Self {
        let mut encoder = Self(Sha256::new());
        encoder.text(purpose);
        encoder
    }

    fn number(&mut self, number: usize) {
        self.0.update((number as u64).to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(text.len());
        self.0.update(text.as_bytes());
    }

    fn list(&mut self, list: &[String]) {
        self.number(list.len());
        for text in list {
            self.text(text);
        }
    }

    fn finish(self, prefix: &str) -> String {
        use std::fmt::Write;
        let mut identity = String::with_capacity(prefix.len() + 64);
        identity.push_str(prefix);
        for byte in self.0.finalize() {
            // Writing to a string cannot fail.
            let _ = write!(identity, "{byte:02x}");
        }
        identity
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|&text| text.to_owned()).collect()
    }

    /// The values were computed with Python's hashlib and struct from the description above.
    #[test]
    fn identities_do_not_change() {
        let identity = process(Process {
            job: "unit-tests",
            system: "x86_64-linux",
            trees: &strings(&["4b825dc642cb6eb9a060e54bf8d69288fbee4904"]),
            command: &strings(&["make", "check"]),
            environment: &BTreeMap::from([("CI".to_owned(), "true".to_owned())]),
            products: &strings(&["report.html"]),
            needs: vec![("lint", "error:00"), ("compile", "process:11")],
        });
        assert_eq!(
            identity,
            "process:e77d59b7b21bacf99f9e95ad854019ac7add6d118620c095c5f424fa7f2046b2"
        );
        assert_eq!(
            error("js", "broken", "x86_64-linux", "unbound variable: foo"),
            "error:af4ca7bee3188bbb4f9bf63c7a71fd8e15af8d21ed98f4689782fbdc57f38b04"
        );
    }

    #[test]
    fn no_two_descriptions_encode_alike() {
        let identity = |command: &[&str], products: &[&str]| {
            process(Process {
                job: "j",
                system: "s",
                trees: &[],
                command: &strings(command),
                environment: &BTreeMap::new(),
                products: &strings(products),
                needs: Vec::new(),
            })
        };
        assert_ne!(identity(&["a", "b"], &[]), identity(&["ab"], &[]));
        assert_ne!(identity(&["a"], &["b"]), identity(&["a", "b"], &[]));
        assert_ne!(error("a", "b", "c", "d"), error("a", "bc", "", "d"));
    }
}
