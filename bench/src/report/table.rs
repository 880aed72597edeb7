//! The report as text: aligned columns for a terminal, or a Markdown table.

use std::fmt::Write as _;

use super::{Line, Report, Verdict, times};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    Plain,
    Markdown,
}

type Row = [String; HEADS.len()];

const HEADS: [&str; 9] = ["figure", "system", "n", "p50", "p90", "p99", "Warren : it", "aim", "aim is"];
/// Columns that are numbers and stand to the right.
const RIGHT: std::ops::Range<usize> = 2..6;

// === impl Report ===

impl Report {
    pub(crate) fn text(&self, style: Style) -> String {
        let mut notes: Vec<String> = Vec::new();
        let mut rows = Vec::new();
        let mut figure = "";
        for line in &self.lines {
            rows.push(row(line, line.figure == figure, &mut notes));
            figure = &line.figure;
        }
        let mut text = String::new();
        let out = &mut text;
        let bullet = if style == Style::Markdown { "- " } else { "" };
        let quick = if self.quick { ", --quick" } else { "" };
        let _ = writeln!(out, "{bullet}machine: {}", self.machine.describe());
        let _ = writeln!(out, "{bullet}systems: {}", self.systems.join("; "));
        let _ = writeln!(out, "{bullet}run: {}{quick}\n", self.begun.strftime("%Y-%m-%d %H:%M UTC"));
        match style {
            Style::Plain => plain(out, &rows),
            Style::Markdown => markdown(out, &rows),
        }
        if !notes.is_empty() {
            out.push('\n');
        }
        for (number, note) in notes.iter().enumerate() {
            let _ = match style {
                Style::Plain => writeln!(out, "[{}] {note}", number + 1),
                Style::Markdown => writeln!(out, "{}. {note}", number + 1),
            };
        }
        text
    }
}

fn row(line: &Line, repeated: bool, notes: &mut Vec<String>) -> Row {
    let mut system = line.system.clone();
    for note in &line.notes {
        let number = notes.iter().position(|known| known == note).unwrap_or_else(|| {
            notes.push(note.clone());
            notes.len() - 1
        });
        let _ = write!(system, " [{}]", number + 1);
    }
    // One value has no quantiles, it only has itself.
    let single = line.samples.len() == 1;
    let [p50, p90, p99] = [50, 90, 99].map(|percent| match line.samples.percentile(percent) {
        None => "–".to_owned(),
        Some(_) if single && percent > 50 => String::new(),
        Some(value) => line.unit.show(value),
    });
    let join = |word: fn(&Verdict) -> String| line.aims.iter().map(word).collect::<Vec<_>>().join("; ");
    [
        if repeated { String::new() } else { format!("{}, {}", line.figure, line.unit.name()) },
        system,
        line.samples.len().to_string(),
        p50,
        p90,
        p99,
        line.ratio.map(times).unwrap_or_default(),
        join(|verdict| verdict.aim.clone()),
        join(outcome),
    ]
}

fn outcome(verdict: &Verdict) -> String {
    match (verdict.met, &verdict.by) {
        (None, _) => "not measured".to_owned(),
        (Some(true), _) => "met".to_owned(),
        (Some(false), None) => "missed".to_owned(),
        (Some(false), Some(by)) => format!("missed, {by}"),
    }
}

fn plain(out: &mut String, rows: &[Row]) {
    let widths: [usize; HEADS.len()] = std::array::from_fn(|column| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([HEADS[column].len()]).max().unwrap_or(0)
    });
    let rules = widths.map(|width| "─".repeat(width));
    let heads = HEADS.map(str::to_owned);
    for cells in [&heads, &rules].into_iter().chain(rows) {
        let mut line = String::new();
        for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
            let _ = if RIGHT.contains(&column) {
                write!(line, "{cell:>width$}  ")
            } else {
                write!(line, "{cell:<width$}  ")
            };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

fn markdown(out: &mut String, rows: &[Row]) {
    let heads = HEADS.map(str::to_owned);
    let rules = std::array::from_fn(|column| if RIGHT.contains(&column) { "---:" } else { "---" }.to_owned());
    for cells in [&heads, &rules].into_iter().chain(rows) {
        let _ = writeln!(out, "| {} |", cells.join(" | "));
    }
}
