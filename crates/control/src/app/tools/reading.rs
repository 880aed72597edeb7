//! `sandbox_read_file`: lines of a text file, from anywhere in it, without holding the file.

use axum::body::Body;
use http::{HeaderMap, Method, header};
use serde::Deserialize;
use serde_json::{Value, json};
use warren_types::Error;

use super::{Call, Output, input, text};
use crate::app::exec::output::next_piece;

const DEFAULT_LINES: u64 = 2000;
/// A longer line is cut where lines are numbered; the rest of it can be read without numbers.
const MAX_LINE_BYTES: usize = 2000;
/// What is looked through to find a line. A command does it faster.
const MAX_SCANNED: u64 = 512 * 1024 * 1024;
/// A file with a NUL this near to its beginning is not text.
const LOOKED_AT: usize = 8 * 1024;

#[derive(Deserialize)]
struct Read {
    path: String,
    offset: Option<u64>,
    limit: Option<u64>,
    numbered: Option<bool>,
    max_bytes: Option<usize>,
}

/// Collects the lines that were asked for out of the pieces of a file.
struct Lines {
    first: u64,
    limit: u64,
    numbered: bool,
    most: usize,
    /// Of the line that is being read.
    number: u64,
    line: Vec<u8>,
    /// Of the whole line, of which `line` may be the beginning.
    length: usize,
    text: Vec<u8>,
    taken: u64,
    full: bool,
    binary: bool,
}

impl Lines {
    fn new(input: &Read) -> Self {
        Self {
            first: input.offset.unwrap_or(1).max(1),
            limit: input.limit.unwrap_or(DEFAULT_LINES),
            numbered: input.numbered.unwrap_or(true),
            most: input.max_bytes.unwrap_or(text::DEFAULT_BYTES),
            number: 1,
            line: Vec::new(),
            length: 0,
            text: Vec::new(),
            taken: 0,
            full: false,
            binary: false,
        }
    }

    /// Takes a piece; false once it wants no more.
    fn push(&mut self, piece: &[u8]) -> bool {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            let (content, ends) = match part.split_last() {
                Some((b'\n', content)) => (content, true),
                _ => (part, false),
            };
            if self.number >= self.first {
                self.binary |= content.contains(&0);
                let cap = if self.numbered { MAX_LINE_BYTES + 4 } else { self.most + 4 };
                let room = cap.saturating_sub(self.line.len());
                self.line.extend_from_slice(&content[..content.len().min(room)]);
            }
            self.length += content.len();
            if ends {
                self.end_line(true);
            }
            if self.full || self.binary {
                return false;
            }
        }
        true
    }

    fn end_line(&mut self, with_end: bool) {
        if self.number >= self.first {
            let mut shown = Vec::new();
            if self.numbered {
                shown.extend_from_slice(format!("{:>6}\t", self.number).as_bytes());
                let kept = text::head(&self.line, MAX_LINE_BYTES);
                shown.extend_from_slice(kept);
                if kept.len() < self.length {
                    shown.extend_from_slice(format!("… (a line of {} bytes)", self.length).as_bytes());
                }
            } else {
                shown.extend_from_slice(text::head(&self.line, self.most));
            }
            if with_end {
                shown.push(b'\n');
            }
            let fits = self.text.len() + shown.len() <= self.most;
            if !fits && self.taken > 0 {
                self.full = true;
                return;
            }
            self.text.extend_from_slice(text::head(&shown, self.most));
            self.taken += 1;
            self.full = !fits || self.taken >= self.limit;
        }
        self.line.clear();
        self.length = 0;
        self.number += 1;
    }

    /// The file has ended, perhaps in the middle of a line.
    fn end(&mut self) {
        if self.length > 0 && !self.full {
            self.end_line(false);
        }
    }
}

pub(super) async fn read(call: Call, input: Value) -> Result<Output, Error> {
    let input: Read = input::decode(input)?;
    let live = call.live().await?;
    let path = input::path(&input.path)?;
    let answer =
        call.app.guest_file(&live, Method::GET, "files", &path, HeaderMap::new(), Body::empty()).await?;
    let size = answer
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let mut body = answer.into_body();
    let (mut lines, mut seen, mut ended) = (Lines::new(&input), 0_u64, true);
    while let Some(piece) = next_piece(&mut body).await? {
        let start = LOOKED_AT.saturating_sub(usize::try_from(seen).unwrap_or(usize::MAX)).min(piece.len());
        lines.binary |= piece[..start].contains(&0);
        seen += piece.len() as u64;
        if lines.binary || !lines.push(&piece) {
            ended = false;
            break;
        }
        if seen > MAX_SCANNED {
            return Err(Error::invalid(format!(
                "line {} is more than {MAX_SCANNED} bytes into {}; use sandbox_exec with sed -n or tail",
                lines.first, input.path
            )));
        }
    }
    if ended {
        lines.end();
    }
    shown(&input, &lines, size.unwrap_or(seen), ended && !lines.full)
}

fn shown(input: &Read, lines: &Lines, size: u64, complete: bool) -> Result<Output, Error> {
    let path = text::name(&input.path);
    if lines.binary {
        let said = format!(
            "{path} is a binary file of {size} bytes, which is not shown; look at it with sandbox_exec and file, xxd or strings"
        );
        return Ok(Output::new(said, json!({"path": input.path, "size": size, "binary": true})));
    }
    let total = lines.number - 1;
    if lines.taken == 0 && lines.first > 1 {
        return Err(Error::invalid(format!(
            "{path} has {total} lines; offset {} is behind its end",
            lines.first
        )));
    }
    let mut said = text::lossy(&lines.text);
    let last = lines.first + lines.taken.saturating_sub(1);
    if lines.taken == 0 {
        text::push_note(&mut said, &format!("{path} is empty"));
    } else if !complete {
        let note = format!(
            "lines {} to {last} of {path}, which has {size} bytes; offset {} goes on",
            lines.first,
            last + 1
        );
        text::push_note(&mut said, &note);
    }
    let structured = json!({
        "path": input.path, "size": size, "binary": false, "first_line": lines.first, "lines": lines.taken,
        "next_offset": (!complete && lines.taken > 0).then_some(last + 1),
    });
    Ok(Output::new(said, structured))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: Value, content: &[u8], cut: usize) -> Result<Output, Error> {
        let input: Read = input::decode(input).unwrap();
        let mut lines = Lines::new(&input);
        let ended = content.chunks(cut).all(|piece| lines.push(piece));
        if ended {
            lines.end();
        }
        shown(&input, &lines, content.len() as u64, ended && !lines.full)
    }

    #[test]
    fn lines_come_from_anywhere_however_the_file_is_cut() {
        let content = b"one\ntwo\n\nfour";
        for cut in 1..content.len() + 1 {
            let all = read(json!({"path": "a"}), content, cut).unwrap();
            assert_eq!(all.text, "     1\tone\n     2\ttwo\n     3\t\n     4\tfour");
            let some =
                read(json!({"path": "a", "offset": 2, "limit": 1, "numbered": false}), content, cut).unwrap();
            assert_eq!(some.text, "two\n[lines 2 to 2 of a, which has 13 bytes; offset 3 goes on]");
            assert_eq!(some.structured["next_offset"], 3);
            let behind = read(json!({"path": "a", "offset": 5}), content, cut).unwrap_err();
            assert_eq!(behind.message, "a has 4 lines; offset 5 is behind its end");
        }
        assert_eq!(read(json!({"path": "a"}), b"", 1).unwrap().text, "[a is empty]");
    }

    #[test]
    fn what_is_long_is_cut_and_what_is_binary_is_not_shown() {
        let long = "x".repeat(5000);
        let numbered = read(json!({"path": "a"}), long.as_bytes(), 100).unwrap().text;
        assert!(numbered.ends_with("x… (a line of 5000 bytes)"), "{}", &numbered[numbered.len() - 40..]);
        let raw = read(json!({"path": "a", "numbered": false}), long.as_bytes(), 100).unwrap();
        assert_eq!(raw.text, long);
        let many = "line\n".repeat(10_000);
        let part =
            read(json!({"path": "a", "max_bytes": 1000, "limit": 100_000}), many.as_bytes(), 4096).unwrap();
        assert!(part.text.len() < 1100);
        let next = part.structured["next_offset"].as_u64().unwrap();
        assert!(part.text.contains(&format!("{}\tline\n[", next - 1)), "{}", part.text);
        let binary = read(json!({"path": "a\nb"}), b"text\n\0\x01", 3).unwrap();
        assert!(binary.text.starts_with("a\\nb is a binary file of 7 bytes"), "{}", binary.text);
    }
}
