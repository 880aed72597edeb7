//! `sandbox_search_code`: ripgrep where the sandbox has it, else grep. The pattern and the paths are arguments of a program,
//! never part of a line that a shell reads.

use serde::Deserialize;
use serde_json::{Value, json};
use warren_api::exec::ExecCreate;
use warren_guest_api::exec::{Exit, ExitReason};
use warren_guest_api::frame::Frame;
use warren_types::{Error, ErrorKind};

use super::running::open;
use super::{Call, Output, input, text};
use crate::app::auth::Live;
use crate::app::exec::watched::Watched;

const DEFAULT_RESULTS: usize = 100;
/// A search that takes longer is ended and shows what it has found: a pattern may never come to an end.
const SECONDS: i64 = 30;
const MAX_LINE_CHARS: usize = 500;
/// What is read of a line before the rest of it is skipped.
const MAX_LINE_BYTES: usize = 16 * 1024;
const MAX_STDERR: usize = 2000;

#[derive(Deserialize)]
struct Search {
    pattern: String,
    path: Option<String>,
    glob: Option<String>,
    ignore_case: Option<bool>,
    context: Option<u64>,
    max_results: Option<usize>,
}

/// The programs that can search, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    Ripgrep,
    /// GNU's.
    Grep,
    /// Of busybox, which knows no patterns of names and no NUL after a name.
    PlainGrep,
}

struct Found {
    text: String,
    matches: usize,
    /// More than were wanted.
    more: bool,
    exit: Option<Exit>,
    stderr: String,
}

impl Search {
    fn arguments(&self, program: Program) -> Vec<String> {
        let mut args: Vec<String> = match program {
            Program::Ripgrep => {
                vec!["--no-heading", "--with-filename", "--color=never", "--null", "--sort=path"]
            }
            Program::Grep => vec!["-r", "-H", "-I", "-E", "--color=never", "-Z", "--exclude-dir=.git"],
            Program::PlainGrep => vec!["-r", "-H", "-E"],
        }
        .into_iter()
        .map(str::to_owned)
        .collect();
        args.push("-n".to_owned());
        if self.ignore_case == Some(true) {
            args.push("-i".to_owned());
        }
        if let Some(lines) = self.context.filter(|lines| *lines > 0) {
            args.push(format!("-C{lines}"));
        }
        match (&self.glob, program) {
            (Some(glob), Program::Ripgrep) => args.push(format!("--glob={glob}")),
            (Some(glob), Program::Grep) => args.push(format!("--include={glob}")),
            _ => {}
        }
        args.extend(["-e".to_owned(), self.pattern.clone(), "--".to_owned()]);
        args.push(self.path.clone().unwrap_or_else(|| ".".to_owned()));
        args
    }
}

pub(super) async fn search(call: Call, input: Value) -> Result<Output, Error> {
    let input: Search = input::decode(input)?;
    let fields = [Some(&input.pattern), input.path.as_ref(), input.glob.as_ref()];
    if fields.into_iter().flatten().any(|field| field.contains('\0')) {
        return Err(Error::invalid("pattern, path and glob must not contain NUL characters"));
    }
    let live = call.live().await?;
    for program in [Program::Ripgrep, Program::Grep, Program::PlainGrep] {
        let found = match run(&call, &live, &input, program).await {
            Ok(found) => found,
            // It is not there.
            Err(error) if error.kind == ErrorKind::Invalid && program != Program::PlainGrep => continue,
            Err(error) => return Err(error),
        };
        let failed = found.matches == 0 && found.exit.is_some_and(|exit| exit.code > 1);
        // A grep that does not know the options is not GNU's; one that does not like the pattern says so again.
        if failed && program == Program::Grep && input.glob.is_none() {
            continue;
        }
        return shown(&input, program, found);
    }
    Err(Error::new(ErrorKind::Unsupported, "the sandbox has neither rg nor grep; search with sandbox_exec"))
}

async fn run(call: &Call, live: &Live, input: &Search, program: Program) -> Result<Found, Error> {
    let name = if program == Program::Ripgrep { "rg" } else { "grep" };
    let body = ExecCreate {
        cmd: Some(name.to_owned()),
        args: Some(input.arguments(program)),
        timeout: Some(SECONDS),
        ..ExecCreate::default()
    };
    let Watched { mut output, guard, .. } = open(&call.app, live, body).await?;
    let mut results = Results::new(input.max_results.unwrap_or(DEFAULT_RESULTS), program);
    let mut stderr = Vec::new();
    let exit = loop {
        match output.next().await {
            Ok(Frame::Stdout(bytes)) => {
                if !results.push(&bytes) {
                    break None;
                }
            }
            Ok(Frame::Stderr(bytes)) => {
                let room = MAX_STDERR.saturating_sub(stderr.len());
                stderr.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
            Ok(Frame::Exit(exit)) => break Some(exit),
            Ok(_) => {}
            Err(error) => {
                guard.leave();
                return Err(error);
            }
        }
    };
    if exit.is_some() {
        guard.leave();
    }
    let Results { text, matches, full, .. } = results;
    Ok(Found { text, matches, more: full, exit, stderr: text::lossy(&stderr) })
}

/// Lines of the program as they come: `path NUL number : line`, and with `-` for lines around a match.
struct Results {
    most: usize,
    program: Program,
    text: String,
    matches: usize,
    line: Vec<u8>,
    full: bool,
}

impl Results {
    fn new(most: usize, program: Program) -> Self {
        Self { most, program, text: String::new(), matches: 0, line: Vec::new(), full: false }
    }

    /// False once there is enough.
    fn push(&mut self, bytes: &[u8]) -> bool {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = MAX_LINE_BYTES.saturating_sub(self.line.len());
            let (content, ends) = match part.split_last() {
                Some((b'\n', content)) => (content, true),
                _ => (part, false),
            };
            self.line.extend_from_slice(&content[..content.len().min(room)]);
            if ends {
                let line = std::mem::take(&mut self.line);
                self.end_line(&line);
                if self.full {
                    return false;
                }
            }
        }
        true
    }

    fn end_line(&mut self, line: &[u8]) {
        let (shown, is_match) = match self.program {
            Program::PlainGrep => (text::lossy(line), line != b"--"),
            Program::Ripgrep | Program::Grep => parse(line),
        };
        if is_match && self.matches >= self.most {
            self.full = true;
            return;
        }
        let mut cut: String = shown.chars().take(MAX_LINE_CHARS).collect();
        if cut.len() < shown.len() {
            cut.push('…');
        }
        if self.text.len() + cut.len() > text::DEFAULT_BYTES {
            self.full = true;
            return;
        }
        self.matches += usize::from(is_match);
        self.text.push_str(&cut);
        self.text.push('\n');
    }
}

/// A line as it is shown, and whether it is a match.
fn parse(line: &[u8]) -> (String, bool) {
    let Some(at) = line.iter().position(|byte| *byte == 0) else { return (text::lossy(line), false) };
    let (path, rest) = (text::name(&text::lossy(&line[..at])), &line[at + 1..]);
    let is_match = rest.iter().find(|byte| !byte.is_ascii_digit()) == Some(&b':');
    let path = path.strip_prefix("./").unwrap_or(&path);
    let separator = if is_match { ':' } else { '-' };
    (format!("{path}{separator}{}", text::lossy(rest)), is_match)
}

fn shown(input: &Search, program: Program, found: Found) -> Result<Output, Error> {
    let stderr = found.stderr.trim();
    let timed_out = found.exit.is_some_and(|exit| exit.reason == ExitReason::TimedOut);
    if found.matches == 0 && found.exit.is_some_and(|exit| exit.code > 1) {
        return Err(Error::invalid(format!("the search failed: {stderr}")));
    }
    if program == Program::PlainGrep && input.glob.is_some() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "the sandbox's grep knows no glob; leave it out, or install ripgrep",
        ));
    }
    let mut said = found.text;
    if found.matches == 0 && !timed_out {
        said.push_str("no match");
    }
    if found.more {
        let note =
            format!("the first {} matches; narrow the search with path, glob or pattern", found.matches);
        text::push_note(&mut said, &note);
    }
    if timed_out {
        text::push_note(
            &mut said,
            &format!("the search was ended after {SECONDS} s and is not complete; narrow it"),
        );
    }
    if !stderr.is_empty() {
        let first: String = stderr.lines().next().unwrap_or_default().chars().take(300).collect();
        text::push_note(&mut said, &format!("some of it could not be searched: {first}"));
    }
    let structured = json!({
        "matches": found.matches, "complete": !found.more && !timed_out,
        "program": if program == Program::Ripgrep { "rg" } else { "grep" },
    });
    Ok(Output::new(said, structured))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_arguments_and_never_options() {
        let input: Search = input::decode(
            json!({"pattern": "--help; rm -rf /", "path": "-rf", "glob": "*.rs", "context": 2}),
        )
        .unwrap();
        for program in [Program::Ripgrep, Program::Grep] {
            let args = input.arguments(program);
            assert_eq!(args[args.len() - 4..], ["-e", "--help; rm -rf /", "--", "-rf"]);
            assert!(args.contains(&"-C2".to_owned()));
        }
    }

    #[test]
    fn results_are_counted_and_bounded() {
        let lines = b"./a b\x001:one\n./a b\x002-two\n--\nc\nd\x0010:x:y\n";
        for cut in 1..lines.len() {
            let mut results = Results::new(10, Program::Grep);
            assert!(lines.chunks(cut).all(|piece| results.push(piece)));
            assert_eq!(results.text, "a b:1:one\na b-2-two\n--\nc\nd:10:x:y\n");
            assert_eq!(results.matches, 2);
        }
        let mut results = Results::new(2, Program::Ripgrep);
        assert!(!results.push(&b"a\x001:x\n".repeat(3)));
        assert_eq!((results.matches, results.full), (2, true));
        let mut flood = Results::new(1000, Program::Ripgrep);
        while flood.push(&[b"a\x001:", vec![b'x'; 100_000].as_slice(), b"\n"].concat()) {}
        assert!(flood.text.len() <= text::DEFAULT_BYTES);
    }
}
