//! Archives of images.
#![no_main]

use std::fs;
use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;

use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};
use warren_images::{Limits, read_archive};

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Builder::new_current_thread().enable_all().build().unwrap());

fuzz_target!(|archive: &[u8]| {
    let folder = tempfile::tempdir().unwrap();
    let (root, stored) = (folder.path().join("root"), folder.path().join("stored"));
    for folder in [&root, &stored] {
        fs::create_dir(folder).unwrap();
    }
    let limits = Limits { unpacked_bytes: 1 << 20, stored_bytes: 1 << 20, entries: 1000, ..Limits::default() };
    if let Ok(source) = RUNTIME.block_on(read_archive(archive, &stored, &limits, |_| {})) {
        let _ = source.unpack(&root, &limits, &AtomicBool::new(false), &|_| {});
    }
    for entry in fs::read_dir(&stored).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(name.to_str().unwrap().starts_with("member-"));
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
});
