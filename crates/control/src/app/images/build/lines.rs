//! Output cut into lines. What is not UTF-8 is replaced; of a line that a program writes over and over, as progress bars do,
//! the last state is kept.

/// Longest line; what is longer is told in pieces.
const MAX_LINE_BYTES: usize = 8 * 1024;

#[derive(Debug, Default)]
pub(super) struct Lines {
    line: Vec<u8>,
    /// The last byte was a carriage return: a line feed ends the line, anything else begins it anew.
    returned: bool,
}

impl Lines {
    pub(super) fn push(&mut self, bytes: &[u8], mut say: impl FnMut(String)) {
        for &byte in bytes {
            match byte {
                b'\n' => {
                    self.returned = false;
                    say(take(&mut self.line));
                }
                b'\r' => self.returned = true,
                byte => {
                    if std::mem::take(&mut self.returned) {
                        self.line.clear();
                    }
                    self.line.push(byte);
                    // A character is not cut, unless it is none.
                    let cut = self.line.len() >= MAX_LINE_BYTES + 4
                        || (self.line.len() >= MAX_LINE_BYTES && is_whole(&self.line));
                    if cut {
                        say(take(&mut self.line));
                    }
                }
            }
        }
    }

    /// What came after the last line feed.
    pub(super) fn finish(mut self, say: impl FnOnce(String)) {
        if !self.line.is_empty() {
            say(take(&mut self.line));
        }
    }
}

/// Whether the last character is all there, as far as its first byte tells.
fn is_whole(line: &[u8]) -> bool {
    for (back, byte) in (1..).zip(line.iter().rev().take(3)) {
        let length = match byte {
            0x80..=0xbf => continue,
            0xc0..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf7 => 4,
            _ => 1,
        };
        return length <= back;
    }
    true
}

fn take(line: &mut Vec<u8>) -> String {
    let text = String::from_utf8_lossy(line).into_owned();
    line.clear();
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(pieces: &[&[u8]]) -> Vec<String> {
        let (mut lines, mut said) = (Lines::default(), Vec::new());
        for piece in pieces {
            lines.push(piece, |line| said.push(line));
        }
        lines.finish(|line| said.push(line));
        said
    }

    #[test]
    fn lines_are_cut_where_they_end() {
        assert_eq!(lines(&[b"one\ntw", b"o\r\n", b"\nthree"]), ["one", "two", "", "three"]);
        assert_eq!(lines(&[b"10%\r50%", b"\r100%\ndone\r", b"\n"]), ["100%", "done"]);
        assert_eq!(lines(&[b"a\xffb\n"]), ["a\u{fffd}b"]);
        assert_eq!(lines(&[b"only\r"]), ["only"]);
        assert!(lines(&[]).is_empty());
        let long = "é".repeat(5000);
        let cut = lines(&[long.as_bytes()]);
        assert_eq!((cut.len(), cut.concat()), (2, long));
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(bytes in proptest::collection::vec(any::<u8>(), 0..200), cut in 1usize..7) {
            let pieces: Vec<&[u8]> = bytes.chunks(cut).collect();
            prop_assert_eq!(lines(&pieces), lines(&[&bytes]));
        }
    }
}
