//! Finding rows and reading them.
//!
//! History is found backwards, since the newest rows are wanted, and only where each row stands is remembered; the rows
//! themselves are read when their turn has come. So the memory it takes does not depend on what the rows hold.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::lines::{each_backward, each_forward, read};
use super::{CommandRecord, MAX_RECORD, RowRecord};
use crate::logs::{Filter, MAX_ROW_BYTES, MAX_TIME_MS, Row};

/// Longest record of a command: command lines are cut for listings, to a few thousand bytes of JSON.
const MAX_COMMAND: u64 = 16 * 1024;
/// Commands that are remembered while rows are read.
const MAX_COMMANDS: usize = 64;

/// A file of a journal, and how much of it is to be read.
#[derive(Debug)]
pub struct Part {
    pub file: File,
    pub length: u64,
}

/// Rows that were found, to be read once, oldest first.
#[derive(Debug)]
pub struct History {
    pub(super) parts: Vec<Part>,
    found: VecDeque<Found>,
    commands: Commands,
}

#[derive(Debug, Clone, Copy)]
struct Found {
    part: usize,
    offset: u64,
    length: usize,
}

/// Commands of the files that are read, by file and place.
#[derive(Debug, Default)]
pub struct Commands(HashMap<(u64, u64), Option<Arc<Named>>>);

#[derive(Debug)]
struct Named {
    exec_id: String,
    command: String,
    argv: Vec<String>,
}

// === impl Part ===

impl Part {
    /// Its bytes from `at` on, at most so many; none at its end.
    pub fn read(&self, at: u64, most: u64) -> io::Result<Vec<u8>> {
        read(&self.file, at, self.length.min(at.saturating_add(most)))
    }
}

// === impl History ===

impl History {
    /// Finds the newest `limit` rows that match, in files given oldest first.
    pub fn find(parts: Vec<Part>, filter: &Filter, limit: usize) -> io::Result<Self> {
        let mut found = VecDeque::new();
        for (part, Part { file, length }) in parts.iter().enumerate().rev() {
            if found.len() >= limit {
                break;
            }
            let end = each_backward(file, *length, |offset, line| {
                if parse(line).is_some_and(|row| filter.matches(row.time_ms, row.source, &row.line)) {
                    found.push_front(Found { part, offset, length: line.len() });
                }
                if found.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            if end.is_break() {
                break;
            }
        }
        Ok(Self { parts, found, commands: Commands::default() })
    }

    /// The next rows as JSON lines, until they are about `most` bytes; empty at the end.
    pub fn next_lines(&mut self, most: usize) -> io::Result<Vec<u8>> {
        let mut lines = Vec::new();
        while lines.len() < most
            && let Some(found) = self.found.pop_front()
        {
            let Some(Part { file, .. }) = self.parts.get(found.part) else { continue };
            let text = read(file, found.offset, found.offset + found.length as u64)?;
            // Another program may have changed the file since.
            if let Some(record) = parse(&text) {
                self.commands.write_row(&mut lines, record, file, found.part as u64, found.offset);
            }
        }
        Ok(lines)
    }
}

/// Reads on in file number `number` from `from` up to `to`, or up to about `most` bytes: appends the rows that match
/// as JSON lines, and returns where to go on.
pub fn read_on(
    (file, number): (&File, u64),
    (from, to): (u64, u64),
    most: u64,
    filter: &Filter,
    commands: &mut Commands,
    lines: &mut Vec<u8>,
) -> io::Result<u64> {
    each_forward(file, from, to, most, |offset, line| {
        if let Some(record) = parse(line)
            && filter.matches(record.time_ms, record.source, &record.line)
        {
            commands.write_row(lines, record, file, number, offset);
        }
    })
}

fn parse(line: &[u8]) -> Option<RowRecord<'_>> {
    let record: RowRecord<'_> = (line.len() <= MAX_RECORD).then(|| serde_json::from_slice(line).ok())??;
    (record.time_ms <= MAX_TIME_MS).then_some(record)
}

// === impl Commands ===

impl Commands {
    /// Appends a row as JSON, with its command where that can be found.
    fn write_row(
        &mut self,
        lines: &mut Vec<u8>,
        record: RowRecord<'_>,
        file: &File,
        number: u64,
        offset: u64,
    ) {
        let at = record.command_distance.and_then(|distance| offset.checked_sub(distance));
        let named = at.and_then(|at| self.find(file, number, at));
        let named = named.filter(|named| record.exec_id.as_deref() == Some(&named.exec_id));
        let row = Row {
            time_ms: record.time_ms,
            source: record.source,
            line: record.line.into_owned(),
            path: record.path.map(std::borrow::Cow::into_owned),
            exec_id: record.exec_id.and_then(|id| id.parse().ok()),
            command: named.as_ref().map(|named| named.command.clone()),
            argv: named.map(|named| named.argv.clone()).unwrap_or_default(),
            exit_code: record.exit_code,
        };
        let start = lines.len();
        super::write(lines, &row);
        // None of ours is this long; a forged one may be, with the command it names.
        if lines.len() - start > MAX_ROW_BYTES {
            lines.truncate(start);
        }
    }

    fn find(&mut self, file: &File, number: u64, at: u64) -> Option<Arc<Named>> {
        if let Some(known) = self.0.get(&(number, at)) {
            return known.clone();
        }
        let named = read(file, at, at + MAX_COMMAND).ok().and_then(|text| {
            let end = text.iter().position(|byte| *byte == b'\n')?;
            let record: CommandRecord<'_> = serde_json::from_slice(&text[..end]).ok()?;
            Some(Arc::new(Named {
                exec_id: record.exec_id.into_owned(),
                command: record.command.into_owned(),
                argv: record.argv.into_owned(),
            }))
        });
        if self.0.len() >= MAX_COMMANDS {
            self.0.clear();
        }
        self.0.insert((number, at), named.clone());
        named
    }
}
