//! The first bytes of a TLS client in a sandbox: what was decided about some of them stays decided when more arrive.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_network::egress::client_hello::{MAX_BYTES, Parsed, parse};

fuzz_target!(|input: (u16, &[u8])| {
    let (arrived, bytes) = input;
    let arrived = usize::from(arrived).min(bytes.len());
    let (early, whole) = (parse(&bytes[..arrived]), parse(bytes));
    match &early {
        Parsed::Partial => assert!(arrived < MAX_BYTES),
        Parsed::Complete(_) => assert_eq!(early, whole),
        Parsed::Malformed(_) => assert!(matches!(whole, Parsed::Malformed(_))),
    }
});
