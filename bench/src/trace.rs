//! Where the time of a create goes: what the client saw beside what the server says in `Server-Timing`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::samples::Samples;

/// Phases by name, in milliseconds.
#[derive(Default)]
pub(crate) struct Trace {
    create: Vec<f64>,
    exec: Vec<f64>,
    server: BTreeMap<String, Vec<f64>>,
}

// === impl Trace ===

impl Trace {
    pub(crate) fn add(&mut self, create: Duration, exec: Duration, server_timing: Option<&str>) {
        self.create.push(create.as_secs_f64() * 1e3);
        self.exec.push(exec.as_secs_f64() * 1e3);
        for (name, milliseconds) in server_timing.into_iter().flat_map(phases) {
            self.server.entry(name.to_owned()).or_default().push(milliseconds);
        }
    }

    /// Forgets what came before: it was a warm-up.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn text(&self) -> String {
        if self.create.is_empty() {
            return "create trace: nothing was created\n".to_owned();
        }
        let mut text = "where a create to first output goes, ms (p50 / p90 / p99):\n".to_owned();
        for (name, samples) in self.rows() {
            let at = |percent| samples.percentile(percent).unwrap_or_default();
            let _ = writeln!(text, "  {name:<44} {:>8.2} {:>8.2} {:>8.2}", at(50), at(90), at(99));
        }
        if self.server.is_empty() {
            text.push_str("  the server sends no Server-Timing on create, so there is no more to say\n");
        }
        text
    }

    pub(crate) fn json(&self) -> Value {
        self.rows()
            .map(|(name, samples)| (name, json!({ "unit": "ms", "values": samples.values() })))
            .collect()
    }

    fn rows(&self) -> impl Iterator<Item = (String, Samples)> {
        let row = |name: String, values: &[f64]| (name, Samples::new(values.to_vec()));
        std::iter::once(row("POST /api/sandboxes, as the client sees it".to_owned(), &self.create))
            .chain(self.server.iter().map(move |(name, values)| row(format!("  server: {name}"), values)))
            .chain(std::iter::once(row("POST exec/run `echo hi`, the first in it".to_owned(), &self.exec)))
    }
}

/// Names and durations of a `Server-Timing` header; entries without a duration say nothing here.
fn phases(header: &str) -> impl Iterator<Item = (&str, f64)> {
    header.split(',').filter_map(|entry| {
        let mut parts = entry.split(';').map(str::trim);
        let name = parts.next().filter(|name| !name.is_empty())?;
        let duration = parts.find_map(|part| part.strip_prefix("dur=")?.parse().ok())?;
        Some((name, duration))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_timing_is_read_as_it_is_written_in_the_wild() {
        let header = "node;dur=4.20, store;desc=\"rows\";dur=0.5,cache;desc=hit, ;dur=9, odd;dur=x";
        assert_eq!(phases(header).collect::<Vec<_>>(), [("node", 4.2), ("store", 0.5)]);
    }
}
