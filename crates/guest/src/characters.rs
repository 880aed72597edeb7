//! Keeps characters whole that reads have cut in two.
//!
//! Clients decode what they get piece by piece, and count its bytes to come back where they were. Both are right only if
//! the log itself never stands between the bytes of a character, so the beginning of one is held back here, before the
//! log, until the rest comes; the owner releases what is not completed in time. Everything after the log only has to cut
//! where the log did.

use bytes::Bytes;
use warren_guest_api::text::{continues, length_of, whole_characters};

use crate::log::Stream;

/// What is held back of both streams.
#[derive(Debug, Default)]
pub(crate) struct Characters {
    stdout: Option<Beginning>,
    stderr: Option<Beginning>,
    next: u64,
}

/// Names what is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct HeldId(u64);

/// One to three bytes of a longer sequence.
#[derive(Debug)]
struct Beginning {
    id: HeldId,
    bytes: Vec<u8>,
}

impl Characters {
    /// Gives `each` what may go on now: `bytes` after what was held of their stream, without a beginning at their end.
    pub(crate) fn pass(&mut self, stream: Stream, mut bytes: Bytes, mut each: impl FnMut(Bytes)) {
        let id = HeldId(self.next);
        let held = self.of(stream);
        if let Some(mut begun) = held.take() {
            let missing = begun.bytes.first().map_or(0, |first| length_of(*first) - begun.bytes.len());
            let more = bytes.iter().take(missing).take_while(|byte| continues(**byte)).count();
            begun.bytes.extend_from_slice(&bytes.split_to(more));
            if more < missing && bytes.is_empty() {
                *held = Some(begun);
                return;
            }
            // Complete, or never to be.
            each(begun.bytes.into());
        }
        let rest = bytes.split_off(whole_characters(&bytes));
        if !rest.is_empty() {
            *held = Some(Beginning { id, bytes: rest.to_vec() });
            self.next += 1;
        }
        if !bytes.is_empty() {
            each(bytes);
        }
    }

    /// The beginning that has been held for longest.
    pub(crate) fn held(&self) -> Option<HeldId> {
        self.stdout.iter().chain(&self.stderr).map(|begun| begun.id).min()
    }

    /// Lets go of a beginning, if it is still held.
    pub(crate) fn release(&mut self, id: HeldId) -> Option<(Stream, Bytes)> {
        [Stream::Stdout, Stream::Stderr].into_iter().find_map(|stream| {
            let begun = self.of(stream).take_if(|begun| begun.id == id)?;
            Some((stream, begun.bytes.into()))
        })
    }

    fn of(&mut self, stream: Stream) -> &mut Option<Beginning> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What comes of both streams when their bytes come in turns, cut at any lengths.
    fn pass(texts: [&[u8]; 2], cuts: &[usize]) -> [Vec<Bytes>; 2] {
        let mut characters = Characters::default();
        let mut left = texts.map(Bytes::copy_from_slice);
        let mut seen = [Vec::new(), Vec::new()];
        let streams = [Stream::Stdout, Stream::Stderr];
        for (turn, cut) in cuts.iter().copied().chain([usize::MAX; 2]).enumerate() {
            let of = turn % 2;
            let piece = left[of].split_to(cut.min(left[of].len()));
            characters.pass(streams[of], piece, |bytes| seen[of].push(bytes));
        }
        while let Some((stream, bytes)) = characters.held().and_then(|id| characters.release(id)) {
            seen[usize::from(stream == Stream::Stderr)].push(bytes);
        }
        seen
    }

    proptest! {
        #[test]
        fn every_piece_of_text_is_text(
            out in "\\PC{0,30}", err in "\\PC{0,30}", cuts in prop::collection::vec(0usize..6, 0..40),
        ) {
            let seen = pass([out.as_bytes(), err.as_bytes()], &cuts);
            for (pieces, text) in seen.iter().zip([out, err]) {
                prop_assert!(pieces.iter().all(|piece| std::str::from_utf8(piece).is_ok()));
                prop_assert_eq!(pieces.concat(), text.as_bytes());
            }
        }

        #[test]
        fn bytes_of_any_kind_pass_in_order(
            out in prop::collection::vec(any::<u8>(), 0..60), err in prop::collection::vec(any::<u8>(), 0..60),
            cuts in prop::collection::vec(0usize..6, 0..40),
        ) {
            let seen = pass([&out, &err], &cuts);
            prop_assert_eq!(seen[0].concat(), out);
            prop_assert_eq!(seen[1].concat(), err);
        }
    }

    #[test]
    fn what_never_completes_is_held_no_longer_than_it_could() {
        let seen = pass([b"a\xe6\xbcb\xf0\x9f", b""], &[3, 0, 1, 0, 2]);
        assert_eq!(seen[0], [&b"a"[..], b"\xe6\xbc", b"b", b"\xf0\x9f"]);
    }
}
