//! Texts replaced in a stream: cut anywhere, it comes out as the whole does.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_network::egress::replace::{Stream, Table};

fuzz_target!(|input: (Vec<Vec<u8>>, u8, &[u8])| {
    let (mut patterns, piece, text) = input;
    patterns.truncate(8);
    patterns.sort();
    patterns.dedup();
    let pairs = patterns.into_iter().enumerate().map(|(place, pattern)| (pattern, format!("<{place}>").into_bytes()));
    let Some(table) = Table::new(pairs.collect()) else { return };
    let whole = table.replace(text, |_| {}).unwrap_or_else(|| text.to_vec());
    let (mut stream, mut out) = (Stream::default(), Vec::new());
    for piece in text.chunks(usize::from(piece).max(1)) {
        out.extend_from_slice(&stream.push(&table, &bytes::Bytes::copy_from_slice(piece), |_| {}));
    }
    out.extend_from_slice(&stream.finish(&table, |_| {}));
    assert_eq!(out, whole);
});
