//! Frames from a guest: any bytes, cut anywhere, give the same frames or the same error, and never more memory than a
//! frame may have.
#![no_main]

use libfuzzer_sys::fuzz_target;
use warren_guest_api::frame::{Decoder, Frame, FrameError};

fn decode(bytes: &[u8], piece: usize) -> (Vec<Frame>, Option<FrameError>) {
    let mut decoder = Decoder::default();
    let mut frames = Vec::new();
    for piece in bytes.chunks(piece) {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, bytes) = input;
    let whole = decode(bytes, bytes.len().max(1));
    let cut = decode(bytes, usize::from(piece).max(1));
    assert_eq!(whole, cut);
    for frame in &whole.0 {
        let again = decode(&frame.to_bytes(), usize::MAX);
        assert_eq!(again, (vec![frame.clone()], None));
    }
});
