//! Cutting output between characters: clients decode what they get piece by piece.

/// Longest beginning of `bytes` that does not end inside a UTF-8 sequence. Bytes that are not UTF-8 at all are nothing
/// to wait for.
#[must_use]
pub fn whole_characters(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let at = bytes.len() - back;
        if !continues(bytes[at]) {
            return if length_of(bytes[at]) > back { at } else { bytes.len() };
        }
    }
    bytes.len()
}

/// Whether this byte belongs to a UTF-8 sequence that another one began.
#[must_use]
pub fn continues(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}

/// Bytes of the UTF-8 sequence that `first` begins; 1 where it begins none.
#[must_use]
pub fn length_of(first: u8) -> usize {
    match first {
        0xc2..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf4 => 4,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_is_never_cut_inside_a_character(text in "\\PC{0,20}", cut in 0usize..60) {
            let bytes = &text.as_bytes()[..cut.min(text.len())];
            let whole = whole_characters(bytes);
            prop_assert!(std::str::from_utf8(&bytes[..whole]).is_ok());
            prop_assert!(bytes.len() - whole < 4);
        }

        #[test]
        fn at_most_three_bytes_are_held_back(bytes in prop::collection::vec(any::<u8>(), 0..10)) {
            let whole = whole_characters(&bytes);
            prop_assert!(whole <= bytes.len() && bytes.len() - whole <= 3);
        }
    }
}
