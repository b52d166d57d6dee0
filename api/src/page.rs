//! A page of metrics, in the text format that Prometheus reads (version 0.0.4).
//!
//! ```text
//!   # HELP tandem_hosts Hosts by state.
//!   # TYPE tandem_hosts gauge
//!   tandem_hosts{state="live"} 3
//! ```

use axum::http::header;
use axum::response::{IntoResponse, Response};
use std::fmt::{Display, Write};

/// What a metric is.
#[derive(Clone, Copy, Debug)]
pub enum MetricKind {
    /// It only grows; its name ends in `_total`.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// A page of metrics. Names and units are Prometheus's: seconds, bytes, `_total` for what only grows.
#[derive(Debug, Default)]
pub struct Page(String);

impl Page {
    /// Begins the metric `name`; its samples follow.
    pub fn head(&mut self, name: &str, kind: MetricKind, help: &str) {
        let kind = match kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
        };
        self.begin(name, kind, help);
    }

    fn begin(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// A sample of the metric `name`, with these labels.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        let mut before = "{";
        for (label, value) in labels {
            let _ = write!(self.0, "{before}{label}=\"{}\"", Escaped(value));
            before = ",";
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {value}");
    }

    /// A metric of one sample without labels.
    pub fn one(&mut self, name: &str, kind: MetricKind, help: &str, value: impl Display) {
        self.head(name, kind, help);
        self.sample(name, &[], value);
    }

    /// A metric in seconds, with these labels: how many times were up to each of `bounds_us`, and, last in `counts`, how many longer.
    pub fn histogram(
        &mut self,
        name: &str,
        help: &str,
        labels: &[(&str, &str)],
        bounds_us: &[u64],
        counts: &[u64],
        sum_us: u64,
    ) {
        self.begin(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        let mut so_far = 0;
        let bounds = bounds_us.iter().map(|us| Seconds(*us).to_string());
        let all = bounds.chain(["+Inf".to_owned()]);
        for (bound, count) in all.zip(counts) {
            so_far += count;
            let labels = [labels, &[("le", &bound)]].concat();
            self.sample(&bucket, &labels, so_far);
        }
        self.sample(&format!("{name}_sum"), labels, Seconds(sum_us));
        self.sample(&format!("{name}_count"), labels, so_far);
    }

    /// The page.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl IntoResponse for Page {
    fn into_response(self) -> Response {
        let kind = "text/plain; version=0.0.4; charset=utf-8";
        ([(header::CONTENT_TYPE, kind)], self.0).into_response()
    }
}

/// Microseconds, as seconds.
#[derive(Clone, Copy, Debug)]
pub struct Seconds(pub u64);

impl Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

/// A label's value: anything, between quotes.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '\\' => f.write_str("\\\\"),
            '"' => f.write_str("\\\""),
            '\n' => f.write_str("\\n"),
            c => f.write_char(c),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_what_prometheus_reads() {
        let mut page = Page::default();
        page.head("tandem_hosts", MetricKind::Gauge, "Hosts by state.");
        page.sample("tandem_hosts", &[("state", "live"), ("as", "a\"\\\n")], 3);
        page.histogram(
            "t_seconds",
            "Times.",
            &[],
            &[500, 1_500_000],
            &[1, 2, 3],
            2_000_030,
        );
        let expected = r#"# HELP tandem_hosts Hosts by state.
# TYPE tandem_hosts gauge
tandem_hosts{state="live",as="a\"\\\n"} 3
# HELP t_seconds Times.
# TYPE t_seconds histogram
t_seconds_bucket{le="0.0005"} 1
t_seconds_bucket{le="1.5"} 3
t_seconds_bucket{le="+Inf"} 6
t_seconds_sum 2.00003
t_seconds_count 6
"#;
        assert_eq!(page.text(), expected);
        assert_eq!(
            [0, 1, 10, 1_000_000].map(|us| Seconds(us).to_string()),
            ["0", "0.000001", "0.00001", "1"]
        );
    }
}
