//! What a command has written: an append-only log over stdout and stderr, addressed by byte offset.
//!
//! ```text
//!   log_start                                                             end
//!   │ spilled │ spilled │ … │ waiting to be spilled │ in memory │ in memory │ open │
//!   └── slots of one file, used as a ring ──┘
//! ```
//!
//! The log is cut into segments. The newest stay in memory; older ones move to a slot of a file; when the slots run
//! out the oldest segment is dropped. A registered reader is a promise: nothing at or after its offset is dropped, and
//! [`Log::room`] turns to nothing instead, which makes the owner stop reading the command's pipes.
//!
//! This module does no I/O and never waits. It hands out [`SpillJob`]s and [`ReadJob`]s for the owner to run elsewhere.
//! A file that cannot be grown keeps the slots it has; without any the log keeps to its memory.

mod segment;
mod spill;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;

use bytes::Bytes;
use warren_guest_api::text::whole_characters;

use self::segment::Segment;
pub(crate) use self::segment::{Batch, Stream};
use self::spill::Spill;
pub(crate) use self::spill::{ReadJob, SpillJob};

/// Bytes not counted as room, for beginnings of characters that were held back, and for what is left free where a segment
/// ends between two characters.
const SPARE: usize = 16;

/// How large the parts of a log are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes of a segment, framing included.
    pub(crate) segment: usize,
    /// Full segments kept in memory.
    pub(crate) in_memory: usize,
    /// Further ones that may wait for their slot.
    pub(crate) pending: usize,
    /// Segments kept in the file; 0 keeps the log in memory.
    pub(crate) slots: u32,
}

/// Names a reader whose bytes are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ReaderId(u64);

pub(crate) struct Log {
    limits: Limits,
    /// Oldest first; the last one is open, those before it are full.
    segments: VecDeque<Segment>,
    readers: BTreeMap<ReaderId, u64>,
    next_reader: u64,
    spill: Spill,
    /// Nothing more will come: everything may move to the file.
    flushing: bool,
}

/// What there is to read at an offset.
pub(crate) enum Read {
    Now(Batch),
    /// It is in the file; run this to have it.
    Later(ReadJob),
    /// Nothing yet.
    Nothing,
}

impl Log {
    /// `path` is where the file goes once one is needed.
    pub(crate) fn new(limits: Limits, path: PathBuf) -> Self {
        Self {
            limits,
            segments: VecDeque::from([Segment::new(0)]),
            readers: BTreeMap::new(),
            next_reader: 0,
            spill: Spill::new(path, limits.slots),
            flushing: false,
        }
    }

    /// Has an empty log begin at that offset.
    pub(crate) fn start_at(&mut self, offset: u64) {
        self.segments = VecDeque::from([Segment::new(offset)]);
    }

    /// Offset of the oldest byte still there.
    pub(crate) fn start(&self) -> u64 {
        self.segments.front().map_or(0, |segment| segment.start)
    }

    /// Offset just past the newest byte.
    pub(crate) fn end(&self) -> u64 {
        self.segments.back().map_or(0, Segment::end)
    }

    /// The first offset from `offset` on at which a segment begins, or the end. Segments begin between characters.
    pub(crate) fn seam(&self, offset: u64) -> u64 {
        let index = self.segments.partition_point(|segment| segment.start < offset);
        self.segments.get(index).map_or(self.end(), |segment| segment.start)
    }

    /// Bytes held in memory, about.
    pub(crate) fn memory(&self) -> usize {
        self.segments
            .iter()
            .rev()
            .take_while(|segment| segment.slot.is_none())
            .map(|segment| segment.encoded)
            .sum()
    }

    /// Bytes held in the file.
    pub(crate) fn file_size(&self) -> u64 {
        self.spill.size(self.limits.segment)
    }

    /// How many bytes may be appended now.
    pub(crate) fn room(&self) -> usize {
        let open = self.segments.back().map_or(0, |open| open.room(self.limits.segment));
        let next = if self.may_seal() { Segment::new(0).room(self.limits.segment) } else { 0 };
        // Crumbs at the end of a segment are not worth a read; a whole segment is never a crumb.
        if next == 0 && open < 64 { 0 } else { (open + next).saturating_sub(SPARE) }
    }

    /// Adds bytes that were read from `stream`; at most [`Log::room`], and a held back beginning of a character.
    pub(crate) fn append(&mut self, stream: Stream, mut bytes: Bytes) {
        let size = self.limits.segment;
        while !bytes.is_empty() {
            let room = self.open().room(size);
            let fitting = match bytes.len() {
                length if length <= room => length,
                // Small pieces are not worth a cut.
                length if length <= size / 4 => 0,
                _ => whole_characters(&bytes[..room]),
            };
            if fitting == 0 {
                self.seal();
                continue;
            }
            self.open().push(stream, bytes.split_to(fitting));
        }
    }

    /// Registers a reader that starts at `offset`, or at the nearest offset there is; also returns that.
    pub(crate) fn attach(&mut self, offset: u64) -> (ReaderId, u64) {
        let id = ReaderId(self.next_reader);
        self.next_reader += 1;
        let offset = offset.clamp(self.start(), self.end());
        self.readers.insert(id, offset);
        (id, offset)
    }

    /// The reader has taken everything before `offset`.
    pub(crate) fn advance(&mut self, reader: ReaderId, offset: u64) {
        if let Some(at) = self.readers.get_mut(&reader) {
            *at = offset.max(*at);
        }
    }

    pub(crate) fn detach(&mut self, reader: ReaderId) {
        self.readers.remove(&reader);
    }

    /// How far the reader who is furthest is behind; nothing without readers.
    pub(crate) fn lag(&self) -> u64 {
        self.readers.values().max().map_or(0, |furthest| self.end() - furthest)
    }

    /// What is there from `from`, up to `to` and perhaps less.
    pub(crate) fn read(&self, from: u64, to: u64) -> Read {
        if from >= to.min(self.end()) || from < self.start() {
            return Read::Nothing;
        }
        let index = self.segments.partition_point(|segment| segment.end() <= from);
        let Some(segment) = self.segments.get(index) else {
            return Read::Nothing;
        };
        let to = to.min(segment.end());
        match segment.slot {
            Some(slot) => match self.spill.read_job(slot, self.limits.segment, segment, from, to) {
                Some(job) => Read::Later(job),
                None => Read::Nothing,
            },
            None => segment.read(from, to).map_or(Read::Nothing, Read::Now),
        }
    }

    /// Nothing more will be appended: what is in memory moves to the file too, which grows by as much.
    pub(crate) fn flush(&mut self) {
        if !self.flushing && self.spill.is_usable() {
            self.flushing = true;
            if self.open().encoded > 0 {
                self.seal();
            }
            self.spill.extend(self.waiting());
        }
    }

    /// The next piece of work for the file, if there is any. One is under way at a time; report back with
    /// [`Log::spilled`].
    pub(crate) fn take_spill(&mut self) -> Option<SpillJob> {
        let keep = if self.flushing { 0 } else { self.limits.in_memory };
        if self.spill.is_busy() || !self.spill.is_usable() || self.waiting() <= keep {
            return None;
        }
        // What is there at the end stays there, in memory if the disk is full.
        if !self.spill.has_free_slot() && (self.flushing || !self.drop_oldest()) {
            return None;
        }
        let next = self.segments.iter().find(|segment| segment.slot.is_none())?;
        self.spill.start(next, self.limits.segment)
    }

    /// Takes the result of the job handed out last.
    pub(crate) fn spilled(&mut self, job: SpillJob, result: &std::io::Result<()>) {
        let Some((start, slot)) = self.spill.finish(job, result) else {
            self.keep_to_memory();
            return;
        };
        match self.segments.iter_mut().find(|segment| segment.start == start) {
            Some(segment) => segment.forget_memory(slot),
            // Dropped in the meantime.
            None => self.spill.free(slot),
        }
    }

    fn open(&mut self) -> &mut Segment {
        if self.segments.is_empty() {
            self.segments.push_back(Segment::new(0));
        }
        let last = self.segments.len() - 1;
        &mut self.segments[last]
    }

    fn seal(&mut self) {
        self.open().seal();
        let end = self.end();
        self.segments.push_back(Segment::new(end));
        self.keep_to_memory();
    }

    /// Without a file, drops what memory may no longer hold.
    fn keep_to_memory(&mut self) {
        while !self.spill.is_usable() && self.waiting() > self.limits.in_memory && self.drop_oldest() {}
    }

    /// Full segments that are still in memory.
    fn waiting(&self) -> usize {
        let full = self.segments.len().saturating_sub(1);
        self.segments.iter().take(full).rev().take_while(|segment| segment.slot.is_none()).count()
    }

    /// Whether one more segment may become full.
    fn may_seal(&self) -> bool {
        if self.spill.is_usable() {
            self.waiting() < self.limits.in_memory + self.limits.pending
        } else {
            // Room is made by dropping everything up to the oldest one in memory.
            let waiting = self.waiting();
            let oldest = self.segments.len().saturating_sub(1 + waiting);
            waiting < self.limits.in_memory || self.is_read(oldest)
        }
    }

    /// Whether no reader needs this segment, or one before it, any more.
    fn is_read(&self, index: usize) -> bool {
        let Some(segment) = self.segments.get(index) else { return false };
        self.readers.values().all(|&at| at >= segment.end())
    }

    fn drop_oldest(&mut self) -> bool {
        if self.segments.len() < 2 || !self.is_read(0) {
            return false;
        }
        if let Some(Segment { slot: Some(slot), .. }) = self.segments.pop_front() {
            self.spill.free(slot);
        }
        true
    }
}

#[cfg(test)]
mod tests;
