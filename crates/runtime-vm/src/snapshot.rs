//! A snapshot on disk: what it was made with, and whether it is still whole.
//!
//! ```text
//!   <folder>/memory      the machine's memory, a clone
//!   <folder>/disk.img    its writable disk of the same moment, a clone
//!   <folder>/state       its devices
//!   <folder>/machine.json  this page's [`Manifest`]; written last
//! ```
//!
//! The manifest has the digests of memory and disk too. They are long to read, so who opens a snapshot compares them when it
//! means to run it: [`Opened::contents`].
//!
//! Device state is read by the very QEMU that wrote it and means nothing to another, so a snapshot carries a [`Made`] and is
//! opened by one that is equal in all parts or not at all.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::hardware::Hardware;
use crate::machine::{MachineError, read_state};

/// Changes whenever what is in the folder is to be read differently.
const FORMAT: u32 = 2;
const MANIFEST: &str = "machine.json";
const MAX_MANIFEST_BYTES: u64 = 64 * 1024;

pub const MEMORY: &str = "memory";
pub const DISK: &str = "disk.img";
pub const STATE: &str = "state";

/// Everything a snapshot depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    pub hardware: Hardware,
    /// Of QEMU and all it loads.
    pub emulator_digest: String,
    /// Of kernel and initramfs, and so of the agent. The machine goes on with those it was booted with.
    pub boot_digest: String,
    pub template_digest: String,
}

impl Made {
    /// A short name for it, as of a folder.
    #[must_use]
    pub fn key(&self) -> String {
        let text = serde_json::to_vec(self).expect("plain data is always valid JSON");
        warren_types::hex(&Sha256::digest(text)[..12])
    }
}

/// Digests of what is too large to be read at each use, as their maker has them made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    pub memory: String,
    pub disk: String,
}

/// A snapshot of which everything but its [`Contents`] has been compared.
#[derive(Debug)]
pub struct Opened {
    pub state: Vec<u8>,
    /// What memory and disk must hold.
    pub contents: Contents,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    made: Made,
    state_sha256: String,
    memory_bytes: u64,
    disk_bytes: u64,
    contents: Contents,
}

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("could not {action} {path}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} is not a snapshot's manifest")]
    Manifest { path: PathBuf, source: serde_json::Error },
    #[error("the snapshot has format {found}, and this program reads {FORMAT}")]
    Format { found: u32 },
    #[error("the snapshot was made with another {what}")]
    Foreign { what: &'static str },
    #[error("the snapshot's {what} is damaged")]
    Damaged { what: &'static str },
    #[error(transparent)]
    State(#[from] MachineError),
}

type Result<T> = std::result::Result<T, SnapshotError>;

fn trouble(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SnapshotError {
    let path = path.to_owned();
    move |source| SnapshotError::Io { action, path, source }
}

/// SHA-256 of files one after the other, for [`Made::boot_digest`].
pub fn digest_of(files: &[&Path]) -> io::Result<String> {
    let mut hasher = Sha256::new();
    for path in files {
        hasher.update(Sha256::digest(fs::read(path)?));
    }
    Ok(warren_types::hex(&hasher.finalize()))
}

/// Completes a folder that has `memory` and `disk.img`: writes the device state and, last of all, the manifest.
pub fn complete(folder: &Path, made: &Made, state: &[u8], contents: Contents) -> Result<()> {
    let path = folder.join(STATE);
    fs::write(&path, state).map_err(trouble("write", &path))?;
    let manifest = Manifest {
        format: FORMAT,
        made: made.clone(),
        state_sha256: warren_types::hex(&Sha256::digest(state)),
        memory_bytes: length(folder, MEMORY)?,
        disk_bytes: length(folder, DISK)?,
        contents,
    };
    let (path, unfinished) = (folder.join(MANIFEST), folder.join("machine.unfinished"));
    let text = serde_json::to_vec_pretty(&manifest).expect("plain data is always valid JSON");
    fs::write(&unfinished, text).map_err(trouble("write", &unfinished))?;
    fs::rename(&unfinished, &path).map_err(trouble("write", &path))
}

/// Checks that the folder holds a snapshot of exactly that make, with all it consists of.
pub fn open(folder: &Path, made: &Made) -> Result<Opened> {
    let manifest = read_manifest(&folder.join(MANIFEST))?;
    if manifest.format != FORMAT {
        return Err(SnapshotError::Format { found: manifest.format });
    }
    let theirs = &manifest.made;
    for (same, what) in [
        (theirs.hardware == made.hardware, "hardware"),
        (theirs.emulator_digest == made.emulator_digest, "QEMU"),
        (theirs.boot_digest == made.boot_digest, "kernel or agent"),
        (theirs.template_digest == made.template_digest, "template"),
    ] {
        if !same {
            return Err(SnapshotError::Foreign { what });
        }
    }
    let memory = length(folder, MEMORY)?;
    if memory != manifest.memory_bytes || memory != made.hardware.memory_bytes() {
        return Err(SnapshotError::Damaged { what: "memory" });
    }
    if length(folder, DISK)? != manifest.disk_bytes {
        return Err(SnapshotError::Damaged { what: "disk" });
    }
    let state = read_state(&folder.join(STATE))?;
    if warren_types::hex(&Sha256::digest(&state)) != manifest.state_sha256 {
        return Err(SnapshotError::Damaged { what: "device state" });
    }
    Ok(Opened { state, contents: manifest.contents })
}

/// What the snapshot in a folder was made with.
pub fn made_with(folder: &Path) -> Result<Made> {
    read_manifest(&folder.join(MANIFEST)).map(|manifest| manifest.made)
}

fn read_manifest(path: &Path) -> Result<Manifest> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_MANIFEST_BYTES).read_to_end(&mut text))
        .map_err(trouble("read", path))?;
    serde_json::from_slice(&text).map_err(|source| SnapshotError::Manifest { path: path.into(), source })
}

fn length(folder: &Path, name: &str) -> Result<u64> {
    let path = folder.join(name);
    fs::metadata(&path).map(|meta| meta.len()).map_err(trouble("look at", &path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hardware::Accelerator;

    fn made() -> Made {
        Made {
            hardware: Hardware { accelerator: Accelerator::Emulation, cpu_count: 1, memory_mb: 1 },
            emulator_digest: "e".into(),
            boot_digest: "b".into(),
            template_digest: "t".into(),
        }
    }

    fn contents() -> Contents {
        Contents { memory: "m".into(), disk: "d".into() }
    }

    fn whole() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        File::create(folder.path().join(MEMORY)).unwrap().set_len(1 << 20).unwrap();
        fs::write(folder.path().join(DISK), "disk").unwrap();
        complete(folder.path(), &made(), b"devices", contents()).unwrap();
        folder
    }

    #[test]
    fn a_whole_snapshot_of_the_same_make_opens() {
        let opened = open(whole().path(), &made()).unwrap();
        assert_eq!((opened.state.as_slice(), opened.contents), (&b"devices"[..], contents()));
    }

    #[test]
    fn another_qemu_kernel_template_or_size_is_named() {
        let folder = whole();
        let refused = |other: Made| match open(folder.path(), &other) {
            Err(SnapshotError::Foreign { what }) => what,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(Made { emulator_digest: "x".into(), ..made() }), "QEMU");
        assert_eq!(refused(Made { boot_digest: "x".into(), ..made() }), "kernel or agent");
        assert_eq!(refused(Made { template_digest: "x".into(), ..made() }), "template");
        let hardware = Hardware { memory_mb: 2, ..made().hardware };
        let larger = Made { hardware, ..made() };
        assert_ne!(larger.key(), made().key());
        assert_eq!(refused(larger), "hardware");
    }

    #[test]
    fn what_is_damaged_cut_off_or_of_another_format_is_never_opened() {
        let folder = whole();
        let path = |name| folder.path().join(name);
        fs::write(path(STATE), b"deviceS").unwrap();
        assert!(matches!(open(folder.path(), &made()), Err(SnapshotError::Damaged { what: "device state" })));
        let folder = whole();
        File::create(folder.path().join(MEMORY)).unwrap().set_len(1 << 19).unwrap();
        assert!(matches!(open(folder.path(), &made()), Err(SnapshotError::Damaged { what: "memory" })));
        let folder = whole();
        fs::write(folder.path().join(DISK), "dis").unwrap();
        assert!(matches!(open(folder.path(), &made()), Err(SnapshotError::Damaged { what: "disk" })));
        let folder = whole();
        let text = fs::read_to_string(folder.path().join(MANIFEST)).unwrap();
        fs::write(folder.path().join(MANIFEST), text.replace("\"format\": 2", "\"format\": 9")).unwrap();
        assert!(matches!(open(folder.path(), &made()), Err(SnapshotError::Format { found: 9 })));
        fs::write(folder.path().join(MANIFEST), &text[..20]).unwrap();
        assert!(matches!(open(folder.path(), &made()), Err(SnapshotError::Manifest { .. })));
        // Half made: the manifest comes last.
        fs::remove_file(folder.path().join(MANIFEST)).unwrap();
        assert!(matches!(open(folder.path(), &made()), Err(SnapshotError::Io { .. })));
    }
}
