//! What a person sees of tasks under way: a line for each that runs, and one for each that ended.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::super::run::lines::Told;
use crate::build_view::seconds;
use crate::output::Output;

pub(crate) const TICK: Duration = Duration::from_millis(200);

pub(crate) struct View {
    output: Output,
    live: Option<MultiProgress>,
    rows: Mutex<BTreeMap<String, Row>>,
}

struct Row {
    bar: ProgressBar,
    begun: Instant,
    told: Arc<Mutex<Told>>,
    what: String,
}

impl View {
    pub(crate) fn new(output: Output) -> Self {
        let is_live = !output.quiet && !output.json && std::io::stderr().is_terminal();
        let live = is_live.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(8)));
        Self { output, live, rows: Mutex::default() }
    }

    pub(crate) fn begin(&self, name: &str, what: String, told: &Arc<Mutex<Told>>) {
        let Some(live) = &self.live else {
            if !self.output.json {
                self.output.note(&format!("{name}: {what}"));
            }
            return;
        };
        let bar = live.add(ProgressBar::new_spinner());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix:24} {wide_msg}") {
            bar.set_style(style);
        }
        bar.set_prefix(name.to_owned());
        let row = Row { bar, begun: Instant::now(), told: Arc::clone(told), what };
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), row);
    }

    pub(crate) fn draw(&self) {
        for row in self.rows.lock().unwrap_or_else(PoisonError::into_inner).values() {
            let told = row.told.lock().unwrap_or_else(PoisonError::into_inner);
            let last = if told.last.is_empty() { &row.what } else { &told.last };
            row.bar.set_message(format!("{}  {last}", seconds(row.begun.elapsed())));
            row.bar.tick();
        }
    }

    pub(crate) fn end(&self, name: &str, said: &str) {
        let row = self.rows.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        match (&self.live, row) {
            (Some(live), Some(row)) => {
                row.bar.finish_and_clear();
                let _ = live.println(format!("{name}: {said}"));
            }
            _ if self.output.json => {}
            _ => self.output.note(&format!("{name}: {said}")),
        }
    }
}
