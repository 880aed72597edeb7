//! The journal's files. Used by one thread at a time, which may wait for the disk.
//!
//! Two files at most, named by number: rows go to the newer one, and when that is full a new one is begun and the older
//! one removed. What root of the sandbox does to them is noticed before each write, and answered with a new file.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use warren_guest_api::logs::Source;
use warren_guest_api::logs::journal::{HEADER, NewRow, Part, write_command};
use warren_types::ExecId;

use crate::clock::now_ms;
use crate::spawn::describe;

/// Size of a file.
pub(super) const FILE_BYTES: u64 = 16 * 1024 * 1024;
/// Bytes of lines in one write, about; as JSON they may be six times as many.
const WRITE_BYTES: usize = 256 * 1024;
/// Numbers from here on are none of ours.
const MAX_NUMBER: u64 = 1 << 48;
/// Number of the first file.
pub(super) const FIRST_FILE: u64 = 1;
const EXTENSION: &str = "journal";
/// How far each file under `/var/log` is taken in.
const POSITIONS: &str = "positions.json";

/// Just past a row: in which file, and where in it. Larger ones are later; there is nothing before the default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub(super) file: u64,
    pub(super) offset: u64,
}

/// A row that waits to be written.
pub(super) struct Entry {
    pub(super) time_ms: u64,
    pub(super) source: Source,
    pub(super) line: Vec<u8>,
    pub(super) origin: Origin,
    pub(super) exit_code: Option<i32>,
}

pub(super) enum Origin {
    Command(Arc<CommandOrigin>),
    File(Arc<str>),
    Journal,
}

/// A command as its rows name it.
pub(super) struct CommandOrigin {
    pub(super) id: ExecId,
    pub(super) command: String,
    pub(super) argv: Vec<String>,
    /// Where it was written down last.
    written_at: Mutex<Option<Position>>,
}

/// What is written at once.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) entries: Vec<Entry>,
    /// Rows that were dropped before these because too many waited.
    pub(super) overrun: u64,
    /// How far the files under `/var/log` are taken in once these are written.
    pub(super) positions: Option<Vec<u8>>,
}

pub(super) struct Store {
    folder: PathBuf,
    file_bytes: u64,
    current: Option<Current>,
    /// The highest number so far: none is used twice, whatever becomes of the files.
    last: u64,
    /// Rows that could not be written, and why.
    lost: u64,
    reason: String,
}

struct Current {
    number: u64,
    file: File,
    size: u64,
}

// === impl CommandOrigin ===

impl CommandOrigin {
    pub(super) fn new(id: ExecId, command: String, argv: Vec<String>) -> Arc<Self> {
        Arc::new(Self { id, command, argv, written_at: Mutex::default() })
    }

    /// Where it stands in the file of that number; writes it down at `at` if it is not there yet.
    fn ensure_written(&self, at: Position, text: &mut Vec<u8>) -> u64 {
        let mut written = self.written_at.lock().unwrap_or_else(PoisonError::into_inner);
        match *written {
            Some(position) if position.file == at.file => position.offset,
            _ => {
                *written = Some(at);
                write_command(text, &self.id, &self.command, &self.argv);
                at.offset
            }
        }
    }

    /// What was to be written was not.
    fn forget(&self) {
        *self.written_at.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

// === impl Store ===

impl Store {
    pub(super) fn new(folder: PathBuf, file_bytes: u64) -> Self {
        Self { folder, file_bytes, current: None, last: 0, lost: 0, reason: String::new() }
    }

    /// Writes rows and returns where the journal ends then. Rows that do not fit are counted, and told of in a row of
    /// their own as soon as one fits.
    pub(super) fn write(&mut self, batch: &Batch) -> Position {
        if batch.overrun > 0 {
            self.lose(batch.overrun, "they came faster than they could be written".to_owned());
        }
        let mut rest = &batch.entries[..];
        while self.lost > 0 || !rest.is_empty() {
            let (now, later) = rest.split_at(some_of(rest));
            rest = later;
            if let Err(error) = self.try_write(now) {
                self.lose((now.len() + later.len()) as u64, describe(&error));
                break;
            }
            self.lost = 0;
        }
        if let Some(positions) = &batch.positions {
            // If it fails, lines may be logged again after the next start.
            let _ = self.save_positions(positions);
        }
        self.end()
    }

    fn lose(&mut self, rows: u64, reason: String) {
        self.lost += rows;
        self.reason = reason;
    }

    /// Where the journal ends. Makes nothing for somebody who only looks.
    pub(super) fn end(&mut self) -> Position {
        if self.current.is_none() {
            let Some(number) = newest(&self.folder) else { return Position::default() };
            match self.open(number) {
                Ok(current) => {
                    self.last = self.last.max(number);
                    self.current = Some(current);
                }
                // It cannot be gone on with, but what can be read of it counts.
                Err(_) => {
                    let meta = std::fs::symlink_metadata(path_of(&self.folder, number));
                    return Position { file: number, offset: meta.map_or(0, |meta| meta.size()) };
                }
            }
        }
        self.current
            .as_ref()
            .map_or(Position::default(), |current| Position { file: current.number, offset: current.size })
    }

    /// All of them or none.
    fn try_write(&mut self, entries: &[Entry]) -> io::Result<()> {
        let (number, size) = self.ready(entries.iter().map(|entry| entry.line.len() as u64).sum())?;
        let mut text = Vec::new();
        if self.lost > 0 {
            let line = format!("{} rows were not logged: {}", self.lost, self.reason);
            let row = NewRow {
                time_ms: now_ms(),
                source: Source::Agent,
                line: &line,
                path: None,
                command: None,
                exit_code: None,
            };
            row.write(&mut text);
        }
        for entry in entries {
            entry.write(Position { file: number, offset: size }, &mut text);
        }
        let Some(current) = &mut self.current else { return Err(io::ErrorKind::NotFound.into()) };
        let written = (&current.file).write_all(&text);
        if let Err(error) = written {
            for entry in entries {
                if let Origin::Command(command) = &entry.origin {
                    command.forget();
                }
            }
            // A part of a row is no row; a reader passes it over if it stays. What is wrong with this file need not be
            // with another.
            let _ = current.file.set_len(size);
            self.current = None;
            return Err(error);
        }
        current.size += text.len() as u64;
        Ok(())
    }

    /// A file with room for about so many bytes: its number and size.
    fn ready(&mut self, bytes: u64) -> io::Result<(u64, u64)> {
        self.end();
        let file_bytes = self.file_bytes;
        let usable = self.current.as_ref().is_some_and(|current| {
            current.size + bytes <= file_bytes
                && current.file.metadata().is_ok_and(|meta| meta.nlink() > 0 && meta.size() == current.size)
        });
        if !usable {
            let last = self.last.max(newest(&self.folder).unwrap_or(0));
            self.current = None;
            self.current = Some(self.begin(last + 1)?);
            self.last = last + 1;
        }
        let current = self.current.as_ref().ok_or(io::ErrorKind::NotFound)?;
        Ok((current.number, current.size))
    }

    /// Opens the newest file to go on with it.
    fn open(&self, number: u64) -> io::Result<Current> {
        let file = open_file(&path_of(&self.folder, number), OpenOptions::new().read(true).append(true))?;
        let size = file.metadata()?.size();
        let mut last = [0; 1];
        let whole = size > 0 && file.read_exact_at(&mut last, size - 1).is_ok() && last == *b"\n";
        if whole { Ok(Current { number, file, size }) } else { Err(io::ErrorKind::InvalidData.into()) }
    }

    fn begin(&self, number: u64) -> io::Result<Current> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let path = path_of(&self.folder, number);
        let file = open_file(&path, OpenOptions::new().read(true).append(true).create_new(true).mode(0o600))?;
        if let Err(error) = (&file).write_all(HEADER) {
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        for old in numbers(&self.folder).into_iter().filter(|old| *old + 1 < number || *old > number) {
            let _ = std::fs::remove_file(path_of(&self.folder, old));
        }
        Ok(Current { number, file, size: HEADER.len() as u64 })
    }

    fn save_positions(&self, positions: &[u8]) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let unfinished = self.folder.join("positions.unfinished");
        let mut options = OpenOptions::new();
        open_file(&unfinished, options.write(true).create(true).truncate(true).mode(0o600))?
            .write_all(positions)?;
        std::fs::rename(unfinished, positions_path(&self.folder))
    }
}

/// How many of the first entries to write at once.
fn some_of(entries: &[Entry]) -> usize {
    let mut bytes = 0;
    let enough = entries.iter().position(|entry| {
        bytes += entry.line.len();
        bytes >= WRITE_BYTES
    });
    enough.map_or(entries.len(), |last| last + 1)
}

impl Entry {
    /// Appends its record, and before it its command if that is not in the file; `text` will stand at `start`.
    fn write(&self, start: Position, text: &mut Vec<u8>) {
        let here = |text: &Vec<u8>| start.offset + text.len() as u64;
        let line = String::from_utf8_lossy(&self.line);
        let mut row = NewRow {
            time_ms: self.time_ms,
            source: self.source,
            line: &line,
            path: None,
            command: None,
            exit_code: self.exit_code,
        };
        match &self.origin {
            Origin::Command(command) => {
                let at = Position { file: start.file, offset: here(text) };
                let command_at = command.ensure_written(at, text);
                row.command = Some((&command.id, here(text).saturating_sub(command_at)));
            }
            Origin::File(path) => row.path = Some(path),
            Origin::Journal => {}
        }
        row.write(text);
    }
}

/// The files of the journal up to `end`, oldest first.
pub(super) fn parts(folder: &Path, end: Position) -> Vec<Part> {
    let open = |number: u64| {
        let file = open_part(folder, number)?;
        let size = file.metadata().ok()?.size();
        let length = if number == end.file { size.min(end.offset) } else { size };
        // Somebody else may have made it larger than ours get.
        Some(Part { file, length: length.min(2 * FILE_BYTES) })
    };
    (end.file.saturating_sub(1)..=end.file).filter_map(open).collect()
}

/// One file of the journal, to read.
pub(super) fn open_part(folder: &Path, number: u64) -> Option<File> {
    open_file(&path_of(folder, number), OpenOptions::new().read(true)).ok()
}

pub(super) fn positions_path(folder: &Path) -> PathBuf {
    folder.join(POSITIONS)
}

fn path_of(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:08}.{EXTENSION}"))
}

/// Opens a regular file and nothing else; whatever it is, opening it does not wait.
fn open_file(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidData.into()) }
}

fn newest(folder: &Path) -> Option<u64> {
    numbers(folder).into_iter().max()
}

fn numbers(folder: &Path) -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let number = |name: &std::ffi::OsStr| -> Option<u64> {
        let path = Path::new(name);
        let digits = path.extension().filter(|extension| *extension == EXTENSION).and(path.file_stem())?;
        digits.to_str()?.parse().ok().filter(|number| (FIRST_FILE..MAX_NUMBER).contains(number))
    };
    entries.flatten().filter_map(|entry| number(&entry.file_name())).take(1000).collect()
}

#[cfg(test)]
mod tests;
