//! Tar streams that a caller wants unpacked.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|archive: &[u8]| warren_guest::fuzz_entries(archive));
