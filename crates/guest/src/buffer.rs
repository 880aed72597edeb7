//! Large buffers that are used again: for output read from pipes and for pieces of files.
//!
//! A few stay ready while there is work; [`trim`] gives them back once there is none, since an idle agent should cost
//! nothing.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Size of each.
pub(crate) const SIZE: usize = 256 * 1024;
const MAX_SPARE: usize = 6;

static SPARE: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

fn spare() -> MutexGuard<'static, Vec<Box<[u8]>>> {
    // A list of buffers is whole after any panic.
    SPARE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Frees the buffers that nobody uses.
pub(crate) fn trim() {
    *spare() = Vec::new();
}

/// A buffer of [`SIZE`] bytes with whatever it held before.
pub(crate) struct Buffer(Box<[u8]>);

impl Buffer {
    pub(crate) fn take() -> Self {
        let used = spare().pop();
        Self(used.unwrap_or_else(|| vec![0; SIZE].into_boxed_slice()))
    }

    /// Its first `length` bytes, without copying; the buffer returns when the last of them is dropped.
    pub(crate) fn freeze(self, length: usize) -> Bytes {
        let length = length.min(SIZE);
        Bytes::from_owner(Filled { buffer: self, length })
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        let mut spare = spare();
        if spare.len() < MAX_SPARE {
            spare.push(buffer);
        }
    }
}

struct Filled {
    buffer: Buffer,
    length: usize,
}

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}
