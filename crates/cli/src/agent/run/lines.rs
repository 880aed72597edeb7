//! What a program without a terminal writes, as it is shown.
//!
//! Lines of JSON become what a person wants to know of them (see [`Transcript`]); the cost that an agent reports is noted on the
//! way. For a machine and in a log they stay as they are.

use std::io::{Error, Write as _};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use serde_json::{Value, json};
use tokio::io::AsyncWrite;

use super::super::kinds::transcript::{Totals, Transcript};
use super::super::launch::Lines;
use crate::output::printable;

/// A line that is longer is passed on in parts.
const MAX_LINE: usize = 8 << 20;
/// What is kept of the last thing that happened.
const SHOWN: usize = 200;

/// What was learnt from the lines.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    /// In dollars.
    pub(crate) cost: Option<f64>,
    /// What the agent says it came to.
    pub(crate) totals: Totals,
    /// The last thing that happened, in one line.
    pub(crate) last: String,
}

#[derive(Debug, Clone)]
pub(crate) enum To {
    Stdout,
    Stderr,
    /// One JSON object a line; `task` is a name for whose it is, and the log that has the line as it is.
    Json {
        stream: &'static str,
        task: Option<(String, Arc<Mutex<std::fs::File>>)>,
    },
    File(Arc<Mutex<std::fs::File>>),
}

pub(crate) struct LineWriter {
    /// None of lines that are nothing but text.
    transcript: Option<Transcript>,
    to: To,
    buffer: Vec<u8>,
    told: Arc<Mutex<Told>>,
}

impl LineWriter {
    pub(crate) fn new(lines: Lines, to: To, told: &Arc<Mutex<Told>>) -> Self {
        let transcript = (lines != Lines::Plain).then(|| Transcript::new(lines));
        Self { transcript, to, buffer: Vec::new(), told: Arc::clone(told) }
    }

    /// What ended without a line end, and what an agent's work came to.
    pub(crate) fn finish(&mut self) -> Result<(), Error> {
        let rest = std::mem::take(&mut self.buffer);
        if !rest.is_empty() {
            self.line(&rest)?;
        }
        let shown = self.transcript.as_mut().map(Transcript::finish).unwrap_or_default();
        self.tell(&shown)?;
        self.transcript = None;
        Ok(())
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let is_shown = matches!(self.to, To::Stdout | To::Stderr);
        if let Some(transcript) = &mut self.transcript {
            let shown = transcript.push(bytes);
            self.tell(&shown)?;
        }
        if is_shown {
            return if self.transcript.is_none() { write(&self.to, bytes) } else { Ok(()) };
        }
        self.buffer.extend_from_slice(bytes);
        while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.buffer.drain(..=end).collect();
            self.line(&line)?;
        }
        if self.buffer.len() > MAX_LINE {
            let part = std::mem::take(&mut self.buffer);
            self.line(&part)?;
        }
        Ok(())
    }

    /// Notes what happened, and shows it where it is for a person.
    fn tell(&mut self, shown: &[String]) -> Result<(), Error> {
        {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(transcript) = &self.transcript {
                told.totals.clone_from(transcript.totals());
            }
            told.cost = told.totals.cost_usd.or(told.cost);
            note_last(&mut told, shown.iter().rev().map(String::as_str));
        }
        if matches!(self.to, To::Stdout | To::Stderr) {
            for line in shown {
                write(&self.to, format!("{line}\n").as_bytes())?;
            }
        }
        Ok(())
    }

    fn line(&mut self, line: &[u8]) -> Result<(), Error> {
        let text = String::from_utf8_lossy(line);
        if self.transcript.is_none() {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            note_last(&mut told, [&*text]);
        }
        let To::Json { stream, task } = &self.to else { return write(&self.to, line) };
        let mut event = json!({"type": "output", "stream": stream});
        match self.transcript.as_ref().and_then(|_| serde_json::from_str::<Value>(&text).ok()) {
            Some(value) => event["event"] = value,
            None => event["text"] = Value::String(text.into_owned()),
        }
        if let Some((task, log)) = task {
            log.lock().unwrap_or_else(PoisonError::into_inner).write_all(line)?;
            event["task"] = Value::String(task.clone());
        }
        write(&self.to, format!("{event}\n").as_bytes())
    }
}

fn note_last<'t>(told: &mut Told, lines: impl IntoIterator<Item = &'t str>) {
    if let Some(last) = lines.into_iter().map(str::trim).find(|line| !line.is_empty()) {
        let short: String = last.chars().take(SHOWN).collect();
        told.last = printable(&short).into_owned();
    }
}

impl Drop for LineWriter {
    fn drop(&mut self) {
        let _ = self.finish();
    }
}

/// Writing to a terminal or a file waits as a whole; so it does here.
impl AsyncWrite for LineWriter {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, Error>> {
        Poll::Ready(self.take(bytes).map(|()| bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }
}

fn write(to: &To, bytes: &[u8]) -> Result<(), Error> {
    match to {
        To::Stdout | To::Json { .. } => {
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(bytes).and_then(|()| stdout.flush())
        }
        To::Stderr => std::io::stderr().lock().write_all(bytes),
        To::File(file) => file.lock().unwrap_or_else(PoisonError::into_inner).write_all(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_never_cut_by_pieces() {
        let told = Arc::default();
        let file = tempfile::tempfile().unwrap();
        let to = To::File(Arc::new(Mutex::new(file.try_clone().unwrap())));
        let mut writer = LineWriter::new(Lines::ClaudeCode, to, &told);
        for piece in [&b"{\"type\":\"res"[..], b"ult\",\"total_cost_usd\":1.5}\npla", b"in"] {
            writer.take(piece).unwrap();
        }
        drop(writer);
        let told = told.lock().unwrap();
        assert_eq!((told.cost, told.last.as_str()), (Some(1.5), "plain"));
    }
}
