//! `manifest.json` of a checkpoint: what is in its folder, and how to tell that it still is.
//!
//! One JSON object: `magic`, `format`, `checksum`, `body`. The checksum is of the body's bytes as they stand, so a manifest
//! is whole or refused. WHEN CHANGING THE BODY: a field that older programs may miss needs a default; anything else needs
//! a new [`FORMAT`], and then the old one must still be read.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use warren_node_api::{Consistency, SandboxSpec};
use warren_types::{CheckpointId, Isolation, SandboxId};

use crate::disk::digest;
use crate::sandbox::record::Suspended;

pub(crate) const FILE: &str = "manifest.json";
const MAGIC: &str = "warren-checkpoint";
const FORMAT: u32 = 1;
const MAX_BYTES: u64 = 4 * 1024 * 1024;
const BODY: &str = ",\"body\":";

/// What a checkpoint is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) id: CheckpointId,
    pub(crate) sandbox_id: SandboxId,
    /// Milliseconds since the Unix epoch.
    pub(crate) created_at_ms: u64,
    pub(crate) runtime: Isolation,
    /// The template that the disk is an overlay of; it means nothing over another.
    pub(crate) template_digest: String,
    pub(crate) disk: DiskPart,
    /// Memory and devices; absent when the checkpoint holds the disk alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) vm: Option<VmPart>,
    /// The guest agent that was running.
    pub(crate) agent_version: String,
    pub(crate) consistency: Consistency,
    /// How long the sandbox stood still, in microseconds; absent when it was not running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pause_us: Option<u64>,
    pub(crate) spec: SandboxSpec,
    /// The checkpoint the sandbox itself had come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lineage: Option<Lineage>,
}

/// The writable image, `disk.img`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DiskPart {
    /// Length of the image.
    pub(crate) size_bytes: u64,
    /// What of it is not a hole.
    pub(crate) data_bytes: u64,
    pub(crate) digest: String,
}

/// Memory and devices of a virtual machine, in files beside the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VmPart {
    /// `memory` and `state`, and what they must match to be gone on with.
    pub(crate) suspended: Suspended,
    /// What of the memory is not a hole.
    pub(crate) memory_bytes: u64,
}

/// Where a sandbox comes from, and how far the patches of that checkpoint are in its disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lineage {
    pub(crate) checkpoint: CheckpointId,
    pub(crate) patches_applied: u32,
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("its manifest cannot be read")]
    Read(#[source] io::Error),
    #[error("its manifest is damaged: {0}")]
    Damaged(String),
    #[error("its manifest has format {0}, and this server knows {FORMAT}")]
    Foreign(u32),
}

#[derive(Serialize, Deserialize)]
struct Head {
    magic: String,
    format: u32,
    checksum: String,
}

impl Manifest {
    /// Writes it, and on to the drive.
    pub(crate) fn save(&self, folder: &Path) -> io::Result<()> {
        let body = serde_json::to_string(self)?;
        let checksum = digest::of_bytes(body.as_bytes());
        let head = serde_json::to_string(&Head { magic: MAGIC.into(), format: FORMAT, checksum })?;
        let head = head.strip_suffix('}').expect("an object ends with a brace");
        let mut file = File::create(folder.join(FILE))?;
        file.write_all(format!("{head}{BODY}{body}}}\n").as_bytes())?;
        file.sync_all()
    }

    pub(crate) fn load(folder: &Path) -> Result<Self, ManifestError> {
        let mut text = String::new();
        let file = fs::File::open(folder.join(FILE)).map_err(ManifestError::Read)?;
        file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => ManifestError::Damaged("it is not text".into()),
            _ => ManifestError::Read(error),
        })?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self, ManifestError> {
        let damaged = |why: &str| ManifestError::Damaged(why.to_owned());
        if text.len() as u64 > MAX_BYTES {
            return Err(damaged("it is too large"));
        }
        let (head, rest) = text.split_once(BODY).ok_or_else(|| damaged("it is cut short"))?;
        let head: Head = serde_json::from_str(&format!("{head}}}"))
            .map_err(|error| ManifestError::Damaged(error.to_string()))?;
        if head.magic != MAGIC {
            return Err(damaged("it is of something else"));
        }
        if head.format != FORMAT {
            return Err(ManifestError::Foreign(head.format));
        }
        let body = rest.trim_end().strip_suffix('}').ok_or_else(|| damaged("it is cut short"))?;
        if digest::of_bytes(body.as_bytes()) != head.checksum {
            return Err(damaged("its checksum is another"));
        }
        serde_json::from_str(body).map_err(|error| ManifestError::Damaged(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use warren_types::Size;

    fn manifest() -> Manifest {
        Manifest {
            id: CheckpointId::generate(),
            sandbox_id: SandboxId::generate(),
            created_at_ms: 1,
            runtime: Isolation::Container,
            template_digest: "ab".repeat(32),
            disk: DiskPart { size_bytes: 20 << 30, data_bytes: 1 << 20, digest: digest::of_bytes(b"x") },
            vm: None,
            agent_version: "0.1.0".into(),
            consistency: Consistency::Quiesced,
            pause_us: Some(900),
            spec: SandboxSpec {
                template: "base".into(),
                isolation: Isolation::Container,
                size: Size::resolve(None, None, None).unwrap(),
                // What could be taken for the end of the head.
                envs: BTreeMap::from([("A".into(), ",\"body\":{}}\n".into())]),
                timeout_seconds: 0,
                egress: warren_types::EgressPolicy::default(),
                sealed: false,
                start_commands: vec!["true".into()],
                from_checkpoint: None,
                image: warren_node_api::ImageSettings::default(),
            },
            lineage: Some(Lineage { checkpoint: CheckpointId::generate(), patches_applied: 3 }),
        }
    }

    #[test]
    fn a_manifest_reads_back_and_is_json() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = manifest();
        manifest.save(folder.path()).unwrap();
        assert_eq!(Manifest::load(folder.path()).unwrap(), manifest);
        let text = fs::read_to_string(folder.path().join(FILE)).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["format"], 1);
        assert_eq!(json["body"]["id"], manifest.id.as_str());
    }

    #[test]
    fn another_format_is_told_from_damage() {
        let folder = tempfile::tempdir().unwrap();
        manifest().save(folder.path()).unwrap();
        let text = fs::read_to_string(folder.path().join(FILE)).unwrap();
        let foreign = text.replacen("\"format\":1", "\"format\":2", 1);
        assert!(matches!(Manifest::parse(&foreign), Err(ManifestError::Foreign(2))));
        let other = text.replacen(MAGIC, "something-else", 1);
        assert!(matches!(Manifest::parse(&other), Err(ManifestError::Damaged(_))));
        assert!(matches!(Manifest::load(&folder.path().join("none")), Err(ManifestError::Read(_))));
    }

    proptest! {
        #[test]
        fn no_cut_and_no_changed_byte_passes(cut in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let folder = tempfile::tempdir().unwrap();
            manifest().save(folder.path()).unwrap();
            let whole = fs::read(folder.path().join(FILE)).unwrap();
            let at = cut.index(whole.len() - 2);
            let cut_short = String::from_utf8(whole[..at].to_vec()).unwrap();
            prop_assert!(Manifest::parse(&cut_short).is_err());
            let mut changed = whole.clone();
            changed[at] = byte;
            if changed != whole && let Ok(text) = String::from_utf8(changed) {
                prop_assert!(Manifest::parse(&text).is_err());
            }
        }
    }
}
