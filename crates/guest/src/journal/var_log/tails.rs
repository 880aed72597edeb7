//! How far each file is taken in.
//!
//! ```text
//!   unknown ──▶ new: from its beginning          ┐
//!           └─▶ another's content under a new    ├─▶ followed ──▶ shorter, or beginning otherwise: from its beginning
//!               name: from where that was left   ┘           └──▶ gone: forgotten
//! ```
//!
//! A file is known again by its beginning, not by its inode: an overlay gives files new ones when they are first
//! written to, and copying is a way to rotate as well as renaming.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::super::intake::{Bucket, Intake, Taken};
use super::watch::{Changed, Files};

/// Files that are followed.
const MAX_FILES: usize = 256;
/// Bytes of a file's beginning that it is known by; from `SURE_BYTES` on even beside the one it was copied from.
const HEAD_BYTES: usize = 1024;
const SURE_BYTES: usize = 512;
const READ_BYTES: usize = 64 * 1024;
const MAX_POSITIONS_BYTES: u64 = 1024 * 1024;
/// How packed files begin (gzip, zstd, xz, bzip2); most hold a NUL byte soon after, but not all.
const PACKED: [&[u8]; 4] = [b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"BZh"];

pub(super) struct Tails {
    tails: BTreeMap<PathBuf, Tail>,
    /// The beginnings of what was there at the start have not been looked at.
    unknown: bool,
    /// What was left at the last end has not been looked at.
    unseen: bool,
    moved: bool,
    told_of_many: bool,
}

struct Tail {
    shown: Arc<str>,
    /// Everything before is taken in.
    at: u64,
    head: Option<Head>,
    intake: Intake,
    bucket: Bucket,
}

/// The beginning of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    length: usize,
    hash: u64,
}

/// What is remembered of a file for the next start.
#[derive(Serialize, Deserialize)]
struct Position {
    offset: u64,
    head: Option<Head>,
}

#[derive(Serialize, Deserialize)]
struct Positions {
    format: u32,
    files: BTreeMap<String, Position>,
}

const FORMAT: u32 = 1;

type Out<'a> = dyn FnMut(&Arc<str>, Taken) + 'a;

// === impl Tails ===

impl Tails {
    /// Goes on where the last start left off. Where nothing was remembered, nothing was logged yet: what is there now
    /// is where the sandbox began.
    pub(super) fn open(files: Files, positions: &Path) -> Self {
        let now = Instant::now();
        let mut tails = BTreeMap::new();
        let remembered = load(positions);
        let unseen = remembered.is_some();
        match remembered {
            Some(files) => {
                for (path, Position { offset, head }) in files.into_iter().take(MAX_FILES) {
                    let path = PathBuf::from(path);
                    tails.insert(path.clone(), Tail { head, ..Tail::new(&path, offset, now) });
                }
            }
            None => {
                for (path, size) in files.into_iter().take(MAX_FILES) {
                    tails.insert(path.clone(), Tail::new(&path, size, now));
                }
            }
        }
        let unknown = tails.values().any(|tail| tail.head.is_none());
        Self { tails, unknown, unseen, moved: false, told_of_many: false }
    }

    /// Whether to look although nothing changes.
    pub(super) fn is_due(&self) -> bool {
        self.unknown || self.unseen || self.tails.values().any(|tail| tail.intake.owes_word())
    }

    /// Takes in what has changed.
    pub(super) fn look(&mut self, changed: Changed, now: Instant, out: &mut Out<'_>) {
        if std::mem::take(&mut self.unknown) {
            for (path, tail) in self.tails.iter_mut().filter(|(_, tail)| tail.head.is_none()) {
                tail.head = open_text(path).ok().map(|text| Head::of(&text.head, tail.at));
            }
        }
        let unseen = std::mem::take(&mut self.unseen);
        let files = match changed {
            // Those that are gone are needed until what has come instead is known.
            Changed::All(files) => files.into_keys().chain(self.tails.keys().cloned()).collect(),
            Changed::Files(mut files) => {
                let due = |tail: &Tail| unseen || tail.intake.owes_word();
                files.extend(self.tails.iter().filter(|(_, tail)| due(tail)).map(|(path, _)| path.clone()));
                files
            }
        };
        // Those with new names first: to tell what they were it takes what was known before.
        let (old, new): (BTreeSet<_>, BTreeSet<_>) =
            files.into_iter().partition(|path| self.tails.contains_key(path));
        let mut gone = BTreeSet::new();
        for path in new.into_iter().chain(old) {
            match open_text(&path) {
                Ok(text) => self.take(&path, &text, now, out),
                Err(_) => drop(gone.insert(path)),
            }
        }
        self.forget(|path| gone.contains(path));
    }

    fn forget(&mut self, is_gone: impl Fn(&Path) -> bool) {
        let before = self.tails.len();
        self.tails.retain(|path, _| !is_gone(path));
        self.moved |= self.tails.len() != before;
    }

    fn take(&mut self, path: &Path, text: &Text, now: Instant, out: &mut Out<'_>) {
        let mut tail = match self.tails.remove(path) {
            Some(tail) if tail.is_of(text) => tail,
            Some(mut tail) => {
                let shown = Arc::clone(&tail.shown);
                tail.intake.finish(&mut |taken| out(&shown, taken));
                self.moved = true;
                Tail { bucket: tail.bucket, ..Tail::new(path, 0, now) }
            }
            None => {
                let at = self.left_at(text).unwrap_or(0);
                if !self.has_room() {
                    if !std::mem::replace(&mut self.told_of_many, true) {
                        let line = format!(
                            "more than {MAX_FILES} files are here: this one and others are not logged"
                        );
                        out(&shown(path), Taken::Line(line.into_bytes()));
                    }
                    return;
                }
                self.moved = true;
                Tail::new(path, at, now)
            }
        };
        let before = tail.position();
        tail.take(text, now, out);
        self.moved |= tail.position() != before;
        self.tails.insert(path.to_owned(), tail);
    }

    fn has_room(&mut self) -> bool {
        if self.tails.len() >= MAX_FILES {
            self.forget(|path| std::fs::symlink_metadata(path).is_err());
        }
        self.tails.len() < MAX_FILES
    }

    /// Where a file was left that has this content, under another name.
    fn left_at(&self, text: &Text) -> Option<u64> {
        let (_, tail) = self.tails.iter().find(|(path, tail)| {
            tail.head.is_some_and(|head| {
                let is_same = |text: &Text| tail.at <= text.size && head.is_of(&text.head);
                // A short beginning may be common to many, unless the one it was has gone.
                head.length > 0
                    && is_same(text)
                    && (head.length >= SURE_BYTES || !open_text(path).is_ok_and(|now| is_same(&now)))
            })
        })?;
        Some(tail.position())
    }

    /// How far all files are taken in, if that has changed since the last call.
    pub(super) fn take_positions(&mut self) -> Option<Vec<u8>> {
        if !std::mem::take(&mut self.moved) {
            return None;
        }
        let position = |tail: &Tail| Position { offset: tail.position(), head: tail.head };
        let named = |(path, tail): (&PathBuf, &Tail)| Some((path.to_str()?.to_owned(), position(tail)));
        let positions = Positions { format: FORMAT, files: self.tails.iter().filter_map(named).collect() };
        serde_json::to_vec(&positions).ok()
    }
}

fn load(path: &Path) -> Option<BTreeMap<String, Position>> {
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = Vec::new();
    file.take(MAX_POSITIONS_BYTES).read_to_end(&mut text).ok()?;
    let positions: Positions = serde_json::from_slice(&text).ok()?;
    (positions.format == FORMAT).then_some(positions.files)
}

fn shown(path: &Path) -> Arc<str> {
    path.to_string_lossy().into()
}

// === impl Tail ===

impl Tail {
    fn new(path: &Path, at: u64, now: Instant) -> Self {
        // There is nothing to know of an empty beginning.
        let head = (at == 0).then(|| Head::of(&[], 0));
        Self { shown: shown(path), at, head, intake: Intake::default(), bucket: Bucket::new(now) }
    }

    /// Everything before is taken in as whole lines.
    fn position(&self) -> u64 {
        self.at.saturating_sub(self.intake.held())
    }

    /// Whether the file goes on where this was left.
    fn is_of(&self, text: &Text) -> bool {
        self.at <= text.size && self.head.is_none_or(|head| head.is_of(&text.head))
    }

    fn take(&mut self, text: &Text, now: Instant, out: &mut Out<'_>) {
        let Self { shown, at, intake, bucket, .. } = self;
        let mut tell = |taken| out(shown, taken);
        let came = *at < text.size;
        if is_binary(&text.head) {
            *at = text.size;
        }
        let mut buffer = vec![0; READ_BYTES.min(usize::try_from(text.size - *at).unwrap_or(READ_BYTES))];
        while *at < text.size {
            if intake.is_skipping() && !bucket.is_filled(now) {
                intake.skip(text.size - *at, text.ends_line());
                *at = text.size;
                break;
            }
            let most = buffer.len().min(usize::try_from(text.size - *at).unwrap_or(READ_BYTES));
            match text.file.read_at(&mut buffer[..most], *at) {
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    intake.take(&buffer[..count], bucket, now, &mut tell);
                    *at += count as u64;
                }
            }
        }
        if !came && intake.owes_word() && bucket.is_filled(now) {
            intake.tell(&mut tell);
        }
        self.head = Some(Head::of(&text.head, self.at));
    }
}

// === impl Head ===

impl Head {
    /// Of a file that is known up to `at`.
    fn of(head: &[u8], at: u64) -> Self {
        let length = head.len().min(usize::try_from(at).unwrap_or(HEAD_BYTES));
        Self { length, hash: hash(&head[..length]) }
    }

    fn is_of(&self, head: &[u8]) -> bool {
        head.get(..self.length).is_some_and(|head| hash(head) == self.hash)
    }
}

/// FNV-1a: the same in every version of the agent.
fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// A file as it is now.
struct Text {
    file: File,
    size: u64,
    head: Vec<u8>,
}

impl Text {
    fn ends_line(&self) -> bool {
        let mut last = [0];
        self.file
            .read_at(&mut last, self.size.saturating_sub(1))
            .is_ok_and(|count| count == 1 && last == *b"\n")
    }
}

/// Opens a regular file; anything else is refused without waiting for it.
fn open_text(path: &Path) -> io::Result<Text> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut head = vec![0; HEAD_BYTES.min(usize::try_from(meta.len()).unwrap_or(HEAD_BYTES))];
    let length = file.read_at(&mut head, 0)?;
    head.truncate(length);
    Ok(Text { file, size: meta.len(), head })
}

fn is_binary(head: &[u8]) -> bool {
    head.contains(&0) || PACKED.iter().any(|packed| head.starts_with(packed))
}

#[cfg(test)]
mod tests;
