//! What an agent changed, as it may be written here.
//!
//! ```text
//!   listing ──▶ candidates ──▶ contents, bounded ──▶ changes ──▶ diff, patch file
//!  (by stat)    (by rules)       (by hash)              └──────▶ apply: merged, or a conflict
//! ```
//!
//! Everything here came from a sandbox and is hostile: names are checked before they mean anything, sizes are bounded while
//! they are read, and `.git` is never written.

pub(crate) mod apply;
pub(crate) mod base;
mod binary;
pub(crate) mod collect;
pub(crate) mod diff;
pub(crate) mod listing;
mod merge;
pub(crate) mod names;
pub(crate) mod repository;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::tree::Name;

/// A file or a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Content {
    File { hash: String, executable: bool },
    Link { target: String },
}

/// One name that is not what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Change {
    pub(crate) name: Name,
    pub(crate) before: Option<Content>,
    pub(crate) after: Option<Content>,
}

/// What came back of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Changes {
    pub(crate) changes: Vec<Change>,
    /// What did not come back, and why.
    pub(crate) refused: Vec<Refusal>,
    /// Written here from this run before, and there as it went in again.
    #[serde(default)]
    pub(crate) undone: Vec<Change>,
}

/// What was written here from a run, by name; none where something was removed. The next delivery goes on from it.
pub(crate) type Delivered = BTreeMap<Name, Option<Content>>;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refusal {
    pub(crate) name: String,
    pub(crate) why: String,
}

impl Content {
    pub(crate) fn hash(&self) -> Option<&str> {
        match self {
            Self::File { hash, .. } => Some(hash),
            Self::Link { .. } => None,
        }
    }

    /// As git writes it.
    fn mode(&self) -> &'static str {
        match self {
            Self::File { executable: false, .. } => "100644",
            Self::File { executable: true, .. } => "100755",
            Self::Link { .. } => "120000",
        }
    }
}

impl Change {
    /// One letter, as `git status` has it.
    pub(crate) fn letter(&self) -> char {
        match (&self.before, &self.after) {
            (None, _) => 'A',
            (_, None) => 'D',
            (Some(Content::File { .. }), Some(Content::Link { .. }))
            | (Some(Content::Link { .. }), Some(Content::File { .. })) => 'T',
            _ => 'M',
        }
    }
}
