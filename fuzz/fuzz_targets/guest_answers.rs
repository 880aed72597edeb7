//! What a guest agent answers in JSON, as a node and a control plane read it.
#![no_main]

use http::StatusCode;
use libfuzzer_sys::fuzz_target;
use warren_guest_api::exec::Exec;
use warren_guest_api::files::{Entry, Stat};
use warren_guest_api::logs::Row;
use warren_guest_api::pty::Pty;

fuzz_target!(|input: (u16, &[u8])| {
    let (status, body) = input;
    let _ = serde_json::from_slice::<Vec<Exec>>(body);
    let _ = serde_json::from_slice::<Exec>(body);
    let _ = serde_json::from_slice::<Vec<Entry>>(body);
    let _ = serde_json::from_slice::<Stat>(body);
    let _ = serde_json::from_slice::<Pty>(body);
    let _ = serde_json::from_slice::<Row>(body);
    if let Ok(status) = StatusCode::from_u16(status) {
        let _ = warren_node_api::error_of(status, body).to_string();
    }
});
