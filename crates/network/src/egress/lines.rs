//! Base64 in lines, as mail and keys have it, and JSON that holds such: read as if its lines were one.

use memchr::memchr2;

/// Digits that a line has at least. The shortest in use have 60.
const MIN_LINE: usize = 40;
/// How lines end, as they are and within JSON.
const ENDS: [&[u8]; 4] = [b"\r\n", b"\n", b"\\r\\n", b"\\n"];

/// A text without the ends of such lines.
pub(super) struct Joined {
    pub(super) text: Vec<u8>,
    /// Where in it a line ended, and how many bytes are left out up to there.
    ends: Vec<(usize, usize)>,
}

/// One end of a line.
struct End {
    begin: usize,
    after: usize,
}

impl Joined {
    /// None when no such line ends in it. `digits`: how many stand right before the text.
    pub(super) fn new(text: &[u8], digits: usize) -> Option<Self> {
        let mut joined = Self { text: Vec::new(), ends: Vec::new() };
        let (mut done, mut at) = (0, 0);
        while let Some(end) = next_end(text, at) {
            let before = digits_at_end(&text[done..end.begin]);
            let before = if before == end.begin { before + digits } else { before };
            if before >= MIN_LINE && text.get(end.after).is_none_or(is_digit) {
                joined.text.extend_from_slice(&text[done..end.begin]);
                done = end.after;
                joined.ends.push((joined.text.len(), done - joined.text.len()));
            }
            at = end.after;
        }
        (done > 0).then(|| {
            joined.text.extend_from_slice(&text[done..]);
            joined
        })
    }

    /// Where in the text a place of the joined one is.
    pub(super) fn origin(&self, at: usize) -> usize {
        let ends = self.ends.partition_point(|(end, _)| *end <= at);
        at + ends.checked_sub(1).map_or(0, |last| self.ends[last].1)
    }

    /// The other way round.
    pub(super) fn place(&self, origin: usize) -> usize {
        let ends = self.ends.partition_point(|(end, left_out)| end + left_out <= origin);
        origin.saturating_sub(ends.checked_sub(1).map_or(0, |last| self.ends[last].1)).min(self.text.len())
    }
}

/// How many digits a text ends with; no more are counted than matter.
pub(super) fn digits_at_end(text: &[u8]) -> usize {
    text.iter().rev().take(MIN_LINE).take_while(|byte| is_digit(byte)).count()
}

/// The first from there on. One that the end of the text cuts off counts: more may come.
fn next_end(text: &[u8], mut from: usize) -> Option<End> {
    loop {
        let Some(at) = memchr2(b'\n', b'\\', text.get(from..)?).map(|at| from + at) else {
            let begin = text.len().checked_sub(1).filter(|last| *last >= from && text[*last] == b'\r')?;
            return Some(End { begin, after: text.len() });
        };
        let begin = if text[at] == b'\n' && at > from && text[at - 1] == b'\r' { at - 1 } else { at };
        let rest = &text[begin..];
        if let Some(end) = ENDS.iter().find(|end| rest.starts_with(end)) {
            return Some(End { begin, after: begin + end.len() });
        }
        if ENDS.iter().any(|end| end.starts_with(rest)) {
            return Some(End { begin, after: text.len() });
        }
        from = at + 1;
    }
}

fn is_digit(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'-' | b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_base64_are_joined_and_others_are_not() {
        let line = "QUJD".repeat(15);
        for end in ["\n", "\r\n", "\\n", "\\r\\n"] {
            let text = format!("a\\n{{\"{line}{end}{line}{end}QQ==\"\nshort\nlines\n}}");
            let joined = Joined::new(text.as_bytes(), 0).unwrap();
            assert_eq!(joined.text, text.replace(&format!("{line}{end}"), &line).as_bytes());
            for (at, byte) in joined.text.iter().enumerate() {
                assert_eq!(text.as_bytes()[joined.origin(at)], *byte);
                assert_eq!(joined.place(joined.origin(at)), at);
            }
        }
        assert!(Joined::new(b"plain\ntext\n\"of\\nlines\\\"", 0).is_none());
        // What came before counts, and what is cut off may become an end.
        assert!(Joined::new(b"QUJD\nQUJD", 36).is_some() && Joined::new(b"QUJD\nQUJD", 35).is_none());
        for cut in ["\r", "\n", "\\", "\\r", "\\r\\"] {
            assert_eq!(Joined::new(format!("{line}{cut}").as_bytes(), 0).unwrap().text, line.as_bytes());
        }
    }
}
