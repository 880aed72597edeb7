//! Bytes of unknown kind as the inside of a JSON string, piece by piece: what is not UTF-8 is replaced, what JSON
//! cannot hold is escaped, and at most three bytes are carried from one piece to the next.

/// Turns pieces of output into pieces of a JSON string, without its quotes.
#[derive(Debug, Default)]
pub(super) struct JsonText {
    /// The beginning of a character whose rest is in the next piece.
    carried: Vec<u8>,
}

impl JsonText {
    /// Appends what is whole of `piece` to `out`.
    pub(super) fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        if self.carried.is_empty() {
            self.carried = push_text(piece, out).to_vec();
            return;
        }
        // A cut character has at most four bytes: joining those is enough to get back in step with the piece.
        let taken = piece.len().min(4);
        let mut joined = std::mem::take(&mut self.carried);
        joined.extend_from_slice(&piece[..taken]);
        let mut rest = push_text(&joined, out).to_vec();
        rest.extend_from_slice(&piece[taken..]);
        self.carried = push_text(&rest, out).to_vec();
    }

    /// Ends the text: a character that was cut stays incomplete.
    pub(super) fn finish(self, out: &mut Vec<u8>) {
        if !self.carried.is_empty() {
            push_escaped(char::REPLACEMENT_CHARACTER.encode_utf8(&mut [0; 4]), out);
        }
    }
}

/// Escapes all whole characters and returns the incomplete one at the end.
fn push_text<'a>(mut bytes: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
    loop {
        let error = match std::str::from_utf8(bytes) {
            Ok(text) => {
                push_escaped(text, out);
                return &[];
            }
            Err(error) => error,
        };
        let (valid, rest) = bytes.split_at(error.valid_up_to());
        push_escaped(std::str::from_utf8(valid).unwrap_or_default(), out);
        let Some(bad) = error.error_len() else { return rest };
        push_escaped(char::REPLACEMENT_CHARACTER.encode_utf8(&mut [0; 4]), out);
        bytes = &rest[bad..];
    }
}

fn push_escaped(text: &str, out: &mut Vec<u8>) {
    let mut plain = 0;
    for (at, byte) in text.bytes().enumerate() {
        let escape: &[u8] = match byte {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            0..0x20 => b"",
            _ => continue,
        };
        out.extend_from_slice(&text.as_bytes()[plain..at]);
        plain = at + 1;
        if escape.is_empty() {
            out.extend_from_slice(format!("\\u{byte:04x}").as_bytes());
        } else {
            out.extend_from_slice(escape);
        }
    }
    out.extend_from_slice(&text.as_bytes()[plain..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_output() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            "\\PC{0,8}".prop_map(String::into_bytes),
            proptest::collection::vec(any::<u8>(), 0..8),
            Just(vec![0xf0, 0x9f]),
            Just("\u{1f980}\"\\\n\0".as_bytes().to_vec()),
        ];
        proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_cutting_gives_what_the_whole_would(output in any_output(), cut in 1usize..9) {
            let mut json = vec![b'"'];
            let mut text = JsonText::default();
            for piece in output.chunks(cut) {
                text.push(piece, &mut json);
                prop_assert!(text.carried.len() < 4);
            }
            text.finish(&mut json);
            json.push(b'"');
            let read: String = serde_json::from_slice(&json).unwrap();
            prop_assert_eq!(read, String::from_utf8_lossy(&output));
        }
    }
}
