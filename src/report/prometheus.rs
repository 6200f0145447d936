//! Prometheus' text form.
//!
//! Invariant: a name of foreign origin stays within the quotes of its label, on one line.

use std::fmt::Write as _;

/// A text under construction.
#[derive(Debug, Default)]
pub struct Exposition(String);

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// It only rises.
    Counter,
    /// It goes up and down.
    Gauge,
}

impl Exposition {
    /// Begins a metric: a counter's name ends in `_total`.
    pub fn begin(&mut self, name: &str, kind: MetricKind, help: &str) {
        let kind = match kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
        };
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    /// Adds a value.
    pub fn value(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        let labels: Vec<_> =
            labels.iter().map(|(key, value)| format!("{key}=\"{}\"", label(value))).collect();
        if labels.is_empty() {
            self.line(format_args!("{name} {value}"));
        } else {
            self.line(format_args!("{name}{{{}}} {value}", labels.join(",")));
        }
    }

    /// The text.
    #[must_use]
    pub fn into_text(self) -> String {
        self.0
    }

    /// A String takes every line.
    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").unwrap_or_default();
    }
}

fn label(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_of_a_hostile_name_stays_within_its_quotes() {
        assert_eq!(label("a\"b\\c\nd"), r#"a\"b\\c\nd"#);
    }

    #[test]
    fn values_stand_below_their_metric() {
        let mut text = Exposition::default();
        text.begin("x_total", MetricKind::Counter, "What.");
        text.value("x_total", &[("a", "1"), ("b", "\"")], 7);
        text.value("x_total", &[], 8);
        let lines =
            "# HELP x_total What.\n# TYPE x_total counter\nx_total{a=\"1\",b=\"\\\"\"} 7\nx_total 8\n";
        assert_eq!(text.into_text(), lines);
    }
}
