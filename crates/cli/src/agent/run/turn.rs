//! Several commands may follow one run. One of them at a time brings its work home; what became of the run meanwhile the others read here.
//!
//! ```text
//!   follow ──▶ its end ──▶ take the turn ──▶ bring the work home ──▶ forget, with a word ──▶ let go
//!      └────▶ its end ──▶ wait for the turn ───────────────────────────────────────────────▶ read the word
//! ```
//!
//! The turn is a lock on a file of the record. Whoever holds the file open can read the last word in it, also when the record is gone.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::Duration;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use super::record::Run;

const LOCK: &str = "lock";
const LOOK: Duration = Duration::from_millis(50);
const MAX_WORD: u64 = 64 << 10;

pub(crate) struct Turn(File);

/// What is left for the others to read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Word {
    pub(crate) text: String,
    /// The program's exit code.
    pub(crate) code: Option<u8>,
}

/// What became of a run, as its record says it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Became {
    /// It goes on, as far as anybody knows.
    Goes,
    Paused,
    /// Another command has seen its end.
    Ended(u8),
    /// Its record is gone, or about to go.
    Gone(Word),
}

impl Turn {
    pub(crate) fn of(run: &Run) -> anyhow::Result<Self> {
        let path = run.dir.join(LOCK);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        Ok(Self(file.with_context(|| format!("could not open {}", path.display()))?))
    }

    /// Waits until no other command has it. `waits` is called once if one has.
    pub(crate) async fn take(&self, waits: impl FnOnce()) {
        let mut waits = Some(waits);
        while let Err(std::fs::TryLockError::WouldBlock) = self.0.try_lock() {
            if let Some(waits) = waits.take() {
                waits();
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Before the sandbox is ended and the record forgotten: who follows the run hears of its end before that is over.
    pub(crate) fn leave_word(&self, text: &str, code: Option<u8>) -> anyhow::Result<()> {
        self.write(&serde_json::to_vec(&Word { text: text.to_owned(), code })?)
    }

    /// It did not go after all.
    pub(crate) fn take_word_back(&self) -> anyhow::Result<()> {
        self.write(&[])
    }

    fn write(&self, word: &[u8]) -> anyhow::Result<()> {
        let mut file = &self.0;
        let mut write = || {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(word)
        };
        write().context("could not write the run's record")
    }

    fn word(&self) -> Word {
        let mut file = &self.0;
        let mut bytes = Vec::new();
        let read = file.rewind().and_then(|()| file.take(MAX_WORD).read_to_end(&mut bytes));
        read.ok().and_then(|_| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    pub(crate) fn became(&self, run: &Run) -> Became {
        match run.again() {
            None => Became::Gone(self.word()),
            Some(_) if self.word() != Word::default() => Became::Gone(self.word()),
            Some(run) if run.record.paused => Became::Paused,
            Some(run) => run.record.ended.map_or(Became::Goes, Became::Ended),
        }
    }
}

#[cfg(test)]
mod tests {
    use warren_types::SandboxId;

    use super::super::super::launch::Lines;
    use super::super::super::tree::cache::Tree;
    use super::super::record::Record;
    use super::*;
    use std::path::Path;

    #[test]
    fn who_follows_a_run_reads_of_its_removal_before_the_record_is_gone() {
        let runs = tempfile::tempdir().unwrap();
        let id: SandboxId = "sb-0123abcd".parse().unwrap();
        let tree = Tree {
            server: String::new(),
            folder: runs.path().to_owned(),
            checkpoint: String::new(),
            sandbox: String::new(),
            coarse: false,
            listed: 0,
        };
        let record = Record::new("", &id, (Path::new("/"), "/"), "", Vec::new(), Lines::Plain, &tree, None);
        let run = Run { dir: runs.path().to_owned(), record };
        run.save().unwrap();

        let (follows, removes) = (Turn::of(&run).unwrap(), Turn::of(&run).unwrap());
        assert_eq!(follows.became(&run), Became::Goes);
        removes.leave_word("it was removed", Some(3)).unwrap();
        let gone = Became::Gone(Word { text: "it was removed".to_owned(), code: Some(3) });
        assert_eq!(follows.became(&run), gone);
        removes.take_word_back().unwrap();
        assert_eq!(follows.became(&run), Became::Goes);
        removes.leave_word("it was removed", Some(3)).unwrap();
        run.forget();
        assert_eq!(follows.became(&run), gone);
    }
}
