//! The files rows are kept in, as the agent writes them and agent and node read them.
//!
//! A journal is a series of files, newest last, of JSON lines:
//!
//! ```text
//! {"warren_journal":1}                                              the first line of every file: its format
//! {"x":"0123abcd","c":"sh","a":["sh","-c","echo hi"]}               a command, before its first row in this file
//! {"t":1767225600000,"s":"exec_stdout","x":"0123abcd","d":87,"l":"hi"}   a row; `d` bytes before it stands its command
//! {"t":1767225600001,"s":"var_log","p":"/var/log/app.log","l":"up"}      a row
//! ```
//!
//! Distances count backwards within a file, so files can be put one behind the other and read as one. There are no
//! checksums: the files lie where root of the sandbox can write, so whatever is not a whole record is passed over, and
//! the worst that can be forged is what could have been logged. Reading takes a bounded amount of memory, whatever the
//! files hold.

mod lines;
mod read;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use warren_types::ExecId;

pub use self::read::{Commands, History, Part, read_on};
use super::Source;

/// First line of every file. A reader passes over files' first lines as over anything that is no row.
pub const HEADER: &[u8] = b"{\"warren_journal\":1}\n";
/// Longest record. What is longer is not one.
const MAX_RECORD: usize = super::MAX_ROW_BYTES;

#[derive(Serialize, Deserialize)]
struct RowRecord<'a> {
    #[serde(rename = "t")]
    time_ms: u64,
    #[serde(rename = "s")]
    source: Source,
    #[serde(rename = "p", default, skip_serializing_if = "Option::is_none")]
    path: Option<Cow<'a, str>>,
    #[serde(rename = "x", default, skip_serializing_if = "Option::is_none")]
    exec_id: Option<Cow<'a, str>>,
    #[serde(rename = "d", default, skip_serializing_if = "Option::is_none")]
    command_distance: Option<u64>,
    #[serde(rename = "e", default, skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(rename = "l", borrow)]
    line: Cow<'a, str>,
}

#[derive(Serialize, Deserialize)]
struct CommandRecord<'a> {
    #[serde(rename = "x")]
    exec_id: Cow<'a, str>,
    #[serde(rename = "c")]
    command: Cow<'a, str>,
    #[serde(rename = "a", default, skip_serializing_if = "<[_]>::is_empty")]
    argv: Cow<'a, [String]>,
}

/// A row that is to be written.
#[derive(Debug, Clone, Copy)]
pub struct NewRow<'a> {
    pub time_ms: u64,
    pub source: Source,
    pub line: &'a str,
    pub path: Option<&'a str>,
    /// Its command, and how many bytes before this record that was written.
    pub command: Option<(&'a ExecId, u64)>,
    pub exit_code: Option<i32>,
}

impl NewRow<'_> {
    /// Appends its record.
    pub fn write(&self, to: &mut Vec<u8>) {
        write(
            to,
            &RowRecord {
                time_ms: self.time_ms,
                source: self.source,
                path: self.path.map(Cow::Borrowed),
                exec_id: self.command.map(|(id, _)| Cow::Borrowed(id.as_str())),
                command_distance: self.command.map(|(_, distance)| distance),
                exit_code: self.exit_code,
                line: Cow::Borrowed(self.line),
            },
        );
    }
}

/// Appends the record of a command.
pub fn write_command(to: &mut Vec<u8>, id: &ExecId, command: &str, argv: &[String]) {
    let record = CommandRecord {
        exec_id: Cow::Borrowed(id.as_str()),
        command: Cow::Borrowed(command),
        argv: Cow::Borrowed(argv),
    };
    write(to, &record);
}

fn write(to: &mut Vec<u8>, record: &impl Serialize) {
    serde_json::to_writer(&mut *to, record).expect("strings and numbers have a JSON form");
    to.push(b'\n');
}

#[cfg(test)]
mod tests;
