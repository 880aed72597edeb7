//! The lines of a file, from its end or from a place on, in blocks.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use super::MAX_RECORD;

/// Bytes read at a time.
const BLOCK: u64 = 256 * 1024;

/// Calls `each` with the offset and the text of every whole line before `end`, the last one first, until it breaks.
/// A line that is longer than a record can be is passed over.
pub(super) fn each_backward(
    file: &File,
    mut end: u64,
    mut each: impl FnMut(u64, &[u8]) -> ControlFlow<()>,
) -> io::Result<ControlFlow<()>> {
    // What stands from `end` on up to a line break: the rest of a line that begins before.
    let mut rest: Vec<u8> = Vec::new();
    // Whether what stands before `end` is the rest of a line that does not count, as at the end of a file that breaks off.
    let mut broken = true;
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        let mut text = read(file, start, end)?;
        text.append(&mut rest);
        let mut after = text.len();
        if broken {
            let last = text.iter().rposition(|byte| *byte == b'\n');
            after = last.map_or(0, |at| at + 1);
            broken = last.is_none();
        }
        while after > 0 {
            let before = text[..after - 1].iter().rposition(|byte| *byte == b'\n').map(|at| at + 1);
            let Some(from) = before.or_else(|| (start == 0).then_some(0)) else { break };
            if each(start + from as u64, &text[from..after - 1]).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            after = from;
        }
        text.truncate(after);
        if text.len() > MAX_RECORD {
            text.clear();
            broken = true;
        }
        rest = text;
        end = start;
    }
    Ok(ControlFlow::Continue(()))
}

/// Calls `each` with the offset and the text of every whole line from `from` up to `to`, or up to about `most` bytes;
/// returns where to go on, which is never where it began. What holds no line break is passed over: no record is that
/// long, and a file that was cut off will not go on in the middle of one.
pub(super) fn each_forward(
    file: &File,
    from: u64,
    to: u64,
    most: u64,
    mut each: impl FnMut(u64, &[u8]),
) -> io::Result<u64> {
    let to = to.min(from + most.max(MAX_RECORD as u64));
    let text = read(file, from, to)?;
    let mut at = 0;
    while let Some(length) = text[at..].iter().position(|byte| *byte == b'\n') {
        each(from + at as u64, &text[at..at + length]);
        at += length + 1;
    }
    Ok(if at == 0 { to } else { from + at as u64 })
}

/// The bytes of a file from `from` to `to`, fewer if it is shorter.
pub(super) fn read(file: &File, from: u64, to: u64) -> io::Result<Vec<u8>> {
    let length = usize::try_from(to.saturating_sub(from)).map_err(io::Error::other)?;
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut bytes[filled..], from + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}
