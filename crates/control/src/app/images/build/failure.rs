//! What is told of a step whose program failed: what the program said of it, which one it was, and the end of its output.
//! The log of the build has all of it, but whoever made the request may see nothing else.

use std::collections::VecDeque;

use warren_guest_api::exec::ExecStart;

use crate::app::images::steps::in_one_line;

/// Of standard error, in characters: its beginning.
const TOLD: usize = 500;
/// Of all output: its last lines, and characters of each.
const LAST_LINES: usize = 10;
const LAST_LINE: usize = 200;

/// What a program has said so far.
#[derive(Debug, Default)]
pub(super) struct Said {
    stderr: Vec<u8>,
    /// There is output besides what is kept of standard error.
    more: bool,
    last: VecDeque<String>,
}

impl Said {
    pub(super) fn error(&mut self, bytes: &[u8]) {
        // A character has at most four bytes.
        let room = (TOLD * 4).saturating_sub(self.stderr.len());
        self.stderr.extend_from_slice(&bytes[..bytes.len().min(room)]);
        self.more |= bytes.len() > room;
    }

    pub(super) fn output(&mut self, bytes: &[u8]) {
        self.more |= !bytes.trim_ascii().is_empty();
    }

    /// A line of either, as it stands in the log.
    pub(super) fn line(&mut self, line: &str) {
        let line = line.trim_end();
        if line.is_empty() {
            return;
        }
        if self.last.len() == LAST_LINES {
            self.last.pop_front();
        }
        self.last.push_back(match line.char_indices().nth(LAST_LINE) {
            Some((end, _)) => format!("{}…", &line[..end]),
            None => line.to_owned(),
        });
    }

    /// In words, why the program has ended. `why` is known where it did not end by itself.
    pub(super) fn told(&self, start: &ExecStart, why: Option<&str>) -> String {
        let command = command_of(start);
        let stderr = String::from_utf8_lossy(&self.stderr);
        let mut rest = stderr.trim_end().chars();
        let error: String = rest.by_ref().take(TOLD).collect();
        let has_more = self.more || rest.next().is_some() || (why.is_some() && !error.is_empty());
        let end: String = match has_more {
            true => self.last.iter().map(|line| format!("\n  {line}")).collect(),
            false => String::new(),
        };
        match (why, error.trim_end(), end.as_str()) {
            (None, "", "") => format!("`{command}` wrote nothing"),
            (None, "", end) => format!("`{command}` wrote no error, and last:{end}"),
            (Some(error), _, "") | (None, error, "") => format!("{error}\nThe command was `{command}`."),
            (Some(error), _, end) | (None, error, end) => {
                format!("{error}\nThe command was `{command}`. Last it wrote:{end}")
            }
        }
    }
}

/// As whoever wrote the step would say it: of a shell, what it was given.
fn command_of(start: &ExecStart) -> String {
    match start.args.as_slice() {
        [option, script] if option == "-c" => in_one_line(script),
        args => in_one_line(&[std::slice::from_ref(&start.cmd), args].concat().join(" ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(cmd: &str, args: &[&str]) -> ExecStart {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        ExecStart { cmd: cmd.to_owned(), args, ..ExecStart::default() }
    }

    #[test]
    fn the_command_is_always_told() {
        let shell = start("/bin/bash", &["-c", "make\n&& make test"]);
        let said = Said::default();
        assert_eq!(said.told(&shell, None), "`make && make test` wrote nothing");
        assert_eq!(said.told(&shell, Some("too late")), "too late\nThe command was `make && make test`.");
        let apt = start("apt-get", &["install", "-y", "--", "nonsense"]);
        let mut said = Said::default();
        said.error(b"E: no such package\n");
        said.line("E: no such package");
        let told = "E: no such package\nThe command was `apt-get install -y -- nonsense`.";
        assert_eq!(said.told(&apt, None), told);
        said.output(b"Reading\n");
        said.line("Reading");
        assert_eq!(said.told(&apt, None), format!("{told} Last it wrote:\n  E: no such package\n  Reading"));
    }

    #[test]
    fn the_end_of_much_output_is_told_and_no_more() {
        let mut said = Said::default();
        for number in 0..100 {
            let line = format!("{number} {}", "é".repeat(500));
            said.output(line.as_bytes());
            said.line(&line);
            said.line("  ");
        }
        let told = said.told(&start("/bin/sh", &["-c", "long"]), None);
        assert!(told.starts_with("`long` wrote no error, and last:\n  90 éé"), "{told}");
        assert_eq!((told.lines().count(), told.contains("\n  99 é")), (11, true));
        assert!(told.lines().all(|line| line.chars().count() <= LAST_LINE + 3), "{told}");
        let mut said = Said::default();
        said.error("é".repeat(5000).as_bytes());
        let told = said.told(&start("/bin/sh", &["-c", "long"]), None);
        assert!(told.starts_with(&format!("{}\nThe command", "é".repeat(500))), "{told}");
    }
}
