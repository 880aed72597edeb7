//! The first bytes of a connection: whatever they are, they are understood or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_guest_api::handshake::{Hello, NEWEST, OLDEST};

fuzz_target!(|bytes: [u8; 16]| {
    if let Ok(hello) = Hello::decode(&bytes) {
        assert_eq!(hello.encode(), bytes);
        if let Some(version) = hello.common_version() {
            assert!((OLDEST..=NEWEST).contains(&version));
            assert!((hello.oldest..=hello.newest).contains(&version));
        }
    }
});
