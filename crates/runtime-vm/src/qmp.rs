//! QEMU's control channel: one JSON document a line, one command at a time.
//!
//! A QEMU that its guest has taken over may say anything here: lines are bounded, answers are matched by id, events are
//! skipped, and every command has a deadline. Arguments and answers are plain JSON: types generated from one QEMU's schema
//! break on the next.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

/// Longest line taken.
const MAX_LINE: usize = 1 << 20;
/// A command that takes longer has failed; none of ours waits for a guest.
const DEADLINE: Duration = Duration::from_secs(20);
/// Lines read while waiting for one answer; a QEMU that only sends events has failed too.
const MAX_LINES: usize = 10_000;

#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    #[error("could not connect to QEMU's control channel")]
    Connect(#[source] io::Error),
    #[error("QEMU's control channel broke during {command}")]
    Broken { command: String, source: io::Error },
    #[error("QEMU did not answer {command} within {} s", DEADLINE.as_secs())]
    TooSlow { command: String },
    #[error("QEMU answered {command} with something that is not understood: {what}")]
    Nonsense { command: String, what: String },
    #[error("QEMU refused {command}: {reason}")]
    Refused { command: String, reason: String },
}

type Result<T> = std::result::Result<T, QmpError>;

/// A connection; QEMU takes one at a time.
pub struct Qmp {
    stream: UnixStream,
    received: Vec<u8>,
    next_id: u64,
}

/// A line from QEMU, of whichever kind.
#[derive(Deserialize)]
struct Line {
    id: Option<u64>,
    #[serde(rename = "return")]
    answer: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

impl Qmp {
    /// Connects to the socket at `path` and leaves the negotiation behind.
    pub async fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).await.map_err(QmpError::Connect)?;
        let mut qmp = Self { stream, received: Vec::new(), next_id: 1 };
        qmp.within("greeting", async |qmp| {
            let line = qmp.line("greeting").await?;
            match line.greeting {
                Some(_) => Ok(()),
                None => Err(nonsense("greeting", "no greeting")),
            }
        })
        .await?;
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Runs a command and returns its answer.
    pub async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.within(command, async |qmp| {
            let (id, request) = qmp.request(command, &arguments);
            qmp.stream.write_all(&request).await.map_err(broken(command))?;
            qmp.answer(command, id).await
        })
        .await
    }

    /// The same, handing over a descriptor that the command is about.
    pub async fn execute_with_descriptor(
        &mut self,
        command: &str,
        arguments: Value,
        descriptor: BorrowedFd<'_>,
    ) -> Result<Value> {
        self.within(command, async |qmp| {
            let (id, request) = qmp.request(command, &arguments);
            let sent = qmp
                .stream
                .async_io(Interest::WRITABLE, || {
                    send_with_descriptor(qmp.stream.as_fd(), &request, descriptor)
                })
                .await
                .map_err(broken(command))?;
            // The descriptor goes with the first byte.
            qmp.stream.write_all(&request[sent..]).await.map_err(broken(command))?;
            qmp.answer(command, id).await
        })
        .await
    }

    async fn within<T>(
        &mut self,
        command: &str,
        work: impl AsyncFnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        tokio::time::timeout(DEADLINE, work(self))
            .await
            .map_err(|_| QmpError::TooSlow { command: command.into() })?
    }

    fn request(&mut self, command: &str, arguments: &Value) -> (u64, Vec<u8>) {
        let id = self.next_id;
        self.next_id += 1;
        let request = json!({ "execute": command, "arguments": arguments, "id": id });
        (id, format!("{request}\r\n").into_bytes())
    }

    async fn answer(&mut self, command: &str, id: u64) -> Result<Value> {
        for _ in 0..MAX_LINES {
            let line = self.line(command).await?;
            match line {
                Line { event: Some(_), .. } => {}
                Line { error: Some(refusal), .. } => {
                    return Err(QmpError::Refused { command: command.into(), reason: refusal.desc });
                }
                Line { id: Some(answered), answer: Some(answer), .. } if answered == id => return Ok(answer),
                _ => return Err(nonsense(command, "an answer to something else")),
            }
        }
        Err(nonsense(command, "events without end"))
    }

    async fn line(&mut self, command: &str) -> Result<Line> {
        let mut searched = 0;
        loop {
            if let Some(found) = self.received[searched..].iter().position(|&byte| byte == b'\n') {
                let rest = self.received.split_off(searched + found + 1);
                let line = std::mem::replace(&mut self.received, rest);
                return serde_json::from_slice(&line).map_err(|error| nonsense(command, error));
            }
            searched = self.received.len();
            if searched > MAX_LINE {
                return Err(nonsense(command, "a line without end"));
            }
            let read = self.stream.read_buf(&mut self.received).await.map_err(broken(command))?;
            if read == 0 {
                return Err(broken(command)(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

fn broken(command: &str) -> impl FnOnce(io::Error) -> QmpError {
    move |source| QmpError::Broken { command: command.into(), source }
}

fn nonsense(command: &str, what: impl std::fmt::Display) -> QmpError {
    QmpError::Nonsense { command: command.into(), what: what.to_string() }
}

fn send_with_descriptor(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptor: BorrowedFd<'_>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    let pushed = ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    debug_assert!(pushed, "the buffer is made for one descriptor");
    rustix::net::sendmsg(socket, &[io::IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)
        .map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A QEMU that says `lines` after the negotiation, whatever it is asked.
    async fn saying(lines: &'static str) -> (tempfile::TempDir, Qmp) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"{\"QMP\": {\"version\": {}}}\r\n").await.unwrap();
            let mut asked = [0; 4096];
            let _ = stream.read(&mut asked).await.unwrap();
            stream.write_all(b"{\"return\": {}, \"id\": 1}\r\n").await.unwrap();
            let _ = stream.read(&mut asked).await.unwrap();
            let _ = stream.write_all(lines.as_bytes()).await;
        });
        let qmp = Qmp::connect(&path).await.unwrap();
        (folder, qmp)
    }

    #[tokio::test]
    async fn answers_are_found_among_events() {
        let lines = "{\"event\": \"STOP\", \"timestamp\": {}}\r\n{\"return\": {\"status\": \"paused\"}, \"id\": 2}\r\n";
        let (_folder, mut qmp) = saying(lines).await;
        let answer = qmp.execute("query-status", json!({})).await.unwrap();
        assert_eq!(answer["status"], "paused");
    }

    #[tokio::test]
    async fn refusals_nonsense_and_the_end_are_told_apart() {
        let (_folder, mut qmp) =
            saying("{\"id\": 2, \"error\": {\"class\": \"X\", \"desc\": \"no\"}}\r\n").await;
        assert!(matches!(qmp.execute("cont", json!({})).await, Err(QmpError::Refused { .. })));
        let (_folder, mut qmp) = saying("not json\r\n").await;
        assert!(matches!(qmp.execute("cont", json!({})).await, Err(QmpError::Nonsense { .. })));
        let (_folder, mut qmp) = saying("{\"return\": {}, \"id\": 99}\r\n").await;
        assert!(matches!(qmp.execute("cont", json!({})).await, Err(QmpError::Nonsense { .. })));
        let (_folder, mut qmp) = saying("{\"return\"").await;
        assert!(matches!(qmp.execute("cont", json!({})).await, Err(QmpError::Broken { .. })));
    }
}
