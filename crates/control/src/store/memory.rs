//! What was read from a store that has not changed since.
//!
//! Every request looks its key up, and most of them a sandbox as well. A query crosses to SQLite's own thread and back,
//! which costs more than the query. So answers are kept, with a mark of the store they were read from, and one commit
//! by anybody, in this process or another, makes all of them void.
//!
//! The mark is what SQLite's own readers compare for the same purpose: the header of the WAL index, a file shared by all
//! who have the database open (<https://www.sqlite.org/walformat.html>, "The WAL-Index Header"). It stands there twice and
//! is written back to front, so two equal copies are a whole header. A read of it costs about a microsecond. Whether
//! the file system shows the header to readers as it changes is proved at start ([`Memory::open`]); where it does not,
//! nothing is kept.

use std::collections::HashMap;
use std::fs::File;
use std::hash::Hash;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, Mutex};

use sqlx::SqlitePool;
use warren_types::SandboxId;

use super::StoreError;
use super::keys::ActiveKey;
use super::sandboxes::SandboxStanding;

const HEADER_BYTES: usize = 48;
/// Answers kept of one kind; more than that and all go.
const MAX_KEPT: usize = 10_000;

type Mark = [u8; HEADER_BYTES];

#[derive(Debug, Clone)]
pub(super) struct Memory {
    /// The WAL index, while marks can be trusted.
    index: Option<Arc<File>>,
    kept: Arc<Mutex<Kept>>,
}

/// Answers that are true as long as the store's mark is `mark`.
#[derive(Debug)]
pub(super) struct Kept {
    mark: Mark,
    /// By hash, and by id, which looks like no hash.
    pub keys: HashMap<String, ActiveKey>,
    pub standings: HashMap<SandboxId, SandboxStanding>,
}

impl Memory {
    /// Opens the WAL index of a database that is open already, and proves that a commit changes the mark.
    pub(super) async fn open(database: &Path, writer: &SqlitePool) -> Result<Self, StoreError> {
        let mut path = database.as_os_str().to_owned();
        path.push("-shm");
        let index = File::open(path).ok().map(Arc::new);
        let kept = Kept { mark: [0; HEADER_BYTES], keys: HashMap::new(), standings: HashMap::new() };
        let mut memory = Self { index, kept: Arc::new(Mutex::new(kept)) };
        let before = memory.mark();
        let commit = "INSERT INTO starts (id, count) VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET count = starts.count + 1";
        sqlx::query(commit).execute(writer).await.map_err(StoreError::query("write to the store"))?;
        if before.is_none() || memory.mark().is_none() || before == memory.mark() {
            tracing::info!("this file system does not show changes of the store; every request reads it");
            memory.index = None;
        }
        Ok(memory)
    }

    /// The state of the store; `None` when it cannot be told.
    fn mark(&self) -> Option<Mark> {
        let index = self.index.as_ref()?;
        let mut copies = [0; 2 * HEADER_BYTES];
        index.read_exact_at(&mut copies, 0).ok()?;
        let (first, second) = copies.split_at(HEADER_BYTES);
        // An index that was removed is followed by a new one that this file does not show.
        let linked = index.metadata().ok()?.nlink() > 0;
        (linked && first == second).then(|| first.try_into().ok()).flatten()
    }

    /// The kept answer to a question, or what `read` finds. Only what is there is kept, never that something is not.
    pub(super) async fn recall<K, V>(
        &self,
        answers: fn(&mut Kept) -> &mut HashMap<K, V>,
        key: &K,
        read: impl Future<Output = Result<Option<V>, StoreError>>,
    ) -> Result<Option<V>, StoreError>
    where
        K: Clone + Eq + Hash,
        V: Clone,
    {
        // Taken before the read: a commit during it leaves the answer with a mark that is over.
        let Some(mark) = self.mark() else { return read.await };
        if let Some(answer) = self.with(mark, |kept| answers(kept).get(key).cloned()) {
            return Ok(Some(answer));
        }
        let found = read.await?;
        if let Some(found) = &found {
            self.with(mark, |kept| {
                // Somebody else may have gone on to a newer mark meanwhile; then this starts afresh with the old one,
                // which the next question finds to be over.
                let answers = answers(kept);
                if answers.len() >= MAX_KEPT {
                    answers.clear();
                }
                answers.insert(key.clone(), found.clone());
            });
        }
        Ok(found)
    }

    /// The answers of that mark; those of any other are dropped first.
    fn with<T>(&self, mark: Mark, act: impl FnOnce(&mut Kept) -> T) -> T {
        let mut kept = self.kept.lock().expect("nothing panics while it holds this lock");
        if kept.mark != mark {
            kept.keys.clear();
            kept.standings.clear();
            kept.mark = mark;
        }
        act(&mut kept)
    }
}

#[cfg(test)]
mod tests {
    use crate::audit::seal::Seal;
    use crate::store::Store;

    #[tokio::test]
    async fn what_was_read_is_kept_until_anybody_commits() {
        let dir = tempfile::tempdir().unwrap();
        let ours = Store::open(dir.path()).await.unwrap();
        let theirs = Store::open(dir.path()).await.unwrap();
        assert!(ours.memory.index.is_some(), "the file system of the tests shows changes");
        let hash = "h".to_owned();
        assert!(ours.find_active_key(&hash).await.unwrap().is_none());
        let key =
            theirs.insert_key("acme", None, &hash, "osb_", &Seal::open(dir.path()).unwrap()).await.unwrap();
        let unchanged = ours.memory.mark();
        assert_eq!(ours.find_active_key(&hash).await.unwrap().unwrap().id, key.id, "absence is not kept");
        assert_eq!(ours.memory.mark(), unchanged, "reading changes nothing");

        // Without its readers it can only answer from what it kept.
        ours.reader.close().await;
        assert_eq!(ours.find_active_key(&hash).await.unwrap().unwrap().id, key.id);
        theirs.revoke_key(&key.id).await.unwrap();
        assert_ne!(ours.memory.mark(), unchanged);
        assert!(ours.find_active_key(&hash).await.is_err(), "it has to ask again");
        assert!(theirs.find_active_key(&hash).await.unwrap().is_none());
    }
}
