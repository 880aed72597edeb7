//! The file a log's older segments go to: equal slots, used over and over, and nameless from the moment it is open.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use warren_guest_api::frame::{Frame, HEADER};

use super::segment::{self, Batch, Segment};
use crate::buffer::{self, Buffer};

/// Buffers given to one write; the kernel takes 1024.
const MAX_SLICES: usize = 512;

pub(super) struct Spill {
    path: PathBuf,
    file: Option<Arc<File>>,
    /// Slots that exist; all below it have been written.
    allocated: u32,
    /// Slots there may be; falls to what exists when the disk is full.
    capacity: u32,
    free: Vec<u32>,
    busy: bool,
}

/// Writes one segment. May run on any thread.
pub(crate) struct SpillJob {
    file: Option<Arc<File>>,
    path: PathBuf,
    slot: u32,
    offset: u64,
    /// Names the segment.
    start: u64,
    pieces: Vec<Batch>,
}

/// Reads one segment back. May run on any thread.
pub(crate) struct ReadJob {
    file: Arc<File>,
    offset: u64,
    encoded: usize,
    start: u64,
    from: u64,
    to: u64,
}

impl Spill {
    pub(super) fn new(path: PathBuf, capacity: u32) -> Self {
        Self { path, file: None, allocated: 0, capacity, free: Vec::new(), busy: false }
    }

    pub(super) fn is_usable(&self) -> bool {
        self.capacity > 0
    }

    pub(super) fn is_busy(&self) -> bool {
        self.busy
    }

    pub(super) fn size(&self, segment: usize) -> u64 {
        u64::from(self.allocated) * segment as u64
    }

    pub(super) fn has_free_slot(&self) -> bool {
        !self.free.is_empty() || self.allocated < self.capacity
    }

    /// Allows for more slots.
    pub(super) fn extend(&mut self, slots: usize) {
        self.capacity = self.capacity.saturating_add(u32::try_from(slots).unwrap_or(u32::MAX));
    }

    pub(super) fn free(&mut self, slot: u32) {
        if slot < self.allocated {
            self.free.push(slot);
        }
    }

    pub(super) fn start(&mut self, segment: &Segment, size: usize) -> Option<SpillJob> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.allocated < self.capacity => {
                self.allocated += 1;
                self.allocated - 1
            }
            None => return None,
        };
        self.busy = true;
        Some(SpillJob {
            file: self.file.clone(),
            path: self.path.clone(),
            slot,
            offset: u64::from(slot) * size as u64,
            start: segment.start,
            pieces: segment.pieces(),
        })
    }

    /// The segment and slot of a job that succeeded. After a failure the file grows no further.
    pub(super) fn finish(&mut self, job: SpillJob, result: &io::Result<()>) -> Option<(u64, u32)> {
        self.busy = false;
        if self.file.is_none() {
            self.file = job.file;
        }
        match result {
            Ok(()) => Some((job.start, job.slot)),
            Err(_) if job.slot + 1 == self.allocated => {
                // A new slot did not fit on the disk: make do with those there are.
                self.allocated -= 1;
                self.capacity = self.allocated;
                None
            }
            Err(_) => {
                // An old slot cannot be written again: something is wrong with the disk.
                self.capacity = 0;
                None
            }
        }
    }

    pub(super) fn read_job(
        &self,
        slot: u32,
        size: usize,
        segment: &Segment,
        from: u64,
        to: u64,
    ) -> Option<ReadJob> {
        let file = Arc::clone(self.file.as_ref()?);
        let offset = u64::from(slot) * size as u64;
        Some(ReadJob { file, offset, encoded: segment.encoded, start: segment.start, from, to })
    }
}

impl SpillJob {
    pub(crate) fn run(&mut self) -> io::Result<()> {
        let file = match &self.file {
            Some(file) => Arc::clone(file),
            None => Arc::clone(self.file.insert(Arc::new(create(&self.path)?))),
        };
        let headers: Vec<[u8; HEADER]> = self
            .pieces
            .iter()
            .map(|piece| match piece {
                Batch::One(stream, bytes) => Frame::header(stream.kind(), bytes.len()),
                Batch::Frames(..) => [0; HEADER],
            })
            .collect();
        let mut slices: Vec<&[u8]> = Vec::with_capacity(2 * self.pieces.len());
        for (piece, header) in self.pieces.iter().zip(&headers) {
            match piece {
                Batch::One(_, bytes) => slices.extend([&header[..], &bytes[..]]),
                Batch::Frames(frames, _) => slices.push(frames),
            }
        }
        let mut offset = self.offset;
        for group in slices.chunks(MAX_SLICES) {
            write_all(&file, group, &mut offset)?;
        }
        Ok(())
    }
}

impl ReadJob {
    pub(crate) fn run(self) -> io::Result<Batch> {
        let frames = if self.encoded <= buffer::SIZE {
            let mut buffer = Buffer::take();
            self.file.read_exact_at(&mut buffer[..self.encoded], self.offset)?;
            buffer.freeze(self.encoded)
        } else {
            let mut bytes = vec![0; self.encoded];
            self.file.read_exact_at(&mut bytes, self.offset)?;
            Bytes::from(bytes)
        };
        // The file is out of everybody's reach but root's inside the sandbox, who may have written anything.
        segment::cut(&frames, self.start, self.from, self.to).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "the kept output was changed by another program")
        })
    }
}

fn create(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    std::fs::remove_file(path)?;
    Ok(file)
}

fn write_all(file: &File, slices: &[&[u8]], offset: &mut u64) -> io::Result<()> {
    let mut buffers: Vec<IoSlice<'_>> = slices.iter().map(|slice| IoSlice::new(slice)).collect();
    let mut rest = &mut buffers[..];
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::pwritev(file, rest, *offset))?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        *offset += written as u64;
        IoSlice::advance_slices(&mut rest, written);
    }
    Ok(())
}
