//! Writing and editing files.

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Method, header};
use serde::Deserialize;
use serde_json::{Value, json};
use warren_types::{Error, ErrorKind};

use super::{Call, Output, input, text};
use crate::app::auth::Live;
use crate::app::exec::output::next_piece;
use crate::app::files::{FileMode, FilePath};

/// Largest file that can be edited.
const MAX_EDITED_BYTES: usize = 8 * 1024 * 1024;
/// Lines shown around an edit.
const CONTEXT_LINES: usize = 3;
const MAX_SHOWN_BYTES: usize = 4 * 1024;

#[derive(Deserialize)]
struct Write {
    path: String,
    content: String,
    mode: Option<String>,
}

pub(super) async fn write(call: Call, input: Value) -> Result<Output, Error> {
    let Write { path, content, mode } = input::decode(input)?;
    let mode = mode.as_deref().map(FileMode::parse).transpose()?;
    let live = call.live().await?;
    let bytes = content.len();
    put(&call, &live, &input::path(&path)?, mode, content).await?;
    let said = format!("wrote {bytes} bytes to {}", text::name(&path));
    Ok(Output::new(said, json!({"path": path, "bytes": bytes})))
}

async fn put(
    call: &Call,
    live: &Live,
    path: &FilePath,
    mode: Option<FileMode>,
    content: String,
) -> Result<(), Error> {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(content.len()));
    call.app.write_file(live, path, mode, headers, Body::from(content)).await
}

#[derive(Deserialize)]
struct Edit {
    path: String,
    old_string: String,
    new_string: String,
    replace_all: Option<bool>,
}

pub(super) async fn edit(call: Call, input: Value) -> Result<Output, Error> {
    let input: Edit = input::decode(input)?;
    let live = call.live().await?;
    let path = input::path(&input.path)?;
    // Two edits of one file at the same time would lose one of them.
    let _turn = call.app.tools.edits.turn(call.id()?).await;
    let before = read_whole(&call, &live, &path, &input.path).await?;
    let Edited { content, count, at } = replace(&before, &input)?;
    let shown = around(&content, at, input.new_string.len());
    put(&call, &live, &path, None, content).await?;
    let places = if count == 1 { "one place".to_owned() } else { format!("{count} places") };
    let said = format!("edited {} in {places}:\n{shown}", text::name(&input.path));
    Ok(Output::new(said, json!({"path": input.path, "replaced": count})))
}

async fn read_whole(call: &Call, live: &Live, path: &FilePath, name: &str) -> Result<String, Error> {
    let answer =
        call.app.guest_file(live, Method::GET, "files", path, HeaderMap::new(), Body::empty()).await?;
    let (mut body, mut bytes) = (answer.into_body(), Vec::new());
    while let Some(piece) = next_piece(&mut body).await? {
        if bytes.len() + piece.len() > MAX_EDITED_BYTES {
            let message = format!(
                "{} is larger than {MAX_EDITED_BYTES} bytes; edit it with sandbox_exec and sed or a script",
                text::name(name)
            );
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        bytes.extend_from_slice(&piece);
    }
    String::from_utf8(bytes).map_err(|_| {
        Error::invalid(format!(
            "{} is not text in UTF-8, so it cannot be edited here; use sandbox_exec and a script",
            text::name(name)
        ))
    })
}

#[derive(Debug)]
struct Edited {
    content: String,
    count: usize,
    /// Where the first one is.
    at: usize,
}

fn replace(before: &str, input: &Edit) -> Result<Edited, Error> {
    let (old, new, name) = (&input.old_string, &input.new_string, text::name(&input.path));
    if old == new {
        return Err(Error::invalid("old_string and new_string are the same; nothing would change"));
    }
    let count = before.matches(old.as_str()).count();
    let Some(at) = before.find(old.as_str()) else {
        let hint = if before.contains("\r\n") && old.contains('\n') && !old.contains("\r\n") {
            "; its lines end with \\r\\n, and those of old_string with \\n"
        } else {
            "; it must match exactly, blanks and line ends included. Read the file and try again"
        };
        return Err(Error::invalid(format!("old_string is not in {name}{hint}")));
    };
    let all = input.replace_all == Some(true);
    if count > 1 && !all {
        return Err(Error::invalid(format!(
            "old_string matches {count} times in {name}, at lines {}; add lines around it until it is the only one, or set \
             replace_all",
            lines_of(before, old)
        )));
    }
    let content = before.replacen(old.as_str(), new, if all { usize::MAX } else { 1 });
    if content.len() > 2 * MAX_EDITED_BYTES {
        return Err(Error::new(
            ErrorKind::TooLarge,
            "the edited file would be too large; use sandbox_exec and a script",
        ));
    }
    Ok(Edited { content, count, at })
}

/// Numbers of the first lines with a match.
fn lines_of(text: &str, old: &str) -> String {
    const MOST: usize = 10;
    let (mut numbers, mut line, mut seen) = (Vec::new(), 1, 0);
    for (at, _) in text.match_indices(old).take(MOST + 1) {
        line += text[seen..at].matches('\n').count();
        seen = at;
        numbers.push(line.to_string());
    }
    if numbers.len() > MOST {
        numbers.truncate(MOST);
        numbers.push("…".to_owned());
    }
    numbers.join(", ")
}

/// The lines around a change, numbered.
fn around(content: &str, at: usize, length: usize) -> String {
    let first = content[..at].matches('\n').count();
    let last = first + content[at..at + length].matches('\n').count();
    let from = first.saturating_sub(CONTEXT_LINES);
    let lines = content.lines().enumerate().skip(from).take(last + CONTEXT_LINES + 1 - from);
    let mut shown = String::new();
    for (index, line) in lines {
        if shown.len() > MAX_SHOWN_BYTES {
            shown.push_str("…\n");
            break;
        }
        let line: String = line.chars().take(200).collect();
        shown.push_str(&format!("{:>6}\t{line}\n", index + 1));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(before: &str, old: &str, new: &str, all: bool) -> Result<Edited, String> {
        let input = Edit {
            path: "f".to_owned(),
            old_string: old.to_owned(),
            new_string: new.to_owned(),
            replace_all: Some(all),
        };
        replace(before, &input).map_err(|error| error.message)
    }

    #[test]
    fn an_edit_matches_once_or_says_how_often() {
        assert_eq!(edited("a\nb\nc\n", "b", "x", false).unwrap().content, "a\nx\nc\n");
        let all = edited("b b b", "b", "x", true).unwrap();
        assert_eq!((all.content.as_str(), all.count), ("x x x", 3));
        for (before, old, new, says) in [
            ("a", "b", "c", "old_string is not in f; it must match exactly"),
            ("a\r\nb\r\n", "a\nb", "c", "its lines end with \\r\\n"),
            ("b\n\nb\nb", "b", "c", "matches 3 times in f, at lines 1, 3, 4; "),
            ("a", "a", "a", "are the same"),
        ] {
            let error = edited(before, old, new, false).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
        assert!(
            edited(&"a".repeat(1_000_000), "a", &"b".repeat(100), true).unwrap_err().contains("too large")
        );
    }

    #[test]
    fn the_lines_around_an_edit_are_shown() {
        let content: String = (1..=20).map(|number| format!("line {number}\n")).collect();
        let at = content.find("line 10").unwrap();
        let shown = around(&content, at, 7);
        assert!(shown.starts_with("     7\tline 7\n") && shown.ends_with("    13\tline 13\n"), "{shown}");
        assert_eq!(around("", 0, 0), "");
    }
}
