//! The journal on its way to a reader: history, a blank line, live rows.
//!
//! Both come from the files. Where the journal ends when the question arrives is where history ends and the live rows
//! begin, so between the two nothing is lost and nothing doubled; and a reader that is slow falls behind in the files,
//! not in memory.

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use bytes::Bytes;
use tokio::sync::mpsc;
use warren_guest_api::logs::journal::{Commands, History, read_on};
use warren_guest_api::logs::{Filter, Query, Row, Source};
use warren_types::error::Result;
use warren_types::{Error, ErrorKind};

use super::store::{FIRST_FILE, Position, open_part, parts};
use super::{Journal, now_ms};
use crate::reply::Pieces;

/// Readers at once.
const MAX_STREAMS: usize = 64;
/// Pieces under way to a reader, and how large they are.
const QUEUE: usize = 2;
const PIECE_BYTES: usize = 128 * 1024;

/// Where a reader of live rows is, and what it looks for.
struct Live {
    at: Position,
    filter: Filter,
    commands: Commands,
}

/// Counts one more while it lives.
struct Counted(Rc<Cell<usize>>);

impl Journal {
    /// The answer to a question.
    pub(crate) fn read(self: &Rc<Self>, query: Query) -> Result<Pieces> {
        self.stream(async move |journal, pieces| journal.answer(query.checked(), pieces).await)
    }

    /// The files themselves, oldest first, one behind the other.
    pub(crate) fn copy(self: &Rc<Self>) -> Result<Pieces> {
        self.stream(async move |journal, pieces| journal.send_files(pieces).await)
    }

    /// Has a task write an answer; it ends with its reader.
    fn stream(
        self: &Rc<Self>,
        write: impl AsyncFnOnce(&Rc<Self>, &mpsc::Sender<io::Result<Bytes>>) -> io::Result<()> + 'static,
    ) -> Result<Pieces> {
        if self.streams.get() >= MAX_STREAMS {
            let message = format!("{MAX_STREAMS} clients read the log of this sandbox already; end one");
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        let (pieces, queue) = mpsc::channel(QUEUE);
        let journal = Rc::clone(self);
        let counted = Counted::new(&self.streams);
        tokio::task::spawn_local(async move {
            let _counted = counted;
            let written = tokio::select! {
                written = write(&journal, &pieces) => written,
                () = pieces.closed() => return,
            };
            if let Err(error) = written {
                let _ = pieces.send(Err(error)).await;
            }
        });
        Ok(Pieces(queue))
    }

    async fn answer(
        self: &Rc<Self>,
        query: Query,
        pieces: &mpsc::Sender<io::Result<Bytes>>,
    ) -> io::Result<()> {
        let _followed = query.follow.then(|| Counted::new(&self.followers));
        let end = self.written().await;
        let (folder, filter) = (self.folder.clone(), query.filter.clone());
        let limit = usize::try_from(query.limit).unwrap_or(usize::MAX);
        let mut history =
            self.on_reader(move || History::find(parts(&folder, end), &filter, limit)).await??;
        loop {
            let lines;
            (history, lines) = self
                .on_reader(move || {
                    let lines = history.next_lines(PIECE_BYTES);
                    (history, lines)
                })
                .await?;
            let lines = lines?;
            if lines.is_empty() {
                break;
            }
            send(pieces, lines).await?;
        }
        drop(history);
        send(pieces, b"\n".to_vec()).await?;
        if query.follow { self.follow(end, query.filter, pieces).await } else { Ok(()) }
    }

    async fn follow(
        self: &Rc<Self>,
        from: Position,
        filter: Filter,
        pieces: &mpsc::Sender<io::Result<Bytes>>,
    ) -> io::Result<()> {
        let mut live = Live { at: from, filter, commands: Commands::default() };
        loop {
            let at = live.at;
            let end = self.changed.until(|| Some(self.end.get()).filter(|end| *end > at)).await;
            let folder = self.folder.clone();
            let lines;
            (live, lines) = self
                .on_reader(move || {
                    let lines = live.step(&folder, end);
                    (live, lines)
                })
                .await?;
            let lines = lines?;
            if !lines.is_empty() {
                send(pieces, lines).await?;
            }
        }
    }

    async fn send_files(self: &Rc<Self>, pieces: &mpsc::Sender<io::Result<Bytes>>) -> io::Result<()> {
        let end = self.written().await;
        let folder = self.folder.clone();
        let parts = self.on_reader(move || parts(&folder, end)).await?;
        for mut part in parts {
            let mut at = 0;
            loop {
                let bytes;
                (part, bytes) = self
                    .on_reader(move || {
                        let bytes = part.read(at, PIECE_BYTES as u64);
                        (part, bytes)
                    })
                    .await?;
                let bytes = bytes?;
                if bytes.is_empty() {
                    break;
                }
                at += bytes.len() as u64;
                send(pieces, bytes).await?;
            }
        }
        Ok(())
    }

    async fn on_reader<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        self.readers.run(work).await.map_err(|_| io::Error::other("the log could not be read"))
    }
}

async fn send(pieces: &mpsc::Sender<io::Result<Bytes>>, bytes: Vec<u8>) -> io::Result<()> {
    pieces.send(Ok(bytes.into())).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
}

// === impl Live ===

impl Live {
    /// The next rows up to `end`, as JSON lines; gets ahead even where there are none.
    fn step(&mut self, folder: &std::path::Path, end: Position) -> io::Result<Vec<u8>> {
        let mut lines = Vec::new();
        // An empty journal ends before its first file.
        self.at.file = self.at.file.max(FIRST_FILE);
        if self.at.file + 1 < end.file {
            // Two files were begun since; what stood between is gone.
            self.at = Position { file: end.file - 1, offset: 0 };
            lines = self.gap()?;
        }
        let Some(file) = open_part(folder, self.at.file) else {
            self.pass(end);
            return Ok(lines);
        };
        let to = if self.at.file == end.file { end.offset } else { file.metadata()?.len() };
        let from = self.at.offset;
        if from < to {
            let numbered = (&file, self.at.file);
            self.at.offset = read_on(
                numbered,
                (from, to),
                PIECE_BYTES as u64,
                &self.filter,
                &mut self.commands,
                &mut lines,
            )?;
        } else {
            self.pass(end);
        }
        Ok(lines)
    }

    /// On to the next file, or to the end.
    fn pass(&mut self, end: Position) {
        self.at = if self.at.file < end.file { Position { file: self.at.file + 1, offset: 0 } } else { end };
    }

    /// A row that says that rows are missing.
    fn gap(&self) -> io::Result<Vec<u8>> {
        let row = Row {
            time_ms: now_ms(),
            source: Source::Agent,
            line: "rows are missing here: they were removed to make room before this reader took them"
                .to_owned(),
            path: None,
            exec_id: None,
            command: None,
            argv: Vec::new(),
            exit_code: None,
        };
        if !self.filter.matches(row.time_ms, row.source, &row.line) {
            return Ok(Vec::new());
        }
        let mut line = serde_json::to_vec(&row).map_err(io::Error::other)?;
        line.push(b'\n');
        Ok(line)
    }
}

// === impl Counted ===

impl Counted {
    fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}
