//! Paths and queries as callers send them: absolute, without NUL, and no longer than the kernel takes.
#![no_main]

use std::os::unix::ffi::OsStrExt;

use libfuzzer_sys::fuzz_target;
use warren_guest::paths::{GuestPath, entry_name};
use warren_guest::query::Query;
use warren_guest_api::files::MAX_PATH_BYTES;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Query::parse(text).get("path");
    }
    if let Ok(path) = GuestPath::parse(bytes) {
        let path = path.as_path();
        assert!(path.is_absolute());
        assert!(path.as_os_str().len() <= MAX_PATH_BYTES);
        assert!(!path.as_os_str().as_bytes().contains(&0));
    }
    if let Ok(Some(name)) = entry_name(bytes) {
        assert!(name.is_relative());
        assert!(name.components().all(|part| matches!(part, std::path::Component::Normal(_))));
    }
});
