//! Bytes of a sandbox as bounded text for a model.

/// Bytes of output that a call returns unless it asks for another number.
pub(super) const DEFAULT_BYTES: usize = 32 * 1024;
pub(super) const MIN_BYTES: usize = 256;
pub(super) const MAX_BYTES: usize = 256 * 1024;

/// Text; what is not UTF-8 is replaced.
pub(super) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The longest beginning of at most `most` bytes that cuts no character.
pub(super) fn head(bytes: &[u8], most: usize) -> &[u8] {
    if bytes.len() <= most {
        return bytes;
    }
    let mut end = most;
    while end > 0 && most - end < 4 && is_continuation(bytes[end]) {
        end -= 1;
    }
    // Bytes that only look like the rest of a character are cut anywhere.
    let end = if is_continuation(bytes[end]) { most } else { end };
    &bytes[..end]
}

/// The longest end of at most `most` bytes that cuts no character.
pub(super) fn tail(bytes: &[u8], most: usize) -> &[u8] {
    if bytes.len() <= most {
        return bytes;
    }
    uncut(&bytes[bytes.len() - most..])
}

/// What was cut off somewhere, without the rest of a character at its beginning.
pub(super) fn uncut(bytes: &[u8]) -> &[u8] {
    let skipped = bytes.iter().take(4).take_while(|byte| is_continuation(**byte)).count();
    &bytes[if skipped < 4 { skipped } else { 0 }..]
}

fn is_continuation(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}

/// A name on one line: control characters escaped, so that a file's name cannot look like something else.
pub(super) fn name(text: &str) -> String {
    if !text.contains(char::is_control) {
        return text.to_owned();
    }
    text.chars().fold(String::new(), |mut name, character| {
        if character.is_control() {
            name.extend(character.escape_default());
        } else {
            name.push(character);
        }
        name
    })
}

/// A line that does not end without saying so, then a sentence in brackets on a line of its own.
pub(super) fn push_note(text: &mut String, note: &str) {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push('[');
    text.push_str(note);
    text.push(']');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn cuts_keep_characters_whole(text in "\\PC{0,40}", most in 0usize..60) {
            let bytes = text.as_bytes();
            prop_assert!(std::str::from_utf8(head(bytes, most)).is_ok());
            prop_assert!(std::str::from_utf8(tail(bytes, most)).is_ok());
            prop_assert!(head(bytes, most).len() <= most && tail(bytes, most).len() <= most);
            prop_assert!(head(bytes, most).len() + 3 >= most.min(bytes.len()));
            prop_assert!(tail(bytes, most).len() + 3 >= most.min(bytes.len()));
        }

        #[test]
        fn cuts_take_anything(bytes in proptest::collection::vec(any::<u8>(), 0..60), most in 0usize..60) {
            prop_assert!(head(&bytes, most).len() <= most && tail(&bytes, most).len() <= most);
        }
    }

    #[test]
    fn names_stay_on_their_line() {
        assert_eq!(name("a\nb\u{1b}é"), "a\\nb\\u{1b}é");
    }
}
