//! A folder of the user's as it goes into a sandbox.
//!
//! Files are told apart by what `stat` says, so that a folder that went in before is not read again; what is sent is hashed on
//! the way, and the hash is what "changed" means from then on. Names are UTF-8 here: a name that is not is left out and said.

pub(crate) mod cache;
mod git;
mod git_config;
pub(crate) mod pack;
pub(crate) mod root;
pub(crate) mod rules;
mod scan;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub(crate) use scan::{Scan, ScanOptions, scan};

/// Names are relative to the folder, with `/` between.
pub(crate) type Name = String;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    File { executable: bool },
    Link { target: String },
    Folder,
}

/// What `stat` says: when it is the same, so is the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    pub(crate) size: u64,
    /// Nanoseconds.
    pub(crate) modified: i64,
    /// Nanoseconds; also changes when somebody sets the time of modification back.
    pub(crate) changed: i64,
    pub(crate) inode: u64,
}

/// One thing of a folder as it went in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) stamp: Stamp,
    /// BLAKE3 of a file's content, in hexadecimal; empty for what has none.
    pub(crate) hash: String,
}

/// All that went in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// When it was begun; what was changed about then is not told apart by its stamp. Nanoseconds.
    pub(crate) begun: i64,
    pub(crate) entries: BTreeMap<Name, Entry>,
}

/// What is different in a folder from what went in before.
#[derive(Debug, Default)]
pub(crate) struct Difference {
    pub(crate) send: Vec<Name>,
    pub(crate) remove: Vec<Name>,
    pub(crate) bytes: u64,
}

/// Times of a file system are no finer than this on some.
const COARSE: i64 = 2_000_000_000;

impl Manifest {
    pub(crate) fn new() -> Self {
        let now = jiff::Timestamp::now().as_nanosecond();
        Self { begun: i64::try_from(now).unwrap_or(i64::MAX), entries: BTreeMap::new() }
    }

    pub(crate) fn difference(&self, scan: &Scan) -> Difference {
        let mut difference = Difference::default();
        let root = root::Root::open(&scan.root).ok();
        // What was changed about when it went in may look as it did: it is read again.
        let reads_the_same = |name: &str, entry: &Entry| {
            root.as_ref().and_then(|root| root.file(name).ok()).is_some_and(|file| {
                let mut hasher = blake3::Hasher::new();
                hasher.update_reader(file).is_ok() && hasher.finalize().to_hex().as_str() == entry.hash
            })
        };
        for (name, found) in &scan.entries {
            let is_same = self.entries.get(name).is_some_and(|entry| {
                let is_settled = found.stamp.modified.max(found.stamp.changed) < self.begun - COARSE;
                let is_same = entry.kind == found.kind && entry.mode == found.mode;
                match &found.kind {
                    Kind::Folder | Kind::Link { .. } => is_same,
                    Kind::File { .. } => match &found.made {
                        Some(made) => is_same && entry.hash == hash_of(made),
                        None => {
                            is_same
                                && entry.stamp == found.stamp
                                && (is_settled || reads_the_same(name, entry))
                        }
                    },
                }
            });
            if !is_same {
                difference.bytes += found.stamp.size;
                difference.send.push(name.clone());
            }
        }
        for (name, entry) in &self.entries {
            match scan.entries.get(name) {
                Some(found) if same_sort(&found.kind, &entry.kind) => {}
                _ => difference.remove.push(name.clone()),
            }
        }
        difference
    }
}

/// Whether one can be written over the other without removing it first.
fn same_sort(a: &Kind, b: &Kind) -> bool {
    matches!(a, Kind::Folder) == matches!(b, Kind::Folder)
}

pub(crate) fn hash_of(content: &[u8]) -> String {
    blake3::hash(content).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_what_changed_is_sent_again() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        fs::create_dir(at("src")).unwrap();
        for name in ["src/a", "src/b", "gone"] {
            fs::write(at(name), name).unwrap();
        }
        let before = scan(home.path(), &ScanOptions::default()).unwrap();
        let mut manifest = Manifest::new();
        assert_eq!(manifest.difference(&before).send.len(), 4, "all of an empty one");
        manifest.entries =
            pack::pack(&before, before.entries.keys(), std::io::sink(), None, &|_| {}).unwrap().entries;
        // Right away, when times tell nothing, and as if it had been some time ago.
        for later in [0, 2 * COARSE] {
            manifest.begun += later;
            let none = manifest.difference(&before);
            assert_eq!((none.send.len(), none.remove.len()), (0, 0));
        }

        fs::write(at("src/a"), "other").unwrap();
        fs::remove_file(at("gone")).unwrap();
        fs::create_dir(at("gone")).unwrap();
        let after = scan(home.path(), &ScanOptions::default()).unwrap();
        let some = manifest.difference(&after);
        assert_eq!(some.send, ["gone", "src/a"]);
        assert_eq!(some.remove, ["gone"]);
    }
}
