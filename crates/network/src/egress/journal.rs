//! What must outlive a kill of this process until the control plane has it: lines in a file, written before what they tell of
//! goes on. They are in the hands of the kernel then; only a loss of power loses the last of them.
//!
//! ```text
//!   add ─▶ NAME.new ── hand_over ─▶ NAME.given ── taken ─▶ gone
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::warn;

/// A file of lines that repeat each other is written anew, counted, when it has more bytes, and twice as many as it had after that.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

/// One log. Without a folder it keeps nothing.
pub(super) struct Journal<T> {
    paths: Option<Paths>,
    file: Option<File>,
    bytes: u64,
    /// When it was last written anew.
    compact: u64,
    failed: bool,
    lines: PhantomData<T>,
}

struct Paths {
    new: PathBuf,
    given: PathBuf,
    draft: PathBuf,
}

/// What a process before this one left.
pub(super) struct Left<T> {
    /// Handed over, and perhaps taken.
    pub(super) given: Vec<T>,
    pub(super) new: Vec<T>,
}

impl<T> Default for Journal<T> {
    fn default() -> Self {
        Self { paths: None, file: None, bytes: 0, compact: 0, failed: false, lines: PhantomData }
    }
}

impl<T: Serialize + DeserializeOwned> Journal<T> {
    pub(super) fn open(folder: &Path, name: &str) -> (Self, Left<T>) {
        let path = |end: &str| folder.join(format!("{name}.{end}"));
        let paths = Paths { new: path("new"), given: path("given"), draft: path("draft") };
        let left = Left { given: read(&paths.given), new: read(&paths.new) };
        let bytes = fs::metadata(&paths.new).map_or(0, |metadata| metadata.len());
        (Self { paths: Some(paths), bytes, ..Self::default() }, left)
    }

    /// Whether it should be written anew, by [`Self::replace`].
    pub(super) fn is_long(&self) -> bool {
        self.bytes > MAX_BYTES.max(2 * self.compact)
    }

    /// Is with the kernel when this returns. One that could not be written is said once: it is not lost unless this process is.
    pub(super) fn add(&mut self, line: &T) {
        let written = self.try_add(line);
        self.say(written);
    }

    /// What is new is handed over from now on, but for `rest`.
    pub(super) fn hand_over(&mut self, rest: &[T]) {
        let done = self.paths.as_ref().map_or(Ok(()), |paths| present(fs::rename(&paths.new, &paths.given)));
        self.say(done);
        self.replace(rest);
    }

    /// What was handed over has been taken.
    pub(super) fn taken(&mut self) {
        let done = self.paths.as_ref().map_or(Ok(()), |paths| present(fs::remove_file(&paths.given)));
        self.say(done);
    }

    /// These lines, in place of what is new.
    pub(super) fn replace(&mut self, lines: &[T]) {
        let replaced = self.try_replace(lines);
        self.say(replaced);
    }

    fn try_add(&mut self, line: &T) -> io::Result<()> {
        let Some(paths) = &self.paths else { return Ok(()) };
        if self.file.is_none() {
            self.file = Some(OpenOptions::new().create(true).append(true).open(&paths.new)?);
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        // The line end is in front, so that a line that could only be begun spoils no other.
        let mut text = vec![b'\n'];
        serde_json::to_writer(&mut text, line)?;
        file.write_all(&text)?;
        self.bytes += text.len() as u64;
        Ok(())
    }

    fn try_replace(&mut self, lines: &[T]) -> io::Result<()> {
        let Some(paths) = &self.paths else { return Ok(()) };
        self.file = None;
        (self.bytes, self.compact) = (0, 0);
        if lines.is_empty() {
            return present(fs::remove_file(&paths.new));
        }
        let mut text = Vec::new();
        for line in lines {
            text.push(b'\n');
            serde_json::to_writer(&mut text, line)?;
        }
        fs::write(&paths.draft, &text)?;
        self.bytes = text.len() as u64;
        self.compact = self.bytes;
        fs::rename(&paths.draft, &paths.new)
    }

    fn say(&mut self, done: io::Result<()>) {
        if let Err(error) = done
            && !self.failed
        {
            warn!(%error, "what sandboxes used secrets for cannot be written down; a kill of the server would lose the last of it");
            self.failed = true;
        }
    }
}

/// Whole lines only: the last one may have been cut off.
fn read<T: DeserializeOwned>(path: &Path) -> Vec<T> {
    let text = fs::read(path).unwrap_or_default();
    text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

fn present(done: io::Result<()>) -> io::Result<()> {
    done.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_cut_off_spoils_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Journal::<u32>::open(folder.path(), "numbers");
        let (mut journal, _) = open();
        journal.add(&1);
        let mut file = OpenOptions::new().append(true).open(folder.path().join("numbers.new")).unwrap();
        file.write_all(b"\n\"2").unwrap();
        journal.add(&3);
        assert_eq!(open().1.new, [1_u32, 3]);
        journal.hand_over(&[4]);
        let left = open().1;
        assert_eq!((left.given, left.new), (vec![1_u32, 3], vec![4_u32]));
        journal.taken();
        assert!(open().1.given.is_empty());
        assert!(!journal.is_long());
    }
}
