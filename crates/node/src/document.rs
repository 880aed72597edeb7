//! Documents that are kept beside what they describe, and how to tell that they still say what was written.
//!
//! One JSON object: `magic`, `format`, `checksum`, `body`. The checksum is of the body's bytes as they stand, so a document
//! is whole or refused. WHEN CHANGING A BODY: a field that older programs may miss needs a default; anything else needs a
//! new format, and then the old one must still be read.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::disk::digest;

const MAX_BYTES: u64 = 4 * 1024 * 1024;
const BODY: &str = ",\"body\":";

/// What a document is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) magic: &'static str,
    pub(crate) format: u32,
}

/// Why a document cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DocumentError {
    #[error("its manifest cannot be read")]
    Read(#[source] io::Error),
    #[error("its manifest is damaged: {0}")]
    Damaged(String),
    #[error("its manifest has format {found}, and this server knows {known}")]
    Foreign { found: u32, known: u32 },
}

#[derive(Serialize, Deserialize)]
struct Head {
    magic: String,
    format: u32,
    checksum: String,
}

impl Kind {
    /// Writes `body`, and on to the drive.
    pub(crate) fn save(self, path: &Path, body: &impl Serialize) -> io::Result<()> {
        let body = serde_json::to_string(body)?;
        let checksum = digest::of_bytes(body.as_bytes());
        let head = serde_json::to_string(&Head { magic: self.magic.into(), format: self.format, checksum })?;
        let head = head.strip_suffix('}').expect("an object ends with a brace");
        let mut file = File::create(path)?;
        file.write_all(format!("{head}{BODY}{body}}}\n").as_bytes())?;
        file.sync_all()
    }

    pub(crate) fn load<T: DeserializeOwned>(self, path: &Path) -> Result<T, DocumentError> {
        let mut text = String::new();
        let file = File::open(path).map_err(DocumentError::Read)?;
        file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => DocumentError::Damaged("it is not text".into()),
            _ => DocumentError::Read(error),
        })?;
        self.parse(&text)
    }

    pub(crate) fn parse<T: DeserializeOwned>(self, text: &str) -> Result<T, DocumentError> {
        let damaged = |why: &str| DocumentError::Damaged(why.to_owned());
        if text.len() as u64 > MAX_BYTES {
            return Err(damaged("it is too large"));
        }
        let (head, rest) = text.split_once(BODY).ok_or_else(|| damaged("it is cut short"))?;
        let head: Head = serde_json::from_str(&format!("{head}}}"))
            .map_err(|error| DocumentError::Damaged(error.to_string()))?;
        if head.magic != self.magic {
            return Err(damaged("it is of something else"));
        }
        if head.format != self.format {
            return Err(DocumentError::Foreign { found: head.format, known: self.format });
        }
        let body = rest.trim_end().strip_suffix('}').ok_or_else(|| damaged("it is cut short"))?;
        if digest::of_bytes(body.as_bytes()) != head.checksum {
            return Err(damaged("its checksum is another"));
        }
        serde_json::from_str(body).map_err(|error| DocumentError::Damaged(error.to_string()))
    }
}
