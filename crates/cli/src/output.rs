//! What the program prints. Data goes to stdout, everything said about it to stderr.
//!
//! Text that came from a server or a sandbox is never printed raw in a table or a message: a tag value or a file name
//! could carry escape sequences for the terminal.

use std::borrow::Cow;
use std::io::{ErrorKind, IsTerminal as _, Write as _};

use serde_json::Value;

use crate::failure::{StdoutClosed, Untold, chain_of};

/// How this run prints.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
    colour: bool,
}

/// Rows under headings, columns padded to their widest cell.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

// === impl Output ===

impl Output {
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        // https://no-color.org: present and not empty.
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { json, quiet, colour: !refused && std::io::stdout().is_terminal() }
    }

    /// Writes bytes to stdout and flushes them.
    pub(crate) fn write(self, bytes: &[u8]) -> anyhow::Result<()> {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(stdout_error)
    }

    pub(crate) fn line(self, text: &str) -> anyhow::Result<()> {
        self.write(format!("{text}\n").as_bytes())
    }

    pub(crate) fn json(self, value: &Value) -> anyhow::Result<()> {
        self.line(&serde_json::to_string_pretty(value)?)
    }

    /// Says what was made: `shown` for people, `json` for programs. Where nobody can be told, the error has its name: it
    /// is there all the same.
    pub(crate) fn made(self, what: &str, id: &str, shown: &str, json: &Value) -> anyhow::Result<()> {
        let lines = || shown.split('\n').map(printable).collect::<Vec<_>>().join("\n");
        let told = if self.json { self.json(json) } else { self.line(&lines()) };
        told.map_err(|error| {
            let made = format!("{what} {}", printable(id));
            Untold { made, reason: chain_of(error.as_ref()) }.into()
        })
    }

    pub(crate) fn table(self, table: &Table) -> anyhow::Result<()> {
        self.write(table.render(self.colour).as_bytes())
    }

    /// The text in a colour (its SGR number; 0 for none), on a terminal.
    pub(crate) fn painted(self, colour: u8, text: &str) -> String {
        if self.colour && colour != 0 { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Says something to the person, unless asked to be quiet.
    pub(crate) fn note(self, text: &str) {
        if !self.quiet {
            say(text);
        }
    }

    pub(crate) fn warn(self, text: &str) {
        say(&format!("warning: {text}"));
    }
}

/// Writes a line to stderr; a closed stderr is nobody's problem.
pub(crate) fn say(text: &str) {
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// A reader that has gone ends the program quietly; any other failure is told.
pub(crate) fn stdout_error(error: std::io::Error) -> anyhow::Error {
    if error.kind() == ErrorKind::BrokenPipe {
        StdoutClosed.into()
    } else {
        anyhow::Error::from(error).context("could not write to stdout")
    }
}

// === impl Table ===

impl Table {
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(ToString::to_string).collect()] }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into_iter().map(|cell| printable(&cell).into_owned()).collect());
    }

    fn render(&self, colour: bool) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                let padding = " ".repeat(width - cell.chars().count() + 2);
                line.push_str(&painted(cell, colour));
                line.push_str(&padding);
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// States stand out on a terminal.
fn painted(cell: &str, colour: bool) -> Cow<'_, str> {
    let code = match cell {
        "running" | "ready" | "ok" => 32,
        "hibernated" | "creating" | "processing" | "warn" => 33,
        "error" | "failed" | "fail" => 31,
        "stopped" => 90,
        _ => return Cow::Borrowed(cell),
    };
    if colour { Cow::Owned(format!("\x1b[{code}m{cell}\x1b[0m")) } else { Cow::Borrowed(cell) }
}

/// The text with control characters written out, so that it cannot steer a terminal.
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().any(char::is_control) {
        text.chars()
            .map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() })
            .collect::<String>()
            .into()
    } else {
        Cow::Borrowed(text)
    }
}

/// A size a person can read: `512 B`, `1.5 KiB`, `20 GiB`.
pub(crate) fn human_bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    // Exact enough: only one decimal is shown.
    #[expect(clippy::cast_precision_loss, reason = "one decimal is shown")]
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value.fract() < 0.05 {
        format!("{value:.0} {}", units[unit])
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

/// How long ago, in its largest unit: `12s`, `5m`, `3h`, `9d`.
pub(crate) fn human_age(since: jiff::Timestamp) -> String {
    let seconds = (jiff::Timestamp::now().as_second() - since.as_second()).max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

/// `a=1,b=2`, or `-` when there is nothing.
pub(crate) fn pairs(map: &std::collections::BTreeMap<String, String>) -> String {
    if map.is_empty() {
        return "-".to_owned();
    }
    map.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_nothing_trails() {
        let mut table = Table::new(&["ID", "STATUS"]);
        table.row(["sb-1".to_owned(), "running".to_owned()]);
        table.row(["a\x1b[2Jb".to_owned(), String::new()]);
        assert_eq!(table.render(false), "ID           STATUS\nsb-1         running\na\\u{1b}[2Jb\n");
        assert!(table.render(true).contains("\x1b[32mrunning\x1b[0m"));
    }

    #[test]
    fn sizes_are_short() {
        let shown: Vec<_> = [0, 1023, 1024, 1536, 20 << 30].into_iter().map(human_bytes).collect();
        assert_eq!(shown, ["0 B", "1023 B", "1 KiB", "1.5 KiB", "20 GiB"]);
    }
}
