//! Three versions of a text into one.

use std::ops::Range;
use std::time::{Duration, Instant};

use similar::{Algorithm, DiffTag, capture_diff_slices_deadline};

/// Two texts are compared no longer than this; what is left then counts as different.
pub(super) const COMPARE_LIMIT: Duration = Duration::from_secs(1);
const BINARY_LOOK: usize = 8000;

/// A stretch of the base and what stands in its place.
#[derive(Debug, Clone)]
pub(super) struct Edit {
    pub(super) base: Range<usize>,
    pub(super) new: Range<usize>,
}

/// As git tells it: a zero byte at the beginning.
pub(super) fn is_binary(content: &[u8]) -> bool {
    content.iter().take(BINARY_LOOK).any(|byte| *byte == 0)
}

/// With their line ends; only a line feed ends a line.
pub(super) fn lines_of(content: &[u8]) -> Vec<&[u8]> {
    content.split_inclusive(|byte| *byte == b'\n').collect()
}

/// What was done to the lines of `base`, in order; between edits they are the same.
pub(super) fn edits(base: &[&[u8]], new: &[&[u8]], deadline: Instant) -> Vec<Edit> {
    let ops = capture_diff_slices_deadline(Algorithm::Myers, base, new, Some(deadline));
    let mut edits: Vec<Edit> = Vec::new();
    // Only lengths are taken from the operations: the place of one that has no lines on a side is not always kept up.
    let (mut at, mut at_new) = (0, 0);
    for op in &ops {
        let (end, end_new) = (at + op.old_range().len(), at_new + op.new_range().len());
        if op.tag() != DiffTag::Equal {
            match edits.last_mut() {
                Some(last) if last.base.end == at && last.new.end == at_new => {
                    (last.base.end, last.new.end) = (end, end_new);
                }
                _ => edits.push(Edit { base: at..end, new: at_new..end_new }),
            }
        }
        (at, at_new) = (end, end_new);
    }
    edits
}

/// Both changes in one text; none where they touch and differ. Binary contents are never merged.
pub(crate) fn merge(base: &[u8], ours: &[u8], theirs: &[u8]) -> Option<Vec<u8>> {
    if ours == theirs || base == theirs {
        return Some(ours.to_vec());
    }
    if base == ours {
        return Some(theirs.to_vec());
    }
    if is_binary(base) || is_binary(ours) || is_binary(theirs) {
        return None;
    }
    let (base, ours, theirs) = (lines_of(base), lines_of(ours), lines_of(theirs));
    let deadline = Instant::now() + COMPARE_LIMIT;
    let (a, b) = (edits(&base, &ours, deadline), edits(&base, &theirs, deadline));
    let (mut i, mut j, mut at) = (0, 0, 0);
    let mut merged = Vec::new();
    while i < a.len() || j < b.len() {
        let start = a.get(i).into_iter().chain(b.get(j)).map(|edit| edit.base.start).min()?;
        merged.extend(base[at..start].concat());
        // Edits that touch, on either side, are one.
        let (first_i, first_j, mut end) = (i, j, start);
        loop {
            if a.get(i).is_some_and(|edit| edit.base.start <= end) {
                end = end.max(a[i].base.end);
                i += 1;
            } else if b.get(j).is_some_and(|edit| edit.base.start <= end) {
                end = end.max(b[j].base.end);
                j += 1;
            } else {
                break;
            }
        }
        let ours = side(&base, &ours, &a[first_i..i], start..end);
        let theirs = side(&base, &theirs, &b[first_j..j], start..end);
        match (i > first_i, j > first_j) {
            (true, true) if ours == theirs => merged.extend(ours),
            (true, true) => return None,
            (true, false) => merged.extend(ours),
            _ => merged.extend(theirs),
        }
        at = end;
    }
    merged.extend(base[at..].concat());
    Some(merged)
}

/// What one side has in the place of a stretch of the base.
fn side(base: &[&[u8]], new: &[&[u8]], edits: &[Edit], stretch: Range<usize>) -> Vec<u8> {
    let mut text = Vec::new();
    let mut at = stretch.start;
    for edit in edits {
        text.extend(base[at..edit.base.start].concat());
        text.extend(new[edit.new.clone()].concat());
        at = edit.base.end;
    }
    text.extend(base[at..stretch.end].concat());
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn changes_in_different_places_are_joined_and_in_one_place_are_not() {
        let base = b"1\n2\n3\n4\n5\n6\n7\n";
        let merged = merge(base, b"0\n2\n3\n4\n5\n6\n7\n", b"1\n2\n3\n4\n5\n6\nx\ny\n").unwrap();
        assert_eq!(merged, b"0\n2\n3\n4\n5\n6\nx\ny\n");
        assert_eq!(merge(base, b"1\n2\na\n4\n5\n6\n7\n", b"1\n2\nb\n4\n5\n6\n7\n"), None);
        assert_eq!(merge(base, b"1\n2\na\n4\n5\n6\n7\n", b"1\n2\n3\nb\n5\n6\n7\n"), None, "they touch");
        assert_eq!(merge(b"a\n", b"a\nb", b"a\nb").unwrap(), b"a\nb");
        assert_eq!(merge(b"a\0", b"b\0", b"c\0"), None);
    }

    fn text() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(prop_oneof![Just("a\n"), Just("b\n"), Just("c\n"), Just("d")], 0..12)
            .prop_map(|lines| lines.concat().into_bytes())
    }

    proptest! {
        #[test]
        fn one_side_alone_is_taken_as_it_is(base in text(), other in text()) {
            prop_assert_eq!(merge(&base, &base, &other), Some(other.clone()));
            prop_assert_eq!(merge(&base, &other, &base), Some(other.clone()));
            prop_assert_eq!(merge(&base, &other, &other), Some(other));
        }

        #[test]
        fn sides_may_be_exchanged(base in text(), a in text(), b in text()) {
            prop_assert_eq!(merge(&base, &a, &b), merge(&base, &b, &a));
        }

        #[test]
        fn edits_rebuild_the_text(base in text(), new in text()) {
            let (from, to) = (lines_of(&base), lines_of(&new));
            let edits = edits(&from, &to, Instant::now() + COMPARE_LIMIT);
            prop_assert_eq!(side(&from, &to, &edits, 0..from.len()), new);
        }
    }
}
