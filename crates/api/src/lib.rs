//! The public HTTP contract: bodies as they are on the wire, the error document, and the paths.
//!
//! Everything here is compatible with the OpenComputer API. Fields marked *additive* are Warren's own; clients of
//! the published SDKs never send or need them. Unknown fields in requests are ignored, as those clients expect.

pub mod agents;
pub mod audit;
pub mod checkpoints;
pub mod egress;
pub mod error;
pub mod exec;
pub mod files;
pub mod identity;
pub mod images;
pub mod logs;
pub mod previews;
pub mod pty;
pub mod sandboxes;
pub mod scaling;
pub mod secrets;
pub mod tags;
pub mod tools;
pub mod usage;

pub use error::ErrorBody;

/// Header that names a request in logs and answers.
pub const REQUEST_ID_HEADER: &str = "x-request-id";
/// Header that makes a create repeatable: the same key and body give the same sandbox.
pub const IDEMPOTENCY_KEY_HEADER: &str = "idempotency-key";
/// Header that carries an API key.
pub const API_KEY_HEADER: &str = "x-api-key";
/// *Additive.* On the answer that opens an exec WebSocket: offset of the first output byte it will send.
pub const EXEC_OFFSET_HEADER: &str = "x-warren-exec-offset";

/// *Additive.* How the WebSocket of a terminal says the exit code of its shell: as the reason of the close, `exit 3`.
pub mod pty_end {
    const BEGINS: &str = "exit ";

    #[must_use]
    pub fn reason(code: i32) -> String {
        format!("{BEGINS}{code}")
    }

    #[must_use]
    pub fn code(reason: &str) -> Option<i32> {
        reason.strip_prefix(BEGINS)?.parse().ok()
    }
}

/// Frame kinds of the exec WebSocket: the first byte of each binary message.
pub mod exec_frame {
    /// Client to server: bytes for standard input.
    pub const STDIN: u8 = 0;
    /// Server to client: bytes of standard output.
    pub const STDOUT: u8 = 1;
    /// Server to client: bytes of standard error.
    pub const STDERR: u8 = 2;
    /// Server to client: the exit code, a big-endian `i32`; the server closes after it.
    pub const EXIT: u8 = 3;
    /// Server to client: the replay is over, what follows is live. No payload.
    pub const REPLAY_END: u8 = 4;
    /// *Additive.* Client to server: standard input ends here. No payload.
    pub const STDIN_END: u8 = 5;
}
