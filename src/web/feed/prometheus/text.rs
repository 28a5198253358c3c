//! The text format: for each metric what it is, then its samples.

use std::fmt::Write;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Only grows.
    Counter,
    Gauge,
}

#[derive(Debug, Default)]
pub(super) struct Text(pub(super) String);

impl Text {
    /// What the samples that follow are.
    pub(super) fn begin(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        // Writing to a string does not fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        for (n, (label, of)) in labels.iter().enumerate() {
            let before = if n == 0 { '{' } else { ',' };
            let of = of.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{before}{label}=\"{of}\"");
        }
        let after = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{after} {value}");
    }

    /// A metric of one sample.
    pub(super) fn one(
        &mut self,
        name: &str,
        kind: Kind,
        help: &str,
        labels: &[(&str, &str)],
        value: f64,
    ) {
        self.begin(name, kind, help);
        self.sample(name, labels, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_follow_what_they_are_and_labels_are_escaped() {
        let mut text = Text::default();
        text.one("a_total", Kind::Counter, "All.", &[], 1234567890.0);
        text.begin("b", Kind::Gauge, "Some.");
        text.sample("b", &[("x", "a\"b\\c\nd"), ("y", "z")], 0.5);
        assert_eq!(
            text.0,
            "# HELP a_total All.\n# TYPE a_total counter\na_total 1234567890\n\
             # HELP b Some.\n# TYPE b gauge\nb{x=\"a\\\"b\\\\c\\nd\",y=\"z\"} 0.5\n"
        );
    }
}
