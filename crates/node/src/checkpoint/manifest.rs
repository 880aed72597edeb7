//! `manifest.json` of a checkpoint: what is in its folder. How it is written is in [`crate::document`].

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use warren_node_api::{Consistency, SandboxSpec};
use warren_types::{CheckpointId, Isolation, SandboxId};

use crate::document::{DocumentError, Kind};
use crate::sandbox::record::Suspended;

pub(crate) const FILE: &str = "manifest.json";
const KIND: Kind = Kind { magic: "warren-checkpoint", format: 1 };

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
    /// Some of what was written to the disk had not come there, for want of room.
    #[serde(default)]
    pub(crate) writes_lost: bool,
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

impl Manifest {
    /// Writes it, and on to the drive.
    pub(crate) fn save(&self, folder: &Path) -> io::Result<()> {
        KIND.save(&folder.join(FILE), self)
    }

    pub(crate) fn load(folder: &Path) -> Result<Self, DocumentError> {
        KIND.load(&folder.join(FILE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::digest;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::fs;
    use warren_types::Size;

    fn parse(text: &str) -> Result<Manifest, DocumentError> {
        KIND.parse(text)
    }

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
            writes_lost: false,
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
        assert!(matches!(parse(&foreign), Err(DocumentError::Foreign { found: 2, .. })));
        let other = text.replacen(KIND.magic, "something-else", 1);
        assert!(matches!(parse(&other), Err(DocumentError::Damaged(_))));
        assert!(matches!(Manifest::load(&folder.path().join("none")), Err(DocumentError::Read(_))));
    }

    proptest! {
        #[test]
        fn no_cut_and_no_changed_byte_passes(cut in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let folder = tempfile::tempdir().unwrap();
            manifest().save(folder.path()).unwrap();
            let whole = fs::read(folder.path().join(FILE)).unwrap();
            let at = cut.index(whole.len() - 2);
            let cut_short = String::from_utf8(whole[..at].to_vec()).unwrap();
            prop_assert!(parse(&cut_short).is_err());
            let mut changed = whole.clone();
            changed[at] = byte;
            if changed != whole && let Ok(text) = String::from_utf8(changed) {
                prop_assert!(parse(&text).is_err());
            }
        }
    }
}
