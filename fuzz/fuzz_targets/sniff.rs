//! The first bytes of any client in a sandbox: what was decided about some of them stays decided when more arrive.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_network::egress::sniff::{Sniffed, sniff};

fuzz_target!(|input: (u16, &[u8])| {
    let (arrived, bytes) = input;
    let early = sniff(&bytes[..usize::from(arrived).min(bytes.len())]);
    if early != Sniffed::Partial {
        assert_eq!(early, sniff(bytes));
    }
});
