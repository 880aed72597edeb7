//! Input from a sender that may not keep to its credit: what the agent holds stays below the window, what it takes is what
//! the frames say, and a sender that keeps to its credit is never left without.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_guest::intake::{Backlog, Next};
use warren_guest_api::frame::{Decoder, Frame, HEADER};
use warren_guest_api::input::{Credit, WINDOW};

/// What the frames of `wire` say, up to the first that is no input.
fn expected(wire: &[u8]) -> (Vec<u8>, usize) {
    let mut decoder = Decoder::default();
    decoder.push(wire);
    let (mut payload, mut ends) = (Vec::new(), 0);
    loop {
        match decoder.next_frame() {
            Ok(Some(Frame::Stdin(bytes))) => payload.extend_from_slice(&bytes),
            Ok(Some(Frame::StdinEnd)) => ends += 1,
            Ok(_) | Err(_) => return (payload, ends),
        }
    }
}

fuzz_target!(|input: (u8, u8, bool, &[u8])| {
    let (cut, sip, keeps_to_credit, wire) = input;
    let (cut, sip) = (usize::from(cut) + 1, usize::from(sip) + 1);
    let (mut backlog, mut credit) = (Backlog::default(), Credit::default());
    let (mut payload, mut ends, mut held) = (Vec::new(), 0, 0);
    'sender: for piece in wire.chunks(cut) {
        if keeps_to_credit {
            assert_eq!(credit.spend(piece.len()), piece.len());
        }
        if backlog.push(piece).is_err() {
            assert!(!keeps_to_credit && held + piece.len() > WINDOW);
            return;
        }
        held += piece.len();
        assert!(held <= WINDOW);
        loop {
            while !backlog.payload().is_empty() {
                let count = backlog.payload().len().min(sip);
                payload.extend_from_slice(&backlog.payload()[..count]);
                backlog.take(count);
            }
            match backlog.next_frame() {
                Ok(Some(Next::Stdin)) => {}
                Ok(Some(Next::StdinEnd)) => ends += 1,
                Ok(None) => break,
                Err(_) => break 'sender,
            }
        }
        if let Some(bytes) = backlog.grant() {
            held -= bytes as usize;
            if keeps_to_credit {
                credit.grant(bytes).unwrap();
            }
        }
        assert!(!keeps_to_credit || credit.left() >= HEADER, "a sender is left without credit");
    }
    assert_eq!((payload, ends), expected(wire));
});
