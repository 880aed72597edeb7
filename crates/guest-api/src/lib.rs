//! Node to guest agent.
//!
//! The two ends share one byte stream that is not IP: a Unix socket for containers, a serial port or vsock for
//! virtual machines. Each connection starts with a [`handshake`] that agrees on a protocol version; after it the
//! stream is HTTP/2 with prior knowledge, the agent being the server. Requests and answers are JSON
//! ([`exec`], [`pty`], [`files`]); live output and input travel as [`frame`]s in request and response bodies.
//! Errors are `warren_types::Error` as JSON with the status of [`status_of`].
//!
//! | method and path | request | answer |
//! | --- | --- | --- |
//! | `GET /v1/status` | | [`Status`] |
//! | `POST /v1/renew` | [`machine::Renew`]; virtual machines only | [`machine::Renewed`] |
//! | `GET /v1/usage` | | [`machine::Usage`] |
//! | `POST /v1/exec` | [`exec::ExecStart`] | 201 [`exec::Exec`]; 410 when it was started before, under that id, and is forgotten |
//! | `POST /v1/exec/run` | [`exec::ExecStart`] | frames: `Started`, output, `Exit` |
//! | `GET /v1/exec/kept` | | what commands have come to, for the agent that comes after this one; what runs is about to be killed |
//! | `PUT /v1/exec/kept` | the same | 204; from here on they are known as those that have ended |
//! | `GET /v1/exec` | | array of [`exec::Exec`], finished ones for a while |
//! | `GET /v1/exec/{id}` | | [`exec::Exec`] |
//! | `GET /v1/exec/{id}/wait?ms=` | | [`exec::Exec`], as soon as it has exited or after `ms` |
//! | `GET /v1/exec/{id}/output?stream=stdout\|stderr` | | raw bytes kept of that stream so far |
//! | `GET /v1/exec/{id}/replay` | | frames: `Started`, the newest output so far, `ReplayEnd`; attaches nobody |
//! | `POST /v1/exec/{id}/attach?offset=` | | frames: `Started`, replay, `ReplayEnd`, live output, `Exit` |
//! | `POST /v1/exec/{id}/input` | frames: `Stdin`, `StdinEnd` | frames: `InputTaken`, see [`input`] |
//! | `POST /v1/exec/{id}/kill` | [`exec::Kill`] | 204 |
//! | `POST /v1/logs` | [`logs::Query`] | JSON lines of [`logs::Row`], a blank one after the history |
//! | `GET /v1/logs/journal` | | the files of the [`logs::journal`], oldest first, as one stream |
//! | `POST /v1/pty` | [`pty::PtyStart`] | 201 [`pty::Pty`] |
//! | `GET /v1/pty` | | array of [`pty::Pty`] |
//! | `POST /v1/pty/{id}/attach` | | frames: `Stdout` (scrollback first), `Exit` |
//! | `POST /v1/pty/{id}/input` | frames: `Stdin` | frames: `InputTaken`, see [`input`] |
//! | `POST /v1/pty/{id}/resize` | [`pty::Resize`] | 204 |
//! | `DELETE /v1/pty/{id}` | | 204 |
//! | `POST /v1/ports/{port}` | bytes for the connection | bytes of the connection, see [`ports`] |
//! | `GET`, `HEAD /v1/files?path=` | header `Range` | 200 or 206 bytes |
//! | `PUT /v1/files?path=&mode=` | bytes | 204 |
//! | `DELETE /v1/files?path=` | | 204 |
//! | `GET /v1/files/list?path=` | | lines of [`files::Entry`] as JSON, by name |
//! | `GET /v1/files/stat?path=` | | [`files::Stat`] |
//! | `POST /v1/files/mkdir?path=&owner=` | | 204; with `owner=user` a new one is the user's wherever it is |
//! | `POST /v1/files/move` | [`files::Move`] | 204 |
//! | `POST /v1/files/chmod` | [`files::Chmod`] | 204 |
//! | `GET /v1/files/archive?path=` | | a tar stream of that folder |
//! | `PUT /v1/files/archive?path=` | a tar stream | 204, unpacked into that folder |
//!
//! The agent is a guest: the node treats every byte of an answer as hostile.

pub mod boot;
pub mod exec;
pub mod files;
pub mod frame;
pub mod handshake;
pub mod input;
pub mod logs;
pub mod machine;
pub mod network;
pub mod ports;
pub mod pty;
pub mod text;

use serde::{Deserialize, Serialize};
use warren_types::ErrorKind;

/// Largest JSON document either side accepts, in bytes. File contents and output are not JSON.
pub const MAX_JSON_BYTES: usize = 4 * 1024 * 1024;

/// Answer of `GET /v1/status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// Version of the agent program, for people.
    pub agent_version: String,
    pub uptime_ms: u64,
    pub execs_running: u32,
    pub ptys_running: u32,
}

/// The HTTP status that carries an error of this kind between programs.
#[must_use]
pub fn status_of(kind: ErrorKind) -> u16 {
    match kind {
        ErrorKind::Invalid => 400,
        ErrorKind::Unauthenticated => 401,
        ErrorKind::Forbidden => 403,
        ErrorKind::NotFound => 404,
        ErrorKind::Conflict => 409,
        ErrorKind::Gone => 410,
        ErrorKind::TooLarge => 413,
        ErrorKind::LimitReached => 429,
        ErrorKind::Internal => 500,
        ErrorKind::Unsupported => 501,
        ErrorKind::SandboxFailed => 502,
        ErrorKind::Unavailable => 503,
    }
}
