//! A small volume with reflinks, for tests.

use std::fs::File;
use std::path::Path;
use std::process::Command;

const BYTES: u64 = 1 << 30;

/// Mounted for as long as it lives.
pub(crate) struct Scratch {
    folder: tempfile::TempDir,
}

impl Scratch {
    /// `None`, with the reason printed, where there can be none.
    pub(crate) fn make() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIP: mounting a volume needs root");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let (file, at) = (folder.path().join("volume.img"), folder.path().join("volume"));
        std::fs::create_dir(&at).unwrap();
        File::create(&file).and_then(|file| file.set_len(BYTES)).unwrap();
        run(Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&file));
        run(Command::new("mount").args(["-t", "xfs", "-o", "loop"]).arg(&file).arg(&at));
        Some(Self { folder })
    }

    pub(crate) fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("volume")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.path().as_path() as &Path, rustix::mount::UnmountFlags::DETACH);
    }
}

fn run(command: &mut Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}
