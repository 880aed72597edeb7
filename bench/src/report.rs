//! What a run found: lines with quantiles, how Warren stands to each other system, and which aims were met.

mod table;

use serde::Serialize;
use serde_json::{Value, json};

use crate::machine::Machine;
use crate::samples::Samples;
use crate::trace::Trace;

pub(crate) use table::Style;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) enum Unit {
    #[serde(rename = "ms")]
    Milliseconds,
    /// Millions of bytes a second.
    #[serde(rename = "MB/s")]
    Speed,
    /// Millions of bytes.
    #[serde(rename = "MB")]
    Megabytes,
    /// Of one core.
    #[serde(rename = "% of a core")]
    Percent,
}

/// One system's values for one figure.
pub(crate) struct Line {
    pub(crate) figure: String,
    pub(crate) system: String,
    pub(crate) unit: Unit,
    pub(crate) samples: Samples,
    /// Warren's value over this system's.
    pub(crate) ratio: Option<f64>,
    pub(crate) aims: Vec<Verdict>,
    pub(crate) notes: Vec<String>,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Verdict {
    pub(crate) aim: String,
    /// None when it could not be measured.
    pub(crate) met: Option<bool>,
    /// By how much it was missed.
    pub(crate) by: Option<String>,
}

/// Everything a run found.
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) begun: jiff::Timestamp,
    pub(crate) systems: Vec<String>,
    pub(crate) lines: Vec<Line>,
    pub(crate) trace: Trace,
    pub(crate) quick: bool,
}

// === impl Unit ===

impl Unit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Milliseconds => "ms",
            Self::Speed => "MB/s",
            Self::Megabytes => "MB",
            Self::Percent => "% of a core",
        }
    }

    pub(crate) fn show(self, value: f64) -> String {
        match value {
            value if value >= 100.0 => format!("{value:.0}"),
            value if value >= 10.0 => format!("{value:.1}"),
            value => format!("{value:.2}"),
        }
    }
}

// === impl Line ===

impl Line {
    pub(crate) fn new(figure: &str, system: &str, unit: Unit, samples: impl Into<Samples>) -> Self {
        Self {
            figure: figure.to_owned(),
            system: system.to_owned(),
            unit,
            samples: samples.into(),
            ratio: None,
            aims: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// A system that could not be measured.
    pub(crate) fn skipped(figure: &str, system: &str, unit: Unit, reason: &str) -> Self {
        Self::new(figure, system, unit, Samples::default()).note(format!("not measured: {reason}"))
    }

    pub(crate) fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// An aim for a quantile of this line: at most (`most`) or at least `limit`.
    pub(crate) fn aim(mut self, percent: usize, most: bool, limit: f64) -> Self {
        let (sign, unit) = (if most { "≤" } else { "≥" }, self.unit.name());
        let quantile = if self.samples.len() == 1 { String::new() } else { format!("p{percent} ") };
        let aim = format!("{quantile}{sign} {limit} {unit}");
        let verdict = match self.samples.percentile(percent) {
            None => Verdict { aim, met: None, by: None },
            Some(value) => {
                let met = if most { value <= limit } else { value >= limit };
                let by = format!("by {} {unit}", self.unit.show((value - limit).abs()));
                Verdict { aim, met: Some(met), by: (!met).then_some(by) }
            }
        };
        self.aims.push(verdict);
        self
    }

    /// Sets Warren in relation to this system at a quantile; `limit` is the aim for the ratio, as a time.
    pub(crate) fn against(mut self, warren: &Samples, percent: usize, limit: Option<f64>) -> Self {
        self.ratio = match (warren.percentile(percent), self.samples.percentile(percent)) {
            (Some(warren), Some(other)) if other > 0.0 => Some(warren / other),
            _ => None,
        };
        if let Some(limit) = limit {
            let met = self.ratio.map(|ratio| ratio <= limit);
            let by = self.ratio.filter(|ratio| *ratio > limit).map(|ratio| format!("is {}", times(ratio)));
            self.aims.push(Verdict { aim: format!("p{percent} ≤ {} of it", times(limit)), met, by });
        }
        self
    }

    fn json(&self) -> Value {
        let at = |percent| self.samples.percentile(percent);
        json!({
            "figure": self.figure, "system": self.system, "unit": self.unit,
            "n": self.samples.len(), "p50": at(50), "p90": at(90), "p99": at(99), "values": self.samples.values(),
            "warrenOverThis": self.ratio, "aims": self.aims, "notes": self.notes,
        })
    }
}

// === impl Report ===

impl Report {
    pub(crate) fn json(&self) -> Value {
        json!({
            "format": 1, "machine": self.machine, "begun": self.begun.to_string(), "quick": self.quick,
            "systems": self.systems, "lines": self.lines.iter().map(Line::json).collect::<Vec<_>>(),
            "createTrace": self.trace.json(),
        })
    }

    /// Whether Warren itself was measured in every line that is about it.
    pub(crate) fn is_complete(&self) -> bool {
        self.lines.iter().all(|line| line.system != WARREN || line.samples.len() > 0)
    }
}

/// What Warren is called in the table.
pub(crate) const WARREN: &str = "Warren";

/// A ratio in words: `1/38`, `2.5x`.
pub(crate) fn times(ratio: f64) -> String {
    match ratio {
        ratio if ratio >= 10.0 => format!("{ratio:.0}x"),
        ratio if ratio > 0.95 => format!("{ratio:.1}x"),
        ratio if ratio > 0.1 => format!("1/{:.1}", 1.0 / ratio).trim_end_matches(".0").to_owned(),
        ratio if ratio > 0.0 => format!("1/{:.0}", 1.0 / ratio),
        _ => "0".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aims_are_judged_at_their_quantile_and_say_by_how_much_they_are_missed() {
        let warren: Samples = (1..=100).map(f64::from).collect();
        let line = Line::new("f", WARREN, Unit::Milliseconds, warren.clone())
            .aim(50, true, 50.0)
            .aim(99, true, 20.0)
            .aim(50, false, 51.5);
        let found: Vec<_> = line.aims.iter().map(|aim| (aim.met, aim.by.as_deref())).collect();
        assert_eq!(
            found,
            [(Some(true), None), (Some(false), Some("by 79.0 ms")), (Some(false), Some("by 1.50 ms"))]
        );

        let docker: Samples = [1500.0].into_iter().collect();
        let line =
            Line::new("f", "Docker", Unit::Milliseconds, docker).against(&warren, 50, Some(1.0 / 30.0));
        assert_eq!((line.aims[0].met, line.aims[0].aim.as_str()), (Some(true), "p50 ≤ 1/30 of it"));
        assert_eq!(line.ratio.map(times).as_deref(), Some("1/30"));

        let nothing =
            Line::skipped("f", "Docker", Unit::Milliseconds, "no root").against(&warren, 50, Some(0.1));
        assert_eq!((nothing.ratio, nothing.aims[0].met), (None, None));
    }

    #[test]
    fn ratios_read_as_a_person_says_them() {
        for (ratio, text) in [
            (0.0263, "1/38"),
            (0.4, "1/2.5"),
            (0.5, "1/2"),
            (1.0, "1.0x"),
            (0.98, "1.0x"),
            (2.54, "2.5x"),
            (31.2, "31x"),
        ] {
            assert_eq!(times(ratio), text);
        }
    }
}
